# SPDX-License-Identifier: BSD-3-Clause
"""Fixtures. MOE8_PYTHON_CASES names the file that test_python_cases wrote (./dev test --python).
MOE8_TEST_DEVICE=cuda puts tensors that name no device on a GPU; test_bits is of the CPU alone."""
import os
import pathlib

import pytest
import torch
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
if "MOE8_TEST_DEVICE" in os.environ:
    torch.set_default_device(os.environ["MOE8_TEST_DEVICE"])


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(11)


@pytest.fixture(scope="session")
def cases():
    """{operation: {case: {tensor's name: tensor}}} of the C++ operations."""
    path = os.environ.get("MOE8_PYTHON_CASES")
    assert path, "MOE8_PYTHON_CASES is not set: run ./dev test --python"
    tree = {}
    for name, tensor in load_file(path).items():
        operation, case, part = name.split("/")
        tree.setdefault(operation, {}).setdefault(case, {})[part] = tensor
    return tree


def sqnr(reference, got):
    """In dB."""
    reference, got = reference.double(), got.double()
    return (20 * torch.log10(reference.norm() / (reference - got).norm())).item()
