// SPDX-License-Identifier: BSD-3-Clause
// Everything of moe8 but the trainer's model (moe.h): configs, operations, quantizers, quantize_().
#pragma once

#include "moe8/blocked_scales.h"
#include "moe8/config.h"
#include "moe8/conversion_file.h"
#include "moe8/experts.h"
#include "moe8/float8.h"
#include "moe8/grouped_mm.h"
#include "moe8/linear.h"
#include "moe8/memory.h"
#include "moe8/model_ops.h"
#include "moe8/mx.h"
#include "moe8/numerics.h"
#include "moe8/quantize_model.h"
#include "moe8/routing.h"
#include "moe8/safetensors.h"
#include "moe8/version.h"
