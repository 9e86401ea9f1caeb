"""What ONNX Runtime's TensorRT provider is given: a file whose whole graph TensorRT takes, and the range of its sizes.

A graph that falls into parts would need ranges for what passes between them, by names that nobody knows beforehand. So
attention is the standard's, with a mask of rows by rows, and not that of the canonical file.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx

from vino_export.tensorrt.native import MASKED
from vino_export.tensorrt.network import attends, network
from vino_export.tensorrt.profiles import Profile, check_mask, profiles_of, shapes
from vino_rt.backends.base import Kind
from vino_rt.backends.onnxruntime_tensorrt import OPTIONS, RANGES
from vino_rt.bucket import Bucket
from vino_rt.errors import EngineError

SHORTER = "leave its bucket out, or run this model with the recipe tensorrt or tensorrt-plugin"


def write_for_provider(kind: Kind, path: Path, buckets: Sequence[Bucket], unit: int, area: int) -> None:
    """Write the file of a kind to `path`, and `RANGES` beside it. unit and area: of the model's settings.

    Raises EngineError for a kind whose weights must be constants, for sequences that are too long for a mask, and where
    there are no buckets.
    """
    profiles = profiles_of(kind, buckets, unit, area)
    check_mask(kind, attends(kind), profiles, SHORTER)
    model = network(kind, "native", MASKED)
    if model.graph.initializer:
        raise EngineError(
            f"{kind.name}: TensorRT wants the weights of convolutions as constants, and they are arguments here; let "
            f'the recipe run this kind elsewhere: [kinds] {kind.name} = "eager"'
        )
    del model.opset_import[1:]
    without_own_attributes(model)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    read = {value.name for value in model.graph.input}
    path.with_name(RANGES).write_text(json.dumps(ranges(kind, read, profiles), indent=1))


def without_own_attributes(model: onnx.ModelProto) -> None:
    """Leave out what only TensorRT's parser knows of standard operators: ONNX Runtime refuses it."""
    for node in model.graph.node:
        kept = [attribute for attribute in node.attribute if not attribute.name.startswith("TRT_")]
        del node.attribute[:]
        node.attribute.extend(kept)


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
