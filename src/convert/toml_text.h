// SPDX-License-Identifier: BSD-3-Clause
// What a TOML text must look like before toml++ 3.3 may see it. That version asks of characters
// beyond ASCII whether they are whitespace, and its answer for most letters is undefined behaviour.
// It asks outside strings and comments, where TOML allows none of them, and after a backslash in a
// multi-line string, where it does.
#pragma once

#include <string>

namespace moe8 {

/// The same document, written so that toml++ never asks: a character beyond ASCII that follows a
/// line-ending backslash becomes an escape sequence. Lines keep their numbers. Whatever else is
/// wrong with the text is left for toml++ to say.
/// @throws c10::Error when a character beyond ASCII stands outside strings and comments, or right
/// after a backslash; the message names file and line. A byte order mark at the start is allowed.
std::string toml_text(const char* op, const std::string& text, const std::string& source);

}  // namespace moe8
