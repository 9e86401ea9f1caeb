"""From a model and a recipe to opened engines: keys, weights and backends meet here and nowhere else."""

import functools
import hashlib
import importlib.util
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from vino_rt import __version__
from vino_rt.advice import build_advice
from vino_rt.backends.base import CPU, INT8_ATTENTION, Backend, Engine, Kind, torch_version
from vino_rt.backends.cuda_graph import Recorder
from vino_rt.backends.driver import driver_version, gpu_architecture
from vino_rt.backends.offload import open_offloaded
from vino_rt.backends.recipe import Recipe, make_backend
from vino_rt.backends.store import EngineKey, Store
from vino_rt.backends.tensorrt.backend import TensorRtBackend
from vino_rt.bucket import Bucket
from vino_rt.errors import EngineError, EngineMismatch, EngineMissing, ModelError
from vino_rt.kernels import kernel_end
from vino_rt.memory import give_back
from vino_rt.model_dir import ModelDir
from vino_rt.models.vino.kinds import STEP_KINDS
from vino_rt.models.vino.model_kinds import model_kinds
from vino_rt.step import StepCache, plain_end
from vino_rt.weights import shown

NONE = "none"
"""Value of a key's field that does not apply on the device."""
KEPT_STEPS = 24
"""Recorded steps that a runtime keeps, or as many as there are buckets if these are more. It is twice what
`Runtime.warm_up` records without buckets. Steps share memory, so that one more costs its graph and its latents.
"""
STEP_ROOM = 50
"""Recorded steps have room for schedules of a multiple of so many steps."""
SOURCES = (
    "models",
    "bucket.py",
    "plan.py",
    "kernels.py",
    "backends/base.py",
    "backends/aotinductor.py",
    "backends/onnxruntime.py",
    "backends/onnxruntime_halves.py",
    "backends/onnxruntime_cuda.py",
    "backends/onnxruntime_tensorrt.py",
    "backends/tensorrt",
)
"""Files that determine an engine's content: modules and examples that are traced, operators of packages, names and
rounding of weights, layouts, sizes and options of plans, and the kernels that are exported. How engines are found, run
and recorded does not change their content.
"""

CLIP = ("frames", "height", "width")
DECIDES: Mapping[str, tuple[str, ...]] = {
    "N": CLIP, "V": (*CLIP, "branches"), "B": ("branches",), "I": (*CLIP, "references", "branches"),
    "T": ("text_tokens", "branches"), "M": ("references", "branches"), "S": ("references", "branches"),
    "R": ("branches",), "K": (), "L": (), "t": CLIP, "h": CLIP, "w": CLIP, "F": CLIP, "H": CLIP, "W": CLIP,
}  # fmt: skip
"""Dynamic size -> fields of a bucket that its ranges may depend on (`vino_export.tensorrt.profiles`); of a size that is
not here, all of them.
"""


def kinds_of(model: ModelDir) -> dict[str, Kind]:
    """Every engine kind of a model by name."""
    return model_kinds(model.vlm_config, model.connector, model.transformer, model.vae)


def checked_kinds(model: ModelDir, recipe: Recipe) -> dict[str, Kind]:
    """Every engine kind in the recipe's precisions; EngineError if the recipe names a kind that the model lacks.

    Also raises EngineError if the recipe offloads kinds that a recorded step runs.
    """
    kinds = kinds_of(model)
    if unknown := sorted({*recipe.kinds, *recipe.precisions, *recipe.offload} - set(kinds)):
        raise EngineError(f"recipe {recipe.name!r} names engine kinds {unknown}; this model has {list(kinds)}")
    if recipe.cuda_graphs and (recorded := sorted(STEP_KINDS.intersection(recipe.offload))):
        raise EngineError(
            f"recipe {recipe.name!r} offloads {recorded}, which every step runs: a recorded step needs their weights "
            "where they were; set cuda_graphs = false, or take them off the list"
        )
    return {name: kind.at(recipe.precision_of(name)) for name, kind in kinds.items()}


def needs_artefact(recipe: Recipe, kind: Kind) -> bool:
    """Whether a recipe runs a kind from the store."""
    return recipe.backend_class(kind.name).needs_artefact


@functools.cache
def source_digest(kernels: bool = False) -> str:
    """First 8 hex digits of the SHA-256 over the code an engine is made from: `SOURCES`, the exporter, maybe kernels.

    A checkout changes without its version changing, and an engine of yesterday's module must not pass for today's.
    Raises FileNotFoundError for a file of `SOURCES` that is not there.
    """
    paths = [Path(__file__).parent / name for name in SOURCES]
    for package in ("vino_export", *(("vino_kernels",) if kernels else ())):
        found = importlib.util.find_spec(package)
        if found is not None and found.submodule_search_locations:
            paths += [Path(folder) for folder in found.submodule_search_locations]
    files = [file for path in paths for file in (_code(path) if path.is_dir() else [path])]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def _code(folder: Path) -> list[Path]:
    """Source files, and the measured tiles that kernels are compiled with."""
    suffixes = (".py", ".cpp", ".h")
    return sorted(file for file in folder.rglob("*") if file.suffix in suffixes or file.name == "tiles.json")


def engine_key(model: ModelDir, recipe: Recipe, kind: Kind, backend: Backend) -> EngineKey:
    """The key under which the store holds a kind for this model, recipe and machine.

    Raises EngineError where the backend's library is missing or the GPU's driver cannot be told.
    """
    on_gpu = recipe.device == "cuda"
    sized = (recipe.variant, f"area {model.settings.area}") if backend.sized else ()
    constants = (f"weights {model.part_hash(kind.part)[:16]}",) if backend.has_constants(kind) else ()
    return EngineKey(
        kind=kind.name,
        family=model.settings.family,
        config_hash=model.config_hash,
        bucket=sizes_of(kind, recipe.buckets) if backend.sized else "dynamic",
        backend=backend.name,
        precision=kind.precision,
        device=recipe.device,
        capability=gpu_architecture(recipe.torch_device) if on_gpu else platform.machine(),
        driver=driver_version() if on_gpu else NONE,
        cuda=(torch.version.cuda or NONE) if on_gpu else NONE,
        torch_version=torch_version(),
        backend_version=backend.version(),
        kernels_version=f"{__version__}+{source_digest(carries_kernels(recipe, kind, backend))}",
        flags=(*backend.target(), *sized, *constants),
    )


def sizes_of(kind: Kind, buckets: Sequence[Bucket]) -> str:
    """What a kind's sizes take of the buckets: only a bucket that differs in it asks for another engine."""
    every = [field.name for field in fields(Bucket)]
    dims = {dim for spec in kind.spec.inputs for dim in spec.dims if isinstance(dim, str)}
    names = [name for name in every if any(name in DECIDES.get(dim, every) for dim in dims)]
    said = dict.fromkeys(" ".join(f"{name}={getattr(bucket, name)}" for name in names) for bucket in buckets)
    return "; ".join(said) if names else "any bucket"


def carries_kernels(recipe: Recipe, kind: Kind, backend: Backend) -> bool:
    """Whether an engine holds compiled kernels of `vino_kernels`."""
    if kind.precision == INT8_ATTENTION:
        return True
    return recipe.device == "cuda" and (backend.embeds_kernels or recipe.variant == "plugin")


def layer_weights(model: ModelDir, kind: Kind, layer: int) -> dict[str, Tensor]:
    """Weights of one layer in the kind's precision under its module's names; ModelError when they are not there."""
    prefix = kind.prefix.format(layer=layer)
    shapes = kind.shapes()
    part = model.part(kind.part)
    loaded = part.load([prefix + n for n in shapes], kind.dtype, {prefix + n: s for n, s in shapes.items()})
    return {name: loaded[prefix + name] for name in shapes}


def open_engines(model: ModelDir, recipe: Recipe, store: Store, threads: int | None) -> dict[str, list[Engine]]:
    """Open every kind of the model as the recipe says, one engine per layer.

    Raises EngineError where this machine cannot run the recipe, EngineMissing or EngineMismatch naming the command that
    builds what is not in the store, ModelError when weights are not right.
    """
    kinds, device = checked_kinds(model, recipe), recipe.torch_device
    names = {recipe.backend_of(kind) for kind in kinds}
    backends = {name: make_backend(name, threads, device, max_autotune=recipe.max_autotune) for name in names}
    _share_room(backends.values())
    for name, kind in kinds.items():
        backends[recipe.backend_of(name)].check(kind)
    try:
        found = {
            name: store.find(engine_key(model, recipe, kind, backends[recipe.backend_of(name)]))[1]
            for name, kind in kinds.items()
            if needs_artefact(recipe, kind)
        }
    except (EngineMissing, EngineMismatch) as error:
        raise type(error)(f"{error}; {build_advice(model, recipe, store)}") from error
    _check_unknown_tensors(model, [kind for kind in kinds.values() if kind.part == "vae"])
    engines: dict[str, list[Engine]] = {}
    shared: dict[str, Tensor] = {}
    for name, kind in kinds.items():
        backend, offload = backends[recipe.backend_of(name)], name in recipe.offload
        place = CPU if offload else device
        weights = [_shared(shared, kind, layer_weights(model, kind, i), i, place) for i in range(kind.layers)]
        engines[name] = (
            open_offloaded(backend, kind, weights) if offload else backend.open(kind, found.get(name), weights)
        )
        del weights
    shared.clear()
    give_back()
    return engines


def _share_room(backends: Iterable[Backend]) -> None:
    """One stream and one block of memory for all plans of TensorRT, whichever builder they come from."""
    found = [backend for backend in backends if isinstance(backend, TensorRtBackend)]
    for other in found[1:]:
        other.share(found[0])


def open_steps(recipe: Recipe) -> StepCache:
    """The cache of denoise steps: on a CUDA device recorded as graphs, unless the recipe says not to.

    Where kernels run the transformer's head, what follows it in a step is a kernel, too.
    """
    end = kernel_end() if recipe.backend_of("head") == "triton" else plain_end
    if recipe.device == "cpu" or not recipe.cuda_graphs:
        return StepCache(0, lambda work: work, end)
    return StepCache(max(KEPT_STEPS, len(recipe.buckets)), Recorder(recipe.torch_device), end, STEP_ROOM)


def _check_unknown_tensors(model: ModelDir, kinds: Sequence[Kind]) -> None:
    """ModelError naming tensors of these kinds' part that none of them reads: the weights are of another model."""
    known = {name for kind in kinds for name in kind.shapes()}
    for part in {kind.part for kind in kinds}:
        if unknown := [name for name in model.part(part).names() if name not in known]:
            raise ModelError(f"{model.path / part}: unknown tensors {shown(unknown)}; the weights are of another model")


def _shared(
    shared: dict[str, Tensor], kind: Kind, weights: Mapping[str, Tensor], layer: int, device: torch.device
) -> dict[str, Tensor]:
    """Put weights on their device; kinds that read the same tensor in the same precision hold the same memory."""
    prefix = f"{device}/{kind.precision}/{kind.part}/{kind.prefix.format(layer=layer)}"
    for name, tensor in weights.items():
        if prefix + name not in shared:
            shared[prefix + name] = tensor.to(device)
    return {name: shared[prefix + name] for name in weights}
