"""Layouts of published clip tables, each with rows as they really look."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clip_tables import ID, parquet, read, written

from acavdl.config import TableOptions
from acavdl.errors import UsageError
from acavdl.presets import BY_NAME, PRESETS, headerless, recognise
from acavdl.readers import find_files, read_head
from acavdl.tables import WHOLE, find_columns


@dataclass(frozen=True)
class Sample:
    """A published table in small: its file, and the clips and captions that it holds."""

    name: str
    data: bytes | Callable[[Path], Path]
    spans: list[tuple[str, int, int]]
    captions: list[str | None] = field(default_factory=list)
    preset: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


def lines(*records: dict[str, Any]) -> bytes:
    return "".join(f"{json.dumps(record)}\n" for record in records).encode()


def prepared(path: Path) -> Path:
    columns = {
        "video_link": [
            "https://youtube.com/watch?v=-0p7hKXZ1ww",
            "https://youtube.com/watch?v=12345678901",
        ],
        "clips": pa.array([[[292.333, 302.333]], [[0.0, 10.0], [10.0, 20.0]]]),
        "title": ["A “title”, quoted", None],
        "description": ["two\nlines", ""],
        "videoID": ["-0p7hKXZ1ww", "12345678901"],
        "start": [292.333, 0.0],
        "end": [302.333, 10.0],
    }
    return parquet(path, columns)


SAMPLES = {
    "acav100m": Sample(
        "acav.csv",
        b"videoID,start,end\n-0p7hKXZ1ww,30.0,40.0\n00000000000,292.3329999997,302.3329999997\n",
        [("-0p7hKXZ1ww", 30_000, 40_000), ("00000000000", 292_333, 302_333)],
    ),
    "acav100m-pipeline": Sample(
        "output.csv",
        b'shard-000009,qpxektwhzra_292.mp4,qpxektwhzra,"[292.3329999997, 302.3329999997]"\n'
        b'shard-000009,-dABCD_1234_0.mp4,-dABCD_1234,"[0, 10.0]"\n',
        [("qpxektwhzra", 292_333, 302_333), ("-dABCD_1234", 0, 10_000)],
        preset="acav100m-pipeline",
    ),
    "acav100m-prepared": Sample(
        "prepared.parquet",
        prepared,
        [
            ("-0p7hKXZ1ww", 292_333, 302_333),
            ("12345678901", 0, 10_000),
            ("12345678901", 10_000, 20_000),
        ],
        options={"save_additional_columns": ("title", "description")},
    ),
    "acav100m-prepared, also seen": Sample(
        "other.csv",
        b'videoLoc,clip\nhttps://www.youtube.com/watch?v=abcdefghijk,"[1.0, 11.0]"\n',
        [(ID, 1_000, 11_000)],
    ),
    "audioset": Sample(
        "balanced_train_segments.csv",
        b"# Segments csv created Sun Mar  5 10:54:31 2017\n"
        b"# num_ytids=22160, num_segs=22160, num_unique_labels=527, num_positive_labels=52882\n"
        b"# YTID, start_seconds, end_seconds, positive_labels\n"
        b'--PJHxphWEs, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n'
        b'--ZhevVpy1s, 50.000, 60.000, "/m/012xff"\n'
        b'12345678901, 0.000, 10.000, "/m/03fwl,/m/04rlf,/m/09x0r"\n',
        [
            ("--PJHxphWEs", 30_000, 40_000),
            ("--ZhevVpy1s", 50_000, 60_000),
            ("12345678901", 0, 10_000),
        ],
        options={"save_additional_columns": ("positive_labels",)},
    ),
    "vggsound": Sample(
        "vggsound.csv",
        b'---g-f_I2yQ,1,people marching,train\n--0PQM4-hqg,30,"waterfall burbling, near",train\n',
        [("---g-f_I2yQ", 1_000, 11_000), ("--0PQM4-hqg", 30_000, 40_000)],
        preset="vggsound",
    ),
    "audiocaps": Sample(
        "test.csv",
        b"audiocap_id,youtube_id,start_time,caption\n"
        b'103549,7fmOlUlwoNg,20,"Constant rattling noise, and sharp vibrations"\n'
        b"103548,7fmOlUlwoNg,20,A rocket flies by followed by a loud explosion\n",
        [("7fmOlUlwoNg", 20_000, 30_000), ("7fmOlUlwoNg", 20_000, 30_000)],
        [
            "Constant rattling noise, and sharp vibrations",
            "A rocket flies by followed by a loud explosion",
        ],
    ),
    "musiccaps": Sample(
        "musiccaps-public.csv",
        b"ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,author_id,"
        b"is_balanced_subset,is_audioset_eval\n"
        b"-0Gj8-vB1q4,30,40,\"/m/0140xf,/m/02cjck\",\"['low quality', 'sustained strings']\","
        b'"The low quality recording features a ballad song that contains ""strings"".\n'
        b'It sounds sad.",4,False,True\n',
        [("-0Gj8-vB1q4", 30_000, 40_000)],
        [
            'The low quality recording features a ballad song that contains "strings".\n'
            "It sounds sad."
        ],
    ),
    "kinetics": Sample(
        "kinetics700_train.csv",
        b"label,youtube_id,time_start,time_end,split\n"
        b"testifying,---QUuC4vJs,84,94,train\n"
        b'"playing trumpet, loud",--3ouPhoy2A,20,30,train\n',
        [("---QUuC4vJs", 84_000, 94_000), ("--3ouPhoy2A", 20_000, 30_000)],
    ),
    "hd-vila-100m": Sample(
        "hdvila_part0.jsonl",
        lines(
            {
                "video_id": "QMi8cbGdEQg",
                "url": "www.youtube.com/watch?v=QMi8cbGdEQg",
                "clip": [
                    {
                        "clip_id": "QMi8cbGdEQg.0.mp4",
                        "span": ["00:00:17.759", "00:00:23.279"],
                    },
                    {
                        "clip_id": "QMi8cbGdEQg.1.mp4",
                        "span": ["01:00:23.279", "01:00:29.000"],
                    },
                ],
            }
        ),
        [("QMi8cbGdEQg", 17_759, 23_279), ("QMi8cbGdEQg", 3_623_279, 3_629_000)],
    ),
    "panda-70m": Sample(
        "panda70m_testing.csv",
        b"videoID,url,timestamp,caption,matching_score,desirable_filtering,"
        b"shot_boundary_detection\n"
        b"--_S9IDQPLg,https://www.youtube.com/watch?v=--_S9IDQPLg,"
        b"\"[['0:00:13.280', '0:00:22.680'], ['0:01:03.560', '0:01:10.000']]\","
        b'"[\'A woman\\\'s hands \\d\', ""It\'s raining, heavily.""]",'
        b'"[0.43, 0.5]","[\'desirable\', \'desirable\']","[[[0, 1]], [[1, 2]]]"\n'
        b"--bZjTLVIVU,https://www.youtube.com/watch?v=--bZjTLVIVU,"
        b"\"[['0:00:00.000', '0:00:02.000']]\",\"['A cat.']\",[0.4],['desirable'],[[[0]]]\n",
        [
            ("--_S9IDQPLg", 13_280, 22_680),
            ("--_S9IDQPLg", 63_560, 70_000),
            ("--bZjTLVIVU", 0, 2_000),
        ],
        ["A woman's hands \\d", "It's raining, heavily.", "A cat."],
    ),
    "internvid": Sample(
        "InternVid-10M.jsonl",
        lines(
            {
                "YoutubeID": "-0p7hKXZ1ww",
                "Start_timestamp": "00:01:45.553",
                "End_timestamp": "00:01:48.000",
                "Caption": "a man in a suit",
                "Aesthetic_Score": 4.29296875,
                "UMT_Score": 0.41253662109375,
            }
        ),
        [("-0p7hKXZ1ww", 105_553, 108_000)],
        ["a man in a suit"],
    ),
    "videocc": Sample(
        "video_cc_public.csv",
        b"https://www.youtube.com/watch?v=00000000000,13280000,22680500,"
        b'"a dog, running"\n-0p7hKXZ1ww,0,10000000,a cat\n',
        [("00000000000", 13_280, 22_680), ("-0p7hKXZ1ww", 0, 10_000)],
        ["a dog, running", "a cat"],
        preset="videocc",
    ),
    "avspeech": Sample(
        "avspeech_train.csv",
        b"AvWWVOgaMlk,90.000000,93.566667,0.586719,0.311111\n-0p7hKXZ1ww,0.0,3.003,0.5,0.5\n",
        [("AvWWVOgaMlk", 90_000, 93_567), ("-0p7hKXZ1ww", 0, 3_003)],
        preset="avspeech",
    ),
}


def made(sample: Sample, folder: Path) -> Path:
    path = folder / sample.name
    return sample.data(path) if callable(sample.data) else written(path, sample.data)


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_rows_as_they_look(tmp_path: Path, sample: Sample) -> None:
    found = read(made(sample, tmp_path), preset=sample.preset, **sample.options)
    assert found.spans == sample.spans
    assert found.captions == (sample.captions or [None] * len(sample.spans))
    assert found.why == []


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_a_row_at_a_time(tmp_path: Path, sample: Sample) -> None:
    found = read(made(sample, tmp_path), preset=sample.preset, piece_rows=1, **sample.options)
    assert found.spans == sample.spans
    assert found.captions == (sample.captions or [None] * len(sample.spans))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_each_layout_has_a_sample(preset: Any) -> None:
    assert preset.name in SAMPLES
    assert preset.required <= set(preset.columns)
    assert (preset.clips is None) != (preset.start is None)
    assert preset.end is None or preset.length is None


@pytest.mark.parametrize("preset", [p for p in PRESETS if p.header], ids=lambda preset: preset.name)
def test_layouts_with_names_are_recognised(preset: Any) -> None:
    assert recognise(preset.columns) == [preset]
    assert recognise([*preset.columns, "more"]) == [preset]


def test_additional_columns_of_audioset_are_whole(tmp_path: Path) -> None:
    sample = SAMPLES["audioset"]
    found = read(made(sample, tmp_path), **sample.options)
    first = found.clips["extra"].to_pylist()[0]
    assert json.loads(first) == {"positive_labels": "/m/09x0r,/t/dd00088"}
    assert found.kinds == {"positive_labels": "string"}


def test_additional_columns_of_the_prepared_table(tmp_path: Path) -> None:
    sample = SAMPLES["acav100m-prepared"]
    found = read(made(sample, tmp_path), **sample.options)
    extra = [json.loads(text) for text in found.clips["extra"].to_pylist()]
    assert extra[0] == {"title": "A “title”, quoted", "description": "two\nlines"}
    # Each clip of a row has the row's columns.
    assert extra[1:] == [{"title": None, "description": ""}] * 2


def test_whole_videos(tmp_path: Path) -> None:
    path = written(tmp_path / "videos.csv", "video_id\n12345678901\n-0p7hKXZ1ww\n")
    found = read(path)
    assert found.spans == [("12345678901", WHOLE, WHOLE), ("-0p7hKXZ1ww", WHOLE, WHOLE)]


# --- which one it is


def columns_of(path: Path, **options: Any) -> Any:
    told = TableOptions(str(path), **options)
    return find_columns(read_head(find_files(told.url_list, None)), told)


def test_two_layouts_that_fit_are_both_named(tmp_path: Path) -> None:
    header = "youtube_id,time_start,time_end,start_time,caption"
    path = written(tmp_path / "t.csv", f"{header}\n{ID},1,2,3,x\n")
    with pytest.raises(UsageError) as raised:
        read(path)
    assert raised.value.exit_code == 2
    for part in ("--preset kinetics", "--preset audiocaps", str(path)):
        assert part in str(raised.value)
    assert read(path, preset="kinetics").spans == [(ID, 1_000, 2_000)]
    assert read(path, preset="audiocaps").spans == [(ID, 3_000, 13_000)]
    explicit = read(path, url_col="youtube_id", start_col="time_end", end_col="start_time")
    assert explicit.spans == [(ID, 2_000, 3_000)]
    assert explicit.captions == [None]


@pytest.mark.parametrize("name", ["acav100m-pipeline", "vggsound", "videocc", "avspeech"])
def test_without_a_header_the_layout_has_to_be_named(tmp_path: Path, name: str) -> None:
    path = made(SAMPLES[name], tmp_path)
    with pytest.raises(UsageError, match="has no header") as raised:
        read(path)
    assert f"--preset {name}" in str(raised.value)
    for preset in headerless(len(BY_NAME[name].columns)):
        assert f"--preset {preset.name}" in str(raised.value)


def test_ids_alone_without_a_header(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "12345678901\n-0p7hKXZ1ww\n")
    with pytest.raises(UsageError, match=r"--input-format txt"):
        read(path)
    assert len(read(path, input_format="txt").spans) == 2


def test_a_layout_of_another_width(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", f"{ID},1,2\n")
    with pytest.raises(UsageError, match=r"has 3 columns .* vggsound has 4: youtube_id, start"):
        read(path, preset="vggsound")


def test_a_layout_that_the_table_does_not_have(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", f"videoID,start,end\n{ID},1,2\n")
    with pytest.raises(UsageError) as raised:
        read(path, preset="internvid")
    for part in ("videoID, start, end", "internvid", "YoutubeID", "Start_timestamp"):
        assert part in str(raised.value)


def test_a_layout_that_is_unknown(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", f"videoID,start,end\n{ID},1,2\n")
    with pytest.raises(UsageError, match=r"no preset 'laion'; there are: acav100m, "):
        read(path, preset="laion")


def test_options_overrule_the_layout(tmp_path: Path) -> None:
    header = "videoID,url,timestamp,caption,better,from,to"
    row = (
        f"12345678901,https://youtu.be/{ID},\"[['0:00:01', '0:00:02'], ['0:00:03', '0:00:04']]\","
        "\"['a', 'b']\",\"['c', 'd']\",5,6"
    )
    path = written(tmp_path / "t.csv", f"{header}\n{row}\n")
    assert read(path).captions == ["a", "b"]
    assert read(path, preset="panda-70m", url_col="videoID").spans[0][0] == "12345678901"
    assert read(path, caption_col="caption").captions == ["a", "b"]
    # What is named is taken word for word.
    assert read(path, caption_col="better").captions == ["['c', 'd']"] * 2
    times = read(path, preset="panda-70m", start_col="from", end_col="to")
    # Each of the captions is one of the one clip.
    assert times.spans == [(ID, 5_000, 6_000)] * 2
    assert times.captions == ["a", "b"]
    assert read(path, preset="panda-70m", clip_col="timestamp").captions == ["a", "b"]
    assert read(path, preset="panda-70m", time_unit="ms").spans[0] == (ID, 1_000, 2_000)


def test_a_named_column_replaces_the_one_of_the_layout(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", f"youtube_id,begin,caption\n{ID},5,x\n")
    found = read(path, preset="audiocaps", start_col="begin")
    assert found.spans == [(ID, 5_000, 15_000)]
    assert found.captions == ["x"]


def test_units_are_overruled(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", f"videoID,start,end\n{ID},1500,3000\n")
    assert read(path, time_unit="ms").spans == [(ID, 1_500, 3_000)]
    assert read(path, time_unit="us").spans == [(ID, 2, 3)]


def test_captions_from_elsewhere_leave_those_of_the_layout(tmp_path: Path) -> None:
    path = made(SAMPLES["audiocaps"], tmp_path)
    columns = columns_of(path, caption_from="title")
    assert columns.caption is None
    told = TableOptions(str(path))
    videos = find_columns(read_head(find_files(str(path), None)), told, spans=False)
    assert videos.whole
    # Whole videos keep their captions.
    assert videos.caption == "caption"


def test_a_comment_before_a_header_is_none_of_it(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", f"# made by me, in May\n\n#\nvideoID,start,end\n{ID},1,2\n")
    assert read(path).spans == [(ID, 1_000, 2_000)]
    header = written(tmp_path / "u.csv", f"#videoID,start,end\n{ID},1,2\n")
    assert read(header).spans == [(ID, 1_000, 2_000)]


def test_spaces_after_commas_throughout(tmp_path: Path) -> None:
    path = written(
        tmp_path / "t.csv", f'videoID, start, end, caption\n{ID}, 1, 2, "a, b"\n{ID}, 3, 4, c\n'
    )
    found = read(path, caption_col="caption")
    assert found.spans == [(ID, 1_000, 2_000), (ID, 3_000, 4_000)]
    assert found.captions == ["a, b", "c"]


@pytest.mark.parametrize("kind", ["csv.gz", "tsv", "tsv.gz", "jsonl", "json", "parquet"])
def test_a_layout_in_other_formats(tmp_path: Path, kind: str) -> None:
    rows = [
        {"label": "a\tb", "youtube_id": "12345678901", "time_start": 1, "time_end": 11},
        {"label": "c", "youtube_id": "-0p7hKXZ1ww", "time_start": 2, "time_end": 12},
    ]
    path = tmp_path / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_bytes(lines(*rows))
    elif kind == "json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        mark = "\t" if kind.startswith("tsv") else ","
        text = mark.join(rows[0]) + "\n"
        for row in rows:
            text += mark.join(f'"{value}"' for value in row.values()) + "\n"
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    found = read(path, save_additional_columns=("label",))
    assert found.spans == [("12345678901", 1_000, 11_000), ("-0p7hKXZ1ww", 2_000, 12_000)]
    assert json.loads(found.clips["extra"][0].as_py()) == {"label": "a\tb"}
