// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/half.h"
#include "core/layout.h"
#include "core/tables.h"
#include "kernels/kernels.h"
#include "kernels/vectors.h"

// The definition of every verb: slow, in double (encode, key_metric: in the fp16, fp32 and integers that
// define bytes), read first.
namespace turboquant::kernels::reference {

void rotate(const RotateArgs& args, Executor& executor);
void key_metric(const KeyMetricArgs& args);
void encode(const EncodeArgs& args, Executor& executor);
void decode(const DecodeArgs& args, Executor& executor);
void attend(const AttendArgs& args, Executor& executor);

// What a code stands for, in steps: sign times magnitude (halves at 4-bit values).
inline float signed_steps(const core::CodeTable& table, int code) {
  const int magnitude = table.magnitudes[code & (table.magnitude_count - 1)];
  const int steps = (code & table.magnitude_count) != 0 ? -magnitude : magnitude;
  return static_cast<float>(steps) / static_cast<float>(table.half_steps);
}

// The centre of a page as the keys see it: step * int8, exact in fp32.
inline void load_centre(const std::uint8_t* page, const PageFormat& format, float* out /* [head_dim] */) {
  const float step = core::half_to_float(half_at(page + format.centre_step_offset(), 0));
  const auto* row = reinterpret_cast<const std::int8_t*>(page + format.centre_offset());
  for (int e = 0; e < format.head_dim; ++e) out[e] = step * static_cast<float>(row[e]);
}

// Position p of a sequence in the rotated domain, [head_dim] each: from the fringe where it holds p, else
// from its page.
struct History {
  const Pages& pages;
  const Fringe& fringe;
  const Sequences& sequences;

  void key(int i, int h, std::int64_t p, double* out) const;
  void value(int i, int h, std::int64_t p, double* out) const;

 private:
  const std::uint16_t* fringe_vector(int i, int h, std::int64_t p, int which) const;  // null: not held
};

}  // namespace turboquant::kernels::reference
