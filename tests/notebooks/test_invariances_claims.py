"""What the page "invariances_claims" defines: arms against rules, rivals that begin where the flow begins."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from cvlib.claims import load_rules, runs
from cvlib.nn import ConditionalFlow, VectorEmbedder
from cvlib.nn.flow import LinearGuess
from cvlib.nn.vae import VectorAutoencoder
from cvlib.pages import definitions
from cvlib.train import Runtime
from tests.reach import PAGES, reach
from tests.tiny_study import gen


@pytest.fixture(scope="module")
def page():
    return definitions(PAGES / "invariances_claims.py")


def test_arms_are_those_of_the_rules(page):
    rules = load_rules(page.CHAPTER)
    assert set(page.ARMS) == set(rules.arms)
    assert {arm for arm in page.DEPTH if page.ARMS[arm].kind == "flow"} == set(page.DEPTH)
    assert [page.ARMS[arm].layer for arm in page.DEPTH] == list(page.story.LAYERS)
    for run in runs(page.CHAPTER):
        assert set(rules.measures(run["arm"])) <= set(run["values"])


def test_a_change_of_anything_that_a_run_rests_on_makes_it_stale(page):
    needed = reach(("invariances_claims", "run_arm"), ("invariances_claims", "lay_out"))
    assert len(needed) > 50 and needed <= set(load_rules(page.CHAPTER).code)


def test_runs_come_seed_by_seed(page):
    pairs = [(arm, seed) for arm in reversed(page.ARMS) for seed in (24, 23)]
    found = page.in_order(pairs)
    assert found == [(arm, seed) for seed in (23, 24) for arm in page.ARMS]


# rivals


@pytest.fixture
def flow():
    """A flow of 12 numbers on conditions of 9, at a linear guess."""
    torch.manual_seed(0)
    embedder = VectorEmbedder((9, 8, 8), norm="actnorm", slope=0.2)
    flow = ConditionalFlow(12, 32, 2, 3, embedder, guess=LinearGuess(9, 12))
    cond = torch.randn(64, 9, generator=gen())
    flow.guess.fit(cond, cond @ torch.randn(9, 12, generator=gen(1)))
    return flow


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize("size", [(16, 1, 2), (64, 2, 6), (256, 2, 6)])
def test_a_regression_has_as_many_weights_as_the_flow(page, size):
    width, depth, n_blocks = size
    embedder = VectorEmbedder((9, 8, 8))
    flow = ConditionalFlow(12, width, depth, n_blocks, embedder, guess=LinearGuess(9, 12))
    rival = page.Regression(flow)
    assert count(rival) == pytest.approx(count(flow), rel=0.05)
    assert rival.embedder is embedder and rival.guess is flow.guess


def test_rivals_begin_at_the_linear_guess_and_at_what_the_decoder_paints_of_it(page, flow):
    decoder = VectorAutoencoder(16, 12, (8, 8), patch=1).requires_grad_(False).decoder
    cond = torch.randn(6, 9, generator=gen(2))
    regression, inverter = page.Regression(flow), page.Inverter(flow, decoder)
    torch.testing.assert_close(regression(cond), flow.guess(cond))
    torch.testing.assert_close(inverter(cond), decoder(flow.guess(cond)))
    inverter(cond).square().mean().backward()
    moved = {name for name, p in inverter.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {"regression.guess.linear.weight", "regression.layers.4.weight"} <= moved
    assert {name for name, _ in inverter.named_parameters() if name.startswith("decoder.")} <= moved
    assert all(p.grad is None for p in decoder.parameters())  # the autoencoder stays what it is


def test_a_regression_learns_what_no_line_tells(page, flow):
    cond = torch.randn(256, 9, generator=gen(3))
    latents = flow.guess(cond).detach() + cond[:, :1].abs()
    regression = page.Regression(flow)
    layer = SimpleNamespace(condition=lambda batch: batch["z"])
    batch = {"z": cond, "moments": torch.cat([latents, torch.zeros_like(latents)], 1)}
    step = page.regression_step(
        regression, layer, torch.optim.Adam(regression.parameters(), lr=3e-3), Runtime("cpu")
    )
    losses = [step(batch, t)["loss"].item() for t in range(150)]
    wanted = cond[:, :1].abs().square().mean().item()
    assert losses[0] == pytest.approx(wanted, rel=1e-4) and losses[-1] < 0.05 * losses[0]


# measures


def test_distances_have_floors_that_features_of_one_distribution_stay_near(page):
    real, same, other = (torch.randn(600, 40, generator=gen(k)) + (k == 2) for k in range(3))
    bench = SimpleNamespace(real=real, features=lambda pictures: pictures)
    near, far = page.realism(bench, same), page.realism(bench, other)
    assert near["KID"] == pytest.approx(0, abs=0.05) and far["KID"] > 5 * abs(near["KID"])
    assert far["Fréchet"] > 10 * near["Fréchet"] > 0


def test_what_is_read_in_layers_is_a_probe_of_each(page, monkeypatch):
    asked = []

    def probe(study, x, x_test):
        asked.append((x.shape, x_test.shape))
        return {"concept": 0.5, "hand": 0.25}

    monkeypatch.setattr(page.story, "probe", probe)
    bench = SimpleNamespace(readings={})
    study = SimpleNamespace(
        known={"train": SimpleNamespace(hash="some")},
        probed=torch.arange(6),
        z=lambda split, name, rows=None: torch.zeros(6 if split == "train" else 4, 3),
    )
    found = page.read_in_layers(bench, study)
    assert len(asked) == len(page.story.LAYERS) and set(asked) == {((6, 3), (4, 3))}
    assert found[f"{page.story.LAYERS[0]}: hand"] == 0.25 and len(found) == 2 * len(page.story.LAYERS)
    assert page.read_in_layers(bench, study) == found and len(asked) == len(
        page.story.LAYERS
    )  # once for all seeds


def test_a_random_block_is_as_large_as_the_factor_and_comes_from_the_donor(page):
    class Identity:
        def __call__(self, z):
            return z.split([4, 2, 1, 3, 1, 2, 1], 1), None

        def inverse(self, e):
            return torch.cat(list(e), 1)

        def parameters(self):
            return iter([torch.zeros(1)])

    own, donor = torch.zeros(5, 14), torch.ones(5, 14)
    for factor, size in zip(page.exchange.SHARED, (2, 1, 3, 1, 2, 1), strict=True):
        mixed = page.block_swap([4, 2, 1, 3, 1, 2, 1], factor, Identity(), gen(), own, donor, factor)
        assert (mixed.sum(1) == size).all()
    places = [
        page.block_swap([4, 2, 1, 3, 1, 2, 1], "background", Identity(), g, own, donor, "")[0]
        for g in [gen(4)] * 8
    ]
    assert len({tuple(np.flatnonzero(p)) for p in places}) > 3
