"""Writes a plan: parses the network, sets up TensorRT's builder, builds, and tells what came out.

Needs the library and the GPU that the plan is for. Everything goes through what 10.16 and 11.x have in common;
networks are strongly typed, so that types are those of the file and of nothing else.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor

from vino_export.tensorrt.network import network
from vino_export.tensorrt.plugins import declare_plugins
from vino_export.tensorrt.profiles import Profile, profiles_of, shapes
from vino_export.tensorrt.progress import BuildStep, progress_monitor
from vino_rt.backends.base import Kind, TensorSpec
from vino_rt.backends.tensorrt.description import NETWORK, Description, digest, write_description
from vino_rt.backends.tensorrt.library import load, make_logger, version_of
from vino_rt.bucket import Bucket
from vino_rt.errors import EngineError


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What decides about a plan besides its kind."""

    buckets: tuple[Bucket, ...]
    unit: int
    """Pixels along the side of a patch of the model."""
    area: int
    """Pixels that the model scales a reference to."""
    target: tuple[str, ...]
    """Architecture, such as sm_90, and name of the GPU (`TensorRtBackend.target`)."""
    variant: str = "native"
    """`native`: TensorRT's own layers; `plugin`: our kernels in their places."""
    optimization: int = 3
    """TensorRT's level of effort, 0 to 5."""
    timing_cache: Path | None = None
    """Directory that remembers what was timed on this GPU with this version."""
    on_step: Callable[[BuildStep], None] = lambda step: None
    """Called from several threads; what it raises ends the build."""


@dataclass(frozen=True)
class Setting:
    """What is at hand while a plan is built; TensorRT wants all of it alive until the end."""

    library: Any
    logger: Any
    builder: Any
    network: Any
    parser: Any
    options: PlanOptions

    def must(self, done: bool, where: str) -> None:
        """EngineError with what TensorRT said, for a call that failed."""
        if not done:
            raise EngineError(f"{where}: {self.logger.said()}")


def write_plan(kind: Kind, path: Path, weights: Mapping[str, Tensor], options: PlanOptions) -> None:
    """Build a kind to `path`, with `engine.json` beside it and, where it has constants, `engine.onnx`.

    weights: of the kind's first layer, on the host; only those that become constants are read, by their addresses, and
    stripped from the plan again. Raises EngineError where the library is missing or refuses, and what `on_step` raised.
    """
    library = load()
    logger = make_logger(library)
    model = network(kind, options.variant, version_of(library)[0])
    if options.variant == "plugin":
        declare_plugins(architecture(options.target))
    builder = library.Builder(logger)
    flags = library.NetworkDefinitionCreationFlag
    made = builder.create_network(1 << int(flags.STRONGLY_TYPED) | 1 << int(flags.PREFER_AOT_PYTHON_PLUGINS))
    setting = Setting(library, logger, builder, made, library.OnnxParser(made, logger), options)
    constants = {tensor.name: weights[tensor.name].contiguous() for tensor in model.graph.initializer}
    _parse(setting, kind, model, constants)
    profiles = profiles_of(kind, options.buckets, options.unit, options.area)
    read = {value.name for value in model.graph.input}
    inputs = tuple(spec for spec in kind.spec.inputs if spec.name in read)
    plan = _build(setting, kind, inputs, profiles, strip=bool(constants))
    path.write_bytes(plan)
    if constants:
        path.with_name(NETWORK).write_bytes(model.SerializeToString())
    spans = tuple({n: (s.least, s.best, s.most) for n, s in profile.items()} for profile in profiles)
    description = Description(
        kind=kind.name,
        tensorrt=str(library.__version__),
        target=options.target,
        variant=options.variant,
        inputs=tuple(spec.name for spec in inputs),
        weights=digest(weights) if constants else None,
        profiles=spans,
        layers=_layers(setting, kind, plan),
    )
    write_description(path, description)


def architecture(target: Sequence[str]) -> int:
    """90 for sm_90; EngineError for a target that names none."""
    found = re.fullmatch(r"sm_(\d+)", target[0]) if target else None
    if found is None:
        raise EngineError(f"target {tuple(target)} names no architecture such as sm_90")
    return int(found[1])


def _parse(setting: Setting, kind: Kind, model: onnx.ModelProto, constants: Mapping[str, Tensor]) -> None:
    """Hand over the file, then the values of its initializers by address: no copy, and no limit of 2 GB."""
    parser, where = setting.parser, f"{kind.name}: TensorRT's parser"
    setting.must(parser.load_model_proto(model.SerializeToString()), f"{where} cannot read the network")
    for name, tensor in constants.items():
        loaded = parser.load_initializer(name, tensor.data_ptr(), tensor.nbytes)
        setting.must(loaded, f"{where} does not take weight {name!r} of {tensor.nbytes} bytes")
    if not parser.parse_model_proto():
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        told = "; ".join(f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in errors)
        raise EngineError(f"{where} refused the network: {told or setting.logger.said()}")


def _build(
    setting: Setting, kind: Kind, inputs: Sequence[TensorSpec], profiles: Sequence[Profile], *, strip: bool
) -> bytes:
    """The serialised plan, stripped of its constants or without any."""
    library, options = setting.library, setting.options
    config = setting.builder.create_builder_config()
    # One stream, which is what a graph is recorded from; float32 means float32.
    config.max_aux_streams = 0
    config.clear_flag(library.BuilderFlag.TF32)
    config.builder_optimization_level = options.optimization
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    if strip:
        config.set_flag(library.BuilderFlag.STRIP_PLAN)
        config.set_flag(library.BuilderFlag.REFIT_IDENTICAL)
    for profile in profiles:
        _add_profile(setting, inputs, config, profile)
    monitor = progress_monitor(library, options.on_step)
    config.progress_monitor = monitor
    cache = _timing_cache(setting, config)
    plan = setting.builder.build_serialized_network(setting.network, config)
    if monitor.failure is not None:
        raise monitor.failure
    setting.must(plan is not None, f"{kind.name}: TensorRT cannot build variant {options.variant!r}")
    if options.timing_cache is not None:
        _keep(_cache_file(setting, options.timing_cache), bytes(cache.serialize()))
    return bytes(plan)


def _add_profile(setting: Setting, inputs: Sequence[TensorSpec], config: Any, profile: Profile) -> None:
    made = setting.builder.create_optimization_profile()
    for spec in inputs:
        made.set_shape(spec.name, *shapes(spec, profile))
    added = bool(made) and config.add_optimization_profile(made) >= 0
    setting.must(added, f"TensorRT does not take the profile {dict(profile)}")


def _timing_cache(setting: Setting, config: Any) -> Any:
    """What was timed before, or an empty cache where there is none for this GPU and version; keep it until the end."""
    folder = setting.options.timing_cache
    file = None if folder is None else _cache_file(setting, folder)
    if file is not None and file.is_file():
        cache = config.create_timing_cache(file.read_bytes())
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
    cache = config.create_timing_cache(b"")
    setting.must(config.set_timing_cache(cache, ignore_mismatch=False), "TensorRT does not take an empty timing cache")
    return cache


def _cache_file(setting: Setting, folder: Path) -> Path:
    parts = (setting.library.__version__, *setting.options.target)
    return folder / f"timing-{re.sub(r'[^A-Za-z0-9_.]+', '-', '-'.join(parts))}.cache"


def _keep(file: Path, content: bytes) -> None:
    """Written under another name and renamed: builds beside this one read a whole file or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_bytes(content)
    partial.replace(file)


def _layers(setting: Setting, kind: Kind, plan: bytes) -> Any:
    """What the inspector says of every layer: which kernels were chosen, what was fused, in which types."""
    runtime = setting.library.Runtime(setting.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    setting.must(engine is not None, f"{kind.name}: TensorRT cannot read the plan that it built")
    told = engine.create_engine_inspector().get_engine_information(setting.library.LayerInformationFormat.JSON)
    try:
        return json.loads(told)
    except ValueError:
        return told
