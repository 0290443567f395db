"""What Weights & Biases is told: real wandb, offline, and its files read back."""

from __future__ import annotations

import gzip
import json
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from acavdl import tracking
from acavdl.config import Config, Reading, Storage, Tracking
from acavdl.models import ShardReport
from acavdl.progress import Snapshot
from acavdl.tracking import Tracker

SNAPSHOT = Snapshot(
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
    successes_now=4,
)
REPORT = ShardReport(
    shard=0,
    state="done",
    clips=10,
    counts={"ok": 4, "private": 3, "timeout": 1, "corrupt": 2},
    bytes_fetched=5000,
    bytes_stored=4000,
    seconds=2.0,
    host="a",
)
SECRET = "s3cr/et"
ON = Tracking(enable_wandb=True, wandb_project="clips")
KEY = "0123456789" * 4


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep wandb offline, and all that it writes below `tmp_path`."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tracker(*, lines: list[str] | None = None, **arguments: Any) -> Tracker:
    given: dict[str, Any] = {"output_folder": "out", "config": Config().as_dict(), **arguments}
    snapshot = given.pop("snapshot", lambda: SNAPSHOT)
    return Tracker(
        given.pop("tracking", ON),
        snapshot,
        tell=[].append if lines is None else lines.append,
        **given,
    )


def eventually(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- reading what wandb wrote --------------------------------------------------------------------


def chunks(data: bytes) -> Iterator[bytes]:
    """Yield the records of a ``.wandb`` file.

    It is a log of LevelDB (doc/log_format.md there) behind a header of 7 bytes: blocks of 32 KiB
    with pieces of records, each behind 4 bytes of checksum, 2 of length and 1 of kind.
    """
    at, record = 7, b""
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole, the last piece
            yield record
            record = b""


@pytest.fixture(scope="module")
def record_type() -> Any:
    """The message that each record is."""
    with warnings.catch_warnings():
        # Its older versions warn about themselves.
        warnings.simplefilter("ignore")
        from wandb.proto import wandb_internal_pb2
    return wandb_internal_pb2.Record


class Logged:
    """One run, as it stands in the folder of an offline run."""

    def __init__(self, place: Path, record_type: Any) -> None:
        (self.folder,) = (place / "WANDB_DIR" / "wandb").glob("offline-run-*")
        (file,) = self.folder.glob("*.wandb")
        self.rows: list[dict[str, Any]] = []
        self.config: dict[str, Any] = {}
        for data in chunks(file.read_bytes()):
            record = record_type.FromString(data)
            if record.HasField("history"):
                self.rows.append(
                    {
                        item.key or "/".join(item.nested_key): json.loads(item.value_json)
                        for item in record.history.item
                    }
                )
            elif record.HasField("run"):
                self.run = record.run
                self.config |= {
                    item.key: json.loads(item.value_json) for item in record.run.config.update
                }
            elif record.HasField("exit"):
                self.exit_code = record.exit.exit_code

    def values(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows if name in row]

    def tables(self) -> list[Any]:
        found = [self.folder / "files" / path for path in self.values("status/path")]
        return [json.loads(path.read_bytes()) for path in found]


# --- what is logged ------------------------------------------------------------------------------


def test_metrics_of_the_reference_and_ours(place: Path, record_type: Any) -> None:
    lines: list[str] = []
    held = replace(SNAPSHOT, held_back=12.0)
    begun = time.monotonic()
    with tracker(lines=lines, snapshot=lambda: held) as logging_to:
        logging_to.shard_finished(REPORT)
        logging_to.shard_finished(replace(REPORT, shard=1, counts={"ok": 10}, seconds=0.5))
        logging_to.shard_finished(replace(REPORT, shard=2, state="present", seconds=0.0))
        closing = time.monotonic()
    assert time.monotonic() - closing < 10
    logged = Logged(place, record_type)
    assert lines == [f"wandb: offline, in {logged.folder} (wandb sync)"]

    assert logged.values("worker/count") == [10, 10]
    assert logged.values("worker/vid_per_sec") == [5.0, 20.0]
    assert logged.values("worker/bytes_per_sec") == [2500.0, 10000.0]
    assert logged.values("worker/success") == [0.4, 1.0]
    assert logged.values("worker/failed_to_download") == [0.4, 0.0]
    assert logged.values("worker/failed_to_subsample") == [0.2, 0.0]

    assert logged.values("total/count") == [10, 20, 30]
    assert logged.values("total/success") == [0.4, 0.7, 0.6]
    assert logged.values("total/failed_to_subsample") == [0.2, 0.1, pytest.approx(4 / 30)]
    # Since the first of them began, 2 s before it was told.
    longest = 2.0 + closing - begun
    for count, per_second in zip((10, 20, 30), logged.values("total/vid_per_sec"), strict=True):
        assert count / longest <= per_second <= count / 2.0
    assert logged.values("total/bytes_per_sec")[0] == pytest.approx(2500, rel=0.05)

    (table,) = logged.tables()
    assert table["columns"] == ["status", "frequency", "count"]
    assert table["data"] == [
        ["success", 0.6, 18],
        ["private", 0.2, 6],
        ["corrupt", pytest.approx(4 / 30), 4],
        ["timeout", pytest.approx(2 / 30), 2],
    ]

    (ours,) = (row for row in logged.rows if "acavdl/done" in row)
    assert {name: value for name, value in ours.items() if not name.startswith("_")} == {
        "acavdl/videos_per_second_core": 1.25,
        "acavdl/attempts_per_second": 3.5,
        "acavdl/megabytes_per_second": 17.0,
        "acavdl/done": 7,
        "acavdl/total": 70,
        "acavdl/shards_done": 1,
        "acavdl/cores": 2,
        "acavdl/eta": 36.0,
        "acavdl/held_back": 12.0,
        "acavdl/outcome/ok": 4,
        "acavdl/outcome/private": 2,
        "acavdl/outcome/bot_check": 1,
    }
    assert logged.run.project == "clips"
    assert logged.run.run_group == "out"
    assert logged.exit_code == 0
    assert logged.config["reading"]["download_size"] == 360
    assert logged.config["output_folder"] == "out"


def test_the_run_is_looked_at_while_it_goes_on(
    place: Path, record_type: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_INTERVAL", 0.05)
    monkeypatch.setattr(tracking, "_TABLE_INTERVAL", 0.1)
    looks: list[Snapshot] = []

    def snapshot() -> Snapshot:
        looks.append(replace(SNAPSHOT, done=len(looks), eta=None))
        return looks[-1]

    def interrupted() -> None:
        with tracker(snapshot=snapshot) as logging_to:
            logging_to.shard_finished(REPORT)
            eventually(lambda: len(looks) > 5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    logged = Logged(place, record_type)
    assert logged.values("acavdl/done") == list(range(len(looks)))
    assert not logged.values("acavdl/eta")
    assert not logged.values("acavdl/held_back")
    assert len(logged.tables()) > 1
    assert logged.exit_code == 1


def test_no_secret_gets_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of ours, nor what wandb would find by itself: the command line, git, the code."""
    subprocess.run(["git", "init", "-q"], check=True)
    url = f"https://me:{SECRET}@example.org/me/clips.git"
    subprocess.run(["git", "remote", "add", "origin", url], check=True)
    monkeypatch.setattr(sys, "argv", ["acavdl", "run", f"--output-folder=s3://key:{SECRET}@b/out"])
    config = Config(
        reading=Reading(ytdlp={"cookiefile": SECRET}), storage=Storage(options={"secret": SECRET})
    )
    folder = f"s3://key:{SECRET}@bucket/out?secret={SECRET}"
    with tracker(output_folder=folder, config=config.as_dict()) as logging_to:
        logging_to.shard_finished(REPORT)
    files = [path for path in place.rglob("*") if path.is_file() and ".git" not in path.parts]
    (file,) = (path for path in files if path.suffix == ".wandb")
    assert b"s3://bucket/out" in file.read_bytes()
    for path in files:
        assert b"s3cr" not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("s3://key:a/b@c+d=@bucket/out", "s3://bucket/out"),
        ("https://host/out?X-Amz-Signature=1#x", "https://host/out"),
        ("/scratch/me@home/out?", "/scratch/me@home/out?"),
    ],
)
def test_credentials_are_cut_off(url: str, shown: str) -> None:
    assert tracking._without_credentials(url) == shown


def test_variables_of_wandb_hold(
    place: Path, record_type: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    monkeypatch.setenv("WANDB_RUN_ID", "chosen")
    monkeypatch.setenv("WANDB_SERVICE", "3-1-unix-/nowhere")
    with tracker():
        pass
    logged = Logged(place, record_type)
    assert (logged.run.run_group, logged.run.run_id) == ("mine", "chosen")
    assert not logged.values("total/count")
    assert len(logged.values("acavdl/done")) == 1


class Site(BaseHTTPRequestHandler):
    """As much of W&B's server as a run without tables needs; keeps what is uploaded."""

    protocol_version = "HTTP/1.1"
    uploaded: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        answer: dict[str, Any] = {}
        if self.path == "/graphql":
            asked = json.loads(body)
            answer["data"] = {"serverInfo": {"features": []}, "viewer": {"flags": "{}"}}
            if "upsertBucket" in asked["query"]:
                project = {"id": "1", "name": "clips", "entity": {"id": "2", "name": "me"}}
                run = {"id": "3", "name": asked["variables"]["name"], "project": project}
                run |= {"displayName": "calm-sea-1", "config": "{}", "historyLineCount": 0}
                answer["data"] = {"upsertBucket": {"bucket": run, "inserted": True}}
            elif "createRunFiles" in asked["query"]:
                files = [
                    {"name": name, "uploadUrl": f"http://{self.headers['Host']}/file"}
                    for name in asked["variables"]["files"]
                ]
                made = {"runID": "3", "uploadHeaders": [], "files": files}
                answer["data"] = {"createRunFiles": made}
        elif self.path.endswith("/file_stream"):
            self.uploaded.append(body)
        self.send_response(200)
        data = json.dumps(answer).encode()
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_PUT(self) -> None:
        self.do_POST()

    def log_message(self, *_: object) -> None:
        pass


def test_online_the_page_of_the_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Site, "uploaded", [])
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_RUN_ID", "chosen")
        lines: list[str] = []
        with tracker(lines=lines):
            pass
        server.shutdown()
        thread.join()
    assert lines == [f"wandb: {url}/me/clips/runs/chosen"]
    files: dict[str, list[str]] = {}
    for body in Site.uploaded:
        for name, part in json.loads(body).get("files", {}).items():
            files.setdefault(name, []).extend(part["content"])
    (row,) = map(json.loads, files["wandb-history.jsonl"])
    assert (row["acavdl/done"], row["acavdl/outcome/private"]) == (7, 2)
    assert json.loads(Site.uploaded[-1])["exitcode"] == 0


# --- where it is not wanted, or not to be had ----------------------------------------------------


def test_without_enable_wandb_nothing_is_imported_or_started() -> None:
    program = """
        import sys
        from acavdl.config import Tracking
        from acavdl.tracking import Tracker
        with Tracker(Tracking(), None, output_folder="out", config={}) as tracker:
            tracker.shard_finished(None)
            assert tracker._process is tracker._thread is None
        assert "wandb" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


@pytest.mark.parametrize("how", ["blocked", "only its folder of runs"])
def test_absent_it_says_what_to_install(
    how: str, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if how == "blocked":
        monkeypatch.setitem(sys.modules, "wandb", None)
    else:
        (place / "wandb").mkdir()
        monkeypatch.delitem(sys.modules, "wandb", raising=False)
        monkeypatch.setattr(sys, "path", [str(place)])
    with tracker() as logging_to:
        logging_to.shard_finished(REPORT)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "pip install 'acavdl[wandb]'" in record.getMessage()
    assert logging_to._process is None


def test_disabled(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    lines: list[str] = []
    with tracker(lines=lines) as logging_to:
        logging_to.shard_finished(REPORT)
        assert logging_to._thread is not None
        eventually(lambda: logging_to._thread and not logging_to._thread.is_alive())
        logging_to.shard_finished(REPORT)
    assert not lines
    assert not list(place.rglob("*.wandb"))


# --- what goes wrong -----------------------------------------------------------------------------


def only_warning(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = caplog.records
    text = record.getMessage()
    assert "\n" not in text
    assert text.startswith("the run goes on without Weights & Biases: ")
    return text


@pytest.mark.parametrize(
    ("variables", "cause"),
    [({"WANDB_MODE": "online"}, "API key|api_key"), ({"WANDB_MODE": "no such"}, "mode")],
)
def test_what_cannot_begin_is_told_at_once(
    variables: dict[str, str],
    cause: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without a key nobody is asked for one, though there may be a terminal."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    lines: list[str] = []
    with tracker(lines=lines) as logging_to:
        eventually(lambda: caplog.records)
        logging_to.shard_finished(REPORT)
    assert re.search(cause, only_warning(caplog))
    assert not lines


def test_a_server_that_says_nothing_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "_PATIENCE", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        begun = time.monotonic()
        with tracker() as logging_to:
            logging_to.shard_finished(REPORT)
            assert time.monotonic() - begun < 1
        assert time.monotonic() - begun < 8
    assert "did not answer in time" in only_warning(caplog)


def test_a_process_that_dies_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "_INTERVAL", 0.05)
    lines: list[str] = []
    with tracker(lines=lines) as logging_to:
        eventually(lambda: lines)
        assert logging_to._process is not None
        os.kill(logging_to._process.pid, signal.SIGKILL)
        eventually(lambda: caplog.records)
        logging_to.shard_finished(REPORT)
    assert "ended with code -9" in only_warning(caplog)


@pytest.mark.parametrize("broken", ["init", "log", "import"])
def test_errors_of_wandb_are_told_once(
    broken: str, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever wandb raises, wherever: here it is a stand-in that does."""
    program = f"""
        import atexit, time
        atexit.register(time.sleep, 60)
        class Settings:
            sync_dir = "here"
            def __init__(self, **_): pass
        class Run:
            disabled, offline, settings = False, True, Settings()
            def log(self, row):
                raise ZeroDivisionError("first line\\nsecond line")
        def init(**_):
            if {broken == "init"}:
                Run().log({{}})
            return Run()
        if {broken == "import"}:
            Run().log({{}})
    """
    (place / "fake").mkdir()
    (place / "fake" / "wandb.py").write_text(textwrap.dedent(program))
    monkeypatch.syspath_prepend(place / "fake")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(tracking, "_INTERVAL", 0.05)
    with tracker() as logging_to:
        logging_to.shard_finished(REPORT)
        eventually(lambda: caplog.records)
    assert only_warning(caplog).endswith("ZeroDivisionError: first line second line")


def test_nothing_is_left_of_a_killed_run() -> None:
    """Of a driver that is killed, wandb's processes end by themselves."""
    program = """
        import time
        from acavdl.config import Tracking
        from acavdl.tracking import Tracker
        with Tracker(
            Tracking(enable_wandb=True), None, output_folder="out", config={},
            tell=lambda _: print(tracker._process.pid, flush=True),
        ) as tracker:
            time.sleep(60)
    """
    driver = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True
    )
    with driver:
        assert driver.stdout is not None
        process = psutil.Process(int(driver.stdout.readline()))
        processes = [process, *process.children(recursive=True)]
        assert len(processes) > 1
        driver.kill()
        # Nothing of wandb holds the pipes of the run.
        assert driver.stdout.read() == ""
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_no_thread_is_left() -> None:
    threads = set(threading.enumerate())
    with tracker():
        pass
    assert set(threading.enumerate()) <= threads
