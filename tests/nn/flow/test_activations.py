from __future__ import annotations

import math

import pytest
import torch

from cvlib.errors import BookError
from cvlib.nn.flow import InvertibleLeakyReLU


@pytest.mark.parametrize("alpha", [0.9, 0.1, 3.0])
def test_inverse_and_log_determinant(alpha, logdet_of):
    layer, x = InvertibleLeakyReLU(alpha), torch.randn(6, 5).double()
    y, log_diag = layer(x)
    torch.testing.assert_close(layer.inverse(y), x)
    torch.testing.assert_close(log_diag.sum(1), logdet_of(lambda v: layer(v)[0], x))
    torch.testing.assert_close(log_diag.sum(1), (x < 0).sum(1).double() * math.log(alpha))


def test_a_slope_that_forgets_is_refused():
    with pytest.raises(BookError, match=r"alpha 0\.0.*positive"):
        InvertibleLeakyReLU(0.0)
