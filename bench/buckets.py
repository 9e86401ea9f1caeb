"""What does it cost to go from one size to another, engines open?

Requests of four sizes take turns. What the first step at a size costs more than the one after it, and what binding the
request costs, is what a switch costs; nothing is compiled or loaded for it.
"""

import itertools
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.harness import Mark, Measure, Outcome, summary
from bench.step import GUIDANCE, IMAGE_GUIDANCE, SCHEDULE, Case, noise, open_transformer, prepare, random_config
from vino_rt.models.vino.config import TransformerConfig
from vino_rt.models.vino.transformer import ModulationTables, Transformer
from vino_rt.plan import volume
from vino_rt.step import GuidedStep

LIMIT = Mark(50.0, "ms", "required: at most")
BACKENDS = ("eager", "onnxruntime")
ROUNDS = 7


@dataclass(frozen=True)
class Visit:
    """Seconds of one stay at a size, right after another size."""

    bind: float
    first: float
    second: float

    @property
    def switch(self) -> float:
        """What the change of size cost."""
        return self.bind + self.first - self.second


def scene(*, quick: bool) -> tuple[TransformerConfig, tuple[Case, ...]]:
    """A transformer and four sizes; quick: tiny ones."""
    if quick:
        targets, text, config = ((1, 2, 3), (1, 5, 3), (2, 3, 5), (3, 2, 2)), 7, random_config(32, 2, 1, 1, (4, 6, 6))
    else:
        targets = ((1, 16, 16), (1, 24, 16), (5, 8, 8), (1, 32, 32))
        text, config = 64, random_config(256, 4, 4, 8, (16, 24, 24))
    return config, tuple(Case(target, text, 2) for target in targets)


@torch.inference_mode()
def visit(case: Case, transformer: Transformer, modulation: ModulationTables) -> Visit:
    """Bind a request of a size and take two steps."""
    latents = noise((volume(case.target), transformer.config.patch_values), seed=0)
    clock = [time.perf_counter()]
    bound = case.bind(transformer, modulation)
    step = GuidedStep(bound, latents, SCHEDULE, (GUIDANCE, IMAGE_GUIDANCE))
    step.begin(latents)
    clock.append(time.perf_counter())
    for _ in range(2):
        step.advance()
        clock.append(time.perf_counter())
    return Visit(*(end - start for start, end in itertools.pairwise(clock)))


def run(*, quick: bool) -> Outcome:
    """All sizes in turns, `ROUNDS` times, the first of them not counted."""
    config, cases = scene(quick=quick)
    measures, failures = [], []
    with tempfile.TemporaryDirectory() as scratch:
        prepare(config, Path(scratch), backends=BACKENDS)
        for backend in BACKENDS:
            transformer = open_transformer(config, backend, Path(scratch))
            modulation = transformer.modulation(SCHEDULE)
            rounds = [[visit(case, transformer, modulation) for case in cases] for _ in range(2 if quick else ROUNDS)]
            for case, *visits in zip(cases, *rounds[1:], strict=True):
                measures += rows(f"{case.label}, {backend}", visits)
                cost = 1e3 * statistics.median(visit.switch for visit in visits)
                if not quick and cost > LIMIT.value:
                    failures.append(f"{case.label}, {backend}: a switch costs {cost:.0f} ms")
    return Outcome(measures, failures)


def rows(where: str, visits: list[Visit]) -> list[Measure]:
    """What stays at one size took."""
    return [
        summary([1e3 * visit.bind for visit in visits], where, "bind a request", "ms"),
        summary([1e3 * visit.second for visit in visits], where, "step", "ms"),
        summary([1e3 * visit.switch for visit in visits], where, "switch", "ms", LIMIT),
    ]
