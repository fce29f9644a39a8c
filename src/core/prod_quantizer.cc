// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cmath>
#include <numbers>
#include <string>

#include "packing.h"
#include "random.h"
#include "turboquant/codebook.h"
#include "turboquant/quantizer.h"
#include "unit_coder.h"

namespace turboquant {
namespace {

using FloatRow = std::array<float, kMaxRotationDim>;
using CodeRow = std::array<std::uint8_t, kMaxRotationDim>;

// S is drawn from its own stream: the same seed with these bits flipped.
constexpr std::uint64_t kProjectionStream = 0x5851F42D4C957F2Du;

// out = S x, sums in double.
void project(const std::vector<float>& matrix, const float* x, std::size_t d, float* out) {
  for (std::size_t i = 0; i < d; ++i) {
    double sum = 0.0;
    for (std::size_t j = 0; j < d; ++j)
      sum += static_cast<double>(matrix[i * d + j]) * static_cast<double>(x[j]);
    out[i] = static_cast<float>(sum);
  }
}

// The factor of S^T z, and of <S q, z>.
double projection_scale(std::size_t d, float residual_norm) {
  return std::sqrt(0.5 * std::numbers::pi) / static_cast<double>(d) * static_cast<double>(residual_norm);
}

}  // namespace

Result<ProdQuantizer> ProdQuantizer::make(const QuantizerOptions& options) {
  Result<Rotation> rotation = core::rotation_of(options);
  if (!rotation.ok()) return rotation.error();
  if (options.norm_correct) return invalid("norm_correct=true would bias the estimates; use false");
  ProdQuantizer quantizer(std::move(rotation.value()), options.bits);
  quantizer.centroids_ = {0.0f};
  if (options.bits > 1) {
    const Result<Codebook> book = lloyd_max(options.head_dim, options.bits - 1);
    if (!book.ok()) return book.error();
    quantizer.centroids_ = core::rounded(book.value().centroids);
    quantizer.boundaries_ = core::rounded(book.value().boundaries);
  }
  core::Gaussian gaussian(options.seed ^ kProjectionStream);
  const auto d = static_cast<std::size_t>(options.head_dim);
  quantizer.projection_.resize(d * d);
  for (float& entry : quantizer.projection_) entry = static_cast<float>(gaussian.next());
  return quantizer;
}

std::size_t ProdQuantizer::code_bytes() const {
  return core::packed_bytes(static_cast<std::size_t>(head_dim()), bits_ - 1);
}

std::size_t ProdQuantizer::sign_bytes() const {
  return core::packed_bytes(static_cast<std::size_t>(head_dim()), 1);
}

Status ProdQuantizer::check(const ProdCodes& codes) const {
  const std::size_t n = codes.norms.size();
  if (Status s = core::check_size("codes", codes.codes.size(), n * code_bytes(), n); !s.ok()) return s;
  if (Status s = core::check_size("signs", codes.signs.size(), n * sign_bytes(), n); !s.ok()) return s;
  return core::check_size("residual_norms", codes.residual_norms.size(), n, n);
}

Result<ProdCodes> ProdQuantizer::encode(std::span<const float> vectors, Executor& executor) const {
  const Result<std::size_t> count = core::count_vectors(vectors.size(), head_dim());
  if (!count.ok()) return count.error();
  const auto d = static_cast<std::size_t>(head_dim());
  ProdCodes out;
  out.codes.resize(count.value() * code_bytes());
  out.signs.resize(count.value() * sign_bytes());
  out.norms.resize(count.value());
  out.residual_norms.resize(count.value());
  core::for_each_vector(executor, count.value(), [&](std::size_t n) {
    FloatRow row, projected;
    CodeRow codes{}, signs{};
    out.norms[n] = core::normalise(vectors.data() + n * d, d, row.data());
    if (out.norms[n] > 0.0f) {
      rotation_.apply(row.data(), row.data());
      double squared = 0.0;
      for (std::size_t i = 0; i < d; ++i) {
        codes[i] = core::nearest(boundaries_, row[i]);
        row[i] -= centroids_[codes[i]];
        squared += static_cast<double>(row[i]) * static_cast<double>(row[i]);
      }
      out.residual_norms[n] = static_cast<float>(std::sqrt(squared));
      project(projection_, row.data(), d, projected.data());
      for (std::size_t i = 0; i < d; ++i) signs[i] = projected[i] < 0.0f ? 1 : 0;
    }
    core::pack(codes.data(), d, bits_ - 1, out.codes.data() + n * code_bytes());
    core::pack(signs.data(), d, 1, out.signs.data() + n * sign_bytes());
  });
  return out;
}

Result<std::vector<float>> ProdQuantizer::decode(const ProdCodes& codes, Executor& executor) const {
  if (const Status status = check(codes); !status.ok()) return status.error();
  const std::size_t count = codes.norms.size();
  const auto d = static_cast<std::size_t>(head_dim());
  std::vector<float> vectors(count * d);
  core::for_each_vector(executor, count, [&](std::size_t n) {
    CodeRow row, signs;
    std::array<double, kMaxRotationDim> sums{};
    float* out = vectors.data() + n * d;
    core::unpack(codes.codes.data() + n * code_bytes(), d, bits_ - 1, row.data());
    core::unpack(codes.signs.data() + n * sign_bytes(), d, 1, signs.data());
    for (std::size_t i = 0; i < d; ++i) {
      const double sign = signs[i] != 0 ? -1.0 : 1.0;
      for (std::size_t j = 0; j < d; ++j) sums[j] += sign * static_cast<double>(projection_[i * d + j]);
    }
    const double scale = projection_scale(d, codes.residual_norms[n]);
    for (std::size_t i = 0; i < d; ++i) {
      out[i] = static_cast<float>(static_cast<double>(centroids_[row[i]]) + scale * sums[i]);
    }
    rotation_.apply_inverse(out, out);
    for (std::size_t i = 0; i < d; ++i) out[i] *= codes.norms[n];
  });
  return vectors;
}

Result<std::vector<float>> ProdQuantizer::inner_product(std::span<const float> query, const ProdCodes& codes,
                                                        Executor& executor) const {
  const auto d = static_cast<std::size_t>(head_dim());
  if (query.size() != d) {
    return invalid("query has " + std::to_string(query.size()) +
                   " elements; give it head_dim=" + std::to_string(d));
  }
  if (const Status status = check(codes); !status.ok()) return status.error();
  FloatRow rotated, projected;
  rotation_.apply(query.data(), rotated.data());
  project(projection_, rotated.data(), d, projected.data());
  std::vector<float> estimates(codes.norms.size());
  core::for_each_vector(executor, estimates.size(), [&](std::size_t n) {
    CodeRow row, signs;
    core::unpack(codes.codes.data() + n * code_bytes(), d, bits_ - 1, row.data());
    core::unpack(codes.signs.data() + n * sign_bytes(), d, 1, signs.data());
    double coarse = 0.0, residual = 0.0;
    for (std::size_t i = 0; i < d; ++i) {
      coarse += static_cast<double>(rotated[i]) * static_cast<double>(centroids_[row[i]]);
      residual += static_cast<double>(signs[i] != 0 ? -projected[i] : projected[i]);
    }
    const double estimate = coarse + projection_scale(d, codes.residual_norms[n]) * residual;
    estimates[n] = static_cast<float>(static_cast<double>(codes.norms[n]) * estimate);
  });
  return estimates;
}

}  // namespace turboquant
