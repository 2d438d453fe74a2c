// Held kernels for ops that ATen has not in structured form: copy_, fill_, zero_, where, and relu by its bit-equal
// twin; and for mean, whose structured kernel calls two more ops by the dispatcher, each building an iterator.
#include <ATen/Parallel.h>
#include <ATen/native/Copy.h>
#include <ATen/native/Fill.h>
#include <ATen/native/ReduceOps.h>
#include <ATen/native/ReduceOpsUtils.h>
#include <ATen/native/TensorCompare.h>
#include <ATen/native/TensorIterator.h>
#include <ATen/ops/clamp_min_native.h>
#include <ATen/ops/mean_native.h>

#include <array>

#include "held.h"

namespace graphmode {

namespace {

class HeldCopy final : public Kernel {
 public:
  HeldCopy(Args args, Outs outs) : self_(outs[0]), src_(args[1].toTensor()) {
    if (self_.is_conj() != src_.is_conj() || self_.is_neg() != src_.is_neg()) {
      throw NotHoldable{"copy_ between tensors that differ in a math bit"};
    }
    if (self_.storage().is_alias_of(src_.storage()) && self_.storage_offset() == src_.storage_offset() &&
        self_.sizes() == src_.sizes() && self_.strides() == src_.strides() && self_.dtype() == src_.dtype()) {
      return;  // `x[i] += 1` ends in a copy onto itself: nothing to do, in eager either
    }
    iterator_ = at::TensorIteratorConfig()
                    .add_output(self_)
                    .add_const_input(src_)
                    .resize_outputs(false)
                    .check_all_same_dtype(false)
                    .check_all_same_device(true)
                    .build();
  }
  void run() override {
    if (iterator_.ntensors() > 0 && iterator_.numel() > 0) {
      at::native::copy_stub(at::kCPU, iterator_, false);
    }
  }
  at::TensorIteratorBase* iterator() override {
    return iterator_.ntensors() > 0 ? &iterator_ : nullptr;
  }
  static std::unique_ptr<Kernel> make(Args a, Outs o) {
    return std::make_unique<HeldCopy>(a, o);
  }

 private:
  at::Tensor self_, src_;
  at::TensorIterator iterator_;
};

class HeldFill final : public Kernel {
 public:
  HeldFill(const at::Tensor& self, at::Scalar value) : self_(self), value_(std::move(value)) {
    iterator_ = at::TensorIteratorConfig()
                    .set_check_mem_overlap(false)
                    .check_all_same_dtype(false)
                    .add_output(self_)
                    .resize_outputs(false)
                    .build();
  }
  void run() override {
    at::native::fill_stub(at::kCPU, iterator_, value_);
  }
  at::TensorIteratorBase* iterator() override {
    return &iterator_;
  }
  static std::unique_ptr<Kernel> make(Args a, Outs o) {
    return std::make_unique<HeldFill>(o[0], a[1].toScalar());
  }
  static std::unique_ptr<Kernel> make_zero(Args, Outs o) {
    return std::make_unique<HeldFill>(o[0], at::Scalar(0));
  }

 private:
  at::Tensor self_;
  at::Scalar value_;
  at::TensorIterator iterator_;
};

class HeldWhere final : public Kernel {
 public:
  HeldWhere(const at::Tensor& condition, const at::Tensor& self, const at::Tensor& other, const at::Tensor& out)
      : held_{condition, self, other, out} {
    if (condition.dtype() != at::kBool || self.dtype() != out.dtype() || other.dtype() != out.dtype()) {
      throw NotHoldable{"where of mixed dtypes"};
    }
    iterator_ = at::TensorIteratorConfig()
                    .check_all_same_dtype(false)
                    .resize_outputs(false)
                    .add_output(out)
                    .add_const_input(condition)
                    .add_const_input(self)
                    .add_const_input(other)
                    .build();
  }
  void run() override {
    at::native::where_kernel(at::kCPU, iterator_);
  }
  at::TensorIteratorBase* iterator() override {
    return &iterator_;
  }
  static std::unique_ptr<Kernel> make(Args a, Outs o) {
    return std::make_unique<HeldWhere>(a[0].toTensor(), a[1].toTensor(), a[2].toTensor(), o[0]);
  }

 private:
  std::array<at::Tensor, 4> held_;  // the iterator borrows them
  at::TensorIterator iterator_;
};

// Eager's sum, then its division by the number of items, in the result's own dtype.
class HeldMean final : public Kernel {
 public:
  HeldMean(const at::Tensor& self, at::OptionalIntArrayRef dims, bool keepdim, const at::Tensor& out)
      : out_(out), items_(self.numel() / out.numel()) {
    const auto sizes = out_.sizes().vec();
    iterator_ = at::native::make_reduction("mean", out_, self, dims, keepdim, out.scalar_type());
    if (out_.sizes() != sizes) {
      throw NotHoldable{"the kernel wants an output of another size"};
    }
  }
  void run() override {
    at::native::sum_stub(at::kCPU, iterator_);
    if (out_.dtype() == at::kFloat) {
      divide<float>();
    } else {
      divide<double>();
    }
  }
  at::TensorIteratorBase* iterator() override {
    return &iterator_;
  }
  static std::unique_ptr<Kernel> make(Args a, Outs o) {
    const auto& self = a[0].toTensor();
    const bool converts = self.dtype() != o[0].dtype() || (self.dtype() != at::kFloat && self.dtype() != at::kDouble);
    if (converts || self.numel() == 0 || !o[0].is_contiguous()) {
      return Held<at::native::structured_mean_out, 1>::make(a, o);
    }
    const auto dims = Arg<at::OptionalIntArrayRef>::load(a[1]);
    return std::make_unique<HeldMean>(self, Arg<at::OptionalIntArrayRef>::view(dims), a[2].toBool(), o[0]);
  }

 private:
  template <class T>
  void divide() {
    T* data = out_.mutable_data_ptr<T>();
    const auto by = static_cast<T>(items_);
    at::parallel_for(0, out_.numel(), at::internal::GRAIN_SIZE, [&](int64_t begin, int64_t end) {
      for (auto i = begin; i < end; ++i) {
        data[i] /= by;
      }
    });
  }
  at::Tensor out_;
  int64_t items_;
  at::TensorIterator iterator_;
};

std::unique_ptr<Kernel> make_relu(Args a, Outs o) {
  std::vector<c10::IValue> with = {a[0], at::Scalar(0)};
  return std::make_unique<Held<at::native::structured_clamp_min_out, 1>>(with, o);
}

}  // namespace

void register_extra_held() {
  auto& t = held_ops();
  t["aten::copy_"] = {&HeldCopy::make, 1, 1};
  t["aten::fill_.Scalar"] = {&HeldFill::make, 1, 1};
  t["aten::zero_"] = {&HeldFill::make_zero, 1, 1};
  t["aten::where.self"] = {&HeldWhere::make, 1, 0};
  t["aten::mean.dim"] = {&HeldMean::make, 1, 0};
  t["aten::relu"] = {&make_relu, 1, 0};
  t["aten::relu_"] = {&make_relu, 1, 1};
}

}  // namespace graphmode
