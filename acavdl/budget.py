"""Budgets: a wall-clock end for a piece of work, which reaches every socket and child process.

Threads can't be killed. So when a budget is used up a watchdog shuts down the connections and kills
the child processes begun in its scope; what blocks on them then returns.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import urllib3.exceptions

#: Seconds between two strikes at work that goes on after its budget.
_STRIKE_INTERVAL = 0.5


class Connection(Protocol):
    """What a budget can end: a connection that remembers which budget it works for."""

    def shut_down(self, budget: Budget) -> None:
        """End what blocks on it, if it still works for `budget`; from any thread."""


class BudgetExceededError(urllib3.exceptions.HTTPError):
    """No request is begun after the end of a budget."""


class Budget:
    """A bound on the wall clock of one piece of work in one thread, and what it used.

    Parameters
    ----------
    seconds
        How long the work may take.

    Attributes
    ----------
    requests : int
        HTTP requests sent inside the scope.
    bytes_received : int
        Bytes of bodies, as they came over the wire.
    """

    _local = threading.local()

    def __init__(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self.requests = 0
        self.bytes_received = 0
        self._cancelled = False
        self._due = math.inf
        self.scheduled = math.inf
        self._connections: set[Connection] = set()
        self._thread_id: int | None = None
        self._spared: frozenset[int] = frozenset()
        self._lock = threading.Lock()

    @classmethod
    def current(cls) -> Budget | None:
        """Return the budget whose scope this thread is in."""
        return getattr(cls._local, "budget", None)

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        return 0.0 if self._cancelled else max(0.0, self.deadline - time.monotonic())

    @property
    def exceeded(self) -> bool:
        """Whether the time is up (or the work was cancelled)."""
        return self.remaining <= 0.0

    @property
    def moment(self) -> float:
        """When to strike, as things stand."""
        return min(self.deadline, self._due)

    @property
    def overdue(self) -> bool:
        """Whether the time is up, or that of a block `within` it."""
        return self.exceeded or time.monotonic() >= self._due

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[Callable[[], bool]]:
        """Shut the connections in use down if the block takes longer; the budget goes on.

        It yields what tells whether it took longer.
        """
        due = self._due = time.monotonic() + seconds
        _watchdog.remind(self)
        try:
            yield lambda: time.monotonic() >= due
        finally:
            self._due = math.inf

    def extend(self, seconds: float) -> None:
        """Add time that the work did not use (waiting that the site asked for, say)."""
        self.deadline += seconds

    @contextlib.contextmanager
    def scope(self) -> Iterator[Budget]:
        """Make this the budget of the calling thread, and have the watchdog look after it."""
        outer = Budget.current()
        if outer is not None:
            self.deadline = min(self.deadline, outer.deadline)
        Budget._local.budget = self
        thread_id = threading.get_native_id()
        with self._lock:
            self._spared = _children_of_thread(thread_id)
            self._thread_id = thread_id
        _watchdog.watch(self)
        try:
            yield self
        finally:
            Budget._local.budget = outer
            _watchdog.forget(self)
            with self._lock:
                self._thread_id = None
                self._connections.clear()

    def use(self, connection: Connection) -> None:
        """Have `connection` shut down when the time is up; raise if that is now."""
        if self.exceeded:
            raise BudgetExceededError("the time for this clip is used up")
        with self._lock:
            self._connections.add(connection)

    def cancel(self) -> None:
        """End the work now, and what it may yet begin."""
        self._cancelled = True
        self.strike()
        _watchdog.strike_from_now(self)

    def strike(self) -> None:
        """Shut down the connections in use and kill what the thread started in the scope."""
        with self._lock:
            if self._thread_id is None:
                return
            for connection in self._connections:
                connection.shut_down(self)
            for pid in _children_of_thread(self._thread_id) - self._spared:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)


def _children_of_thread(thread_id: int) -> frozenset[int]:
    """Return the processes that a thread of this process started (Linux; elsewhere none)."""
    try:
        listing = Path(f"/proc/self/task/{thread_id}/children").read_text()
    except OSError:
        return frozenset()
    return frozenset(int(pid) for pid in listing.split())


class _Watchdog:
    """One daemon thread that strikes at budgets which are used up and still in scope."""

    def __init__(self) -> None:
        self._active: set[Budget] = set()
        self._heap: list[tuple[float, int, Budget]] = []
        self._order = itertools.count()
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def watch(self, budget: Budget) -> None:
        with self._wake:
            self._active.add(budget)
            self._push(0.0 if budget.exceeded else budget.moment, budget)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
                self._thread.start()

    def remind(self, budget: Budget) -> None:
        """Look after a budget at its moment, if no earlier look is planned anyway."""
        with self._wake:
            if budget.moment < budget.scheduled:
                self._push(budget.moment, budget)

    def forget(self, budget: Budget) -> None:
        with self._wake:
            self._active.discard(budget)

    def strike_from_now(self, budget: Budget) -> None:
        with self._wake:
            self._push(0.0, budget)

    def cancel_all(self) -> None:
        with self._wake:
            budgets = list(self._active)
        for budget in budgets:
            budget.cancel()

    def _push(self, moment: float, budget: Budget) -> None:
        budget.scheduled = moment
        heapq.heappush(self._heap, (moment, next(self._order), budget))
        self._wake.notify()

    def _run(self) -> None:
        while True:
            budget = self._next_exceeded()
            budget.strike()

    def _next_exceeded(self) -> Budget:
        """Wait for the next budget that is over; it stays watched until its scope ends."""
        with self._wake:
            while True:
                now = time.monotonic()
                if self._heap and self._heap[0][0] <= now:
                    _, _, budget = heapq.heappop(self._heap)
                    if budget not in self._active:
                        continue
                    overdue = budget.overdue
                    self._push(now + _STRIKE_INTERVAL if overdue else budget.moment, budget)
                    if overdue:
                        return budget
                else:
                    # Bounded: a lock can't wait for more than some hundred years.
                    self._wake.wait(min(self._heap[0][0] - now, 3600.0) if self._heap else None)


_watchdog = _Watchdog()


def back_off(tries: int) -> None:
    """Wait before the next try: doubling, jittered, never past the end of the thread's budget."""
    budget = Budget.current()
    seconds = random.uniform(0.5, 1.0) * 0.25 * 2**tries
    time.sleep(seconds if budget is None else min(seconds, budget.remaining))


def cancel_all() -> None:
    """End all work in budgets of this process now: its sockets and child processes with it."""
    _watchdog.cancel_all()
