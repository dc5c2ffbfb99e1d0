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
# # S2SD: a narrow embedding taught by wide ones
#
# Someone hands you one drawing of a snail and asks for the other eight hands' snails. A network answers by turning every
# drawing into a vector and returning the nearest ones. The vector should be **short**: an index of a billion pictures costs
# memory and time for every number in it. But short vectors generalise worse to things that training never showed.
#
# Roth, Milbich, Ommer, Cohen and Ghassemi {cite}`roth2021s2sd` train several **wide** embeddings beside the narrow one, on the
# same network and the same batch, and let the narrow one imitate how they arrange the batch. Then they throw the wide ones away.
# What is kept costs at test time exactly what it cost before.
#
# **What the paper claims**
#
# | | claim | where it is tested |
# |---|---|---|
# | C1 | At a fixed small dimension S2SD retrieves better than the same objective without it, for two objectives | {doc}`s2sd_claims` |
# | C2 | Each part adds: one head, several heads, the features | {doc}`s2sd_claims` |
# | C3 | The smaller the dimension, the larger the gain | {doc}`s2sd_claims` |
# | C4 | Heads that do not teach bring less than half of the gain | {doc}`s2sd_claims` |
# | C5 | Wider heads help, up to a saturation | {doc}`s2sd_claims` |
# | C6 | The teachers must not be pulled by the student | {doc}`s2sd_claims` |
# | C7 | The embedding uses more directions, and its classes collapse less | {doc}`s2sd_claims` |
# | C8 | It recovers more than half of what a wide embedding trained alone has over it | {doc}`s2sd_claims` |
#
# | scale | command | what it needs |
# |---|---|---|
# | quick | `papermill notebooks/s2sd.ipynb out.ipynb` | 3 minutes on 2 CPU cores |
# | report | `papermill notebooks/s2sd.ipynb out.ipynb -f notebooks/params/s2sd.report.yaml` | half an hour of one CPU core |
# | paper | `papermill notebooks/s2sd.ipynb out.ipynb -f notebooks/params/s2sd.cub200.yaml -p data_root DIR -p backbone_file FILE` | CUB-200-2011, ResNet-50 weights, a GPU |
#
# Reading time: 20 minutes.

# %%
import inspect
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvlib.data import Dataset, emoji_retrieval, load
from cvlib.data.class_batches import ClassBatches
from cvlib.data.views import PictureViews, StageViews, Views
from cvlib.metrics import densities, neighbours, retrieval_scores, spectral_decay
from cvlib.nn.backbones import Backbone, efficientnet_lite0, resnet50
from cvlib.nn.objectives import (
    MarginLoss,
    MultiSimilarityLoss,
    max_plus_average,
    s2sd_loss,
    similarity_distillation,
    unit,
)
from cvlib.pages import begin
from cvlib.show import figure, look, picture, say, search, show, table
from cvlib.train import Runtime, fit, load_weights, run_folder, seed_everything, warmup_linear

# %% tags=["parameters"]
seed = 0
steps = 240  # of each of the two trainings. Paper: 150 epochs, 7,800 steps on CUB-200-2011
batch_size = 112  # paper: 112
per_class = 2  # paper: 2
image_size = 64  # paper: 224
data = "emoji"  # or "cub200", "cars196", "online_products", "image_folder"
data_root = ""
backbone = "efficientnet_lite0"  # paper: "resnet50"
backbone_file = ""  # weights of ResNet-50 on your disk
frozen_stages = 6  # of nine; their output is computed once. Paper: 0
n_views = 3  # augmented views of every picture that are kept; with frozen_stages=0 each is new
objective = "multisimilarity"  # or "margin". Paper: both, and R-margin
dim = 32  # d. Paper: 128
head_widths = [256, 512, 768, 1024]  # t. Paper: 512, 1024, 1536, 2048
gamma = 10.0  # paper: 50, at d = 128
gamma_features = 10.0  # paper: 50; 5 on Stanford Online Products
warmup_share = 0.13  # of the training, without feature distillation. Paper: 1,000 steps
pool_aggr = False  # True: heads and features see maximum + average (MSDFA)
learning_rate = 5e-4  # paper: 1e-5, constant
head_learning_rate = 1e-3  # paper: 1e-5
weight_decay = 4e-4  # paper: 4e-4
device = "auto"
precision = "auto"
run_dir = "runs/s2sd"
pretrained = True  # False starts from random weights: a control, not the paper's regime
record = False

# %%
page = begin("s2sd", globals(), record=False)
if page.smoke:  # prove in seconds that every cell runs; nothing is learned
    steps, batch_size, head_widths, n_views, pretrained = 3, 16, [32, 48], 1, False
runtime = Runtime(device=device, precision=precision)
if precision == "auto" and runtime.device.type == "cpu":
    runtime = Runtime(device=device, precision="fp32")  # depthwise convolutions take twice as long in bf16
seed_everything(seed)
is_trained = steps >= 200
share = {"rank": runtime.rank, "world": runtime.world}
print(runtime.describe())

# %% [markdown]
# ## The task: one concept, nine hands
#
# Classes are concepts, pictures are drawings, and each of the nine sets is one hand, but for the hard protocol below. The concepts of the test split occur
# nowhere in training: the network has to learn what makes two drawings mean the same, not what a snail looks like.
# Background, hue, size, place and angle are random, in training and in test, so that they help nobody.


# %%
def load_split(data: str, split: str, image_size: int, root: str, smoke: bool) -> tuple[Dataset, str]:
    """Return a split and the name of the label that is the class; a smoke run has three hands."""
    if data == "emoji":
        few = {"sets": ["twemoji", "noto", "openmoji"], "min_sets": 3} if smoke else {}
        return emoji_retrieval.load(split, image_size, **few), "concept"
    return load(data, split, image_size, root=root), "class"


train, class_label = load_split(data, "train", image_size, data_root, page.smoke)
validation, _ = load_split(data, "validation", image_size, data_root, page.smoke)
test, _ = load_split(data, "test", image_size, data_root, page.smoke)
n_classes = {s.split: int(s.labels[class_label].max()) + 1 for s in (train, validation, test)}
for s in (train, validation, test):
    print(f"{s.split}: {len(s):,} pictures of {n_classes[s.split]:,} classes")


# %%
def hands_of(data: Dataset, label: str, n: int, generator: torch.Generator) -> Tensor:
    """Return rows (n, 6) of ``data``: n classes drawn at random among those with six pictures or more, six each."""
    rows = [(data.labels[label] == c).nonzero()[:, 0] for c in range(int(data.labels[label].max()) + 1)]
    rich = [found for found in rows if len(found) >= 6] or [found.repeat(6) for found in rows]
    chosen = torch.randperm(len(rich), generator=generator)[:n].tolist()
    return torch.stack([rich[c][torch.randperm(len(rich[c]), generator=generator)[:6]] for c in chosen])


def as_seen(data: Dataset, rows: Tensor) -> Tensor:
    """Return the pictures ``rows`` (n,) as evaluation sees them, (n, 3, H, W) in [-1, 1]."""
    return PictureViews(data, class_label, is_random_at_test=data.name == "emoji").fixed(rows)


few = hands_of(test, class_label, 3, torch.Generator().manual_seed(4))
picture(
    *(as_seen(test, row) for row in few),
    columns=6,
    alt="Three rows; each shows one concept as six hands draw it, on random grounds, turned and tinted.",
    caption="Each row is one class of the test split: the same concept by six hands, as the network sees it. Chosen at random.",
)

# %% [markdown]
# ### Three questions, one gallery
#
# **Recall@1** is the share of queries whose nearest neighbour has their class. It depends on the **gallery**, the pictures that may be the answer, so the size of the
# whole test split stands beside every number. Three protocols say what of it a query may find:
#
# - *all sets*: every other test drawing;
# - *cross-set*: all but those of the query's own set;
# - *hard*: all but the right ones by the query's own hand. To be right one must find **another hand's** drawing, and every wrong drawing in the query's own style is
#   in the way. Sets that copy each other (flat and shaded Fluent, and two more) count as one hand.


# %%
def protocols(data: Dataset) -> dict[str, dict]:
    """Return the protocols that a data set has: name -> options of :func:`cvlib.metrics.retrieval_scores`."""
    if data.name != "emoji":
        return {"all": {}}
    return {name: emoji_retrieval.protocol(name, data) for name in emoji_retrieval.PROTOCOLS}


def recall_at_1(z: Tensor, data: Dataset, label: str) -> dict[str, float]:
    """Return Recall@1 in % of embeddings ``z`` (N, d) of all pictures of ``data``, for each protocol."""
    options = {"ks": (1,), "map_1000": False}
    asked = protocols(data).items()
    return {
        name: 100 * retrieval_scores(z, data.labels[label], **options, **protocol).recall[1]
        for name, protocol in asked
    }


# %% [markdown]
# ## The floor: a network that has seen photographs
#
# The backbone knows ImageNet and no emoji. Its first stages stay as they are; what they make of a few augmented views of
# each picture is computed once and kept, so that a step trains only the last stages and costs much less.


# %%
def load_backbone(name: str, file: str, pretrained: bool) -> Backbone:
    """Return the named network; every BatchNorm uses its stored statistics for good, as in the paper."""
    net = resnet50(file) if name == "resnet50" else efficientnet_lite0(pretrained=pretrained)
    return net.freeze_batch_norm()


def views_of(data: Dataset, label: str, net: Backbone, stage: int, n_views: int, device) -> Views:
    """Return the inputs of ``stage`` for every picture: kept on disk, or new pictures for stage 0."""
    is_random = data.name == "emoji"  # its factors are random at test too
    if stage == 0:
        return PictureViews(data, label, is_random_at_test=is_random)
    return StageViews(data, net, stage, n_views, label, is_random_at_test=is_random, device=device)


def build_sources(net: Backbone) -> dict[str, Views]:
    """Return train, validation and test as this page's network takes them; only training has several views."""
    parts = {"train": (train, n_views), "validation": (validation, 1), "test": (test, 1)}
    return {
        name: views_of(part, class_label, net, frozen_stages, n, runtime.device)
        for name, (part, n) in parts.items()
    }


sources = build_sources(load_backbone(backbone, backbone_file, pretrained))


@torch.no_grad()
def pooled(net: Backbone, source: Views, runtime: Runtime, batch: int = 512) -> Tensor:
    """Return average-pooled features (N, C) of all items of a source, float32 on the CPU."""
    net.eval()
    found = []
    for rows in torch.arange(len(source)).split(batch):
        with runtime.autocast():
            found.append(
                net.run(source.fixed(rows).to(runtime.device), start=source.stage).mean((2, 3)).float().cpu()
            )
    return torch.cat(found)


frozen_net = runtime.prepare(load_backbone(backbone, backbone_file, pretrained))
frozen = {name: pooled(frozen_net, sources[name], runtime) for name in ("train", "test")}
floor = recall_at_1(frozen["test"], test, class_label)
main_protocol = "hard" if data == "emoji" else "all"
table(
    [[name, value, 100 / n_classes["test"], f"{len(test):,}"] for name, value in floor.items()],
    header=[
        "protocol",
        f"Recall@1 (%) of {frozen['test'].shape[1]:,} frozen features",
        "guessing a class (%)",
        "gallery",
    ],
)

# %% [markdown]
# ### What a short vector costs
#
# Before any training: the best linear compression of these features is their principal components.
#
# **Predict**: with 16 numbers instead of 1,280, how much of the frozen recall is left?

# %%
centred = frozen["train"] - frozen["train"].mean(0)
directions = torch.linalg.svd(centred, full_matrices=False).Vh  # of the training pictures
widths = [d for d in (2, 4, 8, 16, 32, 64, 128, 256) if d <= len(directions)]
compressed = {
    d: recall_at_1((frozen["test"] - frozen["train"].mean(0)) @ directions[:d].T, test, class_label)[
        main_protocol
    ]
    for d in widths
}
assert compressed[widths[0]] < compressed[widths[-1]] or not pretrained

# %% tags=["hide-input"]
fig, ax = figure(width="half")
ax.plot(widths, list(compressed.values()), **look("baseline", marker=True), label="principal components")
ax.axhline(floor[main_protocol], **look("control"), label=f"all {frozen['test'].shape[1]:,} features")
ax.set_xscale("log", base=2)
ax.set_xticks(widths, [str(d) for d in widths])
ax.set(
    xlabel="dimension d", ylabel=f"Recall@1 (%), {main_protocol}", ylim=(0, 1.35 * max(compressed.values()))
)
ax.legend(loc="upper left")
show(
    fig,
    alt=f"Recall at 1 of compressed frozen features rises with the dimension, {compressed[widths[-1]]:.1f} % at {widths[-1]}.",
    caption=f"Frozen features compressed to d principal components; {len(test):,} test drawings of {n_classes['test']} classes.",
)

# %% [markdown]
# The answer stands at $d = 16$ in the figure. That is the cost of a small dimension before training. Training pays it again: the fewer the dimensions, the more an
# objective must sacrifice, and it sacrifices first what the training classes did not need.
#
# ## The objective
#
# All objectives of this chapter see unit vectors and their cosines $s_{ij}$. **Multisimilarity** {cite}`wang2019ms` works on hard pairs. A positive of
# anchor $i$ is hard if some negative is nearer than it, or almost as near: $s_{ip} - \varepsilon < \max_n s_{in}$. A negative is hard if it is nearer than
# the farthest positive, or almost: $s_{in} + \varepsilon > \min_p s_{ip}$. The loss pulls the hard positives $\mathcal P_i$ and pushes the hard negatives $\mathcal N_i$,
#
# $$ \mathcal L_\text{MS} = \frac1{|\mathcal A|}\sum_{i\in\mathcal A}\Big[\frac1\alpha\log\Big(1+\sum_{p\in\mathcal P_i} e^{-\alpha(s_{ip}-\lambda)}\Big)
#    + \frac1\beta\log\Big(1+\sum_{n\in\mathcal N_i} e^{\beta(s_{in}-\lambda)}\Big)\Big], $$
#
# where $\mathcal A$ holds the anchors that keep a pair. As in the authors' code, α = 2, β = 40, λ = 0.5 and ε = 0.1.
#
# The other objective is the **margin loss** {cite}`wu2017sampling` with distance-weighted sampling; {doc}`diva` explains it. Both are in `cvlib.nn.objectives`,
# whose tests compare them with a peer library and with the authors' own values. Here we ask one thing: how hard is a negative pushed, depending on its cosine?

# %%
cosines = torch.linspace(-0.95, 0.95, 191)
pushes = []  # d loss / d s of one negative at cosine s to the anchor, whose positive lies at 0.6
for cosine in cosines:
    s = cosine.clone().requires_grad_()
    anchor, positive = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])
    negative = torch.stack([s, -(1 - s.square()).sqrt()])  # on the side away from the positive
    loss = MultiSimilarityLoss()(torch.stack([anchor, positive, negative]), torch.tensor([0, 0, 1]))
    pushes.append(torch.autograd.grad(loss, s)[0].item() if loss > 0 else 0.0)
is_hard = cosines + 0.1 > 0.6  # nearer than the positive, less the slack epsilon
expected = torch.sigmoid(40 * (cosines - 0.5)) * is_hard
torch.testing.assert_close(torch.tensor(pushes), expected, atol=1e-4, rtol=0)

# %% tags=["hide-input"]
fig, ax = figure(width="half")
ax.plot(cosines, pushes, **look("ours"), label="autograd")
ax.plot(
    cosines,
    torch.sigmoid(40 * (cosines - 0.5)),
    **look("paper"),
    label=r"$\sigma(\beta(s - \lambda))$",
)
ax.axvline(0.6, **look("control"), label="the positive")
ax.set(xlabel="cosine of the negative", ylabel="push")
ax.legend(loc="upper left")
show(
    fig,
    alt="The push on a negative is zero below cosine 0.5 and jumps to about one above.",
    caption="How hard multisimilarity pushes a negative: a sigmoid around λ = 0.5, cut where the negative is farther than the positive.",
)

# %% [markdown]
# ## Wide heads that will be thrown away
#
# The embedding that is kept is **one linear layer** $f$ on the pooled features $\varphi\in\mathbb R^C$. A head $g_i$ has one hidden layer; it and the output are
# $t_i$ numbers wide. Each head has an objective of its own, with its own learned boundaries and its own sampling.


# %%
class EmbeddingNet(nn.Module):
    """A backbone from stage ``start`` on and one linear layer: all that is left after training.

    Stages before ``start`` are frozen. Inputs are what goes into that stage, outputs unit vectors (B, d).
    """

    def __init__(self, backbone: Backbone, start: int, dim: int) -> None:
        super().__init__()
        self.backbone, self.start = backbone, start
        for stage in backbone.stages[:start]:
            stage.requires_grad_(False)
        self.head = nn.Linear(backbone.width, dim)

    def feature_map(self, x: Tensor) -> Tensor:
        """Return the last map (B, C, h, w)."""
        return self.backbone.run(x, start=self.start)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedding (B, d), rows of length 1."""
        return unit(self.head(self.feature_map(x).mean((2, 3)).float()))


def build_heads(channels: int, widths: Sequence[int]) -> nn.ModuleList:
    """Return the auxiliary heads: C -> t, ReLU, t -> t for each t of ``widths``."""
    return nn.ModuleList(nn.Sequential(nn.Linear(channels, t), nn.ReLU(), nn.Linear(t, t)) for t in widths)


with torch.device("meta"):  # the paper's: 18.36 M parameters that exist in training only
    paper_heads = build_heads(2048, (512, 1024, 1536, 2048))
assert sum(p.numel() for p in paper_heads.parameters()) == 18_360_320

# %% [markdown]
# ## Imitation
#
# Take a batch of $B$ pictures. Every embedding $f$ of it gives a $B\times B$ matrix of cosines $S_f$, whatever its dimension: here a vector of 16 numbers can be
# compared with one of 1,024. Row by row, a softmax σ at temperature $T$ makes it a distribution over the batch. The student's rows should follow the teacher's,
#
# $$ D(S_f, S_g) = \frac{T^2}{B}\sum_i \mathrm{KL}\big(\sigma(S_{g,i}/T)\,\big\|\,\sigma(S_{f,i}/T)\big). $$

# %%
print(inspect.getsource(similarity_distillation))

# %% [markdown]
# What does this ask for? Cosines lie in $[-1, 1]$, so at the paper's $T=1$ a softmax over 112 of them is nearly flat.
#
# **Predict**: how near to the largest possible entropy is such a row? And what is a KL divergence between two nearly flat
# distributions?

# %%
rng = torch.Generator().manual_seed(0)
wide, narrow = (unit(torch.randn(112, d, generator=rng)) for d in (2048, 128))
rows = (wide @ wide.T).softmax(1)
entropy = (-(rows * rows.log()).sum(1).mean() / math.log(112)).item()
gap = wide @ wide.T - narrow @ narrow.T
second_order = 0.5 * gap.var(1, correction=0).mean().item()
exact = similarity_distillation(narrow, wide).item()
assert entropy > 0.99 and abs(second_order / exact - 1) < 0.1, (entropy, second_order, exact)
say(
    f"The rows have **{entropy:.1%}** of the largest entropy. For such flat rows the divergence is half the variance of the "
    f"difference of the similarities along the row: {second_order:.5f} against the exact {exact:.5f}. At T = 1 S2SD is a **least "
    f"squares fit of the similarity matrix**, up to a constant in each row. That also says why its weight γ is so large: the "
    f"term itself is of the order of a hundredth."
)

# %% [markdown]
# This reading predicts when it helps. The student can follow only as far as $d$ dimensions let it: the best fit of a Gram
# matrix by one of rank $d$. With 128 dimensions little is lost. With eight, imitation and discrimination compete for the
# same few directions, and γ may have to be smaller. That was not measured: {doc}`s2sd_claims` keeps one γ from 16 to 128 dimensions.
#
# **Who learns from whom.** Teachers are detached: the wide heads learn from their own objective only, the narrow embedding from its own and from them. The last
# teacher is the pooled feature vector itself (weight $\gamma_F$); it teaches too and is not pulled. With the objective $\mathcal L_\text{DML}$ and $M$ heads, the
# whole loss is
#
# $$ \mathcal L = \tfrac12\Big[\mathcal L_\text{DML}(f) + \tfrac1M\sum_i \mathcal L_\text{DML}(g_i)\Big]
#    + \frac{\gamma}{M}\sum_i D(S_f, \operatorname{sg} S_{g_i}) + \gamma_F\, D(S_f, \operatorname{sg} S_\varphi) . $$
#
# The last term sets in after a warm-up. Training *alone* is $\mathcal L_\text{DML}(f)$ with weight 1. In the paper's names, one head is DSD (dual
# self-distillation), several are MSD (multiscale), MSDF adds the features, and MSDFA gives the heads and the feature teacher maximum + average pooling.


# %%
@dataclass(frozen=True)
class Method:
    """One way of training an embedding of ``dim`` dimensions; no ``widths`` means the plain objective."""

    dim: int = 32
    objective: str = "multisimilarity"  # or "margin"
    widths: tuple[int, ...] = ()
    gamma: float = 0.0
    gamma_features: float = 0.0
    detach: bool = True
    pool_aggr: bool = False
    learning_rate: float = 5e-4
    head_learning_rate: float = 1e-3
    weight_decay: float = 4e-4
    warmup_share: float = 0.13  # of the training, without feature distillation


def build_objectives(method: Method, n_classes: int) -> nn.ModuleList:
    """Return one objective for the embedding and one for each head, with learned parts of their own."""

    def one() -> nn.Module:
        return MarginLoss(n_classes) if method.objective == "margin" else MultiSimilarityLoss()

    if method.objective not in ("margin", "multisimilarity"):
        raise ValueError(f"objective {method.objective!r}; wanted multisimilarity or margin")
    return nn.ModuleList(one() for _ in range(1 + len(method.widths)))


def s2sd_step(
    net: EmbeddingNet,
    heads: nn.ModuleList,
    objectives: nn.ModuleList,
    optimizer: torch.optim.Optimizer,
    method: Method,
    runtime: Runtime,
    warmup: int,
):
    """Return ``step(batch, t) -> parts``: one update of network, heads and objectives. Source: Roth et al. 2021."""

    def step(batch: dict, t: int) -> dict[str, Tensor]:
        labels = batch["label"]
        with runtime.autocast():
            feature_map = net.feature_map(batch["views"][0])
        phi = feature_map.mean((2, 3)).float()
        wide = max_plus_average(feature_map).float() if method.pool_aggr else phi
        f = net.head(phi)
        own = objectives[0](f, labels)
        if not heads:
            loss, parts = own, {}
        else:
            gs = [head(wide) for head in heads]
            losses = [of(g, labels) for of, g in zip(objectives[1:], gs, strict=True)]
            terms = s2sd_loss(
                own,
                losses,
                f,
                gs,
                wide if method.gamma_features else None,
                method.gamma,
                method.gamma_features,
                step=t,
                warmup=warmup,
                detach=method.detach,
            )
            loss = terms.loss
            parts = {
                "heads": torch.stack(losses).mean(),
                "from heads": terms.heads,
                "from features": terms.features,
            }
        optimizer.zero_grad(set_to_none=True)
        runtime.backward(loss)
        optimizer.step()
        return {name: part.detach() for name, part in {"objective": own, **parts, "loss": loss}.items()}

    return step


def train_method(
    method: Method,
    net: Backbone,
    source: Views,
    seed: int,
    steps: int,
    batch_size: int,
    per_class: int,
    runtime: Runtime,
    root: str,
    *,
    validate=None,
    n_checks: int = 4,
    stop: int | None = None,
    quiet: bool = False,
):
    """Train ``net`` (changed in place) by ``method``; return the EmbeddingNet, its heads and the result of ``fit``.

    ``validate(network)`` returns {"recall": ...} in %; its best step is what is kept and returned. ``stop`` ends
    the run early, with the schedules of the whole one.
    """
    config = {"seed": seed, "steps": steps, "batch_size": batch_size, "per_class": per_class}
    config |= {"data": source.hash, "method": asdict(method), "backbone": net.name, "stage": source.stage}
    config |= {"precision": runtime.precision, "n_checks": n_checks if validate else 0}
    seed_everything(seed)
    network = runtime.prepare(EmbeddingNet(net, source.stage, method.dim))
    heads = runtime.prepare(build_heads(net.width, method.widths))
    objectives = runtime.prepare(build_objectives(method, int(source.labels.max()) + 1))
    slow = [p for stage in net.stages[source.stage :] for p in stage.parameters()]
    fast = [*network.head.parameters(), *heads.parameters()]
    groups = [{"params": slow, "lr": method.learning_rate}, {"params": fast, "lr": method.head_learning_rate}]
    groups += [group for one in objectives for group in one.parameter_groups(method.learning_rate)]
    optimizer = torch.optim.AdamW(groups, weight_decay=method.weight_decay, **runtime.fused)
    folder = run_folder(root, "s2sd", config)

    def evaluate(done: int) -> dict[str, float]:
        values = validate(network)
        return {**values, "miss": 100 - values["recall"]}  # fit keeps the lowest

    result = fit(
        folder,
        config=config,
        modules={"network": network, "heads": heads, "objectives": objectives},
        optimizers={"all": optimizer},
        batches=ClassBatches(
            source,
            batch_size,
            seed=seed,
            per_class=per_class,
            device=runtime.device,
            rank=runtime.rank,
            world=runtime.world,
        ),
        step=s2sd_step(
            network, heads, objectives, optimizer, method, runtime, round(method.warmup_share * steps)
        ),
        steps=stop or steps,
        runtime=runtime,
        schedules={"all": warmup_linear(max(1, steps // 20), steps)},
        evaluate=evaluate if validate else None,
        eval_every=max(1, steps // n_checks),
        best="miss" if validate else None,
        quiet=quiet,
    )
    if validate:
        load_weights(folder, {"network": network, "heads": heads}, which="best")
    return network, heads, result


# %% [markdown]
# ### Training, with and without teachers
#
# Same seed, same batches, same steps; the only difference is what stands beside the embedding. Validation chooses the step that is
# kept, on concepts that are neither in training nor in test.


# %%
@torch.no_grad()
def embed(network: EmbeddingNet, source: Views, runtime: Runtime, batch: int = 512) -> tuple[Tensor, Tensor]:
    """Return the embeddings (N, d) and the pooled features (N, C) of all items, float32 on the CPU."""
    network.eval()
    phi = pooled(network.backbone, source, runtime, batch)
    head = network.head
    return unit(F.linear(phi, head.weight.float().cpu(), head.bias.float().cpu())), phi


def validator(source: Views, data: Dataset, label: str, runtime: Runtime):
    """Return ``validate(network)``: mean Recall@1 over the protocols of a validation split, in %."""

    def validate(network: EmbeddingNet) -> dict[str, float]:
        z, phi = embed(network, source, runtime)
        values = {"recall": z, "features": phi}
        means = {name: np.mean(list(recall_at_1(v, data, label).values())) for name, v in values.items()}
        return {name: float(value) for name, value in means.items()}

    return validate


shared = {
    "dim": dim,
    "objective": objective,
    "learning_rate": learning_rate,
    "head_learning_rate": head_learning_rate,
    "weight_decay": weight_decay,
    "warmup_share": warmup_share,
}
methods = {
    "alone": Method(**shared),
    "S2SD": Method(
        **shared,
        widths=tuple(head_widths),
        gamma=gamma,
        gamma_features=gamma_features,
        pool_aggr=pool_aggr,
    ),
}
trained, results = {}, {}
for name, method in methods.items():
    print(f"{name}: ", end="")
    trained[name], _, results[name] = train_method(
        method,
        load_backbone(backbone, backbone_file, pretrained),
        sources["train"],
        seed,
        steps,
        batch_size,
        per_class,
        runtime,
        run_dir,
        validate=validator(sources["validation"], validation, class_label, runtime),
    )

# %% tags=["hide-input"]
fig, ax = figure()
for name, role in {"alone": "baseline", "S2SD": "ours"}.items():
    at, recall = results[name].curve("eval/recall")
    ax.plot(at, recall, **look(role, marker=True), label=f"{name}, d = {dim}")
    at, features = results[name].curve("eval/features")
    ax.plot(at, features, color=look(role)["color"], linestyle=":", label=f"{name}, the features under it")
ax.set(xlabel="step", ylabel="Recall@1 (%), mean of protocols", ylim=(0, None))
ax.legend(ncols=2)
show(
    fig,
    alt="Validation recall of the embedding and of the features under it, with and without S2SD, over training.",
    caption=f"Recall@1 on {len(validation):,} validation drawings of {n_classes['validation']} unseen concepts, by training step.",
)

# %%
embeddings = {name: embed(network, sources["test"], runtime) for name, network in trained.items()}
scored = {
    f"frozen features, {frozen['test'].shape[1]:,}": floor,
    f"alone, d = {dim}": recall_at_1(embeddings["alone"][0], test, class_label),
    f"S2SD, d = {dim}": recall_at_1(embeddings["S2SD"][0], test, class_label),
    f"features under alone, {frozen['test'].shape[1]:,}": recall_at_1(
        embeddings["alone"][1], test, class_label
    ),
    f"features under S2SD, {frozen['test'].shape[1]:,}": recall_at_1(
        embeddings["S2SD"][1], test, class_label
    ),
}
table(
    [[name, *values.values(), f"{len(test):,}"] for name, values in scored.items()],
    header=["Recall@1 (%) on test", *floor, "gallery"],
)
if (
    is_trained and data == "emoji"
):  # the narrow embedding must beat the frozen features that are 80 times longer
    assert scored[f"S2SD, d = {dim}"][main_protocol] > floor[main_protocol]

# %%
alone, taught = (scored[f"{name}, d = {dim}"][main_protocol] for name in ("alone", "S2SD"))
under = [
    scored[f"features under {name}, {frozen['test'].shape[1]:,}"][main_protocol] for name in ("alone", "S2SD")
]
say(
    f"In this one run, under the *{main_protocol}* protocol, {dim} numbers find the concept in **{alone:.1f} %** of the cases when trained "
    f"alone and in **{taught:.1f} %** with S2SD; the frozen features, {frozen['test'].shape[1]:,} numbers, in {floor[main_protocol]:.1f} %. "
    f"The features under the embedding go from {under[0]:.1f} to {under[1]:.1f} %: how much of their gain reaches the "
    f"narrow vector is the question of the chapter. One seed decides nothing; {{doc}}`s2sd_claims` has five."
)

# %% [markdown]
# ## Three queries, three embeddings
#
# The left column asks; the others answer, nearest first. A green frame marks the right concept, and the query itself. Look for answers that share only the colour
# or the outline.


# %%
def framed_pictures(images: Tensor, is_right: Tensor) -> Tensor:
    """Return images (N, 3, H, W) with a rim: green where ``is_right`` (N,), grey where not."""
    rim = max(1, images.shape[-1] // 16)
    out = F.pad(images, (rim, rim, rim, rim))
    colours = torch.where(is_right[:, None], torch.tensor([-0.9, 0.5, -0.4]), torch.tensor([0.6, 0.6, 0.6]))
    mask = F.pad(torch.zeros_like(images[:, :1]), (rim, rim, rim, rim), value=1.0)
    return out * (1 - mask) + colours[:, :, None, None] * mask


def answers(z: Tensor, data: Dataset, label: str, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k nearest gallery rows (Q, k) of ``queries`` (Q,) under the main protocol, and whether each is right."""
    options = protocols(data)[main_protocol]
    near = neighbours(z, k, queries=queries, labels=data.labels[label] if options else None, **options)
    labels = data.labels[label]
    return near, labels[near] == labels[queries][:, None]


def answer_rows(z: Tensor, queries: Tensor, k: int) -> Tensor:
    """Return for each query itself and its k neighbours, framed, (Q, k + 1, 3, H, W)."""
    near, right = answers(z, test, class_label, queries, k)
    rows = torch.cat([queries[:, None], near], 1)
    marks = torch.cat([torch.ones(len(queries), 1, dtype=torch.bool), right], 1)
    images = framed_pictures(as_seen(test, rows.flatten()), marks.flatten())
    return images.view(*rows.shape, *images.shape[1:])


asked = hands_of(test, class_label, 3, torch.Generator().manual_seed(11))[:, 0]
spaces = {"frozen": frozen["test"], "alone": embeddings["alone"][0], "S2SD": embeddings["S2SD"][0]}
sheets = {name: answer_rows(z, asked, 7) for name, z in spaces.items()}
for q in range(len(asked)):
    picture(
        *(sheet[q] for sheet in sheets.values()),
        columns=8,
        rows=list(sheets),
        scale=1,
        alt=f"Query {q + 1} at the left and its seven nearest test drawings in three embeddings, right ones framed green.",
        caption=f"Query {q + 1} (left) and its nearest drawings by other hands or other concepts. Queries chosen at random."
        if q == len(asked) - 1
        else "",
    )

# %% [markdown]
# ## What the student copies
#
# Forty-eight test drawings of eight concepts, six hands each, sorted by concept. Bright red squares on the diagonal are concepts that hold together. The features under
# S2SD are one of its teachers. They come after a ReLU and are never negative, so all their cosines are high, and the student copies even that. Retrieval does not
# mind: it asks only for the order within a row. So the mean contrast in the table below is no recall; compare the two before you prefer the higher contrast.

# %%
block = hands_of(test, class_label, 8, torch.Generator().manual_seed(5)).flatten()
matrices = {
    "frozen": unit(frozen["test"][block] - frozen["train"].mean(0)),
    f"alone, d = {dim}": embeddings["alone"][0][block],
    f"S2SD, d = {dim}": embeddings["S2SD"][0][block],
    "features under S2SD": unit(embeddings["S2SD"][1][block]),
}
fig, axes = figure(columns=4, height=1.9)
for ax, (name, z) in zip(axes, matrices.items(), strict=True):
    drawn = ax.imshow((z @ z.T).numpy(), vmin=-1, vmax=1, cmap="RdBu_r")
    ax.set_title(name, fontsize=8)
    ax.set_xticks([])
    ax.set_yticks([])
fig.colorbar(drawn, ax=list(axes), shrink=0.8, label="cosine")
show(
    fig,
    alt="Four 48 by 48 matrices of cosines; squares along the diagonal stand out after training.",
    caption="Cosines of 48 test drawings, sorted by concept (8 concepts, six hands each).",
)


# %%
def structure(z: Tensor, labels: Tensor) -> dict[str, float]:
    """Return spectral decay (lower: more directions in use) and the density of classes (higher: less collapsed)."""
    return {"spectral decay": float(spectral_decay(z)), "intra / inter": float(densities(z, labels).ratio)}


def class_contrast(z: Tensor, labels: Tensor) -> float:
    """Return the mean cosine within classes less that between, for unit rows ``z`` (N, d)."""
    s, same = z @ z.T, labels[:, None] == labels
    off = ~torch.eye(len(z), dtype=torch.bool)
    return (s[same & off].mean() - s[~same].mean()).item()


table(
    [[name, class_contrast(z, test.labels[class_label][block])] for name, z in matrices.items()],
    header=["embedding", "mean cosine within concepts less between"],
    caption="The 48 drawings above.",
)
if is_trained:
    table(
        [[name, *structure(embeddings[name][0], test.labels[class_label]).values()] for name in methods],
        header=[f"d = {dim}, all of test", "spectral decay", "intra / inter"],
    )

# %% [markdown]
# In the last table a lower spectral decay means that more directions are in use, and a higher ratio intra / inter means that classes collapse less. C7 says that
# S2SD lowers the first and raises the second. Compare the two rows for yourself; {doc}`s2sd_claims` decides over five seeds.
#
# ## Ask it yourself
#
# Type a concept. Above, what the frozen network returns; below, what the trained one does. The pictures lie in the page; no
# kernel is needed.


# %%
def concept_of(row: int) -> str:
    """Return the class name of a test picture."""
    return test.label_names[class_label][int(test.labels[class_label][row])].replace("-", " ")


catalogue_rows = torch.randperm(len(test), generator=torch.Generator().manual_seed(2))[
    : 6 if page.smoke else 72
]
found = {name: answers(z, test, class_label, catalogue_rows, 6) for name, z in spaces.items()}
used = torch.cat([catalogue_rows, *(near.flatten() for near, _ in found.values())]).unique()
place = {int(row): k for k, row in enumerate(used)}
search(
    F.interpolate(as_seen(test, used), size=(32, 32), mode="area"),
    queries=[(concept_of(int(row)), place[int(row)]) for row in catalogue_rows],
    answers={
        name: [
            [(place[int(row)], bool(ok)) for row, ok in zip(near[q], right[q], strict=True)]
            for q in range(len(catalogue_rows))
        ]
        for name, (near, right) in found.items()
    },
    alt="A box to search test concepts, with the six nearest drawings in each of three embeddings.",
    caption=f"{len(catalogue_rows)} random test drawings as queries; the gallery is the whole test split ({len(test):,} drawings).",
)


# %%
def ask(concept: str = "", number: int = 0) -> None:
    """Show the neighbours of the drawing ``number`` of a test concept, in the frozen and in the S2SD embedding."""
    names = test.label_names[class_label]
    matches = [k for k, name in enumerate(names) if concept.replace(" ", "-") in name]
    if not matches:
        print(f"no test concept contains {concept!r}")
        return
    rows = (test.labels[class_label] == matches[0]).nonzero()[:, 0]
    query = rows[number % len(rows)][None]
    picture(
        *(answer_rows(spaces[name], query, 7)[0] for name in ("frozen", "S2SD")),
        columns=8,
        rows=["frozen", "S2SD"],
        scale=1,
        alt=f"The drawing asked for ({names[matches[0]]}) and its neighbours, right ones framed green.",
    )


if page.live:
    import ipywidgets as widgets

    widgets.interact(
        ask,
        concept=widgets.Text(concept_of(int(asked[0])), description="concept", continuous_update=False),
        number=widgets.IntSlider(0, min=0, max=8, continuous_update=False),
    )

# %% [markdown]
# ## The test costs nothing more
#
# What answers queries is backbone and one linear layer, trained either way. The proof is not a stopwatch: the two networks have
# the same parameters with the same shapes.

# %%
shapes = {name: {k: tuple(v.shape) for k, v in n.state_dict().items()} for name, n in trained.items()}
assert shapes["alone"] == shapes["S2SD"]
extra = sum(p.numel() for p in build_heads(trained["S2SD"].backbone.width, head_widths).parameters())
table(
    [
        ["numbers kept per picture", dim, dim],
        ["parameters at test", *(sum(p.numel() for p in n.parameters()) for n in trained.values())],
        ["parameters in training only", 0, extra],
        ["seconds of training", *(results[name].seconds for name in methods)],
    ],
    header=["", *methods],
)

# %% [markdown]
# ## Where this page departs
#
# | | paper | authors' code | here |
# |---|---|---|---|
# | backbone | ResNet-50, all of it learns | the same | EfficientNet-Lite0, last five blocks and head; parameter files for ResNet-50 |
# | dimension d, heads | 128; 512 to 2,048 | the same | 32; 256 to 1,024 |
# | γ | 50 | 50 | chosen on validation at d = 32, kept at other d |
# | batches | 2 samples of 56 classes | classes and samples drawn with replacement, so that two classes can be one | without replacement |
# | optimiser | Adam | Adam, weight decay coupled, constant rate | AdamW, warm-up and linear decay |
# | β of the margin loss | learned | registered with the network's rate 1e-5: frozen in practice | own rate, 5e-4 |
# | margin loss, divisor | active terms | since PyTorch 1.2 the sum of booleans is a logical or: triplets | active terms |
# | checkpoint | | best epoch **on test** | best check on validation; test is looked at once |
# | NMI | | k = number of *training* classes | k = number of test classes |
#
# **Traps of the original code.** The options in the README do not exist in the parser; the miner of the heads looks up a
# margin under the name of the loss and fails for the semi-hard one; the mAP divides by the class size although the
# query itself cannot be found, so that no embedding reaches 1.
#
# ## Exercises
#
# 1. *Show that at $T = 1$ the distillation does not see a constant added to a row of the student's similarities.* Solution
#    below.

# %%
student, teacher = torch.randn(6, 6, generator=rng), torch.randn(6, 6, generator=rng)


def row_kl(s: Tensor, p: Tensor) -> Tensor:
    """Return the mean KL divergence of softmax rows of similarities (B, B): teacher ``p`` from student ``s``."""
    return F.kl_div(s.log_softmax(1), p.log_softmax(1), reduction="batchmean", log_target=True)


torch.testing.assert_close(row_kl(student, teacher), row_kl(student + torch.arange(6.0)[:, None], teacher))

# %% [markdown]
# 2. *How small can $D$ be made by any student of dimension $d$?* By the reading above, about half the error of the best
#    rank-$d$ Gram matrix. Compute its spectrum for the features of a test batch.

# %%
z = matrices["features under S2SD"]
spectrum = torch.linalg.eigvalsh(z @ z.T).flip(0).clamp_min(0)
left_over = {d: (0.5 * spectrum[d:].square().sum() / len(z) ** 2).item() for d in (4, 8, 16, 32)}
table([[d, v] for d, v in left_over.items()], header=["d", "least possible D (estimate)"])
assert list(left_over.values()) == sorted(left_over.values(), reverse=True)

# %% [markdown]
# 3. *Replace the softmax rows by a plain mean squared error between similarity matrices.* Change one line of `s2sd_step`
#    and run the page again. Take the mean out of each row first and
#    halve the error: then, at $T = 1$, its value should be nearly that of $D$.
#
# ## What came after
#
# Simultaneous self-distillation became a standard companion of metric learning: language guidance for the same task adds
# a teacher from text, and large retrieval models train nested dimensions in one vector ("matryoshka" embeddings), which is
# the same wish, a short vector that knows what the long one knows, without throwing the long one away.

# %%
page.finish(runtime)
