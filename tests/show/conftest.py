from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture
def images() -> torch.Tensor:
    """Six flat images (3, 8, 10) of different greys."""
    return torch.linspace(-1, 1, 6).view(6, 1, 1, 1).expand(6, 3, 8, 10).clone()


@pytest.fixture
def decode():
    """A function: the pictures embedded in an output, as arrays."""

    def run(output) -> list[np.ndarray]:
        found = re.findall(r'src="data:image/\w+;base64,([^"]+)"', output.html)
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) for data in found]

    return run
