// Reductions of HCCL: one order, that of the ranks, so that results are the same on all of them and at every run.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "hccl.h"

namespace sim::hccl {

namespace {
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

float widen(BFloat16 x) {
  return bits_to_float(static_cast<uint32_t>(x.bits) << 16);
}
float widen(Half x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, exponent = (x.bits >> 10) & 31, fraction = x.bits & 1023;
  if (exponent == 31)
    return bits_to_float(sign | 0x7f800000 | fraction << 13);
  if (exponent != 0)
    return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
  const float small = std::ldexp(static_cast<float>(fraction), -24);
  return sign != 0 ? -small : small;
}
template <class T>
T widen(T x) {
  return x;
}

// To nearest, ties to even.
void narrow(float value, BFloat16* out) {
  const uint32_t bits = float_to_bits(value);
  out->bits = std::isnan(value) ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
void narrow(float value, Half* out) {
  const uint32_t bits = float_to_bits(value), magnitude = bits & 0x7fffffff;
  uint32_t half;
  if (magnitude > 0x7f800000) {
    half = 0x7e00;
  } else if (magnitude >= 0x477ff000) {  // rounds beyond the largest
    half = 0x7c00;
  } else if (magnitude >= 0x38800000) {
    half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  } else {  // subnormal: units of 2^-24
    half = static_cast<uint32_t>(std::nearbyint(std::ldexp(bits_to_float(magnitude), 24)));
  }
  out->bits = static_cast<uint16_t>(bits >> 16 & 0x8000) | static_cast<uint16_t>(half);
}
template <class T>
void narrow(T value, T* out) {
  *out = value;
}

template <class T>
T apply(HcclReduceOp op, T a, T b) {
  using Wide = std::conditional_t<std::is_floating_point_v<T>, T, uint64_t>;  // integers wrap
  switch (op) {
    case HCCL_REDUCE_SUM:
      return static_cast<T>(static_cast<Wide>(a) + static_cast<Wide>(b));
    case HCCL_REDUCE_PROD:
      return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b));
    default:
      if (a != a)  // not a number
        return a;
      return b != b || (op == HCCL_REDUCE_MAX ? b > a : b < a) ? b : a;
  }
}

template <class T>
void run(HcclReduceOp op, void* out, const std::vector<const void*>& inputs, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) {
    auto sum = widen(static_cast<const T*>(inputs[0])[i]);
    for (size_t rank = 1; rank < inputs.size(); ++rank)
      sum = apply(op, sum, widen(static_cast<const T*>(inputs[rank])[i]));
    narrow(sum, static_cast<T*>(out) + i);
  }
}

using Run = void (*)(HcclReduceOp, void*, const std::vector<const void*>&, uint64_t);
// What the device reduces; it has no unsigned integers, and no double.
Run runner(HcclDataType dtype) {
  switch (dtype) {
    case HCCL_DATA_TYPE_INT8:
      return run<int8_t>;
    case HCCL_DATA_TYPE_INT16:
      return run<int16_t>;
    case HCCL_DATA_TYPE_INT32:
      return run<int32_t>;
    case HCCL_DATA_TYPE_INT64:
      return run<int64_t>;
    case HCCL_DATA_TYPE_FP16:
      return run<Half>;
    case HCCL_DATA_TYPE_BFP16:
      return run<BFloat16>;
    case HCCL_DATA_TYPE_FP32:
      return run<float>;
    default:
      return nullptr;
  }
}
}  // namespace

bool can_reduce(HcclDataType dtype) {
  return runner(dtype) != nullptr;
}

void reduce(HcclDataType dtype, HcclReduceOp op, void* out, const std::vector<const void*>& inputs, uint64_t count) {
  runner(dtype)(op, out, inputs, count);
}

}  // namespace sim::hccl
