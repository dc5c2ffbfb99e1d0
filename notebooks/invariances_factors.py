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
# # What can be exchanged: factors of a latent
#
# {doc}`invariances` tells apart what a layer knows and what it ignores. But what is *in* a latent? That it holds a concept, a hand and a
# place says little as long as no one can point at them. Rombach, Esser and Ommer {cite}`rombach2020invariances` train a second invertible network
# (from {cite}`esser2020disentangling`) that turns a latent into blocks, one a factor. No block is ever told what it stands for: the network sees pairs of pictures that are alike in one
# respect. A block can then be taken from one picture and given to another.
#
# | | claim of the paper | where it is tested |
# |---|---|---|
# | I9 | A second flow makes factors of the latent that can be exchanged one by one | below, against a linear probe |
#
# | scale | command | what it needs |
# |---|---|---|
# | quick | `papermill notebooks/invariances_factors.ipynb out.ipynb` | 2 minutes on 2 CPU cores |
# | report | `papermill notebooks/invariances_factors.ipynb out.ipynb -f notebooks/params/invariances_factors.report.yaml` | ten minutes of one CPU core |
#
# Reading time: 8 minutes.

# %%
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cvlib.data.base import derived_generator
from cvlib.data.factors import factor_targets
from cvlib.nn import SemanticFlow
from cvlib.nn.experts import Judgement, load_experts
from cvlib.nn.flow import LinearFactors
from cvlib.nn.vae import DiagonalGaussian
from cvlib.notebooks import invariances as story
from cvlib.pages import begin
from cvlib.show import picture, say, table
from cvlib.train import RunResult, Runtime, fit, run_folder, seed_everything, warmup_linear

# %% tags=["parameters"]
seed = 0
steps = 60
batch_size = 128  # latents, two of a pair. Paper: 25
image_size = 64  # paper: 128
n_blocks = 12  # paper: 12
width = 128  # paper: 512
depth = 2  # paper: 2
learning_rate = 3e-4
n_pairs = 1024  # for each factor
n_views = 4  # of every drawing for probe and flows, cached
n_concepts = 100  # that are studied, evenly spread over the namer's 877
layers = ["block 4", "softmax"]  # whose knowledge of the factors is asked for
flow_steps = 60  # of the flows of these layers; as on the page invariances
flow_dir = "runs/invariances"  # where that page leaves them
data = "emoji"
data_root = ""
device = "auto"
precision = "auto"
run_dir = "runs/invariances_factors"
pretrained = True  # the experts are those of the book; there are no others
record = False

# %%
page = begin("invariances_factors", globals(), data="emoji", data_root="", pretrained=True, record=False)
if page.smoke:  # prove in seconds that every cell runs; nothing is learned
    steps, batch_size, n_blocks, width, n_concepts, n_pairs = min(steps, 3), 16, 2, 16, 22, 16
runtime = Runtime(device=device, precision=precision)
seed_everything(seed)
print(runtime.describe())

# %% [markdown]
# The experts and the drawings are those of {doc}`invariances`: an autoencoder of 128 numbers; a namer; and a judge of
# another build, who says what is to be seen in a picture, among the hundred concepts that are studied. Here the namer only chooses the drawings that are
# measured: those that it names rightly.

# %%
namer, autoencoder, judge = load_experts(page.weights, runtime, "experts_brief")
study = story.open_study(namer, autoencoder, judge, image_size, n_views, runtime, n_concepts)
n_test = len(study.known["test"])
sample = torch.linspace(0, n_test - 1, min(8, n_test)).long()
shown = study.known["test"].pictures(sample)
measured_rows = story.named_rightly(study, 16 if page.smoke else 256)

# %% [markdown]
# ## A place for every factor
#
# A latent can be asked about a concept only if the concept has a place of its own. The second flow $e(\bar z) = (e_0, e_1, \dots, e_K)$ has no condition. Its output
# falls into blocks, one for each factor, and $e_0$ for everything else. It learns from pairs of pictures $a$, $b$ that share one factor $F$ and nothing else. Both
# ends of a pair are to be Gaussian, but $e_F$ of the second is predicted from that of the first with a fixed correlation $\sigma_{ab}$,
#
# $$ e_F^b \,|\, e_F^a \sim \mathcal N\big(\sigma_{ab}\, e_F^a,\ (1 - \sigma_{ab}^2) I\big), \qquad e_{k \ne F} \sim \mathcal N(0, I). $$
#
# The flow reads no label, only that two drawings are alike in one respect. We can make such pairs because all factors are ours to choose. Hue is left out: a turn of
# the hue means nothing without the thing it belongs to. Some labels are in the latent already, though: its first eight numbers are the frame, which a network was
# *told* to read ({doc}`experts`). So it is no feat that $e$ finds ground, size, place and turn; concept and hand are the harder question.

# %%
SHARED = ("concept", "hand", "background", "size", "shift", "rotation")
FACTOR_COLUMNS = {
    "background": slice(0, 3),
    "size": slice(4, 5),
    "shift": slice(5, 7),
    "rotation": slice(7, 8),
}


@torch.no_grad()
def pairs_of(study: Any, factor: str, n: int, split: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return latents (n, dim), twice, of pictures that are alike in one factor and drawn apart in all else.

    Alike in concept are drawings by two hands; alike in hand are drawings of two concepts.
    """
    data, chance = study.known[split].data, derived_generator(seed, "pairs", split, factor)
    one, other = torch.randint(len(data), (2, n), generator=chance)
    if factor in ("concept", "hand"):
        rest = "hand" if factor == "concept" else "concept"
        is_alike, is_same = (data.labels[f][one, None] == data.labels[f] for f in (factor, rest))
        weight = is_alike * torch.where(is_same, 1e-9, 1.0)  # in a thin study there may be no other
        other = torch.multinomial(weight, 1, generator=chance)[:, 0]
    draws = [data.draw(rows, chance, True) for rows in (one, other)]
    if factor in FACTOR_COLUMNS:
        draws[1].factors[:, FACTOR_COLUMNS[factor]] = draws[0].factors[:, FACTOR_COLUMNS[factor]]
    ends = []
    for rows, drawn in zip((one, other), draws, strict=True):
        x = data.render(rows, drawn)["image"]
        parts = [study.autoencoder.encode(b.to(study.runtime.device)).mean.cpu() for b in x.split(128)]
        ends.append(torch.cat(parts))
    return ends[0], ends[1]


least = {} if page.smoke else {"hand": 4096}  # pairs without which no direction of a hand is found
pairs = {
    factor: pairs_of(study, factor, max(n_pairs, least.get(factor, 0)), "train", seed) for factor in SHARED
}

# %% [markdown]
# How many features does a factor need? The paper's code shares them out by how much pairs agree in total. It would give the size of a drawing, one number, about as
# many as its ground, three. Pairs can tell more. Whiten the latents: the directions in which pairs of a factor agree are then the leading eigenvectors of their
# cross-covariance. Half of the pairs choose the directions, the other half measure their correlation. Those above a floor are counted and become the blocks of a
# **linear** $e$. The flow begins there and goes on to what is not linear. The style of a hand is hardest to find: with fewer than a few thousand pairs none of its
# directions is above the floor.

# %%
FLOOR = 0.25  # the least correlation of a direction that a factor gets


def linear_factors(pairs: dict[str, tuple[Tensor, Tensor]], floor: float = FLOOR) -> LinearFactors:
    """Return the linear factors of pairs, which say how large the blocks are and where the flow begins."""
    return LinearFactors(list(pairs.values()), floor)


start = linear_factors(pairs, -1.0 if page.smoke else FLOOR)
sizes = start.sizes
table(
    [["what is left", sizes[0]], *([factor, size] for factor, size in zip(SHARED, sizes[1:], strict=True))],
    header=["factor", "features of e"],
)


# %%
class PairBatches:
    """Endless batches of pairs, each sharing one factor, drawn anew from (seed, t)."""

    def __init__(self, pairs: dict[str, tuple[Tensor, Tensor]], size: int, seed: int) -> None:
        self.ends = [torch.cat([pair[k] for pair in pairs.values()]) for k in (0, 1)]
        counts = torch.tensor([len(pair[0]) for pair in pairs.values()])
        self.factor = torch.arange(1, len(pairs) + 1).repeat_interleave(counts)
        self.size, self.seed = size, seed

    def __call__(self, t: int) -> dict[str, Tensor]:
        """Return batch t: latents "a" and "b" (B, dim), number "factor" (B,) of what they share."""
        rows = torch.randint(
            len(self.factor), (self.size,), generator=derived_generator(self.seed, "pairs", t)
        )
        return {"a": self.ends[0][rows], "b": self.ends[1][rows], "factor": self.factor[rows]}


def train_semantic(
    study: Any,
    pairs: dict[str, tuple[Tensor, Tensor]],
    start: LinearFactors,
    recipe: Any,
    seed: int,
    root: str,
) -> tuple[SemanticFlow, RunResult]:
    """Return e, trained from its linear start on pairs that share a factor each, and its run."""
    seed_everything(seed)
    runtime = study.runtime
    sizes = start.sizes
    flow = SemanticFlow(sizes, width=recipe.width, n_blocks=recipe.n_blocks, start=start, depth=recipe.depth)
    flow = runtime.prepare(flow)
    optimizer = torch.optim.Adam(flow.parameters(), lr=recipe.learning_rate, betas=(0.5, 0.9))

    def step(batch: dict[str, Tensor], t: int) -> dict[str, Tensor]:
        a, b, factor = (batch[name].to(runtime.device) for name in ("a", "b", "factor"))
        loss = flow.pair_loss(a, b, factor, sigma_ab=0.9).mean() / (2 * sum(sizes))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        runtime.clip(optimizer, 10.0)
        optimizer.step()
        return {"loss": loss.detach()}

    shared = {factor: len(ends[0]) for factor, ends in pairs.items()}
    config = {"layer": "semantic", "seed": seed, "data": study.known["train"].hash, **vars(recipe)}
    config |= {"pairs": shared, "sizes": sizes}
    run = fit(
        run_folder(root, "semantic", config),
        config=config,
        modules={"flow": flow},
        optimizers={"flow": optimizer},
        batches=PairBatches(pairs, recipe.batch_size // 2, seed),
        step=step,
        steps=recipe.steps,
        runtime=runtime,
        schedules={"flow": warmup_linear(max(1, recipe.steps // 20), recipe.steps)},
    )
    return flow, run


recipe = story.Recipe(steps, batch_size, n_blocks, width, depth, learning_rate)
semantic, _ = train_semantic(study, pairs, start, recipe, seed, run_dir)

# %% [markdown]
# Do *new* pairs agree in the factor that they share, and in no other? Each row is a kind of pair, each column the correlation of one block of $e$ between its two
# ends. The drawings are those of the training pairs, under other factors. The entry for the shared factor should be high, all others near 0, and $e_0$ should agree
# nowhere.

# %%
with torch.no_grad():
    unseen = {factor: pairs_of(study, factor, 32 if page.smoke else 512, "test", seed) for factor in SHARED}
    agreement = []
    for factor in SHARED:
        (ends_a, _), (ends_b, _) = (semantic(x.to(runtime.device)) for x in unseen[factor])
        row = []
        for a, b in zip(ends_a, ends_b, strict=True):
            a, b = a - a.mean(0), b - b.mean(0)
            row.append((a * b).mean().div((a.square().mean() * b.square().mean()).sqrt()).item())
        agreement.append(row)
table(
    [[factor, *(f"{value:z.2f}" for value in row)] for factor, row in zip(SHARED, agreement, strict=True)],
    header=["pairs share", "e₀", *SHARED],
)

# %% [markdown]
# Now edit: take all blocks of one drawing, replace block $F$ by the donor's, and go back, $x^* = D(e^{-1}(e_0, e_1, \dots, e_F^*, \dots, e_K))$.


# %%
@torch.no_grad()
def edited(semantic: SemanticFlow, z_bar: Tensor, donor: Tensor, factor: str) -> Tensor:
    """Return latents (B, dim) that have one factor of ``donor`` (B, dim), all else of ``z_bar`` (B, dim)."""
    device = next(semantic.parameters()).device
    (own, _), (other, _) = semantic(z_bar.to(device)), semantic(donor.to(device))
    place = 1 + SHARED.index(factor)
    mixed = [other[k] if k == place else e for k, e in enumerate(own)]
    return semantic.inverse(mixed).cpu()


donors = sample.roll(1)
picture(
    shown,
    shown.roll(1, 0),
    *(
        study.decode(edited(semantic, study.latents[sample], study.latents[donors], factor))
        for factor in SHARED
    ),
    columns=8,
    rows=["drawing", "donor", *(f"{factor} of the donor" for factor in SHARED)],
    alt="Eight drawings, eight donors, and six rows in which one factor of the donor was given to the drawing.",
    caption="One factor exchanged at a time. Not selected.",
)


# %% [markdown]
# The simple rival needs no second flow. A linear probe has a direction for every factor: move the latent along it until the probe reads the donor's value. The judge
# then answers two questions: does the picture now have the donor's factor, and did the others stay? Donors are drawn at random, and a concept or a hand counts only
# where the donor's is another one.


# %%
def moved(study: Any, z_bar: Tensor, donor: Tensor, factor: str) -> Tensor:
    """Return latents moved by the least step after which a linear probe reads the donor's factor from them."""
    part, rows = study.known["train"], study.probed
    if factor in story.GROUPS:
        y = factor_targets(part.column("factors", rows))[:, story.GROUPS[factor]]
    else:
        y = F.one_hot(part.labels[factor][rows], study.counts[factor]).float()
    says = story.ridge(DiagonalGaussian(part.column("moments", rows)).mean, y)
    dim = z_bar.shape[1]
    weight = (says(torch.eye(dim)) - says(torch.zeros(1, dim))).double()  # (dim, K)
    change = (says(donor) - says(z_bar)).double()
    return z_bar + (change @ torch.linalg.pinv(weight, rtol=1e-3)).float()


def edit_scores(
    study: Any, change: Callable[[Tensor, Tensor, str], Tensor], factor: str, rows: Tensor
) -> tuple[float, float]:
    """Return how much of the donor's factor arrives, and how much of the other factors stays; judged, 1 is all.

    ``change(z_bar, donor, factor)`` returns the edited latents; the donor of a row is another of ``rows``, by chance. Whether a
    concept or a hand has arrived is asked where the donor's is another: else it was there before.
    """
    partner = rows[torch.randperm(len(rows), generator=derived_generator(0, "donors"))]
    said = study.judged(study.decode(change(study.latents[rows], study.latents[partner], factor)))
    before = study.judged(study.decode(study.latents[rows]))

    everyone = torch.ones(len(rows), dtype=torch.bool)
    others = [name for name in SHARED if name != factor]
    asked = (
        everyone if factor in story.GROUPS else study.labels[factor][rows] != study.labels[factor][partner]
    )

    def agreement(name: str, to: Tensor, answers: Judgement, where: Tensor) -> float:
        if name in story.GROUPS:
            return max(0.0, story.explained(answers.factors[where], study.factors[to[where]])[name])
        answer = answers.concept if name == "concept" else answers.hand
        return story.right(answer[where], study.labels[name][to[where]])

    def part(name: str, to: Tensor, where: Tensor) -> float:
        return agreement(name, to, said, where) / max(agreement(name, rows, before, where), 1e-6)

    return part(factor, partner, asked), float(np.mean([part(name, rows, everyone) for name in others]))


def exchanged_at_start(z_bar: Tensor, donor: Tensor, factor: str) -> Tensor:
    """Return latents (B, dim) with one block of the linear start exchanged, without any flow behind it."""
    at = start.matrix.device
    own, other = (start(z.to(at))[0].split(sizes, 1) for z in (z_bar, donor))
    place = 1 + SHARED.index(factor)
    return start.inverse(torch.cat([other[k] if k == place else e for k, e in enumerate(own)], 1)).cpu()


rivals = {"flow": partial(edited, semantic), "start": exchanged_at_start, "probe": partial(moved, study)}
edits = {
    factor: [edit_scores(study, change, factor, measured_rows) for change in rivals.values()]
    for factor in SHARED
}
table(
    [[factor, *(value for pair in scores for value in pair)] for factor, scores in edits.items()],
    header=["factor given", *(f"{what}, {who}" for who in rivals for what in ("arrives", "others stay"))],
    digits=2,
    caption="*Start* is the linear e with which the flow begins, by itself.",
)

# %%
arrived, stayed = (
    {who: np.mean([edits[factor][k][what] for factor in SHARED]) for k, who in enumerate(rivals)}
    for what in (0, 1)
)
say(
    "Of what a donor gives there arrive, mean over factors, "
    + ", ".join(
        f"**{arrived[who]:.0%}** by the {who} ({stayed[who]:.0%} of the others stay)" for who in rivals
    )
    + ". "
    + (
        "The flow brings more across than the lines that it began with."
        if arrived["flow"] > arrived["start"] + 0.02
        else "The flow brings no more across than the lines that it began with: what can be exchanged here is linear."
    )
    + (
        " A direction that is read off labels goes further than a block that was found without them, and disturbs the others more."
        if arrived["probe"] > arrived["flow"] and stayed["probe"] < stayed["flow"]
        else " A direction that is read off labels goes further than a block that was found without them."
        if arrived["probe"] > arrived["flow"]
        else ""
    )
)

# %% [markdown]
# ## What a layer knows of each factor
#
# The two flows meet: pictures with one representation, $\bar z = t^{-1}(v\,|\,z)$, are read by the second flow. What part of the variance of a block lies *between* representations,
# $R_i = 1 - \mathbb E_z \operatorname{tr}\operatorname{Var}_v[e_i] / \operatorname{tr}\operatorname{Var}[e_i]$, is how much the layer knows of that factor; the paper follows it over
# layers and over training. No judge is needed, and no picture.


# %%
@torch.no_grad()
def content(
    layer: Any, semantic: SemanticFlow, rows: Tensor, generator: torch.Generator, n: int = 8
) -> list[float]:
    """Return R_i of each block of e, e_0 first: the part of its variance that a layer's representation explains.

    From n draws of v for each test row. Source: Rombach et al. 2020a, variance of e_i explained by z.
    """
    drawn = layer.resample(rows, n, generator)
    device = next(semantic.parameters()).device
    blocks, _ = semantic(drawn.flatten(0, 1).to(device))
    return [story.between(e.cpu().unflatten(0, (-1, n)), whole=True).item() for e in blocks]


flow_recipe = story.Recipe(steps=min(flow_steps, 3) if page.smoke else flow_steps)
if page.smoke:
    flow_recipe = replace(flow_recipe, batch_size=16, n_blocks=2, width=16)
flows = {name: story.train_flow(study, name, flow_recipe, seed, flow_dir)[0] for name in layers}
known = {
    name: content(layer, semantic, measured_rows, derived_generator(seed, "content", name))
    for name, layer in flows.items()
}
table(
    [[name, *(f"{value:z.2f}" for value in values)] for name, values in known.items()],
    header=["R, layer", "e₀", *SHARED],
    caption=f"Part of the variance of each block of e that a representation explains, {len(measured_rows)} test views, flows of {flow_recipe.steps} steps.",
)

# %%
first, last = layers[0], layers[-1]
change = {factor: known[last][k + 1] - known[first][k + 1] for k, factor in enumerate(SHARED)}
lost, won = min(change, key=change.get), max(change, key=change.get)
say(
    f"From {first} to {last} most is lost of the **{lost}** ({known[first][1 + SHARED.index(lost)]:.2f} to {known[last][1 + SHARED.index(lost)]:.2f})"
    + (
        f" and something is won of the {won} ({known[first][1 + SHARED.index(won)]:.2f} to {known[last][1 + SHARED.index(won)]:.2f})."
        if change[won] > 0.02
        else ", and nothing is won of any factor that has a block."
    )
)

# %% [markdown]
# ## Where this page departs
#
# | | paper | authors' code | here |
# |---|---|---|---|
# | e | 12 blocks, width 512, d = 128 | the same | 12 blocks, narrower, d = 128 |
# | pairs | alike in an attribute of faces | σ_ab = 0.975 | alike in a factor of the renderer, σ_ab = 0.9 |
# | latent | a variational code of faces | the same | its first eight numbers were taught with the labels of ground, hue, size, place and turn |
# | sizes of the blocks | by how much alike pairs agree | softmax of the agreement over factors | directions in which alike pairs agree, counted |
# | start | random | the same | at these directions, a linear e |
# | edits | FID of edited faces, against StarGAN | | a judge on known factors, against a linear probe |
#
# ## Exercises
#
# 1. A pair that shares nothing would leave all blocks independent. What does a pair that shares *two* factors teach, if it is said to share one of them?
# 2. What happens to a factor that no pair ever shares?
#
# ```{admonition} Solutions
# :class: dropdown
#
# 1. The second factor agrees as well, so likelihood rises if part of it moves into the block of the first: the two are no longer told apart.
# 2. It stays in $e_0$, or wherever it does least harm: nothing asks for its own place.
# ```

# %%
page.finish(runtime)
