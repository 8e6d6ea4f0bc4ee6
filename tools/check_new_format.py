#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""A new config, operand format or element format cannot be forgotten.

Adds one to a copy of the header that defines them and compiles (no code, syntax only) every source that
names one of those there are. The files that then fail must be those that docs/add_a_recipe.md lists in its
tables "does not compile until": a branch that swallows the new one in silence, or a list that has become
wrong, is found here.

  check_new_format.py BUILD_FOLDER      a configured one: its compile_commands.json says how to compile
"""
import concurrent.futures
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs/add_a_recipe.md"


class Kind:
    def __init__(self, title, header, before, after, names):
        self.title, self.header, self.names = title, header, re.compile(names)
        self.before, self.after = before, after  # of the header's text

    def write_header(self, folder):
        """The header with one more of its kind, where `#include` finds it first."""
        inside = self.header.split("/", 1)[1]  # as src/x.h and include/x.h are included
        text = (ROOT / self.header).read_text(encoding="utf-8")
        if not re.search(self.before, text):
            sys.exit(f"{self.header}: '{self.before}' is not there any more: mend tools/check_new_format.py")
        path = pathlib.Path(folder) / inside
        path.parent.mkdir(parents=True)
        path.write_text(re.sub(self.before, self.after, text, count=1), encoding="utf-8")

    def listed(self):
        """What the guide's section says does not compile."""
        section = re.search(rf"^### {self.title}$(.*?)(?=^##|\Z)", GUIDE.read_text(encoding="utf-8"), re.M | re.S)
        if not section:
            sys.exit(f"{GUIDE}: no section '### {self.title}'")
        tables = re.findall(r"^\| does not compile until .*\n\|[-| ]+\n((?:\|.*\n)+)", section.group(1), re.M)
        return {path for table in tables for path in re.findall(r"^\| `([^`]+)`", table, re.M)}


KINDS = [
    Kind("A new config", "include/moe8/config.h",
         r"(using Config =\s+std::variant<[^>]*)>;",
         r"struct NewConfig {\n  static constexpr bool kGrouped = true;\n"
         r"  at::ScalarType out_dtype = at::kBFloat16;\n  void validate() const;\n"
         r"  bool operator==(const NewConfig&) const = default;\n};\n\1, NewConfig>;",
         r"\b(FP8GroupedMMConfig|MXFP8GroupedMMConfig|MXLinearConfig|Float8LinearConfig)\b|\bFields<|\bFieldsOf<"),
    Kind("A new operand format", "src/operand/operand_format.h",
         r"(using OperandFormat = std::variant<[^>]*)>;",
         r"struct NewFormat {\n  bool operator==(const NewFormat&) const = default;\n};\n\1, NewFormat>;",
         r"\b(MxFormat|Float8Format)\b"),
    Kind("A new element format", "include/moe8/formats.h",
         r"(enum class ElemDtype \{[^}]*?) \};", r"\1, NEW };",
         r"\b(ElemDtype|with_elem)\b"),
]


def syntax_only(entry, overlay):
    """The command of compile_commands.json without its output, its cache and its precompiled header."""
    words = shlex.split(entry["command"])
    while not re.search(r"(g\+\+|clang\+\+|c\+\+|nvcc)[-.\d]*$", words[0]):
        words.pop(0)
    if words[0].endswith("nvcc"):
        return None  # a device compiler has no syntax-only mode; the CUDA build itself would fail
    kept, skip = [], 0
    for i, word in enumerate(words[1:], 1):
        if skip:
            skip -= 1
        elif word == "-o" or (word == "-include" and "cmake_pch" in words[i + 1]):
            skip = 1
        elif word not in ("-c", "-Winvalid-pch", "-fpch-preprocess"):
            kept.append(word)
    return [words[0], f"-I{overlay}", "-fsyntax-only", "-Werror=switch", *kept]


def failing_file(entry, overlay):
    """The file of ours that does not compile, None when everything does."""
    command = syntax_only(entry, overlay)
    if command is None:
        return None
    done = subprocess.run(command, cwd=entry["directory"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    source = os.path.relpath(entry["file"], ROOT)
    if "error:" not in done.stderr:
        sys.exit(f"{source}: the compiler ended with {done.returncode}: {done.stderr[-2000:]}")
    for line in re.findall(r"^(/[^:]+):\d+:\d+: (?:fatal )?error:", done.stderr, re.M):
        if line.startswith(f"{ROOT}/"):
            source = os.path.relpath(line, ROOT)  # a header, when the error is there
            break
    return source


def check(kind, entries):
    with tempfile.TemporaryDirectory() as overlay:
        kind.write_header(overlay)
        sources = [entry for entry in entries.values()
                   if kind.names.search(pathlib.Path(entry["file"]).read_text(encoding="utf-8"))]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            failed = set(pool.map(lambda entry: failing_file(entry, overlay), sources)) - {None}
    known = {os.path.relpath(file, ROOT) for file in entries}
    compiled_here = {path for path in kind.listed() if path.endswith(".h") or path in known}
    print(f"{kind.title}: {len(failed)} of {len(sources)} files do not compile until they know it")
    for path in sorted(failed - kind.listed()):
        print(f"  {path} fails, and {GUIDE.relative_to(ROOT)} does not list it under '{kind.title}'")
    for path in sorted(compiled_here - failed):
        print(f"  {path} is listed under '{kind.title}' but compiles: what is new is forgotten there in silence")
    return failed == compiled_here


def main():
    commands = json.loads((pathlib.Path(sys.argv[1]) / "compile_commands.json").read_text(encoding="utf-8"))
    entries = {entry["file"]: entry for entry in commands
               if entry["file"].startswith((f"{ROOT}/src/", f"{ROOT}/apps/"))}
    results = [check(kind, entries) for kind in KINDS]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
