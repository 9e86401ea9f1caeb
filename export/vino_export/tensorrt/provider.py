"""What ONNX Runtime's TensorRT provider is given: a file whose whole graph TensorRT takes, and the range of its sizes.

A graph that falls into parts would need ranges for what passes between them, by names that nobody knows beforehand. So
attention is the standard's, with a mask of rows by rows, and not that of the canonical file.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx

from vino_export.tensorrt.network import network
from vino_export.tensorrt.profiles import Profile, profiles_of, shapes
from vino_rt.backends.base import Kind
from vino_rt.backends.onnxruntime_tensorrt import OPTIONS, RANGES
from vino_rt.bucket import Bucket
from vino_rt.errors import EngineError

MASKED = 10
"""The major version of TensorRT whose attention takes a mask."""


def write_for_provider(kind: Kind, path: Path, buckets: Sequence[Bucket], unit: int, area: int) -> None:
    """Write the file of a kind to `path`, and `RANGES` beside it. unit and area: of the model's settings.

    Raises EngineError for a kind whose weights must be constants, and where there are no buckets.
    """
    model = network(kind, "native", MASKED)
    if model.graph.initializer:
        raise EngineError(
            f"{kind.name}: TensorRT wants the weights of convolutions as constants, and they are arguments here; let "
            f'the recipe run this kind elsewhere: [kinds] {kind.name} = "eager"'
        )
    del model.opset_import[1:]
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    read = {value.name for value in model.graph.input}
    path.with_name(RANGES).write_text(json.dumps(ranges(kind, read, profiles_of(kind, buckets, unit, area)), indent=1))


def ranges(kind: Kind, read: Iterable[str], profiles: Sequence[Profile]) -> dict[str, str]:
    """The provider's options: for every input of dynamic size the smallest, the best and the largest shape.

    One range from the smallest to the largest of all profiles, best at the best of the first.
    """
    told: list[list[str]] = [[], [], []]
    for spec in kind.spec.inputs:
        if spec.name not in read or not any(isinstance(dim, str) for dim in spec.dims):
            continue
        found = [shapes(spec, profile) for profile in profiles]
        least = [min(sizes) for sizes in zip(*(shape[0] for shape in found), strict=True)]
        most = [max(sizes) for sizes in zip(*(shape[2] for shape in found), strict=True)]
        for part, shape in zip(told, (least, found[0][1], most), strict=True):
            part.append(f"{spec.name}:{'x'.join(map(str, shape))}")
    return dict(zip(OPTIONS, map(",".join, told), strict=True))
