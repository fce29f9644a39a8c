// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "layout/loops.h"

// pmaddubsw adds two products in int16, so operands have 7 bits a piece: 2 * 251 * 64 and 2 * 127 * 123 fit.
namespace turboquant::bench {
namespace {

using Vector = __m256i;

Vector load(const void* p) {
  return _mm256_loadu_si256(static_cast<const Vector*>(p));
}
Vector shift_right(Vector x, int n) {
  return _mm256_srli_epi16(x, n);
}
Vector mask(Vector x, char m) {
  return _mm256_and_si256(x, _mm256_set1_epi8(m));
}

// 32 bytes of magnitudes have 16 bytes of signs, in units of kChunk bytes each. A unit b becomes b, b >> 1:
// then the sign of the code at bits 2 k, 2 k + 1 of a byte is bit 2 k of its sign byte. Bit 7 of some is not
// theirs.
template <int kChunk>
Vector spread_signs(const std::uint8_t* p) {
  const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  if constexpr (kChunk == 4) {
    const Vector w = _mm256_cvtepu32_epi64(x);
    return _mm256_or_si256(w, _mm256_slli_epi64(w, 31));
  } else {
    const Vector w = _mm256_cvtepu16_epi32(x);
    return _mm256_or_si256(w, _mm256_slli_epi32(w, 15));
  }
}

// 32 bytes as indices of 2 codes a byte, in bits 0-3 and 4-7: 1 vector at 4 bits, 2 otherwise.
template <int kBits, int kSignChunk>
void load_indices(const std::uint8_t* codes, const std::uint8_t* signs, Vector* out) {
  out[0] = load(codes);
  if constexpr (kBits != 4) {
    out[1] = mask(shift_right(out[0], 2), 0x33);
    out[0] = mask(out[0], 0x33);
  }
  if constexpr (kBits == 3) {
    const Vector s = spread_signs<kSignChunk>(signs);
    out[0] = _mm256_or_si256(out[0], mask(_mm256_slli_epi16(s, 2), 0x44));
    out[1] = _mm256_or_si256(out[1], mask(s, 0x44));
  }
}

// pshufb looks at bits 0-3 and 7 of an index; bit 7 is clear but at 4 bits.
template <int kBits>
void look_up(Vector table, Vector indices, Vector* out) {
  const char bits = kBits == 4 ? 0x0f : 0x7f;
  const Vector high = shift_right(indices, 4);
  out[0] = _mm256_shuffle_epi8(table, kBits == 4 ? mask(indices, bits) : indices);
  out[1] = _mm256_shuffle_epi8(table, kBits == 4 ? mask(high, bits) : high);
}

Vector add(Vector a, Vector b) {
  return _mm256_add_epi32(a, b);
}

// In each 128-bit lane, x[i]'s dword j becomes x[j]'s dword i: a dword is then 4 tokens' wide, and their sums
// need no adding across.
void transpose(Vector* x) {
  const Vector ab = _mm256_unpacklo_epi32(x[0], x[1]), cd = _mm256_unpacklo_epi32(x[2], x[3]);
  const Vector AB = _mm256_unpackhi_epi32(x[0], x[1]), CD = _mm256_unpackhi_epi32(x[2], x[3]);
  x[0] = _mm256_unpacklo_epi64(ab, cd), x[1] = _mm256_unpackhi_epi64(ab, cd);
  x[2] = _mm256_unpacklo_epi64(AB, CD), x[3] = _mm256_unpackhi_epi64(AB, CD);
}

template <int kHeadDim, int kBits, int kHeads, int kPieces, bool kSideBySide = false>
void score(const std::uint8_t* codes, const std::uint8_t* ahead, const Operands& operands,
           std::int32_t* scores) {
  constexpr int kRow = row_bytes(kHeadDim, kBits);
  constexpr int kLoads = kRow > 32 ? kRow / 32 : 1, kStepTokens = kRow < 32 ? 32 / kRow : 1;
  constexpr int kPlanes = kBits == 4 ? 1 : 2, kVectors = kLoads * 4 * kPlanes * 2, kQuads = 2 / kStepTokens;
  const Vector table = load(operands.table), ones = _mm256_set1_epi16(1), radix = _mm256_set1_epi16(128);
  const std::uint8_t* signs = codes + 64 * kRow;
  for (int t = 0; t < 64; t += 8) {
    Vector sums[kHeads][kQuads];
#pragma GCC unroll 2
    for (int quad = 0; quad < kQuads; ++quad) {  // 4 steps of kStepTokens
      ask_for(ahead, 8 * kHeadDim * kBits, t / 8 * kQuads + quad, 8 * kQuads);
#pragma GCC unroll 8
      for (int h = 0; h < kHeads; ++h) sums[h][quad] = _mm256_setzero_si256();
#pragma GCC unroll 2
      for (int l = 0; l < kLoads; ++l) {
        Vector indices[kPlanes][4];
#pragma GCC unroll 4
        for (int step = 0; step < 4; ++step) {
          const int at = (t + (4 * quad + step) * kStepTokens) * kRow + 32 * l;
          Vector x[2];
          load_indices<kBits, kHeadDim / 32>(codes + at, signs + at / 2, x);
          for (int plane = 0; plane < kPlanes; ++plane) indices[plane][step] = x[plane];
        }
        for (int plane = 0; plane < kPlanes && !kSideBySide; ++plane) transpose(indices[plane]);
#pragma GCC unroll 8
        for (int i = 0; i < 4 * kPlanes; ++i) {
          Vector centroids[2];
          look_up<kBits>(table, indices[i % kPlanes][i / kPlanes], centroids);
#pragma GCC unroll 8
          for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 2
            for (int piece = 0; piece < kPieces; ++piece)
#pragma GCC unroll 2
              for (int half = 0; half < 2; ++half) {
                const int column = (h * kPieces + piece) * kVectors + (l * 4 * kPlanes + i) * 2 + half;
                const Vector pairs =
                    _mm256_maddubs_epi16(centroids[half], load(operands.columns + column * 32));
                sums[h][quad] =
                    add(sums[h][quad], _mm256_madd_epi16(pairs, piece + 1 < kPieces ? radix : ones));
              }
        }
      }
    }
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
      Vector result = sums[h][0];
      if constexpr (kStepTokens == 1) {
        const Vector low = _mm256_permute2x128_si256(result, sums[h][1], 0x20);
        result = add(low, _mm256_permute2x128_si256(result, sums[h][1], 0x31));
      } else {
        result = _mm256_permutevar8x32_epi32(result, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
      }
      result = add(result, _mm256_set1_epi32(operands.correction[h]));
      _mm256_storeu_si256(reinterpret_cast<Vector*>(scores + 64 * h + t), result);
    }
  }
}

// 64 bytes of units, a coordinate group g: dword 4 q + j is coordinate 8 j + g of its block, token quarter q.
// Quarters q and q + 2 share a lane's sum.
template <int kHeadDim, int kBits, int kHeads, int kPieces>
void value(const std::uint8_t* codes, const std::uint8_t* ahead, const Operands& operands, float factor,
           float* sums) {
  constexpr int kUnitBytes = kHeadDim * 16;  // one 32-bit unit for each (coordinate, q)
  const Vector table = load(operands.table), ones = _mm256_set1_epi16(1), radix = _mm256_set1_epi16(128);
  const __m256 scale = _mm256_set1_ps(factor);
  for (int at = 0; at < kUnitBytes; at += 64) {
    ask_for(ahead, 8 * kHeadDim * kBits, at / 64, kHeadDim / 4);
    Vector accumulators[kHeads];
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) accumulators[h] = _mm256_setzero_si256();
#pragma GCC unroll 2
    for (int group = 0; group < 2; ++group) {
      const int p = at + 32 * group;
      Vector indices[2], centroids[4];
      load_indices<kBits, 2>(codes + p, codes + kUnitBytes + p / 2, indices);
      if constexpr (kBits == 4) indices[1] = load(codes + kUnitBytes + p);
      for (int i = 0; i < 2; ++i) look_up<kBits>(table, indices[i], centroids + 2 * i);
#pragma GCC unroll 8
      for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 2
        for (int piece = 0; piece < kPieces; ++piece)
#pragma GCC unroll 4
          for (int k = 0; k < 4; ++k) {
            const Vector p4 = load(operands.columns + (((h * kPieces + piece) * 2 + group) * 4 + k) * 32);
            const Vector pairs = _mm256_maddubs_epi16(p4, centroids[k]);
            accumulators[h] =
                add(accumulators[h], _mm256_madd_epi16(pairs, piece + 1 < kPieces ? radix : ones));
          }
    }
#pragma GCC unroll 8
    for (int h = 0; h < kHeads; ++h) {
      float* sum = sums + h * kHeadDim * 2 + at / 8;
      _mm256_storeu_ps(sum,
                       _mm256_fmadd_ps(_mm256_cvtepi32_ps(accumulators[h]), scale, _mm256_loadu_ps(sum)));
    }
  }
}

std::uint64_t read(const std::uint8_t* codes, const std::uint8_t* ahead, std::size_t bytes) {
  Vector sums[4] = {};
  for (std::size_t at = 0; at < bytes; at += 128) {
    for (std::size_t line = 0; line < 128; line += 64) __builtin_prefetch(ahead + at + line);
    for (std::size_t i = 0; i < 4; ++i) sums[i] = _mm256_xor_si256(sums[i], load(codes + at + 32 * i));
  }
  const Vector sum = _mm256_xor_si256(_mm256_xor_si256(sums[0], sums[1]), _mm256_xor_si256(sums[2], sums[3]));
  std::uint64_t words[4];
  _mm256_storeu_si256(reinterpret_cast<Vector*>(words), sum);
  return words[0] ^ words[1] ^ words[2] ^ words[3];
}

constexpr ScoreLoop kScores[2][3][4][2] = TQ_LOOPS(score);
constexpr ScoreLoop kSideBySideScores[4] = {score<128, 4, 1, 1, true>, score<128, 4, 1, 2, true>,
                                            score<128, 4, 4, 1, true>, score<128, 4, 4, 2, true>};
constexpr ValueLoop kValues[2][3][4][2] = TQ_LOOPS(value);

}  // namespace

const LoopSet kAvx2 = {"avx2",
                       TQ_LAYOUT_FLAGS,
                       [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); },
                       32,
                       32,
                       8,
                       1,
                       128,
                       128,
                       [](const Shape& s) { return loop_of(kScores, s); },
                       [](const Shape& s) { return side_by_side_of(kSideBySideScores, s); },
                       [](const Shape& s) { return loop_of(kValues, s); },
                       read};

}  // namespace turboquant::bench
