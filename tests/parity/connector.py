"""Cases of kind connector: states of the VLM through one connector, in float32 and in bfloat16."""

import torch
from torch import Tensor

from tests.parity.case import Case
from tests.parity.measure import BF16, CONNECTOR, Judge
from vino_rt.models.vino.connector import Connector


def judge(case: Case, judge: Judge) -> None:
    """Judge `output` and `dbg.norm`, each plain and in bfloat16."""
    weights = case.weights() or case.release_weights(case.json("config.json")["checkpoint_prefix"])
    width, hidden = weights["mlp.2.weight"].shape[0], weights["mlp.0.weight"].shape[1]
    module = Connector(hidden, width)
    module.load_state_dict(weights)
    states = case.input("inputs_embeds")[0]
    exact = run(module, states)
    low = run(module.bfloat16(), states.bfloat16())
    for name in case.outputs:
        base = name.removesuffix(BF16)
        if base in exact and name != base:
            judge.low_precision(name, low[base])
        elif base in exact:
            judge.close(name, exact[base], CONNECTOR)


def run(module: Connector, states: Tensor) -> dict[str, Tensor]:
    """States [L, H] -> outputs by golden name."""
    with torch.inference_mode():
        return {"output": module(states), "dbg.norm": module.norm_qwen(states)}
