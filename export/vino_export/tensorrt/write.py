"""Write a plan: parse the network, configure TensorRT's builder, build, and describe the result.

Needs the library and the GPU that the plan is for. Uses only the API common to 10.16 and 11.x. Networks are strongly
typed: element types are exactly those of the file.
"""

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor

from vino_export.tensorrt.native import MASKED, attentions
from vino_export.tensorrt.network import attends, network
from vino_export.tensorrt.plugins import compile_plugins, declare_plugins
from vino_export.tensorrt.profiles import Profile, check_mask, profiles_of, shapes
from vino_export.tensorrt.progress import BuildStep, progress_monitor, run_aside
from vino_export.tensorrt.timings import Timings, timings_file
from vino_rt.backends.base import Kind, TensorSpec
from vino_rt.backends.tensorrt.description import NETWORK, Description, digest, write_description
from vino_rt.backends.tensorrt.library import load, made, make_logger, version_of
from vino_rt.bucket import Bucket
from vino_rt.errors import EngineError

PLUGIN = 'build with the recipe tensorrt-plugin, or with variant = "plugin" in your own'
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Everything besides its kind that determines a plan."""

    buckets: tuple[Bucket, ...]
    unit: int
    """Pixels along the side of a patch (`ModelSettings.unit`)."""
    area: int
    """Pixels that a reference is scaled to (`ModelSettings.area`)."""
    target: tuple[str, ...]
    """Architecture, such as sm_90, and name of the GPU (`TensorRtBackend.target`)."""
    variant: str = "native"
    """`native`: TensorRT's own layers; `plugin`: our kernels for our operators."""
    optimization: int = 3
    """TensorRT's builder optimisation level, 0 to 5."""
    timing_cache: Path | None = None
    """Directory of timing caches; None: no cache between builds."""
    on_step: Callable[[BuildStep], None] = lambda step: None
    """Progress callback, called from several threads, one at a time; an exception from it ends the build."""


@dataclass(frozen=True)
class Setting:
    """TensorRT's objects for building a plan; all of them must stay alive until the build ends."""

    library: Any
    logger: Any
    builder: Any
    network: Any
    parser: Any
    options: PlanOptions

    def must(self, done: bool, where: str) -> None:
        """Raise EngineError with TensorRT's log if a call failed."""
        if not done:
            raise EngineError(f"{where}: {self.logger.said()}")


def write_plan(kind: Kind, path: Path, weights: Mapping[str, Tensor], options: PlanOptions) -> None:
    """Build a kind's plan at `path`, with `engine.json` beside it and, if it has constants, `engine.onnx`.

    weights: of the kind's first layer, on the host. Only those that become constants are read, and the plan is stored
    without their values. Raises EngineError if the library is missing or fails, OutOfMemory, and what `on_step` or a
    signal handler raised.
    """
    library = load()
    profiles = profiles_of(kind, options.buckets, options.unit, options.area)
    setting, model, constants = _parsed(kind, weights, options, _forms(kind, library, profiles, options))
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
        layers=layers_of(library, setting.logger, kind, plan),
    )
    write_description(path, description)


def _forms(kind: Kind, library: Any, profiles: Sequence[Profile], options: PlanOptions) -> tuple[str, ...]:
    """The forms of attention to try with the parser, in order; EngineError for sequences too long for a mask.

    For a kind without attention, or with plugins, a single form, since it makes no difference.
    """
    rows, forms = attends(kind), attentions(version_of(library))
    if rows is None or options.variant != "native":
        return forms[:1]
    if forms == (MASKED,):
        check_mask(kind, rows, profiles, PLUGIN)
    return forms


def _parsed(
    kind: Kind, weights: Mapping[str, Tensor], options: PlanOptions, forms: Sequence[str]
) -> tuple[Setting, onnx.ModelProto, Mapping[str, Tensor]]:
    """Parse the network in the first form that the parser accepts; also returns its model and constant weights."""
    library = load()
    logger = make_logger(library)
    flags = library.NetworkDefinitionCreationFlag
    refused: list[str] = []
    for form in forms:
        model = network(kind, options.variant, form)
        if options.variant == "plugin":
            compile_plugins(model, architecture(options.target))
            declare_plugins(architecture(options.target))
        builder = library.Builder(logger)
        empty = builder.create_network(1 << int(flags.STRONGLY_TYPED) | 1 << int(flags.PREFER_AOT_PYTHON_PLUGINS))
        setting = Setting(library, logger, builder, empty, library.OnnxParser(empty, logger), options)
        constants = {tensor.name: weights[tensor.name].contiguous() for tensor in model.graph.initializer}
        try:
            _parse(setting, kind, model, constants)
        except EngineError as error:
            log.info("attention in the form %r: %s", form, error)
            refused.append(str(error))
            continue
        return setting, model, constants
    raise EngineError("; ".join(refused))


def architecture(target: Sequence[str]) -> int:
    """The architecture of a target as a number, such as 90 for sm_90; EngineError if there is none."""
    found = re.fullmatch(r"sm_(\d+)", target[0]) if target else None
    if found is None:
        raise EngineError(f"target {tuple(target)} names no architecture such as sm_90")
    return int(found[1])


def _parse(setting: Setting, kind: Kind, model: onnx.ModelProto, constants: Mapping[str, Tensor]) -> None:
    """Parse the model, with its initializers passed by address: no copy, and no limit of 2 GB."""
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
    """Build and serialise the plan; strip: leave out the values of constants."""
    options = setting.options
    config = _config(setting, strip=strip)
    for profile in profiles:
        _add_profile(setting, inputs, config, profile, lean=strip)
    monitor = progress_monitor(setting.library, options.on_step)
    config.progress_monitor = monitor
    folder, version = options.timing_cache, str(setting.library.__version__)
    timings = Timings(config, None if folder is None else timings_file(folder, version, options.target))
    what = f"{kind.name}: TensorRT cannot build variant {options.variant!r}"
    try:
        # Keep timings of an interrupted build too: the next build needs most of them.
        return bytes(run_aside(lambda: made(setting.logger, what, lambda: _serialised(setting, config)), monitor))
    finally:
        timings.keep()


def _serialised(setting: Setting, config: Any) -> Any:
    return setting.builder.build_serialized_network(setting.network, config)


def _config(setting: Setting, *, strip: bool) -> Any:
    library, config = setting.library, setting.builder.create_builder_config()
    # A single stream, because CUDA graphs are recorded from one; no TF32 in place of float32.
    config.max_aux_streams = 0
    config.clear_flag(library.BuilderFlag.TF32)
    config.builder_optimization_level = setting.options.optimization
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    if strip:
        config.set_flag(library.BuilderFlag.STRIP_PLAN)
        config.set_flag(library.BuilderFlag.REFIT_IDENTICAL)
    return config


def _add_profile(setting: Setting, inputs: Sequence[TensorSpec], config: Any, profile: Profile, *, lean: bool) -> None:
    """lean: do not let the profile keep copies of the weights in other layouts inside the plan."""
    where = f"TensorRT does not take the profile {dict(profile)}"
    added = setting.builder.create_optimization_profile()
    for spec in inputs:
        try:
            added.set_shape(spec.name, *shapes(spec, profile))
        except ValueError as error:
            raise EngineError(f"{where}, for input {spec.name!r}: {error}") from error
    if lean:
        added.extra_memory_target = 0.0
    setting.must(bool(added) and config.add_optimization_profile(added) >= 0, where)


def layers_of(library: Any, logger: Any, kind: Kind, plan: bytes) -> Any:
    """The engine inspector's JSON: for every layer the chosen kernel, fusions and element types."""
    runtime = library.Runtime(logger)
    what = f"{kind.name}: TensorRT cannot read the plan that it built"
    engine = made(logger, what, lambda: runtime.deserialize_cuda_engine(plan))
    told = engine.create_engine_inspector().get_engine_information(library.LayerInformationFormat.JSON)
    try:
        return json.loads(told)
    except ValueError:
        return told
