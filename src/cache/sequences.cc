// SPDX-License-Identifier: Apache-2.0
// What happens to sequences without new tokens: they come, go, shrink, split and change places.
#include <algorithm>
#include <cstring>

#include "cache/impl.h"

namespace turboquant {

using cache::Layer;
using cache::number;
using cache::size;

Status PagedCache::Impl::known(int sequence) const {
  if (table.contains(sequence)) return {};
  return invalid("sequence " + number(sequence) + " is unknown: the cache has " + number(table.sequences()) +
                 "; use a number that add_sequence or fork gave and that was not freed");
}

std::int64_t PagedCache::Impl::longest(int sequence) const {
  std::int32_t length = 0;
  for (const Layer& layer : layers) length = std::max(length, layer.lengths[size(sequence)]);
  return length;
}

// The ring of the fringe held positions from longest - W on. What lies below the new length is still there;
// the slots of the forgotten tokens held older ones once, and those are gone: the recent part starts late.
Status PagedCache::Impl::truncate(int sequence, std::int64_t length) {
  if (Status s = known(sequence); !s.ok()) return s;
  const std::int64_t old = longest(sequence);
  if (length < 0 || length > old)
    return invalid("length=" + number(length) + " is out of range; sequence " + number(sequence) + " has " +
                   number(old) + " tokens");
  if (length == old) return {};
  std::int32_t& recent = recent_starts[size(sequence)];
  recent =
      static_cast<std::int32_t>(std::min(std::max<std::int64_t>(recent, old - config.fringe_recent), length));
  for (Layer& layer : layers)
    layer.lengths[size(sequence)] =
        std::min(layer.lengths[size(sequence)], static_cast<std::int32_t>(length));
  table.truncate(sequence, static_cast<int>((length + kPageTokens - 1) / kPageTokens));
  return {};
}

Status PagedCache::Impl::reorder(std::span<const int> targets, std::span<const int> sources) {
  if (targets.size() != sources.size())
    return invalid(number(static_cast<std::int64_t>(targets.size())) + " targets but " +
                   number(static_cast<std::int64_t>(sources.size())) + " sources; give each target a source");
  for (const int s : targets)
    if (Status status = known(s); !status.ok()) return status;
  for (const int s : sources)
    if (Status status = known(s); !status.ok()) return status;
  std::fill(seen.begin(), seen.end(), std::uint8_t{0});
  for (const int s : targets) {
    if (seen[size(s)]) return invalid("sequence " + number(s) + " is a target twice; name each once");
    seen[size(s)] = 1;
  }
  const std::size_t bytes = fringe_slot_bytes();
  if (Status s = grow_workspace(targets.size() * bytes); !s.ok()) return s;

  // All sources are gathered before any target is written.
  const auto move_numbers = [&](std::vector<std::int32_t>& numbers) {
    gathered.clear();
    for (const int s : sources) gathered.push_back(numbers[size(s)]);
    for (std::size_t i = 0; i < targets.size(); ++i) numbers[size(targets[i])] = gathered[i];
  };
  for (Layer& layer : layers) {
    move_numbers(layer.lengths);
    if (bytes == 0) continue;
    for (std::size_t i = 0; i < targets.size(); ++i)
      if (targets[i] != sources[i])
        std::memcpy(workspace.data() + i * bytes, layer.fringe.data() + size(sources[i]) * bytes, bytes);
    for (std::size_t i = 0; i < targets.size(); ++i)
      if (targets[i] != sources[i])
        std::memcpy(layer.fringe.data() + size(targets[i]) * bytes, workspace.data() + i * bytes, bytes);
  }
  move_numbers(recent_starts);
  table.assign(targets, sources);
  return {};
}

// ---- The public names.

Result<int> PagedCache::add_sequence() {
  Impl& c = *impl_;
  if (c.config.max_sequences > 0 && c.table.sequences() == c.config.max_sequences)
    return invalid("all of max_sequences=" + number(c.config.max_sequences) +
                   " are in use; free one, or create the cache with more");
  if (Status s = c.grow_slots(c.table.sequences() + 1); !s.ok()) return s.error();
  return c.table.add();
}

Result<int> PagedCache::fork(int sequence) {
  Impl& c = *impl_;
  if (Status s = c.known(sequence); !s.ok()) return s.error();
  const Result<int> added = add_sequence();
  if (!added.ok()) return added;
  const int copy = added.value();
  c.table.assign({&copy, 1}, {&sequence, 1});
  const std::size_t bytes = c.fringe_slot_bytes();
  for (Layer& layer : c.layers) {
    layer.lengths[size(copy)] = layer.lengths[size(sequence)];
    if (bytes > 0)
      std::memcpy(layer.fringe.data() + size(copy) * bytes, layer.fringe.data() + size(sequence) * bytes,
                  bytes);
  }
  c.recent_starts[size(copy)] = c.recent_starts[size(sequence)];
  return copy;
}

Status PagedCache::free(int sequence) {
  Impl& c = *impl_;
  if (Status s = c.known(sequence); !s.ok()) return s;
  for (Layer& layer : c.layers) layer.lengths[size(sequence)] = 0;
  c.recent_starts[size(sequence)] = 0;
  c.table.remove(sequence);
  return {};
}

Status PagedCache::truncate(int sequence, std::int64_t length) {
  return impl_->truncate(sequence, length);
}

Status PagedCache::reorder(std::span<const int> targets, std::span<const int> sources) {
  return impl_->reorder(targets, sources);
}

void PagedCache::reset() {
  Impl& c = *impl_;
  c.table.clear();
  for (Layer& layer : c.layers) {
    std::fill(layer.lengths.begin(), layer.lengths.end(), 0);
    if (c.config.balance_mode != BalanceMode::kFirstCall) continue;
    c.set_balance(layer, nullptr);
    layer.balance_pending = true;
  }
  std::fill(c.recent_starts.begin(), c.recent_starts.end(), 0);
}

}  // namespace turboquant
