// SPDX-License-Identifier: BSD-3-Clause
// Finds libmoe8_nccl.so beside the library that holds this code.
#include <dlfcn.h>

#include "base/check.h"
#include "device/cuda_backend.h"
#include "dist/backends.h"

namespace moe8 {
namespace {

constexpr const char* kLoader = "parallel";

// With its slash; empty where the loader does not know.
std::string own_folder() {
  Dl_info info{};
  if (dladdr(reinterpret_cast<const void*>(&nccl_backend), &info) == 0 || !info.dli_fname)
    return "";
  const std::string path = info.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash + 1);
}

NcclFunction* load() {
  if (const auto failure = load_cuda_backend()) {
    fail(kLoader, "device", concat("expected a GPU for NCCL, got: ", *failure));
  }
  const std::string path = own_folder() + kNcclLibrary;
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  MOE8_CHECK(library, kLoader, "device", "expected ", kNcclLibrary,
             " for processes with GPUs, got: ", dlerror(),
             ". A build with MOE8_CUDA makes it where NCCL's header is found");
  void* const function = dlsym(library, kNcclFunction);
  MOE8_CHECK(function, kLoader, "device", "expected ", kNcclFunction, " in ", path,
             ", got: ", dlerror());
  return reinterpret_cast<NcclFunction*>(function);
}

}  // namespace

BackendPtr nccl_backend(const Meeting& meeting) {
  static NcclFunction* const make = load();
  BackendPtr made;
  make(meeting, made);
  return made;
}

}  // namespace moe8
