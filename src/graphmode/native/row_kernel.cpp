#include "row_kernel.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

// The same loops for the processors that torch has kernels for. Sanitizers can't stand the loader's choice among them.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define GM_FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define GM_FOR_EACH_PROCESSOR
#endif
#define GM_INLINE inline __attribute__((always_inline))

namespace graphmode {

namespace {

GM_INLINE float widened(uint16_t x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x) << 16);
}

// Of what is a bfloat16 already: every bit, those of a NaN too.
GM_INLINE uint16_t narrowed(float x) {
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16);
}

// To the nearest, ties to even.
GM_INLINE float rounded(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const auto nearest = static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
  return widened((bits & 0x7FFFFFFF) > 0x7F800000 ? uint16_t{0x7FC0} : nearest);
}

struct Frame {
  float* vectors;    // registers, one after the other
  const float** at;  // where each register's items are: in `vectors`, or in memory that needs no conversion
  float* numbers;
  char* const* places;
  int64_t columns;
  int lanes;

  GM_INLINE float* own(int i) const {
    return vectors + i * columns;
  }
};

template <class F>
GM_INLINE void unary(const Frame& f, const RowStep& s, F&& op) {
  if (s.to.number) {
    f.numbers[s.to.index] = op(f.numbers[s.a.index]);
    return;
  }
  const float* a = f.at[s.a.index];
  float* to = f.own(s.to.index);
  for (int64_t i = 0; i < f.columns; ++i) {
    to[i] = op(a[i]);
  }
  f.at[s.to.index] = to;
}

template <class F>
GM_INLINE void binary(const Frame& f, const RowStep& s, F&& op) {
  if (s.to.number) {
    f.numbers[s.to.index] = op(f.numbers[s.a.index], f.numbers[s.b.index]);
    return;
  }
  float* to = f.own(s.to.index);
  if (s.a.number) {
    const float a = f.numbers[s.a.index];
    const float* b = f.at[s.b.index];
    for (int64_t i = 0; i < f.columns; ++i) {
      to[i] = op(a, b[i]);
    }
  } else if (s.b.number) {
    const float* a = f.at[s.a.index];
    const float b = f.numbers[s.b.index];
    for (int64_t i = 0; i < f.columns; ++i) {
      to[i] = op(a[i], b);
    }
  } else {
    const float* a = f.at[s.a.index];
    const float* b = f.at[s.b.index];
    for (int64_t i = 0; i < f.columns; ++i) {
      to[i] = op(a[i], b[i]);
    }
  }
  f.at[s.to.index] = to;
}

// ATen's order: four vectors side by side, in blocks whose sums are added to those of larger blocks, four levels deep;
// then the four, then the lanes, one by one.
template <int lanes>
GM_INLINE float sum(const float* x, int64_t n) {
  constexpr int kSide = 4 * lanes, kLevels = 4;
  const int64_t vectors = n / lanes, steps = vectors / 4;
  int64_t log = 0;
  while ((int64_t{1} << log) < steps) {
    ++log;
  }
  const auto power = std::max<int64_t>(4, log / kLevels);
  const int64_t block = int64_t{1} << power, mask = block - 1;
  float level[kLevels][kSide] = {};
  int64_t i = 0;
  while (i + block <= steps) {
    for (int64_t j = 0; j < block; ++j, ++i) {
      for (int k = 0; k < kSide; ++k) {
        level[0][k] += x[i * kSide + k];
      }
    }
    for (int64_t l = 1; l < kLevels; ++l) {
      for (int k = 0; k < kSide; ++k) {
        level[l][k] += level[l - 1][k];
        level[l - 1][k] = 0;
      }
      if ((i & (mask << (l * power))) != 0) {
        break;
      }
    }
  }
  for (; i < steps; ++i) {
    for (int k = 0; k < kSide; ++k) {
      level[0][k] += x[i * kSide + k];
    }
  }
  for (int l = 1; l < kLevels; ++l) {
    for (int k = 0; k < kSide; ++k) {
      level[0][k] += level[l][k];
    }
  }
  float* total = level[0];
  for (int64_t v = steps * 4; v < vectors; ++v) {
    for (int k = 0; k < lanes; ++k) {
      total[k] += x[v * lanes + k];
    }
  }
  for (int side = 1; side < 4; ++side) {
    for (int k = 0; k < lanes; ++k) {
      total[k] += total[side * lanes + k];
    }
  }
  float result = 0;
  for (int64_t k = vectors * lanes; k < n; ++k) {
    result += x[k];
  }
  for (int k = 0; k < lanes; ++k) {
    result += total[k];
  }
  return result;
}

GM_INLINE float sum(const Frame& f, const RowStep& s) {
  const float* x = f.at[s.a.index];
  return f.lanes == 16 ? sum<16>(x, f.columns) : sum<8>(x, f.columns);
}

GM_INLINE void load(const Frame& f, const RowStep& s, const RowPlace& place, int64_t from) {
  const char* base = f.places[s.place];
  if (place.number) {
    f.numbers[s.to.index] = place.bf16 ? widened(reinterpret_cast<const uint16_t*>(base)[from])
                                       : reinterpret_cast<const float*>(base)[from];
  } else if (place.bf16) {
    const uint16_t* x = reinterpret_cast<const uint16_t*>(base) + from;
    float* to = f.own(s.to.index);
    for (int64_t i = 0; i < f.columns; ++i) {
      to[i] = widened(x[i]);
    }
    f.at[s.to.index] = to;
  } else {
    f.at[s.to.index] = reinterpret_cast<const float*>(base) + from;
  }
}

GM_INLINE void store(const Frame& f, const RowStep& s, const RowPlace& place, int64_t to) {
  char* base = f.places[s.place];
  if (place.number) {
    if (place.bf16) {
      reinterpret_cast<uint16_t*>(base)[to] = narrowed(f.numbers[s.a.index]);
    } else {
      reinterpret_cast<float*>(base)[to] = f.numbers[s.a.index];
    }
  } else if (place.bf16) {
    uint16_t* x = reinterpret_cast<uint16_t*>(base) + to;
    const float* a = f.at[s.a.index];
    for (int64_t i = 0; i < f.columns; ++i) {
      x[i] = narrowed(a[i]);
    }
  } else {
    std::memcpy(reinterpret_cast<float*>(base) + to, f.at[s.a.index], static_cast<size_t>(f.columns) * sizeof(float));
  }
}

GM_INLINE void step(const Frame& f, const RowStep& s, const RowProgram& p, int64_t row) {
  switch (s.op) {
    case RowOp::Load:
    case RowOp::Store: {
      const auto& place = p.places[s.place];
      const auto at = place.rows.empty() ? row * place.step : place.rows[row];
      if (s.op == RowOp::Load) {
        load(f, s, place, at);
      } else {
        store(f, s, place, at);
      }
      break;
    }
    case RowOp::Round:
      unary(f, s, [](float a) { return rounded(a); });
      break;
    case RowOp::Add:
      binary(f, s, [](float a, float b) { return a + b; });
      break;
    case RowOp::Sub:
      binary(f, s, [](float a, float b) { return a - b; });
      break;
    case RowOp::Mul:
      binary(f, s, [](float a, float b) { return a * b; });
      break;
    case RowOp::Div:
      binary(f, s, [](float a, float b) { return a / b; });
      break;
    case RowOp::Neg:
      unary(f, s, [](float a) { return -a; });
      break;
    case RowOp::Abs:
      unary(f, s, [](float a) { return std::fabs(a); });
      break;
    case RowOp::Relu:
      unary(f, s, [](float a) { return a < 0 ? 0 : a; });
      break;
    case RowOp::Square:
      unary(f, s, [](float a) { return a * a; });
      break;
    case RowOp::Sqrt:
      unary(f, s, [](float a) { return std::sqrt(a); });
      break;
    case RowOp::Rsqrt:
      unary(f, s, [](float a) { return 1 / std::sqrt(a); });
      break;
    case RowOp::Reciprocal:
      unary(f, s, [](float a) { return 1 / a; });
      break;
    case RowOp::Sum:
      f.numbers[s.to.index] = sum(f, s);
      break;
    case RowOp::Mean:
      f.numbers[s.to.index] = sum(f, s) / static_cast<float>(f.columns);
      break;
  }
}

GM_FOR_EACH_PROCESSOR void run_rows(const Frame& f, const RowProgram& p, int64_t begin, int64_t end) {
  for (const auto& s : p.first) {
    step(f, s, p, 0);
  }
  for (int64_t row = begin; row < end; ++row) {
    for (const auto& s : p.each) {
      step(f, s, p, row);
    }
  }
}

// Registers of all kernels of a thread: one after the other uses them, and finds them in the cache.
struct Registers {
  std::vector<float> vectors, numbers;
  std::vector<const float*> at;

  float* aligned(size_t items) {
    if (vectors.size() < items + 16) {
      vectors = std::vector<float>(items + 16);
    }
    const auto address = reinterpret_cast<uintptr_t>(vectors.data());
    return vectors.data() + (64 - address % 64) % 64 / sizeof(float);
  }
};

void run_some_rows(const RowProgram& p, char* const* places, int64_t begin, int64_t end) {
  static thread_local Registers registers;
  registers.numbers.assign(p.numbers.begin(), p.numbers.end());
  registers.at.resize(std::max(registers.at.size(), static_cast<size_t>(p.vectors)));
  const Frame frame{registers.aligned(static_cast<size_t>(p.vectors * p.columns)),
                    registers.at.data(),
                    registers.numbers.data(),
                    places,
                    p.columns,
                    p.lanes};
  run_rows(frame, p, begin, end);
}

class RowKernel final : public Kernel {
 public:
  RowKernel(std::shared_ptr<const RowProgram> program, std::vector<at::Tensor> tensors)
      : program_(std::move(program)), tensors_(std::move(tensors)), places_(tensors_.size()) {}

  void run() override {
    for (size_t i = 0; i < places_.size(); ++i) {
      places_[i] = static_cast<char*>(const_cast<void*>(tensors_[i].const_data_ptr()));
    }
    run_row_program(*program_, places_.data());
  }

 private:
  std::shared_ptr<const RowProgram> program_;
  std::vector<at::Tensor> tensors_;
  std::vector<char*> places_;
};

}  // namespace

void run_row_program(const RowProgram& program, char* const* places) {
  const auto at_once = std::max<int64_t>(1, at::internal::GRAIN_SIZE / program.columns);  // rows that one thread is for
  if (program.rows <= at_once) {
    run_some_rows(program, places, 0, program.rows);
    return;
  }
  at::parallel_for(0, program.rows, at_once, [&](int64_t begin, int64_t end) {
    run_some_rows(program, places, begin, end);
  });
}

std::unique_ptr<Kernel> make_row_kernel(std::shared_ptr<const RowProgram> program, std::vector<at::Tensor> tensors) {
  return std::make_unique<RowKernel>(std::move(program), std::move(tensors));
}

}  // namespace graphmode
