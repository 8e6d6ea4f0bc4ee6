# SPDX-License-Identifier: BSD-3-Clause
"""docs/python.md and the example say what is so."""
import re
import subprocess
import sys

import torch
from conftest import ROOT


def test_blocks_of_the_page_run():
    text = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    names = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)  # as a reader would, one after the other


def test_example_trains():
    script = ROOT / "python/examples/train_qwen3_moe.py"
    done = subprocess.run([sys.executable, script, "--steps", "8"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"loss ([0-9.]+)", done.stdout)]
    assert len(losses) == 8 and losses[-1] < losses[0] - 0.5
    assert "12 of 25 parameters converted." in done.stdout
