"""What a person, or a program that reads along, sees of a run."""

from __future__ import annotations

import fcntl
import io
import itertools
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, RenderableType

from acavdl import display
from acavdl.breaker import Seen, State
from acavdl.config import Config, Reading
from acavdl.display import (
    Display,
    Mode,
    as_json,
    as_line,
    duration,
    planned,
    refused,
    render,
    say,
    summary,
)
from acavdl.errors import Outcome
from acavdl.estimate import estimate
from acavdl.planfile import Part, Plan
from acavdl.planning import Made
from acavdl.progress import Snapshot

MADE = Made(
    Plan((Part("a", 0, (70,), "", 1),), 60, rejected={"bad_id": 2, "duplicate": 1}),
    rows=73,
    examples=[{"file": "/x/t.csv", "row": 7, "detail": "it is no id", "value": "nope"}],
)
SMALL = Snapshot(
    done=7,
    total=70,
    shards_done=1,
    shards=3,
    counts={"ok": 4, "private": 2, "bot_check": 1},
    cores=2,
    seconds=4.0,
    bytes_fetched=67_900_000,
    videos_per_second_core=1.25,
    attempts_per_second=3.5,
    megabytes_per_second=17.0,
    eta=36.0,
)
#: All of the real thing: 50,000 shards, months to go, every outcome in large numbers.
LARGE = Snapshot(
    done=99_999_999,
    total=100_000_000,
    shards_done=49_999,
    shards=50_000,
    counts={outcome.value: 99_999_999 - n for n, outcome in enumerate(Outcome)},
    cores=65_536,
    seconds=130 * 86_400.0,
    bytes_fetched=10**15,
    videos_per_second_core=1234.56,
    attempts_per_second=123_456.7,
    megabytes_per_second=123_456.7,
    eta=130 * 86_400.0,
)


def shown(*parts: RenderableType, width: int = 80, colour: bool = False) -> str:
    """Return what a terminal of that width gets."""
    console = Console(
        width=width,
        file=io.StringIO(),
        force_terminal=colour,
        color_system="standard" if colour else None,
        _environ={"TERM": "xterm"},
    )
    for part in parts:
        console.print(part, highlight=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def words(text: str) -> str:
    return " ".join(text.split())


# --- the live picture ----------------------------------------------------------------------------


def test_picture_of_a_small_run() -> None:
    text = shown(render(SMALL))
    lines = text.splitlines()
    assert lines[0].endswith("7 / 70 clips")
    assert "1.25 vid/s/core" in text
    assert "3.5 clips/s" in text
    assert "17.0 MB/s" in text
    assert "1 / 3 shards" in text
    assert "ETA 36 s" in text
    assert [words(line) for line in lines[-3:]] == [
        "4 ok",
        "2 private retry never",
        "1 bot_check retry later",
    ]
    assert all(line.strip() for line in lines)


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_largest_numbers_fit(width: int) -> None:
    """No line is wrapped or longer, nothing is cut, and numbers stand one below the other."""
    text = shown(render(LARGE), width=width)
    lines = text.splitlines()
    assert max(map(cell_len, lines)) <= width
    assert "…" not in text
    for part in (
        "99,999,999 / 100,000,000 clips",
        "1234.56 vid/s/core",
        "123456.7 clips/s",
        "123456.7 MB/s",
        "49,999 / 50,000 shards",
        "ETA 130 d",
    ):
        assert part in text
    table = lines[-len(Outcome) :]
    assert len(lines) == len(Outcome) + 3
    for line, outcome in zip(table, Outcome, strict=True):
        assert words(line).split()[1] == outcome.value
    names = {line.index(words(line).split()[1]) for line in table}
    assert len(names) == 1


COUNTS = st.dictionaries(st.sampled_from(list(Outcome)).map(str), st.integers(1, 10**8), max_size=6)
FLOATS = st.floats(0, 1e5)


@settings(deadline=None)
@given(
    st.builds(
        Snapshot,
        done=st.integers(0, 10**8),
        total=st.integers(0, 10**8),
        shards_done=st.integers(0, 50_000),
        shards=st.integers(0, 50_000),
        counts=COUNTS,
        cores=st.integers(1, 10**5),
        seconds=st.floats(0, 1e8),
        bytes_fetched=st.integers(0, 10**16),
        videos_per_second_core=FLOATS,
        attempts_per_second=FLOATS,
        megabytes_per_second=FLOATS,
        eta=st.none() | st.floats(0, 1e8),
    )
)
def test_any_run_fits_eighty_columns(snapshot: Snapshot) -> None:
    lines = shown(render(snapshot)).splitlines()
    assert len(lines) == 3 + len(snapshot.counts)
    assert max(map(cell_len, lines)) <= 80
    assert lines[0].endswith(f"{snapshot.done:,} / {snapshot.total:,} clips")
    assert lines[2].endswith(f"ETA {duration(snapshot.eta)}")
    assert json.loads(as_json(snapshot))["counts"] == dict(snapshot.counts)
    assert "\n" not in as_line(snapshot)


def styles_of(*outcomes: Outcome) -> list[str]:
    """Return the escape sequence that each outcome's line begins with."""
    counts = {outcome.value: 100 - n for n, outcome in enumerate(outcomes)}
    text = shown(display.outcomes(replace(SMALL, counts=counts)), colour=True)
    found = []
    for line, outcome in zip(text.splitlines(), outcomes, strict=True):
        match = re.search(r"(\x1b\[[\d;]+m)" + outcome.value, line)
        assert match is not None, line
        found.append(match[1])
    return found


def test_refused_dead_and_broken_have_colours_of_their_own() -> None:
    ok, refused, dead, broken = styles_of(
        Outcome.OK, Outcome.BOT_CHECK, Outcome.PRIVATE, Outcome.EXTRACTOR_BROKEN
    )
    assert len({ok, refused, dead, broken}) == 4
    assert styles_of(Outcome.RATE_LIMITED, Outcome.HTTP_429) == [refused] * 2
    assert styles_of(Outcome.COPYRIGHT, Outcome.CLIP_OUT_OF_RANGE) == [dead] * 2
    assert styles_of(Outcome.NO_FORMATS, Outcome.TLS) == [broken] * 2


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colours_all_words_are_there(variables: dict[str, str]) -> None:
    environ = {"TERM": "xterm", **variables}
    console = Console(width=80, file=io.StringIO(), force_terminal=True, _environ=environ)
    console.print(render(SMALL), *summary(SMALL, "out", {}))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert not re.search(r"\x1b\[(3|9)\d", text), "a colour"
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert "private" in plain
    assert "bot_check" in plain


# --- lines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "?"),
        (0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.9, "1 h 00 min"),
        (3900, "1 h 05 min"),
        (86_399.9, "1 d 00 h"),
        (2 * 86_400 + 3 * 3600, "2 d 03 h"),
        (130 * 86_400, "130 d"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_plain_line() -> None:
    line = as_line(SMALL)
    assert "7/70 clips" in line
    assert "3 failed" in line
    assert "1.25 vid/s/core" in line
    assert line.endswith("ETA 36 s")


def test_who_is_held_back_is_told_until_when() -> None:
    held = replace(SMALL, held_back=12.3)
    assert as_line(held).endswith("rate limit, next in 12 s")
    assert "held back by the rate limit: next video in 12 s" in shown(render(held))
    assert "held back" not in shown(render(SMALL))


REFUSED = replace(
    SMALL,
    egresses={"open": 61, "cooling": 2, "blocked": 1},
    refused=[
        Seen("192.0.2.1", State.COOLING, (), "bot_check", 600.0, 1200.0),
        Seen("192.0.2.2", State.COOLING, (), "http_429", 60.0, 700.0),
        Seen("192.0.2.3", State.BLOCKED, (), "bot_check", 7200.0, 3000.0),
    ],
)


def test_addresses_that_are_refused_are_told() -> None:
    assert as_line(REFUSED).endswith("IPs: 61 open, 2 cooling, 1 blocked")
    assert (
        "addresses: 61 open, 2 cooling, 1 blocked (bot_check, http_429); next try in 11 min 40 s"
        in shown(render(REFUSED), width=100)
    )
    assert refused(REFUSED) == (
        "Held back by the site: it refuses 192.0.2.1 (bot_check, for 10 min 00 s), 192.0.2.2 "
        "(http_429, for 1 min 00 s), 192.0.2.3 (bot_check, for 2 h 00 min). What is made is kept; "
        "the same command goes on, in some hours or days."
    )
    assert "and 97 more" in refused(replace(REFUSED, refused=[REFUSED.refused[0]] * 100))


def test_plain_line_fits_80_columns() -> None:
    whole = replace(
        LARGE,
        counts={"ok": 60_000_000, "private": 40_000_000},
        videos_per_second_core=0.8,
        megabytes_per_second=2458.1,
    )
    many = replace(whole, egresses=REFUSED.egresses, refused=REFUSED.refused)
    for snapshot in (SMALL, whole, replace(whole, held_back=3599.0), many):
        assert len(as_line(snapshot)) <= 80


def test_json_line_has_every_number() -> None:
    read = json.loads(as_json(LARGE))
    assert read == {**vars(LARGE), "counts": dict(LARGE.counts), "refused": []}
    one = json.loads(as_json(REFUSED))
    assert one["egresses"] == {"open": 61, "cooling": 2, "blocked": 1}
    assert one["refused"][0]["egress"] == "192.0.2.1"
    assert json.loads(as_json(replace(SMALL, eta=None)))["eta"] is None


def test_summary_says_what_there_is_and_what_is_missing() -> None:
    lost = {number: f"OSError: disk full on {number}" for number in range(12)}
    text = shown(*summary(SMALL, "s3://bucket/out", lost, MADE, 2), width=200)
    assert "4 of 70 clips in 1 of 3 shards" in text
    assert "67.9 MB" in text
    assert "3 rows of the table are not used" in text
    assert "2  bad_id" in text
    assert "t.csv, row 7: it is no id (nope)" in text
    assert "all of them: s3://bucket/out/_acavdl/rejected*.parquet" in text
    assert "2 shards are left for another run" in text
    assert "shard 00004 failed: OSError: disk full on 4" in text
    assert "shard 00005" not in text
    assert "12 shards failed" in text
    assert "s3://bucket/out" in text
    assert "private" in text
    good = shown(*summary(SMALL, "out", {}), width=200)
    assert "failed" not in good
    assert "not used" not in good


def test_a_plan_is_told_in_80_columns() -> None:
    huge = Plan(
        tuple(Part(f"{n}", 256 * n, (2000,) * 256, "", 1) for n in range(196)),
        60_000_000,
        1e9,
        rejected={"duplicate": 1_234_567, "start_after_end": 3},
    )
    example = {"file": "s3://bucket/a/t.csv", "row": 7, "detail": "it is no id", "value": "x" * 200}
    made = Made(huge, 100_000_000, [example] * 9, 5, 6, 7)
    for plan in (made, None):
        text = shown(planned(huge, estimate(huge, Config()), plan, "s3://bucket/out"), width=80)
        assert max(map(len, text.splitlines())) <= 80
        assert "100,352,000 of 60,000,000 videos in 50,176 shards" in text
        assert "441 M" in text
        assert "TB" in text
        assert "8333 d" in text
        assert "1,234,567  duplicate" in text
        assert "smaller table" in text
        assert "No rights to the videos are granted" in text
    assert "100,000,000 rows" not in text
    free = estimate(huge, Config(Reading(rate_limit=None)))
    assert "no rate is set" in shown(planned(huge, free, None, "out"), width=80)
    small = Plan((Part("a", 0, (3,), "", 1),), 3, 30.0)
    text = shown(planned(small, estimate(small, Config()), None, "out"), width=80)
    assert "within the hour's worth" in text
    assert "smaller table" not in text
    assert "not used" not in text


# --- while it runs -------------------------------------------------------------------------------


def run_display(mode: Mode, monkeypatch: pytest.MonkeyPatch, lines: int = 3) -> str:
    """Show a run that goes on until `lines` states were asked for; return what was written."""
    monkeypatch.setattr(display, "_LINE_INTERVAL", 0.01)
    asked, enough = itertools.count(1), threading.Event()

    def snapshot() -> Snapshot:
        number = next(asked)
        if number >= lines:
            enough.set()
        return replace(SMALL, done=number)

    file = io.StringIO()
    threads = set(threading.enumerate())
    with Display(snapshot, mode, Console(file=file, width=20)):
        assert mode == "quiet" or enough.wait(20)
    assert set(threading.enumerate()) <= threads
    return file.getvalue()


@pytest.mark.parametrize("mode", ["auto", "plain"])
def test_lines_where_there_is_no_terminal(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whole line at a time, however narrow, without a control character; the end is told."""
    text = run_display(mode, monkeypatch)
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert len(lines) >= 3
    assert [line.partition("/")[0] for line in lines] == [str(n + 1) for n in range(len(lines))]
    assert all("/70 clips" in line and "ETA" in line for line in lines)


def test_json_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = run_display("json", monkeypatch).splitlines()
    read = [json.loads(line) for line in lines]
    assert [snapshot["done"] for snapshot in read] == list(range(1, len(lines) + 1))
    assert all(snapshot["total"] == 70 for snapshot in read)


def test_quiet_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_display("quiet", monkeypatch) == ""


@pytest.mark.parametrize("mode", ["plain", "json"])
def test_the_last_line_is_written_when_the_run_is_interrupted(mode: Mode) -> None:
    file = io.StringIO()
    threads = set(threading.enumerate())
    with (
        pytest.raises(KeyboardInterrupt),
        Display(lambda: SMALL, mode, Console(file=file)),
    ):
        raise KeyboardInterrupt
    assert len(file.getvalue().splitlines()) == 1
    assert set(threading.enumerate()) <= threads


def test_a_terminal_that_cannot_move_the_cursor_gets_lines() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, _environ={"TERM": "dumb"})
    with Display(lambda: SMALL, "auto", console):
        pass
    assert file.getvalue().splitlines() == [as_line(SMALL)]


# --- on a terminal -------------------------------------------------------------------------------

PROGRAM = """
import itertools, sys, threading
from dataclasses import replace
sys.path.insert(0, {tests!r})
from test_display import SMALL
from acavdl.display import Display, say, summary
number, enough = itertools.count(1), threading.Event()
def snapshot():
    done = next(number)
    if done >= {looks}:
        enough.set()
    return replace(SMALL, done=min(done, {looks}))
with Display(snapshot):
    assert enough.wait(60)
    {end}
say(*summary(SMALL, "out", {{}}))
"""


def on_terminal(end: str, looks: int = 4) -> tuple[str, int]:
    """Run the display on a pseudo-terminal of 80 × 24; return all that it wrote, and the code."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    program = PROGRAM.format(tests=os.path.dirname(__file__), looks=looks, end=end)  # noqa: PTH120
    environ = {**os.environ, "TERM": "xterm-256color", "PYTHONWARNINGS": ""}
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
        environ.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=terminal, stderr=terminal, env=environ
    )
    os.close(terminal)
    written = b""
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            if select.select([controller], [], [], 1)[0]:
                try:
                    written += os.read(controller, 65536)
                except OSError:  # the other end is closed
                    break
        code = process.wait(10)
    finally:
        process.kill()
        process.wait()
        os.close(controller)
    return written.decode(), code


def screen_of(written: str, height: int = 24) -> list[str]:
    """Return the lines that stand on a terminal after these bytes, as far as rich uses it."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if token == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif token == "\r":
            column = 0
        elif token.startswith("\x1b["):
            count = int(token[2:-1]) if token[2:-1].isdigit() else 1
            if token[-1] == "A":
                assert count <= row < height
                row -= count
            elif token[-1] == "K":
                assert token == "\x1b[2K"
                lines[row] = ""
        else:
            lines[row] = (
                lines[row][:column].ljust(column) + token + lines[row][column + len(token) :]
            )
            column += len(token)
    while lines and not lines[-1].strip():
        lines.pop()
    return [line.rstrip() for line in lines]


def test_live_picture_on_a_terminal() -> None:
    """It moves; at the end nothing of it is left, for the summary says it all once."""
    written, code = on_terminal("pass")
    assert code == 0
    assert len(set(re.findall(r"(\d+) / 70 clips", written))) > 1
    assert "\x1b[?25l" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l"), "the cursor is back"
    left = screen_of(written)
    assert left[0].startswith("4 of 70 clips in 1 of 3 shards")
    assert [words(line) for line in left[1:]] == [
        "4 ok",
        "2 private retry never",
        "1 bot_check retry later",
        "dataset: out",
    ]


def test_interrupted_on_a_terminal() -> None:
    """The last state stays, for no summary follows; the cursor is given back."""
    written, code = on_terminal(f"signal_ = __import__('signal').raise_signal({signal.SIGINT:d})")
    assert code != 0
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
    left = screen_of(written.partition("Traceback")[0])
    assert left[0].endswith("4 / 70 clips")
    assert words(left[3]) == "4 ok"
    assert len(left) == 6


def test_text_of_the_user_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    say("row 1: '[/b]' and [bold]this[/bold] :smile:")
    assert capsys.readouterr().err == "row 1: '[/b]' and [bold]this[/bold] :smile:\n"


def test_average_is_that_of_this_run() -> None:
    resumed = replace(SMALL, counts={"ok": 60}, successes_now=6, seconds=3.0, cores=2)
    assert "1.00 vid/s/core" in shown(*summary(resumed, "out", {}), width=200)
