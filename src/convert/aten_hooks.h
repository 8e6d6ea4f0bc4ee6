// SPDX-License-Identifier: BSD-3-Clause
// The hooks into LibTorch's dispatcher by which products with a converted weight become ours.
#pragma once

namespace moe8 {

/// Installs the hooks unless they are in place. Rewrites dispatch tables: not to be called while
/// another thread runs ATen operations. quantize_ calls it when the first weight is converted; no
/// static initializer does.
/// @throws c10::Error, and leaves LibTorch as it was, when this LibTorch does not behave as hooked.
void install_aten_hooks();

bool aten_hooks_installed();

/// For tests: LibTorch's own kernels run while this lives; then the hooks are as they were before.
class WithoutAtenHooks {
 public:
  WithoutAtenHooks();
  ~WithoutAtenHooks();
  WithoutAtenHooks(const WithoutAtenHooks&) = delete;
  WithoutAtenHooks& operator=(const WithoutAtenHooks&) = delete;

 private:
  bool were_installed_;
};

}  // namespace moe8
