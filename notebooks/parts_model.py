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
# # A model that has to paint
#
# {doc}`parts` asks a network to find the parts of people, with no name and no mask. On this page its model is built piece by piece, and each
# piece is checked against a closed form or brute force before anybody trusts it: the networks, what keeps colours out of the
# shape code, and what a part should look like. Nothing is trained here but a critic on a toy; which loss teaches which network is told in
# {doc}`parts_learning`. What a trained model can do with people shows in {doc}`parts_swaps`.
#
# | | claim of the paper {cite}`braun2020parts` | what of it is here |
# |---|---|---|
# | P8 | The estimated information follows its target | the mechanism: a critic that finds a known number of nats, a multiplier that finds a known price |
#
# {doc}`parts_claims` asks it of trained models.
#
# | scale | command | what it needs |
# |---|---|---|
# | quick, and all there is | `papermill notebooks/parts_model.ipynb out.ipynb` | half a minute of one CPU core, no data |
#
# Reading time: 12 minutes.

# %%
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cvlib.errors import BookError
from cvlib.nn.autoencoder import GroupNorm
from cvlib.nn.precision import without_autocast
from cvlib.pages import begin
from cvlib.show import figure, look, picture, say, show, table
from cvlib.train import Runtime, seed_everything

# %% tags=["parameters"]
seed = 0
steps = 400  # of a critic on a case with a closed form

# %%
page = begin("parts_model", globals())
if page.smoke:
    steps = min(steps, 10)
runtime = Runtime(device="cpu", precision="fp32")  # small cases, and counts of operations
seed_everything(seed)
rng = torch.Generator().manual_seed(seed)

# %% [markdown]
# ## Two codes and a painting
#
# $$ \begin{aligned}
#    \pi &\sim q(\pi \mid x_1), & S &= \operatorname{softmax}\bigl(D_S(\pi) + \varepsilon\bigr), \\
#    \alpha_p &= E_\alpha\bigl(S_p(x_2)\, x_2\bigr), & \hat x_1 &= G\Bigl(\textstyle\sum_p S_p(x_1)\,\alpha_p,\; S(x_1)\Bigr) .
#    \end{aligned} $$
#
# Here $x_1$ and $x_2$ are two images of one person. The shape code π is one vector for the whole image $x_1$, drawn from a Gaussian $q(\pi \mid x_1)$ that an
# encoder gives. The decoder $D_S$ turns it into a logit for each part and pixel. In training, Gaussian noise ε is added; the softmax over the parts is the map of
# parts $S$, of which $S_p$ is the mask of part $p$. The same encoder and decoder segment $x_2$, and $E_\alpha$ takes one appearance vector $\alpha_p$ from each of
# *its* parts. At every pixel the generator $G$ gets the appearance of the part that this pixel belongs to, and the map of parts itself; of the two pictures it
# sees nothing else.
#
# The formula is the paper's, where $E_\alpha$ encodes every masked part alone. The small networks depart from it in two settings of the class below:
# `appearance="shared"` pools one map of features under the masks, and `has_colour=True` hands each part's mean colour to the generator as it is.


# %%
@dataclass(frozen=True)
class PartsConfig:
    """The networks' shapes; :func:`paper_config` has the paper's. Widths go from the largest grid to the
    smallest, but for the decoder, which begins with the smallest.

    ``shape_head``: "grid" reads the last map place by place, "mean" its mean, as the paper. ``appearance``:
    "masked" encodes every masked part alone, as the paper; "shared" pools one map of features under the
    masks, which costs as many times less as there are parts, but lets a part see over its edge by half a
    receptive field. ``has_colour`` gives a part's mean colour to the generator as it is, which then paints
    the difference to it; the paper's learns to. Raises: BookError for other names, or sizes that do not
    fit.
    """

    image_size: int = 64
    n_parts: int = 25
    dim_pi: int = 64
    dim_alpha: int = 16
    shape_widths: tuple[int, ...] = (32, 64, 64, 64)
    appearance_widths: tuple[int, ...] = (16, 32)
    decoder_widths: tuple[int, ...] = (128, 64, 32, 32, 16)
    generator_widths: tuple[int, int] = (16, 32)
    first_stride: int = 2
    shape_blocks: tuple[int, int] = (1, 1)  # residual blocks on each grid, and more on the last
    appearance_blocks: tuple[int, int] = (0, 0)
    critic_width: int = 128
    critic_blocks: int = 2
    covariance: str = "full"
    shape_head: str = "grid"
    appearance: str = "shared"
    has_colour: bool = True

    def __post_init__(self) -> None:
        known = {
            "covariance": ("full", "diagonal"),
            "shape_head": ("grid", "mean"),
            "appearance": ("masked", "shared"),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise BookError(f"{name} {getattr(self, name)!r}", f"one of {', '.join(values)}")
        step = max(self.first_stride * 2 ** (len(self.shape_widths) - 1), 2 ** (len(self.decoder_widths) - 1))
        if self.n_parts < 2 or self.image_size % step:
            raise BookError(
                f"{self.n_parts} parts at {self.image_size} px", f"2 or more, and a multiple of {step} px"
            )


def paper_config(n_parts: int = 25, image_size: int = 128) -> PartsConfig:
    """Return the paper's shapes (authors' code: cub, deepfashion and pennaction agree), with the decoder's
    nominal widths.
    """
    widths = (32, 64, 128, 128, 256, 256)
    return PartsConfig(
        image_size=image_size,
        n_parts=n_parts,
        dim_pi=256,
        dim_alpha=64,
        shape_widths=widths,
        appearance_widths=widths,
        decoder_widths=(256, 128, 128, 32, 32, 16),
        generator_widths=(32, 64),
        first_stride=1,
        shape_blocks=(1, 4),
        appearance_blocks=(1, 4),
        critic_width=512,
        critic_blocks=4,
        shape_head="mean",
        appearance="masked",
        has_colour=False,
    )


# %% [markdown]
# ### The shape code
#
# The encoder is convolutional, and a convolution does not know where it is. Since π must say *where* limbs are, two
# channels with the pixels' coordinates are laid beside the colours. The posterior is a Gaussian with
# **full** covariance: the network gives its Cholesky factor $L$, so that $\pi = \mu + L\epsilon$, and
#
# $$ \mathrm{KL}\bigl(q \,\Vert\, \mathcal N(0, I)\bigr) = \tfrac12 \Bigl(\lVert\mu\rVert^2 + \textstyle\sum_{ij} L_{ij}^2 - d\Bigr)
#    - \sum_i \log L_{ii} . $$
#
# At the paper's $d = 256$ that is a linear layer with 33,152 outputs.


# %%
def coordinates(height: int, width: int) -> Tensor:
    """Return the pixels' places (2, H, W), right and down, from -1 to 1 at the image's edges."""
    y, x = ((torch.arange(n) + 0.5) / n * 2 - 1 for n in (height, width))
    return torch.stack(torch.meshgrid(y, x, indexing="ij")).flip(0)


class ResidualConv(nn.Module):
    """Return ``shortcut(x) + conv(silu(norm(x)))``, (B, dim_in, H, W) to (B, dim_out, H, W).

    One convolution a block: with one, the count of operations agrees with the original's.
    """

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.norm, self.conv = GroupNorm(dim_in, group_width=4), nn.Conv2d(dim_in, dim_out, 3, padding=1)
        self.shortcut = nn.Identity() if dim_in == dim_out else nn.Conv2d(dim_in, dim_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.conv(F.silu(self.norm(x)))


class ConvStack(nn.Module):
    """Map (B, dim_in, H, W) to (B, widths[-1], h, w): a convolution for each width, of stride 2 from the
    second on.

    ``first_stride`` is that of the first; after each stand ``blocks[0]`` residual blocks (or a SiLU if
    there are none), after the last one ``blocks[1]`` more.
    """

    def __init__(
        self, dim_in: int, widths: tuple[int, ...], first_stride: int, blocks: tuple[int, int]
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for i, (a, b) in enumerate(zip((dim_in, *widths[:-1]), widths, strict=True)):
            self.layers.append(nn.Conv2d(a, b, 3, stride=2 if i else first_stride, padding=1))
            self.layers.extend([ResidualConv(b, b) for _ in range(blocks[0])] or [nn.SiLU()])
        self.layers.extend(ResidualConv(widths[-1], widths[-1]) for _ in range(blocks[1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@dataclass(frozen=True)
class Posterior:
    """A Gaussian for each image, in float32: mean (B, d) and lower triangular Cholesky factor (B, d, d)."""

    mean: Tensor
    factor: Tensor

    def sample(self) -> Tensor:
        """Return μ + L ε with ε from N(0, I), (B, d), differentiable in both."""
        return self.mean + torch.einsum("bij,bj->bi", self.factor, torch.randn_like(self.mean))

    def kl(self) -> Tensor:
        """Return KL(q || N(0, I)) in nats, (B,)."""
        trace = self.factor.square().sum((1, 2))
        half_log_det = self.factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return 0.5 * (self.mean.square().sum(1) + trace - self.mean.shape[1]) - half_log_det


class ShapeEncoder(nn.Module):
    """Map images (B, 3, S, S) in [-1, 1] to the :class:`Posterior` of their shape codes.

    The diagonal of L is exp(raw); an entry of row i below it is divided by √(i + 1), so that all rows begin
    with like variance (authors' code). ``SIGMA`` is the deviation that training begins with.
    """

    SIGMA = 0.3

    def __init__(self, config: PartsConfig) -> None:
        super().__init__()
        self.config = config
        self.stack = ConvStack(5, config.shape_widths, config.first_stride, config.shape_blocks)
        side = config.image_size // config.first_stride // 2 ** (len(config.shape_widths) - 1)
        width = config.shape_widths[-1] * (side**2 if config.shape_head == "grid" else 1)
        d = config.dim_pi
        rows, columns = (
            torch.tril_indices(d, d) if config.covariance == "full" else torch.arange(d).expand(2, -1)
        )
        self.register_buffer("rows", rows.clone(), persistent=False)
        self.register_buffer("columns", columns.clone(), persistent=False)
        self.head = nn.Linear(width, d + len(rows))

    def forward(self, x: Tensor) -> Posterior:
        xy = coordinates(*x.shape[2:]).to(x).expand(len(x), -1, -1, -1)
        h = self.stack(torch.cat([x, xy], 1))
        h = h.flatten(1) if self.config.shape_head == "grid" else h.mean((2, 3))
        d = self.config.dim_pi
        mean, raw = self.head(h).float().split([d, len(self.rows)], 1)
        diagonal = self.SIGMA * raw.clamp(-8, 4).exp()
        value = torch.where(self.rows == self.columns, diagonal, raw / (self.rows + 1).sqrt())
        places = self.rows * d + self.columns
        factor = raw.new_zeros(len(x), d * d).index_copy(1, places, value)
        return Posterior(mean, factor.view(-1, d, d))


# %%
with torch.no_grad():
    posterior = ShapeEncoder(PartsConfig(image_size=32, dim_pi=5))(torch.rand(3, 3, 32, 32))
truth = torch.distributions.MultivariateNormal(posterior.mean, scale_tril=posterior.factor)
standard = torch.distributions.MultivariateNormal(torch.zeros(5), torch.eye(5))
assert torch.allclose(posterior.kl(), torch.distributions.kl_divergence(truth, standard), atol=1e-4)
assert ShapeEncoder(paper_config()).head.out_features == 256 + 256 * 257 // 2 == 33_152

# %% [markdown]
# ### The map of parts
#
# The decoder is the reverse: a linear layer to a small grid, then residual blocks and bilinear enlargement by turns, and
# one logit for each part and pixel. The authors' configuration lists widths that fall to 16 at full size; but bilinear
# enlargement keeps the width it is given, and no layer asked for less: the released decoder carries **256 channels up to
# the largest grid**, and that is where most of its work lies.
#
# **Predict**: how many times cheaper is a decoder whose widths really fall?


# %%
class SegmentationDecoder(nn.Module):
    """Map shape codes (B, d) to logits (B, P, S, S), float32; the widths fall as the grid grows."""

    def __init__(self, config: PartsConfig) -> None:
        super().__init__()
        widths = config.decoder_widths
        self.side = config.image_size // 2 ** (len(widths) - 1)
        self.first = nn.Linear(config.dim_pi, widths[0] * self.side**2)
        pairs = zip(widths, (*widths[1:], widths[-1]), strict=True)
        self.levels = nn.ModuleList(ResidualConv(a, b) for a, b in pairs)
        self.head = nn.Conv2d(widths[-1], config.n_parts, 3, padding=1)

    def forward(self, pi: Tensor) -> Tensor:
        x = self.first(pi).view(len(pi), -1, self.side, self.side)
        for i, level in enumerate(self.levels):
            if i:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = level(x)
        return self.head(x).float()


def multiply_adds(function: Callable[[], object]) -> float:
    """Return how many multiply-adds the matrix products and convolutions of a call take (two operations
    each).
    """
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() / 2


def wide(config: PartsConfig) -> PartsConfig:
    """Return the configuration whose decoder keeps its first width up to the full size, as released."""
    return replace(config, decoder_widths=(config.decoder_widths[0],) * len(config.decoder_widths))


with torch.device("meta"):  # shapes without numbers
    code = torch.zeros(1, 256)
    decoders = {
        name: SegmentationDecoder(c)
        for name, c in (("falling", paper_config()), ("released", wide(paper_config())))
    }
    decoder_work = {name: multiply_adds(lambda net=net: net(code)) for name, net in decoders.items()}

# %%
assert decoder_work["released"] > 20 * decoder_work["falling"], decoder_work
say(
    f"At 128 px and 25 parts: {decoder_work['released'] / 1e9:.2f} billion multiply-adds an image as released, "
    f"{decoder_work['falling'] / 1e9:.3f} billion with falling widths, **{decoder_work['released'] / decoder_work['falling']:.0f} "
    f"times fewer**."
)

# %% [markdown]
# ### Hard parts with a gradient
#
# In training the logits get unit Gaussian noise: a part that leads by less than that is not sure to win. A pixel must
# belong to one part wholly, or the generator could mix appearances into anything; but an arg-max has no gradient. The
# **straight-through** trick uses the hard mask forward and the soft one's gradient backward,
# $S_h = \operatorname{sg}[\mathrm{onehot} - S] + S$, where onehot marks the part with the largest share and $\operatorname{sg}[\cdot]$ lets no gradient through.
# Under these masks the appearance encoder takes one vector for each part:


# %%
def hard_masks(soft: Tensor) -> Tensor:
    """Return one-hot masks (B, P, H, W) of soft ones that sum to 1 over P; the gradient is that of the soft
    ones.

    A tie goes to the part with the lowest number, never to two.
    """
    hard = F.one_hot(soft.argmax(1), soft.shape[1]).movedim(-1, 1).to(soft.dtype)
    return hard - soft.detach() + soft


class AppearanceEncoder(nn.Module):
    """Map images to appearance vectors: of the whole image, or of each of its parts.

    With ``config.has_colour`` the first three numbers are the mean colour as it is; the network gives the
    rest.
    """

    def __init__(self, config: PartsConfig) -> None:
        super().__init__()
        self.is_shared, self.has_colour = config.appearance == "shared", config.has_colour
        self.stack = ConvStack(3, config.appearance_widths, config.first_stride, config.appearance_blocks)
        self.head = nn.Linear(config.appearance_widths[-1], config.dim_alpha - 3 * config.has_colour)

    def forward(self, x: Tensor) -> Tensor:
        """Return one vector (B, d) for each image (B, 3, S, S)."""
        return self.of_parts(x, torch.ones_like(x[:, :1]))[:, 0]

    def of_parts(self, x: Tensor, masks: Tensor) -> Tensor:
        """Return a vector for each part, (B, P, d); masks (B, P, S, S). A part without a pixel has mid-grey
        and a constant.
        """
        if self.is_shared:
            h = self.stack(x)
            weights = F.adaptive_avg_pool2d(masks, h.shape[2:]).to(h.dtype)
            pooled = torch.einsum("bphw,bchw->bpc", weights, h) / (weights.sum((2, 3)) + 0.01)[..., None]
        else:
            parts = (masks[:, :, None] * x[:, None]).flatten(0, 1)  # P images for each one
            pooled = self.stack(parts).mean((2, 3)).unflatten(0, masks.shape[:2])
        alpha = self.head(pooled).float()
        if not self.has_colour:
            return alpha
        with without_autocast(x):
            colour = torch.einsum("bphw,bchw->bpc", masks, x) / (masks.sum((2, 3)) + 0.1)[..., None]
        return torch.cat([colour, alpha], 2)


def assembled(masks: Tensor, alpha: Tensor) -> Tensor:
    """Return at each pixel the appearance of its part, (B, d, H, W), for masks (B, P, H, W) and alpha (B,
    P, d).
    """
    return torch.einsum("bphw,bpd->bdhw", masks, alpha)


class Generator(nn.Module):
    """Paint images (B, 3, S, S) from assembled appearances (B, d, S, S) and masks (B, P, S, S).

    An hourglass with one step down and one skip: too small to invent a shape of its own.
    """

    def __init__(self, config: PartsConfig) -> None:
        super().__init__()
        a, b = config.generator_widths
        self.has_colour = config.has_colour
        self.first = nn.Conv2d(config.dim_alpha + config.n_parts, a, 3, padding=1)
        self.down = nn.Conv2d(a, b, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(b, b, 3, padding=1)
        self.up = nn.Conv2d(b, a, 3, padding=1)
        self.last = nn.Conv2d(a, 3, 3, padding=1)
        self.to(memory_format=torch.channels_last)  # the step of all networks is a seventh faster on a CPU

    def forward(self, z: Tensor, masks: Tensor) -> Tensor:
        x = F.silu(self.first(torch.cat([z, masks], 1)))
        y = self.up(F.silu(self.middle(F.silu(self.down(x)))))
        y = F.interpolate(y, scale_factor=2, mode="bilinear", align_corners=False)
        made = self.last(F.silu(x + y)).float()
        return made + z[:, :3] if self.has_colour else made


# %%
logits = torch.randn(2, 4, 6, 6, generator=rng, requires_grad=True)
weights = torch.randn(2, 4, 6, 6, generator=rng)
hard = hard_masks(logits.softmax(1))
assert (
    torch.equal(hard.detach().amax(1), torch.ones(2, 6, 6)) and (hard.detach().sum(1) - 1).abs().max() < 1e-6
)
(through,) = torch.autograd.grad((weights * hard).sum(), logits)
(soft_gradient,) = torch.autograd.grad((weights * logits.softmax(1)).sum(), logits)
assert torch.allclose(through, soft_gradient)
alpha = torch.randn(2, 4, 3, generator=rng)
by_map = (hard[:, :, None] * alpha[..., None, None]).sum(1)  # (B, P, d, H, W) in memory before the sum
assert torch.allclose(assembled(hard, alpha), by_map, atol=1e-6)
say(
    f"The sum over parts is one `einsum`. Written as products that are summed afterwards, as in the original, it would hold "
    f"{8 * 25 * 64 * 128 * 128 * 4 / 1e6:.0f} MB at the paper's size for a result of {8 * 64 * 128 * 128 * 4 / 1e6:.0f} MB."
)

# %% [markdown]
# ## What keeps colours out of the shape
#
# Nothing so far forbids π to carry colours. Parts could then follow colours (a striped sleeve would fall into two parts, one for each colour of the stripes), and
# nothing would be shared between people. So we measure how much π knows about the appearance, and hold it down.
#
# ### Measuring with a critic
#
# Here α without an index is the appearance of the *whole* partner image, encoded without masks. Let $T(\pi, \alpha)$ tell true pairs from pairs whose α comes from
# somebody else, by logistic regression,
#
# $$ \mathcal L_T = \tfrac12\,\mathbb E_{p(\pi,\alpha)}\bigl[\operatorname{softplus}(-T)\bigr]
#    + \tfrac12\,\mathbb E_{p(\pi)p(\alpha)}\bigl[\operatorname{softplus}(T)\bigr] . $$
#
# The best $T$ is the log density ratio $\log \frac{p(\pi,\alpha)}{p(\pi)p(\alpha)}$, and its mean over true pairs **is** the
# mutual information. Before $T$ is best, its mean may lie on either side: it is an estimate, not the lower bound of {ref}`primer-information`.
# A case with a closed form: two Gaussians with correlation ρ share $-\tfrac12\log(1-\rho^2)$ nats.


# %%
class Residual(nn.Module):
    """Return x plus a two-layer network of it, (B, d)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.SiLU(), nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Critic(nn.Module):
    """T(π, α), (A, B) for A codes and B appearances: inner products of embeddings, over the root of their
    width.
    """

    def __init__(self, dim_pi: int, dim_alpha: int, width: int, n_blocks: int) -> None:
        super().__init__()
        self.pi, self.alpha = (
            nn.Sequential(nn.Linear(dim, width), *(Residual(width) for _ in range(n_blocks)))
            for dim in (dim_pi, dim_alpha)
        )
        self.scale = width**-0.5

    def forward(self, pi: Tensor, alpha: Tensor) -> Tensor:
        return self.scale * self.pi(pi) @ self.alpha(alpha).T


def critic_loss(table: Tensor, foreign: Tensor) -> Tensor:
    """Return the logistic loss of T (B, B): of true pairs, on the diagonal, and of those that ``foreign``
    (B, B) marks.

    Without a foreign pair the true ones are all there is.
    """
    strange = (F.softplus(table) * foreign).sum() / foreign.sum().clamp_min(1)
    return 0.5 * (F.softplus(-table.diagonal()).mean() + strange)


# %%
rho = 0.9
known_mi = -0.5 * math.log(1 - rho**2)
toy_critic = Critic(1, 1, 32, 1)
toy_optimizer = torch.optim.Adam(toy_critic.parameters(), lr=3e-3)
toy_curve = []
for _ in range(steps):
    a = torch.randn(256, 1, generator=rng)
    b = rho * a + math.sqrt(1 - rho**2) * torch.randn(256, 1, generator=rng)
    T = toy_critic(a, b)
    toy_optimizer.zero_grad()
    critic_loss(T, ~torch.eye(len(T), dtype=torch.bool)).backward()
    toy_optimizer.step()
    toy_curve.append(T.diagonal().mean().item())
estimated = sum(toy_curve[-50:]) / len(toy_curve[-50:])
if steps >= 400:
    assert abs(estimated - known_mi) < 0.15, (estimated, known_mi)
say(f"Known: {known_mi:.3f} nats. Estimated by the critic after {len(toy_curve)} steps: **{estimated:.3f}**.")

# %% [markdown]
# ### A multiplier that finds its own strength
#
# How hard should leakage be punished? Nobody knows beforehand. So the paper states what it wants: the estimate $C_0$ of a first critic $T_0$, its mean over true
# pairs, shall stay below a target $t$ (`mi_target`), less a share $s$ of it for safety (`mi_slack`). As a constraint that is $g = C_0 - (1 - s)\,t \le 0$, and an
# **augmented Lagrangian** finds the price λ of breaking it:
#
# $$ \mathcal L_\text{adv} = \begin{cases} \lambda g + 2 g^2 & \text{if } 4g \ge -\lambda \\ 0 & \text{else,} \end{cases}
#    \qquad \lambda \leftarrow \max(0, \lambda + 4 g) . $$
#
# The encoder could learn to fool the very critic $T_0$ that it fights. So a second critic $T_1$, which nobody fights, watches. While *its* estimate $C_1$ is above
# the target, a bottleneck is narrowed: $\mathcal L_\text{vib} = e^{r}\,\mathrm{KL}$ with
# $r \leftarrow \operatorname{clip}(r + \eta\,(C_1 - t))$, kept within a fixed range. The paper's η is 0.05; ours is 0.5, for runs that are at least sixty times
# shorter. λ and $r$ change without a gradient. Both are kept in checkpoints, or a resumed run would begin with no constraint.
#
# Does the price come out right? Minimise $(x-2)^2$ under $x \le 1$: at the solution the gradient of the objective is
# $-2$, so λ must end at **2**.


# %%
def lagrangian(g: Tensor, lam: Tensor) -> Tensor:
    """Return λ g + 2 g² where 4 g ≥ -λ, else 0: the augmented Lagrangian of g ≤ 0 with penalty 4."""
    return torch.where(4 * g.detach() >= -lam, lam * g + 2 * g.square(), torch.zeros_like(g))


class Duals(nn.Module):
    """The multiplier λ and the log weight r of the bottleneck: buffers, so that checkpoints hold them.

    λ begins at 0 and r at ``r_min``.
    """

    def __init__(self, r_min: float, r_max: float, r_pace: float = 0.05) -> None:
        super().__init__()
        self.r_min, self.r_max, self.r_pace = r_min, r_max, r_pace
        self.register_buffer("lam", torch.zeros(()))
        self.register_buffer("r", torch.tensor(float(r_min)))

    @torch.no_grad()
    def update(self, g: Tensor, excess: Tensor) -> None:
        """Raise λ by 4 g, never below 0, and r by ``r_pace`` times ``excess`` = C₁ - target, within its
        range.
        """
        self.lam.add_(4 * g).clamp_(min=0)
        self.r.add_(self.r_pace * excess).clamp_(self.r_min, self.r_max)


toy_duals, x, path = Duals(-3.0, 7.5), torch.zeros((), requires_grad=True), []
for _ in range(60):
    for _ in range(20):
        (slope,) = torch.autograd.grad((x - 2).square() + lagrangian(x - 1, toy_duals.lam), x)
        x.data -= 0.1 * slope
    toy_duals.update((x - 1).detach(), torch.zeros(()))
    path.append((x.item(), toy_duals.lam.item()))
assert abs(path[-1][0] - 1) < 1e-3 and abs(path[-1][1] - 2) < 1e-2, path[-1]
say(f"After {len(path)} rounds: x = {path[-1][0]:.4f}, λ = **{path[-1][1]:.4f}**.")

# %% tags=["hide-input"]
fig, (left, right) = figure(columns=2, height=2.7)
left.plot(range(1, len(toy_curve) + 1), toy_curve, **look("ours"), label="critic")
left.axhline(known_mi, **look("paper"), label="known")
left.set(xlabel="step of the critic", ylabel="information (nats)")
left.legend(loc="lower right")
right.plot(range(1, 13), [price for _, price in path[:12]], **look("ours"), label="λ")
right.plot(range(1, 13), [x for x, _ in path[:12]], **look("baseline"), label="x")
right.axhline(2, **look("paper"), label="the price, 2")
right.set(xlabel="update of λ", ylabel="value")
right.legend(loc="center right")
show(
    fig,
    alt=f"The critic's estimate rises to {estimated:.2f} nats; the multiplier rises to {path[-1][1]:.2f} while x falls to {path[-1][0]:.2f}.",
    caption="Left: the critic's mean over true pairs of two correlated Gaussians, and what they share. Right: x starts above its bound, "
    "and the multiplier rises until it does not pay any more.",
)

# %% [markdown]
# ## What a part should look like
#
# Painting well does not yet make parts that deserve the name: a generator could use twenty specks. The paper adds priors on
# the map. Per image, with $u$ over pixels, $l$ the logits, $P$ the number of parts, $a$ a small constant, and $[\cdot]$ equal to 1 where the condition is true, else 0:
#
# | prior | formula | wants |
# |---|---|---|
# | smooth logits | $\tfrac12\sum_u \lVert\nabla l(u)\rVert^2$ | a Gaussian Markov random field: neighbours agree |
# | categorical | $\operatorname{mean}_u \sum_p S_p \log (P\,S_p)$ | all parts in play, while nothing is known yet |
# | sharpness | $-\operatorname{mean}_u \sum_p S_p \log S_p$ | a decision at every pixel |
# | concentration | $\sum_p$ variance of $S_p / \sum_u S_p(u)$ | a part is one place |
# | Mumford-Shah | $\sum_p \bigl(\sum_u \min(a\lVert\nabla S_p\rVert^2, 1)\bigr)^2$ | short borders |
# | patch | $\sum_p \sum_u S_p(u)\,[u \text{ outside a window around the centre of } p]$ | no part larger than a window |
#
# The second and the third pull against each other, and that is meant: first explore, then decide. The authors did it by
# stopping and restarting runs with edited settings, and raised concentration in steps; here it is a **declared schedule** ({doc}`parts_learning`).


# %%
def smoothness(logits: Tensor) -> Tensor:
    """Return half the squared gradient of logits (B, P, H, W), summed over parts and pixels, (B,)."""
    return 0.5 * sum(logits.diff(dim=dim).square().sum((1, 2, 3)) for dim in (2, 3))


def entropy(soft: Tensor) -> Tensor:
    """Return the mean over pixels of the entropy of masks (B, P, H, W) over the parts in nats, (B,).

    log P minus it is the categorical KL to the uniform distribution.
    """
    return -(soft * soft.clamp_min(1e-8).log()).sum(1).mean((1, 2))


def centres(soft: Tensor) -> tuple[Tensor, Tensor]:
    """Return the parts' mean places (B, P, 2), in [-1, 1], and their variances (B, P), x and y together."""
    xy = coordinates(*soft.shape[2:]).to(soft)
    share = soft / (soft.sum((2, 3), keepdim=True) + 1e-4)
    centre = torch.einsum("bphw,khw->bpk", share, xy)
    second = torch.einsum("bphw,khw->bp", share, xy.square())
    return centre, second - centre.square().sum(2)


def spread(soft: Tensor) -> Tensor:
    """Return the sum over parts of their variances, (B,): of each one's map, scaled to a sum of 1."""
    return centres(soft)[1].sum(1)


def mumford_shah(soft: Tensor, a: float = 1e-2, ceiling: float = 1.0) -> Tensor:
    """Return the squared sums over pixels of min(a |∇S|², ceiling), summed over parts, (B,)."""
    down, right = soft.diff(dim=2)[..., :-1], soft.diff(dim=3)[:, :, :-1]
    return (a * (down.square() + right.square())).clamp_max(ceiling).sum((2, 3)).square().sum(1)


def outside_patch(soft: Tensor, side: float) -> Tensor:
    """Return the mass of masks (B, P, H, W) outside a window of ``side`` (in images) around each part's
    centre, (B,).
    """
    centre, _ = centres(soft.detach())
    distance = (coordinates(*soft.shape[2:]).to(soft) - centre[..., None, None]).abs().amax(2)
    return (soft * (distance > side)).sum((1, 2, 3))  # the image is 2 wide: half a window is `side`


# %%
uniform = torch.full((1, 5, 8, 8), 0.2)
checker = hard_masks(torch.rand(1, 5, 8, 8, generator=rng))
assert torch.allclose(entropy(uniform), torch.tensor(math.log(5))) and entropy(checker).abs().max() < 1e-5
places = coordinates(8, 8).flatten(1).T
member = checker[0].flatten(1) > 0.5
by_hand = [(places[m] - places[m].mean(0)).square().sum(1) for m in member if m.any()]
assert torch.allclose(spread(checker), sum(d.mean() for d in by_hand), atol=1e-3)

# %% [markdown]
# What do they say of maps that one can see? Four parts share a square in four ways: none has decided, each has its specks, a stripe each, and each the
# places nearest to its centre.

# %%
side = 32
xy = coordinates(side, side)
corners = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]])
specks = torch.randint(0, 4, (side, side), generator=rng)
stripes = (torch.arange(side) // 2 % 4).expand(side, -1)
nearest = (xy[None] - corners[..., None, None]).square().sum(1).argmin(0)
maps = {"undecided": torch.full((1, 4, side, side), 0.25)} | {
    name: F.one_hot(ids, 4).movedim(-1, 0)[None].float()
    for name, ids in (("specks", specks), ("stripes", stripes), ("places", nearest))
}
colours = torch.tensor([[0.27, 0.47, 0.67], [0.93, 0.40, 0.47], [0.13, 0.53, 0.20], [0.80, 0.73, 0.27]])
picture(
    torch.cat([assembled(soft, colours[None] * 2 - 1) for soft in maps.values()]),
    columns=4,
    scale=4,
    titles=list(maps),
    alt="Four maps of four parts: an even mixture, random specks, narrow stripes, and four quarters.",
    caption="A colour for each part; where none has decided, all four mix.",
)
table(
    [
        [
            name,
            round(math.log(4) - entropy(soft).item(), 3),
            round(entropy(soft).item(), 3),
            spread(soft).item(),
            mumford_shah(soft).item(),
            outside_patch(soft, 0.5).item() / side**2,
        ]
        for name, soft in maps.items()
    ],
    header=["map", "categorical", "sharpness", "concentration", "Mumford-Shah", "patch, share of pixels"],
    digits=3,
    caption="The less the better. Sharpness turns down the undecided map; of the decided ones concentration and the patch prefer places.",
)

# %% [markdown]
# ### A prior that kills
#
# Concentration has a trap. It scales the map of each part to a sum of 1 and adds up the variances of these scaled maps. A part that is nowhere can put its scaled map in one
# place for nothing. So the cheapest map is one on which few parts live. How much does the prior pay for giving parts up?

# %%
n_parts = 25
disc = (xy.square().sum(0) < 0.3**2).float()
alive = torch.stack([disc, 1 - disc])
dead = (-200 * (xy - 0.5).square().sum(0)).exp().expand(
    n_parts - 2, -1, -1
) * 1e-3  # next to nothing, in one place
few = torch.cat([alive, dead])[None]
few = few / few.sum(1, keepdim=True)
spreads = {"all parts, undecided": spread(torch.full((1, n_parts, side, side), 1 / n_parts)).item(),
           "two parts, a figure and its ground": spread(few).item()}  # fmt: skip
undecided, two = spreads.values()
assert undecided > 10 * two and abs(undecided - n_parts * 2 / 3) < 0.1  # a uniform square has 1/3 each way
table(
    [[name, value] for name, value in spreads.items()],
    header=[f"map of {n_parts} parts", "summed variance"],
    digits=3,
)
say(
    f"A weight of 15, with which it ends here, is worth {15 * undecided:.0f} where nothing is decided and {15 * two:.0f} where {n_parts - 2} parts are given up: it would empty the map "
    f"before the generator has found a use for the parts. So its weight has to be **small at first**: it begins at 1, and rises with that of sharpness."
)

# %% [markdown]
# ### A place to begin
#
# A random start has a trap too. What pays first is to tell the figure from its ground. The part that happens to lie a little more on figures
# than the others takes all of them: its appearance is the figure's, so it gains most, so its share grows. And where a share is next to
# nothing no gradient arrives. The body is then one part, for good.
#
# So each part begins with a lead in a cell of its own on a grid: the logits are $D_S(\pi) + h\,c$, with $c$ the grid below and $h$ a weight that falls to 0 while the
# decoder learns to say where the part has gone. At the end it adds nothing, and none of it is in the paper. It has a price. In front of a wall that changes in colour
# there is much to paint in every cell, so parts stay with theirs, and fewer are left for the body. Hence the lead is smaller there; how small was chosen on validation people.


# %%
def grid_places(n_parts: int, side: int, depth: float = 6.0) -> Tensor:
    """Return logits (P, side, side) that give each part a cell of a grid: near 0 in its own, about -2 in
    the next, ``-depth`` far off.
    """
    columns = math.ceil(n_parts**0.5)
    rows = math.ceil(n_parts / columns)
    cell = torch.arange(n_parts)
    middle = torch.stack([cell % columns, cell // columns], 1) + 0.5  # in cells, right and down
    xy = (coordinates(side, side) + 1) / 2 * torch.tensor([columns, rows])[:, None, None]
    squared = (xy - middle[..., None, None]).square().sum(1)
    return -depth * (1 - (-2 * squared / depth).exp())


HEAD_START = {
    "plain": 1.0,
    "gradient": 0.3,
    "photo": 0.3,
}  # weight of the lead when training begins, by what is behind people
grid = grid_places(n_parts, 64)
hues = torch.rand(n_parts, 3, generator=rng) * 1.8 - 0.9
leads = torch.cat(
    [
        assembled((lead * grid).softmax(0)[None], hues[None])
        for lead in (HEAD_START["plain"], HEAD_START["gradient"], 0.0)
    ]
)
assert grid[:, 31, 31].argmax() == 12  # the middle belongs to the thirteenth
own = (HEAD_START["plain"] * grid).softmax(0).amax(0).mean().item()
picture(
    leads,
    columns=3,
    scale=3,
    titles=["plain wall", "other walls", "at the end"],
    alt="A soft grid of 25 colours, a fainter one, and an even grey.",
    caption=f"What the lead alone makes of {n_parts} parts when training begins, and when it has faded. Before plain walls a pixel belongs to its likeliest part by "
    f"{own:.0%} on average.",
)

# %% [markdown]
# These are all the pieces. {doc}`parts_learning` puts them together and sends every loss where it belongs; {doc}`parts` trains.

# %%
page.finish(runtime)
