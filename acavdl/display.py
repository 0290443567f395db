"""What a person sees while it runs: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

import orjson
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from acavdl.breaker import State
from acavdl.errors import Outcome, Scope
from acavdl.estimate import Estimate
from acavdl.planfile import Plan
from acavdl.planning import Made
from acavdl.progress import Snapshot
from acavdl.results import Failures

Mode = Literal["auto", "plain", "json", "quiet"]
#: Rejected rows that are shown; all stand in a file.
_REJECTED_SHOWN = 5
#: Machines that are listed, and characters of a message.
_HOSTS_SHOWN, _DETAIL_SHOWN = 8, 200
#: Refused addresses that are named at the end.
_REFUSED_SHOWN = 3

#: Seconds between two pictures of the live display, and between two plain lines.
_LIVE_INTERVAL, _LINE_INTERVAL = 0.5, 5.0
_STYLES = {
    Scope.EGRESS: "bold red",
    Scope.ENVIRONMENT: "magenta",
    Scope.VIDEO: "yellow",
    Scope.CLIP: "yellow",
}


class _Stderr(Console):
    """The user's terminal, or what stderr was sent to: nobody reading it must not end a run."""

    def __init__(self) -> None:
        super().__init__(stderr=True)

    def on_broken_pipe(self) -> None:
        """Write into the void from now on (rich would exit)."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class Display:
    """Shows a run until it ends; all of it goes to stderr.

    Parameters
    ----------
    snapshot
        Gives the run as it is now.
    mode
        ``auto``: live on a terminal, else plain lines; ``plain``; ``json``: an object a line;
        ``quiet``: nothing.
    console
        Where to write; None = stderr.
    """

    def __init__(
        self, snapshot: Callable[[], Snapshot], mode: Mode = "auto", console: Console | None = None
    ) -> None:
        self._snapshot = snapshot
        self._console = console or _Stderr()
        self._mode = mode
        live = self._console.is_terminal and not self._console.is_dumb_terminal
        if mode == "auto" and not live:
            self._mode = "plain"
        self._live: Live | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Display:
        """Begin to show."""
        if self._mode == "auto":
            self._live = Live(
                console=self._console,
                get_renderable=lambda: render(self._snapshot()),
                refresh_per_second=1 / _LIVE_INTERVAL,
                redirect_stdout=False,
            )
            self._live.start(refresh=True)
        elif self._mode != "quiet":
            self._thread = threading.Thread(target=self._lines, name="display", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End: the live picture makes room for the summary, and stays where there will be none."""
        if self._live is not None:
            self._live.transient = error is None
            self._live.stop()
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._line()

    def _lines(self) -> None:
        while not self._stop.wait(_LINE_INTERVAL):
            self._line()

    def _line(self) -> None:
        snapshot = self._snapshot()
        text = as_json(snapshot) if self._mode == "json" else as_line(snapshot)
        self._console.out(text, highlight=False)


def render(snapshot: Snapshot) -> RenderableType:
    """Return the live picture: a bar, the rates, the failures by outcome; fits 80 columns."""
    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(ratio=1)
    bar.add_column(justify="right", no_wrap=True)
    bar.add_row(
        ProgressBar(total=max(1, snapshot.total), completed=snapshot.done),
        Text(f"{snapshot.done:,} / {snapshot.total:,} clips", style="bold"),
    )
    rates = Text(
        f"{snapshot.videos_per_second_core:.2f} vid/s/core · {snapshot.attempts_per_second:.1f} "
        f"clips/s · {snapshot.megabytes_per_second:.1f} MB/s"
    )
    time = Text(
        f"{snapshot.shards_done:,} / {snapshot.shards:,} shards · {duration(snapshot.seconds)} · "
        f"ETA {duration(snapshot.eta)}"
    )
    held = [] if snapshot.held_back is None else [Text(_held(snapshot.held_back), style="cyan")]
    if snapshot.refused:
        held.append(Text(_egresses(snapshot), style="bold red"))
    return Group(bar, rates, time, *held, outcomes(snapshot))


def _held(seconds: float) -> str:
    return f"held back by the rate limit: next video in {duration(seconds)}"


def _egresses(snapshot: Snapshot) -> str:
    """Return how many addresses are open, cooling and blocked; why, and when one is tried next."""
    why = ", ".join(sorted({str(each.outcome) for each in snapshot.refused}))
    left = min(each.opens_in or 0.0 for each in snapshot.refused)
    return f"addresses: {_states(snapshot)} ({why}); next try in {duration(left)}"


def _states(snapshot: Snapshot) -> str:
    return ", ".join(
        f"{snapshot.egresses[state]} {state}" for state in State if state in snapshot.egresses
    )


def refused(snapshot: Snapshot) -> str:
    """Return the line that a run ends with that was held back for too long."""
    shown = [
        f"{each.egress} ({each.outcome}, for {duration(each.held_for)})"
        for each in snapshot.refused[:_REFUSED_SHOWN]
    ]
    more = len(snapshot.refused) - len(shown)
    return (
        f"Held back by the site: it refuses {', '.join(shown)}{f' and {more} more' if more else ''}"
        ". What is made is kept; the same command goes on, in some hours or days."
    )


def outcomes(snapshot: Snapshot) -> RenderableType:
    """Return clips by outcome, most frequent first; refused, dead and broken in colours apart."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", min_width=9, no_wrap=True)
    for name, count in sorted(snapshot.counts.items(), key=lambda item: (-item[1], item[0])):
        outcome = Outcome(name)
        style = "green" if outcome is Outcome.OK else _STYLES[outcome.scope]
        grid.add_row(
            Text(f"{count:,}", style=style),
            Text(name, style=style),
            Text("" if outcome is Outcome.OK else f"retry {outcome.retry}", style="dim"),
        )
    return grid


def as_line(snapshot: Snapshot) -> str:
    """Return one plain line: clips, failures, rates, ETA; the summary tells the outcomes."""
    failed = sum(snapshot.counts.values()) - snapshot.counts.get(Outcome.OK, 0)
    if snapshot.held_back is None:
        speed = (
            f"{snapshot.videos_per_second_core:.2f} vid/s/core, "
            f"{snapshot.megabytes_per_second:.4g} MB/s, ETA {duration(snapshot.eta)}"
        )
    else:
        speed = f"rate limit, next in {duration(snapshot.held_back)}"
    if snapshot.refused:
        # More would not fit.
        speed = f"IPs: {_states(snapshot)}"
    return f"{snapshot.done}/{snapshot.total} clips, {failed} failed: {speed}"


def as_json(snapshot: Snapshot) -> str:
    """Return the snapshot as one JSON object."""
    return orjson.dumps(snapshot).decode()


def duration(seconds: float | None) -> str:
    """Return seconds as ``2 d 03 h``, ``1 h 05 min``, ``3 min 20 s`` or ``12 s``."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days >= 10:
        return f"{days} d"
    if days:
        return f"{days} d {hours:02d} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def summary(
    snapshot: Snapshot,
    output_folder: str,
    failed_shards: Mapping[int, str],
    made: Made | None = None,
    left: int = 0,
) -> list[RenderableType]:
    """Return what a person wants to know at the end: what there is, what is missing, and why."""
    ok = snapshot.counts.get(Outcome.OK, 0)
    rate = snapshot.successes_now / snapshot.seconds / snapshot.cores
    lines: list[RenderableType] = [
        Text(
            f"{ok:,} of {snapshot.total:,} clips in {snapshot.shards_done} of {snapshot.shards} "
            f"shards, {duration(snapshot.seconds)}, {snapshot.bytes_fetched / 1e6:,.1f} MB fetched"
            f"{f', {rate:.2f} vid/s/core' if rate else ''}",
            style="bold",
        ),
        outcomes(snapshot),
    ]
    if made is not None and made.plan.rejected:
        lines.append(rejected(made.plan, made.examples, output_folder))
    for shard, cause in sorted(failed_shards.items())[:5]:
        lines.append(Text(f"shard {shard:05d} failed: {cause}", style="bold red"))
    if failed_shards:
        lines.append(Text(f"{len(failed_shards)} shards failed; the same command makes them"))
    if left:
        lines.append(Text(f"{left:,} shards are left for another run (reading.sampler)"))
    lines.append(Text(f"dataset: {output_folder}"))
    return lines


def planned(
    plan: Plan, estimate: Estimate, made: Made | None, output_folder: str
) -> RenderableType:
    """Return what a plan holds and what it takes, in 80 columns."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    if made is not None:
        grid.add_row("table", f"{made.rows:,} rows")
    shards = len(plan.sizes)
    grid.add_row(
        "clips",
        Text(f"{plan.clips:,} of {plan.videos:,} videos in {shards:,} shards", style="bold"),
    )
    if made is not None:
        for count, what in (
            (made.captions, "gave a clip a further caption"),
            (made.planned, "stood in the plan before"),
            (made.left_out, "left out (--unique-videos, --limit)"),
        ):
            if count:
                grid.add_row("", f"{count:,} {what}")
    grid.add_row("requests", f"{_many(estimate.requests)}")
    grid.add_row("to fetch", f"{_size(estimate.bytes_fetched)}")
    grid.add_row("to store", f"{_size(estimate.bytes_stored)}")
    grid.add_row("time", _time_text(estimate))
    grid.add_row("assumed", Text("; ".join(estimate.assumptions), style="dim"))
    parts: list[RenderableType] = [grid]
    if plan.rejected:
        parts.append(rejected(plan, () if made is None else made.examples, output_folder))
    if estimate.seconds:
        parts.append(
            Text("To be finished sooner, take a smaller table (--unique-videos, --limit).")
        )
    parts.append(
        Text(
            "No rights to the videos are granted; the site's terms and local law apply.",
            style="dim",
        )
    )
    parts.append(Text(f"plan: {output_folder}/_acavdl/plan"))
    return Group(*parts)


def _time_text(estimate: Estimate) -> Text:
    if estimate.seconds is None:
        return Text("no rate is set: as long as the network takes")
    if not estimate.seconds:
        return Text("within the hour's worth of videos that the rate allows at once")
    return Text(f"{duration(estimate.seconds)} at the rate, from one address", style="bold")


def rejected(
    plan: Plan, examples: Sequence[Mapping[str, Any]], output_folder: str
) -> RenderableType:
    """Return what could not be used of a table: counts by reason, the first rows, where all are."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", min_width=9, no_wrap=True)
    grid.add_column(overflow="fold")
    for reason, count in plan.rejected.items():
        grid.add_row(Text(f"{count:,}", style="yellow"), Text(reason, style="yellow"))
    lines = [
        Text(f"  {row['file'].rsplit('/', 1)[-1]}, row {row['row']}: {row['detail']} ")
        + Text(f"({row['value']})", style="dim")
        for row in examples[:_REJECTED_SHOWN]
    ]
    total = sum(plan.rejected.values())
    return Group(
        Text(f"{total:,} rows of the table are not used:", style="yellow"),
        grid,
        *lines,
        Text(f"  all of them: {output_folder}/_acavdl/rejected*.parquet", style="dim"),
    )


def failures_table(found: Failures) -> RenderableType:
    """Return what failed: by outcome, by machine, and the first few of each; fits 80 columns."""
    lines: list[RenderableType] = [
        Text(
            f"{found.count:,} of {found.clips:,} clips failed, in {found.shards_done:,} of "
            f"{found.shards:,} shards",
            style="bold",
        )
    ]
    if found.outcomes:
        lines += [_by_outcome(found), _by_host(found), _examples(found)]
    lines.append(Text(f"dataset: {found.output_folder}"))
    return Group(*lines)


def _grid(*names: str, numbers: Sequence[str] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in names:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    return table


def _by_outcome(found: Failures) -> Table:
    table = _grid("clips", "outcome", "stage", "scope", "retry", numbers=("clips",))
    for name, failed in found.most_common():
        outcome = Outcome(name)
        facts = (outcome.value, outcome.stage, outcome.scope, outcome.retry)
        table.add_row(f"{failed.count:,}", *facts, style=_STYLES[outcome.scope])
    return table


def _by_host(found: Failures) -> Table:
    table = _grid("clips", "machine", numbers=("clips",))
    hosts = found.hosts.most_common()
    for host, count in hosts[:_HOSTS_SHOWN]:
        table.add_row(f"{count:,}", Text(host))
    if len(hosts) > _HOSTS_SHOWN:
        rest = sum(count for _, count in hosts[_HOSTS_SHOWN:])
        table.add_row(f"{rest:,}", f"on {len(hosts) - _HOSTS_SHOWN:,} others")
    return table


def _examples(found: Failures) -> RenderableType:
    lines: list[RenderableType] = []
    for name, failed in found.most_common():
        lines.append(Text(name, style=_STYLES[Outcome(name).scope]))
        lines += [
            Text(f"  {key}  ") + Text(_short(detail), style="dim")
            for key, detail in failed.examples
        ]
    return Group(*lines)


def _short(text: str) -> str:
    """Return the beginning of a message, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= _DETAIL_SHOWN else line[: _DETAIL_SHOWN - 1] + "…"


def _many(count: int) -> str:
    for name, unit in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if count >= unit:
            return f"{count / (1e3 if name == 'k' else unit):.3g} {name}"
    return f"{count}"


def _size(count: int) -> str:
    for name, unit in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9)):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count / 1e6:.3g} MB"


def say(*lines: RenderableType) -> None:
    """Write to stderr what is for the user to read; text is shown as it is."""
    console = _Stderr()
    for line in lines:
        shown = Text(line) if isinstance(line, str) else line
        console.print(shown, highlight=False, soft_wrap=not isinstance(shown, Table))


def write_out(answer: RenderableType) -> None:
    """Write what a command was asked for to stdout."""
    console = Console()
    if isinstance(answer, str):
        console.out(answer, highlight=False)
    else:
        console.print(answer, highlight=False)
