"""The connectors: VLM states to the text stream and to boundary rows (MODEL.md sections 1 and 3); knows no VLM."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vino_rt.config import take_fields
from vino_rt.errors import ModelError
from vino_rt.models.vino.layers import RMSNorm

EXPANSION = 4
"""Hidden width of a connector over its output width."""


@dataclass(frozen=True, kw_only=True)
class ConnectorConfig:
    """Sizes of the connectors and of the learnable queries (MODEL.md section 1)."""

    num_queries: int
    """Rows appended to every prompt."""
    hidden_size: int
    """Width H of the VLM's states."""
    z_dim: int
    """Width of the text stream."""
    hy_dim: int
    """Width D of the image stream, which the boundary rows enter."""

    def __post_init__(self) -> None:
        for name in ("num_queries", "hidden_size", "z_dim", "hy_dim"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ModelError(f"connector/config.json: {name} is {value!r}, expected a whole number above 0")

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "connector/config.json") -> "ConnectorConfig":
        """Read the JSON object; ModelError names missing and unknown fields."""
        return cls(**take_fields(data, cls, where))


class Connector(nn.Module):
    """One connector: RMSNorm, Linear, tanh GELU, Linear; parameter names as released."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.norm_qwen = RMSNorm(hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size, EXPANSION * width), nn.GELU(approximate="tanh"), nn.Linear(EXPANSION * width, width)
        )

    def forward(self, states: Tensor) -> Tensor:
        """Map states [..., hidden_size] to [..., width]."""
        out: Tensor = self.mlp(self.norm_qwen(states))
        return out


class ConnectorPair(nn.Module):
    """Both connectors: the engine kind `connector`."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        self.connector = Connector(config.hidden_size, config.z_dim)
        self.connector_vae_branch = Connector(config.hidden_size, config.hy_dim)

    def forward(self, states: Tensor, boundary_states: Tensor) -> tuple[Tensor, Tensor]:
        """Map all states [L, H] to text rows [L, z], and those at boundary tokens [R, H] to boundary rows [R, D]."""
        return self.connector(states), self.connector_vae_branch(boundary_states)
