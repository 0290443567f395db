"""The policy in simulated time: rates, refusals, cool-downs and probes of all egresses."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from acavdl.breaker import Answer, Bucket, Policy, Seen, State, Terms, Verdict, shards_open, shares

TERMS = Terms(cool_down=100.0, longest=400.0, together=3600.0, give_up_after=1000.0)
BOT = "bot_check"


# --- the rate


def test_an_hours_worth_at_once_then_one_by_one() -> None:
    bucket = Bucket(300, 1000.0)
    assert [bucket.take(1000.0) for _ in range(300)] == [0.0] * 300
    assert bucket.take(1000.0) == pytest.approx(12.0)
    assert bucket.take(1011.9) == pytest.approx(0.1)
    assert bucket.take(1012.1) == 0.0
    assert bucket.take(1012.1) > 11


def test_a_rate_below_one_an_hour_works() -> None:
    bucket = Bucket(0.5, 0.0)
    assert bucket.take(0.0) == 0.0
    assert bucket.take(0.0) == pytest.approx(7200.0)


@given(
    per_hour=st.floats(0.5, 10_000),
    gaps=st.lists(st.floats(0, 4000), min_size=1, max_size=200),
)
def test_never_more_than_burst_and_rate(per_hour: float, gaps: list[float]) -> None:
    bucket, now, taken = Bucket(per_hour, 0.0), 0.0, 0
    for gap in gaps:
        now += gap
        taken += bucket.take(now) == 0.0
        assert taken <= max(1.0, per_hour) + now * per_hour / 3600 + 1e-6


@given(per_hour=st.floats(0.5, 10_000), now=st.floats(0, 1e6))
def test_who_waits_as_told_gets_a_lease(per_hour: float, now: float) -> None:
    bucket = Bucket(per_hour, now)
    while (seconds := bucket.take(now)) == 0.0:
        pass
    assert bucket.take(now + seconds + 1e-3) == 0.0


def policy(*workers: str, terms: Terms = TERMS) -> Policy:
    """Each worker ``a1`` is behind the egress ``a``."""
    made = Policy(terms)
    for worker in workers:
        made.join(worker, worker[0], 0.0)
    return made


def test_leases_come_in_batches_and_egresses_are_counted_apart() -> None:
    made = policy("a1", "a2", "b1", terms=Terms(per_hour=10))
    assert made.ask("a1", 8, 0.0) == Answer(leases=8)
    assert made.ask("a2", 8, 0.0).leases == 2
    assert made.ask("a2", 8, 0.0) == Answer(wait=pytest.approx(360.0))
    assert made.ask("b1", 8, 0.0).leases == 8


def test_what_is_not_used_is_given_back() -> None:
    made = policy("a1", "a2", terms=Terms(per_hour=10))
    assert made.ask("a1", 10, 0.0).leases == 10
    made.give_back("a1", 4, 0.0)
    assert made.ask("a2", 10, 0.0).leases == 4
    # Nobody can give back more than he had.
    made.give_back("a2", 100, 0.0)
    assert made.ask("a1", 100, 0.0).leases == 4


def test_a_new_address_is_no_new_burst() -> None:
    made = policy("a1", terms=Terms(per_hour=10))
    assert made.ask("a1", 10, 0.0).leases == 10
    made.join("a1", "x", 0.0)
    assert made.ask("a1", 10, 0.0).leases == 0
    # Where others count already, what it used counts, too.
    made.join("b1", "b", 0.0)
    assert made.ask("b1", 3, 0.0).leases == 3
    made.join("b1", "x", 0.0)
    assert made.ask("b1", 10, 3600.0).leases == 7


def test_no_rate_is_no_limit_but_the_breaker_is_there() -> None:
    made = policy("a1")
    assert made.ask("a1", 1000, 0.0) == Answer(leases=1000)
    block(made, "a1", 1.0)
    assert made.ask("a1", 1, 2.0).held


# --- the breaker


def block(made: Policy, worker: str, now: float, count: int = 5) -> None:
    for number in range(count):
        made.refused(worker, f"{worker}-{now}-{number}", BOT, now)


def state(made: Policy, egress: str, now: float) -> State:
    return next(each.state for each in made.seen(now) if each.egress == egress)


def test_five_different_videos_in_a_row_trip_it() -> None:
    made = policy("a1", "a2", "b1")
    block(made, "a1", 1.0, 4)
    assert made.ask("a1", 1, 1.0).leases == 1
    made.refused("a2", "fifth", BOT, 2.0)
    assert made.ask("a1", 1, 2.0) == Answer(held=True, wait=100.0)
    assert made.ask("a2", 1, 2.0).held
    # Another egress goes on.
    assert made.ask("b1", 1, 2.0).leases == 1
    assert made.verdict("a2", "fifth", 2.0) is Verdict.BACK


def test_one_video_five_times_does_not() -> None:
    made = policy("a1")
    for now in range(5):
        made.refused("a1", "same", BOT, float(now))
    assert made.ask("a1", 1, 5.0).leases == 1


def test_a_video_that_works_breaks_the_row_if_it_began_later() -> None:
    made = policy("a1")
    block(made, "a1", 1.0, 4)
    made.worked("a1", "ok", 2.0, 3.0)
    block(made, "a1", 4.0, 4)
    assert state(made, "a", 4.0) is State.OPEN
    # Its page had come before the address was refused.
    made.worked("a1", "old", 3.5, 5.0)
    made.refused("a1", "fifth", BOT, 6.0)
    assert state(made, "a", 6.0) is State.COOLING


def test_a_single_refused_video_is_tried_once_more_and_then_recorded() -> None:
    made = policy("a1")
    made.busy("a1", 3, 0)
    made.refused("a1", "odd", BOT, 1.0)
    assert made.verdict("a1", "odd", 2.0) is Verdict.WAIT
    made.worked("a1", "v1", 1.5, 2.0)
    made.worked("a1", "v0", 0.5, 2.0)
    assert made.verdict("a1", "odd", 2.0) is Verdict.WAIT
    made.worked("a1", "v2", 1.5, 3.0)
    assert made.verdict("a1", "odd", 3.0) is Verdict.RETRY
    made.refused("a1", "odd", BOT, 4.0)
    assert made.verdict("a1", "odd", 4.0) is Verdict.WAIT
    made.worked("a1", "v3", 4.5, 5.0)
    assert made.verdict("a1", "odd", 5.0) is Verdict.RECORD


def test_where_nothing_goes_on_a_video_that_worked_is_the_proof() -> None:
    made = policy("a1")
    made.worked("a1", "good", 0.0, 1.0)
    made.refused("a1", "odd", BOT, 2.0)
    assert made.ask("a1", 0, 3.0, pending=True).probe is None
    assert made.ask("a1", 0, 10.0, pending=True).probe == "good"
    assert made.verdict("a1", "odd", 10.0) is Verdict.WAIT
    made.worked("a1", "good", 10.0, 11.0)
    assert made.verdict("a1", "odd", 20.0) is Verdict.RETRY
    # Had it been refused, the address would be.
    made.refused("a1", "odd", BOT, 21.0)
    assert made.ask("a1", 0, 30.0, pending=True).probe == "good"
    made.refused("a1", "good", BOT, 31.0)
    assert made.verdict("a1", "odd", 31.0) is Verdict.BACK
    assert made.ask("a1", 1, 31.0).held


def test_where_nothing_ever_worked_a_lone_video_is_recorded() -> None:
    made = policy("a1")
    made.refused("a1", "odd", BOT, 2.0)
    assert made.verdict("a1", "odd", 2.0) is Verdict.WAIT
    assert made.verdict("a1", "odd", 10.0) is Verdict.RETRY
    made.refused("a1", "odd", BOT, 11.0)
    assert made.verdict("a1", "odd", 20.0) is Verdict.RECORD


def test_one_worker_probes_with_a_video_that_worked_and_all_go_on() -> None:
    made = policy("a1", "a2")
    made.worked("a1", "good", 0.0, 0.5)
    block(made, "a1", 1.0)
    assert made.ask("a1", 1, 100.9).held
    assert made.ask("a1", 1, 101.0) == Answer(probe="good", wait=TERMS.poll)
    assert made.ask("a2", 1, 101.0).held
    assert not made.ask("a1", 1, 102.0).held
    made.worked("a1", "good", 101.0, 103.0)
    assert made.ask("a2", 5, 103.0).leases == 5
    # Those that were refused are refused for the second time now, and trip nothing.
    for number in range(5):
        made.refused("a1", f"a1-1.0-{number}", BOT, 104.0)
    assert state(made, "a", 104.0) is State.OPEN


def test_cool_downs_grow_up_to_the_longest_and_shrink_after_a_quiet_hour() -> None:
    made = policy("a1", terms=replace(TERMS, give_up_after=1e9))
    made.worked("a1", "good", 0.0, 0.5)
    block(made, "a1", 1.0)
    now, waits = 1.0, []
    for _ in range(4):
        waits.append(made.ask("a1", 1, now).wait)
        now += waits[-1]
        assert made.ask("a1", 1, now).probe == "good"
        made.refused("a1", "good", BOT, now)
        assert state(made, "a", now) is State.BLOCKED
    assert waits == [100.0, 200.0, 400.0, 400.0]
    now += 400.0
    assert made.ask("a1", 1, now).probe == "good"
    made.worked("a1", "good", now, now)
    assert state(made, "a", now) is State.OPEN
    block(made, "a1", now + 10)
    assert made.ask("a1", 1, now + 10).wait == 400.0
    now += 410
    made.ask("a1", 1, now)
    made.worked("a1", "good", now, now)
    block(made, "a1", now + 3700)
    assert made.ask("a1", 1, now + 3700).wait == 100.0


def test_without_a_video_that_worked_one_of_the_plan_probes() -> None:
    made = policy("a1", "a2")
    block(made, "a1", 1.0)
    assert made.ask("a1", 4, 101.0).leases == 1
    assert made.ask("a1", 4, 101.5) == Answer(wait=TERMS.poll)
    assert made.ask("a2", 4, 101.5).held
    made.refused("a1", "any", BOT, 102.0)
    assert made.verdict("a1", "any", 102.0) is Verdict.BACK
    assert made.ask("a1", 4, 102.0).wait == 200.0


def test_a_probe_that_tells_nothing_is_followed_by_another() -> None:
    made = policy("a1")
    made.worked("a1", "one", 0.0, 0.5)
    made.worked("a1", "two", 0.0, 0.5)
    block(made, "a1", 1.0)
    first = made.ask("a1", 1, 101.0).probe
    assert first is not None
    made.passed("a1", first, 102.0)
    assert made.ask("a1", 1, 102.0).wait == TERMS.unclear
    second = made.ask("a1", 1, 200.0).probe
    assert {first, second} == {"one", "two"}


def test_the_worker_that_probes_may_die() -> None:
    made = policy("a1", "a2", "a3")
    block(made, "a1", 1.0)
    assert made.ask("a1", 1, 101.0).leases == 1
    made.leave("a1")
    assert made.ask("a2", 1, 102.0).leases == 1
    # Or say nothing any more.
    assert made.ask("a3", 1, 103.0).held
    assert made.ask("a3", 1, 102.0 + TERMS.probe_life + 1).leases == 1


def test_a_second_egress_within_the_hour_pauses_all() -> None:
    made = policy("a1", "b1", "c1")
    block(made, "a1", 0.0)
    assert made.ask("c1", 1, 50.0).leases == 1
    block(made, "b1", 60.0)
    assert [made.ask(w, 1, 60.0).held for w in ("a1", "b1", "c1")] == [True] * 3
    # Whoever comes meanwhile waits, too.
    made.join("d1", "d", 70.0)
    assert made.ask("d1", 1, 70.0) == Answer(held=True, wait=90.0)
    assert made.ask("c1", 5, 160.0).leases == 1
    made.worked("c1", "v", 160.0, 161.0)
    assert state(made, "c", 161.0) is State.OPEN
    assert state(made, "a", 161.0) is State.COOLING


def test_a_second_egress_later_does_not() -> None:
    made = policy("a1", "b1", "c1")
    block(made, "a1", 0.0)
    block(made, "b1", 3601.0)
    assert made.ask("c1", 1, 3601.0).leases == 1


def test_it_is_over_when_all_are_held_back_for_too_long() -> None:
    made = policy("a1", "b1")
    block(made, "a1", 0.0)
    assert not made.over(5000.0)
    block(made, "b1", 5000.0)
    assert not made.over(5999.0)
    assert made.over(6000.0)
    assert made.ask("a1", 1, 6000.0).over
    # A probe that works is in time.
    made.leave("b1")
    made.leave("a1")
    assert not made.over(6000.0)


def test_a_worker_in_flight_that_works_does_not_open_it() -> None:
    made = policy("a1", "a2")
    block(made, "a1", 1.0)
    made.worked("a2", "late", 0.5, 2.0)
    assert made.ask("a2", 1, 2.0).held


def test_an_address_learnt_late_takes_what_waits_with_it() -> None:
    made = policy("a1", "a2")
    made.refused("a1", "odd", BOT, 1.0)
    made.join("a1", "x", 2.0)
    assert made.verdict("a1", "odd", 10.0) is Verdict.RETRY
    # From an address that is refused to another one: the breaker goes along.
    block(made, "a1", 11.0)
    made.join("a1", "y", 12.0)
    assert made.ask("a1", 1, 12.0).held
    assert made.ask("a2", 1, 12.0).leases == 1


# --- which egress gets shards


def test_shards_that_may_be_open() -> None:
    assert shards_open(300.0, 1000) == 1
    assert shards_open(300.0, 100) == 6
    assert shards_open(None, 1000) is None
    # Of other sites.
    assert shards_open(300.0, 0) is None


def test_shards_go_where_it_is_open() -> None:
    seen = [
        Seen("a", State.OPEN, ("a1", "a2")),
        Seen("b", State.COOLING, ("b1",), opens_in=5.0),
        Seen("c", State.BLOCKED, ("c1", "c2"), opens_in=0.0),
    ]
    assert shares(seen, [], None, 100) == [(("a1", "a2"), 3), (("c1", "c2"), 1)]
    assert shares(seen, [], 1, 100) == [(("a1", "a2"), 1), (("c1", "c2"), 1)]
    assert shares(seen, [("a1", "a2"), ("c9", "c2")], 3, 100) == [(("a1", "a2"), 2)]
    assert shares(seen, [], None, 3) == [(("a1", "a2"), 3)]
    # Whose workers are all gone counts nowhere.
    assert shares(seen, [("z1",)], 1, 1) == [(("a1", "a2"), 1)]


# --- any order of events


class Breaker(RuleBasedStateMachine):
    """Workers behind egresses that may be refused by the site, and do as they are told."""

    flying = Bundle("flying")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.policy = Policy(Terms(per_hour=50, cool_down=100, longest=400, give_up_after=1e9))
        self.blocked: set[str] = set()
        self.number = 0
        self.pending: dict[str, tuple[str, int]] = {}
        self.on_their_way: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()

    @initialize()
    def begin(self) -> None:
        for worker in ("a1", "a2", "b1", "c1"):
            self.policy.join(worker, worker[0], self.now)

    @rule(seconds=st.floats(0, 500))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(egress=st.sampled_from("abc"), blocked=st.booleans())
    def the_site_changes_its_mind(self, egress: str, blocked: bool) -> None:
        (self.blocked.add if blocked else self.blocked.discard)(egress)

    @rule(
        worker=st.sampled_from(["a1", "a2", "b1", "c1"]),
        odd=st.sampled_from([False] * 9 + [True]),
        target=flying,
    )
    def ask(self, worker: str, odd: bool) -> tuple[str, str, float, bool] | None:
        waits = any(owner == worker for owner, _ in self.pending.values())
        held = state(self.policy, worker[0], self.now) is not State.OPEN
        answer = self.policy.ask(worker, 1, self.now, pending=waits)
        assert answer.leases in (0, 1)
        assert not (answer.held and answer.leases)
        if answer.probe is not None:
            # Only what worked is a probe, and it is one request.
            self.asked[worker[0]] += 1
            refused = worker[0] in self.blocked
            if refused:
                self.policy.refused(worker, answer.probe, BOT, self.now)
                assert self.policy.ask(worker, 1, self.now).held
            else:
                self.policy.worked(worker, answer.probe, self.now, self.now)
                assert state(self.policy, worker[0], self.now) is State.OPEN
            return None
        if not answer.leases:
            return None
        if held:
            # A probe is the only video behind a refused address.
            others = self.policy.ask("a2" if worker == "a1" else worker, 1, self.now)
            assert others.leases == 0
        self.number += 1
        self.asked[worker[0]] += 1
        self.on_their_way[worker] += 1
        self.policy.busy(worker, self.on_their_way[worker], 0)
        return (worker, f"v{self.number}", self.now, odd)

    @rule(lease=consumes(flying), fails=st.sampled_from([False] * 4 + [True]))
    def video_ends(self, lease: tuple[str, str, float, bool] | None, fails: bool) -> None:
        if lease is None:
            return
        worker, video, began, odd = lease
        self.on_their_way[worker] -= 1
        self.policy.busy(worker, self.on_their_way[worker], 0)
        if odd or worker[0] in self.blocked:
            self.policy.refused(worker, video, BOT, self.now)
            self.pending[video] = (worker, 1)
        elif fails:
            self.policy.passed(worker, video, self.now)
        else:
            self.policy.worked(worker, video, began, self.now)

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def ask_for_a_verdict(self, data: st.DataObject) -> None:
        video = data.draw(st.sampled_from(sorted(self.pending)))
        worker, times = self.pending[video]
        verdict = self.policy.verdict(worker, video, self.now)
        if state(self.policy, worker[0], self.now) is not State.OPEN:
            # Nothing is recorded of an address that is refused.
            assert verdict is Verdict.BACK
        if verdict is Verdict.RETRY:
            assert times == 1
            self.asked[worker[0]] += 1
            self.pending[video] = (worker, 2)
            self.policy.refused(worker, video, BOT, self.now)
        elif verdict is Verdict.RECORD or verdict is Verdict.BACK:
            del self.pending[video]

    @invariant()
    def the_rate_holds(self) -> None:
        for count in self.asked.values():
            # The probes, which are few, are charged for and not waited for.
            assert count <= 50 + self.now * 50 / 3600 + 1 + self.now / 60

    @invariant()
    def what_is_seen_fits(self) -> None:
        for each in self.policy.seen(self.now):
            assert (each.state is State.OPEN) == (each.opens_in is None) == (each.outcome is None)


TestBreaker = Breaker.TestCase
TestBreaker.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
