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
# # Taking people apart
#
# The model of {doc}`parts` was trained to paint one person in two poses, from the shape of one picture and the appearance of another
# {cite}`braun2020parts`. Nothing stops us from asking for shape and appearance of two *people*, or for one's sleeves on another. On
# this page we ask: for whole looks, for one piece at a time, for how much of an edit stays where it was made, and for the people that the model understands worst.
#
# | | claim of the paper | on this page, one seed |
# |---|---|---|
# | P5 | Shape of one image with the appearance of another paints what it should | pictures |
# | P6 | Changing one part's appearance changes that part only | share of the change |
#
# The network is the one that the report run of {doc}`parts` stored with the book. If the parameters below ask for another one, it is taken from the story's run with the same
# parameters; if there is no such run yet, the page makes it. {doc}`parts_model` builds the model. What its shape code knows of colours, and whether parts stay when clothes change, is asked on
# the story's page, beside a second model that was trained without the constraint; {doc}`parts_claims` has rules, seeds and verdicts.
#
# | scale | command | what it needs |
# |---|---|---|
# | quick | `papermill notebooks/parts_swaps.ipynb out.ipynb` | a minute of one CPU core, and once half a minute to draw the people |
# | report | `papermill notebooks/parts_swaps.ipynb out.ipynb -f notebooks/params/parts_swaps.report.yaml` | the same |
# | paper | `papermill notebooks/parts_swaps.ipynb out.ipynb -f notebooks/params/parts.deepfashion.yaml -p data_root DIR` | the story's run with these parameters, or the time for it |
#
# Reading time: 5 minutes.

# %%
import math
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor

from cvlib.data import Dataset
from cvlib.data.bodies import MERGED, merge
from cvlib.notebooks import parts as story
from cvlib.notebooks.parts import PartsModel, painted
from cvlib.pages import begin
from cvlib.show import explorer, grid, picture, say
from cvlib.train import Runtime, seed_everything, weights_metadata

# %% tags=["parameters"]
seed = 0
steps = 400  # where a network is trained; the book's has more. Paper: 80,000 (DeepFashion), 60,000 (CUB)
batch_size = 8  # pairs. Paper: 8
image_size = 64  # paper: 128
n_parts = 25  # paper: 25
network = "small"  # or "paper": the paper's widths
covariance = "full"  # of the shape code, or "diagonal". Paper: full
data = "bodies"  # or "cub200_parts", "deepfashion", "penn_action", "pair_list" (Exercise, lists of your own)
data_root = ""  # where a real data set lies; bodies are rendered
background = "plain"  # or "gradient", "photo"; of bodies
clips = ["walk", "run", "dance_b", "jump"]  # motions that poses of bodies come from; [] for all fifteen
mi_target = 0.1  # nats between shape and appearance. Paper: 0.1 to 2.0
mi_slack = 0.05  # paper: 0.05, DeepFashion 0.5
reconstruction = "pyramid"  # or "vgg19". Paper: VGG-19
learning_rate = 1e-3  # paper: 2e-4, Adam
device = "auto"
precision = "auto"
run_dir = "runs/parts"  # the story's: a run that it has finished is recognised
pretrained = True  # True: the book's network, where it was trained as asked and for as many steps or more

# %%
page = begin("parts_swaps", globals())
n_judged = 320  # test images, the story's
if page.smoke:  # prove in seconds that every cell runs; nothing is learned
    steps, batch_size, n_judged, pretrained = min(steps, 4), 2, 24, False
    clips = ["walk"]
runtime = Runtime(device=device, precision=precision)
seed_everything(seed)
rng = torch.Generator().manual_seed(seed)
print(runtime.describe())

# %% [markdown]
# ## The people and the model
#
# People, poses and looks of the test split, which training has not seen. The validation split says which part is called what, by the
# overlap with true labels, as the story does.


# %%
def split_of(name: str) -> Dataset:
    """Return a split of the data that the parameters ask for."""
    return story.load_split(data, data_root, name, image_size, background, clips, page.smoke)


validation, test = split_of("validation"), split_of("test")
if data != "bodies":  # their masks hold the labels to be scored
    MERGED, merge = test.names, Tensor.clone
judged = {
    name: torch.randperm(len(split), generator=rng)[:n_judged]
    for name, split in (("validation", validation), ("test", test))
}
images = {"validation": validation.images(judged["validation"]), "test": test.images(judged["test"])}
labels = {
    "validation": merge(validation.masks(judged["validation"])),
    "test": merge(test.masks(judged["test"])),
}
config, aim, recipe = story.settings(
    network,
    image_size=image_size,
    n_parts=n_parts,
    covariance=covariance,
    mi_target=mi_target,
    mi_slack=mi_slack,
    reconstruction=reconstruction,
    steps=steps,
    batch_size=batch_size,
    learning_rate=learning_rate,
    wall=background if data == "bodies" else "photo",
)

# %%
committed, model = page.weights("parts"), None
asked = {"model": asdict(config), "objective": asdict(aim), "clips": clips, "background": background}
if pretrained and data == "bodies" and committed.is_file():
    known = weights_metadata(committed)
    if known["steps"] >= steps and story.is_as_asked(known, asked):
        model, n_steps = story.load_parts(committed, runtime), known["steps"]
if model is None:
    model, _, result = story.train_parts(
        config,
        aim,
        recipe,
        split_of("train"),
        images["validation"][:128],
        labels["validation"][:128],
        seed=seed,
        runtime=runtime,
        root=run_dir,
        reconstruction=reconstruction,
        n_labels=len(MERGED),
    )
    n_steps = steps
found = {name: story.parts_of(model, x, runtime) for name, x in images.items()}
graded = story.grade(found, labels, config.n_parts, len(MERGED))
assignment, ours = graded.assignment, graded.scores
say(
    f"A network that was trained for {n_steps:,} steps. On {len(images['test'])} test images its parts have an IoU of **{ours.overall:.3f}** with the "
    f"{len(MERGED) - 1} labels, and the figure is cut out with {ours.foreground:.3f}."
)

# %% [markdown]
# ## In the clothes of somebody else
#
# The parts of one person, each painted in the appearance that the same part of somebody else has.

# %%
n_swap = 3 if page.smoke else 6
cast = torch.randperm(len(images["test"]), generator=torch.Generator().manual_seed(seed + 1))[:n_swap]
cast_images = images["test"][cast].to(runtime.device)
cast_parts = model.parts(cast_images)
cast_alphas = model.alphas(cast_images, cast_parts)


def swapped(model: PartsModel, ids: Tensor, alpha: Tensor) -> Tensor:
    """Return images (A, B, 3, S, S): the shapes ids (A, S, S) in each of the appearances alpha (B, P, d)."""
    return torch.stack([model.paint(one.expand(len(alpha), -1, -1), alpha) for one in ids])


matrix = swapped(model, cast_parts, cast_alphas).cpu()
blank = torch.ones(1, *cast_images.shape[1:])
picture(
    torch.cat([blank, cast_images.cpu()]),
    *(torch.cat([cast_images[i : i + 1].cpu(), row]) for i, row in enumerate(matrix)),
    columns=n_swap + 1,
    rows=["clothes of", *(["shape of"] + [""] * (n_swap - 1))],
    alt="A matrix of painted people: each row keeps a shape, each column an appearance.",
    caption="Each row one shape, each column one appearance, on the diagonal its own. Test people, random.",
)

# %% [markdown]
# Read the matrix along a row: the outline should stay, only colours may change. Down a column the colours should stay, only the pose may change. Where a sleeve changes
# its outline along a row, or its colour down a column, shape and appearance are not apart.
#
# ## One piece at a time
#
# The assignment tells which parts are torso, legs or head. So only these can be dressed anew, with everything else left as it was.


# %%
def redress(alpha: Tensor, donor: Tensor, assignment: Tensor, label: int) -> Tensor:
    """Return appearances (B, P, d) that are ``donor``'s in the parts assigned to a label and ``alpha``'s
    elsewhere.
    """
    return torch.where((assignment == label).to(alpha.device)[:, None], donor, alpha)


nameable = [k for k in range(len(MERGED)) if (assignment == k).any()]
pieces = [
    model.paint(
        cast_parts[:1].expand(n_swap, -1, -1),
        redress(cast_alphas[:1].expand(n_swap, -1, -1), cast_alphas, assignment, k),
    ).cpu()
    for k in nameable
]
picture(
    cast_images.cpu(),
    *pieces,
    columns=n_swap,
    rows=["donor", *(f"{MERGED[k]} only" for k in nameable)],
    alt="One person, in each row with one named piece in the appearance of each of several donors.",
    caption="The first person; in each row one piece has the appearance of the donor above.",
)


# %%
def edit_locality(model: PartsModel, ids: Tensor, alpha: Tensor, donor: Tensor, reach: int = 0) -> Tensor:
    """Return, for each part, the share of all change that lies inside it when only its appearance is
    replaced, (P,).

    NaN for parts without a pixel or without a change. ``reach`` widens a part by that many pixels.
    """
    before, shares = model.paint(ids, alpha), []
    for p in range(alpha.shape[1]):
        edited = torch.where((torch.arange(alpha.shape[1]) == p).to(alpha.device)[:, None], donor, alpha)
        change = (model.paint(ids, edited) - before).abs().sum(1)
        inside = (ids == p)[:, None].float()
        inside = F.max_pool2d(inside, 2 * reach + 1, stride=1, padding=reach)[:, 0]
        shown = (ids == p).flatten(1).any(1)
        total = change[shown].sum()
        shares.append((change * inside)[shown].sum() / total if total > 0 else total.new_tensor(math.nan))
    return torch.stack(shares)


local = {
    reach: edit_locality(model, cast_parts, cast_alphas, cast_alphas.roll(1, 0), reach).nanmean().item()
    for reach in (0, 3)
}
say(
    f"When one part's appearance is replaced, **{local[0]:.0%}** of the change lies inside the part (mean over parts), {local[3]:.0%} within three "
    f"pixels of it: the rest is the generator's receptive field."
)

# %% [markdown]
# ## Mix your own
#
# Whose pose, whose clothes? All answers are computed; the sliders need no kernel.

# %%
names = [f"person {i + 1}" for i in range(n_swap)]
explorer(
    [
        grid(
            torch.stack(
                [cast_images[i].cpu(), painted(cast_parts[i : i + 1])[0], matrix[i, j], cast_images[j].cpu()]
            ),
            columns=4,
        )
        for i in range(n_swap)
        for j in range(n_swap)
    ],
    axes={"pose of": names, "clothes of": names},
    start={"clothes of": names[-1]},
    scale=2,
    alt="Four pictures: the person whose pose is taken, its parts, the mixture, and the person whose clothes are taken.",
    caption="From left to right: who lends the pose, the parts found, the mixture, who lends the clothes.",
)


# %%
def play(pose_of: int = 1, clothes_of: int = 2, piece: str = "everything") -> None:
    """Show a test person's pose in another's clothes, or with one named piece of them."""
    x = test.images(torch.tensor([pose_of, clothes_of]) % len(test)).to(runtime.device)
    ids = model.parts(x)
    alpha = model.alphas(x, ids)
    mixed = (
        alpha[1:] if piece == "everything" else redress(alpha[:1], alpha[1:], assignment, MERGED.index(piece))
    )
    made = model.paint(ids[:1], mixed).cpu()
    picture(
        torch.cat([x[:1].cpu(), painted(ids[:1]), made, x[1:].cpu()]),
        columns=4,
        scale=3,
        titles=["pose", "parts", "mixture", "clothes"],
        alt=f"Test image {pose_of} in the clothes of test image {clothes_of}.",
        caption=f"{piece} of image {clothes_of} on image {pose_of}",
    )


if page.live:  # with a kernel: any two test images
    import ipywidgets as widgets

    widgets.interact(
        play,
        pose_of=widgets.IntSlider(1, min=0, max=len(test) - 1, continuous_update=False),
        clothes_of=widgets.IntSlider(2, min=0, max=len(test) - 1, continuous_update=False),
        piece=["everything", *(MERGED[k] for k in nameable)],
    )

# %% [markdown]
# ## Failures worth seeing
#
# The test images with the lowest mean IoU over the body parts that they show.

# %% tags=["hide-input"]
named = assignment[found["test"]]
worst = ours.images.nan_to_num(1.0).argsort()[:8]
picture(
    images["test"][worst],
    painted(named[worst]),
    painted(labels["test"][worst]),
    columns=len(worst),
    rows=["image", "named", "truth"],
    alt="The eight test images whose parts fit worst.",
    caption=f"The worst of {len(images['test'])}, IoU {ours.images[worst[0]]:.2f} to {ours.images[worst[-1]]:.2f}.",
)

# %%
page.finish(runtime)
