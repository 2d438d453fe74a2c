#include "reference.h"

namespace sim {
namespace {
Table made() {
  Table table;
  norms(table);
  rotary(table);
  activations(table);
  attention(table);
  paged_attention(table);
  fusion_attention(table);
  mla(table);
  cache(table);
  moe(table);
  quant(table);
  products(table);
  sampling(table);
  recurrent(table);
  return table;
}
}  // namespace

const Reference* reference_of(const std::string& op) {
  static const Table table = made();
  const auto found = table.ops.find(op);
  return found == table.ops.end() ? nullptr : &found->second;
}

}  // namespace sim
