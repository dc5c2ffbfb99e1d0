"""What the S2SD page defines, against closed forms and autograd; the page's experiments are not run."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cvlib.data.class_batches import ClassBatches
from cvlib.nn.backbones import SmallCNN
from cvlib.pages import definitions
from cvlib.train import Runtime


@pytest.fixture(scope="module")
def s2sd():
    return definitions("notebooks/s2sd.py")


class TinyViews:
    """Twelve classes of four pictures; every class has a colour of its own."""

    stage, hash = 0, "tiny"

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(12).repeat_interleave(4)
        colours = torch.rand(12, 3, 1, 1, generator=generator) * 2 - 1
        noise = 0.3 * torch.randn(48, 3, 32, 32, generator=generator)
        self.pictures = (colours[self.labels] + noise).clamp(-1, 1)

    def __len__(self) -> int:
        return 48

    def take(self, index, generator, n=1):
        return [self.pictures[index] for _ in range(n)]

    def fixed(self, index):
        return self.pictures[index]


def run(s2sd, tmp_path, steps=6, **method):
    torch.manual_seed(0)
    net = SmallCNN()
    network, heads, result = s2sd.train_method(
        s2sd.Method(dim=8, **method), net, TinyViews(), 0, steps, 16, 2,
        Runtime(device="cpu", precision="fp32"), str(tmp_path), quiet=True,
    )  # fmt: skip
    return network, heads, result


def test_auxiliary_parameters_are_the_papers(s2sd):
    with torch.device("meta"):
        heads = s2sd.build_heads(2048, (512, 1024, 1536, 2048))
    sizes = [sum(p.numel() for p in head.parameters()) / 1e6 for head in heads]
    assert [round(size, 2) for size in sizes] == [1.31, 3.15, 5.51, 8.39]  # the sheet's count


def test_what_is_kept_is_the_same_with_and_without_heads(s2sd, tmp_path):
    plain, _, _ = run(s2sd, tmp_path / "a", steps=1)
    taught, heads, _ = run(s2sd, tmp_path / "b", steps=1, widths=(16, 24), gamma=5.0, gamma_features=5.0)
    kept = [{name: p.shape for name, p in n.state_dict().items()} for n in (plain, taught)]
    assert kept[0] == kept[1] and len(heads) == 2
    assert not any("heads" in name for name in kept[1])


def test_frozen_stages_do_not_move_and_the_others_do(s2sd):
    net = SmallCNN()
    network = s2sd.EmbeddingNet(net, 1, 8)
    x = net.run(torch.rand(4, 3, 32, 32), stop=1)
    network(x).sum().backward()
    assert all(p.grad is None for p in net.stages[0].parameters())
    assert all(p.grad is not None for p in net.stages[-1].parameters())
    torch.testing.assert_close(network(x).norm(dim=1), torch.ones(4))


@pytest.mark.parametrize("pulled", [False, True])
def test_teachers_are_pulled_only_if_asked(s2sd, pulled):
    """With the objectives switched off the only gradient is the distillation's: on heads 0, unless pulled."""

    class Silent(nn.Module):
        def forward(self, e, labels):
            return 0.0 * e.sum()

    net = SmallCNN()
    network, heads = s2sd.EmbeddingNet(net, 0, 8), s2sd.build_heads(net.width, (16,))
    method = s2sd.Method(dim=8, widths=(16,), gamma=1.0, detach=not pulled)
    parameters = [*network.parameters(), *heads.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    objectives = nn.ModuleList([Silent(), Silent()])
    step = s2sd.s2sd_step(network, heads, objectives, optimizer, method, Runtime(device="cpu"), warmup=0)
    parts = step(next(ClassBatches(TinyViews(), 16, seed=0)), 0)
    moved = sum(p.grad.abs().sum() for p in heads.parameters())
    assert (moved > 0) == pulled and network.head.weight.grad.abs().sum() > 0
    torch.testing.assert_close(parts["loss"], parts["from heads"])


def test_the_features_wait_for_the_warm_up(s2sd, tmp_path):
    options = {"widths": (16,), "gamma": 1.0, "gamma_features": 1.0}
    _, _, result = run(s2sd, tmp_path, steps=6, warmup_share=0.5, **options)
    first = result.result["first_losses"]["from features"]
    assert first[:3] == [0, 0, 0] and all(value > 0 for value in first[3:6])


def test_control_without_teaching_keeps_the_half(s2sd, tmp_path):
    """Heads that do not teach: the loss is (own + mean of the heads) / 2, the plain arm's is its own."""
    _, _, heads = run(s2sd, tmp_path / "h", steps=1, widths=(16, 24))
    row = {name: values[0] for name, values in heads.result["first_losses"].items()}
    assert row["loss"] == pytest.approx((row["objective"] + row["heads"]) / 2, rel=1e-5)
    _, _, plain = run(s2sd, tmp_path / "p", steps=1)
    row = {name: values[0] for name, values in plain.result["first_losses"].items()}
    assert row["loss"] == row["objective"]


def test_training_finds_colours(s2sd, tmp_path):
    """Classes that differ in colour alone: chance is 3 / 47; a few steps of either do far better."""
    for objective in ("multisimilarity", "margin"):
        network, _, _ = run(
            s2sd, tmp_path / objective, steps=25, objective=objective, widths=(16,), gamma=1.0
        )
        z, _ = s2sd.embed(network, TinyViews(), Runtime(device="cpu", precision="fp32"))
        s = (z @ z.T).fill_diagonal_(-2)
        labels = TinyViews().labels
        assert (labels[s.argmax(1)] == labels).float().mean() > 0.5, objective


def test_unknown_objective_is_refused(s2sd):
    with pytest.raises(ValueError, match="nothing"):
        s2sd.build_objectives(s2sd.Method(objective="nothing"), 3)


def test_row_kl_is_half_the_variance_for_flat_rows(s2sd):
    """The page's reading of the distillation at T = 1, far from the sizes it uses itself."""
    generator = torch.Generator().manual_seed(1)
    a, b = (nn.functional.normalize(torch.randn(60, d, generator=generator)) for d in (400, 90))
    exact = s2sd.similarity_distillation(b, a).item()
    assert 0.5 * (a @ a.T - b @ b.T).var(1, correction=0).mean().item() == pytest.approx(exact, rel=0.15)
    assert exact < math.log(60)
