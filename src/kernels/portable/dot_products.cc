// SPDX-License-Identifier: Apache-2.0
// The inner loop of attend: rows of queries (or weights) against rows of an unpacked page. Blocks of up to
// 3 x 4 sums stay in registers; bound by multiply-adds when the page is in L1.
#include "kernels/portable/portable.h"

namespace turboquant::kernels::TQ_ISA {
namespace {

template <int kRows, int kColumns>
inline void block(const float* a, int a_stride, const float* b, int b_stride, int length, float* c,
                  int c_stride) {
  Lanes acc[kRows][kColumns] = {};
  for (int x = 0; x < length; x += kLanes) {
    Lanes right[kColumns];
    for (int j = 0; j < kColumns; ++j) right[j] = load(b + j * b_stride + x);
    for (int r = 0; r < kRows; ++r) {
      const Lanes left = load(a + r * a_stride + x);
      for (int j = 0; j < kColumns; ++j) acc[r][j] += left * right[j];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    if constexpr (kColumns == 4)
      *reinterpret_cast<UnalignedFour*>(c + r * c_stride) = sums(acc[r][0], acc[r][1], acc[r][2], acc[r][3]);
    else
      for (int j = 0; j < kColumns; ++j) c[r * c_stride + j] = sum(acc[r][j]);
  }
}

template <int kRows>
inline void panel(const float* a, int a_stride, const float* b, int b_stride, int columns, int length,
                  float* c, int c_stride) {
  int j = 0;
  for (; j + 2 <= columns; j += 2)
    block<kRows, 2>(a, a_stride, b + j * b_stride, b_stride, length, c + j, c_stride);
  for (; j < columns; ++j) block<kRows, 1>(a, a_stride, b + j * b_stride, b_stride, length, c + j, c_stride);
}

}  // namespace

void dot_products(const float* a, int a_stride, int rows, const float* b, int b_stride, int columns,
                  int length, float* c, int c_stride) {
  int r = 0;
  for (; r + 3 <= rows; r += 3)
    panel<3>(a + r * a_stride, a_stride, b, b_stride, columns, length, c + r * c_stride, c_stride);
  a += r * a_stride;
  c += r * c_stride;
  if (rows - r == 2) panel<2>(a, a_stride, b, b_stride, columns, length, c, c_stride);
  if (rows - r == 1) panel<1>(a, a_stride, b, b_stride, columns, length, c, c_stride);
}

}  // namespace turboquant::kernels::TQ_ISA
