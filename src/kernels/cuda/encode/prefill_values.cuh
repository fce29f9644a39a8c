// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/encode/prefill.cuh"

// The values of a page by a team: 16 tokens a warp, then a transpose of nibbles.
namespace turboquant::kernels::cuda {

// The bytes of four words, transposed: byte k of out[s] is byte s of in[k].
__device__ inline void transpose_bytes(const std::uint32_t (&in)[4], std::uint32_t (&out)[4]) {
  const std::uint32_t low01 = permute(in[0], in[1], 0x5140), high01 = permute(in[0], in[1], 0x7362);
  const std::uint32_t low23 = permute(in[2], in[3], 0x5140), high23 = permute(in[2], in[3], 0x7362);
  out[0] = permute(low01, low23, 0x5410);
  out[1] = permute(low01, low23, 0x7632);
  out[2] = permute(high01, high23, 0x5410);
  out[3] = permute(high01, high23, 0x7632);
}

// Nibble x of word m becomes nibble m of word x.
__device__ inline void transpose_nibbles(std::uint32_t (&words)[8]) {
#pragma unroll
  for (int m = 0; m < 8; m += 2) {
    const std::uint32_t a = words[m], b = words[m + 1];
    words[m] = (a & 0x0f0f0f0fu) | (b << 4 & 0xf0f0f0f0u);
    words[m + 1] = (a >> 4 & 0x0f0f0f0fu) | (b & 0xf0f0f0f0u);
  }
  // Bytes: byte y of word 2 m + p now belongs to byte m of word 2 y + p.
#pragma unroll
  for (int p = 0; p < 2; ++p) {
    const std::uint32_t in[4] = {words[p], words[2 + p], words[4 + p], words[6 + p]};
    std::uint32_t out[4];
    transpose_bytes(in, out);
#pragma unroll
    for (int y = 0; y < 4; ++y) words[2 * y + p] = out[y];
  }
}

// Codes of the page's 64 tokens into its V area. Lane 16 i + 4 q + j of warp `block` of the team makes the
// words of (i, q) of the coordinates 32 block + 8 j + x: units 4 (4 x + q) + j of the block.
__device__ inline void store_value_codes(const TokenCodes& codes, const Part& part, int bits,
                                         std::uint8_t* area) {
  const int lane = this_thread() & 31, i = lane >> 4, q = lane >> 2 & 3, j = lane & 3,
            block = this_team().warp;
  const std::uint32_t* first = &codes[32 * i + 2 * q][4 * block + j];
  std::uint32_t out[8];
#pragma unroll
  for (int m = 0; m < 8; ++m)
    out[m] = first[(8 * (m & 3) + (m >> 2)) * (sizeof(codes[0]) / sizeof(codes[0][0]))];
  transpose_nibbles(out);
  std::uint32_t valid = ~0u;  // nibbles of tokens that the call has
  if (!part.opens) {
    valid = 0;
    for (int m = 0; m < 8; ++m) {
      const int t = 32 * i + 8 * (m & 3) + 2 * q + (m >> 2);
      if (t >= part.begin && t < part.end) valid |= 15u << (4 * m);
    }
  }

  const int unit = 128 * block + 4 * q + j;
  const auto merged = [&](std::uint32_t old, std::uint32_t x, std::uint32_t mask) {
    return (old & ~mask) | (x & mask);
  };
  if (bits == 4) {
    auto* words = reinterpret_cast<std::uint32_t*>(area) + 4 * kPrefillDim * i + unit;
    if (valid != ~0u) {
#pragma unroll
      for (int x = 0; x < 8; ++x) out[x] = merged(words[16 * x], out[x], valid);
    }
#pragma unroll
    for (int x = 0; x < 8; ++x) words[16 * x] = out[x];

    return;
  }
  // 2 bits: both halves of the tokens in one word. 1 bit: 16 in half a word.
  const auto narrow = [&](std::uint32_t w) { return (w & 0x33333333u) << (2 * i); };
  const auto top = [&](std::uint32_t w) {
    return (w >> 2 & 0x1111u) << (2 * i) | (w >> 18 & 0x1111u) << (2 * i + 1);
  };
  const std::uint32_t valid2 = narrow(valid) | other_side(narrow(valid));
  const std::uint32_t valid1 = top(valid) | other_side(top(valid));
  auto* words = reinterpret_cast<std::uint32_t*>(area) + unit;
  auto* tops = reinterpret_cast<std::uint16_t*>(area + 16 * kPrefillDim) + unit;
  const bool merges = valid2 != ~0u;
#pragma unroll
  for (int x = 0; x < 8; ++x) {
    std::uint32_t low = narrow(out[x]), high = top(out[x]);
    low |= other_side(low);
    high |= other_side(high);
    if ((x & 1) != i) continue;  // each half stores every second one
    words[16 * x] = merges ? merged(words[16 * x], low, valid2) : low;
    if (bits == 3)
      tops[16 * x] = static_cast<std::uint16_t>(merges ? merged(tops[16 * x], high, valid1) : high);
  }
}

__device__ inline void fetch_values(const EncodeCall& call, PrefillShared& shared, int index) {
  const PrefillTask& task = shared.tasks[index];
  fetch(task.values, call.args.values.token_stride, call.args.basis.value_signs + task.head * kPrefillDim,
        task.part, kWarpVectors * this_team().warp, shared.input());
}

// The lane's side of its value, which has been fetched, rotated, and its largest coordinate. Signs are +1 or
// -1.
template <DType kType>
__device__ inline Rotated load_values(const WarpInput& input, std::uint32_t* flips, float& largest,
                                      SideVector& y) {
  const int side = this_side(), row = this_thread() % kWarpVectors, lane = this_thread() & 31;
  const uint4 signs = *reinterpret_cast<const uint4*>(&input.signs[4 * lane]);
  constexpr std::uint32_t kSign = 0x80000000u;
  *reinterpret_cast<uint4*>(&flips[4 * lane]) = {signs.x & kSign, signs.y & kSign, signs.z & kSign,
                                                 signs.w & kSign};
  __syncwarp();
#pragma unroll
  for (int piece = 0; piece < 8; ++piece) {
    const uint4 raw = input.raw.rows[row][8 * side + piece];
    const std::uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
    float x[8];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 flip = *reinterpret_cast<const uint4*>(&flips[kSideDim * side + 8 * piece + 4 * half]);
      const std::uint32_t low = words[2 * half], high = words[2 * half + 1];
      float* four = x + 4 * half;
      if (kType == DType::kBF16) {
        four[0] = __uint_as_float(low * 0x10000u + flip.x);
        four[1] = __uint_as_float((low & 0xffff0000u) ^ flip.y);
        four[2] = __uint_as_float(high * 0x10000u + flip.z);
        four[3] = __uint_as_float((high & 0xffff0000u) ^ flip.w);
      } else {
        const float2 a = __half22float2(as_half2(low)), b = __half22float2(as_half2(high));
        four[0] = __uint_as_float(__float_as_uint(a.x) ^ flip.x);
        four[1] = __uint_as_float(__float_as_uint(a.y) ^ flip.y);
        four[2] = __uint_as_float(__float_as_uint(b.x) ^ flip.z);
        four[3] = __uint_as_float(__float_as_uint(b.y) ^ flip.w);
      }
    }
    pack_side(x, piece, y);
  }
  return rotate_packed<kType>(input, largest, y);
}

// The task's values are being fetched; then the next one's are. `parity` changes from page to page.
template <DType kType>
__device__ inline void encode_values(const EncodeCall& call, PrefillShared& shared, std::uint32_t parity,
                                     PrefillValues& values) {
  const PageFormat& format = call.args.pages.format;
  SideVector y;
  float largest;
  wait_for_fetch();
  const Rotated scaled = load_values<kType>(shared.input(), values.flips[this_team().warp], largest, y);
  if (shared.next() != kNoTask) fetch_values(call, shared, shared.next());
  const SideCodes codes = code_side<ValueOrder>(y, largest, scaled, call.rotation_scale, call.value_coder);
  const Team team = this_team();
  const PrefillTask& task = shared.task();
  store_side_scale(task.part, team.token, codes.scale, task.page + format.v_scales_offset());
  std::uint32_t* row = values.codes[parity][team.token] + kSideWords * this_side();
#pragma unroll
  for (int w = 0; w < kSideWords; w += 4)
    *reinterpret_cast<uint4*>(row + w) =
        uint4{codes.words[w], codes.words[w + 1], codes.words[w + 2], codes.words[w + 3]};
  team.group.sync();
  store_value_codes(values.codes[parity], task.part, format.v_bits, task.page + format.v_codes_offset());
}

}  // namespace turboquant::kernels::cuda
