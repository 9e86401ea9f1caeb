"""The GPU's ONNX Runtime backend on the provider that is here: sessions and bindings are real, the stream is not."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from vino_rt.backends.base import CPU, Kind
from vino_rt.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend

HOST = "CPUExecutionProvider"


class HostStream:
    """A device in the place of a GPU: it says when work is ordered among the caller's."""

    device, stream = CPU, 4711

    def __init__(self) -> None:
        self.log: list[str] = []

    @contextmanager
    def ordered(self) -> Iterator[None]:
        self.log.append("begin")
        yield
        self.log.append("end")

    def __getattr__(self, name: str) -> Any:
        pytest.fail(f"an engine asked the device for {name}")


class OnHost(OnnxRuntimeCudaBackend):
    """The backend on the provider that is here."""

    providers = (HOST,)

    def __init__(self) -> None:
        super().__init__(CPU)
        self.host = HostStream()

    def place(self) -> Any:
        return self.host

    def options(self, provider: str, kind: Kind, artefact: Path) -> dict[str, str]:
        return {}


class Claiming:
    """A session of the CPU provider that says it has others, too: what it computes where is true."""

    def __init__(self, session: onnxruntime.InferenceSession, claims: tuple[str, ...]) -> None:
        self._session, self._claims = session, claims

    def get_providers(self) -> list[str]:
        return [*self._claims, *self._session.get_providers()]

    def get_provider_graph_assignment_info(self) -> Any:
        return self._session.get_provider_graph_assignment_info()
