// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "turboquant/status.h"

namespace turboquant {

// The scalar quantiser of least mean squared error (Lloyd-Max) for one coordinate x of a uniformly random
// unit vector of head_dim dimensions, whose density is
//   f(x) = Gamma(d/2) / (sqrt(pi) Gamma((d-1)/2)) (1 - x^2)^((d-3)/2)  on [-1, 1]:
// arcsine at d = 2, uniform at d = 3, close to N(0, 1/d) for large d. A code is the number of boundaries <=
// x.
struct Codebook {
  int head_dim;
  int bits;
  std::vector<double> centroids;   // [2^bits] ascending, symmetric: the conditional mean of each cell
  std::vector<double> boundaries;  // [2^bits - 1]: midpoints of neighbouring centroids; the middle one is 0
  double mse;                      // E ||x - Q(x)||^2 of a whole unit vector: head_dim times a coordinate's
};

// head_dim in [2, 1024], bits in [1, 8]. Over the whole support [-1, 1]; relative error below 1e-10 (about
// 1e-13).
Result<Codebook> lloyd_max(int head_dim, int bits);

}  // namespace turboquant
