"""`vino-rt inspect`: show the machine, a model and its engines, a file's settings, or what a request would cost."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vino_rt.commands.base import EngineOptions, engine_columns
from vino_rt.commands.report import Reporter, shown_bytes
from vino_rt.commands.request_options import RequestOptions
from vino_rt.errors import EngineError, UsageError

if TYPE_CHECKING:
    from vino_rt.backends.recipe import Recipe
    from vino_rt.backends.store import Store
    from vino_rt.commands.machine import Machine
    from vino_rt.commands.outlook import Outlook
    from vino_rt.kernel_choices import KernelChoice
    from vino_rt.model_dir import ModelDir


@dataclass(frozen=True, kw_only=True)
class InspectOptions(RequestOptions):
    """Options of `inspect`."""

    file: Annotated[
        Path | None, typer.Argument(show_default=False, help="A picture or clip made by vino-rt: show its settings.")
    ] = None
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Show token counts and memory of a request without running it."),
    ] = False
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every file of the model and compare it with its recorded hash.")
    ] = False
    prompt: Annotated[str | None, typer.Option(help="Prompt of the request for --plan.")] = None


def run(options: InspectOptions, reporter: Reporter) -> None:
    """Show the machine, the model and the engines; with FILE the settings of a result; with --plan a request's cost.

    Example: vino-rt inspect --plan --prompt "a red fox in the snow" --size 640x640
    """
    _check_options(options)
    if options.file is not None:
        return _show_file(options.file, reporter)
    # Nothing is generated: any seed will do, and a fixed one makes the output reproducible.
    request = (
        replace(options.request(options.prompt or "", options.task), seed=options.seed or 0) if options.plan else None
    )

    from vino_rt.commands.machine import describe_machine
    from vino_rt.commands.memory_lines import show_memory
    from vino_rt.commands.opening import open_parts, warn_of_emulation
    from vino_rt.footprint_measured import kept

    if request is None:
        _show_machine(describe_machine(), reporter)
    model, recipe, store = open_parts(options)
    warn_of_emulation(recipe, reporter)
    if options.verify:
        with reporter.bars() as show:
            model.verify(reporter.on_bytes(show, "file"))
        reporter.event("verified", path=str(model.path), files=len(model.files))
        reporter.say(f"verified  {len(model.files)} files of {model.path} are what was written")
    if request is None:
        _show_model(model, recipe, reporter)
        show_memory(model, recipe, kept(model, recipe, store), reporter)
        _show_store(model, recipe, store, reporter)
    else:
        from vino_rt.commands.outlook import foresee

        _show_plan(foresee(request, model, recipe), reporter)
    return None


def _check_options(options: InspectOptions) -> None:
    """Raise UsageError for options that ask for different things, and for those of a request that is not planned."""
    for name, wanted in (("--plan", options.plan), ("--verify", options.verify)):
        if wanted and options.file is not None:
            raise UsageError(f"FILE and {name} ask for different things; give one of them")
    if options.plan:
        return
    engine = {field.name for field in fields(EngineOptions)}
    defaults = {field.name: field.default for field in fields(RequestOptions) if field.name not in engine}
    defaults["prompt"] = None
    # An option that may be repeated and was not given is an empty list.
    names = [name for name, default in defaults.items() if getattr(options, name) not in (default, [])]
    if names:
        told = ", ".join(f"--{name.replace('_', '-')}" for name in names)
        verb, them = ("belongs", "it") if len(names) == 1 else ("belong", "them")
        raise UsageError(f"{told} {verb} to --plan; add --plan, or leave {them} out")


def _show_file(path: Path, reporter: Reporter) -> None:
    from vino_rt.media_write import read_metadata
    from vino_rt.settings import typed_record

    settings = read_metadata(path)
    reporter.event("file", path=str(path), settings=typed_record(settings))
    if not settings:
        reporter.say(f"{path}: holds no settings; it was not made by vino-rt, or they were taken out")
    for name, value in settings.items():
        reporter.say(f"{name:<18} {value}")


def shown_count(count: int) -> str:
    """A number for people, to a tenth of a decimal unit."""
    power = min(4, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.{1 if power else 0}f}{('', ' k', ' M', ' G', ' T')[power]}"


def _show_machine(machine: "Machine", reporter: Reporter) -> None:
    reporter.event("machine", **asdict(machine))
    free = "" if machine.memory_free is None else f", {shown_bytes(machine.memory_free)} free"
    reporter.say(f"machine   {machine.cpu}, {machine.cores} cores, {shown_bytes(machine.memory)} memory{free}")
    for gpu in machine.gpus:
        reporter.say(f"GPU       {gpu.name}, {shown_bytes(gpu.memory)}, compute capability {gpu.capability}")
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in machine.versions.items())
    reporter.say(f"versions  Python {machine.python}, {versions}")


def _show_model(opened: "ModelDir", recipe: "Recipe", reporter: Reporter) -> None:
    import torch

    from vino_rt.kernel_choices import kernel_choices

    model = opened.describe()
    kernels = kernel_choices(opened, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    reporter.event("model", **model, kernels=[asdict(choice) for choice in kernels])
    reporter.say(f"model     {model['name']} ({model['family']}), {model['path']}")
    reporter.say(f"          weights {model['weights_hash'][:16]}, config {model['config_hash'][:16]}")
    for name, part in model["parts"].items():
        numbers = (
            f"{part['parameters'] / 1e6:.2f} M parameters in {part['tensors']} tensors, {shown_bytes(part['bytes'])}"
        )
        reporter.say(f"          {name:<12} {numbers}, {', '.join(part['dtypes'])}")
    width, height = model["default_size"]
    reporter.say(
        f"          default {width}x{height}, {model['default_frames']} of at most {model['max_frames']} frames at "
        f"{model['fps']:g} per second, {model['steps']} steps, about {model['area']} pixels, sides in multiples of "
        f"{model['unit']}"
    )
    for kind in ("image", "video"):
        reporter.say(f"          {kind:<12} guidance {model[kind]['guidance']:g}, shift {model[kind]['shift']:g}")
    if "triton" in (recipe.backend, *recipe.kinds.values()):
        _show_kernels(kernels, reporter)


def _show_kernels(choices: Sequence["KernelChoice"], reporter: Reporter) -> None:
    """One line if all choices have the same reason, else two for each operation and size."""
    reporter.say("kernels   chosen here for the kinds that backend triton runs (guide_and_step: if it runs head)")
    if len({(choice.implementation, choice.reason) for choice in choices}) == 1:
        reporter.say(f"          all: {choices[0].implementation} ({choices[0].reason})")
        return
    for choice in choices:
        name = choice.implementation or "none"
        reporter.say(f"          {choice.operation:<18} {choice.case:<8} {name:<10} {choice.shape}")
        reporter.say(f"          {'':<18} {choice.reason}")


def _show_store(model: "ModelDir", recipe: "Recipe", store: "Store", reporter: Reporter) -> None:
    """List every engine in the store, then the recipe's missing engines and the command that builds them."""
    from vino_rt.backends.store import MANIFEST, read_manifest

    reporter.say(f"store     {store.path}")
    for path in sorted(store.path.glob(f"*/{MANIFEST}")):
        try:
            m = read_manifest(path.parent)
        except EngineError as error:
            reporter.event("engine", path=str(path.parent), problem=str(error))
            reporter.say(f"          damaged: {error}")
            continue
        facts = {name: getattr(m.key, name) for name in ("kind", "backend", "precision")}
        facts |= {"bytes": m.bytes, "build_seconds": m.build_seconds}
        own = m.key.config_hash == model.config_hash
        reporter.event("engine", path=str(path.parent), **facts, error=m.error, bound=m.bound, this_model=own)
        reporter.say(
            f"          {engine_columns(m.key.kind, m.key.backend)} {m.key.precision:<9} {shown_bytes(m.bytes):>8}, "
            f"error {m.error:.1e} of {m.bound:.1e} allowed, {m.build_seconds:.1f} s to build"
            f"{'' if own else ', for another model'}"
        )
    _show_recipe(model, recipe, store, reporter)


def _show_recipe(model: "ModelDir", recipe: "Recipe", store: "Store", reporter: Reporter) -> None:
    """Say which engines of the recipe are missing and how to build them, or why the recipe cannot run here."""
    from vino_rt.advice import build_command
    from vino_rt.build import missing_kinds

    try:
        missing = missing_kinds(model, recipe, store)
    except EngineError as error:
        reporter.event("store", path=str(store.path), recipe=recipe.name, problem=str(error))
        reporter.say(f"recipe    {recipe.name} ({recipe.description}) cannot run here: {error}")
        return
    command = build_command(model, recipe, store)
    reporter.event("store", path=str(store.path), recipe=recipe.name, missing=missing, command=command)
    lacks = f"lacks {', '.join(missing)}; build with: {command}" if missing else "has all its engines"
    reporter.say(f"recipe    {recipe.name} ({recipe.description}) {lacks}")


def _show_plan(plan: "Outlook", reporter: Reporter) -> None:
    reporter.event("plan", **plan.record())
    settings, rows = plan.settings, plan.rows
    reporter.say(
        f"task {settings['task']}: {settings['frames']} x {settings['width']}x{settings['height']}, "
        f"{settings['steps']} steps, branches {', '.join(plan.branches)}"
    )
    for number, (frames, height, width) in enumerate(plan.references, start=1):
        reporter.say(f"reference {number}: {frames} x {width}x{height}")
    if plan.bucket is not None:
        reporter.say(f"bucket {plan.bucket}: {plan.reason}")
    reporter.say(f"{'branch':<20} {'segment':<14} {'start':>8} {'rows':>8} {'time':>6}")
    for segment in rows.segments:
        branch = "" if segment.branch is None else plan.branches[segment.branch]
        time = "" if segment.time is None else segment.time
        reporter.say(f"{branch:<20} {segment.what:<14} {segment.start:>8} {segment.rows:>8} {time:>6}")
    reporter.say(f"rows: {rows.image_tokens} image, {rows.text_tokens} text, in sequences: {rows.sequences}")
    reporter.say(f"attention: {shown_count(rows.attention_pairs)} pairs per head and block")
    reporter.say(f"memory of a step, without weights: about {shown_bytes(plan.step_bytes)}")
    reporter.say(f"memory of the decode, without weights: at most {shown_bytes(plan.decode_bytes)}")
