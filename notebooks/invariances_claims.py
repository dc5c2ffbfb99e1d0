# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What a network ignores: the evidence
#
# {doc}`invariances` and {doc}`invariances_factors` tell the story; this page has the evidence. The rules were written down and committed before the first recorded
# run. Each run leaves one file in `book/results/runs/invariances`, with its seed, device, time and commit, and all results below come from these files; what reads *not tested* is still
# missing runs. {doc}`../notation` says how a verdict is reached.
#
# Two claims must show (★). **I1**: *deeper layers ignore more of the hand while the concept stays*. **I5**: *at the last layer, pictures from the
# flow are nearer to drawings than those of decoders that were trained to invert it*. The others ask whether pictures of one representation differ more with depth, and only in a trained
# network (I2); whether they have the representation that they were made from (I3); whether $v$ knows nothing of the answer (I4); whether pictures stay as good up to the last layer (I6); when in
# training a network forgets (I7); where an attack takes effect (I8); whether factors can be exchanged (I9);
# and whether the way through the semantic flow and back costs nothing (I10).
#
# The experts are those of {doc}`experts` and {doc}`experts_brief`, one of each: a seed sets the start of a flow, its batches and its draws, not the network that is
# looked at. So every statement on this page is about one network.
#
# | scale | command | what it needs |
# |---|---|---|
# | quick | `papermill notebooks/invariances_claims.ipynb out.ipynb` | seconds: reads the committed results |
# | report | `make report CHAPTER=invariances` | the ledger below says how long; it may be stopped and goes on |
#
# Reading time: 12 minutes. Code of more than a dozen lines is folded in the book; [the verdict](#the-verdict) comes after it.

# %% tags=["hide-input"]
import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from cvlib import claims
from cvlib.data import emoji_naming
from cvlib.data.base import derived_generator
from cvlib.metrics import feature_batches, frechet, kid, real_floor
from cvlib.nn import ConditionalFlow, PatchDiscriminator, hinge_d_loss, hinge_g_loss, vgg_loss
from cvlib.nn.backbones import EfficientNetLite0, efficientnet_lite0
from cvlib.nn.experts import freeze, load_experts, measure_norms
from cvlib.nn.vae import DiagonalGaussian
from cvlib.notebooks import invariances as story
from cvlib.notebooks import invariances_factors as exchange
from cvlib.pages import begin
from cvlib.show import COLOURS, figure, look, say, show, table
from cvlib.train import Runtime, ended_after, fit, run_folder, seed_everything, warmup_linear

# %% tags=["parameters"]
steps = 2500  # of each run. Paper: 250,000, or 50,000 for ten classes
seed = 0  # the arms use the rule file's seeds
batch_size = 128  # paper: 16
image_size = 64  # paper: 128
n_blocks = 6  # paper: 20
width = 256  # paper: 1,024
n_views = 32  # of every drawing to learn from
n_concepts = 100  # that are studied. Paper: 149 animals of 1,000 classes, or ten
device = "auto"
precision = "auto"
run_dir = "runs/invariances_claims"
pretrained = True  # the experts are those of the book; there are no others
record = False  # True runs what is missing and writes book/results
only = []  # with record: these arms alone
tune = False  # True repeats the trials of the rivals' rates that the rules tell of
replay = False  # True replays the first 20 steps of runs whose code has changed since

# %%
page = begin("invariances_claims", globals(), pretrained=True)
experts = page.definitions("experts")
if page.smoke:
    batch_size, n_blocks, width, n_views, n_concepts = 16, 2, 16, 1, 15
runtime = Runtime(device=device, precision=precision)
seed_everything(seed)
print(runtime.describe())

# %% [markdown]
# ## The ledger

# %%
CHAPTER = "invariances"
claims.ledger(CHAPTER)

# %% [markdown]
# ## The arms
#
# A flow for each of six layers; for two of them in a network of the same build that learned nothing; for one of them in networks that
# were taught for a shorter time. Inverters of the first and the last layer, as rivals. The semantic flow.


# %% tags=["hide-input"]
@dataclass(frozen=True)
class Arm:
    """What is trained: a flow of a layer, an inverter of it, or the semantic flow; and in which network."""

    layer: str
    kind: str = "flow"  # "regression": the latent by squared error; "decoder": the picture; "semantic"
    taught: float = 1.0  # part of the namer's training; 0: ImageNet alone; -1: random weights


ARMS = {
    "block-2": Arm("block 2"),
    "block-4": Arm("block 4"),
    "block-6": Arm("block 6"),
    "pooled": Arm("pooled"),
    "logits": Arm("logits"),
    "softmax": Arm("softmax"),
    "regression-block-2": Arm("block 2", "regression"),
    "regression-softmax": Arm("softmax", "regression"),
    "decoder-softmax": Arm("softmax", "decoder"),
    "semantic": Arm("", "semantic"),
    "untrained-block-2": Arm("block 2", taught=-1.0),
    "untrained-pooled": Arm("pooled", taught=-1.0),
    "logits-at-0": Arm("logits", taught=0.0),
    "logits-at-5": Arm("logits", taught=0.05),
    "logits-at-25": Arm("logits", taught=0.25),
}
SKIPPED = (
    story.TEST_VIEWS
)  # views of every drawing that the story and the trials of the recipe were judged on
N_MEASURED = 512  # test views
N_DRAWN = 4  # pictures of each
N_REAL = 1024  # drawings that samples are held against
N_PAIRS = 8192  # of each factor, for the semantic flow
N_BLOCKS = 4  # random blocks that are exchanged in place of a factor's
SEMANTIC = {"n_blocks": 12, "width": 128, "learning_rate": 3e-4}  # as on the page that tells of it
SEMANTIC_STEPS = 0.6  # of a flow's
DECODER_STEPS = 0.3  # of a flow's: a step costs several times as much
RIVAL_RATES = {"regression": 3e-4, "decoder": 2e-4}  # by trials
NAMER_STEPS = 960  # of the committed namer, of which ``taught`` is a part


# %% [markdown]
# **The untrained network** has random weights and the statistics that its norms measure on drawings, without which nothing would
# come through. **Networks taught for a shorter time** were fine-tuned as the namer was, with a schedule of their own that ends
# earlier; at 0 % it is the network that knows ImageNet, under a random last layer. The norms of the others are measured on drawings as well: after 48 steps a
# running mean of a hundredth a step would still be mostly ImageNet's.


# %% tags=["hide-input"]
def untrained(n_classes: int, drawings: Tensor) -> EfficientNetLite0:
    """Return a random EfficientNet-Lite0 whose norms have the statistics of ``drawings`` (N, 3, S, S), frozen."""
    net = EfficientNetLite0(n_classes)
    measure_norms(net, drawings)
    return net


def taught(part: float, image_size: int, runtime: Runtime, root: str, batch: int = 64) -> EfficientNetLite0:
    """Return a namer taught for ``part`` of the usual steps, frozen; a finished run is recognised.

    In the precision that the committed namer had, float32 on a CPU.
    """
    data = emoji_naming.load("train", image_size)
    n_classes = len(data.label_names["concept"])
    is_cpu = runtime.device.type == "cpu"
    plain = Runtime(device=str(runtime.device), precision="fp32" if is_cpu else runtime.precision)
    seed_everything(0)
    net = plain.prepare(experts.build_namer(n_classes))
    n_steps = round(part * NAMER_STEPS)
    if n_steps:
        optimizer = torch.optim.AdamW(net.parameters(), lr=5e-4, weight_decay=0.05)
        config = {"expert": "namer", "part": part, "steps": n_steps, "batch_size": batch, "data": data.hash}
        config |= {"precision": plain.precision}
        fit(
            run_folder(root, "namer", config),
            config=config,
            modules={"namer": net},
            optimizers={"namer": optimizer},
            batches=data.batches(batch, seed=0, device=plain.device),
            step=experts.namer_step(net, optimizer, plain),
            steps=n_steps,
            runtime=plain,
            schedules={"namer": warmup_linear(max(1, n_steps // 20), n_steps)},
        )
        images = data.images(spread_over(len(data), 1024))
        measure_norms(net, images.to(plain.device))  # running means lag behind weights that moved this fast
    freeze(net)
    return net


# %% [markdown]
# ## The rivals
#
# The **regression** begins where the flow begins, at the linear guess, with the same embedder $H$ and behind it a perceptron of as many weights as the flow's blocks have; it goes
# for the mean latent by squared error. The **decoder** is what the paper calls the inverter of Dosovitskiy and Brox: from $z$ straight to the picture, with an absolute, a perceptual and an
# adversarial loss, as the autoencoder has them. It too gets what the flow has: the linear guess, and behind it the autoencoder's finished decoder, which goes on
# learning. Both give one picture for one representation.


# %% tags=["hide-input"]
class Regression(nn.Module):
    """From z to the mean latent: H and the linear guess of a ``flow``, and a perceptron of the size of its blocks.

    The last layer begins at zero, so that training begins at the guess.
    """

    def __init__(self, flow: ConditionalFlow) -> None:
        super().__init__()
        self.embedder, self.guess = flow.embedder, flow.guess
        within, dim = self.embedder.dim, flow.dim
        wanted = sum(p.numel() for p in flow.parameters())
        for part in (self.embedder, self.guess):
            wanted -= 0 if part is None else sum(p.numel() for p in part.parameters())
        middle = within + dim + 2  # hidden² + middle hidden + dim weights
        hidden = max(8, round((math.sqrt(middle**2 + 4 * (wanted - dim)) - middle) / 2))
        self.layers = nn.Sequential(
            nn.Linear(within, hidden),
            nn.LeakyReLU(0.01),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.01),
            nn.Linear(hidden, dim),
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, cond: Tensor) -> Tensor:
        """Return latents (B, dim) of conditions (B, ...)."""
        more = self.layers(self.embedder(cond))
        return more if self.guess is None else self.guess(cond) + more


class Inverter(nn.Module):
    """From z to the picture: a regression, and behind it a copy of the autoencoder's decoder that goes on learning."""

    def __init__(self, flow: ConditionalFlow, decoder: nn.Module) -> None:
        super().__init__()
        self.regression = Regression(flow)
        self.guess = self.regression.guess
        self.decoder = copy.deepcopy(decoder).requires_grad_(True)

    def forward(self, cond: Tensor) -> Tensor:
        """Return pictures (B, 3, side, side) of conditions (B, ...)."""
        return self.decoder(self.regression(cond))


def regression_step(
    net: Regression, layer: Any, optimizer: torch.optim.Optimizer, runtime: Runtime
) -> Callable[[dict[str, Tensor], int], dict[str, Tensor]]:
    """Return ``step(batch, t) -> parts``: squared error to the mean of q, gradients clipped as the flow's are."""

    def step(batch: dict[str, Tensor], t: int) -> dict[str, Tensor]:
        loss = F.mse_loss(net(layer.condition(batch)), DiagonalGaussian(batch["moments"]).mean)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        runtime.clip(optimizer, 10.0)
        optimizer.step()
        return {"loss": loss.detach()}

    return step


def inverter_step(
    net: Inverter,
    critic: nn.Module,
    layer: Any,
    optimizers: dict[str, torch.optim.Optimizer],
    perceptual: nn.Module,
    runtime: Runtime,
    disc_from: int,
) -> Callable[[dict[str, Tensor], int], dict[str, Tensor]]:
    """Return ``step(batch, t) -> parts``: L1, VGG and, from ``disc_from`` on, adversarial loss of the picture.

    Source: Dosovitskiy and Brox 2016 (Generating Images with Perceptual Similarity Metrics), Eq. 2, with the
    distances and the adaptive weight of the page ``experts``. Batches hold "rows" of the training outputs.
    """

    def step(batch: dict[str, Tensor], t: int) -> dict[str, Tensor]:
        x = layer.study.known["train"].pictures(batch["index"].cpu()).to(runtime.device)
        with runtime.autocast():
            x_rec = net(layer.condition(batch))
        x_hat = x_rec.detach().float().requires_grad_()
        rows, columns = experts.window(x.shape[-1], derived_generator(t, "window"))
        with runtime.autocast():
            with torch.no_grad():
                known = perceptual.features(x[:, :, rows, columns])
            distance = perceptual(x_hat[:, :, rows, columns], known).mean()
        loss = (x - x_hat).abs().mean() + 0.25 * distance
        (g,) = torch.autograd.grad(loss, x_hat)
        parts = {"loss": loss}
        if t >= disc_from:
            with runtime.autocast():
                real, fake = critic(x).float(), critic(x_hat.detach()).float()
            against, margin = hinge_d_loss(real, fake), (real.mean() - fake.mean()).detach()
            optimizers["critic"].zero_grad(set_to_none=True)
            against.backward()
            optimizers["critic"].step()
            with runtime.autocast():
                (g_gan,) = torch.autograd.grad(hinge_g_loss(critic(x_hat)), x_hat)
            lam = experts.taming.adaptive_weight(x_rec, g, g_gan, net.decoder.last_layer)
            g = g + 0.5 * margin.clamp(0, 1) * lam * g_gan
            parts["margin"] = margin
        optimizers["net"].zero_grad(set_to_none=True)
        x_rec.backward(g.to(x_rec.dtype))
        optimizers["net"].step()
        return {name: torch.as_tensor(part).detach() for name, part in parts.items()}

    return step


# %% [markdown]
# ## The judge
#
# A hundred of the namer's concepts are studied, as in the story. All measures are taken on views of their drawings that no flow has learned from, and only on
# views that the namer names correctly: of the others its answer never held the concept. From each of 512 such views a layer's flow draws four pictures, and the story's
# measures are taken on them. The judge chooses among the hundred concepts.
#
# - **concept kept**: how often the judge still sees the concept, as a share of how often it does so after the autoencoder alone. For a flow all four pictures of a
#   view count, for a rival the one that it has.
# - **hand above chance**: how much more often the judge sees the drawing's hand than a guess of the commonest hand would be right.
# - **v explains**: the share of the latents' variance that is left among pictures of one representation.
# - **consistency**: the cosine between the representation of a picture and the one that it was made from, minus the cosine with another drawing's.
# - **read from v**: how much more often than by chance a linear probe on $v$ tells the concept, and a perceptron (*deep*). Both learn from views that no flow has
#   seen, since on its own training views a flow has made $v$ look more Gaussian than it is. Both also read the latent itself, where the concept is; otherwise their silence on $v$ would
#   say nothing.
# - **Fréchet, KID**: distance of the pictures, one for each view, from real test drawings in features of the ImageNet network, which took part in no
#   loss; Fréchet in the 64 main directions of the real ones. Beside them stand two floors: one half of the real drawings against the other, and the autoencoder's own reconstructions.
# - **arrives, stays**: how much of an exchanged factor arrives, and how much of the others stays, as the story has them.


# %% tags=["hide-input"]
@dataclass(frozen=True)
class Bench:
    """What all arms share: the study of the namer, real features, the recipe and the ceilings."""

    study: Any
    recipe: Any
    real: Tensor  # features (N, D) of test drawings
    features: Callable[[Tensor], Tensor]
    rows: Tensor  # the test drawings that are measured
    ceiling: dict[str, float]
    floor: dict[
        str, float
    ]  # the distances of real halves from each other, and of reconstructions from the real
    root: str
    studies: dict[float, Any]  # of each network, by how long it was taught; 1 is the namer
    readings: dict[str, dict[str, float]]  # what probes read without any flow, the same for all seeds
    small: bool


def lay_out(
    image_size: int,
    n_views: int,
    n_concepts: int,
    recipe: Any,
    runtime: Runtime,
    root: str,
    small: bool,
    skipped: int = SKIPPED,
) -> Bench:
    """Return the bench; what the experts say of the drawings is computed once."""
    namer, autoencoder, judge = load_experts(page.weights, runtime, "experts_brief")
    study = story.open_study(namer, autoencoder, judge, image_size, n_views, runtime, n_concepts, skipped)
    eye = runtime.prepare(efficientnet_lite0(not small))

    def features(pictures: Tensor) -> Tensor:
        return feature_batches(eye, pictures)

    n = len(study.known["test"])
    rows = story.named_rightly(study, N_MEASURED)
    again = study.judged(study.decode(study.latents[rows]))
    ceiling = {
        "concept": story.right(again.concept, study.labels["concept"][rows]),
        "hand": story.right(again.hand, study.labels["hand"][rows]),
    }
    real = features(study.known["test"].pictures(spread_over(n, N_REAL)))
    bench = Bench(study, recipe, real, features, rows, ceiling, {}, root, {1.0: study}, {}, small)
    again = realism(bench, study.decode(study.latents[rows]))
    bench.floor.update({f"{name}, autoencoder": value for name, value in again.items()})
    half = len(real) // 2
    floors = {
        "Fréchet": real_floor(partial(frechet, dim=min(64, half - 2)), real),
        "KID": real_floor(partial(kid, subset_size=min(500, half)), real),
    }
    bench.floor.update({f"{name}, real halves": float(value) for name, value in floors.items()})
    return bench


def spread_over(n: int, count: int) -> Tensor:
    """Return at most ``count`` rows, spread evenly over ``n``."""
    return torch.linspace(0, n - 1, min(n, count)).round().long()


def realism(bench: Bench, pictures: Tensor) -> dict[str, float]:
    """Return the distances of pictures (N, 3, S, S) from real test drawings, in features of the ImageNet network."""
    made = bench.features(pictures)
    dim = min(64, len(bench.real) - 2, len(made) - 2)
    subset = min(500, len(bench.real), len(made))
    return {
        "Fréchet": float(frechet(bench.real, made, dim)),
        "KID": float(kid(bench.real, made, subset_size=subset)),
    }


def above_floor(bench: Bench, pictures: Tensor) -> dict[str, float]:
    """Return :func:`realism` of pictures, the floors, and by how much the Fréchet distance is above the autoencoder's."""
    found = realism(bench, pictures)
    left = found["Fréchet"] - bench.floor["Fréchet, autoencoder"]
    return found | bench.floor | {"Fréchet above the autoencoder": left}


def beside(bench: Bench, concept: float, hand: float) -> dict[str, float]:
    """Return rates of concept and hand, as the judge sees them, against ceiling and chance."""
    hands = bench.study.labels["hand"]
    return {
        "concept kept": concept / max(bench.ceiling["concept"], 1e-6),
        "hand above chance": hand - hands.bincount().max().item() / len(hands),
    }


def seen_in(bench: Bench, pictures: Tensor, rows: Tensor) -> dict[str, float]:
    """Return what the judge sees of the test rows (N,) in pictures (N, 3, S, S), against ceiling and chance."""
    said, labels = bench.study.judged(pictures), bench.study.labels
    return beside(
        bench,
        story.right(said.concept, labels["concept"][rows]),
        story.right(said.hand, labels["hand"][rows]),
    )


def readings_of(bench: Bench, study: Any) -> dict[str, float]:
    """Return what probes read from the latent itself, above chance as from v: the same for every flow of a study."""
    key = study.known["fresh"].hash  # it tells the network
    if key not in bench.readings:
        latents = DiagonalGaussian(study.known["fresh"].column("moments")).mean
        line = story.probe(study, latents, study.latents, split="fresh")
        deep = story.deep_probe(study, latents, study.latents)
        bench.readings[key] = named(study, "the latent", line) | named(study, "the latent, deep", deep)
    return bench.readings[key]


def named(study: Any, source: str, read: dict[str, float]) -> dict[str, float]:
    """Return what a probe read, by field, as measures; the concept above chance."""
    found = {f"{field} read from {source}": value for field, value in read.items()}
    return found | {f"concept read from {source}": read["concept"] - 1 / len(study.concepts)}


def judge_flow(bench: Bench, layer: Any, seed: int) -> dict[str, float]:
    """Return all measures of a layer's flow."""
    study = layer.study
    generator = derived_generator(seed, "judge", layer.name)
    values = story.measure(layer, bench.rows, generator, N_DRAWN)
    values |= beside(bench, values["concept"], values["hand"])
    one = study.decode(layer.resample(bench.rows, 1, generator)[:, 0])  # as many pictures as a rival has
    values |= above_floor(bench, one)
    values["NLL"] = layer.nll()
    v, v_test = (layer.invariances(s, torch.arange(len(study.known[s]))) for s in ("fresh", "test"))
    values |= named(study, "v", story.probe(study, v, v_test, split="fresh"))
    values |= named(study, "v, deep", story.deep_probe(study, v, v_test))
    return values | readings_of(bench, study) | through_attack(bench, layer)


def read_in_layers(bench: Bench, study: Any) -> dict[str, float]:
    """Return what a linear probe reads in every layer of a network, without any flow."""
    found = bench.readings.setdefault(f"{study.known['train'].hash}, layers", {})
    for name in story.LAYERS if not found else ():
        read = story.probe(study, study.z("train", name, study.probed), study.z("test", name))
        found |= {f"{name}: {field}": value for field, value in read.items()}
    return found


def through_attack(bench: Bench, layer: Any) -> dict[str, float]:
    """Return how often the judge sees the namer's new answer in attacked drawings as the layer has them.

    Among drawings that the namer names rightly and, once attacked, wrongly; beside it for noise of equal size.
    """
    study = layer.study
    answer = study.z("test", "logits", bench.rows).argmax(1)
    rows = bench.rows[answer == study.labels["concept"][bench.rows]]
    if not len(rows):
        return {}
    clean = study.known["test"].pictures(rows)
    attacked = story.attack(study, clean, story.EPSILON)
    noisy = story.attack(study, clean, story.EPSILON, derived_generator(0, "noise"))
    new = study.among(study.encode("logits", attacked)).argmax(1)
    fooled = new != study.labels["concept"][rows]
    if not fooled.any():
        return {}
    found = {}
    for name, images in (("attack", attacked), ("noise", noisy)):
        said = study.judged(story.seen_through(layer, rows[fooled], images[fooled])).concept
        found[f"seen as wrong, {name}"] = story.right(said, new[fooled])
        found[f"seen as it was, {name}"] = story.right(said, study.labels["concept"][rows[fooled]])
    return found


def block_swap(
    sizes: list[int],
    factor: str,
    semantic: Any,
    generator: torch.Generator,
    z_bar: Tensor,
    donor: Tensor,
    _: str,
) -> Tensor:
    """Return latents in which as many features of e as a factor has, chosen at random, are the donor's."""
    device = next(semantic.parameters()).device
    own, other = (torch.cat(semantic(z.to(device))[0], 1) for z in (z_bar, donor))
    size = sizes[1 + exchange.SHARED.index(factor)]
    taken = torch.randperm(own.shape[1], generator=generator)[:size].to(device)
    mixed = own.clone()
    mixed[:, taken] = other[:, taken]
    return semantic.inverse(mixed.split(sizes, 1)).cpu()


@torch.no_grad()
def judge_semantic(bench: Bench, semantic: Any, sizes: list[int], seed: int) -> dict[str, float]:
    """Return how well factors are exchanged, by the flow, by a probe and by random blocks; and what the round trip costs."""
    study, values = bench.study, {}
    swaps = {
        "": partial(exchange.edited, semantic),
        ", probe": partial(exchange.moved, study),
    }
    for name, change in swaps.items():
        scores = {
            factor: exchange.edit_scores(study, change, factor, bench.rows) for factor in exchange.SHARED
        }
        values |= {f"{factor} arrives{name}": arrives for factor, (arrives, _) in scores.items()}
        values |= {f"arrives{name}": float(np.mean([a for a, _ in scores.values()]))}
        values |= {f"others stay{name}": float(np.mean([b for _, b in scores.values()]))}
    chance = derived_generator(seed, "blocks")
    random = [
        exchange.edit_scores(study, partial(block_swap, sizes, factor, semantic, chance), factor, bench.rows)
        for factor in exchange.SHARED
        for _ in range(1 if bench.small else N_BLOCKS)
    ]
    values |= {
        "arrives, random block": float(np.mean([a for a, _ in random])),
        "others stay, random block": float(np.mean([b for _, b in random])),
    }
    device = next(semantic.parameters()).device
    z_bar = study.latents[bench.rows].to(device)
    back = semantic.inverse(semantic(z_bar)[0])
    values["error of the round trip"] = (back - z_bar).abs().max().item()
    before, after = (study.encode("logits", study.decode(z.cpu())).argmax(1) for z in (z_bar, back))
    values["answers changed by the round trip"] = (before != after).float().mean().item()
    return values


# %% [markdown]
# ## Running what is missing
#
# With `record=True` the page trains every run that the rules ask for and no file holds, judges it once on test and writes it down as soon as it
# ends. Interrupted, it goes on where it stopped. When the code that a run rests on has changed,
# `make verify-results CHAPTER=invariances` replays its first 20 steps: equal losses keep the run.


# %% tags=["hide-input"]
def study_of(bench: Bench, part: float) -> Any:
    """Return the study of the network that an arm looks into; what it says of the drawings is cached."""
    if part not in bench.studies:
        own = bench.study
        data, runtime = own.known["train"], own.runtime
        if part < 0:
            seed_everything(0)
            images = data.pictures(spread_over(len(own.fitted), 1024))
            net = runtime.prepare(untrained(own.counts["concept"], images))
        else:
            net = taught(part, data.image_size, runtime, bench.root)
        bench.studies[part] = story.open_study(
            net,
            own.autoencoder,
            own.judge,
            data.image_size,
            data.n_views,
            runtime,
            len(own.concepts),
            SKIPPED,
        )
    return bench.studies[part]


def train_rival(
    bench: Bench, arm: Arm, seed: int, root: str, rate: float | None = None
) -> tuple[Callable[[Tensor], Tensor], Any]:
    """Return a function from test rows (N,) to pictures (N, 3, S, S), and the run of an inverter.

    ``rate`` of learning: by default the one that trials chose for its kind.
    """
    rate = rate or RIVAL_RATES[arm.kind]
    seed_everything(seed)
    study, recipe = study_of(bench, arm.taught), bench.recipe
    runtime, data = study.runtime, study.known["train"]
    z, dim = study.z("train", arm.layer, study.fitted), study.latents.shape[1]
    flow = story.build_flow(dim, tuple(z.shape[1:]), recipe.n_blocks, recipe.width, recipe.depth)
    layer = story.LayerFlow(study, arm.layer, runtime.prepare(flow), z.mean().item(), z.std().item())
    story.fit_guess(layer)
    if arm.kind == "regression":
        net, n_steps, batch = runtime.prepare(Regression(flow)), recipe.steps, recipe.batch_size
        optimizers = {"net": torch.optim.Adam(story.rate_groups(net, rate))}
        modules, step = {"net": net}, regression_step(net, layer, optimizers["net"], runtime)
    else:
        net = runtime.prepare(Inverter(flow, study.autoencoder.decoder))
        critic = runtime.prepare(PatchDiscriminator(ch=32, n_layers=3, norm="none"))
        n_steps, batch = max(2, round(DECODER_STEPS * recipe.steps)), min(32, recipe.batch_size)
        optimizers = {
            "net": torch.optim.Adam(story.rate_groups(net, rate), betas=(0.5, 0.99)),
            "critic": torch.optim.Adam(critic.parameters(), lr=rate / 2, betas=(0.5, 0.99)),
        }
        perceptual = runtime.prepare(vgg_loss(pretrained=not bench.small))
        modules = {"net": net, "critic": critic}
        step = inverter_step(net, critic, layer, optimizers, perceptual, runtime, n_steps // 2)
    config = {
        "rival": arm.kind,
        "layer": arm.layer,
        "seed": seed,
        "data": data.hash,
        **vars(recipe),
        "steps": n_steps,
        "learning_rate": rate,
    }
    run = fit(
        run_folder(root, f"{arm.kind}-{arm.layer}".replace(" ", "-"), config),
        config=config,
        modules=modules,
        optimizers=optimizers,
        batches=data.only("moments", story.column_of(arm.layer)).batches(
            batch, seed=seed, device=runtime.device
        ),
        step=step,
        steps=n_steps,
        runtime=runtime,
        schedules={"net": warmup_linear(max(1, n_steps // 20), n_steps)},
    )

    @torch.no_grad()
    def paint(rows: Tensor) -> Tensor:
        made = torch.cat(
            [
                net(layer.condition(study.batch("test", arm.layer, some))).float().cpu()
                for some in rows.split(128)
            ]
        )
        return study.decode(made) if arm.kind == "regression" else made.clamp(-1, 1)

    return paint, run


def run_arm(
    bench: Bench, name: str, seed: int, root: str, stop: int | None = None
) -> tuple[dict[str, float], Any]:
    """Train an arm with one seed; return its measures on test (none with ``stop``) and its run."""
    arm, recipe = ARMS[name], bench.recipe
    study = study_of(bench, arm.taught)
    with ended_after(stop):
        if arm.kind == "semantic":
            n_pairs = 32 if bench.small else N_PAIRS
            recipe = replace(recipe, **SEMANTIC, steps=max(2, round(SEMANTIC_STEPS * recipe.steps)))
            pairs = {
                factor: exchange.pairs_of(study, factor, n_pairs, "train", seed) for factor in exchange.SHARED
            }
            start = exchange.linear_factors(pairs, -1.0 if bench.small else exchange.FLOOR)
            semantic, run = exchange.train_semantic(study, pairs, start, recipe, seed, root)
            return ({} if stop else judge_semantic(bench, semantic, start.sizes, seed)), run
        if arm.kind == "flow":
            layer, run = story.train_flow(study, arm.layer, recipe, seed, root)
            if stop:
                return {}, run
            values = judge_flow(bench, layer, seed)
            is_probed = arm.layer == "logits" or arm.taught < 0  # one arm of every network, at least
            return (values | read_in_layers(bench, study) if is_probed else values), run
        paint, run = train_rival(bench, arm, seed, root)
    if stop:
        return {}, run
    pictures = paint(bench.rows)
    return seen_in(bench, pictures, bench.rows) | above_floor(bench, pictures), run


def run_and_record(bench: Bench, name: str, seed: int, root: str) -> None:
    """Run an arm with one seed and write book/results/runs/invariances/<arm>-s<seed>.json."""
    start = time.monotonic()
    values, run = run_arm(bench, name, seed, root)
    claims.record(
        CHAPTER,
        name,
        seed,
        values,
        config={"arm": vars(ARMS[name]), "run": json.loads((run.folder / "config.json").read_text())},
        data_hash=bench.study.known["train"].hash,
        losses=run.result["first_losses"]["loss"],
        curve=list(zip(*run.curve("loss"), strict=True)),
        seconds=time.monotonic() - start if run.resumed_from is None else run.seconds,
        peak_mb=run.result["peak_mb"],
        device=bench.study.runtime.describe(),
        command=f"make report CHAPTER={CHAPTER}",
    )


def in_order(pairs: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return (arm, seed) seed by seed, and within a seed as the arms are listed: whole pairs if it ends early."""
    place = {name: k for k, name in enumerate(ARMS)}
    return sorted(pairs, key=lambda pair: (pair[1], place[pair[0]]))


# %% tags=["hide-input"]
recipe = story.Recipe(steps, batch_size, n_blocks, width)
TRIALS = {"regression-softmax": (1e-4, 3e-4, 1e-3, 3e-3), "decoder-softmax": (1e-4, 2e-4, 5e-4, 1e-3)}
if tune:  # seed 0, judged on the views that the recipe of the flows was chosen on
    bench = lay_out(image_size, n_views, n_concepts, recipe, runtime, run_dir, small=False, skipped=0)
    rows = []
    for name, rates in TRIALS.items():
        for rate in rates:
            with TemporaryDirectory() as aside:
                paint, _ = train_rival(bench, ARMS[name], 0, aside, rate)
            pictures = paint(bench.rows)
            found = realism(bench, pictures) | seen_in(bench, pictures, bench.rows)
            rows.append([name, f"{rate:g}", *(found[m] for m in ("Fréchet", "KID", "concept kept"))])
            print(*rows[-1])
    table(rows, header=["arm", "rate", "Fréchet", "KID", "concept kept"], digits=3)
elif page.record:
    bench = lay_out(image_size, n_views, n_concepts, recipe, runtime, run_dir, small=False)
    for name, number in in_order(claims.missing(CHAPTER)):
        if not only or name in only:
            print(f"{name}, seed {number}")
            run_and_record(bench, name, number, run_dir)
            claims.aggregate(CHAPTER)  # after each run: a ledger that ends early is whole
elif replay:
    bench = lay_out(image_size, n_views, n_concepts, recipe, runtime, run_dir, small=False)
    for name, number in claims.stale(CHAPTER):
        with TemporaryDirectory() as aside:
            _, run = run_arm(bench, name, number, aside, stop=20)
        same = claims.confirm(CHAPTER, name, number, run.result["first_losses"]["loss"])
        print(f"{name}, seed {number}: {'as recorded' if same else 'STALE: other losses'}")
elif page.smoke:  # prove that every kind of arm trains and is judged; nothing is recorded
    bench = lay_out(image_size, n_views, n_concepts, replace(recipe, steps=2), runtime, run_dir, small=True)
    bench = replace(bench, rows=bench.rows[:32])
    wanted = claims.load_rules(CHAPTER).measures
    for name in (
        "softmax",
        "logits",
        "regression-softmax",
        "decoder-softmax",
        "semantic",
        "untrained-pooled",
    ):
        with TemporaryDirectory() as aside:
            values, _ = run_arm(bench, name, 0, aside)
        unseen = [measure for measure in wanted(name) if "seen as" not in measure]  # too few drawings to fool
        assert all(np.isfinite(values[measure]) for measure in unseen), name

# %% [markdown]
# ## The verdict

# %%
claims.claims_table(CHAPTER)

# %%
evidence = claims.Evidence(CHAPTER, "v explains")
evidence.plots()


# %% [markdown]
# ## Layer by layer
#
# Most tables show means over seeds, an arm in each row. Read the rows of the six layers from `block-2` to `softmax` as a way through the network, and compare those named
# `untrained` with the same layer of the namer: what both have in common is not due to training.


# %% tags=["hide-input"]
def means_table(measures: tuple[str, ...], caption: str, arms: tuple[str, ...] = tuple(ARMS)) -> None:
    """Show the means over seeds of ``measures``, a row for each of the ``arms`` that knows one of them."""
    rows = []
    for arm in arms:
        found = [evidence.over_seeds(arm, measure) for measure in measures]
        if any(found):
            rows.append([arm, max(map(len, found)), *(np.mean(v) if v else None for v in found)])
    if rows:
        table(rows, header=["arm", "seeds", *measures], caption=caption, digits=3)


DEPTH = ("block-2", "block-4", "block-6", "pooled", "logits", "softmax")
FLOWS = tuple(arm for arm in ARMS if ARMS[arm].kind == "flow")
means_table(
    ("v explains", "concept kept", "hand above chance", *story.GROUPS),
    "What pictures with one representation have in common, on 512 test views: the concept as part of the autoencoder's rate, the hand above the commonest, and the part of "
    "the variance of five factors that the representation holds.",
)
means_table(
    (
        "v explains, pictures",
        "consistency",
        "NLL",
        "concept read from v",
        "concept read from v, deep",
        "hand read from v",
        "hand read from v, deep",
        "concept read from the latent",
        "concept read from the latent, deep",
    ),
    "The part of the variance of pictures, pixel by pixel, that lies within one representation; how much nearer their representation is to its own than to another's; nats a "
    "dimension of the latent; what a linear probe, and a perceptron, read from v: the concept above chance, the hand as it is.",
    FLOWS,
)
means_table(
    tuple(f"{group} read from {source}" for source in ("v", "v, deep") for group in story.GROUPS),
    "What v holds of the factors: $R^2$ on test of a linear probe, and of a perceptron.",
    FLOWS,
)
means_table(
    ("Fréchet", "Fréchet above the autoencoder", "KID"),
    "How good the pictures are, in features of EfficientNet-Lite0, against 1,024 real test drawings: 512 pictures of each arm.",
)
if evidence.over_seeds("softmax", "KID"):
    floors = [
        [what, *(np.mean(evidence.over_seeds("softmax", f"{name}, {what}")) for name in ("Fréchet", "KID"))]
        for what in ("real halves", "autoencoder")
    ]
    table(
        floors,
        header=["what no arm can be expected to get under", "Fréchet", "KID"],
        caption="One half of the real drawings against the other, and reconstructions of those 512 drawings that the arms resample.",
        digits=3,
    )
means_table(
    ("seen as wrong, attack", "seen as wrong, noise", "seen as it was, attack", "seen as it was, noise"),
    "How often the judge sees the namer's wrong answer, or the right one, in attacked and in noisy drawings as a layer has them.",
    DEPTH,
)

# %% tags=["hide-input"]
FACTORS = [
    *((name, f"{name} arrives") for name in exchange.SHARED),
    ("mean of all", "arrives"),
    ("others stay", "others stay"),
]
if evidence.over_seeds("semantic", "arrives"):
    rows = [
        [
            name,
            *(
                np.mean(found) if (found := evidence.over_seeds("semantic", measure + end)) else None
                for end in ("", ", probe", ", random block")
            ),
        ]
        for name, measure in FACTORS
    ]
    table(
        rows,
        header=["factor", "second flow", "linear probe", "random block"],
        caption="What of a donor's factor arrives in edited pictures, and what of the others stays. Means over seeds.",
        digits=2,
    )

# %% tags=["hide-input"]
complete = [arm for arm in DEPTH if evidence.over_seeds(arm, "v explains")]
if len(complete) == len(DEPTH):
    fig, axes = figure(columns=2, height=3)
    for measure, role in (("concept kept", "ours"), ("hand above chance", "baseline")):
        points = [evidence.over_seeds(arm, measure) for arm in DEPTH]
        axes[0].plot(
            range(len(DEPTH)), [np.mean(p) for p in points], **look(role, marker=True), label=measure
        )
    axes[0].axhline(0, color=COLOURS["control"], linewidth=1)
    for prefix, role in (("", "ours"), ("untrained-", "control")):
        points = [
            (k, np.mean(evidence.over_seeds(prefix + arm, "v explains")))
            for k, arm in enumerate(DEPTH)
            if evidence.over_seeds(prefix + arm, "v explains")
        ]
        axes[1].plot(
            *zip(*points, strict=True), **look(role, marker=True), label="untrained" if prefix else "namer"
        )
    for ax, text in zip(axes, ("part", "variance of z̄ that v explains"), strict=True):
        ax.set_xticks(range(len(DEPTH)), DEPTH, rotation=30)
        ax.set(ylabel=text, ylim=(None, 1.05))
        ax.legend()
    show(
        fig,
        alt="Left: concept kept and hand above chance by layer. Right: the variance that v explains, in the namer and in an untrained network.",
        caption="Means over seeds. What a layer keeps of concept and hand, and how much its pictures differ.",
    )


# %% tags=["hide-input"]
def mean_of(arm: str, measure: str) -> float:
    """Return the mean over seeds."""
    return float(np.mean(evidence.over_seeds(arm, measure)))


SHORT = {
    "logits-at-0": 0,
    "logits-at-5": 5,
    "logits-at-25": 25,
    "logits": 100,
}  # per cent of the namer's training
if len(complete) == len(DEPTH):
    first, last = DEPTH[0], DEPTH[-1]
    hands, within = ([mean_of(arm, m) for arm in DEPTH] for m in ("hand above chance", "v explains"))
    rises = {
        what: all(a <= b for a, b in pairwise(values))
        for what, values in (("v", within), ("hand", hands[::-1]))
    }
    say(
        "Layer by layer the hand is seen above chance in "
        + ", ".join(f"{100 * x:.0f}" for x in hands)
        + " points and $v$ explains "
        + ", ".join(f"{x:.2f}" for x in within)
        + " of the variance. "
        + (
            "The hand falls from layer to layer. "
            if rises["hand"]
            else "**The hand does not fall from layer to layer**: I1 compares the answer with the first layer. "
        )
        + (
            "$v$ explains more from layer to layer."
            if rises["v"]
            else "Nor does $v$ explain more from layer to layer. (In the paper the exception is the input, which is not asked here.)"
        )
    )
    rank = spearmanr(range(len(DEPTH)), [mean_of(arm, "v explains, pictures") for arm in DEPTH]).statistic
    say(
        f"In pictures, pixel by pixel, the part that differs between draws has a rank correlation of {rank:.2f} with depth."
    )
    say(
        f"From {first} to {last} the variance of the ground that pictures share falls from {mean_of(first, 'background'):.2f} to {mean_of(last, 'background'):.2f} and "
        f"that of the shift from {mean_of(first, 'shift'):.2f} to {mean_of(last, 'shift'):.2f}; the hand is seen {100 * mean_of(first, 'hand above chance'):.0f} and "
        f"{100 * mean_of(last, 'hand above chance'):.0f} points above the commonest. The concept goes the other way, from {mean_of(first, 'concept kept'):.0%} "
        f"to {mean_of(last, 'concept kept'):.0%} of the autoencoder's rate: what a deep layer says of it is easier to draw."
    )

if evidence.comparisons("I5"):
    kept = {arm: mean_of(arm, "concept kept") for arm in ("softmax", "decoder-softmax", "regression-softmax")}
    say(
        f"What the rivals of I5 are worth: of the concept the decoder's pictures keep {kept['decoder-softmax']:.0%} of the autoencoder's rate, those of the regression "
        f"{kept['regression-softmax']:.0%}, those of the flow {kept['softmax']:.0%}. "
        + (
            "**The decoder has failed**, so that to beat it says little; the regression is the rival to look at."
            if kept["decoder-softmax"] < 0.3
            else "Both rivals paint what the answer says; the distance says how much like drawings it looks."
        )
    )


# %% tags=["hide-input"]
def start_and_peak(arm: str) -> tuple[float, float]:
    """Return the loss of an arm in its first 20 steps, and the highest mean of its curve, both over seeds."""
    of_arm = [run for run in evidence.runs if run["arm"] == arm]
    begun = np.mean([np.mean(run["losses"]) for run in of_arm])
    return float(begun), float(np.mean([max(loss for _, loss in run["curve"]) for run in of_arm]))


losses = {arm: start_and_peak(arm) for arm in FLOWS if evidence.over_seeds(arm)}
left = {arm: (begun, peak) for arm, (begun, peak) in losses.items() if peak > begun + 5}
if left:
    say(
        "**Flows that lose their way at first.** "
        + "; ".join(
            f"that of `{arm}` begins at {begun:.2f} nats a dimension and rises to {peak:.0f}, mean over a tenth of the steps"
            for arm, (begun, peak) in left.items()
        )
        + ". They come back, but with less time to learn. What such a layer seems not to know is partly what its flow had no time for; and I6, which takes the first layer as the reference, is easier by that."
    )

# %% [markdown]
# ## While the network learns
#
# The paper follows the layers of a network on ColorMNIST through training: the digit comes, the background goes, and the two curves cross once. Here are networks
# that were taught for a part of the namer's time. On the left, by flows: what the pictures of the same logits have in common. On the right, without any flow: what a linear probe
# reads in every layer.


# %% tags=["hide-input"]
def read_by_a_line(arms: dict[str, str], fields: tuple[str, ...]) -> None:
    """Show what a linear probe reads in every layer of the networks of ``arms`` (arm: its name)."""
    rows = [
        [f"{name}, {what}", *(mean_of(arm, f"{name}: {field}") for field in fields)]
        for name in story.LAYERS
        for arm, what in arms.items()
        if evidence.over_seeds(arm, f"{name}: {fields[0]}")
    ]
    if rows:
        table(
            rows,
            header=["layer and network", *fields],
            caption="What a linear probe reads in each layer, without any flow: concept and hand as a rate, the factors as $R^2$.",
            digits=2,
        )


read_by_a_line({"logits": "namer", "untrained-pooled": "random weights"}, story.ASKED)

known = [arm for arm in SHORT if evidence.over_seeds(arm, "concept kept")]
if len(known) == len(SHORT):
    fig, axes = figure(columns=2, height=3)
    for measure, role in (
        ("concept kept", "ours"),
        ("background", "baseline"),
        ("hand above chance", "control"),
    ):
        axes[0].plot(
            range(len(known)),
            [mean_of(arm, measure) for arm in known],
            **look(role, marker=True),
            label=measure,
        )
    axes[0].set_xticks(range(len(known)), [f"{SHORT[arm]} %" for arm in known])
    axes[0].set(xlabel="of the namer's training", ylabel="part", ylim=(None, 1.3))
    axes[0].legend()
    for k, arm in enumerate(known):
        axes[1].plot(
            range(len(DEPTH)),
            [mean_of(arm, f"{name}: hand") for name in story.LAYERS],
            marker="o",
            color=f"C{k}",
            label=f"{SHORT[arm]} %",
        )
    axes[1].set_xticks(range(len(DEPTH)), DEPTH, rotation=30)
    axes[1].set(ylabel="hand, read by a line", ylim=(0, 1.25))
    axes[1].legend(ncols=2)
    show(
        fig,
        alt="; ".join(
            f"{SHORT[arm]} %: concept kept {mean_of(arm, 'concept kept'):.2f}, ground {mean_of(arm, 'background'):.2f}"
            for arm in known
        ),
        caption="Left: what pictures of one representation have in common, logits of networks taught for a part of the time. Right: how often a linear probe tells the hand from each layer of the same networks.",
    )
    concept, ground = ([mean_of(arm, m) for arm in known] for m in ("concept kept", "background"))
    signs = [c > g for c, g in zip(concept, ground, strict=True)]
    crossings = sum(a != b for a, b in pairwise(signs))
    say(
        "The concept kept is "
        + ", ".join(f"{x:.2f}" for x in concept)
        + ", the part of the ground "
        + ", ".join(f"{x:.2f}" for x in ground)
        + f": the curves cross {('not at all', 'once', 'twice', 'three times')[crossings]}. Only the logits were followed with flows; the probe of all layers is cheap and linear."
    )

# %% [markdown]
# **What the runs cannot say.** One network was looked at, of one build, on drawings of 64 pixels; seeds are those of the flow. A flow of this size
# does not reach the likelihood of a larger one, and what it misses appears as if the layer ignored it: the softmax is the logits up to one number, so what
# differs between the two is what a flow makes of small numbers, not what the network dropped. The judge errs too: rates
# are compared with its rate after the autoencoder alone. Four of the six factors stand in the latent because a network was told to read them ({doc}`experts`), so that their exchange is
# easier than that of a concept or a hand. The recipe of the flows was chosen by trials on two layers; the rivals begin
# where the flow begins, and have the trials that the ledger tells. The regression has the flow's size, steps and batches; the decoder, whose step costs several times as much, has three
# tenths of the steps at a quarter of the batch. The autoencoder alone already stands at a distance from real drawings, which all arms share; so ratios of
# distances, as I6 asks for them, are nearer to one here than in the paper, where the distances are small: five times the regression of the first layer is all but out of reach.
#
# **What was seen before.** These are not the first runs. Those below were recorded, shown in this book and withdrawn; their files
# are in the history under the commit named.

# %%
table(
    [[entry.commit, entry.runs, entry.outcome, entry.why] for entry in claims.load_rules(CHAPTER).withdrawn],
    header=["commit", "runs", "outcome", "why withdrawn"],
)

# %%
page.finish(runtime)
