"""Build a directory of cubins and its manifest; an interrupted build resumes.

`manifest.json` exists only when every cubin that it names is there and within the limits. Until then, finished cubins
are recorded in `progress.json`, which the loader does not read.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from vino_kernels.ahead.manifest import NAME, Entry, Manifest, digest, read_json, write_bytes, write_json
from vino_kernels.ahead.resources import check
from vino_kernels.ahead.variant import Variant

PROGRESS = "progress.json"
Report = Callable[[Entry, bool], None]


def compile_variants(variants: Iterable[Variant], out: Path, report: Report = lambda entry, kept: None) -> Manifest:
    """Compile missing cubins, check every kernel's resources, and write the manifest of exactly these variants.

    report: called with each finished entry, and whether it was there before. Cubins of the directory's previous
    manifest that are no longer needed are removed. Raises ValueError for a kernel that exceeds a limit,
    ModuleNotFoundError without Triton, and what `compiler` raises.
    """
    wanted = tuple(variants)
    empty = _empty(wanted)
    earlier = [manifest for name in (NAME, PROGRESS) for manifest in _read(out / name)]
    before = {entry.file: entry for manifest in earlier for entry in manifest.entries if _same(manifest, empty, entry)}
    write_json(out / PROGRESS, replace(empty, entries=tuple(before.values())))
    (out / NAME).unlink(missing_ok=True)
    done: list[Entry] = []
    with tempfile.TemporaryDirectory() as cache:
        for variant in wanted:
            old = before.pop(f"sm_{variant.arch}/{variant.name}.cubin", None)
            kept = old is not None and old.variant == variant and _intact(out, old)
            entry = old if old is not None and kept else _compiled(variant, out, Path(cache))
            done.append(entry)
            write_json(out / PROGRESS, replace(empty, entries=(*done, *before.values())))
            check(variant.name, variant.arch, entry.made.used)
            report(entry, kept)
    for file in {entry.file for manifest in earlier for entry in manifest.entries} - {entry.file for entry in done}:
        (out / file).unlink(missing_ok=True)
    manifest = replace(empty, entries=tuple(done))
    write_json(out / NAME, manifest)
    (out / PROGRESS).unlink()
    return manifest


def _empty(wanted: Iterable[Variant]) -> Manifest:
    """A manifest without entries, with the versions and sources of this build."""
    from vino_kernels.ahead import compiler

    found = {variant.arch: compiler.versions(variant.arch) for variant in wanted}
    if not found:
        raise ValueError("nothing to compile: name an architecture and a model")
    triton = next(iter(found.values()))[0]
    ptxas = {f"sm_{arch}": assembler for arch, (_, assembler) in sorted(found.items())}
    sources = {operation: digest(operation) for operation in sorted({variant.operation for variant in wanted})}
    return Manifest(triton, ptxas, sources, ())


def _read(path: Path) -> list[Manifest]:
    """An earlier manifest, in a list that is empty if there is none or it is unreadable; then all is compiled again."""
    try:
        return [read_json(path)]
    except (FileNotFoundError, ValueError):
        return []


def _same(before: Manifest, now: Manifest, entry: Entry) -> bool:
    """Whether an earlier entry was made with the compiler versions and sources of this build."""
    arch, operation = f"sm_{entry.variant.arch}", entry.variant.operation
    made = before.triton, before.ptxas.get(arch), before.sources.get(operation)
    return made == (now.triton, now.ptxas.get(arch), now.sources.get(operation))


def _intact(out: Path, entry: Entry) -> bool:
    path = out / entry.file
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256


def _compiled(variant: Variant, out: Path, cache: Path) -> Entry:
    from vino_kernels.ahead import compiler

    with compiler.fresh(cache):
        cubin, made = compiler.compile_variant(variant)
    entry = Entry(variant, hashlib.sha256(cubin).hexdigest(), made)
    write_bytes(out / entry.file, cubin)
    return entry
