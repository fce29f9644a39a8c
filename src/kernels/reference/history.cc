// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "kernels/encode_rules.h"
#include "kernels/reference/reference.h"

namespace turboquant::kernels::reference {

const std::uint16_t* History::fringe_vector(int i, int h, std::int64_t p, int which) const {
  if (fringe.data == nullptr) return nullptr;
  const FringeView view = fringe_view(fringe, sequences, i);
  if (!view.holds(p)) return nullptr;
  return fringe_vectors(fringe, pages, i, h, view.slot(p)) + which * pages.format.head_dim;
}

void History::key(int i, int h, std::int64_t p, double* out) const {
  const PageFormat& format = pages.format;
  const int d = format.head_dim;
  if (const std::uint16_t* exact = fringe_vector(i, h, p, 0)) {
    for (int e = 0; e < d; ++e) out[e] = static_cast<double>(core::half_to_float(exact[e]));
    return;
  }
  const std::uint8_t* page = page_of(pages, sequences, i, static_cast<int>(p / kPageTokens), h);
  const int t = static_cast<int>(p % kPageTokens);
  const std::uint16_t stored = half_at(page + format.k_scales_offset(), core::scale_index(t));
  const double step =
      static_cast<double>(core::half_to_float(stored & 0x7fffu)) / static_cast<double>(core::kScaleUnit);
  float centre[kMaxPageHeadDim];
  load_centre(page, format, centre);
  for (int e = 0; e < d; ++e) {
    const int code = core::read_code(page, core::key_position, d, format.k_bits, t, e);
    const double reference = (stored & kReferenceIsZero) != 0 ? 0.0 : static_cast<double>(centre[e]);
    out[e] = reference + step * static_cast<double>(signed_steps(core::key_table(format.k_bits), code));
  }
}

void History::value(int i, int h, std::int64_t p, double* out) const {
  const PageFormat& format = pages.format;
  const int d = format.head_dim;
  if (const std::uint16_t* exact = fringe_vector(i, h, p, 1)) {
    for (int e = 0; e < d; ++e) out[e] = static_cast<double>(core::half_to_float(exact[e]));
    return;
  }
  const std::uint8_t* page = page_of(pages, sequences, i, static_cast<int>(p / kPageTokens), h);
  const int t = static_cast<int>(p % kPageTokens);
  const std::uint16_t stored = half_at(page + format.v_scales_offset(), core::scale_index(t));
  const double step =
      static_cast<double>(core::half_to_float(stored)) / static_cast<double>(core::kScaleUnit);
  for (int e = 0; e < d; ++e) {
    const int code =
        core::read_code(page + format.v_codes_offset(), core::value_position, d, format.v_bits, t, e);
    out[e] = step * static_cast<double>(signed_steps(core::value_table(format.v_bits), code));
  }
}

}  // namespace turboquant::kernels::reference
