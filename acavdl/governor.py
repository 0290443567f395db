"""A rate for each egress address: no lease from the scheduler, no request to the site.

The scheduler alone counts, so the rate holds for all worker processes behind an address together,
however many there are and whichever of them die.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distributed import Client, Scheduler, SchedulerPlugin, Worker
from distributed.utils import sync

#: Topic under which the scheduler tells that it holds workers back.
TOPIC = "acavdl-governor"
_HANDLER = "acavdl_lease"
#: Longest wait (seconds) before a worker asks again: others may have given up their turns.
_LONGEST_WAIT = 60.0
_HOUR = 3600.0


@dataclass
class Bucket:
    """Leases of one egress: `per_hour` of them, at most an hour's worth at once.

    Parameters
    ----------
    per_hour
        Leases an hour.
    now
        Seconds, monotonic: when the bucket was full.
    """

    per_hour: float
    now: float

    def __post_init__(self) -> None:
        """Begin full: the burst of one hour's worth."""
        self._tokens = max(1.0, self.per_hour)

    def take(self, now: float) -> float:
        """Take a lease: 0.0 if there is one, else the seconds until the next."""
        self._tokens += (now - self.now) * self.per_hour / _HOUR
        self._tokens = min(self._tokens, max(1.0, self.per_hour))
        self.now = now
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) * _HOUR / self.per_hour


class Governor(SchedulerPlugin):
    """Gives leases to the workers of a run; lives on the scheduler.

    Parameters
    ----------
    per_hour
        Videos an hour and egress.
    """

    def __init__(self, per_hour: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_hour = per_hour
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}
        self._scheduler: Scheduler | None = None

    async def start(self, scheduler: Scheduler) -> None:
        """Answer the workers' calls from now on."""
        self._scheduler = scheduler
        scheduler.handlers[_HANDLER] = self.lease

    def lease(self, egress: str) -> float:
        """Return 0.0 for a lease, else the seconds to wait before asking again."""
        now = self._clock()
        bucket = self._buckets.setdefault(egress, Bucket(self._per_hour, now))
        seconds = bucket.take(now)
        if seconds and self._scheduler is not None:
            self._scheduler.log_event(TOPIC, {"egress": egress, "seconds": seconds})
        return seconds


def install(client: Client, per_hour: float | None) -> None:
    """Put a governor on the client's scheduler, in place of one from an earlier run."""
    if per_hour is not None:
        # A name of its own: the newest one answers.
        client.register_plugin(Governor(per_hour), name=f"acavdl-governor-{uuid.uuid4().hex}")


def wait_for_lease(worker: Worker, egress: str, stopping: threading.Event) -> float:
    """Wait in a thread of `worker` until the governor gives a lease, or `stopping` is set.

    Returns
    -------
    float
        Seconds waited.
    """
    begun = time.monotonic()
    while not stopping.is_set():
        seconds: Any = sync(worker.loop, getattr(worker.scheduler, _HANDLER), egress=egress)
        if seconds <= 0:
            break
        stopping.wait(min(seconds, _LONGEST_WAIT))
    return time.monotonic() - begun
