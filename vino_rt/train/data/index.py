"""Folders and tars to an index of usable records, by headers alone, with a count of what was left out and why.

Files are measured in parallel and in bounded portions. It decodes no pixels (of a clip, its first frame).
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from vino_rt.errors import InputError
from vino_rt.train.data.assemble import Record, assemble, name_parts
from vino_rt.train.data.blob import read_small
from vino_rt.train.data.buckets import Sizing
from vino_rt.train.data.grouping import Group, group_names, is_hidden
from vino_rt.train.data.records import (
    CAPTION,
    LARGE,
    MAX_RECORD_BYTES,
    MISSING,
    TWICE,
    Draft,
    Unusable,
    parse_record,
    parse_text,
    safe_name,
)
from vino_rt.train.data.stores import FolderStore, Store, TarStore, read_tar

LISTING = "dataset.jsonl"
EXAMPLES = 3
"""Messages kept of each reason."""
_PORTION = 512
"""Records measured before more are listed."""
_WANTED = (
    f"{LISTING}, or pictures and videos with a .json or .txt of the same name, in folders or uncompressed .tar files"
)


@dataclass(frozen=True)
class Report:
    """What a scan kept and left out."""

    kept: int
    skipped: Mapping[str, int]
    """Reason to count."""
    examples: Mapping[str, tuple[str, ...]]
    """Reason to its first messages."""

    def lines(self) -> list[str]:
        """The report for a log, most frequent reason first."""
        order = sorted(self.skipped, key=lambda reason: (-self.skipped[reason], reason))
        return [f"skipped {self.skipped[reason]}, {reason}; first: {self.examples[reason][0]}" for reason in order]


@dataclass(frozen=True)
class Index:
    """The usable records of a data set, in an order that depends on names alone, and the report of the scan."""

    records: tuple[Record, ...]
    report: Report


@dataclass
class _Tally:
    """Collects the outcome of a scan."""

    records: list[Record] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, fault: Unusable, where: str = "") -> None:
        self.skipped[fault.reason] += 1
        kept = self.examples.setdefault(fault.reason, [])
        if len(kept) < EXAMPLES:
            text = f"{where}: {fault.detail}" if where else fault.detail
            # A file name need not be Unicode; a log has to be.
            kept.append(text.encode("utf-8", "backslashreplace").decode())

    def take(self, key: str, outcome: Record | Unusable) -> None:
        if isinstance(outcome, Record) and outcome.key in self.keys:
            outcome = Unusable(TWICE, f"the key {outcome.key!r} is that of an earlier record")
        if isinstance(outcome, Unusable):
            self.skip(outcome, key)
        else:
            self.keys.add(outcome.key)
            self.records.append(outcome)


@dataclass(frozen=True)
class _Job:
    """One record to measure: a line of a listing, or a group of files."""

    store: Store
    key: str
    group: Group
    line: bytes | Unusable | None = None


@dataclass(frozen=True)
class _Outcome:
    key: str
    result: Record | Unusable
    used: tuple[str, ...] = ()
    """Names of the media it refers to, usable or not."""


def open_dataset(paths: Sequence[Path], sizing: Sizing, *, max_bytes: int = 2**30, threads: int = 8) -> Index:
    """Scan folders and .tar files for records; the format stands in `vino_rt.train.data`.

    `max_bytes` bounds one media file. Records that cannot be used are counted by reason. Raises InputError for a path
    that is no folder and no uncompressed tar, and when nothing usable is left, with the first reasons.
    """
    tally = _Tally()
    with ThreadPoolExecutor(threads) as pool:
        for path in paths:
            measure = partial(_measure, sizing=sizing, max_bytes=max_bytes)
            if path.is_dir():
                _scan_folder(path, tally, pool, measure)
            elif path.suffix.lower() == ".tar" and path.is_file():
                _scan_tar(path, path.name, tally, pool, measure)
            else:
                kind = "is no folder and no uncompressed .tar" if path.exists() else "does not exist"
                raise InputError(f"{path}: {kind}; a data set is {_WANTED}")
    examples = {reason: tuple(texts) for reason, texts in tally.examples.items()}
    report = Report(len(tally.records), dict(tally.skipped), examples)
    if not tally.records:
        found = "; ".join(report.lines()) or "no file of these kinds is there"
        raise InputError(f"{', '.join(map(str, paths)) or 'no path'}: nothing to train on ({found}); needed: {_WANTED}")
    return Index(tuple(tally.records), report)


_Measure = Callable[[_Job], _Outcome]


def _scan_folder(root: Path, tally: _Tally, pool: ThreadPoolExecutor, measure: _Measure) -> None:
    store = FolderStore(root)
    if store.find(LISTING) is not None:
        _scan(_listed(root / LISTING, store), tally, pool, measure)
        return
    names = store.names()
    _scan_groups(store, names, tally, pool, measure)
    for name in names:
        if name.lower().endswith(".tar") and not is_hidden(name) and store.find(name) is not None:
            _scan_tar(root / name, name, tally, pool, measure)


def _scan_tar(path: Path, label: str, tally: _Tally, pool: ThreadPoolExecutor, measure: _Measure) -> None:
    store, faults = read_tar(path, label)
    for fault in faults:
        tally.skip(fault)
    _scan_groups(store, store.members, tally, pool, measure)


def _scan_groups(
    store: FolderStore | TarStore, names: Iterable[str], tally: _Tally, pool: ThreadPoolExecutor, measure: _Measure
) -> None:
    groups = group_names(names)
    prefix = f"{store.label}/" if store.label else ""
    jobs = (_Job(store, prefix + group.key, group) for group in groups if group.record or group.text)
    used = _scan(jobs, tally, pool, measure)
    for group in groups:
        if not group.record and not group.text:
            orphans = [name for name in itertools.chain(*group.media.values()) if name not in used]
            if orphans:
                tally.skip(Unusable(CAPTION, f"{prefix}{orphans[0]}: no .json or .txt of the same name"))


def _scan(jobs: Iterable[_Job], tally: _Tally, pool: ThreadPoolExecutor, measure: _Measure) -> set[str]:
    used: set[str] = set()
    waiting = iter(jobs)
    # In portions: a list of all jobs of a large data set at once would not fit.
    while portion := list(itertools.islice(waiting, _PORTION)):
        for outcome in pool.map(measure, portion):
            tally.take(outcome.key, outcome.result)
            used.update(outcome.used)
    return used


def _listed(path: Path, store: Store) -> Iterator[_Job]:
    try:
        listing = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check who may read it") from error
    with listing as file:
        for number in itertools.count(1):
            line = file.readline(MAX_RECORD_BYTES + 1)
            if not line:
                return
            key, long = f"{LISTING}:{number}", len(line) > MAX_RECORD_BYTES
            while long and line and not line.endswith(b"\n"):
                line = file.readline(MAX_RECORD_BYTES)
            if line.strip():
                fault = Unusable(LARGE, f"the line has more than {MAX_RECORD_BYTES} bytes") if long else line
                yield _Job(store, key, Group(key), fault)


def _measure(job: _Job, sizing: Sizing, max_bytes: int) -> _Outcome:
    used: tuple[str, ...] = ()
    try:
        draft, folder = _draft(job)
        names = name_parts(draft, job.group, folder)
        used = (names.target, *names.images, *([names.video] if names.video else []))
        record = assemble(draft.key or job.key, draft, names, job.store, sizing, max_bytes)
        return _Outcome(job.key, record, used)
    except Unusable as fault:
        return _Outcome(job.key, fault, used)


def _draft(job: _Job) -> tuple[Draft, str]:
    if isinstance(job.line, Unusable):
        raise job.line
    if job.line is not None:
        return parse_record(job.line), ""
    names = job.group.record or job.group.text
    if len(names) > 1:
        raise Unusable(TWICE, f"{' and '.join(names)} are for one record; keep one")
    blob = job.store.find(safe_name(names[0]))
    if blob is None:
        raise Unusable(MISSING, f"{names[0]!r} is gone")
    parse = parse_record if job.group.record else parse_text
    return parse(read_small(blob)), names[0].rpartition("/")[0]
