"""The whole path of a build over signature-checked stand-ins: what is set, handed over, written, refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tensorrt.small import AREA, BUCKET, TARGET, UNIT, first_weights, picture_kind, small_kinds
from tests.tensorrt.standin import Misuse, Object, StandIn
from vino_export.tensorrt import write
from vino_export.tensorrt.native import PACKED_SINCE, attentions
from vino_export.tensorrt.progress import BuildStep
from vino_export.tensorrt.write import PlanOptions, write_plan
from vino_rt.backends.base import Kind
from vino_rt.backends.tensorrt.description import NETWORK, digest, read_description
from vino_rt.backends.tensorrt.library import version_of
from vino_rt.bucket import Bucket
from vino_rt.errors import Cancelled, EngineError

INSPECTOR = ("EngineInspector", "get_engine_information")


def options(**changes: Any) -> PlanOptions:
    return PlanOptions(**{"buckets": (BUCKET,), "unit": UNIT, "area": AREA, "target": TARGET, **changes})


def build(kind: Kind, path: Path, **changes: Any) -> None:
    write_plan(kind, path / "engine.plan", first_weights(kind), options(**changes))


@pytest.fixture
def head() -> Kind:
    return small_kinds("bfloat16")["head"]


def test_a_kind_whose_weights_are_inputs(library: StandIn, head: Kind, tmp_path: Path) -> None:
    library.answers[INSPECTOR] = '{"Layers": ["one"]}'
    build(head, tmp_path)
    assert (tmp_path / "engine.plan").read_bytes() == b"plan"
    assert not (tmp_path / NETWORK).exists()
    said = read_description(tmp_path / "engine.plan")
    assert (said.kind, said.weights, said.target) == ("head", None, TARGET)
    assert said.layers == {"Layers": ["one"]}
    assert said.profiles[0]["V"] == (36, 36, 36)
    flags = library.named("create_network")[0]["flags"]
    assert flags & 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    calls, count = library.named("set_shape"), len(said.inputs)
    assert len(calls) == 2 * count, "a profile of the bucket and one of the examples"
    shapes = {call["input"]: (call["min"], call["opt"], call["max"]) for call in calls[:count]}
    assert list(shapes) == list(said.inputs)
    assert shapes["target_index"] == ((36,), (36,), (36,))
    assert [call["value"] for call in library.named("max_aux_streams")] == [0]
    assert [call["flag"] for call in library.named("clear_flag")] == [library.BuilderFlag.TF32]
    assert not library.named("set_flag")
    assert not library.named("extra_memory_target")
    assert not library.named("load_initializer")


def test_constants_are_handed_over_by_address_and_stripped(library: StandIn, tmp_path: Path) -> None:
    kind = picture_kind()
    weights = first_weights(kind)
    write_plan(kind, tmp_path / "engine.plan", weights, options())
    handed = {call["name"]: (call["data"], call["size"]) for call in library.named("load_initializer")}
    assert handed == {name: (tensor.data_ptr(), tensor.nbytes) for name, tensor in weights.items()}
    order = [
        name for _, name, _ in library.calls if name in ("load_model_proto", "load_initializer", "parse_model_proto")
    ]
    assert order == ["load_model_proto", "load_initializer", "load_initializer", "parse_model_proto"]
    flags = [call["flag"] for call in library.named("set_flag")]
    assert flags == [library.BuilderFlag.STRIP_PLAN, library.BuilderFlag.REFIT_IDENTICAL]
    lean = library.named("extra_memory_target")
    assert [call["value"] for call in lean] == [0.0, 0.0], "no profile may keep weights in a layout of its own"
    assert read_description(tmp_path / "engine.plan").weights == digest(weights)
    assert (tmp_path / NETWORK).stat().st_size < 2000


def test_progress_is_told_and_a_build_can_be_cancelled(library: StandIn, head: Kind, tmp_path: Path) -> None:
    steps: list[BuildStep] = []

    def stop(step: BuildStep) -> None:
        steps.append(step)
        if len(steps) > 2:
            raise Cancelled("enough")

    def run(_: Object, config: Object, **others: Any) -> Any:
        monitor = config.progress_monitor
        monitor.phase_start("Timing", None, 3)
        assert monitor.step_complete("Timing", 0)
        assert not monitor.step_complete("Timing", 1)
        monitor.phase_finish("Timing")

    library.answers["Builder", "build_serialized_network"] = run
    with pytest.raises(Cancelled, match="enough"):
        build(head, tmp_path, on_step=stop)
    assert steps == [BuildStep("Timing", done, 3) for done in range(3)]
    assert not list(tmp_path.iterdir())


def test_ctrl_c_in_a_callback_passes_tensorrt_as_false(library: StandIn, head: Kind, tmp_path: Path) -> None:
    def run(_: Object, config: Object, **others: Any) -> Any:
        config.progress_monitor.phase_start("Timing", None, 3)
        assert not config.progress_monitor.step_complete("Timing", 0)

    def interrupt(_: BuildStep) -> None:
        raise KeyboardInterrupt

    library.answers["Builder", "build_serialized_network"] = run
    with pytest.raises(KeyboardInterrupt):
        build(head, tmp_path, on_step=interrupt)


def test_timings_are_kept_for_this_gpu_and_version(library: StandIn, head: Kind, tmp_path: Path) -> None:
    cache = tmp_path / "timings"
    library.answers["IHostMemory", "__bytes__"] = b"timed"
    build(head, tmp_path, timing_cache=cache)
    (file,) = cache.iterdir()
    assert file.name == f"timing-{library.__version__}-sm_90-a-GPU.cache"
    assert file.read_bytes() == b"timed"
    build(head, tmp_path, timing_cache=cache)
    given = [call["serialized_timing_cache"] for call in library.named("create_timing_cache")]
    assert given == [b"", b"timed"]
    assert [call["ignore_mismatch"] for call in library.named("set_timing_cache")] == [False, False]


def test_a_cache_of_another_gpu_is_left_alone(library: StandIn, head: Kind, tmp_path: Path) -> None:
    answers = iter([False, True])
    file = tmp_path / "timings" / f"timing-{library.__version__}-sm_90-a-GPU.cache"
    file.parent.mkdir()
    file.write_bytes(b"of another")
    library.answers["IBuilderConfig", "set_timing_cache"] = lambda *_, **__: next(answers)
    build(head, tmp_path, timing_cache=file.parent)
    assert [call["serialized_timing_cache"] for call in library.named("create_timing_cache")] == [b"of another", b""]


@pytest.mark.parametrize(
    ("member", "answer", "told"),
    [
        (("OnnxParser", "load_model_proto"), False, "parser cannot read the network: it did not say why"),
        (("IBuilderConfig", "add_optimization_profile"), -1, "does not take the profile"),
        (("Builder", "build_serialized_network"), None, "cannot build variant 'native'"),
        (("Runtime", "deserialize_cuda_engine"), None, "cannot read the plan that it built"),
    ],
)
def test_what_is_refused(
    library: StandIn, head: Kind, tmp_path: Path, member: tuple[str, str], answer: Any, told: str
) -> None:
    library.answers[member] = answer
    with pytest.raises(EngineError, match=told):
        build(head, tmp_path)


def test_the_parser_names_the_node(library: StandIn, head: Kind, tmp_path: Path) -> None:
    library.answers |= {
        ("OnnxParser", "parse_model_proto"): False,
        ("OnnxParser", "num_errors"): 1,
        ("ParserError", "desc"): "unknown type",
        ("ParserError", "node_name"): "node_linear",
        ("ParserError", "node_operator"): "Gemm",
    }
    with pytest.raises(EngineError, match="parser refused the network: Gemm node_linear: unknown type"):
        build(head, tmp_path)


def test_plugins_are_declared_once_for_one_architecture(
    library: StandIn, head: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(write, "declare_plugins", asked.append)
    monkeypatch.setattr(write, "compile_plugins", lambda model, arch: asked.append(arch))
    build(head, tmp_path, variant="plugin")
    assert asked == [90, 90]
    (model,) = [call["model"] for call in library.named("load_model_proto")]
    assert b"plugin_namespace" in model
    flags = library.named("create_network")[0]["flags"]
    assert flags & 1 << int(library.NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS)
    assert json.loads((tmp_path / "engine.json").read_text())["variant"] == "plugin"


def test_the_stand_in_refuses_what_the_bindings_would(library: StandIn) -> None:
    builder = library.Builder(library.Logger())
    config = builder.create_builder_config()
    for wrong in (
        lambda: builder.create_network("flags"),
        lambda: builder.build_engine(config),
        lambda: config.set_flag(3),
        lambda: setattr(config, "max_aux_streams", "none"),
        lambda: setattr(builder.create_optimization_profile(), "shape", 1),
        lambda: config.create_timing_cache(b"", ignore=True),
        lambda: library.Builder(),
    ):
        with pytest.raises((Misuse, TypeError)):
            wrong()


def test_a_timing_cache_is_merged_and_kept_of_a_build_that_failed(library: StandIn, head: Kind, tmp_path: Path) -> None:
    cache = tmp_path / "timings"
    file = cache / f"timing-{library.__version__}-sm_90-a-GPU.cache"

    def beside(_: Object, **others: Any) -> Any:
        cache.mkdir()
        file.write_bytes(b"of a build beside this one")

    library.answers |= {("IHostMemory", "__bytes__"): b"timed", ("Builder", "build_serialized_network"): beside}
    with pytest.raises(EngineError, match="cannot build variant 'native'"):
        build(head, tmp_path, timing_cache=cache)
    given = [call["serialized_timing_cache"] for call in library.named("create_timing_cache")]
    assert given == [b"", b"of a build beside this one"]
    assert [call["ignore_mismatch"] for call in library.named("combine")] == [False]
    assert [entry.name for entry in cache.iterdir()] == [file.name], "nothing half written is left"
    assert file.read_bytes() == b"timed"


def test_timings_that_cannot_be_written_do_not_cost_the_plan(
    library: StandIn, head: Kind, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "timings").write_text("a file where a directory should be")
    build(head, tmp_path, timing_cache=tmp_path / "timings")
    assert (tmp_path / "engine.plan").read_bytes() == b"plan"
    assert "timings are not kept" in caplog.text


@pytest.mark.parametrize("method", ["phase_start", "step_complete"])
@pytest.mark.parametrize("error", [SystemExit, OSError, KeyboardInterrupt])
def test_whatever_a_callback_raises_ends_the_build(
    library: StandIn, head: Kind, tmp_path: Path, method: str, error: type[BaseException]
) -> None:
    def run(_: Object, config: Object, **others: Any) -> Any:
        monitor = config.progress_monitor
        monitor.phase_start("Timing", None, 3)
        assert monitor.step_complete("Timing", 0) is False
        return None

    def fail(step: BuildStep) -> None:
        if step.done == (method == "step_complete"):
            raise error

    library.answers["Builder", "build_serialized_network"] = run
    with pytest.raises(error):
        build(head, tmp_path, on_step=fail)


def test_a_profile_that_the_bindings_refuse(library: StandIn, head: Kind, tmp_path: Path) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("Optimal dim is not between min and max")

    library.answers["IOptimizationProfile", "set_shape"] = refuse
    with pytest.raises(EngineError, match=r"does not take the profile .* for input 'joint': Optimal dim"):
        build(head, tmp_path)


LONG = Bucket(frames=85, height=480, width=848, references=36646, text_tokens=4608)


def test_a_mask_that_is_too_large_is_refused_before_any_work(
    library: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "network", lambda *_: pytest.fail("the kind was exported"))
    kind = small_kinds("bfloat16")["single_block"]
    masked = version_of(library) < PACKED_SINCE
    told = r"single_block: .* 152468 x 152468 elements.*tensorrt-plugin" if masked else "the kind was exported"
    with pytest.raises((EngineError, pytest.fail.Exception), match=told):
        write_plan(kind, tmp_path / "engine.plan", {}, options(buckets=(LONG,)))


def test_a_parser_is_offered_every_form_of_attention_it_may_know(
    library: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, forms = small_kinds("bfloat16")["embed"], attentions(version_of(library))
    refused = iter([False] * (len(forms) - 1) + [True])
    library.answers["OnnxParser", "parse_model_proto"] = lambda *_: next(refused)
    build(kind, tmp_path)
    assert len(library.named("load_model_proto")) == len(library.named("create_network")) == len(forms)
    library.answers["OnnxParser", "parse_model_proto"] = False
    with pytest.raises(EngineError, match="embed: TensorRT's parser refused the network"):
        build(kind, tmp_path)
