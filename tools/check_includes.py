#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Standard headers are included where they are used, and only there.

A header must include the standard header of every name of the table below that it uses, so that it does
not depend on who includes it; no file may include one of the table's headers without using it. Deliberately
a table of plain words: enough to find what compiles by chance, at no cost.

  check_includes.py [FILE...]       without files: all that git knows
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# header: names after std:: that it alone should provide, as alternatives of a regular expression
NAMES = {
    "algorithm": r"(ranges::)?(all_of|any_of|none_of|copy|copy_if|copy_n|count|count_if|equal|fill|find|"
                 r"find_if|for_each|lower_bound|upper_bound|max_element|min_element|remove_if|reverse|"
                 r"rotate|sort|stable_sort|nth_element|transform|unique|clamp|min|max|minmax|shuffle|"
                 r"contains|replace)\b(?! *<[^>]*> *\{)",
    "array": r"array\b",
    "atomic": r"atomic",
    "bit": r"(bit_cast|popcount|countl_zero|countr_zero|bit_width|has_single_bit|endian)\b",
    "charconv": r"(from_chars|to_chars)\b",
    "chrono": r"chrono::",
    "cmath": r"(isnan|isinf|isfinite|exp2|log2|log10|log|exp|sqrt|pow|ldexp|frexp|floor|ceil|round|cos|sin|"
             r"nan|nanf|fabs|hypot|nearbyint|lround|signbit)\b",
    "condition_variable": r"condition_variable",
    "cstdio": r"(fprintf|snprintf|printf|fopen|fclose|fputs|fflush|FILE|remove|rename)\b(?! *_)",
    "cstdlib": r"(getenv|abort|exit|strtol|strtoul|strtoull|strtod|malloc|free|system)\b",
    "cstring": r"(memcpy|memcmp|memset|strlen|strcmp|strerror|memmove)\b",
    "deque": r"deque\b",
    "exception": r"(exception_ptr|current_exception|rethrow_exception|terminate|set_terminate)\b",
    "filesystem": r"filesystem\b",
    "fstream": r"(ifstream|ofstream|fstream)\b",
    "functional": r"(function|hash|greater|less)\b(?!::)",
    "iostream": r"(cout|cerr|cin|clog)\b",
    "limits": r"numeric_limits\b",
    "map": r"(map|multimap)\b",
    "memory": r"(unique_ptr|shared_ptr|weak_ptr|make_unique|make_shared)\b",
    "mutex": r"(mutex|lock_guard|unique_lock|scoped_lock|call_once|once_flag)\b",
    "numeric": r"(accumulate|iota|reduce|inner_product|partial_sum|gcd|lcm)\b",
    "optional": r"(optional|nullopt)\b",
    "random": r"(mt19937|mt19937_64|uniform_int_distribution|uniform_real_distribution|"
              r"normal_distribution|random_device|seed_seq|discrete_distribution)\b",
    "set": r"(set|multiset)\b",
    "span": r"span\b",
    "sstream": r"(ostringstream|istringstream|stringstream)\b",
    "string": r"(string|to_string|stoi|stol|stoll|stoull|stod|getline)\b",
    "string_view": r"string_view\b",
    "system_error": r"(error_code|errc|generic_category|system_category|system_error)\b",
    "thread": r"(thread|this_thread|jthread)\b",
    "tuple": r"(tuple|tie|make_tuple|apply)\b",
    "type_traits": r"(is_same_v|is_enum_v|is_same|conditional_t|enable_if_t|decay_t|remove_cvref_t|"
                   r"is_integral_v|is_floating_point_v|underlying_type_t|void_t|false_type|true_type|"
                   r"is_arithmetic_v|invoke_result_t)\b",
    "unordered_map": r"unordered_map\b",
    "unordered_set": r"unordered_set\b",
    "utility": r"(exchange|pair|make_pair|forward|swap)\b",  # not move: every header brings it
    "variant": r"(variant|visit|holds_alternative|get_if|monostate)\b",
    "vector": r"vector\b",
}
# Headers that give more than the table knows: used for something else, no sign of a mistake.
MAY_SEEM_UNUSED = {"algorithm", "cmath", "cstdio", "cstdlib", "exception", "functional", "iostream",
                   "numeric", "system_error", "tuple", "type_traits", "utility", "chrono", "string"}
# Headers that promise another one's names.
IMPLIED = {"string_view": {"string"}, "exception": {"stdexcept"}, "utility": {"map", "unordered_map"},
           "string": {"c10/util/Exception.h", "ATen/core/Tensor.h"}}
COMMENT_OR_TEXT = re.compile(r'//[^\n]*|/\*.*?\*/|R"\((?:.|\n)*?\)"|"(?:\\.|[^"\\\n])*"', re.DOTALL)
INCLUDE = re.compile(r'^\s*#include\s+([<"])([^>"]+)[>"]', re.MULTILINE)


def includes_of(text):
    return {name for bracket, name in INCLUDE.findall(text) if bracket == "<"}


def complaints(path):
    text = path.read_text(encoding="utf-8")
    included = includes_of(text)
    code = COMMENT_OR_TEXT.sub('""', INCLUDE.sub("", text))
    for header, names in NAMES.items():
        used = re.search(rf"\bstd::(?:{names})", code)
        if path.suffix == ".h" and used and not {header, *IMPLIED.get(header, set())} & included:
            yield f"uses {used.group(0)} without <{header}>"
        if not used and header in included and header not in MAY_SEEM_UNUSED:
            yield f"includes <{header}> and does not use it"


def main():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.cpp", "*.h"], cwd=ROOT,
                            check=True, capture_output=True, text=True).stdout.split()
    failed = 0
    for name in sys.argv[1:] or listed:
        for complaint in complaints(ROOT / name):
            print(f"{name}: {complaint}")
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
