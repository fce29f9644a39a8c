// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "turboquant/attention.h"

// What the host tells the few_rows kernel. A *row* is a (query, head of the group) pair of one sequence and
// KV head; a row tile is up to 4, 8, 16 or 32 of them, which a warp, or two that share pages, take at once.
namespace turboquant::kernels::cuda::few_rows {

inline constexpr int kWarps = 8;            // of a CTA that attend; a multiprocessor holds one
inline constexpr int kMostAppendWarps = 4;  // more, that encode the call's own tokens (append.cuh)
inline constexpr int kTileRows = 4;         // an MMA's 8 columns: 4 rows x {high byte, low byte}
inline constexpr int kMostTileRows = 32;
inline constexpr int kMaxSequences = 4096;  // of a call
inline constexpr int kMaxStages = 8;        // slots of a stream's ring
inline constexpr int kExactTokens = 16;     // of the fringe, in one MMA

struct Params {
  AttendArgs a;
  int group = 1;  // query heads of a KV head
  float group_inverse = 1;
  int most_rows = 0;      // sequences with more rows are left to another kernel
  int ctas_per_head = 1;  // the grid is [kv_heads][ctas_per_head]
  double cta_inverse = 1;
  int short_ctas = 1;  // that share the units where these are at most short_units: the others end at once
  double short_inverse = 1;
  int short_units = 0;
  int stages = 1;         // slots of a stream's ring
  int prefetched = 0;     // units of a stream, at most, that are brought into the L2 behind its first one
  int slot_bytes = 0;     // of the ring: a page, or 16 fringe tokens
  int fringe_pieces = 0;  // of 16 slots each; the last may be shorter
  // Byte offsets in a page (turboquant/format.h); K codes are at 0.
  int page_bytes = 0, v_codes = 0, k_scales = 0, v_scales = 0, centre = 0, centre_step = 0;
  float query_unit = 0;  // of rotated queries: scale log2(e) / sqrt(d), or scale / softcap / sqrt(d)
  float cap = 0;         // softcap * log2(e), 0: none
  float out_unit = 0;    // 1 / sqrt(d)
  float own_unit = 0;    // of q.k as the call gives them: scale log2(e), or scale / softcap
  // Workspace. A part is what was summed of one row tile (finish.cuh).
  // Up to 8 rows: [grid] parts that CTAs send to later ones (mail.cuh), zero between calls.
  float* mail = nullptr;
  // More rows: [grid, rows of a tile], zero between calls: CTAs that have left their part of a row that they
  // share with later ones, at the first of them.
  int* arrivals = nullptr;
  float* cta_parts =
      nullptr;  // more rows: [grid, 2], of a tile that an earlier CTA began, of one that goes on
  float* warp_parts = nullptr;  // [grid, kWarps]: of a warp's first tile where it did not end there
  int append_warps = 0;         // 2 or 4 where the call's own tokens, one a sequence, are encoded too
  int append_at = 0;            // byte offset of the append warps' shared memory
  int whole_units = 0;          // of a single sequence, up to which CTAs' shares are whole units a stream
  float centre_unit = 0;        // sqrt(d)
};

}  // namespace turboquant::kernels::cuda::few_rows
