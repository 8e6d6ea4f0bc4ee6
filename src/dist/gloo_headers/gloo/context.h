// SPDX-License-Identifier: BSD-3-Clause
// In place of Gloo's header of this name, which wheels of LibTorch lack. Contexts are made and used
// inside LibTorch; c10d's inline functions call this one, and LibTorch defines it.
#pragma once

#include <chrono>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

}  // namespace gloo
