// SPDX-License-Identifier: BSD-3-Clause
// Tells ThreadSanitizer what it cannot see in libraries that are not instrumented. Part of
// libmoe8.so in the preset tsan only; these names are found before the libraries' own.
#include <dlfcn.h>

#include <functional>
#include <utility>

// NOLINTNEXTLINE(bugprone-reserved-identifier): a name of the runtime
extern "C" void __tsan_acquire(void* address);
// NOLINTNEXTLINE(bugprone-reserved-identifier): a name of the runtime
extern "C" void __tsan_release(void* address);

namespace {

// The library's own function of that name.
template <typename Function>
Function next(const char* name) {
  // NOLINTNEXTLINE(performance-no-int-to-ptr): RTLD_NEXT is dlsym's own constant
  return reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
}

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

// GNU OpenMP: threads of a parallel region begin after its caller reached it, and end before its
// caller goes on. Without this, every result of a parallel region is reported as a race.
extern "C" void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags) {
  using Function = void (*)(void (*)(void*), void*, unsigned, unsigned);
  static const auto real = next<Function>("GOMP_parallel");
  Region region{body, data};
  __tsan_release(&region);
  real(run_region, &region, threads, flags);
  __tsan_acquire(&region);
}

// LibTorch: this function's last instruction jumps to the unlock of a mutex that it locked, which
// then looks like its caller's. So it has a caller of its name, which tsan.txt knows.
#define MOE8_QUEUE_CALLBACK "_ZN5torch8autograd6Engine14queue_callbackESt8functionIFvvEE"
namespace torch::autograd {
void queue_callback(void* engine, std::function<void()> callback) asm(MOE8_QUEUE_CALLBACK);
void queue_callback(void* engine, std::function<void()> callback) {
  using Function = void (*)(void*, std::function<void()>);
  static const auto real = next<Function>(MOE8_QUEUE_CALLBACK);
  real(engine, std::move(callback));
}
}  // namespace torch::autograd
