"""Measured memory of a recipe's engines: taken once after a build and kept in the store beside them.

`measure` runs `python -m vino_rt.footprint_measured`, so that nothing of the build is counted: a fresh process loads
the libraries, then opens model and engines and rehearses every bucket, or every usual size where there are no buckets.
The result is kept in

    <store>/memory/<hash>.json      model, recipe, device, bytes for each shape

where the hash covers the model's config, the recipe, the code and the version of torch.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Any

import torch

from vino_rt import __version__
from vino_rt.backends.recipe import Recipe, load_recipe, make_backend
from vino_rt.backends.store import Store
from vino_rt.bucket import Bucket, Shape
from vino_rt.engines import kinds_of, source_digest
from vino_rt.errors import EngineError, OutputError
from vino_rt.memory import Gauge
from vino_rt.model_dir import ModelDir
from vino_rt.weight_writer import write_file

FOLDER = "memory"
LIMIT_SECONDS = 120.0
"""Time limit of a measurement; shapes not reached by then keep their predicted values."""
Measured = Mapping[Shape, int]
"""Peak bytes of the process, Python and libraries excluded, up to and including each bucket or size."""


def measure(model: ModelDir, recipe: str, store: Store, shapes: Sequence[Shape]) -> Measured:
    """Measure the peak memory at each shape, in the given order.

    Peaks are cumulative, so give the smallest shape first. recipe: name or file. Stops after LIMIT_SECONDS and returns
    what was measured by then. Raises EngineError when the engines do not run.
    """
    sizes = ["x".join(map(str, _numbers(shape))) for shape in shapes]
    command = [sys.executable, "-m", "vino_rt.footprint_measured", str(model.path), recipe, str(store.path), *sizes]
    try:
        done = subprocess.run(command, capture_output=True, timeout=LIMIT_SECONDS, check=False)
        said = done.stdout
        if done.returncode:
            told = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
            raise EngineError(
                f"the engines are built, but running them to measure their memory failed with code {done.returncode}: "
                f"{told}; leave it out with --no-measure"
            )
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""
    whole = said[: said.rfind(b"\n") + 1].decode()
    return dict(zip(shapes, map(int, whole.split()), strict=False))


def keep(model: ModelDir, recipe: Recipe, store: Store, found: Measured) -> None:
    """Write measurements into the store; OutputError when it cannot be written."""
    path = _path(model, recipe, store)
    sizes = [{"shape": _numbers(shape), "bytes": size} for shape, size in found.items()]
    device = torch.cuda.get_device_name(recipe.torch_device) if recipe.device == "cuda" else "cpu"
    text = json.dumps({"model": model.settings.name, "recipe": recipe.name, "device": device, "sizes": sizes}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent} cannot be made: {error}; leave it out with --no-measure") from error
    write_file(path, [text.encode()])


def kept(model: ModelDir, recipe: Recipe, store: Store) -> Measured:
    """Measurements that `keep` wrote; empty when there are none. Raises EngineError for a damaged file."""
    path = _path(model, recipe, store)
    if not path.is_file():
        return {}
    try:
        sizes = json.loads(path.read_text(encoding="utf-8"))["sizes"]
        return {_shape(size["shape"]): int(size["bytes"]) for size in sizes}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"{path} cannot be read ({error}); delete it and build again") from error


def _path(model: ModelDir, recipe: Recipe, store: Store) -> Path:
    fields = {name: value for name, value in asdict(recipe).items() if name != "file"}
    made_of = [model.config_hash, fields, str(torch.__version__), __version__, source_digest()]
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    return store.path / FOLDER / f"{digest}.json"


def _numbers(shape: Shape) -> tuple[int, ...]:
    """The three numbers of a clip, or the fields of a bucket in order."""
    return astuple(shape) if isinstance(shape, Bucket) else shape


def _shape(numbers: Sequence[int]) -> Shape:
    """The inverse of `_numbers`."""
    if len(numbers) == len(fields(Bucket)):
        return Bucket(**dict(zip((field.name for field in fields(Bucket)), map(int, numbers), strict=True)))
    frames, height, width = map(int, numbers)
    return frames, height, width


def run(path: Path, recipe: str, store: Path, shapes: Sequence[Shape]) -> Iterator[int]:
    """Open model and engines in this process, rehearse each shape, and yield the peak bytes so far."""
    from vino_rt.runtime import Runtime

    chosen = load_recipe(recipe)
    _load_libraries(ModelDir.open(path), chosen)
    gauge = Gauge(chosen.torch_device)
    with Runtime.open(path, recipe=recipe, store=store) as runtime:
        for shape in shapes:
            runtime.rehearse(shape)
            yield gauge.peak()


def _load_libraries(model: ModelDir, recipe: Recipe) -> None:
    """Import now what would be imported later, so that it is not counted."""
    for name, kind in kinds_of(model).items():
        make_backend(recipe.backend_of(name), None, recipe.torch_device).version()
        with torch.device("meta"):
            kind.build()


def main(arguments: Sequence[str] | None = None) -> int:
    """The measured process: prints one number per line for each shape, as soon as it is known."""
    parser = argparse.ArgumentParser(prog="python -m vino_rt.footprint_measured")
    parser.add_argument("model", type=Path)
    parser.add_argument("recipe")
    parser.add_argument("store", type=Path)
    parser.add_argument("shapes", nargs="+", metavar="FRAMESxHEIGHTxWIDTH[xREFERENCESxTEXTxBRANCHES]")
    given: Any = parser.parse_args(arguments)
    shapes = [_shape(shape.split("x")) for shape in given.shapes]
    for size in run(given.model, given.recipe, given.store, shapes):
        sys.stdout.write(f"{size}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
