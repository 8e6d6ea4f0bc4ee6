// SPDX-License-Identifier: BSD-3-Clause
// Tells ThreadSanitizer what it cannot see in GNU OpenMP's uninstrumented runtime: threads of a
// parallel region begin after its caller reached it, and end before its caller goes on. Without
// this, every result of a parallel region is reported as a race. Part of libmoe8.so in the preset
// tsan only.
#include <dlfcn.h>

// NOLINTNEXTLINE(bugprone-reserved-identifier): a name of the runtime
extern "C" void __tsan_acquire(void* address);
// NOLINTNEXTLINE(bugprone-reserved-identifier): a name of the runtime
extern "C" void __tsan_release(void* address);

namespace {

struct Region {
  void (*body)(void*);
  void* data;
};

void run_region(void* pointer) {
  auto* region = static_cast<Region*>(pointer);
  __tsan_acquire(region);
  region->body(region->data);
  __tsan_release(region);
}

}  // namespace

// Found before libgomp's own, by LibTorch's calls too.
extern "C" void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags) {
  using Function = void (*)(void (*)(void*), void*, unsigned, unsigned);
  // NOLINTNEXTLINE(performance-no-int-to-ptr): RTLD_NEXT is dlsym's own constant
  static const auto real = reinterpret_cast<Function>(::dlsym(RTLD_NEXT, "GOMP_parallel"));
  Region region{body, data};
  __tsan_release(&region);
  real(run_region, &region, threads, flags);
  __tsan_acquire(&region);
}
