#include "planner.h"

#include <algorithm>
#include <numeric>

namespace graphmode {

namespace {
constexpr int64_t kAlign = 64;

int64_t aligned(int64_t bytes) {
  return (bytes + kAlign - 1) / kAlign * kAlign;
}

// Puts buffers in the given order; `best_fit` takes the smallest gap that is large enough, otherwise the lowest.
Placement place_in_order(const std::vector<Lifetime>& lifetimes, const std::vector<size_t>& order, bool best_fit) {
  Placement result;
  result.offsets.assign(lifetimes.size(), 0);
  std::vector<size_t> placed;  // by offset
  std::vector<size_t> alive;
  for (size_t i : order) {
    const auto& me = lifetimes[i];
    alive.clear();
    for (size_t p : placed) {
      if (lifetimes[p].first <= me.last && me.first <= lifetimes[p].last) {
        alive.push_back(p);
      }
    }
    const int64_t need = aligned(me.bytes);
    int64_t cursor = 0, at = -1, gap_of = 0;
    for (size_t p : alive) {
      const int64_t gap = result.offsets[p] - cursor;
      if (gap >= need && (at < 0 || (best_fit && gap < gap_of))) {
        at = cursor;
        gap_of = gap;
        if (!best_fit) {
          break;
        }
      }
      cursor = std::max(cursor, result.offsets[p] + aligned(lifetimes[p].bytes));
    }
    result.offsets[i] = at < 0 ? cursor : at;
    result.total = std::max(result.total, result.offsets[i] + need);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), i,
                                   [&](size_t a, size_t b) { return result.offsets[a] < result.offsets[b]; }),
                  i);
  }
  return result;
}
}  // namespace

Placement place_by_size(const std::vector<Lifetime>& lifetimes) {
  std::vector<size_t> order(lifetimes.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return lifetimes[a].bytes > lifetimes[b].bytes; });
  return place_in_order(lifetimes, order, false);
}

Placement place_by_time(const std::vector<Lifetime>& lifetimes) {
  std::vector<size_t> order(lifetimes.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return lifetimes[a].first < lifetimes[b].first; });
  return place_in_order(lifetimes, order, true);
}

Placement place(const std::vector<Lifetime>& lifetimes) {
  auto by_size = place_by_size(lifetimes);
  auto by_time = place_by_time(lifetimes);
  return by_size.total <= by_time.total ? by_size : by_time;
}

}  // namespace graphmode
