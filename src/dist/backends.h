// SPDX-License-Identifier: BSD-3-Clause
// c10d's transports and stores, made. Gloo is a part of LibTorch; NCCL is one of libtorch_cuda, which
// libmoe8 does not link: libmoe8_nccl.so does, and is loaded when it is asked for.
#pragma once

#include <chrono>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "moe8/parallel.h"

namespace moe8 {

using StorePtr = c10::intrusive_ptr<c10d::Store>;
using BackendPtr = c10::intrusive_ptr<c10d::Backend>;

/// How the ranks of one group meet.
struct Meeting {
  StorePtr store;
  int rank;
  int size;
  std::chrono::milliseconds timeout;
  bool in_background = false;  // what computes goes first where both want the same GPU
};

/// The store of a launch, with a prefix for this start of the job.
/// @throws c10::Error when it is not reached in time, naming who was waited for.
StorePtr connect_store(const Launch& launch, std::chrono::milliseconds timeout);

BackendPtr gloo_backend(const Meeting& meeting);

/// @throws c10::Error when this build has none, or it cannot be loaded.
BackendPtr nccl_backend(const Meeting& meeting);

/// The one function of libmoe8_nccl.so.
constexpr const char* kNcclLibrary = "libmoe8_nccl.so";
constexpr const char* kNcclFunction = "moe8_nccl_backend";
using NcclFunction = void(const Meeting& meeting, BackendPtr& made);

}  // namespace moe8
