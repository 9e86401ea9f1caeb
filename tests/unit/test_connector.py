"""The connectors against the released ones, in float32 and bfloat16, and their parameter names."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vino_rt.errors import ModelError
from vino_rt.models.vino.connector import Connector, ConnectorConfig, ConnectorPair

GOLDEN = Path(__file__).parents[1] / "golden" / "vino"


@pytest.mark.parametrize(("dtype", "name", "limit"), [(torch.float32, "", 1e-6), (torch.bfloat16, "_bf16", 2e-2)])
def test_equals_the_release(dtype: torch.dtype, name: str, limit: float) -> None:
    config = json.loads((GOLDEN / "connector_vlm" / "config.json").read_text())
    module = Connector(config["hidden_size"], config["z_dim"]).to(dtype)
    weights = load_file(GOLDEN / "connector_vlm" / "weights.safetensors")
    module.load_state_dict({k: v.to(dtype) for k, v in weights.items()})
    states = load_file(GOLDEN / "connector_vlm" / "inputs.safetensors")["inputs_embeds"].to(dtype)
    expected = load_file(GOLDEN / "connector_vlm" / "outputs.safetensors")
    with torch.inference_mode():
        normed = module.norm_qwen(states)
        assert (normed.float() - expected["dbg.norm" + name]).abs().max() < limit
        out = module(states)
    assert out.dtype == dtype
    assert (out.float() - expected["output" + name]).abs().max() < limit


def test_pair_has_the_released_names_and_sizes() -> None:
    release = {
        key.removeprefix("mm_encoder."): shape
        for key, shape in json.loads((GOLDEN / "keymap" / "vino_ckpt.json").read_text()).items()
        if key.startswith("mm_encoder.connector")
    }
    with torch.device("meta"):
        pair = ConnectorPair(ConnectorConfig(num_queries=256, hidden_size=2560, z_dim=4096, hy_dim=3072))
    assert {key: list(value.shape) for key, value in pair.state_dict().items()} == release


def test_pair_computes_each_branch_on_its_own_rows() -> None:
    data = json.loads((GOLDEN / "e2e_ckpt" / "vino_config.json").read_text())
    sizes = {k: data["connector"][k] for k in ("hidden_size", "z_dim", "hy_dim")} | data["metaquery"]
    config = ConnectorConfig.from_json(sizes)
    torch.manual_seed(0)
    pair = ConnectorPair(config).eval()
    states = torch.randn(11, config.hidden_size)
    with torch.inference_mode():
        text, boundary = pair(states, states[[3, 7]])
        whole = pair.connector_vae_branch(states)
    assert text.shape == (11, config.z_dim)
    assert boundary.shape == (2, config.hy_dim)
    assert torch.allclose(boundary, whole[[3, 7]], atol=1e-6)
    assert pair(states, states[:0])[1].shape == (0, config.hy_dim)


def test_config_names_what_is_wrong() -> None:
    sizes = {"num_queries": 6, "hidden_size": 32, "z_dim": 40, "hy_dim": 48}
    assert ConnectorConfig.from_json(sizes).hy_dim == 48
    with pytest.raises(ModelError, match="z_dim"):
        ConnectorConfig.from_json({k: v for k, v in sizes.items() if k != "z_dim"})
    with pytest.raises(ModelError, match="depth"):
        ConnectorConfig.from_json(sizes | {"depth": 3})
    with pytest.raises(ModelError, match="num_queries is 0"):
        ConnectorConfig.from_json(sizes | {"num_queries": 0})
