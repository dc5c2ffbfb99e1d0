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
# # Experts: a decoder that knows its world
#
# The autoencoder of {doc}`experts` must cope with drawings of things it has never seen, and pays for it: from few numbers it paints soft edges. The pages
# that follow need the drawings of a hundred concepts and no others. So the decoder may specialise here, as that of {cite:t}`rombach2020invariances` does: their autoencoder is trained on
# the very animals that the flows model.
#
# The **encoder** stays as it is: eight numbers for the frame (ground, hue, size, place, turn), then a linear code. Of its numbers the first 128 are kept. A flow models codes, so it does
# not notice that the decoder has changed. The **decoder** goes on learning, from the drawings of the hundred concepts alone, with the losses that it had. Two other experts from {doc}`experts`
# say what has come of it: the *namer*, which names the concept of a drawing, and the *judge*, which names concept and hand.
#
# | scale | command | what it needs |
# |---|---|---|
# | quick | `papermill notebooks/experts_brief.ipynb out.ipynb` | 2 minutes on 2 CPU cores |
# | report | `papermill notebooks/experts_brief.ipynb out.ipynb -f notebooks/params/experts_brief.report.yaml` | half an hour of one CPU core, minutes on a GPU |
#
# Reading time: 4 minutes.

# %%
import numpy as np
import torch
from torch import Tensor

from cvlib.data import Dataset, emoji_naming
from cvlib.data.base import derived_generator
from cvlib.metrics import psnr
from cvlib.nn import PatchDiscriminator, lpips_vgg16_hed, vgg_loss
from cvlib.nn.experts import freeze, load_experts
from cvlib.nn.precision import exact_products
from cvlib.nn.vae import VectorAutoencoder
from cvlib.pages import begin
from cvlib.show import figure, look, picture, say, show, table
from cvlib.train import RunResult, Runtime, fit, run_folder, seed_everything, warmup_linear

# %% tags=["parameters"]
seed = 0
steps = 20
batch_size = 32
image_size = 64
kept = 128  # numbers of the code, from the front. Paper: 128, which are all
n_concepts = 100  # evenly spread over the namer's 877. Paper: 149 animals, or ten of them
learning_rate = 5e-4
perceptual_weight = 0.25  # as on the page experts
disc_start = 0.3  # part of training without discriminator
disc_weight = 0.5
data = "emoji"
data_root = ""
device = "auto"
precision = "auto"
run_dir = "runs/experts_brief"
pretrained = True  # the experts are those of the book; there are no others
record = False  # True writes the weights to book/results/weights

# %%
page = begin("experts_brief", globals(), data="emoji", data_root="", pretrained=True)
experts = page.definitions("experts")
if page.smoke:  # prove in seconds that every cell runs; nothing is learned
    steps, batch_size, n_concepts = min(steps, 2), 4, 22
runtime = Runtime(device=device, precision=precision)
seed_everything(seed)
print(runtime.describe())

# %% [markdown]
# ## The first numbers, and networks of their own
#
# The code is in order, so its first 128 numbers are a code too. The linear maps are cut accordingly, everything else is copied; to begin with, the pictures
# are the same.

# %%
namer, whole, judge = load_experts(page.weights, runtime)
model = whole.first(kept)
freeze(model.encoder)
world = emoji_naming.few(emoji_naming.load("train", image_size), n_concepts)
rows = torch.linspace(0, len(world) - 1, 16 if page.smoke else 512).round().long()
images = world.images(rows, generator=derived_generator(0, "test views"), augment=True)
labels = {field: world.labels[field][rows] for field in ("concept", "hand")}
before, codes = experts.reconstruct(whole, images, runtime, kept=kept)
runtime.prepare(model)
exact = Runtime(device=device, precision="fp32")
with exact_products():
    want, whole_codes = experts.reconstruct(whole, images[:64], exact, kept=kept)
    again, first_codes = experts.reconstruct(model, images[:64], exact)
torch.testing.assert_close(first_codes, whole_codes[:, :kept], rtol=1e-4, atol=1e-4)
torch.testing.assert_close(again, want, rtol=1e-3, atol=1e-3)
print(f"{len(world)} drawings of {n_concepts} concepts; {kept} of {codes.shape[1]} numbers")

# %% [markdown]
# ## The decoder goes on
#
# One step is that of {doc}`experts`: absolute error, the distance of VGG-19, a critic. The encoder is frozen, and so is its KL term: what is
# learned is how to paint. Codes come with the noise of the encoder's Gaussian $q$, which keeps the decoder from reading more into a number than it says.


# %%
def train_decoder(
    model: VectorAutoencoder, world: Dataset, seed: int, root: str
) -> tuple[VectorAutoencoder, RunResult]:
    """Return the autoencoder with its decoder trained on the drawings of ``world``, and the run."""
    seed_everything(seed)
    learned = [*model.decoder.parameters(), model.log_variance]
    critic = runtime.prepare(PatchDiscriminator(ch=32, n_layers=3, norm="none"))
    adam = {"betas": (0.5, 0.99), "weight_decay": 0.0}
    optimizers = {
        "autoencoder": torch.optim.AdamW(learned, lr=learning_rate, **adam),
        "critic": torch.optim.AdamW(critic.parameters(), lr=learning_rate / 2, **adam),
    }
    config = {
        "expert": "brief",
        "seed": seed,
        "steps": steps,
        "batch_size": batch_size,
        "data": world.hash,
        "model": dict(model.config),
        "learning_rate": learning_rate,
        "perceptual_weight": perceptual_weight,
        "disc_start": disc_start,
        "disc_weight": disc_weight,
        "precision": runtime.precision,
    }
    step = experts.autoencoder_step(
        model,
        critic,
        optimizers,
        runtime.prepare(vgg_loss(pretrained=not page.smoke)),
        runtime,
        int(disc_start * steps),
        perceptual_weight,
        disc_weight,
    )
    run = fit(
        run_folder(root, "brief", config),
        config=config,
        modules={"autoencoder": model, "critic": critic},
        optimizers=optimizers,
        batches=world.batches(batch_size, seed=seed, device=runtime.device),
        step=step,
        steps=steps,
        runtime=runtime,
        schedules={"autoencoder": warmup_linear(max(1, steps // 20), steps)},
        evaluate=lambda done: experts.reconstruction_scores(model, images[:128], runtime),
    )
    return model, run


model, run = train_decoder(model, world, seed, run_dir)
freeze(model)

# %% [markdown]
# ## What is to be seen
#
# Judge and namer, neither of which took part in this training, say which of the hundred concepts a painting shows. Both are asked of views that no training
# step had.

# %%
eye = runtime.prepare(lpips_vgg16_hed(pretrained=not page.smoke))
studied = world.labels["concept"].unique()


def named(logits: Tensor) -> float:
    """Return how often logits (N, concepts) are highest, among the studied concepts, at the drawing's own."""
    return (studied[logits[:, studied].argmax(1)] == labels["concept"]).float().mean().item()


def seen(pictures: Tensor) -> list[float | None]:
    """Return PSNR (dB) and LPIPS to the drawings, and how often judge and namer name the concept, the judge the hand."""
    said, answers = (
        experts.judgements(judge, pictures, runtime),
        experts.name_logits(namer, pictures, runtime),
    )
    pairs = zip(pictures.split(64), images.split(64), strict=True)
    with torch.no_grad():
        far = torch.cat([eye(a.to(runtime.device), b.to(runtime.device)).cpu() for a, b in pairs])
    is_same = torch.equal(pictures, images)
    quality = [None, None] if is_same else [psnr(pictures, images).mean().item(), far.mean().item()]
    return [*quality, named(said.concept), experts.top(said.hand, labels["hand"]), named(answers)]


after, _ = experts.reconstruct(model, images, runtime)
full, _ = experts.reconstruct(whole, images, runtime)
found = {
    "the drawings": seen(images),
    f"all {codes.shape[1]} numbers": seen(full),
    f"{kept} numbers, before": seen(before),
    f"{kept} numbers, after": seen(after),
}
table(
    [[name, *values] for name, values in found.items()],
    header=["", "PSNR (dB)", "LPIPS-VGG16-HED", "concept, judge", "hand, judge", "concept, namer"],
    digits=3,
)

# %% tags=["hide-input"]
some = torch.linspace(0, len(images) - 1, 8).long()
picture(
    images[some],
    before[some],
    after[some],
    columns=8,
    rows=["drawing", "before", "after"],
    alt=f"Eight drawings, and what {kept} numbers of them become before and after.",
    caption=f"Views that no step had, evenly spaced; what the decoder paints from {kept} numbers before and after it learned its world.",
)

# %% [markdown]
# ### How far from a drawing may a code lie?
#
# A flow does not hit the code of a drawing exactly. Here is noise on the codes, in units of the noise that $q$ has, and how often the judge still
# names the concept.

# %%
sigma = (model.encoder.log_variance.detach().cpu() / 2).exp()
noise = torch.randn(codes[:, :kept].shape, generator=derived_generator(seed, "noise"))
amounts = (0.0, 1.0, 2.0, 3.0, 4.0)
rates: dict[str, list[float]] = {"before": [], "after": []}
for amount in amounts:
    near = codes[:, :kept] + amount * sigma * noise
    for name, net in (("before", whole), ("after", model)):
        with torch.no_grad():
            made = torch.cat([net.decode(z.to(runtime.device)).float().cpu() for z in near.split(128)])
        rates[name].append(named(experts.judgements(judge, made.clamp(-1, 1), runtime).concept))
fig, ax = figure(width="half")
for name, role in (("before", "control"), ("after", "ours")):
    ax.plot(amounts, rates[name], **look(role, marker=True), label=name)
ax.axhline(found["the drawings"][2], **look("paper"), label="the drawings")
ax.set(xlabel="noise on the code (σ of q)", ylabel="concept named", ylim=(0, 1))
ax.legend()
show(
    fig,
    alt="; ".join(
        f"{name}: {values[0]:.2f} without noise, {values[-1]:.2f} at {amounts[-1]:g} σ"
        for name, values in rates.items()
    ),
    caption="How often the judge names the concept in pictures of noisy codes, with the decoder as it was and as it became.",
)
say(
    f"After {steps} steps the judge names {found[f'{kept} numbers, after'][2]:.0%} of the concepts in pictures of {kept} numbers, before "
    f"{found[f'{kept} numbers, before'][2]:.0%}, in the drawings {found['the drawings'][2]:.0%}; the namer "
    f"{found[f'{kept} numbers, after'][4]:.0%}, before {found[f'{kept} numbers, before'][4]:.0%}."
)
say(
    f"In squared error the {kept} numbers have {found[f'{kept} numbers, after'][0]:.1f} dB on new views of the concepts that the decoder learned; all {codes.shape[1]} numbers, with the decoder that "
    f"also paints concepts it has never seen, have {found[f'all {codes.shape[1]} numbers'][0]:.1f} dB on the same views."
)

# %%
if steps >= 300:
    assert found[f"{kept} numbers, after"][1] < found[f"{kept} numbers, before"][1]
    assert np.mean(rates["after"]) > np.mean(rates["before"])
if page.record:
    page.keep_weights(
        "experts_brief",
        model,
        {
            "kind": "autoencoder",
            "command": "make report CHAPTER=experts_brief",
            "licence": "CC BY-SA 4.0",
            "steps": steps,
            "model": model.config,
            "data": f"emoji, {image_size} px with factors, {n_concepts} concepts, {world.hash}",
            "commit": run.result["commit"],
        },
        scores={
            "PSNR (dB), new views of the concepts it learned": found[f"{kept} numbers, after"][0],
            "concept named by the judge": found[f"{kept} numbers, after"][2],
        },
        limits=f"Knows the drawings of {n_concepts} concepts; what else it is given it paints in their manner. No use beyond this book is intended.",
    )

# %% [markdown]
# ## Where this page departs
#
# | paper or original code | here | why |
# |---|---|---|
# | encoder and decoder learn their animals together | the encoder is kept, the decoder alone goes on | codes stay what they were, so that what is cached and measured on other pages holds |
# | the code has 128 numbers from the start | the first 128 of 320 | the linear code is in order, and 128 is what the flows of the paper model |
# | 149 classes of animals, in photographs | 100 concepts, in nine sets by seven hands | a world small enough for a core and half an hour |
#
# ## Exercises
#
# 1. PSNR hardly rises, while judge and namer recognise more. Which of the two tells more about what the flows need, and why?
# 2. Train the decoder on means of $q$, without its noise. What happens to the curves of the last figure?
# 3. The encoder could learn along. What would it gain, and what would the pages that follow lose?
#
# ```{admonition} Solutions
# :class: dropdown
#
# 1. The names. PSNR counts pixels, most of which are flat ground that any decoder paints well; what tells a concept is small and thin. And it is by
#    its names that a sample of a flow will be judged, for it has no pixel to be compared with.
# 2. The left end may rise, for the decoder can read finer digits; the right end falls, because nothing taught it that neighbours mean the same. A flow
#    lands on the right end.
# 3. Fewer numbers would hold more of these drawings. But the code would no longer be in order, frame and factors would drift from their places, and whatever
#    was computed from codes would have to be computed again, for each world anew.
# ```

# %%
page.finish(runtime)
