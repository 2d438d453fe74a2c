#include "random.h"

#include <ATen/CPUGeneratorImpl.h>

#include "torch_npu/csrc/aten/NPUGeneratorImpl.h"

namespace sim {
namespace {

uint64_t mixed(uint64_t seed, uint64_t offset) {  // splitmix64
  uint64_t z = seed + 0x9e3779b97f4a7c15ULL * (offset + 1);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

class Philox : public Draw {
 public:
  Philox(size_t position, const at_npu::PhiloxNpuState& state) : position_(position) {
    if (state.captured_) {
      seed_.push_back(place_of(*state.seed_.ptr));
      offset_.push_back(place_of(*state.offset_.ptr));
      more_ = state.offset_intragraph_;
    } else {
      value_ = {state.seed_.val, state.offset_.val};
    }
  }

  void append_to(std::vector<Place>& used) const override {
    used.insert(used.end(), seed_.begin(), seed_.end());
    used.insert(used.end(), offset_.begin(), offset_.end());
  }

  void give(torch::jit::Stack& stack) const override {
    auto [seed, offset] = value_;
    if (!seed_.empty()) {
      seed = static_cast<uint64_t>(seed_[0].on_host().reshape(-1)[0].item<int64_t>());
      offset = static_cast<uint64_t>(offset_[0].on_host().reshape(-1)[0].item<int64_t>()) + more_;
    }
    stack[position_] = at::detail::createCPUGenerator(mixed(seed, offset));
  }

 private:
  size_t position_;
  std::vector<Place> seed_, offset_;
  uint64_t more_ = 0;
  std::pair<uint64_t, uint64_t> value_;
};

}  // namespace

std::shared_ptr<Draw> generator_of(const c10::FunctionSchema& schema, const std::vector<c10::IValue>& arguments,
                                   int device) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto& type = schema.arguments()[i].real_type();
    const auto plain =
        type->kind() == c10::TypeKind::OptionalType ? type->expectRef<c10::OptionalType>().getElementType() : type;
    if (plain->kind() != c10::TypeKind::GeneratorType)
      continue;
    at::Generator generator = arguments[i].isNone()
                                  ? at_npu::detail::getDefaultNPUGenerator(static_cast<c10::DeviceIndex>(device))
                                  : arguments[i].toGenerator();
    auto* own = at::check_generator<at_npu::NPUGeneratorImpl>(generator);
    std::lock_guard<std::mutex> lock(own->mutex_);
    return std::make_shared<Philox>(i, own->philox_npu_state(4));
  }
  return nullptr;
}

}  // namespace sim
