from __future__ import annotations

import math
import sys

import pytest
import torch
from scipy.stats import entropy

from cvlib.errors import BookError
from cvlib.metrics import densities, singular_values, spectral_decay


def normal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(z):
    return z / z.norm(dim=1, keepdim=True)


@pytest.fixture(params=[8192, 7])
def chunk(request, monkeypatch):
    """Both in one piece and in pieces that do not divide the number of rows."""
    monkeypatch.setattr(sys.modules["cvlib.metrics.embedding"], "_CHUNK", request.param)


def test_singular_values_are_those_of_the_whole_matrix(chunk):
    z = normal(50, 6) * torch.tensor([1, 1, 1, 1e-3, 1e-6, 1e-9])
    truth = torch.linalg.svdvals(unit(z))
    torch.testing.assert_close(
        singular_values(z), truth, rtol=1e-6, atol=0
    )  # a squared matrix loses the last
    torch.testing.assert_close(singular_values(7 * z), truth, rtol=1e-6, atol=0)


@pytest.mark.parametrize("drop", [0, 1, 3])
def test_decay_is_the_divergence_from_uniform(drop):
    z = normal(80, 6) * torch.tensor([4, 3, 2, 1, 1, 0.5])
    values = torch.linalg.svdvals(unit(z))[drop:].numpy()
    uniform = [1 / len(values)] * len(values)
    assert spectral_decay(z, drop) == pytest.approx(entropy(uniform, values), rel=1e-9)
    assert spectral_decay(z, drop, reverse=True) == pytest.approx(entropy(values, uniform), rel=1e-9)


def test_decay_by_hand():
    """Rows along the axes, 9 and 4 of them: singular values 3 and 2, p = 3/5 and 2/5."""
    z = torch.eye(2)[[0] * 9 + [1] * 4]
    assert spectral_decay(z) == pytest.approx(0.5 * math.log(0.5 / 0.6) + 0.5 * math.log(0.5 / 0.4))
    assert spectral_decay(z, reverse=True) == pytest.approx(0.6 * math.log(1.2) + 0.4 * math.log(0.8))
    assert spectral_decay(torch.eye(5).repeat(3, 1)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("d", [16, 64])
def test_floor_of_random_directions(d):
    """The squared singular values spread by d/N of their mean, so ρ is about d/(8 N)."""
    values = torch.tensor([spectral_decay(normal(2000, d, seed)) for seed in range(10)])
    assert float(values.mean()) == pytest.approx(d / (8 * 2000), rel=0.1)  # standard error 2 to 4 %


def test_an_unused_axis():
    z = normal(60, 5) * torch.tensor([1, 1, 1, 1, 0])
    for unused in (z, z.float() @ torch.linalg.qr(normal(5, 5)).Q.float()):
        assert spectral_decay(unused) == math.inf
        assert 0 < spectral_decay(unused, reverse=True) < math.log(5)
    collapsed = torch.ones(60, 5)
    assert spectral_decay(collapsed) == math.inf
    assert spectral_decay(collapsed, reverse=True) == pytest.approx(math.log(5))
    assert math.isfinite(spectral_decay(normal(60, 5).bfloat16()))


def density_by_loops(z, labels):
    z = unit(z)
    classes = sorted(set(labels.tolist()))
    intra = []
    for c in classes:
        rows = z[labels == c]
        far = [1 - float(a @ b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
        if far:
            intra.append(sum(far) / len(far))
    centres = [unit(z[labels == c].mean(0, keepdim=True))[0] for c in classes]
    far = [1 - float(a @ b) for i, a in enumerate(centres) for j, b in enumerate(centres) if i != j]
    return sum(intra) / len(intra), sum(far) / len(far)


def test_densities_are_the_loops_over_pairs():
    labels = torch.tensor([5, 5, 5, 9, 9, -1, -1, -1, -1, 30])  # of 3, 2, 4 and 1
    z = normal(10, 4) + 2
    intra, inter = density_by_loops(z, labels)
    found = densities(z, labels)
    assert found == pytest.approx((intra, inter, intra / inter, 3, 1), rel=1e-10)


def test_densities_by_hand():
    """Class a along +x and +y (distance 1), class b along -x twice (distance 0)."""
    z = torch.tensor([[1.0, 0], [0, 3], [-1, 0], [-2, 0]])
    found = densities(z, torch.tensor([0, 0, 1, 1]))
    assert found.intra == pytest.approx(0.5)
    assert found.inter == pytest.approx(1 + 0.5**0.5)  # (1, 1)/√2 against (-1, 0)


def test_members_that_cancel_out_have_no_direction_in_the_middle():
    z = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, 1]])
    found = densities(z, torch.tensor([0, 0, 1, 1]))
    assert found.intra == pytest.approx((2 + 0) / 2) and found.inter == pytest.approx(1)


def test_density_grows_as_classes_loosen():
    labels = torch.arange(8).repeat_interleave(6)
    ratios = [densities(normal(8, 5)[labels] + s * normal(48, 5, 1), labels).ratio for s in (0.0, 0.3, 1.0)]
    assert ratios[0] == pytest.approx(0, abs=1e-9) and ratios[0] < ratios[1] < ratios[2]


GOOD = normal(6, 3)


@pytest.mark.parametrize(
    ("z", "labels", "said"),
    [
        (GOOD, torch.arange(6), "6 classes, 0 of them with two members"),
        (GOOD, torch.zeros(6, dtype=torch.long), "1 classes"),
        (GOOD, torch.arange(5), r"labels \(5,\)"),
        (torch.ones(6, 3), torch.arange(6) // 2, "centres that are all equal"),
        (GOOD * 0, torch.arange(6) // 2, "6 of 6 embeddings of length 0"),
        (GOOD.where(GOOD < 0, torch.inf), torch.arange(6) // 2, "NaN or infinite"),
    ],
)
def test_bad_densities_are_one_clear_line(z, labels, said):
    with pytest.raises(BookError, match=said):
        densities(z, labels)


@pytest.mark.parametrize(
    ("z", "drop", "said"),
    [
        (GOOD[:2], 0, "2 embeddings of width 3; wanted at least 3"),
        (GOOD, 2, "drop=2 of 3 singular values; wanted 0 to 1"),
        (GOOD, -1, "drop=-1"),
        (GOOD[:, 0], 0, r"shape \(6,\)"),
        (GOOD * torch.nan, 0, "NaN"),
    ],
)
def test_bad_decay_is_one_clear_line(z, drop, said):
    with pytest.raises(BookError, match=said):
        spectral_decay(z, drop)
