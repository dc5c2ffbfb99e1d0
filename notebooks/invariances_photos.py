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
# # What an ImageNet network does not see in a photograph
#
# {doc}`invariances` looked into a network that knows emoji. Here the same flow looks into one that knows photographs: EfficientNet-Lite0
# {cite}`tan2019efficientnet`, taught on ImageNet by others and left as it is. Does it notice the colour of the light? Which
# way round a picture is? Such networks are said to go by texture and to care little for shape {cite}`geirhos2019imagenet`;
# Rombach, Esser and Ommer {cite}`rombach2020invariances` show it by drawing the pictures that a layer cannot tell apart. We draw them too, and measure.
# With their photographs and networks on your disk, the page asks the same of those.
#
# **What the paper claims**
#
# | | claim | where it is tested |
# |---|---|---|
# | P1 | Deeper layers ignore more, in a network that has learned | below, by layer, beside a network that has not |
# | P2 | Pictures with the same representation are seen as the same | below, by encoding them again |
# | P3 | A layer near the output of an ImageNet network keeps the texture better than the layout | below, over photographs or classes |
# | P4 | An attack that no eye sees becomes a large change in the last layers | below, against noise of the same size |
#
# | scale | command | what it needs |
# |---|---|---|
# | quick | `papermill notebooks/invariances_photos.ipynb out.ipynb` | 3 minutes on 2 CPU cores |
# | report | `papermill notebooks/invariances_photos.ipynb out.ipynb -f notebooks/params/invariances_photos.report.yaml` | about three hours of one CPU core, minutes on a GPU |
# | paper | `papermill notebooks/invariances_photos.ipynb out.ipynb -f notebooks/params/invariances_photos.imagenet.yaml -p data_root DIR -p backbone_file FILE` | a GPU, ImageNet in DIR, torchvision's AlexNet in FILE; with `invariances_photos.animal_faces.yaml` AnimalFaces and a ResNet-101 of its animals |
# | yours | `papermill notebooks/invariances_photos.ipynb out.ipynb -p data image_folder -p data_root DIR` | photographs in a subfolder for each class, the short side of at least 96 px |
#
# Reading time: 15 minutes.

# %%
import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor

from cvlib.claims import paired_bootstrap
from cvlib.data import photo_factors
from cvlib.data.base import SPLITS, derived_generator
from cvlib.data.factors import yiq
from cvlib.data.fresh import Fresh
from cvlib.data.outputs import Outputs
from cvlib.data.photo_factors import FACTORS, RANGES, SOURCES, FactorPhotos, apply_factors, neutral
from cvlib.errors import BookError
from cvlib.metrics import psnr
from cvlib.nn import ConditionalFlow, PatchDiscriminator, lpips_vgg16_hed, vgg_loss
from cvlib.nn.backbones import (
    AlexNet,
    EfficientNetLite0,
    Layer,
    Layered,
    ResNet101,
    alexnet_layers,
    efficientnet_lite0,
    resnet101_layers,
)
from cvlib.nn.backbones.layered import filled
from cvlib.nn.experts import freeze, load_autoencoder, measure_norms
from cvlib.nn.vae import DiagonalGaussian, VectorAutoencoder
from cvlib.pages import begin
from cvlib.show import credits, explorer, figure, look, picture, say, show, table
from cvlib.train import RunResult, Runtime, fit, load_weights, run_folder, seed_everything, warmup_linear

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
CUTS = {"resnet101": resnet101_layers, "alexnet": alexnet_layers}  # where the paper cuts its networks
LAYERS = {  # from the picture to the answer
    "efficientnet-lite0": ("block 4", "block 6", "pooled", "logits", "softmax"),
    **{name: tuple(cuts()) for name, cuts in CUTS.items()},
}


def check_network(backbone: str, file: str, n_classes: int, layers: list[str], needs_file: bool) -> None:
    """Raise BookError for a network that is not known, a layer that it lacks, or weights that are not there."""
    if backbone not in LAYERS:
        raise BookError(f"backbone {backbone!r}", f"one of {', '.join(LAYERS)}")
    if unknown := sorted(set(layers) - set(LAYERS[backbone])):
        raise BookError(
            f"layers {', '.join(unknown)} of {backbone}", f"some of {', '.join(LAYERS[backbone])}"
        )
    if backbone not in CUTS and (file or n_classes != 1000):
        seen = f"backbone_file {file!r} and n_classes {n_classes} for {backbone}"
        raise BookError(seen, "neither: its weights come with the book and tell apart 1000")
    if backbone in CUTS and needs_file and not Path(file).expanduser().is_file():
        raise BookError(f"no file of weights for {backbone} ({file!r})", "a local one", "pass backbone_file")


page = begin("invariances_photos", globals())
check_network(backbone, backbone_file, n_classes, [*layers, *control], not page.smoke or bool(backbone_file))
if page.record and data != "photos":
    raise BookError(f"record with data {data!r}", "photos: the book keeps no weights of others")
experts, story = page.definitions("experts"), page.definitions("invariances")
experts.taming = page.definitions("taming")  # its step asks there for the adaptive weight
if page.smoke:  # prove in seconds that every cell runs; nothing is learned
    steps, batch_size, n_blocks, width, photo_batch, network_size = min(steps, 3), 16, 2, 16, 4, 64
    autoencoder_steps = 0
runtime = Runtime(device=device, precision=precision)
plain = Runtime(device=device, precision="fp32" if runtime.device.type == "cpu" else precision)
seed_everything(seed)
is_trained = steps >= 1000  # checks of quality ask for the report scale
print(runtime.describe())

# %% [markdown]
# ## Photographs that can be turned
#
# Crops are taken with factors that we choose. With $y(x)$ the luma of a pixel and $H_\alpha$ the turn of the hue, a colour $x$ becomes
#
# $$ x' = y(x) + s\,\big(H_\alpha x - y(x)\big) + b, $$
#
# after the crop was zoomed, turned and mirrored. Luma and grey are left alone by $\alpha$ and $s$; only $b$ moves them.

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
parts = load_parts(data, data_root, subset, image_size)
if page.smoke:
    parts = {split: thinned(part, 52) for split, part in parts.items()}
elif not is_trained:  # a look at fewer places is enough for a flow that has learned little
    parts = {split: part if split == "train" else thinned(part, 208) for split, part in parts.items()}
label = SOURCES[data]
what, whats = ("photograph", "photographs") if label == "photo" else ("class", "classes")
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
# ## What to ask of a picture
#
# On the page before, a trained judge told what was to be seen. Nobody can tell by how much the hue of an unknown photograph *was* turned. But for each factor there is a simple
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
# Two more stand for the question of texture or shape. **Texture** is how strong the differences between neighbours are, in four directions at three scales,
# wherever they lie. **Layout** is what lies where: the mean luma of 4 × 4 squares.


# %%
FLOOR = (2 / 255) ** 2  # a contrast of one grey level


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
    return {
        "brightness": luma.mean((1, 2))[:, None],
        "saturation": torch.hypot(*colour).mean((1, 2))[:, None],
        "hue": F.normalize(torch.stack([i, q], 1), dim=1),
        "zoom": (contrast[:, 0] - contrast[:, 2]).mean(1, keepdim=True),
        "rotation": slant(luma),
        "mirror": ((squares - squares.flip(-1)) / 2)[:, :, :2].flatten(1),
        "texture": contrast.flatten(1),
        "layout": (squares - squares.mean((1, 2), keepdim=True)).flatten(1),
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
print("all six laws hold")

# %% [markdown]
# ## An autoencoder for photographs
#
# The flow never sees a pixel, it works on $\bar z = E(x) \in \mathbb R^d$. The autoencoder of {doc}`experts` knows nothing but emoji, so the same
# network with the same loss is trained on crops, from the principal components on.


# %%
def crops(part: FactorPhotos, n: int, word: str) -> Tensor:
    """Return n crops (n, 3, S, S) of a part with factors, always the same for a word; items in turn."""
    index = torch.arange(n) * len(part) // n if n <= len(part) else torch.arange(n) % len(part)
    return part.images(index, generator=derived_generator(0, "crops", word), augment=True)


def train_autoencoder(
    start: VectorAutoencoder, train: FactorPhotos, check: Tensor, steps: int
) -> tuple[VectorAutoencoder, RunResult]:
    """Return ``start`` trained on a part and looked at on ``check`` (N, 3, S, S), and the run."""
    seed_everything(seed)
    model = runtime.prepare(copy.deepcopy(start))
    critic = runtime.prepare(PatchDiscriminator(ch=32, n_layers=3, norm="none"))
    perceptual = runtime.prepare(vgg_loss(pretrained=not page.smoke))
    rate = 5e-4
    config = {"expert": "photos", "seed": seed, "steps": steps, "batch_size": photo_batch, "data": train.hash}
    config |= {"model": dict(model.config), "learning_rate": rate, "precision": runtime.precision}
    adam: dict[str, Any] = {"betas": (0.5, 0.99), "weight_decay": 0.0}
    optimizers = {
        "autoencoder": torch.optim.AdamW(experts.rate_groups(model, rate), **adam),
        "critic": torch.optim.AdamW(critic.parameters(), lr=rate / 2, **adam),
    }
    run = fit(
        run_folder(run_dir, "autoencoder", config),
        config=config,
        modules={"autoencoder": model, "critic": critic},
        optimizers=optimizers,
        batches=train.batches(photo_batch, seed=seed, device=runtime.device),
        step=experts.autoencoder_step(model, critic, optimizers, perceptual, runtime, steps // 2),
        steps=steps,
        runtime=runtime,
        schedules={"autoencoder": warmup_linear(max(1, steps // 20), steps)},
        evaluate=lambda done: experts.reconstruction_scores(model, check, runtime),
    )
    freeze(model)
    return model, run


# %%
seed_everything(seed)
linear = experts.build_autoencoder(image_size, dim, framed=False)
linear.start_from(crops(parts["train"], 300 if page.smoke else 6000 if is_trained else 1500, "start"))
committed = page.weights("experts_photos")
is_committed = data == "photos" and pretrained and not page.record and committed.is_file()
if is_committed:
    autoencoder, photo_run = runtime.prepare(load_autoencoder(committed)), None
else:
    check = crops(parts["validation"], 16 if page.smoke else 256 if is_trained else 64, "check")
    photo_steps = autoencoder_steps or max(2, round(0.4 * steps))
    autoencoder, photo_run = train_autoencoder(linear, parts["train"], check, photo_steps)

# %%
judge = runtime.prepare(lpips_vgg16_hed(pretrained=not page.smoke))


@torch.no_grad()
def reconstruction(model: VectorAutoencoder, images: Tensor) -> tuple[float, float]:
    """Return mean PSNR (dB) and LPIPS-VGG16-HED of reconstructions of images (N, 3, S, S)."""
    runtime.prepare(model)
    again, _ = experts.reconstruct(model, images, plain)
    pairs = zip(again.split(64), images.split(64), strict=True)
    far = torch.cat([judge(*(x.to(runtime.device) for x in pair)).cpu() for pair in pairs])
    return psnr(again, images).mean().item(), far.mean().item()


n_crops = 8 if page.smoke else 832 if is_trained else 52
quality = {
    (who, where): reconstruction(model, crops(parts[where], n_crops, "quality"))
    for who, model in (("principal components", linear), ("autoencoder", autoencoder))
    for where in ("train", "test")
}
table(
    [[who, where, *values] for (who, where), values in quality.items()],
    header=[f"{dim} numbers of", "crops of", "PSNR (dB)", "LPIPS-VGG16-HED"],
)

# %%
if is_trained and data == "photos":
    assert quality["autoencoder", "test"][0] > 24, quality
    assert quality["autoencoder", "test"][1] < quality["principal components", "test"][1], quality
origin = "committed" if is_committed else f"trained here for {photo_run.result['steps']} steps"
say(
    f"On {'parts of the photographs' if data == 'photos' else 'photographs'} that it never saw, the autoencoder ({origin}) has **{quality['autoencoder', 'test'][0]:.1f} dB**, "
    f"{quality['autoencoder', 'train'][0] - quality['autoencoder', 'test'][0]:.1f} dB less than on those it learned from; principal components have "
    f"{quality['principal components', 'test'][0]:.1f} dB. To the eye, as LPIPS-VGG16-HED stands for it, it is "
    + (
        "nearer than they are."
        if quality["autoencoder", "test"][1] < quality["principal components", "test"][1]
        else "no nearer than they are: a perceptual loss needs more steps than these."
    )
)

# %% [markdown]
# ## The network
#
# Its layers go from maps of places to the probabilities. A crop is enlarged first; that is part of $\Phi$, so a gradient at the crop passes through it.


# %%
class Enlarging:
    """What makes a network see images at ``side`` px, whatever their own size."""

    side = 128

    def preprocess(self, images: Tensor) -> Tensor:
        """Return images (B, 3, S, S) in [-1, 1], enlarged bilinearly and with the colours of the weights."""
        size = (self.side, self.side)
        return super().preprocess(F.interpolate(images, size=size, mode="bilinear", align_corners=False))


NETWORKS = {
    name: type(f"Enlarging{kind.__name__}", (Enlarging, kind), {})
    for name, kind in zip(LAYERS, (EfficientNetLite0, ResNet101, AlexNet), strict=True)
}


def build_network(backbone: str, side: int, n_classes: int = 1000) -> Any:
    """Return a network with random weights that sees images at ``side`` px."""
    net = NETWORKS[backbone](n_classes)
    net.side = side
    return net


def untrained(net: Any, images: Tensor) -> Any:
    """Return the random network frozen; its norms, if any, have the statistics of ``images`` (N, 3, S, S)."""
    measure_norms(net, images, batch=64)
    return net


def taught(net: Any, file: str) -> Any:
    """Return the network frozen, with what others taught it: the weights of a local file, or the book's."""
    if file:
        filled(net, file)
    else:
        net.load_state_dict(efficientnet_lite0().state_dict())
    freeze(net)
    return net


seed_everything(seed)
random_net = runtime.prepare(
    untrained(
        build_network(backbone, network_size, n_classes),
        crops(parts["train"], 32 if page.smoke else 256, "norms"),
    )
)
network = (
    random_net
    if page.smoke and not backbone_file
    else runtime.prepare(taught(build_network(backbone, network_size, n_classes), backbone_file))
)


# %% [markdown]
# The paper's two networks are lists of layers, which it cuts at places with the names below.


# %%
def at_cuts(net: Layered, images: Tensor, cuts: dict[str, Layer]) -> dict[str, Tensor]:
    """Return z = Φ(x) at every cut but the softmax, for images (B, 3, S, S) in [-1, 1]: maps, then vectors.

    The scores come once more as "logits", from which the softmax follows.
    """
    found, z, done = {}, net.preprocess(images), 0
    for name, cut in cuts.items():
        if name != "softmax":
            for layer in net.layers[done : cut.split]:
                z = layer(z)
            found[name], done = z.flatten(1) if cut.depth else z, cut.split
    return found | {"logits": z}


def reader(backbone: str, n_classes: int) -> Callable[[Any, Tensor], dict[str, Tensor]]:
    """Return the function from a network and images to the representations of its layers."""
    if backbone in CUTS:
        return partial(at_cuts, cuts=CUTS[backbone](n_classes))
    return story.representations


def look_into(net: Any, layers: list[str], n_views: int) -> Any:
    """Return the study of a network (a ``Study`` of the page invariances, without a judge).

    All that is asked is cached; with ``n_views`` 0 nothing is.
    """
    columns = list(dict.fromkeys(map(story.column_of, layers)))
    read = reader(backbone, n_classes)

    def describe(images: Tensor) -> dict[str, Tensor]:
        posterior, kept = autoencoder.encode(images), read(net, images)
        moments = torch.cat([posterior.mean, posterior.log_variance], 1)
        return {"moments": moments} | {name: kept[name] for name in columns}

    nets = {f"network at {net.side} px": net, "autoencoder": autoencoder}
    common = (["moments", *columns], describe, nets)
    known = {
        split: Outputs(part, *common, n_views if split == "train" else 1, runtime.device)
        if n_views
        else Fresh(part, *common, runtime.device)
        for split, part in parts.items()
    }
    return story.Study(net, autoencoder, None, known, runtime, read, at_most=1024)


chosen, controls = ([name for name in LAYERS[backbone] if name in some] for some in (layers, control))
study = look_into(network, [*chosen, "logits"], n_views)  # what it answers is asked for below
shown = study.known["test"].pictures(sample)
answers = study.z("test", "softmax", sample)
table(
    [[name, " × ".join(map(str, study.z("test", name, sample[:1]).shape[1:]))] for name in chosen],
    header=["layer", "shape of z"],
    caption=f"{backbone}, which tells apart {n_classes:,} classes and sees a crop of {image_size} px at {network_size} px.",
)

# %%
called = experts.NAMES if n_classes == 1000 else {}
if data == "imagenet" and len(names) == n_classes == 1000:  # an output's number is the rank of its synset
    called = {k: name.partition(" ")[2].split(",")[0] or name for k, name in enumerate(names)}
picture(
    shown,
    study.decode(study.latents[sample]),
    columns=8,
    rows=["test crop", "D(E(x))"],
    titles=[f"{called.get(int(p.argmax()), f'class {int(p.argmax())}')}, {p.max():.0%}" for p in answers],
    quality=85,
    alt="Eight crops with their factors, what the network takes them for, and their reconstructions.",
    caption="Test crops with all factors drawn, what the network takes them for, and what the autoencoder keeps of them: nothing below can be sharper.",
)

# %% [markdown]
# ## The flows
#
# The flow $v = t(\bar z\,|\,z)$ and its likelihood are those of {doc}`invariances`: whatever $\Phi$ dropped is Gaussian and in $v$. Where photographs are few, a flow could learn them by heart.
# So the validation split chooses the moment to stop, and the test split is looked at once. The network $H$ that embeds $z$ is that of the page before; for the paper's networks it is the paper's.


# %%
def with_paper_h(cut: Layer) -> Callable[..., ConditionalFlow]:
    """Return a function as ``build_flow`` of the page invariances, with the paper's H at a cut.

    Of an image at another size than the paper's, a map is halved as often as it can be.
    """

    def build(dim: int, shape: tuple[int, ...], n_blocks: int, width: int, depth: int) -> ConditionalFlow:
        shape = (*shape, 1, 1)[:3]
        n_down = min(cut.n_down, shape[1].bit_length() - 1)
        return ConditionalFlow(
            dim, width, depth, n_blocks, replace(cut, shape=shape, n_down=n_down).embedder(dim)
        )

    return build


def learn(study: Any, name: str) -> tuple[Any, RunResult]:
    """Return the flow of a layer as it was when validation was best, and its run; a finished run is recognised."""
    recipe = story.Recipe(steps, batch_size, n_blocks, width, depth, learning_rate)
    learning = replace(study, known={**study.known, "test": study.known["validation"]})
    options: dict[str, Any] = {"best": "nll", "eval_every": max(1, steps // 20)}
    if backbone in CUTS:
        options["build"] = with_paper_h(CUTS[backbone](n_classes)[name])
    layer, run = story.train_flow(learning, name, recipe, seed, run_dir, **options)
    load_weights(run.folder, {"flow": layer.flow}, which="best")
    return replace(layer, study=study), run


flows, runs = {}, {}
for name in chosen:
    flows[name], runs[name] = learn(study, name)
nothing_learned = look_into(random_net, controls, n_views) if controls else None
for name in controls:
    flows[f"{name}, untrained"], runs[f"{name}, untrained"] = learn(nothing_learned, name)

# %%
CONSTANT = math.log(2 * math.pi) / 2  # of a Gaussian, which the loss leaves out
fig, ax = figure(height=3.2)
for k, (name, run) in enumerate(runs.items()):
    ax.plot(*run.curve("eval/nll"), color=f"C{k}", linestyle="-", marker="o", markersize=3, label=name)
    at, losses = run.curve("loss")
    ax.plot(at, [loss + CONSTANT for loss in losses], color=f"C{k}", linestyle=":")
ax.set(xlabel="step", ylabel="NLL (nats per dimension)")
ax.legend(ncols=2)
show(
    fig,
    alt="Lowest validation NLL of the flows: "
    + ", ".join(f"{name} {run.result['best']['value']:.2f}" for name, run in runs.items()),
    caption="What is left to say about a crop once z is known: on the validation split (dots) and on what is learned from (dotted). Where they part, the flow learns by heart.",
)
table(
    [
        [name, run.result["best"]["step"], run.result["best"]["value"], flows[name].nll()]
        for name, run in runs.items()
    ],
    header=["z of layer", "best step", "validation NLL", "test NLL"],
)

# %% [markdown]
# ## The same to a layer
#
# Keep $z$ of a crop, draw $v \sim \mathcal N(0, I)$, paint $D(t^{-1}(v\,|\,z))$. **Predict**: which goes first, the colour or the texture?


# %%
def drawn_for(name: str, rows: Tensor, n: int, word: str) -> Tensor:
    """Return n latents (B, n, dim) of a layer for each test row (B,), always the same for a word."""
    return flows[name].resample(rows, n, derived_generator(seed, word, name))


N_DRAWN = 5
strips = {
    name: study.decode(drawn_for(name, sample, N_DRAWN, "strips").flatten(0, 1)).unflatten(0, (-1, N_DRAWN))
    for name in flows
}
picture(
    *(torch.cat([shown[k : k + 1], strips[name][k]]) for k in (1, 3) for name in flows),
    columns=1 + N_DRAWN,
    rows=[f"crop {k + 1}, {name}" for k in (1, 3) for name in flows],
    titles=["crop", *(f"v {k + 1}" for k in range(N_DRAWN))],
    quality=85,
    alt="Two crops, and beside each five pictures with the same representation, a row for each layer.",
    caption="First the crop; then pictures that the layer cannot tell from it, with five draws of v. Not selected.",
)

# %% [markdown]
# All eight crops: move the slider from the first layer to the last, and then to the network that learned nothing.

# %%
explorer(
    torch.stack(
        [torch.cat([shown[k], *strips[name][k]], dim=2) for k in range(len(sample)) for name in flows]
    ),
    {"crop": range(1, len(sample) + 1), "layer": list(flows)},
    alt="A crop and five pictures with its representation; sliders choose crop and layer.",
    caption="Left the crop, then five pictures that are the same to the layer.",
    scale=1,
    quality=80,
)

# %% [markdown]
# ## Measured
#
# For a statistic $s$ and resampled pictures $\bar x = D(t^{-1}(v\,|\,z))$, what stays when $v$ is drawn anew is the part of its variance that lies between
# representations,
#
# $$ R_s = 1 - \frac{\mathbb E_z \operatorname{Var}_v[s(\bar x)]}{\operatorname{Var}[s(\bar x)]}, $$
#
# the mean over the entries of $s$. But is what stays also *true*? If the flow is right, the crop $x$ itself is one more draw, and the same number comes from
#
# $$ A_s = 1 - \frac{\mathbb E\, |s(\bar x) - s(x)|^2}{\mathbb E\, |s(\bar x) - s(x')|^2}, $$
#
# where $x'$ is any crop. $A_s < R_s$ says that the flow is too sure of itself. (Crops are taken as the autoencoder paints them.)


# %%
def agreement(drawn: Tensor, truth: Tensor) -> Tensor:
    """Return each crop's share in A (B,): statistics (B, n, K) of its resampled pictures, its own (B, K).

    The mean is A. It is a ratio of means, so the shares are those of its linearisation (Cochran 1977, ch. 6):
    what a crop adds to the distance, less what it would add at the common ratio. x' is any crop, itself included.
    """
    pooled = drawn.flatten(0, 1)
    near = (drawn - truth[:, None]).square().mean(1)
    far = pooled.var(0, correction=0) + (pooled.mean(0) - truth).square()
    scale = far.mean(0).clamp_min(1e-12)
    ratio = near.mean(0) / scale
    return (1 - ratio + (ratio * far - near) / scale).mean(1)


generator = derived_generator(seed, "gaussian")
kept_part = torch.randn(4000, 1, 1, generator=generator) * torch.tensor([1.0, 2.0])  # what z decides
several = kept_part + torch.randn(4000, 5, 2, generator=generator)
stays = story.between(several[:, 1:])
torch.testing.assert_close(stays, torch.tensor([1 / 2, 4 / 5]), atol=0.03, rtol=0)
torch.testing.assert_close(agreement(several[:, 1:], several[:, 0]).mean(), stays.mean(), atol=0.03, rtol=0)
print(f"variances 1 + 1 and 4 + 1: R = {stays[0]:.2f} and {stays[1]:.2f}, and A agrees with their mean")

# %% [markdown]
# *What is shown*, which photograph or which class, has no closed form. A ridge regression tells it from $\bar z$ and $|\bar z|$: the sizes are needed, for a texture is the same with light and dark exchanged.


# %%
def unsigned(z_bar: Tensor) -> Tensor:
    """Return latents (N, dim) beside their absolute values, (N, 2 dim)."""
    return torch.cat([z_bar, z_bar.abs()], 1)


def subject_reader(study: Any, label: str, at_most: int = 50_000) -> Callable[[Tensor], Tensor]:
    """Return a function from latents (N, dim) to scores of a label's values (N, K), fitted on training crops."""
    part = study.known["train"]
    n = len(part.labels[label])
    rows = torch.linspace(0, n - 1, min(n, at_most)).round().long()
    known = unsigned(DiagonalGaussian(part.column("moments", rows)).mean)
    indicators = F.one_hot(part.labels[label][rows], len(part.label_names[label])).float()
    says = story.ridge(story.standardised(known), indicators)
    return lambda z_bar: says(story.standardised(unsigned(z_bar), known))


@dataclass(frozen=True)
class Measured:
    """What resampled pictures say about a layer."""

    v_explains: float  # part of the variance of z̄
    kept: dict[str, float]  # R of each statistic; "photograph" or "class": how often it is read rightly
    agreement: dict[str, Tensor]  # A of each statistic, the share of every crop (B,)
    consistency: float


def measure(
    layer: Any, rows: Tensor, truth: dict[str, Tensor], generator: torch.Generator, n: int = 4
) -> Measured:
    """Return what n resampled pictures of each test row (B,) say; ``truth`` holds the crops' own statistics."""
    study = layer.study
    drawn = layer.resample(rows, n, generator)
    pictures = study.decode(drawn.flatten(0, 1))
    said = {name: values.unflatten(0, (-1, n)) for name, values in statistics(pictures).items()}
    has_hue = truth["saturation"][:, 0] > 0.05  # a grey crop has none
    said["hue"], truth = said["hue"][has_hue], {**truth, "hue": truth["hue"][has_hue]}
    subject = study.known["test"].labels[label][rows].repeat_interleave(n)
    z = study.z("test", layer.name, rows).flatten(1).repeat_interleave(n, 0)
    again = study.encode(layer.name, pictures)
    again = (again.softmax(1) if layer.name == "softmax" else again).flatten(1)
    middle, stranger = z.mean(0), z.roll(n * (len(rows) // 2), 0)  # the next row shows the same
    own, other = (F.cosine_similarity(again - middle, to - middle).mean().item() for to in (z, stranger))
    return Measured(
        (drawn.var(1).sum(1).mean() / study.latents.var(0).sum()).item(),
        {name: story.between(values).mean().item() for name, values in said.items()}
        | {what: story.right(read_subject(drawn.flatten(0, 1)), subject)},
        {name: agreement(values, truth[name]) for name, values in said.items()},
        own - other,
    )


# %%
n_measured = 16 if page.smoke else 256 if is_trained else 64
measured_rows = torch.linspace(
    0, len(study.known["test"]) - 1, min(n_measured, len(study.known["test"]))
).long()
read_subject = subject_reader(study, label)
truth = statistics(study.decode(study.latents[measured_rows]))
subject_of = study.known["test"].labels[label][measured_rows]
found = {
    name: measure(layer, measured_rows, truth, derived_generator(seed, "measure", name))
    for name, layer in flows.items()
}
ceiling = story.right(read_subject(study.latents[measured_rows]), subject_of)
chance = subject_of.bincount().max().item() / len(subject_of)
ASKED = ("brightness", "saturation", "hue", "zoom", "rotation", "mirror")
table(
    [
        ["the crops themselves", "0.00", *["1.00"] * len(ASKED), f"{ceiling:.2f}", ""],
        *(
            [
                name,
                f"{m.v_explains:.2f}",
                *(f"{m.kept[field]:.2f} / {m.agreement[field].mean():.2f}" for field in ASKED),
                f"{m.kept[what]:.2f}",
                f"{m.consistency:.2f}",
            ]
            for name, m in found.items()
        ),
        ["chance", "", *["0.00"] * len(ASKED), f"{chance:.2f}", "0.00"],
    ],
    header=["z of layer", "v explains", *ASKED, what, "consistency"],
    caption="R / A of the factors' statistics",
)

# %% [markdown]
# *v explains*: the part of the variance of $\bar z$ that is in $v$. *Photograph* or *class*: how often it is read rightly from the resampled latent. *Consistency*: the cosine of the representation
# of a resampled picture with the crop's, about their mean, less that with another crop's.

# %%
if not is_trained:
    say(
        f"The flows of this run took {steps} steps and hardly know their condition yet: $R$ and $A$ near 0 everywhere say so. "
        "**The sentences below then speak of the flows and not of the network**; the report scale takes 3,000 steps."
    )
too_sure = {
    name: float(np.mean([m.kept[field] - m.agreement[field].mean().item() for field in ASKED]))
    for name, m in found.items()
}
surest = max(too_sure, key=too_sure.get)
say(
    f"On average over the factors $R$ exceeds $A$ by {np.mean(list(too_sure.values())):.2f}, most at {surest} ({too_sure[surest]:.2f}): "
    + (
        "what the flows draw for a representation is what belongs to it."
        if too_sure[surest] < 0.1
        else f"part of what looks kept is what the flow learned from {'other parts of the' if data == 'photos' else 'other'} photographs, and only $A$ may be believed."
    )
)

# %%
fig, ax = figure(height=3.2)
for k, field in enumerate((*ASKED, what)):
    floor, top = (chance, ceiling) if field == what else (0.0, 1.0)
    scale = top - floor if top > floor else math.nan  # a reader that knows nothing says nothing
    kept = [(m.kept[field] - floor) / scale for m in found.values()]
    ax.plot(range(len(chosen)), kept[: len(chosen)], marker="o", color=f"C{k}", label=field)
    ax.plot(range(len(chosen), len(found)), kept[len(chosen) :], marker="s", linestyle=":", color=f"C{k}")
ax.axhline(0, **look("control"))
ax.set(ylabel="kept, R", ylim=(-0.15, 1.4))  # room for the names
ax.set_xticks(range(len(found)), [name.replace(", ", ",\n") for name in found])
ax.legend(ncols=4)
show(
    fig,
    alt=f"R of six factors and the {what} by layer; at {chosen[-1]} from {min(found[chosen[-1]].kept[f] for f in ASKED):.2f} to {max(found[chosen[-1]].kept[f] for f in ASKED):.2f}, at {chosen[0]} from {min(found[chosen[0]].kept[f] for f in ASKED):.2f} to {max(found[chosen[0]].kept[f] for f in ASKED):.2f}.",
    caption=f"What a layer keeps of a factor: R, and for the {what} the rate between chance and that of the crops themselves. Squares: the network that learned nothing.",
)

# %%
explains = [found[name].v_explains for name in chosen]
rank = spearmanr(range(len(chosen)), explains).statistic if len(chosen) > 2 else float("nan")
order = sorted(ASKED, key=lambda field: found[chosen[-1]].kept[field])
if is_trained:
    assert all(found[name].consistency > 0 for name in chosen), found
say(
    f"From {chosen[0]} to {chosen[-1]} the part of the variance that $v$ explains goes from {explains[0]:.2f} to {explains[-1]:.2f}"
    + (
        f"; its rank correlation with depth is {rank:.1f}: deeper layers ignore {'more, as the paper says' if rank > 0.8 else 'not steadily more'}."
        if math.isfinite(rank)
        else "."
    )
    + f" At {chosen[-1]} the first to go is **{order[0]}** ($R$ = {found[chosen[-1]].kept[order[0]]:.2f}), the last **{order[-1]}** ({found[chosen[-1]].kept[order[-1]]:.2f})."
)
weakest = min(chosen, key=lambda name: found[name].consistency)
say(
    f"Encoded again, the drawn pictures are most like a stranger's at {weakest}, with a margin of {found[weakest].consistency:.2f} for their own crop: "
    + (
        "every layer takes them for the crop rather than for another."
        if found[weakest].consistency > 0
        else "that layer does not take them for the crop."
    )
)
for name in [name for name in controls if name in chosen]:
    own, other = found[name].v_explains, found[f"{name}, untrained"].v_explains
    say(
        f"In the network that learned nothing, $v$ explains {other:.2f} at {name}, in the one that learned {own:.2f}: "
        + (
            "what is ignored there has been learned to be ignored."
            if own > other + 0.05
            else "that much is lost by the architecture alone, whatever was learned."
            if abs(own - other) <= 0.05
            else "learning has made the layer keep more, not less."
        )
    )

# %% [markdown]
# ### Texture or layout?

# %%
wide = 0.38
fig, ax = figure(height=3.0)
for k, (field, role) in enumerate((("texture", "ours"), ("layout", "baseline"))):
    at = np.arange(len(found)) + (k - 0.5) * wide
    ax.bar(at, [m.kept[field] for m in found.values()], wide, color=look(role)["color"], label=f"{field}, R")
    ax.plot(at, [m.agreement[field].mean() for m in found.values()], "k_" if k else "kx", label=f"{field}, A")
ax.axhline(0, **look("control"))
ax.set(ylabel="kept", ylim=(None, 1.4))
ax.set_xticks(range(len(found)), [name.replace(", ", ",\n") for name in found])
ax.legend(ncols=2)
show(
    fig,
    alt="R of texture and layout: "
    + "; ".join(f"{name} {m.kept['texture']:.2f} and {m.kept['layout']:.2f}" for name, m in found.items()),
    caption="Texture (12 contrasts) and layout (16 squares): bars, what stays between draws; marks, how far it agrees with the crop.",
)


# %%
def by_subject(values: Tensor, subject: Tensor) -> np.ndarray:
    """Return the mean of values (B,) over the crops of each photograph or class that occurs in ``subject`` (B,)."""
    return np.array([values[subject == k].mean().item() for k in subject.unique()])


margins = {
    name: by_subject(m.agreement["texture"] - m.agreement["layout"], subject_of) for name, m in found.items()
}
gaps = {name: paired_bootstrap(margin) for name, margin in margins.items()}
table(
    [[name, f"{gap.mean:+.2f}", f"{gap.low:+.2f} to {gap.high:+.2f}"] for name, gap in gaps.items()],
    header=["z of layer", "A of texture less A of layout", f"95 % over {whats}"],
)
BEFORE_SCORES = ("pooled", "avgpool", "fc7")  # the last features of each network
asked_at = next((name for name in chosen if name in BEFORE_SCORES), chosen[-1])
gap, agreed = gaps[asked_at], found[asked_at].agreement
say(
    f"At {asked_at}, texture agrees with the crop by {agreed['texture'].mean():.2f}, layout by {agreed['layout'].mean():.2f}. Over "
    f"{len(margins[asked_at])} {whats} the difference is {gap.mean:+.2f} (95 % from {gap.low:+.2f} to {gap.high:+.2f}): "
    + (
        "**the layer goes by texture**, as the paper's pictures say."
        if gap.low > 0
        else "**the layer keeps the layout better**, against what the paper's pictures say."
        if gap.high < 0
        else "these photographs cannot tell which of the two it keeps better."
    )
)
if f"{asked_at}, untrained" in margins:
    learned = paired_bootstrap(margins[asked_at], margins[f"{asked_at}, untrained"])
    say(
        f"Of this, {learned.mean:+.2f} (95 % from {learned.low:+.2f} to {learned.high:+.2f}) came by learning: "
        + (
            "what it learned has moved the layer towards texture."
            if learned.low > 0
            else "what it learned has moved the layer towards layout."
            if learned.high < 0
            else "the layer of the network that learned nothing has a preference like it."
        )
    )

# %% [markdown]
# The two are not measured in one unit: each is a share of its own variance over these photographs, and textures differ between photographs more than layouts do. So the network that
# learned nothing is the yardstick: what it keeps of a texture, it keeps without having been taught.
#
# ## An attack, seen through the flow
#
# A step of ε along the sign of the gradient at the crop {cite}`goodfellow2015explaining` changes the network's answer. Keep $v$ of the clean crop, take $z$ of the attacked one, paint $D(t^{-1}(v\,|\,\Phi(x')))$: the picture shows what
# the layer was made to believe. The control moves every value by the same ε, in random directions.

# %%
EPSILON = 0.02  # of 2, the range of a pixel; paper: 0.02
sure = study.z("test", "softmax", measured_rows).amax(1) > 0.5
attacked_rows = measured_rows[sure] if sure.sum() >= 8 else measured_rows
clean = study.known["test"].pictures(attacked_rows)
spoiled = {
    "attack": torch.cat([story.attack(study, some, EPSILON) for some in clean.split(32)]),
    "random signs": story.attack(study, clean, EPSILON, derived_generator(seed, "noise")),
}
said_before = study.encode("logits", clean).argmax(1)
said_after = {how: study.encode("logits", images).argmax(1) for how, images in spoiled.items()}
fooled = said_after["attack"] != said_before


def moved(after: Tensor, before: Tensor) -> float:
    """Return how far things (B, ...) move on average, in units of the mean distance between two of them."""
    after, before = after.flatten(1), before.flatten(1)
    own = (after - before).norm(dim=1).mean()
    return (own / torch.pdist(before).mean()).item()


rows = []
through: dict[tuple[str, str], Tensor] = {}
for name in chosen:
    layer = flows[name]
    recalled = study.decode(study.latents[attacked_rows])  # v and z of the clean crop give it back
    z = {how: study.encode(name, images) for how, images in {"clean": clean, **spoiled}.items()}
    z = {how: value.softmax(1) if name == "softmax" else value for how, value in z.items()}
    for how, images in spoiled.items():
        through[name, how] = story.seen_through(layer, attacked_rows, images)
        seen = study.encode("logits", through[name, how]).argmax(1)
        rows.append(
            [
                name,
                how,
                moved(z[how], z["clean"]),
                moved(through[name, how], recalled),
                (seen == said_after["attack"])[fooled].float().mean().item() if fooled.any() else None,
            ]
        )
table(
    rows,
    header=[
        "z of layer",
        "under",
        "z moves",
        "picture moves",
        "network sees the attack's class in the picture",
    ],
    digits=2,
)

# %% [markdown]
# Both moves are in units of the mean distance between two crops, or two representations: at 1 the crop has become another one. The last column asks the network about the painted picture, for those crops whose answer the attack changed.

# %%
first = fooled.nonzero()[:, 0][:8] if fooled.sum() >= 8 else torch.arange(min(8, len(clean)))
picture(
    clean[first],
    spoiled["attack"][first],
    *(through[name, "attack"][first] for name in chosen),
    columns=8,
    rows=["crop", "attacked", *(f"z of {name}" for name in chosen)],
    quality=85,
    alt="Crops, attacked crops, and what the layers take the attacked ones for.",
    caption=f"The first crops whose answer the attack (ε = {EPSILON}) changed; below, v of the clean crop and z of the attacked one.",
)

# %%
moves = {(name, how): value for name, how, _, value, _ in rows}
ratio = {name: moves[name, "attack"] / max(moves[name, "random signs"], 1e-9) for name in chosen}
share = {how: (after != said_before).float().mean().item() for how, after in said_after.items()}
if is_trained:
    assert share["attack"] > share["random signs"], share
say(
    f"The attack changes the answer for {share['attack']:.0%} of {len(clean)} crops, random signs for {share['random signs']:.0%}. Seen through {chosen[0]} it moves the picture by "
    f"{moves[chosen[0], 'attack']:.2f}, {ratio[chosen[0]]:.1f} times as far as random signs; through {chosen[-1]} by {moves[chosen[-1], 'attack']:.2f}, {ratio[chosen[-1]]:.1f} times as far: "
    + (
        "**the last layers were made to believe in another picture**, the first were not."
        if moves[chosen[-1], "attack"] > max(0.25, 1.5 * moves[chosen[0], "attack"])
        and ratio[chosen[-1]] > 1.2
        else "the change does not grow from the first layer to the last as the paper's pictures suggest."
    )
)

# %% [markdown]
# ## With a kernel
#
# Choose a crop, a layer, and how far $v$ may stray (temperature 1 is the whole distribution, 0 its middle).


# %%
def play(crop: int, layer: str, temperature: float, number: int) -> None:
    """Show a test crop and seven pictures with its representation."""
    row = torch.tensor([crop])
    z_bar = flows[layer].resample(row, 7, derived_generator(number, "play"), temperature)[0]
    picture(
        torch.cat([study.known["test"].pictures(row), study.decode(z_bar)]),
        columns=8,
        alt="A crop and seven pictures that the layer cannot tell from it.",
    )


if page.live:
    import ipywidgets as widgets

    widgets.interact(
        play,
        crop=widgets.IntSlider(0, min=0, max=len(study.known["test"]) - 1, continuous_update=False),
        layer=list(flows),
        temperature=widgets.FloatSlider(1.0, min=0.0, max=1.5, step=0.1, continuous_update=False),
        number=widgets.IntSlider(0, min=0, max=99, continuous_update=False),
    )

# %% [markdown]
# ## Where this page departs
#
# | | paper | quick and report | with the paper's parameter files |
# |---|---|---|---|
# | photographs | ImageNet's animals and their faces, as they are | 13 photographs and textures, crops of 64 px with known factors; test parts of the *same* photographs | the paper's at 128 px, but two thirds of the short side, with known factors; a fiftieth or a tenth kept for validation |
# | network | ResNet-101, AlexNet; ResNet-50 with and without stylised ImageNet for texture | EfficientNet-Lite0 at 128 px; a network that learned nothing as control | AlexNet, ResNet-101, each with a control |
# | autoencoder | ResNet-101 and BigGAN, 128 px; for texture no encoder at all, BigGAN's own latents | 4.8 M parameters at 64 px, from principal components on | the same small networks at 128 px, 128 numbers |
# | learning rate of a flow | constant | up, then down to nothing; gradients of at most 10 | the paper's at its highest, up and down the same way |
# | when a flow stops | at a fixed step | where validation is best | where validation is best |
# | what is kept | looked at | R of statistics whose law under each factor is known, and A against the crop | the same |
# | attack | at the network's own size, looked at | at 64 px, through the enlargement; measured against random signs | the same at 128 px |
#
# Nobody has run the parameter files on the real data yet.

# %%
if data == "photos":
    say(
        f"What cannot be said from {len(names)} photographs: how a layer treats *objects*. Half of a photograph is a piece of one thing, and its test part another piece."
    )

# %% [markdown]
# ## Exercises
#
# 1. $R$ and $A$ agree if the flow is right. Which of the two would a flow that learned its training crops by heart raise on *test* crops, and which lower?
# 2. Grey photographs have no hue, and the page leaves them out. What would $R$ of the hue be if they were kept in?
# 3. A network could be invariant to mirrors by averaging its features over a crop and its mirror image. What would the odd part of the layout do, and what would `texture` do?
#
# ```{admonition} Solutions
# :class: dropdown
#
# 1. It is sure of what it draws, so that the draws differ little: $R$ rises. What it is sure of is a training crop, not this one: $A$ falls, below 0 if need be.
# 2. The direction of a mean colour difference that is nearly zero is noise. It varies within a representation as much as between them, and pulls $R$ down, whatever the network knows of colours.
# 3. $R$ of the odd part would go to 0, for its two signs are one representation. Of the texture's four directions, two change places under a mirror (rising and falling), so that their difference would go, and all else stay.
# ```

# %%
if page.record and photo_run is not None:  # the report run leaves its autoencoder to the quick page
    page.keep_weights(
        "experts_photos",
        autoencoder,
        {
            "kind": "autoencoder",
            "command": "papermill notebooks/invariances_photos.ipynb out.ipynb -f notebooks/params/invariances_photos.report.yaml",
            "licence": "CC BY-SA 4.0",
            "steps": photo_run.result["steps"],
            "model": autoencoder.config,
            "data": f"photos, {image_size} px with factors, {parts['train'].hash}",
            "commit": photo_run.result["commit"],
        },
        scores={
            "test PSNR (dB), unseen parts of the photographs": quality["autoencoder", "test"][0],
            "the same on training parts": quality["autoencoder", "train"][0],
            "the same of 256 principal components, test": quality["principal components", "test"][0],
        },
        limits="Crops of 13 photographs and textures at 64 px; fine texture is smoothed. No use beyond this book is intended.",
    )

# %%
page.finish(runtime)
