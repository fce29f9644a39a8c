// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "layout/loops.h"

// vpermb looks at 6 bits of an index and the table repeats with the code's period, so indices need no masks.
namespace turboquant::bench {
namespace {

using Vector = __m512i;

Vector load(const void* p) {
  return _mm512_loadu_si512(p);
}
Vector look_up(Vector table, Vector index) {
  return _mm512_permutexvar_epi8(index, table);
}
Vector shift_right(Vector x, unsigned n) {
  return _mm512_srli_epi16(x, n);
}

// avx2.cc has the same function and says what it does.
template <int kChunk>
Vector spread_signs(const std::uint8_t* p) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  if constexpr (kChunk == 4) {
    const Vector w = _mm512_cvtepu32_epi64(x);
    return _mm512_or_si512(w, _mm512_slli_epi64(w, 31));
  } else {
    const Vector w = _mm512_cvtepu16_epi32(x);
    return _mm512_or_si512(w, _mm512_slli_epi32(w, 15));
  }
}

// 64 bytes as indices of 2 codes a byte, in bits 0-3 and 4-7: 1 vector at 4 bits, 2 otherwise. Bits beyond a
// code's width are left as they are.
template <int kBits, int kSignChunk>
void load_indices(const std::uint8_t* codes, const std::uint8_t* signs, Vector* out) {
  out[0] = load(codes);
  if constexpr (kBits != 4) out[1] = shift_right(out[0], 2);
  if constexpr (kBits == 3) {
    constexpr int kSelect = 0xe4;  // third operand ? first : second
    const Vector magnitudes = _mm512_set1_epi8(0x33), s = spread_signs<kSignChunk>(signs);
    out[0] = _mm512_ternarylogic_epi64(out[0], _mm512_slli_epi16(s, 2), magnitudes, kSelect);
    out[1] = _mm512_ternarylogic_epi64(out[1], s, magnitudes, kSelect);
  }
}

Vector add(Vector a, Vector b) {
  return _mm512_add_epi32(a, b);
}

// As in avx2.cc.
void transpose(Vector* x) {
  const Vector ab = _mm512_unpacklo_epi32(x[0], x[1]), cd = _mm512_unpacklo_epi32(x[2], x[3]);
  const Vector AB = _mm512_unpackhi_epi32(x[0], x[1]), CD = _mm512_unpackhi_epi32(x[2], x[3]);
  x[0] = _mm512_unpacklo_epi64(ab, cd), x[1] = _mm512_unpackhi_epi64(ab, cd);
  x[2] = _mm512_unpacklo_epi64(AB, CD), x[3] = _mm512_unpackhi_epi64(AB, CD);
}

// a's lanes 0 + 1 and 2 + 3, then b's.
Vector add_lanes(Vector a, Vector b) {
  return add(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

template <int kHeadDim, int kBits, int kHeads, int kPieces, bool kSideBySide = false>
void score(const std::uint8_t* codes, const std::uint8_t* ahead, const Operands& operands,
           std::int32_t* scores) {
  constexpr int kRow = row_bytes(kHeadDim, kBits), kStepTokens = 64 / kRow;  // 1, 2 or 4
  constexpr int kPlanes = kBits == 4 ? 1 : 2, kVectors = 4 * kPlanes * 2, kQuads = 4 / kStepTokens;
  const Vector table = load(operands.table);
  const Vector order_2 = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
  const Vector order_4 = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const std::uint8_t* signs = codes + 64 * kRow;
  for (int t = 0; t < 64; t += 16) {
    Vector quads[kHeads][kQuads];
#pragma GCC unroll 4
    for (int quad = 0; quad < kQuads; ++quad) {  // 4 steps of kStepTokens
      ask_for(ahead, 8 * kHeadDim * kBits, t / 16 * kQuads + quad, 4 * kQuads);
      Vector indices[kPlanes][4];
#pragma GCC unroll 4
      for (int step = 0; step < 4; ++step) {
        const int at = t * kRow + (4 * quad + step) * 64;
        Vector x[2];
        load_indices<kBits, kHeadDim / 32>(codes + at, signs + at / 2, x);
        for (int plane = 0; plane < kPlanes; ++plane) indices[plane][step] = x[plane];
      }
      for (int plane = 0; plane < kPlanes && !kSideBySide; ++plane) transpose(indices[plane]);
      Vector sums[kHeads][kPieces];
#pragma GCC unroll 16
      for (int i = 0; i < kHeads * kPieces; ++i) sums[i / kPieces][i % kPieces] = _mm512_setzero_si512();
#pragma GCC unroll 8
      for (int i = 0; i < 4 * kPlanes; ++i) {
        const Vector index = indices[i % kPlanes][i / kPlanes];
        const Vector low = look_up(table, index), high = look_up(table, shift_right(index, 4));
#pragma GCC unroll 16
        for (int j = 0; j < kHeads * kPieces; ++j) {
          const std::uint8_t* column = operands.columns + (j * kVectors + 2 * i) * 64;
          Vector& sum = sums[j / kPieces][j % kPieces];
          sum = _mm512_dpbusd_epi32(sum, low, load(column));
          sum = _mm512_dpbusd_epi32(sum, high, load(column + 64));
        }
      }
#pragma GCC unroll 8
      for (int h = 0; h < kHeads; ++h) {
        quads[h][quad] = sums[h][kPieces - 1];
        if constexpr (kPieces == 2) quads[h][quad] = add(_mm512_slli_epi32(sums[h][0], 8), sums[h][1]);
      }
    }
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
      const Vector* q = quads[h];
      Vector result;
      if constexpr (kStepTokens == 1) result = add_lanes(add_lanes(q[0], q[1]), add_lanes(q[2], q[3]));
      if constexpr (kStepTokens == 2) result = _mm512_permutexvar_epi32(order_2, add_lanes(q[0], q[1]));
      if constexpr (kStepTokens == 4) result = _mm512_permutexvar_epi32(order_4, q[0]);
      _mm512_storeu_si512(scores + 64 * h + t, add(result, _mm512_set1_epi32(operands.correction[h])));
    }
  }
}

// 64 bytes of units, a coordinate group g: dword 4 q + j is coordinate 8 j + g of its block, token quarter q.
template <int kHeadDim, int kBits, int kHeads, int kPieces>
void value(const std::uint8_t* codes, const std::uint8_t* ahead, const Operands& operands, float factor,
           float* sums) {
  constexpr int kUnitBytes = kHeadDim * 16;  // one 32-bit unit for each (coordinate, q)
  const Vector table = load(operands.table);
  const __m512 scale = _mm512_set1_ps(factor);
  for (int at = 0; at < kUnitBytes; at += 64) {
    ask_for(ahead, 8 * kHeadDim * kBits, at / 64, kHeadDim / 4);
    Vector indices[2];
    load_indices<kBits, 2>(codes + at, codes + kUnitBytes + at / 2, indices);
    if constexpr (kBits == 4) indices[1] = load(codes + kUnitBytes + at);
    const Vector centroids[4] = {look_up(table, indices[0]), look_up(table, shift_right(indices[0], 4)),
                                 look_up(table, indices[1]), look_up(table, shift_right(indices[1], 4))};
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
      Vector acc = _mm512_setzero_si512();
#pragma GCC unroll 2
      for (int piece = 0; piece < kPieces; ++piece) {
        if (piece == 1) acc = _mm512_slli_epi32(acc, 8);
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k)
          acc = _mm512_dpbusd_epi32(acc, load(operands.columns + ((h * kPieces + piece) * 4 + k) * 64),
                                    centroids[k]);
      }
      float* sum = sums + h * kHeadDim * 4 + at / 4;
      _mm512_storeu_ps(sum, _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), scale, _mm512_loadu_ps(sum)));
    }
  }
}

std::uint64_t read(const std::uint8_t* codes, const std::uint8_t* ahead, std::size_t bytes) {
  Vector sums[4] = {};
  for (std::size_t at = 0; at < bytes; at += 256) {
    for (std::size_t line = 0; line < 256; line += 64) __builtin_prefetch(ahead + at + line);
    for (std::size_t i = 0; i < 4; ++i) sums[i] = _mm512_xor_si512(sums[i], load(codes + at + 64 * i));
  }
  const Vector sum = _mm512_xor_si512(_mm512_xor_si512(sums[0], sums[1]), _mm512_xor_si512(sums[2], sums[3]));
  std::uint64_t words[8], all = 0;
  _mm512_storeu_si512(words, sum);
  for (const std::uint64_t word : words) all ^= word;
  return all;
}

constexpr ScoreLoop kScores[2][3][4][2] = TQ_LOOPS(score);
constexpr ScoreLoop kSideBySideScores[4] = {score<128, 4, 1, 1, true>, score<128, 4, 1, 2, true>,
                                            score<128, 4, 4, 1, true>, score<128, 4, 4, 2, true>};
constexpr ValueLoop kValues[2][3][4][2] = TQ_LOOPS(value);

}  // namespace

const LoopSet kAvx512 = {"avx512",
                         TQ_LAYOUT_FLAGS,
                         [] {
                           return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                  __builtin_cpu_supports("avx512vl") &&
                                  __builtin_cpu_supports("avx512vnni") &&
                                  __builtin_cpu_supports("avx512vbmi");
                         },
                         64,
                         64,
                         16,
                         1,
                         256,
                         256,
                         [](const Shape& s) { return loop_of(kScores, s); },
                         [](const Shape& s) { return side_by_side_of(kSideBySideScores, s); },
                         [](const Shape& s) { return loop_of(kValues, s); },
                         read};

}  // namespace turboquant::bench
