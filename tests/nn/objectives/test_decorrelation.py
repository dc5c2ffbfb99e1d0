from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cvlib.errors import BookError
from cvlib.nn.objectives import agreement, decorrelation_loss, reverse_gradient


def regressor(d, width=32):
    return nn.Sequential(nn.Linear(d, width), nn.ReLU(), nn.Linear(width, d))


def test_golden(golden):
    wanted, state = golden("diva")
    names = ["selfsimilarity", "shared", "intra"]
    nets = nn.ModuleDict({f"{name}-discriminative": regressor(16) for name in names})
    nets.load_state_dict({k.removeprefix("regressors."): v for k, v in state.items()})
    embeddings = {name: wanted[f"feature/{name}"].requires_grad_() for name in [*names, "discriminative"]}
    loss = decorrelation_loss(embeddings, nets, dict.fromkeys(nets, 1.0))
    torch.testing.assert_close(loss, wanted["adv_loss"], rtol=1e-5, atol=0)
    loss.backward()
    for name, e in embeddings.items():
        # gradients of 1e-3: rounding of 1e-9 is one part in a million
        torch.testing.assert_close(e.grad, wanted[f"adv_grad/{name}"], rtol=1e-4, atol=1e-8)


def test_reversal_negates_and_twice_is_the_identity():
    x, weights = torch.randn(4, requires_grad=True), torch.randn(4)
    assert torch.equal(reverse_gradient(x), x)
    for y, sign in ((reverse_gradient(x), -1), (reverse_gradient(reverse_gradient(x)), 1)):
        (gradient,) = torch.autograd.grad(y @ weights, x)
        assert torch.equal(gradient, sign * weights)


def test_one_step_of_the_regressor_raises_agreement_and_one_of_the_heads_lowers_it():
    nets = nn.ModuleDict({"b-a": regressor(8)})
    embeddings = {name: F.normalize(torch.randn(64, 8)).requires_grad_() for name in "ab"}

    def c():
        return agreement(embeddings["a"], embeddings["b"], nets["b-a"]).item()

    for parameters, sign in ((nets.parameters(), 1), (embeddings.values(), -1)):
        before, optimizer = c(), torch.optim.SGD(parameters, lr=1.0)
        optimizer.zero_grad()
        decorrelation_loss(embeddings, nets, {"b-a": 1.0}).backward()
        optimizer.step()
        assert sign * (c() - before) > 1e-6


def test_scale_of_the_term():
    d, e = 32, F.normalize(torch.randn(2, 20_000, 32), dim=2)
    # relative standard error about 0.3 and 0.6 %
    assert agreement(e[0], e[1], nn.Identity()).item() == pytest.approx(1 / d**2, rel=0.02)
    assert agreement(e[0], e[0], nn.Identity()).item() == pytest.approx(3 / (d * (d + 2)), rel=0.02)


def test_each_pair_has_its_weight():
    embeddings = {name: torch.randn(5, 4) for name in "abc"}
    nets = nn.ModuleDict({"b-a": regressor(4), "c-b": regressor(4)})
    parts = {k: agreement(embeddings[k[2]], embeddings[k[0]], net) for k, net in nets.items()}
    loss = decorrelation_loss(embeddings, nets, {"b-a": 2.0, "c-b": 7.0})
    torch.testing.assert_close(loss, -2 * parts["b-a"] - 7 * parts["c-b"])
    with pytest.raises(BookError, match=r"rho for \['b-a'\]; wanted one weight for each of \['b-a', 'c-b'\]"):
        decorrelation_loss(embeddings, nets, {"b-a": 1.0})
    with pytest.raises(BookError, match=r"pairs \['c-d'\]"):
        decorrelation_loss(embeddings, nn.ModuleDict({"c-d": regressor(4)}), {"c-d": 1.0})
