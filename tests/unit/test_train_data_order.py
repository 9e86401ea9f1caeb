"""The order of batches: every record once in a pass, nothing dropped, and batch i the same however it is reached."""

from collections import Counter
from math import lcm

import numpy as np
import pytest

from vino_rt.errors import InputError
from vino_rt.train.data.assemble import Part, Record
from vino_rt.train.data.blob import Blob, Header
from vino_rt.train.data.buckets import Bucket
from vino_rt.train.data.order import BatchOrder
from vino_rt.train.data.records import Captions

PART = Part(Blob("x", "x", 1), Header(64, 64, 1, False))


def records(**counts: int) -> list[Record]:
    """`t2i_64=3`: three records of the task in a bucket of that width; 16 rows for each 64 pixels of width."""
    found = []
    for name, count in counts.items():
        task, width = name.split("_")
        for number in range(count):
            key, bucket, rows = f"{name}/{number}", Bucket(int(width), 64), int(width) // 4
            found.append(Record(key, task, Captions(("c",), ()), PART, (), None, False, bucket, rows))
    # Pools must not depend on records lying together.
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def test_every_record_once_in_an_epoch_that_divides() -> None:
    data = records(t2i_64=12, t2i_128=6, t2v_64=8)
    order = BatchOrder(data, 64, seed=1)
    assert [pool.size for pool in order.pools] == [4, 2, 4]
    for epoch in range(3):
        batches = [order[i] for i in range(order.start(epoch), order.start(epoch + 1))]
        assert len(batches) == 3 + 3 + 2
        assert Counter(r for batch in batches for r in batch) == Counter(range(26))


def test_leftovers_open_the_next_pass() -> None:
    data = records(t2i_64=7, t2i_128=5, t2v_64=3)
    order = BatchOrder(data, 64, seed=1)
    assert [pool.size for pool in order.pools] == [4, 2, 3]
    rounds = lcm(4, 2)
    seen: Counter[int] = Counter()
    for epoch in range(rounds):
        for i in range(order.start(epoch), order.start(epoch + 1)):
            seen.update(order[i])
        # Late by less than a batch, never ahead.
        assert all(epoch <= seen[r] <= epoch + 1 for r in range(len(data)))
    assert set(seen.values()) == {rounds}


def test_a_batch_is_of_one_pool_and_within_the_budget() -> None:
    data = records(t2i_64=9, t2i_128=9, ti2v_256=9, t2v_64=1)
    order = BatchOrder(data, 70, seed=2)
    for i in range(60):
        batch = [data[r] for r in order[i]]
        assert len({(r.task, r.bucket) for r in batch}) == 1
        assert sum(r.rows for r in batch) <= 70
        assert sum(r.rows for r in batch) >= 64 or batch[0].task == "t2v"


def test_a_record_above_the_budget_is_alone() -> None:
    order = BatchOrder(records(t2i_256=3), 16, seed=0)
    assert [len(order[i]) for i in range(6)] == [1] * 6


def test_random_access() -> None:
    data = records(t2i_64=31, t2i_128=17, t2v_64=5)
    mixture = {"t2i": 0.3, "t2v": 0.7}
    forward = [BatchOrder(data, 64, 9, mixture)[i] for i in range(100)]
    order = BatchOrder(data, 64, 9, mixture)
    assert [order[i] for i in range(100)] == forward
    assert [order[i] for i in reversed(range(100))] == forward[::-1]
    assert [order.epoch(order.start(e)) for e in range(9)] == list(range(9))


def test_seeds_and_epochs_shuffle() -> None:
    data = records(t2i_64=64)
    one, two = BatchOrder(data, 64, 1), BatchOrder(data, 64, 2)
    assert one[0] != two[0]
    assert one[0] != one[16]
    assert [r for i in range(16) for r in one[i]] != sorted(r for i in range(16) for r in one[i])


def test_mixture_is_the_share_of_batches() -> None:
    data = records(t2i_64=400, t2i_128=100, t2v_64=10, tv2v_64=50)
    order = BatchOrder(data, 64, 4, {"t2i": 1, "t2v": 2, "tv2v": 0})
    tasks = Counter(data[order[i][0]].task for i in range(3000))
    assert set(tasks) == {"t2i", "t2v"}
    assert abs(tasks["t2v"] / 3000 - 2 / 3) < 0.01
    # Within a task every record counts the same.
    t2i = Counter(data[r].bucket.width for i in range(3000) for r in order[i] if data[r].task == "t2i")
    assert abs(t2i[64] / t2i[128] - 4) < 0.25
    # A mixture is spread over an epoch, not lined up.
    first = [data[order[i][0]].task for i in range(60)]
    assert {"t2i", "t2v"} == set(first[:20]) == set(first[40:])


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({"t2i": 1.0}, r"no weight for \['t2v'\]"),
        ({"t2i": 1.0, "t2v": 1.0, "i2v": 0.5}, r"no records of \['i2v'\]"),
        ({"t2i": -1.0, "t2v": 1.0}, "numbers from 0"),
        ({"t2i": 0.0, "t2v": 0.0}, "above 0"),
        ({"t2i": float("nan"), "t2v": 1.0}, "numbers from 0"),
    ],
)
def test_mixture_that_does_not_fit(mixture: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BatchOrder(records(t2i_64=4, t2v_64=4), 64, 0, mixture)


def test_next_record_walks_the_pool() -> None:
    data = records(t2i_64=5, t2v_64=3)
    order = BatchOrder(data, 64, 0)
    start = order[0][0]
    walk = [start]
    while (after := order.next_record(walk[-1])) != start:
        walk.append(after)
    assert sorted(walk) == [i for i, r in enumerate(data) if r.task == data[start].task]


def test_a_small_pool_repeats_no_record_within_a_batch() -> None:
    order = BatchOrder(records(t2i_64=3), 6400, 0)
    assert [sorted(order[i]) for i in range(4)] == [[0, 1, 2]] * 4
