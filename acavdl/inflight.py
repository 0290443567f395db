"""Work in flight: many pieces at once in threads, their results in order, never more than fits."""

from __future__ import annotations

import concurrent.futures
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

_Result = TypeVar("_Result")

#: Seconds between two looks at whether the work is to end.
_LOOK = 0.5


class StoppedError(Exception):
    """The work was given up because the process closes."""


class GivenBackError(Exception):
    """A piece of work may not be done now: it and all behind it are left for another time."""


@dataclass(frozen=True)
class Step(Generic[_Result]):
    """What one turn of a piece of work has come to.

    Parameters
    ----------
    results
        What it made.
    more
        How it goes on; None = it is done. With results it goes on when those have been taken, else
        when `after` is done, or after `wait` seconds; meanwhile it takes no thread.
    """

    results: Sequence[_Result]
    more: Callable[[], Step[_Result]] | None = None
    wait: float = 0.0
    after: Future[Any] | None = None


@dataclass(frozen=True)
class Work(Generic[_Result]):
    """A piece of work; `weight` tells how much of what may be in flight it takes."""

    begin: Callable[[], Step[_Result]]
    weight: float = 1.0


def in_order(
    pool: Executor,
    works: Iterable[Work[_Result]],
    limit: float,
    stopping: threading.Event,
    draining: Callable[[], bool] = lambda: False,
) -> Iterator[_Result]:
    """Run pieces of work in a pool; yield all results in the order of the pieces.

    It ends before the first piece that raises `GivenBackError`.

    Parameters
    ----------
    limit
        Weight of all that is begun, and whose results have not been taken yet. A piece that is
        heavier is run when no other is.
    draining
        Tells that no other piece is to be begun: those that are in flight are finished.

    Raises
    ------
    StoppedError
        As soon as `stopping` is set: what comes after that was cut short, and is no result.
    """
    source = iter(works)
    waiting: deque[_Place[_Result]] = deque()
    following = next(source, None)
    try:
        while following is not None or waiting:
            held = sum(place.weight for place in waiting)
            while (
                following is not None
                and (not waiting or held + following.weight <= limit)
                and not draining()
            ):
                waiting.append(_Place(pool, following))
                held += following.weight
                following = next(source, None)
            if not waiting:
                return
            first = waiting[0]
            try:
                step = first.result(stopping)
            except GivenBackError:
                return
            # What comes next goes on while results are taken.
            if step.more is None:
                waiting.popleft()
            else:
                first.start(step.more)
            yield from step.results
    finally:
        for place in waiting:
            place.cancel()


class _Place(Generic[_Result]):
    """A piece of work in flight, and its next results."""

    def __init__(self, pool: Executor, work: Work[_Result]) -> None:
        self._pool = pool
        self.weight = work.weight
        self._timer: threading.Timer | None = None
        self.start(work.begin)

    def start(self, turn: Callable[[], Step[_Result]]) -> None:
        """Begin the next turn."""
        self._next: Future[Step[_Result]] = Future()
        self._pool.submit(self._run, turn)

    def _run(self, turn: Callable[[], Step[_Result]]) -> None:
        try:
            step = turn()
        except BaseException as error:  # noqa: BLE001 (raised where results are taken)
            self._next.set_exception(error)
            return
        if step.more is None or step.results:
            self._next.set_result(step)
            return
        if step.after is not None:
            turn = step.more
            step.after.add_done_callback(lambda _: self._resume(turn))
            return
        self._timer = threading.Timer(step.wait, self._resume, (step.more,))
        self._timer.daemon = True
        self._timer.start()

    def _resume(self, turn: Callable[[], Step[_Result]]) -> None:
        try:
            self._pool.submit(self._run, turn)
        except RuntimeError as error:
            # The pool was shut down meanwhile: nobody waits for it any more.
            self._next.set_exception(error)

    def result(self, stopping: threading.Event) -> Step[_Result]:
        while not concurrent.futures.wait([self._next], _LOOK).done:
            if stopping.is_set():
                raise StoppedError
        step = self._next.result()
        if stopping.is_set():
            raise StoppedError
        return step

    def cancel(self) -> None:
        """Do not go on after a wait."""
        if self._timer is not None:
            self._timer.cancel()
