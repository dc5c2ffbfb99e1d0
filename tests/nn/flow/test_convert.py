from __future__ import annotations

import pytest
import torch

from cvlib.errors import BookError
from cvlib.nn.flow import ConditionalFlow, VectorEmbedder, convert_flow


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
        return torch.nn.functional.pad(value, pad)

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
