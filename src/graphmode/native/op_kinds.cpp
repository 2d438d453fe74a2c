#include "op_kinds.h"

#include <ATen/core/Tensor.h>

#include <unordered_set>

namespace graphmode {

namespace {
using Names = std::unordered_set<std::string>;
}  // namespace

std::string full_name(const c10::OperatorHandle& op) {
  const auto& n = op.operator_name();
  return n.overload_name.empty() ? n.name : n.name + "." + n.overload_name;
}

bool transparent(const c10::OperatorHandle& op) {
  static const Names explicit_ones = {
      "aten::clone",           "aten::_to_copy",  "aten::zeros",       "aten::ones",        "aten::full",
      "aten::zeros_like",      "aten::ones_like", "aten::full_like",   "aten::new_zeros",   "aten::new_ones",
      "aten::new_full",        "aten::embedding", "aten::add.Scalar",  "aten::sub.Scalar",  "aten::mul.Scalar",
      "aten::div.Scalar",      "aten::repeat",    "aten::rsub.Scalar", "aten::convolution", "aten::_convolution",
      "aten::lift_fresh_copy",
  };
  if (explicit_ones.count(full_name(op))) {
    return true;
  }
  // Others register under this key what computes on raw pointers, too: `m.def(schema, &function)` is enough for it.
  const auto& name = op.operator_name().name;
  return name.rfind("aten::", 0) == 0 && op.hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd) &&
         !op.hasKernelForDispatchKey(c10::DispatchKey::CPU);
}

bool updates(const std::string& name, bool random) {
  static const Names fill = {
      "aten::copy_",
      "aten::fill_",
      "aten::zero_",
      "aten::index_put_",
      "aten::_index_put_impl_",
      "aten::scatter_",
      "aten::index_copy_",
      "aten::index_fill_",
      "aten::masked_fill_",
      "aten::masked_scatter_",
      "aten::put_",
      "aten::fill_diagonal_",
      "aten::_foreach_copy_",
      "aten::_foreach_zero_",
  };
  const auto base = name.substr(0, name.find('.'));
  return known(name) && !random && base.back() == '_' && fill.count(base) == 0;
}

bool ignores_self(const c10::OperatorHandle& op, const std::vector<c10::IValue>& args) {
  static const Names products = {"aten::addmm", "aten::baddbmm", "aten::addbmm",
                                 "aten::addmv", "aten::addr",    "aten::_addmm_activation"};
  auto base = op.operator_name().name;
  base.erase(base.find_last_not_of('_') + 1);  // in place, too
  const auto beta = op.schema().argumentIndexWithName("beta");
  return products.count(base) > 0 && beta && args[*beta].isScalar() && args[*beta].toScalar().equal(0);
}

bool allocates(const std::string& name) {
  static const Names names = {
      "aten::empty.memory_format", "aten::empty_like",        "aten::empty_strided",
      "aten::new_empty",           "aten::new_empty_strided",
  };
  return names.count(name) > 0;
}

bool reads_metadata(const std::string& name) {
  static const Names names = {
      "aten::size",
      "aten::size.int",
      "aten::sym_size",
      "aten::sym_size.int",
      "aten::stride",
      "aten::stride.int",
      "aten::sym_stride",
      "aten::sym_stride.int",
      "aten::sym_numel",
      "aten::numel",
      "aten::dim",
      "aten::sym_storage_offset",
      "aten::is_same_size",
      "aten::is_set_to",
      "aten::_has_same_storage_numel",
      "aten::result_type.Tensor",
      "aten::can_cast",
      "aten::is_contiguous",
      "aten::is_contiguous.memory_format",
      "aten::is_strides_like_format",
      "aten::is_non_overlapping_and_dense",
      "aten::sym_is_contiguous",
      "aten::_is_zerotensor",
      "aten::_has_compatible_shallow_copy_type",
      "aten::is_pinned",
      "aten::_version",
      "aten::output_nr",
      "aten::_nested_tensor_size",
      "aten::dense_dim",
      "aten::sparse_dim",
      "aten::_dimI",
      "aten::_dimV",
      "aten::is_coalesced",
      "aten::qscheme",
      "aten::q_scale",
      "aten::q_zero_point",
      "aten::q_per_channel_axis",
  };
  return names.count(name) > 0;
}

bool changes_metadata(const c10::OperatorHandle& op, const std::string& name) {
  static const Names names = {
      "aten::resize_",
      "aten::resize_as_",
      "aten::set_data",
      "aten::set_",
      "aten::set_.source_Storage",
      "aten::set_.source_Storage_storage_offset",
      "aten::set_.source_Tensor",
      "aten::set_.source_Tensor_storage_offset",
  };
  return op.hasTag(at::Tag::inplace_view) || names.count(name) > 0;
}

bool sizes_follow(const std::string& name, const std::vector<c10::IValue>& args) {
  if (name != "aten::index.Tensor" && name != "aten::index.Tensor_out") {
    return false;
  }
  for (const auto& item : args[1].toListRef()) {
    if (item.isTensor() && item.toTensor().defined() &&
        (item.toTensor().scalar_type() == at::kBool || item.toTensor().scalar_type() == at::kByte)) {
      return false;
    }
  }
  return true;
}

bool known(const std::string& name) {
  return name.rfind("aten::", 0) == 0 || name.rfind("prims::", 0) == 0 || name.rfind("quantized::", 0) == 0;
}

bool reads_values_unseen(const std::string& name) {
  static const Names names = {
      "aten::tensor_split.tensor_indices_or_sections",
      "aten::_pad_packed_sequence",
      "aten::_pack_padded_sequence",
  };
  return names.count(name) > 0;
}

bool goes_on(const std::string& name) {
  return name.rfind("_c10d_functional::", 0) == 0 && name != "_c10d_functional::wait_tensor";
}

bool goes_on_unseen(const std::string& name) {
  return name.rfind("c10d::", 0) == 0;
}

bool offset_is_absolute(const std::string& name, const std::vector<c10::IValue>& args) {
  if (name.rfind("aten::as_strided", 0) != 0) {
    return false;
  }
  const size_t at = name.rfind("aten::as_strided_scatter", 0) == 0 ? 4 : 3;
  return at < args.size() && !args[at].isNone();
}

}  // namespace graphmode
