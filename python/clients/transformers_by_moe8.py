# SPDX-License-Identifier: BSD-3-Clause
"""A plugin of pytest for transformers' own model tests: a model that names no experts implementation takes "moe8", in
the recipe of MOE8_RECIPE. Without that variable it changes nothing: the run to compare with.

MOE8_RECIPE=exact has the same code multiply in high precision: what fails there fails for another reason than that
numbers were rounded."""
import os

import torch
from transformers.modeling_utils import PreTrainedModel

import moe8
import moe8.integrations.transformers
from moe8 import _products
from moe8._tensors import HIGH

RECIPE = os.environ.get("MOE8_RECIPE")


def _without_rounding():
    before = _products._Plan.__init__

    def init(self, *arguments):
        before(self, *arguments)
        self.left = self.right = HIGH
        self.is_low = False
    _products._Plan.__init__ = init


def pytest_configure(config):
    if not RECIPE:
        return
    if RECIPE == "exact":
        _without_rounding()
    exact = moe8.FP8GroupedMMConfig(out_dtype=torch.float32)  # as the tests' models
    moe8.integrations.transformers.register(exact if RECIPE == "exact" else RECIPE)
    before = PreTrainedModel.get_correct_experts_implementation

    def choose(self, requested):
        return before(self, "moe8" if requested is None else requested)
    PreTrainedModel.get_correct_experts_implementation = choose


def pytest_report_header(config):
    return f"experts that name no implementation: {'moe8, ' + RECIPE if RECIPE else 'as transformers chooses'}"
