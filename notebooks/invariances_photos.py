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
# {cite}`tan2019efficientnet`, taught on ImageNet by others and left as it is. Does it notice the colour of the light? Does it notice whether a picture is
# mirrored? Such networks are said to go by texture and to care little for shape {cite}`geirhos2019imagenet`;
# Rombach, Esser and Ommer {cite}`rombach2020invariances` show it by drawing the pictures that a layer cannot tell apart. On this page we draw them too. {doc}`experts_photos` makes
# the photographs and the autoencoder, and {doc}`invariances_photos_measured` measures what is seen here.
# With their photographs and networks on your disk, the pages ask the same of those.
#
# **What the paper claims**
#
# | | claim | where it is tested, for one network and one seed |
# |---|---|---|
# | Q1 | Deeper layers ignore more, in a network that has learned | {doc}`invariances_photos_measured`, beside a network that has not |
# | Q2 | Pictures with the same representation are seen as the same | there, by encoding them again |
# | Q3 | A layer near the output of an ImageNet network keeps the texture better than the layout | there, over photographs or classes |
# | Q4 | An attack that no eye sees becomes a large change in the last layers | there, against noise of the same size |
#
# | scale | command | what it needs |
# |---|---|---|
# | quick | `papermill notebooks/invariances_photos.ipynb out.ipynb` | 3 minutes on 2 CPU cores |
# | report | `papermill notebooks/invariances_photos.ipynb out.ipynb -f notebooks/params/invariances_photos.report.yaml` | about an hour of one CPU core, minutes on a GPU |
# | paper | `papermill notebooks/invariances_photos.ipynb out.ipynb -f notebooks/params/invariances_photos.imagenet.yaml -p data_root DIR -p backbone_file FILE` | a GPU, ImageNet in DIR, torchvision's AlexNet in FILE; with `invariances_photos.animal_faces.yaml` AnimalFaces and a ResNet-101 of its animals |
# | yours | `papermill notebooks/invariances_photos.ipynb out.ipynb -p data image_folder -p data_root DIR` | photographs in a subfolder for each class, the short side of at least 96 px |
#
# Reading time: 8 minutes.

# %%
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cvlib.data.base import derived_generator
from cvlib.data.fresh import Fresh
from cvlib.data.outputs import Outputs
from cvlib.data.photo_factors import FactorPhotos
from cvlib.errors import BookError
from cvlib.nn import ConditionalFlow
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
from cvlib.nn.experts import freeze, measure_norms
from cvlib.nn.vae import VectorAutoencoder
from cvlib.notebooks import experts
from cvlib.notebooks import invariances as story
from cvlib.notebooks.experts_photos import Setting, crops, open_autoencoder, open_parts, setting_of
from cvlib.pages import begin
from cvlib.show import explorer, figure, picture, say, show, table
from cvlib.train import RunResult, Runtime, load_weights, seed_everything

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


# %%
page = begin("invariances_photos", globals())
check_network(backbone, backbone_file, n_classes, [*layers, *control], not page.smoke or bool(backbone_file))
setting = setting_of(globals(), page.smoke)
runtime = Runtime(device=device, precision=precision)
seed_everything(seed)
print(runtime.describe())

# %% [markdown]
# ## The network
#
# Let $z = \Phi(x)$ be what a layer makes of a crop $x$. The layers go from maps of places to the probabilities. A crop is enlarged first; that is part of $\Phi$, so a gradient at the crop passes through it. As control there is
# the same network with random weights, whose normalisation layers use the statistics of training crops.


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


def open_networks(setting: Setting, parts: dict[str, FactorPhotos], runtime: Runtime) -> tuple[Any, Any]:
    """Return the network that others taught, and one that learned nothing, both frozen.

    At smoke scale without a file of weights both are the second.
    """
    seed_everything(setting.seed)
    shape = (setting.backbone, setting.network_size, setting.n_classes)
    some = crops(parts["train"], 32 if setting.smoke else 256, "norms")
    random_net = runtime.prepare(untrained(build_network(*shape), some))
    if setting.smoke and not setting.backbone_file:
        return random_net, random_net
    return runtime.prepare(taught(build_network(*shape), setting.backbone_file)), random_net


# %% [markdown]
# The paper's two networks are lists of layers, which it cuts at places with the names below. What is asked of a layer is asked often, so the representations of all crops are computed once and
# kept on disk.


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


def look_into(
    net: Any,
    layers: list[str],
    autoencoder: VectorAutoencoder,
    parts: dict[str, FactorPhotos],
    setting: Setting,
    runtime: Runtime,
) -> story.Study:
    """Return the study of a network, without a judge.

    All that is asked is cached; with ``n_views`` 0 nothing is.
    """
    columns = list(dict.fromkeys(map(story.column_of, layers)))
    read = reader(setting.backbone, setting.n_classes)

    def describe(images: Tensor) -> dict[str, Tensor]:
        posterior, kept = autoencoder.encode(images), read(net, images)
        moments = torch.cat([posterior.mean, posterior.log_variance], 1)
        return {"moments": moments} | {name: kept[name] for name in columns}

    nets = {f"network at {net.side} px": net, "autoencoder": autoencoder}
    common = (["moments", *columns], describe, nets)
    n_views = setting.n_views
    counts = {"train": n_views, "validation": 1, "test": 1}
    first = {
        "train": 0,
        "validation": n_views,
        "test": n_views + 1,
    }  # or all splits would have the same factors
    known = {
        split: Outputs(part, *common, counts[split], runtime.device, first_view=first[split])
        if n_views
        else Fresh(part, *common, runtime.device)
        for split, part in parts.items()
    }
    few = None if n_views else 1024  # rows for scales and guesses, where each has to be computed
    return story.Study(net, autoencoder, None, known, runtime, read, at_most=few)


# %%
parts = open_parts(setting)
autoencoder, _ = open_autoencoder(setting, parts, page.weights("experts_photos"), runtime)
network, random_net = open_networks(setting, parts, runtime)
chosen, controls = ([name for name in LAYERS[backbone] if name in some] for some in (layers, control))
study = look_into(network, [*chosen, "logits"], autoencoder, parts, setting, runtime)
sample = torch.linspace(0, len(parts["test"]) - 1, 8).round().long()
shown = study.known["test"].pictures(sample)
answers = study.z("test", "softmax", sample)
table(
    [[name, " × ".join(map(str, study.z("test", name, sample[:1]).shape[1:]))] for name in chosen],
    header=["layer", "shape of z"],
    caption=f"{backbone}, which tells apart {n_classes:,} classes and sees a crop of {image_size} px at {setting.network_size} px.",
)

# %%
names = next(iter(parts["train"].label_names.values()))
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
# The flow $v = t(\bar z\,|\,z)$ and its likelihood are those of {doc}`invariances`: $v$ is Gaussian and holds whatever $\Phi$ dropped. Where photographs are few, a flow could learn them by heart.
# So the validation split chooses the moment to stop, and the test split takes no part in any choice. The network $H$ that embeds $z$ is that of {doc}`invariances`, as wide as the latent; for the paper's networks it is the paper's.


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


def learn(study: story.Study, name: str, setting: Setting) -> tuple[Any, RunResult]:
    """Return the flow of a layer as it was when validation was best, and its run; a finished run is recognised."""
    recipe = story.Recipe(
        setting.steps,
        setting.batch_size,
        setting.n_blocks,
        setting.width,
        setting.depth,
        setting.learning_rate,
    )
    learning = replace(study, known={**study.known, "test": study.known["validation"]})
    options: dict[str, Any] = {"best": "nll", "eval_every": max(1, setting.steps // 60)}
    if setting.backbone in CUTS:
        options["build"] = with_paper_h(CUTS[setting.backbone](setting.n_classes)[name])
    else:
        options["build"] = partial(
            story.build_flow, dim_h=setting.dim
        )  # h is as wide as the latent, as in the paper
    layer, run = story.train_flow(learning, name, recipe, setting.seed, setting.run_dir, **options)
    load_weights(run.folder, {"flow": layer.flow}, which="best")
    return replace(layer, study=study), run


@dataclass(frozen=True)
class Flows:
    """A flow for each layer of the network and of the one that learned nothing, and their runs, by name."""

    layers: dict[str, Any]
    runs: dict[str, RunResult]


def learn_all(
    study: story.Study,
    chosen: list[str],
    controls: list[str],
    random_net: Any,
    parts: dict[str, FactorPhotos],
    setting: Setting,
) -> Flows:
    """Return the flows of the layers ``chosen`` and of the ``controls``, which are called "<layer>, untrained"."""
    found = {name: learn(study, name, setting) for name in chosen}
    if controls:
        nothing = look_into(random_net, controls, study.autoencoder, parts, setting, study.runtime)
        found |= {f"{name}, untrained": learn(nothing, name, setting) for name in controls}
    return Flows(
        {name: layer for name, (layer, _) in found.items()}, {name: run for name, (_, run) in found.items()}
    )


learned = learn_all(study, chosen, controls, random_net, parts, setting)
flows, runs = learned.layers, learned.runs

# %% tags=["hide-input"]
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
    caption="What is left to say about a crop once z is known: on the validation split (dots, latents at their means) and on what is learned from (dotted, latents drawn, which is harder). "
    "Where the dots rise again, the flow learns by heart.",
)
table(
    [
        [name, run.result["best"]["step"], run.result["best"]["value"], flows[name].nll()]
        for name, run in runs.items()
    ],
    header=["z of layer", "best step", "validation NLL", "test NLL"],
    caption=f"The weights that are kept are those of the best step of {setting.steps:,}.",
)

# %% tags=["hide-input"]
lowest, highest = (f(chosen, key=lambda name: runs[name].result["best"]["value"]) for f in (min, max))
early = [name for name, run in runs.items() if run.result["best"]["step"] < setting.steps / 2]
say(
    f"The less a line leaves to say, the more of its layer's knowledge the flow has learned to use: **{lowest}** leaves least, **{highest}** most. "
    + (
        f"Validation was best before half of the steps for {', '.join(early)}: from there on the flow learned what holds for its training crops only, and the rest of the run is not used."
        if early
        else "No flow was best before half of its steps: none had begun to learn its crops by heart."
    )
)

# %% [markdown]
# ## The same to a layer
#
# Keep $z$ of a crop, draw $v \sim \mathcal N(0, I)$, paint $D(t^{-1}(v\,|\,z))$. **Predict**: which goes first, the colour or the texture?


# %%
def drawn_for(layer: Any, name: str, rows: Tensor, n: int, word: str, seed: int) -> Tensor:
    """Return n latents (B, n, dim) of a layer for each test row (B,), always the same for a word."""
    return layer.resample(rows, n, derived_generator(seed, word, name))


N_DRAWN = 5
strips = {
    name: study.decode(drawn_for(layer, name, sample, N_DRAWN, "strips", seed).flatten(0, 1)).unflatten(
        0, (-1, N_DRAWN)
    )
    for name, layer in flows.items()
}
picture(
    *(torch.cat([shown[k : k + 1], strips[name][k]]) for k in (1, 3) for name in flows),
    columns=1 + N_DRAWN,
    rows=[f"crop {k + 1}, {name}" for k in (1, 3) for name in flows],
    titles=["crop", *(f"v {k + 1}" for k in range(N_DRAWN))],
    quality=85,
    alt="Two crops, and beside each five pictures with the same representation, a row for each layer.",
    caption="First the crop; then pictures drawn to have its z, with five draws of v. How near they come is measured on the next page. Not selected.",
)

# %%
apart = {
    name: float((strip - strip.mean(1, keepdim=True)).square().mean().sqrt())
    for name, strip in strips.items()
}
steady, loose = (f(chosen, key=apart.get) for f in (min, max))
say(
    f"Draws of one row differ least at **{steady}** ({apart[steady]:.2f} a pixel, in [-1, 1]) and most at **{loose}** ({apart[loose]:.2f}): what differs there is what the layer "
    f"does not say, or what its flow has not learned to use."
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
    caption="Left the crop, then five pictures drawn to have its representation.",
    scale=1,
    quality=80,
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
        alt="A crop and seven pictures drawn to have its representation.",
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
# | autoencoder | ResNet-101 and BigGAN, 128 px; for texture no encoder at all, BigGAN's own latents | 2.6 M parameters at 64 px, starting from principal components | the same small networks at 128 px, 128 numbers |
# | flow | 20 blocks, width 1,024, latents of 128, batches of 16 fresh crops | 12 blocks, width 128, latents of 256, starting from a linear guess; batches of 128 of 16 cached views of each crop | the paper's |
# | learning rate of a flow | constant | up, then down to nothing; gradients of at most 10 | the paper's at its highest, up and down the same way |
# | when a flow stops | at a fixed step | where validation is best | where validation is best |
#
# Nobody has run the parameter files on the real data yet.

# %% [markdown]
# {doc}`invariances_photos_measured` puts numbers to these pictures.

# %%
page.finish(runtime)
