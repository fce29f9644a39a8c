// SPDX-License-Identifier: Apache-2.0
// How a cache begins, and what it tells of itself.
#include "turboquant/cache.h"

#include <cmath>
#include <utility>

#include "cache/impl.h"
#include "turboquant/rotation.h"

namespace turboquant {
namespace {

using cache::Layer;
using cache::number;
using cache::size;

constexpr int kMaxFringe = 4096;

Status check_config(const CacheConfig& c) {
  if (Status s = check(c.format); !s.ok()) return s;
  if (c.layers < 1) return invalid("layers=" + number(c.layers) + "; use at least 1");
  if (c.kv_heads < 1) return invalid("kv_heads=" + number(c.kv_heads) + "; use at least 1");
  if (c.q_heads < 1 || c.q_heads % c.kv_heads != 0)
    return invalid("q_heads=" + number(c.q_heads) + " is not a multiple of kv_heads=" + number(c.kv_heads));
  if (c.capacity_tokens < 0 || c.capacity_tokens > INT32_MAX)
    return invalid("capacity_tokens=" + number(c.capacity_tokens) +
                   " is out of range; use 0 for a cache that grows, or up to 2147483647");
  if (c.max_sequences < 0)
    return invalid("max_sequences=" + number(c.max_sequences) + "; use 0 for a cache that grows, or more");
  if (c.fringe_first < 0 || c.fringe_first > kMaxFringe || c.fringe_recent < 0 ||
      c.fringe_recent > kMaxFringe)
    return invalid("fringe_first=" + number(c.fringe_first) + ", fringe_recent=" + number(c.fringe_recent) +
                   "; each is 0 to " + number(kMaxFringe) + " tokens");
  const std::size_t wanted =
      c.balance_mode == BalanceMode::kGiven ? size(c.layers) * size(c.kv_heads) * size(c.format.head_dim) : 0;
  if (c.balance.size() != wanted)
    return invalid("balance has " + number(static_cast<std::int64_t>(c.balance.size())) + " entries; give " +
                   number(static_cast<std::int64_t>(wanted)) +
                   " ([layers, kv_heads, head_dim] with BalanceMode::kGiven, else none)");
  for (std::size_t i = 0; i < c.balance.size(); ++i)
    if (!(c.balance[i] > 0) || !std::isfinite(c.balance[i]))
      return invalid("balance[" + number(static_cast<std::int64_t>(i)) + "]=" + std::to_string(c.balance[i]) +
                     "; each entry is positive and finite");
  return {};
}

}  // namespace

PagedCache::PagedCache(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
PagedCache::PagedCache(PagedCache&&) noexcept = default;
PagedCache& PagedCache::operator=(PagedCache&&) noexcept = default;
PagedCache::~PagedCache() = default;

Result<PagedCache> PagedCache::create(const CacheConfig& config) {
  if (Status s = check_config(config); !s.ok()) return s.error();
  if (config.context.device.type != DeviceType::kCpu)
    return unsupported(
        "PagedCache keeps its pages on the CPU; for CUDA, call the verbs of attention.h on pages of yours");
  for (const char* verb : {"balance", "encode", "decode", "attend"})
    if (Status s = supports(verb, config.format, DeviceType::kCpu); !s.ok()) return s.error();
  Result<HadamardPlan> plan = hadamard_plan(config.format.head_dim);
  if (!plan.ok()) return plan.error();

  auto impl = std::make_unique<Impl>();
  impl->config = config;
  impl->config.balance = {};
  impl->base = plan.value().base;
  impl->base_matrix = std::move(plan.value().base_matrix);
  impl->layers.resize(size(config.layers));
  const int signs = config.kv_heads * config.format.head_dim;
  for (int l = 0; l < config.layers; ++l) {
    Layer& layer = impl->layers[size(l)];
    const std::uint64_t seed = config.seed + 2 * static_cast<std::uint64_t>(l);
    layer.key_signs = random_signs(signs, seed);
    layer.query_signs = layer.key_signs;
    layer.value_signs = random_signs(signs, seed + 1);
    layer.balance_pending = config.balance_mode == BalanceMode::kFirstCall;
    if (config.balance_mode == BalanceMode::kGiven)
      impl->set_balance(layer, config.balance.data() + size(l) * size(signs));
  }
  if (config.capacity_tokens > 0)
    if (Status s = impl->grow_pages((config.capacity_tokens + kPageTokens - 1) / kPageTokens); !s.ok())
      return s.error();
  if (Status s = impl->grow_slots(config.max_sequences); !s.ok()) return s.error();
  return PagedCache(std::move(impl));
}

Status PagedCache::decode(int layer, int sequence, DType dtype, std::int64_t max_tokens, void* keys,
                          void* values) const {
  Impl& c = *impl_;
  const NewTokens none{sequence, 0};
  if (Status s = c.check_batch(layer, {&none, 1}); !s.ok()) return s;
  const std::int32_t token_starts[] = {0, 0};
  DecodeArgs args;
  args.pages = c.pages(layer);
  args.basis = c.basis(layer);
  args.fringe = c.fringe(layer, sequence);
  args.sequences = c.sequences(layer, {sequence, 1, 0, 0, token_starts});
  args.dtype = dtype;
  args.max_tokens = max_tokens;
  args.keys = keys;
  args.values = values;
  return turboquant::decode(args, c.config.context);
}

const CacheConfig& PagedCache::config() const {
  return impl_->config;
}
bool PagedCache::contains(int sequence) const {
  return impl_->table.contains(sequence);
}
int PagedCache::sequences() const {
  return impl_->table.sequences();
}
CacheUsage PagedCache::usage() const {
  return impl_->usage();
}
Pages PagedCache::pages(int layer) const {
  return impl_->pages(layer);
}
Basis PagedCache::basis(int layer) const {
  return impl_->basis(layer);
}

std::int64_t PagedCache::length(int sequence, int layer) const {
  if (!contains(sequence) || layer < 0 || layer >= config().layers) return 0;
  return impl_->layers[size(layer)].lengths[size(sequence)];
}

std::span<const std::int32_t> PagedCache::page_numbers(int sequence) const {
  if (!contains(sequence)) return {};
  return impl_->table.pages_of(sequence);
}

// ---- The arrays as the verbs take them.

Pages PagedCache::Impl::pages(int layer) const {
  return {config.format, config.kv_heads, table.pages(), layers[size(layer)].pool.data()};
}

Basis PagedCache::Impl::basis(int layer) const {
  const Layer& own = layers[size(layer)];
  return {own.key_signs.data(), own.query_signs.data(), own.value_signs.data(), base,
          base_matrix.empty() ? nullptr : base_matrix.data()};
}

Fringe PagedCache::Impl::fringe(int layer, int first_slot) const {
  const std::size_t bytes = fringe_slot_bytes();
  if (bytes == 0) return {};
  std::uint8_t* const data = layers[size(layer)].fringe.data() + size(first_slot) * bytes;
  return {config.fringe_first, config.fringe_recent, reinterpret_cast<std::uint16_t*>(data),
          recent_starts.data() + first_slot};
}

Sequences PagedCache::Impl::sequences(int layer, const cache::Run& run) const {
  return {run.slots,
          table.width(),
          table.row(run.first_slot),
          layers[size(layer)].lengths.data() + run.first_slot,
          nullptr,
          run.token_starts};
}

}  // namespace turboquant
