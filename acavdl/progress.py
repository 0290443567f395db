"""What is going on: counters from the shards, and the picture that they give together."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from acavdl.breaker import Seen, State, told
from acavdl.errors import Outcome

#: Topic of the messages from workers to the driver.
TOPIC = "acavdl-progress"
#: Seconds over which rates are taken.
WINDOW = 30.0
#: Seconds between two messages of a shard.
INTERVAL = 1.0


@dataclass(frozen=True)
class ShardProgress:
    """Where one shard stands: totals since its task began, so a lost message costs nothing."""

    shard: int
    host: str
    counts: Mapping[str, int]
    bytes_fetched: int

    @property
    def clips(self) -> int:
        """Clips finished, one way or the other."""
        return sum(self.counts.values())

    def as_message(self) -> dict[str, Any]:
        """Return the plain values that travel through Dask."""
        return {
            "shard": self.shard,
            "host": self.host,
            "counts": dict(self.counts),
            "bytes_fetched": self.bytes_fetched,
        }

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> ShardProgress:
        """Return what a message says; Dask adds keys of its own (the worker's address)."""
        return cls(message["shard"], message["host"], message["counts"], message["bytes_fetched"])


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment.

    Attributes
    ----------
    done, total
        Clips, those published by earlier runs included.
    counts
        Clips by outcome.
    videos_per_second_core, attempts_per_second, megabytes_per_second
        Over the last 30 s: clips finished OK per second and core; clips finished either way; media
        and pages fetched.
    successes_now
        Clips finished OK by this run, without those of earlier ones.
    held_back
        Seconds until the rate allows the next video; None where it holds nobody back.
    egresses
        How many egress addresses are ``open``, ``cooling`` (refused: nothing is asked) and
        ``blocked`` (what probed them was refused, too).
    refused
        Those that are not open.
    eta
        Seconds left at the rate of this run; None before there is one.
    """

    done: int
    total: int
    shards_done: int
    shards: int
    counts: Mapping[str, int]
    cores: int
    seconds: float
    bytes_fetched: int
    videos_per_second_core: float
    attempts_per_second: float
    megabytes_per_second: float
    eta: float | None
    successes_now: int = 0
    held_back: float | None = None
    egresses: Mapping[str, int] = field(default_factory=dict)
    refused: Sequence[Seen] = ()


class RollUp:
    """Adds up what the shards report; safe to use from several threads.

    Parameters
    ----------
    sizes
        Clips of each shard of the plan.
    cores
        Cores that work on it.
    again
        Outcomes of clips that stand in a later shard once more: that one's count.
    clock
        Seconds, monotonic.
    """

    def __init__(
        self,
        sizes: tuple[int, ...],
        cores: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        again: Mapping[str, int] | None = None,
    ) -> None:
        self._again = Counter(again or {})
        self._sizes = sizes
        self._cores = max(1, cores)
        self._clock = clock
        self._started = clock()
        self._before: Counter[str] = Counter()
        self._shards_done: set[int] = set()
        self._to_do = sum(sizes)
        self._now: dict[int, ShardProgress] = {}
        self._egresses: Sequence[Seen] = ()
        self._history: deque[tuple[float, int, int, int]] = deque([(self._started, 0, 0, 0)])
        self._lock = threading.Lock()

    def add_published(self, shard: int, counts: Mapping[str, int]) -> None:
        """Count a shard that an earlier run published."""
        with self._lock:
            self._before.update(counts)
            self._finish(shard)

    def update(self, progress: ShardProgress, *, finished: bool = False) -> None:
        """Take a word of a shard of this run; the last one comes with its report.

        Words may come late, twice or out of order, and a task that Dask runs again begins anew: the
        one that tells of most clips counts.
        """
        with self._lock:
            if progress.shard in self._shards_done:
                return
            known = self._now.get(progress.shard)
            if known and not finished and progress.clips < known.clips:
                return
            # A task that finds the shard published by a copy of itself has fetched nothing.
            fetched = max(progress.bytes_fetched, known.bytes_fetched if known else 0)
            self._now[progress.shard] = replace(progress, bytes_fetched=fetched)
            if finished:
                self._finish(progress.shard)

    def drop(self, shard: int) -> None:
        """Forget a shard that failed: nothing of it was published."""
        with self._lock:
            self._now.pop(shard, None)

    def egresses(self, seen: Sequence[Seen]) -> None:
        """Note how the egresses are, as the governor says about once a second."""
        with self._lock:
            self._egresses = seen

    def snapshot(self) -> Snapshot:
        """Return the run as it is now."""
        with self._lock:
            return self._snapshot(self._clock())

    def _left(self) -> int:
        """Return the clips to come; of a video whose subtitles become clips, one till then."""
        begun = (
            min(self._sizes[shard], progress.clips)
            for shard, progress in self._now.items()
            if shard not in self._shards_done
        )
        return self._to_do - sum(begun)

    def _finish(self, shard: int) -> None:
        if shard not in self._shards_done:
            self._shards_done.add(shard)
            self._to_do -= self._sizes[shard]

    def _snapshot(self, now: float) -> Snapshot:
        counts = Counter[str]()
        for progress in self._now.values():
            counts.update(progress.counts)
        finished, ok = counts.total(), counts[Outcome.OK]
        fetched = sum(progress.bytes_fetched for progress in self._now.values())
        self._history.append((now, ok, finished, fetched))
        while len(self._history) > 2 and self._history[1][0] <= now - WINDOW:
            self._history.popleft()
        then, ok_then, finished_then, fetched_then = self._history[0]
        span = max(now - then, 1e-9)
        elapsed = max(now - self._started, 1e-9)
        # Of shards that are not there (any more) nothing is counted: never below zero.
        before = self._before - self._again
        done = before.total() + finished
        left = self._left()
        return Snapshot(
            done=done,
            total=done + left,
            shards_done=len(self._shards_done),
            shards=len(self._sizes),
            counts=before + counts,
            cores=self._cores,
            seconds=elapsed,
            bytes_fetched=fetched,
            videos_per_second_core=max(0, ok - ok_then) / span / self._cores,
            attempts_per_second=max(0, finished - finished_then) / span,
            megabytes_per_second=max(0, fetched - fetched_then) / span / 1e6,
            eta=left * elapsed / finished if finished and left > 0 else (None if left else 0.0),
            successes_now=ok,
            held_back=min(filter(None, (each.next_lease for each in self._egresses)), default=None),
            egresses=told(self._egresses),
            refused=[each for each in self._egresses if each.state is not State.OPEN],
        )
