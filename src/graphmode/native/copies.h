// Copies of an op's arguments, to try another kernel on: they alias each other as the originals do.
#pragma once

#include <functional>
#include <unordered_map>
#include <utility>

#include "tape.h"

namespace graphmode {

using Values = std::vector<c10::IValue>;
// Which arguments an op writes; an empty one stands for all.
using Writes = std::vector<bool>;

// A value with `f` of each defined tensor in it, in lists too.
template <class F>
c10::IValue map_tensors(const c10::IValue& v, F&& f) {
  if (v.isTensor()) {
    return v.toTensor().defined() ? c10::IValue(f(v.toTensor())) : v;
  }
  if (v.isList() && !v.isIntList() && !v.isDoubleList() && !v.isBoolList()) {
    auto list = v.toList().copy();
    for (size_t i = 0; i < list.size(); ++i) {
      c10::IValue item = list.get(i);
      if (item.isTensor() && item.toTensor().defined()) {
        list.set(i, f(item.toTensor()));
      }
    }
    return list;
  }
  return v;
}

// The defined tensors among values, in order.
std::vector<at::Tensor> tensors_of(at::ArrayRef<c10::IValue> values);

Values map_all(const Values& values, const std::function<at::Tensor(const at::Tensor&)>& f);

// Tensors with the same sizes, strides and offset into their span as the originals. What is written is copied; what is
// only read lies where the originals lie, under a storage of its own: weights are large.
class Copies {
 public:
  explicit Copies(const Values& originals, const Writes& writes = {});
  // Copies all but what is of more bytes than `most`, unless there is nothing else.
  Copies(const Values& originals, int64_t most);

  at::Tensor operator()(const at::Tensor& original) const;

  // Other values, still valid ones: random floating numbers; integers keep their set and change places, since they may
  // be indices. Only elements of copies are touched: what lies between them may be anything.
  void change(const Values& copies) const;

 private:
  struct Span {
    int64_t lo, hi;  // bytes
    bool copied;
    c10::Storage storage;
    c10::Storage copy;
  };
  void add(const Values& originals, const Writes& writes);
  void make();

  std::unordered_map<c10::StorageImpl*, Span> spans_;
};

}  // namespace graphmode
