"""What Weights & Biases is told of a run: the reference's metrics, and ours.

wandb works in a process of its own (this module is its program, too). It may ask for a key on the
terminal, raise signals, wait for hours at the exit for what is not uploaded yet: over there it does
so without a terminal, to nobody, and until it is killed. So it can neither block nor end a run, and
nothing that it looks at by itself (the command line, the console, git) is the run's.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Any

from acavdl.config import Tracking
from acavdl.errors import Outcome
from acavdl.models import ShardReport
from acavdl.progress import Snapshot
from acavdl.writer import status_of

logger = logging.getLogger(__name__)

#: Seconds between two looks at the run.
_INTERVAL = 30.0
#: Seconds between two status tables, and rows of one: as in the reference. Each is a file.
_TABLE_INTERVAL, _TABLE_ROWS = 60.0, 100
#: Seconds for the last upload: of a run that ended, and of one that was interrupted.
_PATIENCE, _HASTE = 30.0, 5.0
#: Seconds after which the process ends by itself, if its driver was killed and the network is gone.
_ALONE = 60
#: Characters of a group's name; W&B takes 128.
_GROUP = 128


class Tracker:
    """Logs a run to Weights & Biases while it is entered; what goes wrong there is told once.

    Each run of acavdl is a W&B run; those of one output folder are a group. (A run that went on
    under the id of an earlier one would meet ids that were deleted, folders of one name on two
    machines, and offline runs, which cannot be resumed.) Of the environment wandb's own variables
    hold: ``WANDB_MODE``, ``WANDB_DIR``, ``WANDB_ENTITY``, ``WANDB_RUN_GROUP``, …

    Parameters
    ----------
    tracking
        Whether, and under which project. If not, nothing is imported or started.
    snapshot
        Gives the run as it is now; called from another thread.
    output_folder
        Path or URL: the group's name, without credentials.
    config
        The run's settings without secrets, as `acavdl.config.Config.as_dict` returns them.
    tell
        Called from another thread with a line that says where the run can be looked at.
    """

    def __init__(
        self,
        tracking: Tracking,
        snapshot: Callable[[], Snapshot],
        *,
        output_folder: str,
        config: Mapping[str, Any],
        tell: Callable[[str], object] = lambda _: None,
    ) -> None:
        folder = _without_credentials(output_folder)
        self._enabled = tracking.enable_wandb
        self._begin = {
            "project": tracking.wandb_project,
            "group": folder[-_GROUP:],
            "config": {**config, "output_folder": folder},
        }
        self._snapshot = snapshot
        self._tell = tell
        self._messages: queue.SimpleQueue[_Finished | _End] = queue.SimpleQueue()
        self._process: _Process | None = None
        self._thread: threading.Thread | None = None
        self._given_up = False

    def __enter__(self) -> Tracker:
        """Start wandb, if it is wanted and there; waits for nothing."""
        if not self._enabled:
            return self
        if not _installed():
            _warn("wandb is not installed: pip install 'acavdl[wandb]'")
            return self
        try:
            self._process = _Process()
        except OSError as error:
            _warn(f"its process cannot be started: {error}")
            return self
        self._thread = threading.Thread(
            target=self._follow, args=(self._process,), name="tracking", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Log the end, and wait some seconds for the upload."""
        if self._process is None or self._thread is None:
            return
        self._messages.put(_End(0 if error is None else 1))
        try:
            self._thread.join(_PATIENCE if error is None else _HASTE)
        finally:
            if self._thread.is_alive():
                self._given_up = True
                self._process.kill()
            self._thread.join()

    def shard_finished(self, report: ShardReport) -> None:
        """Log a shard that a task of this run reported; returns at once."""
        if self._thread is not None and self._thread.is_alive():
            self._messages.put(_Finished(report, time.monotonic()))

    def _follow(self, process: _Process) -> None:
        """Hand on what happens, until the end of the run or of the process."""
        answer = process.ask(self._begin)
        folder = answer.get("folder")
        # Without one it is switched off (WANDB_MODE=disabled).
        if folder is not None:
            self._tell(f"wandb: {answer['url'] or f'offline, in {folder} (wandb sync)'}")
            answer = self._hand_on(process)
        process.close()
        if self._given_up:
            rest = "" if folder is None else f"; what is not uploaded lies in {folder} (wandb sync)"
            _warn(f"its server did not answer in time{rest}")
        elif "error" in answer:
            _warn(answer["error"])

    def _hand_on(self, process: _Process) -> Mapping[str, Any]:
        """Send rows until the run ends; return the process's last word."""
        totals, now = _Totals(), time.monotonic()
        look_at, table_at = now + _INTERVAL, now + _TABLE_INTERVAL
        while True:
            message: _Finished | _End | None = None
            with contextlib.suppress(queue.Empty):
                message = self._messages.get(timeout=max(0.0, look_at - time.monotonic()))
            now, last = time.monotonic(), isinstance(message, _End)
            row: dict[str, float] = {}
            if isinstance(message, _Finished):
                row |= totals.add(message)
            if last or now >= look_at:
                row |= _ours(self._snapshot())
                look_at = now + _INTERVAL
            if row:
                process.send({"row": row})
            if totals.counts and (last or now >= table_at):
                process.send({"table": _table(totals.counts)})
                table_at = now + _TABLE_INTERVAL
            if isinstance(message, _End):
                return process.ask({"exit": message.code})
            if process.ended:
                return process.ask({})


@dataclass(frozen=True)
class _Finished:
    """A shard's report, and when it came (monotonic seconds)."""

    report: ShardReport
    at: float


@dataclass(frozen=True)
class _End:
    """The end of the run, and its exit code."""

    code: int


@dataclass
class _Totals:
    """What the shards of this run add up to."""

    counts: Counter[str] = field(default_factory=Counter)
    bytes_fetched: int = 0
    begun: float = float("inf")

    def add(self, message: _Finished) -> dict[str, float]:
        """Add a shard; return the row of its own and of all."""
        report = message.report
        counts = Counter(report.counts)
        self.counts += counts
        self.bytes_fetched += report.bytes_fetched
        self.begun = min(self.begun, message.at - report.seconds)
        return {
            # A shard that the task found published took no time of this run.
            **_speed("worker", counts, report.bytes_fetched, report.seconds),
            **_speed("total", self.counts, self.bytes_fetched, message.at - self.begun),
        }


def _speed(
    prefix: str, counts: Counter[str], bytes_fetched: int, seconds: float
) -> dict[str, float]:
    """Return video2dataset's row of speeds: rates a second, and shares of the count."""
    count = counts.total()
    if not count or seconds <= 0:
        return {}
    status = Counter[str]()
    for name, number in counts.items():
        status[status_of(Outcome(name))] += number
    return {
        f"{prefix}/vid_per_sec": count / seconds,
        f"{prefix}/bytes_per_sec": bytes_fetched / seconds,
        **{
            f"{prefix}/{name}": status[name] / count
            for name in ("success", "failed_to_download", "failed_to_subsample")
        },
        f"{prefix}/count": count,
    }


def _table(counts: Counter[str]) -> list[tuple[str, float, int]]:
    """Return the rows of video2dataset's table of statuses, most frequent first."""
    total = counts.total()
    return [
        ("success" if name == Outcome.OK else name, number / total, number)
        for name, number in counts.most_common(_TABLE_ROWS)
    ]


def _ours(snapshot: Snapshot) -> dict[str, float]:
    """Return the row of the whole run, the clips of earlier runs included."""
    names = (
        *("videos_per_second_core", "attempts_per_second", "megabytes_per_second"),
        *("done", "total", "shards_done", "cores", "eta", "held_back"),
    )
    values = {f"acavdl/{name}": getattr(snapshot, name) for name in names}
    values |= {f"acavdl/outcome/{name}": count for name, count in snapshot.counts.items()}
    return {name: value for name, value in values.items() if value is not None}


def _without_credentials(url: str) -> str:
    """Return a URL without user, password (which may hold slashes) and query; a path as it is."""
    scheme, mark, rest = url.partition("://")
    return f"{scheme}{mark}{re.sub('.*@|[?#].*', '', rest)}" if mark else url


def _warn(cause: str) -> None:
    logger.warning("the run goes on without Weights & Biases: %s", cause)


# --- the other process --------------------------------------------------------------------------


def _installed() -> bool:
    """Whether wandb can be imported; its folder of runs in the working directory looks like it."""
    try:
        spec = importlib.util.find_spec("wandb")
    except ValueError:  # a module that somebody made up
        return False
    return spec is not None and spec.origin is not None


class _Process:
    """wandb's process: reads a JSON object a line, and answers some of them.

    Raises
    ------
    OSError
        If it can't be started.
    """

    def __init__(self) -> None:
        environ = {
            # Reports of errors go to its makers.
            "WANDB_ERROR_REPORTING": "false",
            **os.environ,
            # What can be imported here, can be imported there.
            "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
        }
        # A service that the program around us started is not ours to use.
        environ.pop("WANDB_SERVICE", None)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environ,
            # Neither Ctrl-C nor the terminal is for it.
            start_new_session=True,
        )
        self.pid = self._process.pid
        #: Whether it was found to read no more.
        self.ended = False

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a line, if there is still somebody to read it."""
        try:
            _write(self._process.stdin, message)
        except OSError:
            self.ended = True

    def ask(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Send a line and return the answer, or what the process said or did at its end."""
        self.send(message)
        line = self._process.stdout.readline() if self._process.stdout else b""
        if not line.endswith(b"\n"):
            return {"error": f"its process ended with code {self._process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        """End it now; what it started goes with it within a second."""
        self._process.kill()

    def close(self) -> None:
        """End it: it has said its last word."""
        self._process.kill()
        # There may be a line that nobody has read.
        with contextlib.suppress(OSError), self._process:
            pass


def _write(stream: IO[bytes] | None, message: Mapping[str, Any]) -> None:
    if stream is not None:
        stream.write(json.dumps(message, default=str).encode() + b"\n")
        stream.flush()


def _serve() -> None:
    """Log what the driver says, a JSON object a line, until it says how the run ended."""
    # Only the driver ends it: neither a signal to the whole job, nor the stop button of the site.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    messages = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    # What wandb starts must not hold our pipes.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    try:
        _log(messages, answers)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        with contextlib.suppress(OSError):
            _write(answers, {"error": text})
        # The next row tells the driver, however long wandb takes to end.
        messages.close()
        signal.alarm(_ALONE)
        raise SystemExit(1) from error


def _log(messages: IO[bytes], answers: IO[bytes]) -> None:
    begin = json.loads(messages.readline())

    import wandb

    run = wandb.init(
        project=begin["project"],
        group=os.environ.get("WANDB_RUN_GROUP") or begin["group"],
        config=begin["config"],
        settings=wandb.Settings(
            silent=True,
            # What it would look for by itself: output, code, git, this machine, its packages.
            console="off",
            save_code=False,
            disable_git=True,
            label_disable=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_save_requirements=False,
        ),
    )
    if run.disabled:
        _write(answers, {})
        return
    url = None if run.offline else run.url
    _write(answers, {"folder": run.settings.sync_dir, "url": url})
    code = 1
    for line in messages:
        message = json.loads(line)
        if "exit" in message:
            code = message["exit"]
            break
        if "row" in message:
            run.log(message["row"])
        else:
            table = wandb.Table(columns=["status", "frequency", "count"], data=message["table"])
            run.log({"status": table})
    signal.alarm(_ALONE)
    run.finish(exit_code=code)
    wandb.teardown(exit_code=code)
    _write(answers, {"finished": True})


if __name__ == "__main__":
    _serve()
