#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Runs the checks of .clang-tidy over every source and header, each on its own.

clangd does the work, not clang-tidy: it looks at one file's own declarations, clang-tidy 14 at all of
LibTorch's too, which takes eight times as long. A header is parsed by itself, so one that does not
compile alone is found here; it gets the flags of a source that includes it, or else (headers of CUDA
sources) of the nearest one. What passed is remembered by the content of the file and of the headers of
ours that it includes, and is not looked at again until one of them changes.

  lint.py BUILD_FOLDER [FILE...]    without files: all that git knows
"""
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
INCLUDE = re.compile(r'^\s*#include [<"]((?!torch/|ATen/|c10/)[\w./-]+\.h)[>"]', re.MULTILINE)
FOLDERS = ("include", "src", "apps/moe8", "tests", "bench")
DIAGNOSTIC = re.compile(r"^[EW]\[[\d:.]+\] (\[[^\]]+\] Line \d+: .*)$", re.MULTILINE)


def sources():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.cpp", "*.h"], cwd=ROOT,
                            check=True, capture_output=True, text=True).stdout.split()
    return [name for name in listed if not name.startswith("tests/apps/consumer/")]


def content_with_headers(name):
    """The file, and the headers of this repository that it includes at any depth."""
    seen, todo, parts = set(), [ROOT / name], []
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        text = path.read_text(encoding="utf-8")
        parts.append(text)
        for include in INCLUDE.findall(text):
            places = [path.parent / include] + [ROOT / folder / include for folder in FOLDERS]
            todo.extend(place for place in places if place.is_file())
    return "\0".join(sorted(parts))


def write_commands(build, folder):
    """The commands of `build`, and one for every header: that of the first source that includes it, else
    that of the source with the most folders in common."""
    commands = json.loads((build / "compile_commands.json").read_text(encoding="utf-8"))
    by_file = {entry["file"]: entry for entry in commands}
    by_source = sorted(by_file.items())

    def add(header, entry):
        command = entry["command"].replace(entry["file"], str(header))
        by_file[str(header)] = {**entry, "file": str(header), "command": command}

    for file, entry in by_source:
        for include in INCLUDE.findall(pathlib.Path(file).read_text(encoding="utf-8")):
            for header in [ROOT / inside / include for inside in FOLDERS]:
                if header.is_file() and str(header) not in by_file:
                    add(header, entry)
    for header in (ROOT / name for name in sources() if name.endswith(".h")):
        if str(header) not in by_file:
            add(header, max(by_source, key=lambda one: len(os.path.commonpath([one[0], header])))[1])
    (folder / "compile_commands.json").write_text(json.dumps(list(by_file.values())), encoding="utf-8")


def check(commands, name):
    """What clangd says about a file, one line each."""
    command = ["clangd", f"--check={ROOT / name}", f"--compile-commands-dir={commands}", "--clang-tidy",
               "--check-lines=1", "--enable-config=0", "--log=error", "--pch-storage=memory"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [f"{name}: {line}" for line in DIAGNOSTIC.findall(done.stderr)]
    if done.returncode != 0 and not found:
        found = [f"{name}: clangd failed: {done.stderr[-2000:]}"]
    return found


def main():
    build = pathlib.Path(sys.argv[1]).resolve()
    passed = build / "lint"
    passed.mkdir(exist_ok=True)
    write_commands(build, passed)
    rules = (ROOT / ".clang-tidy").read_text(encoding="utf-8")

    def stamp(name):
        text = f"{name}\0{rules}\0{content_with_headers(name)}"
        return passed / hashlib.sha256(text.encode()).hexdigest()

    todo = [name for name in sys.argv[2:] or sources() if not stamp(name).exists()]
    print(f"lint: {len(todo)} files to look at", flush=True)
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, found in zip(todo, pool.map(lambda one: check(passed, one), todo)):
            for line in found:
                print(line, flush=True)
            failed += bool(found)
            if not found:
                stamp(name).touch()
    print(f"lint: {failed} of {len(todo)} files have findings")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
