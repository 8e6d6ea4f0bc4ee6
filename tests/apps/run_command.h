// SPDX-License-Identifier: BSD-3-Clause
// The built command moe8 as a child process.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

namespace moe8::testing {

struct Ran {
  int status = -1;  // exit status; 128 + n after signal n
  std::string out;
  std::string err;
};

std::string moe8_path();

/// A moe8 that runs beside the test. It is killed when the test does not wait for it.
class Moe8Process {
 public:
  /// @param environment  "NAME=VALUE" on top of this process's.
  explicit Moe8Process(const std::vector<std::string>& arguments,
                       const std::vector<std::string>& environment = {});
  ~Moe8Process();
  Moe8Process(const Moe8Process&) = delete;
  Moe8Process& operator=(const Moe8Process&) = delete;

  pid_t id() const { return child_; }
  bool runs();
  void signal(int number) const;
  Ran wait();

 private:
  struct Output;  // files, not pipes: a child that prints much cannot block
  std::unique_ptr<Output> output_;
  pid_t child_ = -1;
  int status_ = 0;
  bool ended_ = false;
};

/// Starts it and waits for its end.
Ran run_moe8(const std::vector<std::string>& arguments,
             const std::vector<std::string>& environment = {});

}  // namespace moe8::testing
