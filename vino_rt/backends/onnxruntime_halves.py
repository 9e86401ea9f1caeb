"""A kind as two sessions of ONNX Runtime with our int8 attention between them; see `vino_export.halves`."""

import base64
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vino_rt.backends.base import REBUILD, Engine, Kind
from vino_rt.backends.onnxruntime import check_weights, explain, library_errors, taken
from vino_rt.errors import EngineError
from vino_rt.kernels import STREAM, Int8Attention, load_int8_attention

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

SECOND, KERNEL, ATTENDS = "vino.second_half", "vino.kernel", "vino.attends"
"""What a file of a first half carries in its metadata: the other half and the kernel's shared library, both in base64,
and the names of what the kernel reads as JSON: five of each stream, then cos, sin, offsets, and orders where a kind has
them. They are outputs of the first half, inputs of the kind, or weights. What it makes of them is the second half's
first input.
"""


class HalvedEngine(Engine):
    """One layer: both sessions and the kernel, which layers share, and the layer's weights."""

    def __init__(
        self,
        kind: Kind,
        halves: tuple["InferenceSession", "InferenceSession"],
        attend: Int8Attention,
        attends: Sequence[str],
        weights: Mapping[str, Tensor],
    ) -> None:
        super().__init__(kind.spec)
        self._halves, self._attend, self._attends = halves, attend, attends
        self._takes = [[node.name for node in half.get_inputs()] for half in halves]
        self._gives = [node.name for node in halves[0].get_outputs()]
        between = {self._takes[1][0], *self._gives}
        accepted = {*itertools.chain(*self._takes), *attends} - between
        self._weights = {
            name: tensor.numpy()
            for given, weight in weights.items()
            for name, tensor in taken(given, weight, accepted).items()
        }
        check_weights(kind, self._weights, accepted)

    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        values: dict[str, Any] = {name: tensor.numpy() for name, tensor in inputs.items()} | self._weights
        values |= zip(self._gives, self._run_half(0, values), strict=True)
        read = [torch.from_numpy(values[name]) for name in self._attends]
        rows = len(read) // STREAM * STREAM
        values[self._takes[1][0]] = self._attend(read[:rows], *read[rows:]).numpy()
        return tuple(torch.from_numpy(array) for array in self._run_half(1, values))

    def _run_half(self, number: int, values: Mapping[str, Any]) -> list[Any]:
        try:
            return list(self._halves[number].run(None, {name: values[name] for name in self._takes[number]}))
        except library_errors() as error:
            raise explain(self.spec.kind, error) from error


def open_halves(
    kind: Kind,
    first: "InferenceSession",
    open_session: Callable[[bytes], "InferenceSession"],
    weights: Sequence[Mapping[str, Tensor]],
    threads: int,
) -> list[Engine]:
    """One engine per layer on the session of a first half and on what that carries.

    Raises EngineError where the file carries no other half, or where this processor cannot run the kernel.
    """
    said = first.get_modelmeta().custom_metadata_map
    try:
        second, kernel = (base64.b64decode(said[name], validate=True) for name in (SECOND, KERNEL))
        attends = json.loads(said[ATTENDS])
    except (KeyError, ValueError) as error:
        raise EngineError(f"{kind.name}: the file is no first half ({error}); {REBUILD}") from error
    attend = load_int8_attention(kind.name, kernel, threads)
    halves = first, open_session(second)
    return [HalvedEngine(kind, halves, attend, attends, layer) for layer in weights]
