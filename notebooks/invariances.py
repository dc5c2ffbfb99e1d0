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
# # Making sense of CNNs: what a network ignores
#
# A network that names things must forget. Whether a cat is large or small, to the left or to the right, by this hand or
# by that: whoever says *cat* has thrown it away. Which layer throws away what? The classic answer is to invert a layer and look, but
# an inverter that gives one picture for one representation must invent what is missing or smear it out.
# Rombach, Esser and Ommer {cite}`rombach2020invariances` learn the **whole distribution** of pictures that a layer cannot tell apart. An
# invertible network splits what is known about a picture into two: the representation $z = \Phi(x)$, and a Gaussian $v$ that holds
# exactly the rest, the *invariances*. Keep $z$, draw $v$ anew, and one sees what the network does not.
#
# On this page the network is the namer of {doc}`experts`, which says what concept an emoji shows. The drawings have
# known hands, grounds, hues, sizes, places and turns, so that what is seen can be measured.
#
# **What the paper claims**
#
# | | claim | where it is tested |
# |---|---|---|
# | I1 | Deeper layers ignore more of the hand, and keep the concept | below, by layer |
# | I2 | Pictures that share a representation differ more the deeper the layer | below, by layer |
# | I3 | They stay consistent: encoded again, they have the representation that they were made from | below, against other pictures |
# | I4 | $v$ is independent of what the layer knows | below, by a probe |
# | I5 | From the last layer, the flow's pictures are nearer to drawings than those of decoders trained to invert it | {doc}`invariances_claims` |
# | I6 | Pictures from the last layers are as good as those from the first; a regression's are not | below, against the mean |
# | I7 | As a network learns, its answer keeps more of the concept and less of the ground | {doc}`invariances_claims` |
# | I8 | An attack takes effect late in the network | below, against noise |
# | I9 | A second flow makes factors of the latent that can be exchanged one by one | {doc}`invariances_factors` |
#
# The numbers are those of {doc}`invariances_claims`, which asks all of them over several seeds, and more.
#
# | scale | command | what it needs |
# |---|---|---|
# | quick | `papermill notebooks/invariances.ipynb out.ipynb` | 3 minutes on 2 CPU cores |
# | report | `papermill notebooks/invariances.ipynb out.ipynb -f notebooks/params/invariances.report.yaml` | an hour of one CPU core, minutes on a GPU |
#
# Reading time: 25 minutes.

# %%
import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvlib.data import emoji_naming
from cvlib.data.base import derived_generator
from cvlib.data.factors import factor_targets
from cvlib.data.outputs import Outputs
from cvlib.errors import BookError
from cvlib.nn import ConditionalFlow, MapEmbedder, VectorEmbedder
from cvlib.nn.backbones import EfficientNetLite0
from cvlib.nn.experts import Judge, Judgement, load_experts
from cvlib.nn.flow import AffineCoupling, LinearGuess
from cvlib.nn.vae import DiagonalGaussian, VectorAutoencoder
from cvlib.pages import begin
from cvlib.show import explorer, figure, look, picture, say, show, table
from cvlib.train import RunResult, Runtime, fit, run_folder, seed_everything, warmup_linear

# %% tags=["parameters"]
seed = 0
steps = 60  # of each flow. Paper: 250,000, or 50,000 for ten classes
batch_size = 128  # paper: 16
image_size = 64  # paper: 128
n_blocks = 6  # paper: 20
width = 256  # of the nets S and T. Paper: 1,024
depth = 2  # paper: 2
learning_rate = 3e-3  # paper: 7.2e-5
n_views = 4  # of every drawing to learn from, cached, each with other factors. Paper: the images as they are
n_concepts = 100  # studied, evenly spread over the namer's 877. Paper: 149 animals, or ten of them
layers = ["block 4", "softmax"]  # of those below. Paper: up to nine of ResNet-101
data = "emoji"
data_root = ""
device = "auto"
precision = "auto"
run_dir = "runs/invariances"
pretrained = True  # the experts are those of the book; there are no others

# %%
page = begin("invariances", globals(), data="emoji", data_root="", pretrained=True)
if page.smoke:  # prove in seconds that every cell runs; nothing is learned
    steps, batch_size, n_blocks, width = min(steps, 3), 16, 2, 16
runtime = Runtime(device=device, precision=precision)
seed_everything(seed)
is_trained = steps >= 1000  # checks of quality ask for the report scale
print(runtime.describe())

# %% [markdown]
# ## Three experts
#
# None of them is trained here.
#
# - The **namer** $f = \Psi\circ\Phi$ is what we look into: Φ leads to the layer in question, Ψ from there to the answer.
# - The **autoencoder** turns a drawing into a latent $\bar z = E(x)$ and back, so that the flow never sees a pixel. It is that of {doc}`experts_brief`, with 128
#   numbers as in the paper; each further number would be one more for the flow to get right. Its first eight numbers are the *frame*: background (also called
#   ground), hue, size, shift (or place) and rotation (or turn), read by a network that was taught them. The rest is a linear code that knows no label. The
#   decoder was trained on the drawings of this page.
# - The **judge** has another architecture and another training than the namer. It says what a picture shows.
#
# The namer knows 877 concepts, and learned each from four to eight drawings, mostly six or seven. A flow has to know them all before it can paint what the answer
# says. So we study a hundred concepts, evenly spread over the list: about as many as the paper has animals. The namer still chooses among 877; the judge, who says
# what a painting shows, chooses among the hundred. A flow learns from some views of these few hundred drawings and is tested on other views of the same drawings.

# %%
namer, autoencoder, judge = load_experts(page.weights, runtime, "experts_brief")


# %% [markdown]
# These are the layers: what stands behind a convolution is a map, the last three are vectors.

# %%
BLOCKS = {"block 2": 3, "block 4": 5, "block 6": 7}  # how many stages of EfficientNet-Lite0 stand before it
LAYERS = (*BLOCKS, "pooled", "logits", "softmax")  # from the picture to the answer


def representations(net: EfficientNetLite0, images: Tensor) -> dict[str, Tensor]:
    """Return z = Φ(x) of every layer but the softmax, for images (B, 3, S, S) in [-1, 1]: maps, then vectors."""
    found, x, done = {}, images, 0
    for name, stop in BLOCKS.items():
        x = net.run(x, start=done, stop=stop)
        found[name], done = x, stop
    found["pooled"] = net.run(x, start=done).mean((2, 3))
    found["logits"] = net.fc(found["pooled"])
    return found


def column_of(name: str) -> str:
    """Return what is kept of a layer: the softmax follows from the logits."""
    return "logits" if name == "softmax" else name


# %% [markdown]
# All that follows asks the same few things of the same drawings: what the experts said of them, computed once, and what the experts say of new
# latents and pictures.


# %%
@dataclass(frozen=True)
class Study:
    """A network under examination, the autoencoder, the judge, and what the first two said of the drawings."""

    namer: EfficientNetLite0
    autoencoder: VectorAutoencoder
    judge: Judge
    known: dict[
        str, Outputs
    ]  # "train", "test", and "fresh": more views that no flow is trained on, for probes
    runtime: Runtime
    read: Callable[[Any, Tensor], dict[str, Tensor]] = representations  # z of the layers of another network
    at_most: int | None = None  # rows to fit a probe or a scale on

    @cached_property
    def latents(self) -> Tensor:
        """z̄ of every test view (N, dim): the mean of q."""
        return DiagonalGaussian(self.known["test"].column("moments")).mean

    @cached_property
    def variance(self) -> float:
        """Variance of z̄ ~ q over all test views, summed over its numbers: of the means, and around them."""
        q = DiagonalGaussian(self.known["test"].column("moments"))
        return (q.mean.var(0) + q.log_variance.exp().mean(0)).sum().item()

    @cached_property
    def labels(self) -> dict[str, Tensor]:
        """Concept and hand of every test view (N,)."""
        return {field: self.known["test"].labels[field] for field in ("concept", "hand")}

    @cached_property
    def factors(self) -> Tensor:
        """Targets of the factors of every test view (N, 9)."""
        return factor_targets(self.known["test"].column("factors"))

    @cached_property
    def counts(self) -> dict[str, int]:
        """Number of the namer's concepts and of hands."""
        return {field: len(self.known["train"].label_names[field]) for field in ("concept", "hand")}

    @cached_property
    def concepts(self) -> Tensor:
        """The concepts that are studied (K,), as the namer numbers them."""
        return self.known["train"].labels["concept"].unique()

    def among(self, logits: Tensor) -> Tensor:
        """Return logits (N, concepts) in which what is not studied has none: -inf. Data without concepts: as they are."""
        if "concept" not in self.known["train"].labels:
            return logits
        others = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
        others[self.concepts] = False
        return logits.masked_fill(others, -math.inf)

    @property
    def fitted(self) -> Tensor:
        """Training rows with one view of each drawing, for scales; evenly spread if they are too many."""
        n = len(self.known["train"].data)
        return torch.linspace(0, n - 1, min(n, self.at_most or n)).round().long()

    @property
    def probed(self) -> Tensor:
        """Training rows with up to PROBE_VIEWS views of each drawing, for probes; evenly spread if they are too many."""
        part = self.known["train"]
        n = len(part.data) * min(PROBE_VIEWS, part.n_views)
        return torch.linspace(0, n - 1, min(n, self.at_most or n)).round().long()

    def z(self, split: str, name: str, rows: Tensor | None = None) -> Tensor:
        """Return the representations (N, ...) of a layer, of ``rows`` of a split."""
        found = self.known[split].column(column_of(name), rows)
        return found.softmax(1) if name == "softmax" else found

    def batch(self, split: str, name: str, rows: Tensor) -> dict[str, Tensor]:
        """Return moments and the column of a layer for ``rows`` of a split, on the device."""
        return self.known[split].only("moments", column_of(name)).render(rows, None, self.runtime.device)

    @torch.no_grad()
    def decode(self, z_bar: Tensor) -> Tensor:
        """Return pictures (N, 3, S, S) in [-1, 1] of latents (N, dim), on the CPU."""
        parts = [self.autoencoder.decode(z.to(self.runtime.device)).float().cpu() for z in z_bar.split(256)]
        return torch.cat(parts).clamp(-1, 1)

    @torch.no_grad()
    def encode(self, name: str, pictures: Tensor) -> Tensor:
        """Return what a layer is made from (N, ...), anew, of pictures (N, 3, S, S), on the CPU."""
        parts = [
            self.read(self.namer, x.to(self.runtime.device))[column_of(name)].float().cpu()
            for x in pictures.split(128)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def judged(self, pictures: Tensor) -> Judgement:
        """Return what the judge says of pictures (N, 3, S, S), among the concepts that are studied, on the CPU."""
        said = [self.judge(x.to(self.runtime.device)) for x in pictures.split(256)]
        answers = (torch.cat([a.float().cpu() for a in of_one]) for of_one in zip(*said, strict=True))
        judgement = Judgement(*answers)
        return judgement._replace(concept=self.among(judgement.concept))


TEST_VIEWS = 2  # of every drawing, at most; no flow is trained on them
PROBE_VIEWS = 4  # of every drawing, at most
FRESH_VIEWS = 8  # of every drawing, at most


def open_study(
    namer: EfficientNetLite0,
    autoencoder: VectorAutoencoder,
    judge: Judge,
    image_size: int,
    n_views: int,
    runtime: Runtime,
    n_concepts: int | None = None,
    skipped: int = 0,
) -> Study:
    """Return the study of a network; what the experts say of the drawings is cached.

    ``n_views`` of every drawing to train on, at most TEST_VIEWS others to test, and at most FRESH_VIEWS more. ``n_concepts`` of
    the namer's are studied, evenly spread, all if None. ``skipped`` views lie between those of training and of test.
    """

    def describe(images: Tensor) -> dict[str, Tensor]:
        posterior = autoencoder.encode(images)
        moments = torch.cat([posterior.mean, posterior.log_variance], 1)
        return {"moments": moments} | representations(namer, images)

    part = emoji_naming.load("train", image_size)
    part = emoji_naming.few(part, n_concepts) if n_concepts else part
    nets = {"namer": namer, "autoencoder": autoencoder}
    columns, device, first, known = ["moments", *LAYERS[:-1]], runtime.device, 0, {}
    for split, most, gap in (("train", n_views, 0), ("test", TEST_VIEWS, skipped), ("fresh", FRESH_VIEWS, 0)):
        count = min(n_views, most)
        known[split] = Outputs(part, columns, describe, nets, count, device, first_view=first + gap)
        first += gap + count
    return Study(namer, autoencoder, judge, known, runtime)


if page.smoke:
    n_concepts = 22
study = open_study(namer, autoencoder, judge, image_size, n_views, runtime, n_concepts)
n_test = len(study.known["test"])
table(
    [[name, " × ".join(map(str, study.z("test", name, torch.arange(1)).shape[1:]))] for name in LAYERS],
    header=["layer", "shape of z"],
)

# %% tags=["hide-input"]
sample = torch.linspace(0, n_test - 1, min(8, n_test)).long()
shown = study.known["test"].pictures(sample)
picture(
    shown,
    study.decode(study.latents[sample]),
    columns=8,
    quality=90,
    rows=["test drawing", "D(E(x))"],
    alt=f"Eight test drawings and what the {study.latents.shape[1]} numbers of the autoencoder's code keep of them.",
    caption=f"Drawings under factors of which no flow learns, and what {study.latents.shape[1]} numbers keep: nothing below can be sharper.",
)

# %% [markdown]
# ## What can be read from a layer
#
# The usual question to a layer is put by a probe: fit a linear map from $z$ to a factor, and see how well it predicts. Ours is ridge regression in closed form;
# every fifth view is held out to choose its strength, and a class is coded as one indicator for each value. In the table, concept and hand are the part of the
# test views that is named correctly; the other columns are $R^2$.


# %%
def standardised(x: Tensor, like: Tensor | None = None) -> Tensor:
    """Return x (N, ...) as (N, D), centred and scaled by the statistics of ``like`` (x itself if None)."""
    x, like = x.flatten(1), (x if like is None else like).flatten(1)
    return (x - like.mean(0)) / like.std(0).clamp_min(1e-4)


def ridge(x: Tensor, y: Tensor, strength: float = 0.1) -> Callable[[Tensor], Tensor]:
    """Return the ridge regression from x (N, D) to y (N, K) as a function; strength per row of x.

    Solved in the smaller of the two spaces, features or rows.
    """
    mean, target = x.mean(0), y.mean(0)
    a, b = (x - mean).double(), (y - target).double()
    eye = torch.eye(min(a.shape), dtype=torch.float64) * strength * len(a)
    if a.shape[1] <= len(a):
        weight = torch.linalg.solve(a.T @ a + eye, a.T @ b)
    else:
        weight = a.T @ torch.linalg.solve(a @ a.T + eye, b)
    return lambda new: ((new - mean).double() @ weight).float() + target


STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)  # of a probe; the last is all but a constant


def best_ridge(x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the ridge regression of the strength whose squared error is least on every fifth row, which it did not see.

    Fitted to all rows in the end. Features that say nothing about y get the largest strength, and so harm little.
    """
    away = torch.arange(len(x)) % 5 == 0

    def error(strength: float) -> float:
        return (ridge(x[~away], y[~away], strength)(x[away]) - y[away]).square().mean().item()

    return ridge(x, y, min(STRENGTHS, key=error))


GROUPS = {
    "background": slice(0, 3),
    "hue": slice(3, 5),
    "size": slice(5, 6),
    "shift": slice(6, 8),
    "rotation": slice(8, 9),
}
ASKED = ("concept", "hand", *GROUPS)


def explained_by(said: Tensor, truth: Tensor) -> float:
    """Return R² of estimates (N, K) of targets (N, K), mean over columns."""
    return (1 - (said - truth).square().mean(0) / truth.var(0, correction=0)).mean().item()


def explained(said: Tensor, truth: Tensor) -> dict[str, float]:
    """Return R² of estimates (N, 9) of the factors' targets (N, 9), by group of columns."""
    return {name: explained_by(said[:, columns], truth[:, columns]) for name, columns in GROUPS.items()}


def probe(study: Study, x: Tensor, x_test: Tensor, split: str = "train") -> dict[str, float]:
    """Return what a linear probe reads on test from x (N, ...): part right, or R².

    x is of ``study.probed`` of the training views, or of all fresh views.
    """
    a, b = standardised(x), standardised(x_test, x)
    part = study.known[split]
    rows = study.probed if split == "train" else torch.arange(len(part))
    known = factor_targets(part.column("factors", rows))
    found = {
        name: explained_by(best_ridge(a, known[:, columns])(b), study.factors[:, columns])
        for name, columns in GROUPS.items()
    }
    for field, count in study.counts.items():
        said = best_ridge(a, F.one_hot(part.labels[field][rows], count).float())(b)
        found[field] = right(said, study.labels[field])
    return found


def deep_probe(study: Study, x: Tensor, x_test: Tensor, epochs: int = 60) -> dict[str, float]:
    """Return what a perceptron reads on test from x (N, D) of all fresh views: part right, or R², as :func:`probe`.

    One hidden layer for all questions, from one start; every fifth row says after which pass over the rest it is best.
    """
    part = study.known["fresh"]
    a, b = standardised(x), standardised(x_test, x)
    factors, labels = factor_targets(part.column("factors")), [part.labels[field] for field in study.counts]
    sizes = [*study.counts.values(), factors.shape[1]]
    away = torch.arange(len(a)) % 5 == 0
    known, held = ((~away).nonzero()[:, 0], away.nonzero()[:, 0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(a.shape[1], 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, sum(sizes))
        )
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01)

        def error(rows: Tensor) -> Tensor:
            *said, numbers = net(a[rows]).split(sizes, 1)
            wrong = sum(F.cross_entropy(s, label[rows]) for s, label in zip(said, labels, strict=True))
            return wrong + F.mse_loss(numbers, factors[rows])

        best, answers = math.inf, torch.zeros(len(b), sum(sizes))
        for _ in range(epochs):
            net.train()
            for rows in known[torch.randperm(len(known))].split(256):
                optimizer.zero_grad(set_to_none=True)
                error(rows).backward()
                optimizer.step()
            net.eval()
            with torch.no_grad():
                if (now := error(held).item()) < best:
                    best, answers = now, net(b)
    *said, numbers = answers.split(sizes, 1)
    found = explained(numbers, study.factors)
    return found | {f: right(s, study.labels[f]) for f, s in zip(study.counts, said, strict=True)}


def right(logits: Tensor, labels: Tensor) -> float:
    """Return how often the highest logit (N, classes) is at the label (N,)."""
    return (logits.argmax(1) == labels).float().mean().item()


read = {name: probe(study, study.z("train", name, study.probed), study.z("test", name)) for name in LAYERS}
chance = {
    "concept": 1 / len(study.concepts),
    "hand": study.labels["hand"].bincount().max().item() / n_test,
}
table(
    [[name, *(f"{values[field]:z.2f}" for field in ASKED)] for name, values in read.items()],
    header=["layer", *ASKED],
)

# %% [markdown]
# A probe finds what is *there* for a linear map. It does not say what the network would miss if it changed, and it shows no picture. For this we need all pictures
# that share a representation.
#
# ## What is left: the flow
#
# Let $t(\cdot\,|\,z)$ be invertible for every $z$, and let $v = t(\bar z\,|\,z)$ be Gaussian, whatever $z$ is. Then $v$ knows nothing of $z$, and yet
# both together determine $\bar z$: it is exactly what $\Phi$ dropped. Such a map is found by maximum likelihood (Eq. 5 of the paper),
#
# $$ \mathcal L(t) = \mathbb E_x\Big[\tfrac12\lVert t(E(x)\,|\,\Phi(x))\rVert^2 - \log\lvert\det t'(E(x)\,|\,\Phi(x))\rvert\Big]
#    = \mathbb E_z\,\mathrm{KL}\big(p(v|z)\,\|\,\mathcal N(0, I)\big) + \text{const}, $$
#
# and the divergence on the right bounds what $v$ and $z$ still have in common. The map is a chain of blocks. In each, one half of the features scales and moves the other,
# with nets that also see the condition; then they change roles.

# %%
print(inspect.getsource(AffineCoupling.forward))

# %%
tiny = ConditionalFlow(6, 16, depth=2, n_blocks=4, embedder=VectorEmbedder((3, 8, 5))).double()
some, given = torch.randn(64, 6).double(), torch.randn(64, 3).double()
v, log_det = tiny(some, given)
jacobian = torch.autograd.functional.jacobian(lambda x: tiny(x[None], given[:1])[0][0], some[0])
torch.testing.assert_close(jacobian.slogdet().logabsdet, log_det[0])
torch.testing.assert_close(tiny.inverse(v, given), some, rtol=0, atol=1e-10)
print(
    f"log|det| {log_det[0]:.6f} as autograd's Jacobian has it; and back within {(tiny.inverse(v, given) - some).abs().max():.1e}"
)


# %% [markdown]
# A representation may have thousands of numbers. A network $h = H(z)$, trained together with $t$, first embeds it in as few as the latent has: by halving
# convolutions for maps, by a perceptron for vectors. What $H$ drops, $v$ has to hold; the more room $H$ has, the cleaner the split.
#
# The autoencoder began at the principal components; likewise the flow begins at the best *linear guess* of $\bar z$ from $z$, by ridge regression, and its blocks
# see $\bar z - Wz - b$. Nets that start from noise would first have to find what linear algebra gives at once. And the signal is small: one concept among 100 is
# worth $\log 100 = 4.6$ nats, a twenty-eighth of a nat for each of 128 numbers.


# %%
AT_MOST = 8192  # entries of z from which the latent is guessed; the input of the network has more


def build_flow(
    dim: int, shape: tuple[int, ...], n_blocks: int, width: int, depth: int, dim_h: int = 128
) -> ConditionalFlow:
    """Return t(. | z) for z of ``shape`` (C, side, side) or (C,); H as in the authors' code, and a linear guess."""
    if len(shape) == 3:
        channels, side, _ = shape
        embedder: nn.Module = MapEmbedder(channels, side, max(1, side.bit_length() - 2), dim_h)
    else:
        widths = np.linspace(shape[0], dim_h, 4).round().astype(int).tolist()
        embedder = VectorEmbedder(widths, norm="actnorm", slope=0.2)
    size = math.prod(shape)
    guess = LinearGuess(size, dim) if size <= AT_MOST else None
    return ConditionalFlow(dim, width, depth, n_blocks, embedder, guess=guess)


@dataclass(frozen=True)
class LayerFlow:
    """The flow of one layer, with the scale of the representations that it is conditioned on."""

    study: Study
    name: str
    flow: ConditionalFlow
    mean: float  # of z, over all its entries
    std: float

    def condition(self, columns: dict[str, Tensor]) -> Tensor:
        """Return z (B, ...) as the flow takes it, from the columns of a batch."""
        z = columns[column_of(self.name)]
        return ((z.softmax(1) if self.name == "softmax" else z) - self.mean) / self.std

    @torch.no_grad()
    def nll(self) -> float:
        """Return the NLL of the latents of the test drawings given z, in nats per dimension."""
        found = []
        for rows in torch.arange(len(self.study.known["test"])).split(256):
            batch = self.study.batch("test", self.name, rows)
            found.append(self.flow.nll(DiagonalGaussian(batch["moments"]).mean, self.condition(batch)).cpu())
        return torch.cat(found).mean().item() / self.flow.dim

    @torch.no_grad()
    def invariances(self, split: str, rows: Tensor) -> Tensor:
        """Return v = t(z̄ | z) (N, dim) of rows of a split."""
        found = []
        for some in rows.split(256):
            batch = self.study.batch(split, self.name, some)
            found.append(self.flow(DiagonalGaussian(batch["moments"]).mean, self.condition(batch))[0].cpu())
        return torch.cat(found)

    @torch.no_grad()
    def resample(self, rows: Tensor, n: int, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """Return n latents (B, n, dim) for each test row (B,), with its representation and v drawn anew."""
        found = []
        for some in rows.split(64):
            cond = self.flow.project(self.condition(self.study.batch("test", self.name, some)))
            again = cond[torch.arange(len(some), device=self.study.runtime.device).repeat_interleave(n)]
            z_bar = self.flow.sample(again, generator=generator, temperature=temperature)
            found.append(z_bar.view(len(some), n, -1).cpu())
        return torch.cat(found)

    @torch.no_grad()
    def exchanged(self, v: Tensor, z: Tensor) -> Tensor:
        """Return the latents (B, dim) with v (B, dim) and what the layer is made from, z (B, ...)."""
        columns = {column_of(self.name): z.to(self.study.runtime.device)}
        return self.flow.inverse(v.to(self.study.runtime.device), self.condition(columns)).cpu()


# %% [markdown]
# Training is one line of likelihood. The latents are drawn from the encoder's posterior, so that no two passes are the same.


# %%
def flow_step(
    layer: LayerFlow, optimizer: torch.optim.Optimizer
) -> Callable[[dict[str, Tensor], int], dict[str, Tensor]]:
    """Return ``step(batch, t) -> parts``: one step down the NLL of z̄ ~ q(z̄|x) given z, in nats per dimension."""

    def step(batch: dict[str, Tensor], t: int) -> dict[str, Tensor]:
        z_bar = DiagonalGaussian(batch["moments"]).sample(derived_generator(t, "posterior"))
        v, log_det = layer.flow(z_bar, layer.condition(batch))
        half = v.square().sum(1).mean() / 2
        loss = (half - log_det.mean()) / layer.flow.dim
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        layer.study.runtime.clip(optimizer, 10.0)
        optimizer.step()
        return {"loss": loss.detach(), "v²/2": half.detach() / layer.flow.dim}

    return step


@dataclass(frozen=True)
class Recipe:
    """How a flow is built and trained."""

    steps: int = 2500
    batch_size: int = 128
    n_blocks: int = 6
    width: int = 256
    depth: int = 2
    learning_rate: float = 3e-3


def fit_guess(layer: LayerFlow, at_most: int = 12_000) -> None:
    """Start the flow of a layer at the linear guess of z̄ from z, of training rows spread evenly over all views."""
    known, flow = layer.study.known["train"], layer.flow
    if flow.guess is None:
        return
    count = min(len(known), layer.study.at_most or at_most)
    rows = torch.linspace(0, len(known) - 1, count).round().long()
    columns = {column_of(layer.name): known.column(column_of(layer.name), rows)}
    latents = DiagonalGaussian(known.column("moments", rows)).mean
    flow.guess.fit(layer.condition(columns), latents, strength=0.1)


def rate_groups(flow: ConditionalFlow, rate: float) -> list[dict[str, Any]]:
    """Return the parameters as two groups: the guess, which begins near its best, learns at a tenth of ``rate``."""
    guess = [] if flow.guess is None else list(flow.guess.parameters())
    known = set(map(id, guess))
    rest = [p for p in flow.parameters() if id(p) not in known]
    return [{"params": rest, "lr": rate}, {"params": guess, "lr": rate / 10}]


def train_flow(
    study: Study,
    name: str,
    recipe: Recipe,
    seed: int,
    root: str,
    build: Callable[..., ConditionalFlow] = build_flow,
    **options: Any,
) -> tuple[LayerFlow, RunResult]:
    """Return the flow of one layer and its run; a finished run is recognised. ``options`` go to ``fit``."""
    seed_everything(seed)
    z, runtime = study.z("train", name, study.fitted), study.runtime
    flow = build(study.latents.shape[1], tuple(z.shape[1:]), recipe.n_blocks, recipe.width, recipe.depth)
    layer = LayerFlow(study, name, runtime.prepare(flow), z.mean().item(), z.std().item())
    fit_guess(layer)
    config = {"layer": name, "seed": seed, "data": study.known["train"].hash, **vars(recipe)}
    groups = rate_groups(layer.flow, recipe.learning_rate)
    optimizer = torch.optim.Adam(groups, lr=recipe.learning_rate, betas=(0.5, 0.9))
    source = study.known["train"].only("moments", column_of(name))
    run = fit(
        run_folder(root, name.replace(" ", "-"), config),
        config=config,
        modules={"flow": layer.flow},
        optimizers={"flow": optimizer},
        batches=source.batches(recipe.batch_size, seed=seed, device=runtime.device),
        step=flow_step(layer, optimizer),
        steps=recipe.steps,
        runtime=runtime,
        schedules={"flow": warmup_linear(max(1, recipe.steps // 20), recipe.steps)},
        evaluate=lambda done: {"nll": layer.nll()},
        **options,
    )
    return layer, run


recipe = Recipe(steps, batch_size, n_blocks, width, depth, learning_rate)

# %%
unknown = sorted(set(layers) - set(LAYERS))
if unknown:
    raise BookError(f"layers {', '.join(unknown)}", f"some of {', '.join(LAYERS)}")
chosen = [name for name in LAYERS if name in layers]  # in the order of the network
flows, runs = {}, {}
for name in chosen:
    flows[name], runs[name] = train_flow(study, name, recipe, seed, run_dir)

# %% [markdown]
# Training may stretch a flow until its inverse no longer works in practice. So we send latents through each flow and back, in single and in double precision.


# %%
def round_trip(layer: LayerFlow, rows: Tensor) -> tuple[float, float]:
    """Return max |z̄ - t⁻¹(t(z̄ | z) | z)| over test rows, in float32 and in float64 (on the CPU)."""
    batch, errors = layer.study.batch("test", layer.name, rows), []
    z_bar = DiagonalGaussian(batch["moments"]).mean
    exact = (
        copy.deepcopy(layer.flow).cpu().double(),
        z_bar.cpu().double(),
        layer.condition(batch).cpu().double(),
    )
    for flow, x, cond in ((layer.flow, z_bar, layer.condition(batch)), exact):
        with torch.no_grad():
            errors.append((flow.inverse(flow(x, cond)[0], cond) - x).abs().max().item())
    return errors[0], errors[1]


trips = {name: round_trip(layer, torch.arange(min(256, n_test))) for name, layer in flows.items()}
assert all(single < 1e-4 and double < 1e-10 for single, double in trips.values()), trips
say(
    f"There and back, the largest error of any number of any latent is {max(t[0] for t in trips.values()):.1e} in single precision and "
    f"{max(t[1] for t in trips.values()):.1e} in double precision, over all {len(flows)} flows."
)

# %% tags=["hide-input"]
fig, ax = figure(width="half")
for k, (name, run) in enumerate(runs.items()):
    rows = [row for row in run.history if "eval/nll" in row]
    ax.plot(
        [row["step"] for row in rows],
        [row["eval/nll"] for row in rows],
        marker="o",
        color=f"C{k}",
        label=name,
    )
ax.set(xlabel="step", ylabel="test NLL (nats per dimension)")
ax.legend()
show(
    fig,
    alt="Test NLL of the flows over training, one line a layer.",
    caption="What is left to say about a picture once a layer's representation is known, as far as the flow has learned to use it.",
)

# %% [markdown]
# The more a layer knows of a picture, the lower its line should be. But the height also tells how much a flow has *learned to use*. The softmax is computed from
# the blocks before it and cannot know more than they do. Where its line is the lower all the same, a flow has made more of it in this time.
#
# ## Seeing what a layer does not see
#
# Now keep the representation of a drawing, draw $v \sim \mathcal N(0, I)$, and paint $D(t^{-1}(v\,|\,z))$. If flow and decoder were perfect, all these
# pictures would be the same to the layer. How near they come is measured below, under *consistency*.


# %%
def drawn_for(name: str, rows: Tensor, n: int, word: str) -> Tensor:
    """Return n latents (B, n, dim) of a layer for each test row, always the same for a word."""
    return flows[name].resample(rows, n, derived_generator(seed, word, name))


n_drawn = 7
strips = {
    name: study.decode(drawn_for(name, sample, n_drawn, "strips").flatten(0, 1)).unflatten(0, (-1, n_drawn))
    for name in chosen
}
picture(
    *(torch.cat([shown[:1], strips[name][0]]) for name in chosen),
    columns=8,
    quality=90,
    rows=chosen,
    titles=["drawing", *(f"v {k + 1}" for k in range(n_drawn))],
    alt="A test drawing, and beside it seven pictures with the same representation, a row for each layer.",
    caption="First the drawing; then pictures that the layer cannot tell from it, with seven draws of v. Not selected.",
)

# %% [markdown]
# The same for eight drawings. Move the slider from the first layer to the last: what is still the same in all pictures of a strip is what the layer
# knows.

# %%
explorer(
    torch.stack(
        [torch.cat([shown[k], *strips[name][k]], dim=2) for k in range(len(sample)) for name in chosen]
    ),
    {"drawing": range(1, len(sample) + 1), "layer": chosen},
    alt="A drawing and seven pictures with its representation; sliders choose drawing and layer.",
    caption="Left the drawing, then seven pictures that are the same to the layer.",
    scale=1,
    quality=85,
)

# %% [markdown]
# Where do they differ? The standard deviation over thirty-two draws, pixel by pixel: bright where the layer leaves a picture open.

# %%
several = {
    name: study.decode(drawn_for(name, sample, 32, "mean").flatten(0, 1)).unflatten(0, (-1, 32))
    for name in chosen
}
deviations = {name: pictures.std(1).mean(1, keepdim=True) for name, pictures in several.items()}
brightest = max(x.max() for x in deviations.values())
picture(
    shown,
    *((2 * x / brightest - 1).expand(-1, 3, -1, -1) for x in deviations.values()),
    columns=8,
    quality=90,
    rows=["drawing", *chosen],
    alt="; ".join(f"{name}: mean deviation {x.mean():.2f}" for name, x in deviations.items()),
    caption=f"Eight drawings, and for each layer the standard deviation of the pictures with its representation: black 0, white {brightest:.2f} of a range of 2.",
)
say(
    "The deviation, mean over all pixels, is "
    + ", ".join(f"{x.mean():.2f} for {name}" for name, x in deviations.items())
    + "."
)

# %% [markdown]
# ### Mixing two drawings
#
# Take $v$ of one drawing and $z$ of another. The picture should show what the layer knows of the second, in the manner of all that it ignores of the first.


# %%
last = chosen[-1]
mixed = []
for k in range(min(4, len(sample))):
    v = flows[last].invariances("test", sample[k : k + 1]).expand(len(sample), -1)
    mixed.append(study.decode(flows[last].exchanged(v, study.known["test"].column(column_of(last), sample))))
picture(
    shown,
    *mixed,
    columns=8,
    quality=90,
    rows=["z of", *(f"v of drawing {k + 1}" for k in range(len(mixed)))],
    alt="Above, eight drawings that give z; below, four rows, each with the v of one of the first four drawings.",
    caption=f"Every picture has z (layer {last}) of the drawing above its column and v of the drawing that its row names.",
)

# %% [markdown]
# ## Measured
#
# - **How much differs?** *v explains* is the part of the variance of $\bar z$ that comes from $v$,
#   $\mathbb E_z \operatorname{tr}\operatorname{Var}_v[t^{-1}(v|z)] / \operatorname{tr}\operatorname{Var}[\bar z]$.
# - **What differs?** The judge looks at the resampled pictures. For concept and hand we count how often it still sees those of the drawing. For a factor we
#   take the part of the variance of its answers that lies *between* representations, $R = 1 - \mathbb E_z \operatorname{Var}_v / \operatorname{Var}$
#   (the law of total variance).
# - **Is it consistent?** The namer encodes the resampled pictures again. We take the cosine of the new and the old representation, both minus the mean
#   representation, and subtract the same cosine with another drawing's.
#
# A layer can keep only what it has: the concept of a drawing that is taken for something else never was in the answer. So we measure on drawings that the namer
# names correctly.


# %%
def between(answers: Tensor, whole: bool = False) -> Tensor:
    """Return the part of the variance of answers (B, n, K) that lies between the B groups, (K,), without bias.

    1 - (mean variance within) / (variance of all); both are unbiased estimates. With ``whole`` of the sum over K, ().
    """
    within = answers.var(1).mean(0)
    spread = answers.mean(1).var(0) - within / answers.shape[1]  # the mean of n draws varies too
    if whole:
        within, spread = within.sum(), spread.sum()
    return spread / (spread + within)


def measure(layer: LayerFlow, rows: Tensor, generator: torch.Generator, n: int = 4) -> dict[str, float]:
    """Return what n resampled pictures of each test row (B,) say about a layer."""
    study = layer.study
    drawn = layer.resample(rows, n, generator)
    pictures = study.decode(drawn.flatten(0, 1))
    said = study.judged(pictures)
    labels = {field: values[rows].repeat_interleave(n) for field, values in study.labels.items()}
    within = drawn.var(1).sum(1).mean() / study.variance
    pixels = between(pictures.flatten(1).unflatten(0, (-1, n)), whole=True)
    spread = between(said.factors.unflatten(0, (-1, n)))
    z = study.z("test", layer.name, rows).flatten(1).repeat_interleave(n, 0)
    again = study.encode(layer.name, pictures)
    again = (again.softmax(1) if layer.name == "softmax" else again).flatten(1)
    middle = z.mean(0)  # maps behind a ReLU all point one way
    own, other = (F.cosine_similarity(again - middle, to - middle).mean().item() for to in (z, z.roll(n, 0)))
    return {
        "v explains": within.item(),
        "v explains, pictures": 1 - pixels.item(),
        "concept": right(said.concept, labels["concept"]),
        "hand": right(said.hand, labels["hand"]),
        **{group: spread[columns].mean().item() for group, columns in GROUPS.items()},
        "consistency": own - other,
    }


def named_rightly(study: Study, count: int) -> Tensor:
    """Return at most ``count`` test rows, spread evenly over those that the namer names rightly.

    Over all, if those are fewer than eight: an untrained network is right too seldom.
    """
    is_right = study.z("test", "logits").argmax(1) == study.labels["concept"]
    rows = is_right.nonzero()[:, 0] if is_right.sum() >= 8 else torch.arange(len(is_right))
    return rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long()]


if not is_trained:
    say(
        f"The flows of this run took {steps} steps and hardly know their condition yet: **the sentences below speak of the flows, not of the network**."
    )
measured_rows = named_rightly(study, 256 if is_trained else 64)
found = {
    name: measure(layer, measured_rows, derived_generator(seed, "measure", name))
    for name, layer in flows.items()
}
ceiling = study.judged(study.decode(study.latents[measured_rows]))
ceilings = {
    "concept": right(ceiling.concept, study.labels["concept"][measured_rows]),
    "hand": right(ceiling.hand, study.labels["hand"][measured_rows]),
}
table(
    [
        [
            "the autoencoder itself",
            None,
            *(ceilings[f] for f in ("concept", "hand")),
            *[None] * (len(GROUPS) + 1),
        ],
        *(
            [name, values["v explains"], *(values[field] for field in ASKED), values["consistency"]]
            for name, values in found.items()
        ),
        ["chance", None, chance["concept"], chance["hand"], *([0.0] * len(GROUPS)), 0.0],
    ],
    header=["layer", "v explains", *ASKED, "consistency"],
    digits=2,
)

# %%
first_layer = chosen[0]
top, bottom = found[last], found[first_layer]
is_steady = all(
    found[a]["hand"] >= found[b]["hand"] and found[a]["v explains"] <= found[b]["v explains"]
    for a, b in pairwise(chosen)
)
say(
    f"Of pictures that are the same to the {last} the judge names the concept in **{top['concept']:.0%}**, which is "
    f"{top['concept'] / ceilings['concept']:.0%} of what the autoencoder itself allows, and the hand in {top['hand']:.0%}, where the commonest hand "
    f"has {chance['hand']:.0%}. {top['background']:.0%} of the ground's variance is tied to the answer. To {first_layer} it is the other way round: the "
    f"ground is fixed to {bottom['background']:.0%}, the concept seen in {bottom['concept']:.0%}. Layer by layer the hand is seen in "
    + ", ".join(f"{found[name]['hand']:.0%}" for name in chosen)
    + " and the part of the variance that $v$ explains is "
    + ", ".join(f"{found[name]['v explains']:.2f}" for name in chosen)
    + (": both go one way with depth." if is_steady else ": not both go one way with depth.")
)

# %% tags=["hide-input"]
fig, ax = figure(height=3.2)
for k, field in enumerate(ASKED):
    top_value = ceilings[field] if field in ("concept", "hand") else 1.0
    floor = chance.get(field, 0.0)
    kept = [(found[name][field] - floor) / max(top_value - floor, 1e-6) for name in chosen]
    ax.plot(range(len(chosen)), kept, marker="o", color=f"C{k}", label=field)
ax.axhline(0, **look("control"))
ax.set(ylabel="kept, between chance and ceiling", ylim=(-0.1, 1.4), yticks=np.linspace(0, 1, 6))
ax.set_xticks(range(len(chosen)), chosen)
ax.legend(ncols=4, loc="upper center")
show(
    fig,
    alt="How much of each factor stays when v is drawn anew, by layer.",
    caption="What a layer keeps, 0 for chance. Of a class 1 is the judge's rate on reconstructions; of a factor, that all variance lies between representations.",
)

# %% [markdown]
# ### Is it what the layer does not know?
#
# If $v$ is independent of $z$, nothing that the layer knows can be read from $v$. And what the layer dropped must be in $v$, though not always where a linear
# probe finds it. So a linear probe reads $z$, $v$ and the whole $\bar z$, and a perceptron reads $v$ and $\bar z$: what disappears from $z$ should appear in $v$.
# For $v$ and $\bar z$ the probes learn from views that no flow has seen: on its own training views a flow makes $v$ look more Gaussian than it is.


# %%
everyone = torch.arange(n_test)
unseen = torch.arange(len(study.known["fresh"]))
vs = {
    name: [layer.invariances(*at) for at in (("fresh", unseen), ("test", everyone))]
    for name, layer in flows.items()
}
fresh_latents = DiagonalGaussian(study.known["fresh"].column("moments")).mean
of_v = {name: probe(study, *v, split="fresh") for name, v in vs.items()}
by_perceptron = {name: deep_probe(study, *v) for name, v in vs.items()}
table(
    [
        [what, by, *(f"{values[field]:z.2f}" for field in ASKED)]
        for what, by, values in (
            ("z̄", "line", probe(study, fresh_latents, study.latents, split="fresh")),
            ("z̄", "perceptron", deep_probe(study, fresh_latents, study.latents)),
            *((f"z, {name}", "line", read[name]) for name in chosen),
            *((f"v, {name}", "line", of_v[name]) for name in chosen),
            *((f"v, {name}", "perceptron", by_perceptron[name]) for name in chosen),
            ("chance", "", chance | dict.fromkeys(GROUPS, 0.0)),
        )
    ],
    header=["read from", "by", *ASKED],
)

# %%
say(
    f"What leaves $z$ turns up in $v$. Of the ground a probe reads {read[first_layer]['background']:.2f} from {first_layer} and "
    f"{of_v[first_layer]['background']:.2f} from its $v$; at the {last} it is {read[last]['background']:.2f} and **{of_v[last]['background']:.2f}**. "
    f"The concept stays on the other side: {read[last]['concept']:.0%} from the {last}, from its $v$ {of_v[last]['concept']:.0%} by a line and "
    f"{by_perceptron[last]['concept']:.0%} by a perceptron, by chance {chance['concept']:.0%}."
)
if read[last]["hand"] > max(top["hand"], by_perceptron[last]["hand"]) + 0.1:
    say(
        f"**The hand is on neither side.** A probe reads it in {read[last]['hand']:.0%} from the {last}; the judge sees it in {top['hand']:.0%} of the resampled pictures, and a perceptron "
        f"reads it in {by_perceptron[last]['hand']:.0%} from $v$ (chance {chance['hand']:.0%}). What a probe finds in small differences of tiny numbers a flow of this size does not use. That the "
        f"{last} ignores the hand is not what these numbers say: only that its pictures do not show it."
    )

# %% [markdown]
# ## Why not simply regress?
#
# Because the best answer to the squared error is the mean of all pictures that share a representation, and the mean of drawings is no drawing. Below, what a flow draws,
# and beside it the picture of the mean latent, from the same layer.

# %% tags=["hide-input"]
means = {name: study.decode(drawn_for(name, sample, 32, "mean").mean(1)) for name in chosen}
picture(
    shown,
    *(rows for name in chosen for rows in (torch.stack([strip[0] for strip in strips[name]]), means[name])),
    columns=8,
    quality=90,
    rows=["drawing", *(f"{name}: {what}" for name in chosen for what in ("one draw", "mean of 32"))],
    alt="For each layer, one draw for each of eight drawings, and the picture of the mean of 32 draws.",
    caption="One draw of the flow, and the picture of the mean latent of 32 draws, which is what a regression would aim at.",
)

# %% [markdown]
# ## An attack, seen from inside
#
# A small step along the sign of the gradient {cite}`goodfellow2015explaining` makes the namer say something else, and no eye sees it. Where in the network does the
# change become large? (Here the namer, too, answers among the hundred concepts.) Keep $v$ of the clean drawing, take $z$ of the attacked one, and paint what the layer now stands for. The control is
# noise of the same size in random directions.


# %%
def attack(study: Study, images: Tensor, epsilon: float, generator: torch.Generator | None = None) -> Tensor:
    """Return images (B, 3, S, S) in [-1, 1], moved by ε sign(∇ CE) against the namer's own answer.

    With a ``generator``, by ε in random directions: the control. Source: Goodfellow et al. 2015 (FGSM), as in
    Rombach et al. 2020a.
    """
    if generator is not None:
        sign = torch.randn(images.shape, generator=generator).sign()
    else:
        x = images.to(study.runtime.device).requires_grad_()
        logits = study.among(study.namer.logits(x))
        (slope,) = torch.autograd.grad(F.cross_entropy(logits, logits.argmax(1), reduction="sum"), x)
        sign = slope.sign().cpu()
    return (images + epsilon * sign).clamp(-1, 1)


def seen_through(layer: LayerFlow, rows: Tensor, images: Tensor) -> Tensor:
    """Return pictures with v of the test rows (B,) and the representation of ``images`` (B, 3, S, S)."""
    v = layer.invariances("test", rows)
    return layer.study.decode(layer.exchanged(v, layer.study.encode(layer.name, images)))


EPSILON = 0.06  # of 2, the range of a pixel. Paper: 0.02
clean = study.known["test"].pictures(measured_rows)
truth = study.labels["concept"][measured_rows]
spoiled = {
    "attack": attack(study, clean, EPSILON),
    "noise": attack(study, clean, EPSILON, derived_generator(seed, "noise")),
}
said_by_namer = {
    how: study.among(study.encode("logits", images)).argmax(1) for how, images in spoiled.items()
}
fooled = said_by_namer["attack"] != truth
through = {
    (name, how): seen_through(flows[name], measured_rows, images)
    for name in chosen
    for how, images in spoiled.items()
}
wrong_class = said_by_namer["attack"]


def seen_as(pictures: Tensor, labels: Tensor) -> float | None:
    """Return how often the judge sees ``labels`` (N,) in pictures, of the drawings whose attack succeeded."""
    return right(study.judged(pictures).concept[fooled], labels[fooled]) if fooled.any() else None


table(
    [
        [
            name,
            how,
            seen_as(through[name, how], truth),
            seen_as(through[name, how], wrong_class),
        ]
        for name in chosen
        for how in spoiled
    ],
    header=["z of layer", "under", "judge sees what it was", "judge sees what the namer now says"],
    digits=2,
)
if fooled.any():
    kept = {(name, how): seen_as(pictures, truth) for (name, how), pictures in through.items()}
    most = max(seen_as(pictures, wrong_class) for (_, how), pictures in through.items() if how == "attack")
    say(
        f"What it was is seen through {first_layer} in {kept[first_layer, 'noise']:.0%} of the pictures after noise and in "
        f"{kept[first_layer, 'attack']:.0%} after the attack, through the {last} in {kept[last, 'noise']:.0%} and **{kept[last, 'attack']:.0%}**. What the "
        f"namer now says is seen in {most:.0%} at most."
    )

# %% tags=["hide-input"]
first = torch.arange(len(measured_rows))[fooled][:8] if fooled.any() else torch.arange(8)
picture(
    clean[first],
    spoiled["attack"][first],
    *(through[name, "attack"][first] for name in chosen),
    columns=8,
    quality=90,
    rows=["drawing", "attacked", *(f"z of {name}" for name in chosen)],
    alt="Drawings, attacked drawings, and what the layers take them for.",
    caption=f"The first drawings that the attack (ε = {EPSILON}) made the namer misname; below, v of the clean drawing and z of the attacked one.",
)
say(
    f"The attack changes the answer for {fooled.float().mean():.0%} of {len(measured_rows)} drawings that were named rightly, noise of the same size for "
    f"{(said_by_namer['noise'] != truth).float().mean():.0%}."
)

# %% [markdown]
# ## With a kernel
#
# Choose a drawing, a layer, and how far $v$ may stray (temperature 1 is the whole distribution, 0 its middle).


# %%
def play(drawing: int, layer: str, temperature: float, number: int) -> None:
    """Show a test drawing and seven pictures with its representation."""
    row = torch.tensor([drawing])
    z_bar = flows[layer].resample(row, 7, derived_generator(number, "play"), temperature)[0]
    picture(
        torch.cat([study.known["test"].pictures(row), study.decode(z_bar)]),
        columns=8,
        alt="A drawing and seven pictures that the layer cannot tell from it.",
    )


if page.live:
    import ipywidgets as widgets

    widgets.interact(
        play,
        drawing=widgets.IntSlider(0, min=0, max=n_test - 1, continuous_update=False),
        layer=chosen,
        temperature=widgets.FloatSlider(1.0, min=0.0, max=1.5, step=0.1, continuous_update=False),
        number=widgets.IntSlider(0, min=0, max=99, continuous_update=False),
    )

# %% [markdown]
# ## Where this page departs
#
# | | paper | authors' code | here |
# |---|---|---|---|
# | flow | 20 blocks, width 1,024, d = 128 | the same; log-determinant of the invertible ReLU left out, the condition embedded twice when sampling | 6 blocks, narrower, d = 128; both errors avoided |
# | ActNorm | initialised by the first batch | asks a device flag in every pass | the same data, a buffer that is saved and never set again |
# | z and z̄ | computed anew in every step | the same | computed once for several views of each drawing, kept as float16 |
# | classes | 149 animals, or ten of them, hundreds of photographs each | the same | 100 of 877 concepts, four to eight drawings each |
# | network under examination | ResNet-101, AlexNet, FaceNet | the same | EfficientNet-Lite0, fine-tuned on emoji |
# | what is kept | looked at; FID | the same | measured by a judge on known factors |
# | start | random | the same | at the linear guess of $\bar z$ from $z$ |
# | training | batch 16, rate 7.2e-5 | the same | batch 128, rate 3e-3, warmed up and falling; gradients clipped |
# | autoencoder | ResNet-101, and a decoder like BigGAN's | the same | a linear code in a frame that was taught with the factors' labels, a decoder that refines |
# | reconstructions | sharp at 128 px | the same | {doc}`experts_brief` says how far from lossless: judge and namer know fewer of them than of the drawings |
# | published flows | | `.ckpt` files | converted and loaded by `cvlib.nn.flow.load_flow`; the autoencoder that they need is not here, so no page paints with them |
# | attack | ε = 0.02 of a range of 2 | the same | ε = 0.06 |
#
# ## Exercises
#
# 1. What is the loss of a flow that ignores its condition? Compare it with the lines above: the difference is an estimate of what the layer
#    knows, in nats.
# 2. Two halves of a block see the condition. What would $v$ be if only the first did?
# 3. Give $H$ two features instead of 128. Which of the measured numbers must rise?
#
# ```{admonition} Solutions
# :class: dropdown
#
# 1. It is an estimate of the entropy of $\bar z$; that minus the NLL given $z$ estimates the mutual information $I(\bar z; z)$ as well as both flows fit.
# 2. Invertible still, and able to make a half of the features independent of $z$; the other half would have to follow through the shuffles of later blocks.
# 3. The variance that $v$ explains: what $H$ cannot carry, $v$ must hold, so that the layer seems to ignore more than it does.
# ```
#
# ## What came after
#
# The same flow between *two* networks translates from one to the other ({cite}`rombach2020network`), and between domains. Diffusion models conditioned on
# features of a network took the place of the flow for looking inside, with sharper pictures and no $v$ that could be held fixed.

# %%
page.finish(runtime)
