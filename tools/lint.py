#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Runs the checks of .clang-tidy over every source and header, each on its own.

clangd does the work, not clang-tidy: it looks at one file's own declarations, clang-tidy 14 at all of
LibTorch's too, which takes eight times as long. What takes longest is then to read LibTorch's headers, so
files that include the same large headers are shown to one clangd one after the other, as versions of one
document which begins with those headers: clangd reads them once. Sources see those of the others as well.
A header sees none but its own, so one that does not compile alone is found here. What passed is remembered by the content of the file and of
the headers of ours that it includes, and is not looked at again until one of them changes.

  lint.py BUILD_FOLDER [FILE...]    without files: all that git knows
"""
import collections
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import threading

ROOT = pathlib.Path(__file__).resolve().parent.parent
INCLUDE = re.compile(r'^\s*#include [<"]((?!torch/|ATen/|c10/)[\w./-]+\.h)[>"]', re.MULTILINE)
FOLDERS = ("include", "src", "apps/moe8", "tests", "bench", "python/native")
# Large headers: of each line a file begins with the first that it includes anyway.
LARGE = (("torch/torch.h", "torch/csrc/autograd/custom_function.h", "ATen/ATen.h", "ATen/core/Tensor.h"),
         ("gmock/gmock.h", "gtest/gtest.h"), ("nlohmann/json.hpp",), ("CLI/CLI.hpp",))
WARNING = 2    # of LSP's severities; errors are 1
OF_LIBTORCH = re.compile(r"^#include <((?:ATen|c10|torch)/(?!cuda|csrc/distributed)[\w./]+)>$", re.MULTILINE)
SECONDS = 600  # for one file, large headers included


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


def beginning(content):
    """The large headers that a file includes."""
    found = [next((header for header in line if f"#include <{header}>" in content), None) for line in LARGE]
    return tuple(header for header in found if header)


def commands_of(build):
    """Two commands with the folders and macros of all of the build that sees LibTorch, or of all that does
    not; and the files of the latter."""
    words, plain = ({}, {}), set()
    for entry in json.loads((build / "compile_commands.json").read_text(encoding="utf-8")):
        sees = "/torch/include" in entry["command"]
        if not sees:
            plain.add(os.path.relpath(entry["file"], ROOT))
        command = iter(shlex.split(entry["command"])[1:])
        for word in command:
            if word in ("-o", "-c"):
                next(command)
            elif word in ("-isystem", "-include"):
                words[sees][f"{word} {next(command)}"] = None
            elif not word.startswith("-O"):
                words[sees][shlex.quote(word)] = None
    # The Python package's library is built by itself and has stand-ins for some of c10's headers. GCC's
    # -Wall does not ask for the inner braces of a std::array.
    more = (f"-idirafter {ROOT / 'python/native'} -DMOE8_NATIVE_VERSION='\"\"' -DMOE8_NATIVE_CUDA=0 "
            "-Wno-missing-braces")
    return [f"clang++ {' '.join(one)} {more}" for one in words], plain


def quiet_lines(text):
    """Line: the checks that NOLINTBEGIN turned off there, up to their NOLINTEND. clangd 14 knows neither."""
    quiet, off = collections.defaultdict(set), set()
    for number, line in enumerate(text.splitlines(), 1):
        for word, checks in re.findall(r"NOLINT(BEGIN|END)\(([\w,.-]+)\)", line):
            off = off | set(checks.split(",")) if word == "BEGIN" else off - set(checks.split(","))
        quiet[number] = off
    return quiet


class Clangd:
    """One document of the repository's root with changing text, after a header that includes `headers`."""

    def __init__(self, command, name, headers):
        self.uri, self.version = (ROOT / name).as_uri(), 0
        entry = {"directory": str(ROOT), "file": str(ROOT / name), "command": f"{command} -c {ROOT / name}"}
        self.folder = tempfile.TemporaryDirectory()
        (pathlib.Path(self.folder.name) / "compile_commands.json").write_text(json.dumps([entry]))
        large = pathlib.Path(self.folder.name) / "large.h"
        large.write_text("#pragma once\n" + "".join(f"#include <{header}>\n" for header in headers))
        # clangd reads once what comes before the first declaration
        self.begin = [f'#include "{large}"', "static_assert(true);"]
        self.process = subprocess.Popen(
            ["clangd", f"--compile-commands-dir={self.folder.name}", "--clang-tidy", "--enable-config=0",
             "--log=error", "--pch-storage=memory", "--background-index=0"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.send("initialize", {"capabilities": {}, "rootUri": ROOT.as_uri(), "processId": None}, id=1)
        self.send("initialized", {})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.folder.cleanup()

    def send(self, method, params, **more):
        body = json.dumps({"jsonrpc": "2.0", "method": method, "params": params, **more}).encode()
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        self.process.stdin.flush()

    def receive(self):
        length = 0
        while (line := self.process.stdout.readline()) != b"\r\n":
            if not line:
                raise OSError("clangd ended")
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return json.loads(self.process.stdout.read(length))

    def diagnose(self, text):
        """What clangd says about the document, now with this text: one line each."""
        quiet = quiet_lines(text)
        text = "\n".join([*self.begin, text])
        self.version += 1
        document = {"uri": self.uri, "version": self.version}
        if self.version == 1:
            self.send("textDocument/didOpen", {"textDocument": {**document, "languageId": "cpp", "text": text}})
        else:
            self.send("textDocument/didChange", {"textDocument": document, "wantDiagnostics": True,
                                                 "contentChanges": [{"text": text}]})
        hangs = threading.Timer(SECONDS, self.process.kill)
        hangs.start()
        try:
            while True:
                message = self.receive()
                params = message.get("params", {})
                if (message.get("method") == "textDocument/publishDiagnostics"
                        and params.get("version") == self.version):
                    found = [(one["range"]["start"]["line"] + 1 - len(self.begin), one.get("code", "clang"),
                              one["message"].split("\n")[0])
                             for one in params["diagnostics"] if one["severity"] <= WARNING]
                    return [f"[{code}] Line {line}: {words}" for line, code, words in found
                            if code not in quiet[line]]
        finally:
            hangs.cancel()


def check(command, headers, suffix, names, report):
    """Files one after the other, each after `headers`: report(name, what clangd says about it, one line each)."""
    todo = collections.deque(names)
    while todo:
        with Clangd(command, f"lint-{threading.get_ident()}{suffix}", headers) as clangd:
            try:
                while todo:
                    found = clangd.diagnose((ROOT / todo[0]).read_text(encoding="utf-8"))
                    report(todo.popleft(), found)
            except OSError as error:
                report(todo.popleft(), [f"{error} within {SECONDS} s"])


def main():
    build = pathlib.Path(sys.argv[1]).resolve()
    passed = build / "lint"
    passed.mkdir(exist_ok=True)
    commands, plain = commands_of(build)
    rules = (ROOT / ".clang-tidy").read_text(encoding="utf-8")
    stamps, groups, others = {}, collections.defaultdict(list), collections.defaultdict(set)
    for name in sys.argv[2:] or sources():
        content = content_with_headers(name)
        stamp = passed / hashlib.sha256(f"{name}\0{rules}\0{content}".encode()).hexdigest()
        if not stamp.exists():
            stamps[name] = stamp
            key = (commands[name not in plain], beginning(content), pathlib.Path(name).suffix)
            groups[key].append(name)
            if name.endswith(".cpp"):
                others[key] |= set(OF_LIBTORCH.findall(content))
    print(f"lint: {len(stamps)} files to look at", flush=True)
    failed = []

    def report(name, found):
        for line in found:
            print(f"{name}: {line}", flush=True)
        if found:
            failed.append(name)
        else:
            stamps[name].touch()

    workers = os.cpu_count()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        done = []
        for key, names in groups.items():
            command, headers, suffix = key
            begins = (*headers, *sorted(others[key]))
            for part in range(workers):
                done.append(pool.submit(check, command, begins, suffix, names[part::workers], report))
        for one in done:
            one.result()
    print(f"lint: {len(failed)} of {len(stamps)} files have findings")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
