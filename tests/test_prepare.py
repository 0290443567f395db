"""A table and a folder become a plan, or one line that says why not; ``acavdl init``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers import write_csv

from acavdl import prepare as preparing
from acavdl.config import Clipping, Config, Storage, TableOptions
from acavdl.errors import EmptyTableError, PlanMismatchError, UsageError
from acavdl.planfile import REJECTED
from acavdl.prepare import Prepared, prepare, write_settings
from acavdl.settings import load
from acavdl.storage import Store, shown

ROWS = [(f"{i:011d}", i, i + 10, "text") for i in range(9)]
HEADER = ("videoID", "start", "end", "label")


def table(folder: Path, rows: Any = ROWS, name: str = "clips.csv") -> str:
    return str(write_csv(folder / name, rows, HEADER))


def prepared(
    folder: Path, source: str, config: Config | None = None, mode: Any = "incremental", **more: Any
) -> Prepared:
    options = TableOptions(source, **more)
    return prepare(Store(str(folder / "out")), options, config or Config(), mode=mode)


def test_the_plan_is_made_once_and_found_again(tmp_path: Path) -> None:
    first = prepared(tmp_path, table(tmp_path))
    assert first.made is not None
    assert (first.made.rows, first.plan.clips) == (9, 9)
    part = tmp_path / "out/_acavdl/plan/part-00000.parquet"
    stamp = part.stat().st_mtime_ns
    again = prepared(tmp_path, table(tmp_path))
    assert again.made is None
    assert again.plan == first.plan
    assert part.stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"unique_videos": True}, "unique_videos: False there, True now"),
        ({"limit": 3}, "limit: None there, 3 now"),
        ({"save_additional_columns": ("label",)}, "save_additional_columns"),
        ({"caption_col": "label"}, "caption_col: None there, 'label' now"),
        ({"caption_from": "title"}, "caption_from: None there, 'title' now"),
        ({"time_unit": "ms"}, "time_unit: 's' there, 'ms' now"),
        ({"allow_local": True}, "allow_local"),
        ({"config": Config(storage=Storage(3))}, "number_sample_per_shard: 2000 there, 3 now"),
        ({"config": Config(clipping=Clipping(max_length=5))}, "max_length: None there, 5"),
    ],
)
def test_other_settings_are_another_plan(tmp_path: Path, more: dict[str, Any], told: str) -> None:
    prepared(tmp_path, table(tmp_path))
    # A larger limit is what extending is for.
    for mode in ("incremental", "extend") if "limit" not in more else ("incremental",):
        with pytest.raises(PlanMismatchError) as raised:
            prepared(tmp_path, table(tmp_path), mode=mode, **more)
        assert told in str(raised.value)


def test_naming_what_was_recognised_is_the_same_plan(tmp_path: Path) -> None:
    first = prepared(tmp_path, table(tmp_path))
    assert prepared(tmp_path, table(tmp_path), preset="acav100m").plan == first.plan
    named = {"url_col": "videoID", "start_col": "start", "end_col": "end"}
    assert prepared(tmp_path, table(tmp_path), **named).plan == first.plan


def test_extending_takes_a_larger_table_or_a_new_one(tmp_path: Path) -> None:
    first = prepared(tmp_path, table(tmp_path), limit=5)
    with pytest.raises(PlanMismatchError, match="table_sha256"):
        prepared(tmp_path, table(tmp_path, [*ROWS, ("a" * 11, 0, 1, "x")]), limit=5)
    other = [("b" * 11, 0, 1, "x")]
    second = prepared(tmp_path, table(tmp_path, other), mode="extend", limit=9)
    assert second.plan.clips == 6
    assert second.plan.parts[0] == first.plan.parts[0]
    assert prepared(tmp_path, table(tmp_path, other), limit=9).made is None


def test_overwriting_begins_anew(tmp_path: Path) -> None:
    prepared(tmp_path, table(tmp_path))
    (tmp_path / "out/00000.tar").write_bytes(b"")
    again = prepared(tmp_path, table(tmp_path), mode="overwrite", limit=2)
    assert again.plan.clips == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["_acavdl"]


def test_a_table_that_cannot_be_used_leaves_no_plan(tmp_path: Path) -> None:
    with pytest.raises(EmptyTableError, match="no usable row"):
        prepared(tmp_path, table(tmp_path, [("nope", 0, 1, "x")]))
    assert (tmp_path / "out" / REJECTED).exists()
    assert not (tmp_path / "out/_acavdl/run.json").exists()
    # The folder may still be used for another one.
    assert prepared(tmp_path, table(tmp_path)).plan.clips == 9


def test_rejected_rows_stand_in_a_file(tmp_path: Path) -> None:
    found = prepared(tmp_path, table(tmp_path, [*ROWS, ROWS[0], ("x", 0, 1, "")]))
    assert found.plan.rejected == {"bad_id": 1, "duplicate": 1}
    assert prepared(tmp_path, table(tmp_path, [*ROWS, ROWS[0], ("x", 0, 1, "")])).plan == found.plan
    rows = pd.read_parquet(tmp_path / "out" / REJECTED)
    assert rows[["row", "reason"]].to_numpy().tolist() == [[11, "bad_id"], [10, "duplicate"]]


def test_long_spans_are_split_or_shortened(tmp_path: Path) -> None:
    every = Config(clipping=Clipping(max_length=4, min_length=2.5))
    first = Config(clipping=Clipping(max_length=4, max_length_strategy="first"))
    assert prepared(tmp_path / "a", table(tmp_path), every).plan.clips == 18
    assert prepared(tmp_path / "b", table(tmp_path), first).plan.clips == 9
    short = Config(clipping=Clipping(min_length=11))
    with pytest.raises(EmptyTableError, match="shorter than 11 s"):
        prepared(tmp_path / "c", table(tmp_path), short)


def test_subtitles_make_their_own_clips(tmp_path: Path) -> None:
    config = Config(storage=Storage(captions_are_subtitles=True))
    found = prepared(tmp_path, table(tmp_path, [*ROWS, ROWS[0]]), config)
    assert found.columns.whole
    assert (found.plan.clips, found.plan.seconds) == (9, 0.0)
    for more in ({"clip_col": "label"}, {"caption_col": "label"}, {"caption_from": "title"}):
        with pytest.raises(UsageError, match="captions_are_subtitles"):
            prepared(tmp_path, table(tmp_path), config, **more)


def test_a_large_table_is_announced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "_LARGE", 10)
    said: list[str] = []
    options = TableOptions(table(tmp_path))
    prepare(Store(str(tmp_path / "out")), options, Config(), tell=said.append)
    assert [line.split()[0] for line in said] == ["Reading", "Putting"]


def test_a_scratch_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write to --tmp-dir .*nowhere"):
        prepare(
            Store(str(tmp_path / "out")),
            TableOptions(table(tmp_path)),
            Config(),
            tmp_dir=str(tmp_path / "nowhere"),
        )


# --- acavdl.yaml for a table


def test_settings_are_written_for_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path)
    assert write_settings("clips.csv", "out") == "acavdl.yaml"
    settings = load(None)
    assert settings.call == {"url_list": "clips.csv", "output_folder": "out", "preset": "acav100m"}
    assert settings.config == Config()
    assert "# Its columns: videoID, start, end, label\n" in Path("acavdl.yaml").read_text()
    with pytest.raises(UsageError, match=r"acavdl.yaml is there already: --force"):
        write_settings("clips.csv", "out")
    write_settings("clips.csv", "elsewhere", force=True)
    assert load(None).call["output_folder"] == "elsewhere"


def test_settings_for_a_table_of_no_known_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "t.csv", [("a" * 11, 1, 2)], ("video_url", "start_sec", "end_sec"))
    write_settings("t.csv", "out")
    assert load(None).call == {
        "url_list": "t.csv",
        "output_folder": "out",
        "url_col": "video_url",
        "start_col": "start_sec",
        "end_col": "end_sec",
    }
    (tmp_path / "vgg.csv").write_text("---g-f_I2yQ,1,people marching,test\n")
    with pytest.raises(UsageError, match="--preset vggsound"):
        write_settings("vgg.csv", "out", force=True)
    write_settings("vgg.csv", "out", "vggsound", force=True)
    assert load(None).call["preset"] == "vggsound"


# --- what is in the folder, and is not ours


def test_files_that_are_named_like_shards_are_left_alone(tmp_path: Path) -> None:
    """A dataset of another tool, or of a plan that was lost."""
    (tmp_path / "out").mkdir()
    for name in ("00000.tar", "00000.parquet", "20240131"):
        path = tmp_path / "out" / name
        path.mkdir() if name.isdigit() else path.write_bytes(b"precious")
        for mode in ("incremental", "overwrite"):
            with pytest.raises(PlanMismatchError, match=f"named like shards \\({name}"):
                prepared(tmp_path, table(tmp_path), mode=mode)
        assert path.exists()
        path.rmdir() if name.isdigit() else path.unlink()


def test_a_table_in_the_output_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    source = out / "clips.parquet"
    frame = pd.DataFrame({"videoID": [row[0] for row in ROWS], "start": 0.0, "end": 1.0})
    frame.to_parquet(source)
    for _ in range(2):
        # As a folder, too, whatever the dataset has put there meanwhile.
        assert prepared(tmp_path, str(out)).plan.clips == 9
        frame.to_parquet(out / "00000.parquet")
    source.rename(out / "00001.parquet")
    (out / "00000.parquet").unlink()
    with pytest.raises(UsageError, match="has the name of a shard"):
        prepared(tmp_path, str(out / "00001.parquet"), mode="overwrite")
    assert (out / "00001.parquet").exists()


def test_what_is_there_stays_until_the_new_table_is_usable(tmp_path: Path) -> None:
    first = prepared(tmp_path, table(tmp_path))
    (tmp_path / "out/00000.tar").write_bytes(b"precious")
    with pytest.raises(EmptyTableError):
        prepared(tmp_path, table(tmp_path, [("nope", 0, 1, "x")]), mode="overwrite")
    assert (tmp_path / "out/00000.tar").exists()
    assert prepared(tmp_path, table(tmp_path)).plan.parts == first.plan.parts


def test_a_larger_limit_extends_the_plan(tmp_path: Path) -> None:
    first = prepared(tmp_path, table(tmp_path), limit=3)
    second = prepared(tmp_path, table(tmp_path), mode="extend", limit=6)
    assert second.plan.clips == 6
    assert second.plan.parts[0] == first.plan.parts[0]
    full = prepared(tmp_path / "full", table(tmp_path), limit=6)
    assert full.plan.clips == 6


def test_rejected_rows_of_each_table_are_kept(tmp_path: Path) -> None:
    prepared(tmp_path, table(tmp_path, [*ROWS, ("x", 0, 1, "")]))
    prepared(tmp_path, table(tmp_path, [("b" * 11, 0, 1, ""), ("y", 0, 1, "")]), mode="extend")
    kept = (tmp_path / "out/_acavdl").glob("rejected*.parquet")
    values = {path.name: pd.read_parquet(path)["value"].tolist() for path in kept}
    assert values == {"rejected.parquet": ["x, 0, 1"], "rejected-00001.parquet": ["y, 0, 1"]}


def test_no_secret_of_a_table_is_recorded(tmp_path: Path) -> None:
    assert shown("https://me:word@host:80/a/t.csv?X-Signature=s") == "https://host:80/a/t.csv?…"
    assert shown("https://host/a@b.csv") == "https://host/a@b.csv"
    assert shown("/a/b@c?.csv") == "/a/b@c?.csv"
    with pytest.raises(UsageError) as raised:
        prepared(tmp_path, "http://me:hunter2@127.0.0.1:9/t.csv?signature=hunter3")
    assert "hunter" not in str(raised.value)
