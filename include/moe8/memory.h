// SPDX-License-Identifier: BSD-3-Clause
// What moe8 keeps between calls to save work, and what it keeps for backward to save memory.
// Neither changes a result by one bit. Settings are the process's; environment variables set their
// start values (MOE8_WEIGHT_CACHE=off|auto|on, MOE8_SAVE_ACTIVATIONS=quantized|source).
#pragma once

#include <cstdint>

namespace moe8 {

/// Whether quantized weights are used again: by backward after forward, and by later forwards
/// (microbatches, recomputation, validation) until the weight changes. A kept copy is as large as
/// the codes of both orientations: for FP8 on a GPU as many bytes as a bf16 weight.
///
/// A change is seen by the tensor's version counter, which every in-place operation of LibTorch
/// moves, foreach ones and writes through detach() and views included. The fused optimizers
/// (at::_fused_adamw_ and its kin) do not move it by themselves; once a model is converted, moe8
/// does it for them. Writes through tensors that share the memory but not the counter are not
/// counted: what data() returns (torch::optim::SGD writes so), parameters that are views of a flat
/// buffer or tied by set_data(), what set_() makes, memory from from_blob or DLPack. moe8 sees such
/// tensors while they live, also those that are older than the conversion, and it sees when data()
/// or set_data() made one that is gone again. Nobody sees a write through a raw pointer
/// (data_ptr(), a kernel of your own, a DLPack export), or through a tensor that set_() made and
/// that is gone.
///
///   OFF   never: each product quantizes its weight again.
///   AUTO  backward uses what its own forward made. Later forwards use it for converted weights
///         that are alone in their memory (no tensor with a counter of its own is over the same
///         storage, they fill it, and LibTorch allocated it) and that have been seen to change
///         visibly after a backward since they are alone, so that their optimizer is known to be
///         one whose writes are seen. Weights passed to the functions of grouped_mm.h and linear.h
///         by hand are not known to moe8 and are quantized at each call.
///   ON    for every weight, by version counter alone: you promise to call clear_weight_cache()
///         after a write that it does not see (all that are listed above).
///
/// Copies go with their weight: when it is destroyed, when set_data() gives it other memory, and
/// when dequantize_() takes its conversion back. They are never shared between streams, nor between
/// a CUDA graph's capture and what runs outside it. Weights made in InferenceMode have no version
/// counter and are never kept.
enum class WeightCache { OFF, AUTO, ON };

/// The setting, at first MOE8_WEIGHT_CACHE or AUTO. Safe to call at any time from any thread.
void set_weight_cache(WeightCache mode);
WeightCache weight_cache();

/// Forgets every quantized weight; the next use quantizes again. Safe at any time from any thread.
void clear_weight_cache();

/// What the cache did and holds.
struct WeightCacheUse {
  int64_t hits = 0;     // weights used again instead of quantized
  int64_t misses = 0;   // weights quantized, with the cache on or auto
  int64_t weights = 0;  // kept now
  int64_t bytes = 0;    // of the kept forms, on all devices
};
/// Counts since the process began, and what is kept now.
WeightCacheUse weight_cache_use();

/// Whether a product saves the quantized input that its weight gradient needs, instead of the
/// input, wherever that takes no more bytes (FP8 codes: half of bf16). Default true.
/// One input of several layers (w1 and w3 of an expert) is then kept once per layer.
/// false: the inputs are saved and quantized in backward.
void set_save_quantized_activations(bool quantized);
bool save_quantized_activations();

}  // namespace moe8
