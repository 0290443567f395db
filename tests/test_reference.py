"""The reference's own call, word for word: on S3, with its YAML, its metrics, read back."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest
import s3
from distributed import Client
from s3 import Faults, fault_proxy
from test_config import REFERENCE

import acavdl
from acavdl import video2dataset
from acavdl.driver import RunReport
from acavdl.errors import UsageError
from acavdl.sandbox import Fault, Sandbox, video_id

FAULTS = (Fault.PRIVATE, Fault.BOT_CHECK, Fault.MEDIA_NOISE)


def write_table(path: Path, videos: int = 8) -> list[str]:
    """Write a table as the recipe prepares it."""
    names = [video_id(i, master="m60") for i in range(videos)]
    names += [video_id(1, fault=fault) for fault in FAULTS]
    rows = {
        "video_link": [f"https://youtube.com/watch?v={name}" for name in names],
        "clips": [[[0.5, 4.5]] for _ in names],
        "title": [f"title {i}" for i in range(len(names))],
        "description": ["…"] * len(names),
        "videoID": names,
        "start": [0.5] * len(names),
        "end": [4.5] * len(names),
    }
    pd.DataFrame(rows).to_parquet(path)
    return names


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    (tmp_path / "config.yaml").write_text(REFERENCE)
    return tmp_path


def the_call(bucket: str, **more: Any) -> Any:
    return video2dataset(
        url_list="ACAV100M_clip_unique.parquet",
        output_folder=f"s3://{bucket}/acav100m/mp4_acav100m",
        output_format="webdataset",
        input_format="parquet",
        url_col="video_link",
        caption_col="title",
        clip_col="clips",
        save_additional_columns=["videoID", "start", "end"],
        enable_wandb=True,
        config="config.yaml",
        **more,
    )


def test_the_recipe_of_the_reference_on_s3(
    online: Sandbox,
    bucket: str,
    here: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = write_table(here / "ACAV100M_clip_unique.parquet")
    report = the_call(bucket)
    assert dict(report.snapshot.counts) == {
        "ok": 8,
        "private": 1,
        "bot_check": 1,
        "corrupt": 1,
    }
    assert "distributor pyspark: Dask does that work here" in caplog.messages
    files = fsspec.filesystem("s3")
    folder = f"{bucket}/acav100m/mp4_acav100m"
    found = {path.removeprefix(f"{folder}/") for path in files.find(folder)}
    assert found == {
        *("00000.tar", "00000.parquet", "00000_stats.json"),
        *("_acavdl/run.json", "_acavdl/rejected.parquet", "_acavdl/plan/part-00000.parquet"),
    }
    with tarfile.open(fileobj=io.BytesIO(files.cat(f"{folder}/00000.tar"))) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    keys = [name[:-4] for name in members if name.endswith(".mp4")]
    assert len(keys) == 8
    assert set(members) == {f"{key}.{kind}" for key in keys for kind in ("mp4", "json", "txt")}
    for key in keys:
        sample = json.loads(members[f"{key}.json"])
        number = names.index(sample["videoID"])
        assert (sample["start"], sample["end"]) == (0.5, 4.5)
        assert sample["caption"] == f"title {number}" == members[f"{key}.txt"].decode()
        assert sample["clips"] == [[0.5, 4.5]]
        assert sample["yt_meta_dict"]["info"]["title"]
        assert sample["status"] == "success"
    rows = pd.read_parquet(f"s3://{folder}/00000.parquet")
    assert len(rows) == 11
    assert rows["outcome"].value_counts().to_dict() == dict(report.snapshot.counts)
    assert rows["videoID"].tolist() == rows["video_id"].tolist()
    stats = json.loads(files.cat(f"{folder}/00000_stats.json"))
    assert (stats["count"], stats["successes"]) == (11, 8)
    # Nothing secret anywhere: not in the dataset, not in what was said, not in W&B's files.
    said = "".join(capfd.readouterr()) + caplog.text
    contents = [files.cat(path) for path in files.find(folder)]
    contents += [path.read_bytes() for path in here.rglob("*") if path.is_file()]
    for secret in (s3.KEY, s3.SECRET):
        assert secret not in said
        assert not any(secret.encode() in content for content in contents)
    assert list(here.glob("wandb/offline-run-*/*.wandb"))
    # Again: nothing is made anew.
    before = {path: files.info(path)["ETag"] for path in files.find(folder)}
    again = the_call(bucket, progress="quiet")
    assert dict(again.snapshot.counts) == dict(report.snapshot.counts)
    files.invalidate_cache()
    assert {path: files.info(path)["ETag"] for path in files.find(folder)} == before


def test_what_is_not_supported_is_named(here: Path) -> None:
    write_table(here / "t.parquet", 1)
    call: dict[str, Any] = {
        "url_list": "t.parquet",
        "input_format": "parquet",
        "url_col": "video_link",
        "clip_col": "clips",
    }
    for more, told in (
        ({"stage": "subset"}, "stage 'subset' is not supported"),
        ({"output_format": "tfrecord"}, "output_format must be webdataset or files"),
        ({"output_format": "parquet"}, "webdataset.WebDataset"),
        ({"encode_formats": {"video": "avi"}}, "encode_formats must be"),
        ({"config": {"subsampling": {"CutDetectionSubsampler": {}}}}, "CutDetectionSubsampler"),
        ({"config": "downsample_ml"}, "cannot read downsample_ml"),
        ({"incremental_mode": "append"}, "incremental_mode"),
        ({"caption_col": "none"}, "no column 'none'"),
    ):
        with pytest.raises(UsageError) as raised:
            video2dataset(**{**call, **more})
        assert told in str(raised.value)
    with pytest.raises(TypeError, match="colour"):
        video2dataset(**call, colour="red")


def test_the_defaults_of_the_reference(online: Sandbox, here: Path) -> None:
    """A list of links, whole videos, files."""
    name = video_id(3, master="m60")
    (here / "videos.txt").write_text(f"https://youtu.be/{name}\n")
    report = video2dataset("videos.txt", progress="quiet")
    assert dict(report.snapshot.counts) == {"ok": 1}
    assert sorted(path.name for path in (here / "videos/00000").iterdir()) == [
        f"{name}_full.json",
        f"{name}_full.mp4",
    ]
    assert (here / "videos/00000_stats.json").exists()


# --- S3 that misbehaves


@pytest.mark.usefixtures("online", "here")
@pytest.mark.parametrize(
    "fault",
    [
        "503",
        "lost",
        pytest.param("reset", marks=pytest.mark.slow),
        pytest.param("slow", marks=pytest.mark.slow),
    ],
)
def test_a_run_through_a_bad_connection(
    bucket: str, s3_endpoint: str, client: Client, fault: str
) -> None:
    write_table(Path("t.parquet"), 9)
    faults = Faults(lambda _method, _path, count: fault if count % 4 == 0 else None)
    with fault_proxy(s3_endpoint, faults) as proxy:
        report = acavdl.run(
            "t.parquet",
            f"s3://{bucket}/out",
            config={
                "storage": {"number_sample_per_shard": 4, "options": {"endpoint_url": proxy}},
                "reading": {"rate_limit": None},
            },
            progress="quiet",
            client=client,
        )
    assert faults.done[fault] > 3
    assert report.failed_shards == {}
    assert report.snapshot.counts["ok"] == 9
    files = fsspec.filesystem("s3")
    rows = pd.concat(
        [pd.read_parquet(f"s3://{path}") for path in files.glob(f"{bucket}/out/*.parquet")]
    )
    assert len(rows) == rows["key"].nunique() == 12


def test_a_shard_that_the_store_refuses_fails_and_the_others_are_made(
    online: Sandbox, bucket: str, s3_endpoint: str, here: Path, client: Client
) -> None:
    write_table(here / "t.parquet", 9)
    faults = Faults(lambda method, path, _: "503" if "00001.tar" in path else None)

    def run() -> RunReport:
        return acavdl.run(
            "t.parquet",
            f"s3://{bucket}/out",
            config={
                "storage": {"number_sample_per_shard": 4, "options": {"endpoint_url": proxy}},
                "reading": {"rate_limit": None},
            },
            max_shard_retry=0,
            progress="quiet",
            client=client,
        )

    with fault_proxy(s3_endpoint, faults) as proxy:
        report = run()
        assert list(report.failed_shards) == [1]
        assert f"cannot write s3://{bucket}/out/00001.tar" in report.failed_shards[1]
        files = fsspec.filesystem("s3", use_listings_cache=False)
        names = {path.rpartition("/")[2] for path in files.find(f"{bucket}/out", maxdepth=1)}
        assert not any(name.startswith("00001") for name in names)
        assert "00002_stats.json" in names
        faults.choose = lambda *_: None
        report = run()
    assert report.failed_shards == {}
    assert report.snapshot.counts["ok"] == 9
