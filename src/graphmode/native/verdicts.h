// What was proved, by a description of what it was proved for: a table of a bounded size that threads share.
#pragma once

#include <cstddef>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>

namespace graphmode {

template <typename Verdict>
class Verdicts {
 public:
  explicit Verdicts(size_t most) : most_(most) {}

  std::optional<Verdict> find(const std::string& key) const {
    const std::lock_guard<std::mutex> guard(lock_);
    const auto found = table_.find(key);
    return found == table_.end() ? std::nullopt : std::optional<Verdict>(found->second);
  }

  void keep(const std::string& key, const Verdict& verdict) {
    const std::lock_guard<std::mutex> guard(lock_);
    if (table_.size() >= most_) {
      table_.clear();  // sizes without end: proved again where they come again
    }
    table_.insert_or_assign(key, verdict);
  }

  void forget() {
    const std::lock_guard<std::mutex> guard(lock_);
    table_.clear();
  }

 private:
  size_t most_;
  mutable std::mutex lock_;
  std::unordered_map<std::string, Verdict> table_;
};

}  // namespace graphmode
