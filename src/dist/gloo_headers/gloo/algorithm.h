// SPDX-License-Identifier: BSD-3-Clause
// In place of Gloo's header of this name, which wheels of LibTorch lack: what c10d's
// ProcessGroupGloo.hpp needs of it is nothing.
#pragma once
