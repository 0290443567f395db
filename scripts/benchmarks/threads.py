"""How many threads a process takes to keep its core busy while clips wait for the site.

The sandbox delays each answer, so that a clip waits so many seconds in all. For each `thread_count`
acavdl runs until it is in full swing; then CPU and clips are counted for some seconds, and the run
is ended. Two readings, since the sandbox's origin needs CPU of this machine too:

``together``
    A process for each core; the origin takes its share of the same cores, and counts as busy: the
    time that it takes is not idle.
``apart``
    One process on one core, and the origin on another: acavdl's CPU against the time of its core.
    This is the honest one, since in earnest the site is elsewhere. It takes two cores.

What other programs use meanwhile falsifies both, so a disturbed part is measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from clips import SHORT, BenchError, Way, acavdl_line, cores, cpu_of, rows_of

from acavdl.sandbox import Sandbox

_START_TIMEOUT = 90.0  # seconds until a run has to be in full swing
_STOP_TIMEOUT = 20.0
_POLL = 0.25  # seconds
_BUSY = 0.85
_DISTURBED = 0.05  # share of the cores' time that others may take
_CLIPS_PER_CORE_SECOND = 60  # more than there can be, so that the table lasts
_WAY = Way("threads")


@dataclass(frozen=True)
class Moment:
    """What was used so far: CPU seconds, and videos begun."""

    time: float
    own: float
    origin: float
    machine: float
    videos: int


@dataclass(frozen=True)
class Share:
    """A steady part: CPU as shares of the cores' time; `memory` is bytes of the largest process."""

    threads: int
    clips_per_second: float
    own: float
    origin: float
    others: float
    memory: int

    @property
    def busy(self) -> float:
        """Share of the time in which the cores worked at the clips."""
        return self.own + self.origin


@contextlib.contextmanager
def on_cores(wanted: set[int]) -> Iterator[None]:
    """Keep this process, and what it starts meanwhile, on some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, wanted)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _tree(process: subprocess.Popen[bytes]) -> Iterator[psutil.Process]:
    """Yield a process and all below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(process.pid)
        yield top
        yield from top.children(recursive=True)


def _cpu(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.NoSuchProcess):
        used = process.cpu_times()
        # What its dead children used is there, too.
        return float(used.user + used.system + used.children_user + used.children_system)
    return 0.0


def _memory(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.NoSuchProcess):
        return int(process.memory_info().rss)
    return 0


def _machine(used: set[int]) -> float:
    """Return the seconds that some cores were busy, by whomever."""
    each = psutil.cpu_times(percpu=True)
    return float(sum(sum(each[core]) - each[core].idle - each[core].iowait for core in used))


def _now(process: subprocess.Popen[bytes], site: Sandbox, used: set[int]) -> Moment:
    stats = site.stats()
    own = sum(map(_cpu, _tree(process)))
    return Moment(
        time.monotonic(), own, stats.cpu_seconds, _machine(used), stats.requests["player"]
    )


def _until(
    process: subprocess.Popen[bytes], site: Sandbox, videos: int, seconds: float, log: Path
) -> None:
    """Wait until so many videos have been begun, or until the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and site.stats().requests["player"] < videos:
        if process.poll() is not None:
            words = log.read_text("utf-8", "replace").strip()[-1500:]
            sys.exit(f"acavdl ended with {process.returncode} before it was measured: {words}")
        time.sleep(_POLL)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a run; kill its processes, which are a group of their own, if it does not end."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def measure(site: Sandbox, threads: int, used: set[int], seconds: float, *, apart: bool) -> Share:
    """Run acavdl with so many threads a process on the cores `used`; return the steady part."""
    steady = len(used) * threads * 2  # by then each thread has had a video or two
    videos = steady + round(len(used) * _CLIPS_PER_CORE_SECOND * (seconds + 5))
    with (
        tempfile.TemporaryDirectory(prefix="acavdl-bench-", ignore_cleanup_errors=True) as name,
        (Path(name) / "log").open("wb") as log,
        on_cores(used),
    ):
        settings = {
            "distribution": {"thread_count": threads},
            "storage": {"number_sample_per_shard": -(-videos // len(used))},
        }
        line = acavdl_line(rows_of(_WAY, videos), Path(name), settings)
        site.reset()
        env = {**os.environ, **site.environ()}
        process = subprocess.Popen(line, env=env, stdout=log, stderr=log, process_group=0)
        try:
            _until(process, site, steady, _START_TIMEOUT, Path(log.name))
            begin = _now(process, site, used)
            _until(process, site, videos, seconds, Path(log.name))
            end = _now(process, site, used)
            memory = max(map(_memory, _tree(process)), default=0)
        finally:
            _end(process)
    room = len(used) * (end.time - begin.time)
    own, origin = end.own - begin.own, end.origin - begin.origin
    here = 0.0 if apart else origin
    return Share(
        threads,
        (end.videos - begin.videos) / (end.time - begin.time),
        own / room,
        here / room,
        max(0.0, end.machine - begin.machine - own - here) / room,
        memory,
    )


def undisturbed(measured: Callable[[], Share], tries: int) -> Share:
    """Measure until other programs leave the cores alone; return the least disturbed part."""
    shares: list[Share] = []
    while not shares or (shares[-1].others > _DISTURBED and len(shares) < tries):
        shares.append(measured())
    return min(shares, key=lambda share: share.others)


def requests_of_a_clip() -> float:
    """Ask for a few clips without any delay, and count."""
    with (
        Sandbox(masters=[SHORT]) as site,
        tempfile.TemporaryDirectory(prefix="acavdl-bench-") as name,
    ):
        rows = rows_of(_WAY, 12)
        line = acavdl_line(rows, Path(name), {})
        cpu_of(line, {**os.environ, **site.environ()}, Path(name) / "log")
        requests: Mapping[str, int] = site.stats().requests
        return sum(requests.values()) / len(rows)


def least(shares: list[Share]) -> int | None:
    """Return the smallest number of threads that keeps the cores busy."""
    return min((share.threads for share in shares if share.busy >= _BUSY), default=None)


def _table(site: Sandbox, used: set[int], options: argparse.Namespace, *, apart: bool) -> Any:
    say = sys.stdout.write
    say(
        f"\n{'apart: one process on one core' if apart else f'together: {len(used)} processes'}\n"
        "threads  clips/s  acavdl %  + origin %  others %  MB a process\n"
    )
    shares = []
    for threads in options.threads:
        share = undisturbed(
            partial(measure, site, threads, used, options.seconds, apart=apart),
            options.tries,
        )
        shares.append(share)
        say(
            f"{threads:7d}  {share.clips_per_second:7.1f}  {100 * share.own:8.0f}"
            f"  {100 * share.busy:10.0f}  {100 * share.others:8.0f}  {share.memory / 1e6:12.0f}\n"
        )
        sys.stdout.flush()
    found = least(shares)
    say(f"least thread_count that keeps {_BUSY:.0%} busy: {found or 'none'}\n")
    return {"least": found, "shares": [asdict(share) for share in shares]}


def main() -> int:
    """Measure and print both readings; return 1 if no number of threads is enough."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--threads",
        type=lambda text: list(map(int, text.split(","))),
        default=[4, 8, 16, 24, 32, 48, 64],
    )
    parser.add_argument("--waiting", type=float, default=0.6, help="seconds of a clip")
    parser.add_argument("--seconds", type=float, default=12.0, help="of the steady part")
    parser.add_argument("--tries", type=int, default=3, help="while other programs disturb")
    parser.add_argument("--only", choices=["together", "apart"], default=None)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    everything = os.sched_getaffinity(0)
    if options.only == "apart" and cores() < 2:
        sys.exit("apart takes two cores")
    try:
        requests = requests_of_a_clip()
    except BenchError as error:
        sys.exit(str(error))
    latency = options.waiting / requests
    sys.stdout.write(
        f"{requests:.1f} requests a clip, each of which waits {1000 * latency:.0f} ms: "
        f"{options.waiting:g} s a clip; {cores()} cores\n"
    )
    found = {}
    if options.only != "apart":
        with Sandbox(masters=[SHORT], latency=latency) as site:
            found["together"] = _table(site, everything, options, apart=False)
    if options.only != "together" and cores() > 1:
        first, *others = sorted(everything)
        with on_cores(set(others)), Sandbox(masters=[SHORT], latency=latency) as site:
            found["apart"] = _table(site, {first}, options, apart=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return 0 if all(part["least"] for part in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
