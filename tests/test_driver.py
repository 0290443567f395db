"""The driver: plan, resume, failing shards, a client of the user's own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from distributed import Client, LocalCluster
from helpers import write_csv

import acavdl
from acavdl import driver
from acavdl.cluster import Workers
from acavdl.config import Config, Distribution, Reading, Storage, Tracking
from acavdl.errors import ClusterError, PlanMismatchError, StorageError, UsageError
from acavdl.planfile import ShardPlace
from acavdl.sandbox import Fault, Sandbox, video_id

CONFIG = Config(
    Reading(timeout=8.0),
    Storage(number_sample_per_shard=3),
    Distribution(processes_count=1, thread_count=4, subjob_size=2),
)


def table(folder: Path, videos: int = 9) -> Path:
    rows = [(video_id(i, master="m60"), 0.5, 4.5) for i in range(videos)]
    return write_csv(folder / "clips.csv", rows)


def test_shards_are_submitted_in_batches_and_all_made(online: Sandbox, tmp_path: Path) -> None:
    report = driver.run(
        str(table(tmp_path)), str(tmp_path / "out"), config=CONFIG, progress="quiet"
    )
    assert dict(report.snapshot.counts) == {"ok": 9}
    assert (report.snapshot.shards_done, report.snapshot.shards) == (3, 3)
    assert len(list((tmp_path / "out").glob("*.tar"))) == 3


def test_shard_that_cannot_be_written_fails_alone(
    online: Sandbox,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "out/00001.tar").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        report = driver.run(
            str(table(tmp_path)), str(tmp_path / "out"), config=CONFIG, progress="quiet"
        )
    assert list(report.failed_shards) == [1]
    # Tried again, once.
    assert sum("shard 00001 is tried again" in text for text in caplog.messages) == 1
    assert "00001.tar" in report.failed_shards[1]
    assert report.snapshot.shards_done == 2
    assert dict(report.snapshot.counts) == {"ok": 6}
    assert driver.tell(report) == 1
    assert "shard 00001 failed" in capsys.readouterr().err
    (tmp_path / "out/00001.tar").rmdir()
    again = driver.run(str(table(tmp_path)), str(tmp_path / "out"), config=CONFIG, progress="quiet")
    assert again.failed_shards == {}
    assert dict(again.snapshot.counts) == {"ok": 9}


def test_any_dask_client_will_do(online: Sandbox, tmp_path: Path) -> None:
    """As in a notebook: a client that was there before, workers in this process."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        report = driver.run(
            str(table(tmp_path, 4)), str(tmp_path / "out"), config=CONFIG, client=client,
            progress="quiet",
        )  # fmt: skip
        assert client.status == "running"
    assert dict(report.snapshot.counts) == {"ok": 4}


def test_settings_that_do_not_change_the_bytes_may_differ(online: Sandbox, tmp_path: Path) -> None:
    source = str(table(tmp_path, 4))
    driver.run(source, str(tmp_path / "out"), config=CONFIG, progress="quiet")
    other = Config(Reading(timeout=30.0), CONFIG.storage, Distribution(thread_count=1))
    assert driver.run(source, str(tmp_path / "out"), config=other, progress="quiet").made is None
    wider = Config(CONFIG.reading, Storage(number_sample_per_shard=4), CONFIG.distribution)
    with pytest.raises(PlanMismatchError, match="number_sample_per_shard: 3 there, 4 now"):
        driver.run(source, str(tmp_path / "out"), config=wider, progress="quiet")


def test_the_same_table_under_another_path_goes_on_and_a_changed_one_does_not(
    online: Sandbox, tmp_path: Path
) -> None:
    source = table(tmp_path, 4)
    driver.run(str(source), str(tmp_path / "out"), config=CONFIG, progress="quiet")
    moved = source.rename(tmp_path / "moved.csv")
    again = driver.run(str(moved), str(tmp_path / "out"), config=CONFIG, progress="quiet")
    assert again.made is None
    changed = table(tmp_path, 5)
    with pytest.raises(PlanMismatchError, match="table_sha256"):
        driver.run(str(changed), str(tmp_path / "out"), config=CONFIG, progress="quiet")


def test_plan_broken_off_before_its_manifest_is_made_anew(online: Sandbox, tmp_path: Path) -> None:
    source = str(table(tmp_path, 4))
    (tmp_path / "out/_acavdl/plan").mkdir(parents=True)
    (tmp_path / "out/_acavdl/plan/part-00000.parquet").write_bytes(b"half")
    report = driver.run(source, str(tmp_path / "out"), config=CONFIG, progress="quiet")
    assert dict(report.snapshot.counts) == {"ok": 4}


def test_lazy_frame_has_a_partition_for_each_shard(tmp_path: Path) -> None:
    job = driver.Job(str(tmp_path), CONFIG, captions=False)
    lazy = driver.shard_frame([ShardPlace(i, "part", i) for i in range(300)], job)
    assert lazy.npartitions == 300
    assert list(lazy.columns) == list(driver.REPORT)


def test_rejected_rows_are_told_and_the_others_made(
    online: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = video_id(1, master="m60")
    rows = [
        (good, 0.5, 4.5),
        ("too-short", 0, 1),
        (good, 9, 3),
        (video_id(1, fault=Fault.PRIVATE), 0, 4),
    ]
    source = write_csv(tmp_path / "clips.csv", rows)
    report = driver.run(str(source), str(tmp_path / "out"), config=CONFIG, progress="quiet")
    assert report.made is not None
    assert report.made.plan.rejected == {"bad_id": 1, "start_after_end": 1}
    assert driver.tell(report) == 0
    said = capsys.readouterr().err
    assert "clips.csv, row 2: neither a video id" in said
    assert "2 rows of the table are not used" in said
    assert dict(report.snapshot.counts) == {"ok": 1, "private": 1}


def test_no_secret_reaches_the_record(online: Sandbox, tmp_path: Path) -> None:
    config = Config(
        Reading(timeout=8.0, ytdlp={"username": "who", "password": "hunter2"}),
        CONFIG.storage,
        CONFIG.distribution,
    )
    driver.run(str(table(tmp_path, 1)), str(tmp_path / "out"), config=config, progress="quiet")
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert b"hunter2" not in path.read_bytes(), path
    assert json.loads((tmp_path / "out/_acavdl/run.json").read_bytes())["config"]["reading"][
        "ytdlp"
    ] == ["password", "username"]


def test_every_worker_process_leaves_no_trace(online: Sandbox, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    driver.run(
        str(table(tmp_path, 4)), str(tmp_path / "out"), config=CONFIG, tmp_dir=str(scratch),
        progress="quiet",
    )  # fmt: skip
    assert list(scratch.iterdir()) == []
    assert pd.read_parquet(tmp_path / "out/00000.parquet")["host"].nunique() == 1


def test_plan_that_was_lost_or_changed_is_told(online: Sandbox, tmp_path: Path) -> None:
    source = str(table(tmp_path, 4))
    driver.run(source, str(tmp_path / "out"), config=CONFIG, progress="quiet")
    part = tmp_path / "out/_acavdl/plan/part-00000.parquet"
    content = part.read_bytes()
    part.write_bytes(content[:-1])
    with pytest.raises(StorageError, match="was changed"):
        driver.run(source, str(tmp_path / "out"), config=CONFIG, progress="quiet")
    part.unlink()
    with pytest.raises(StorageError, match="part-00000"):
        driver.run(source, str(tmp_path / "out"), config=CONFIG, progress="quiet")


def test_clips_that_stand_twice_in_the_table_are_counted(
    online: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = video_id(1, master="m60")
    source = write_csv(tmp_path / "clips.csv", [(name, 0, 4), (name, 0, 4), (name, 1, 5)])
    report = driver.run(str(source), str(tmp_path / "out"), config=CONFIG, progress="quiet")
    assert report.made is not None
    assert report.made.plan.rejected == {"duplicate": 1}
    driver.tell(report)
    assert "1  duplicate" in capsys.readouterr().err


def test_requests_ca_bundle_alone_is_enough(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the extraction and the media alike, in worker processes."""
    for name, value in sandbox.environ().items():
        monkeypatch.setenv(name, value)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    assert "REQUESTS_CA_BUNDLE" in os.environ
    report = driver.run(
        str(table(tmp_path, 2)), str(tmp_path / "out"), config=CONFIG, progress="quiet"
    )
    assert dict(report.snapshot.counts) == {"ok": 2}
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    report = driver.run(
        str(table(tmp_path, 2)), str(tmp_path / "untrusted"), config=CONFIG, progress="quiet"
    )
    assert dict(report.snapshot.counts) == {"tls": 2}


def test_package_gives_the_run() -> None:
    assert acavdl.run is driver.run
    assert acavdl.plan is driver.plan


# --- the call


def quick(**more: Any) -> Any:
    return {"config": CONFIG, "progress": "quiet", **more}


def test_a_plan_alone_asks_nothing_of_the_site(tmp_path: Path) -> None:
    # No sandbox is there to be asked.
    report = acavdl.plan(str(table(tmp_path)), str(tmp_path / "out"), **quick())
    assert (report.plan.clips, report.plan.videos, report.plan.sizes) == (9, 9, (3, 3, 3))
    # A page, a player, and of picture and sound a head and a range.
    assert report.estimate.requests == 9 * 6
    assert report.made is not None
    again = acavdl.plan(str(table(tmp_path)), str(tmp_path / "out"), **quick())
    assert again.plan == report.plan
    assert again.made is None
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_run_takes_up_a_plan(online: Sandbox, tmp_path: Path) -> None:
    acavdl.plan(str(table(tmp_path)), str(tmp_path / "out"), **quick())
    report = acavdl.run(str(table(tmp_path)), str(tmp_path / "out"), **quick())
    assert report.made is None
    assert dict(report.snapshot.counts) == {"ok": 9}


def test_a_larger_table_extends_the_dataset(online: Sandbox, tmp_path: Path) -> None:
    out = tmp_path / "out"
    acavdl.run(str(table(tmp_path, 4)), str(out), **quick())
    before = {path.name: path.read_bytes() for path in sorted(out.glob("0*"))}
    plan = acavdl.plan(str(table(tmp_path, 9)), str(out), **quick(incremental_mode="extend"))
    assert plan.plan.sizes == (3, 1, 3, 2)
    assert plan.made is not None
    assert plan.made.planned == 4
    report = acavdl.run(str(table(tmp_path, 9)), str(out), **quick())
    assert dict(report.snapshot.counts) == {"ok": 9}
    after = {path.name: path.read_bytes() for path in sorted(out.glob("0*"))}
    assert {name: after[name] for name in before} == before
    keys = pd.concat([pd.read_parquet(path) for path in sorted(out.glob("*.parquet"))])["key"]
    assert len(keys) == keys.nunique() == 9
    with pytest.raises(PlanMismatchError, match="table_sha256"):
        acavdl.run(str(table(tmp_path, 4)), str(out), **quick())
    again = acavdl.run(str(table(tmp_path, 9)), str(out), **quick(incremental_mode="extend"))
    assert again.made is None


def test_a_dataset_is_overwritten_and_other_files_are_left(online: Sandbox, tmp_path: Path) -> None:
    out = tmp_path / "out"
    acavdl.run(str(table(tmp_path, 9)), str(out), **quick())
    (out / "notes.txt").write_text("mine")
    (out / "123.tar").write_text("mine")
    plan = acavdl.plan(str(table(tmp_path, 4)), str(out), **quick(incremental_mode="overwrite"))
    assert plan.plan.clips == 4
    assert sorted(path.name for path in out.iterdir()) == ["123.tar", "_acavdl", "notes.txt"]


def test_what_the_file_says_holds_where_the_call_is_silent(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    source = table(tmp_path)
    file.write_text(
        f"url_list: {source}\noutput_folder: {tmp_path / 'out'}\nlimit: 4\n"
        "storage: {number_sample_per_shard: 2}\n"
    )
    report = acavdl.plan(config=file, progress="quiet")
    assert report.plan.sizes == (2, 2)
    report = acavdl.plan(config=str(file), output_folder=str(tmp_path / "b"), limit=3)
    assert report.plan.sizes == (2, 1)
    report = acavdl.plan(
        str(source),
        str(tmp_path / "c"),
        config={"storage": {"number_sample_per_shard": 5}},
        progress="quiet",
    )
    assert report.plan.sizes == (5, 4)


def test_what_is_missing_in_a_call_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="url_list is missing: give --url-list"):
        acavdl.plan(output_folder=str(tmp_path / "out"))
    with pytest.raises(UsageError, match="output_folder is missing"):
        acavdl.plan(str(table(tmp_path)))
    with pytest.raises(TypeError, match=r"unexpected argument 'colour'; there are: url_list,"):
        acavdl.plan(str(table(tmp_path)), str(tmp_path / "out"), colour="red")


def test_names_that_samples_have_already_are_refused(tmp_path: Path) -> None:
    rows = [(video_id(1, master="m60"), 0, 4, "x", "y")]
    header = ("videoID", "start", "end", "key", "caption")
    source = str(write_csv(tmp_path / "t.csv", rows, header))
    out = str(tmp_path / "out")
    for name in ("key", "caption"):
        with pytest.raises(UsageError, match=f"'{name}' has the name of a key"):
            acavdl.plan(source, out, save_additional_columns=[name])
    report = acavdl.plan(
        source, out, save_additional_columns="caption,start", caption_col="caption"
    )
    assert report.plan.extra == {"caption": "string", "start": "string"}


def last_two(missing: list[int]) -> list[int]:
    """Stand for the sampler of a user."""
    return missing[-2:]


def beyond(missing: list[int]) -> list[int]:
    return [*missing, 7]


def test_a_sampler_picks_the_shards_of_this_run(
    online: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(CONFIG, reading=replace(CONFIG.reading, sampler="test_driver.last_two"))
    out = tmp_path / "out"
    report = acavdl.run(str(table(tmp_path)), str(out), config=config, progress="quiet")
    assert sorted(path.stem for path in out.glob("*.tar")) == ["00001", "00002"]
    assert report.left == 1
    driver.tell(report)
    assert "1 shards are left for another run" in capsys.readouterr().err
    for sampler, told in (
        ("builtins.str.split", "can't be imported"),
        ("test_driver.beyond", r"returned \[7\], which is not missing"),
    ):
        wrong = replace(CONFIG, reading=replace(CONFIG.reading, sampler=sampler))
        with pytest.raises(UsageError, match=rf"reading\.sampler.*{told}"):
            acavdl.run(str(table(tmp_path)), str(out), config=wrong, progress="quiet")


# --- failing shards


def test_a_shard_that_fails_once_is_made_by_the_same_run(
    online: Sandbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What blocks its file goes away when the driver says that it tries again."""
    blocked = tmp_path / "out/00001.tar"
    blocked.mkdir(parents=True)

    class Mending(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "is tried again" in record.getMessage():
                blocked.rmdir()

    handler = Mending()
    logging.getLogger("acavdl.driver").addHandler(handler)
    try:
        report = acavdl.run(str(table(tmp_path)), str(tmp_path / "out"), **quick())
    finally:
        logging.getLogger("acavdl.driver").removeHandler(handler)
    assert report.failed_shards == {}
    assert dict(report.snapshot.counts) == {"ok": 9}


def test_retries_are_counted(
    online: Sandbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out/00000.tar").mkdir(parents=True)
    for retries in (0, 3):
        caplog.clear()
        report = acavdl.run(
            str(table(tmp_path, 3)), str(tmp_path / "out"), **quick(max_shard_retry=retries)
        )
        assert list(report.failed_shards) == [0]
        assert sum("is tried again" in text for text in caplog.messages) == retries


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.debian
def test_a_full_disk_fails_shards_and_shows_nothing_half_written(
    online: Sandbox, tmp_path: Path, client: Client, small_disk: Path
) -> None:
    """Each shard has some 700 kB: one or two fit, and nothing that is there is ever half."""
    out, over = small_disk / "out", threading.Event()
    seen: dict[str, set[int]] = {}

    def watch() -> None:
        while not over.wait(0.005):
            for path in out.glob("0*"):
                with contextlib.suppress(FileNotFoundError):
                    seen.setdefault(path.name, set()).add(path.stat().st_size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    source = str(table(tmp_path, 15))
    try:
        report = acavdl.run(source, str(out), **quick(client=client, tmp_dir=str(tmp_path)))
    finally:
        over.set()
        watcher.join()
    assert 0 < len(report.failed_shards) < 5
    assert all("No space left on device" in cause for cause in report.failed_shards.values())
    assert all(len(sizes) == 1 for sizes in seen.values())
    done = {path.name[:5] for path in out.glob("*_stats.json")}
    assert len(done) == 5 - len(report.failed_shards) == report.snapshot.shards_done
    assert list(out.glob(".*.tmp")) == []
    for name in done:
        stats = json.loads((out / f"{name}_stats.json").read_bytes())
        for kind in ("tar", "parquet"):
            data = (out / f"{name}.{kind}").read_bytes()
            assert hashlib.sha256(data).hexdigest() == stats["files"][kind]["sha256"]
    # With room again, the same command makes what is missing.
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    report = acavdl.run(source, str(out), **quick(client=client, tmp_dir=str(tmp_path)))
    assert report.failed_shards == {}
    assert dict(report.snapshot.counts) == {"ok": 15}


# --- a lazy frame


def extractions(site: Sandbox) -> int:
    return int(site.stats().requests["player"])


def test_a_lazy_frame_does_the_work_once(online: Sandbox, tmp_path: Path, client: Client) -> None:
    plan = acavdl.plan(str(table(tmp_path)), str(tmp_path / "out"), **quick())
    begun = extractions(online)
    clips = acavdl.download(plan, client)
    assert clips.npartitions == 3
    assert list(clips.columns)[:3] == ["key", "video_id", "url"]
    assert extractions(online) == begun
    # A slice makes its own shards alone.
    first = clips.partitions[0].compute()
    assert len(first) == 3
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == ["00000.tar"]
    assert extractions(online) == begun + 3
    frame = clips.compute()
    assert frame["outcome"].tolist() == ["ok"] * 9
    assert clips["outcome"].value_counts().compute().to_dict() == {"ok": 9}
    persisted = clips.persist()
    assert len(persisted[persisted["bytes"] > 0]) == 9
    assert extractions(online) == begun + 9
    # What comes lazily is of the types that were promised.
    assert frame.dtypes.to_dict() == clips.dtypes.to_dict()
    report = acavdl.run(str(table(tmp_path)), str(tmp_path / "out"), **quick(), client=client)
    assert dict(report.snapshot.counts) == {"ok": 9}
    assert extractions(online) == begun + 9


def test_a_lazy_frame_wants_a_client(tmp_path: Path) -> None:
    plan = acavdl.plan(str(table(tmp_path)), str(tmp_path / "out"), **quick())
    with pytest.raises(UsageError, match=r"begin with distributed.Client\(\)"):
        acavdl.download(plan)


def test_no_more_shards_are_open_than_the_rate_can_finish(tmp_path: Path) -> None:
    """What the rate is not for doesn't count."""
    name = video_id(1, master="m60")
    urls = [name, f"https://youtu.be/{name}", "https://example.org/a.mp4", video_id(2)]
    source = write_csv(tmp_path / "t.csv", [(url, n, n + 3) for n, url in enumerate(urls)])
    plan = acavdl.plan(str(source), str(tmp_path / "out"), **quick(config=Config()))
    place = driver.place_of(plan.plan, 0)
    assert driver._asked_for(place, plan.job) == 2


def test_a_run_whose_workers_are_gone_for_good_ends(tmp_path: Path) -> None:
    """Dask would wait for ever for processes that end as soon as they start."""
    plan = acavdl.plan(str(table(tmp_path)), str(tmp_path / "out"), **quick())
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as nobody,
    ):
        driver._install_governor(nobody, plan.job.config)
        roll_up = driver.RollUp(plan.plan.sizes, 1)
        tracker = driver.Tracker(Tracking(), roll_up.snapshot, output_folder="", config={})
        workers = Workers(nobody, 1, patience=1.0)
        working = driver._Working(workers, plan.job, roll_up, tracker, most=None)
        ending = driver.Ending(plan.job.store, plan.job.config.limits, lambda: 0)
        with pytest.raises(ClusterError, match="no worker process for 1 s"):
            working.work_off([driver.place_of(plan.plan, 0)], ending)
