"""No lease from the scheduler, no request to the site: the shell round `acavdl.breaker`.

The scheduler alone counts, so rate and breaker hold for all worker processes behind an address
together, however many there are and whichever of them die. A worker's `Gate` asks for leases, and
tells what came of them, in one message a second at most, apart from what is urgent.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
import time
import urllib.parse
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from distributed import Client, Scheduler, SchedulerPlugin, Status, Worker
from distributed.utils import sync

from acavdl.breaker import Answer, Policy, Seen, State, Terms, Verdict
from acavdl.errors import Outcome
from acavdl.inflight import GivenBackError

logger = logging.getLogger(__name__)

_ASK, _SEEN = "acavdl_ask", "acavdl_egresses"
#: The name of the one egress of a cluster behind one address.
_CLUSTER = "cluster"
#: Seconds between two messages of a worker that are not urgent, and until it asks again at most.
_INTERVAL, _LONGEST_WAIT = 1.0, 60.0
#: Seconds without an answer of the scheduler.
_PATIENCE = 120.0


class Governor(SchedulerPlugin):
    """Answers the workers of a run; lives on the scheduler.

    Parameters
    ----------
    terms
        The numbers of the policy.
    cluster
        Whether all workers are behind one address.
    clock
        Seconds, monotonic.
    """

    def __init__(
        self, terms: Terms, *, cluster: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cluster = cluster
        self._clock = clock
        self._policy = Policy(terms)
        #: Workers that told where they are.
        self._told: set[str] = set()

    async def start(self, scheduler: Scheduler) -> None:
        """Answer calls from now on."""
        self._scheduler = scheduler
        for name in list(scheduler.workers):
            self.add_worker(scheduler, name)
        scheduler.handlers[_ASK] = self.ask
        scheduler.handlers[_SEEN] = self.seen

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Put a worker that is new behind the address of its host, until it knows better."""
        host = str(scheduler.workers[worker].host)
        self._policy.join(worker, _CLUSTER if self._cluster else host, self._clock())

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        """Forget a worker."""
        self._told.discard(worker)
        self._policy.leave(worker)

    def ask(self, worker: str, message: dict[str, Any]) -> dict[str, Any]:
        """Take a worker's word (see `Gate`), and answer it."""
        policy, now = self._policy, self._clock()
        # A task that has fetched nothing yet knows the host alone.
        name = message["egress"] or (None if worker in self._told else message["host"])
        if name is not None:
            self._told.add(worker)
            policy.join(worker, _CLUSTER if self._cluster else name, now)
        policy.busy(worker, message["flying"], message["wanted"])
        for kind, video, what in message["events"]:
            if kind == "worked":
                policy.worked(worker, video, now - what, now)
            elif kind == "passed":
                policy.passed(worker, video, now)
            else:
                policy.refused(worker, video, what, now)
        policy.give_back(worker, message["unused"], now)
        verdicts = {video: str(policy.verdict(worker, video, now)) for video in message["pending"]}
        pending = any(word == Verdict.WAIT for word in verdicts.values())
        answer = policy.ask(worker, message["wanted"] + message["spare"], now, pending=pending)
        return {**vars(answer), "verdicts": verdicts}

    def seen(self) -> dict[str, Any]:
        """Return the egresses, and whether the run is to end, for `look`."""
        now = self._clock()
        return {
            "seen": [vars(each) for each in self._policy.seen(now)],
            "over": self._policy.over(now),
        }


def install(client: Client, terms: Terms, *, cluster: bool = False) -> None:
    """Put a governor on the client's scheduler, in place of one from an earlier run."""
    # A name of its own: the newest one answers.
    name = f"acavdl-governor-{uuid.uuid4().hex}"
    client.register_plugin(Governor(terms, cluster=cluster), name=name)


@dataclass(frozen=True)
class Look:
    """All egresses at one moment, and whether the run is to end."""

    egresses: tuple[Seen, ...] = ()
    over: bool = False


def look(client: Client) -> Look:
    """Ask the governor how the egresses are."""
    told: Any = client.sync(getattr(client.scheduler, _SEEN))
    return Look(tuple(map(_as_seen, told["seen"])), told["over"])


def _as_seen(told: dict[str, Any]) -> Seen:
    """Return an egress as it was before it went through msgpack."""
    return Seen(**{**told, "state": State(told["state"]), "workers": tuple(told["workers"])})


def egress_of(media_url: str) -> str | None:
    """Return the address that the site sees, as the URL of its media says (``ip=``).

    Of an IPv6 address it is the network of 64 bits, within which one host may change addresses.
    """
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(media_url).query)
    try:
        address = ipaddress.ip_address(query["ip"][0])
    except (KeyError, ValueError):
        return None
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False))


class Gate:
    """The worker's side: hands out leases in the order in which they are asked for.

    Parameters
    ----------
    ask
        Sends a message to the governor and returns its answer.
    probe
        Tries a video; returns what it is refused with, ``ok``, or None where that is not clear.
    spare
        Leases that are asked for ahead of need.
    hands_back
        Whether videos go back while the egress is held back; else they wait.
    """

    def __init__(
        self,
        ask: Callable[[dict[str, Any]], dict[str, Any]],
        probe: Callable[[str], str | None],
        *,
        spare: int = 0,
        hands_back: bool = True,
    ) -> None:
        self._ask, self._probe = ask, probe
        self._spare, self._hands_back = spare, hands_back
        self._egress: str | None = None
        self._wake = threading.Condition()
        self._waiting: deque[tuple[str, Future[None]]] = deque()
        self._events: list[tuple[str, str, str | float]] = []
        self._pending: dict[str, Future[Verdict]] = {}
        #: Since when each video is on its way.
        self._flying: dict[str, float] = {}
        self._in_hand = 0
        self._held = self._draining = self._closed = False
        self._urgent = False
        #: What is raised where a video may not be begun.
        self._error: Exception = GivenBackError()
        self._next = 0.0
        self._thread = threading.Thread(target=self._run, name="gate", daemon=True)
        self._thread.start()

    # --- what the threads of a shard call

    def lease(self, video: str) -> Future[None]:
        """Return what is done when a video may be begun; it raises `GivenBackError` if not now."""
        future: Future[None] = Future()
        with self._wake:
            if self._held or self._draining or self._closed:
                future.set_exception(self._error)
            elif self._in_hand and not self._waiting:
                self._in_hand -= 1
                self._flying[video] = time.monotonic()
                future.set_result(None)
            else:
                self._waiting.append((video, future))
                self._wake.notify()
        return future

    def worked(self, video: str, media_url: str) -> None:
        """Tell that media of a leased video came."""
        with self._wake:
            self._egress = egress_of(media_url) or self._egress
            self._end("worked", video, time.monotonic() - self._flying[video])

    def passed(self, video: str) -> None:
        """Tell that a leased video failed for a reason of its own."""
        with self._wake:
            self._end("passed", video)

    def refused(self, video: str, outcome: str) -> Future[Verdict]:
        """Tell that a leased video was refused; return what will say what becomes of it.

        `Verdict.RETRY` is a lease; `GivenBackError` is raised where it goes back.
        """
        future: Future[Verdict] = Future()
        with self._wake:
            self._pending[video] = future
            self._urgent = True
            self._end("refused", video, outcome)
            if self._closed:
                self._send_back()
        return future

    def drain(self) -> None:
        """Give back all that waits for a lease."""
        with self._wake:
            self._draining = True
            self._send_back(pending=False)

    @property
    def held(self) -> bool:
        """Whether the egress is held back, and videos go back."""
        return self._held

    def close(self) -> None:
        """Give back what is not used, and end."""
        with self._wake:
            self._closed = True
            self._send_back()
            self._wake.notify()
        self._thread.join()

    # --- the thread that talks to the scheduler

    def _end(self, kind: str, video: str, what: str | float = "") -> None:
        self._flying.pop(video, None)
        self._events.append((kind, video, what))
        self._wake.notify()

    def _send_back(self, *, pending: bool = True) -> None:
        while self._waiting:
            self._waiting.popleft()[1].set_exception(self._error)
        if pending:
            for future in self._pending.values():
                future.set_exception(self._error)
            self._pending.clear()

    def _run(self) -> None:
        try:
            while self._due():
                self._talk()
            self._talk()
        except OSError:
            # The scheduler is gone, and this worker with it before long.
            logger.debug("the governor does not answer", exc_info=True)
        except Exception as error:
            # What is wrong here must not look like a refusal.
            self._error = error
            logger.exception("the governor fails")
        with self._wake:
            self._closed = True
            self._send_back()

    def _due(self) -> bool:
        """Wait until there is something to say; return False at the end."""
        with self._wake:
            said = time.monotonic()
            while not self._closed:
                now = time.monotonic()
                at = [said + _INTERVAL] if self._events or self._pending else []
                if self._waiting:
                    at.append(self._next)
                if self._urgent or (at and now >= min(at)):
                    return True
                self._wake.wait(min(at) - now if at else None)
            return False

    def _talk(self) -> None:
        with self._wake:
            events, self._events, self._urgent = self._events, [], False
            unused = self._in_hand if self._closed or self._draining else 0
            self._in_hand -= unused
            wanted = len(self._waiting)
            message = {
                "host": socket.gethostname(),
                "egress": self._egress,
                "flying": len(self._flying),
                "wanted": wanted,
                "spare": self._spare if wanted else 0,
                "unused": unused,
                "events": events,
                "pending": list(self._pending),
            }
        answer = self._ask(message)
        verdicts = answer.pop("verdicts")
        with self._wake:
            self._take(Answer(**answer), verdicts)
        if answer["probe"] is not None and not self._closed:
            self._try(answer["probe"])

    def _take(self, answer: Answer, verdicts: dict[str, str]) -> None:
        self._next = time.monotonic() + min(answer.wait, _LONGEST_WAIT)
        self._in_hand += answer.leases
        held = answer.held and (self._hands_back or answer.over)
        self._held = held
        if held:
            self._send_back()
        while self._in_hand and self._waiting:
            video, lease = self._waiting.popleft()
            self._in_hand -= 1
            self._flying[video] = time.monotonic()
            lease.set_result(None)
        for video, word in verdicts.items():
            verdict = Verdict(word)
            future = self._pending.get(video)
            if future is None or verdict is Verdict.WAIT:
                continue
            del self._pending[video]
            if verdict is Verdict.BACK:
                future.set_exception(GivenBackError())
                continue
            if verdict is Verdict.RETRY:
                self._flying[video] = time.monotonic()
            future.set_result(verdict)

    def _try(self, video: str) -> None:
        begun = time.monotonic()
        outcome = self._probe(video)
        with self._wake:
            if outcome == Outcome.OK:
                self._end("worked", video, time.monotonic() - begun)
            else:
                self._end("refused" if outcome else "passed", video, outcome or "")
            self._urgent = True


def gate_of(worker: Worker, probe: Callable[[str], str | None], **options: Any) -> Gate:
    """Return the gate of a task that runs on `worker`."""

    def ask(message: dict[str, Any]) -> dict[str, Any]:
        call = getattr(worker.scheduler, _ASK)
        try:
            answer: dict[str, Any] = sync(
                worker.loop,
                call,
                worker=worker.address,
                message=message,
                callback_timeout=_PATIENCE,
            )
        except RuntimeError as error:
            if worker.status is Status.running:
                raise
            # As distributed says it when a worker closes.
            raise ConnectionError(str(error)) from error
        return answer

    return Gate(ask, probe, **options)
