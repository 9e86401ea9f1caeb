"""Files for ONNX Runtime's TensorRT provider: a graph that TensorRT can take as a whole, and the ranges of its sizes.

If the graph were split between providers, the tensors between the parts would need ranges too, and their names are not
known beforehand. So attention is ONNX's standard operator with an L x L mask, not that of the canonical file.
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
    """Write the ONNX file of a kind to `path`, and `RANGES` beside it. unit, area: see `ModelSettings`.

    Raises EngineError for a kind whose weights must be constants, for sequences too long for a mask, and if there are
    no buckets.
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
    """Drop attributes of standard operators that only TensorRT's parser knows; ONNX Runtime refuses them."""
    for node in model.graph.node:
        kept = [attribute for attribute in node.attribute if not attribute.name.startswith("TRT_")]
        del node.attribute[:]
        node.attribute.extend(kept)


def ranges(kind: Kind, read: Iterable[str], profiles: Sequence[Profile]) -> dict[str, str]:
    """The provider's options: the smallest, optimal and largest shape of every input with a dynamic size.

    read: names of the graph's inputs. There is a single range, from the smallest to the largest size of all profiles,
    optimised for the first profile.
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
