#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Kernels that may start while the one before them ends (src/cuda/launch.cuh) must wait for it before
they touch global memory. Reads the machine code of the quantizers' object files.

  check_early_start.py CUOBJDUMP OBJECT...

Exit 0: all wait first. 1: one does not, or waits nowhere although it is not launched in the usual way.
"""
import re
import subprocess
import sys

# Launched in the usual way, after all before them are complete.
USUAL = ("block_matrices", "block_groups", "find_starts", "pack_nibbles")
WAIT = "ACQBULK"  # griddepcontrol.wait
GLOBAL = re.compile(r"\b(LDG|STG|LD|ST|ATOMG|ATOM|REDG|RED|LDGSTS|UBLKCP|UTMALDG|UTMASTG|CCTL)\b")
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(.*?);")


def kernels(cuobjdump, path):
    """Yields the name and the instructions of each kernel, once for each architecture."""
    text = subprocess.run([cuobjdump, "-sass", path], check=True, capture_output=True, text=True).stdout
    name, code = None, []
    for line in text.splitlines():
        if "Function :" in line:
            if name:
                yield name, code
            name, code = line.split("Function :")[1].strip(), []
        elif match := INSTRUCTION.search(line):
            code.append(match.group(1))
    if name:
        yield name, code


def complaint(name, code):
    wait = next((i for i, op in enumerate(code) if WAIT in op), None)
    if wait is None:
        return None if any(usual in name for usual in USUAL) else "does not wait for the stream"
    early = [op for op in code[:wait] if GLOBAL.search(op)]
    return f"touches memory before it waits: {early[0]}" if early else None


def main():
    cuobjdump, objects = sys.argv[1], sys.argv[2:]
    count = 0
    bad = []
    for path in objects:
        for name, code in kernels(cuobjdump, path):
            count += 1
            if problem := complaint(name, code):
                bad.append(f"{name}: {problem}")
    print("\n".join(bad))
    print(f"check_early_start: {count} kernels, {len(bad)} wrong")
    return 1 if bad or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
