#include "tape.h"

#include <c10/util/accumulate.h>

#include <typeinfo>

namespace graphmode {

c10::DispatchKeySet plain_keys(const at::Tensor& t) {
  auto keys = t.unsafeGetTensorImpl()->key_set();
  return keys - c10::autograd_dispatch_keyset - c10::autocast_dispatch_keyset -
         c10::DispatchKeySet(c10::DispatchKey::ADInplaceOrView);
}

bool is_plain(const at::Tensor& t) {
  if (!t.defined() || !t.device().is_cpu() || t.layout() != at::kStrided || !t.has_storage()) {
    return false;
  }
  auto* impl = t.unsafeGetTensorImpl();
  if (impl->is_python_dispatch() || impl->has_symbolic_sizes_strides()) {
    return false;
  }
  for (auto key : plain_keys(t)) {
    switch (key) {
      case c10::DispatchKey::CPU:
      case c10::DispatchKey::Conjugate:
      case c10::DispatchKey::Negative:
        break;
      default:
        // autocast keys are in every tensor's set; plain_keys() took them out
        return false;
    }
  }
  return typeid(*impl) == typeid(c10::TensorImpl);
}

int64_t items(const Value& v) {
  return c10::multiply_integers(v.sizes);
}

bool contiguous(const Value& v) {
  int64_t dense = 1;
  for (size_t d = v.sizes.size(); d-- > 0;) {
    if (v.sizes[d] != 1 && v.strides[d] != dense) {
      return false;
    }
    dense *= v.sizes[d];
  }
  return true;
}

void Tape::refuse(std::string why) {
  if (refusal.empty()) {
    refusal = std::move(why);
    int at = line();
    refusal_line = at < 0 ? std::string() : lines[at];
  }
}

int Tape::line() {
  if (!locate) {
    return -1;
  }
  auto text = locate();
  if (text.empty()) {
    return -1;
  }
  auto [it, fresh] = line_index.emplace(text, static_cast<int>(lines.size()));
  if (fresh) {
    lines.push_back(text);
  }
  return it->second;
}

int Tape::buffer_of(const at::Tensor& t, int node, BufferKind kind_if_new) {
  auto* s = t.storage().unsafeGetStorageImpl();
  auto it = by_storage.find(s);
  int id;
  if (it != by_storage.end()) {
    id = it->second;
  } else {
    id = static_cast<int>(buffers.size());
    buffers.emplace_back(s);
    auto& b = buffers.back();
    b.kind = kind_if_new;
    b.made_by = node;
    if (kind_if_new == BufferKind::Fixed) {
      b.fixed = t.storage();
    }
    by_storage.emplace(s, id);
  }
  auto& b = buffers[id];
  b.nbytes = std::max(b.nbytes, s->nbytes());
  if (b.first < 0) {
    b.first = node;
  }
  b.last = std::max(b.last, node);
  return id;
}

int Tape::value_of(const at::Tensor& t, int node, BufferKind kind_if_new) {
  Value v{
      buffer_of(t, node, kind_if_new), t.storage_offset(), t.sizes().vec(), t.strides().vec(), t.dtype(), plain_keys(t),
  };
  // Recently made values are the ones used next; a linear look back over a few is enough to keep the list short.
  int from = std::max<int>(0, static_cast<int>(values.size()) - 16);
  for (int i = static_cast<int>(values.size()) - 1; i >= from; --i) {
    if (values[i] == v) {
      return i;
    }
  }
  values.push_back(std::move(v));
  return static_cast<int>(values.size()) - 1;
}

const std::vector<int>& undeclared_writes(const c10::OperatorName& name) {
  static const std::unordered_map<std::string, std::vector<int>> table = {
      // running_mean, running_var, when training
      {"aten::native_batch_norm", {3, 4}},      {"aten::batch_norm", {3, 4}},
      {"aten::_batch_norm_impl_index", {3, 4}}, {"aten::cudnn_batch_norm", {3, 4}},
      {"aten::miopen_batch_norm", {3, 4}},      {"aten::native_batch_norm.out", {3, 4}},
      {"aten::instance_norm", {3, 4}},          {"aten::batch_norm_update_stats", {1, 2}},
  };
  static const std::vector<int> none;
  auto key = name.overload_name.empty() ? name.name : name.name + "." + name.overload_name;
  auto it = table.find(key);
  return it == table.end() ? none : it->second;
}

}  // namespace graphmode
