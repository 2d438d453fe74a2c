// Softmax attention of one sequence, in float32: what all attention ops share.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string>

namespace sim {

// Which keys a query may see, by their places in the sequence: j - i + offset between -before and after.
struct Band {
  int64_t offset, before, after;
};

struct Attend {
  double scale = 1;
  std::optional<Band> band;
  at::Tensor mask;  // broadcasts to [queries, keys]; what is not zero is not seen
  at::Tensor bias;  // broadcasts to [heads, queries, keys]; added to the scaled products
  at::Tensor sink;  // [heads]; in each softmax's sum, with no value
};

struct Attended {
  at::Tensor out;           // [heads, queries, width of a value]; zeros where a query sees nothing
  at::Tensor lse;           // [heads, queries]; infinity there
  at::Tensor highest, sum;  // [heads, queries]: the softmax's highest score and its sum; zeros there
};

// query [heads, queries, width], key [key heads, keys, width], value [key heads, keys, width of a value]
Attended attend(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const Attend& how);

// Views of [sequences, heads, rows, width] of any layout; "TND" and "NTD" are one sequence of all tokens.
at::Tensor by_heads(const at::Tensor& tensor, const std::string& layout, int64_t heads);

// A cache of [blocks, rows, heads * width], [blocks, heads, rows, width] or [blocks, heads, width / n, rows, n] as
// [blocks, heads, rows, width].
at::Tensor cache_by_heads(const at::Tensor& cache, int64_t heads);
// The first `rows` rows of a sequence, [heads, rows, width], from the blocks that its row of the table names.
at::Tensor paged(const at::Tensor& cache, const at::Tensor& blocks, int64_t rows);

}  // namespace sim
