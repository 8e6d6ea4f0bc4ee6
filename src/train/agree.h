// SPDX-License-Identifier: BSD-3-Clause
// Ranks that go on together or fail together, with one error. In a group of one everything is a
// plain call.
#pragma once

#include <c10/util/Exception.h>

#include <functional>
#include <string>
#include <vector>

#include "moe8/parallel.h"

namespace moe8 {

/// An error that every rank of a group throws, so that it is enough if the first prints it.
class SharedError : public c10::Error {
 public:
  explicit SharedError(const std::string& message) : c10::Error(message, /*backtrace=*/nullptr) {}
};

/// Does some work on every rank, and waits until all are done.
/// @throws SharedError on every rank when one failed: the error of the first of them, after
/// "rank N: " where that is not the first rank. A group of one throws what the work threw.
void agree(const Group& ranks, const std::function<void()>& work);

/// The same with a text from every rank, in their order.
std::vector<std::string> gather(const Group& ranks, const std::function<std::string()>& work);

/// The same where the first rank alone has something to do, and tells the others.
std::string tell_all(const Group& ranks, const std::function<std::string()>& work);

}  // namespace moe8
