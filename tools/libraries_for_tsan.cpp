// SPDX-License-Identifier: BSD-3-Clause
// Tells ThreadSanitizer what it cannot see in libraries that are not instrumented. Part of
// libmoe8.so in the preset tsan only; these names are found before the libraries' own.
#include <dlfcn.h>
#include <pthread.h>

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string_view>
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

// LibTorch, Gloo above all: it takes a lock unseen (called_from_lib in tsan.txt), then waits through
// this function of libstdc++, whose calls would be seen: of a mutex that nobody locked, and that
// nobody unlocks afterwards. So its waits are not seen either.
#define MOE8_WAIT "_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE"
namespace {
bool is_in_libtorch(const void* address) {
  Dl_info info{};
  return ::dladdr(address, &info) != 0 && info.dli_fname != nullptr &&
         std::string_view(info.dli_fname).find("/libtorch") != std::string_view::npos;
}
}  // namespace
void condition_variable_wait(std::condition_variable* self,
                             std::unique_lock<std::mutex>& lock) asm(MOE8_WAIT);
void condition_variable_wait(std::condition_variable* self, std::unique_lock<std::mutex>& lock) {
  if (is_in_libtorch(__builtin_return_address(0))) {
    // libc's: the runtime's own stands before this library
    static const auto real = next<int (*)(pthread_cond_t*, pthread_mutex_t*)>("pthread_cond_wait");
    real(self->native_handle(), lock.mutex()->native_handle());
    return;
  }
  using Function = void (*)(std::condition_variable*, std::unique_lock<std::mutex>&);
  static const auto real = next<Function>(MOE8_WAIT);
  real(self, lock);
}
