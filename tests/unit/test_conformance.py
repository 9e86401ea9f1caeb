"""Every backend against every engine kind: within the bound of the reference, the same bytes twice, branches apart.

A backend is named alone for float32, else as backend/precision. The tiny golden model runs all kinds; the bundled one
those of its transformer and connector, its autoencoder with the slow tests.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.models import COMPILES, RUNS_INT8_ATTENTION, Built
from vino_export.package import write_package
from vino_export.trace import write_onnx
from vino_export.verify import verify
from vino_rt.backends.base import CPU, DTYPES, Backend, Engine, Kind
from vino_rt.backends.recipe import make_backend
from vino_rt.engines import engine_key, kinds_of, layer_weights
from vino_rt.errors import EngineError, VinoError
from vino_rt.model_dir import ModelDir, bundled_model
from vino_rt.models.vino.kinds import _example, example_plans
from vino_rt.models.vino.vlm_kinds import block_example, layer_example
from vino_rt.plan import BranchShape, Plan, pack

BACKENDS = ("eager", "onnxruntime", pytest.param("aotinductor", marks=COMPILES))
STREAM = ("patch", "text", "embed", "dual_block", "single_block", "head")
VAE = ("vae_encode", "vae_decode")
VLM = ("vlm_vision_block", "vlm_layer")
# The recipe for the CPU leaves it to the reference: nothing to win there.
ONLY_EAGER = "modulation"
KINDS = [
    *((kind, backend) for kind in (*VLM, "connector", *STREAM, *VAE) for backend in ("eager", "onnxruntime")),
    (ONLY_EAGER, "eager"),
]
# AOTInductor leaves the autoencoder to ONNX Runtime: see its recipe.
PACKAGES = [pytest.param(kind, "aotinductor", marks=COMPILES) for kind in ("connector", *STREAM)]
UNBUILT = [
    (kind, backend)
    for kind in (*VLM, "connector", *STREAM, ONLY_EAGER, *VAE)
    for backend in ("triton", "eager/bfloat16", "triton/bfloat16")
]
HALF = [pytest.param("tiny", kind, "aotinductor/bfloat16", marks=(COMPILES, pytest.mark.slow)) for kind in STREAM]
# Its recipe leaves them to ONNX Runtime, too: they are not among what `compiled` holds.
TOWERS = [pytest.param("tiny", kind, "aotinductor", marks=(COMPILES, pytest.mark.slow)) for kind in VLM]
ROUNDED = [(kind, "onnxruntime/int8") for kind in ("dual_block", "single_block")]
HALVED = [
    pytest.param(model, kind, "onnxruntime/int8-attention", marks=RUNS_INT8_ATTENTION)
    for model in ("tiny", "mini")
    for kind in ("dual_block", "single_block")
]
LARGEST = {"float32": 1e-2, "bfloat16": 0.5, "int8": 5.0, "int8-attention": 5.0}
"""Errors above this are wrong whatever the rule says."""
CASES = [
    *(("tiny", *pair) for pair in (*KINDS, *UNBUILT, *ROUNDED)),
    *HALF,
    *HALVED,
    *TOWERS,
    *(pytest.param("tiny", *package.values, marks=COMPILES) for package in PACKAGES),
    *(pytest.param("mini", *pair, marks=pytest.mark.slow if pair[0] in VAE else ()) for pair in (*KINDS, *ROUNDED)),
    *(pytest.param("mini", *package.values, marks=(COMPILES, pytest.mark.slow)) for package in PACKAGES),
]
ONE = (1, 1, 1)
EDGE_PLANS = {
    "one_token": pack(ONE, (), [BranchShape((), 1)]),
    "one_branch_padded": pack((1, 3, 1), (), [BranchShape((), 3)], image_tokens=5, text_tokens=11),
    "text_padded": pack(ONE, (ONE,), [BranchShape((0,), 1), BranchShape((), 2)], text_tokens=4),
    "three_branches_padded": pack(
        (3, 1, 5), (ONE, (2, 3, 1)), [BranchShape((0, 1), 5), BranchShape((0, 1), 1), BranchShape((1,), 3)],
        image_tokens=97, text_tokens=31,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """One kind of a model on one backend, all its layers."""

    kind: Kind
    backend: Backend
    artefact: Path | None
    weights: tuple[Mapping[str, Tensor], ...]
    engines: tuple[Engine, ...]


@pytest.fixture(scope="module")
def models(tiny_model: ModelDir) -> Mapping[str, ModelDir]:
    return {"tiny": tiny_model, "mini": ModelDir.open(bundled_model())}


@pytest.fixture(scope="module")
def opener(
    models: Mapping[str, ModelDir], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> "Opener":
    return Opener(models, request.getfixturevalue, tmp_path_factory.mktemp("mini"))


class Opener:
    """Opens each (model, kind, backend) once; builds what a test is the first to need."""

    def __init__(self, models: Mapping[str, ModelDir], fixture: Callable[[str], Built], scratch: Path) -> None:
        self.models, self.fixture, self.scratch = models, fixture, scratch
        self.open = cache(self._open)

    def _open(self, name: str, kind_name: str, backend_name: str) -> Opened:
        model = self.models[name]
        library, _, precision = backend_name.partition("/")
        kind, backend = kinds_of(model)[kind_name].at(precision or "float32"), make_backend(library, 1)
        artefact = self._artefact(name, model, kind, backend) if backend.needs_artefact else None
        weights = tuple(layer_weights(model, kind, layer) for layer in range(kind.layers))
        return Opened(kind, backend, artefact, weights, tuple(backend.open(kind, artefact, weights)))

    def _artefact(self, name: str, model: ModelDir, kind: Kind, backend: Backend) -> Path:
        package = backend.name == "aotinductor"
        if name == "tiny" and kind.precision == "float32" and not (package and kind.name in VLM):
            built = self.fixture("compiled" if package else "built")
            return built.store.find(engine_key(model, built.recipe, kind, backend))[1]
        path = self.scratch / f"{name}-{kind.name}-{kind.precision}{'.pt2' if package else '.onnx'}"
        (write_package if package else write_onnx)(kind, path)
        return path


def edge_examples(kind: Kind, model: ModelDir) -> list[dict[str, Tensor]]:
    """Inputs of the smallest and oddest sizes a request can lead to."""
    if kind.name == "connector":
        h = model.connector.hidden_size
        return [{"states": torch.randn(n, h), "boundary_states": torch.randn(r, h)} for n, r in ((1, 0), (1, 2))]
    if kind.name in VAE:
        (spec,) = kind.spec.inputs
        tiles = [(1, 1, 1), (2, 1, 3), (5, 2, 1)]
        pixels = [(4 * t - 3, 8 * h, 8 * w) for t, h, w in tiles]
        return [{spec.name: torch.randn(1, int(spec.dims[1]), *size)} for size in (tiles, pixels)[kind.name == VAE[0]]]
    if kind.name in VLM:
        return vlm_edges(kind, model)
    if kind.name == "patch":
        return [{"patches": torch.randn(rows, model.transformer.patch_values)} for rows in (0, 1, 3)]
    return [drawn(kind, model, plan) for plan in EDGE_PLANS.values()]


def vlm_edges(kind: Kind, model: ModelDir) -> list[dict[str, Tensor]]:
    """Prompts of one row, alone and beside others, and an empty one between; the smallest frames, one and many."""
    config, generator = model.vlm_config, torch.Generator().manual_seed(7)
    if kind.name == "vlm_layer":
        return [layer_example(config.text, lengths, generator) for lengths in ((1,), (1, 9, 1), (3, 0, 5))]
    return [block_example(config.vision, *frames, generator) for frames in ((1, (2, 2)), (7, (2, 2)), (1, (2, 10)))]


def drawn(kind: Kind, model: ModelDir, plan: Plan) -> dict[str, Tensor]:
    return _example(kind.spec, model.transformer, plan, torch.Generator().manual_seed(7))


@pytest.mark.parametrize(("model", "kind", "backend"), CASES)
def test_within_the_bound_on_every_example_and_layer(opener: Opener, model: str, kind: str, backend: str) -> None:
    opened = opener.open(model, kind, backend)
    drawn = [opened.kind.spec.fit(CPU, example) for example in edge_examples(opened.kind, opener.models[model])]
    edges = replace(opened.kind, examples=lambda: drawn)
    assert len(opened.engines) == opened.kind.layers
    for engine, weights in zip(opened.engines, opened.weights, strict=True):
        for examples in (opened.kind, edges):
            verdict = verify(examples, engine, weights)
            assert 0 <= verdict.error <= verdict.bound < LARGEST[opened.kind.precision]


@pytest.mark.parametrize(("model", "kind", "backend"), CASES)
def test_outputs_are_the_specs_and_inputs_are_left_alone(opener: Opener, model: str, kind: str, backend: str) -> None:
    opened = opener.open(model, kind, backend)
    for example in opened.kind.examples():
        sizes = opened.kind.spec.check(example)
        given = {name: tensor.clone() for name, tensor in example.items()}
        outputs = opened.engines[0].run(**given)
        assert all(torch.equal(given[name], example[name]) for name in example), "an input was written to"
        assert len(outputs) == len(opened.kind.spec.outputs)
        for spec, output in zip(opened.kind.spec.outputs, outputs, strict=True):
            dims = [
                sizes.get(dim, size) if isinstance(dim, str) else dim
                for dim, size in zip(spec.dims, output.shape, strict=True)
            ]
            assert list(output.shape) == dims
            assert output.dtype == DTYPES[spec.dtype]
            assert output.isfinite().all()


@pytest.mark.parametrize(("kind", "backend"), [*KINDS, *PACKAGES])
def test_the_same_bytes_from_a_second_opening(opener: Opener, kind: str, backend: str) -> None:
    opened = opener.open("tiny", kind, backend)
    again = opened.backend.open(opened.kind, opened.artefact, opened.weights)
    examples = opened.kind.examples()
    first = [engine.run(**example) for example in examples for engine in opened.engines]
    # In another order: nothing may be left over from the call before.
    second = [[engine.run(**example) for engine in again] for example in reversed(examples)][::-1]
    for one, two in zip(first, [outputs for row in second for outputs in row], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def streams(plan: Plan, branch: int | None) -> dict[str, Tensor]:
    """Rows of a branch, or of the padding, in each stream: masks by the dynamic size's name."""
    joint = torch.zeros(plan.image_tokens + plan.text_tokens, dtype=torch.bool)
    segment = 3 if branch is None else branch
    joint[plan.offsets[segment] : plan.offsets[segment + 1]] = True
    stream = joint[plan.stream_index]
    per_target = plan.target_index.shape[0] // len(plan.branches)
    target = torch.arange(plan.target_index.shape[0]) // per_target == segment
    return {"J": joint, "I": stream[: plan.image_tokens], "T": stream[plan.image_tokens :], "V": target}


@pytest.mark.parametrize("source", [None, 0, 1, 2], ids=["padding", "first", "second", "third"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["text", "embed", "dual_block", "single_block", "head"])
def test_no_row_sees_padding_or_another_branch(opener: Opener, kind: str, backend: str, source: int | None) -> None:
    opened, plan = opener.open("tiny", kind, backend), example_plans()[0]
    example = drawn(opened.kind, opener.models["tiny"], plan)
    masks = streams(plan, source)
    poisoned, reached = {}, set()
    for spec in opened.kind.spec.inputs:
        tensor, rows = example[spec.name], masks.get(str(spec.dims[0]))
        poisoned[spec.name] = tensor.clone()
        if rows is not None and spec.dtype == "float32" and spec.name not in ("cos", "sin"):
            poisoned[spec.name][rows] = float("nan")
            reached.add(spec.dims[0] if spec.name != "joint" else opened.kind.spec.outputs[0].dims[0])
    assert reached
    before, after = opened.engines[0].run(**example), opened.engines[0].run(**poisoned)
    for spec, one, two in zip(opened.kind.spec.outputs, before, after, strict=True):
        if (rows := masks.get(str(spec.dims[0]))) is not None:
            assert torch.equal(one[~rows], two[~rows]), spec.name
            assert bool(two[rows].isnan().all()) == (spec.dims[0] in reached), "not the rows that were meant"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["embed", "dual_block", "single_block"])
def test_rows_of_a_branch_see_each_other(opener: Opener, kind: str, backend: str) -> None:
    opened, plan = opener.open("tiny", kind, backend), example_plans()[0]
    example = drawn(opened.kind, opener.models["tiny"], plan)
    name = {"embed": "tokens", "dual_block": "text", "single_block": "joint"}[kind]
    row = int(plan.offsets[1]) if kind == "single_block" else int(plan.text_offsets[1])
    changed = example | {name: example[name].clone()}
    changed[name][row] += torch.randn(changed[name].shape[1])
    before, after = opened.engines[0].run(**example)[-1], opened.engines[0].run(**changed)[-1]
    moved = (before != after).any(-1)
    offsets = plan.offsets if kind == "single_block" else plan.text_offsets
    assert moved.nonzero().flatten().tolist() == list(range(int(offsets[1]), int(offsets[2])))


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_are_taken_as_they_are_and_not_copied(opener: Opener, backend: str) -> None:
    opened = opener.open("tiny", "head", backend)
    weights = {name: tensor.clone() for name, tensor in opened.weights[0].items()}
    (engine,) = opened.backend.open(opened.kind, opened.artefact, [weights])
    example = opened.kind.examples()[0]
    (before,) = engine.run(**example)
    before = before.clone()
    weights["proj_out.bias"] += 1
    (after,) = engine.run(**example)
    assert torch.allclose(after, before + 1, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_that_do_not_fit_are_refused(opener: Opener, backend: str) -> None:
    opened = opener.open("tiny", "head", backend)
    weights = dict(opened.weights[0])
    fewer = {name: tensor for name, tensor in weights.items() if name != "proj_out.bias"}
    for bad in (fewer, weights | {"proj_in.bias": torch.zeros(3)}):
        with pytest.raises(VinoError, match=r"(?s)head.*proj_"):
            opened.backend.open(opened.kind, opened.artefact, [bad])
    with pytest.raises(VinoError, match="head"):
        open_and_run(opened, weights | {"proj_out.bias": torch.zeros(3)})


def open_and_run(opened: Opened, weights: Mapping[str, Tensor]) -> None:
    (engine,) = opened.backend.open(opened.kind, opened.artefact, [weights])
    engine.run(**opened.kind.examples()[0])


def test_artefacts_that_do_not_fit_are_refused(opener: Opener, tmp_path: Path) -> None:
    opened = opener.open("tiny", "head", "onnxruntime")
    broken = tmp_path / "engine.onnx"
    broken.write_bytes(b"no engine at all")
    other = opener.open("tiny", "patch", "onnxruntime").artefact
    for artefact, message in (
        (None, "needs a built engine"),
        (broken, "ONNX Runtime cannot open"),
        (other, "no weights named"),
    ):
        with pytest.raises(EngineError, match=f"head.*{message}|{message}.*head"):
            opened.backend.open(opened.kind, artefact, opened.weights)
