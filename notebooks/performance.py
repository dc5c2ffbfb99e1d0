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
# # How fast, compared with what
#
# A speed means something only beside another one, from the same machine in the same minute. On this page our code and a peer
# take turns, round after round. What counts is the ratio of their times within a round, since a machine that is busy
# with something else slows both. The table gives the median ratio and the smallest and largest of all rounds; above 1
# ours is faster.
#
# | scale | command | what it needs |
# |---|---|---|
# | quick | `papermill notebooks/performance.ipynb out.ipynb` | about 3 minutes on 2 CPU cores |
# | report | `make report CHAPTER=performance` | about 18 minutes |
#
# Reading time: 5 minutes.

# %%
import inspect
import math
import os
import threading
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from FrEIA import framework, modules
from PIL import Image
from torch import Tensor, nn

from cvlib.claims import Row, load_rows, racing, write_rows
from cvlib.data import Dataset, load
from cvlib.data.bodies_people import draw_looks, draw_shapes
from cvlib.data.bodies_scenes import body_scenes, frames_of, rotations_of, sample_views
from cvlib.nn import GPT, PatchDiscriminator, VectorQuantizer, hinge_g_loss, vgg19, vgg_loss
from cvlib.nn.flow import ConditionalFlow, LabelEmbedder, TwinNets, VectorEmbedder
from cvlib.pages import begin
from cvlib.render import Cameras, Scene, render, sample_textures
from cvlib.show import table
from cvlib.train import Runtime, seed_everything

# %% tags=["parameters"]
rounds = 3  # of every race
seed = 0
batch_size = 256
image_size = 64
device = "auto"
precision = "auto"
record = False  # True writes book/results/performance.json

# %%
page = begin("performance", globals())
if page.smoke:
    rounds, batch_size, image_size = 1, 8, 32
story = page.definitions("taming")
runtime = Runtime(device=device, precision=precision)
seed_everything(seed)
print(f"{runtime.describe()}; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start")

# %% [markdown]
# ## The race
#
# Both run once before the clock starts. In each round both run once more, and they take turns in going first. Where a row reports memory, each of the two runs
# in a process of its own, so that the peak can be read when it is done. It warms up on a few hundred items, and what counts is the peak above the memory that was
# held before the work, data included.
#
# Where we know how many multiplications and additions the work needs at least, the table also says how near ours
# comes to the floor: the time that they would take at the rate of a large matrix product, the highest rate that this machine
# reaches.

# %%
rows: list[Row] = []
race = partial(racing.race, rounds=rounds, device=runtime.device)
race_apart = partial(racing.race_apart, rounds=rounds)


def keep(row: Row) -> None:
    """Put a row into the table, and say how the race went."""
    rows.append(row)
    memory = "" if row.peak_mb is None else f", {row.peak_mb:.0f} MB beside {row.peer_peak_mb:.0f} MB"
    print(f"{row.name}: {row.ratio:.2f} times as fast{memory}")


print(inspect.getsource(racing.race))

# %% [markdown]
# ## Batches
#
# Ours cuts a batch out of a memory map at once and makes it float while it is still in the processor's cache; two
# threads take two halves of every batch, as two processes of a training would. The peer is the usual way: a data set
# that returns one image at a time, and a loader with two worker processes.


# %%
class OneByOne(torch.utils.data.Dataset):
    """The same pictures, one at a time: crop, flip, composite and scale each by itself, with numpy and Pillow."""

    def __init__(self, pictures: np.ndarray, size: int) -> None:
        self.pictures, self.size = pictures, size  # uint8 (N, H, W, 3 or 4)

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, i: int) -> Tensor:
        chance = np.random.default_rng(i)
        picture = self.pictures[i % len(self.pictures)]
        top, left = (chance.integers(0, side - self.size + 1) for side in picture.shape[:2])
        picture = picture[top : top + self.size, left : left + self.size]
        if chance.random() < 0.5:
            picture = picture[:, ::-1]
        if picture.shape[2] == 4:
            ground = Image.new("RGBA", (self.size, self.size), (*chance.integers(0, 256, 3).tolist(), 255))
            picture = np.asarray(
                Image.alpha_composite(ground, Image.fromarray(np.ascontiguousarray(picture)))
            )[..., :3]
        return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float() / 127.5 - 1


def in_two_threads(dataset: Dataset, batches: int) -> Callable[[], None]:
    """Return a call that makes ``batches`` batches, each half in a thread of its own."""
    halves = [dataset.batches(batch_size, seed=seed, rank=rank, world=2) for rank in range(2)]

    def work(half) -> None:
        for _ in range(batches):
            next(half)

    def call() -> None:
        threads = [threading.Thread(target=work, args=(half,)) for half in halves]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return call


def with_loader(pictures: np.ndarray, batches: int) -> Callable[[], None]:
    """Return a call that takes ``batches`` batches from a loader with two workers, which keep running."""
    loader = torch.utils.data.DataLoader(OneByOne(pictures, image_size), batch_size, num_workers=2)
    endless = iter(loader)

    def call() -> None:
        for _ in range(batches):
            next(endless)

    return call


threads = torch.get_num_threads()
torch.set_num_threads(1)  # each thread of ours and each worker of the peer has one core
n_ours, n_peer = (1, 1) if page.smoke else (100, 8)
chance = np.random.default_rng(seed)
for name, dataset, channels, wanted in (  # images/s at 64 px on two cores
    ("photos, crop and flip", load("photos", "train", image_size), 3, 60_000),
    ("emoji on a random ground", load("emoji", "train", image_size, factors="background"), 4, 25_000),
):
    side = 2 * image_size if channels == 3 else image_size  # an emoji is not cut
    pictures = chance.integers(0, 256, (64, side, side, channels), np.uint8)
    keep(
        race(
            f"batches of {name}, {image_size} px",
            in_two_threads(dataset, n_ours),
            with_loader(pictures, n_peer),
            "DataLoader, two workers, image by image",
            made=(batch_size * n_ours, batch_size * n_peer),
        )
    )
    print(f"{rows[-1].ours:,.0f} images/s in two threads; wanted {wanted:,}")
torch.set_num_threads(threads)

# %% [markdown]
# ## The quantizer
#
# The authors' code builds the matrix of all distances inside the graph. Ours finds the nearest code in pieces outside
# of it, and gathers. Twelve images of 256 tokens, 16,384 codes of width 256, as the paper's large model had.


# %%
class Plain(torch.nn.Module):
    """The quantizer as the equations read: all N x K distances in the graph, codes by table lookup."""

    def __init__(self, codebook: Tensor) -> None:
        super().__init__()
        self.codebook = torch.nn.Parameter(codebook.clone())

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        squares = flat.square().sum(1, keepdim=True) + self.codebook.square().sum(1)
        nearest = (squares - 2 * flat @ self.codebook.T).argmin(1)
        z_q = self.codebook[nearest].view(z.shape[0], *z.shape[2:], -1).permute(0, 3, 1, 2)
        loss = F.mse_loss(z_q, z.detach()) + 0.25 * F.mse_loss(z, z_q.detach())
        return z + (z_q - z).detach(), loss


n_codes, dim_z, side = (64, 8, 4) if page.smoke else (16384, 256, 16)
quantizer = VectorQuantizer(n_codes, dim_z).to(runtime.device)
plain = Plain(quantizer.codebook.detach())
z = (torch.randn(12, dim_z, side, side) / n_codes).to(runtime.device).requires_grad_()
ours, peer = quantizer(z), plain(z)
torch.testing.assert_close(ours.z_q, peer[0])
torch.testing.assert_close(ours.loss, peer[1])


def quantize() -> None:
    """Forward and backward pass of ours."""
    out = quantizer(z)
    (out.z_q.sum() + out.loss).backward()


def quantize_plainly() -> None:
    """Forward and backward pass of the plain form."""
    z_q, loss = plain(z)
    (z_q.sum() + loss).backward()


name = f"quantizer, 3,072 vectors, {n_codes:,} codes"
keep(race(name, quantize, quantize_plainly, "all distances in the graph"))

# %% [markdown]
# ## One step of the autoencoder
#
# The page {doc}`taming` forms both gradients at the image and goes down the decoder once. The peer puts both losses on
# one graph and asks it for λ first and for the update after, as Eq. 7 reads. Both give the same gradients.

# %%
small = 16 if page.smoke else 32
channels = 8 if page.smoke else 16
x = load("emoji", "train", small).images(torch.arange(4 if page.smoke else 16)).to(runtime.device)
vqgan = runtime.prepare(story.build_vqgan(small, 4, channels, 64, 8))
critic = runtime.prepare(PatchDiscriminator(ch=2 * channels, n_layers=2, norm="none"))
perceptual = runtime.prepare(vgg_loss(pretrained=not page.smoke))


def once() -> None:
    """Take the autoencoder's gradients with one backward pass through decoder and encoder."""
    with runtime.autocast():
        x_rec, quantized = vqgan(x)
    x_hat = x_rec.detach().float().requires_grad_()
    with runtime.autocast():
        rec, _ = story.reconstruction_loss(x, x_hat, perceptual)
        (g_rec,) = torch.autograd.grad(rec, x_hat)
        (g_gan,) = torch.autograd.grad(hinge_g_loss(critic(x_hat)), x_hat)
    lam = story.adaptive_weight(x_rec, g_rec, g_gan, vqgan.last_layer)
    torch.autograd.backward([x_rec, quantized.loss], [(g_rec + lam * g_gan).to(x_rec.dtype), None])


def twice() -> None:
    """Take the same gradients with λ and update from one graph."""
    with runtime.autocast():
        x_rec, quantized = vqgan(x)
        rec, _ = story.reconstruction_loss(x, x_rec.float(), perceptual)
        gan = hinge_g_loss(critic(x_rec.float()))
    norms = [torch.autograd.grad(loss, vqgan.last_layer, retain_graph=True)[0].norm() for loss in (rec, gan)]
    (rec + (norms[0] / (norms[1] + 1e-4)).detach() * gan + quantized.loss).backward()


n_steps = 1 if page.smoke else 3
keep(
    race(
        f"autoencoder step, {small} px, batch {len(x)}",
        lambda: [once() for _ in range(n_steps)],
        lambda: [twice() for _ in range(n_steps)],
        "both losses on one graph",
        made=(n_steps * len(x), n_steps * len(x)),
    )
)

# %% [markdown]
# ## The sampler
#
# Keys and values of what was written lie in a preallocated cache, so a step reads one token. The peer reads the whole
# sentence anew for each.

# %%
layers, width, n_tokens = (1, 16, 8) if page.smoke else (6, 256, 256)
gpt = runtime.prepare(
    GPT(1024 + 1, n_tokens + 1, n_layers=layers, n_heads=4, dim=width, vocab_out=1024)
).eval()
start = torch.full((4, 1), 1024)


@torch.no_grad()
def read_anew() -> Tensor:
    """Return sampled tokens (4, 1 + n_tokens); every step reads all of them."""
    tokens = start.to(runtime.device)
    for _ in range(n_tokens):
        with runtime.autocast():
            logits = gpt(tokens)[:, -1]
        tokens = torch.cat([tokens, torch.multinomial(logits.float().softmax(-1), 1)], dim=1)
    return tokens


keep(
    race(
        f"sampler, {n_tokens} tokens, batch 4",
        lambda: story.sample(gpt, start, n_tokens, runtime),
        read_anew,
        "the whole sentence at every step",
        made=(4, 4),
    )
)

# %% [markdown]
# ## The ray-caster
#
# The figures of {doc}`parts` are twenty capsules with patterned clothes under two lights. The peer is the plain way:
# every ray against every capsule, then colour where something was met. Ours tests a ray only where the projection of
# a capsule says that it may be seen, and many images at a time. It also gives depth and parts, which the peer leaves
# out. Both draw the same picture.


# %%
def dot(a: Tensor, b: Tensor) -> Tensor:
    """Return a · b of vectors (3, ...)."""
    return (a * b).sum(0)


def first_root(d: Tensor, m: Tensor, radius: Tensor) -> Tensor:
    """Return the smaller t with |m + t d| = radius, inf if there is none."""
    dd, dm = dot(d, d), dot(d, m)
    rest = dm.square() - dd * (dot(m, m) - radius.square())
    return torch.where(rest >= 0, (-dm - rest.clamp_min(0).sqrt()) / dd, torch.inf)


def meet_plainly(o: Tensor, d: Tensor, a: Tensor, b: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Return t (rays,) where rays o + t d first meet a capsule, inf without one, and its number (rays,).

    d is (3, 1, rays), the ends a and b (3, N, 1) of the capsules' axes and ``radius`` (N, 1).
    """
    length, m = (b - a).norm(dim=0), o - a
    w = (b - a) / length
    t = first_root(d - dot(w, d) * w, m - dot(w, m) * w, radius)  # of the cylinder without ends
    along = dot(w, m + t * d)
    t = torch.where((along >= 0) & (along <= length), t, torch.inf)
    return t.minimum(first_root(d, m, radius)).minimum(first_root(d, o - b, radius)).min(0)


def paint_plainly(scene: Scene, i: int, n: Tensor, x: Tensor) -> Tensor:
    """Return the colours (3, h) of scene ``i`` at points x (3, h) on its capsules n (h,)."""
    capsules, lights = scene.capsules, scene.lights
    a, b, reference = (field[i, n].T for field in (capsules.a, capsules.b, capsules.reference))
    radius, length = capsules.radius[i, n], (b - a).norm(dim=0)
    w = (b - a) / length
    along = dot(w, x - a)
    normal = (x - a - along.clamp_min(0).minimum(length) * w) / radius
    right = F.normalize(reference - dot(reference, w) * w, dim=0)
    turns = torch.atan2(dot(torch.linalg.cross(w, right, dim=0), normal), dot(right, normal)) / (2 * math.pi)
    scale_u, scale_v, from_u, from_v = capsules.uv[i, n].T
    u, v = scale_u * turns + from_u, scale_v * (along + radius) / (length + 2 * radius) + from_v
    colour = capsules.colour[i, n].T * sample_textures(scene.textures, capsules.texture[i, n], u, v)
    cosines = F.normalize(lights.direction[i], dim=1) @ normal
    return (colour * (lights.ambient[i][:, None] + lights.colour[i].T @ cosines.clamp_min(0))).clamp_max(1)


def cast_plainly(scene: Scene, cameras: Cameras, supersample: int) -> Tensor:
    """Return images (B, 3, H, W) in [0, 1] of textured capsules under distant lights, on black."""
    capsules, images = scene.capsules, []
    fine = cameras.resized(supersample * cameras.height, supersample * cameras.width)
    for i in range(len(cameras)):
        o, d = fine[i : i + 1].rays()
        o, d = o.view(3, 1, 1), d.view(-1, 3).T[:, None]
        t, n = meet_plainly(
            o, d, capsules.a[i].T[..., None], capsules.b[i].T[..., None], capsules.radius[i][:, None]
        )
        ray = t.isfinite().nonzero()[:, 0]
        image = t.new_zeros(3, len(t))
        image[:, ray] = paint_plainly(scene, i, n[ray], (o + t * d)[:, 0, ray])
        images.append(F.avg_pool2d(image.view(3, fine.height, fine.width), supersample))
    return torch.stack(images)


# %%
n_bodies = 2 if page.smoke else 64
frames = frames_of("test")
poses = rotations_of([frames[i * len(frames) // n_bodies] for i in range(n_bodies)])
people = draw_shapes(n_bodies, seed, "test"), draw_looks(n_bodies, seed, "test")
scene, cameras = body_scenes(poses, *people, sample_views(n_bodies, seed, "test"), image_size)
exact = scene.to(dtype=torch.float64), cameras
torch.testing.assert_close(render(*exact, supersample=2).rgb, cast_plainly(*exact, 2), rtol=0, atol=1e-9)

# %%
scene, cameras = scene.to(runtime.device), cameras.to(runtime.device, torch.float32)
for side, wanted in ((1, 600), (2, 200)):  # images/s on two cores
    met = side**2 * float(render(scene, cameras, supersample=side).alpha.sum())  # rays that see something
    keep(
        race(
            f"{n_bodies} bodies, {image_size} px, {side} x {side} rays a pixel",
            partial(render, scene, cameras, supersample=side),
            partial(cast_plainly, scene, cameras, side),
            "every ray against every capsule",
            made=(n_bodies, n_bodies),
            operations=160 * met,  # 50 to find where a ray meets its capsule, 110 for the colour there
        )
    )
    print(f"{rows[-1].ours:,.0f} images/s on {torch.get_num_threads()} threads; wanted {wanted}")
    assert rows[-1].ours >= wanted or not page.record  # a busy machine says little

# %% [markdown]
# ## The decoder of parts
#
# The page {doc}`parts_model` counts operations: with widths that really fall, the decoder of part maps needs one ninetieth of those
# of the released decoder. But operations are not seconds. Here both decoders run at the paper's shape, one map of 25 parts at 128 px,
# forward and backward. At report scale a whole training step on one pair runs too, with VGG-19 at 224 px and all the rest.

# %%
parts = page.definitions("parts_learning")
shape = parts.paper_config()
if page.smoke:
    shape = parts.PartsConfig(image_size=16, n_parts=4, decoder_widths=(16, 8), shape_widths=(8, 8))


def decoding(config) -> Callable[[], None]:
    """Return a call that decodes one shape code into a map of parts and goes back."""
    decoder = runtime.prepare(parts.SegmentationDecoder(config))
    code = torch.randn(1, config.dim_pi).to(runtime.device)

    def call() -> None:
        with runtime.autocast():
            logits = decoder(code)
        logits.sum().backward()

    return call


def training(config, is_routed: bool) -> Callable[[], None]:
    """Return a call that takes the gradients of a step on one pair, painted one way and judged by VGG-19."""
    aim = parts.Objective(both_ways=False, is_routed=is_routed)
    model = runtime.prepare(parts.PartsModel(config, aim, parts.VggDistance(vgg19(pretrained=False), 224)))
    pair = (torch.rand(2, 1, 3, config.image_size, config.image_size) * 2 - 1).to(runtime.device)

    def call() -> None:
        with runtime.autocast():
            loss, _ = model(*pair, 1.0)
        loss.backward()

    return call


calls = decoding(shape), decoding(parts.wide(shape))
keep(race(f"decoder of parts, {shape.image_size} px", *calls, "256 channels at every size, as released"))
if page.record:
    calls = training(shape, True), training(parts.wide(shape), False)
    keep(race("step of parts, 128 px, one pair", *calls, "the released decoder, one summed loss"))

# %% [markdown]
# ## Flows
#
# The blocks of {doc}`invariances` are those of FrEIA {cite}`freia`, a library for invertible networks: ActNorm, `RNVPCouplingBlock`, permutation. A coupling changes each half
# of its input by two perceptrons, one for the scale and one for the shift. Ours computes these two at once, and brings the condition into all blocks by one product. Both get the same weights here and must give the same
# result. With few labels the products of the condition are made once and looked up, forward and inverse; a training step computes them. Such a step is forward, backward and Adam in its fused form. All of
# it runs on one thread, since matrices of sixteen rows gain nothing from a second.
#
# How much is there to gain? Twenty blocks of width 256 hold twelve million weights. With sixteen rows a step does little with each: it waits for memory, which has to bring every weight twice, take its gradient, and serve
# the tables of Adam. So beside every step stands a row that does nothing but these products and Adam, against the same FrEIA: no step can be much faster than that.


# %%
def copy_net(twin: TwinNets, which: int, cond_weight: Tensor, cond_bias: Tensor, net: nn.Sequential) -> None:
    """Write S (0) or T (1) of ``twin`` into the Linear layers of ``net``."""
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    weights = [p[which] if twin.is_wide else p[which].T for k, p in twin.named_parameters() if "weight" in k]
    biases = [p[which, 0] for k, p in twin.named_parameters() if "bias" in k]
    linear[0].weight.copy_(torch.cat([weights[0], cond_weight.T], dim=1))
    linear[0].bias.copy_(cond_bias[0])
    for layer, weight, bias in zip(linear[1:], weights[1:], biases, strict=True):
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)


class FreiaFlow(nn.Module):
    """``flow`` (even width, no activation) in FrEIA; its halves lie the other way round there."""

    def __init__(self, flow: ConditionalFlow) -> None:
        super().__init__()
        dim, width, depth = (flow.config[key] for key in ("dim", "width", "depth"))
        half = dim // 2
        self.swap = torch.arange(dim).roll(half)
        cond = {} if flow.embedder is None else {"cond": 0, "cond_shape": (flow.embedder.dim,)}
        self.inn = framework.SequenceINN(dim)

        def net(n_in: int, n_out: int) -> nn.Sequential:
            sizes = [n_in, *[width] * (depth + 1), n_out]
            layers: list[nn.Module] = []
            for i, (before, after) in enumerate(pairwise(sizes)):
                layers += [nn.LeakyReLU(0.01)] * (i > 0) + [nn.Linear(before, after)]
            return nn.Sequential(*layers)

        coupling = {"subnet_constructor": net, "clamp": 1.0, "clamp_activation": "TANH", **cond}
        for i, block in enumerate(flow.blocks):
            self.inn.append(modules.ActNorm)
            self.inn.append(modules.RNVPCouplingBlock, **coupling)
            self.inn.append(modules.PermuteRandom)
            with torch.no_grad():
                self.copy_block(flow, i, block)

    def copy_block(self, flow: ConditionalFlow, i: int, block: nn.Module) -> None:
        """Write the weights of block ``i`` of ``flow`` into the three modules that stand for it."""
        norm, coupling, shuffle = self.inn[3 * i : 3 * i + 3]
        norm.init_on_next_batch = False
        norm.scale.copy_(block.norm.scale[self.swap].log())
        norm.bias.copy_((block.norm.loc * block.norm.scale)[self.swap])
        weight, bias = flow.cond_weight[4 * i : 4 * i + 4], flow.cond_bias[4 * i : 4 * i + 4]
        for j, net in enumerate(
            [coupling.subnet_s2, coupling.subnet_t2, coupling.subnet_s1, coupling.subnet_t1]
        ):
            twin = block.coupling.first if j < 2 else block.coupling.second
            copy_net(twin, j % 2, weight[j], bias[j], net)
        order = block.shuffle.order if i == len(flow.blocks) - 1 else block.shuffle.order[self.swap]
        shuffle.perm.copy_(order)
        shuffle.perm_inv.copy_(order.argsort())

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return v and log|det|, as ours does; ``h`` is the embedded condition."""
        return self.inn(x[:, self.swap], None if h is None else [h])

    def inverse(self, v: Tensor, h: Tensor | None = None) -> Tensor:
        return self.inn(v, None if h is None else [h], rev=True)[0][:, self.swap]


def stepping(run: Callable[[], tuple[Tensor, Tensor]], parameters: list[Tensor]) -> Callable[[], None]:
    """Return a call: forward by ``run()``, backward, one step of Adam in its fused form, the faster one for either."""
    optimizer = torch.optim.Adam(parameters, lr=1e-5, betas=(0.5, 0.9), fused=True)

    def step() -> None:
        v, logdet = run()
        optimizer.zero_grad()
        (v.square().sum(1) / 2 - logdet).mean().backward()
        optimizer.step()

    return step


def bare_step(flow: ConditionalFlow, batch: int) -> Callable[[], None]:
    """Return a call of what no step can do without: the products of the nets, forward and backward, and Adam.

    The condition, the exponentials, the shuffles, autograd's own work: all of that is left out.
    """
    twins = [twin for block in flow.blocks for twin in (block.coupling.first, block.coupling.second)]
    nets = [[p for name, p in twin.named_parameters() if "weight" in name] for twin in twins]
    is_wide, parameters = twins[0].is_wide, list(flow.blocks.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-5, betas=(0.5, 0.9), fused=True)
    for p in parameters:
        p.grad = torch.zeros_like(p)

    @torch.no_grad()
    def step() -> None:
        seen = []
        for net in nets:
            h = torch.ones(2, batch, net[0].shape[2 if is_wide else 1])
            for w in net:
                seen.append(h)
                h = torch.bmm(h, w.transpose(1, 2) if is_wide else w)
        for net in reversed(nets):
            g = torch.ones(2, batch, net[-1].shape[1 if is_wide else 2])
            for w in reversed(net):
                h = seen.pop()
                w.grad = torch.bmm(g.transpose(1, 2), h) if is_wide else torch.bmm(h.transpose(1, 2), g)
                g = torch.bmm(g, w if is_wide else w.transpose(1, 2))
        optimizer.step()

    return step


def repeated(call: Callable[[], object], times: int, grad: bool = True) -> Callable[[], None]:
    """Return a call that makes ``times`` calls, without gradients where ``grad`` is False."""

    def calls() -> None:
        with torch.set_grad_enabled(grad):
            for _ in range(times):
                call()

    return calls


def race_flows(dim: int, width: int, n_blocks: int, labels: int = 0, batch: int = 16, times: int = 8) -> None:
    """Race a flow against its likeness in FrEIA: forward, inverse and a training step of ``batch`` rows.

    The condition is a vector of ``dim`` numbers, or one of ``labels``, of which ours looks the products up.
    """
    embedder = (
        LabelEmbedder((labels, 256, 256, 256, 10)) if labels else VectorEmbedder((dim, 256, 256, 256, dim))
    )
    flow = ConditionalFlow(dim, width, n_blocks=n_blocks, embedder=embedder)
    n = max(batch, 16)
    x, cond = torch.randn(n, dim), torch.arange(n) % labels if labels else torch.randn(n, dim)
    flow(x, cond)  # decides where its ActNorms start, which takes more than one row
    x, cond = x[:batch], cond[:batch]
    peer = FreiaFlow(flow)
    with torch.no_grad():
        torch.testing.assert_close(flow(x, cond), peer(x, embedder(cond)), rtol=1e-5, atol=1e-5)
        known = flow.project(torch.arange(labels)) if labels else None
        embedded = embedder(torch.arange(labels)) if labels else None  # the peer may keep this much

    def given():
        return cond if known is None else known[cond]

    def theirs_given():
        return embedder(cond) if embedded is None else embedded[cond]

    here = partial(race, device=torch.device("cpu"))  # where all of this lies, whatever the page runs on
    n_weights = sum(p.numel() for p in flow.parameters() if p.ndim > 1)
    end = f", {labels} labels" if labels else ""
    passes = {
        "forward": (lambda: flow(x, given()), lambda: peer(x, theirs_given())),
        "inverse": (lambda: flow.inverse(x, given()), lambda: peer.inverse(x, theirs_given())),
    }
    for kind, (ours, theirs) in passes.items():
        calls = repeated(ours, times, False), repeated(theirs, times, False)
        name = f"flow {kind}, batch {batch}, width {width}{end}"
        keep(here(name, *calls, "FrEIA", operations=2 * batch * n_weights * times, made=(times * batch,) * 2))
    parameters = [p for p in peer.parameters() if p.requires_grad] + list(embedder.parameters())
    calls = (
        repeated(stepping(lambda: flow(x, cond), list(flow.parameters())), times),
        repeated(stepping(lambda: peer(x, embedder(cond)), parameters), times),
    )
    name = f"flow step, batch {batch}, width {width}{end}"
    keep(here(name, *calls, "FrEIA", operations=6 * batch * n_weights * times, made=(times * batch,) * 2))
    if not labels:
        alone = repeated(bare_step(flow, batch), times), calls[1]
        keep(here(f"{name}, products and Adam alone", *alone, "FrEIA", made=(times * batch,) * 2))


# %%
threads = torch.get_num_threads()
torch.set_num_threads(1)
CASES = (  # dim, width, blocks; labels; batch, and how many calls make a lap
    {"dim": 32, "width": 64, "n_blocks": 20},
    {"dim": 64, "width": 256, "n_blocks": 20},
    {"dim": 32, "width": 64, "n_blocks": 20, "labels": 3},
    {"dim": 64, "width": 256, "n_blocks": 20, "batch": 1},
    {"dim": 64, "width": 256, "n_blocks": 20, "batch": 256, "times": 2},
    {"dim": 128, "width": 1024, "n_blocks": 4},
    {"dim": 128, "width": 1024, "n_blocks": 4, "batch": 256, "times": 1},
)
for case in [{"dim": 8, "width": 16, "n_blocks": 2}] if page.smoke else CASES:
    race_flows(**case)
torch.set_num_threads(threads)

# %% [markdown]
# ## Retrieval scores
#
# Every query is compared with every item of the gallery: 3.7 billion similarities for the 60,502 test pictures of Stanford
# Online Products. Nobody needs them all at once. Ours holds 16 MB of them at a time; the peer is
# pytorch-metric-learning {cite}`musgrave2020reality`, told to search in batches of 256 queries. Both must
# find the same scores.

# %%
LABELLED = """
import sys
import numpy as np
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from cvlib.claims.racing import report

who, n, n_classes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = torch.Generator().manual_seed(0)
labels = torch.randint(n_classes, (n,), generator=rng)
z = torch.randn(n, 128, generator=rng) + 0.6 * torch.randn(n_classes, 128, generator=rng)[labels]
z = torch.nn.functional.normalize(z)
"""
RETRIEVAL = """
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.inference import CustomKNN
from cvlib.metrics import retrieval_scores

search = CustomKNN(CosineSimilarity(), batch_size=256)
wanted = ("precision_at_1", "mean_average_precision_at_r")
peer = AccuracyCalculator(include=wanted, k="max_bin_count", knn_func=search, device=torch.device("cpu"))

def score(m):  # the operations that it wants, and results
    if who == "ours":
        found = retrieval_scores(z[:m], labels[:m], (1,), map_1000=False)
        return 2 * m * m * z.shape[1], found.recall[1], found.map_r
    found = peer.get_accuracy(z[:m], labels[:m])
    return 0, *(found[name] for name in wanted)

report(score, n)
"""

# %%
n_small = 600 if page.smoke else 6000
sizes = [(n_small, n_small // 20)] + (
    [(60_502, 11_316)] if page.record else []
)  # the large one takes minutes
for n, k in sizes:
    name = f"retrieval, {n:,} in {k:,} classes"
    keep(race_apart(name, LABELLED + RETRIEVAL, (n, k), "pytorch-metric-learning"))

# %% [markdown]
# ## Clusters
#
# NMI, normalised mutual information, compares the classes with as many clusters as there are classes: 11,316 of them for Stanford Online Products, 680
# million similarities in the first round of k-means. Ours holds 256 rows of them at a time, and does not compute again what
# cannot change an assignment: later rounds look at the centres that moved, and at the others only for an embedding whose own
# centre moved away. The rounds end as soon as no embedding changes its cluster.
#
# The peer is again pytorch-metric-learning. Its own k-means, faiss with 20 rounds from random rows, is not among the packages of this book;
# the same rounds stand in its place, written plainly and in blocks of 256 rows too. faiss itself is faster
# than these plain rounds: the ratio below says nothing about faiss. Both start from the same rows, so both
# must end in the same clusters, except for an embedding that lies between two of them up to rounding. The floor counts the first round alone, as how much the others
# need depends on the data.

# %%
CLUSTERS = """
from cvlib.metrics import cluster_scores

def plainly(x, k):
    even = np.full(len(x), 1 / len(x), np.float32)
    centres = x[np.random.RandomState(0).choice(len(x), k, replace=False, p=even)]  # as scikit-learn draws
    for i in range(20 + 1):
        half = centres.square().sum(1) / 2
        nearest = torch.cat([(rows @ centres.T).sub_(half).argmax(1) for rows in x.split(256)])
        if i == 20:
            return nearest
        counts = torch.bincount(nearest, minlength=k)[:, None]
        means = torch.zeros_like(centres).index_add_(0, nearest, x) / counts
        centres = torch.where(counts > 0, means, centres)

peer = AccuracyCalculator(include=("NMI",), knn_func=len, kmeans_func=plainly, device=torch.device("cpu"))

def score(m):
    if who == "ours":
        found = cluster_scores(z[:m], labels[:m], seed=0, iterations=20)
        return 2 * m * found.n_clusters * z.shape[1], found.nmi
    return 0, peer.get_accuracy(z[:m], labels[:m])["NMI"]

report(score, n)
"""

# %%
for n, k in sizes:
    keep(
        race_apart(
            f"k-means and NMI, {n:,} in {k:,} classes",
            LABELLED + CLUSTERS,
            (n, k),
            "pytorch-metric-learning, 20 plain rounds",
            rounds=rounds if n == n_small else min(rounds, 3),  # the large one takes two minutes a round
            atol=1e-3,  # embeddings between two clusters; another start moves NMI ten times as far
        )
    )

# %% [markdown]
# ## The table
#
# Read the interval before the ratio: where the smallest round is near 1, the gain is not sure. *floor / ours* is the share of our time that the counted operations
# would take at the machine's highest rate; the field is empty where they were not counted.

# %%
if page.record:
    write_rows(rows)
shown = load_rows() if page.record else rows


def number(value: float) -> str:
    """Return a speed or a time with three significant digits, large ones whole."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


table(
    [
        [
            row.name,
            f"{number(row.ours)} {row.unit}",
            f"{number(row.peer)} {row.unit}",
            row.peer_name,
            f"**{row.ratio:.2f}** [{row.low:.2f}, {row.high:.2f}]",
            "" if row.floor_fraction is None else f"{100 * row.floor_fraction:.2g} %",
            "" if row.peak_mb is None else f"{number(row.peak_mb)}, {number(row.peer_peak_mb)} MB",
        ]
        for row in shown
    ],
    header=["what", "ours", "peer", "the peer", "ratio", "floor / ours", "memory: ours, peer"],
    caption=f"{runtime.describe()}, {os.cpu_count()} cores; median of {rounds} rounds (of 3 at most for the largest k-means), smallest and largest.",
)

# %%
page.finish(runtime)
