// Registers hold what the program's values are at a call; an instruction names those that it takes, gives and drops.
// What a value will be, a tensor, an integer or an object, is known when the script is made, and integers that follow
// from the arguments are computed first, so that none of both can fail when half of the calls have run. Constants are
// those of that time.
#include "script.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/irange.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/python/pybind_utils.h>
#include <torch/csrc/utils/python_arg_parser.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "recorder.h"
#include "row_runs.h"

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

[[noreturn]] void raise(PyObject* kind, const char* what) {
  const py::gil_scoped_acquire gil;
  PyErr_SetString(kind, what);
  python_error error;
  error.persist();
  throw error;
}

struct Argument {
  enum Kind : uint8_t { Constant, Value, List } kind = Constant;
  c10::IValue constant;
  size_t value = 0;
  c10::TypePtr element;  // of a list that is made at each call
  std::vector<Argument> items;
};

struct Instruction {
  enum Kind : uint8_t { Call, Item, Number, Data, Python } kind = Call;
  std::optional<c10::OperatorHandle> op;
  std::vector<Argument> args;
  size_t at = 0;  // of an item
  char arithmetic = 0;
  size_t out = 0;
  std::vector<size_t> drops;
};

// Instructions that may be one kernel, as RowRun knows them.
struct Run {
  size_t begin, end;
  std::vector<size_t> inputs;  // registers
  std::shared_ptr<RowRun> rows;
};

// Whether an op called from Python would go to the dispatcher at once. The class of a weight may have functions of its
// own: Dynamo has traced them, and turns them off for what it compiled.
bool is_called_as_a_tensor(PyObject* given) {
  return THPVariable_CheckExact(given) ||
         (THPVariable_Check(given) &&
          at::impl::PythonTorchFunctionTLS::get_disabled_state() != at::impl::TorchFunctionDisabledState::ENABLED);
}

bool is_int(const c10::TypePtr& type) {
  return type->kind() == c10::TypeKind::IntType || type->kind() == c10::TypeKind::SymIntType;
}

c10::TypePtr without_optional(const c10::TypePtr& type) {
  const auto optional = type->cast<c10::OptionalType>();
  return optional ? optional->getElementType() : type;
}

// Python's numbers have no end, and its // and % round towards minus infinity. Nothing where these have no place.
std::optional<int64_t> compute(char arithmetic, int64_t a, int64_t b) {
  int64_t result = 0;
  if (arithmetic == '+') {
    return __builtin_add_overflow(a, b, &result) ? std::nullopt : std::make_optional(result);
  }
  if (arithmetic == '-') {
    return __builtin_sub_overflow(a, b, &result) ? std::nullopt : std::make_optional(result);
  }
  if (arithmetic == '*') {
    return __builtin_mul_overflow(a, b, &result) ? std::nullopt : std::make_optional(result);
  }
  if (arithmetic == '<' || arithmetic == '>') {
    return arithmetic == '<' ? std::min(a, b) : std::max(a, b);
  }
  if (b == 0 || b == -1) {
    return b == 0 || a == INT64_MIN ? std::nullopt : std::make_optional(arithmetic == '/' ? -a : 0);
  }
  const bool down = a % b != 0 && (a < 0) != (b < 0);
  return arithmetic == '/' ? a / b - static_cast<int64_t>(down) : a % b + (down ? b : 0);
}

class Script {
 public:
  // The kinds of the inputs: 't' for a tensor, 'i' for an integer, '?' for another object, which goes to ops whose
  // schema takes one, to switches of modes and to the results. `fuel`: how many runs of calls may become row kernels.
  Script(const std::string& inputs, int fuel) : fuel_(fuel) {
    for (const char kind : inputs) {
      types_.push_back(kind == 't'   ? c10::TypePtr(c10::TensorType::get())
                       : kind == 'i' ? c10::TypePtr(c10::IntType::get())
                                     : c10::TypePtr(c10::PyObjectType::get()));
    }
    inputs_ = types_.size();
    early_.assign(inputs_, true);
  }

  size_t constant(const at::Tensor& tensor) {
    constants_.emplace_back(types_.size(), tensor);
    types_.push_back(c10::TensorType::get());
    early_.push_back(false);
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
    const c10::InferenceMode off(false);  // of such a number, which outlives the call
    Instruction made;
    made.op = *op;
    const auto& schema = op->schema();
    if (schema.is_vararg() || schema.is_varret()) {
      throw Unscriptable(name + " takes any number of arguments");
    }
    size_t taken = 0;
    for (const auto i : c10::irange(schema.arguments().size())) {
      const auto& argument = schema.arguments()[i];
      Argument next;
      if (i < args.size() && !argument.kwarg_only()) {
        next = argument_of(args[i], argument.real_type(), argument.N());
        ++taken;
      } else if (kwargs.contains(argument.name())) {
        next = argument_of(kwargs[argument.name().c_str()], argument.real_type(), argument.N());
        ++taken;
      } else if (argument.default_value()) {
        next.constant = *argument.default_value();
      } else {
        throw Unscriptable(name + " is called without " + argument.name());
      }
      const bool of_torch = symbol.is_aten() || symbol.is_prims();
      made.args.push_back(of_torch ? std::move(next) : made_anew(std::move(next), argument.type()));
    }
    if (taken != args.size() + kwargs.size()) {
      throw Unscriptable(name + " is called with arguments that it does not take");
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
    const bool early = std::all_of(made.args.begin(), made.args.end(),
                                   [&](const Argument& x) { return x.kind == Argument::Constant || early_[x.value]; });
    if (!early) {
      return add(std::move(made));
    }
    made.out = types_.size() - 1;
    early_.push_back(true);
    first_.push_back(std::move(made));
    return first_.back().out;
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

  // A call of Python that neither takes nor gives tensors, as a switch of modes is: of constants, and of what another
  // such call gave.
  size_t python(const py::object& function, const py::args& args) {
    Instruction made;
    made.kind = Instruction::Python;
    const auto any = c10::PyObjectType::get();
    made.args.emplace_back().constant = torch::jit::toIValue(function, any);
    for (const auto& a : args) {
      made.args.push_back(argument_of(a, any));
    }
    types_.emplace_back(any);
    return add(std::move(made));
  }

  // The values that nobody uses after the last instruction: they go as soon as it has run.
  void drop(const std::vector<size_t>& values) {
    if (!instructions_.empty()) {
      // Objects that are arguments live as long as the call's tuple: each would wait for the interpreter for nothing.
      std::copy_if(values.begin(), values.end(), std::back_inserter(instructions_.back().drops),
                   [&](size_t v) { return v >= inputs_ || types_[v]->kind() != c10::TypeKind::PyObjectType; });
    }
  }

  void results(const py::list& values) {
    for (const auto& v : values) {
      if (py::isinstance<Register>(v)) {
        const auto number = v.cast<Register>().number;
        results_.emplace_back(number, py::none());
      } else if (v.is_none() || PyLong_Check(v.ptr()) || PyFloat_Check(v.ptr()) || PyUnicode_Check(v.ptr())) {
        results_.emplace_back(std::nullopt, py::reinterpret_borrow<py::object>(v));
      } else {
        throw Unscriptable("a result that is neither a value nor a plain constant");
      }
    }
    find_runs();
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
        if (!is_called_as_a_tensor(given)) {
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
      } else if (given != Py_None) {
        registers[i] = torch::jit::toIValue(args[i], types_[i]);
      }
    }
    for (const auto& i : first_) {
      const auto result =
          compute(i.arithmetic, evaluate(i.args[0], registers).toInt(), evaluate(i.args[1], registers).toInt());
      if (!result) {
        return py::none();  // a number beyond 64 bits, or a division by zero: Python's to give or to raise
      }
      registers[i.out] = *result;
    }
    {
      py::gil_scoped_release no_gil;
      for (const auto& [number, tensor] : constants_) {
        registers[number] = tensor;
      }
      torch::jit::Stack stack;
      // Captures and functorch see calls only.
      const bool fuses = recording() == nullptr && !c10::impl::tls_local_dispatch_key_set().included_.has(
                                                       c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
      auto next = fuses ? runs_.begin() : runs_.end();
      for (size_t i = 0; i < instructions_.size();) {
        if (next == runs_.end() || i < next->begin) {
          execute(instructions_[i++], registers, stack);
        } else if (i == next->begin && !at::autocast::is_autocast_enabled(at::kCPU)) {
          execute_run(*next, registers, stack);
          i = (next++)->end;
        } else {  // under autocast, which may take other kernels than those that were learnt
          execute(instructions_[i++], registers, stack);
          next += static_cast<std::ptrdiff_t>(i == next->end);
        }
      }
    }
    py::list results;
    for (const auto& [number, constant] : results_) {
      results.append(number ? torch::jit::toPyObject(registers[*number]) : constant);
    }
    return std::move(results);
  }

  // How many calls are done by row kernels, as far as the last call's inputs say.
  int fused() const {
    return std::accumulate(runs_.begin(), runs_.end(), 0,
                           [](int sum, const Run& run) { return sum + run.rows->fused(); });
  }

 private:
  size_t add(Instruction made) {
    made.out = types_.size() - 1;
    early_.push_back(false);
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

  // A list that an op of others may keep or change.
  static Argument made_anew(Argument constant, const c10::TypePtr& optional) {
    const auto list = without_optional(optional)->cast<c10::ListType>();
    if (constant.kind != Argument::Constant || !list || !constant.constant.isList()) {
      return constant;
    }
    Argument made;
    made.kind = Argument::List;
    made.element = list->getElementType();
    for (const c10::IValue& item : constant.constant.toListRef()) {
      made.items.emplace_back();
      made.items.back().constant = item;
    }
    return made;
  }

  Argument argument_of(const py::handle& given, const c10::TypePtr& optional,
                       std::optional<int32_t> repeated = std::nullopt) const {
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
    if ((py::isinstance<py::list>(given) || py::isinstance<py::tuple>(given)) && has_values(given)) {
      if (!list) {
        throw Unscriptable("a list of values where " + type->repr_str() + " is taken");
      }
      made.kind = Argument::List;
      made.element = list->getElementType();
      for (const auto& item : given) {
        made.items.push_back(argument_of(item, made.element));
      }
      return made;
    }
    try {
      made.constant = torch::jit::toIValue(given, optional, repeated);
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

  // A call of a kind that row kernels do, whose arguments are tensors of the program and constants.
  bool in_runs(const Instruction& i) const {
    return i.kind == Instruction::Call && in_row_runs(*i.op) && is_tensor(i.out) &&
           std::all_of(i.args.begin(), i.args.end(), [&](const Argument& a) {
             return a.kind == Argument::Constant || (a.kind == Argument::Value && is_tensor(a.value));
           });
  }

  bool is_tensor(size_t number) const {
    return types_[number]->kind() == c10::TypeKind::TensorType;
  }

  void find_runs() {
    std::unordered_map<std::string, std::shared_ptr<RowRun>> known;  // equal runs learn from each other
    for (size_t i = 0; i < instructions_.size() && static_cast<int>(runs_.size()) < fuel_;) {
      size_t end = i;
      while (end < instructions_.size() && in_runs(instructions_[end])) {
        ++end;
      }
      if (end < i + 2) {
        i = end + 1;
        continue;
      }
      add_run(i, end, known);
      i = end;
    }
  }

  void add_run(size_t begin, size_t end, std::unordered_map<std::string, std::shared_ptr<RowRun>>& known) {
    Run run{begin, end, {}, nullptr};
    std::unordered_map<size_t, int> places;  // by register
    for (const bool results : {false, true}) {
      for (size_t i = begin; i < end; ++i) {
        if (results) {
          places.emplace(instructions_[i].out, static_cast<int>(places.size()));
          continue;
        }
        for (const auto& a : instructions_[i].args) {
          const bool made = std::any_of(instructions_.begin() + static_cast<std::ptrdiff_t>(begin),
                                        instructions_.begin() + static_cast<std::ptrdiff_t>(i),
                                        [&](const Instruction& earlier) { return earlier.out == a.value; });
          if (a.kind == Argument::Value && !made && places.emplace(a.value, places.size()).second) {
            run.inputs.push_back(a.value);
          }
        }
      }
    }
    std::vector<RunCall> calls;
    for (size_t i = begin; i < end; ++i) {
      const auto& from = instructions_[i];
      RunCall call{*from.op, {}, {}};
      for (const auto& a : from.args) {
        if (a.kind == Argument::Value) {
          call.tensors.emplace_back(static_cast<int>(call.args.size()), places.at(a.value));
        }
        call.args.push_back(a.kind == Argument::Value ? c10::IValue() : a.constant);
      }
      call.kept =
          std::none_of(instructions_.begin() + static_cast<std::ptrdiff_t>(begin),
                       instructions_.begin() + static_cast<std::ptrdiff_t>(end), [&](const Instruction& later) {
                         return std::find(later.drops.begin(), later.drops.end(), from.out) != later.drops.end();
                       });
      calls.push_back(std::move(call));
    }
    const auto inputs = static_cast<int>(run.inputs.size());
    auto& rows = known[describe_run(inputs, calls)];
    if (rows == nullptr) {
      rows = std::make_shared<RowRun>(inputs, std::move(calls));
    }
    run.rows = rows;
    runs_.push_back(std::move(run));
  }

  void execute_run(const Run& run, std::vector<c10::IValue>& registers, torch::jit::Stack& stack) const {
    std::vector<at::Tensor> places;
    places.reserve(run.inputs.size() + run.end - run.begin);
    for (const size_t input : run.inputs) {
      places.push_back(registers[input].toTensor());
    }
    const auto known = run.rows->run(places);
    std::vector<Seen> seen;
    if (known == RowRun::Known::No) {
      for (const auto& place : places) {
        seen.emplace_back(place);
      }
    }
    if (known != RowRun::Known::Done) {
      places.clear();  // what goes in the middle of the run goes
    }
    for (size_t i = run.begin; i < run.end; ++i) {
      const auto& instruction = instructions_[i];
      if (known == RowRun::Known::Done) {
        registers[instruction.out] = std::move(places[run.inputs.size() + i - run.begin]);
      } else {
        perform(instruction, registers, stack);
      }
      if (known == RowRun::Known::No) {
        seen.emplace_back(registers[instruction.out].toTensor());
      }
      let_go(instruction, registers);
    }
    if (known == RowRun::Known::No) {
      run.rows->learn(seen);
    }
  }

  static void let_go(const Instruction& i, std::vector<c10::IValue>& registers) {
    for (const size_t d : i.drops) {
      registers[d] = c10::IValue();
    }
  }

  static void perform(const Instruction& i, std::vector<c10::IValue>& registers, torch::jit::Stack& stack) {
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

  static void call_python(const Instruction& i, std::vector<c10::IValue>& registers) {
    const py::gil_scoped_acquire gil;
    py::tuple args(i.args.size() - 1);
    for (size_t a = 0; a < args.size(); ++a) {
      args[a] = torch::jit::toPyObject(evaluate(i.args[a + 1], registers));
    }
    const auto function = torch::jit::toPyObject(i.args[0].constant);
    auto result = py::reinterpret_steal<py::object>(PyObject_CallObject(function.ptr(), args.ptr()));
    if (!result) {
      python_error error;
      error.persist();
      throw error;
    }
    registers[i.out] = torch::jit::toIValue(result, c10::PyObjectType::get());
  }

  static void execute(const Instruction& i, std::vector<c10::IValue>& registers, torch::jit::Stack& stack) {
    if (i.kind == Instruction::Item) {
      const auto& of = registers[i.args[0].value];
      if (of.isTuple()) {
        registers[i.out] = of.toTupleRef().elements()[i.at];
      } else {
        TORCH_CHECK_INDEX(i.at < of.toListRef().size(), "list index out of range");
        registers[i.out] = of.toListRef()[i.at];
      }
    } else if (i.kind == Instruction::Number) {
      const auto by = evaluate(i.args[1], registers).toInt();
      const auto result = compute(i.arithmetic, evaluate(i.args[0], registers).toInt(), by);
      if (!result && by == 0) {
        raise(PyExc_ZeroDivisionError, "integer division or modulo by zero");
      }
      if (!result) {
        raise(PyExc_OverflowError, "a size that a call gave leads to a number beyond 64 bits");
      }
      registers[i.out] = *result;
    } else if (i.kind == Instruction::Data) {
      registers[i.out] = registers[i.args[0].value].toTensor().variable_data();
    } else if (i.kind == Instruction::Python) {
      call_python(i, registers);
    } else {
      perform(i, registers, stack);
    }
    let_go(i, registers);
  }

  size_t inputs_ = 0;
  std::vector<c10::TypePtr> types_;  // of the registers
  std::vector<bool> early_;          // by register: an argument, or an integer that follows from arguments alone
  std::vector<Instruction> first_;   // what computes those
  std::vector<std::pair<size_t, at::Tensor>> constants_;
  std::vector<Instruction> instructions_;
  int fuel_;
  std::vector<Run> runs_;
  std::vector<std::pair<std::optional<size_t>, py::object>> results_;
};

}  // namespace

void bind_script(py::module_& m) {
  py::register_exception<Unscriptable>(m, "Unscriptable");
  py::class_<Register>(m, "Register").def(py::init<size_t>()).def_readonly("number", &Register::number);
  py::class_<Script>(m, "Script")
      .def(py::init<const std::string&, int>())
      .def("constant", &Script::constant)
      .def("call", &Script::call)
      .def("item", &Script::item)
      .def("number", &Script::number)
      .def("data", &Script::data)
      .def("python", &Script::python)
      .def("drop", &Script::drop)
      .def("results", &Script::results)
      .def("run", &Script::run)
      .def("fused", &Script::fused);
}

}  // namespace graphmode
