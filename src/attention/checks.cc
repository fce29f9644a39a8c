// SPDX-License-Identifier: Apache-2.0
#include "attention/checks.h"

#include <initializer_list>
#include <limits>
#include <string>

#include "kernels/metric_rules.h"
#include "turboquant/rotation.h"

namespace turboquant::attention {
namespace {

constexpr std::size_t kWorkspaceAlignment = 64;

std::string number(std::int64_t value) {
  return std::to_string(value);
}
std::string at(const char* name, int i) {
  return std::string(name) + "[" + number(i) + "]";
}

struct Named {
  const char* name;
  const void* pointer;
};

Status all_given(std::initializer_list<Named> pointers) {
  for (const Named& p : pointers)
    if (p.pointer == nullptr)
      return invalid(std::string(p.name) + " is null; pass an array of the documented shape");
  return {};
}

// The first failing status of several, in order.
Status first_of(std::initializer_list<Status> statuses) {
  for (const Status& status : statuses)
    if (!status.ok()) return status;
  return {};
}

Status check_base(int head_dim, int base, const float* base_matrix) {
  const auto right = hadamard_base(head_dim);
  if (!right.ok()) return right.error();
  if (right.value() != base)
    return invalid("base=" + number(base) + " does not belong to head_dim=" + number(head_dim) + "; use " +
                   number(right.value()) + ", as hadamard_plan says");
  if (base > 1 && base_matrix == nullptr)
    return invalid("base_matrix is null with base=" + number(base) +
                   "; pass the base_matrix of hadamard_plan");
  return {};
}

Status check_heads(int q_heads, int kv_heads) {
  if (kv_heads < 1) return invalid("kv_heads=" + number(kv_heads) + "; use at least 1");
  if (q_heads < 1 || q_heads % kv_heads != 0)
    return invalid("q_heads=" + number(q_heads) + " is not a multiple of kv_heads=" + number(kv_heads));
  return {};
}

bool aligned(const void* pointer, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

constexpr std::size_t kMetricAlignment = 16;

Status check_pages(const Pages& pages, const Basis& basis, DeviceType device) {
  if (Status s = check(pages.format); !s.ok()) return s;
  if (device == DeviceType::kCuda && !aligned(pages.data, kPageAlignment))
    return invalid("pages are not aligned to " + number(kPageAlignment) +
                   " bytes, as CUDA kernels read them; cudaMalloc and torch align");
  if (device == DeviceType::kCuda && !aligned(basis.key_metric, kMetricAlignment))
    return invalid("key_metric is not aligned to " + number(kMetricAlignment) +
                   " bytes, as CUDA kernels read it; cudaMalloc and torch align, a slice may not");
  if (pages.kv_heads < 1) return invalid("kv_heads=" + number(pages.kv_heads) + "; use at least 1");
  if (pages.count < 0) return invalid("pages.count=" + number(pages.count) + " is negative");
  return check_base(pages.format.head_dim, basis.base, basis.base_matrix);
}

Status check_fringe(const Fringe& fringe) {
  if (fringe.data == nullptr) return {};
  if (fringe.first < 0 || fringe.recent < 0 || fringe.first + fringe.recent == 0)
    return invalid("fringe first=" + number(fringe.first) + ", recent=" + number(fringe.recent) +
                   "; neither may be negative nor both 0 (pass null data to turn the fringe off)");
  return {};
}

Status check_token_starts(const std::int32_t* token_starts, int count, DeviceType device) {
  if (token_starts == nullptr) return invalid("token_starts is null; pass [sequences + 1] row numbers");
  if (device == DeviceType::kCuda) return {};
  if (token_starts[0] != 0) return invalid("token_starts[0]=" + number(token_starts[0]) + "; the first is 0");
  for (int i = 0; i < count; ++i)
    if (token_starts[i + 1] < token_starts[i])
      return invalid(at("token_starts", i + 1) + "=" + number(token_starts[i + 1]) +
                     " is below the one before it, " + number(token_starts[i]));
  return {};
}

// Sequence i must have pages for positions [start, reach).
Status check_table(const Sequences& s, int i, std::int64_t start, std::int64_t reach,
                   std::int64_t page_count) {
  const std::int64_t capacity = std::int64_t{s.max_pages} * kPageTokens;
  if (reach > capacity)
    return invalid("sequence " + number(i) + " reaches position " + number(reach) +
                   " but its page table holds " + number(capacity) + " (max_pages=" + number(s.max_pages) +
                   " of 64 tokens); give it more pages");
  for (std::int64_t page = start / kPageTokens; page * kPageTokens < reach; ++page) {
    const std::int64_t entry = s.page_table[i * std::int64_t{s.max_pages} + page];
    if (entry < 0 || entry >= page_count)
      return invalid("page_table[" + number(i) + "][" + number(page) + "]=" + number(entry) +
                     " is out of range; the pool has pages 0 to " + number(page_count - 1));
  }
  return {};
}

// Sequences with `tokens`: token_starts counts; with `writes`: the call's own positions need pages too.
Status check_sequences(const Sequences& s, std::int64_t page_count, bool tokens, bool writes,
                       DeviceType device) {
  if (s.count < 0) return invalid("sequences=" + number(s.count) + " is negative");
  if (s.tokens < 0) return invalid("sequences.tokens=" + number(s.tokens) + " is negative");
  if (s.most_tokens < 0)
    return invalid("most_tokens=" + number(s.most_tokens) + " is negative; use 0 where it is not known");
  if (s.count == 0) return {};
  if (s.max_pages < 0) return invalid("max_pages=" + number(s.max_pages) + " is negative");
  if (Status p = all_given({{"lengths", s.lengths}}); !p.ok()) return p;
  if (s.max_pages > 0 && s.page_table == nullptr)
    return invalid("page_table is null with max_pages=" + number(s.max_pages));
  if (tokens)
    if (Status t = check_token_starts(s.token_starts, s.count, device); !t.ok()) return t;
  if (device == DeviceType::kCuda) return {};
  for (int i = 0; i < s.count; ++i) {
    const std::int64_t length = s.lengths[i];
    if (length < 0) return invalid(at("lengths", i) + "=" + number(length) + " is negative");
    const std::int64_t start = s.starts == nullptr ? 0 : s.starts[i];
    if (start < 0) return invalid(at("starts", i) + "=" + number(start) + " is negative");
    const std::int64_t own = writes ? std::int64_t{s.token_starts[i + 1]} - s.token_starts[i] : 0;
    if (Status t = check_table(s, i, start, length + own, page_count); !t.ok()) return t;
  }
  return {};
}

Status one_dtype(const Rows& keys, const Rows& values) {
  return invalid(std::string("keys are ") + name_of(keys.dtype) + " but values are " + name_of(values.dtype) +
                 "; pass one dtype");
}

Status check_rows(const char* name, const Rows& rows) {
  if (rows.data == nullptr) return invalid(std::string(name) + " is null; pass rows of the documented shape");
  if (rows.token_stride < 0 || rows.head_stride < 0)
    return invalid(std::string(name) + " has a negative stride; make it contiguous");
  return {};
}

bool no_tokens(const Sequences& s, DeviceType device) {
  return s.count == 0 || tokens_of(s, device) == 0;
}

}  // namespace

std::int64_t tokens_of(const Sequences& s, DeviceType device) {
  if (device == DeviceType::kCuda) return s.tokens;
  return s.count > 0 && s.token_starts != nullptr ? s.token_starts[s.count] : 0;
}

Status check(const RotateArgs& a, DeviceType) {
  if (a.heads < 0 || a.tokens < 0)
    return invalid("heads=" + number(a.heads) + ", tokens=" + number(a.tokens) + "; neither may be negative");
  if (Status s = check_base(a.head_dim, a.base, a.base_matrix); !s.ok()) return s;
  if (a.heads == 0 || a.tokens == 0) return {};
  return first_of({all_given({{"signs", a.signs}, {"out", a.out.data}}), check_rows("in", a.in)});
}

Status check(const BalanceArgs& a, DeviceType device) {
  if (a.head_dim < 1 || a.head_dim > 1024)
    return invalid("head_dim=" + number(a.head_dim) + " is out of range; use 1 to 1024");
  if (a.sequence_count < 1)
    return invalid("sequences=" + number(a.sequence_count) + "; balance needs at least 1");
  if (Status s = first_of({check_heads(a.q_heads, a.kv_heads), all_given({{"balance", a.balance}})}); !s.ok())
    return s;
  if (Status s = check_token_starts(a.token_starts, a.sequence_count, device); !s.ok()) return s;
  if (device == DeviceType::kCpu) {
    for (int i = 0; i < a.sequence_count && a.starts != nullptr; ++i)
      if (a.starts[i] < 0) return invalid(at("starts", i) + "=" + number(a.starts[i]) + " is negative");
    if (a.token_starts[a.sequence_count] == 0) return {};
  }
  return first_of({check_rows("query", a.query), check_rows("keys", a.keys)});
}

Status check(const KeyMetricArgs& a, DeviceType device) {
  if (Status s = check_heads(a.q_heads, a.kv_heads); !s.ok()) return s;
  if (Status s = check_base(a.head_dim, a.base, a.base_matrix); !s.ok()) return s;
  if (a.sequence_count < 0) return invalid("sequences=" + number(a.sequence_count) + " is negative");
  if (a.tokens < 0) return invalid("tokens=" + number(a.tokens) + " is negative");
  if (a.step < 1) return invalid("step=" + number(a.step) + " is not positive; 1 takes every token");
  if (Status s = all_given({{"moment", a.moment}}); !s.ok()) return s;
  const std::int64_t rows = a.sequence_count * a.tokens, group = a.q_heads / a.kv_heads;
  if (rows > std::numeric_limits<std::int32_t>::max())
    return invalid(number(rows) + " tokens of all sequences do not fit into 32 bits; make calls of fewer");
  if (rows / a.step > kernels::kMostMetricQueries / group)
    return invalid(number(rows) + " tokens with step=" + number(a.step) + " are " +
                   number(rows / a.step * group) + " queries of a KV head; use a step that leaves " +
                   number(kernels::kMostMetricQueries) + " at most");
  if (rows < a.step) return {};
  for (int i = 0; device == DeviceType::kCpu && a.starts != nullptr && i < a.sequence_count; ++i)
    if (a.starts[i] < 0) return invalid(at("starts", i) + "=" + number(a.starts[i]) + " is negative");
  if (a.sequence_stride < 0) return invalid("query has a negative stride; make it contiguous");
  return first_of({all_given({{"query_signs", a.query_signs}}), check_rows("query", a.query)});
}

Status check(const EncodeArgs& a, DeviceType device) {
  if (Status s = first_of({check_pages(a.pages, a.basis, device), check_fringe(a.fringe)}); !s.ok()) return s;
  if (Status s = check_sequences(a.sequences, a.pages.count, true, true, device); !s.ok()) return s;
  if (no_tokens(a.sequences, device)) return {};
  if (a.keys.dtype != a.values.dtype) return one_dtype(a.keys, a.values);
  return first_of(
      {all_given(
           {{"pages", a.pages.data}, {"key_signs", a.basis.key_signs}, {"value_signs", a.basis.value_signs}}),
       check_rows("keys", a.keys), check_rows("values", a.values)});
}

Status check(const DecodeArgs& a, DeviceType device) {
  if (Status s = first_of({check_pages(a.pages, a.basis, device), check_fringe(a.fringe)}); !s.ok()) return s;
  if (Status s = check_sequences(a.sequences, a.pages.count, false, false, device); !s.ok()) return s;
  if (a.max_tokens < 0) return invalid("max_tokens=" + number(a.max_tokens) + " is negative");
  bool any = device == DeviceType::kCuda && a.sequences.count > 0 && a.max_tokens > 0;
  for (int i = 0; i < a.sequences.count && device == DeviceType::kCpu; ++i) {
    any = any || a.sequences.lengths[i] > 0;
    if (a.sequences.lengths[i] > a.max_tokens)
      return invalid(at("lengths", i) + "=" + number(a.sequences.lengths[i]) +
                     " does not fit in max_tokens=" + number(a.max_tokens) + "; make the outputs larger");
  }
  if (!any) return {};
  return all_given({{"pages", a.pages.data},
                    {"query_signs", a.basis.query_signs},
                    {"value_signs", a.basis.value_signs},
                    {"keys", a.keys},
                    {"values", a.values}});
}

Status check(const AttendArgs& a, std::size_t workspace_needed, DeviceType device) {
  if (Status s = first_of({check_pages(a.pages, a.basis, device), check_fringe(a.fringe)}); !s.ok()) return s;
  if (Status s = check_sequences(a.sequences, a.pages.count, true, false, device); !s.ok()) return s;
  if (Status s = check_heads(a.q_heads, a.pages.kv_heads); !s.ok()) return s;
  if (!(a.softcap >= 0))
    return invalid("softcap=" + std::to_string(a.softcap) + " is negative; 0 means none");
  if (a.window < 0) return invalid("window=" + number(a.window) + " is negative; 0 means none");
  if (no_tokens(a.sequences, device)) return {};
  if (Status s = first_of({all_given({{"query_signs", a.basis.query_signs},
                                      {"value_signs", a.basis.value_signs},
                                      {"out", a.out.data}}),
                           check_rows("query", a.query)});
      !s.ok())
    return s;
  if ((a.keys.data == nullptr) != (a.values.data == nullptr))
    return invalid(
        "of the call's own keys and values only one is given; pass both, or neither for history only");
  if (device == DeviceType::kCuda && a.keys.data != nullptr && a.keys.dtype != a.values.dtype)
    return one_dtype(a.keys, a.values);
  if (device == DeviceType::kCuda && !aligned(a.workspace, kWorkspaceAlignment))
    return invalid("workspace is not aligned to " + number(kWorkspaceAlignment) + " bytes");
  if (workspace_needed > 0 && a.workspace == nullptr)
    return invalid("workspace is null; pass attend_workspace_bytes()=" + std::to_string(workspace_needed) +
                   " bytes");
  if (a.workspace_bytes < workspace_needed)
    return invalid("workspace_bytes=" + std::to_string(a.workspace_bytes) +
                   "; attend_workspace_bytes() asks for " + std::to_string(workspace_needed));
  return {};
}

Status check_even(const Sequences& s, DeviceType device) {
  const std::int64_t tokens = tokens_of(s, device);
  if (tokens == 0 || s.count == 0) return {};
  if (tokens % s.count != 0)
    return invalid(number(tokens) + " tokens of " + number(s.count) +
                   " sequences; a step has as many of each sequence");
  const std::int64_t each = tokens / s.count;
  for (int i = 0; device == DeviceType::kCpu && i < s.count; ++i)
    if (s.token_starts[i + 1] - s.token_starts[i] != each)
      return invalid("sequence " + number(i) + " has " + number(s.token_starts[i + 1] - s.token_starts[i]) +
                     " tokens where others have " + number(each) + "; a step has as many of each sequence");
  return {};
}

}  // namespace turboquant::attention
