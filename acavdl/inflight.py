"""Work in flight: many pieces at once in threads, their results in order, never more than fits."""

from __future__ import annotations

import concurrent.futures
import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

_Result = TypeVar("_Result")

#: Seconds between two looks at whether the work is to end.
_LOOK = 0.5
#: Seconds for threads to end whose work was ended.
_PATIENCE = 20.0


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
    """A piece of work.

    Parameters
    ----------
    weight
        How much of what may be in flight it takes.
    late
        Returns what it comes to where its thread is not to be waited for any longer, else None.
    """

    begin: Callable[[], Step[_Result]]
    weight: float = 1.0
    late: Callable[[], Sequence[_Result] | None] = lambda: None


class Crew(Executor):
    """Threads, of which some may be left behind: one that hangs can't be ended.

    Parameters
    ----------
    size
        Threads that work, at most, besides those left behind.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._tasks: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._threads: set[threading.Thread] = set()
        self._idle = 0
        self._closed = False
        self._lock = threading.Lock()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have a thread call a function; it must not raise."""
        future: Future[Any] = Future()

        def task() -> None:
            if future.set_running_or_notify_cancel():
                future.set_result(fn(*args, **kwargs))

        with self._lock:
            if self._closed:
                raise RuntimeError("the crew has gone home")
            self._tasks.put(task)
            if self._idle:
                self._idle -= 1
            elif len(self._threads) < self._size:
                self._start()
        return future

    def _start(self) -> None:
        # Neither this process nor its end waits for one that hangs.
        thread = threading.Thread(target=self._work, name="video", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _work(self) -> None:
        me = threading.current_thread()
        while (task := self._tasks.get()) is not None:
            task()
            with self._lock:
                if me not in self._threads:
                    return
                if self._tasks.empty():
                    self._idle += 1

    def leave_behind(self, thread: threading.Thread) -> None:
        """Put another thread in the place of one that hangs."""
        with self._lock:
            if thread in self._threads:
                self._threads.remove(thread)
                if not self._closed:
                    self._start()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads: what is not begun is dropped, and what hangs is left behind."""
        with self._lock:
            self._closed = True
            threads = set(self._threads)
        while cancel_futures and not self._tasks.empty():
            with contextlib.suppress(queue.Empty):
                self._tasks.get_nowait()
        for _ in threads:
            self._tasks.put(None)
        end = time.monotonic() + _PATIENCE
        for thread in threads if wait else ():
            thread.join(max(0.0, end - time.monotonic()))


def in_order(
    pool: Crew,
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
                while not first.wait():
                    if stopping.is_set():
                        raise StoppedError
                    # Who waits for leave may be sent home, and who hangs is left behind.
                    draining()
                    for place in waiting:
                        place.look()
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

    def __init__(self, pool: Crew, work: Work[_Result]) -> None:
        self._pool = pool
        self.weight = work.weight
        self._late = work.late
        self._timer: threading.Timer | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self.start(work.begin)

    def start(self, turn: Callable[[], Step[_Result]]) -> None:
        """Begin the next turn."""
        self._next: Future[Step[_Result]] = Future()
        self._pool.submit(self._run, turn)

    def _run(self, turn: Callable[[], Step[_Result]]) -> None:
        me = self._thread = threading.current_thread()
        failed: BaseException | None = None
        step: Step[_Result] = Step(())
        try:
            step = turn()
        except BaseException as error:  # noqa: BLE001 (raised where results are taken)
            failed = error
        with self._lock:
            if self._thread is not me:
                # It was left behind: what it brings in the end is nobody's.
                return
            self._thread = None
        if failed is not None:
            self._next.set_exception(failed)
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

    def look(self) -> None:
        """Leave the thread behind if it hangs."""
        with self._lock:
            thread, results = self._thread, None if self._thread is None else self._late()
            if thread is None or results is None:
                return
            self._thread = None
        self._pool.leave_behind(thread)
        self._next.set_result(Step(results))

    def wait(self) -> bool:
        """Wait a little for the next results; tell whether they are there."""
        return bool(concurrent.futures.wait([self._next], _LOOK).done)

    def result(self, stopping: threading.Event) -> Step[_Result]:
        step = self._next.result()
        if stopping.is_set():
            raise StoppedError
        return step

    def cancel(self) -> None:
        """Do not go on after a wait."""
        if self._timer is not None:
            self._timer.cancel()
