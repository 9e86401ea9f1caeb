"""Checks that run in a process of their own over the bindings of one API family (tests/tensorrt/test_families.py)."""

import sys
from collections.abc import Iterator

import onnx
import pytest
import tensorrt as trt

from tests.tensorrt.standin import StandIn
from vino_export.tensorrt import write
from vino_export.tensorrt.network import network
from vino_rt.backends.base import Kind


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """What `import tensorrt` gives while a test runs."""
    standin = StandIn(trt)
    monkeypatch.setitem(sys.modules, "tensorrt", standin)
    return standin


@pytest.fixture(scope="module", autouse=True)
def exported() -> Iterator[None]:
    """A kind is exported once for all tests that build it."""
    made: dict[tuple[str, str, str], onnx.ModelProto] = {}

    def once(kind: Kind, variant: str, attention: str) -> onnx.ModelProto:
        key = kind.name, variant, attention
        if key not in made:
            made[key] = network(kind, variant, attention)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "network", once)
        yield
