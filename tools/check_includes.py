#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Standard headers are included where they are used, and only there; rooms of src/ include one way; every
file says its license.

A header must include the standard header of every name of the table below that it uses, so that it does
not depend on who includes it; no file may include one of the table's headers without using it. Deliberately
a table of plain words: enough to find what compiles by chance, at no cost.

A file of src/ may include files of its own room and of rooms that ROOMS names before it. Section 2 of
docs/architecture.md describes the rooms in the same order.

  check_includes.py [FILE...]       without files: all of FOLDERS
"""
import itertools
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("include", "src", "apps", "tests", "bench", "examples", "tools", "python")
SUFFIXES = (".cpp", ".h", ".cu", ".cuh")

# header: names after std:: that it alone should provide, as alternatives of a regular expression
NAMES = {
    "algorithm": r"(ranges::)?(all_of|any_of|none_of|copy|copy_if|copy_n|count|count_if|equal|fill|find|"
                 r"find_if|for_each|lower_bound|upper_bound|max_element|min_element|remove_if|reverse|"
                 r"rotate|sort|stable_sort|nth_element|transform|unique|clamp|min|max|minmax|shuffle|"
                 r"contains|replace)\b(?! *<[^>]*> *\{)",
    "array": r"array\b",
    "atomic": r"atomic",
    "bit": r"(bit_cast|bit_ceil|popcount|countl_zero|countr_zero|bit_width|has_single_bit|endian)\b",
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
# The rooms of src/, each above those that it may include. "moe8" is the public API, include/moe8/.
ROOMS = ["moe8", "base", "formats", "kernels", "reference", "cpu", "cuda", "config", "device", "groups",
         "quantize", "dist", "operand", "weights", "gemm", "numerics", "autograd", "ops", "routing",
         "experts", "optim", "io", "shard", "text", "convert", "nn", "models", "train"]
COMMENT_OR_TEXT = re.compile(r'//[^\n]*|/\*.*?\*/|R"\((?:.|\n)*?\)"|"(?:\\.|[^"\\\n])*"', re.DOTALL)
INCLUDE = re.compile(r'^\s*#include\s+([<"])([^>"]+)[>"]', re.MULTILINE)


def includes_of(text):
    return {name for bracket, name in INCLUDE.findall(text) if bracket == "<"}


def room_of(name):
    """The room of a path as #include writes it, None for what is no room's (a file beside, a system header)."""
    room = name.split("/")[0]
    return room if "/" in name and room in ROOMS else None


def upward_includes(path, text):
    parts = path.relative_to(ROOT).parts
    room = parts[1] if parts[0] in ("src", "include") and len(parts) > 2 else None
    if room is None:
        return
    for bracket, name in INCLUDE.findall(text):
        other = room_of(name) if bracket == '"' else None
        if other and ROOMS.index(other) > ROOMS.index(room):
            yield f"includes {name}: the room {other} stands above {room} (ROOMS in tools/check_includes.py)"


def rooms_without_a_place():
    """Folders of src/ that ROOMS or the table of docs/architecture.md lacks, or has in another order."""
    folders = {path.name for path in (ROOT / "src").iterdir() if path.is_dir()}
    if folders != set(ROOMS) - {"moe8"}:
        yield f"tools/check_includes.py: ROOMS and the folders of src/ differ: {sorted(folders ^ set(ROOMS[1:]))}"
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    described = re.findall(r"^\| `(?:src|include)/(\w+)/` \|", page, re.MULTILINE)
    if described != ROOMS:
        yield f"docs/architecture.md: expected the rooms of section 2 in the order {ROOMS}, got {described}"


def files_without_a_license():
    """Sources, scripts and build files whose first two lines lack the SPDX identifier."""
    for folder in FOLDERS + ("cmake",):
        for path in sorted((ROOT / folder).rglob("*")):
            is_ours = path.suffix in SUFFIXES + (".py", ".sh", ".cmake") or path.name == "CMakeLists.txt"
            if is_ours and not any("SPDX-License-Identifier: BSD-3-Clause" in line
                                   for line in path.read_text(encoding="utf-8").split("\n")[:2]):
                yield f"{path.relative_to(ROOT)}: the first line should be the SPDX identifier"


def complaints(path):
    text = path.read_text(encoding="utf-8")
    yield from upward_includes(path, text)
    included = includes_of(text)
    code = COMMENT_OR_TEXT.sub('""', INCLUDE.sub("", text))
    for header, names in NAMES.items():
        used = re.search(rf"\bstd::(?:{names})", code)
        if path.suffix in (".h", ".cuh") and used and not {header, *IMPLIED.get(header, set())} & included:
            yield f"uses {used.group(0)} without <{header}>"
        if not used and header in included and header not in MAY_SEEM_UNUSED:
            yield f"includes <{header}> and does not use it"


def main():
    listed = sorted(str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*")
                    if path.suffix in SUFFIXES)
    failed = 0
    for complaint in itertools.chain(rooms_without_a_place(), files_without_a_license()):
        print(complaint)
        failed += 1
    for name in sys.argv[1:] or listed:
        for complaint in complaints(ROOT / name):
            print(f"{name}: {complaint}")
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
