"""When the site may be asked: rate and breaker of each egress address. Pure: time is handed in.

An egress is **open**, **cooling** (refused: nobody asks until the cool-down is over, then one
probes) or **blocked** (probes were refused, too). Nothing here looks for a way round a refusal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

_HOUR = 3600.0
#: Videos that worked, remembered for each egress: what a probe asks for.
_KNOWN = 8


@dataclass(frozen=True)
class Terms:
    """The numbers of the policy; times in seconds.

    Parameters
    ----------
    per_hour
        Videos an hour and egress, with a burst of an hour's worth; None = no rate.
    refusals
        So many different videos refused in a row, without one that works, trip the breaker.
    proofs
        Videos that have to work after a refusal before the refused one is tried once more.
    quiet
        Time in which nothing is going on at an egress: then there is nothing to wait for.
    cool_down, growth, longest
        The first cool-down, how much longer the next one is, and the longest.
    together
        Two egresses that are refused within this time pause all. A breaker that trips again within
        it goes on with longer cool-downs.
    unclear
        Time until the next probe, where one says nothing (the network failed, say).
    probe_life
        Time after which a probe that was not heard of is given up.
    give_up_after
        The run ends when all egresses have been held back for so long.
    poll
        Time after which workers ask again.
    """

    per_hour: float | None = None
    refusals: int = 5
    proofs: int = 2
    quiet: float = 3.0
    cool_down: float = 1800.0
    growth: float = 2.0
    longest: float = 7200.0
    together: float = _HOUR
    unclear: float = 60.0
    probe_life: float = 300.0
    give_up_after: float = 6 * _HOUR
    poll: float = 1.0


class Verdict(StrEnum):
    """What becomes of a video that was refused."""

    WAIT = "wait"
    #: It is tried once more: this is a lease.
    RETRY = "retry"
    #: It was refused while others worked, twice: that is its outcome.
    RECORD = "record"
    #: Nothing is known about it: it goes back, uncounted.
    BACK = "back"


class State(StrEnum):
    """What is shown of an egress."""

    OPEN = "open"
    COOLING = "cooling"
    BLOCKED = "blocked"


@dataclass(frozen=True)
class Answer:
    """What a worker that asks for leases is told.

    Parameters
    ----------
    leases
        Videos that it may begin.
    wait
        Seconds after which asking again makes sense.
    held
        Whether its egress is held back: what it has not begun goes back.
    probe
        URL that it is to try, and tell of.
    over
        Whether its egress has been held back for so long that who waits is to end.
    """

    leases: int = 0
    wait: float = 0.0
    held: bool = False
    probe: str | None = None
    over: bool = False


@dataclass(frozen=True)
class Seen:
    """An egress as the driver sees it.

    Parameters
    ----------
    egress
        Its name: an address or a host.
    state
        Whether it is in use.
    workers
        Addresses of the workers behind it.
    outcome
        What it is refused with; None while it is open.
    held_for, opens_in
        Seconds since it is held back, and until it is probed (0 = now); None while it is open.
    next_lease
        Seconds until the rate allows the next video; None where nobody waits for it.
    """

    egress: str
    state: State
    workers: tuple[str, ...]
    outcome: str | None = None
    held_for: float | None = None
    opens_in: float | None = None
    next_lease: float | None = None


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

    def _fill(self, now: float) -> None:
        self._tokens += (now - self.now) * self.per_hour / _HOUR
        self._tokens = min(self._tokens, max(1.0, self.per_hour))
        self.now = now

    def take(self, now: float) -> float:
        """Take a lease: 0.0 if there is one, else the seconds until the next."""
        self._fill(now)
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return self.time_to_next(now)

    def time_to_next(self, now: float) -> float:
        """Return the seconds until there is a lease; 0.0 = there is one."""
        self._fill(now)
        return max(0.0, 1.0 - self._tokens) * _HOUR / self.per_hour

    def charge(self, count: float, now: float) -> None:
        """Take leases that were used already: the next ones come later. Negative: give back."""
        self._fill(now)
        self._tokens = min(self._tokens - count, max(1.0, self.per_hour))


@dataclass
class _Suspect:
    """A video that was refused: to whom, how often, when last; how many worked that began later."""

    worker: str
    times: int = 0
    at: float = 0.0
    proofs: int = 0


@dataclass
class _Probe:
    """Who tries, since when, and which video (None = one of its own)."""

    worker: str
    begun: float
    video: str | None


@dataclass
class _Worker:
    """What a worker said last: videos that it has begun, and those that wait for a lease."""

    egress: str
    flying: int = 0
    waiting: int = 0
    #: Leases that it had of its egress.
    used: int = 0


@dataclass
class _Egress:
    bucket: Bucket | None
    heard: float
    known: deque[str] = field(default_factory=lambda: deque(maxlen=_KNOWN))
    #: Videos refused for the first time, and when, without one that worked and began later.
    streak: dict[str, float] = field(default_factory=dict)
    suspects: dict[str, _Suspect] = field(default_factory=dict)
    outcome: str | None = None
    #: Since when it is held back, until when it cools, and who probes then; None while it is open.
    since: float | None = None
    until: float = 0.0
    probe: _Probe | None = None
    #: Trips without a quiet hour between them; when the last one was, and the last closing.
    level: int = 0
    tripped: float | None = None
    closed: float | None = None
    #: Probes refused since it is held back.
    refused_probes: int = 0

    @property
    def held(self) -> bool:
        return self.since is not None

    def close(self, now: float) -> None:
        self.since, self.probe, self.outcome, self.closed = None, None, None, now
        self.refused_probes = 0
        self.streak.clear()

    def hand_over(self, worker: str, other: _Egress) -> None:
        """Give what waits for word to the egress that its worker is behind."""
        moved = {name: each for name, each in self.suspects.items() if each.worker == worker}
        for name, suspect in moved.items():
            del self.suspects[name]
            self.streak.pop(name, None)
            other.suspects[name] = suspect
        if self.probe is not None and self.probe.worker == worker:
            other.probe, self.probe = self.probe, None

    def hold(self, now: float, until: float, outcome: str | None) -> None:
        """Let nobody ask until then, and only a probe after that."""
        self.since = now if self.since is None else self.since
        self.until = max(self.until, until)
        self.outcome = self.outcome or outcome
        self.probe = None
        self.streak.clear()
        for suspect in self.suspects.values():
            # The second try tells nothing of the video.
            suspect.times = 1


class Policy:
    """Rates and breakers of all egresses of a run; a new run has full buckets and closed breakers.

    Parameters
    ----------
    terms
        The numbers.
    """

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._egresses: dict[str, _Egress] = {}
        self._workers: dict[str, _Worker] = {}
        self._paused_until = 0.0
        self._paused_for: str | None = None

    # --- who is there

    def join(self, worker: str, egress: str, now: float) -> None:
        """Note which egress a worker is behind.

        What it used of another one goes with it. An address that follows on another one of the same
        worker begins as that one is: a new address is no new burst, and closes no breaker.
        """
        known = self._workers.get(worker)
        if known is not None and known.egress == egress:
            return
        before = None if known is None else self._egresses[known.egress]
        if egress not in self._egresses:
            made = _Egress(self._bucket(now), now)
            if now < self._paused_until:
                made.hold(now, self._paused_until, self._paused_for)
            if before is not None and before.held:
                made.hold(before.since or now, before.until, before.outcome)
                made.level = before.level
            self._egresses[egress] = made
        used = 0
        if known is not None and before is not None:
            used = known.used
            if before.bucket is not None:
                before.bucket.charge(-used, now)
            after = self._egresses[egress]
            if after.bucket is not None:
                after.bucket.charge(used, now)
            before.hand_over(worker, after)
        self._workers[worker] = _Worker(
            egress,
            0 if known is None else known.flying,
            0 if known is None else known.waiting,
            used,
        )

    def _bucket(self, now: float) -> Bucket | None:
        return None if self._terms.per_hour is None else Bucket(self._terms.per_hour, now)

    def leave(self, worker: str) -> None:
        """Forget a worker that is gone; leases that it had count as used."""
        gone = self._workers.pop(worker, None)
        if gone is not None:
            egress = self._egresses[gone.egress]
            if egress.probe is not None and egress.probe.worker == worker:
                egress.probe = None

    def busy(self, worker: str, flying: int, waiting: int) -> None:
        """Note how many videos a worker has begun, and how many wait for a lease."""
        self._workers[worker].flying, self._workers[worker].waiting = flying, waiting

    def _of(self, worker: str) -> _Egress:
        return self._egresses[self._workers[worker].egress]

    # --- leases

    def ask(self, worker: str, wanted: int, now: float, *, pending: bool = False) -> Answer:
        """Return how many of the `wanted` videos a worker may begin, and what else it is to do.

        `pending` tells whether it waits for a verdict: where nothing is going on, it may probe.
        """
        egress = self._of(worker)
        if not egress.held:
            if wanted:
                egress.heard = now
                granted, wait = self._take(worker, egress, wanted, now)
                return Answer(leases=granted, wait=wait)
            if pending and egress.probe is None and self._quiet(egress, now):
                return self._probe_known(worker, egress, now) or Answer()
            return Answer()
        return self._probe(worker, egress, wanted, now)

    def _probe(self, worker: str, egress: _Egress, wanted: int, now: float) -> Answer:
        """Return whether a worker behind an egress that is held back may probe it."""
        terms = self._terms
        over = egress.since is not None and now - egress.since >= terms.give_up_after
        if self.over(now):
            return Answer(held=True, over=True, wait=terms.poll)
        if egress.probe is not None and now - egress.probe.begun > terms.probe_life:
            egress.probe = None
        if now < egress.until:
            return Answer(held=True, over=over, wait=egress.until - now)
        if egress.probe is not None:
            # Others may not even wait for it; who probes has something to wait for.
            return Answer(held=egress.probe.worker != worker, over=over, wait=terms.poll)
        answer = self._probe_known(worker, egress, now)
        if answer is not None:
            return answer
        if not wanted:
            return Answer(wait=terms.poll)
        egress.probe = _Probe(worker, now, None)
        self._charge(worker, egress, 1, now)
        return Answer(leases=1, wait=terms.poll)

    def _probe_known(self, worker: str, egress: _Egress, now: float) -> Answer | None:
        known = self._known(egress)
        if known is None:
            return None
        egress.probe, egress.heard = _Probe(worker, now, known), now
        self._charge(worker, egress, 1, now)
        return Answer(probe=known, wait=self._terms.poll)

    def _take(self, worker: str, egress: _Egress, wanted: int, now: float) -> tuple[int, float]:
        bucket = egress.bucket
        if bucket is None:
            return wanted, 0.0
        granted, wait = 0, 0.0
        while granted < wanted and (wait := bucket.take(now)) == 0.0:
            granted += 1
        self._workers[worker].used += granted
        return granted, wait

    def _charge(self, worker: str, egress: _Egress, count: int, now: float) -> None:
        if egress.bucket is not None:
            egress.bucket.charge(count, now)
            self._workers[worker].used += count

    def give_back(self, worker: str, count: int, now: float) -> None:
        """Take back leases that a worker did not use."""
        count = min(count, self._workers[worker].used)
        self._charge(worker, self._of(worker), -count, now)

    def _known(self, egress: _Egress) -> str | None:
        """Return a video that worked: at this egress, else at any; another one each time."""
        for each in (egress, *self._egresses.values()):
            if each.known:
                each.known.rotate(-1)
                return each.known[-1]
        return None

    # --- what came of them

    def worked(self, worker: str, video: str, began: float, now: float) -> None:
        """Note a video of which media came; that it was `began` before a refusal proves nothing."""
        egress = self._of(worker)
        egress.heard = now
        if video not in egress.known:
            egress.known.append(video)
        if self._probes(egress, worker, video):
            egress.probe = None
            if egress.held:
                egress.close(now)
        egress.suspects.pop(video, None)
        egress.streak = {name: at for name, at in egress.streak.items() if at >= began}
        for suspect in egress.suspects.values():
            suspect.proofs += began > suspect.at

    def passed(self, worker: str, video: str, now: float) -> None:
        """Note a video that failed, but was not refused: it tells nothing of the egress."""
        egress = self._of(worker)
        egress.heard = now
        egress.suspects.pop(video, None)
        if self._probes(egress, worker, video):
            egress.probe, egress.until = None, now + self._terms.unclear

    def refused(self, worker: str, video: str, outcome: str, now: float) -> None:
        """Note a video that the site refused to this egress."""
        egress = self._of(worker)
        egress.heard = now
        if self._probes(egress, worker, video):
            egress.refused_probes += egress.held
            egress.outcome = outcome
            self._trip(egress, outcome, now)
            return
        suspect = egress.suspects.setdefault(video, _Suspect(worker))
        suspect.worker, suspect.at, suspect.proofs = worker, now, 0
        suspect.times = 1 if egress.held else suspect.times + 1
        if suspect.times == 1 and not egress.held:
            # Once more refused, it says more about the video than about the egress.
            egress.streak[video] = now
            if len(egress.streak) >= self._terms.refusals:
                self._trip(egress, outcome, now)

    def _probes(self, egress: _Egress, worker: str, video: str) -> bool:
        probe = egress.probe
        return probe is not None and probe.worker == worker and probe.video in (None, video)

    def _trip(self, egress: _Egress, outcome: str, now: float) -> None:
        terms = self._terms
        if egress.closed is not None and now - egress.closed > terms.together:
            egress.level = 0
        until = now + min(terms.cool_down * terms.growth**egress.level, terms.longest)
        egress.level, egress.tripped = egress.level + 1, now
        egress.hold(now, until, outcome)
        if any(self._tripped_with(egress, other, now) for other in self._egresses.values()):
            self._paused_until, self._paused_for = until, outcome
            for other in self._egresses.values():
                other.hold(now, until, outcome)

    def _tripped_with(self, egress: _Egress, other: _Egress, now: float) -> bool:
        recent = other.tripped is not None and now - other.tripped <= self._terms.together
        return other is not egress and recent

    def verdict(self, worker: str, video: str, now: float) -> Verdict:
        """Return what becomes of a video that was refused to this worker."""
        egress = self._of(worker)
        suspect = egress.suspects.get(video)
        if egress.held or suspect is None:
            return Verdict.BACK
        proofs = self._terms.proofs if suspect.times == 1 else 1
        # Where nothing is going on, a probe is all the proof there can be, if there is one.
        quiet = self._quiet(egress, now)
        if suspect.proofs < proofs and not (quiet and (suspect.proofs or not self._known(egress))):
            return Verdict.WAIT
        if suspect.times == 1:
            granted, _ = self._take(worker, egress, 1, now)
            egress.heard = now
            return Verdict.RETRY if granted else Verdict.WAIT
        del egress.suspects[video]
        return Verdict.RECORD

    def _quiet(self, egress: _Egress, now: float) -> bool:
        there = [each for each in self._workers.values() if self._egresses[each.egress] is egress]
        idle = not any(each.flying or each.waiting for each in there)
        return idle and now - egress.heard >= self._terms.quiet

    # --- what is seen of it

    def over(self, now: float) -> bool:
        """Whether all egresses in use have been held back for too long."""
        since = [self._egresses[worker.egress].since for worker in self._workers.values()]
        if not since or None in since:
            return False
        return now - max(each for each in since if each is not None) >= self._terms.give_up_after

    def seen(self, now: float) -> list[Seen]:
        """Return the egresses that workers are behind."""
        behind: dict[str, list[str]] = {}
        for name, worker in self._workers.items():
            behind.setdefault(worker.egress, []).append(name)
        return [self._seen(egress, workers, now) for egress, workers in behind.items()]

    def _seen(self, name: str, workers: Iterable[str], now: float) -> Seen:
        egress, workers = self._egresses[name], tuple(workers)
        if egress.since is None:
            wait = None
            if egress.bucket is not None and any(self._workers[each].waiting for each in workers):
                wait = egress.bucket.time_to_next(now)
            return Seen(name, State.OPEN, workers, next_lease=wait or None)
        probed = egress.probe is not None and now - egress.probe.begun <= self._terms.probe_life
        left = max(0.0, egress.until - now)
        return Seen(
            name,
            State.BLOCKED if egress.refused_probes else State.COOLING,
            workers,
            outcome=egress.outcome,
            held_for=now - egress.since,
            opens_in=self._terms.poll if probed else left,
        )


def told(seen: Iterable[Seen]) -> Mapping[str, int]:
    """Return how many egresses are open, cooling and blocked; none of a kind is left out."""
    counts: dict[str, int] = {}
    for each in seen:
        counts[each.state.value] = counts.get(each.state.value, 0) + 1
    return counts


#: Hours in which an egress should be able to finish the shards that are open behind it.
_OPEN_HOURS = 2.0


def shards_open(per_hour: float | None, videos: int) -> int | None:
    """Return how many shards may be open behind an egress; None = any number.

    Parameters
    ----------
    videos
        Of a shard, that the rate is for.
    """
    if per_hour is None or not videos:
        return None
    return max(1, int(_OPEN_HOURS * per_hour / videos))


def shares(
    seen: Iterable[Seen], running: Iterable[Sequence[str]], most: int | None, room: int
) -> list[tuple[tuple[str, ...], int]]:
    """Tell how many more shards to hand to the workers of which egress.

    Parameters
    ----------
    running
        For each shard that is handed out, the workers that it is for.
    most
        Shards that may be open behind an egress; None = any number. An egress that is refused gets
        one, to probe with, when its cool-down is over.
    room
        Shards to hand out, at most.

    Returns
    -------
    list of tuple
        Addresses of workers, and how many shards.
    """
    seen = list(seen)
    at = {worker: place for place, each in enumerate(seen) for worker in each.workers}
    there = [0] * len(seen)
    for workers in running:
        # Its workers may be gone, or behind another address than was thought.
        place = next((at[worker] for worker in workers if worker in at), None)
        if place is not None:
            there[place] += 1
    found = []
    for each, count in zip(seen, there, strict=True):
        limit = _ready(each, most) - count
        if (share := min(limit, room)) > 0:
            found.append((each.workers, share))
            room -= share
    return found


def _ready(egress: Seen, most: int | None) -> int:
    """Return how many shards an egress may have: a few more than workers are at hand.

    More would wait for busy workers while others, which come later, have none.
    """
    if egress.state is not State.OPEN:
        return 0 if egress.opens_in else 1
    full = len(egress.workers) + -(-len(egress.workers) // 8)
    return full if most is None else min(most, full)
