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
# # Experts for photographs
#
# {doc}`experts` made networks that know emoji. To ask what an ImageNet network does not see in a *photograph*, which {doc}`invariances_photos` does, three more
# things are needed, and this page makes them: photographs under factors that we choose, numbers that tell what is to be seen in a picture nobody has labelled, and an
# autoencoder that paints photographs.
#
# | scale | command | what it needs |
# |---|---|---|
# | quick | `papermill notebooks/experts_photos.ipynb out.ipynb` | a minute on 2 CPU cores |
# | report | `papermill notebooks/experts_photos.ipynb out.ipynb -f notebooks/params/experts_photos.report.yaml` | about an hour of one CPU core, minutes on a GPU |
# | paper | the parameter files of {doc}`invariances_photos` | a GPU, and the data in DIR |
#
# The three pages on photographs take the same parameters, so that one finds what another has trained.
#
# Reading time: 7 minutes.

# %%
import copy
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cvlib.data import photo_factors
from cvlib.data.base import SPLITS, derived_generator
from cvlib.data.factors import yiq
from cvlib.data.photo_factors import FACTORS, RANGES, SOURCES, FactorPhotos, apply_factors, neutral
from cvlib.errors import BookError
from cvlib.metrics import psnr
from cvlib.nn import PatchDiscriminator, lpips_vgg16_hed, vgg_loss
from cvlib.nn.experts import freeze, load_autoencoder
from cvlib.nn.vae import VectorAutoencoder
from cvlib.notebooks import experts
from cvlib.pages import begin
from cvlib.show import credits, picture, say, table
from cvlib.train import RunResult, Runtime, fit, run_folder, seed_everything, warmup_linear

# %% tags=["parameters"]
seed = 0
steps = 60  # of each flow. Paper: 250,000
autoencoder_steps = 0  # 0: 0.4 times as many. Paper: 1.7 million for ImageNet's animals, 0.6 for faces
batch_size = 128  # paper: 16
image_size = 64  # of a crop. Paper: 128
network_size = 128  # to which a crop is enlarged for the network. Paper: 224
dim = 256  # of the latent. Paper: 128
n_blocks = 12  # paper: 20
width = 128  # of the nets S and T. Paper: 1,024
depth = 2  # paper: 2
learning_rate = 1e-3  # paper: 7.2e-5
photo_batch = 32  # of the autoencoder. Paper: 25
n_views = 1  # of every training crop, cached; 0 draws and computes it anew in every step, as the paper does
layers = ["block 4", "pooled", "softmax"]  # of block 4, block 6, pooled, logits, softmax, or a network's own
control = ["pooled"]  # layers of the network that learned nothing
data = "photos"  # or "image_folder". Paper: "imagenet", "animal_faces"
data_root = ""  # where these lie
subset = ""  # of imagenet a file of synsets, such as "animal_synsets.txt"; of animal_faces "shared" or "restricted"
backbone = "efficientnet-lite0"  # paper: "resnet101", "alexnet"
backbone_file = ""  # weights of these two on your disk
n_classes = 1000  # that the network tells apart. Paper: 149, 10, or 1,000
device = "auto"
precision = "auto"
run_dir = "runs/invariances_photos"
pretrained = True  # take the committed autoencoder, if there is one, instead of training a small beginning
record = False  # True trains the autoencoder and writes it to book/results/weights

# %%
page = begin("experts_photos", globals())


# %%
@dataclass(frozen=True)
class Setting:
    """What the three pages on photographs are run with: their parameters, but for device and precision.

    ``smoke`` proves in seconds that every cell runs, and nothing is learned.
    """

    seed: int
    steps: int
    autoencoder_steps: int
    batch_size: int
    image_size: int
    network_size: int
    dim: int
    n_blocks: int
    width: int
    depth: int
    learning_rate: float
    photo_batch: int
    n_views: int
    layers: list[str]
    control: list[str]
    data: str
    data_root: str
    subset: str
    backbone: str
    backbone_file: str
    n_classes: int
    run_dir: str
    pretrained: bool
    record: bool
    smoke: bool

    @property
    def is_trained(self) -> bool:
        """Whether the flows are trained long enough for sentences about the network."""
        return self.steps >= 1000

    @property
    def photo_steps(self) -> int:
        """Steps of the autoencoder."""
        return self.autoencoder_steps or max(2, round(0.4 * self.steps))


def setting_of(values: Mapping[str, Any], smoke: bool) -> Setting:
    """Return the setting that a page's parameters ``values`` ask for.

    Raises: BookError for a request to record the weights of somebody's own photographs.
    """
    if values["record"] and values["data"] != "photos":
        raise BookError(f"record with data {values['data']!r}", "photos: the book keeps no weights of others")
    given = {field.name: values[field.name] for field in fields(Setting) if field.name != "smoke"}
    setting = Setting(**given, smoke=smoke)
    if not smoke:
        return setting
    small = {"batch_size": 16, "n_blocks": 2, "width": 16, "photo_batch": 4, "network_size": 64}
    return replace(setting, steps=min(setting.steps, 3), autoencoder_steps=0, **small)


setting = setting_of(globals(), page.smoke)
runtime = Runtime(device=device, precision=precision)
seed_everything(seed)
print(runtime.describe())

# %% [markdown]
# ## Photographs that can be turned
#
# Crops are taken with factors that we choose. With $y(x)$ the luma of a pixel and $H_\alpha$ the turn of the hue, a colour $x$ becomes
#
# $$ x' = y(x) + s\,\big(H_\alpha x - y(x)\big) + b, $$
#
# with a turn α, a saturation $s$ and a brightness $b$, after the crop was zoomed, turned and mirrored. Luma and grey are left alone by $\alpha$ and $s$; only $b$ moves them.

# %%
print(inspect.getsource(apply_factors).split('"""')[2])


# %%
def load_parts(data: str, root: str, subset: str, image_size: int) -> dict[str, FactorPhotos]:
    """Return the splits of a data set as crops with factors.

    Raises: BookError for data without the label that says what is shown, or with another one in each split.
    """
    options = {"subset": subset} if subset else {}
    parts = {
        split: photo_factors.load(split, image_size, data=data, root=root, **options) for split in SPLITS
    }
    shown = [part.label_names[SOURCES[data]] for part in parts.values()]
    if any(names != shown[0] for names in shown):
        raise BookError(f"data {data}, subset {subset!r}: splits of different classes", "the same in all")
    return parts


def thinned(part: FactorPhotos, n: int) -> FactorPhotos:
    """Return about n items of a part, evenly spread, or all if it has no more."""
    return part.subset(torch.arange(0, len(part), max(1, len(part) // n)))


ABOUT = {
    "photos": "Two packages of scientific Python carry photographs and textures for their own examples. Of each, one half is for training and a quarter each for validation and test, so that no pixel is shared.",
    "imagenet": "The photographs are ImageNet's. Every fiftieth of the training half is for validation, the official validation half is for the test.",
    "animal_faces": "The photographs are faces of animals, cut out of ImageNet's. Those of every tenth photograph of the training list are for validation, the test list is for the test.",
    "image_folder": "The photographs are your own, in splits of your own, or else by what is in the files.",
}


def open_parts(setting: Setting) -> dict[str, FactorPhotos]:
    """Return the splits of a setting, fewer items of them where little is learned."""
    parts = load_parts(setting.data, setting.data_root, setting.subset, setting.image_size)
    if setting.smoke:
        return {split: thinned(part, 52) for split, part in parts.items()}
    if not setting.is_trained:  # a look at fewer places is enough for a flow that has learned little
        return {split: part if split == "train" else thinned(part, 208) for split, part in parts.items()}
    return parts


parts = open_parts(setting)
label = SOURCES[data]
names = parts["train"].label_names[label]
n_shown = len(parts["train"].labels[label].unique())
say(ABOUT[data])
table(
    [[name, *(f"{value:.2f}" for value in RANGES[name])] for name in FACTORS],
    header=["factor", "from", "to"],
    caption=f"{len(names)} photographs: {', '.join(names)}."
    if data == "photos"
    else f"{n_shown:,} classes; "
    + ", ".join(f"{len(part):,} photographs for {split}" for split, part in parts.items())
    + f". Unmoved, a crop of {image_size} px shows two thirds of the short side.",
)

# %%
sample = torch.linspace(0, len(parts["test"]) - 1, 8).round().long()
fixed = parts["test"].draw(sample, None, False)
canvases = parts["test"].source.render(sample, fixed)["image"]
changes = {
    "hue": 2.0,
    "saturation": 0.25,
    "brightness": 0.4,
    "zoom": 1.8,
    "rotation": math.pi / 8,
    "mirror": 1.0,
}


def changed(n: int, **values: float) -> Tensor:
    """Return factors (n, 6), neutral but for the named ones."""
    factors = neutral(n)
    for name, value in values.items():
        factors[:, FACTORS.index(name)] = value
    return factors


picture(
    apply_factors(canvases, neutral(8), image_size),
    *(apply_factors(canvases, changed(8, **{name: value}), image_size) for name, value in changes.items()),
    columns=8,
    rows=["test crop", *changes],
    scale=1,
    quality=85,
    alt="Eight crops of photographs, and below each six versions with one factor changed.",
    caption="Evenly spaced test crops, and one factor at a time: hue turned by 2 rad, a quarter of the saturation, brighter, nearer, turned, mirrored.",
)
if data == "photos":
    credits("photos")

# %% [markdown]
# Hue and saturation leave the grey of the picture alone, a mirror leaves everything but the sides; zoom and rotation bring other pixels into the frame, so that a little of what is shown
# changes with them.

# %% [markdown]
# ## What to ask of a picture
#
# For drawings a trained judge told what was to be seen ({doc}`experts`). Nobody can tell by how much the hue of an unknown photograph *was* turned. But for each factor there is a simple
# **statistic** of the picture that it moves, by a law that can be written down:
#
# | factor | statistic | what the factor does to it |
# |---|---|---|
# | brightness | mean luma | is added to it |
# | saturation | mean length of the colour differences | is a factor of it |
# | hue | direction of the mean colour difference | turns it by the same angle |
# | zoom | logarithms of fine over coarse contrast | twice as near moves the contrasts one scale on |
# | rotation | direction of the luma's gradients, counted double | turns it by twice the angle |
# | mirror | odd part of the layout | changes its sign |
#
# Three more say how strong, how fine and where. **Contrast** is how much neighbours differ, whatever their direction and distance. **Texture** is how these differences
# are shared out over four directions and three scales, whatever the contrast and wherever they lie. **Layout** is what lies where: the mean luma of 4 × 4 squares, in
# units of their own spread, so that it does not know the contrast either.


# %%
FLOOR = (2 / 255) ** 2  # a contrast of one grey level
GREY = 0.05  # saturation of a crop below which it has no colour to speak of
COLOURS_OF = ("hue", "saturation")  # statistics that are asked of crops with colour alone


def energies(luma: Tensor) -> Tensor:
    """Return log mean squared differences of neighbours in luma (B, H, W): (B, 3 scales, 4 directions)."""
    found = []
    for _ in range(3):
        right, down = luma[:, :, 1:] - luma[:, :, :-1], luma[:, 1:] - luma[:, :-1]
        falling = luma[:, 1:, 1:] - luma[:, :-1, :-1]
        rising = luma[:, 1:, :-1] - luma[:, :-1, 1:]
        squares = [step.square().mean((1, 2)) for step in (right, down, falling, rising)]
        found.append((torch.stack(squares, 1) + FLOOR).log())
        luma = F.avg_pool2d(luma[:, None], 2)[:, 0]
    return torch.stack(found, 1)


def slant(luma: Tensor) -> Tensor:
    """Return cosine and sine of twice the gradients' angle (B, 2), weighted by their energy, from luma (B, H, W)."""
    across = luma[:, 1:-1, 2:] - luma[:, 1:-1, :-2]
    along = luma[:, :-2, 1:-1] - luma[:, 2:, 1:-1]  # up is positive
    two = torch.stack([(across.square() - along.square()).mean((1, 2)), 2 * (across * along).mean((1, 2))], 1)
    return two / ((across.square() + along.square()).mean((1, 2)) + FLOOR)[:, None]


def statistics(images: Tensor) -> dict[str, Tensor]:
    """Return what is asked of images (N, 3, S, S) in [-1, 1]: by name, (N, K) each."""
    luma, *colour = yiq(images).unbind(1)
    i, q = (part.mean((1, 2)) for part in colour)
    squares = F.adaptive_avg_pool2d(luma, 4)
    contrast = energies(luma)
    level = contrast.mean((1, 2), keepdim=True)
    places = squares - squares.mean((1, 2), keepdim=True)
    return {
        "brightness": luma.mean((1, 2))[:, None],
        "saturation": torch.hypot(*colour).mean((1, 2))[:, None],
        "hue": F.normalize(torch.stack([i, q], 1), dim=1),
        "zoom": (contrast[:, 0] - contrast[:, 2]).mean(1, keepdim=True),
        "rotation": slant(luma),
        "mirror": ((squares - squares.flip(-1)) / 2)[:, :, :2].flatten(1),
        "contrast": level.flatten(1),
        "texture": (contrast - level).flatten(1),
        "layout": (places / (places.square().mean((1, 2), keepdim=True).sqrt() + 2 / 255)).flatten(1),
    }


# %% [markdown]
# The laws hold as far as nothing is cut off at black or white, so the check below takes pale crops.

# %%
pale = canvases / 2
before = statistics(apply_factors(pale, neutral(8), image_size))
after = {
    name: statistics(apply_factors(pale, changed(8, **{name: value}), image_size))[name]
    for name, value in {**changes, "brightness": 0.1, "rotation": math.pi / 2}.items()
}
colourful = before["saturation"][:, 0] > 0.02
turn = torch.tensor([[math.cos(2), math.sin(2)], [-math.sin(2), math.cos(2)]])  # of rows, by 2 rad
laws = {
    "brightness": before["brightness"] + 0.1,
    "saturation": before["saturation"] * 0.25,
    "hue": before["hue"] @ turn,
    "rotation": -before["rotation"],  # a quarter turn is half a turn of the doubled angle
    "mirror": -before["mirror"],
}
for name, law in laws.items():
    rows = colourful if name == "hue" else slice(None)
    torch.testing.assert_close(after[name][rows], law[rows], rtol=1e-3, atol=1e-4)
near = energies(yiq(pale)[:, 0].repeat_interleave(2, 1).repeat_interleave(2, 2))
torch.testing.assert_close(near[:, 1:], energies(yiq(pale)[:, 0])[:, :2])
print("the five laws hold, and contrasts move one scale on when every pixel is doubled")

# %% [markdown]
# ## An autoencoder for photographs
#
# The flow never sees a pixel, it works on $\bar z = E(x) \in \mathbb R^d$. The autoencoder of {doc}`experts` knows nothing but emoji, so the same
# network with the same loss is trained on crops, starting from the principal components.


# %%
def crops(part: FactorPhotos, n: int, word: str) -> Tensor:
    """Return n crops (n, 3, S, S) of a part with factors, always the same for a word; items in turn."""
    index = torch.arange(n) * len(part) // n if n <= len(part) else torch.arange(n) % len(part)
    return part.images(index, generator=derived_generator(0, "crops", word), augment=True)


def train_autoencoder(
    start: VectorAutoencoder, train: FactorPhotos, check: Tensor, setting: Setting, runtime: Runtime
) -> tuple[VectorAutoencoder, RunResult]:
    """Return ``start`` trained on a part and looked at on ``check`` (N, 3, S, S), and the run."""
    seed_everything(setting.seed)
    steps, batch = setting.photo_steps, setting.photo_batch
    model = runtime.prepare(copy.deepcopy(start))
    critic = runtime.prepare(PatchDiscriminator(ch=32, n_layers=3, norm="none"))
    perceptual = runtime.prepare(vgg_loss(pretrained=not setting.smoke))
    rate = 5e-4
    config = {
        "expert": "photos",
        "seed": setting.seed,
        "steps": steps,
        "batch_size": batch,
        "data": train.hash,
    }
    config |= {"model": dict(model.config), "learning_rate": rate, "precision": runtime.precision}
    adam: dict[str, Any] = {"betas": (0.5, 0.99), "weight_decay": 0.0}
    optimizers = {
        "autoencoder": torch.optim.AdamW(experts.rate_groups(model, rate), **adam),
        "critic": torch.optim.AdamW(critic.parameters(), lr=rate / 2, **adam),
    }
    run = fit(
        run_folder(setting.run_dir, "autoencoder", config),
        config=config,
        modules={"autoencoder": model, "critic": critic},
        optimizers=optimizers,
        batches=train.batches(batch, seed=setting.seed, device=runtime.device),
        step=experts.autoencoder_step(model, critic, optimizers, perceptual, runtime, steps // 2),
        steps=steps,
        runtime=runtime,
        schedules={"autoencoder": warmup_linear(max(1, steps // 20), steps)},
        evaluate=lambda done: experts.reconstruction_scores(model, check, runtime),
    )
    freeze(model)
    return model, run


def principal_components(setting: Setting, train: FactorPhotos) -> VectorAutoencoder:
    """Return the autoencoder as it begins: linear, with the principal components of training crops."""
    seed_everything(setting.seed)
    linear = experts.build_autoencoder(setting.image_size, setting.dim, framed=False)
    linear.start_from(crops(train, 300 if setting.smoke else 6000 if setting.is_trained else 1500, "start"))
    return linear


def open_autoencoder(
    setting: Setting, parts: dict[str, FactorPhotos], committed: Path, runtime: Runtime
) -> tuple[VectorAutoencoder, RunResult | None]:
    """Return the autoencoder of a setting: the book's where it may be taken and fits, or one that is trained now.

    A finished run is recognised. With the book's weights there is no run: None.
    """
    if setting.data == "photos" and setting.pretrained and not setting.record and committed.is_file():
        book = load_autoencoder(committed)
        if (book.config["side"], book.config["dim"]) == (setting.image_size, setting.dim):
            return runtime.prepare(book), None
    linear = principal_components(setting, parts["train"])
    check = crops(parts["validation"], 16 if setting.smoke else 256 if setting.is_trained else 64, "check")
    return train_autoencoder(linear, parts["train"], check, setting, runtime)


# %%
linear = principal_components(setting, parts["train"])
autoencoder, photo_run = open_autoencoder(setting, parts, page.weights("experts_photos"), runtime)


# %%
@torch.no_grad()
def reconstruction(
    model: VectorAutoencoder, images: Tensor, judge: torch.nn.Module, runtime: Runtime
) -> tuple[float, float]:
    """Return mean PSNR (dB) and the distance of ``judge`` between images (N, 3, S, S) and reconstructions."""
    runtime.prepare(model)
    again, _ = experts.reconstruct(model, images, runtime)
    pairs = zip(again.split(64), images.split(64), strict=True)
    far = torch.cat([judge(*(x.to(runtime.device) for x in pair)).cpu() for pair in pairs])
    return psnr(again, images).mean().item(), far.mean().item()


plain = Runtime(device=device, precision="fp32" if runtime.device.type == "cpu" else precision)
judge = plain.prepare(lpips_vgg16_hed(pretrained=not page.smoke))
n_crops = 8 if page.smoke else 208 if setting.is_trained else 52
held_up = {where: crops(parts[where], n_crops, "quality") for where in ("train", "test")}
quality = {
    (who, where): reconstruction(model, images, judge, plain)
    for who, model in (("principal components", linear), ("autoencoder", autoencoder))
    for where, images in held_up.items()
}
table(
    [[who, where, *values] for (who, where), values in quality.items()],
    header=[f"{dim} numbers of", "crops of", "PSNR (dB)", "LPIPS-VGG16-HED"],
    caption=f"Means over {n_crops} crops of each split.",
)

# %%
if page.record and photo_run is not None:  # the report run leaves its autoencoder to the quick pages
    page.keep_weights(
        "experts_photos",
        autoencoder,
        {
            "kind": "autoencoder",
            "command": "papermill notebooks/experts_photos.ipynb out.ipynb -f notebooks/params/experts_photos.report.yaml",
            "licence": "CC BY-SA 4.0",
            "steps": photo_run.result["steps"],
            "model": autoencoder.config,
            "data": f"photos, {image_size} px with factors, {parts['train'].hash}",
            "commit": photo_run.result["commit"],
        },
        scores={
            "test PSNR (dB), unseen parts of the photographs": quality["autoencoder", "test"][0],
            "the same on training parts": quality["autoencoder", "train"][0],
            f"the same of {dim} principal components, test": quality["principal components", "test"][0],
        },
        limits="Crops of 13 photographs and textures at 64 px; fine texture is smoothed. No use beyond this book is intended.",
    )

# %%
if (
    setting.is_trained and data == "photos"
):  # it may paint other pixels than the components, not far worse ones
    assert quality["autoencoder", "test"][0] > quality["principal components", "test"][0] - 3, quality
shown = held_up["test"][torch.linspace(0, n_crops - 1, 8).round().long()]
again = {
    name: experts.reconstruct(model, shown, plain)[0]
    for name, model in (("principal components", linear), ("autoencoder", autoencoder))
}
picture(
    shown,
    *again.values(),
    columns=8,
    rows=["test crop", *again],
    scale=1,
    quality=85,
    alt="Eight test crops, and what principal components and the autoencoder keep of them.",
    caption=f"Evenly spaced test crops, and what is left of them in {dim} numbers.",
)
origin = "the book's" if photo_run is None else f"trained here for {photo_run.result['steps']} steps"
say(
    f"On {'parts of the photographs' if data == 'photos' else 'photographs'} that it never saw, the autoencoder ({origin}) has **{quality['autoencoder', 'test'][0]:.1f} dB**, "
    f"{abs(gap := quality['autoencoder', 'train'][0] - quality['autoencoder', 'test'][0]):.1f} dB {'less' if gap > 0 else 'more'} than on those it learned from; principal components have "
    f"{quality['principal components', 'test'][0]:.1f} dB. To the eye, as LPIPS-VGG16-HED stands for it, it is "
    + (
        "nearer than they are."
        if quality["autoencoder", "test"][1] < quality["principal components", "test"][1]
        else "no nearer than they are: a perceptual loss needs more steps than these."
    )
)

# %% [markdown]
# What do the copies keep of the statistics? A picture that is painted from a latent cannot show more of them than this.

# %%
of_crops = statistics(held_up["test"])
of_copies = statistics(experts.reconstruct(autoencoder, held_up["test"], plain)[0])
has_colour = of_crops["saturation"][:, 0] > GREY
kept = {}
for name, x in of_crops.items():
    rows = has_colour if name in COLOURS_OF else slice(None)
    wrong = (of_copies[name] - x)[rows].square().mean(0)
    kept[name] = (1 - wrong / x[rows].var(0, correction=0).clamp_min(1e-12)).mean().item()
table(
    [[name, value] for name, value in kept.items()],
    header=["statistic", "R² of the copy"],
    caption=f"{n_crops} test crops; hue and saturation of the {int(has_colour.sum())} that have colour.",
    digits=2,
)

# %% [markdown]
# ## Where this page departs
#
# | | paper | here |
# |---|---|---|
# | photographs | ImageNet's animals and their faces, as they are | 13 photographs and textures, crops of 64 px with known factors; test parts of the *same* photographs |
# | autoencoder | ResNet-101 and BigGAN, 128 px; for texture no encoder at all, BigGAN's own latents | 2.6 M parameters at 64 px, from principal components on; with the paper's parameter files the same at 128 px |
# | judge | looked at | statistics whose law under each factor is known |
#
# ## Exercises
#
# 1. Which of the nine statistics would a picture and its negative share?
# 2. Why may the autoencoder have fewer decibels than the principal components that it began with?
#
# ```{admonition} Solutions
# :class: dropdown
#
# 1. Zoom, rotation, contrast and texture: they are made of squared differences, which a change of sign leaves alone. Hue turns by half a circle, brightness, mirror and layout change their sign; the
#    mean length of the colour differences, saturation, stays too.
# 2. Principal components are the best linear answer to squared error. A perceptual and an adversarial loss ask for something else, edges at the price of pixels.
# ```

# %%
page.finish(runtime)
