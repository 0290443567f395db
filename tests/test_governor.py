"""The governor on a real scheduler: leases for all workers together, and what one makes of it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, get_worker
from distributed.utils import sync
from helpers import write_csv

from acavdl import driver
from acavdl.breaker import Answer, State, Terms, Verdict
from acavdl.cluster import local_client
from acavdl.config import Config, Distribution, Reading, Storage
from acavdl.ending import ask_to_end
from acavdl.governor import Gate, egress_of, gate_of, install, look
from acavdl.inflight import GivenBackError
from acavdl.sandbox import Sandbox, video_id
from acavdl.storage import Store


def message(wanted: int, events: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "host": "here", "egress": None, "flying": 0, "wanted": wanted, "spare": 0, "unused": 0,
        "events": events or [], "pending": [], **more,
    }  # fmt: skip


def test_all_worker_processes_share_one_rate() -> None:
    def ask(told: dict[str, Any]) -> dict[str, Any]:
        worker = get_worker()
        answer: dict[str, Any] = sync(
            worker.loop, worker.scheduler.acavdl_ask, worker=worker.address, message=told
        )
        return answer

    with local_client(2) as client:
        one, two = client.nthreads()

        def leases(worker: str, **told: Any) -> int:
            answer = client.submit(ask, message(**told), workers=[worker], pure=False).result()
            return int(answer["leases"])

        install(client, Terms(per_hour=10))
        assert (leases(one, wanted=7), leases(two, wanted=7)) == (7, 3)
        assert leases(two, wanted=0, unused=2) == 0
        assert leases(one, wanted=7) == 2
        (seen,) = look(client).egresses
        assert (seen.egress, set(seen.workers)) == ("here", {one, two})
        # Another run on the same scheduler begins with a governor of its own.
        install(client, Terms(per_hour=3))
        assert leases(one, wanted=7) == 3
        # Each has an address of its own, as it turns out: what it used goes with it.
        assert leases(two, wanted=7, egress="192.0.2.2") == 3
        refused = [["refused", f"v{n}", "bot_check"] for n in range(5)]
        assert leases(one, wanted=7, events=refused) == 0
        states = {each.egress: each.state for each in look(client).egresses}
        assert states == {"here": State.COOLING, "192.0.2.2": State.OPEN}
        # Its workers are gone.
        client.retire_workers([one])
        assert [each.egress for each in look(client).egresses] == ["192.0.2.2"]


@pytest.mark.parametrize(
    ("url", "egress"),
    [
        ("https://rr1---sn.googlevideo.com/videoplayback?expire=1&ip=192.0.2.7&id=o", "192.0.2.7"),
        ("https://a.googlevideo.com/videoplayback?ip=2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("https://a.googlevideo.com/videoplayback?ip=nonsense", None),
        ("https://example.org/video.mp4", None),
    ],
)
def test_whose_address_media_are_for(url: str, egress: str | None) -> None:
    assert egress_of(url) == egress


class Scheduler:
    """What a gate talks to: answers as told, and remembers what was said."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []
        self.answer: Callable[[dict[str, Any]], Answer] = lambda told: Answer(told["wanted"])
        self.verdicts: dict[str, Verdict] = {}
        self.probed: list[str] = []

    def ask(self, told: dict[str, Any]) -> dict[str, Any]:
        self.said.append(told)
        verdicts = {name: str(self.verdicts.get(name, "wait")) for name in told["pending"]}
        return {**vars(self.answer(told)), "verdicts": verdicts}

    def probe(self, url: str) -> str | None:
        self.probed.append(url)
        return "ok"


@pytest.fixture
def there() -> Scheduler:
    return Scheduler()


@pytest.fixture
def gate(there: Scheduler) -> Iterator[Gate]:
    made = Gate(there.ask, there.probe)
    yield made
    made.close()


def given_back(future: Future[Any]) -> bool:
    with pytest.raises(GivenBackError):
        future.result(10)
    return True


def test_leases_come_in_the_order_in_which_they_are_asked_for(there: Scheduler, gate: Gate) -> None:
    there.answer = lambda told: Answer(min(1, told["wanted"]), wait=0.01)
    leases = [gate.lease(f"v{n}") for n in range(20)]
    for place, lease in enumerate(leases):
        lease.result(10)
        assert all(each.done() for each in leases[:place])


def test_what_came_of_them_goes_in_few_messages(there: Scheduler, gate: Gate) -> None:
    there.answer = lambda told: Answer(100)
    for number in range(50):
        gate.lease(f"v{number}").result(10)
    for number in range(50):
        gate.worked(f"v{number}", "https://a/?ip=192.0.2.9")
    gate.close()
    events = [event for told in there.said for event in told["events"]]
    assert [(kind, video) for kind, video, _ in events] == [("worked", f"v{n}") for n in range(50)]
    assert all(0 <= seconds < 60 for _, _, seconds in events)
    assert there.said[-1]["egress"] == "192.0.2.9"
    # What was not used goes back.
    assert there.said[-1]["unused"] == 50
    assert len(there.said) < 10


def test_where_it_is_held_back_all_goes_back(there: Scheduler, gate: Gate) -> None:
    there.answer = lambda told: Answer(held=True, wait=100.0)
    assert given_back(gate.lease("v1"))
    assert gate.held
    assert given_back(gate.lease("v2"))
    assert len(there.said) == 1


def test_who_may_not_hand_back_waits_until_it_is_over(there: Scheduler) -> None:
    gate = Gate(there.ask, there.probe, hands_back=False)
    there.answer = lambda told: Answer(held=True, wait=0.01)
    lease = gate.lease("v1")
    while len(there.said) < 5:
        time.sleep(0.01)
    assert not lease.done()
    there.answer = lambda told: Answer(held=True, over=True)
    assert given_back(lease)
    gate.close()


def test_what_is_refused_waits_for_a_verdict(there: Scheduler, gate: Gate) -> None:
    gate.lease("v1").result(10)
    gate.lease("v2").result(10)
    waits = {name: gate.refused(name, "bot_check") for name in ("v1", "v2", "v3", "v4")}
    there.verdicts = {"v1": Verdict.RETRY, "v2": Verdict.RECORD, "v3": Verdict.BACK}
    assert waits["v1"].result(10) is Verdict.RETRY
    assert waits["v2"].result(10) is Verdict.RECORD
    assert given_back(waits["v3"])
    gate.lease("v5").result(10)
    # That it is tried again is a lease.
    assert there.said[-1]["flying"] == 1
    assert not waits["v4"].done()
    gate.close()
    assert given_back(waits["v4"])


def test_a_probe_is_told_of(there: Scheduler, gate: Gate) -> None:
    answers = iter([Answer(probe="https://good", wait=0.1), Answer(1)])
    there.answer = lambda told: next(answers, Answer())
    gate.lease("v1").result(10)
    assert there.probed == ["https://good"]
    assert there.said[1]["events"][0][:2] == ("worked", "https://good")


def test_what_drains_gives_back_who_waits_and_no_other(there: Scheduler, gate: Gate) -> None:
    there.answer = lambda told: Answer(0, wait=100.0)
    waits, refused = gate.lease("v1"), gate.refused("v2", "http_429")
    gate.drain()
    assert given_back(waits)
    assert given_back(gate.lease("v3"))
    assert not refused.done()
    there.verdicts = {"v2": Verdict.RECORD}
    assert refused.result(10) is Verdict.RECORD


def test_a_scheduler_that_is_gone_ends_the_waiting(there: Scheduler, gate: Gate) -> None:
    def gone(told: dict[str, Any]) -> Answer:
        raise OSError("connection closed")

    there.answer = gone
    assert given_back(gate.lease("v1"))
    assert given_back(gate.lease("v2"))
    assert given_back(gate.refused("v3", "bot_check"))


def test_a_governor_that_fails_is_no_refusal(there: Scheduler, gate: Gate) -> None:
    def wrong(told: dict[str, Any]) -> Answer:
        raise ZeroDivisionError

    there.answer = wrong
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            gate.lease("v1").result(10)


def test_a_gate_of_a_worker_asks_its_scheduler() -> None:
    def leases() -> list[bool]:
        gate = gate_of(get_worker(), lambda _: None)
        made = [gate.lease(f"v{n}") for n in range(3)]
        for lease in made[:2]:
            lease.result(20)
        gate.drain()
        gate.close()
        return [lease.exception() is None for lease in made]

    with local_client(1) as client:
        install(client, Terms(per_hour=2))
        assert client.submit(leases).result(timeout=20) == [True, True, False]


def test_run_asks_the_site_no_faster_than_the_rate(online: Sandbox, tmp_path: Path) -> None:
    """Five videos at one an hour: the first is asked for, the others wait."""
    online.reset()
    rows = [(video_id(i, master="m60"), 0.5, 4.5) for i in range(5)]
    config = Config(
        Reading(rate_limit=1.0),
        Storage(),
        Distribution(processes_count=1, thread_count=4),
    )
    source = write_csv(tmp_path / "clips.csv", rows)
    with local_client(1) as client:
        thread = threading.Thread(
            target=lambda: driver.run(
                str(source), str(tmp_path / "out"), config=config, client=client, progress="quiet"
            ),
        )
        thread.start()
        end = time.monotonic() + 20
        while True:
            assert time.monotonic() < end
            time.sleep(0.05)
            try:
                (seen,) = look(client).egresses
            except (AttributeError, TypeError, OSError):
                # The governor is not there yet.
                continue
            if seen.next_lease is not None:
                break
        assert 3000 < seen.next_lease <= 3600
        asked = {video for video, kinds in online.stats().videos.items() if kinds.get("page")}
        assert len(asked) <= 1
        # Who waits for a lease does not hold the end of the run up.
        assert ask_to_end(Store(str(tmp_path / "out")))
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize(("egress", "counted"), [("node", "192.0.2.1"), ("cluster", "cluster")])
def test_whose_address_it_is(
    online: Sandbox, tmp_path: Path, client: Client, egress: Any, counted: str
) -> None:
    source = write_csv(tmp_path / "t.csv", [(video_id(1, master="m60"), 0, 3)])
    config = Config(Reading(egress=egress))
    driver.run(str(source), str(tmp_path / "out"), config=config, client=client, progress="quiet")
    assert counted in {each.egress for each in look(client).egresses}
    assert socket.gethostname() not in {each.egress for each in look(client).egresses}
