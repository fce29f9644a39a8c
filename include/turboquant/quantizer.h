// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "turboquant/device.h"
#include "turboquant/rotation.h"
#include "turboquant/status.h"

// The two algorithms of the paper (arXiv 2504.19874) on plain vectors. A cache uses pages (format.h), which
// hold the first one's codes with centres and shorter scales; these classes are the paper's own, for research
// and comparison.
//
// What both do with unusual vectors: zero decodes to zero exactly; a NaN or an infinity makes its own vector
// decode to NaN and touches no other; a norm above the largest fp32 is clamped to it.
namespace turboquant {

enum class RotationKind : std::uint8_t {
  kHadamard,  // fast; the head_dims of hadamard_plan
  kHaar,      // dense, as in the paper; any head_dim from 2 to 1024
};

struct QuantizerOptions {
  int head_dim = 128;
  int bits = 4;  // 1 to 8
  RotationKind rotation = RotationKind::kHadamard;
  std::uint64_t seed = 0;
  bool norm_correct = false;  // MseQuantizer only: decoded vectors get exactly the norm of the originals
};

// n vectors: codes packed at `bits` each, code 0 in the lowest bits of a vector's first byte, padded to whole
// bytes.
struct MseCodes {
  std::vector<std::uint8_t> codes;  // [n, ceil(bits * head_dim / 8)]
  std::vector<float> norms;         // [n]: |x|, or |x| / |centroids of its codes| with norm_correct
};

// Algorithm 1: rotate x / |x|, code each coordinate by the nearest Lloyd-Max centroid, keep |x|.
// E |x - decoded|^2 = |x|^2 times the codebook's mse.
class MseQuantizer {
 public:
  static Result<MseQuantizer> make(const QuantizerOptions& options);

  int head_dim() const { return rotation_.head_dim(); }
  int bits() const { return bits_; }
  std::size_t code_bytes() const;  // of one vector

  // [n, head_dim] -> n vectors' codes, and back: norm times the centroids rotated back.
  Result<MseCodes> encode(std::span<const float> vectors, Executor& executor = default_executor()) const;
  Result<std::vector<float>> decode(const MseCodes& codes, Executor& executor = default_executor()) const;

 private:
  MseQuantizer(Rotation rotation, int bits, bool norm_correct)
      : rotation_(std::move(rotation)), bits_(bits), norm_correct_(norm_correct) {}

  Rotation rotation_;
  int bits_;
  bool norm_correct_;
  std::vector<float> centroids_, boundaries_;
};

// n vectors: bits - 1 of each coordinate's code, one sign of its projection; both packed like
// MseCodes::codes.
struct ProdCodes {
  std::vector<std::uint8_t> codes;    // [n, ceil((bits - 1) * head_dim / 8)]; empty at 1 bit
  std::vector<std::uint8_t> signs;    // [n, ceil(head_dim / 8)]: a set bit is a negative projection
  std::vector<float> norms;           // [n]: |x|
  std::vector<float> residual_norms;  // [n]: gamma, of the residual of x / |x|
};

// Algorithm 2: codes c of bits - 1 as above, then the signs z of S r, r = rotated x / |x| - c, S a fixed
// Gaussian [head_dim, head_dim]. The estimate |x| (c + sqrt(pi / 2) / head_dim gamma S^T z) is unbiased over
// S, but for random unit x and y head_dim E[error of <x, y>]^2 = (pi / 2 - 1 / head_dim) mse(bits - 1): more
// than MseQuantizer's. S acts in the rotated space, where the paper's acts before the rotation: the same law,
// one rotation less.
class ProdQuantizer {
 public:
  static Result<ProdQuantizer> make(const QuantizerOptions& options);

  int head_dim() const { return rotation_.head_dim(); }
  int bits() const { return bits_; }
  std::size_t code_bytes() const;  // of one vector, without its signs
  std::size_t sign_bytes() const;

  Result<ProdCodes> encode(std::span<const float> vectors, Executor& executor = default_executor()) const;
  Result<std::vector<float>> decode(const ProdCodes& codes, Executor& executor = default_executor()) const;
  // Unbiased estimates [n] of <query, x>, query [head_dim], without decoding: a projection, then n times
  // O(head_dim).
  Result<std::vector<float>> inner_product(std::span<const float> query, const ProdCodes& codes,
                                           Executor& executor = default_executor()) const;

 private:
  ProdQuantizer(Rotation rotation, int bits) : rotation_(std::move(rotation)), bits_(bits) {}

  Status check(const ProdCodes& codes) const;

  Rotation rotation_;
  int bits_;
  std::vector<float> centroids_, boundaries_;  // at 1 bit: {0} and {}
  std::vector<float> projection_;              // S, [head_dim, head_dim]
};

}  // namespace turboquant
