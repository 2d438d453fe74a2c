#include "row_kernel.h"

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/TensorIterator.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#define GM_ALWAYS_INLINE __attribute__((always_inline))
#define GM_INLINE inline GM_ALWAYS_INLINE

namespace graphmode {

namespace {

GM_INLINE float widened(uint16_t x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x) << 16);
}

// Of what is a bfloat16 already: every bit, those of a NaN too.
GM_INLINE uint16_t narrowed(float x) {
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16);
}

// To the nearest, ties to even, in 32 bits throughout: the loops over it have vectors of one width.
GM_INLINE float rounded(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const auto nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000;
  return std::bit_cast<float>(x != x ? 0x7FC00000 : nearest);
}

struct Frame {
  float* vectors;   // registers, one after the other
  const void** at;  // where each register's items are: in `vectors`, or in memory
  float* numbers;
  char* const* addresses;
  const RowPlace* places;
  int64_t columns;
  int lanes;

  GM_INLINE float* own(int i) const {
    return vectors + i * columns;
  }
  GM_INLINE int64_t offset(int place, int64_t row) const {
    return places[place].rows.empty() ? row * places[place].step : places[place].rows[row];
  }
  template <class T>
  GM_INLINE T* memory(int place, int64_t row) const {
    return reinterpret_cast<T*>(addresses[place]) + offset(place, row);
  }
};

template <int lanes>
struct Vector {
  typedef float Floats __attribute__((vector_size(lanes * sizeof(float))));
  typedef uint32_t Words __attribute__((vector_size(lanes * sizeof(float))));
  typedef uint16_t Halves __attribute__((vector_size(lanes * sizeof(uint16_t))));
};

// What a loop reads, an item or a vector at a time.
struct Wide {
  const float* items;
  GM_INLINE float operator[](int64_t i) const {
    return items[i];
  }
  template <int lanes>
  GM_INLINE void read(int64_t i, typename Vector<lanes>::Floats& to) const {
    std::memcpy(&to, items + i, sizeof(to));
  }
};
struct Narrow {
  const uint16_t* items;
  GM_INLINE float operator[](int64_t i) const {
    return widened(items[i]);
  }
  template <int lanes>
  GM_INLINE void read(int64_t i, typename Vector<lanes>::Floats& to) const {
    typename Vector<lanes>::Halves halves;
    std::memcpy(&halves, items + i, sizeof(halves));
    const auto words = __builtin_convertvector(halves, typename Vector<lanes>::Words) << 16;
    std::memcpy(&to, &words, sizeof(to));
  }
};
struct One {
  float item;
  GM_INLINE float operator[](int64_t) const {
    return item;
  }
};
template <class Of>
struct Squares {
  Of of;
  GM_INLINE float operator[](int64_t i) const {
    return of[i] * of[i];
  }
  template <int lanes>
  GM_INLINE void read(int64_t i, typename Vector<lanes>::Floats& to) const {
    of.template read<lanes>(i, to);
    to *= to;
  }
};

template <class F>
GM_INLINE void with_row(const Frame& f, const RowRegister& r, bool narrow, F&& then) {
  if (narrow) {
    then(Narrow{static_cast<const uint16_t*>(f.at[r.index])});
  } else {
    then(Wide{static_cast<const float*>(f.at[r.index])});
  }
}

// The result's register may be that of an operand: item by item, what is read goes before what is written.
template <bool rounds, bool keeps, bool narrows, class F>
GM_INLINE void loop(int64_t n, F&& item, float* to, uint16_t* narrow) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const float x = item(i);
    const float r = rounds || narrows ? rounded(x) : x;
    if constexpr (keeps) {
      to[i] = rounds ? r : x;
    }
    if constexpr (narrows) {
      narrow[i] = narrowed(r);
    }
  }
}

template <class F>
GM_INLINE void write(const Frame& f, const RowStep& s, int64_t row, F&& item) {
  float* to = s.wide_place >= 0 ? f.memory<float>(s.wide_place, row) : s.keeps ? f.own(s.to.index) : nullptr;
  uint16_t* narrow = s.narrow_place >= 0 ? f.memory<uint16_t>(s.narrow_place, row) : nullptr;
  if (narrow == nullptr) {
    if (s.rounds) {
      loop<true, true, false>(f.columns, item, to, narrow);
    } else {
      loop<false, true, false>(f.columns, item, to, narrow);
    }
  } else if (to == nullptr) {
    loop<true, false, true>(f.columns, item, to, narrow);
  } else if (s.rounds) {
    loop<true, true, true>(f.columns, item, to, narrow);
  } else {
    loop<false, true, true>(f.columns, item, to, narrow);
  }
  if (to != nullptr) {
    f.at[s.to.index] = to;
  }
}

template <class F>
GM_INLINE void unary(const Frame& f, const RowStep& s, int64_t row, F&& op) {
  if (s.to.number) {
    f.numbers[s.to.index] = op(f.numbers[s.a.index]);
    return;
  }
  with_row(f, s.a, s.narrow_a,
           [&](auto a) GM_ALWAYS_INLINE { write(f, s, row, [&](int64_t i) GM_ALWAYS_INLINE { return op(a[i]); }); });
}

template <class F>
GM_INLINE void binary(const Frame& f, const RowStep& s, int64_t row, F&& op) {
  if (s.to.number) {
    f.numbers[s.to.index] = op(f.numbers[s.a.index], f.numbers[s.b.index]);
    return;
  }
  const auto compute = [&](auto a, auto b) GM_ALWAYS_INLINE {
    write(f, s, row, [&](int64_t i) GM_ALWAYS_INLINE { return op(a[i], b[i]); });
  };
  if (s.a.number) {
    const One a{f.numbers[s.a.index]};
    with_row(f, s.b, s.narrow_b, [&](auto b) GM_ALWAYS_INLINE { compute(a, b); });
  } else if (s.b.number) {
    const One b{f.numbers[s.b.index]};
    with_row(f, s.a, s.narrow_a, [&](auto a) GM_ALWAYS_INLINE { compute(a, b); });
  } else {
    with_row(f, s.a, s.narrow_a, [&](auto a) GM_ALWAYS_INLINE {
      with_row(f, s.b, s.narrow_b, [&](auto b) GM_ALWAYS_INLINE { compute(a, b); });
    });
  }
}

// ATen's order: four vectors side by side, in blocks whose sums are added to those of larger blocks, four levels deep;
// then the four, then the lanes, one by one.
template <int lanes, class Items>
GM_INLINE float sum(Items x, int64_t n) {
  using Floats = typename Vector<lanes>::Floats;
  constexpr int kSide = 4, kLevels = 4;
  const int64_t vectors = n / lanes, steps = vectors / kSide;
  int64_t log = 0;
  while ((int64_t{1} << log) < steps) {
    ++log;
  }
  const auto power = std::max<int64_t>(4, log / kLevels);
  const int64_t block = int64_t{1} << power, mask = block - 1;
  Floats level[kLevels][kSide] = {}, now[kSide] = {}, next;  // the lowest level is `now`
  const auto add = [&](int64_t i) GM_ALWAYS_INLINE {
#pragma GCC unroll 4
    for (int k = 0; k < kSide; ++k) {
      x.template read<lanes>((i * kSide + k) * lanes, next);
      now[k] += next;
    }
  };
  int64_t i = 0;
  while (i + block <= steps) {
    for (int64_t j = 0; j < block; ++j, ++i) {
      add(i);
    }
    for (int64_t l = 1; l < kLevels; ++l) {
      auto* below = l == 1 ? now : level[l - 1];
#pragma GCC unroll 4
      for (int k = 0; k < kSide; ++k) {
        level[l][k] += below[k];
        below[k] = Floats{};
      }
      if ((i & (mask << (l * power))) != 0) {
        break;
      }
    }
  }
  for (; i < steps; ++i) {
    add(i);
  }
#pragma GCC unroll 4
  for (int l = 1; l < kLevels; ++l) {
#pragma GCC unroll 4
    for (int k = 0; k < kSide; ++k) {
      now[k] += level[l][k];
    }
  }
  Floats total = now[0];
  for (int64_t v = steps * kSide; v < vectors; ++v) {
    x.template read<lanes>(v * lanes, next);
    total += next;
  }
#pragma GCC unroll 4
  for (int k = 1; k < kSide; ++k) {
    total += now[k];
  }
  float result = 0;
  for (int64_t k = vectors * lanes; k < n; ++k) {
    result += x[k];
  }
#pragma GCC unroll 16
  for (int k = 0; k < lanes; ++k) {
    result += total[k];
  }
  return result;
}

GM_INLINE float sum(const Frame& f, const RowStep& s) {
  float total = 0;
  const auto add = [&](auto items) GM_ALWAYS_INLINE {
    total = f.lanes == 16 ? sum<16>(items, f.columns) : sum<8>(items, f.columns);
  };
  with_row(f, s.a, s.narrow_a, [&](auto items) GM_ALWAYS_INLINE {
    if (s.squares) {
      add(Squares<decltype(items)>{items});
    } else {
      add(items);
    }
  });
  return total;
}

GM_INLINE void load(const Frame& f, const RowStep& s, int64_t row) {
  const auto& place = f.places[s.place];
  if (!place.number) {
    f.at[s.to.index] = f.addresses[s.place] + f.offset(s.place, row) * (place.bf16 ? 2 : 4);
  } else {
    f.numbers[s.to.index] =
        place.bf16 ? widened(*f.memory<const uint16_t>(s.place, row)) : *f.memory<const float>(s.place, row);
  }
}

GM_INLINE void store(const Frame& f, const RowStep& s, int64_t row) {
  const auto& place = f.places[s.place];
  if (place.number) {
    const float a = f.numbers[s.a.index];
    if (place.bf16) {
      *f.memory<uint16_t>(s.place, row) = narrowed(a);
    } else {
      *f.memory<float>(s.place, row) = a;
    }
    return;
  }
  const auto n = static_cast<size_t>(f.columns);
  if (place.bf16) {
    auto* to = f.memory<uint16_t>(s.place, row);
    if (s.narrow_a) {
      std::memcpy(to, f.at[s.a.index], n * sizeof(uint16_t));
    } else {
      const auto* a = static_cast<const float*>(f.at[s.a.index]);
      for (int64_t i = 0; i < f.columns; ++i) {
        to[i] = narrowed(a[i]);
      }
    }
  } else {
    auto* to = f.memory<float>(s.place, row);
    if (s.narrow_a) {
      const auto* a = static_cast<const uint16_t*>(f.at[s.a.index]);
      for (int64_t i = 0; i < f.columns; ++i) {
        to[i] = widened(a[i]);
      }
    } else {
      std::memcpy(to, f.at[s.a.index], n * sizeof(float));
    }
  }
}

GM_INLINE void step(const Frame& f, const RowStep& s, int64_t row) {
  switch (s.op) {
    case RowOp::Load:
      load(f, s, row);
      break;
    case RowOp::Store:
      store(f, s, row);
      break;
    case RowOp::Round:
      if (s.to.number) {
        f.numbers[s.to.index] = rounded(f.numbers[s.a.index]);
      } else {
        unary(f, s, row, [](float a) { return a; });
      }
      break;
    case RowOp::Add:
      binary(f, s, row, [](float a, float b) { return a + b; });
      break;
    case RowOp::Sub:
      binary(f, s, row, [](float a, float b) { return a - b; });
      break;
    case RowOp::Mul:
      binary(f, s, row, [](float a, float b) { return a * b; });
      break;
    case RowOp::Div:
      binary(f, s, row, [](float a, float b) { return a / b; });
      break;
    case RowOp::Neg:
      unary(f, s, row, [](float a) { return -a; });
      break;
    case RowOp::Abs:
      unary(f, s, row, [](float a) { return std::fabs(a); });
      break;
    case RowOp::Relu:
      unary(f, s, row, [](float a) { return a < 0 ? 0 : a; });
      break;
    case RowOp::Square:
      unary(f, s, row, [](float a) { return a * a; });
      break;
    case RowOp::Sqrt:
      unary(f, s, row, [](float a) { return std::sqrt(a); });
      break;
    case RowOp::Rsqrt:
      unary(f, s, row, [](float a) { return 1 / std::sqrt(a); });
      break;
    case RowOp::Reciprocal:
      unary(f, s, row, [](float a) { return 1 / a; });
      break;
    case RowOp::Sum:
      f.numbers[s.to.index] = sum(f, s);
      break;
    case RowOp::Mean:
      f.numbers[s.to.index] = sum(f, s) / static_cast<float>(f.columns);
      break;
  }
}

GM_INLINE void all_steps(const Frame& f, const RowProgram& p, int64_t begin, int64_t end) {
  for (const auto& s : p.first) {
    step(f, s, 0);
  }
  for (int64_t row = begin; row < end; ++row) {
    for (const auto& s : p.each) {
      step(f, s, row);
    }
  }
}

using RunRows = void (*)(const Frame&, const RowProgram&, int64_t, int64_t);

void run_rows(const Frame& f, const RowProgram& p, int64_t begin, int64_t end) {
  all_steps(f, p, begin, end);
}

// The same loops for the processors that torch has kernels for.
#ifdef __x86_64__
__attribute__((target("avx2"))) void run_rows_avx2(const Frame& f, const RowProgram& p, int64_t begin, int64_t end) {
  all_steps(f, p, begin, end);
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))) void run_rows_avx512(const Frame& f, const RowProgram& p,
                                                                                   int64_t begin, int64_t end) {
  all_steps(f, p, begin, end);
}
#endif

RunRows for_this_processor() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    return run_rows_avx512;
  }
  if (__builtin_cpu_supports("avx2")) {
    return run_rows_avx2;
  }
#endif
  return run_rows;
}

// Registers of all kernels of a thread: one after the other uses them, and finds them in the cache.
struct Registers {
  std::vector<float> vectors, numbers;
  std::vector<const void*> at;

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
                    p.places.data(),
                    p.columns,
                    p.lanes};
  static const RunRows run = for_this_processor();
  run(frame, p, begin, end);
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
  // By an iterator over as many bytes: ATen's own threads, whichever library they are from.
  at::Tensor rows = at::detail::empty_cpu({program.rows}, at::TensorOptions(at::kByte));
  auto iterator = at::TensorIterator::nullary_op(rows);
  const auto* first = static_cast<const char*>(rows.const_data_ptr());
  iterator.for_each(
      [&](char** data, const int64_t*, int64_t n) {
        const int64_t begin = data[0] - first;
        run_some_rows(program, places, begin, begin + n);
      },
      at_once);
}

std::unique_ptr<Kernel> make_row_kernel(std::shared_ptr<const RowProgram> program, std::vector<at::Tensor> tensors) {
  return std::make_unique<RowKernel>(std::move(program), std::move(tensors));
}

}  // namespace graphmode
