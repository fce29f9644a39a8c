// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cmath>

#include "packing.h"
#include "turboquant/codebook.h"
#include "turboquant/quantizer.h"
#include "unit_coder.h"

namespace turboquant {

using FloatRow = std::array<float, kMaxRotationDim>;
using CodeRow = std::array<std::uint8_t, kMaxRotationDim>;

Result<MseQuantizer> MseQuantizer::make(const QuantizerOptions& options) {
  Result<Rotation> rotation = core::rotation_of(options);
  if (!rotation.ok()) return rotation.error();
  const Result<Codebook> book = lloyd_max(options.head_dim, options.bits);
  if (!book.ok()) return book.error();
  MseQuantizer quantizer(std::move(rotation.value()), options.bits, options.norm_correct);
  quantizer.centroids_ = core::rounded(book.value().centroids);
  quantizer.boundaries_ = core::rounded(book.value().boundaries);
  return quantizer;
}

std::size_t MseQuantizer::code_bytes() const {
  return core::packed_bytes(static_cast<std::size_t>(head_dim()), bits_);
}

Result<MseCodes> MseQuantizer::encode(std::span<const float> vectors, Executor& executor) const {
  const Result<std::size_t> count = core::count_vectors(vectors.size(), head_dim());
  if (!count.ok()) return count.error();
  const auto d = static_cast<std::size_t>(head_dim());
  MseCodes out;
  out.codes.resize(count.value() * code_bytes());
  out.norms.resize(count.value());
  core::for_each_vector(executor, count.value(), [&](std::size_t n) {
    FloatRow row;
    CodeRow codes{};
    float norm = core::normalise(vectors.data() + n * d, d, row.data());
    if (norm > 0.0f) {
      rotation_.apply(row.data(), row.data());
      double squared = 0.0;
      for (std::size_t i = 0; i < d; ++i) {
        codes[i] = core::nearest(boundaries_, row[i]);
        const auto centroid = static_cast<double>(centroids_[codes[i]]);
        squared += centroid * centroid;
      }
      if (norm_correct_) norm = core::clamped(static_cast<double>(norm) / std::sqrt(squared));
    }
    core::pack(codes.data(), d, bits_, out.codes.data() + n * code_bytes());
    out.norms[n] = norm;
  });
  return out;
}

Result<std::vector<float>> MseQuantizer::decode(const MseCodes& codes, Executor& executor) const {
  const std::size_t count = codes.norms.size();
  const Status sizes = core::check_size("codes", codes.codes.size(), count * code_bytes(), count);
  if (!sizes.ok()) return sizes.error();
  const auto d = static_cast<std::size_t>(head_dim());
  std::vector<float> vectors(count * d);
  core::for_each_vector(executor, count, [&](std::size_t n) {
    CodeRow row;
    float* out = vectors.data() + n * d;
    core::unpack(codes.codes.data() + n * code_bytes(), d, bits_, row.data());
    for (std::size_t i = 0; i < d; ++i) out[i] = centroids_[row[i]];
    rotation_.apply_inverse(out, out);
    for (std::size_t i = 0; i < d; ++i) out[i] *= codes.norms[n];
  });
  return vectors;
}

}  // namespace turboquant
