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
# # What a good part would do
#
# {doc}`parts` ends with pictures and one seed. Before claims can be decided, somebody has to say what is counted, on whom, and what a perfect
# answer and a useless one would get. This page builds the judge of {doc}`parts_claims`, and tries it on answers that are known: segmenters
# of one line, and a painter that cannot err. P1 to P8 are the paper's claims, as {doc}`parts` lists them; A1 to A6 are questions of our own, which
# {doc}`parts_claims` asks.
#
# | | question | measure |
# |---|---|---|
# | P1, A1, A2, A3, A6 | Do parts lie on body parts? | IoU, each part assigned on other people |
# | P2, A4 | What does the shape code tell of colours? | nats that a fresh critic finds |
# | P3 | Do parts move with the picture? | equivariance |
# | P4 | Do they stay when clothes change? | invariance |
# | P5 | Does a swap take one's colours and the other's shape? | colour error, IoU of parts |
# | P6 | Does an edit stay where it was made? | locality |
# | P7 | Are parts decided, and in one place? | entropy, variance |
# | P8 | Does the estimate follow its target? | the monitor's mean, late in training |
# | A5 | What lies open in the code? | R² of a linear probe |
#
# | scale | command | what it needs |
# |---|---|---|
# | quick, and all there is | `papermill notebooks/parts_judge.ipynb out.ipynb` | seconds of one CPU core: 48 pictures of people are drawn |
#
# Reading time: 8 minutes.

# %%
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cvlib.data.base import derived_generator
from cvlib.data.bodies import MERGED, BodyDataset, merge
from cvlib.data.warps import resample
from cvlib.notebooks.parts import (
    PROBED,
    grade,
    information,
    landmark_scores,
    load_split,
    mean_colours,
    new_people,
    painted,
    posteriors_of,
    probe_r2,
)
from cvlib.notebooks.parts_learning import PartsModel, Recipe, parts_of
from cvlib.notebooks.parts_model import PartsConfig, centres, entropy
from cvlib.notebooks.parts_swaps import edit_locality
from cvlib.pages import begin
from cvlib.show import picture, say, table
from cvlib.train import Runtime, isolated_rng, seed_everything, seed_from

# %% tags=["parameters"]
seed = 0
image_size = 64

# %%
page = begin("parts_judge", globals())
runtime = Runtime(device="cpu", precision="fp32")  # known answers are asked for, not speed
seed_everything(seed)

# %% [markdown]
# ## On whom
#
# A model is judged on all 640 test images, of people, poses and looks that training has not seen. The assignment of parts to labels comes from the
# 640 validation images. What counts is the model after its last step: no checkpoint is chosen. The arms on one background share data and recipe, so these are prepared once, in a `Bench`.


# %%
@dataclass(frozen=True)
class Bench:
    """What all arms on one background share: the data, and how to train."""

    splits: dict[str, BodyDataset]
    config: PartsConfig
    recipe: Recipe
    runtime: Runtime
    pretrained: bool
    images: dict[str, Tensor]  # of validation and test, (N, 3, S, S)
    labels: dict[str, Tensor]  # their merged masks (N, S, S)
    people: dict[str, BodyDataset]  # whom no model met, for the critic of P2


def lay_out(
    background: str,
    clips: list[str],
    config: PartsConfig,
    recipe: Recipe,
    runtime: Runtime,
    pretrained: bool,
    small: bool,
) -> Bench:
    """Return the bench of one background; people that were not drawn before are drawn now (half a minute)."""
    splits = {
        name: load_split("bodies", "", name, config.image_size, background, clips, small)
        for name in ("train", "validation", "test")
    }
    held = {name: torch.arange(len(splits[name])) for name in ("validation", "test")}
    images = {name: splits[name].images(rows) for name, rows in held.items()}
    labels = {name: merge(splits[name].masks(rows)) for name, rows in held.items()}
    people = new_people(config.image_size, background, clips, small)
    return Bench(splits, config, recipe, runtime, pretrained, images, labels, people)


# %% [markdown]
# ## Do parts lie on body parts?
#
# **IoU** (P1) is the paper's: for each label, the mean over the test images that show it; overall, the mean over the five labels of the body.
# Recorded too, but deciding nothing, are the pooled IoU; the IoU with at most one part for each label; the IoU of the whole figure; and PCK, the share of joints
# that a linear map of the parts' centres puts within a given distance of their true place.


# %%
def fit_scores(bench: Bench, parts: dict[str, Tensor]) -> dict[str, float]:
    """Return how well parts (N, S, S) of "validation" and "test" images fit labels and joints, by the
    story's measures.
    """
    n_parts = bench.config.n_parts
    result = grade(parts, bench.labels, n_parts, len(MERGED))
    joints = {name: bench.splits[name].joints for name in parts}
    keypoints = landmark_scores(parts, joints, n_parts, bench.config.image_size)
    names = MERGED[1:]
    return {
        "IoU": result.scores.overall,
        "IoU, pooled": result.scores.pooled_overall,
        "IoU, one to one": result.matched.overall,
        "foreground IoU": result.scores.foreground,
        **{f"IoU of {name}": float(v) for name, v in zip(names, result.scores.per_image[1:], strict=True)},
        **{f"PCK @ {100 * share:g} %": value for share, value in keypoints.items()},
    }


# %% [markdown]
# ## Do they move with the picture, and stay when clothes change?
#
# Two of the measures ask whether two maps of parts agree, on the pixels $U$ of bodies (a wall is easy):
#
# $$ \mathrm{IoU}(A, B) = \frac{\sum_p \lvert A_p \cap B_p \cap U\rvert}{\sum_p \lvert (A_p \cup B_p) \cap U\rvert} . $$
#
# **Equivariance** (P3) compares $W S(x)$ with $S(W x)$ for a small warp $W$ of each image: up to 10 degrees, 10 % of size and a sixteenth
# of the image's side, drawn once for all runs. The warped image goes on beyond its edge; only pixels that come from inside count. **Invariance** (P4)
# compares $S$ of two images that differ in nothing but skin, hair and clothes.


# %%
TURN = 10.0  # degrees, at most
SCALE = 0.1  # of the size, at most
SHIFT = 1 / 16  # of the image's side, at most
N_WARPED = 320  # test images that are warped, at every check of every run


def part_iou(a: Tensor, b: Tensor, region: Tensor) -> float:
    """Return the IoU of two maps of parts (N, H, W) on the pixels of ``region`` (N, H, W), all parts
    together.
    """
    same = int(((a == b) & region).sum())
    return same / (2 * int(region.sum()) - same)


def small_warps(n: int, generator: torch.Generator) -> Tensor:
    """Return affine maps (n, 2, 3) from places of the warped images to those of the images, in [-1, 1]."""
    u = torch.rand(4, n, generator=generator) * 2 - 1
    angle, scale = np.radians(TURN) * u[0], 1 + SCALE * u[1]
    c, s = scale * angle.cos(), scale * angle.sin()
    x, y = 2 * SHIFT * u[2:]  # an image is 2 wide
    return torch.stack([torch.stack([c, -s, x], -1), torch.stack([s, c, y], -1)], 1)


def equivariance(segment: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, warps: Tensor) -> float:
    """Return the IoU of warped maps of parts with the maps of warped images, on warped bodies (``labels``
    above 0).

    ``segment`` gives ids (N, S, S) for images (N, 3, S, S); ``warps`` are affine, (N, 2, 3).
    """
    grid = F.affine_grid(warps, [len(images), 1, *images.shape[2:]], align_corners=False)

    def moved(ids: Tensor) -> Tensor:
        return resample(ids[:, None].float(), grid, "nearest")[:, 0].long()

    region = (moved(labels) > 0) & (grid.abs().amax(-1) <= 1)
    return part_iou(moved(segment(images)), segment(resample(images, grid)), region)


def spaced(n: int, wanted: int) -> Tensor:
    """Return about ``wanted`` of n images at even distances, both looks of a pose together."""
    step = max(1, n // wanted)
    return torch.arange(n).view(-1, 2)[::step].flatten()


# %% [markdown]
# Cases with a known answer. A segmenter that thresholds brightness moves with its image, so under a shift by whole pixels it must get exactly 1;
# one that cuts the *frame* in halves does not move at all.

# %%
toy = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
whole = torch.tensor([[1.0, 0.0, 2 / 16 * 3], [0.0, 1.0, -2 / 16 * 2]]).expand(
    4, -1, -1
)  # 3 pixels, 2 pixels
everywhere = torch.ones(4, 16, 16, dtype=torch.long)
halves = (torch.arange(16) >= 8).long().expand(4, 16, -1)
assert equivariance(lambda x: (x.mean(1) > 0).long(), toy, everywhere, whole) == 1
stuck = equivariance(lambda x: halves[: len(x)], toy, everywhere, whole)
assert abs(stuck - (13 - 3) / (13 + 3)) < 1e-9  # of 13 columns that come from inside, 3 change sides
assert part_iou(halves, 1 - halves, everywhere > 0) == 0 and part_iou(halves, halves, everywhere > 0) == 1

# %% [markdown]
# And on people, under the warps of the judge? Five segmenters of one line each: one calls everything by one name, one tells what is unlike the
# corner of the picture, one asks whether red, green or blue is strongest, one cuts the frame into the cells of a grid, and one throws dice.

# %%
crowd = load_split("bodies", "", "test", image_size, "plain", ["walk"], small=True)
rows = torch.arange(len(crowd))
photos, truth = crowd.images(rows), merge(crowd.masks(rows))
warps = small_warps(len(rows), derived_generator(seed, "warps"))
cells = torch.arange(image_size) * 5 // image_size
one_line = {
    "one part": lambda x: torch.zeros_like(x[:, 0]).long(),
    "unlike the corner": lambda x: ((x - x[:, :, :1, :1]).abs().mean(1) > 0.25).long(),
    "strongest colour": lambda x: F.avg_pool2d(x, 3, 1, 1).argmax(1),
    "cells of the frame": lambda x: (5 * cells[:, None] + cells).expand(len(x), -1, -1),
    "dice": lambda x: torch.randint(0, 25, x[:, 0].shape),
}
moving = {name: equivariance(segment, photos, truth, warps) for name, segment in one_line.items()}
staying = {
    name: part_iou(segment(photos), segment(photos[rows ^ 1]), truth > 0)
    for name, segment in one_line.items()
}
assert (
    moving["one part"]
    == staying["one part"]
    == staying["cells of the frame"]
    == 1
    > moving["cells of the frame"]
)
table(
    [[name, moving[name], staying[name]] for name in one_line],
    header=["segmenter", "equivariance", "invariance"],
    digits=3,
    caption=f"Of {len(rows)} test images of walking people.",
)

# %% tags=["hide-input"]
picked = torch.arange(0, len(rows), max(1, len(rows) // 6))[:6]
field = F.affine_grid(warps[picked], [len(picked), 1, image_size, image_size], align_corners=False)
warped = resample(photos[picked], field)
picture(
    photos[picked],
    warped,
    *(painted(one_line[name](warped)) for name in list(one_line)[1:4]),
    columns=6,
    rows=["image", "warped", *(f"{name}, warped" for name in list(one_line)[1:4])],
    alt="Six people, the same a little turned, scaled and shifted, and three one-line segmentations of the warped: figures, colours, and a grid that has not moved.",
    caption="The warps of the judge are small: they ask whether a part clings to the body or to the frame.",
)
say(
    f"Neither number is a merit alone: one part for everything gets {moving['one part']:.0f} in both, and knows nothing. The strongest colour moves with the picture "
    f"({moving['strongest colour']:.2f}) and changes with clothes ({staying['strongest colour']:.2f}); cells of the frame do the opposite ({moving['cells of the frame']:.2f}, "
    f"{staying['cells of the frame']:.0f}). What is unlike the corner is high in both ({moving['unlike the corner']:.2f}, {staying['unlike the corner']:.2f}), because before plain walls it "
    f"finds the figure; it cannot tell an arm from a leg. So a part has to be high in both **and** in IoU with the truth."
)

# %% [markdown]
# ## Does a swap take one's colours and the other's shape?
#
# **Swap** (P5): the shape of $x_1$ is painted in the appearance of $x_2$. The colour error is the distance between mean colours, image by image and
# label by label (true masks of $x_1$ and of $x_2$), averaged over channels. The control is the distance of the *same* paintings to a third
# person. And the paintings, segmented anew, must show the parts of $x_1$ rather than those of $x_2$. **Locality** (P6) is that of {doc}`parts_swaps`: of all change that a new
# appearance of one part makes, the share inside this part.


# %%
def givers(person: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return for each image (N,) two others, (N,) each: of another person, and of a third.

    With fewer than three persons the third may be one of the two.
    """
    score = torch.rand(len(person), len(person), generator=generator)
    score = score - 2.0 * (person[:, None] == person)
    first = score.argmax(1)
    score = score - 1.0 * (person[first][:, None] == person)
    return first, score.argmax(1)


def colour_error(a: Tensor, labels_a: Tensor, b: Tensor, labels_b: Tensor) -> float:
    """Return the mean absolute difference of the mean colours of images a and b (N, 3, S, S) under equal
    labels.

    In units of [-1, 1], over the labels of the body that both images of a pair show.
    """
    names = MERGED[1:]
    gap = mean_colours(a, labels_a, names) - mean_colours(b, labels_b, names)
    ids = torch.arange(1, len(names) + 1)
    shown = [(x.flatten(1)[:, None] == ids[:, None]).any(2) for x in (labels_a, labels_b)]
    return float(gap.abs().view(len(a), len(names), 3).mean(2)[shown[0] & shown[1]].mean())


def swap_scores(
    made: Tensor,
    segment: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    donors: tuple[Tensor, Tensor],
) -> dict[str, float]:
    """Return how paintings ``made`` (N, 3, S, S) of the shapes of images in the appearance of ``donors[0]``
    turned out.

    ``donors[1]`` are those of third persons. IoU on the pixels of either body.
    """
    giver, third = donors
    before, after = segment(images), segment(made)
    region = (labels > 0) | (labels[giver] > 0)
    return {
        "colour error": colour_error(made, labels, images[giver], labels[giver]),
        "colour error to a third": colour_error(made, labels, images[third], labels[third]),
        "IoU with shape": part_iou(after, before, region),
        "IoU with giver": part_iou(after, before[giver], region),
    }


@torch.no_grad()
def paint_swapped(model: PartsModel, images: Tensor, giver: Tensor, runtime: Runtime) -> Tensor:
    """Return paintings (N, 3, S, S) of every image's parts in the appearance of the image ``giver`` (N,)
    gives it.
    """
    made = []
    for x, y in zip(images.split(64), images[giver].split(64), strict=True):
        x, y = x.to(runtime.device), y.to(runtime.device)
        made.append(model.paint(model.parts(x), model.alphas(y, model.parts(y))).cpu())
    return torch.cat(made)


# %%
class IdealPainter:
    """Paints every pixel in its part's first three numbers."""

    def paint(self, ids: Tensor, alpha: Tensor) -> Tensor:
        return torch.stack([a[i, :3] for i, a in zip(ids, alpha, strict=True)]).movedim(-1, 1)


shapes = torch.randint(0, 6, (6, 8, 8), generator=torch.Generator().manual_seed(seed))
wardrobe = torch.rand(6, 6, 3, generator=torch.Generator().manual_seed(seed + 1))
wardrobe[..., 0] = torch.arange(6) / 5  # the first channel says the label, the others are the person's own
people = IdealPainter().paint(shapes, wardrobe)
donors = givers(torch.arange(6) // 2, torch.Generator().manual_seed(seed))
exact = swap_scores(
    IdealPainter().paint(shapes, wardrobe[donors[0]]),
    lambda x: (5 * x[:, 0]).round().long(),
    people,
    shapes,
    donors,
)
assert exact["colour error"] < 1e-6 < exact["colour error to a third"] and exact["IoU with shape"] == 1
ideal = edit_locality(IdealPainter(), shapes, wardrobe, wardrobe.roll(1, 0))
assert torch.allclose(ideal, torch.ones(6))

# %% [markdown]
# On people: this painter, given true parts and true mean colours, beside two that do half of what they should.

# %%
palette = mean_colours(photos, truth, MERGED).view(len(rows), len(MERGED), 3)
donors = givers(crowd.labels["person"], derived_generator(seed, "givers"))
painters = {
    "shape and colours as asked": IdealPainter().paint(truth, palette[donors[0]]),
    "keeps its own colours": IdealPainter().paint(truth, palette),
    "copies the giver": IdealPainter().paint(truth[donors[0]], palette[donors[0]]),
}
errors = {
    name: [colour_error(made, truth, photos[giver], truth[giver]) for giver in donors]
    for name, made in painters.items()
}
assert all(errors["shape and colours as asked"][0] < own for own, _ in list(errors.values())[1:])
picture(
    photos[picked],
    photos[donors[0][picked]],
    *(made[picked] for made in painters.values()),
    columns=6,
    rows=["shape", "appearance", *painters],
    alt="Six people, six others who lend their colours, and what three painters make of them in flat colours.",
    caption="Parts and colours are the true ones.",
)
table(
    [[name, *found] for name, found in errors.items()],
    header=["painter", "colour error", "to a third person"],
    digits=3,
    caption="Mean difference of mean colours under the true masks of the shape, in units of [-1, 1].",
)

# %% [markdown]
# ## Are parts decided, and does the estimate follow?
#
# **Entropy of S** and **variance of a part** (P7) are those of the soft, noisy masks that training sees. **C1** (P8) is the monitor's estimate, averaged over
# the last quarter of training; how far it is from its target is told as a share of the target.


# %%
@torch.no_grad()
def softness(model: PartsModel, images: Tensor, runtime: Runtime) -> dict[str, float]:
    """Return entropy (nats) and variance of the parts' maps ([-1, 1] squared), means over images and parts;
    equal noise in all runs.
    """
    h, v = [], []
    with isolated_rng(seed_from("softness")):
        for piece in images.split(64):
            soft = model.noisy(model.logits(model.shape(piece.to(runtime.device)).sample()))
            h.append(entropy(soft).cpu())
            v.append(centres(soft)[1].mean(1).cpu())
    return {"entropy of S": float(torch.cat(h).mean()), "variance of a part": float(torch.cat(v).mean())}


def late_mean(history: list[dict[str, Any]], name: str, share: float = 0.25) -> float:
    """Return the mean of a column over the last ``share`` of the steps; each row stands for the steps since
    the one before.
    """
    rows = [row for row in history if name in row]
    ends = [row["step"] for row in rows]
    since = dict(zip(ends, [0, *ends[:-1]], strict=True))
    weight = [max(0.0, end - max(since[end], (1 - share) * ends[-1])) for end in ends]
    return float(np.average([row[name] for row in rows], weights=weight))


assert (
    late_mean(
        [{"step": 50, "C1": 9.0}, {"step": 80, "C1": 1.0}, {"step": 90, "C1": 2.0}, {"step": 100, "C1": 4.0}],
        "C1",
    )
    == (5 * 1 + 10 * 2 + 10 * 4) / 25
)

# %% [markdown]
# ## All of it
#
# **Information** (P2) is what the story's fresh critic finds of the colours of torso, legs and wall in drawn shape codes of people whom no model met, in nats;
# **R² of colours** (A5) is that of its linear probe of mean codes.


# %%
def judge(bench: Bench, model: PartsModel, history: list[dict[str, Any]]) -> dict[str, float]:
    """Return the measures of the rules, and more, of a trained model on test."""
    runtime = bench.runtime
    test = bench.splits["test"]
    images, labels = bench.images["test"], bench.labels["test"]

    def segment(x: Tensor) -> Tensor:
        return parts_of(model, x, runtime)

    parts = {name: segment(x) for name, x in bench.images.items()}
    values = fit_scores(bench, parts)
    every = {name: torch.arange(len(some)) for name, some in bench.people.items()}
    colours, codes = {}, {}
    for name, some in bench.people.items():
        pictures, masks = some.images(every[name]), merge(some.masks(every[name]))
        colours[name] = mean_colours(pictures, masks, PROBED)
        codes[name] = posteriors_of(model, pictures, runtime)
    who, where = (
        {name: some.labels[kind] for name, some in bench.people.items()} for kind in ("person", "pose")
    )
    values["information"] = information(codes, colours, who, where)
    r2 = probe_r2(codes["train"].mean, colours["train"], codes["test"].mean, colours["test"])
    values["R² of colours"] = r2

    checks = [row["eval/equivariance"] for row in history if "eval/equivariance" in row]
    values |= {"equivariance": checks[-1], "equivariance after an eighth": checks[0]}
    other_look = torch.arange(len(images)) ^ 1
    values["invariance"] = part_iou(parts["test"], parts["test"][other_look], labels > 0)
    donors = givers(test.labels["person"], derived_generator(0, "givers"))
    made = paint_swapped(model, images, donors[0], runtime)
    values |= swap_scores(made, segment, images, labels, donors)
    some = spaced(len(images), 128)
    x, y = images[some].to(runtime.device), images[donors[0][some]].to(runtime.device)
    ids, alpha, donor = model.parts(x), model.alphas(x, model.parts(x)), model.alphas(y, model.parts(y))
    for name, reach in (("locality", 0), ("locality within 3 px", 3)):
        values[name] = float(edit_locality(model, ids, alpha, donor, reach).nanmean())
    values |= softness(model, images, runtime)
    c1, target = late_mean(history, "C1"), model.objective.mi_target
    return values | {"C1": c1, "C1 off its target": abs(c1 - target) / target}


# %% [markdown]
# {doc}`parts_claims` trains what is to be judged, and keeps the books.

# %%
page.finish(runtime)
