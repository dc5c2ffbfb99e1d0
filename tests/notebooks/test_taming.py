"""What the page "taming" defines, held against brute force, autograd and definitions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cvlib.nn import GPT, CodeUsage, PatchDiscriminator, vgg_loss
from cvlib.pages import definitions
from cvlib.train import Runtime

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page():
    return definitions(ROOT / "notebooks" / "taming.py")


@pytest.fixture
def vqgan(page):
    torch.manual_seed(0)
    return page.build_vqgan(image_size=16, downsampling=4, channels=32, n_codes=8, dim_z=4)


@pytest.fixture
def x():
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_adaptive_weight_is_the_ratio_of_the_last_layers_gradient_norms(page, vqgan, x):
    critic = PatchDiscriminator(ch=8, n_layers=2).eval()
    x_rec, _ = vqgan(x)
    x_hat = x_rec.detach().requires_grad_()
    (g_rec,) = torch.autograd.grad((x - x_hat).abs().mean(), x_hat)
    (g_gan,) = torch.autograd.grad(-critic(x_hat).mean(), x_hat)
    ours = page.adaptive_weight(x_rec, g_rec, g_gan, vqgan.last_layer)
    losses = ((x - x_rec).abs().mean(), -critic(x_rec).mean())
    norms = [torch.autograd.grad(loss, vqgan.last_layer, retain_graph=True)[0].norm() for loss in losses]
    torch.testing.assert_close(ours, norms[0] / (norms[1] + 1e-4))


def test_adaptive_weight_is_finite_where_the_critic_is_silent(page, vqgan, x):
    x_rec, _ = vqgan(x)
    lam = page.adaptive_weight(x_rec, torch.ones_like(x), torch.zeros_like(x), vqgan.last_layer)
    assert 0 < lam <= 1e4


class Counted(nn.Module):
    """A module that counts how often it is asked, and for how many backward passes."""

    def __init__(self, module):
        super().__init__()
        self.module, self.forwards, self.backwards = module, 0, 0

    def forward(self, *args):
        self.forwards += 1
        out = self.module(*args)
        if out.requires_grad:
            out.register_hook(self._count)
        return out

    def _count(self, gradient):
        self.backwards += 1

    def features(self, x):
        return self.module.features(x)


def stage1(page, vqgan, critic, perceptual, disc_from, lr=0.1, **options):
    optimizers = {"vqgan": torch.optim.SGD(vqgan.parameters(), lr=lr)}
    if critic is not None:
        optimizers["critic"] = torch.optim.SGD(critic.parameters(), lr=0.1)
    runtime = Runtime(device="cpu", precision="fp32")
    usage = CodeUsage(vqgan.quantizer.n_codes)
    return page.stage1_step(vqgan, critic, usage, optimizers, perceptual, runtime, disc_from, **options)


def test_one_step_equals_the_naive_objective(page, vqgan, x):
    """One SGD step by our rule is one SGD step on rec + voice λ gan + vq with everything on one graph."""
    perceptual = vgg_loss(pretrained=False)
    critic = PatchDiscriminator(ch=8, n_layers=2)
    naive = page.build_vqgan(image_size=16, downsampling=4, channels=32, n_codes=8, dim_z=4)
    naive.load_state_dict(vqgan.state_dict())
    naive_critic = PatchDiscriminator(ch=8, n_layers=2)
    with torch.no_grad():  # a critic with something to say
        critic.layers[-1].weight.mul_(30)
        critic.layers[-1].weight.mul_((critic(x).mean() - critic(vqgan(x)[0]).mean()).sign())
    naive_critic.load_state_dict(critic.state_dict())

    stage1(page, vqgan, critic, perceptual, 0, revive_every=0)({"image": x}, 0)

    x_rec, quantized = naive(x)
    rec = (x - x_rec).abs().mean() + perceptual(x_rec, x).mean()
    margin = naive_critic(x).mean() - naive_critic(x_rec).mean()
    assert 0.05 < margin < 1, margin
    seen = x_rec.detach()
    d_loss = (F.relu(1 - naive_critic(x)).mean() + F.relu(1 + naive_critic(seen)).mean()) / 2
    d_gradients = torch.autograd.grad(d_loss, list(naive_critic.parameters()))
    with torch.no_grad():
        for p, gradient in zip(naive_critic.parameters(), d_gradients, strict=True):
            p.sub_(0.1 * gradient)
    gan = -naive_critic(x_rec).mean()
    norms = [torch.autograd.grad(part, naive.last_layer, retain_graph=True)[0].norm() for part in (rec, gan)]
    loss = rec + (0.8 * margin * norms[0] / (norms[1] + 1e-4)).detach() * gan + quantized.loss
    gradients = torch.autograd.grad(loss, list(naive.parameters()))
    for ours, before, gradient in zip(vqgan.parameters(), naive.parameters(), gradients, strict=True):
        torch.testing.assert_close(ours, before - 0.1 * gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("sign, voice", [(-1, 0.0), (1, 0.8)])
def test_a_critic_that_is_wrong_has_no_voice_and_one_that_is_sure_has_all(page, vqgan, x, sign, voice):
    class Sure(nn.Module):
        """Right about every image (or wrong), by far."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, y):
            return sign * self.scale * (5 - 10 * (y - x).abs().mean(dim=(1, 2, 3)).sign())

    twin = page.build_vqgan(image_size=16, downsampling=4, channels=32, n_codes=8, dim_z=4)
    twin.load_state_dict(vqgan.state_dict())
    parts = stage1(page, vqgan, Sure(), None, 0)({"image": x}, 0)
    assert float(parts["voice"]) == pytest.approx(voice) and sign * float(parts["margin"]) == pytest.approx(
        10
    )
    if not voice:
        stage1(page, twin, None, None, 0)({"image": x}, 0)
        for ours, alone in zip(vqgan.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours, alone)


def test_the_perceptual_net_is_run_and_differentiated_once_a_step(page, vqgan, x):
    perceptual = Counted(vgg_loss(pretrained=False))
    stage1(page, vqgan, PatchDiscriminator(ch=8, n_layers=2), perceptual, 0)({"image": x}, 0)
    assert (perceptual.forwards, perceptual.backwards) == (1, 1)


def test_no_work_and_no_change_for_the_critic_before_it_starts(page, vqgan, x):
    critic = Counted(PatchDiscriminator(ch=8, n_layers=2))
    before = [p.clone() for p in critic.parameters()]
    parts = stage1(page, vqgan, critic, None, disc_from=5)({"image": x}, 4)
    assert critic.forwards == 0 and "lambda" not in parts
    assert all(torch.equal(a, b) for a, b in zip(before, critic.parameters(), strict=True))


def test_l2_arm_descends_on_the_squared_error(page, vqgan, x):
    step = stage1(page, vqgan, None, None, 0, lr=0.01, pixel_loss="l2")
    losses = [float(step({"image": x}, t)["l2"]) for t in range(12)]
    torch.testing.assert_close(torch.tensor(losses[0]), losses_at_start(page, x), rtol=1e-4, atol=1e-6)
    assert losses[-1] < losses[0]


def losses_at_start(page, x):
    torch.manual_seed(0)
    model = page.build_vqgan(image_size=16, downsampling=4, channels=32, n_codes=8, dim_z=4)
    return F.mse_loss(model(x)[0], x).detach()


def test_dead_codes_are_revived_on_schedule(page, vqgan, x):
    with torch.no_grad():
        vqgan.quantizer.codebook[1:] = -vqgan.quantizer.codebook[:1]  # all but code 0 look away
    step = stage1(page, vqgan, None, None, 0, revive_every=2)
    first, second = step({"image": x}, 0), step({"image": x}, 1)
    assert "revived" not in first and second["revived"] > 0


@pytest.mark.parametrize("name", ["blur", "shift by a pixel", "noise"])
def test_spoiled_images_have_the_same_squared_error(page, x, name):
    spoiled = page.spoil_equally(x, 0.03, torch.Generator().manual_seed(0))[name]
    torch.testing.assert_close((spoiled - x).square().mean(dim=(1, 2, 3)), torch.full((4,), 0.03))


def brute_filter(p, top_k, top_p):
    order = p.argsort(descending=True).tolist()
    kept, mass = [], 0.0
    for rank, code in enumerate(order):
        if (top_k is not None and rank >= top_k) or (top_p is not None and mass >= top_p):
            break
        kept.append(code)
        mass += p[code].item()
    return set(kept)


@pytest.mark.parametrize(("top_k", "top_p"), [(3, None), (None, 0.6), (None, 1.0), (1, 0.01), (100, None)])
def test_filters_keep_what_their_definition_keeps(page, top_k, top_p):
    p = torch.rand(40, 11, generator=torch.Generator().manual_seed(0)).double().softmax(-1)
    kept = page.filter_logits(p.log(), top_k=top_k, top_p=top_p) > -torch.inf
    for row, mask in zip(p, kept, strict=True):
        assert set(mask.nonzero().flatten().tolist()) == brute_filter(row, top_k, top_p)


def test_temperature_divides_and_must_be_positive(page):
    logits = torch.randn(3, 5)
    torch.testing.assert_close(page.filter_logits(logits, temperature=0.5), 2 * logits)
    with pytest.raises(ValueError, match="temperature is 0"):
        page.filter_logits(logits, temperature=0)


def test_vocabulary_gives_every_token_one_meaning(page):
    vocabulary = page.Vocabulary(10, {"group": 3, "set": 2})
    assert vocabulary.size == 10 + (3 + 1) + (2 + 1) and vocabulary.n_prefix == 2
    given = vocabulary.prefix(2, group=torch.tensor([0, 2]), set=torch.tensor([1, 0]))
    assert given.tolist() == [[10, 15], [12, 14]]
    assert vocabulary.prefix(1).tolist() == [[13, 16]]
    drop = torch.tensor([[True, False], [False, True]])
    dropped = vocabulary.prefix(2, drop, group=torch.tensor([0, 2]), set=torch.tensor([1, 0]))
    assert dropped.tolist() == [[13, 15], [12, 16]]
    assert page.Vocabulary(10).prefix(2).tolist() == [[10], [10]] and page.Vocabulary(10).size == 11
    with pytest.raises(ValueError, match="unknown conditions"):
        vocabulary.prefix(1, hand=torch.tensor([0]))


@pytest.fixture
def gpt():
    torch.manual_seed(0)
    model = GPT(vocab_size=12, block_size=8, n_layers=2, n_heads=2, dim=16, vocab_out=10).eval()
    with torch.no_grad():  # logits that differ, as after training
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_nll_is_the_sum_over_one_position_at_a_time(page, gpt):
    prefix, tokens = torch.tensor([[10, 11], [11, 10]]), torch.randint(0, 10, (2, 6))
    ours = page.token_nll(gpt, prefix, tokens)
    for i in range(6):
        logits = gpt(torch.cat([prefix, tokens[:, :i]], dim=1))[:, -1]
        expected = -logits.log_softmax(-1).gather(1, tokens[:, i : i + 1])[:, 0]
        torch.testing.assert_close(ours[:, i], expected)


def test_samples_follow_the_models_distribution(page, gpt):
    """20,000 first tokens against the softmax: each frequency within five standard errors."""
    runtime = Runtime(device="cpu", precision="fp32")
    n = 20_000
    prefix = torch.tensor([[10, 11]]).expand(n, 2)
    drawn = page.sample(gpt, prefix, 1, runtime, generator=torch.Generator().manual_seed(0))[:, 0]
    p = gpt(prefix[:1])[0, -1].softmax(-1).detach()
    frequency = torch.bincount(drawn, minlength=10) / n
    assert ((frequency - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-9).all()


def test_cached_sampling_equals_reading_everything_anew(page, gpt):
    runtime = Runtime(device="cpu", precision="fp32")
    prefix, start = torch.tensor([[10, 11], [11, 11]]), torch.tensor([[1], [2]])
    ours = page.sample(gpt, prefix, 6, runtime, start=start, top_k=1)
    tokens = start
    while tokens.shape[1] < 6:
        tokens = torch.cat([tokens, gpt(torch.cat([prefix, tokens], 1))[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(ours, tokens)


def test_nearest_drawings_equals_a_double_loop(page):
    class Drawings:
        def __init__(self, images):
            self.stored = images

        def __len__(self):
            return len(self.stored)

        def images(self, index):
            return self.stored[index]

    images = torch.randn(50, 3, 4, 4)
    queries = torch.randn(5, 3, 4, 4)
    distance, index = page.nearest_drawings(queries, Drawings(images), batch=7)
    for query, d, i in zip(queries, distance, index, strict=True):
        all_d = [(query - image).square().mean().sqrt() for image in images]
        assert int(i) == min(range(50), key=all_d.__getitem__)
        torch.testing.assert_close(d, min(all_d), rtol=1e-4, atol=1e-4)


def test_examples_show_the_places_that_use_the_code(page):
    images = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8).float()
    indices = torch.tensor([[[0, 5], [5, 0]], [[0, 0], [0, 5]]])
    patches = page.examples_of(5, images, indices, n=4, margin=1)
    assert patches.shape == (2, 3, 6, 6)  # one an image, the first in raster order
    torch.testing.assert_close(patches[0, :, 1:5, 1:5], images[0, :, 0:4, 4:8])
    torch.testing.assert_close(patches[1, :, :5, :5], images[1, :, 3:8, 3:8])
    assert (patches[0, :, 0] == 1).all() and (patches[0, :, :, 5] == 1).all()


def test_channel_multipliers_want_a_power_of_two(page):
    assert page.channel_multipliers(4) == (1, 2, 4)
    with pytest.raises(ValueError, match="downsampling is 6"):
        page.channel_multipliers(6)
