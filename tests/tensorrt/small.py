"""Engine kinds of a few thousand weights, and what stands in for a GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tests.unit.small_model import small_preset
from vino_rt.backends.base import EngineSpec, Kind, TensorSpec
from vino_rt.backends.tensorrt.library import ALIGNMENT
from vino_rt.bucket import Bucket
from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.connector import ConnectorConfig
from vino_rt.models.vino.model_kinds import model_kinds
from vino_rt.models.vino.vae_config import VaeConfig
from vino_rt.models.vino.vlm_config import TOKEN_FIELDS, VlmConfig

TARGET = ("sm_90", "a GPU")
UNIT, AREA = 16, 32 * 48
BUCKET = Bucket(frames=5, height=32, width=48, references=8, text_tokens=11, branches=3)


def small_kinds(precision: str = "float32") -> dict[str, Kind]:
    """Every kind of a small VINO that TensorRT builds: the VLM's stay with PyTorch."""
    vae, connector = VaeConfig(**_fields("vae")), ConnectorConfig(**_fields("connector"))
    vlm = VlmConfig.from_json(small_preset()["vlm"] | dict(zip(TOKEN_FIELDS, range(1, 5), strict=True)))
    kinds = model_kinds(vlm, connector, small_config(), vae)
    return {name: kind.at(precision) for name, kind in kinds.items() if kind.part != "vlm"}


def small_config() -> TransformerConfig:
    """Of its transformer."""
    return TransformerConfig(**_fields("transformer"))


def _fields(part: str) -> dict[str, Any]:
    found = small_preset()[part].items()
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found if name[0] != "_"}


class Picture(nn.Module):
    """A convolution and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.conv(pixels)
        return out


def picture_kind() -> Kind:
    """A kind with a convolution: its weights become constants."""
    spec = EngineSpec("picture", (TensorSpec("pixels", (1, 3, "H", "W")),), (TensorSpec("features", (1, 4, "H", "W")),))
    return Kind(spec, "vae", "", 1, Picture, lambda: [{"pixels": torch.randn(1, 3, 6, 10)}])


def first_weights(kind: Kind) -> dict[str, Tensor]:
    """Weights of some layer."""
    torch.manual_seed(1)
    return {name: tensor.detach() for name, tensor in kind.build().state_dict().items()}


class FakeDevice:
    """Memory of the host at the addresses of a GPU's; notes what happens in which order."""

    device = torch.device("cpu")
    stream = 7

    def __init__(self) -> None:
        self.events: list[str] = []
        self.refuses_to_record = False

    def target(self) -> tuple[str, ...]:
        return TARGET

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size = torch.Size(shape).numel()
        room = torch.full((size * dtype.itemsize + ALIGNMENT,), 255, dtype=torch.uint8)
        skipped = -room.data_ptr() % ALIGNMENT
        return room[skipped : skipped + size * dtype.itemsize].view(dtype).view(shape)

    @contextmanager
    def ordered(self) -> Iterator[None]:
        self.events.append("after the caller")
        yield
        self.events.append("before the caller")

    def synchronize(self) -> None:
        self.events.append("synchronise")

    def capture(self, launch: Callable[[], None]) -> Callable[[], None]:
        self.events.append("begin capture")
        try:
            launch()
            if self.refuses_to_record:
                raise RuntimeError("operation not permitted when stream is capturing")
        finally:
            self.events.append("end capture")

        def replay() -> None:
            self.events.append("replay")

        return replay
