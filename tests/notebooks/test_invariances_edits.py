"""Edits of the page "invariances_factors", by its flow and by a probe: cases whose outcome is known."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from cvlib.data.factors import factor_targets
from cvlib.nn import SemanticFlow
from tests import tiny_study
from tests.tiny_study import CLASSES, DIM, HANDS, gen

SHARED = ("concept", "hand", "background", "size", "shift", "rotation")


@pytest.fixture(scope="module")
def page():
    return tiny_study.factors_page()


@pytest.fixture(scope="module")
def study(page, tmp_path_factory):
    return tiny_study.open_study(page.story, tiny_study.experts(), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def legible(page):
    return tiny_study.Legible(page.story)


@torch.no_grad()
def test_an_edit_exchanges_one_block_of_the_semantic_flow(page, study):
    torch.manual_seed(0)
    semantic = SemanticFlow([6, 1, 1, 1, 1, 1, 1], width=16, n_blocks=2, depth=1)
    semantic(study.known["train"].column("moments")[:, :DIM])  # its first batch
    semantic.eval()
    z, donor = study.latents[:4], study.latents[4:8]
    (own, _), (other, _) = semantic(z), semantic(donor)
    for number, factor in enumerate(SHARED, start=1):
        found, _ = semantic(page.edited(semantic, z, donor, factor))
        for k in range(7):
            torch.testing.assert_close(found[k], (other if k == number else own)[k], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(page.edited(semantic, z, z, factor), z, atol=1e-4, rtol=0)


@pytest.mark.parametrize("factor", SHARED)
def test_after_the_move_a_probe_reads_the_donors_value_and_no_step_is_shorter(page, study, factor):
    part = study.known["train"]
    if factor in study.counts:
        y = np.eye(study.counts[factor])[part.labels[factor]]
    else:
        columns = {"background": slice(0, 3), "size": [5], "shift": slice(6, 8), "rotation": [8]}[factor]
        y = factor_targets(part.column("factors"))[:, columns].numpy()
    reader = Ridge(alpha=0.1 * 40).fit(part.column("moments")[:, :DIM].double(), y)
    z, donor = study.latents[:5], study.latents[5:10]
    found = page.moved(study, z, donor, factor)
    reads, of_donor, before = (reader.predict(one.double()).reshape(5, -1) for one in (found, donor, z))
    np.testing.assert_allclose(reads, of_donor, atol=2e-4)
    assert np.abs(before - of_donor).max() > 0.02
    least, *_ = np.linalg.lstsq(np.atleast_2d(reader.coef_), (of_donor - before).T, rcond=1e-6)
    np.testing.assert_allclose((found - z).numpy(), least.T, atol=1e-3, rtol=1e-2)


def exchange(legible, z_bar, donor, name):
    """The best of all edits: the columns of one factor, and no other."""
    out = z_bar.clone()
    out[:, legible.where[name]] = donor[:, legible.where[name]]
    return out


@pytest.mark.parametrize("factor", SHARED)
def test_scores_of_the_best_edit_of_none_and_of_the_donor_itself(page, legible, factor):
    rows = legible.labels["hand"].argsort()  # neighbours share their hand, as drawings in a set do
    by_chance = dict.fromkeys(SHARED, 0.0) | {"concept": 1 / CLASSES, "hand": 1 / HANDS}
    best = page.edit_scores(legible, partial(exchange, legible), factor, rows)
    assert best == pytest.approx((1, 1), abs=1e-5)
    arrives, stays = page.edit_scores(legible, lambda z, donor, name: z, factor, rows)
    assert arrives == pytest.approx(0, abs=0.08) and stays == pytest.approx(1, abs=1e-5)
    assert factor in page.story.GROUPS or arrives == 0  # what the donor shares has not arrived
    arrives, stays = page.edit_scores(legible, lambda z, donor, name: donor, factor, rows)
    others = np.mean([by_chance[name] for name in SHARED if name != factor])
    assert arrives == pytest.approx(1, abs=1e-5) and stays == pytest.approx(others, abs=0.05)


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_content_is_the_share_of_each_block_that_a_representation_decides(page, share):
    """Blocks of a linear e of latents whose groups and draws are known, by the law of total variance."""
    generator, rows, n = gen(), torch.arange(400), 16
    matrix = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    e = math.sqrt(share) * torch.randn(400, 1, 6, generator=generator)
    e = e + math.sqrt(1 - share) * torch.randn(400, n, 6, generator=generator)
    e[..., :2] = torch.randn(400, n, 2, generator=generator)  # of the first block it knows nothing
    asked = []

    def resample(rows, n, chance):
        asked.append((len(rows), n))
        return e @ matrix.T

    class Turned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.anything = torch.nn.Parameter(torch.zeros(1))

        def forward(self, z):
            return (z @ matrix).split([2, 1, 3], 1), None

    found = page.content(SimpleNamespace(resample=resample), Turned(), rows, gen(1), n)
    assert asked == [(400, 16)] and found == pytest.approx([0, share, share], abs=0.05)
