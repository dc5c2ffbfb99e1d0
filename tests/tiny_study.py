"""A study of the page "invariances" in small: patterns for drawings, networks that have learned nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cvlib.data import emoji, emoji_naming
from cvlib.data.base import Dataset, Draws
from cvlib.data.factors import factor_targets
from cvlib.nn.backbones import EfficientNetLite0
from cvlib.nn.experts import Judge, Judgement, freeze
from cvlib.nn.vae import VectorAutoencoder
from cvlib.pages import definitions
from cvlib.train import Runtime

CLASSES, HANDS, DIM, SIDE = 5, 3, 12, 64


NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def page() -> ModuleType:
    return definitions(NOTEBOOKS / "invariances.py")


def factors_page() -> ModuleType:
    return definitions(NOTEBOOKS / "invariances_factors.py")


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


def images(n=4, seed=1):
    """Squares of random colours, (n, 3, SIDE, SIDE) in [-1, 1]."""
    coarse = torch.rand(n, 3, SIDE // 8, SIDE // 8, generator=gen(seed)) * 2 - 1
    return coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)


class Drawings(Dataset):
    """A pattern for each item, mixed with the background that was drawn; the other factors are only told."""

    def __init__(self, n, seed):
        self.name, self.split, self.image_size, self.hash = "patterns", str(seed), SIDE, f"{n} {seed}"
        self.patterns = images(n, seed)
        chance = gen(seed)
        concept, hand = (torch.randint(k, (n,), generator=chance) for k in (CLASSES, HANDS))
        self.labels = {"concept": concept, "hand": hand}
        self.label_names = {"concept": list("abcde"), "hand": list("xyz")}

    def __len__(self):
        return len(self.patterns)

    def subset(self, rows):
        part = copy.copy(self)
        part.patterns, part.hash = self.patterns[rows], f"{self.hash} {rows.tolist()}"
        part.labels = {field: values[rows] for field, values in self.labels.items()}
        return part

    def draw(self, index, generator, augment):
        none = torch.zeros(len(index))
        return Draws(none, none, none, emoji.sample_factors(len(index), generator).tensor())

    def render(self, index, draws, device="cpu"):
        shown = (self.patterns[index] + draws.factors[:, :3, None, None]) / 2
        return {"image": shown, "factors": draws.factors}


@torch.no_grad()
def experts():
    """Namer, with statistics as after training, autoencoder and judge, all frozen."""
    torch.manual_seed(0)
    autoencoder = VectorAutoencoder(SIDE, DIM, (8, 8, 8), n_blocks=0, patch=2, thumbnail=16)
    autoencoder.start_from(images(40, seed=9))
    namer, judge = EfficientNetLite0(CLASSES), Judge(CLASSES, HANDS, SIDE // 16)
    for module in namer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    namer.fc.weight.mul_(5)
    namer(images(16, seed=9))
    for net in (namer, autoencoder, judge):
        freeze(net)
    return namer, autoencoder, judge


def open_study(page, nets, cache: Path, n_views=1, n_concepts=None, skipped=0):
    """What the page's ``open_study`` makes of 40 patterns; outputs lie in ``cache``."""
    data = {"train": Drawings(40, 2)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cvlib.data.outputs.cache_root", lambda: cache)
        patch.setattr(
            page, "emoji_naming", SimpleNamespace(load=lambda split, size: data[split], few=emoji_naming.few)
        )
        runtime = Runtime(device="cpu", precision="fp32")
        return page.open_study(*nets, SIDE, n_views, runtime, n_concepts, skipped)


@torch.no_grad()
def random_layer(page, study, name):
    """A flow with random weights that has seen a first batch, with the scale of its layer."""
    torch.manual_seed(0)
    z, x = study.z("train", name, study.fitted), study.known["train"].column("moments", study.fitted)
    flow = page.build_flow(DIM, tuple(z.shape[1:]), n_blocks=2, width=16, depth=1, dim_h=8)
    flow.cond_weight.mul_(8)  # what it says of a latent shall depend on the condition, as after training
    flow(x[:, :DIM], (z - z.mean()) / z.std())
    return page.LayerFlow(study, name, flow.eval(), z.mean().item(), z.std().item())


class Legible:
    """A study whose latents are their own pictures and state concept, hand and factors openly."""

    counts = {"concept": CLASSES, "hand": HANDS}  # noqa: RUF012  # a stand-in, never changed

    def __init__(self, page, n=300):
        chance = gen()
        self.labels = {f: torch.randint(k, (n,), generator=chance) for f, k in self.counts.items()}
        self.factors = factor_targets(emoji.sample_factors(n, chance).tensor())
        indicators = [F.one_hot(self.labels[field], count) for field, count in self.counts.items()]
        self.latents = torch.cat([*indicators, self.factors], 1)
        self.variance = self.latents.var(0).sum().item()  # of means, around which nothing spreads
        self.where = {"concept": slice(0, 5), "hand": slice(5, 8)}
        self.where |= {name: slice(8 + s.start, 8 + s.stop) for name, s in page.GROUPS.items()}

    def decode(self, z_bar):
        return z_bar

    def judged(self, pictures):
        return Judgement(*pictures.split([CLASSES, HANDS, 9], dim=1))

    def encode(self, name, pictures):
        return pictures

    def z(self, split, name, rows):
        return self.latents[rows]
