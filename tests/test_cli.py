"""The command as a user types it: exit codes, one line for a mistake, Ctrl-C, kill -9, resuming."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
from helpers import write_csv

import acavdl
from acavdl.sandbox import Fault, Sandbox, video_id

ACAVDL = [sys.executable, "-m", "acavdl"]
#: Shards of a test's dataset, and clips in each.
SHARDS, SIZE = 6, 8
#: Commands for a dataset that is there.
AFTER = (["failures"], ["retry"], ["verify"], ["remove"])


def call(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ACAVDL, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    for word in words:
        assert word in line


def test_help_needs_none_of_the_heavy_libraries() -> None:
    script = (
        "import sys, runpy, atexit\n"
        "atexit.register(lambda: print(sorted({name.partition('.')[0] for name in sys.modules})))\n"
        "sys.argv = ['acavdl', '--help']\n"
        "runpy.run_module('acavdl', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert "run" in done.stdout
    assert "demo" in done.stdout
    for heavy in ("dask", "distributed", "pandas", "numpy", "pyarrow", "yt_dlp", "av", "rich"):
        assert f"'{heavy}'" not in done.stdout


def test_help_fits_80_columns() -> None:
    for arguments in (
        [],
        ["plan"],
        ["run"],
        ["slurm"],
        ["stop"],
        ["init"],
        ["presets"],
        ["demo"],
        *AFTER,
    ):
        done = call(*arguments, "--help")
        assert done.returncode == 0
        assert max(map(len, done.stdout.splitlines())) <= 80


def test_version() -> None:
    assert acavdl.__version__ in call("--version").stdout


def test_table_that_is_not_there(tmp_path: Path) -> None:
    done = call("run", "--url-list", tmp_path / "no.csv", "--output-folder", tmp_path / "out")
    assert_one_line(done, 2, "no.csv")


def test_table_without_the_columns(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", [("a", "b")], ("name", "when"))
    done = call("run", "--url-list", table, "--output-folder", tmp_path / "out")
    assert_one_line(done, 2, "name, when", "videoID")


def test_table_without_a_usable_row(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", [("tooshort", 0, 1)])
    done = call("run", "--url-list", table, "--output-folder", tmp_path / "out")
    assert_one_line(done, 4, "no usable row", "row 1")


def test_value_that_makes_no_sense(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", [(video_id(1), 0, 1)])
    done = call("run", "--url-list", table, "--output-folder", tmp_path, "--timeout", 0)
    assert_one_line(done, 2, "reading.timeout")


def test_storage_that_is_not_supported(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", [(video_id(1), 0, 1)])
    done = call("run", "--url-list", table, "--output-folder", "memory://somewhere")
    assert_one_line(done, 2, "memory://somewhere")


def test_certificates_that_are_not_there(
    tmp_path: Path, online: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "no.pem"))
    table = write_csv(tmp_path / "t.csv", [(video_id(1), 0, 1)])
    done = call("run", "--url-list", table, "--output-folder", tmp_path / "out")
    assert_one_line(done, 2, "SSL_CERT_FILE", "no.pem")


def test_settings_that_are_wrong_are_told_with_their_file(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("reading: {timout: 3}")
    done = call("plan", "--config", tmp_path / "s.yaml")
    assert_one_line(done, 2, "s.yaml", "reading.timout", "reading.timeout")
    assert_one_line(call("plan", "--url-list", "t.csv"), 2, "output_folder", "--output-folder")


def test_two_layouts_that_fit_are_named(tmp_path: Path) -> None:
    header = ("audiocap_id", "youtube_id", "start_time", "caption", "time_start", "time_end")
    table = write_csv(tmp_path / "t.csv", [(1, video_id(1), 0, "x", 0, 1)], header)
    done = call("plan", "--url-list", table, "--output-folder", tmp_path / "out")
    assert_one_line(done, 2, "--preset audiocaps", "--preset kinetics")


def test_table_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "vgg.csv").write_text('---g-f_I2yQ,1,"people marching",test\n')
    done = call("plan", "--url-list", tmp_path / "vgg.csv", "--output-folder", tmp_path / "out")
    assert_one_line(done, 2, "no header", "--preset vggsound")
    done = call(
        "plan", "--url-list", tmp_path / "vgg.csv", "--output-folder", tmp_path / "out",
        "--preset", "vggsound",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 of 1 videos" in done.stderr


def test_half_a_parquet_file(tmp_path: Path) -> None:
    table = tmp_path / "t.parquet"
    pd.DataFrame({"videoID": [video_id(1)] * 99, "start": 0.0, "end": 1.0}).to_parquet(table)
    table.write_bytes(table.read_bytes()[:-9])
    done = call("plan", "--url-list", table, "--output-folder", tmp_path / "out")
    assert_one_line(done, 2, "t.parquet", "Parquet")


def test_folder_with_another_plan(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", [(video_id(1), 0, 1)])
    line = ("plan", "--url-list", table, "--output-folder", tmp_path / "out")
    assert call(*line).returncode == 0
    assert_one_line(call(*line, "--limit", 3), 3, "limit: None there, 3 now")


def test_overwriting_asks_first(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", [(video_id(1), 0, 1)])
    line = ("plan", "--url-list", table, "--output-folder", tmp_path / "out")
    assert call(*line, "--incremental-mode", "overwrite").returncode == 0
    done = call(*line, "--incremental-mode", "overwrite", "--limit", 1)
    assert_one_line(done, 2, "holds a dataset", "--yes")
    assert call(*line).returncode == 0
    done = call(*line, "--incremental-mode", "overwrite", "--limit", 1, "--yes")
    assert done.returncode == 0, done.stderr
    assert call(*line).returncode == 3


def test_settings_for_a_table_make_the_commands_short(online: Sandbox, tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", [(video_id(1, master="m60"), 0, 3)])

    def here(*arguments: str) -> subprocess.CompletedProcess[str]:
        line = [*ACAVDL, *arguments]
        return subprocess.run(
            line, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )

    done = here("init", "--url-list", "t.csv")
    assert done.returncode == 0, done.stderr
    assert "acavdl.yaml" in done.stdout
    assert_one_line(here("init", "--url-list", "t.csv"), 2, "is there already", "--force")
    done = here("plan")
    assert done.returncode == 0, done.stderr
    assert "1 of 1 videos in 1 shards" in done.stderr
    done = here("run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "dataset/00000.tar").exists()


def test_what_goes_on_does_not_begin_anew() -> None:
    from acavdl.cli import _going_on

    assert _going_on(["run", "--incremental-mode", "overwrite", "--yes", "--limit", "3"]) == [
        *("run", "--limit", "3")
    ]
    assert _going_on(["run", "--incremental-mode=overwrite"]) == ["run"]
    assert _going_on(["run", "--incremental-mode", "extend"]) == [
        *("run", "--incremental-mode", "extend")
    ]


def test_layouts_are_listed() -> None:
    done = call("presets")
    assert done.returncode == 0
    assert "panda-70m" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


# --- tables as users have them ----------------------------------------------------------------


def test_parquet_with_links_clips_and_captions_from_a_relative_path(
    online: Sandbox, tmp_path: Path
) -> None:
    names = [video_id(i, master="m60") for i in range(3)]
    rows = {
        "video_link": [f"https://youtube.com/watch?v={name}" for name in names],
        "clips": [[[0.5, 3.5]], [[1.0, 4.0], [5.0, 8.0]], [[2.0, 6.0]]],
        "title": ["eins", "zwei [/b]", "Café “noir”"],
    }
    pd.DataFrame(rows).to_parquet(tmp_path / "my clips.parquet")
    done = subprocess.run(
        [*ACAVDL, "run", "--url-list", "my clips.parquet", "--output-folder", "my out",
         "--caption-col", "title"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "4 of 4 clips" in done.stderr
    with tarfile.open(tmp_path / "my out/00000.tar") as tar:
        texts = {m.name: tar.extractfile(m).read().decode() for m in tar if m.name[-3:] == "txt"}  # type: ignore[union-attr]
    assert sorted(texts.values()) == sorted(["eins", "zwei [/b]", "zwei [/b]", "Café “noir”"])
    assert f"{names[1]}_000005000_000008000.txt" in texts


def test_odd_rows_are_shown_as_they_are(online: Sandbox, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", [(video_id(1, master="m60"), 0, 3), ("[/b]", 0, 1)])
    done = call("run", "--url-list", table, "--output-folder", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "row 2" in done.stderr
    assert "[/b]" in done.stderr


def test_run_ends_well_though_nobody_reads_along(online: Sandbox, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", [(video_id(1, master="m60"), 0, 3)])
    line = [*ACAVDL, "run", "--url-list", str(table), "--output-folder", str(tmp_path / "out")]
    with subprocess.Popen(line, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.close()
        assert process.wait(60) == 0
    assert (tmp_path / "out/00000_stats.json").exists()


# --- runs that are broken off -----------------------------------------------------------------


def table(folder: Path) -> Path:
    rows = [(video_id(i, master="m60"), 1.0, 5.0) for i in range(SHARDS * SIZE)]
    return write_csv(folder / "clips.csv", rows)


def command(folder: Path, out: str, *more: str) -> list[str]:
    return [
        *ACAVDL, "run", "--url-list", str(table(folder)), "--output-folder", str(folder / out),
        "--number-sample-per-shard", str(SIZE), "--thread-count", "2", "--processes-count", "2",
        "--progress", "plain", "--tmp-dir", str(folder), *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A site that takes its time, so that a run can be broken off in its middle."""
    with Sandbox(latency=0.15) as site:
        yield site


@pytest.fixture(scope="module")
def whole(slow: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The tars of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    with started(command(folder, "out"), slow) as process:
        assert process.wait(60) == 0
    return tars(folder / "out")


def tars(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}


@contextlib.contextmanager
def started(arguments: list[str], site: Sandbox) -> Iterator[subprocess.Popen[str]]:
    """Start the command in a process group of its own, as a shell does."""
    process = subprocess.Popen(
        arguments, env={**os.environ, **site.environ()}, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(condition: object, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def published(out: Path) -> int:
    return len(list(out.glob("*_stats.json")))


def group_of(leader: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def leftovers(folder: Path) -> list[str]:
    """Staged files and scratch folders."""
    scratch = [path.name for path in folder.glob("acavdl-*")]
    return scratch + [path.name for path in folder.rglob(".*.tmp")]


def go_on(folder: Path, site: Sandbox, expected: dict[str, bytes]) -> None:
    """Run the command again: it completes what is missing, and only that."""
    kept = {path.name: path.stat().st_mtime_ns for path in (folder / "out").glob("*_stats.json")}
    with started(command(folder, "out"), site) as process:
        assert process.wait(60) == 0
    assert tars(folder / "out") == expected
    for name, modified in kept.items():
        assert (folder / "out" / name).stat().st_mtime_ns == modified
    left = [name for name in leftovers(folder) if not name.startswith("acavdl-")]
    assert left == [], subprocess.getoutput("ps -eo pid,ppid,pgid,stat,args")


def test_ctrl_c_ends_within_seconds_and_the_run_goes_on_later(
    slow: Sandbox, whole: dict[str, bytes], tmp_path: Path
) -> None:
    with started(command(tmp_path, "out"), slow) as process:
        wait_for(lambda: published(tmp_path / "out") >= 2)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr is not None
        said = process.stderr.read()
        wait_for(lambda: not group_of(process.pid), 10)
    assert "Traceback" not in said
    assert "acavdl run --url-list" in said
    assert 2 <= published(tmp_path / "out") < SHARDS
    assert leftovers(tmp_path) == []
    go_on(tmp_path, slow, whole)


def test_kill_ends_a_run_in_order_even_where_the_site_hangs(slow: Sandbox, tmp_path: Path) -> None:
    rows = [(video_id(i, fault=Fault.PLAYER_HANGS), 1.0, 5.0) for i in range(40)]
    arguments = command(tmp_path, "out")
    write_csv(tmp_path / "clips.csv", rows)
    slow.reset()
    with started(arguments, slow) as process:
        wait_for(lambda: slow.stats().requests.get("player", 0) >= 4)
        process.terminate()
        assert process.wait(15) == 130
        assert process.stderr is not None
        said = process.stderr.read()
        wait_for(lambda: not group_of(process.pid), 10)
    assert "Traceback" not in said
    assert "acavdl run --url-list" in said
    assert leftovers(tmp_path) == []


def test_ctrl_c_while_the_workers_start(slow: Sandbox, tmp_path: Path) -> None:
    with started(command(tmp_path, "out"), slow) as process:
        wait_for(lambda: len(group_of(process.pid)) >= 3)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(15) == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
        wait_for(lambda: not group_of(process.pid), 10)
    assert leftovers(tmp_path) == []


def test_kill_9_of_the_driver(slow: Sandbox, whole: dict[str, bytes], tmp_path: Path) -> None:
    with started(command(tmp_path, "out"), slow) as process:
        wait_for(lambda: published(tmp_path / "out") >= 1)
        process.kill()
        process.wait(10)
        wait_for(lambda: not group_of(process.pid), 20)
    assert published(tmp_path / "out") < SHARDS
    go_on(tmp_path, slow, whole)


def test_kill_9_of_a_worker_costs_its_shard_alone(
    slow: Sandbox, whole: dict[str, bytes], tmp_path: Path
) -> None:
    with started(command(tmp_path, "out"), slow) as process:
        wait_for(lambda: published(tmp_path / "out") >= 1)
        workers = [
            found for found in group_of(process.pid) if "spawn_main" in " ".join(found.cmdline())
        ]
        workers[0].kill()
        assert process.wait(60) == 0
    assert tars(tmp_path / "out") == whole


def test_another_plan_in_the_folder(slow: Sandbox, tmp_path: Path) -> None:
    with started(command(tmp_path, "out"), slow):
        wait_for((tmp_path / "out/_acavdl/run.json").exists)
    done = call(*command(tmp_path, "out", "--download-size", "240")[3:])
    assert_one_line(done, 3, "download_size", "360", "240")


def test_json_progress_is_read_by_machines(slow: Sandbox, tmp_path: Path) -> None:
    with started(command(tmp_path, "out", "--progress", "json"), slow) as process:
        assert process.stderr is not None
        lines = process.stderr.read().splitlines()
        assert process.wait(60) == 0
    last = [json.loads(line) for line in lines if line.startswith("{")][-1]
    assert last["done"] == last["total"] == SHARDS * SIZE
    assert last["counts"] == {"ok": SHARDS * SIZE}


# --- a dataset that is there ---------------------------------------------------------------------


@pytest.mark.parametrize("command", AFTER)
def test_a_folder_without_a_dataset(tmp_path: Path, command: list[str]) -> None:
    assert_one_line(call(*command, tmp_path / "out"), 2, str(tmp_path / "out"), "holds no dataset")


def test_after_a_run(online: Sandbox, tmp_path: Path) -> None:
    """failures → retry → remove → verify, as typed; the settings are those of the dataset."""
    online.reset()
    once, dead = video_id(1, fault=Fault.FIRST_503), video_id(1, fault=Fault.PRIVATE)
    rows = [(name, 0, 3) for name in (video_id(1, master="m60"), once, dead)]
    table, out = write_csv(tmp_path / "t.csv", rows), tmp_path / "out"
    settings = tmp_path / "s.yaml"
    settings.write_text("reading: {retries: 0, timeout: 20}\ndistribution: {processes_count: 1}\n")
    done = call("run", "--config", settings, "--url-list", table, "--output-folder", out)
    assert done.returncode == 0, done.stderr
    done = call("failures", out, "--json", "--tombstones", tmp_path / "dead.csv")
    assert json.loads(done.stdout)["failed"] == 2
    assert dead in (tmp_path / "dead.csv").read_text()
    done = call("failures", out, "--outcome", "no")
    assert_one_line(done, 2, "no outcome of a failure: no")
    # Each kind of request to that video is refused once.
    settings.write_text("reading: {retries: 4, timeout: 20}\ndistribution: {processes_count: 1}\n")
    done = call(
        "retry", out, "--config", settings, "--progress", "plain", "--rate-limit", "0"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 clips are asked for once more, shards 1 to 1." in done.stderr
    assert "2 of 3 clips in 2 of 2 shards" in done.stderr
    assert_one_line(call("remove", out, "--ids", once), 0, "2 clips were taken out of 2 shards")
    (out / "00000.tar").unlink()
    done = call("verify", out, "--repair", "--decode", 1)
    assert done.returncode == 1
    assert "shard 00000 is broken: 00000.tar is missing" in done.stderr
    assert "taken back: 00000" in done.stderr
    assert not (out / "00000_stats.json").exists()


def test_a_folder_without_a_dataset_has_no_run_to_stop(tmp_path: Path) -> None:
    assert_one_line(call("stop", tmp_path), 2, f"there is no dataset in {tmp_path}")


def test_stopping_takes_the_settings_of_the_current_folder(tmp_path: Path) -> None:
    """As all commands on a dataset do: its store may need options that stand there alone."""
    (tmp_path / "acavdl.yaml").write_text("storage: {option: 1}")
    done = subprocess.run(
        [*ACAVDL, "stop", "out"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert_one_line(done, 2, "acavdl.yaml: unknown key storage.option")
