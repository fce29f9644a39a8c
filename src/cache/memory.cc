// SPDX-License-Identifier: Apache-2.0
// What a cache takes of memory, and what it says of it.
#include "cache/impl.h"

namespace turboquant {
namespace {

using cache::Layer;
using cache::number;
using cache::size;

template <class T>
std::size_t heap_bytes(const std::vector<T>& v) {
  return v.capacity() * sizeof(T);
}

Error no_memory(std::size_t bytes, const char* what) {
  return {Code::kDevice, "no memory for " + number(static_cast<std::int64_t>(bytes)) + " bytes of " + what +
                             "; free sequences, or give the cache a capacity that fits"};
}

}  // namespace

std::size_t PagedCache::Impl::pool_page_bytes() const {
  return size(config.kv_heads) * config.format.page_bytes();
}

std::size_t PagedCache::Impl::fringe_slot_bytes() const {
  const std::int64_t tokens = config.fringe_first + config.fringe_recent;
  return size(config.kv_heads * tokens * 2 * config.format.head_dim) * sizeof(std::uint16_t);
}

// Layer by layer, so that only one layer's bytes are there twice. Pages that some layers got before another
// could not are kept for the next attempt; the table knows of those only that all layers have.
Status PagedCache::Impl::grow_pages(std::int64_t pages) {
  if (pages > INT32_MAX) return invalid("a pool of " + number(pages) + " pages; the most is 2147483647");
  const std::size_t bytes = size(pages) * pool_page_bytes();
  for (Layer& layer : layers)
    if (!layer.pool.grow(bytes)) return no_memory(bytes, "pages");
  table.add_pages(static_cast<std::int32_t>(pages) - table.pages());
  return {};
}

Status PagedCache::Impl::grow_slots(int needed) {
  if (needed <= slots) return {};
  const std::int64_t count = cache::grown(slots, needed);
  const std::size_t bytes = size(count) * fringe_slot_bytes();
  for (Layer& layer : layers)
    if (!layer.fringe.grow(bytes)) return no_memory(bytes, "fringe");
  for (Layer& layer : layers) layer.lengths.resize(size(count), 0);
  recent_starts.resize(size(count), 0);
  seen.resize(size(count), 0);
  slots = static_cast<int>(count);
  return {};
}

Status PagedCache::Impl::grow_workspace(std::size_t bytes) {
  if (bytes <= workspace.size()) return {};
  workspace = {};  // what it holds is of no use: do not copy it
  if (!workspace.grow(bytes)) return no_memory(bytes, "workspace");
  return {};
}

CacheUsage PagedCache::Impl::usage() const {
  CacheUsage u;
  u.pages = table.pages();
  u.used_pages = table.pages() - table.free_pages();
  const std::size_t page_bytes = layers.size() * pool_page_bytes();
  u.used_bytes = size(u.used_pages) * page_bytes;
  u.shared_bytes = size(table.all_references() - u.used_pages) * page_bytes;

  std::int64_t tokens = 0;
  u.table_bytes = sizeof(Impl) + table.bytes() + heap_bytes(base_matrix) + heap_bytes(layers) +
                  heap_bytes(recent_starts) + heap_bytes(token_starts) + heap_bytes(gathered) +
                  heap_bytes(writes) + heap_bytes(changes) + heap_bytes(seen);
  for (const Layer& layer : layers) {
    u.pool_bytes += layer.pool.size();
    u.fringe_bytes += layer.fringe.size();
    u.table_bytes += heap_bytes(layer.lengths) + heap_bytes(layer.key_signs) + heap_bytes(layer.query_signs) +
                     heap_bytes(layer.value_signs);
    for (const std::int32_t length : layer.lengths) tokens += length;
  }
  u.workspace_bytes = workspace.size();
  u.baseline_bytes = size(tokens * config.kv_heads * config.format.head_dim) * 2 * sizeof(std::uint16_t);
  return u;
}

}  // namespace turboquant
