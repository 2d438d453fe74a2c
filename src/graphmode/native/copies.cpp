#include "copies.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/MemoryOverlap.h>

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

// Random numbers, repeated after a prime number of elements, so that no two rows of a matrix are alike.
void fill(const at::Tensor& elements, const at::Generator& generator) {
  constexpr int64_t kPeriod = 1048573;
  auto values =
      at::empty({std::min(elements.numel(), kPeriod)}, elements.is_complex() ? at::kComplexFloat : at::kFloat);
  (values.is_complex() ? at::view_as_real(values) : values).uniform_(-2.0, 2.0, generator);
  if (elements.numel() <= kPeriod) {
    elements.copy_(values.view(elements.sizes()));
  } else if (elements.is_non_overlapping_and_dense()) {
    const auto flat = elements.as_strided({elements.numel()}, {1});
    for (int64_t at = 0; at < elements.numel(); at += kPeriod) {
      const auto n = std::min(kPeriod, elements.numel() - at);
      flat.narrow(0, at, n).copy_(values.narrow(0, 0, n));
    }
  } else {
    elements.copy_(
        values.repeat({elements.numel() / kPeriod + 1}).narrow(0, 0, elements.numel()).view(elements.sizes()));
  }
}

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
  for (size_t i = 0; i < originals.size(); ++i) {
    map_tensors(originals[i], [&](const at::Tensor& t) {
      if (is_plain(t) && t.numel() > 0) {
        auto [lo, hi] = extent(t);
        auto [it, fresh] = spans_.emplace(t.storage().unsafeGetStorageImpl(), Span{lo, hi, false, t.storage(), {}});
        it->second.lo = std::min(it->second.lo, lo);
        it->second.hi = std::max(it->second.hi, hi);
        it->second.written |= writes.empty() || writes[i];
      }
      return t;
    });
  }
  for (auto& [impl, span] : spans_) {
    auto* bytes = static_cast<char*>(const_cast<void*>(span.storage.data())) + span.lo;
    const auto size = static_cast<size_t>(span.hi - span.lo);
    if (span.written) {
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
  const at::Generator generator = at::detail::createCPUGenerator(20130);  // one for all: no two arguments are alike
  std::unordered_set<c10::StorageImpl*> done;
  for (const auto& v : copies) {
    map_tensors(v, [&](const at::Tensor& t) {
      if (is_plain(t) && t.numel() > 0 && !t.unsafeGetTensorImpl()->is_wrapped_number() &&
          done.insert(t.storage().unsafeGetStorageImpl()).second) {
        auto elements = t;
        for (int64_t d = 0; d < t.dim(); ++d) {
          elements = t.stride(d) == 0 ? elements.narrow(d, 0, 1) : elements;
        }
        if (at::has_internal_overlap(elements) == at::MemOverlap::Yes) {
          return t;
        }
        if (t.is_floating_point() || t.is_complex()) {
          fill(elements, generator);
        } else {
          elements.copy_(elements.reshape({-1}).roll(1).view(elements.sizes()));
        }
      }
      return t;
    });
  }
}

}  // namespace graphmode
