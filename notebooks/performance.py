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
# # How fast, beside what
#
# A speed means something beside another one, on the same machine, in the same minute. On this page our code and a peer
# take turns, round after round, and what counts is the ratio of their times within a round: a machine that is busy
# with something else slows both. The table gives the median ratio and the smallest and largest of all rounds; above 1
# ours is faster.
#
# | scale | command | what it needs |
# |---|---|---|
# | quick | `papermill notebooks/performance.ipynb out.ipynb` | about 2 minutes on 2 CPU cores |
# | report | `make report CHAPTER=performance` | 5 minutes |
#
# Reading time: 5 minutes.

# %%
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cvlib.claims import Row, load_rows, write_rows
from cvlib.data import Dataset, load
from cvlib.nn import GPT, PatchDiscriminator, VectorQuantizer, hinge_g_loss, vgg_loss
from cvlib.pages import begin
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
# Both run once before the clock starts. In each round both run once more, in turn.

# %%
rows: list[Row] = []


def race(
    name: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    peer_name: str,
    made: tuple[int, int] | None = None,
) -> None:
    """Keep the row of one comparison: milliseconds a call, or images/s where both say how many a call makes."""
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for i in range(rounds + 1):
        for who, call in (("ours", ours), ("peer", peer)):
            start = time.perf_counter()
            call()
            if runtime.device.type == "cuda":
                torch.cuda.synchronize()
            if i:
                seconds[who].append(time.perf_counter() - start)
    n_ours, n_peer = made or (1, 1)
    ratios = [(b / n_peer) / (a / n_ours) for a, b in zip(seconds["ours"], seconds["peer"], strict=True)]
    ratio, mine = statistics.median(ratios), statistics.median(seconds["ours"]) / n_ours
    theirs = mine * ratio  # so that the two columns stand in the median ratio
    shown = (1 / mine, 1 / theirs) if made else (1e3 * mine, 1e3 * theirs)
    unit = "images/s" if made else "ms"
    rows.append(Row(name, *shown, peer_name, unit, ratio, min(ratios), max(ratios)))
    print(f"{name}: {ratio:.2f} times as fast")


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
for name, dataset, channels in (
    ("photos, crop and flip", load("photos", "train", image_size), 3),
    ("emoji on a random ground", load("emoji", "train", image_size, factors="background"), 4),
):
    side = 2 * image_size if channels == 3 else image_size  # an emoji is not cut
    pictures = chance.integers(0, 256, (64, side, side, channels), np.uint8)
    race(
        f"batches of {name}, {image_size} px",
        in_two_threads(dataset, n_ours),
        with_loader(pictures, n_peer),
        "DataLoader, two workers, image by image",
        (batch_size * n_ours, batch_size * n_peer),
    )
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


race(f"quantizer, 3,072 vectors, {n_codes:,} codes", quantize, quantize_plainly, "all distances in the graph")

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
race(
    f"autoencoder step, {small} px, batch {len(x)}",
    lambda: [once() for _ in range(n_steps)],
    lambda: [twice() for _ in range(n_steps)],
    "both losses on one graph",
    (n_steps * len(x), n_steps * len(x)),
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


race(
    f"sampler, {n_tokens} tokens, batch 4",
    lambda: story.sample(gpt, start, n_tokens, runtime),
    read_anew,
    "the whole sentence at every step",
    (4, 4),
)

# %% [markdown]
# ## Retrieval scores
#
# Every query is compared with every item of the gallery: 3.7 billion similarities for the 60,502 test pictures of Stanford
# Online Products. Nobody needs them all at once. Ours holds 16 MB of them at a time; the peer is
# pytorch-metric-learning {cite}`musgrave2020reality`, told to search in batches of 256 queries. Both run in a process of
# their own, so that its memory can be read afterwards, and must find the same scores.

# %%
RETRIEVAL = """
import pathlib, re, resource, sys, time
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from cvlib.metrics import retrieval_scores

who, n, n_classes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = torch.Generator().manual_seed(0)
labels = torch.randint(n_classes, (n,), generator=rng)
z = torch.randn(n, 128, generator=rng) + 0.6 * torch.randn(n_classes, 128, generator=rng)[labels]
search = CustomKNN(CosineSimilarity(), batch_size=256)
wanted = ("precision_at_1", "mean_average_precision_at_r")
peer = AccuracyCalculator(include=wanted, k="max_bin_count", knn_func=search, device=torch.device("cpu"))

def score(m):
    if who == "ours":
        found = retrieval_scores(z[:m], labels[:m], (1,), map_1000=False)
        return found.recall[1], found.map_r
    found = peer.get_accuracy(z[:m], labels[:m])
    return tuple(found[name] for name in wanted)

def peak_kb():  # on Linux getrusage also counts what the parent held when it started this program
    status = pathlib.Path("/proc/self/status")
    found = re.search(r"VmHWM:\\s+(\\d+)", status.read_text()) if status.exists() else None
    return int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

score(min(n, 200))  # imports, and the first allocations
before, start = peak_kb(), time.perf_counter()
recall, map_r = score(n)
seconds = time.perf_counter() - start
print(seconds, (peak_kb() - before) / 1024, recall, map_r)
"""


def race_apart(name: str, program: str, arguments: list[int], peer_name: str, n_rounds: int) -> None:
    """Keep the row of a program that prints seconds, MB at its peak, and results; its first argument says who runs.

    The results of both must agree to 1e-6. Reading memory so works on Linux and macOS.
    """
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    megabytes, found = {}, {}
    for _ in range(n_rounds):
        for who in seconds:
            command = [sys.executable, "-c", program, who, *map(str, arguments)]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            took, megabytes[who], *found[who] = map(float, printed)
            seconds[who].append(took)
    assert np.allclose(found["ours"], found["peer"], atol=1e-6), found
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["peer"], strict=True)]
    ratio, mine = statistics.median(ratios), 1e3 * statistics.median(seconds["ours"])
    sizes = {"peak_mb": megabytes["ours"], "peer_peak_mb": megabytes["peer"]}
    rows.append(Row(name, mine, mine * ratio, peer_name, "ms", ratio, min(ratios), max(ratios), **sizes))
    print(f"{name}: {ratio:.2f} times as fast, {megabytes['ours']:.0f} MB beside {megabytes['peer']:.0f} MB")


n_small = 600 if page.smoke else 6000
race_apart(
    f"retrieval, {n_small:,} in {n_small // 20} classes",
    RETRIEVAL,
    [n_small, n_small // 20],
    "pytorch-metric-learning",
    rounds,
)
if page.record:  # a minute a round
    race_apart(
        "retrieval, 60,502 in 11,316 classes",
        RETRIEVAL,
        [60_502, 11_316],
        "pytorch-metric-learning",
        rounds,
    )

# %% [markdown]
# ## The table

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
            "" if row.peak_mb is None else f"{number(row.peak_mb)}, {number(row.peer_peak_mb)} MB",
        ]
        for row in shown
    ],
    header=["what", "ours", "peer", "the peer", "ratio", "memory: ours, peer"],
    caption=f"{runtime.describe()}, {os.cpu_count()} cores; median of {rounds} rounds, smallest and largest.",
)

# %%
page.finish(runtime)
