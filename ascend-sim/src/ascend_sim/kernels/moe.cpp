// Mixtures of experts: which experts a token goes to, its way there and back, and matrix products by group.
#include <ATen/ATen.h>

#include <functional>

#include "quant.h"
#include "reference.h"

namespace sim {
namespace {

using at::Tensor;
using torch::jit::Stack;

// The k largest, of equals the first.
std::pair<Tensor, Tensor> largest(const Tensor& scores, int64_t k) {
  const auto [values, places] = scores.sort(/*stable=*/true, -1, /*descending=*/true);
  return {values.narrow(-1, 0, k), places.narrow(-1, 0, k)};
}

// Rows that are finished go to no expert: the number behind the last one.
Tensor unfinished(const Tensor& experts, const OptionalTensor& finished, int64_t none) {
  const Tensor narrow = experts.to(at::kInt);
  return given(finished) ? narrow.masked_fill(finished->unsqueeze(-1), none) : narrow;
}

// op-plugin docs: npu_moe_gating_top_k_softmax.md
std::tuple<Tensor, Tensor, Tensor> gating_top_k_softmax(const Tensor& x, const OptionalTensor& finished, int64_t k) {
  const auto [weights, experts] = largest(x.to(at::kFloat).softmax(-1), k);
  const int64_t rows = experts.numel() / k;
  const Tensor places = at::arange(rows * k, at::kInt).view({k, rows}).t().reshape(experts.sizes());
  return {weights.to(x.scalar_type()), unfinished(experts, finished, x.size(-1)), places};
}

// renorm 1 has the softmax over the chosen alone: MoeGatingTopKSoftmaxV2KernelNpuOpApi.cpp
std::tuple<Tensor, Tensor, Tensor> gating_top_k_softmax_v2(const Tensor& x, int64_t k, const OptionalTensor& finished,
                                                           std::optional<int64_t> renorm,
                                                           std::optional<bool> output_softmax) {
  const Tensor all = x.to(at::kFloat).softmax(-1);
  auto [weights, experts] = largest(renorm.value_or(0) == 1 ? x.to(at::kFloat) : all, k);
  if (renorm.value_or(0) == 1)
    weights = weights.softmax(-1);
  const bool wanted = renorm.value_or(0) == 0 && output_softmax.value_or(false);
  return {weights.to(x.scalar_type()), unfinished(experts, finished, x.size(-1)),
          wanted ? all : at::empty({0}, at::kFloat)};
}

// op-plugin docs: npu_moe_gating_top_k.md. The bias counts for the choice alone.
std::tuple<Tensor, Tensor, Tensor> gating_top_k(const Tensor& x, int64_t k, const OptionalTensor& bias,
                                                const OptionalTensor& input_ids, const OptionalTensor&, int64_t k_group,
                                                int64_t groups, int64_t group_select, int64_t, int64_t norm,
                                                bool out_flag, double scaling, double eps) {
  TORCH_CHECK(!given(input_ids), "npu_moe_gating_top_k with input_ids is not emulated");
  const Tensor wide = x.to(at::kFloat), scores = norm == 1 ? wide.sigmoid() : wide.softmax(-1);
  Tensor choice = given(bias) ? scores + bias->to(at::kFloat) : scores;
  if (groups > 1) {
    const Tensor grouped = choice.unflatten(-1, {groups, -1});
    const Tensor best = group_select == 1 ? largest(grouped, 2).first.sum(-1) : grouped.amax(-1);
    const Tensor hidden = at::ones_like(best, at::kBool).scatter_(-1, largest(best, k_group).second, false);
    choice = grouped.masked_fill(hidden.unsqueeze(-1), -std::numeric_limits<double>::infinity()).flatten(-2);
  }
  const Tensor experts = largest(choice, k).second;
  Tensor weights = scores.gather(-1, experts);
  if (norm == 1)
    weights = weights / (weights.sum(-1, true) + eps);
  return {(weights * scaling).to(x.scalar_type()), experts.to(at::kInt),
          out_flag ? scores : at::empty({0}, at::kFloat)};
}

// Where each of the sorted comes from, and the other way round.
Tensor sorted_places(const Tensor& experts) {
  return std::get<1>(experts.flatten().sort(/*stable=*/true, 0, /*descending=*/false));
}
Tensor place_of_each(const Tensor& places) {
  return at::empty_like(places).scatter_(0, places, at::arange(places.numel()));
}

// op-plugin docs: npu_moe_init_routing.md
std::tuple<Tensor, Tensor, Tensor> init_routing(const Tensor& x, const Tensor& row_idx, const Tensor& experts,
                                                int64_t active) {
  const Tensor order = sorted_places(experts);
  const Tensor sources = row_idx.flatten().to(at::kLong).index_select(0, order);
  const int64_t rows = std::min(active, x.size(0)) * experts.size(-1);
  return {x.index_select(0, sources.narrow(0, 0, rows).remainder(x.size(0))), place_of_each(sources).to(at::kInt),
          experts.flatten().index_select(0, order)};
}

// op-plugin docs: npu_moe_init_routing_v2.md. Rows of experts outside the range are last, and no result of anyone's.
std::tuple<Tensor, Tensor, Tensor, Tensor> init_routing_v2(const Tensor& x, const Tensor& experts,
                                                           const OptionalTensor& scale, const OptionalTensor&,
                                                           int64_t active, int64_t, int64_t expert_num,
                                                           int64_t drop_pad, int64_t tokens_type, bool,
                                                           int64_t quant_mode, at::IntArrayRef range,
                                                           int64_t row_idx_type, std::optional<int64_t>) {
  const char* op = "npu_moe_init_routing_v2";
  TORCH_CHECK(drop_pad == 0, op, " that drops and pads is not emulated");
  TORCH_CHECK(quant_mode == -1 || (quant_mode == 1 && !given(scale)), op, " with quant_mode ", quant_mode,
              given(scale) ? " and a scale" : "", " is not emulated: -1, none, and 1, by token, are");
  const int64_t first = range.empty() ? 0 : range[0], end = range.empty() ? expert_num : range[1];
  const Tensor flat = experts.flatten().to(at::kLong), here = (flat >= first).logical_and_(flat < end);
  const Tensor order = sorted_places(flat.masked_fill(here.logical_not(), std::max(end, expert_num)));
  const int64_t k = experts.size(-1), rows = active > 0 ? std::min(active, flat.numel()) : flat.numel();
  Tensor moved = x.index_select(0, order.narrow(0, 0, rows).div(k, "floor"));
  Tensor scales = at::empty({0}, at::kFloat);
  if (quant_mode == 1) {
    std::tie(moved, scales) = by_row(moved.to(at::kFloat));
  }
  const Tensor where = row_idx_type == 1 ? order.masked_fill(here.logical_not().index_select(0, order), -1)
                                         : place_of_each(order).masked_fill(here.logical_not(), -1);
  Tensor tokens = at::bincount(flat.masked_select(here) - first, {}, end - first);
  if (tokens_type == 0)
    tokens = tokens.cumsum(0);
  if (tokens_type == 2) {  // [expert, how many], zeros behind the last that has any
    const Tensor some = at::nonzero(tokens).flatten();
    Tensor pairs = at::zeros({expert_num, 2}, at::kLong);
    pairs.narrow(0, 0, some.numel()).copy_(at::stack({some + first, tokens.index_select(0, some)}, 1));
    tokens = pairs;
  }
  return {moved, where.to(at::kInt), tokens, scales};
}

// op-plugin docs: npu_moe_finalize_routing.md. Modes 2 and 3 have a token's places beside each other, 0 and 1 a whole
// column of first places, then one of second places.
Tensor finalize_routing(const Tensor& rows, const OptionalTensor& skip1, const OptionalTensor& skip2,
                        const OptionalTensor& bias, const OptionalTensor& scales, const Tensor& places,
                        const OptionalTensor& experts, std::optional<int64_t> mode, std::optional<int64_t>) {
  const int64_t k = given(scales) ? scales->size(1) : 1, tokens = places.numel() / k;
  const Tensor flat = rows.reshape({-1, rows.size(-1)}).to(at::kFloat);
  const Tensor from = (mode.value_or(0) >= 2 ? places.view({tokens, k}) : places.view({k, tokens}).t()).to(at::kLong);
  const Tensor none = (from == -1).unsqueeze(-1);
  Tensor parts = flat.index_select(0, from.clamp_min(0).flatten()).view({tokens, k, flat.size(1)}).masked_fill(none, 0);
  if (given(bias))
    parts = parts + bias->to(at::kFloat).index_select(0, experts->flatten().to(at::kLong)).view_as(parts);
  if (given(scales))
    parts = parts * scales->to(at::kFloat).unsqueeze(-1);
  Tensor out = parts.sum(1);
  for (const auto* skip : {&skip1, &skip2}) {
    if (given(*skip))
      out = out + (*skip)->to(at::kFloat);
  }
  return out.to(rows.scalar_type());
}

// op-plugin docs: npu_moe_compute_expert_tokens.md
Tensor compute_expert_tokens(const Tensor& sorted, int64_t experts) {
  return at::searchsorted(sorted.contiguous(), at::arange(experts, sorted.scalar_type()), false, /*right=*/true)
      .to(sorted.scalar_type());
}

// aclnnMoeTokenPermute: tokens by expert, and where each of a token's copies went.
std::tuple<Tensor, Tensor> token_permute(const Tensor& tokens, const Tensor& experts, std::optional<int64_t> wanted,
                                         bool padded) {
  TORCH_CHECK(!padded, "npu_moe_token_permute with padded_mode is not emulated");
  const Tensor order = sorted_places(experts);
  const int64_t k = experts.dim() == 1 ? 1 : experts.size(1), all = order.numel();
  int64_t rows = wanted.value_or(0);
  rows = rows > 0 ? std::min(rows, all) : all + rows;
  return {tokens.index_select(0, order.narrow(0, 0, rows).div(k, "floor")), place_of_each(order).to(at::kInt)};
}

// aclnnMoeTokenUnpermute: the copies of a token together, each times its probability.
Tensor token_unpermute(const Tensor& rows, const Tensor& places, const OptionalTensor& probabilities, bool padded,
                       at::OptionalIntArrayRef) {
  TORCH_CHECK(!padded, "npu_moe_token_unpermute with padded_mode is not emulated");
  const int64_t k = given(probabilities) ? probabilities->size(1) : 1;
  const Tensor from = places.flatten().to(at::kLong);
  // Behind the last row lie the copies that were dropped.
  Tensor parts = rows.to(at::kFloat).index_select(0, from.clamp_max(rows.size(0) - 1));
  parts = parts.masked_fill((from >= rows.size(0)).unsqueeze(-1), 0).view({from.numel() / k, k, rows.size(1)});
  if (given(probabilities))
    parts = parts * probabilities->to(at::kFloat).unsqueeze(-1);
  return parts.sum(1).to(rows.scalar_type());
}

std::tuple<Tensor, Tensor> token_unpermute_and_rows(const Tensor& rows, const Tensor& places,
                                                    const OptionalTensor& probabilities, bool padded,
                                                    at::OptionalIntArrayRef shape) {
  return {token_unpermute(rows, places, probabilities, padded, shape), rows};
}

// op-plugin docs: npu_moe_re_routing.md. From ranks, then experts, to experts, then ranks.
std::tuple<Tensor, Tensor, Tensor, Tensor> re_routing(const Tensor& tokens, const Tensor& counts,
                                                      const OptionalTensor& scales, int64_t number_type,
                                                      int64_t index_type, std::optional<int64_t>) {
  TORCH_CHECK(number_type == 1 && index_type == 0,
              "npu_moe_re_routing: expert_token_num_type 1 and idx_type 0 are emulated");
  const Tensor many = counts.to(at::kLong), ends = many.flatten().cumsum(0).view_as(many);
  std::vector<Tensor> order;
  for (int64_t expert = 0; expert < many.size(1); ++expert) {
    for (int64_t rank = 0; rank < many.size(0); ++rank) {
      const int64_t end = ends[rank][expert].item<int64_t>();
      order.push_back(at::arange(end - many[rank][expert].item<int64_t>(), end));
    }
  }
  const Tensor from = at::cat(order);
  Tensor moved = tokens.clone(), where = at::zeros({tokens.size(0)}, at::kInt);
  moved.narrow(0, 0, from.numel()).copy_(tokens.index_select(0, from));
  where.narrow(0, 0, from.numel()).copy_(from);
  Tensor moved_scales = at::empty({0}, at::kFloat);
  if (given(scales)) {
    moved_scales = scales->clone();
    moved_scales.narrow(0, 0, from.numel()).copy_(scales->index_select(0, from));
  }
  return {moved, moved_scales, where, many.sum(0).to(counts.scalar_type())};
}

// Shows where each group's rows begin, and how many it has, if any.
void for_groups(const std::string& op, const Tensor& ends, int64_t rows,
                const std::function<void(int64_t, int64_t, int64_t)>& see) {
  int64_t first = 0;
  for (int64_t i = 0; i < ends.numel(); ++i) {
    const int64_t end = ends[i].item<int64_t>();
    TORCH_CHECK(end >= first && end <= rows, op, ": a group ends at row ", end, " of ", rows);
    if (end > first)
      see(i, first, end - first);
    first = end;
  }
}

// Rows of int8 by their group's weight, [groups, k, n] of int8: sums of products of int8 are exact in float64. Rows
// behind the last group are zeros.
Tensor grouped_int8_product(const std::string& op, const Tensor& x, const Tensor& weight, const Tensor& scale,
                            const Tensor& ends) {
  Tensor out = at::zeros({x.size(0), weight.size(2)}, at::kFloat);
  for_groups(op, ends, x.size(0), [&](int64_t i, int64_t first, int64_t rows) {
    const Tensor y = x.narrow(0, first, rows).to(at::kDouble).matmul(weight[i].to(at::kDouble)).to(at::kFloat);
    out.narrow(0, first, rows).copy_(scale.defined() ? y * scale[i].to(at::kFloat) : y);
  });
  return out;
}

void check_grouped_int8(const std::string& op, const Tensor& x, const Tensor& weight, const Tensor& list) {
  TORCH_CHECK(x.scalar_type() == at::kChar && weight.scalar_type() == at::kChar, op, " of ", x.scalar_type(), " and ",
              weight.scalar_type(), " is not emulated: int8 is");
  TORCH_CHECK(x.dim() == 2 && weight.dim() == 3 && x.size(1) == weight.size(1) && list.dim() == 1 &&
                  list.size(0) == weight.size(0),
              op, ": rows ", x.sizes(), ", weights of groups ", weight.sizes(), ", group_list ", list.sizes());
}

// op-plugin's _op_plugin_docs.py: npu_grouped_matmul_swiglu_quant, and docs: npu_grouped_matmul_swiglu_quant_v2.md. The
// first half is activated.
std::pair<Tensor, Tensor> grouped_swiglu_quant(const std::string& op, const Tensor& x, const Tensor& weight,
                                               const Tensor& scale, const Tensor& token_scale, const Tensor& ends) {
  const Tensor y = grouped_int8_product(op, x, weight, scale, ends) * token_scale.to(at::kFloat).view({-1, 1});
  const auto halves = y.chunk(2, -1);
  return by_row(at::silu(halves[0]) * halves[1]);
}

std::tuple<Tensor, Tensor, Tensor> grouped_matmul_swiglu_quant(const Tensor& x, const Tensor& weight,
                                                               const Tensor& list, const Tensor& scale,
                                                               const Tensor& token_scale, const OptionalTensor&,
                                                               const OptionalTensor&) {
  const auto [values, scales] =
      grouped_swiglu_quant("npu_grouped_matmul_swiglu_quant", x, weight, scale, token_scale, list.to(at::kLong));
  return {values, scales, at::empty({0}, at::kFloat)};  // the third one is for later versions
}

std::tuple<Tensor, Tensor, Tensor> grouped_matmul_swiglu_quant_shapes(const Tensor& x, const Tensor& weight,
                                                                      const Tensor& list, const Tensor& scale,
                                                                      const Tensor&, const OptionalTensor& bias,
                                                                      const OptionalTensor& offset) {
  const char* op = "npu_grouped_matmul_swiglu_quant";
  TORCH_CHECK(!given(bias) && !given(offset), op, " with a bias or an offset is not emulated");
  check_grouped_int8(op, x, weight, list);
  const auto wide = x.options().dtype(at::kFloat);
  return {at::empty({x.size(0), scale.size(-1) / 2}, x.options()), at::empty({x.size(0)}, wide), at::empty({}, wide)};
}

void grouped_matmul_swiglu_quant_v2(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const Arguments call(op, stack);
  Tensor ends = call.tensor("group_list").to(at::kLong);
  if (call.integer("group_list_type", 0) == 1)
    ends = ends.cumsum(0);
  auto [values, scales] =
      grouped_swiglu_quant(call.op(), call.tensor("x"), call["weight"].toTensorVector().at(0),
                           call["weight_scale"].toTensorVector().at(0), call.tensor("x_scale"), ends);
  stack->emplace_back(std::move(values));
  stack->emplace_back(std::move(scales));
}

void grouped_matmul_swiglu_quant_v2_shapes(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const Arguments call(op, stack);
  for (const char* name : {"smooth_scale", "weight_assist_matrix", "bias", "x_dtype", "weight_dtype",
                           "weight_scale_dtype", "x_scale_dtype"})
    TORCH_CHECK(!call.has(name), call.op(), " with ", name, " is not emulated");
  for (const auto& [name, value] :
       {std::pair("dequant_mode", 0), std::pair("quant_mode", 0), std::pair("quant_dtype", 1)})
    TORCH_CHECK(call.integer(name, value) == value, call.op(), " with ", name, " ", call.integer(name, value),
                " is not emulated: ", value, " is");
  const auto weight = call["weight"].toTensorVector(), scale = call["weight_scale"].toTensorVector();
  TORCH_CHECK(weight.size() == 1 && scale.size() == 1, call.op(), ": weight and weight_scale are lists of one");
  const Tensor x = call.tensor("x");
  check_grouped_int8(call.op(), x, weight[0], call.tensor("group_list"));
  stack->emplace_back(at::empty({x.size(0), scale[0].size(-1) / 2}, x.options()));
  stack->emplace_back(at::empty({x.size(0)}, x.options().dtype(at::kFloat)));
}

// op-plugin docs: npu_grouped_matmul_finalize_routing.md: each row times its weight is added to its token's row.
void grouped_matmul_finalize_routing(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const Arguments call(op, stack);
  const Tensor x = call.tensor("x"), weight = call.tensor("w"), rows = call.tensor("row_index").to(at::kLong);
  Tensor ends = call.tensor("group_list").to(at::kLong);
  if (call.integer("group_list_type", 1) == 1)
    ends = ends.cumsum(0);
  Tensor y = grouped_int8_product(call.op(), x, weight, call.tensor("scale"), ends);
  for (const char* factor : {"pertoken_scale", "logit"}) {
    if (call.has(factor))
      y = y * call.tensor(factor).to(at::kFloat).view({-1, 1});
  }
  const int64_t tokens = call.integer("output_bs", 0);
  Tensor out = at::zeros({tokens == 0 ? x.size(0) : tokens, weight.size(2)}, at::kFloat);
  out.index_add_(0, rows, y);
  const Tensor shared = call.tensor("shared_input");
  if (shared.defined()) {
    const double factor = call.has("shared_input_weight") ? call.number("shared_input_weight") : 1;
    out.narrow(0, call.integer("shared_input_offset", 0), shared.size(0)).add_(shared.to(at::kFloat), factor);
  }
  stack->emplace_back(out);
}

void grouped_matmul_finalize_routing_shapes(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const Arguments call(op, stack);
  for (const char* name : {"bias", "offset", "x_dtype", "w_dtype", "scale_dtype", "pertoken_scale_dtype"})
    TORCH_CHECK(!call.has(name), call.op(), " with ", name, " is not emulated");
  const Tensor x = call.tensor("x"), weight = call.tensor("w");
  check_grouped_int8(call.op(), x, weight, call.tensor("group_list"));
  TORCH_CHECK(call.has("row_index") && call.tensor("row_index").numel() == x.size(0), call.op(),
              ": a row_index for each of ", x.size(0), " rows");
  TORCH_CHECK(!call.has("dtype") || call["dtype"].toScalarType() == at::kFloat, call.op(),
              " to another dtype than float32 is not emulated");
  const int64_t tokens = call.integer("output_bs", 0);
  stack->emplace_back(at::empty({tokens == 0 ? x.size(0) : tokens, weight.size(2)}, x.options().dtype(at::kFloat)));
}

// op-plugin docs: npu_grouped_matmul.md. Rows of one x by groups with a weight each, or pairs of x and weight.
void grouped_matmul(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const Arguments call(op, stack);
  for (const char* name : {"offset", "antiquant_scale", "antiquant_offset", "activation_input",
                           "activation_quant_scale", "activation_quant_offset"}) {
    TORCH_CHECK(!call.has(name) || call[name].toTensorVector().empty(), call.op(), " with ", name, " is not emulated");
  }
  TORCH_CHECK(!call.has("act_type") || call["act_type"].toInt() == 0, call.op(), " with act_type is not emulated");
  const auto list = [&](const char* name) {
    return call.has(name) ? call[name].toTensorVector() : std::vector<Tensor>();
  };
  const auto x = list("x"), weight = list("weight"), bias = list("bias"), scale = list("scale");
  const auto token_scale = list("per_token_scale");
  const auto per_expert = [](const std::vector<Tensor>& of, size_t i, bool stacked) {
    return of.empty() ? Tensor() : stacked ? of[0][static_cast<int64_t>(i)] : of[i];
  };
  const bool stacked = weight.size() == 1 && weight[0].dim() == 3;
  const size_t groups = stacked ? static_cast<size_t>(weight[0].size(0)) : weight.size();
  const auto product = [&](const Tensor& rows, size_t i) {
    Tensor y = rows.to(at::kFloat).matmul(per_expert(weight, i, stacked).to(at::kFloat));
    const Tensor s = per_expert(scale, i, stacked), b = per_expert(bias, i, stacked);
    if (b.defined() && !at::isFloatingType(b.scalar_type()))  // before it is scaled
      y = y + b.to(at::kFloat);
    if (s.defined())
      y = y * s.to(at::kFloat);
    return b.defined() && at::isFloatingType(b.scalar_type()) ? y + b.to(at::kFloat) : y;
  };
  c10::List<Tensor> results;
  if (!call.has("group_list")) {
    TORCH_CHECK(x.size() == groups && token_scale.empty(), call.op(), ": ", x.size(), " inputs and ", groups,
                " weights, without a group_list");
    std::vector<Tensor> each;
    for (size_t i = 0; i < groups; ++i)
      each.push_back(product(x[i], i));
    const int64_t split = call.has("split_item") ? call["split_item"].toInt() : 0;
    if (split >= 2) {
      results.push_back(at::cat(each));
    } else {
      for (const Tensor& one : each)
        results.push_back(one);
    }
    stack->emplace_back(results);
    return;
  }
  TORCH_CHECK(x.size() == 1 && (!call.has("group_type") || call["group_type"].toInt() == 0), call.op(),
              ": with a group_list, one x whose rows are grouped (group_type 0) is emulated");
  TORCH_CHECK(call["group_list"].isTensor(), call.op(), " with a group_list of integers is not emulated");
  Tensor counts = call.tensor("group_list").to(at::kLong);
  const int64_t kind = call.has("group_list_type") ? call["group_list_type"].toInt() : 0;
  TORCH_CHECK(kind == 0 || kind == 1, call.op(), " with group_list_type ", kind, " is not emulated: 0 and 1 are");
  if (kind == 1)
    counts = counts.cumsum(0);
  const int64_t width = (stacked ? weight[0] : weight[0].unsqueeze(0)).size(2);
  Tensor out = at::zeros({x[0].size(0), width}, at::kFloat);
  for_groups(call.op(), counts, x[0].size(0), [&](int64_t i, int64_t first, int64_t rows) {
    out.narrow(0, first, rows).copy_(product(x[0].narrow(0, first, rows), static_cast<size_t>(i)));
  });
  if (!token_scale.empty())
    out = out * token_scale[0].to(at::kFloat).reshape({-1, 1});
  results.push_back(out);
  stack->emplace_back(results);
}

// ATen's, with which rows are counted by expert: of integers too, as aclnnHistc takes them, and ATen's kernel for CUDA.
Tensor histc(const Tensor& self, int64_t bins, const at::Scalar& min, const at::Scalar& max) {
  if (self.is_floating_point())
    return at::histc(self, bins, min, max);
  return at::histc(self.to(at::kDouble), bins, min, max).to(self.scalar_type());
}

}  // namespace

void moe(Table& table) {
  table.add<&histc>("aten::histc");
  table.add<&gating_top_k_softmax>("npu::npu_moe_gating_top_k_softmax");
  table.add<&gating_top_k_softmax_v2>("npu::npu_moe_gating_top_k_softmax_v2");
  table.add<&gating_top_k>("npu::npu_moe_gating_top_k");
  table.add<&init_routing>("npu::npu_moe_init_routing");
  table.add<&init_routing_v2>("npu::npu_moe_init_routing_v2");
  table.add<&finalize_routing>("npu::npu_moe_finalize_routing");
  table.add<&compute_expert_tokens>("npu::npu_moe_compute_expert_tokens");
  table.add<&token_permute>("npu::npu_moe_token_permute");
  table.add<&token_unpermute>("npu::npu_moe_token_unpermute");
  table.add<&token_unpermute_and_rows>("npu::_npu_moe_token_unpermute");
  table.add<&re_routing>("npu::npu_moe_re_routing");
  using c10::KernelFunction;
  table.add_boxed("npu::npu_grouped_matmul", KernelFunction::makeFromBoxedFunction<&grouped_matmul>(), {});
  table.add<&grouped_matmul_swiglu_quant, &grouped_matmul_swiglu_quant_shapes>("npu::npu_grouped_matmul_swiglu_quant");
  table.add_boxed("npu::npu_grouped_matmul_swiglu_quant_v2",
                  KernelFunction::makeFromBoxedFunction<&grouped_matmul_swiglu_quant_v2>(),
                  KernelFunction::makeFromBoxedFunction<&grouped_matmul_swiglu_quant_v2_shapes>());
  table.add_boxed("npu::npu_grouped_matmul_finalize_routing",
                  KernelFunction::makeFromBoxedFunction<&grouped_matmul_finalize_routing>(),
                  KernelFunction::makeFromBoxedFunction<&grouped_matmul_finalize_routing_shapes>());
}

}  // namespace sim
