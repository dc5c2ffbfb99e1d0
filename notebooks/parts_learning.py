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
# # Who is taught by what
#
# The model of {doc}`parts_model` has five networks, and five losses ask something of them. This page says which loss teaches which network, and when. Then it
# shows the schedule of the priors, what a step costs beside the released one, and the loop that trains. {doc}`parts` runs that loop on people, and
# {doc}`parts_claims` runs it for every arm and seed.
#
# | | claim of the paper {cite}`braun2020parts` | what of it is here |
# |---|---|---|
# | P2 | The constraint leaves less about colours in the shape code | the loss, and whom it teaches |
# | P7 | Sharpness and concentration are due to their priors | their schedule |
#
# | scale | command | what it needs |
# |---|---|---|
# | quick, and all there is | `papermill notebooks/parts_learning.ipynb out.ipynb` | half a minute of one CPU core, no data |
#
# Reading time: 10 minutes.

# %%
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from cvlib.data import Dataset
from cvlib.data.bodies import MERGED
from cvlib.errors import BookError
from cvlib.metrics.segmentation import many_to_one, overlaps, segmentation_scores
from cvlib.nn import VGG, vgg19
from cvlib.notebooks.parts_model import (
    HEAD_START,
    AppearanceEncoder,
    Critic,
    Duals,
    Generator,
    PartsConfig,
    SegmentationDecoder,
    ShapeEncoder,
    assembled,
    critic_loss,
    entropy,
    grid_places,
    hard_masks,
    lagrangian,
    multiply_adds,
    mumford_shah,
    outside_patch,
    paper_config,
    smoothness,
    spread,
    wide,
)
from cvlib.pages import begin
from cvlib.show import figure, look, say, show, table
from cvlib.train import Runtime, fit, run_folder, seed_everything, warmup_linear

# %% tags=["parameters"]
seed = 0

# %%
page = begin("parts_learning", globals())
runtime = Runtime(device="cpu", precision="fp32")  # small cases, and counts of operations
seed_everything(seed)
rng = torch.Generator().manual_seed(seed)

# %% [markdown]
# ## Five losses and their addressees
#
# Each loss has its addressees, and this is easy to get wrong. The priors are there to shape the *decoder*; let them into the
# encoder and the cheapest way to please them is a code that says nothing. The critics' loss must not reach the encoder, and the
# encoder's fight must not blunt the critic.
#
# | loss | $E_\pi$ | $D_S$ | $E_\alpha$ | $G$ | critics |
# |---|---|---|---|---|---|
# | reconstruction | x | x | x | x | |
# | constraint, bottleneck | x | | | | |
# | priors | | x | | | |
# | critics' own | | | | | x |
#
# In one line, with $E_\pi$ for the encoder of the shape code and $\operatorname{sg}$ for a stopped gradient,
#
# $$ \mathcal L = \underbrace{w\,d(\hat x, x)}_{\text{reconstruction}} + \underbrace{\mathcal P\bigl(D_S(\operatorname{sg}\pi)\bigr)}_{\text{priors}}
#    + \underbrace{e^{r}\,\mathrm{KL}}_{\text{bottleneck}} + \underbrace{\mathcal L_\text{adv}(\pi)}_{\text{constraint}}
#    + \underbrace{\textstyle\sum_k \mathcal L_{T_k}(\operatorname{sg}\pi, \operatorname{sg}\alpha)}_{\text{critics}} . $$
#
# $\mathcal L_\text{adv}$, $\mathcal L_T$ and the priors $\mathcal P$ are those of {doc}`parts_model`. In $\mathcal L_\text{adv}$ the critic's weights are
# stopped as well.
#
# The original builds a gradient for each column and computes the reconstruction several times over. The table can be had with
# **one** backward pass: the priors look at a second decoding of the *detached* code, the critics at detached codes, and the
# constraint at a critic whose weights are detached. A second decoding is affordable once the decoder is cheap.


# %%
@dataclass(frozen=True)
class Objective:
    """What is asked of the model, and when.

    Between ``begin`` and ``finish`` (in parts of the run) the weights of the categorical prior and of the
    head start (the grid of :func:`grid_places`, added to all logits; 0 for none) fall to nothing and those
    of sharpness and concentration rise geometrically from their first value to their second. Until
    ``soft_until`` masks are soft, then straight-through. ``reconstruction`` multiplies the paper's weight:
    plain differences are smaller numbers than those of VGG's five layers. ``both_ways`` paints both images
    of a pair, each from the other's appearance; the paper paints the first. ``is_routed=False`` lets the
    priors into the encoder: one summed loss.
    """

    mi_target: float = 0.1
    mi_slack: float = 0.05
    is_constrained: bool = True
    r_range: tuple[float, float] = (-2.0, 1.0)
    r_pace: float = 0.5
    noise: float = 1.0
    reconstruction: float = 8.0
    head_start: float = HEAD_START["plain"]
    smooth: float = 1e-3
    categorical: float = 8.0
    sharpness: tuple[float, float] = (1.0, 120.0)
    concentration: tuple[float, float] = (1.0, 15.0)
    mumford_shah: float = 1e-5
    patch: float = 0.02
    patch_side: float = 0.25
    begin: float = 0.15
    finish: float = 0.65
    soft_until: float = 0.8
    both_ways: bool = True
    is_routed: bool = True

    def at(self, progress: float) -> dict[str, float]:
        """Return the weights of the priors at ``progress`` from 0 to 1."""
        ramp = min(1.0, max(0.0, (progress - self.begin) / (self.finish - self.begin)))

        def rising(low: float, high: float) -> float:
            return low * (high / low) ** ramp

        return {
            "head_start": self.head_start * (1 - ramp),
            "categorical": self.categorical * (1 - ramp),
            "sharpness": rising(*self.sharpness),
            "concentration": rising(*self.concentration),
            "smooth": self.smooth,
            "mumford_shah": self.mumford_shah,
            "patch": self.patch,
        }


def paper_objective() -> Objective:
    """Return the paper's weights (authors' code: CUB), and its edits between restarts as one schedule:
    sharpness late.
    """
    return Objective(
        r_range=(-3.0, 7.5),
        r_pace=0.05,
        reconstruction=1.0,
        head_start=0.0,
        categorical=1.0,
        sharpness=(1.0, 500.0),
        concentration=(1.0, 1.0),
        patch=1e-4,
        begin=0.5,
        finish=0.95,
        soft_until=0.0,
        both_ways=False,
    )


def pyramid_distance(x: Tensor, y: Tensor, levels: int = 3) -> Tensor:
    """Return how far images (B, 3, H, W) in [-1, 1] lie apart, (B,): at each of ``levels`` sizes, the mean
    of |d| + d² and of half the difference between neighbouring d.
    """
    total = x.new_zeros(len(x))
    for level in range(levels):
        d = F.avg_pool2d(x - y, 2**level)
        total = total + (d.abs() + d.square()).mean((1, 2, 3))
        total = total + 0.5 * (d.diff(dim=2).abs().mean((1, 2, 3)) + d.diff(dim=3).abs().mean((1, 2, 3)))
    return total / levels


class VggDistance(nn.Module):
    """Distance (B,) of images: mean absolute differences of the pixels and of VGG-19 from relu1_2 to
    relu5_2, added.

    In units of [-1, 1], as :func:`pyramid_distance`. The paper resizes to 256 px and crops 224 at random:
    ``side``.
    """

    LAYERS = ("relu1_2", "relu2_2", "relu3_2", "relu4_2", "relu5_2")

    def __init__(self, net: VGG, side: int = 0) -> None:
        super().__init__()
        self.net, self.side = net, side

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.side:
            x, y = (
                F.interpolate(z, (self.side, self.side), mode="bilinear", align_corners=False) for z in (x, y)
            )
        total = (x - y).abs().mean((1, 2, 3))
        with torch.no_grad():
            known = self.net(y, self.LAYERS)
        found = self.net(x, self.LAYERS)
        return total + sum((found[k] - known[k]).abs().mean((1, 2, 3)) for k in self.LAYERS) / 127.5


def detached_call(module: nn.Module, *inputs: Tensor) -> Tensor:
    """Return ``module(*inputs)`` with a gradient to the inputs and none to the module's parameters."""
    return functional_call(module, {k: p.detach() for k, p in module.named_parameters()}, inputs)


# %%
class PartsModel(nn.Module):
    """Everything that learns, and the duals. Source: Braun et al. 2020; the routing as in the authors'
    code.

    ``distance(x, y)`` (B,) compares what is painted with what should be.
    """

    MODULES = ("shape", "decoder", "appearance", "generator", "critics")

    def __init__(
        self, config: PartsConfig, objective: Objective, distance: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.config, self.objective, self.distance = config, objective, distance
        self.shape, self.decoder = ShapeEncoder(config), SegmentationDecoder(config)
        self.appearance, self.generator = AppearanceEncoder(config), Generator(config)
        sizes = (config.dim_pi, config.dim_alpha, config.critic_width, config.critic_blocks)
        self.critics = nn.ModuleList(Critic(*sizes) for _ in range(3))  # adversary, monitor, one to compare
        self.duals = Duals(*objective.r_range, objective.r_pace)
        self.register_buffer("places", grid_places(config.n_parts, config.image_size), persistent=False)
        self.register_buffer("head_start", torch.zeros(()))  # of the last training step

    def logits(self, pi: Tensor) -> Tensor:
        """Return the logits (B, P, S, S) of the parts for codes (B, d)."""
        return self.decoder(pi) + self.head_start * self.places

    def noisy(self, logits: Tensor) -> Tensor:
        """Return soft masks of logits with Gaussian noise."""
        return (logits + self.objective.noise * torch.randn_like(logits)).softmax(1)

    def prior(self, logits: Tensor, weights: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the priors, averaged over images, and what is worth logging."""
        soft, objective = self.noisy(logits), self.objective
        h, v = entropy(soft).mean(), spread(soft).mean()
        total = weights["smooth"] * smoothness(logits).mean() + weights["concentration"] * v
        total = total + weights["categorical"] * (math.log(soft.shape[1]) - h) + weights["sharpness"] * h
        if weights["mumford_shah"]:
            total = total + weights["mumford_shah"] * mumford_shah(soft).mean()
        if weights["patch"]:
            total = total + weights["patch"] * outside_patch(soft, objective.patch_side).mean()
        return total, {"entropy": h.detach(), "spread": v.detach()}

    def losses(self, x1: Tensor, x2: Tensor, progress: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the losses of pairs of images (B, 3, S, S), by name, and values to log; their sum is to be
        descended.
        """
        objective, b = self.objective, len(x1)
        weights = objective.at(progress)
        self.head_start.fill_(weights["head_start"])
        x = torch.cat([x1, x2])
        posterior = self.shape(x)
        pi = posterior.sample()
        logits = self.logits(pi)
        soft = self.noisy(logits)
        masks = hard_masks(soft) if progress >= objective.soft_until else soft
        targets = x if objective.both_ways else x1
        if objective.both_ways:
            alpha = self.appearance.of_parts(x, masks).roll(b, 0)  # of the partner
        else:
            alpha = self.appearance.of_parts(x2, masks[b:])
        masks = masks[: len(targets)]
        made = self.generator(assembled(masks, alpha), masks)
        # the paper's factor for pixels in 0..255, 1e-3 / 2 for each of the image's values
        scale = objective.reconstruction * 0.5e-3 * x[0].numel() * 127.5
        losses = {"reconstruction": scale * self.distance(made, targets).mean()}
        free = self.logits(pi[:b].detach()) if objective.is_routed else logits[:b]
        losses["priors"], log = self.prior(free, weights)

        with torch.no_grad():
            whole = self.appearance(x).roll(b, 0)
        pair = torch.arange(b, device=x.device).repeat(2)
        tables = [critic(pi.detach(), whole) for critic in self.critics]
        losses["critics"] = sum(critic_loss(T, pair[:, None] != pair) for T in tables)
        kl = posterior.kl().mean()
        losses["bottleneck"] = self.duals.r.exp() * kl
        c0, c1, c2 = (T.detach().diagonal().mean() for T in tables)
        if objective.is_constrained:
            g = (
                detached_call(self.critics[0], pi, whole).diagonal().mean()
                - (1 - objective.mi_slack) * objective.mi_target
            )
            losses["constraint"] = lagrangian(g, self.duals.lam.clone())
            log["g"] = g.detach()
        log |= {
            "C0": c0,
            "C1": c1,
            "C2": c2,
            "kl": kl.detach(),
            "lam": self.duals.lam.clone(),
            "r": self.duals.r.clone(),
        }
        return losses, log

    def forward(self, x1: Tensor, x2: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the losses and the log, losses included."""
        losses, log = self.losses(x1, x2, progress)
        return sum(losses.values()), log | {name: loss.detach() for name, loss in losses.items()}

    @torch.no_grad()
    def parts(self, x: Tensor) -> Tensor:
        """Return the part of every pixel of images (B, 3, S, S), int64 (B, S, S): the mean code, no noise."""
        return self.logits(self.shape(x).mean).argmax(1)

    @torch.no_grad()
    def alphas(self, x: Tensor, ids: Tensor) -> Tensor:
        """Return the appearance (B, P, d) of the parts ``ids`` (B, S, S) of images."""
        return self.appearance.of_parts(x, F.one_hot(ids, self.config.n_parts).movedim(-1, 1).to(x.dtype))

    @torch.no_grad()
    def paint(self, ids: Tensor, alpha: Tensor) -> Tensor:
        """Return images (B, 3, S, S), clamped to [-1, 1], of parts (B, S, S) in appearances (B, P, d)."""
        masks = F.one_hot(ids, self.config.n_parts).movedim(-1, 1).to(alpha.dtype)
        return self.generator(assembled(masks, alpha), masks).clamp(-1, 1)


# %% [markdown]
# Believe no table: below, every loss is sent back **alone** through a tiny model, and we note which networks it moves. Then
# the one backward pass of the sum must give each network exactly the sum of what the table allows it.


# %%
def moved_by(model: PartsModel, losses: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return, for each loss by name, the flat gradient of each network (a vector; zeros where the loss does
    not reach).
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, loss in losses.items():
        found[name] = {}
        for part in PartsModel.MODULES:
            parameters = list(getattr(model, part).parameters())
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            filled = [
                torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)
            ]
            found[name][part] = torch.cat([g.flatten() for g in filled])
    return found


ROUTES = {
    "reconstruction": ("shape", "decoder", "appearance", "generator"),
    "priors": ("decoder",),
    "critics": ("critics",),
    "bottleneck": ("shape",),
    "constraint": ("shape",),
}
tiny_config = PartsConfig(
    image_size=16, n_parts=4, dim_pi=8, dim_alpha=6, shape_widths=(8, 8), decoder_widths=(8, 8), generator_widths=(8, 8),
    appearance_widths=(8,), critic_width=16, critic_blocks=1,
)  # fmt: skip
tiny = PartsModel(tiny_config, Objective(), pyramid_distance)
tiny.duals.lam.fill_(3.0)
small = torch.rand(6, 3, 16, 16, generator=rng) * 2 - 1
tiny_losses, _ = tiny.losses(small[:3], small[3:], 1.0)
moved = moved_by(tiny, tiny_losses)
sum(tiny_losses.values()).backward()

# %%
for name, by_part in moved.items():
    assert {part for part, g in by_part.items() if g.abs().max() > 0} == set(ROUTES[name]), name
for part in PartsModel.MODULES:
    together = torch.cat([p.grad.flatten() for p in getattr(tiny, part).parameters()])
    apart = sum(moved[name][part] for name in moved)
    assert torch.allclose(together, apart, atol=1e-4 * apart.abs().max().item()), part
table(
    [
        [
            name,
            *(f"{by_part[part].norm():.3g}" if part in ROUTES[name] else "" for part in PartsModel.MODULES),
        ]
        for name, by_part in moved.items()
    ],
    header=["loss", *PartsModel.MODULES],
    caption="Length of each loss's gradient in each network of a tiny model, from separate backward passes. Empty: exactly zero.",
)

# %% [markdown]
# ## When
#
# A map that is decided too early stays as it is: where a part has no share of a pixel, no gradient ever offers it one. So at first all parts stay in play. The
# categorical prior holds them there, and each has a head start in a cell of a grid, while the generator finds out which are useful where. Then both fade, and
# sharpness and concentration rise, evenly on a logarithmic scale. The patch prior acts all the time: whatever of a part lies outside a window around its centre
# costs, so a wall takes many parts and a body cannot be one. {doc}`parts_model` shows why concentration must start small and why a part needs a place to begin; two
# arms of {doc}`parts_claims` leave out the head start and the window. The authors edited such weights by hand between restarts.

# %%
progress = torch.linspace(0, 1, 201)
fig, axes = figure(columns=2, height=2.9)
for ax, (title, objective) in zip(
    axes, (("here", Objective()), ("paper's shapes", paper_objective())), strict=True
):
    for term, role in (("categorical", "control"), ("sharpness", "ours"), ("concentration", "baseline")):
        ax.plot(progress, [objective.at(float(t))[term] for t in progress], **look(role), label=term)
    ax.set(xlabel="part of the run", ylabel="weight", yscale="symlog", ylim=(0, 1000), title=title)
    if objective.soft_until:
        ax.axvline(objective.soft_until, **look("paper"), label="masks harden")
    ax.legend(loc="upper left", fontsize="small")
here = Objective()
assert [here.at(t)["concentration"] for t in (0.0, here.begin, 1.0)] == [here.concentration[0]] * 2 + [
    here.concentration[1]
]
show(
    fig,
    alt=f"Here the categorical weight falls from {here.categorical:g} to 0 while sharpness rises to {here.sharpness[1]:g} and concentration to {here.concentration[1]:g}; "
    "with the paper's weights sharpness alone rises, late.",
    caption="Weights of three priors over a run. Left: the small networks of this book. Right: what `network=paper` takes, the authors' edits drawn together into one run.",
)

# %% [markdown]
# ## What a step costs
#
# At the paper's shapes: one pair painted one way, judged by VGG-19 at 224 px, forward and backward. The rival is a lower bound for the released step: its wide
# decoder, everything else the same, and a single backward pass of one sum. That sum would teach the wrong networks, and the original makes several passes, so the
# real step costs more.


# %%
def step_work(config: PartsConfig, objective: Objective, side: int, net: VGG | None) -> float:
    """Return the multiply-adds of a training step on one pair, forward and backward, without computing it."""
    with torch.device("meta"):
        distance = VggDistance(net, side) if net is not None else pyramid_distance
        model = PartsModel(config, objective, distance)
        x = torch.zeros(1, 3, config.image_size, config.image_size)
        return multiply_adds(lambda: model(x, x, 1.0)[0].backward())


judge = vgg19(pretrained=False).to("meta")
one_way = Objective(both_ways=False)
work = {
    "paper shapes, falling widths": step_work(paper_config(), one_way, 224, judge),
    "paper shapes, released decoder": step_work(
        wide(paper_config()), replace(one_way, is_routed=False), 224, judge
    ),
    "small, pyramid": step_work(PartsConfig(), Objective(), 0, None),
    "small, VGG-19": step_work(PartsConfig(), Objective(), 0, judge),
}

# %%
assert work["paper shapes, released decoder"] > 1.35 * work["paper shapes, falling widths"], work
table(
    [[name, f"{value / 1e9:,.2f}"] for name, value in work.items()],
    header=["step", "billion multiply-adds a pair"],
)
say(
    f"The whole step at the paper's shapes takes **{work['paper shapes, released decoder'] / work['paper shapes, falling widths']:.2f} times** "
    f"less work than the released one. At our size a step with VGG-19 would cost {work['small, VGG-19'] / work['small, pyramid']:.0f} times as much "
    f"as one with a pyramid of plain differences: hence the pyramid."
)

# %% [markdown]
# ## The loop
#
# One optimiser trains all networks, the critics at a higher rate; the multipliers move after the weights. During training the segmentations of a few people are
# kept in an album, which is part of every checkpoint. Labels only draw a curve for the reader; they decide nothing.


# %%
class Album(nn.Module):
    """Snapshots of masks, uint8 (n, B, S, S), and the steps they were taken at; a buffer, so that a resumed
    run has them.
    """

    def __init__(self, n: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.register_buffer("pages", torch.zeros(n, *shape, dtype=torch.uint8))
        self.register_buffer("steps", torch.zeros(n, dtype=torch.long))

    def put(self, ids: Tensor, step: int) -> None:
        """Keep masks (B, S, S) of ``step`` on the first free page; beyond the last there is no room, and
        nothing is kept.
        """
        free = (self.steps == 0).nonzero()
        if len(free):
            self.pages[free[0, 0]] = ids.to(self.pages)
            self.steps[free[0, 0]] = step


@dataclass(frozen=True)
class Recipe:
    """How to train, whatever is asked."""

    steps: int = 400
    batch_size: int = 8
    learning_rate: float = 1e-3
    critic_pace: float = 4.0  # times the learning rate
    betas: tuple[float, float] = (0.5, 0.9)
    n_checks: int = 8


@torch.no_grad()
def parts_of(model: PartsModel, images: Tensor, runtime: Runtime) -> Tensor:
    """Return the parts (N, S, S) of images (N, 3, S, S) on the CPU."""
    model.eval()
    return torch.cat([model.parts(piece.to(runtime.device)).cpu() for piece in images.split(64)])


def parts_step(model: PartsModel, optimizer: torch.optim.Optimizer, runtime: Runtime, steps: int):
    """Return ``step(batch, t) -> parts``; a batch holds "image" and "partner". The duals move after the
    weights.
    """

    def step(batch: dict, t: int) -> dict[str, Tensor]:
        with runtime.autocast():
            loss, log = model(batch["image"], batch["partner"], t / steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if model.objective.is_constrained:
            excess = runtime.average(log["C1"]) - model.objective.mi_target
            model.duals.update(runtime.average(log.pop("g")), excess)
        return log | {"loss": loss.detach()}

    return step


def build_distance(
    name: str, config: PartsConfig, pretrained: bool = True
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the distance that reconstruction is judged by: "pyramid" or "vgg19" (224 px from 128 px on)."""
    if name == "pyramid":
        return pyramid_distance
    if name == "vgg19":
        return VggDistance(vgg19(pretrained), 224 if config.image_size >= 128 else 0)
    raise BookError(f"reconstruction {name!r}", "pyramid or vgg19")


def train_parts(
    config: PartsConfig,
    objective: Objective,
    recipe: Recipe,
    train: Dataset,
    watched: Tensor,
    truth: Tensor,
    *,
    seed: int,
    runtime: Runtime,
    root: str,
    reconstruction: str = "pyramid",
    n_kept: int = 6,
    n_labels: int = len(MERGED),
    measure: Callable[[PartsModel], dict[str, float]] | None = None,
    stop: int | None = None,
):
    """Return the trained model, its album and the result of :func:`cvlib.train.fit`.

    ``watched`` (N, 3, S, S) are images that are segmented ``n_checks`` times, with labels ``truth`` (N, S,
    S) of which only a curve is drawn, beside what ``measure(model)`` gives; the first ``n_kept`` go into
    the album. ``stop`` ends a run early.
    """
    described = {"seed": seed, "config": asdict(config), "objective": asdict(objective), **asdict(recipe)}
    described |= {"data": train.hash, "reconstruction": reconstruction, "precision": runtime.precision}
    seed_everything(seed)
    model = PartsModel(config, objective, build_distance(reconstruction, config))
    album = Album(recipe.n_checks + 1, (n_kept, *truth.shape[1:]))
    model, album = runtime.prepare(model), runtime.prepare(album)

    def watch(done: int) -> dict[str, float]:
        ids = parts_of(model, watched, runtime)
        album.put(ids[:n_kept], done)
        shared = overlaps(ids, truth, config.n_parts, n_labels)
        more = measure(model) if measure else {}
        return {"IoU": segmentation_scores(shared, many_to_one(shared)).overall, **more}

    critics = list(model.critics.parameters())
    rest = [p for name, p in model.named_parameters() if not name.startswith("critics.")]
    optimizer = torch.optim.Adam(
        [{"params": rest}, {"params": critics, "lr": recipe.critic_pace * recipe.learning_rate}],
        recipe.learning_rate,
        betas=recipe.betas,
        **runtime.fused,
    )
    result = fit(
        run_folder(root, "parts", described),
        config=described,
        modules={"parts": model, "album": album},
        optimizers={"parts": optimizer},
        batches=train.batches(recipe.batch_size, seed=seed, rank=runtime.rank, world=runtime.world),
        step=parts_step(model, optimizer, runtime, recipe.steps),
        steps=stop or recipe.steps,
        runtime=runtime,
        schedules={"parts": warmup_linear(max(1, recipe.steps // 20), recipe.steps, 0.1)},
        evaluate=watch,
        eval_every=max(1, recipe.steps // recipe.n_checks),
    )
    return model.eval(), album, result


def settings(
    network: str,
    *,
    image_size: int,
    n_parts: int,
    covariance: str,
    mi_target: float,
    mi_slack: float,
    reconstruction: str,
    steps: int,
    batch_size: int,
    learning_rate: float,
    wall: str = "plain",
) -> tuple[PartsConfig, Objective, Recipe]:
    """Return the networks' shapes, the objective and the recipe of a "small" network or of the "paper"'s.

    ``wall`` is what stands behind people, "plain", "gradient" or "photo": a small network's head start goes
    by it. Raises: BookError for another name of either.
    """
    if wall not in HEAD_START:
        raise BookError(f"wall {wall!r}", f"one of {', '.join(HEAD_START)}")
    if network not in ("small", "paper"):
        raise BookError(f"network {network!r}", "small or paper")
    is_paper = network == "paper"
    config = (
        replace(paper_config(n_parts, image_size), covariance=covariance)
        if is_paper
        else PartsConfig(image_size=image_size, n_parts=n_parts, covariance=covariance)
    )
    aim = replace(
        paper_objective() if is_paper else Objective(head_start=HEAD_START[wall]),
        mi_target=mi_target,
        mi_slack=mi_slack,
        reconstruction=1.0 if reconstruction == "vgg19" else Objective.reconstruction,  # five layers add up
    )
    critic_pace = 1.0 if is_paper else Recipe.critic_pace
    return config, aim, Recipe(steps, batch_size, learning_rate, critic_pace)


# %% [markdown]
# {doc}`parts` trains with it.

# %%
page.finish(runtime)
