// Caches of keys and values, written and read by slot or block.
#include "cache.h"

#include <ATen/ATen.h>

#include "reference.h"

namespace sim {

using at::Tensor;

void write_slots(const Tensor& cache, const Tensor& update, const Tensor& slots) {
  const Tensor slot = slots.flatten().to(at::kLong);
  const Tensor rows = at::nonzero(slot >= 0).flatten();
  const Tensor to = slot.index_select(0, rows);
  const int64_t size = cache.size(1);
  TORCH_CHECK(to.numel() == 0 || to.max().item<int64_t>() < cache.size(0) * size, "slot ", to.max().item<int64_t>(),
              " of a cache of ", cache.size(0), " blocks of ", size);
  cache.index_put_({to.div(size, "floor"), to.remainder(size)}, update.index_select(0, rows));
}

namespace {

void check_slots(const char* op, const Tensor& update, const Tensor& cache, const Tensor& slots) {
  TORCH_CHECK(update.scalar_type() == cache.scalar_type(), op, ": rows are ", update.scalar_type(), ", the cache is ",
              cache.scalar_type());
  TORCH_CHECK(update.size(0) == slots.numel(), op, ": ", update.size(0), " rows for ", slots.numel(), " slots");
}

void check_row(const char* op, const Tensor& update, const Tensor& cache) {
  TORCH_CHECK(cache.dim() == update.dim() + 1 && cache.sizes().slice(2).equals(update.sizes().slice(1)), op, ": rows ",
              update.sizes(), " do not fit a cache of [blocks, rows, ...] ", cache.sizes());
}

// atb's ReshapeAndCacheOperation by op-plugin's ReshapeAndCachAtb.cpp
void reshape_and_cache(const Tensor& key, const Tensor& value, Tensor& key_cache, Tensor& value_cache,
                       const Tensor& slots) {
  write_slots(key_cache, key, slots);
  write_slots(value_cache, value, slots);
}

void check_reshape_and_cache(const Tensor& key, const Tensor& value, Tensor& key_cache, Tensor& value_cache,
                             const Tensor& slots) {
  check_row("_npu_reshape_and_cache", key, key_cache);
  check_slots("_npu_reshape_and_cache", key, key_cache, slots);
  check_row("_npu_reshape_and_cache", value, value_cache);
  check_slots("_npu_reshape_and_cache", value, value_cache, slots);
}

// op-plugin's ReshapeAndCacheSisoAtb.cpp
void reshape_and_cache_siso(const Tensor& key, Tensor& key_cache, const Tensor& slots) {
  write_slots(key_cache, key, slots);
}

void check_reshape_and_cache_siso(const Tensor& key, Tensor& key_cache, const Tensor& slots) {
  check_row("_npu_reshape_and_cache_siso", key, key_cache);
  check_slots("_npu_reshape_and_cache_siso", key, key_cache, slots);
}

// A cache in blocks of [heads * width / last, rows, last], the order of "PA_NZ", with rows before the rest.
Tensor rows_first(const Tensor& cache) {
  return cache.transpose(1, 2);
}

// op-plugin docs: npu_scatter_pa_kv_cache.md
void scatter_pa_kv_cache(const Tensor& key, const Tensor& value, Tensor& key_cache, Tensor& value_cache,
                         const Tensor& slots, const std::optional<Tensor>&, const std::optional<Tensor>&,
                         const std::optional<Tensor>&, std::optional<c10::string_view> mode) {
  const bool plain = !mode.has_value() || *mode == "Norm";
  for (const auto& [rows, cache] : {std::pair(&key, &key_cache), std::pair(&value, &value_cache)}) {
    if (plain) {
      write_slots(*cache, *rows, slots);
    } else {
      const Tensor blocks = rows_first(*cache);
      write_slots(blocks, rows->reshape({rows->size(0), blocks.size(2), blocks.size(3)}), slots);
    }
  }
}

void check_scatter_pa_kv_cache(const Tensor& key, const Tensor& value, Tensor& key_cache, Tensor& value_cache,
                               const Tensor& slots, const std::optional<Tensor>& compress_lens,
                               const std::optional<Tensor>& compress_seq_offsets, const std::optional<Tensor>& seq_lens,
                               std::optional<c10::string_view> mode) {
  const char* op = "npu_scatter_pa_kv_cache";
  TORCH_CHECK(!compress_lens.has_value() && !compress_seq_offsets.has_value() && !seq_lens.has_value(), op,
              " that compresses (compress_lens, compress_seq_offsets, seq_lens) is not emulated");
  TORCH_CHECK(!mode.has_value() || *mode == "Norm" || *mode == "PA_NZ", op, " has no cache_mode ", *mode);
  const bool plain = !mode.has_value() || *mode == "Norm";
  for (const auto& [rows, cache] : {std::pair(&key, &key_cache), std::pair(&value, &value_cache)}) {
    check_slots(op, *rows, *cache, slots);
    if (plain) {
      check_row(op, *rows, *cache);
    } else {
      TORCH_CHECK(cache->dim() == 4 && cache->size(1) * cache->size(3) * rows->size(0) == rows->numel(), op, ": rows ",
                  rows->sizes(), " do not fit a cache of [blocks, heads * width / last, rows, last] ", cache->sizes());
    }
  }
}

// op-plugin docs: npu_scatter_nd_update_.md. The last dimension of the indices names a place in the first dimensions.
Tensor& scatter_nd_update_(Tensor& self, const Tensor& indices, const Tensor& updates) {
  c10::List<std::optional<Tensor>> places;
  for (const Tensor& one : indices.to(at::kLong).unbind(-1))
    places.push_back(one);
  return self.index_put_(places, updates);
}

Tensor& check_scatter_nd_update_(Tensor& self, const Tensor& indices, const Tensor& updates) {
  TORCH_CHECK(indices.dim() >= 2 && indices.size(-1) <= self.dim(), "npu_scatter_nd_update: indices ", indices.sizes(),
              " name no place in ", self.sizes());
  std::vector<int64_t> wanted = indices.sizes().slice(0, indices.dim() - 1).vec();
  for (const int64_t size : self.sizes().slice(indices.size(-1)))
    wanted.push_back(size);
  TORCH_CHECK(updates.sizes().equals(wanted) && updates.scalar_type() == self.scalar_type(),
              "npu_scatter_nd_update: updates are ", updates.toString(), updates.sizes(), ", not ", self.toString(),
              c10::IntArrayRef(wanted));
  return self;
}

Tensor scatter_nd_update(const Tensor& self, const Tensor& indices, const Tensor& updates) {
  Tensor made = self.clone(at::MemoryFormat::Contiguous);
  return scatter_nd_update_(made, indices, updates);
}

Tensor scatter_nd_update_shape(const Tensor& self, const Tensor& indices, const Tensor& updates) {
  Tensor made = self;
  return check_scatter_nd_update_(made, indices, updates);
}

// op-plugin docs: scatter_update_.md. Of one dimension, an index is where the updates of its row begin along the axis;
// of two, [which row, where it begins].
Tensor& scatter_update_(Tensor& self, const Tensor& indices, const Tensor& updates, int64_t axis) {
  const Tensor places = indices.to(at::kLong);
  for (int64_t i = 0; i < places.size(0); ++i) {
    const int64_t row = places.dim() == 2 ? places[i][0].item<int64_t>() : i;
    const int64_t first = (places.dim() == 2 ? places[i][1] : places[i]).item<int64_t>();
    const int64_t along = (axis < 0 ? axis + self.dim() : axis) - 1;
    self[row].narrow(along, first, updates[i].size(along)).copy_(updates[i]);
  }
  return self;
}

Tensor& check_scatter_update_(Tensor& self, const Tensor& indices, const Tensor& updates, int64_t axis) {
  TORCH_CHECK(indices.dim() == 1 || (indices.dim() == 2 && indices.size(1) == 2), "scatter_update: indices ",
              indices.sizes(), " are neither of one dimension nor pairs");
  TORCH_CHECK(updates.dim() == self.dim() && updates.size(0) == indices.size(0) &&
                  updates.scalar_type() == self.scalar_type() && axis != 0 && axis + self.dim() != 0,
              "scatter_update: updates ", updates.toString(), updates.sizes(), " along ", axis, " of ", self.toString(),
              self.sizes());
  return self;
}

Tensor scatter_update(const Tensor& self, const Tensor& indices, const Tensor& updates, int64_t axis) {
  Tensor made = self.clone(at::MemoryFormat::Contiguous);
  return scatter_update_(made, indices, updates, axis);
}

Tensor scatter_update_shape(const Tensor& self, const Tensor& indices, const Tensor& updates, int64_t axis) {
  Tensor made = self;
  return check_scatter_update_(made, indices, updates, axis);
}

}  // namespace

void cache(Table& table) {
  table.add<&reshape_and_cache, &check_reshape_and_cache>("atb::_npu_reshape_and_cache");
  table.add<&reshape_and_cache_siso, &check_reshape_and_cache_siso>("atb::_npu_reshape_and_cache_siso");
  table.add<&scatter_pa_kv_cache, &check_scatter_pa_kv_cache>("npu::npu_scatter_pa_kv_cache");
  table.add<&scatter_nd_update_, &check_scatter_nd_update_>("npu::npu_scatter_nd_update_");
  table.add<&scatter_nd_update, &scatter_nd_update_shape>("npu::npu_scatter_nd_update");
  table.add<&scatter_update_, &check_scatter_update_>("npu::scatter_update_");
  table.add<&scatter_update, &scatter_update_shape>("npu::scatter_update");
}

}  // namespace sim
