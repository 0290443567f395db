"""Whether what was published is still there: each way to break a shard is told, and only that."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client
from helpers import write_csv

import acavdl
from acavdl import after
from acavdl.config import AudioRate, Clipping, Config, Distribution, Output, Reading, Storage
from acavdl.demo import environment
from acavdl.errors import StorageError
from acavdl.ledger import published
from acavdl.planfile import clips_of, read_shard
from acavdl.removal import remember
from acavdl.sandbox import DEMO_MASTERS, Fault, Sandbox, video_id
from acavdl.shard import make_shard
from acavdl.storage import Store

CONFIG = Config(
    Reading(timeout=20.0, retries=0, rate_limit=None),
    Storage(number_sample_per_shard=4),
    Distribution(thread_count=4),
)
FILES = Output("files")
MASTERS = [spec.code for spec in DEMO_MASTERS if spec.virtual is None]


def make(folder: Path | str, tmp_path: Path, client: Client, config: Config, **more: Any) -> None:
    """Two clips of each kind of video, and some that fail."""
    rows = [(video_id(1, master=code), start, start + 9) for code in MASTERS for start in (0, 7.3)]
    rows += [(video_id(1, fault=fault), 1, 4) for fault in (Fault.PRIVATE, Fault.PAGE_503)]
    table = write_csv(tmp_path / "clips.csv", rows)
    more = {"config": config, "client": client, "progress": "quiet", **more}
    assert acavdl.run(str(table), str(folder), **more).successes > 4


BOTH = Output(encode_formats={"video": "mp4", "audio": "m4a"})
SOUND, FLAC = (Output(encode_formats={"audio": kind}) for kind in ("m4a", "flac"))


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        *(replace(CONFIG, clipping=Clipping(kind)) for kind in ("editlist", "keyframe_adjusted")),
        pytest.param(replace(CONFIG, clipping=Clipping("exact")), marks=pytest.mark.slow),
        replace(CONFIG, output=BOTH),
        pytest.param(replace(CONFIG, output=SOUND), marks=pytest.mark.slow),
        pytest.param(
            replace(CONFIG, output=FLAC, audio=AudioRate(16000, 1)), marks=pytest.mark.slow
        ),
        replace(CONFIG, output=FILES),
    ],
    ids=["low", "editlist", "keyframe", "exact", "m4a_beside", "m4a", "flac", "files"],
)
def test_what_was_made_is_whole(
    online: Sandbox, client: Client, tmp_path: Path, config: Config
) -> None:
    """Each kind of dataset, and each sample of it decoded."""
    make(tmp_path / "out", tmp_path, client, config)
    found = acavdl.verify(str(tmp_path / "out"), decode=9, client=client, progress="quiet")
    assert (found.broken, found.unread, found.missing) == ({}, {}, 0)
    assert found.clips == 2 * len(MASTERS) + 2
    assert found.bytes > 100_000


@pytest.mark.parametrize("lines", [False, True], ids=["whole_videos", "subtitles"])
def test_whole_videos_and_lines_of_subtitles(
    online: Sandbox,
    client: Client,
    tmp_path: Path,
    lines: bool,
) -> None:
    table = tmp_path / "videos.txt"
    dead = video_id(2, fault=Fault.PRIVATE)
    table.write_text("\n".join([*(video_id(n, master="m60") for n in range(3)), dead]))
    config = replace(CONFIG, storage=Storage(3, captions_are_subtitles=lines))
    out = str(tmp_path / "out")
    acavdl.run(str(table), out, config=config, client=client, progress="quiet")
    found = acavdl.verify(out, decode=2, client=client, progress="quiet")
    assert (found.broken, found.unread) == ({}, {})
    # A table of the failures has videos alone.
    listed = tmp_path / "again.csv"
    assert acavdl.failures(out, export=str(listed)).count == 1
    planned = acavdl.plan(
        str(listed),
        str(tmp_path / "again"),
        config=config,
        progress="quiet",
        whole_videos=not lines,
    )
    assert (planned.plan.clips, planned.plan.seconds) == (1, 0)
    # With the settings of the dataset, which has no options, a dead one is asked for once more.
    again = acavdl.retry(out, outcomes=["private"], client=client, progress="quiet")
    assert again.snapshot.counts["private"] == 1
    assert acavdl.verify(out, client=client, progress="quiet").whole


# --- broken ones ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard of two samples and a failure, and the table that it is of."""
    folder = tmp_path_factory.mktemp("whole")
    rows = [(video_id(n, master="m60"), 1 + n, 4 + n) for n in range(2)]
    table = write_csv(folder / "clips.csv", [*rows, (video_id(1, fault=Fault.PRIVATE), 1, 4)])
    with environment(sandbox.environ()):
        plan = acavdl.plan(str(table), str(folder / "out"), config=CONFIG, progress="quiet")
        place = after.place_of(plan.plan, 0)
        make_shard(clips_of(read_shard(place, plan.job.store)), plan.job)
    return folder / "out"


def members(store: Store) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(store.read("00000.tar"))) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]


def stats_of(store: Store) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(store.read("00000_stats.json"))
    return found


def put(store: Store, name: str, data: bytes, *, told: bool) -> None:
    """Write a file of the shard; the stats then tell of it as it is, if so wanted."""
    store.write(name, data)
    if told:
        stats = stats_of(store)
        sha256 = hashlib.sha256(data).hexdigest()
        stats["files"][name.rpartition(".")[2]] = {"bytes": len(data), "sha256": sha256}
        store.write("00000_stats.json", json.dumps(stats).encode())


def put_members(store: Store, content: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    put(store, "00000.tar", buffer.getvalue(), told=True)


def put_rows(store: Store, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    schema = pq.read_schema(io.BytesIO(store.read("00000.parquet")))
    frame = pd.read_parquet(io.BytesIO(store.read("00000.parquet")), dtype_backend="pyarrow")
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pandas(change(frame), schema=schema), buffer)
    put(store, "00000.parquet", buffer.getvalue(), told=True)


def damaged(store: Store) -> None:
    """The media of a sample are noise from some place on; its row and all hashes tell of that."""
    content = members(store)
    name = next(name for name in content if name.endswith(".mp4"))
    data = bytearray(content[name])
    data[len(data) // 2 : len(data) // 2 + 4000] = b"\x5a" * 4000
    put_members(store, {**content, name: bytes(data)})

    def told(rows: pd.DataFrame) -> pd.DataFrame:
        sha256 = hashlib.sha256(data).hexdigest()
        return rows.assign(sha256=rows["sha256"].where(rows["key"] != name[:-4], sha256))

    put_rows(store, told)


def flipped(store: Store, name: str, place: int) -> None:
    data = bytearray(store.read(name))
    data[place] ^= 1
    put(store, name, bytes(data), told=False)


def without_last(store: Store) -> None:
    put_members(store, dict(list(members(store).items())[:-1]))


def moved(store: Store) -> None:
    content = list(members(store).items())
    put_members(store, dict(content[2:] + content[:2]))


def other_json(store: Store) -> None:
    content = members(store)
    first, second = (name for name in content if name.endswith(".json"))
    put_members(store, {**content, first: content[second]})


def other_media(store: Store) -> None:
    content = members(store)
    first, second = (name for name in content if name.endswith(".mp4"))
    put_members(store, {**content, first: content[second]})


def other_stats(store: Store) -> None:
    stats = stats_of(store)
    stats["outcomes"]["ok"] = 1
    store.write("00000_stats.json", json.dumps(stats).encode())


BREAKS: dict[str, tuple[Callable[[Store], object], str]] = {
    "tar_gone": (lambda store: store.remove("00000.tar"), "00000.tar is missing"),
    "tar_short": (
        lambda s: put(s, "00000.tar", s.read("00000.tar")[:-10240], told=False),
        "00000.tar has .* bytes, .* by the stats",
    ),
    "tar_flipped": (lambda s: flipped(s, "00000.tar", 70_000), "00000.tar has another sha256"),
    "tar_no_tar": (
        lambda s: put(s, "00000.tar", b"x" * 20480, told=True),
        "the tar can't be read",
    ),
    "parquet_gone": (lambda store: store.remove("00000.parquet"), "00000.parquet is missing"),
    "parquet_flipped": (lambda s: flipped(s, "00000.parquet", 99), "parquet has another sha256"),
    "no_parquet": (
        lambda s: put(s, "00000.parquet", b"PAR1 no", told=True),
        "00000.parquet can't be read",
    ),
    "row_gone": (lambda s: put_rows(s, lambda rows: rows[1:]), "other clips than the plan"),
    "stats_damaged": (lambda s: s.write("00000_stats.json", b"{"), "stats are damaged"),
    "stats_other": (other_stats, "the stats count"),
    "member_gone": (without_last, "member 3 is the end, where .* should be"),
    "members_moved": (moved, "member 0 is .*, where .* should be"),
    "other_json": (other_json, "json: tells of"),
    "other_media": (other_media, "mp4: another content than the parquet has the sha256 of"),
    "size": (
        lambda s: put_rows(s, lambda rows: rows.assign(width=rows["width"] + 2)),
        "its picture has",
    ),
    "sound": (
        lambda s: put_rows(s, lambda rows: rows.assign(channels=rows["channels"] + 1)),
        r"its sound has \(Hz, channels\)",
    ),
    "length": (
        lambda s: put_rows(s, lambda rows: rows.assign(actual_end=rows["actual_end"] + 1)),
        "it shows .* s, .* s by the parquet",
    ),
    "frames": (
        lambda s: put_rows(s, lambda rows: rows.assign(frames=rows["frames"] + 1)),
        "frames decode",
    ),
    "media": (damaged, "does not decode|frames decode|damaged"),
    "removed": (
        lambda s: remember(s, [video_id(1, master="m60")]),
        "holds samples of .*, which was removed",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_way_to_break_is_told_and_repaired(
    whole: Path, client: Client, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    store = Store(str(out))
    damage, words = BREAKS[name]
    damage(store)
    found = acavdl.verify(str(out), decode=9, client=client)
    assert list(found.broken) == [0]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "is broken" in line]
    assert line.startswith("shard 00000 is broken: ")
    assert pd.Series([" ".join(found.broken[0])]).str.contains(words).all()
    assert after.tell_verify(found) == 1
    assert "--repair" in capsys.readouterr().err
    mended = acavdl.verify(str(out), decode=9, repair=True, client=client, progress="quiet")
    assert mended.repaired == [0]
    if name == "removed":
        assert published(store, 0).counts == {"ok": 1, "private": 1, "removed": 1}  # type: ignore[union-attr]
    else:
        # The next run makes it anew.
        assert sorted(store.sizes()) == []
    assert acavdl.verify(str(out), client=client, progress="quiet").missing == (name != "removed")


def test_whole_and_what_the_store_does_not_tell(
    whole: Path, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert acavdl.verify(str(whole), decode=9, client=client, progress="quiet").whole
    real = Store.read

    def read(self: Store, name: str) -> bytes:
        if name == "00000.parquet":
            raise StorageError("the server is away")
        return real(self, name)

    monkeypatch.setattr(Store, "read", read)
    found = acavdl.verify(str(whole), repair=True, client=client, progress="quiet")
    # Nothing is known of it, so that nothing is taken back.
    assert (found.broken, found.unread, found.repaired) == ({}, {0: "the server is away"}, [])
    assert after.tell_verify(found) == 1
    assert (whole / "00000_stats.json").exists()


@pytest.mark.parametrize("kind", ["changed", "gone", "more"])
def test_files_in_the_place_of_a_tar(
    online: Sandbox, client: Client, tmp_path: Path, kind: str
) -> None:
    table = write_csv(tmp_path / "t.csv", [(video_id(n, master="m60"), 1, 4) for n in range(2)])
    out, config = tmp_path / "out", replace(CONFIG, output=FILES)
    options: dict[str, Any] = {"config": config, "client": client, "progress": "quiet"}
    acavdl.run(str(table), str(out), **options)
    media = min((out / "00000").glob("*.mp4"))
    if kind == "changed":
        media.write_bytes(media.read_bytes()[:-1])
    elif kind == "gone":
        media.unlink()
    else:
        (out / "00000/more.mp4").write_bytes(b"")
    found = acavdl.verify(str(out), client=client, progress="quiet", repair=True)
    words = {"changed": "another content", "gone": "where .*mp4 should be", "more": "more.mp4"}
    assert pd.Series([" ".join(found.broken[0])]).str.contains(words[kind]).all()
    # And a run mends it.
    assert acavdl.run(str(table), str(out), **options).successes == 2
    assert acavdl.verify(str(out), client=client, progress="quiet").whole


def test_on_s3_with_workers_of_its_own(
    online: Sandbox, bucket: str, client: Client, tmp_path: Path
) -> None:
    out = f"s3://{bucket}/out"
    make(out, tmp_path, client, CONFIG)
    assert acavdl.verify(out, decode=1, settings={"distribution.processes_count": 1}).whole
    store = Store(out)
    flipped(store, "00001.tar", 3000)
    found = acavdl.verify(out, repair=True, client=client, progress="quiet")
    assert (list(found.broken), found.repaired) == ([1], [1])
    failed = acavdl.failures(out, export=f"s3://{bucket}/again.csv")
    assert failed.shards_done == failed.shards - 1
    assert failed.count > 1
    report = acavdl.remove(out, [video_id(1, master=MASTERS[0])])
    assert (report.failed, report.videos) == ({}, 1)
    again = acavdl.retry(out, client=client, progress="quiet")
    assert again.snapshot.shards_done == again.snapshot.shards == failed.shards + 1
    assert again.snapshot.counts["removed"] == 2
    assert acavdl.verify(out, client=client, progress="quiet").whole
