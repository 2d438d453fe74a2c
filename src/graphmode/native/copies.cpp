#include "copies.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/MemoryOverlap.h>

#include <algorithm>
#include <cstring>
#include <unordered_set>

namespace graphmode {

namespace {

// First and last byte of a tensor in its storage.
std::pair<int64_t, int64_t> extent(const at::Tensor& t) {
  int64_t last = 0;
  for (int64_t d = 0; d < t.dim(); ++d) {
    last += (t.size(d) - 1) * t.stride(d);
  }
  const auto item = static_cast<int64_t>(t.itemsize());
  return {t.storage_offset() * item, (t.storage_offset() + last + 1) * item};
}

// Random numbers, drawn once. They are repeated after a prime number of elements, so that rows of a matrix are not
// alike, and begin at another place each time, so that arguments are not.
class Random {
 public:
  void fill(const at::Tensor& elements) {
    start_ = (start_ + 21851) % kPeriod;
    const bool dense = elements.is_non_overlapping_and_dense();
    const auto flat =
        dense ? elements.as_strided({elements.numel()}, {1}) : at::empty({elements.numel()}, elements.options());
    repeat(flat.is_complex() ? at::view_as_real(flat).view({-1}) : flat);
    if (!dense) {
      elements.copy_(flat.view(elements.sizes()));
    }
  }

 private:
  static constexpr int64_t kPeriod = 262139;

  static const at::Tensor& numbers() {
    static const auto values = [] {
      auto t = at::empty({kPeriod}, at::kFloat);
      t.uniform_(-2.0, 2.0, at::detail::createCPUGenerator(20130));
      return t;
    }();
    return values;
  }

  void repeat(const at::Tensor& flat) const {
    int64_t from = start_;
    for (int64_t at = 0; at < flat.numel();) {
      const auto n = std::min(kPeriod - from, flat.numel() - at);
      flat.narrow(0, at, n).copy_(numbers().narrow(0, from, n));
      at += n;
      from = 0;
    }
  }

  int64_t start_ = 0;
};

}  // namespace

std::vector<at::Tensor> tensors_of(at::ArrayRef<c10::IValue> values) {
  std::vector<at::Tensor> out;
  for (const auto& v : values) {
    map_tensors(v, [&](const at::Tensor& t) {
      out.push_back(t);
      return t;
    });
  }
  return out;
}

Values map_all(const Values& values, const std::function<at::Tensor(const at::Tensor&)>& f) {
  Values out;
  out.reserve(values.size());
  for (const auto& v : values) {
    out.push_back(map_tensors(v, f));
  }
  return out;
}

Copies::Copies(const Values& originals, const Writes& writes) {
  add(originals, writes);
  make();
}

Copies::Copies(const Values& originals, int64_t most) {
  add(originals, {});
  const auto small = [&](const auto& s) { return s.second.hi - s.second.lo <= most; };
  if (std::any_of(spans_.begin(), spans_.end(), small)) {
    for (auto& s : spans_) {
      s.second.copied = small(s);
    }
  }
  make();
}

void Copies::add(const Values& originals, const Writes& writes) {
  for (size_t i = 0; i < originals.size(); ++i) {
    map_tensors(originals[i], [&](const at::Tensor& t) {
      if (is_plain(t) && t.numel() > 0) {
        auto [lo, hi] = extent(t);
        auto [it, fresh] = spans_.emplace(t.storage().unsafeGetStorageImpl(), Span{lo, hi, false, t.storage(), {}});
        it->second.lo = std::min(it->second.lo, lo);
        it->second.hi = std::max(it->second.hi, hi);
        it->second.copied |= writes.empty() || writes[i];
      }
      return t;
    });
  }
}

void Copies::make() {
  for (auto& [impl, span] : spans_) {
    auto* bytes = static_cast<char*>(const_cast<void*>(span.storage.data())) + span.lo;
    const auto size = static_cast<size_t>(span.hi - span.lo);
    if (span.copied) {
      span.copy = at::empty({static_cast<int64_t>(size) + 64}, at::kByte).storage();
      std::memcpy(span.copy.mutable_data(), bytes, size);
    } else {
      span.copy = c10::Storage(c10::Storage::use_byte_size_t(), size, at::DataPtr(bytes, at::kCPU));
    }
  }
}

at::Tensor Copies::operator()(const at::Tensor& t) const {
  if (!is_plain(t) || t.unsafeGetTensorImpl()->is_wrapped_number()) {
    return t;
  }
  if (t.numel() == 0) {
    return at::empty_strided(t.sizes(), t.strides(), t.options());
  }
  const auto& span = spans_.at(t.storage().unsafeGetStorageImpl());
  auto impl = c10::make_intrusive<c10::TensorImpl>(c10::Storage(span.copy), plain_keys(t), t.dtype());
  impl->set_sizes_and_strides(t.sizes(), t.strides());
  const auto item = static_cast<int64_t>(t.itemsize());
  impl->set_storage_offset((t.storage_offset() * item - span.lo) / item);
  return at::Tensor(std::move(impl));
}

void Copies::change(const Values& copies) const {
  Random random;  // one for all
  std::unordered_set<const c10::StorageImpl*> copied, done;
  for (const auto& [impl, span] : spans_) {
    if (span.copied) {
      copied.insert(span.copy.unsafeGetStorageImpl());
    }
  }
  for (const auto& v : copies) {
    map_tensors(v, [&](const at::Tensor& t) {
      if (is_plain(t) && t.numel() > 0 && !t.unsafeGetTensorImpl()->is_wrapped_number() &&
          copied.count(t.storage().unsafeGetStorageImpl()) > 0 &&
          done.insert(t.storage().unsafeGetStorageImpl()).second) {
        auto elements = t;
        for (int64_t d = 0; d < t.dim(); ++d) {
          elements = t.stride(d) == 0 ? elements.narrow(d, 0, 1) : elements;
        }
        if (at::has_internal_overlap(elements) == at::MemOverlap::Yes) {
          return t;
        }
        if (t.is_floating_point() || t.is_complex()) {
          random.fill(elements);
        } else {
          elements.copy_(elements.reshape({-1}).roll(1).view(elements.sizes()));
        }
      }
      return t;
    });
  }
}

}  // namespace graphmode
