// What torch_npu's own ops (npu::, atb::) mean: functions on tensors of the host, in a table by the op's name. The
// fallback does the rest, as for ATen's: shapes, memory, the stream's turn.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/boxing/KernelFunction.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/op_registration/op_registration.h>
#include <ATen/core/stack.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace sim {

using OptionalTensor = std::optional<at::Tensor>;

inline bool given(const OptionalTensor& tensor) {
  return tensor.has_value() && tensor->defined();
}

struct Reference {
  c10::KernelFunction values;  // on tensors of the host, in the stream's turn; none for an op that is no task
  c10::KernelFunction shapes;  // the same on metadata, at the call; none: the op's own meta kernel says
  std::vector<std::unique_ptr<c10::FunctionSchema>> types;  // of both functions
  std::vector<int> results;                                 // which arguments these are, where the schema does not say
  bool results_in_list = false;                             // they are the items of the last argument

  template <auto Function>
  c10::KernelFunction boxed() {
    using Pointer = c10::CompileTimeFunctionPointer<std::remove_pointer_t<decltype(Function)>, Function>;
    types.push_back(c10::detail::inferFunctionSchemaFromFunctor<typename Pointer::FuncType>());
    return c10::KernelFunction::makeFromUnboxedFunction(Pointer());
  }
};

class Table {
 public:
  // An op whose meta kernel of torch_npu's says the shapes; one that only writes into its arguments needs none.
  template <auto Values>
  Reference& add(const std::string& op) {
    Reference& made = ops[op];
    made.values = made.boxed<Values>();
    return made;
  }
  // The shapes function makes the results on the meta device, and checks what can be checked without values.
  template <auto Values, auto Shapes>
  Reference& add(const std::string& op) {
    Reference& made = add<Values>(op);
    made.shapes = made.boxed<Shapes>();
    return made;
  }
  // The same by functions that take arguments by their names: for ops with many of them, in several variants.
  Reference& add_boxed(const std::string& op, c10::KernelFunction values, c10::KernelFunction shapes) {
    Reference& made = ops[op];
    made.values = values;
    made.shapes = shapes;
    return made;
  }
  // An op that asks the host alone, such as for the size of a workspace: no task.
  template <auto Shapes>
  Reference& add_query(const std::string& op) {
    Reference& made = ops[op];
    made.shapes = made.boxed<Shapes>();
    return made;
  }

  std::map<std::string, Reference> ops;  // by "namespace::name" or "namespace::name.overload"
};

// A call's arguments by their names; takes them off the stack.
class Arguments {
 public:
  Arguments(const c10::OperatorHandle& op, torch::jit::Stack* stack) : schema_(op.schema()) {
    const size_t count = schema_.arguments().size();
    values_ = torch::jit::last(*stack, count).vec();
    torch::jit::drop(*stack, count);
  }
  const c10::IValue& operator[](const std::string& name) const {
    const auto at = schema_.argumentIndexWithName(name);
    TORCH_CHECK(at.has_value(), schema_.name(), " has no argument ", name);
    return values_[static_cast<size_t>(*at)];
  }
  bool has(const std::string& name) const {
    return schema_.argumentIndexWithName(name).has_value() && !(*this)[name].isNone();
  }
  // An undefined one where none was given.
  at::Tensor tensor(const std::string& name) const {
    return has(name) ? (*this)[name].toTensor() : at::Tensor();
  }
  std::optional<std::vector<int64_t>> integers(const std::string& name) const {
    return has(name) ? std::optional((*this)[name].toIntVector()) : std::nullopt;
  }
  int64_t integer(const std::string& name, int64_t otherwise) const {
    return has(name) ? (*this)[name].toInt() : otherwise;
  }
  double number(const std::string& name) const {
    return (*this)[name].toDouble();
  }
  bool flag(const std::string& name) const {
    return (*this)[name].toBool();
  }
  const std::string& text(const std::string& name) const {
    return (*this)[name].toStringRef();
  }
  const std::string& op() const {
    return schema_.name();
  }

 private:
  const c10::FunctionSchema& schema_;
  std::vector<c10::IValue> values_;
};

// By concern, each in the file of its name.
void norms(Table& table);
void rotary(Table& table);
void activations(Table& table);
void attention(Table& table);
void paged_attention(Table& table);
void fusion_attention(Table& table);
void mla(Table& table);
void cache(Table& table);
void moe(Table& table);
void quant(Table& table);
void products(Table& table);
void sampling(Table& table);
void recurrent(Table& table);

// Null for an op without a reference.
const Reference* reference_of(const std::string& op);

}  // namespace sim
