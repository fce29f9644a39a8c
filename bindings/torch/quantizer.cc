// SPDX-License-Identifier: Apache-2.0
// The paper's two algorithms (turboquant/quantizer.h) and their codebooks, on vectors [n, dim] of float32.
#include "turboquant/quantizer.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "call.h"
#include "check.h"
#include "turboquant/codebook.h"

namespace turboquant::ops {
namespace {

// A quantizer is d^2 numbers with a dense matrix, and seconds to make at d = 1024: made once for its
// options, kept until kMany others were asked for.
template <class Quantizer>
std::shared_ptr<const Quantizer> cached(const QuantizerOptions& o) {
  constexpr std::size_t kMany = 32;
  using Key = std::tuple<int, int, RotationKind, std::uint64_t, bool>;
  static std::mutex mutex;
  static std::map<Key, std::shared_ptr<const Quantizer>> made;
  const std::lock_guard lock(mutex);
  const Key key{o.head_dim, o.bits, o.rotation, o.seed, o.norm_correct};
  if (const auto found = made.find(key); found != made.end()) return found->second;
  auto quantizer = std::make_shared<const Quantizer>(take(Quantizer::make(o)));
  if (made.size() >= kMany) made.clear();
  made.emplace(key, quantizer);
  return quantizer;
}

Executor& executor() {
  return *context_of(0).executor;
}

QuantizerOptions options(std::int64_t dim, std::int64_t bits, std::int64_t seed, bool haar,
                         bool norm_correct) {
  return {.head_dim = narrow("dim", dim),
          .bits = narrow("bits", bits),
          .rotation = haar ? RotationKind::kHaar : RotationKind::kHadamard,
          .seed = static_cast<std::uint64_t>(seed),
          .norm_correct = norm_correct};
}

constexpr ScalarType type_of(float) {
  return ScalarType::Float;
}
constexpr ScalarType type_of(double) {
  return ScalarType::Double;
}
constexpr ScalarType type_of(std::uint8_t) {
  return ScalarType::Byte;
}

template <class T>
Tensor tensor(const std::vector<T>& values, torch::headeronly::IntHeaderOnlyArrayRef shape) {
  Tensor out = torch::stable::empty(shape, type_of(T{}), std::nullopt,
                                    torch::stable::Device(torch::headeronly::DeviceType::CPU));
  std::copy(values.begin(), values.end(), static_cast<T*>(out.mutable_data_ptr()));
  return out;
}

template <class T>
std::vector<T> values(const Argument& argument, std::initializer_list<Dim> shape) {
  const T* begin = static_cast<const T*>(data(argument, type_of(T{}), shape));
  return std::vector<T>(begin, begin + argument.tensor.numel());
}

std::span<const float> vectors(const Argument& argument, const Dim& dim) {
  return {floats(argument, {{"n"}, dim}), static_cast<std::size_t>(argument.tensor.numel())};
}

std::int64_t dim_of(const Argument& argument) {
  argument.shaped({{"n"}, {"dim"}});
  return argument.tensor.size(1);
}

std::tuple<Tensor, Tensor, Tensor> lloyd_max(std::int64_t dim, std::int64_t bits) {
  const Codebook book = take(turboquant::lloyd_max(narrow("dim", dim), narrow("bits", bits)));
  return {tensor(book.centroids, {static_cast<std::int64_t>(book.centroids.size())}),
          tensor(book.boundaries, {static_cast<std::int64_t>(book.boundaries.size())}),
          tensor(std::vector<double>{book.mse}, {})};
}

std::tuple<Tensor, Tensor> mse_quantize(const Tensor& x, std::int64_t bits, std::int64_t seed, bool haar,
                                        bool norm_correct) {
  const std::int64_t dim = dim_of({"x", x}), n = x.size(0);
  const std::span<const float> in = vectors({"x", x}, {"dim"});
  const auto quantizer = cached<MseQuantizer>(options(dim, bits, seed, haar, norm_correct));
  const MseCodes codes = take(quantizer->encode(in, executor()));
  return {tensor(codes.codes, {n, static_cast<std::int64_t>(quantizer->code_bytes())}),
          tensor(codes.norms, {n})};
}

Tensor mse_dequantize(const Tensor& codes, const Tensor& norms, std::int64_t dim, std::int64_t bits,
                      std::int64_t seed, bool haar, bool norm_correct) {
  const auto quantizer = cached<MseQuantizer>(options(dim, bits, seed, haar, norm_correct));
  const Dim packed{"bytes", static_cast<std::int64_t>(quantizer->code_bytes())};
  MseCodes in;
  in.codes = values<std::uint8_t>({"codes", codes}, {{"n"}, packed});
  in.norms = values<float>({"norms", norms}, {{"n", codes.size(0)}});
  return tensor(take(quantizer->decode(in, executor())), {codes.size(0), dim});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> prod_quantize(const Tensor& x, std::int64_t bits,
                                                         std::int64_t seed, bool haar) {
  const std::int64_t dim = dim_of({"x", x}), n = x.size(0);
  const std::span<const float> in = vectors({"x", x}, {"dim"});
  const auto quantizer = cached<ProdQuantizer>(options(dim, bits, seed, haar, false));
  const ProdCodes codes = take(quantizer->encode(in, executor()));
  return {tensor(codes.codes, {n, static_cast<std::int64_t>(quantizer->code_bytes())}),
          tensor(codes.signs, {n, static_cast<std::int64_t>(quantizer->sign_bytes())}),
          tensor(codes.norms, {n}), tensor(codes.residual_norms, {n})};
}

ProdCodes prod_codes(const ProdQuantizer& quantizer, const Tensor& codes, const Tensor& signs,
                     const Tensor& norms, const Tensor& residual_norms) {
  const Dim packed{"bytes", static_cast<std::int64_t>(quantizer.code_bytes())};
  const Dim packed_signs{"bytes", static_cast<std::int64_t>(quantizer.sign_bytes())};
  ProdCodes in;
  in.codes = values<std::uint8_t>({"codes", codes}, {{"n"}, packed});
  in.signs = values<std::uint8_t>({"signs", signs}, {{"n", codes.size(0)}, packed_signs});
  in.norms = values<float>({"norms", norms}, {{"n", codes.size(0)}});
  in.residual_norms = values<float>({"residual_norms", residual_norms}, {{"n", codes.size(0)}});
  return in;
}

Tensor prod_dequantize(const Tensor& codes, const Tensor& signs, const Tensor& norms,
                       const Tensor& residual_norms, std::int64_t dim, std::int64_t bits, std::int64_t seed,
                       bool haar) {
  const auto quantizer = cached<ProdQuantizer>(options(dim, bits, seed, haar, false));
  const ProdCodes in = prod_codes(*quantizer, codes, signs, norms, residual_norms);
  return tensor(take(quantizer->decode(in, executor())), {codes.size(0), dim});
}

Tensor prod_inner_product(const Tensor& queries, const Tensor& codes, const Tensor& signs,
                          const Tensor& norms, const Tensor& residual_norms, std::int64_t bits,
                          std::int64_t seed, bool haar) {
  const std::int64_t dim = dim_of({"queries", queries});
  const std::span<const float> in = vectors({"queries", queries}, {"dim"});
  const auto quantizer = cached<ProdQuantizer>(options(dim, bits, seed, haar, false));
  const ProdCodes stored = prod_codes(*quantizer, codes, signs, norms, residual_norms);
  const auto d = static_cast<std::size_t>(dim);
  std::vector<float> estimates;
  for (std::size_t at = 0; at < in.size(); at += d) {
    const auto row = take(quantizer->inner_product(in.subspan(at, d), stored, executor()));
    estimates.insert(estimates.end(), row.begin(), row.end());
  }
  return tensor(estimates, {queries.size(0), codes.size(0)});
}

}  // namespace
}  // namespace turboquant::ops

STABLE_TORCH_LIBRARY_IMPL(turboquant, CompositeExplicitAutograd, m) {
  m.impl("lloyd_max", TORCH_BOX(&turboquant::ops::lloyd_max));
}
STABLE_TORCH_LIBRARY_IMPL(turboquant, CPU, m) {
  m.impl("mse_quantize", TORCH_BOX(&turboquant::ops::mse_quantize));
  m.impl("mse_dequantize", TORCH_BOX(&turboquant::ops::mse_dequantize));
  m.impl("prod_quantize", TORCH_BOX(&turboquant::ops::prod_quantize));
  m.impl("prod_dequantize", TORCH_BOX(&turboquant::ops::prod_dequantize));
  m.impl("prod_inner_product", TORCH_BOX(&turboquant::ops::prod_inner_product));
}
