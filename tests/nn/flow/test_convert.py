from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cvlib.errors import BookError
from cvlib.nn.flow import ConditionalFlow, MapEmbedder, VectorEmbedder, convert_flow, load_flow


def flow_of_the_golden_vector():
    return ConditionalFlow(8, 32, n_blocks=3, embedder=VectorEmbedder((6, 256, 256, 256, 5))).eval()


@pytest.mark.parametrize("before", ["", "model."])
def test_golden(golden, before):
    wanted, state = golden("cinn")
    checkpoint = {before + key: value for key, value in state.items()}
    if before:
        checkpoint["first_stage_model.weight"] = torch.zeros(1)
    flow = flow_of_the_golden_vector()
    flow.load_state_dict(convert_flow(checkpoint, before))
    v, logdet = flow(wanted["x"], wanted["cond"])
    torch.testing.assert_close(v, wanted["z"], rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(logdet, wanted["logdet"], rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(
        flow.inverse(wanted["z"], wanted["cond"]), wanted["x_rec"], rtol=1e-5, atol=2e-6
    )
    torch.testing.assert_close(flow(wanted["x"].flatten(1), wanted["cond"])[0], v.flatten(1))


def test_names_with_the_flow_before_them(golden):
    _, state = golden("cinn")
    released = {f"flow.{key}" if key.startswith("sub_layers") else key: value for key, value in state.items()}
    for key, value in convert_flow(state).items():
        assert torch.equal(convert_flow(released)[key], value)


def test_a_translator_with_batch_norm_comes_out_of_a_larger_checkpoint(golden, tmp_path):
    """As net2net stores it: the flow below ``flow.``, H with BatchNorm, other networks beside."""
    _, state = golden("cinn")
    sizes = (6, 256, 256, 256, 5)
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes[:-1]):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.LeakyReLU()]
    net = nn.Sequential(*layers, nn.Linear(*sizes[-2:]))
    for _ in range(3):  # statistics that let a mistake show
        net(torch.randn(50, 6) * 3 + 1)
    blocks = {key: value for key, value in state.items() if not key.startswith("embedder")}
    kept = blocks | {f"embedder.main.{key}": value for key, value in net.state_dict().items()}
    whole = {f"flow.{key}": value for key, value in kept.items()} | {"first_stage_model.w": torch.zeros(1)}
    torch.save({"state_dict": whole}, tmp_path / "translator.ckpt")
    embedder = VectorEmbedder(sizes, norm="batch")
    flow = load_flow(
        ConditionalFlow(8, 32, n_blocks=3, embedder=embedder), tmp_path / "translator.ckpt", "flow."
    )
    cond = torch.randn(4, 6)
    torch.testing.assert_close(flow.eval().embedder(cond), net.eval()(cond))


def test_a_wide_flow_is_stored_the_other_way_and_gives_the_same(golden):
    """Rows of zeros widen the nets without changing what they say."""
    wanted, state = golden("cinn")

    def widened(key, value):
        if ".coupling." not in key:
            return value
        layer = key.split(".main.")[1]
        rows = 0 if layer.startswith("6") else 512 - value.shape[0]
        columns = 0 if value.dim() == 1 or layer.startswith("0") else 512 - value.shape[1]
        pad = (0, columns, 0, rows) if value.dim() == 2 else (0, rows)
        return F.pad(value, pad)

    flow = ConditionalFlow(8, 512, n_blocks=3, embedder=VectorEmbedder((6, 256, 256, 256, 5))).eval()
    flow.load_state_dict(convert_flow({key: widened(key, value) for key, value in state.items()}))
    v, logdet = flow(wanted["x"], wanted["cond"])
    torch.testing.assert_close(v, wanted["z"], rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(logdet, wanted["logdet"], rtol=1e-5, atol=2e-6)


def test_strange_and_absent_entries_are_named(golden):
    _, state = golden("cinn")
    with pytest.raises(BookError, match=r"entry head\.weight"):
        convert_flow(state | {"head.weight": torch.zeros(1)})
    with pytest.raises(BookError, match=r"entry sub_layers\.0\.extra"):
        convert_flow(state | {"sub_layers.0.extra": torch.zeros(1)})
    flags = {f"sub_layers.{i}.norm_layer.initialized": torch.tensor(1, dtype=torch.uint8) for i in range(3)}
    assert convert_flow(state | flags)["blocks.2.norm.initialized"].equal(torch.tensor(True))
    missing = dict(state)
    del missing["sub_layers.1.coupling.t.0.main.2.bias"]
    with pytest.raises(BookError, match=r"no entry sub_layers\.1\.coupling\.t\.0\.main\.2\.bias"):
        convert_flow(missing)
    with pytest.raises(BookError, match=r"no entry other\.sub_layers"):
        convert_flow(state, "other.")
    for name in ("sub_layers.x.norm_layer.loc", "conditioning_layers.0.weight", "embedder.head.weight"):
        with pytest.raises(BookError, match=rf"entry {name} in the checkpoint"):
            convert_flow(state | {name: torch.zeros(1)})
    narrow = {"sub_layers.1.coupling.s.0.main.0.weight": torch.zeros(16, 9)}
    with pytest.raises(BookError, match="block 1 of the checkpoint does not fit"):
        convert_flow(state | narrow)


# ---- embedders of Making Sense of CNNs, under the names of the released files


def norm_of(state, name, width):
    """An ActNorm as it is stored there, with what it does."""
    loc, scale = torch.randn(1, width, 1, 1), torch.rand(1, width, 1, 1) + 0.5
    state |= {f"{name}.loc": loc, f"{name}.scale": scale}
    state[f"{name}.initialized"] = torch.tensor(1, dtype=torch.uint8)
    return lambda x: scale * (x + loc)


def vector_case(widths=(7, 9, 6, 5)):
    """1 x 1 convolutions, ActNorm and leaky ReLU between them."""
    state, steps = {}, []
    for k, (before, after) in enumerate(pairwise(widths)):
        weight, bias = torch.randn(after, before, 1, 1), torch.randn(after)
        state |= {f"embedder.net.{3 * k}.weight": weight, f"embedder.net.{3 * k}.bias": bias}
        steps.append(lambda x, w=weight, b=bias: F.conv2d(x, w, b))
        if k < len(widths) - 2:
            steps += [norm_of(state, f"embedder.net.{3 * k + 1}", after), lambda x: F.leaky_relu(x, 0.2)]
    return state, steps, VectorEmbedder(widths, norm="actnorm", slope=0.2), torch.randn(4, widths[0], 1, 1)


def map_case(channels=3, side=13, n_down=2, dim=5):
    """Halvings of a map of an odd side, then one convolution over what is left."""
    state, steps, before = {}, [], channels
    for k in range(n_down):
        name, after = f"embedder.feature_layers.{k}.sub_layers", 64 * 2**k
        weight = torch.randn(after, before, 4, 4) / 8
        state[f"{name}.0.weight"] = weight
        steps.append(lambda x, w=weight: F.conv2d(x, w, stride=2, padding=1))
        steps += [norm_of(state, f"{name}.1", after), lambda x: F.leaky_relu(x, 0.2)]
        before = after
    weight, bias = torch.randn(dim, before, side // 2**n_down, side // 2**n_down) / 30, torch.randn(dim)
    name = "embedder.dense_encode.sub_layers.0"
    state |= {f"{name}.weight": weight, f"{name}.bias": bias}
    steps.append(lambda x: F.conv2d(x, weight, bias))
    return state, steps, MapEmbedder(channels, side, n_down, dim), torch.randn(4, channels, side, side)


@pytest.mark.parametrize("case", [vector_case, map_case])
def test_embedders_by_hand_from_their_entries(golden, case):
    """H step by step, and the golden flow behind it, which takes its h from either net."""
    _, golden_state = golden("cinn")
    state, steps, embedder, cond = case()
    blocks = {f"flow.{key}": value for key, value in golden_state.items() if key.startswith("sub_layers")}
    flow = ConditionalFlow(8, 32, n_blocks=3, embedder=embedder).eval()
    flow.load_state_dict(convert_flow(blocks | state))
    h = cond
    for step in steps:
        h = step(h)
    torch.testing.assert_close(flow.embedder(cond), h[..., 0, 0], rtol=1e-4, atol=1e-5)

    class Given(nn.Module):
        dim = 5

        def forward(self, x):
            return x

    bare = ConditionalFlow(8, 32, n_blocks=3, embedder=Given()).eval()
    bare.load_state_dict(convert_flow(blocks))
    x = torch.randn(4, 8)
    torch.testing.assert_close(flow(x, cond), bare(x, h[..., 0, 0]), rtol=1e-4, atol=1e-4)


def test_an_embedder_without_flags_was_trained_all_the_same():
    state, _, embedder, _ = vector_case()
    kept = {key: value for key, value in state.items() if not key.endswith("initialized")}
    given = {f"embedder.{k}": v for k, v in embedder.state_dict().items()}
    converted = convert_flow(kept | {k: v for k, v in one_block().items() if not k.startswith("embedder")})
    assert given.keys() == {k for k in converted if k.startswith("embedder")}
    assert converted["embedder.layers.1.initialized"].equal(torch.tensor(True))


def one_block(dim=4, width=6, dim_cond=5):
    """Entries of a flow of one block, as an untrained original has them."""
    state = {"flow.sub_layers.0.shuffle.forward_shuffle_idx": torch.randperm(dim)}
    order = state["flow.sub_layers.0.shuffle.forward_shuffle_idx"]
    state["flow.sub_layers.0.shuffle.backward_shuffle_idx"] = order.argsort()
    norm_of(state, "flow.sub_layers.0.norm_layer", dim)
    for net in "st":
        for j in range(2):
            sizes = [dim // 2 + dim_cond, width, width, dim // 2]
            for k, (before, after) in enumerate(pairwise(sizes)):
                name = f"flow.sub_layers.0.coupling.{net}.{j}.main.{2 * k}"
                state |= {f"{name}.weight": torch.randn(after, before), f"{name}.bias": torch.randn(after)}
    return state


# ---- whole files


def released(state):
    """A file's content by kind: shuffles are parameters there, and a trainer keeps its optimiser."""
    bare = {k: nn.Parameter(v, requires_grad=False) if "shuffle" in k else v for k, v in state.items()}
    net = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    rest = {"loss": {"logvar": torch.zeros(())}, "optimizer": optimizer.state_dict()}
    return {"bare": bare, "trainer": {"model": bare, **rest}, "module": {"model": in_a_field(bare), **rest}}


def in_a_field(state):
    return {f"module.{key}": value for key, value in state.items()}


@pytest.mark.parametrize("kind", ["bare", "trainer", "module"])
def test_released_files_are_read(tmp_path, kind):
    head, _, embedder, cond = vector_case()
    state, x = one_block() | head, torch.randn(4, 4, 1, 1)
    torch.save(released(state)[kind], tmp_path / "cinn.ckpt", _use_new_zipfile_serialization=False)
    flow = ConditionalFlow(4, 6, depth=1, n_blocks=1, embedder=embedder).train()
    assert load_flow(flow, tmp_path / "cinn.ckpt") is flow and not flow.training
    other = ConditionalFlow(4, 6, depth=1, n_blocks=1, embedder=vector_case()[2]).eval()
    other.load_state_dict(convert_flow(state))
    torch.testing.assert_close(flow(x, cond), other(x, cond))
    torch.testing.assert_close(flow.inverse(flow(x, cond)[0], cond), x, rtol=1e-3, atol=1e-4)


def test_files_of_another_flow_are_told_and_change_nothing(tmp_path):
    head, _, embedder, _ = vector_case()
    torch.save(one_block() | head, tmp_path / "cinn.ckpt")
    for options, words in (
        ({"n_blocks": 2}, r"cinn\.ckpt lacks"),
        ({"width": 7}, r"cinn\.ckpt has .* of shape"),
        ({"embedder": MapEmbedder(3, 4, 1, 5)}, r"cinn\.ckpt has unknown 6 weights"),
    ):
        config = {"dim": 4, "width": 6, "depth": 1, "n_blocks": 1, "embedder": embedder} | options
        flow = ConditionalFlow(**config)
        before = {key: value.clone() for key, value in flow.state_dict().items()}
        with pytest.raises(BookError, match=words):
            load_flow(flow, tmp_path / "cinn.ckpt")
        assert all(torch.equal(value, before[key]) for key, value in flow.state_dict().items())
    with pytest.raises(BookError, match=r"none\.ckpt does not exist; wanted the released weights of a cond"):
        load_flow(flow, tmp_path / "none.ckpt")
    untrained = one_block() | head
    untrained["flow.sub_layers.0.norm_layer.initialized"].zero_()
    torch.save(untrained, tmp_path / "cinn.ckpt")
    flow = load_flow(ConditionalFlow(4, 6, depth=1, n_blocks=1, embedder=embedder), tmp_path / "cinn.ckpt")
    with pytest.raises(BookError, match="before its first batch"):
        flow.sample(torch.randn(2, 7))
