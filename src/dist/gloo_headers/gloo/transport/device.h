// SPDX-License-Identifier: BSD-3-Clause
// In place of Gloo's header of this name, which wheels of LibTorch lack: names for c10d's pointers.
#pragma once

namespace gloo::transport {

class Device;
class UnboundBuffer;

}  // namespace gloo::transport
