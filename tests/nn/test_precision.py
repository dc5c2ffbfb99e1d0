from __future__ import annotations

import torch

from cvlib.nn.precision import without_autocast


def test_types_stay_and_autocast_comes_back():
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with without_autocast(x):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16


def test_shapes_without_numbers_pass():
    x = torch.empty(2, 2, device="meta")
    with without_autocast(x):
        assert (x @ x).shape == (2, 2)
