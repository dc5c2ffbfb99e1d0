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
# # Taming Transformers: a picture is a sentence
#
# A transformer that models an image pixel by pixel pays for every pair of pixels: 64 × 64 is already a sentence
# of 4,096 words, and attention costs the square of that. Esser, Rombach and Ommer {cite}`esser2021taming` make the
# sentence short instead. A convolutional autoencoder, the **VQGAN**, learns a vocabulary of visual words and spells an image with a small grid of them; a
# perceptual and an adversarial loss see to it that each word holds as much as the eye asks for. The **transformer** then writes such sentences.
#
# On this page we build both stages from their equations, train them on emoji as drawn by nine different hands, and
# let them draw.
#
# **What the paper claims**
#
# | | claim | where it is tested |
# |---|---|---|
# | C1 | At equal code length, perceptual and adversarial training lowers the perceptual error, while PSNR falls | {doc}`taming_claims` |
# | C2 | The adaptive weight λ balances the two gradients at the last layer | below, by autograd |
# | C3 | Conditioning by prepending tokens works: it lowers the NLL | below, paired over test drawings |
# | C4 | The transformer learns the composition of the codes, far better than their frequencies | below, against the unigram entropy |
#
# | scale | command | what it needs |
# |---|---|---|
# | quick | `papermill notebooks/taming.ipynb out.ipynb` | under 3 minutes on 2 CPU cores |
# | report | `papermill notebooks/taming.ipynb out.ipynb -f notebooks/params/taming.report.yaml` | about an hour and a quarter of one CPU core, minutes on a GPU |
# | yours | `papermill notebooks/taming.ipynb out.ipynb -p steps 100000 -p data image_folder -p data_root DIR` | a GPU |
#
# Reading time: 25 minutes.

# %%
import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvlib.claims import paired_bootstrap
from cvlib.data import Dataset, Rows, load
from cvlib.errors import BookError
from cvlib.metrics import psnr
from cvlib.nn import (
    GPT,
    CodeUsage,
    GroupNorm,
    PatchDiscriminator,
    VectorQuantizer,
    VQModel,
    decay_groups,
    hinge_d_loss,
    hinge_g_loss,
    vgg_loss,
)
from cvlib.nn.precision import exact_products
from cvlib.pages import begin
from cvlib.show import explorer, figure, grid, look, picture, say, show, table
from cvlib.train import (
    Runtime,
    fit,
    load_weights,
    load_weights_file,
    run_folder,
    seed_everything,
    warmup_linear,
    weights_metadata,
)

# %% tags=["parameters"]
seed = 0
steps = 400  # of each stage. Paper: 2.4 M for class-conditional ImageNet, batch 128 (Sec. A)
batch_size = 16  # paper: 2 to 12 per GPU
image_size = 32  # paper: 256
downsampling = 4  # f. Paper: 16, so that 256 px become 16 x 16 tokens
n_codes = 256  # |Z|. Paper: 1,024 to 16,384
dim_z = 16  # n_z. Paper: 256
channels = 16  # of the first convolution. Paper: 128
learning_rate = 2e-3  # paper: 4.5e-6 x batch size, constant
disc_start = 0.7  # part of stage 1 without discriminator. Paper: at least one epoch
disc_weight = 0.8  # paper: 0.8
n_layers = 4  # of the transformer. Paper: 12 to 48
n_heads = 4  # paper: 16
dim = 128  # paper: 768 to 1,664
token_batch = 32
token_learning_rate = 2e-3  # paper: 4.5e-6 x batch size, constant
dropout = 0.0  # paper: 0, or 0.1 on the small ADE20K
data = "emoji"  # or "image_folder", "cifar10", "photos"
data_root = ""  # where your own images lie
device = "auto"
precision = "auto"
run_dir = "runs/taming"
pretrained = True  # draw with the committed weights too; training below always starts from nothing
record = False  # True writes this run's weights to book/results/weights

# %%
page = begin("taming", globals())
if page.smoke:  # prove in seconds that every cell runs; nothing is learned
    steps, batch_size, channels, n_layers, dim, token_batch = min(steps, 6), 4, 32, 1, 32, 8
runtime = Runtime(device=device, precision=precision)
seed_everything(seed)
share = {"rank": runtime.rank, "world": runtime.world}  # of every batch, where several processes train
grid_size = image_size // downsampling
n_tokens = grid_size**2
warmup = max(1, steps // 20)
n_checks = 8 if steps >= 1000 else 4  # looks at the validation split in a stage
is_trained = steps >= 400
is_held_to = (
    is_trained and data == "emoji"
)  # checks of quality: from the quick scale on, for the drawings they were set for
if page.record and data != "emoji":
    raise BookError(f"record with data {data!r}", "emoji, whose weights the book keeps", "leave record out")
print(runtime.describe())
print(f"{image_size} px as {grid_size} x {grid_size} tokens out of {n_codes}; {steps} steps for each stage")

# %% [markdown]
# ## The drawings
#
# Nine open emoji sets draw the same concepts. This book calls a set a **hand**; where a page counts sets that copy each other as one hand, it says so. Every
# concept belongs to a Unicode group, such as *Food & Drink*, and to exactly one split, so that nothing below is judged on a drawing whose twin was seen in training.

# %%
train = load(data, "train", image_size, root=data_root)
validation = load(data, "validation", image_size, root=data_root)
test = load(data, "test", image_size, root=data_root)
CONDITIONS = ("group", "set", "class")  # labels a sentence may begin with, where the data has them
conditions = [name for name in CONDITIONS if name in train.labels]
for name, part in itertools.product(conditions, (validation, test)):
    if part.label_names[name] != train.label_names[name]:
        odd = sorted(set(part.label_names[name]) ^ set(train.label_names[name]))
        raise BookError(
            f"{name} {odd[0]!r} is not in every split",
            "the same in all",
            f"add images of it, or take it out of {part.split}",
        )
rng = torch.Generator().manual_seed(seed)
judged = torch.randperm(len(test), generator=rng)[: 64 if page.smoke else 2048]  # the test images we score
test_images = test.images(judged)
shown = test_images[:16]  # a random choice, the same in every figure
print(
    f"{data}: {len(train):,} train, {len(validation):,} validation, {len(test):,} test; conditions: {conditions}"
)
picture(
    shown,
    columns=8,
    alt=f"Sixteen {data} images of the test split at {image_size} pixels.",
    caption=f"Sixteen test images, chosen at random, {image_size} × {image_size} px.",
)

# %% [markdown]
# ## Where we are going
#
# Before any theory: the sentences below were written by the transformer of this page after the report-scale run.
# They are read from the repository and painted now by the committed first stage.


# %%
def load_vqgan(path: Path, runtime: Runtime) -> VQModel:
    """Return the first stage whose weights and configuration lie in a .safetensors file."""
    model = runtime.prepare(VQModel(**weights_metadata(path)["model"]))
    load_weights_file(path, model)
    return model.eval()


committed = {part: page.weights(f"taming_{part}") for part in ("vqgan", "gpt")}
has_weights = pretrained and data == "emoji" and all(path.is_file() for path in committed.values())
if has_weights:
    known_vqgan = load_vqgan(committed["vqgan"], runtime)
    written = torch.tensor(weights_metadata(committed["gpt"])["samples"])
    with torch.no_grad():
        painted = known_vqgan.decode_indices(written.to(runtime.device)).float().cpu().clamp(-1, 1)
    picture(
        painted,
        columns=8,
        alt="Drawings sampled without condition from the committed model, eight to a row.",
        caption=f"{len(painted)} samples without condition from the committed weights. Not selected.",
    )

# %% [markdown]
# ## Words: vector quantisation
#
# The encoder turns an image into a grid of $h\times w$ vectors with $n_z$ numbers each, $\hat z = E(x) \in \mathbb{R}^{h\times w\times n_z}$. Each is
# replaced by its nearest neighbour in a learned codebook $\mathcal{Z} = \{z_k\}_{k=1}^K$ (Eq. 2),
#
# $$ (z_{\mathbf q})_{ij} = \mathbf q(\hat z_{ij}) := \arg\min_{z_k\in\mathcal Z} \lVert \hat z_{ij} - z_k\rVert . $$
#
# What does the rounding cost? Take the simplest case, numbers on a line.
#
# **Predict**: with $K$ codes evenly on $[0, 1]$, how does the mean squared error fall when $K$ doubles?


# %%
def line_quantizer(k: int) -> VectorQuantizer:
    """Return a quantizer with ``k`` codes at the centres of ``k`` equal cells of [0, 1]."""
    quantizer = VectorQuantizer(n_codes=k, dim_z=1)
    with torch.no_grad():
        quantizer.codebook.copy_(((torch.arange(k) + 0.5) / k)[:, None])
    return quantizer


points = torch.rand(
    1, 1, 64, 64, generator=torch.Generator().manual_seed(0)
)  # (B, D, H, W) numbers in [0, 1]
errors = {k: F.mse_loss(line_quantizer(k)(points).z_q, points).item() for k in (2, 4, 8, 16, 32)}

# %%
ratios = [errors[k] / errors[2 * k] for k in (2, 4, 8, 16)]
assert all(3.2 < r < 4.8 for r in ratios), ratios  # a cell of width 1/K has error 1 / (12 K^2): ratio 4

# %% tags=["hide-input"]
fig, ax = figure(width="half")
ax.loglog(list(errors), list(errors.values()), **look("ours", marker=True), label="measured")
ax.loglog(list(errors), [1 / 12 / k**2 for k in errors], **look("paper"), label=r"$1 / (12 K^2)$")
ax.set(xlabel="number of codes K", ylabel="mean squared error")
ax.set_xscale("log", base=2)
ax.set_xticks(list(errors), [str(k) for k in errors])
ax.legend()
show(
    fig,
    alt="On logarithmic axes the measured error lies on the line 1 / (12 K squared).",
    caption="Error of rounding numbers in [0, 1] to K codes. Each doubling of K divides it by four.",
)

# %% [markdown]
# Four times less error for one more bit: that is the rate of a scalar quantizer, six decibels a bit. A vector of
# dimension $n_z$ would need $n_z$ more bits for the same gain, so a codebook cannot win by fineness. It has to win
# by placing its few codes where the data are, and the encoder has to move the data to the codes.
#
# `argmin` has no gradient. The decoder's gradient is therefore handed to the encoder unchanged (*straight-through*),
# and two terms pull codes and vectors together (Eq. 4, $\operatorname{sg}$ stops the gradient):
#
# $$ \mathcal L_\text{VQ} = \mathcal L_\text{rec} + \lVert \operatorname{sg}[E(x)] - z_{\mathbf q}\rVert_2^2
#    + \beta\, \lVert \operatorname{sg}[z_{\mathbf q}] - E(x)\rVert_2^2 . $$
#
# This is its forward pass. `_scaled` brings features and codes to length 1 where the page asks for that, as it does for its own codebook below (a departure); in
# the example above it did nothing. The squared norms are means over all entries, and $\mathcal L_\text{rec}$ is added later.

# %%
print(inspect.getsource(VectorQuantizer.forward))

# %%
z = torch.randn(2, 8, 4, 4, requires_grad=True)
quantized = VectorQuantizer(n_codes=16, dim_z=8)(z)
upstream = torch.randn_like(z)
(received,) = torch.autograd.grad(quantized.z_q, z, upstream)
torch.testing.assert_close(received, upstream)  # what the decoder sends, the encoder receives
assert quantized.indices.shape == (2, 4, 4)

# %% [markdown]
# ```{note}
# The authors' code put β on the *codebook* term, and every published model was trained that way; the option
# `legacy=True` keeps it. Adam divides a parameter's gradient by its own scale and the codebook receives nothing
# else, so its weight hardly matters: what really changes is the commitment, 1 instead of 0.25.
# ```
#
# ## What should a reconstruction keep?
#
# A word that stands for a patch of $f\times f$ pixels cannot keep every pixel. Which error should it prefer? Below,
# one drawing is spoiled in three ways until the squared error is exactly the same.


# %%
def spoil_equally(x: Tensor, mse: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Return three versions of ``x`` (B, C, H, W), each at mean squared error ``mse`` from it.

    Blur and shift are mixed with the original by the fraction that meets the error exactly.
    """
    blurred = F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    shifted = torch.roll(x, (1, 1), (2, 3))
    noisy = x + torch.randn(x.shape, generator=generator)
    spoiled = {}
    for name, other in {"blur": blurred, "shift by a pixel": shifted, "noise": noisy}.items():
        distance = (other - x).square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp_min(1e-6)
        spoiled[name] = x + (other - x) * (math.sqrt(mse) / distance)
    return spoiled


perceptual = runtime.prepare(vgg_loss(pretrained=not page.smoke))
originals = shown[:6]
spoiled = spoil_equally(originals, 0.03, rng)
distances = {
    name: perceptual(x.to(runtime.device), originals.to(runtime.device)).mean().item()
    for name, x in spoiled.items()
}
for x in spoiled.values():
    torch.testing.assert_close(F.mse_loss(x, originals), torch.tensor(0.03), rtol=1e-4, atol=0)

# %%
picture(
    originals,
    *spoiled.values(),
    columns=6,
    rows=["original", *(f"{name}: {d:.2f}" for name, d in distances.items())],
    alt="Six drawings; below, each blurred, shifted and with noise, at the same squared error.",
    caption="The same squared error three times (0.03; PSNR 21 dB). The number is the perceptual distance of VGG-19 (8-bit).",
)

# %%
nearest = min(distances, key=distances.get)
say(
    f"For the squared error the three rows are one and the same. A network trained to name things calls the "
    f"**{nearest}** nearest ({distances[nearest]:.2f}) and the **{max(distances, key=distances.get)}** farthest "
    f"({max(distances.values()):.2f}). An autoencoder that answers to the squared error alone chooses blur, "
    f"because the mean of all plausible patches is the safest guess."
)

# %% [markdown]
# ## The autoencoder
#
# The encoder and the decoder are the two halves of a diffusion U-Net without the skip connections: residual blocks,
# a stride-2 convolution per level, attention at the coarsest one. At the paper's size they have 29,298,176 and
# 42,449,795 parameters, which the tests of `cvlib.nn` count; here they are small.


# %%
def channel_multipliers(downsampling: int) -> tuple[int, ...]:
    """Return one width multiplier a level for ``downsampling`` = 2 ** (levels - 1), doubling twice at most."""
    levels = int(math.log2(downsampling)) + 1
    if 2 ** (levels - 1) != downsampling:
        raise ValueError(f"downsampling is {downsampling}; wanted a power of two")
    return tuple(min(2**level, 4) for level in range(levels))


def build_vqgan(
    image_size: int, downsampling: int, channels: int, n_codes: int, dim_z: int, group_width: int = 4
) -> VQModel:
    """Return the first stage: codes on the unit sphere, attention at the coarsest level only.

    ``group_width`` is the least number of channels that are normalised together: 4, as in the paper at 128
    channels; 1 gives the authors' 32 groups, which in a narrow network are single channels.
    """
    return VQModel(
        ch=channels,
        ch_mult=channel_multipliers(downsampling),
        n_res_blocks=1,  # paper: 2
        attn_resolutions=(image_size // downsampling,),
        resolution=image_size,
        z_channels=4 * channels,
        n_codes=n_codes,
        dim_z=dim_z,
        group_width=group_width,
        cosine=True,  # departure: the paper's Euclidean codes die faster in a short run
    )


def build_critic(image_size: int, channels: int) -> PatchDiscriminator:
    """Return the discriminator: a level less for small images, and no batch norm (departure).

    Batch norm would take from images and reconstructions each their own mean and contrast, which at this size is
    most of what tells them apart.
    """
    return PatchDiscriminator(ch=2 * channels, n_layers=2 if image_size < 64 else 3, norm="none")


seed_everything(seed)
vqgan = runtime.prepare(build_vqgan(image_size, downsampling, channels, n_codes, dim_z))
discriminator = runtime.prepare(build_critic(image_size, channels))
bits = n_tokens * math.log2(n_codes)
table(
    [
        ["encoder", f"{sum(p.numel() for p in vqgan.encoder.parameters()):,}"],
        ["decoder", f"{sum(p.numel() for p in vqgan.decoder.parameters()):,}"],
        ["codebook", f"{n_codes} × {dim_z}"],
        ["discriminator", f"{sum(p.numel() for p in discriminator.parameters()):,}"],
        [
            "an image in bits",
            f"{bits:,.0f} instead of {24 * image_size**2:,} (1 : {24 * image_size**2 / bits:.0f})",
        ],
    ],
    header=["part", "size"],
)

# %% [markdown]
# ### What a normalisation forgets
#
# Every block of the network normalises its input in groups of channels: it subtracts a group's mean over the image and divides by its standard deviation. The
# authors use 32 groups, and at their 128 channels a group has four. In a first level of 16 or 32 channels, as ours, the same rule makes groups of **one**. A channel
# by itself loses its mean, and with it how orange, say, the image is as a whole.
#
# **Predict**: flat colours go through one layer and one normalisation. How well can a linear map recover them?


# %%
def recovered_colours(group_width: int, colours: Tensor, generator: torch.Generator) -> Tensor:
    """Return colours (N, 3) in [-1, 1] as the best linear map reads them from normalised features.

    Flat images of ``colours`` with a little noise pass a random layer of 16 channels and :class:`GroupNorm`; the map
    is fitted by least squares on 512 other colours.
    """
    known = torch.rand(512, 3, generator=generator) * 2 - 1
    weight = torch.randn(16, 3, 1, 1, generator=generator)
    flat = torch.cat([known, colours])[..., None, None].expand(-1, -1, 8, 8)
    features = F.conv2d(flat + 0.1 * torch.randn(flat.shape, generator=generator), weight)
    read = F.pad(GroupNorm(16, group_width)(features).mean((2, 3)), (0, 1), value=1.0).detach()
    return read[512:] @ torch.linalg.lstsq(read[:512], known, rcond=1e-3, driver="gelsd").solution


palette = torch.rand(12, 3, generator=torch.Generator().manual_seed(3)) * 2 - 1
read_back = {width: recovered_colours(width, palette, torch.Generator().manual_seed(0)) for width in (4, 1)}
colour_error = {width: (found - palette).abs().mean().item() for width, found in read_back.items()}

# %%
mean_colour_error = palette.abs().mean().item()  # of the answer "grey", the mean of all colours
assert colour_error[4] < 0.5 * mean_colour_error < 0.6 * colour_error[1], (colour_error, mean_colour_error)
picture(
    *(c[..., None, None].expand(-1, -1, 16, 16) for c in (palette, read_back[4], read_back[1])),
    columns=12,
    rows=["colour", "groups of 4", "groups of 1"],
    alt="Twelve colours; groups of four channels keep most of each, groups of one leave grey.",
    caption=f"Flat colours read back after one normalisation. Mean error {colour_error[4]:.2f} with groups of four channels, "
    f"{colour_error[1]:.2f} with groups of one; grey for everything errs by {mean_colour_error:.2f}.",
)

# %% [markdown]
# With groups of one, only grey is left of a flat colour. A deep network finds detours, through borders and edges, but it pays for them: ablation A2 of
# {doc}`taming_claims` measures how much. So here a group has at least four channels.
#
# ## A critic, and how loud it may speak
#
# A patch discriminator $D$ {cite}`isola2017pix2pix` learns to tell patches of images from patches of reconstructions, by the hinge loss; the autoencoder is
# rewarded for patches that pass:
#
# $$ \mathcal L_D = \tfrac12\,\mathbb E\big[\max(0, 1 - D(x)) + \max(0, 1 + D(\hat x))\big], \qquad \mathcal L_\text{GAN} = -\mathbb E\,D(\hat x) . $$
#
# With $\mathcal L_\text{rec} = |x - \hat x| + d_\text{VGG}(x, \hat x)$, the autoencoder's loss is $\mathcal L_\text{VQ} + \lambda\,\mathcal L_\text{GAN}$. How
# large should λ be? The scales of the two losses have nothing in common and drift in training. The paper measures both where they meet, at the weight of the
# decoder's last layer $G_L$ (Eq. 7):
#
# $$ \lambda = \frac{\lVert\nabla_{G_L}\mathcal L_\text{rec}\rVert}{\lVert\nabla_{G_L}\mathcal L_\text{GAN}\rVert + \delta} . $$
#
# Written down naively, this needs the gradient of the perceptual net and of the discriminator twice, once for λ and
# once for the update. But everything the generator learns reaches it through the image $\hat x$. So we take
# $g_\text{rec} = \partial\mathcal L_\text{rec}/\partial\hat x$ and $g_\text{GAN} = \partial\mathcal L_\text{GAN}/\partial\hat x$
# once, form the two last-layer gradients from them (one small convolution each), and send $g_\text{rec} + \lambda
# g_\text{GAN}$ down the decoder once.


# %%
def adaptive_weight(
    x_rec: Tensor,
    g_rec: Tensor,
    g_gan: Tensor,
    last_layer: Tensor,
    delta: float = 1e-4,
    average: Callable[[Tensor], Tensor] = torch.detach,
) -> Tensor:
    """Return λ of Eq. 7 from the losses' gradients at the image; ``average`` joins several processes' gradients.

    Source: Esser et al. 2021, Eq. 7; δ = 1e-6 in the paper, 1e-4 and the clamp to [0, 1e4] in the authors' code.

    Shapes: x_rec, g_rec, g_gan (B, 3, H, W), with x_rec attached to the graph; last_layer any; a scalar comes back.
    """
    rec, gan = (
        average(torch.autograd.grad(x_rec, last_layer, g.to(x_rec.dtype), retain_graph=True)[0].float())
        for g in (g_rec, g_gan)
    )
    return (rec.norm() / (gan.norm() + delta)).clamp(0, 1e4)


def reconstruction_loss(
    x: Tensor, x_rec: Tensor, perceptual: nn.Module | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return L1 plus the perceptual distance, averaged over the batch, and both parts (Esser et al. 2021, Sec. 3.1)."""
    l1 = (x - x_rec).abs().mean()
    if perceptual is None:
        return l1, {"l1": l1}
    with torch.no_grad():
        known = perceptual.features(x)  # the image itself needs no gradient
    distance = perceptual(x_rec, known).mean()
    return l1 + distance, {"l1": l1, "perceptual": distance}


# %% [markdown]
# Does the shortcut give the same λ and the same update? The naive form is a few lines, so we compare.

# %%
probe = load(data, "validation", image_size, root=data_root).images(torch.arange(4))
small = build_vqgan(image_size, downsampling, 32, 16, 4)
critic = PatchDiscriminator(ch=16, n_layers=2).eval()

x_rec, quantized = small(probe)
x_hat = x_rec.detach().requires_grad_()
(g_rec,) = torch.autograd.grad((probe - x_hat).abs().mean(), x_hat)
(g_gan,) = torch.autograd.grad(hinge_g_loss(critic(x_hat)), x_hat)
lam = adaptive_weight(x_rec, g_rec, g_gan, small.last_layer)
torch.autograd.backward([x_rec, quantized.loss], [g_rec + lam * g_gan, None])
ours = [p.grad.clone() for p in small.parameters()]

small.zero_grad()
x_rec, quantized = small(probe)  # the naive way: the losses on one graph, differentiated twice
rec, gan = (probe - x_rec).abs().mean(), hinge_g_loss(critic(x_rec))
norms = [torch.autograd.grad(loss, small.last_layer, retain_graph=True)[0].norm() for loss in (rec, gan)]
naive_lam = norms[0] / (norms[1] + 1e-4)
(rec + naive_lam.detach() * gan + quantized.loss).backward()

torch.testing.assert_close(lam, naive_lam, rtol=1e-4, atol=1e-6)
for ours_p, p in zip(ours, small.parameters(), strict=True):
    torch.testing.assert_close(ours_p, p.grad, rtol=1e-3, atol=1e-6)
print(f"λ = {lam:.4f} both ways, and the gradients of all {len(ours)} parameter tensors agree")

# %% [markdown]
# ## Stage 1: learning to spell
#
# One step: one forward pass; then the critic's update on the image and its reconstruction; then the autoencoder's by
# the rule above. Before `disc_start` there is no discriminator at all, as the paper advises: first learn to
# reconstruct, then to please.
#
# We add two things. The first concerns the critic. Eq. 7 makes its gradient as long as the reconstruction's, however little the critic knows. A critic that
# cannot tell images from reconstructions has a gradient near zero, and λ turns this noise up until it drowns the rest. Users of the authors' code met it as
# reconstructions that break when the discriminator starts. So here the critic has a **voice**: its margin on the batch, the mean of $D(x) - D(\hat x)$, cut
# to $[0, 1]$. A critic that cannot tell the two apart has no say. The second concerns the codebook: a code that no vector has chosen for `revive_every` steps
# gets no gradient and would stay dead, so it is moved to a vector of the current batch.


# %%
def stage1_step(
    model: VQModel,
    critic: nn.Module | None,
    usage: CodeUsage,
    optimizers: dict[str, torch.optim.Optimizer],
    perceptual: nn.Module | None,
    runtime: Runtime,
    disc_from: int,
    disc_weight: float = 0.8,
    pixel_loss: str = "l1",
    revive_every: int = 20,
):
    """Return ``step(batch, t) -> parts`` that updates the VQGAN and, from step ``disc_from`` on, its critic.

    Source: Esser et al. 2021, Eqs. 4 to 7. ``pixel_loss="l2"``, ``perceptual=None`` and ``critic=None`` give the
    VQ-VAE that the paper compares with. Two departures: the critic's share is ``disc_weight`` times its margin, cut
    to [0, 1]; and codes that no vector chose for ``revive_every`` steps move to a vector of the batch at hand (0
    switches it off).
    """

    def train_critic(x: Tensor, x_rec: Tensor) -> tuple[Tensor, Tensor]:
        """Update the critic; return its loss and its margin on this batch, from before the update."""
        with runtime.autocast():
            real, fake = critic(x).float(), critic(x_rec).float()
        loss = hinge_d_loss(real, fake)
        optimizers["critic"].zero_grad(set_to_none=True)
        loss.backward()
        optimizers["critic"].step()
        return loss.detach(), runtime.average(real.mean() - fake.mean())

    def step(batch: dict[str, Tensor], t: int) -> dict[str, Tensor]:
        x = batch["image"]
        with runtime.autocast():
            x_rec, quantized = model(x)
        x_hat = x_rec.detach().float().requires_grad_()
        with runtime.autocast():
            if pixel_loss == "l2":
                rec = F.mse_loss(x_hat, x)
                parts = {"l2": rec}
            else:
                rec, parts = reconstruction_loss(x, x_hat, perceptual)
        (g,) = torch.autograd.grad(rec, x_hat)
        if critic is not None and t >= disc_from:
            parts["critic"], margin = train_critic(x, x_hat.detach())
            with runtime.autocast():
                (g_gan,) = torch.autograd.grad(hinge_g_loss(critic(x_hat)), x_hat)
            lam = adaptive_weight(x_rec, g, g_gan, model.last_layer, average=runtime.average)
            voice = disc_weight * margin.clamp(0, 1)
            g = g + voice * lam * g_gan
            parts |= {"margin": margin, "lambda": lam, "voice": voice}
        optimizers["vqgan"].zero_grad(set_to_none=True)
        torch.autograd.backward([x_rec, quantized.loss], [g.to(x_rec.dtype), None])
        optimizers["vqgan"].step()
        usage.update(quantized.indices)
        if revive_every and (t + 1) % revive_every == 0:
            usage.gather()
            with torch.no_grad(), runtime.autocast():
                z = runtime.gather(model.features(x))
            chance = torch.Generator().manual_seed(t)
            revived = model.quantizer.revive(z, usage, chance, optimizers["vqgan"])
            parts["revived"] = float(len(revived))
            usage.reset()
        return {name: torch.as_tensor(part).detach() for name, part in parts.items()} | {
            "commit": quantized.loss.detach()
        }

    return step


# %%
@torch.no_grad()
def reconstruct(model: VQModel, images: Tensor, runtime: Runtime, batch: int = 64) -> tuple[Tensor, Tensor]:
    """Return reconstructions (N, 3, H, W) on the CPU, float32 and unclamped, and token grids (N, h, w)."""
    outputs, indices = [], []
    for x in images.split(batch):
        with runtime.autocast():
            x_rec, quantized = model(x.to(runtime.device))
        outputs.append(x_rec.float().cpu())
        indices.append(quantized.indices.cpu())
    return torch.cat(outputs), torch.cat(indices)


def reconstruction_scores(model: VQModel, images: Tensor, runtime: Runtime) -> dict[str, float]:
    """Return L1, PSNR (dB), the part of the codes in use and their perplexity over ``images``."""
    x_rec, indices = reconstruct(model, images, runtime)
    usage = CodeUsage(model.quantizer.n_codes)
    usage.update(indices)
    return {
        "l1": (x_rec - images).abs().mean().item(),
        "psnr": psnr(x_rec.clamp(-1, 1), images).mean().item(),
        "used": usage.fraction_used,
        "perplexity": usage.perplexity,
    }


# %%
stage1_config = {
    "stage": "vqgan",
    "seed": seed,
    "steps": steps,
    "batch_size": batch_size,
    "data": train.hash,
    "model": dict(vqgan.config),
    "learning_rate": learning_rate,
    "disc_start": disc_start,
    "disc_weight": disc_weight,
    "precision": runtime.precision,
}
adam = {"betas": (0.5, 0.9), "weight_decay": 0.0}
optimizers = {
    "vqgan": torch.optim.AdamW(vqgan.parameters(), lr=learning_rate, **adam),
    "critic": torch.optim.AdamW(discriminator.parameters(), lr=learning_rate / 2, **adam),
}
recent = runtime.prepare(CodeUsage(n_codes))  # which codes were chosen lately; part of every checkpoint
check_images = validation.images(torch.arange(0, len(validation), max(1, len(validation) // 256)))
stage1 = fit(
    run_folder(run_dir, "vqgan", stage1_config),
    config=stage1_config,
    modules={"vqgan": vqgan, "critic": discriminator, "recent": recent},
    optimizers=optimizers,
    batches=train.batches(batch_size, seed=seed, device=runtime.device, **share),
    step=stage1_step(
        vqgan, discriminator, recent, optimizers, perceptual, runtime, int(disc_start * steps), disc_weight
    ),
    steps=steps,
    runtime=runtime,
    schedules={"vqgan": warmup_linear(warmup, steps)},  # the critic starts late and needs its full rate
    evaluate=lambda done: reconstruction_scores(vqgan, check_images, runtime),
    eval_every=max(1, steps // n_checks),
)

# %% tags=["hide-input"]
curve = [row for row in stage1.history if "eval/l1" in row]
fig, (left, right) = figure(columns=2, height=2.6)
left.plot([row["step"] for row in curve], [row["eval/l1"] for row in curve], **look("ours", marker=True))
left.axvline(disc_start * steps, **look("control"), label="discriminator starts")
left.set(xlabel="step", ylabel="validation L1", ylim=(0, None))
left.legend()
right.plot(
    [row["step"] for row in curve], [100 * row["eval/used"] for row in curve], **look("ours", marker=True)
)
right.set(xlabel="step", ylabel="codes in use (%)", ylim=(0, 105))
show(
    fig,
    alt=f"Validation L1 falls to {curve[-1]['eval/l1']:.3f}; {curve[-1]['eval/used']:.0%} of the codes are in use at the end.",
    caption="Stage 1 on validation drawings: reconstruction error (pixels in [−1, 1]), and how much of the codebook is in use.",
)

# %% [markdown]
# Does the critic do its work? On the left its margin: above zero it tells images from reconstructions. On the right its
# voice, which is at the same time the length of its gradient at the last layer in units of the reconstruction's: that is
# what λ is for.

# %% tags=["hide-input"]
duel = [row for row in stage1.history if "margin" in row]
if duel:  # none if the critic starts at the end
    fig, (left, right) = figure(columns=2, height=2.6)
    left.plot([row["step"] for row in duel], [row["margin"] for row in duel], **look("ours", marker=True))
    left.axhline(0, **look("control"))
    left.set(xlabel="step", ylabel="margin (logits)")
    right.plot([row["step"] for row in duel], [row["voice"] for row in duel], **look("ours", marker=True))
    right.axhline(disc_weight, **look("paper"), label="most it may have")
    right.set(xlabel="step", ylabel="voice of the critic", ylim=(0, None))
    right.legend()
    show(
        fig,
        alt=f"The critic's margin ends at {duel[-1]['margin']:.2f}, its voice at {duel[-1]['voice']:.2f} of {disc_weight}.",
        caption="The critic from its start on: can it tell images from reconstructions, and how loud does it speak?",
    )

# %%
if duel:
    reading = (
        "it tells images from reconstructions, and its gradient points somewhere"
        if duel[-1]["margin"] > 0.05
        else "it cannot tell them apart, and is not listened to"
    )
    say(
        f"At the end the margin is **{duel[-1]['margin']:.2f}** and the critic's gradient {duel[-1]['voice']:.2f} times as "
        f"long as the reconstruction's: {reading}. λ itself is {duel[-1]['lambda']:.3f}."
    )

# %% [markdown]
# ### What it can spell
#
# The drawings below belong to concepts that the network has never seen. The yardstick is the mean training image:
# whoever draws that for everything has learned nothing about any one drawing.

# %%
test_recon, test_indices = reconstruct(vqgan, test_images, runtime)
mean_image = train.images(torch.randperm(len(train), generator=rng)[:2048]).mean(0)
test_l1 = (test_recon - test_images).abs().mean().item()
mean_l1 = (mean_image - test_images).abs().mean().item()
usage = CodeUsage(n_codes)
usage.update(test_indices)
if is_held_to:
    assert test_l1 <= 0.5 * mean_l1, (test_l1, mean_l1)
    assert curve[-1]["eval/used"] >= 0.3, curve[-1]
say(
    f"Test L1 is **{test_l1:.3f}**, {test_l1 / mean_l1:.2f} of the mean image's {mean_l1:.3f}; "
    f"PSNR {psnr(test_recon.clamp(-1, 1), test_images).mean():.1f} dB; {usage.fraction_used:.0%} of the {n_codes} codes "
    f"in use over the test split, as evenly as {usage.perplexity:.0f} equally likely ones (perplexity)."
)

# %%
picture(
    shown,
    test_recon[:16],
    columns=8,
    rows=["original", "spelled"],
    alt="Sixteen test drawings, each above its reconstruction.",
    caption=f"Sixteen test drawings and their reconstructions from {n_tokens} codes each. Not selected.",
)

# %% [markdown]
# ### The vocabulary
#
# What does a word mean? Look up where it is used. Each row below is one code; each little picture shows a place, in
# another test drawing, that the encoder spelled with it: the code's own $f\times f$ pixels in the middle, their
# surroundings around them.


# %%
def examples_of(code: int, images: Tensor, indices: Tensor, n: int, margin: int) -> Tensor:
    """Return patches (n, 3, f + 2 margin, f + 2 margin) of images (N, 3, H, W) whose grid (N, h, w) reads ``code``.

    At most one patch an image, the first in raster order; fewer than ``n`` if fewer images use the code. Beyond
    the border the patch is white.
    """
    f = images.shape[-1] // indices.shape[-1]
    padded = F.pad(images, (margin,) * 4, value=1.0)
    places = {image: (row, column) for image, row, column in reversed((indices == code).nonzero().tolist())}
    side = f + 2 * margin
    cut = [padded[i, :, f * r : f * r + side, f * c : f * c + side] for i, (r, c) in sorted(places.items())]
    return torch.stack(cut[:n])


in_images = torch.stack([(test_indices == code).flatten(1).any(1).sum() for code in range(n_codes)])
in_twelve = int((in_images >= 12).sum()) if is_trained else 0
common = in_images.argsort(descending=True)[
    : in_twelve or int((in_images >= 1).sum())
]  # few images: any in use
chosen = common[
    torch.linspace(0, len(common) - 1, 10).long()
]  # from the most to the least frequent, evenly by rank
n_examples = min(12, int(in_images[chosen].min()))
picture(
    *(examples_of(int(code), test_images, test_indices, n_examples, margin=downsampling) for code in chosen),
    columns=n_examples,
    scale=3,
    rows=[f"{int(in_images[code]) / len(test_images):.0%} of drawings" for code in chosen],
    alt="Ten rows of patches; a row shows where test drawings use one code.",
    caption="Ten codes from frequent to rare, twelve uses of each; the code itself is the middle third of each patch.",
)

# %% tags=["hide-input"]
fig, ax = figure(width="half")
frequency = usage.counts.sort(descending=True).values.cpu() / usage.counts.sum().cpu()
ax.loglog(1 + np.arange(len(frequency)), frequency.clamp_min(1e-7), **look("ours"), label="codes on test")
ax.axhline(1 / n_codes, **look("baseline"), label="if all were equally likely")
ax.set(xlabel="rank of the code", ylabel="frequency", ylim=(1e-5, 1))
ax.legend()
show(
    fig,
    alt=f"The most frequent code makes up {frequency[0]:.1%} of all positions; the rest falls off slowly.",
    caption="How often each code is used on the test split, by rank.",
)

# %% [markdown]
# ## Stage 2: learning to write
#
# With the first stage frozen, an image is a sequence $s$ of codes in raster order, and its likelihood factorises (Eqs. 9, 10),
#
# $$ p(s\mid c) = \prod_i p(s_i \mid s_{<i}, c), \qquad \mathcal L = \mathbb{E}\left[-\log p(s\mid c)\right]. $$
#
# This is the **negative log-likelihood** (NLL); we report it per token, in nats. The condition $c$ is simply **prepended**: its words share the table of embeddings
# with the codes and stand before them. Here a sentence begins with the drawing's Unicode group and its hand. In one of ten training sentences each of them is
# replaced by the word *any*, independently, so that one network is conditional and unconditional.


# %%
@dataclass(frozen=True)
class Vocabulary:
    """Token ids: the image codes first, then, for each condition, its values and the word *any*."""

    n_codes: int
    conditions: dict[str, int] = field(default_factory=dict)  # name -> number of values

    @property
    def size(self) -> int:
        return self.n_codes + sum(n + 1 for n in self.conditions.values()) + (not self.conditions)

    @property
    def n_prefix(self) -> int:
        return max(1, len(self.conditions))  # without conditions one start token opens the sentence

    def prefix(self, n: int, drop: Tensor | None = None, **labels: Tensor) -> Tensor:
        """Return prefix tokens (n, n_prefix); a condition not in ``labels``, or dropped (n, n_prefix), is *any*."""
        if unknown := set(labels) - set(self.conditions):
            raise ValueError(f"unknown conditions {sorted(unknown)}; known are {list(self.conditions)}")
        columns, offset = [], self.n_codes
        device = next((t.device for t in (drop, *labels.values()) if t is not None), None)
        for i, (name, n_values) in enumerate((self.conditions or {"start": 0}).items()):
            wildcard = torch.full((n,), offset + n_values, device=device)
            token = offset + labels[name] if name in labels else wildcard
            columns.append(token if drop is None else torch.where(drop[:, i], wildcard, token))
            offset += n_values + 1
        return torch.stack(columns, dim=1)


def token_nll(gpt: GPT, prefix: Tensor, tokens: Tensor) -> Tensor:
    """Return -log p(s_i | s_<i, c) in nats for tokens (B, T) after prefix (B, P): shape (B, T).

    The sequence without its last token goes in; only the image positions are read (Esser et al. 2021, Eq. 10).
    """
    logits = gpt(torch.cat([prefix, tokens[:, :-1]], dim=1))[:, prefix.shape[1] - 1 :]
    return F.cross_entropy(logits.float().transpose(1, 2), tokens, reduction="none")


# %%
@torch.no_grad()
def spell(model: VQModel, dataset: Dataset, index: Tensor, runtime: Runtime, batch: int = 256) -> Tensor:
    """Return the tokens (N, h·w), in raster order, of the images ``index`` (N,) of a data set, without augmentation."""
    rows = []
    for part in index.split(batch):
        with runtime.autocast():
            rows.append(model.encode(dataset.images(part).to(runtime.device)).indices.flatten(1).cpu())
    return torch.cat(rows)


spelled = {
    "train": torch.arange(len(train))[: 64 if page.smoke else None],
    "validation": torch.randperm(len(validation), generator=rng)[: 64 if page.smoke else 1024],
    "test": judged,
}
splits = {"train": train, "validation": validation, "test": test}
tokens = {name: spell(vqgan, splits[name], index, runtime) for name, index in spelled.items()}
labels = {name: {c: splits[name].labels[c][index] for c in conditions} for name, index in spelled.items()}
vocabulary = Vocabulary(n_codes, {name: len(train.label_names[name]) for name in conditions})

counts = torch.bincount(tokens["train"].flatten(), minlength=n_codes).float() + 1
unigram = -(counts / counts.sum()).log()[tokens["validation"]].mean().item()
print(
    f"{len(tokens['train']):,} training sentences of {n_tokens} words; unigram NLL on validation {unigram:.3f} nats"
)


# %%
def stage2_step(
    gpt: GPT, optimizer: torch.optim.Optimizer, vocabulary: Vocabulary, runtime: Runtime, drop: float = 0.1
):
    """Return ``step(batch, t) -> parts`` for the transformer; the batch holds ``tokens`` and the conditions' labels."""

    def step(batch: dict[str, Tensor], t: int) -> dict[str, Tensor]:
        n = len(batch["tokens"])
        chance = torch.Generator().manual_seed(
            t
        )  # one draw for the global batch, however many processes share it
        dropped = (
            torch.rand(n * runtime.world, vocabulary.n_prefix, generator=chance)[
                runtime.rank :: runtime.world
            ]
            < drop
        )
        given = {name: batch[name] for name in vocabulary.conditions}
        prefix = vocabulary.prefix(n, dropped.to(runtime.device), **given)
        with runtime.autocast():
            loss = token_nll(gpt, prefix, batch["tokens"].to(runtime.device)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        runtime.clip(optimizer, 1.0)
        optimizer.step()
        return {"nll": loss.detach()}

    return step


@torch.no_grad()
def sentence_nll(
    gpt: GPT, tokens: Tensor, vocabulary: Vocabulary, runtime: Runtime, batch: int = 256, **labels: Tensor
) -> Tensor:
    """Return the mean NLL of each sentence, nats per token, shape (N,); conditions left out are *any*."""
    gpt.eval()
    rows = []
    for i in range(0, len(tokens), batch):
        part = tokens[i : i + batch]
        prefix = vocabulary.prefix(
            len(part), **{name: value[i : i + batch] for name, value in labels.items()}
        )
        with runtime.autocast():
            rows.append(
                token_nll(gpt, prefix.to(runtime.device), part.to(runtime.device)).mean(1).float().cpu()
            )
    return torch.cat(rows)


# %%
seed_everything(seed)
gpt = runtime.prepare(
    GPT(
        vocab_size=vocabulary.size,
        block_size=vocabulary.n_prefix + n_tokens,
        n_layers=n_layers,
        n_heads=n_heads,
        dim=dim,
        dropout=dropout,
        vocab_out=n_codes,
    )
)
stage2_config = {
    "stage": "gpt",
    "stage1": stage1_config,
    "n_layers": n_layers,
    "n_heads": n_heads,
    "dim": dim,
    "dropout": dropout,
    "token_batch": token_batch,
    "token_learning_rate": token_learning_rate,
    "seed": seed,
    "steps": steps,
}
gpt_optimizer = torch.optim.AdamW(decay_groups(gpt, 0.01), lr=token_learning_rate, betas=(0.9, 0.95))
sentences = Rows({"tokens": tokens["train"], **labels["train"]}).batches(token_batch, seed=seed, **share)
stage2 = fit(
    run_folder(run_dir, "gpt", stage2_config),
    config=stage2_config,
    modules={"gpt": gpt},
    optimizers={"gpt": gpt_optimizer},
    batches=sentences,
    step=stage2_step(gpt, gpt_optimizer, vocabulary, runtime),
    steps=steps,
    runtime=runtime,
    schedules={"gpt": warmup_linear(warmup, steps)},
    evaluate=lambda done: {
        "nll": sentence_nll(gpt, tokens["validation"], vocabulary, runtime, **labels["validation"])
        .mean()
        .item()
    },
    eval_every=max(1, steps // n_checks),
    best="nll",
)
_ = load_weights(stage2.folder, {"gpt": gpt}, which="best")  # early stopping, as the paper does for faces

# %% tags=["hide-input"]
curve = [row for row in stage2.history if "eval/nll" in row]
fig, ax = figure(width="half")
ax.plot(
    [row["step"] for row in stage2.history],
    [row["nll"] for row in stage2.history],
    **look("control"),
    label="training",
)
ax.plot(
    [row["step"] for row in curve],
    [row["eval/nll"] for row in curve],
    **look("ours", marker=True),
    label="validation",
)
ax.axhline(unigram, **look("baseline"), label="unigram frequencies")
ax.set(xlabel="step", ylabel="NLL (nats per token)")
ax.legend()
show(
    fig,
    alt=f"Validation NLL falls from the unigram's {unigram:.2f} to {min(row['eval/nll'] for row in curve):.2f} nats per token.",
    caption="Stage 2: the lowest point of the validation curve is the model that we keep.",
)

# %% [markdown]
# ### Does it know more than frequencies, and does it listen?
#
# Three numbers answer. The **unigram** entropy is what one pays knowing only how often each code occurs. The NLL with
# every condition *any* is the unconditional model. The NLL with the true condition must be lower, and with the
# conditions shuffled among the drawings it must be higher again: otherwise the prefix carries nothing.

# %%
shuffled = {name: value[torch.randperm(len(value), generator=rng)] for name, value in labels["test"].items()}
nll = {
    "any": sentence_nll(gpt, tokens["test"], vocabulary, runtime),
    "true": sentence_nll(gpt, tokens["test"], vocabulary, runtime, **labels["test"]),
    "shuffled": sentence_nll(gpt, tokens["test"], vocabulary, runtime, **shuffled),
}
test_unigram = -(counts / counts.sum()).log()[tokens["test"]].mean().item()
gain = paired_bootstrap(nll["true"].numpy(), nll["any"].numpy(), seed=seed)
loss_of_shuffling = paired_bootstrap(nll["shuffled"].numpy(), nll["true"].numpy(), seed=seed)
if is_held_to:
    assert nll["any"].mean() <= test_unigram - 0.3, (nll["any"].mean(), test_unigram)
    assert not conditions or gain.high < 0, gain
table(
    [
        ["unigram frequencies", f"{test_unigram:.3f}", ""],
        ["transformer, condition *any*", f"{nll['any'].mean():.3f}", ""],
        [
            "transformer, true condition",
            f"{nll['true'].mean():.3f}",
            f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] against *any*",
        ],
        [
            "transformer, conditions shuffled",
            f"{nll['shuffled'].mean():.3f}",
            f"{loss_of_shuffling.mean:+.3f} [{loss_of_shuffling.low:+.3f}, {loss_of_shuffling.high:+.3f}] against true",
        ],
    ],
    header=["model", "test NLL (nats per token)", "paired difference, 95 % interval over drawings"],
)

# %% [markdown]
# Read the table from the top. The step from the unigram entropy to *any* is claim C4: composition beyond frequencies. The step from *any* to the true condition is
# claim C3. Shuffled conditions are the control: they must cost.
#
# ## Writing: how to draw from $p$
#
# A model that gives every code some probability will, in a sentence of sixty words, write a few unlikely ones, and
# one wrong word can spoil a drawing. Three filters cut the tail: a **temperature** sharpens the distribution,
# **top-k** keeps the k likeliest codes, **top-p** {cite}`holtzman2020nucleus` the smallest set that holds the mass p.


# %%
def filter_logits(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Return logits (..., K) with the temperature applied and all codes outside top-k and top-p at -inf.

    Top-p keeps the smallest set of likeliest codes whose mass reaches ``top_p``; at least one code stays.

    >>> filter_logits(torch.log(torch.tensor([0.5, 0.3, 0.2])), top_p=0.6).exp()
    tensor([0.5000, 0.3000, 0.0000])
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; wanted a number above 0")
    logits = logits / temperature
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        mass = ordered.softmax(-1)
        outside = mass.cumsum(-1) - mass >= top_p  # the mass before a code already suffices
        logits = logits.masked_fill(outside.gather(-1, order.argsort(-1)), -math.inf)
    return logits


@torch.no_grad()
def sample(
    gpt: GPT,
    prefix: Tensor,
    n_tokens: int,
    runtime: Runtime,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    **filters,
) -> Tensor:
    """Return token sequences (B, n_tokens) on the CPU that continue ``start`` (B, S) after ``prefix`` (B, P).

    Each step feeds one token: keys and values of the past lie in a preallocated cache.
    """
    gpt.eval()
    tokens = torch.empty(len(prefix), 0, dtype=torch.long) if start is None else start
    cache, new = gpt.new_cache(len(prefix)), torch.cat([prefix, tokens], dim=1)
    while tokens.shape[1] < n_tokens:
        with runtime.autocast():
            logits = gpt(new.to(runtime.device), cache=cache)[:, -1].float().cpu()
        new = torch.multinomial(filter_logits(logits, **filters).softmax(-1), 1, generator=generator)
        tokens = torch.cat([tokens, new], dim=1)
    return tokens


@torch.no_grad()
def draw(model: VQModel, tokens: Tensor, runtime: Runtime) -> Tensor:
    """Return the images (B, 3, H, W), clamped to [-1, 1], that square token sequences (B, h·w) spell."""
    side = math.isqrt(tokens.shape[1])
    with runtime.autocast():
        return model.decode_indices(tokens.view(-1, side, side).to(runtime.device)).float().cpu().clamp(-1, 1)


# %% [markdown]
# The filters must agree with their definitions, and the cached sampler with a transformer that reads everything anew.

# %%
p = torch.rand(50, 9, generator=rng).softmax(-1)
for row, kept in zip(p, filter_logits(p.log(), top_p=0.7).exp() > 0, strict=True):
    order = row.argsort(descending=True)
    need = next(i for i in range(1, 10) if row[order[:i]].sum() >= 0.7 - 1e-6)
    assert set(kept.nonzero().flatten().tolist()) == set(order[:need].tolist())
assert ((filter_logits(p.log(), top_k=3).exp() > 0).sum(-1) == 3).all()

greedy = sample(gpt, vocabulary.prefix(2), n_tokens, runtime, top_k=1)
again = torch.empty(2, 0, dtype=torch.long)
exact = Runtime(device=device, precision="fp32")
with torch.no_grad(), exact_products():
    greedy32 = sample(gpt, vocabulary.prefix(2), n_tokens, exact, top_k=1)
    for _ in range(n_tokens):
        logits = gpt(torch.cat([vocabulary.prefix(2), again], 1).to(runtime.device))[:, -1]
        again = torch.cat([again, logits.argmax(-1, keepdim=True).cpu()], dim=1)
assert (greedy32 == again).float().mean() > 0.99  # ties in floating point may part, hardly ever

# %% [markdown]
# ### Out of nothing

# %%
n_samples = 8 if page.smoke else 32
taste = {"temperature": 1.0, "top_k": min(100, n_codes), "top_p": 0.95}
samples = sample(gpt, vocabulary.prefix(n_samples), n_tokens, runtime, generator=rng, **taste)
sample_images = draw(vqgan, samples, runtime)
picture(
    sample_images,
    columns=8,
    alt="Drawings sampled without condition from the model just trained, eight to a row.",
    caption=f"The first {n_samples} samples without condition (top-k {taste['top_k']}, top-p {taste['top_p']}). Not selected.",
)

# %% [markdown]
# Are they new, or does the network recite? The paper warns of this: its checkpoints with the best *training* likelihood had the lower Fréchet distance, and copied
# faces. Below each sample stands its nearest training drawing.


# %%
@torch.no_grad()
def nearest_drawings(images: Tensor, dataset: Dataset, batch: int = 1024) -> tuple[Tensor, Tensor]:
    """Return, for images (B, 3, H, W), the distance (root mean square) and index of the nearest image of a data set."""
    flat = images.flatten(1)
    best = torch.full((len(images),), math.inf)
    index = torch.zeros(len(images), dtype=torch.long)
    for rows in torch.arange(len(dataset)).split(batch):
        distance = torch.cdist(flat, dataset.images(rows).flatten(1)) / math.sqrt(flat.shape[1])
        low, at = distance.min(1)
        best, index = torch.minimum(best, low), torch.where(low < best, rows[at], index)
    return best, index


distance, neighbour = nearest_drawings(sample_images, train)
floor, _ = nearest_drawings(test_images[: len(sample_images)], train)
picture(
    sample_images[:8],
    train.images(neighbour[:8]),
    columns=8,
    rows=["sample", "nearest"],
    alt="Eight samples above their nearest training drawings.",
    caption="Samples and their nearest training drawings, by pixels. Not selected.",
)

# %%
nearer = (
    (distance[:, None] < floor).float().mean().item()
)  # 0.5 if samples lie as near as drawings never seen
say(
    f"A sample lies {distance.median():.2f} from its nearest training drawing (median, root mean square over pixels in "
    f"[−1, 1]), a test drawing, which nobody can have copied, {floor.median():.2f}. Of all pairs of the two the sample is "
    f"the nearer one in **{nearer:.0%}**; one half would say that samples are as new as drawings never seen."
)

# %% [markdown]
# ### The second half
#
# Raster order makes completion free: keep the upper half of a test drawing's codes and let the transformer write the
# rest. Four continuations each.

# %%
n_completed = 2 if page.smoke else 8
kept = tokens["test"][:n_completed, : n_tokens // 2]
given = {name: value[:n_completed] for name, value in labels["test"].items()}
completions = [
    draw(
        vqgan,
        sample(
            gpt,
            vocabulary.prefix(n_completed, **given),
            n_tokens,
            runtime,
            start=kept,
            generator=rng,
            **taste,
        ),
        runtime,
    )
    for _ in range(4)
]
halved = test_images[:n_completed].clone()
halved[:, :, image_size // 2 :] = 1
picture(
    halved,
    *completions,
    test_images[:n_completed],
    columns=n_completed,
    rows=["given", "1", "2", "3", "4", "truth"],
    alt="The upper halves of test drawings, four completions each, and the true drawings.",
    caption="Half-image completion: the upper half is given, four continuations, the truth below.",
)

# %% [markdown]
# ### The same page after an hour
#
# What follows uses the committed weights where they are wanted and present (`pretrained`), and otherwise the two
# networks trained above. They are the same code at the report's scale.


# %%
@dataclass(frozen=True)
class Studio:
    """Two trained stages that belong together, and the words they know."""

    vqgan: VQModel
    gpt: GPT
    vocabulary: Vocabulary
    names: dict[str, list[str]]  # of each condition's values
    n_tokens: int

    def draw(
        self, n: int, runtime: Runtime, number: int, labels: dict[str, Tensor] | None = None, **filters
    ) -> Tensor:
        """Return ``n`` sampled images (n, 3, H, W) for the labels' ids, reproducible by ``number``."""
        prefix = self.vocabulary.prefix(n, **(labels or {}))
        generator = torch.Generator().manual_seed(number)
        tokens = sample(self.gpt, prefix, self.n_tokens, runtime, generator=generator, **filters)
        return draw(self.vqgan, tokens, runtime)


def load_studio(vqgan: VQModel, path: Path, runtime: Runtime) -> Studio:
    """Return the committed transformer beside its first stage."""
    known = weights_metadata(path)
    gpt = runtime.prepare(GPT(**known["model"]))
    load_weights_file(path, gpt)
    names = known["names"]
    vocabulary = Vocabulary(
        known["model"]["vocab_out"], {name: len(values) for name, values in names.items()}
    )
    return Studio(vqgan, gpt.eval(), vocabulary, names, known["model"]["block_size"] - vocabulary.n_prefix)


if has_weights:
    studio = load_studio(known_vqgan, committed["gpt"], runtime)
else:
    names = {name: train.label_names[name] for name in conditions}
    studio = Studio(vqgan, gpt, vocabulary, names, n_tokens)

# %% [markdown]
# ### On request
#
# One sample for each pair of hand and group. A row should share a style, a column a subject.

# %% tags=["hide-input"]
if {"group", "set"} <= set(studio.names):
    hands, groups = studio.names["set"], studio.names["group"]
    pairs = torch.cartesian_prod(torch.arange(len(hands)), torch.arange(len(groups)))
    pairs = pairs[: len(groups) if page.smoke else None]
    wanted = {"set": pairs[:, 0], "group": pairs[:, 1]}
    requested = studio.draw(len(pairs), runtime, seed, wanted, **taste)
    picture(
        *requested.split(len(groups)),
        columns=len(groups),
        rows=[hands[i] for i in range(len(requested) // len(groups))],
        titles=groups,
        alt="A matrix of samples: rows are the nine drawing sets, columns the Unicode groups.",
        caption="One sample for each hand (row) and Unicode group (column). Not selected.",
    )

# %% [markdown]
# ### The sliders
#
# How daring should the sampler be? Every cell below was sampled with the same random numbers; only temperature and
# top-k change. Move the sliders: at one end everything turns into the same safe drawing, at the other into noise.

# %%
temperatures = [0.5, 0.8, 1.0, 1.2, 1.5] if not page.smoke else [1.0]
top_ks = [1, 4, 16, 64, n_codes] if not page.smoke else [n_codes]
sheets = [
    grid(studio.draw(8, runtime, seed, temperature=temperature, top_k=top_k), columns=4)
    for temperature in temperatures
    for top_k in top_ks
]
explorer(
    sheets,
    axes={"temperature": temperatures, "top-k": top_ks},
    start={"temperature": 1.0, "top-k": n_codes} if page.smoke else {"temperature": 1.0, "top-k": 64},
    alt="Eight samples at a chosen temperature and top-k, at first 1.0 and 64.",
    caption="Eight samples for each setting; works without a running kernel.",
)


# %%
def play(
    temperature: float = 1.0, top_k: int = 64, top_p: float = 0.95, number: int = 0, **labels: str
) -> None:
    """Show eight samples for the given filters, seed number and condition names (or "any")."""
    ids = {name: studio.names[name].index(value) for name, value in labels.items() if value != "any"}
    wanted = {name: torch.full((8,), value) for name, value in ids.items()}
    images = studio.draw(8, runtime, number, wanted, temperature=temperature, top_k=top_k, top_p=top_p)
    told = ", ".join(f"{name} {value}" for name, value in labels.items())
    picture(images, columns=8, alt=f"Eight samples at temperature {temperature}.", caption=told)


if page.live:  # with a kernel: every condition and filter
    import ipywidgets as widgets

    widgets.interact(
        play,
        temperature=widgets.FloatSlider(1.0, min=0.1, max=2.0, step=0.1, continuous_update=False),
        top_k=widgets.IntSlider(min(64, n_codes), min=1, max=n_codes, continuous_update=False),
        top_p=widgets.FloatSlider(0.95, min=0.1, max=1.0, step=0.05, continuous_update=False),
        number=widgets.IntSlider(0, min=0, max=99, continuous_update=False),
        **{name: ["any", *values] for name, values in studio.names.items()},
    )

# %% [markdown]
# ## Where this page departs
#
# | | paper | authors' code | here |
# |---|---|---|---|
# | perceptual loss | LPIPS, VGG-16 | the same | feature distance of VGG-19 (8-bit), three layers, no learned weights |
# | codebook | Euclidean | Euclidean, β on the codebook term | unit sphere, β = 0.25 on the commitment; dead codes revived |
# | λ | Eq. 7, δ = 1e-6 | δ = 1e-4, clamped to [0, 1e4], two backward passes | as the code, one backward pass |
# | discriminator | 3 levels, 64 channels, batch norm | the same | 2 levels below 64 px, no norm; its share follows its margin |
# | group norm | 32 groups of at least 4 channels | the same | groups of 4 channels, since 32 groups of a narrow net are single channels |
# | class condition | one token | in the vocabulary of the codes | one token for each condition, and *any* |
# | optimiser | Adam, constant rate | the same | AdamW, warm-up and linear decay |
# | size | 70 M + 85 M to 1.4 B parameters | the same | 3.2 M + 2 M at report scale |
#
# ## Failures worth seeing
#
# The test drawings with the largest error, and what the codes made of them: thin lines, lettering and rare colours,
# which cost many bits and occur too seldom for the codebook to pay for.

# %%
worst = (test_recon - test_images).abs().mean(dim=(1, 2, 3)).argsort(descending=True)[:8]
picture(
    test_images[worst],
    test_recon[worst],
    columns=8,
    rows=["original", "spelled"],
    alt="The eight test drawings with the largest error and their reconstructions.",
    caption="The eight worst of the scored test drawings, by L1.",
)

# %% [markdown]
# ## Exercises
#
# 1. How many bits does a sentence really need? The fixed-length code spends $hw\log_2 K$. The transformer's NLL is
#    the length an arithmetic coder would need with it.
# 2. What happens to λ when the discriminator is perfect and its gradient vanishes? Which line of `adaptive_weight`
#    keeps the update finite?
# 3. Sample with `top_k=1` for ten seeds. Why are all drawings the same, although conditions *any* leave so much open?
#
# ```{dropdown} Solutions
# 1. See the cell below.
# 2. The denominator tends to δ, λ to $\lVert\nabla\mathcal L_\text{rec}\rVert/\delta$, at most $10^4$ by the clamp: the
#    product λ·g_gan stays about as long as g_rec until the gradient is smaller than δ, and then fades out.
# 3. Top-1 sampling draws no random number: the most likely code after the prefix is always the same, and so on.
# ```

# %%
fixed, coded = n_tokens * math.log2(n_codes), n_tokens * nll["true"].mean().item() / math.log(2)
say(
    f"Solution 1: {fixed:.0f} bits at fixed length, **{coded:.0f} bits** with the transformer: {1 - coded / fixed:.0%} less."
)

# %% [markdown]
# ## What came after
#
# The first stage outlived the second. ViT-VQGAN and MaskGIT kept the words and changed the writer; latent diffusion
# {cite}`rombach2022ldm` kept this very autoencoder, with a KL penalty in place of the codebook, and let a diffusion
# model write. {doc}`taming_claims` puts the paper's first claim to the test.

# %%
if page.record:  # the report run leaves its experts to the quick pages
    made = {"data": f"emoji, {image_size} px, train split {train.hash}"}
    made |= {
        "command": "make report CHAPTER=taming",
        "licence": "CC BY-SA 4.0, as the strictest of the drawings",
    }
    page.keep_weights(
        "taming_vqgan",
        vqgan,
        made | {"model": vqgan.config, "commit": stage1.result["commit"]},
        scores={"test L1": test_l1, "codes in use": usage.fraction_used, "perplexity": usage.perplexity},
        limits="Emoji on white at one size; lettering and thin lines are lost. No use beyond this book is intended.",
    )
    page.keep_weights(
        "taming_gpt",
        gpt,
        made
        | {
            "model": gpt.config,
            "commit": stage2.result["commit"],
            "names": {name: train.label_names[name] for name in conditions},
            "samples": samples.view(-1, grid_size, grid_size).tolist(),
        },
        scores={
            f"test NLL (nats per token), condition {name}": value.mean().item() for name, value in nll.items()
        },
        limits="Reads and writes the codes of taming_vqgan alone; draws emoji-like pictures, some of them close to training drawings.",
    )

# %%
page.finish(runtime)
