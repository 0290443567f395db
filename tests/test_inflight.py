"""Pieces of work in threads: in order, bounded, and with pauses that take no thread."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator

import pytest

from acavdl.inflight import Crew, Step, StoppedError, Work, in_order

NEVER = threading.Event()


def at_once(make: Callable[[], list[int]], weight: float = 1.0) -> Work[int]:
    return Work(lambda: Step(make()), weight)


def test_work_in_flight_is_bounded_and_results_stay_in_order() -> None:
    begun: list[int] = []
    release = threading.Event()

    def make(item: int) -> list[int]:
        begun.append(item)
        if item == 0:
            release.wait(10)
        return [item, item]

    works = (at_once(functools.partial(make, item)) for item in range(50))
    with Crew(3) as pool:
        results = in_order(pool, works, 6, NEVER)
        timer = threading.Timer(0.3, lambda: (begun.append(-1), release.set()))
        timer.start()
        first = next(results)
        timer.join()
        # While the first one held up the line, no more than six were begun.
        assert set(begun[: begun.index(-1)]) == set(range(6))
        assert [first, *results] == [item for item in range(50) for _ in range(2)]


def test_weights_count() -> None:
    """What is too heavy for the limit is run alone; it holds up what comes after."""
    running: list[int] = []
    most: list[list[int]] = []

    def make(item: int) -> list[int]:
        running.append(item)
        most.append(running.copy())
        running.remove(item)
        return [item]

    weights = [1, 1, 1, 9, 1, 2, 2]
    works = [at_once(functools.partial(make, n), weight) for n, weight in enumerate(weights)]
    with Crew(8) as pool:
        assert list(in_order(pool, works, 3, NEVER)) == list(range(7))
    assert [3] in most


def test_a_pause_takes_no_thread_and_no_turn() -> None:
    """With one thread, what was begun later goes on while the first one waits."""
    told: list[str] = []
    others_are_done = threading.Event()

    def again() -> Step[int]:
        told.append("first goes on")
        assert others_are_done.is_set()
        return Step([0])

    def first() -> Step[int]:
        told.append("first begins")
        return Step((), again, 0.5)

    def other(number: int) -> Step[int]:
        told.append(f"{number} is made")
        if number == 3:
            others_are_done.set()
        return Step([number])

    works = [Work(first), *(Work(functools.partial(other, n)) for n in (1, 2, 3))]
    with Crew(1) as pool:
        assert list(in_order(pool, works, 4, NEVER)) == [0, 1, 2, 3]
    assert told == ["first begins", "1 is made", "2 is made", "3 is made", "first goes on"]


def test_work_in_parts_goes_on_as_its_results_are_taken() -> None:
    """No part is made before the results of the part before the last one are taken."""
    made: list[int] = []

    def part(number: int) -> Step[int]:
        made.append(number)
        following = functools.partial(part, number + 1) if number < 4 else None
        return Step([10 * number, 10 * number + 1], following)

    works = [Work(functools.partial(part, 0)), at_once(lambda: [99])]
    with Crew(2) as pool:
        results = in_order(pool, works, 2, NEVER)
        for number in range(5):
            assert next(results) == 10 * number
            assert next(results) == 10 * number + 1
            assert max(made) <= number + 1
        assert list(results) == [99]
    assert made == list(range(5))


def test_a_failure_is_raised_where_results_are_taken() -> None:
    def broken() -> list[int]:
        raise ZeroDivisionError

    with Crew(2) as pool:
        results = in_order(pool, [at_once(lambda: [1]), at_once(broken)], 2, NEVER)
        assert next(results) == 1
        with pytest.raises(ZeroDivisionError):
            next(results)


@pytest.mark.parametrize("waits", [False, True])
def test_a_stop_ends_it(waits: bool) -> None:
    """Whether a thread hangs, or a pause is to be waited for."""
    stopping, release = threading.Event(), threading.Event()

    def begin() -> Step[int]:
        threading.Timer(0.1, stopping.set).start()
        if waits:
            return Step((), lambda: Step([1]), 3600)
        release.wait(60)
        return Step([1])

    with Crew(2) as pool:
        with pytest.raises(StoppedError):
            next(in_order(pool, [Work(begin)], 2, stopping))
        release.set()
    assert not [each for each in threading.enumerate() if isinstance(each, threading.Timer)]


def test_nothing_is_begun_before_it_is_asked_for() -> None:
    def works() -> Iterator[Work[int]]:
        for number in range(10):
            taken.append(number)
            yield at_once(functools.partial(list, [number]))

    taken: list[int] = []
    with Crew(2) as pool:
        results = in_order(pool, works(), 3, NEVER)
        assert taken == []
        assert next(results) == 0
        assert len(taken) <= 5
        assert list(results) == list(range(1, 10))
        assert list(in_order(pool, [], 3, NEVER)) == []
