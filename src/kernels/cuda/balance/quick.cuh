// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

#include "kernels/cuda/attend/ptx.cuh"
#include "kernels/cuda/balance/careful.cuh"

// Sums of squares for balance.cu where all rows count, which the sums themselves say: of a block's threads
// one half has the keys' coordinates, the other the queries'. The next tiles of up to 64 rows are on their
// way into shared memory while one is added.
namespace turboquant::kernels::cuda {

constexpr int kSpans = 64;  // sequences at a time

// The rows of a sequence that are looked at, and those of them that lie in the page of the first one.
struct Span {
  std::int64_t begin;
  int count, in_page;
};

__device__ inline Span span_of(const BalanceArgs& a, int i) {
  const std::int64_t first = a.token_starts[i], end = a.token_starts[i + 1];
  const int skipped = a.starts == nullptr ? 0 : a.starts[i];
  const std::int64_t begin = first + skipped;
  const std::int64_t left = end - begin;
  const int count = left < kBalanceTokens ? static_cast<int>(left) : kBalanceTokens;
  return {begin, max(count, 0), kPageTokens - skipped % kPageTokens};
}

// The rows of one head, or of a group's, of all spans, a tile at a time: at most 64, and keys' of one page.
struct Tiles {
  const std::uint8_t* data;  // of the first head
  std::int64_t row, head;    // bytes from one to the next
  int heads, row_bytes;
  bool by_page;
  int first_row, next_row;  // of a tile, that this thread copies 16 bytes of; how far on the next one is
  int at;                   // which bytes
  int i = 0, of_head = 0, first = 0;  // of the next tile: span, head, row of the span

  __device__ Tiles(const Rows& of, int size, int first_head, int head_count, int d, bool pages, int thread,
                   int threads)
      : data(static_cast<const std::uint8_t*>(of.data) + first_head * of.head_stride * size),
        row(of.token_stride * size),
        head(of.head_stride * size),
        heads(head_count),
        row_bytes(d * size),
        by_page(pages),
        first_row(thread / (row_bytes / 16)),
        next_row(threads / (row_bytes / 16)),
        at(thread % (row_bytes / 16) * 16) {
    if (first_row >= next_row) first_row = kPageTokens;  // threads that are left over
  }
  // Starts the copies of the next tile; the number of its rows, 0: there is none.
  __device__ int copy(const Span* spans, int count, std::uint8_t* to) {
    while (i < count && spans[i].count == 0) ++i;
    if (i == count) return 0;
    const Span& span = spans[i];
    const int rows = min(span.count - first, by_page && first == 0 ? span.in_page : kPageTokens);
    const std::uint8_t* from = data + (span.begin + first + first_row) * row + of_head * head + at;
    std::uint32_t place = shared_address(to + first_row * row_bytes + at);
#pragma unroll 4
    for (int r = first_row; r < rows; r += next_row) {
      async_copy16(place, from);
      from += next_row * row;
      place += static_cast<std::uint32_t>(next_row * row_bytes);
    }
    first += rows;
    if (first == span.count) {
      first = 0;
      if (++of_head == heads) of_head = 0, ++i;
    }
    return rows;
  }
};

template <class T>
__device__ inline float widen(T x) {
  if constexpr (std::is_same_v<T, float>) return x;
  else if constexpr (std::is_same_v<T, __half>) return __half2float(x);
  else return __bfloat162float(x);
}

// f(x) of a coordinate of a tile's rows, one after the other. 16 are loaded at once, as f waits for the f
// before it.
template <class T, class F>
__device__ inline void each_row(const T* column, int d, int rows, F f) {
  constexpr int kBatch = 16;
  int r = 0;
#pragma unroll 1
  for (; r + kBatch <= rows; r += kBatch) {
    T x[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) x[k] = column[(r + k) * d];
#pragma unroll
    for (int k = 0; k < kBatch; ++k) f(widen(x[k]));
  }
#pragma unroll 1
  for (; r < rows; ++r) f(widen(column[r * d]));
}

// Sums of all sequences; false: there may be a row that does not count. Where none has an element above 1e15,
// all do, as the sums of squares say, and of keys the means.
template <class T, int kSlots>
__device__ bool add_quickly(const BalanceArgs& a, int h, Span* spans, float* key_sums, float* query_sums,
                            std::uint8_t* ring, std::int64_t& tokens) {
  constexpr float kLargest = 1e15f;
  const int d = a.head_dim, group = a.q_heads / a.kv_heads, half = static_cast<int>(blockDim.x) / 2;
  const bool of_keys = static_cast<int>(threadIdx.x) < half;
  const int e = static_cast<int>(threadIdx.x) - (of_keys ? 0 : half),
            tile_bytes = kPageTokens * d * static_cast<int>(sizeof(T));
  ring += of_keys ? 0 : kSlots * tile_bytes;
  float sum = 0.0f, largest = 0.0f;
  tokens = 0;
  for (int first = 0; first < a.sequence_count; first += kSpans) {
    const int count = min(kSpans, a.sequence_count - first);
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < count; i += 2 * half) spans[i] = span_of(a, first + i);
    __syncthreads();
    for (int i = 0; i < count; ++i) tokens += spans[i].count;
    constexpr int kSize = static_cast<int>(sizeof(T));
    Tiles tiles = of_keys ? Tiles(a.keys, kSize, h, 1, d, true, e, half)
                          : Tiles(a.query, kSize, h * group, group, d, false, e, half);
    int rows[kSlots];  // of the tile in each slot, the next one first
    const auto ask = [&](int slot, int& out) {
      out = tiles.copy(spans, count, ring + slot * tile_bytes);
      asm volatile("cp.async.commit_group;" ::: "memory");
    };
#pragma unroll
    for (int k = 0; k + 1 < kSlots; ++k) ask(k, rows[k]);
    int slot = 0;
    for (;;) {
      asm volatile("cp.async.wait_group %0;" ::"n"(kSlots - 2) : "memory");
      if (__syncthreads_or(rows[0]) == 0) break;  // all have their tile, and are done with the one before
      ask(slot == 0 ? kSlots - 1 : slot - 1, rows[kSlots - 1]);
      const T* column = reinterpret_cast<const T*>(ring + slot * tile_bytes) + e;
      if (e < d && of_keys && rows[0] > 0) {
        float mean = 0.0f;
        each_row(column, d, rows[0], [&](float x) { mean = __fadd_rn(mean, x); });
        mean = __fdiv_rn(mean, static_cast<float>(rows[0]));
        largest = fmaxf(largest, fabsf(mean));
        each_row(column, d, rows[0], [&](float x) {
          const float difference = __fadd_rn(x, -mean);
          sum = __fadd_rn(sum, __fmul_rn(difference, difference));
        });
      } else if (e < d) {
        each_row(column, d, rows[0], [&](float x) { sum = __fadd_rn(sum, __fmul_rn(x, x)); });
      }
#pragma unroll
      for (int k = 0; k + 1 < kSlots; ++k) rows[k] = rows[k + 1];
      slot = slot + 1 == kSlots ? 0 : slot + 1;
    }
  }
  if (e < d) (of_keys ? key_sums : query_sums)[e] = sum;
  return __syncthreads_or(static_cast<int>(!(sum < kLargest * kLargest && largest < kLargest))) == 0;
}

}  // namespace turboquant::kernels::cuda
