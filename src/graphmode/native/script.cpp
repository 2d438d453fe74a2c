// Registers hold what the program's values are at a call; an instruction names those that it takes, gives and drops.
// What a value will be, a tensor or an integer, is known when the script is made, so that no conversion can fail when
// half of the calls have run.
#include "script.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/irange.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/csrc/utils/python_arg_parser.h>

#include <optional>
#include <string>
#include <vector>

namespace graphmode {

namespace {

namespace py = pybind11;

// A value of the program, as it stands among an instruction's arguments.
struct Register {
  size_t number;
};

struct Unscriptable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Argument {
  enum Kind : uint8_t { Constant, Value, List } kind = Constant;
  c10::IValue constant;
  size_t value = 0;
  c10::TypePtr element;  // of a list with values in it
  std::vector<Argument> items;
};

struct Instruction {
  enum Kind : uint8_t { Call, Item, Number, Data } kind = Call;
  std::optional<c10::OperatorHandle> op;
  std::vector<Argument> args;
  size_t at = 0;  // of an item
  char arithmetic = 0;
  size_t out = 0;
  std::vector<size_t> drops;
};

bool is_int(const c10::TypePtr& type) {
  return type->kind() == c10::TypeKind::IntType || type->kind() == c10::TypeKind::SymIntType;
}

c10::TypePtr without_optional(const c10::TypePtr& type) {
  const auto optional = type->cast<c10::OptionalType>();
  return optional ? optional->getElementType() : type;
}

// Python's // and % round towards minus infinity.
int64_t floor_div(int64_t a, int64_t b) {
  TORCH_CHECK(b != 0, "integer division or modulo by zero");
  return a / b - static_cast<int64_t>(a % b != 0 && (a < 0) != (b < 0));
}

int64_t compute(char arithmetic, int64_t a, int64_t b) {
  switch (arithmetic) {
    case '+':
      return a + b;
    case '-':
      return a - b;
    case '*':
      return a * b;
    case '/':
      return floor_div(a, b);
    case '%':
      return a - floor_div(a, b) * b;
    case '<':
      return std::min(a, b);
    default:
      return std::max(a, b);
  }
}

class Script {
 public:
  // The kinds of the inputs: 't' for a tensor, 'i' for an integer, '?' for what no call may take.
  explicit Script(const std::string& inputs) {
    for (const char kind : inputs) {
      types_.push_back(kind == 't'   ? c10::TypePtr(c10::TensorType::get())
                       : kind == 'i' ? c10::TypePtr(c10::IntType::get())
                                     : c10::TypePtr(c10::NoneType::get()));
    }
    inputs_ = types_.size();
  }

  size_t constant(const at::Tensor& tensor) {
    constants_.emplace_back(types_.size(), tensor);
    types_.push_back(c10::TensorType::get());
    return types_.size() - 1;
  }

  size_t call(const std::string& name, const std::string& overload, const py::args& args, const py::kwargs& kwargs) {
    const auto op = c10::Dispatcher::singleton().findSchema({name, overload});
    if (!op) {
      throw Unscriptable(name + " is no op of the dispatcher's");
    }
    // As torch's Python does it for operators; elsewhere a number is no tensor.
    const auto symbol = c10::Symbol::fromQualString(name);
    const torch::jit::ToIValueAllowNumbersAsTensors numbers(
        symbol.is_prims() || (symbol.is_aten() && torch::should_allow_numbers_as_tensors(symbol.toUnqualString())));
    Instruction made;
    made.op = *op;
    const auto& schema = op->schema();
    if (schema.is_vararg() || schema.is_varret() || args.size() > schema.arguments().size()) {
      throw Unscriptable(name + " takes any number of arguments");
    }
    for (const auto i : c10::irange(schema.arguments().size())) {
      const auto& argument = schema.arguments()[i];
      if (i < args.size()) {
        made.args.push_back(argument_of(args[i], argument.type()));
      } else if (kwargs.contains(argument.name())) {
        made.args.push_back(argument_of(kwargs[argument.name().c_str()], argument.type()));
      } else if (argument.default_value()) {
        made.args.emplace_back();
        made.args.back().constant = *argument.default_value();
      } else {
        throw Unscriptable(name + " is called without " + argument.name());
      }
    }
    const auto& returns = schema.returns();
    std::vector<c10::TypePtr> types;
    for (const auto& r : returns) {
      types.push_back(r.type());
    }
    types_.push_back(returns.empty()       ? c10::TypePtr(c10::NoneType::get())
                     : returns.size() == 1 ? types[0]
                                           : c10::TypePtr(c10::TupleType::create(types)));
    return add(std::move(made));
  }

  size_t item(const Register& of, size_t index) {
    const auto& type = types_.at(of.number);
    if (const auto list = type->cast<c10::ListType>()) {
      types_.push_back(list->getElementType());
    } else if (const auto tuple = type->cast<c10::TupleType>(); tuple && index < tuple->elements().size()) {
      types_.push_back(tuple->elements()[index]);
    } else {
      throw Unscriptable("an item of what is neither a list nor a tuple");
    }
    Instruction made;
    made.kind = Instruction::Item;
    made.args.push_back(value(of));
    made.at = index;
    return add(std::move(made));
  }

  size_t number(char arithmetic, const py::object& a, const py::object& b) {
    Instruction made;
    made.kind = Instruction::Number;
    made.arithmetic = arithmetic;
    made.args.push_back(argument_of(a, c10::IntType::get()));
    made.args.push_back(argument_of(b, c10::IntType::get()));
    types_.push_back(c10::IntType::get());
    return add(std::move(made));
  }

  // `x.data`, which is no op of the dispatcher's.
  size_t data(const Register& of) {
    Instruction made;
    made.kind = Instruction::Data;
    made.args.push_back(value(of));
    if (!fits(of.number, c10::TensorType::get())) {
      throw Unscriptable("the data of what is no tensor");
    }
    types_.push_back(c10::TensorType::get());
    return add(std::move(made));
  }

  // The values that nobody uses after the last instruction: they go as soon as it has run.
  void drop(const std::vector<size_t>& values) {
    instructions_.back().drops = values;
  }

  void results(const py::list& values) {
    for (const auto& v : values) {
      if (py::isinstance<Register>(v)) {
        const auto number = v.cast<Register>().number;
        if (number < inputs_ && types_[number]->kind() == c10::TypeKind::NoneType) {
          throw Unscriptable("an argument of an unknown kind is a result");
        }
        results_.emplace_back(number, py::none());
      } else {
        results_.emplace_back(std::nullopt, py::reinterpret_borrow<py::object>(v));
      }
    }
  }

  // The results, or None and nothing has run, where an argument is not of the kind that the script was made for.
  py::object run(const py::tuple& args) const {
    if (args.size() != inputs_) {
      return py::none();
    }
    std::vector<c10::IValue> registers(types_.size());
    for (const auto i : c10::irange(inputs_)) {
      PyObject* given = args[i].ptr();
      if (types_[i]->kind() == c10::TypeKind::TensorType) {
        if (!THPVariable_CheckExact(given)) {
          return py::none();
        }
        registers[i] = THPVariable_Unpack(given);
      } else if (is_int(types_[i])) {
        const long integer = PyLong_CheckExact(given) ? PyLong_AsLong(given) : -1;
        if (!PyLong_CheckExact(given) || (integer == -1 && PyErr_Occurred() != nullptr)) {
          PyErr_Clear();
          return py::none();
        }
        registers[i] = static_cast<int64_t>(integer);
      }
    }
    {
      py::gil_scoped_release no_gil;
      for (const auto& [number, tensor] : constants_) {
        registers[number] = tensor;
      }
      torch::jit::Stack stack;
      for (const auto& i : instructions_) {
        execute(i, registers, stack);
      }
    }
    py::list results;
    for (const auto& [number, constant] : results_) {
      results.append(number ? torch::jit::toPyObject(registers[*number]) : constant);
    }
    return std::move(results);
  }

 private:
  size_t add(Instruction made) {
    made.out = types_.size() - 1;
    instructions_.push_back(std::move(made));
    return instructions_.back().out;
  }

  Argument value(const Register& of) const {
    TORCH_CHECK_INDEX(of.number < types_.size(), "no value ", of.number);
    Argument made;
    made.kind = Argument::Value;
    made.value = of.number;
    return made;
  }

  // Whether a value can stand where a schema asks for `wanted`.
  bool fits(size_t number, const c10::TypePtr& wanted) const {
    const auto& have = types_[number];
    return *have == *wanted || (is_int(have) && (is_int(wanted) || wanted->kind() == c10::TypeKind::NumberType));
  }

  Argument argument_of(const py::handle& given, const c10::TypePtr& optional) const {
    const auto type = without_optional(optional);
    if (py::isinstance<Register>(given)) {
      auto made = value(given.cast<Register>());
      if (!fits(made.value, type)) {
        throw Unscriptable("a value of the program of type " + types_[made.value]->repr_str() + " where " +
                           type->repr_str() + " is taken");
      }
      return made;
    }
    Argument made;
    const auto list = type->cast<c10::ListType>();
    if (list && (py::isinstance<py::list>(given) || py::isinstance<py::tuple>(given)) && has_values(given)) {
      made.kind = Argument::List;
      made.element = list->getElementType();
      for (const auto& item : given) {
        made.items.push_back(argument_of(item, made.element));
      }
      return made;
    }
    try {
      made.constant = torch::jit::toIValue(given, optional);
    } catch (const std::exception& e) {  // what torch itself converts in another way, as numbers that become tensors
      throw Unscriptable("a constant where " + type->repr_str() + " is taken");
    }
    return made;
  }

  static bool has_values(const py::handle& sequence) {
    for (const auto& item : sequence) {
      if (py::isinstance<Register>(item)) {
        return true;
      }
    }
    return false;
  }

  static c10::IValue evaluate(const Argument& a, const std::vector<c10::IValue>& registers) {
    if (a.kind == Argument::Constant) {
      return a.constant;
    }
    if (a.kind == Argument::Value) {
      return registers[a.value];
    }
    if (is_int(a.element)) {
      std::vector<int64_t> items;
      for (const auto& i : a.items) {
        items.push_back(evaluate(i, registers).toInt());
      }
      return items;
    }
    c10::impl::GenericList items(a.element);
    for (const auto& i : a.items) {
      items.push_back(evaluate(i, registers));
    }
    return items;
  }

  static void execute(const Instruction& i, std::vector<c10::IValue>& registers, torch::jit::Stack& stack) {
    if (i.kind == Instruction::Item) {
      const auto& of = registers[i.args[0].value];
      registers[i.out] = of.isTuple() ? of.toTupleRef().elements()[i.at] : of.toListRef().at(i.at);
    } else if (i.kind == Instruction::Number) {
      registers[i.out] =
          compute(i.arithmetic, evaluate(i.args[0], registers).toInt(), evaluate(i.args[1], registers).toInt());
    } else if (i.kind == Instruction::Data) {
      registers[i.out] = registers[i.args[0].value].toTensor().variable_data();
    } else {
      stack.clear();
      for (const auto& a : i.args) {
        stack.push_back(evaluate(a, registers));
      }
      i.op->callBoxed(stack);
      if (stack.size() == 1) {
        registers[i.out] = std::move(stack[0]);
      } else if (!stack.empty()) {
        registers[i.out] = c10::ivalue::Tuple::create(std::move(stack));
      }
      stack.clear();
    }
    for (const size_t d : i.drops) {
      registers[d] = c10::IValue();
    }
  }

  size_t inputs_ = 0;
  std::vector<c10::TypePtr> types_;  // of the registers
  std::vector<std::pair<size_t, at::Tensor>> constants_;
  std::vector<Instruction> instructions_;
  std::vector<std::pair<std::optional<size_t>, py::object>> results_;
};

}  // namespace

void bind_script(py::module_& m) {
  py::register_exception<Unscriptable>(m, "Unscriptable");
  py::class_<Register>(m, "Register").def(py::init<size_t>()).def_readonly("number", &Register::number);
  py::class_<Script>(m, "Script")
      .def(py::init<const std::string&>())
      .def("constant", &Script::constant)
      .def("call", &Script::call)
      .def("item", &Script::item)
      .def("number", &Script::number)
      .def("data", &Script::data)
      .def("drop", &Script::drop)
      .def("results", &Script::results)
      .def("run", [](const Script& script, const py::tuple& args) -> py::object {
        // An op's own error, as Python code that calls it raises it.
        return torch::wrap_pybind_function([&](const py::tuple& given) { return script.run(given); })(args);
      });
}

}  // namespace graphmode
