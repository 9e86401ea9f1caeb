"""An engine as two ONNX Runtime sessions with our int8 attention kernel between them; see `vino_export.halves`."""

import base64
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from vino_rt.backends.base import REBUILD, Engine, Kind
from vino_rt.backends.onnxruntime import BoundSession, all_taken, check_weights
from vino_rt.errors import EngineError
from vino_rt.kernels import STREAM, Int8Attention, load_int8_attention

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

SECOND, KERNEL, ATTENDS = "vino.second_half", "vino.kernel", "vino.attends"
"""Metadata keys of a file, whose graph is the first half. The values: the second half and the kernel's shared library,
both in base64; and, as JSON, the names of the tensors that the kernel reads: five for each stream, then cos, sin,
offsets and, for some kinds, orders. These are outputs of the first half, inputs of the kind, or weights. The kernel's
result is the first input of the second half.
"""


class HalvedEngine(Engine):
    """One layer: the shared sessions and kernel, and the layer's weights."""

    def __init__(
        self,
        kind: Kind,
        halves: tuple["InferenceSession", "InferenceSession"],
        attend: Int8Attention,
        attends: Sequence[str],
        weights: Mapping[str, Tensor],
    ) -> None:
        super().__init__(kind.spec)
        self._attend, self._attends = attend, attends
        takes = [[node.name for node in half.get_inputs()] for half in halves]
        self._mixed = takes[1][0]
        between = {self._mixed, *(node.name for node in halves[0].get_outputs())}
        accepted = {*itertools.chain(*takes), *attends} - between
        self._weights = all_taken(weights, accepted)
        check_weights(kind, self._weights, accepted)
        self._first, self._second = (BoundSession(kind.name, half, self._weights) for half in halves)

    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        values = {**inputs, **dict(zip(self._first.outputs, self._first.run(inputs), strict=True))}
        read = [self._weights[name] if name in self._weights else values[name] for name in self._attends]
        rows = len(read) // STREAM * STREAM
        values[self._mixed] = self._attend(read[:rows], *read[rows:])
        return self._second.run(values)


def open_halves(
    kind: Kind,
    first: "InferenceSession",
    open_session: Callable[[bytes], "InferenceSession"],
    weights: Sequence[Mapping[str, Tensor]],
    threads: int,
) -> list[Engine]:
    """Make one engine per layer from the session of the first half and its file's metadata.

    open_session: makes a session from the bytes of an ONNX file. threads: of the kernel. Raises EngineError if the
    metadata is incomplete or this processor cannot run the kernel.
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
