"""What the page "performance" defines: a race that measures ratios, and peers that do the same work."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cvlib.nn import VectorQuantizer
from cvlib.pages import definitions


@pytest.fixture
def page():
    page = definitions(Path(__file__).resolve().parents[2] / "notebooks" / "performance.py")
    page.rows, page.rounds = [], 3
    page.runtime = SimpleNamespace(device=torch.device("cpu"))
    return page


def test_a_race_gives_the_ratio_of_the_times(page):
    page.race("waiting", lambda: time.sleep(0.02), lambda: time.sleep(0.06), "longer")
    (row,) = page.rows
    assert row.unit == "ms" and 2 < row.ratio < 4 and row.low <= row.ratio <= row.high
    assert row.peer / row.ours == pytest.approx(row.ratio)


def test_a_race_of_rates_divides_by_what_each_made(page):
    page.race("waiting", lambda: time.sleep(0.04), lambda: time.sleep(0.04), "half as many", (20, 10))
    (row,) = page.rows
    assert row.unit == "images/s" and 1.6 < row.ratio < 2.5
    assert 0.7 * 20 / 0.04 < row.ours <= 20 / 0.04


def test_the_plain_quantizer_is_ours_with_its_gradients(page):
    ours = VectorQuantizer(16, 4)
    plain = page.Plain(ours.codebook.detach())
    z = torch.randn(2, 4, 3, 3) / 16
    found = []
    for module in (ours, plain):
        x = z.clone().requires_grad_()
        out = module(x)
        z_q, loss = (out.z_q, out.loss) if module is ours else out
        (z_q.square().sum() + loss).backward()
        found.append((z_q.detach(), loss.detach(), x.grad, module.codebook.grad))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("channels", [3, 4])
def test_the_peer_cuts_and_composites_what_lies_there(page, channels):
    picture = np.zeros((1, 8, 8, channels), np.uint8)
    picture[0, :, :, 0] = 255
    picture[0, :, :, 3:] = 255  # opaque: the ground does not matter
    image = page.OneByOne(picture, 4)[0]
    torch.testing.assert_close(image, torch.tensor([1.0, -1, -1])[:, None, None].expand(3, 4, 4))


PROGRAM = """
import sys
who, seconds = sys.argv[1], {"ours": 2.0, "peer": 6.0}
found = 0.5 + float(sys.argv[3]) * (who == "peer")
print(seconds[who], {"ours": 5, "peer": 50}[who], sys.argv[2], found)
"""


def test_a_race_of_processes_reads_time_memory_and_results(page):
    page.race_apart("apart", PROGRAM, [7, 0], "slower", 2)
    (row,) = page.rows
    assert (row.ours, row.peer, row.ratio, row.unit) == (2000, 6000, 3, "ms")
    assert (row.peak_mb, row.peer_peak_mb) == (5, 50)
    with pytest.raises(AssertionError):  # other results: not the same work
        page.race_apart("apart", PROGRAM, [7, 1], "slower", 1)


def test_the_retrieval_race_is_between_equal_scores(page):
    page.race_apart("retrieval", page.RETRIEVAL, [300, 15], "pytorch-metric-learning", 1)
    assert page.rows[0].ours > 0
