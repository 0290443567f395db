"""What the shards tell, added up: whatever gets lost, comes twice or late."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, replace

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acavdl.breaker import Seen, State
from acavdl.errors import Outcome
from acavdl.progress import WINDOW, RollUp, ShardProgress


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def word(shard: int, ok: int = 0, fetched: int = 0, **failed: int) -> ShardProgress:
    counts = {"ok": ok, **failed}
    return ShardProgress(shard, "node", {name: n for name, n in counts.items() if n}, fetched)


def test_nothing_yet() -> None:
    clock = Clock()
    snapshot = RollUp((40, 40, 7), 2, clock).snapshot()
    assert (snapshot.done, snapshot.total) == (0, 87)
    assert (snapshot.shards_done, snapshot.shards) == (0, 3)
    assert dict(snapshot.counts) == {}
    assert snapshot.eta is None
    assert snapshot.videos_per_second_core == snapshot.attempts_per_second == 0
    assert snapshot.megabytes_per_second == 0


def test_totals() -> None:
    roll_up = RollUp((40, 40, 7), 2, Clock())
    roll_up.update(word(0, ok=10, private=2, fetched=1000))
    roll_up.update(word(2, ok=1, fetched=50))
    roll_up.update(word(0, ok=30, private=5, timeout=1, fetched=4000))
    snapshot = roll_up.snapshot()
    assert dict(snapshot.counts) == {"ok": 31, "private": 5, "timeout": 1}
    assert snapshot.counts[Outcome.OK] == 31
    assert snapshot.done == 37
    assert snapshot.bytes_fetched == 4050
    assert snapshot.shards_done == 0


def test_videos_whose_subtitles_become_clips() -> None:
    """The plan counts videos, the parquet clips: what is done never exceeds the total."""
    roll_up = RollUp((2, 2, 2), 1, Clock())
    roll_up.add_published(0, {"ok": 30, "no_subtitles": 1})
    assert (roll_up.snapshot().done, roll_up.snapshot().total) == (31, 35)
    roll_up.update(word(1, ok=1))
    assert (roll_up.snapshot().done, roll_up.snapshot().total) == (32, 35)
    roll_up.update(word(1, ok=9))
    assert (roll_up.snapshot().done, roll_up.snapshot().total) == (40, 42)
    roll_up.update(word(1, ok=50), finished=True)
    assert (roll_up.snapshot().done, roll_up.snapshot().total) == (81, 83)
    roll_up.update(word(2, ok=2), finished=True)
    assert (roll_up.snapshot().done, roll_up.snapshot().total) == (83, 83)
    assert roll_up.snapshot().eta == 0.0


def test_rates_are_those_of_the_last_thirty_seconds() -> None:
    """vid/s/core = clips finished OK in the last 30 s / (30 × cores); the others beside it."""
    clock = Clock()
    roll_up = RollUp((100_000,), 4, clock)
    for second in range(1, 121):
        clock.now += 1
        # A slow first minute, then 6 ok and 2 failed and 3 MB a second.
        fast = max(0, second - 60)
        ok, failed = second + 5 * fast, 2 * fast
        roll_up.update(word(0, ok=ok, private=failed, fetched=fast * 3_000_000))
        snapshot = roll_up.snapshot()
        if second <= 60:
            assert snapshot.videos_per_second_core == pytest.approx(1 / 4)
    assert snapshot.videos_per_second_core == pytest.approx(6 / 4)
    assert snapshot.attempts_per_second == pytest.approx(8)
    assert snapshot.megabytes_per_second == pytest.approx(3)
    assert snapshot.seconds == pytest.approx(120)


def test_rates_fall_to_nothing_when_nothing_happens() -> None:
    clock = Clock()
    roll_up = RollUp((100,), 1, clock)
    roll_up.update(word(0, ok=50, fetched=1_000_000))
    clock.now += 1
    assert roll_up.snapshot().videos_per_second_core == pytest.approx(50)
    for _ in range(int(WINDOW) + 2):
        clock.now += 1
        snapshot = roll_up.snapshot()
    assert snapshot.videos_per_second_core == snapshot.megabytes_per_second == 0
    assert snapshot.done == 50


@pytest.mark.parametrize("every", [0.1, 0.5, 5.0, 7.0, 45.0])
def test_rates_do_not_depend_on_how_often_one_looks(every: float) -> None:
    clock = Clock()
    roll_up = RollUp((10**6,), 2, clock)
    for step in range(1, int(200 / every)):
        clock.now = 1000 + step * every
        roll_up.update(word(0, ok=int(10 * step * every)))
        snapshot = roll_up.snapshot()
    assert snapshot.attempts_per_second == pytest.approx(10, rel=0.02)
    assert snapshot.videos_per_second_core == pytest.approx(5, rel=0.02)


def test_looking_at_once_divides_by_nothing() -> None:
    roll_up = RollUp((1,), 0, Clock())
    roll_up.update(word(0, ok=1), finished=True)
    snapshot = roll_up.snapshot()
    assert snapshot.cores == 1
    assert snapshot.eta == 0


def test_eta() -> None:
    clock = Clock()
    roll_up = RollUp((100, 100), 1, clock)
    clock.now += 50
    roll_up.update(word(0, ok=20, private=5))
    # 25 in 50 s: 175 are left.
    assert roll_up.snapshot().eta == pytest.approx(350)
    roll_up.update(word(0, ok=95, private=5), finished=True)
    roll_up.update(word(1, ok=100), finished=True)
    assert roll_up.snapshot().eta == 0


def test_resumed_shards_count_but_not_for_rates() -> None:
    clock = Clock()
    roll_up = RollUp((100, 100, 50), 1, clock)
    roll_up.add_published(0, {"ok": 90, "private": 10})
    snapshot = roll_up.snapshot()
    assert (snapshot.done, snapshot.shards_done) == (100, 1)
    assert snapshot.eta is None
    clock.now += 10
    roll_up.update(word(1, ok=40, private=10, fetched=2_000_000))
    snapshot = roll_up.snapshot()
    assert snapshot.done == 150
    assert dict(snapshot.counts) == {"ok": 130, "private": 20}
    assert snapshot.attempts_per_second == pytest.approx(5)
    assert snapshot.videos_per_second_core == pytest.approx(4)
    assert snapshot.eta == pytest.approx(100 / 5)
    assert snapshot.bytes_fetched == 2_000_000


def test_everything_was_there_already() -> None:
    roll_up = RollUp((2, 3), 8, Clock())
    roll_up.add_published(0, {"ok": 2})
    roll_up.add_published(1, {"ok": 1, "private": 2})
    snapshot = roll_up.snapshot()
    assert snapshot.done == snapshot.total == 5
    assert snapshot.shards_done == snapshot.shards == 2
    assert snapshot.eta == 0


def test_a_late_word_changes_nothing_after_the_report() -> None:
    roll_up = RollUp((40,), 1, Clock())
    roll_up.update(word(0, ok=39, private=1, fetched=900), finished=True)
    for late in (word(0, ok=12, fetched=100), word(0, ok=40, fetched=10**9)):
        roll_up.update(late)
        roll_up.update(late, finished=True)
    snapshot = roll_up.snapshot()
    assert dict(snapshot.counts) == {"ok": 39, "private": 1}
    assert (snapshot.bytes_fetched, snapshot.shards_done) == (900, 1)


def test_a_word_of_a_published_shard_counts_nothing_twice() -> None:
    roll_up = RollUp((40,), 1, Clock())
    roll_up.add_published(0, {"ok": 40})
    roll_up.update(word(0, ok=40), finished=True)
    assert roll_up.snapshot().done == 40


def test_a_task_that_begins_anew_takes_nothing_back() -> None:
    """A worker died, another one makes the shard again: no rate is below zero."""
    clock = Clock()
    roll_up = RollUp((40,), 1, clock)
    roll_up.update(word(0, ok=30, fetched=3_000_000))
    for ok in (0, 10, 30, 35):
        clock.now += 1
        before = roll_up.snapshot()
        roll_up.update(word(0, ok=ok, fetched=ok * 100_000))
        after = roll_up.snapshot()
        assert after.done == max(30, ok)
        assert after.bytes_fetched >= before.bytes_fetched
        assert min(after.videos_per_second_core, after.megabytes_per_second) >= 0
    # A copy that finds the shard published reports that it fetched nothing itself.
    roll_up.update(word(0, ok=38, private=2, fetched=0), finished=True)
    snapshot = roll_up.snapshot()
    assert (snapshot.done, snapshot.bytes_fetched) == (40, 3_500_000)


SIZE = 20


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[list[list[ShardProgress]], list[tuple[int, int]]]:
    """Draw histories of some shards, and how their words arrive: lost, repeated, in any order."""
    histories = []
    for shard in range(draw(st.integers(1, 4))):
        outcomes = draw(
            st.lists(st.sampled_from(["ok", "private", "timeout"]), min_size=SIZE, max_size=SIZE)
        )
        histories.append(
            [
                ShardProgress(shard, "node", Counter(outcomes[:count]), 100 * count)
                for count in range(SIZE + 1)
            ]
        )
    places = st.tuples(st.integers(0, len(histories) - 1), st.integers(0, SIZE))
    return histories, draw(st.lists(places, max_size=40))


@settings(deadline=None)
@given(deliveries())
def test_any_delivery_ends_with_the_truth(
    case: tuple[list[list[ShardProgress]], list[tuple[int, int]]],
) -> None:
    histories, arrivals = case
    clock = Clock()
    roll_up = RollUp((SIZE,) * len(histories), 3, clock)
    done = 0
    latest = [0] * len(histories)
    for shard, count in arrivals:
        clock.now += 1
        roll_up.update(histories[shard][count])
        latest[shard] = max(latest[shard], count)
        snapshot = roll_up.snapshot()
        assert snapshot.done == sum(latest) >= done
        assert snapshot.done == sum(snapshot.counts.values())
        assert snapshot.bytes_fetched == 100 * sum(latest)
        assert 0 <= snapshot.videos_per_second_core <= snapshot.attempts_per_second / 3 + 1e-9
        assert snapshot.eta is None or snapshot.eta >= 0
        done = snapshot.done
    for history in histories:
        roll_up.update(history[-1], finished=True)
    final = roll_up.snapshot()
    truth = sum((Counter(history[-1].counts) for history in histories), Counter[str]())
    assert dict(final.counts) == dict(truth)
    assert final.done == final.total
    assert final.shards_done == final.shards
    assert final.eta == 0


def test_messages_travel_as_plain_values() -> None:
    counts = Counter({"ok": 3, str(Outcome.PRIVATE): 1})
    sent = ShardProgress(7, "node-1", counts, 12345)
    message = sent.as_message()
    counts["ok"] += 1
    arrived = {**orjson.loads(orjson.dumps(message)), "worker": "tcp://10.0.0.1:1"}
    read = ShardProgress.from_message(arrived)
    assert (read.shard, read.host, read.bytes_fetched) == (7, "node-1", 12345)
    assert dict(read.counts) == {"ok": 3, "private": 1}
    assert read.clips == 4


def test_threads() -> None:
    """Words and looks from many threads at once: each look is a whole one."""
    shards, steps = 8, 200
    roll_up = RollUp((steps,) * shards, 2)
    ended = threading.Event()
    wrong: list[str] = []

    def look() -> None:
        while not ended.is_set():
            snapshot = roll_up.snapshot()
            if snapshot.done != sum(snapshot.counts.values()):
                wrong.append(f"{snapshot.done} != {snapshot.counts}")
            if snapshot.bytes_fetched != 10 * snapshot.done:
                wrong.append(f"{snapshot.bytes_fetched} bytes at {snapshot.done}")

    def tell(shard: int) -> None:
        for step in range(steps):
            roll_up.update(word(shard, ok=step, fetched=10 * step))
        roll_up.update(word(shard, ok=steps, fetched=10 * steps), finished=True)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    tellers = [threading.Thread(target=tell, args=(shard,)) for shard in range(shards)]
    for thread in (*lookers, *tellers):
        thread.start()
    for thread in tellers:
        thread.join(30)
    ended.set()
    for thread in lookers:
        thread.join(30)
    assert wrong == []
    final = roll_up.snapshot()
    assert (final.done, final.shards_done) == (shards * steps, shards)


def test_failed_shard_is_forgotten() -> None:
    roll_up = RollUp((10, 10), cores=1)
    roll_up.update(ShardProgress(0, "h", {"ok": 4}, 100))
    roll_up.update(ShardProgress(1, "h", {"ok": 3}, 50))
    roll_up.drop(0)
    assert dict(roll_up.snapshot().counts) == {"ok": 3}


def test_held_back_until_the_next_lease_of_any_egress() -> None:
    roll_up = RollUp((10,), cores=1)
    assert roll_up.snapshot().held_back is None
    one, two = Seen("a", State.OPEN, ("w",), next_lease=12.0), Seen("b", State.OPEN, ("v",))
    roll_up.egresses([one, replace(two, next_lease=5.0)])
    assert roll_up.snapshot().held_back == 5.0
    roll_up.egresses([two])
    assert roll_up.snapshot().held_back is None


def test_egresses_are_counted_and_those_that_are_refused_named() -> None:
    roll_up = RollUp((10,), cores=1)
    assert dict(roll_up.snapshot().egresses) == {}
    refused = [
        Seen("b", State.COOLING, (), "bot_check", 10.0, 5.0),
        Seen("c", State.BLOCKED, (), "http_429", 100.0, 0.0),
    ]
    roll_up.egresses([Seen("a", State.OPEN, ()), *refused])
    snapshot = roll_up.snapshot()
    assert dict(snapshot.egresses) == {"open": 1, "cooling": 1, "blocked": 1}
    assert snapshot.refused == refused
