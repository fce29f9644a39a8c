// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "turboquant/device.h"
#include "turboquant/format.h"
#include "turboquant/status.h"

// The verbs on pages that the caller owns: rotate, encode, decode, attend (and balance and key_metric, which
// make of the first calls' queries what encode takes). Plain pointers, all on the device named by the call;
// nothing here allocates, reads back or synchronises. PagedCache (cache.h) owns pages and calls these.
//
// A sequence's tokens have positions 0, 1, 2, ...; position p lies in slot p % 64 of page
// page_table[p / 64]. Positions below the sequence's start (left padding) exist but are never stored,
// seen, or counted in centres, balance or fringe.
namespace turboquant {

// The vectors every verb needs, fixed for the life of a cache. All fp32.
// xi are random signs (rotation.h), s > 0 the balance (1 where it is off); see docs/algorithm.md.
struct Basis {
  const float* key_signs = nullptr;    // [kv_heads, head_dim]: xi / s, multiplies keys
  const float* query_signs = nullptr;  // [kv_heads, head_dim]: xi * s, multiplies queries
  const float* value_signs = nullptr;  // [kv_heads, head_dim]: +-1, multiplies values and outputs
  int base = 1;                        // m of the Hadamard plan (rotation.h), 1 for head_dim = 2^k
  const float* base_matrix = nullptr;  // [base, base], null where base is 1
  // [kv_heads, head_dim, head_dim], symmetric: what an error of a rotated key costs, up to a factor
  // (key_metric makes it; docs/adr/0008). encode lowers that by what codes it takes, and by where it puts
  // a page's own mean (docs/adr/0009); null: all directions cost alike. Only encode reads it; on CUDA
  // from a multiple of 16 bytes.
  const std::int8_t* key_metric = nullptr;
};

struct Pages {
  PageFormat format{};
  int kv_heads = 0;
  std::int64_t count = 0;        // pages in the pool
  std::uint8_t* data = nullptr;  // [count, kv_heads, format.page_bytes()]; 128-byte aligned on CUDA
};

// The 16-bit fringe beside the pages: the first S and the newest W tokens of each sequence, keys
// balanced and rotated, values rotated, as fp16 (finite values beyond 65504 are clamped).
// Slot of position p: p - start for the first S, else S + p % W. The recent part holds positions
// [max(recent_starts[i], length - W), length): a truncated sequence's recent part starts late.
struct Fringe {
  int first = 0;                  // S
  int recent = 0;                 // W
  std::uint16_t* data = nullptr;  // [sequences, kv_heads, S + W, 2 (K, V), head_dim] fp16; null: no fringe
  const std::int32_t* recent_starts = nullptr;  // [sequences]; null: zeros
};

// The sequences of a call, and where their pages are.
struct Sequences {
  int count = 0;
  int max_pages = 0;
  const std::int32_t* page_table =
      nullptr;                            // [count, max_pages]; entries past a sequence's pages are not read
  const std::int32_t* lengths = nullptr;  // [count]: positions before this call (padding included)
  const std::int32_t* starts = nullptr;   // [count]: first position that counts; null: zeros
  // [count + 1]: the call's tokens of sequence i are rows token_starts[i] .. token_starts[i + 1], at
  // positions lengths[i], lengths[i] + 1, ... Not read by decode.
  const std::int32_t* token_starts = nullptr;
  // token_starts[count], which CUDA verbs cannot read: it lies on the device. Not used on the CPU.
  std::int64_t tokens = 0;
  // No sequence has more of the call's tokens than this; 0: not known. attend on CUDA takes short sequences
  // of a large call by one kernel where it knows that there are no long ones. Results do not depend on it.
  std::int64_t most_tokens = 0;
};

// Head vectors of ragged tokens, [tokens, heads, head_dim]; strides in elements, head_dim contiguous.
struct Rows {
  DType dtype = DType::kF32;
  const void* data = nullptr;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
};
struct MutableRows {
  DType dtype = DType::kF32;
  void* data = nullptr;
  std::int64_t token_stride = 0;
  std::int64_t head_stride = 0;
};

// out = H (signs * in) / sqrt(head_dim), or with inverse, signs * H^T in / sqrt(head_dim).
// fp32 arithmetic in the order that rotation.h defines: the same bits on every machine.
struct RotateArgs {
  int head_dim = 0, heads = 0;
  std::int64_t tokens = 0;
  Rows in;
  MutableRows out;
  const float* signs = nullptr;  // [heads, head_dim]
  int base = 1;
  const float* base_matrix = nullptr;
  bool inverse = false;
};

// Stores the call's keys and values into pages (and fringe). The same input in the same calls gives the
// same bytes on every machine and with every kernel.
struct EncodeArgs {
  Pages pages;
  Basis basis;
  Fringe fringe;
  Sequences sequences;
  Rows keys, values;  // [tokens, kv_heads, head_dim], one dtype
  // CUDA only. True promises that keys, values, pages, basis and the arrays of sequences were complete before
  // the stream's previous kernel began (it is the attend of the same tokens, say): encode may then read them
  // while that kernel still runs, and lets the next kernel begin at once. It writes only after the previous
  // kernel has ended. In these promises a settled encode counts as a part of the kernel before it.
  bool settled = false;
};

// Writes positions [0, lengths[i]) of every sequence as vectors in the model's own basis (keys before
// the rotation and the balance), from the fringe where it holds them. Padding becomes zeros.
struct DecodeArgs {
  Pages pages;
  Basis basis;
  Fringe fringe;
  Sequences sequences;
  DType dtype = DType::kF32;
  std::int64_t max_tokens = 0;  // of the outputs; positions from lengths[i] on are not written
  void* keys = nullptr;         // [count, kv_heads, max_tokens, head_dim]
  void* values = nullptr;       // [count, kv_heads, max_tokens, head_dim]
};

// Attention of the call's queries. A query at position p of its sequence sees
//   * the call's own keys and values at positions <= p, exactly as given (16- or 32-bit), and
//   * every older position, lengths[i] of them, from the fringe where it holds it, else from its page,
// of both only those >= start and, with a window, > p - window. Scores are scale * q.k, then
// softcap * tanh(score / softcap) if softcap > 0; a sink adds exp(sink) to the softmax's denominator.
// A query that sees nothing gets zeros and an LSE of -infinity (of its sink, if it has one).
// Call attend before encode of the same tokens: the lengths are those before the call.
struct AttendArgs {
  Pages pages;
  Basis basis;
  Fringe fringe;
  Sequences sequences;
  int q_heads = 0;    // a multiple of kv_heads; query head h reads KV head h / (q_heads / kv_heads)
  Rows query;         // [tokens, q_heads, head_dim]
  Rows keys, values;  // [tokens, kv_heads, head_dim], the call's own; data null: history only
  float scale = 0;    // of q.k; 1 / sqrt(head_dim) in most models
  float softcap = 0;  // 0: none
  int window = 0;     // 0: none
  const float* sinks = nullptr;  // [q_heads] logits; null: none
  MutableRows out;               // [tokens, q_heads, head_dim]
  float* lse = nullptr;          // [tokens, q_heads], natural logarithm; may be null
  // attend_workspace_bytes(), 64-byte aligned. On CUDA zeroed by the caller before its first use; every call
  // leaves it ready for the next one on the same stream. Calls that may overlap need one each: of two that
  // share one, either may wait for ever.
  void* workspace = nullptr;
  std::size_t workspace_bytes = 0;
  // CUDA only. True promises that pages, fringe, basis and the arrays of sequences were complete before the
  // stream's previous kernel began, a settled encode counting as a part of the kernel before it: attend may
  // then read them while those kernels still run. Queries, the call's own keys and values and, by
  // attend_encode, the key_metric are read after they have ended, always.
  bool settled = false;
};

// The balance s of algorithm.md from the first prefill: over the first 128 tokens of every sequence,
// s = sqrt(rms of the keys about their page's mean / rms of the group's queries), of mean 1.
struct BalanceArgs {
  int kv_heads = 0, q_heads = 0, head_dim = 0;
  int sequence_count = 0;
  const std::int32_t* token_starts = nullptr;  // [sequence_count + 1]
  const std::int32_t* starts = nullptr;        // [sequence_count]: rows to skip at the front; null: zeros
  Rows query, keys;
  float* balance = nullptr;  // [kv_heads, head_dim], written
};

// What an error of a rotated key costs (Basis::key_metric), of queries: the second moment of the directions
// that they look in, damped, up to a factor. Adds the call's queries to `moment`, exact sums, and then makes
// the metric of all that were added, with the same bytes in any order and on every machine; so it may grow
// call by call. Not counted are padding, zero queries, and those that hold a NaN or infinity. Queries that
// are sampled: of the rows of all sequences, one after another, every step-th, from row step - 1 on.
struct KeyMetricArgs {
  int kv_heads = 0, q_heads = 0;
  int head_dim = 0;  // as in a page: a multiple of 16 from 32 to 512
  int sequence_count = 0;
  std::int64_t tokens = 0;               // of each sequence; 0: none are added
  std::int64_t step = 1;                 // at least 1
  const std::int32_t* starts = nullptr;  // [sequence_count]: rows to skip at the front; null: zeros
  Rows query;                            // [sequence_count, tokens, q_heads, head_dim]
  std::int64_t sequence_stride = 0;      // of query
  const float* query_signs = nullptr;    // [kv_heads, head_dim], as in Basis
  int base = 1;
  const float* base_matrix = nullptr;
  // [kv_heads, head_dim, head_dim], of which the entries on and above the diagonal count. It holds 131,072
  // queries of a KV head; that no more are added in all is the caller's word.
  std::int32_t* moment = nullptr;
  bool begins = false;            // nothing is in the moment yet: it need not be zeros
  std::int8_t* metric = nullptr;  // [kv_heads, head_dim, head_dim], written; null: only the moment
};

// Where a call runs: CPU verbs use the executor (null: default_executor()), CUDA ones the stream.
struct Context {
  Device device;
  Stream stream;
  Executor* executor = nullptr;
};

// Each checks its arguments first and writes nothing on an Error. On the CPU page tables, lengths and
// starts are checked too; on CUDA they are on the device and must be right.
Status rotate(const RotateArgs& args, const Context& context = {});
Status balance(const BalanceArgs& args, const Context& context = {});
Status key_metric(const KeyMetricArgs& args, const Context& context = {});
Status encode(const EncodeArgs& args, const Context& context = {});
Status decode(const DecodeArgs& args, const Context& context = {});
Status attend(const AttendArgs& args, const Context& context = {});

// A step of decoding: attend, then encode of the same tokens, of which every sequence has as many (on CUDA
// the host cannot see token_starts: where they say otherwise, tokens may be left out). Outputs and bytes are
// those of the two calls. On CUDA one launch may do both where every sequence has one token; a page that a
// token opens is then read by nobody in the call. args.settled promises what it does for attend.
Status attend_encode(const AttendArgs& args, const Context& context = {});

// What attend needs as workspace for calls of at most `tokens` rows, whatever their lengths.
std::size_t attend_workspace_bytes(const PageFormat& format, int kv_heads, int q_heads, int sequences,
                                   std::int64_t tokens, const Context& context = {});

// Ok if `verb` ("rotate", "balance", "key_metric", "encode", "decode", "attend") runs on this device, else
// what is missing.
Status supports(std::string_view verb, const PageFormat& format, DeviceType device);

}  // namespace turboquant
