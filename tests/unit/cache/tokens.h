// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/random.h"
#include "turboquant/cache.h"

namespace turboquant::testing {

// Random tokens of a call, fp32: what a model would hand to its cache.
struct Tokens {
  std::int64_t count;
  int q_heads, kv_heads, head_dim;
  std::vector<float> query, keys, values, out;

  Tokens(std::int64_t n, const CacheConfig& c, std::uint64_t seed)
      : count(n), q_heads(c.q_heads), kv_heads(c.kv_heads), head_dim(c.format.head_dim) {
    core::Gaussian gaussian(seed);
    const auto fill = [&](std::vector<float>& x, int heads) {
      x.resize(static_cast<std::size_t>(n * heads * head_dim));
      for (float& value : x) value = static_cast<float>(gaussian.next());
    };
    fill(query, q_heads);
    fill(keys, kv_heads);
    fill(values, kv_heads);
    out.assign(query.size(), 0.0f);
  }

  BatchRows rows() const {
    return {contiguous(query.data(), q_heads, head_dim), contiguous(keys.data(), kv_heads, head_dim),
            contiguous(values.data(), kv_heads, head_dim)};
  }
  MutableRows out_rows() { return contiguous_out(out.data(), q_heads, head_dim); }
};

// What the cache gives back of a sequence.
struct Decoded {
  std::vector<float> keys, values;  // [kv_heads, length, head_dim]
  friend bool operator==(const Decoded&, const Decoded&) = default;
};

inline Decoded decoded(const PagedCache& cache, int layer, int sequence) {
  const std::int64_t length = cache.length(sequence, layer);
  const CacheConfig& c = cache.config();
  Decoded d;
  d.keys.resize(static_cast<std::size_t>(c.kv_heads * length * c.format.head_dim));
  d.values.resize(d.keys.size());
  const Status status = cache.decode(layer, sequence, DType::kF32, length, d.keys.data(), d.values.data());
  if (!status.ok()) d.keys.clear();
  return d;
}

}  // namespace turboquant::testing
