// SPDX-License-Identifier: Apache-2.0
// append and attend: from a batch of sequences to the verbs.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "cache/impl.h"

namespace turboquant {
namespace {

using cache::from_row;
using cache::Layer;
using cache::number;
using cache::Run;
using cache::size;

std::int64_t row_count(std::span<const NewTokens> batch) {
  std::int64_t rows = 0;
  for (const NewTokens& tokens : batch) rows += tokens.count;
  return rows;
}

}  // namespace

Status PagedCache::Impl::check_batch(int layer, std::span<const NewTokens> batch) {
  if (layer < 0 || layer >= config.layers)
    return invalid("layer=" + number(layer) + " is out of range; the cache has layers 0 to " +
                   number(config.layers - 1));
  std::fill(seen.begin(), seen.end(), std::uint8_t{0});
  std::int64_t rows = 0;
  for (const auto& [sequence, count] : batch) {
    if (Status s = known(sequence); !s.ok()) return s;
    if (seen[size(sequence)])
      return invalid("sequence " + number(sequence) + " is in the batch twice; name each once");
    seen[size(sequence)] = 1;
    if (count < 0)
      return invalid("sequence " + number(sequence) + " has count=" + number(count) +
                     " new tokens; use 0 or more");
    const std::int64_t length = layers[size(layer)].lengths[size(sequence)];
    if (count > INT32_MAX - kPageTokens - length || count > INT32_MAX - rows)
      return invalid("count=" + number(count) + " new tokens of sequence " + number(sequence) +
                     " of length " + number(length) + "; positions and rows end at 2147483583");
    rows += count;
  }
  return {};
}

// body(run) for each ascending run, until one fails.
template <class F>
Status PagedCache::Impl::for_each_run(std::span<const NewTokens> batch, F&& body) {
  std::int64_t first_row = 0;
  for (std::size_t begin = 0, end = 0; begin < batch.size(); begin = end) {
    end = begin + 1;
    while (end < batch.size() && batch[end].sequence > batch[end - 1].sequence) ++end;
    const int first = batch[begin].sequence, last = batch[end - 1].sequence;
    token_starts.assign(1, 0);
    std::int32_t rows = 0;
    for (int slot = first, i = 0; slot <= last; ++slot) {
      const NewTokens& next = batch[begin + size(i)];
      if (next.sequence == slot) {
        rows += static_cast<std::int32_t>(next.count);
        ++i;
      }
      token_starts.push_back(rows);
    }
    if (rows > 0)
      if (Status s = body(Run{first, last - first + 1, first_row, rows, token_starts.data()}); !s.ok())
        return s;
    first_row += rows;
  }
  return {};
}

Status PagedCache::Impl::begin(int layer, std::span<const NewTokens> batch) {
  writes.clear();
  for (const auto& [sequence, count] : batch) {
    const std::int64_t length = layers[size(layer)].lengths[size(sequence)];
    writes.push_back({sequence, length, length + count});
  }
  changes.clear();
  const std::int32_t needed = table.pages_needed(writes), free_pages = table.free_pages();
  if (needed > free_pages) {
    if (config.capacity_tokens > 0)
      return invalid(number(row_count(batch)) + " new tokens need " + number(needed) + " pages, but " +
                     number(free_pages) + " of the capacity of " + number(table.pages()) +
                     " (capacity_tokens=" + number(config.capacity_tokens) +
                     ") are free; free or truncate sequences, or create the cache with a larger capacity");
    const std::int64_t pages = table.pages();
    if (Status s = grow_pages(cache::grown(pages, pages + needed - free_pages)); !s.ok()) return s;
  }
  table.prepare(writes, changes);
  const std::size_t bytes = pool_page_bytes();
  for (const cache::PageTable::Change& change : changes) {
    if (change.before == cache::PageTable::kNone) continue;
    for (Layer& each : layers)
      std::memcpy(each.pool.data() + size(change.after) * bytes,
                  each.pool.data() + size(change.before) * bytes, bytes);
  }
  return {};
}

void PagedCache::Impl::abandon() {
  table.undo(changes);
  changes.clear();
}

void PagedCache::Impl::advance(int layer, std::span<const NewTokens> batch) {
  for (const auto& [sequence, count] : batch)
    layers[size(layer)].lengths[size(sequence)] += static_cast<std::int32_t>(count);
}

void PagedCache::Impl::set_balance(Layer& layer, const float* balance) {
  for (std::size_t i = 0; i < layer.key_signs.size(); ++i) {
    const float sign = std::copysign(1.0f, layer.key_signs[i]), s = balance == nullptr ? 1.0f : balance[i];
    layer.key_signs[i] = sign / s;
    layer.query_signs[i] = sign * s;
  }
}

Status PagedCache::Impl::measure_balance(int layer, std::span<const NewTokens> batch, const BatchRows& rows) {
  token_starts.assign(1, 0);
  for (const NewTokens& tokens : batch)
    token_starts.push_back(token_starts.back() + static_cast<std::int32_t>(tokens.count));
  Layer& own = layers[size(layer)];
  if (Status s = grow_workspace(own.key_signs.size() * sizeof(float)); !s.ok()) return s;
  BalanceArgs args;
  args.kv_heads = config.kv_heads;
  args.q_heads = config.q_heads;
  args.head_dim = config.format.head_dim;
  args.sequence_count = static_cast<int>(batch.size());
  args.token_starts = token_starts.data();
  args.query = rows.query;
  args.keys = rows.keys;
  args.balance = reinterpret_cast<float*>(workspace.data());
  if (Status s = balance(args, config.context); !s.ok()) return s;
  set_balance(own, args.balance);
  return {};
}

Status PagedCache::Impl::encode(int layer, std::span<const NewTokens> batch, const BatchRows& rows) {
  if (row_count(batch) == 0) return {};
  Layer& own = layers[size(layer)];
  const bool measures = own.balance_pending;
  if (measures) {
    if (rows.query.data == nullptr)
      return invalid("layer " + number(layer) +
                     " has no balance yet and its first tokens come without query; pass their queries, or "
                     "create the cache with BalanceMode::kOff or kGiven");
    if (Status s = measure_balance(layer, batch, rows); !s.ok()) return s;
  }
  const Status status = for_each_run(batch, [&](const Run& run) {
    EncodeArgs args;
    args.pages = pages(layer);
    args.basis = basis(layer);
    args.fringe = fringe(layer, run.first_slot);
    args.sequences = sequences(layer, run);
    args.keys = from_row(rows.keys, run.first_row);
    args.values = from_row(rows.values, run.first_row);
    return turboquant::encode(args, config.context);
  });
  if (status.ok()) own.balance_pending = false;
  else if (measures) set_balance(own, nullptr);
  return status;
}

Status PagedCache::Impl::attend(int layer, std::span<const NewTokens> batch, const BatchRows& rows,
                                const MutableRows& out, const AttendOptions& options) {
  return for_each_run(batch, [&](const Run& run) {
    AttendArgs args;
    args.pages = pages(layer);
    args.basis = basis(layer);
    args.fringe = fringe(layer, run.first_slot);
    args.sequences = sequences(layer, run);
    args.q_heads = config.q_heads;
    args.query = from_row(rows.query, run.first_row);
    args.keys = from_row(rows.keys, run.first_row);
    args.values = from_row(rows.values, run.first_row);
    args.scale =
        options.scale != 0 ? options.scale : 1.0f / std::sqrt(static_cast<float>(config.format.head_dim));
    args.softcap = options.softcap;
    args.window = options.window;
    args.sinks = options.sinks;
    args.out = from_row(out, run.first_row);
    if (options.lse != nullptr) args.lse = options.lse + run.first_row * config.q_heads;
    const std::size_t bytes = attend_workspace_bytes(config.format, config.kv_heads, config.q_heads,
                                                     run.slots, run.rows, config.context);
    if (Status s = grow_workspace(bytes); !s.ok()) return s;
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.size();
    return turboquant::attend(args, config.context);
  });
}

// ---- The public names.

Status PagedCache::append(int layer, const Batch& batch, const BatchRows& rows) {
  Impl& c = *impl_;
  const std::span<const NewTokens> tokens = batch.tokens();
  if (Status s = c.check_batch(layer, tokens); !s.ok()) return s;
  if (Status s = c.begin(layer, tokens); !s.ok()) return s;
  if (Status s = c.encode(layer, tokens, rows); !s.ok()) {
    c.abandon();
    return s;
  }
  c.advance(layer, tokens);
  return {};
}

Status PagedCache::attend(int layer, const Batch& batch, const BatchRows& rows, const MutableRows& out,
                          const AttendOptions& options) {
  const std::span<const NewTokens> tokens = batch.tokens();
  if (Status s = impl_->check_batch(layer, tokens); !s.ok()) return s;
  return impl_->attend(layer, tokens, rows, out, options);
}

Status PagedCache::step(int layer, const Batch& batch, const BatchRows& rows, const MutableRows& out,
                        const AttendOptions& options) {
  Impl& c = *impl_;
  const std::span<const NewTokens> tokens = batch.tokens();
  if (Status s = c.check_batch(layer, tokens); !s.ok()) return s;
  if (Status s = c.begin(layer, tokens); !s.ok()) return s;  // first: a full pool must not show after attend
  Status status = c.attend(layer, tokens, rows, out, options);
  if (status.ok()) status = c.encode(layer, tokens, rows);
  if (!status.ok()) {
    c.abandon();
    return status;
  }
  c.advance(layer, tokens);
  return {};
}

}  // namespace turboquant
