// A held kernel: eager's own structured kernel with its outputs and arguments bound once, called again at each replay.
// Owns the adapter from ATen's structured classes (ATen/TensorMeta.h) to one virtual call. Knows nothing of graphs.
#pragma once

#include <ATen/ATen.h>
#include <ATen/ExpandUtils.h>
#include <ATen/TensorIterator.h>
#include <ATen/core/IListRef.h>
#include <ATen/core/ivalue.h>
#include <ATen/native/ResizeCommon.h>

#include <memory>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

namespace graphmode {

// The kernel wanted another layout than eager's functional call gave, or converted an argument: do not use this tier.
struct NotHoldable {
  const char* why;
};

struct Kernel {
  virtual ~Kernel() = default;
  virtual void run() = 0;
  // Iterators whose operand addresses must follow their tensors when those are re-bound.
  virtual at::TensorIteratorBase* iterator() {
    return nullptr;
  }
};

using Args = c10::ArrayRef<c10::IValue>;
using Outs = c10::ArrayRef<at::Tensor>;
using MakeKernel = std::unique_ptr<Kernel> (*)(Args, Outs);

struct HeldOp {
  MakeKernel make;
  int outputs;
  int inplace_self;  // 1: the op writes its first argument
};

// Overload name ("aten::add.Tensor") -> held kernel. Functional, in-place and out overloads each have an entry.
std::unordered_map<std::string, HeldOp>& held_ops();

// --- argument conversion: what is stored, and how the kernel sees it -------------------------------------------------

template <class T>
struct Arg;

#define GM_PLAIN_ARG(TYPE, LOAD)                 \
  template <>                                    \
  struct Arg<TYPE> {                             \
    using Stored = std::decay_t<TYPE>;           \
    static Stored load(const c10::IValue& v) {   \
      return LOAD;                               \
    }                                            \
    static const Stored& view(const Stored& s) { \
      return s;                                  \
    }                                            \
  };
GM_PLAIN_ARG(const at::Tensor&, v.isNone() ? at::Tensor() : v.toTensor())
GM_PLAIN_ARG(const at::Scalar&, v.toScalar())
GM_PLAIN_ARG(int64_t, v.toInt())
GM_PLAIN_ARG(bool, v.toBool())
GM_PLAIN_ARG(double, v.toDouble())
GM_PLAIN_ARG(at::ScalarType, v.toScalarType())
GM_PLAIN_ARG(std::optional<int64_t>, v.toOptional<int64_t>())
GM_PLAIN_ARG(std::optional<bool>, v.toOptional<bool>())
GM_PLAIN_ARG(std::optional<double>, v.toOptional<double>())
GM_PLAIN_ARG(std::optional<at::ScalarType>, v.toOptional<at::ScalarType>())
#undef GM_PLAIN_ARG

template <>
struct Arg<at::OptionalTensorRef> {
  using Stored = at::Tensor;
  static Stored load(const c10::IValue& v) {
    return v.isNone() ? at::Tensor() : v.toTensor();
  }
  static at::OptionalTensorRef view(const Stored& s) {
    return s.defined() ? at::OptionalTensorRef(s) : at::OptionalTensorRef();
  }
};

template <>
struct Arg<at::OptionalScalarRef> {
  using Stored = std::optional<at::Scalar>;
  static Stored load(const c10::IValue& v) {
    return v.isNone() ? std::nullopt : std::make_optional(v.toScalar());
  }
  static at::OptionalScalarRef view(const Stored& s) {
    return s ? at::OptionalScalarRef(*s) : at::OptionalScalarRef();
  }
};

template <>
struct Arg<at::IntArrayRef> {
  using Stored = std::vector<int64_t>;
  static Stored load(const c10::IValue& v) {
    return v.toIntVector();
  }
  static at::IntArrayRef view(const Stored& s) {
    return s;
  }
};

template <>
struct Arg<at::OptionalIntArrayRef> {
  using Stored = std::optional<std::vector<int64_t>>;
  static Stored load(const c10::IValue& v) {
    return v.isNone() ? std::nullopt : std::make_optional(v.toIntVector());
  }
  static at::OptionalIntArrayRef view(const Stored& s) {
    return s ? at::OptionalIntArrayRef(at::IntArrayRef(*s)) : at::OptionalIntArrayRef();
  }
};

template <>
struct Arg<std::string_view> {
  using Stored = std::string;
  static Stored load(const c10::IValue& v) {
    return std::string(v.toStringView());
  }
  static std::string_view view(const Stored& s) {
    return s;
  }
};

template <>
struct Arg<std::optional<std::string_view>> {
  using Stored = std::optional<std::string>;
  static Stored load(const c10::IValue& v) {
    return v.isNone() ? std::nullopt : std::make_optional(std::string(v.toStringView()));
  }
  static std::optional<std::string_view> view(const Stored& s) {
    return s ? std::make_optional(std::string_view(*s)) : std::nullopt;
  }
};

template <>
struct Arg<const at::ITensorListRef&> {
  using Stored = std::vector<at::Tensor>;
  static Stored load(const c10::IValue& v) {
    return v.toTensorVector();
  }
  static at::ITensorListRef view(const Stored& s) {
    return at::ITensorListRef(at::TensorList(s));
  }
};

template <>
struct Arg<at::IOptTensorListRef> {
  using Stored = c10::List<std::optional<at::Tensor>>;
  static Stored load(const c10::IValue& v) {
    return v.to<c10::List<std::optional<at::Tensor>>>();
  }
  static at::IOptTensorListRef view(const Stored& s) {
    return at::IOptTensorListRef(s);
  }
};

// --- the kernel ------------------------------------------------------------------------------------------------------

template <class Method>
struct MetaSignature;
template <class R, class C, class... A>
struct MetaSignature<R (C::*)(A...)> {
  using Stored = std::tuple<typename Arg<A>::Stored...>;
  static constexpr size_t arity = sizeof...(A);
  template <size_t... I>
  static Stored load(Args args, std::index_sequence<I...>) {
    return Stored(Arg<A>::load(args[I])...);
  }
  template <class F, size_t... I>
  static decltype(auto) apply(const Stored& s, F&& f, std::index_sequence<I...>) {
    return f(Arg<A>::view(std::get<I>(s))...);
  }
};

template <class S>
class HeldBase : public S, public Kernel {
 public:
  using Signature = MetaSignature<decltype(&S::meta)>;
  using Indices = std::make_index_sequence<Signature::arity>;

  HeldBase(Args args, Outs outs) : args_(Signature::load(args, Indices{})), outs_(outs.begin(), outs.end()) {}

  const at::Tensor& maybe_get_output(int64_t i) override {
    return outs_[i];
  }
  void set_output_strided(int64_t i, at::IntArrayRef sizes, at::IntArrayRef strides,
                          at::TensorOptions options) override {
    check(i, sizes, options);
    if (!strides.empty() && outs_[i].strides() != strides && outs_[i].numel() > 1) {
      throw NotHoldable{"the kernel wants an output of other strides"};
    }
    forward(i, sizes, strides, options);
  }
  void set_output_raw_strided(int64_t i, at::IntArrayRef sizes, at::IntArrayRef strides,
                              at::TensorOptions options) override {
    check(i, sizes, options);
    forward(i, sizes, strides, options);
  }
  at::TensorIteratorBase* iterator() override {
    if constexpr (std::is_base_of_v<at::TensorIteratorBase, S>) {
      return this;
    }
    return nullptr;
  }

 protected:
  typename Signature::Stored args_;
  std::vector<at::Tensor> outs_;

 private:
  void check(int64_t i, at::IntArrayRef sizes, const at::TensorOptions& options) {
    if (outs_[i].sizes() != sizes) {
      throw NotHoldable{"the kernel wants an output of another size"};
    }
    if (outs_[i].scalar_type() != c10::typeMetaToScalarType(options.dtype())) {
      throw NotHoldable{"the kernel wants an output of another dtype"};
    }
  }
  void forward(int64_t i, at::IntArrayRef sizes, at::IntArrayRef strides, const at::TensorOptions& options) {
    if constexpr (std::is_base_of_v<at::TensorIteratorBase, S>) {
      S::set_output_raw_strided(i, sizes, strides, options);
    }
  }
};

template <class S, int N>
class Held final : public HeldBase<S> {
 public:
  using Base = HeldBase<S>;
  Held(Args args, Outs outs) : Base(args, outs) {
    Base::Signature::apply(this->args_, [this](auto&&... a) { this->meta(a...); }, typename Base::Indices{});
  }
  void run() override {
    call(std::make_index_sequence<N>{});
  }
  static std::unique_ptr<Kernel> make(Args args, Outs outs) {
    return std::make_unique<Held<S, N>>(args, outs);
  }

 private:
  template <size_t... O>
  void call(std::index_sequence<O...>) {
    Base::Signature::apply(
        this->args_, [this](auto&&... a) { this->impl(a..., this->outs_[O]...); }, typename Base::Indices{});
  }
};

// For kernels whose meta() precomputes values that impl() takes in place of arguments: the generated subclass has
// run().
template <class S>
class HeldPrecomputed : public HeldBase<S> {
 public:
  using Base = HeldBase<S>;
  HeldPrecomputed(Args args, Outs outs)
      : Base(args, outs),
        pre_(Base::Signature::apply(
            this->args_, [this](auto&&... a) { return this->meta(a...); }, typename Base::Indices{})) {}

 protected:
  template <size_t I>
  decltype(auto) arg() const {
    return view<I>(static_cast<decltype(&S::meta)>(nullptr));
  }
  typename S::meta_return_ty pre_;

 private:
  template <size_t I, class R, class C, class... A>
  decltype(auto) view(R (C::*)(A...)) const {
    return Arg<std::tuple_element_t<I, std::tuple<A...>>>::view(std::get<I>(this->args_));
  }
};

}  // namespace graphmode
