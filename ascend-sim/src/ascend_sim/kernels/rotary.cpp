// Rotary position embeddings. Computed in float32, rounded once.
#include "rotary.h"

#include <ATen/ATen.h>

#include "reference.h"

namespace sim {

using at::Tensor;

namespace {

// Halves swapped, the second negated; or pairs, "interleave".
Tensor rotated(const Tensor& x, bool pairs) {
  if (!pairs) {
    const auto halves = x.chunk(2, -1);
    return at::cat({halves[1].neg(), halves[0]}, -1);
  }
  const Tensor two = x.unflatten(-1, {-1, 2});
  return at::stack({two.select(-1, 1).neg(), two.select(-1, 0)}, -1).flatten(-2);
}

}  // namespace

Tensor turned(const Tensor& x, const Tensor& cos, const Tensor& sin, bool pairs) {
  const Tensor wide = x.to(at::kFloat);
  return wide * cos.to(at::kFloat) + rotated(wide, pairs) * sin.to(at::kFloat);
}

Tensor taken_apart(const Tensor& x) {
  return x.unflatten(-1, {-1, 2}).transpose(-1, -2).flatten(-2);
}

namespace {

bool pairs_of(const char* op, c10::string_view mode) {
  TORCH_CHECK(mode == "half" || mode == "interleave", op, " with rotary_mode='", mode,
              "' is not emulated: 'half' and 'interleave' are");
  return mode == "interleave";
}

// op-plugin docs: npu_rotary_mul.md
Tensor rotary_mul(const Tensor& x, const Tensor& cos, const Tensor& sin, c10::string_view mode,
                  const std::optional<Tensor>& rotate) {
  TORCH_CHECK(x.size(-1) % 2 == 0, "npu_rotary_mul: the last dimension of ", x.sizes(), " can't be halved");
  const bool pairs = pairs_of("npu_rotary_mul", mode);
  Tensor y;
  if (rotate.has_value() && rotate->defined()) {
    const Tensor wide = x.to(at::kFloat);
    y = wide * cos.to(at::kFloat) + wide.matmul(rotate->to(at::kFloat)) * sin.to(at::kFloat);
  } else {
    y = turned(x, cos, sin, pairs);
  }
  TORCH_CHECK(y.sizes().equals(x.sizes()), "npu_rotary_mul: the cosines ", cos.sizes(), " do not fit ", x.sizes());
  return y.to(x.scalar_type());
}

void check_pos_emb(const Tensor& query, const Tensor& key, const Tensor& cos, const Tensor& sin,
                   c10::string_view layout) {
  TORCH_CHECK(layout == "BSND" || layout == "SBND" || layout == "BNSD" || layout == "TND",
              "npu_apply_rotary_pos_emb has no layout ", layout);
  const int64_t dimensions = layout == "TND" ? 3 : 4;
  for (const Tensor* t : {&query, &key, &cos, &sin}) {
    TORCH_CHECK(t->dim() == dimensions, "npu_apply_rotary_pos_emb: layout ", layout, " has ", dimensions,
                " dimensions, not ", t->sizes());
    TORCH_CHECK(t->scalar_type() == query.scalar_type(), "npu_apply_rotary_pos_emb: query is ", query.scalar_type(),
                " and another tensor ", t->scalar_type());
  }
  TORCH_CHECK(cos.sizes().equals(sin.sizes()) && cos.size(-1) <= query.size(-1) && query.size(-1) == key.size(-1),
              "npu_apply_rotary_pos_emb: query ", query.sizes(), ", key ", key.sizes(), ", cos ", cos.sizes(), ", sin ",
              sin.sizes());
}

// op-plugin docs: npu_apply_rotary_pos_emb.md, and ApplyRotaryPosEmbNpuOpApi.cpp: query and key are overwritten, and
// are the results, though the schema does not say so.
std::tuple<Tensor, Tensor> apply_rotary_pos_emb(const Tensor& query, const Tensor& key, const Tensor& cos,
                                                const Tensor& sin, c10::string_view layout, c10::string_view mode) {
  check_pos_emb(query, key, cos, sin, layout);
  const bool pairs = pairs_of("npu_apply_rotary_pos_emb", mode);
  for (const Tensor* t : {&query, &key}) {
    const Tensor turning = t->narrow(-1, 0, cos.size(-1));  // what is behind stays
    turning.copy_(turned(turning, cos, sin, pairs));
  }
  return {query, key};
}

// atb's RopeOperation by op-plugin's RopeAtb.cpp. The cache holds cosines, then sines, for each position; heads are as
// wide as the two together. (torch_npu keeps the first cache it sees for the whole process; this does not.)
void rotary_embedding(const Tensor& positions, Tensor& query, Tensor& key, int64_t head_size,
                      const Tensor& cos_sin_cache, bool is_neox_style) {
  const auto rows = cos_sin_cache.index_select(0, positions.flatten().to(at::kLong)).chunk(2, -1);
  std::vector<Tensor> wide;
  for (const Tensor& row : rows) {
    wide.push_back((is_neox_style ? row.repeat({1, 2}) : row.repeat_interleave(2, 1)).unsqueeze(1));
  }
  for (Tensor* t : {&query, &key}) {
    const Tensor heads = t->reshape({positions.numel(), -1, cos_sin_cache.size(-1)});
    t->copy_(turned(heads, wide[0], wide[1], !is_neox_style).view_as(*t));
  }
}

void check_rotary_embedding(const Tensor& positions, Tensor& query, Tensor& key, int64_t head_size,
                            const Tensor& cos_sin_cache, bool) {
  for (const Tensor* t : {&query, &key}) {
    TORCH_CHECK(positions.numel() == 0 || t->numel() % (positions.numel() * cos_sin_cache.size(-1)) == 0,
                "_npu_rotary_embedding: ", t->sizes(), " is not ", positions.numel(), " tokens of heads of ",
                cos_sin_cache.size(-1));
  }
}

// op-plugin docs: npu_interleave_rope.md: pairs are taken apart into halves, then turned as halves.
Tensor interleave_rope(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  return turned(taken_apart(x), cos, sin, false).to(x.scalar_type());
}

}  // namespace

void rotary(Table& table) {
  table.add<&rotary_mul, &rotary_mul>("npu::npu_rotary_mul");
  table.add<&apply_rotary_pos_emb, &apply_rotary_pos_emb>("npu::npu_apply_rotary_pos_emb").results = {0, 1};
  table.add<&rotary_embedding, &check_rotary_embedding>("atb::_npu_rotary_embedding");
  table.add<&interleave_rope, &interleave_rope>("npu::npu_interleave_rope");
}

}  // namespace sim
