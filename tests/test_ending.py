"""A run ends in order at its limits, and when it is asked to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from acavdl.config import Limits
from acavdl.ending import STOP, Ending, ask_to_end
from acavdl.storage import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def waited_for(condition: Callable[[], object]) -> bool:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return bool(condition())


def test_without_limits_it_goes_on(store: Store) -> None:
    ending = Ending(store, Limits(), lambda: 10**15)
    with ending.watched():
        time.sleep(1.5)
    assert ending.reason is None


def test_hours_and_bytes_are_limits(store: Store) -> None:
    fetched = 0
    by_bytes = Ending(store, Limits(bytes=1000), lambda: fetched)
    by_hours = Ending(store, Limits(hours=0.0005), lambda: 0)
    with by_bytes.watched(), by_hours.watched():
        assert waited_for(lambda: by_hours.reason)
        assert by_hours.reason == "--max-hours 0.0005 are over"
        assert by_bytes.reason is None
        fetched = 1000
        assert waited_for(lambda: by_bytes.reason)
    assert by_bytes.reason == "--max-bytes 1,000 are fetched"


def test_it_ends_when_asked_to_and_says_so(store: Store) -> None:
    store.write(STOP, b"")
    ending = Ending(store, Limits(), lambda: 0)
    answers: list[bool] = []
    with ending.watched():
        # What was asked of an earlier run does not end this one.
        assert store.size(STOP) is None
        asking = threading.Thread(target=lambda: answers.append(ask_to_end(store)))
        asking.start()
        assert waited_for(lambda: ending.reason)
        asking.join()
    assert answers == [True]
    assert "acavdl stop" in str(ending.reason)
    assert store.size(STOP) is None


def test_nobody_may_be_there_to_hear_it(store: Store) -> None:
    assert not ask_to_end(store, patience=0.1)
    assert store.size(STOP) is None
