// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "turboquant/attention.h"
#include "turboquant/cache.h"
#include "turboquant/codebook.h"
#include "turboquant/device.h"
#include "turboquant/format.h"
#include "turboquant/quantizer.h"
#include "turboquant/rotation.h"
#include "turboquant/status.h"
#include "turboquant/version.h"
