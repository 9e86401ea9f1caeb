"""Building a directory of cubins: with a stand-in for the compiler what is kept, refused and resumed; then for real."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels.ahead_driver import GPU, placed
from tests.kernels.ahead_folders import cubin_of, stand_in
from tests.policy.source import ROOT
from vino_kernels.ahead import build, command, compiler
from vino_kernels.ahead.build import PROGRESS, compile_variants
from vino_kernels.ahead.declare import variants
from vino_kernels.ahead.loader import Library
from vino_kernels.ahead.manifest import NAME, Entry, Made, digest, read_json
from vino_kernels.ahead.resources import SHARED, Resources, check
from vino_kernels.ahead.shapes import MINI, PRESETS
from vino_kernels.ahead.variant import Variant

ALL = variants([MINI], 90)
FINE = Resources(registers=32, spilled=0, static_shared=0, dynamic_shared=1024)


class Compiler:
    """Stands in for `compiler.compile_variant`: counts, and gives words for cubins; `used` by variant's name."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.used: dict[str, Resources] = {}
        self.stop_after: int | None = None

    def __call__(self, variant: Variant) -> tuple[bytes, Made]:
        if len(self.made) == self.stop_after:
            raise KeyboardInterrupt
        self.made.append(variant.name)
        used = self.used.get(variant.name, FINE)
        return cubin_of(variant), Made(variant.name, variant.warps, 3, 1, 0, 0, used)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    made = Compiler()
    monkeypatch.setattr(compiler, "compile_variant", made)
    monkeypatch.setattr(compiler, "versions", lambda arch: ("3.0", f"ptxas for {arch}"))
    return made


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_directory_is_written_and_kept(tmp_path: Path, fake: Compiler) -> None:
    seen: list[tuple[str, bool]] = []

    def report(entry: Entry, kept: bool) -> None:
        seen.append((entry.variant.name, kept))

    manifest = compile_variants(ALL, tmp_path, report)
    assert files(tmp_path) == {NAME, *(f"sm_90/{variant.name}.cubin" for variant in ALL)}
    assert read_json(tmp_path / NAME) == manifest
    assert [entry.variant for entry in manifest.entries] == list(ALL)
    assert (manifest.triton, manifest.ptxas) == ("3.0", {"sm_90": "ptxas for 90"})
    assert manifest.sources["norm_modulate"] == digest("norm_modulate") != digest("gated_residual")
    content = (tmp_path / NAME).read_bytes()
    assert compile_variants(ALL, tmp_path, report) == manifest
    assert (tmp_path / NAME).read_bytes() == content
    assert seen == [(variant.name, kept) for kept in (False, True) for variant in ALL]
    assert len(fake.made) == len(ALL)


def test_a_build_goes_on_where_it_was_stopped(tmp_path: Path, fake: Compiler) -> None:
    fake.stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        compile_variants(ALL, tmp_path)
    assert NAME not in files(tmp_path), "half a build must not look like a whole one"
    fake.stop_after = None
    compile_variants(ALL, tmp_path)
    assert fake.made == [variant.name for variant in ALL]
    assert PROGRESS not in files(tmp_path)


def test_a_stopped_build_does_not_forget_the_one_before(tmp_path: Path, fake: Compiler) -> None:
    both = (*ALL, *variants([MINI], 80))
    compile_variants(both, tmp_path)
    (tmp_path / "sm_90" / f"{ALL[0].name}.cubin").unlink()
    fake.made.clear()
    fake.stop_after = 0
    with pytest.raises(KeyboardInterrupt):
        compile_variants(both, tmp_path)
    fake.stop_after = None
    compile_variants(both, tmp_path)
    assert fake.made == [ALL[0].name]


@pytest.mark.parametrize("change", ["cubin", "triton", "ptxas", "sources", "variant", "manifest"])
def test_what_makes_a_cubin_stale(tmp_path: Path, fake: Compiler, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    wanted = [ALL[0], ALL[-1]]
    compile_variants(wanted, tmp_path)
    fake.made.clear()
    if change == "cubin":
        (tmp_path / "sm_90" / f"{ALL[0].name}.cubin").write_bytes(b"another")
    elif change == "variant":
        wanted[0] = dataclasses.replace(ALL[0], warps=16)
    elif change == "manifest":
        (tmp_path / NAME).write_text("{")
    elif change == "sources":
        monkeypatch.setattr(
            build, "digest", lambda operation: "new" if operation == ALL[0].operation else digest(operation)
        )
    else:
        triton = "3.1" if change == "triton" else "3.0"
        monkeypatch.setattr(compiler, "versions", lambda arch: (triton, "new" if change == "ptxas" else "ptxas for 90"))
    compile_variants(wanted, tmp_path)
    everything = change in ("triton", "ptxas", "manifest")
    assert fake.made == [variant.name for variant in (wanted if everything else wanted[:1])]


def test_cubins_nobody_asks_for_any_more_go(tmp_path: Path, fake: Compiler) -> None:
    compile_variants(ALL, tmp_path)
    own = tmp_path / "sm_90" / "somebody's.cubin"
    own.write_bytes(b"not ours to remove")
    compile_variants(ALL[:1], tmp_path)
    assert files(tmp_path) == {NAME, f"sm_90/{ALL[0].name}.cubin", "sm_90/somebody's.cubin"}


@pytest.mark.parametrize(
    ("used", "words"),
    [
        (dataclasses.replace(FINE, spilled=8), "8 bytes of registers spilled to memory, the limit is 0"),
        (dataclasses.replace(FINE, dynamic_shared=232448, static_shared=1), "232449 bytes of shared memory, the limit"),
        (dataclasses.replace(FINE, registers=256), "256 registers, the limit is 255"),
    ],
    ids=["spills", "shared", "registers"],
)  # fmt: skip
def test_limits(tmp_path: Path, fake: Compiler, used: Resources, words: str) -> None:
    fake.used[ALL[1].name] = used
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"^{ALL[1].name} on sm_90: {words}"):
            compile_variants(ALL, tmp_path)
    assert NAME not in files(tmp_path)
    assert fake.made == [ALL[0].name, ALL[1].name], "what is over a limit is not compiled again to say so again"


def test_shared_memory_by_architecture() -> None:
    used = dataclasses.replace(FINE, dynamic_shared=100 * 1024)
    check("fits", 90, used)
    with pytest.raises(ValueError, match="too large on sm_86: 102400 bytes"):
        check("too large", 86, used)


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, fake: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        compile_variants(ALL, tmp_path)
    assert files(tmp_path) == set()


def test_nothing_to_compile(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to compile"):
        compile_variants([], tmp_path)


def test_kernels_of_the_interpreter_are_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("the kernels of this process are compiled")
    with pytest.raises(RuntimeError, match="made for Triton's interpreter in this process"):
        compiler.compile_variant(ALL[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--arch", "sm_70"], "sm_70: legal are sm_80, sm_86"),
        (["--preset", "huge"], "invalid choice"),
        (["--dtype", "int8"], "invalid choice"),
        ([], "--out"),
    ],
)
def test_usage(capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main([*arguments, *(["--out", str(tmp_path)] if arguments else [])])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path, fake: Compiler) -> None:
    config = str(ROOT / "vino_rt/mini/transformer/config.json")
    asked = ["--out", str(tmp_path), "--arch", "sm_80,sm_90"]
    assert command.main([*asked, "--config", config, "--dtype", "float32"]) == 0
    assert capsys.readouterr().out.endswith(f"22 kernels in {tmp_path / NAME}\n")
    assert command.main([*asked, "--heads", "3", "--channels", "64", "--axes", "16,24,24", "--dtype", "float32"]) == 0
    assert capsys.readouterr().out.count(", kept\n") == 22
    assert command.main([*asked, "--heads", "3"]) == 1
    assert "--heads, --channels and --axes belong together" in capsys.readouterr().err
    fake.used[ALL[0].name] = dataclasses.replace(FINE, spilled=4)
    assert command.main(asked) == 1
    assert f"vino_kernels.ahead: {ALL[0].name} on sm_80: 4 bytes" in capsys.readouterr().err
    fake.used.clear()


def test_all_presets_when_nothing_is_named(tmp_path: Path, fake: Compiler) -> None:
    assert command.main(["--out", str(tmp_path), "--arch", "sm_90"]) == 0
    models = [model for name in PRESETS for model in PRESETS[name]]
    assert sorted(fake.made) == sorted(variant.name for variant in variants(models, 90))


def compiled(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT / "kernels")
    line = [sys.executable, "-m", "vino_kernels.ahead", "--out", str(out), *arguments]
    return subprocess.run(line, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)


def verified(out: Path) -> Any:
    """The manifest of a real build: every file there, no path of this machine in it, every limit kept, all loadable."""
    manifest = read_json(out / NAME)
    for entry in manifest.entries:
        cubin = (out / entry.file).read_bytes()
        assert cubin[:4] == b"\x7fELF"
        assert entry.made.symbol.encode() in cubin
        assert str(ROOT).encode() not in cubin
        assert b".py" not in cubin
        check(entry.variant.name, entry.variant.arch, entry.made.used)
    for arch in manifest.archs:
        here = [entry for entry in manifest.entries if entry.variant.arch == arch]
        driver = stand_in([], arch)
        driver.counts = {entry.made.symbol: len(entry.variant.arguments) + 2 for entry in here}
        with Library.open(out, GPU, driver) as library:
            assert set(library.names) == {entry.variant.name for entry in here}
            x = placed(torch.zeros(5, 192, dtype=torch.bfloat16))
            library.launch("gated_residual-bf16-192", stream=0, x_ptr=x, gate_ptr=x[0], y_ptr=x, out_ptr=x)
    return manifest


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_architecture_for_real(tmp_path: Path) -> None:
    """The bundled model in bfloat16 for sm_90, twice: the second time nothing is compiled."""
    numbers = ("--heads", "3", "--channels", "64", "--axes", "16,24,24", "--arch", "sm_90")
    done = compiled(tmp_path, *numbers)
    assert done.returncode == 0, done.stderr[-2000:]
    manifest = verified(tmp_path)
    assert [entry.variant for entry in manifest.entries] == list(ALL)
    attention = next(entry for entry in manifest.entries if entry.variant.operation == "boundary_attention")
    assert attention.made.used.dynamic_shared > 48 * 1024, "one kernel needs the attribute"
    again = compiled(tmp_path, *numbers)
    assert again.stdout.count(", kept\n") == len(ALL), again.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_architecture_for_real(tmp_path: Path) -> None:
    done = compiled(tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert verified(tmp_path).archs == tuple(SHARED)
