"""Rows, missed requirements and table entries of `bench kernels` from the timings of a series."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from bench.harness import Mark, Measure, Spread, Timing, summary
from bench.kernels_cases import OF_OURS, Case, Prepared
from bench.kernels_time import Best
from vino_kernels.choice import Device, Entry, Needs, Table, Time, choose, row_class
from vino_rt.plan import MAX_BRANCHES

APART = "a call for each branch"
OF_PYTORCH = ("sdpa_flash", "sdpa_cudnn", "flash_varlen")
LONG = 32_768
"""Row class of the sequences that the requirements name."""
OURS = Mark(95.0, "%", "required: at least")
DISPATCHED = Mark(100.0, "%", "required: at least, within the spread")
PACKED = Mark(1.0, "x", "required: at least")
COPIED = Mark(85.0, "%", "required: at least, of the bandwidth of a copy of as many bytes")
PROPORTION = Mark(0.1, "", "required: at most, above or below 1")
COPY_REQUIRED = ("qk_norm_rope", "norm_modulate")


@dataclass
class Report:
    """What has been found so far."""

    measures: list[Measure] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    def require(self, measure: Measure, met: bool) -> None:
        """Add a measure that has a requirement, and a failure where it was missed."""
        self.measures.append(measure)
        if not met:
            mark = measure.ceiling
            limit = f"{mark.what} {mark.value:g} {mark.unit}" if mark else ""
            self.failures.append(f"{measure.case}: {measure.metric} is {measure.value:.4g} {measure.unit}; {limit}")


def called(case: Case, name: str, *, apart: bool = False) -> str:
    """Name of a call in the rounds, and of its case in rows."""
    return f"{case.label}, {name}" + (f", {APART}" if apart else "")


def time_rows(prepared: Prepared, timings: Mapping[str, Timing], best: Best) -> Iterator[Measure]:
    """Microseconds of every implementation beside what they would be at the ceiling, and the share of it."""
    case = prepared.case
    if case.flops:
        ideal, what = case.flops / best.rates[case.shape.dtype], "measured matrix rate"
    else:
        ideal, what = case.moved / best.copies[case.moved], "bandwidth of a copy of as many bytes"
    names = [called(case, n) for n in prepared.calls] + [called(case, n, apart=True) for n in prepared.apart]
    for name in (name for name in names if name in timings):
        timing = timings[name]
        yield summary([1e6 * s for s in timing.seconds], name, "time", "us", Mark(1e6 * ideal, "us", f"at the {what}"))
        yield summary([100 * ideal / s for s in timing.seconds], name, "share", "%", Mark(100.0, "%", what))


def best_rows(best: Best, series: str) -> list[Measure]:
    """The ceilings themselves."""
    case = f"ceilings, {series}"
    rates = [Measure(case, f"matrix product, {_short(d)}", rate / 1e12, "TFLOP/s") for d, rate in best.rates.items()]
    copies = [
        Measure(case, f"copy of as many bytes as are moved, {moved / 1e6:.4g} MB", rate / 1e9, "GB/s")
        for moved, rate in best.copies.items()
    ]
    return [Measure(case, "large copy, read and written", best.bandwidth / 1e9, "GB/s"), *copies, *rates]


def compare(case: Case, timings: Mapping[str, Timing], report: Report) -> None:
    """Our fastest kernel against the fastest of PyTorch's own."""
    own, kernels = of_pytorch(case, timings), timed(case, OF_OURS, timings)
    if not own or not kernels:
        report.failures.append(f"{case.label}: {'our kernel' if own else 'PyTorch'} was not timed")
        return
    name, fastest = min(own.items(), key=lambda item: item[1].median)
    our_name, ours = min(kernels.items(), key=lambda item: item[1].median)
    if case.operation == "boundary_attention":
        row = summary([100 * r for r in fastest.ratio(ours)], case.label, f"{name} / {our_name}", "%", OURS)
        asked = (row_class(case.shape.rows), case.shape.segments, case.shape.channels) == (LONG, 1, 128)
        report.require(row, not asked or bool(case.shape.variant) or row.value >= OURS.value)
    else:
        report.measures.append(summary(fastest.ratio(ours), case.label, f"{name} / {our_name}", "x"))


def compare_dispatcher(case: Case, timings: Mapping[str, Timing], device: Device, table: Table, report: Report) -> None:
    """What the dispatcher takes, with a table, against the fastest of PyTorch's own.

    For attention twice: with the bounds on the host, and as the model calls it, whose bounds lie on the device and
    whose calls are recorded. There fewer implementations can serve, and the fastest may not be one of them.
    """
    own = of_pytorch(case, timings)
    if not own:
        return
    ways = {"dispatcher": (case.shape, Needs())}
    if case.operation == "boundary_attention":
        # The host sees only for how many branches the table has room.
        counted = case.shape if case.shape.variant else replace(case.shape, segments=MAX_BRANCHES)
        ways["dispatcher as the model calls it"] = counted, Needs(capture=True, host_bounds=False)
    name, fastest = min(own.items(), key=lambda item: item[1].median)
    for way, (shape, needs) in ways.items():
        taken = choose(case.operation, shape, device, needs, table).implementation
        timing = timings.get(called(case, taken))
        if timing is None:
            report.failures.append(f"{case.label}: the {way} takes {taken}, which was not timed")
            continue
        ratio = [100 * r for r in fastest.ratio(timing)]
        row = summary(ratio, case.label, f"{name} / {way} ({taken})", "%", DISPATCHED)
        # Rounds differ: what is equal comes out a little above or below.
        report.require(row, isinstance(row.spread, Spread) and row.spread.p90 >= DISPATCHED.value)


def of_pytorch(case: Case, timings: Mapping[str, Timing]) -> dict[str, Timing]:
    """Timings of PyTorch's attention by implementation; of plain operations where there is none."""
    return timed(case, OF_PYTORCH, timings) or timed(case, ("torch",), timings)


def timed(case: Case, names: Sequence[str], timings: Mapping[str, Timing]) -> dict[str, Timing]:
    """Timings of those implementations that were timed, by name."""
    return {name: timing for name in names if (timing := timings.get(called(case, name)))}


def compare_copy(case: Case, timings: Mapping[str, Timing], best: Best, report: Report) -> None:
    """Our kernels that move memory against a copy of as many bytes, timed the same way."""
    ours = timings.get(called(case, "vino"))
    if case.operation in COPY_REQUIRED and ours and not case.shape.variant:
        shares = [100 * case.moved / (best.copies[case.moved] * s) for s in ours.seconds]
        row = summary(shares, case.label, "vino, of the bandwidth of such a copy", "%", COPIED)
        report.require(row, case.shape.dtype != torch.bfloat16 or row.value >= COPIED.value)


def compare_packed(case: Case, timings: Mapping[str, Timing], report: Report) -> None:
    """Branches packed into one call against a call for each, of ours and of PyTorch's fastest."""
    ours = timings.get(called(case, "vino"))
    apart = {name: t for name in ("vino", *OF_PYTORCH) if (t := timings.get(called(case, name, apart=True)))}
    if ours is None or "vino" not in apart:
        return
    row = summary(apart["vino"].ratio(ours), case.label, "a call for each branch / packed, vino", "x", PACKED)
    report.require(row, row.value >= PACKED.value)
    others = {name: timing for name, timing in apart.items() if name != "vino"}
    if others:
        name, fastest = min(others.items(), key=lambda item: item[1].median)
        metric = f"a call for each branch by {name} / packed, vino"
        report.measures.append(summary(fastest.ratio(ours), case.label, metric, "x"))


def compare_isolated(
    cases: Sequence[Case], timings: Mapping[str, Timing], capability: tuple[int, int], report: Report
) -> None:
    """Time with isolated references over time without, against the same of visible tiles, for pairs of one size."""
    whole = {(c.shape.rows, c.shape.segments): c for c in cases if c.flops and not c.shape.variant}
    for case in (case for case in cases if case.shape.variant == "isolated"):
        full = whole.get((case.shape.rows, case.shape.segments))
        pair = [timings.get(called(c, "vino")) for c in (case, full) if c]
        if full is None or None in pair:
            continue
        tiles = case.visible_tiles(capability), full.visible_tiles(capability)
        report.measures.append(Measure(case.label, "visible tiles of a head", tiles[0], "", None))
        report.measures.append(Measure(full.label, "visible tiles of a head", tiles[1], "", None))
        ratio = [r * tiles[1] / tiles[0] for r in timings[called(case, "vino")].ratio(timings[called(full, "vino")])]
        row = summary(ratio, case.label, "time in proportion to visible tiles, vino", "x", PROPORTION)
        asked = row_class(case.shape.rows) == LONG
        report.require(row, not asked or abs(row.value - 1) <= PROPORTION.value)


def entry(
    prepared: Prepared, timings: Mapping[str, Timing], device: Device, origin: tuple[Mapping[str, str], str]
) -> Entry:
    """The table's entry of a case; `origin` are versions and commit."""
    case, shape = prepared.case, prepared.case.shape
    times = {}
    for name in prepared.calls:
        timing = timings.get(called(case, name))
        if timing is not None:
            found = summary([1e6 * s for s in timing.seconds], "", "", "us")
            assert isinstance(found.spread, Spread)
            low, high = round(found.spread.p10, 2), round(found.spread.p90, 2)
            times[name] = Time(round(found.value, 2), low, high, found.spread.runs)
    return Entry(
        operation=case.operation,
        gpu=device.name,
        capability=f"{device.capability[0]}.{device.capability[1]}",
        dtype=_short(shape.dtype),
        heads=shape.heads,
        channels=shape.channels,
        rows=row_class(shape.rows),
        segments=shape.segments,
        variant=shape.variant,
        microseconds=times,
        versions=origin[0],
        commit=origin[1],
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
