// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/layout.h"
#include "core/tables.h"
#include "kernels/kernels.h"
#include "kernels/portable/lanes.h"
#include "kernels/vectors.h"

// Every verb in C++ that compilers vectorise. A call works on pages in *storage order*: the order in which
// codes follow each other in an area, so that a page is unpacked by walking its bytes.
namespace turboquant::kernels::TQ_ISA {

// One head's largest arrays; page code works on d of it.
static constexpr int kMaxDim = kMaxPageHeadDim;

// Where the codes of an area of width b come from. K: row position x of a token's codes holds coordinate
// keys[x]. V: within a (coordinate, all 64 tokens) row, position x holds token values[x].
struct Order {
  std::uint16_t keys[kMaxDim];
  std::uint8_t values[kPageTokens];
};

// What the page kernels know of a format, made once a call.
struct Layout {
  PageFormat format;
  Order nibbles, pairs, bits;             // areas of width 4, 2 and 1
  std::uint16_t value_units[kMaxDim];     // unit of (coordinate, q = 0) in a V area
  std::uint8_t value_unit_step[kMaxDim];  // units from q to q + 1: 4, or 2 in a last block of 16

  const Order& unpacked_keys() const { return format.k_bits == 4 ? nibbles : pairs; }
  const Order& unpacked_values() const { return format.v_bits == 4 ? nibbles : pairs; }
};
void make_layout(const PageFormat& format, Layout& out);

// Codes of a page as table steps: keys [64][d], each row in unpacked_keys() order; values [d][64], each
// row in unpacked_values() order. Neither is scaled; slots never written give whatever their bits say.
void unpack_keys(const std::uint8_t* page, const Layout& layout, float* out);
void unpack_values(const std::uint8_t* page, const Layout& layout, float* out);

// The other way: one token's codes [d], in coordinate order, into slot t.
void pack_key(const std::uint8_t* codes, const Layout& layout, int t, std::uint8_t* page);
void pack_value(const std::uint8_t* codes, const Layout& layout, int t, std::uint8_t* page);

// c[r][column] = sum over x of a[r][x] b[column][x], for rows x columns; length is a multiple of 16.
void dot_products(const float* a, int a_stride, int rows, const float* b, int b_stride, int columns,
                  int length, float* c, int c_stride);

void rotate(const RotateArgs& args, Executor& executor);
void encode(const EncodeArgs& args, Executor& executor);
void decode(const DecodeArgs& args, Executor& executor);
void attend(const AttendArgs& args, Executor& executor);
std::size_t attend_workspace_bytes(const PageFormat& format, int kv_heads, int q_heads, int sequences,
                                   std::int64_t tokens, int threads);

}  // namespace turboquant::kernels::TQ_ISA
