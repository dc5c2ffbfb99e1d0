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
# # Experts: networks that are only looked at
#
# The chapters of this part never train a network on pictures. They take networks that exist, leave them alone, and
# learn what lies between them. Such networks are *experts*, and this page makes the three that no public package holds.
#
# | expert | what it does | where it comes from |
# |---|---|---|
# | autoencoder | a picture of 64 × 64 px to 320 numbers $\bar z = E(x)$ and back, $x \approx D(\bar z)$ | trained here |
# | namer | says which of 877 concepts a drawing shows | EfficientNet-Lite0 from ImageNet, fine-tuned here |
# | judge | says the concept, the hand and the factors of a picture | trained here |
# | ImageNet network | says which of 1,000 classes a photograph shows | EfficientNet-Lite0 as published |
#
# | scale | command | what it needs |
# |---|---|---|
# | quick | `papermill notebooks/experts.ipynb out.ipynb` | 3 minutes on 2 CPU cores; shows the committed experts and trains small beginnings beside them |
# | report | `papermill notebooks/experts.ipynb out.ipynb -f notebooks/params/experts.report.yaml` | an hour and a half of one CPU core, minutes on a GPU |
#
# Reading time: 10 minutes.

# %%
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from torch import Tensor, nn

from cvlib.assets import member
from cvlib.data import Dataset, emoji_naming, load
from cvlib.data.base import derived_generator, to_float
from cvlib.data.factors import Factors, factor_targets
from cvlib.data.outputs import weights_digest
from cvlib.data.pictures import read_picture
from cvlib.errors import BookError
from cvlib.metrics import psnr
from cvlib.nn import PatchDiscriminator, hinge_d_loss, hinge_g_loss, lpips_vgg16_hed, vgg_loss
from cvlib.nn.backbones import EfficientNetLite0, efficientnet_lite0
from cvlib.nn.experts import (
    Judge,
    Judgement,
    freeze,
    load_autoencoder,
    load_judge,
    load_namer,
)
from cvlib.nn.framed import FRAME, FrameReader, lay_out, lift
from cvlib.nn.precision import exact_products
from cvlib.nn.refining import shrink
from cvlib.nn.vae import VectorAutoencoder, calibrated_nll
from cvlib.notebooks import taming  # the adaptive weight is explained there
from cvlib.pages import begin
from cvlib.show import figure, look, picture, say, show, table
from cvlib.train import Runtime, fit, run_folder, seed_everything, warmup_linear

# %% tags=["parameters"]
seed = 0
steps = 40  # of the autoencoder; its reader and the judge take 4, the namer 1.2 times as many. Paper: 631,606 and 1,672,855
batch_size = 32  # paper: 25
image_size = 64  # paper: 128
dim = 320  # of the latent. Paper: 128
learning_rate = 5e-4  # paper: 4.5e-6 x batch size
perceptual_weight = 0.25  # of the distance of VGG-19 beside the mean absolute error. Paper: 1, LPIPS
disc_start = 0.5  # part of training without discriminator
disc_weight = 0.5  # paper: 1, or 0.5 in later configurations
namer_batch = 64
namer_learning_rate = 5e-4
data = "emoji"
data_root = ""
device = "auto"
precision = "auto"
run_dir = "runs/experts"
pretrained = True  # show the committed experts too; training below always starts from nothing
made = [
    "autoencoder",
    "namer",
    "judge",
]  # whom ``steps`` speaks of; of the others this run shows small beginnings
record = False  # True writes the weights of those to book/results/weights

# %%
page = begin("experts", globals(), data="emoji", data_root="")
if page.smoke:  # prove in seconds that every cell runs; nothing is learned
    steps, batch_size, namer_batch = min(steps, 4), 4, 8
runtime = Runtime(device=device, precision=precision)
plain = Runtime(device=device, precision="fp32" if runtime.device.type == "cpu" else precision)
seed_everything(seed)
unknown = sorted(set(made) - {"autoencoder", "namer", "judge"})
if unknown:
    raise BookError(f"expert {', '.join(unknown)}", "some of autoencoder, namer, judge")
base = {name: steps if name in made else min(steps, 40) for name in ("autoencoder", "namer", "judge")}
steps, namer_steps, judge_steps = (
    max(2, round(k * base[name])) for name, k in (("autoencoder", 1), ("namer", 1.2), ("judge", 4))
)
is_trained = min(base.values()) >= 500  # checks of quality ask for the report scale
print(runtime.describe())
print(f"{image_size} px as {dim} numbers; {steps} steps of the autoencoder, {namer_steps} of the namer")

# %% [markdown]
# ## Who may see what
#
# What is to be measured later decides what an expert may see now. Concepts of the book's validation and test splits
# are never shown to any expert. Of the concepts that six or seven hands draw, the **classes** of the namer, one hand is
# kept for validation and one for the test: naming then means to see past the hand. Sets that copy each other count as
# one hand. Every drawing comes with a random background, hue, scale, shift and rotation, all known.

# %%
everything = load("emoji", "train", image_size, factors="full")
train = everything.subset((emoji_naming.parts_of(everything) == 0).nonzero()[:, 0])
validation, test = (load("emoji", s, image_size, factors="full") for s in ("validation", "test"))
named = {s: emoji_naming.load(s, image_size) for s in ("train", "validation", "test")}
n_classes = len(named["train"].label_names["concept"])
table(
    [
        ["the autoencoder learns from", len(train), len(train.labels["concept"].unique())],
        ["the namer learns from", len(named["train"]), n_classes],
        ["unseen hands of its classes, validation", len(named["validation"]), n_classes],
        ["unseen hands of its classes, test", len(named["test"]), n_classes],
        ["unseen concepts, validation", len(validation), len(validation.labels["concept"].unique())],
        ["unseen concepts, test", len(test), len(test.labels["concept"].unique())],
    ],
    header=["", "drawings", "concepts"],
)


# %%
def drawn_once(data: Dataset, word: str, limit: int = 100_000) -> Tensor:
    """Return the drawings (N, 3, S, S), each with factors drawn once and for all; at most ``limit``, spread evenly."""
    index = torch.linspace(0, len(data) - 1, min(limit, len(data))).round().long()
    return data.images(index, generator=derived_generator(0, "drawn once", word), augment=True)


limit = 16 if page.smoke else 512
test_images = drawn_once(test, "test", limit)
check_images = drawn_once(validation, "validation", min(limit, 256))
hand_images = drawn_once(named["test"], "hands", limit)
shown = test_images[torch.linspace(0, len(test_images) - 1, 16).long()]
picture(
    shown,
    columns=8,
    alt="Sixteen drawings of unseen concepts on coloured grounds, tinted, turned and moved.",
    caption="Sixteen test drawings with their factors, evenly spaced in the split. Not selected.",
)

# %% [markdown]
# ## The autoencoder
#
# The invertible networks of the next chapters want one vector for a picture, continuous and nearly lossless. So the encoder gives a Gaussian
# $q(\bar z|x) = \mathcal N(\mu(x), \operatorname{diag}\sigma^2(x))$, and the loss bounds the length of a description of the picture: the error, the price of the
# code, and a critic's share,
#
# $$ \mathcal L = \frac{r(x, \hat x)}{e^{\lambda}} + \lambda + \beta\,\mathrm{KL}\big(q(\bar z|x)\,\|\,\mathcal N(0, I)\big) + w_\text{adv}\mathcal L_\text{GAN},
# \qquad r = |x - \hat x| + w_p\, d_\text{VGG}(x, \hat x), $$
#
# per pixel and channel; $d_\text{VGG}$ is the perceptual distance. The scalar $\lambda$ is learned, and is not the adaptive weight of {doc}`taming`. It is best at
# $e^\lambda = \mathbb E\,r$, so errors and nats are weighed against each other without any tuning.

# %%
r = torch.rand(64, generator=torch.Generator().manual_seed(0))
lam = torch.zeros((), requires_grad=True)
for _ in range(200):  # gradient descent on λ alone
    (slope,) = torch.autograd.grad(calibrated_nll(r, lam, 1), lam)
    lam = (lam - 0.3 * slope).detach().requires_grad_()
torch.testing.assert_close(lam.exp(), r.mean(), rtol=1e-4, atol=0)
print(f"descent ends at e^λ = {lam.exp():.4f}; the mean error is {r.mean():.4f}")

# %% [markdown]
# ### The frame
#
# How should 320 numbers be spent? To a linear code, a drawing that is moved by three pixels or turned by ten degrees is another picture altogether, and it costs
# dozens of numbers. Worse, nothing in such a code says *cat* by itself: an invertible network in it learned nothing but noise in the time that a laptop has (a
# trial, not recorded). So the first eight numbers are the **frame**: ground (the background colour), hue, size, place and turn. Whoever knows them can undo them,
# and lay the drawing out again.

# %%
posed = drawn_once(test, "test", limit)[: 8 if page.smoke else None]
places = torch.linspace(0, len(test) - 1, min(limit, len(test))).round().long()
told = test.draw(places, derived_generator(0, "drawn once", "test"), True).factors[: len(posed)]
lifted = lift(posed, told)
upright = 2 * lifted[:, :3] - 1 + 1.5 * (1 - lifted[:, 3:])  # on grey
laid = lay_out(lifted, told).clamp(-1, 1)
some = torch.linspace(0, len(posed) - 1, 8).long()
picture(
    posed[some],
    upright[some],
    laid[some],
    columns=8,
    rows=["drawing", "lifted", "laid out again"],
    alt="Eight drawings; the same upright, in the middle, in their own hue, on grey; and back in their places.",
    caption="With the frame that is known, a drawing is lifted from its ground, and laid out again.",
)
assert psnr(laid, posed).median() > 30
say(f"There and back costs little: {psnr(laid, posed).mean():.1f} dB remain.")

# %% [markdown]
# But the encoder sees a picture and no factors. So a small network learns to read them from the renderer, which knows them. Of a thing it has never seen it can
# only guess the true size or angle. That matters less than this: two pictures of *one* drawing should be lifted to the same picture.


# %%
def reader_step(
    reader: FrameReader, optimizer: torch.optim.Optimizer, runtime: Runtime
) -> Callable[[dict[str, Tensor], int], dict[str, Tensor]]:
    """Return ``step(batch, t) -> parts``: squared error of the nine targets of the factors."""

    def step(batch: dict[str, Tensor], t: int) -> dict[str, Tensor]:
        loss = F.mse_loss(reader(batch["image"]), factor_targets(batch["factors"]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        runtime.clip(optimizer, 10.0)
        optimizer.step()
        return {"loss": loss.detach()}

    return step


def explained(said: Tensor, factors: Tensor) -> dict[str, float]:
    """Return R² of estimates (N, 9) of the factors (N, 8), by group."""
    target = factor_targets(factors)
    r2 = 1 - (said - target).square().mean(0) / target.var(0, correction=0)
    groups = ("background", "hue", "size", "shift", "rotation")
    return dict(zip(groups, (part.mean().item() for part in r2.split([3, 2, 1, 2, 1])), strict=True))


WIDTHS = (48, 96)  # of the two levels of the U


def build_autoencoder(image_size: int, dim: int, framed: bool = True) -> VectorAutoencoder:
    """Return the autoencoder: 5.0 M parameters at 64 px and 320 numbers; its decoder never works at full size."""
    return VectorAutoencoder(image_size, dim, WIDTHS, n_blocks=2, thumbnail=image_size // 2, framed=framed)


seed_everything(seed)
model = plain.prepare(build_autoencoder(image_size, dim))
reader = model.encoder.reader
reader_steps = 4 * steps
reader_config = {
    "expert": "reader",
    "seed": seed,
    "steps": reader_steps,
    "batch_size": namer_batch,
    "data": train.hash,
    "learning_rate": 2e-3,
    "precision": plain.precision,
}
reader_optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=0.05)
fit(
    run_folder(run_dir, "reader", reader_config),
    config=reader_config,
    modules={"reader": reader},
    optimizers={"reader": reader_optimizer},
    batches=train.batches(namer_batch, seed=seed, device=plain.device),
    step=reader_step(reader, reader_optimizer, plain),
    steps=reader_steps,
    runtime=plain,
    schedules={"reader": warmup_linear(max(1, reader_steps // 20), reader_steps)},
)
freeze(reader)

# %% [markdown]
# ### A linear code, and a network that refines it
#
# A lifted drawing still has thousands of pixels. The best *linear* code of it needs no training: the principal components of the lifted drawings at 32 px. They
# keep as much as any linear code can in squared error, and so in PSNR, but they smear every edge. So $E$ reads the frame and is linear in the rest; $D$ is not. It paints the components'
# picture, lays it out, and refines it with a convolutional network in the shape of a U. To turn a smear into an edge is a local task: it is learned within an hour,
# and also works on things never seen. Training begins where PCA ends, with latents of unit variance. Each latent gets a little noise, half the deviation of the
# first component that was left out, so that no number is kept much more exactly than it is worth.

# %%
seed_everything(seed)
start_images = train.images(
    torch.randperm(len(train), generator=derived_generator(seed, "start"))[: 600 if page.smoke else 6000],
    generator=derived_generator(seed, "start factors"),
    augment=True,
)
with exact_products():
    model.start_from(start_images.to(runtime.device))
with torch.no_grad():
    pieces = [x.to(runtime.device) for x in start_images.split(256)]
    seen = torch.cat([model.encoder.look(x)[1].cpu() for x in pieces])
    code = torch.cat([model.encode(x).sample().cpu() for x in pieces])
pca = PCA(dim - FRAME, svd_solver="covariance_eigh").fit(seen.double().numpy())
axes = torch.from_numpy(pca.components_).float()
painter = F.normalize(model.decoder.linear.weight.detach().cpu(), dim=0)
share = (axes @ painter).square().sum(0)  # of each of our directions that lies in theirs
assert (
    share[: (dim - FRAME) // 2].min() > 0.95
)  # the subspace is found at random, its last directions roughly
torch.testing.assert_close(code[:, FRAME:].var(0).mean(), torch.tensor(1.0), rtol=0.05, atol=0)
print(
    f"latents have variance {code[:, FRAME:].var(0).mean():.2f}; the linear path lies to {share.mean():.3f} in scikit-learn's components"
)
del seen, code

# %% [markdown]
# ### One step
#
# The reconstruction loss and the critic's loss are both differentiated at the picture. The weight $w_\text{adv}$ makes the critic's gradient at the last layer half
# as long as the reconstruction's (the adaptive weight of {doc}`taming`), and shorter while the critic hardly tells pictures from reconstructions. The VGG network
# sees a random window of half the side at full resolution: a quarter of the work, and edges as sharp as in the whole.


# %%
def window(size: int, generator: torch.Generator) -> tuple[slice, slice]:
    """Return rows and columns of a random square of half the side of images of ``size`` px."""
    top, left = torch.randint(size // 2 + 1, (2,), generator=generator).tolist()
    return slice(top, top + size // 2), slice(left, left + size // 2)


def autoencoder_step(
    model: VectorAutoencoder,
    critic: nn.Module,
    optimizers: dict[str, torch.optim.Optimizer],
    perceptual: nn.Module,
    runtime: Runtime,
    disc_from: int,
    perceptual_weight: float = 0.25,
    disc_weight: float = 0.5,
    beta: float = 1.0,
) -> Callable[[dict[str, Tensor], int], dict[str, Tensor]]:
    """Return ``step(batch, t) -> parts`` of the autoencoder and, from step ``disc_from`` on, its critic.

    Source: Rombach et al. 2020a (Making Sense of CNNs), authors' code of the autoencoder; the critic's say is
    cut by its margin, as on the page ``taming``. All losses are nats per pixel and channel.
    """

    def step(batch: dict[str, Tensor], t: int) -> dict[str, Tensor]:
        x = batch["image"]
        with runtime.autocast():
            x_rec, posterior = model(x)
        kl = posterior.kl().mean() / x[0].numel()
        x_hat = x_rec.detach().float().requires_grad_()
        rows, columns = window(x.shape[-1], derived_generator(t, "window"))
        with runtime.autocast():
            with torch.no_grad():
                known = perceptual.features(x[:, :, rows, columns])
            distance = perceptual(x_hat[:, :, rows, columns], known)
        l1 = (x - x_hat).abs().mean((1, 2, 3))
        nll = calibrated_nll(l1 + perceptual_weight * distance, model.log_variance, 1)
        g, g_variance = torch.autograd.grad(nll, [x_hat, model.log_variance])
        parts = {"l1": l1.mean(), "perceptual": distance.mean(), "kl": posterior.kl().mean()}
        if t >= disc_from:
            with runtime.autocast():
                real, fake = critic(x).float(), critic(x_hat.detach()).float()
            loss, margin = hinge_d_loss(real, fake), runtime.average((real.mean() - fake.mean()).detach())
            optimizers["critic"].zero_grad(set_to_none=True)
            loss.backward()
            optimizers["critic"].step()
            with runtime.autocast():
                (g_gan,) = torch.autograd.grad(hinge_g_loss(critic(x_hat)), x_hat)
            lam = taming.adaptive_weight(x_rec, g, g_gan, model.decoder.last_layer, average=runtime.average)
            g = g + disc_weight * margin.clamp(0, 1) * lam * g_gan
            parts |= {"margin": margin, "critic": loss}
        optimizers["autoencoder"].zero_grad(set_to_none=True)
        ends = [x_rec, beta * kl] if kl.requires_grad else [x_rec]  # a frozen encoder has no say in q
        torch.autograd.backward(ends, [g.to(x_rec.dtype), None][: len(ends)])
        model.log_variance.grad = g_variance
        runtime.clip(optimizers["autoencoder"], 20.0)  # several times the usual norm: a guard
        optimizers["autoencoder"].step()
        return {name: torch.as_tensor(part).detach() for name, part in parts.items()}

    return step


# %%
@torch.no_grad()
def reconstruct(
    model: VectorAutoencoder, images: Tensor, runtime: Runtime, batch: int = 64, kept: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return D(mean of q) (N, 3, S, S) and the means (N, dim), float32 on the CPU; images (N, 3, S, S).

    ``kept``: D sees the first so many numbers alone.
    """
    found = []
    for x in images.split(batch):
        with runtime.autocast():
            mean = model.encode(x.to(runtime.device)).mean
            found.append((model.decode(mean[:, :kept]).float().clamp(-1, 1).cpu(), mean.float().cpu()))
    pictures, means = zip(*found, strict=True)
    return torch.cat(pictures), torch.cat(means)


def reconstruction_scores(model: VectorAutoencoder, images: Tensor, runtime: Runtime) -> dict[str, float]:
    """Return mean PSNR (dB) and L1 of reconstructions of images (N, 3, S, S) in [-1, 1]."""
    x_rec, _ = reconstruct(model, images, runtime)
    return {"psnr": psnr(x_rec, images).mean().item(), "l1": (x_rec - images).abs().mean().item()}


# %%
def rate_groups(model: VectorAutoencoder, rate: float) -> list[dict[str, Any]]:
    """Return the parameters as two groups: the linear paths, which begin near their best, learn at a tenth of ``rate``.

    What is frozen, the reader of the frame, is in neither.
    """
    linear = [*model.encoder.linear.parameters(), *model.decoder.linear.parameters()]
    known = set(map(id, linear))
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    return [{"params": rest, "lr": rate}, {"params": linear, "lr": rate / 10}]


before, _ = reconstruct(model, test_images, plain)
thumbs = shrink(start_images, image_size // 2).flatten(1).double().numpy()
whole = PCA(dim, svd_solver="covariance_eigh").fit(
    thumbs
)  # the rival: components of the pictures as they are
small = shrink(test_images, image_size // 2).flatten(1).double().numpy()
small = torch.from_numpy(whole.inverse_transform(whole.transform(small))).float()
linear = F.interpolate(small.unflatten(1, (3, image_size // 2, -1)), size=image_size, mode="bilinear")
linear = linear.clamp(-1, 1)
del thumbs
runtime.prepare(model)
critic = runtime.prepare(PatchDiscriminator(ch=32, n_layers=3, norm="none"))
perceptual = runtime.prepare(vgg_loss(pretrained=not page.smoke))
config = {
    "expert": "autoencoder",
    "seed": seed,
    "steps": steps,
    "batch_size": batch_size,
    "data": train.hash,
    "model": dict(model.config),
    "reader": reader_steps,
    "learning_rate": [learning_rate, learning_rate / 10],
    "betas": [0.5, 0.99],
    "perceptual_weight": perceptual_weight,
    "disc_start": disc_start,
    "disc_weight": disc_weight,
    "precision": runtime.precision,
}
adam = {
    "betas": (0.5, 0.99),
    "weight_decay": 0.0,
}  # 0.9, as in the paper, lets single batches throw the networks back
optimizers = {
    "autoencoder": torch.optim.AdamW(rate_groups(model, learning_rate), **adam),
    "critic": torch.optim.AdamW(critic.parameters(), lr=learning_rate / 2, **adam),
}
trained = fit(
    run_folder(run_dir, "autoencoder", config),
    config=config,
    modules={"autoencoder": model, "critic": critic},
    optimizers=optimizers,
    batches=train.batches(batch_size, seed=seed, device=runtime.device),
    step=autoencoder_step(
        model,
        critic,
        optimizers,
        perceptual,
        runtime,
        int(disc_start * steps),
        perceptual_weight,
        disc_weight,
    ),
    steps=steps,
    runtime=runtime,
    schedules={"autoencoder": warmup_linear(max(1, steps // 20), steps)},
    evaluate=lambda done: reconstruction_scores(model, check_images, runtime),
)

# %% tags=["hide-input"]
curve = [row for row in trained.history if "eval/psnr" in row]
duel = [row for row in trained.history if "margin" in row]
fig, (left, right) = figure(columns=2, height=2.6)
left.plot([row["step"] for row in curve], [row["eval/psnr"] for row in curve], **look("ours", marker=True))
left.axhline(psnr(before, test_images).mean(), **look("paper"), label="where it began")
left.axhline(psnr(linear, test_images).mean(), **look("control"), label=f"{dim} components")
left.set(xlabel="step", ylabel="PSNR (dB), unseen concepts")
left.legend()
right.plot([row["step"] for row in duel], [row["margin"] for row in duel], **look("ours", marker=True))
right.axhline(0, **look("control"))
right.set(xlabel="step", ylabel="margin of the critic (logits)")
show(
    fig,
    alt=f"PSNR of unseen concepts reaches {curve[-1]['eval/psnr']:.1f} dB; the critic's margin ends at {duel[-1]['margin']:.2f}.",
    caption="The autoencoder learns: validation PSNR beside the frame with a linear code, where it began, and the components of whole pictures; how far the critic tells pictures from reconstructions.",
)


# %% [markdown]
# ### What 320 numbers keep
#
# PSNR measures the squared error. LPIPS-VGG16-HED, the distance of a network that took no part in training, is closer to the eye (lower is better). A critic makes
# the autoencoder give up some of the first for the second.

# %%
eye = runtime.prepare(lpips_vgg16_hed(pretrained=not page.smoke))
committed = {name: page.weights(f"experts_{name}") for name in ("autoencoder", "namer", "judge")}
made_here = made if page.record else []  # the report run leaves these to the other pages
has_weights = pretrained and data == "emoji" and all(path.is_file() for path in committed.values())
# whose committed weights are looked at: of what this run keeps, its own
stands = {name: has_weights and name not in made_here for name in committed}


@torch.no_grad()
def judged(x: Tensor, y: Tensor, batch: int = 64) -> float:
    """Return the mean LPIPS-VGG16-HED of images x and y (N, 3, S, S)."""
    pairs = zip(x.split(batch), y.split(batch), strict=True)
    return torch.cat([eye(a.to(runtime.device), b.to(runtime.device)).cpu() for a, b in pairs]).mean().item()


best = runtime.prepare(load_autoencoder(committed["autoencoder"])) if stands["autoencoder"] else model
own = f"this run, {steps} steps"
named_best = "committed" if stands["autoencoder"] else own
after, latents = reconstruct(model, test_images, runtime)
best_after, best_latents = reconstruct(best, test_images, runtime)
hand_after, _ = reconstruct(best, hand_images, runtime)
rows = [
    [f"{dim} principal components", "unseen concepts", linear, test_images],
    ["frame and components", "unseen concepts", before, test_images],
    [own, "unseen concepts", after, test_images],
    *([["committed", "unseen concepts", best_after, test_images]] if stands["autoencoder"] else []),
    [named_best, "unseen hands", hand_after, hand_images],
]
scores = {
    (name, what): (psnr(y, x).mean().item(), (y - x).abs().mean().item(), judged(y, x))
    for name, what, y, x in rows
}
table(
    [[name, what, *values] for (name, what), values in scores.items()],
    header=["network", "drawings", "PSNR (dB)", "L1", "LPIPS-VGG16-HED"],
    digits=3,
)

# %%
picture(
    shown,
    *(y[torch.linspace(0, len(y) - 1, 16).long()] for y in (linear, best_after)),
    columns=8,
    rows=["test drawing", "components", named_best],
    alt=f"Sixteen unseen drawings, what {dim} principal components keep of them, and what the autoencoder keeps.",
    caption=f"Unseen concepts, what is left of them in {dim} principal components, and in {dim} numbers of the autoencoder.",
)

# %%
best_psnr = psnr(best_after, test_images).mean().item()
if (stands["autoencoder"] or is_trained) and not page.smoke:
    assert best_psnr >= 22, best_psnr  # what the next chapters build on
    assert (
        scores[named_best, "unseen concepts"][2] < scores[f"{dim} principal components", "unseen concepts"][2]
    )
ours, plainer = (scores[name, "unseen concepts"] for name in (named_best, f"{dim} principal components"))
say(
    f"The autoencoder ({named_best}) has **{ours[0]:.1f} dB** on concepts that it never saw, principal components {plainer[0]:.1f} dB, "
    f"and its perceptual distance is **{ours[2]:.2f}** against {plainer[2]:.2f}"
    + (
        ": where the components smear an edge, it draws one."
        if ours[2] < plainer[2]
        else ": so short a training sharpens nothing yet."
    )
)

# %% [markdown]
# Lifting keeps what differs from the background. A drawing of nearly the same colour, a white plane before a pale sky, is lifted in pieces, and the code never sees
# the rest. Principal components of whole pictures do not have this fault; it is the price of the frame.
#
# ### A code in order
#
# Principal components come in the order of what they tell, and the numbers behind the frame keep it. So a part of the code, from the front, is a code too:
# whoever wants fewer numbers takes the first ones, and leaves the others at their mean, 0. The invertible networks of the next chapters are to paint
# drawings that no one drew; each number more is one more to get right. They take the first 128, as many as the paper has.

# %% tags=["hide-input"]
brief = min(128, dim)
cuts = [k for k in (16, 32, 64, brief, 192, 256, dim) if k <= dim]
shorter = {k: reconstruct(best, test_images, runtime, kept=k)[0] for k in cuts}
fig, ax = figure(width="half")
ax.plot(cuts, [psnr(y, test_images).mean().item() for y in shorter.values()], **look("ours", marker=True))
ax.axvline(brief, **look("control"), label=f"{brief} numbers")
ax.set(xlabel="numbers of the code, from the front", ylabel="PSNR (dB), unseen concepts")
ax.legend()
show(
    fig,
    alt=f"PSNR rises from {psnr(shorter[cuts[0]], test_images).mean():.1f} dB with {cuts[0]} numbers to {best_psnr:.1f} dB with all.",
    caption="What the first numbers of the code keep of unseen concepts, the others left at 0.",
)
picture(
    shown[::2],
    *(shorter[k][torch.linspace(0, len(test_images) - 1, 16).long()][::2] for k in (32, brief, dim)),
    columns=8,
    rows=["test drawing", "32 numbers", f"{brief} numbers", f"all {dim}"],
    alt="Eight unseen drawings and what 32, 128 and all numbers of the code keep of them.",
    caption="Eight unseen drawings, and what is left of them in the first numbers of the code.",
)

# %% [markdown]
# ### Between two drawings, and out of nothing
#
# Is every latent a drawing? No. Ground, size, place and turn go straight from one drawing to the other; but the rest of the code is linear, so halfway lies a double exposure of both, which the
# decoder draws with clean edges. And random draws from the prior $\mathcal N(0, I)$ are confetti in a frame.

# %%
draw = derived_generator(seed, "prior")
ends = best_latents[torch.linspace(0, len(best_latents) - 1, 12).long()]
ways = [torch.lerp(a, b, torch.linspace(0, 1, 8)[:, None]) for a, b in zip(ends[:3], ends[6:9], strict=True)]
with torch.no_grad():
    between, random = (
        best.decode(z.to(runtime.device)).float().cpu().clamp(-1, 1)
        for z in (torch.cat(ways), torch.randn(8, best_latents.shape[1], generator=draw))
    )
picture(
    *between.split(8),
    random,
    columns=8,
    rows=["from one", "drawing", "to another", "from the prior"],
    alt="Three rows of eight pictures that change from one drawing into another; a fourth of draws from the prior.",
    caption="Straight lines between the latents of two test drawings; last row, latents drawn from the prior.",
)

# %%
correlated = np.corrcoef(best_latents.numpy().T) - np.eye(best_latents.shape[1])
tails = ((best_latents - best_latents.mean(0)) / best_latents.std(0)).pow(4).mean() - 3
say(
    f"The prior's draws look like no drawing, although the latents of drawings have mean {best_latents.mean():.2f}, standard deviation "
    f"{best_latents.std():.2f} and correlations of {np.abs(correlated).mean():.2f} on average: their tails are heavy "
    f"(excess kurtosis {tails:.1f}), and what two numbers know of each other is not in a correlation. To make noise of "
    f"latents, and latents of noise, is the work of an invertible network."
)

# %% [markdown]
# ## The namer
#
# A classifier is worth taking apart if it knows something and forgets something. This one knows 877 concepts, and should forget the hand:
# EfficientNet-Lite0 {cite}`tan2019efficientnet` from ImageNet, all layers fine-tuned, cross-entropy with smoothed labels.
#
# $$ \mathcal L = -\sum_k q_k \log p_k(x), \qquad q_k = (1 - \varepsilon)\,[k = y] + \varepsilon / K, \quad \varepsilon = 0.1 $$


# %%
def build_namer(n_classes: int, pretrained: bool = True) -> EfficientNetLite0:
    """Return EfficientNet-Lite0 with ImageNet weights and a new, small last layer of ``n_classes``."""
    net = EfficientNetLite0(n_classes)
    known = efficientnet_lite0(pretrained).state_dict()
    net.load_state_dict({k: v for k, v in known.items() if not k.startswith("fc.")}, strict=False)
    return net


def namer_step(
    net: EfficientNetLite0, optimizer: torch.optim.Optimizer, runtime: Runtime
) -> Callable[[dict[str, Tensor], int], dict[str, Tensor]]:
    """Return ``step(batch, t) -> parts``: cross-entropy with labels smoothed by 0.1, gradients cut at norm 5."""

    def step(batch: dict[str, Tensor], t: int) -> dict[str, Tensor]:
        with runtime.autocast():
            logits = net.logits(batch["image"])
        loss = F.cross_entropy(logits.float(), batch["concept"], label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        runtime.clip(optimizer, 5.0)
        optimizer.step()
        right = (logits.argmax(1) == batch["concept"]).float().mean()
        return {"cross-entropy": loss.detach(), "right": right}

    return step


@torch.no_grad()
def name_logits(net: EfficientNetLite0, images: Tensor, runtime: Runtime, batch: int = 128) -> Tensor:
    """Return logits (N, classes) of images (N, 3, S, S), float32 on the CPU."""
    return torch.cat([net.logits(x.to(runtime.device)).float().cpu() for x in images.split(batch)])


def top(logits: Tensor, labels: Tensor, k: int = 1) -> float:
    """Return how often the label (N,) is among the ``k`` highest logits (N, classes)."""
    return (logits.topk(k).indices == labels[:, None]).any(1).float().mean().item()


# %%
seed_everything(seed)
namer = plain.prepare(build_namer(n_classes, pretrained=not page.smoke))
namer_check = torch.linspace(0, len(named["validation"]) - 1, 16 if page.smoke else 512).long()
namer_check_images = named["validation"].images(
    namer_check, generator=derived_generator(0, "drawn once", "naming"), augment=True
)
namer_config = {
    "expert": "namer",
    "seed": seed,
    "steps": namer_steps,
    "batch_size": namer_batch,
    "data": named["train"].hash,
    "model": {"n_classes": n_classes},
    "learning_rate": namer_learning_rate,
    "precision": plain.precision,
}
namer_optimizer = torch.optim.AdamW(namer.parameters(), lr=namer_learning_rate, weight_decay=0.05)
namer_run = fit(
    run_folder(run_dir, "namer", namer_config),
    config=namer_config,
    modules={"namer": namer},
    optimizers={"namer": namer_optimizer},
    batches=named["train"].batches(namer_batch, seed=seed, device=plain.device),
    step=namer_step(namer, namer_optimizer, plain),
    steps=namer_steps,
    runtime=plain,
    schedules={"namer": warmup_linear(max(1, namer_steps // 20), namer_steps)},
    evaluate=lambda done: {
        "right": top(
            name_logits(namer, namer_check_images, plain), named["validation"].labels["concept"][namer_check]
        )
    },
)

# %% [markdown]
# ### Does it see past the hand?
#
# The drawings below are by hands that the namer never saw draw these concepts.

# %%
best_namer = plain.prepare(load_namer(committed["namer"])) if stands["namer"] else namer
labels = named["test"].labels["concept"][
    torch.linspace(0, len(named["test"]) - 1, len(hand_images)).round().long()
]
hand_logits = name_logits(best_namer, hand_images, plain)
own_logits = name_logits(namer, hand_images, plain)
table(
    [
        ["chance", 100 / n_classes, 500 / n_classes],
        [f"this run, {namer_steps} steps", *(100 * top(own_logits, labels, k) for k in (1, 5))],
        *([["committed", *(100 * top(hand_logits, labels, k) for k in (1, 5))]] if stands["namer"] else []),
    ],
    header=["network", "right (%)", "right among five (%)"],
    digits=1,
)

# %%
names = named["test"].label_names["concept"]
guess = hand_logits.argmax(1)
wrong = (guess != labels).nonzero()[:, 0]
mistaken = wrong[torch.linspace(0, len(wrong) - 1, min(8, len(wrong))).long()]
where = [int((named["train"].labels["concept"] == k).nonzero()[0]) for k in guess[mistaken]]
picture(
    hand_images[mistaken],
    named["train"].images(torch.tensor(where)),
    columns=8,
    rows=["test drawing", "taken for"],
    alt="Eight test drawings that were named wrongly, and below each a training drawing of the concept it was taken for.",
    caption="Eight of the errors, evenly spaced. Below, a training drawing of the concept it was taken for.",
)

# %%
if (stands["namer"] or is_trained) and not page.smoke:
    assert top(hand_logits, labels) > 0.3
say(
    f"{top(hand_logits, labels):.0%} of the drawings by unseen hands are named rightly among {n_classes} concepts, "
    f"{top(hand_logits, labels, 5):.0%} among the first five guesses. For example, *{names[labels[mistaken[0]]]}* was taken for *{names[guess[mistaken[0]]]}*."
)

# %% [markdown]
# Can the autoencoder's pictures still be named? If not, everything that is measured through them is blurred. The ratio of the two rates says how much is left of
# what this namer needs. The pages that follow paint with another decoder, that of {doc}`experts_brief`, and compare what they find with its rates.

# %%
fog = top(name_logits(best_namer, hand_after, plain), labels)
clear = top(hand_logits, labels)
say(
    f"Reconstructions of the same drawings are named rightly in **{fog:.0%}** of cases, the drawings themselves in "
    f"{clear:.0%}: the autoencoder keeps {fog / max(clear, 1e-9):.0%} of what can be named."
)

# %% [markdown]
# ## The judge
#
# The chapters ask of pictures that no one drew: is it still a cat? whose hand? on which ground, how large, turned how far? The namer may
# not answer, for it is what is being examined. So a third network, of another build and from nothing, is made as a measuring instrument. It learns
# from *all* hands, and from reconstructions as often as from drawings, half of these from the first 128 numbers: what it cannot see is then missing in the
# picture, not unknown to the judge.


# %%
class Benches:
    """Endless batches of drawings by all hands, half of them copies: what the autoencoder makes of drawings.

    Half of the copies are from the first ``kept`` numbers of the code. Each drawing has one copy of either kind, with factors of its
    own, which is made when it is first asked for and kept (8 bits), since to decode costs as much as a step of the judge.
    """

    def __init__(
        self, data: Dataset, size: int, autoencoder: VectorAutoencoder, seed: int, runtime: Runtime, kept: int
    ) -> None:
        self.data, self.source = data, data.batches(size, seed=seed, device=runtime.device)
        self.autoencoder, self.runtime, self.kept = autoencoder, runtime, (None, kept)
        everything, side = torch.arange(len(data)), data.image_size
        self.draws = [data.draw(everything, derived_generator(seed, "copies", k), True) for k in range(2)]
        self.copies = torch.zeros(2, len(data), 3, side, side, dtype=torch.uint8)
        self.factors = torch.zeros(2, len(data), len(Factors.NAMES))
        self.is_made = torch.zeros(2, len(data), dtype=torch.bool)

    def copied(self, k: int, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the copies (B, 3, S, S) in [-1, 1] of kind ``k`` of the drawings ``index``, and their factors (B, 8)."""
        new = index[~self.is_made[k, index]].unique()
        if len(new):
            drawn = self.data.render(new, self.draws[k][new])
            made, _ = reconstruct(self.autoencoder, drawn["image"], self.runtime, kept=self.kept[k])
            self.copies[k, new] = ((made + 1) * 127.5).round().to(torch.uint8)
            self.factors[k, new], self.is_made[k, new] = drawn["factors"].float(), True
        return self.copies[k, index] / 127.5 - 1, self.factors[k, index]

    def __iter__(self) -> "Benches":
        return self

    def __next__(self) -> dict[str, Tensor]:
        batch = next(self.source)
        quarter, device = len(batch["image"]) // 4, self.runtime.device
        for k in range(2):
            rows = slice(k * quarter, (k + 1) * quarter)
            images, factors = self.copied(k, batch["index"][rows].cpu())
            batch["image"][rows], batch["factors"][rows] = images.to(device), factors.to(device)
        return batch

    def state_dict(self) -> dict[str, int]:
        """As of the batches of drawings."""
        return self.source.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """As of the batches of drawings."""
        self.source.load_state_dict(state)


def judge_step(
    judge: Judge, optimizer: torch.optim.Optimizer, runtime: Runtime
) -> Callable[[dict[str, Tensor], int], dict[str, Tensor]]:
    """Return ``step(batch, t) -> parts``: cross-entropies of concept and hand, squared errors of the nine factors."""

    def step(batch: dict[str, Tensor], t: int) -> dict[str, Tensor]:
        with runtime.autocast():
            said = Judgement(*(answer.float() for answer in judge(batch["image"])))
        concept = F.cross_entropy(said.concept, batch["concept"])
        hand = F.cross_entropy(said.hand, batch["hand"])
        factors = F.mse_loss(said.factors, factor_targets(batch["factors"]))
        optimizer.zero_grad(set_to_none=True)
        (concept + hand + 3 * factors).backward()
        runtime.clip(optimizer, 10.0)
        optimizer.step()
        return {"concept": concept.detach(), "hand": hand.detach(), "factors": factors.detach()}

    return step


@torch.no_grad()
def judgements(judge: Judge, images: Tensor, runtime: Runtime, batch: int = 128) -> Judgement:
    """Return what the judge says of images (N, 3, S, S), float32 on the CPU."""
    found = [judge(x.to(runtime.device)) for x in images.split(batch)]
    return Judgement(
        *(torch.cat([answer.float().cpu() for answer in answers]) for answers in zip(*found, strict=True))
    )


def judge_scores(said: Judgement, concept: Tensor, hand: Tensor, factors: Tensor) -> dict[str, float]:
    """Return how often concept (N,) and hand (N,) are right, and R² of the factors (N, 8), by group."""
    right = {"concept": top(said.concept, concept), "hand": top(said.hand, hand)}
    return right | explained(said.factors, factors)


# %%
jury = emoji_naming.load("all", image_size)
n_hands = len(jury.label_names["hand"])
seed_everything(seed)
judge = runtime.prepare(Judge(n_classes, n_hands, image_size // 16))
copyist = model if "autoencoder" in made else best
judge_config = {
    "expert": "judge",
    "seed": seed,
    "steps": judge_steps,
    "batch_size": namer_batch,
    "data": jury.hash,
    "model": dict(judge.config),
    "learning_rate": 2e-3,
    "autoencoder": weights_digest(copyist),  # whose reconstructions it sees
    "kept": brief,  # of the code, in half of them
    "copies": 2,  # of each drawing
    "precision": runtime.precision,
}
judge_optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=0.05)
judge_run = fit(
    run_folder(run_dir, "judge", judge_config),
    config=judge_config,
    modules={"judge": judge},
    optimizers={"judge": judge_optimizer},
    batches=Benches(jury, namer_batch, copyist, seed, runtime, brief),
    step=judge_step(judge, judge_optimizer, runtime),
    steps=judge_steps,
    runtime=runtime,
    schedules={"judge": warmup_linear(max(1, judge_steps // 20), judge_steps)},
)

# %% [markdown]
# Its accuracy is judged on drawings with factors that it has not met, and on their reconstructions; the concepts and hands are those it learned.

# %%
best_judge = runtime.prepare(load_judge(committed["judge"])) if stands["judge"] else judge
places = torch.linspace(0, len(jury) - 1, 16 if page.smoke else 1024).long()
fresh = jury.render(places, jury.draw(places, derived_generator(0, "drawn once", "jury"), True))
again, briefly = (reconstruct(best, fresh["image"], runtime, kept=kept)[0] for kept in (None, brief))
truth = (jury.labels["concept"][places], jury.labels["hand"][places], fresh["factors"])
on_drawings = judge_scores(judgements(best_judge, fresh["image"], runtime), *truth)
on_copies = judge_scores(judgements(best_judge, again, runtime), *truth)
on_brief = judge_scores(judgements(best_judge, briefly, runtime), *truth)
table(
    [[name, on_drawings[name], on_copies[name], on_brief[name]] for name in on_drawings],
    header=["concept, hand: part right; else R²", "drawings", "reconstructions", f"from {brief} numbers"],
    digits=2,
)

# %%
if (stands["judge"] or is_trained) and not page.smoke:
    assert on_copies["concept"] > 0.5 and on_copies["hand"] > 0.5 and on_copies["background"] > 0.95
say(
    f"The judge names {on_copies['concept']:.0%} of the concepts and {on_copies['hand']:.0%} of the hands in reconstructions, "
    f"{on_brief['concept']:.0%} and {on_brief['hand']:.0%} in those from {brief} numbers "
    f"(chance {1 / n_classes:.1%} and {jury.labels['hand'].bincount().max() / len(jury):.0%}). Shift has an R² of {on_copies['shift']:.2f}, "
    f"the turn of the hue {on_copies['hue']:.2f}: a hue can be told only by who knows the colours that a thing has by itself."
)

# %% [markdown]
# ## The ImageNet network
#
# Nothing to train. A look that it is what it claims to be: three photographs, and what it says they show.

# %%
NAMES = {
    281: "tabby",
    282: "tiger cat",
    285: "Egyptian cat",
    504: "coffee mug",
    967: "espresso",
    657: "missile",
}
NAMES |= {744: "projectile", 968: "cup", 812: "space shuttle", 969: "eggnog", 550: "espresso maker"}
imagenet = plain.prepare(efficientnet_lite0(pretrained=not page.smoke))
freeze(imagenet)
views = []
for name in ("chelsea.png", "coffee.png", "rocket.jpg"):
    whole = torch.from_numpy(read_picture(member("photos-skimage", name)).copy())
    views.append(imagenet.crop(to_float(whole.permute(2, 0, 1)[None])))
photographs = torch.cat(views)
with torch.no_grad():
    said = imagenet.logits(photographs.to(plain.device)).softmax(1).cpu()
if not page.smoke:
    assert int(said[0].argmax()) in (281, 282, 285)  # Chelsea is a cat
picture(
    photographs,
    scale=1,
    smooth=True,
    quality=80,
    columns=3,
    titles=[f"{NAMES.get(int(p.argmax()), f'class {int(p.argmax())}')}: {p.max():.0%}" for p in said],
    alt="A cat, a cup of coffee and a rocket.",
    caption="Three photographs at the size the network was made for, the class it names first and the probability it gives.",
)

# %% [markdown]
# ```{admonition} Where this departs from the paper and its code
# :class: note
#
# | paper or original code | here | why |
# |---|---|---|
# | encoder ResNet-101, decoder BigGAN, 128 px, 1.7 M steps | 5.0 M parameters, 64 px, 800 steps | a laptop |
# | all of the code is learned from pictures alone | eight numbers of it are the frame, taught by the renderer | in principal components of whole pictures, flows as large as those of the next page had learned nothing of the concept when they began to learn drawings by heart (a trial, not recorded) |
# | networks start from noise | the rest of the encoder is linear and starts at the principal components; the decoder refines what they paint | a network that starts from noise would first have to find them |
# | LPIPS over the whole image | VGG-19 (8-bit) over a random window of half the side | a quarter of the work |
# | the critic's gradient is as long as the other's from its first step | its share is also cut by its margin | a critic that knows nothing has no say |
# | classifiers that exist | the namer is fine-tuned here, on drawings whose hand and factors are known | so that what it forgets can be measured |
# ```

# %%
card = {"command": "make report CHAPTER=experts", "licence": "CC BY-SA 4.0"}
if "autoencoder" in made_here:
    page.keep_weights(
        "experts_autoencoder",
        model,
        card
        | {
            "kind": "autoencoder",
            "steps": steps,
            "model": model.config,
            "data": f"emoji, {image_size} px with factors, {train.hash}",
            "commit": trained.result["commit"],
        },
        scores={
            "test PSNR (dB), unseen concepts": psnr(after, test_images).mean().item(),
            f"the same of {dim} principal components": psnr(linear, test_images).mean().item(),
        },
        limits="Emoji-like drawings of 64 px on one colour; thin lines and lettering are lost. No use beyond this book is intended.",
    )
if "namer" in made_here:
    page.keep_weights(
        "experts_namer",
        namer,
        card
        | {
            "kind": "namer",
            "steps": namer_steps,
            "model": {"n_classes": n_classes},
            "classes": named["train"].label_names["concept"],
            "data": f"emoji, {image_size} px with factors, {named['train'].hash}",
            "commit": namer_run.result["commit"],
        },
        scores={f"right among {k}, unseen hands": top(own_logits, labels, k) for k in (1, 5)},
        limits="Names 877 concepts of emoji at 64 px; always names one. No use beyond this book is intended.",
    )
if "judge" in made_here:
    page.keep_weights(
        "experts_judge",
        judge,
        card
        | {
            "kind": "judge",
            "steps": judge_steps,
            "model": judge.config,
            "hands": jury.label_names["hand"],
            "data": f"emoji, {image_size} px with factors, {jury.hash}",
            "commit": judge_run.result["commit"],
        },
        scores={f"{name}, reconstructions": value for name, value in on_copies.items()},
        limits="A measuring instrument for emoji-like pictures of 64 px that has seen every hand. No use beyond this book is intended.",
    )

# %%
page.finish(runtime)
