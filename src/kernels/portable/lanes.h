// SPDX-License-Identifier: Apache-2.0
#pragma once

// The vector type of the portable kernels: the compiler's own, as wide as this file's instruction set has
// it. The folder is built once a set, each time as the namespace TQ_ISA (CMakeLists.txt), so everything
// here has internal linkage and calls nothing of the standard library that could be shared.
#ifndef TQ_ISA
#error "TQ_ISA names the namespace this folder is built as"
#endif

#include <cstdint>

namespace turboquant::kernels::TQ_ISA {

#if defined(__AVX512F__)
static constexpr int kLanes = 16;
#elif defined(__AVX__)
static constexpr int kLanes = 8;
#else
static constexpr int kLanes = 4;
#endif

typedef float Lanes __attribute__((vector_size(kLanes * 4)));
typedef float UnalignedLanes __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef std::int32_t IntLanes __attribute__((vector_size(kLanes * 4)));

static inline Lanes load(const float* p) {
  return *reinterpret_cast<const UnalignedLanes*>(p);
}
static inline void store(float* p, Lanes x) {
  *reinterpret_cast<UnalignedLanes*>(p) = x;
}
static inline Lanes broadcast(float x) {
  return Lanes{} + x;
}

typedef float Four __attribute__((vector_size(16)));
typedef float UnalignedFour __attribute__((vector_size(16), aligned(4), may_alias));

// The lanes of x added down to four.
static inline Four fold(Lanes x) {
#if defined(__AVX512F__)
  const auto eight = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                     __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  return __builtin_shufflevector(eight, eight, 0, 1, 2, 3) +
         __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
#elif defined(__AVX__)
  return __builtin_shufflevector(x, x, 0, 1, 2, 3) + __builtin_shufflevector(x, x, 4, 5, 6, 7);
#else
  return x;
#endif
}

// {sum of a's lanes, of b's, of c's, of d's}: a 4 x 4 transpose on the way to the sums.
static inline Four sums(Lanes a, Lanes b, Lanes c, Lanes d) {
  const Four fa = fold(a), fb = fold(b), fc = fold(c), fd = fold(d);
  const Four ab = __builtin_shufflevector(fa, fb, 0, 4, 1, 5) + __builtin_shufflevector(fa, fb, 2, 6, 3, 7);
  const Four cd = __builtin_shufflevector(fc, fd, 0, 4, 1, 5) + __builtin_shufflevector(fc, fd, 2, 6, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}

static inline float sum(Lanes x) {
  return sums(x, x, x, x)[0];
}

static inline Lanes select(IntLanes mask, Lanes yes, Lanes no) {
  return reinterpret_cast<Lanes>((reinterpret_cast<IntLanes>(yes) & mask) |
                                 (reinterpret_cast<IntLanes>(no) & ~mask));
}
static inline Lanes max(Lanes a, Lanes b) {
  return select(a > b, a, b);
}

// e^x for x <= 0, to 2 ulp: 2^n times a degree-6 polynomial on [-ln 2 / 2, ln 2 / 2]; 0 below -87; NaN stays.
static inline Lanes exp_negative(Lanes x) {
  const Lanes magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const Lanes shifted = x * broadcast(1.44269504f) + magic;
  const Lanes n = shifted - magic;
  const Lanes r = (x - n * broadcast(0.693359375f)) - n * broadcast(-2.12194440e-4f);
  Lanes p = broadcast(1.9875691500e-4f);
  p = p * r + broadcast(1.3981999507e-3f);
  p = p * r + broadcast(8.3334519073e-3f);
  p = p * r + broadcast(4.1665795894e-2f);
  p = p * r + broadcast(1.6666665459e-1f);
  p = p * r + broadcast(5.0000001201e-1f);
  p = p * r * r + r + broadcast(1.0f);
  const IntLanes exponent = (reinterpret_cast<IntLanes>(shifted) + (127 - 0x4b400000)) << 23;
  const Lanes result = p * reinterpret_cast<Lanes>(exponent);
  return select(x < broadcast(-87.0f), Lanes{}, result);
}

}  // namespace turboquant::kernels::TQ_ISA
