// Multi-head latent attention (MLA): what comes before it, up to queries and the two caches, of compressed keys and
// values and of the part of the keys that has the positions.
#include <ATen/ATen.h>

#include <set>

#include "cache.h"
#include "norms.h"
#include "quant.h"
#include "reference.h"
#include "rotary.h"

namespace sim {
namespace {

using at::Tensor;
using torch::jit::Stack;

// --- caches

// [blocks, rows, 1, width] in the order of "NZ", [blocks, width / n, rows, n], as [blocks, rows, width / n, n].
Tensor rows_of_nz(const Tensor& cache) {
  const int64_t last = cache.scalar_type() == at::kChar ? 32 : 16;
  return cache.view({cache.size(0), cache.size(3) / last, cache.size(1), last}).transpose(1, 2);
}

// rows: [tokens, width]
void write(const Tensor& cache, const Tensor& rows, const Tensor& slots, bool nz) {
  const Tensor seen = nz ? rows_of_nz(cache) : cache.squeeze(2);
  std::vector<int64_t> sizes = seen.sizes().slice(1).vec();
  sizes[0] = rows.size(0);
  write_slots(seen, rows.reshape(sizes), slots);
}

// Of an index that has a place for each block of a sequence: where its tokens go.
Tensor slots_of_blocks(const Tensor& index, int64_t sequences, int64_t length, int64_t size) {
  const Tensor token = at::arange(length);
  const Tensor first = index.reshape({sequences, -1}).to(at::kLong).index_select(1, token.div(size, "floor"));
  return (first.div(size, "floor") * size + token.remainder(size)).masked_fill(first < 0, -1);
}

// Of an index that counts from each sequence's beginning.
Tensor slots_of_sequences(const Tensor& index, int64_t length) {
  const Tensor places = index.to(at::kLong);
  return (places + at::arange(places.size(0)).unsqueeze(1) * length).masked_fill(places < 0, -1);
}

// What a cache holds of values in float32.
Tensor stored(const Tensor& values, const Tensor& scale, at::ScalarType dtype) {
  return scale.defined() ? to_int8(values * scale.to(at::kFloat)) : values.to(dtype);
}

// --- npu_kv_rmsnorm_rope_cache
// Meaning: op-plugin docs, npu_kv_rmsnorm_rope_cache.md; results: KvRmsNormRopeCacheNpuOpApi.cpp. Both caches are
// overwritten; the first version has them as results as well, though its schema does not say so.

// One call, its modes taken apart.
struct KeyValue {
  explicit KeyValue(const Arguments& call);
  void check(const Arguments& call) const;

  std::string mode;
  Tensor kv, gamma, cos, sin, index, rope_cache, cache, rope_scale, scale;
};

KeyValue::KeyValue(const Arguments& call)
    : mode(call.text("cache_mode")),
      kv(call.tensor("kv")),
      gamma(call.tensor("gamma")),
      cos(call.tensor("cos")),
      sin(call.tensor("sin")),
      index(call.tensor("index")),
      rope_cache(call.tensor("k_cache")),
      cache(call.tensor("ckv_cache")),
      rope_scale(call.tensor("k_rope_scale")),
      scale(call.tensor("c_kv_scale")) {}

void KeyValue::check(const Arguments& call) const {
  const std::string& op = call.op();
  for (const char* name : {"k_rope_offset", "c_kv_offset", "v", "k_cache_dtype", "ckv_cache_dtype"})
    TORCH_CHECK(!call.has(name), op, " with ", name, " is not emulated");
  static const std::set<std::string> modes = {"Norm", "PA", "PA_BNSD", "PA_NZ", "PA_BLK_BNSD", "PA_BLK_NZ"};
  TORCH_CHECK(modes.count(mode) > 0, op, " has no cache_mode ", mode);
  TORCH_CHECK(kv.dim() == 4 && kv.size(1) == 1 && gamma.dim() == 1 && cos.dim() == 4 &&
                  cos.sizes().equals(sin.sizes()) && kv.size(3) == gamma.size(0) + cos.size(3),
              op, ": kv is [batch, 1, length, gamma's + cos's], not ", kv.sizes(), " with gamma ", gamma.sizes(),
              ", cos ", cos.sizes(), " and sin ", sin.sizes());
  TORCH_CHECK(rope_scale.defined() == scale.defined(), op, ": k_rope_scale and c_kv_scale go together");
  for (const auto& [name, one, width] :
       {std::tuple("k_cache", &rope_cache, cos.size(3)), std::tuple("ckv_cache", &cache, gamma.size(0))}) {
    TORCH_CHECK(one->dim() == 4 && one->size(3) == width && one->size(mode == "Norm" ? 1 : 2) == 1, op, ": ", name, " ",
                one->sizes(), " of cache_mode ", mode, " does not hold rows of ", width);
    TORCH_CHECK(one->scalar_type() == (scale.defined() ? at::kChar : kv.scalar_type()), op, ": ", name, " is ",
                one->scalar_type(), scale.defined() ? ", with scales" : ", without scales", ", and kv ",
                kv.scalar_type());
  }
  const int64_t tokens = kv.size(0) * kv.size(2), size = rope_cache.size(1);
  const bool by_block = mode.rfind("PA_BLK", 0) == 0;
  const int64_t places = by_block ? kv.size(0) * ((kv.size(2) + size - 1) / size) : tokens;
  TORCH_CHECK(index.numel() == places && (mode != "Norm" || index.dim() == 2), op, ": index ", index.sizes(),
              " of cache_mode ", mode, " for kv ", kv.sizes());
}

void kv_rmsnorm_rope_cache(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const Arguments call(op, stack);
  const KeyValue given(call);
  const int64_t width = given.gamma.size(0), rope_width = given.cos.size(3);
  const Tensor compressed =
      std::get<0>(normalised(given.kv.narrow(-1, 0, width), 1, call.number("epsilon"))) * given.gamma.to(at::kFloat);
  const Tensor rope = turned(taken_apart(given.kv.narrow(-1, width, rope_width)), given.cos, given.sin, false);
  const bool nz = given.mode == "PA_NZ" || given.mode == "PA_BLK_NZ", plain = given.mode == "Norm";
  Tensor slots = given.index;
  if (plain)
    slots = slots_of_sequences(given.index, given.cache.size(2));
  else if (given.mode.rfind("PA_BLK", 0) == 0)
    slots = slots_of_blocks(given.index, given.kv.size(0), given.kv.size(2), given.cache.size(1));
  for (const auto& [cache, values, scale] :
       {std::tuple(&given.rope_cache, &rope, &given.rope_scale), std::tuple(&given.cache, &compressed, &given.scale)}) {
    const Tensor blocks = plain ? cache->transpose(1, 2) : *cache;
    write(blocks, stored(*values, *scale, cache->scalar_type()).flatten(0, 2), slots, nz);
  }
  if (call.op() == "npu::npu_kv_rmsnorm_rope_cache") {
    stack->emplace_back(given.rope_cache);
    stack->emplace_back(given.cache);
  }
  // Not asked for, they stay what the memory was.
  const bool wanted = call.flag("is_output_kv") && !plain;
  for (const Tensor* result : {&rope, &compressed})
    stack->emplace_back(wanted ? result->to(given.kv.scalar_type()) : at::empty({0}, given.kv.options()));
}

void kv_rmsnorm_rope_cache_shapes(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const Arguments call(op, stack);
  const KeyValue given(call);
  given.check(call);
  if (call.op() == "npu::npu_kv_rmsnorm_rope_cache") {
    stack->emplace_back(given.rope_cache);
    stack->emplace_back(given.cache);
  }
  for (const int64_t width : {given.cos.size(3), given.gamma.size(0)})
    stack->emplace_back(at::empty({given.kv.size(0), 1, given.kv.size(2), width}, given.kv.options()));
}

// --- npu_mla_prolog
// Meaning: op-plugin docs, npu_mla_prolog.md, npu_mla_prolog_v2.md and npu_mla_prolog_v3.md, of the two factors CANN's
// aclnnMlaPrologV3WeightNz.md; where numbers are rounded on the way: the definition in op-plugin's test_mla_prolog.py;
// shapes: the ops' own meta kernels. The caches are overwritten, and results of the first two versions.

struct Caches {
  Tensor kv, rope, index;
  bool nz;
};

// Modes without blocks have a place for each token.
Caches caches_of(const Arguments& call) {
  const std::string& mode = call.text("cache_mode");
  Tensor kv = call.tensor("kv_cache"), rope = call.tensor("kr_cache");
  if (mode == "PA_BSND" || mode == "PA_NZ")
    return {kv, rope, call.tensor("cache_index"), mode == "PA_NZ"};
  TORCH_CHECK(call.op() == "npu::npu_mla_prolog_v3" && (mode == "BSND" || mode == "TND"), call.op(),
              " with cache_mode ", mode, " is not emulated");
  if (mode == "TND") {
    kv = kv.unsqueeze(0);
    rope = rope.unsqueeze(0);
  }
  return {kv, rope, at::arange(kv.size(0) * kv.size(1)), false};
}

void check_mla_prolog(const Arguments& call) {
  const std::string& op = call.op();
  for (const char* name :
       {"dequant_scale_x", "dequant_scale_w_dq", "dequant_scale_w_uq_qr", "dequant_scale_w_dkv_kr", "quant_scale_ckv",
        "quant_scale_ckr", "smooth_scales_cq", "actual_seq_len", "k_nope_clip_alpha", "token_x_dtype",
        "weight_dq_dtype", "weight_uq_qr_dtype", "weight_dkv_kr_dtype", "kv_cache_dtype"})
    TORCH_CHECK(!call.has(name), op, " with ", name, " is not emulated: what is not quantised is");
  for (const char* name :
       {"weight_quant_mode", "kv_cache_quant_mode", "query_quant_mode", "ckvkr_repo_mode", "quant_scale_repo_mode"})
    TORCH_CHECK(call.integer(name, 0) == 0, op, " with ", name, " is not emulated: what is not quantised is");
  const Tensor x = call.tensor("token_x"), dq = call.tensor("weight_dq"), uq = call.tensor("weight_uq_qr"),
               uk = call.tensor("weight_uk"), dkv = call.tensor("weight_dkv_kr"), cos = call.tensor("rope_cos"),
               sin = call.tensor("rope_sin");
  TORCH_CHECK(x.scalar_type() == at::kBFloat16, op, " of ", x.scalar_type(), " is not emulated: bfloat16 is");
  TORCH_CHECK((x.dim() == 2 || x.dim() == 3) && cos.dim() == x.dim() && cos.sizes().equals(sin.sizes()) &&
                  cos.sizes().slice(0, x.dim() - 1).equals(x.sizes().slice(0, x.dim() - 1)),
              op, ": token_x ", x.sizes(), ", rope_cos ", cos.sizes(), ", rope_sin ", sin.sizes());
  const int64_t hidden = x.size(-1), rope = cos.size(-1);
  TORCH_CHECK(dq.dim() == 2 && dq.size(0) == hidden && uk.dim() == 3 && uq.dim() == 2 && uq.size(0) == dq.size(1) &&
                  uq.size(1) == uk.size(0) * (uk.size(1) + rope) && dkv.dim() == 2 && dkv.size(0) == hidden &&
                  dkv.size(1) == uk.size(2) + rope,
              op, ": weights of ", hidden, " and angles of ", rope, " are [hidden, q], [q, heads * (d + angles)], ",
              "[heads, d, kv] and [hidden, kv + angles], not ", dq.sizes(), ", ", uq.sizes(), ", ", uk.sizes(), " and ",
              dkv.sizes());
  const Caches caches = caches_of(call);
  TORCH_CHECK(caches.index.defined() && caches.index.numel() == x.numel() / hidden, op, ": cache_index for ",
              x.numel() / hidden, " tokens");
  TORCH_CHECK(caches.kv.dim() == 4 && caches.kv.size(2) == 1 && caches.kv.size(3) == uk.size(2) &&
                  caches.rope.dim() == 4 && caches.rope.size(2) == 1 && caches.rope.size(3) == rope,
              op, ": caches ", caches.kv.sizes(), " and ", caches.rope.sizes(), " for rows of ", uk.size(2), " and ",
              rope);
}

Tensor product(const Tensor& x, const Tensor& weight) {
  return x.to(at::kFloat).matmul(weight.to(at::kFloat));
}

void mla_prolog(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const Arguments call(op, stack);
  const bool third = call.op() == "npu::npu_mla_prolog_v3";
  const Tensor x = call.tensor("token_x"), uk = call.tensor("weight_uk"), cos = call.tensor("rope_cos"),
               sin = call.tensor("rope_sin");
  const auto dtype = x.scalar_type();
  const auto normed = [&](const Tensor& values, const char* gamma, const char* epsilon, const char* factor) {
    const Tensor y = std::get<0>(normalised(values, 1, call.number(epsilon))) * call.tensor(gamma).to(at::kFloat);
    return third ? y * call.number(factor) : y;
  };
  // The query: down, then up for all heads, then into the space of the compressed keys.
  const Tensor down = product(x, call.tensor("weight_dq")).to(dtype);
  const Tensor norm = normed(down, "rmsnorm_gamma_cq", "rmsnorm_epsilon_cq", "qc_qr_scale").to(dtype);
  const Tensor up = product(norm, call.tensor("weight_uq_qr")).to(dtype).unflatten(-1, {uk.size(0), -1});
  const Tensor query = product(up.narrow(-1, 0, uk.size(1)).unsqueeze(-2), uk).squeeze(-2).to(dtype);
  const Tensor query_rope =
      turned(taken_apart(up.narrow(-1, uk.size(1), cos.size(-1))), cos.unsqueeze(-2), sin.unsqueeze(-2), false)
          .to(dtype);
  // The key: compressed, and its part with the positions.
  const Tensor both = product(x, call.tensor("weight_dkv_kr"));
  const Tensor compressed =
      normed(both.narrow(-1, 0, uk.size(2)), "rmsnorm_gamma_ckv", "rmsnorm_epsilon_ckv", "kc_scale");
  const Tensor key_rope = turned(taken_apart(both.narrow(-1, uk.size(2), cos.size(-1))), cos, sin, false);
  const Caches caches = caches_of(call);
  write(caches.kv, compressed.to(caches.kv.scalar_type()).flatten(0, -2), caches.index, caches.nz);
  write(caches.rope, key_rope.to(caches.rope.scalar_type()).flatten(0, -2), caches.index, caches.nz);

  const Tensor none = at::empty({0}, at::kFloat);  // scales of what is quantised
  stack->emplace_back(query);
  stack->emplace_back(query_rope);
  if (third) {
    stack->emplace_back(none);
    stack->emplace_back(call.flag("query_norm_flag") ? norm : none.to(dtype));
    stack->emplace_back(none);
    return;
  }
  stack->emplace_back(caches.kv);
  stack->emplace_back(caches.rope);
  if (call.op() == "npu::npu_mla_prolog_v2")
    stack->emplace_back(none);
}

void mla_prolog_shapes(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  Stack copy = *stack;
  check_mla_prolog(Arguments(op, &copy));
  op.callBoxed(stack);
}

}  // namespace

void mla(Table& table) {
  using c10::KernelFunction;
  const auto latent = [&](const char* op) -> Reference& {
    return table.add_boxed(op, KernelFunction::makeFromBoxedFunction<&kv_rmsnorm_rope_cache>(),
                           KernelFunction::makeFromBoxedFunction<&kv_rmsnorm_rope_cache_shapes>());
  };
  latent("npu::npu_kv_rmsnorm_rope_cache").results = {5, 6};
  latent("npu::npu_kv_rmsnorm_rope_cache_v2");
  const auto prolog = [&](const char* op) -> Reference& {
    return table.add_boxed(op, KernelFunction::makeFromBoxedFunction<&mla_prolog>(),
                           KernelFunction::makeFromBoxedFunction<&mla_prolog_shapes>());
  };
  prolog("npu::npu_mla_prolog").results = {-1, -1, 10, 11};
  prolog("npu::npu_mla_prolog_v2").results = {-1, -1, 10, 11};
  prolog("npu::npu_mla_prolog_v3");
}

}  // namespace sim
