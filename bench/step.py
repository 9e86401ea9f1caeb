"""How long is one denoise step, with PyTorch alone and with the engines of the CPU recipes, branches packed or not?

A step is what `denoise` does once: velocities of all branches, guidance mix, Euler update, on a transformer with random
weights. Nothing is timed before all recipes agree and the packed sequence equals a pass for each branch.
"""

import argparse
import math
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.harness import Ceilings, CheckFailed, Mark, Measure, Outcome, Timing, interleave, summary
from bench.random_weights import random_weight
from vino_export.package import write_package
from vino_export.trace import write_onnx
from vino_kernels.int8_attention import missing_instructions
from vino_rt.backends.base import Kind
from vino_rt.backends.recipe import load_recipe, make_backend
from vino_rt.memory import give_back
from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.kinds import transformer_kinds
from vino_rt.models.vino.tables import transformer_table
from vino_rt.models.vino.transformer import BoundPlans, BoundTransformer, ModulationTables, Transformer
from vino_rt.plan import BranchShape, Grid, Plan, boundary_rows, group, pack, volume
from vino_rt.schedule import euler, guide, make_schedule
from vino_rt.weight_writer import write_part
from vino_rt.weights import PartWeights, TensorInfo

NATIVE = () if missing_instructions() else ("cpu-int8-avx512",)
RECIPES = {"eager": "eager", "onnxruntime": "cpu"} | {name: name for name in ("cpu-int8", *NATIVE, "aotinductor")}
"""Name in the rows -> recipe."""
COMPILED = frozenset({"aotinductor", *NATIVE})
"""What needs a C++ compiler and is left out of a quick run."""
AGREEMENT = {"eager": 1e-4, "onnxruntime": 1e-4, "cpu-int8": 0.1, "cpu-int8-avx512": 0.1, "aotinductor": 1e-4}
"""Largest difference of velocities to eager, relative to the largest velocity.

Recipes in float32 add up in another order, no more. int8 rounds what it multiplies and loses 1 to 2 % of a block's
output, the same of the velocity after twelve blocks (bench/LOG.md); rows or weights mixed up change tens of percent.
"""
EXACT, ROUNDED = Mark(2.2, "x", "required of the best exact recipe: at least"), Mark(3.0, "x", "required: at least")
SPEEDUPS = {"onnxruntime": EXACT, "cpu-int8": ROUNDED, "cpu-int8-avx512": ROUNDED, "aotinductor": EXACT}
PACKED = Mark(1.0, "x", "required: at most")
FORWARD = Mark(300.0, "ms", "the authors' code, two cores, one forward at 1,024 + 320 tokens")
THREE = Mark(1740.0, "ms", "the authors' code, two cores, three branches of a step with one reference")
SCHEDULE = make_schedule(50, 5.0)
GUIDANCE, IMAGE_GUIDANCE = 5.0, 1.5
FIRST = torch.zeros(1, dtype=torch.int64)
"""Number of the step that is timed."""
SIZES = (((1, 32, 32), 320, False), ((2, 32, 32), 320, False), ((1, 32, 32), 320, True))
"""Patches of the target, rows of text, and whether a reference of the target's size is there."""
ROUNDS = 7


def random_config(width: int, heads: int, dual: int, single: int, axes: tuple[int, int, int]) -> TransformerConfig:
    """A VINO transformer of another size; `axes` are the channels of a head that t, h and w rotate."""
    return TransformerConfig(
        in_channels=16, out_channels=16, num_attention_heads=heads, attention_head_dim=width // heads, num_layers=dual,
        num_single_layers=single, num_refiner_layers=2, mlp_ratio=4.0, patch_size=2, patch_size_t=1,
        qk_norm="rms_norm", guidance_embeds=True, text_embed_dim=2 * width, pooled_projection_dim=16, rope_theta=256.0,
        rope_axes_dim=axes, image_condition_type=None,
    )  # fmt: skip


def prepare(
    config: TransformerConfig,
    directory: Path,
    dtype: torch.dtype = torch.float32,
    backends: Collection[str] = tuple(RECIPES),
) -> int:
    """Write random weights of a fixed seed and the engines of some of `RECIPES`; returns the number of parameters."""
    table = transformer_table(config)
    generator = torch.Generator().manual_seed(0)
    write_part(
        directory,
        [TensorInfo(name, dtype, shape) for name, shape in table.items()],
        ((name, random_weight(name, shape, generator=generator).to(dtype)) for name, shape in table.items()),
    )
    for recipe in (load_recipe(RECIPES[backend]) for backend in backends):
        for name, plain in transformer_kinds(config).items():
            kind, library = plain.at(recipe.precision_of(name)), recipe.backend_of(name)
            path = _artefact(directory, kind, library)
            if recipe.backend_class(name).needs_artefact and not path.is_file():
                (write_package if library == "aotinductor" else write_onnx)(kind, path)
    return sum(math.prod(shape) for shape in table.values())


def _artefact(directory: Path, kind: Kind, library: str) -> Path:
    return directory / f"{kind.name}-{kind.precision}{'.pt2' if library == 'aotinductor' else '.onnx'}"


def open_transformer(config: TransformerConfig, backend: str, directory: Path) -> Transformer:
    """Open what `prepare` wrote the way a runtime does: one engine per layer on the weights of the file.

    All compute with as many threads as torch does, the number that rows name.
    """
    recipe, part = load_recipe(RECIPES[backend]), PartWeights(directory)
    engines = {}
    for name, plain in transformer_kinds(config).items():
        kind, library = plain.at(recipe.precision_of(name)), recipe.backend_of(name)
        with torch.device("meta"):
            names = list(kind.build().state_dict())
        layers = []
        for layer in range(kind.layers):
            prefix = kind.prefix.format(layer=layer)
            loaded = part.load([prefix + n for n in names])
            layers.append({n: loaded[prefix + n] for n in names})
        artefact = _artefact(directory, kind, library)
        engines[name] = make_backend(library, torch.get_num_threads()).open(kind, artefact, layers)
        del layers, loaded
    give_back()
    return Transformer(config, engines)


@dataclass(frozen=True)
class Case:
    """One packed sequence: branches of the same size, each with one reference of the target's size or none."""

    target: Grid
    text: int
    branches: int
    referenced: bool = False

    @property
    def label(self) -> str:
        """How rows name it."""
        tokens = f"{volume(self.target):,} + {self.text} tokens" + (", 1 reference" if self.referenced else "")
        return f"{tokens}, {self.branches} branch{'es' if self.branches > 1 else ''}"

    def plan(self) -> Plan:
        """The sequence, without padding."""
        references = (self.target,) if self.referenced else ()
        return pack(self.target, references, [BranchShape(tuple(range(len(references))), self.text)] * self.branches)

    def bind(self, transformer: Transformer, modulation: ModulationTables, first: int = 0) -> BoundTransformer:
        """Bind random conditions; a branch draws the same ones in every case, `first` is the number of the first."""
        config, plan = transformer.config, self.plan()
        rows = boundary_rows(plan.branches) // self.branches
        text, boundary = [], []
        for branch in range(first, first + self.branches):
            generator = torch.Generator().manual_seed(1 + branch)
            text.append(torch.randn(self.text, config.text_embed_dim, generator=generator))
            boundary.append(torch.randn(rows, config.width, generator=generator))
        references = noise((sum(map(volume, plan.references)), config.patch_values), seed=101)
        return transformer.bind(plan, references, torch.cat(boundary), torch.cat(text), modulation)


def noise(shape: tuple[int, int], seed: int) -> Tensor:
    """Standard normal numbers of a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def step_flops(config: TransformerConfig, plan: Plan) -> float:
    """Floating-point operations of the matrix products of a step; norms, rotations and sums are not counted."""
    d, mlp = config.width, config.mlp_width
    image, text = plan.image_tokens, plan.text_tokens

    def attention(offsets: Tensor) -> float:
        return float(4 * d * (offsets[1:] - offsets[:-1])[:-1].double().square().sum())

    projections, feed_forward = 2 * 4 * d * d, 2 * 2 * d * mlp
    gates = 2 * d * 2 * d * len(plan.branches)
    refiner = text * (projections + feed_forward) + attention(plan.text_offsets) + gates
    # Both kinds of block multiply the same: a single block's last projection reads attention and MLP at once.
    block = (image + text) * (projections + feed_forward) + attention(plan.offsets)
    ends = 2 * d * config.patch_values * (volume(plan.target) + plan.target_index.shape[0])
    return config.num_refiner_layers * refiner + (config.num_layers + config.num_single_layers) * block + ends


Velocity = Callable[[Tensor], Tensor]
"""Latents [N, P] -> velocities [branches, N, P]."""


def ways(
    case: Case, transformer: Transformer, modulation: ModulationTables, pack_rows: int | None
) -> dict[str, Velocity]:
    """All branches in one sequence; for three also one pass for each, and as a runtime does it: up to `pack_rows`."""
    packed = case.bind(transformer, modulation)
    found: dict[str, Velocity] = {"packed": lambda latents: packed.velocity(FIRST, latents)}
    if case.branches == 3:
        alone = Case(case.target, case.text, 1, case.referenced)
        passes = [alone.bind(transformer, modulation, first=branch) for branch in range(case.branches)]
        found["passes"] = lambda latents: torch.cat([bound.velocity(FIRST, latents) for bound in passes])
        plan = case.plan()
        counts = [len(g) for g in group(plan.target, plan.references, plan.branches, pack_rows)]
        starts = [sum(counts[:i]) for i in range(len(counts))]
        run = BoundPlans(
            [
                Case(case.target, case.text, count, case.referenced).bind(transformer, modulation, first=start)
                for count, start in zip(counts, starts, strict=True)
            ]
        )
        found["as run"] = lambda latents: run.velocity(FIRST, latents)
    return found


def check(case: Case, velocities: Mapping[tuple[str, str], Velocity], latents: Tensor) -> None:
    """CheckFailed unless every way and recipe computes what eager computes branch by branch."""
    outputs = {name: velocity(latents) for name, velocity in velocities.items()}
    judge = outputs.get(("eager", "passes"), outputs["eager", "packed"])
    for (backend, way), output in outputs.items():
        error, allowed = float((output - judge).abs().max() / judge.abs().max()), AGREEMENT[backend]
        if not error <= allowed:
            raise CheckFailed(f"{case.label}: {backend}, {way} is off by {error:.2g} of the peak, allowed {allowed}")


def as_step(velocity: Velocity, latents: Tensor) -> Callable[[], Tensor]:
    """What `denoise` does once."""
    return lambda: euler(latents, guide(velocity(latents), GUIDANCE, IMAGE_GUIDANCE), SCHEDULE.delta[0])


def series(
    cases: Sequence[Case], transformers: Mapping[str, Transformer], ceilings: Ceilings, repeats: int
) -> list[Measure]:
    """Check cases of one size, time all of them and the ceilings in the same rounds, and say what came out."""
    config = next(iter(transformers.values())).config
    modulations = {backend: t.modulation(SCHEDULE) for backend, t in transformers.items()}
    latents = noise((volume(cases[0].target), config.patch_values), seed=100)
    steps: dict[str, Callable[[], object]] = {}
    for case in cases:
        velocities = {
            (backend, way): velocity
            for backend, transformer in transformers.items()
            for way, velocity in ways(
                case, transformer, modulations[backend], load_recipe(RECIPES[backend]).pack_rows
            ).items()
        }
        check(case, velocities, latents)
        steps |= {f"{case.label}, {b}, {way}": as_step(v, latents) for (b, way), v in velocities.items()}
    with torch.inference_mode():
        timings = interleave(steps | ceilings.probes(), repeats=repeats)
    rate = ceilings.flop_rate(timings)
    found = [row for case in cases for row in case_rows(case, timings, step_flops(config, case.plan()) / rate)]
    return found + ceilings.measures(timings, cases[0].label.rpartition(", ")[0])


def case_rows(case: Case, timings: Mapping[str, Timing], ideal: float) -> list[Measure]:
    """Rows of one case; `ideal` is the seconds its matrix products would take at the measured ceiling."""
    prefix = f"{case.label}, "
    times = {name.removeprefix(prefix): timing for name, timing in timings.items() if name.startswith(prefix)}
    limit = Mark(1e3 * ideal, "ms", "all matrix products at the measured sgemm rate")
    authors = {(1, False): FORWARD, (3, True): THREE}.get((case.branches, case.referenced))
    rows = []
    for name, timing in times.items():
        where = f"{case.label}, {name}"
        shares = [100 * ideal / seconds for seconds in timing.seconds]
        rows.append(timing.measure(where, "step", limit))
        rows.append(summary(shares, where, "share of sgemm", "%", Mark(100.0, "%", "the measured sgemm rate")))
        if authors and (volume(case.target), case.text) == (1024, 320):
            rows.append(summary([authors.value / 1e3 / s for s in timing.seconds], where, "speed", "x", authors))
    for way in ("packed", "passes", "as run"):
        for backend in (name for name in SPEEDUPS if f"{name}, {way}" in times):
            ratio = times[f"eager, {way}"].ratio(times[f"{backend}, {way}"])
            rows.append(summary(ratio, f"{case.label}, {way}", f"eager / {backend}", "x", SPEEDUPS[backend]))
    if case.branches == 3:
        for backend in (name for name in RECIPES if f"{name}, passes" in times):
            for way in ("packed", "as run"):
                ratio = times[f"{backend}, {way}"].ratio(times[f"{backend}, passes"])
                rows.append(summary(ratio, f"{case.label}, {backend}", f"{way} / passes", "x", PACKED))
    return rows


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be chosen beside the options of every benchmark."""
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"rounds of a size (default: {ROUNDS})")
    parser.add_argument("--sizes", type=int, default=len(SIZES), metavar="N", help="only the first N sizes")
    parser.add_argument("--engines", type=Path, metavar="DIR", help="keep what is built there, and use what is there")


def run(*, quick: bool, options: argparse.Namespace | None = None) -> Outcome:
    """About 20 M parameters at width 256; quick: a few thousand, and nothing that takes minutes to build."""
    if options is None:
        parser = argparse.ArgumentParser()
        add_options(parser)
        options = parser.parse_args([])
    if quick:
        config, ceilings, repeats = random_config(32, 2, 1, 1, (4, 6, 6)), Ceilings(64, 1 << 16), 2
        sizes: Sequence[tuple[Grid, int, bool]] = [((1, 3, 5), 7, False), ((1, 3, 5), 7, True)]
    else:
        config, ceilings, repeats = random_config(256, 4, 4, 8, (16, 24, 24)), Ceilings(1536, 1 << 26), options.rounds
        sizes = SIZES[: options.sizes]
    with tempfile.TemporaryDirectory() as scratch:
        place = options.engines or Path(scratch)
        place.mkdir(parents=True, exist_ok=True)
        chosen = [backend for backend in RECIPES if not (quick and backend in COMPILED)]
        parameters = prepare(config, place, backends=chosen)
        transformers = {backend: open_transformer(config, backend, place) for backend in chosen}
        measures = [Measure("model", "parameters", parameters / 1e6, "M")]
        for target, text, referenced in sizes:
            cases = [Case(target, text, branches, referenced) for branches in (1, 2, 3)]
            measures += series(cases, transformers, ceilings, repeats)
    return Outcome(measures)
