from __future__ import annotations

import pytest
import torch
from torch import nn

from cvlib.errors import BookError
from cvlib.nn.convert import convert_gpt
from cvlib.nn.transformer import GPT, decay_groups


def small(**options):
    model = GPT(vocab_size=20, block_size=16, n_layers=2, n_heads=2, dim=32, **options).eval()
    with torch.no_grad():  # zero positions and tiny weights would hide mistakes
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_golden(golden, prefix):
    wanted, state = golden("gpt")
    model = GPT(vocab_size=64, block_size=48, n_layers=2, n_heads=4, dim=64).eval()
    checkpoint = {prefix + key: value for key, value in state.items()}
    checkpoint[f"{prefix}blocks.0.attn.mask"] = torch.ones(1, 1, 48, 48)
    model.load_state_dict(convert_gpt(checkpoint, prefix))
    torch.testing.assert_close(model(wanted["tokens"]), wanted["logits"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "n_layers, dim, vocab, length, millions",
    [(24, 1024, 1024, 512, 305), (48, 1536, 16384, 257, 1411), (32, 1280, 8192, 512, 651)],
)
def test_parameter_counts(count, n_layers, dim, vocab, length, millions):
    with torch.device("meta"):
        model = GPT(vocab, length, n_layers, n_heads=16, dim=dim)
    assert round(count(model) / 1e6) == millions


def test_cache_of_the_paper_is_50_mb_a_sequence():
    with torch.device("meta"):
        cache = GPT(1024, 512, 24, n_heads=16, dim=1024).new_cache(1, torch.bfloat16)
    assert cache.data.shape == (24, 2, 1, 16, 512, 64)
    assert cache.data.nbytes == pytest.approx(50e6, rel=0.01)


@pytest.mark.parametrize("n_unmasked", [0, 5])
def test_each_position_sees_the_past_and_the_condition(n_unmasked):
    model = small(n_unmasked=n_unmasked)
    inputs = []
    model.drop.register_forward_hook(
        lambda m, a, out: inputs.append(out.detach().requires_grad_()) or inputs[-1]
    )
    logits = model(torch.randint(0, 20, (1, 9)))
    for t in range(9):
        (gradient,) = torch.autograd.grad(logits[0, t].sum(), inputs[0], retain_graph=True)
        seen = gradient[0].abs().sum(1) > 0
        last = max(t, n_unmasked - 1)
        assert seen.tolist() == [s <= last for s in range(9)]


@pytest.mark.parametrize("n_unmasked", [0, 5])
@pytest.mark.parametrize("pieces", [[5] + [1] * 7, [12], [7, 3, 1, 1], [6, 1, 5]])
def test_cached_logits_equal_uncached(n_unmasked, pieces):
    model, tokens = small(n_unmasked=n_unmasked), torch.randint(0, 20, (3, 12))
    cache = model.new_cache(batch=3)
    address = cache.data.data_ptr()
    for _ in range(2):  # a cache can be used again
        cache.reset()
        logits = torch.cat([model(piece, cache) for piece in tokens.split(pieces, dim=1)], dim=1)
        torch.testing.assert_close(logits, model(tokens), rtol=1e-4, atol=1e-5)
    assert cache.length == 12 and cache.data.data_ptr() == address


def test_cache_is_not_larger_than_its_tokens_and_holds_no_graph():
    model = small()
    cache = model.new_cache(batch=1)
    logits = model(torch.randint(0, 20, (1, 4)), cache)
    assert not logits.requires_grad and not cache.data.requires_grad
    assert cache.data[..., :4, :].all() and not cache.data[..., 4:, :].any()
    assert model(torch.randint(0, 20, (1, 4))).requires_grad


def test_cache_takes_the_type_of_autocast():
    model, tokens = small(), torch.randint(0, 20, (2, 10))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        cache = model.new_cache(batch=2)
        cached = torch.cat([model(piece, cache) for piece in tokens.split([4, 1, 5], dim=1)], dim=1)
        whole = model(tokens)
    assert cache.data.dtype == torch.bfloat16
    assert (cached - whole).float().std() < 0.02 * whole.float().std()


def test_misuse_is_refused():
    model = small(n_unmasked=4)
    with pytest.raises(BookError, match="17 tokens; wanted at most block_size = 16"):
        model(torch.zeros(1, 17, dtype=torch.long))
    cache = model.new_cache(batch=2)
    with pytest.raises(BookError, match="1 sequences; wanted 2"):
        model(torch.zeros(1, 3, dtype=torch.long), cache)
    model(torch.zeros(2, 3, dtype=torch.long), cache)
    with pytest.raises(BookError, match="3 tokens in the cache; wanted the whole condition of 4"):
        model(torch.zeros(2, 1, dtype=torch.long), cache)
    cache.reset()
    model(torch.zeros(2, 16, dtype=torch.long), cache)
    with pytest.raises(BookError, match="sequence of 17"):
        model(torch.zeros(2, 1, dtype=torch.long), cache)
    with pytest.raises(BookError, match="width 30 with 4 heads"):
        GPT(8, 8, 1, n_heads=4, dim=30)


def test_logits_from_skips_the_head_only():
    model, tokens = small(), torch.randint(0, 20, (2, 10))
    whole = model(tokens)
    torch.testing.assert_close(model(tokens, logits_from=-1), whole[:, -1:])
    torch.testing.assert_close(model(tokens, logits_from=6), whole[:, 6:])


def test_vocab_out_leaves_out_tokens_that_are_only_read():
    model = GPT(vocab_size=30, block_size=8, n_layers=1, n_heads=2, dim=16, vocab_out=20)
    assert model(torch.full((1, 3), 29)).shape == (1, 3, 20)
    assert GPT(**model.config).head.weight.shape == (20, 16)


@torch.no_grad()
def test_initial_weights():
    model = GPT(vocab_size=500, block_size=8, n_layers=2, n_heads=2, dim=64)
    assert not model.position_embedding.any()
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            assert module.weight.std() == pytest.approx(0.02, rel=0.05)
        if isinstance(module, nn.Linear) and module.bias is not None:
            assert not module.bias.any()
    assert model.head.bias is None and model.head.weight is not model.token_embedding.weight


def test_only_linear_weights_decay():
    model = small()
    decayed, rest = decay_groups(model, 0.01)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.01, 0.0)
    name_of = {id(p): name for name, p in model.named_parameters()}
    names = {name_of[id(p)] for p in decayed["params"]}
    matrices = {"attn.qkv.weight", "attn.proj.weight", "mlp.0.weight", "mlp.2.weight"}
    assert names == {f"blocks.{i}.{m}" for i in range(2) for m in matrices} | {"head.weight"}
    assert len(decayed["params"]) + len(rest["params"]) == len(name_of)


def test_dropout_acts_in_training_only():
    model, tokens = small(dropout=0.5), torch.randint(0, 20, (1, 8))
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))
