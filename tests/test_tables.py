"""Clip tables as users bring them: what becomes a clip, what is rejected, what is refused."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import write_csv
from hypothesis import given, settings
from hypothesis import strategies as st

from acavdl.errors import EmptyTableError, UsageError
from acavdl.models import is_youtube_id
from acavdl.tables import Columns, Table, clean, parse_span, parse_video, read_table

ID = "abcdefghijk"
READS_NUL = pd.read_csv(io.StringIO("a\nb\0c\n"), dtype=str).iloc[0, 0] == "b\0c"
PAIRS = pa.list_(pa.list_(pa.float64()))
#: Foreign text, and pieces of what is looked for in it.
HOSTILE = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(
            [
                "https://",
                "http:",
                "//",
                "youtu.be/",
                "youtube.com",
                "/watch?v=",
                "/shorts/",
                ID,
                "[",
                "]",
                "(",
                ")",
                "{",
                "}",
                ",",
                ":",
                "1",
                "-",
                "e999",
                ".5",
                "nan",
                "'",
                '"',
                "\\",
                "\x00",
                "\n",
                "%",
                "@",
                "#",
                "&v=",
                "\ud800",
                "None",
                "f''",
                "lambda:",
                "0x",
            ]
        ),
        max_size=25,
    ).map("".join),
)


def read(path: Path, data: bytes | str, **options: str) -> Table:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return read_table(str(path), **options)


def spans(table: Table) -> list[tuple[str, int, int]]:
    columns = (table.clips[name] for name in ("video_id", "start_ms", "end_ms"))
    return list(zip(*columns, strict=True))


def parquet(path: Path, columns: dict[str, Any], **options: str) -> Table:
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return read_table(str(path), **options)


def of_clips(*cells: Any) -> Table:
    """Return the clips of a table with these cells in the column ``clips``."""
    frame = pd.DataFrame({"url": [ID] * len(cells), "clips": pd.Series(cells, dtype=object)})
    return clean(frame, Columns("url", "clips", None, None, None))


# --- layouts


def test_csv_with_start_and_end(tmp_path: Path) -> None:
    table = read_table(str(write_csv(tmp_path / "t.csv", [(ID, 1.5, 3), (ID, "0.0004", "1e1")])))
    assert spans(table) == [(ID, 1500, 3000), (ID, 0, 10000)]
    assert table.clips["url"].tolist() == [f"https://www.youtube.com/watch?v={ID}"] * 2
    assert table.clips["caption"].tolist() == [None, None]
    assert table.rejected == ()


def test_csv_with_lists(tmp_path: Path) -> None:
    cells = ["[[1, 2], [3.25, 4]]", "[5, 6]", "((7, 8),)", " [[ '9' , 10 ]] "]
    rows = [(f"https://youtu.be/{ID}", cell) for cell in cells]
    table = read_table(str(write_csv(tmp_path / "t.csv", rows, ("video_link", "clips"))))
    assert [(start, end) for _, start, end in spans(table)] == [
        (1000, 2000),
        (3250, 4000),
        (5000, 6000),
        (7000, 8000),
        (9000, 10000),
    ]


def test_parquet_with_start_and_end(tmp_path: Path) -> None:
    table = parquet(
        tmp_path / "t.parquet", {"videoID": [ID] * 5, "start": [0.0, 1, 2, 3, 4], "end": [9.0] * 5}
    )
    # Several row groups, in the order of the file.
    assert spans(table) == [(ID, start * 1000, 9000) for start in range(5)]


def test_parquet_with_lists(tmp_path: Path) -> None:
    clips = pa.array([[[1, 2], [3.25, 4]], [[5, 6]], [], None, [[7, 8, 9]]], PAIRS)
    table = parquet(tmp_path / "t.parquet", {"url": [f"youtu.be/{ID}"] * 5, "clips": clips})
    assert spans(table) == [(ID, 1000, 2000), (ID, 3250, 4000), (ID, 5000, 6000)]
    assert [row.row for row in table.rejected] == [3, 4, 5]


@pytest.mark.parametrize(
    "clips",
    [
        pa.array([[1.0, 2.0]]),
        pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)),
        pa.array([[[1, 2]]], pa.list_(pa.list_(pa.int64(), 2))),
        pa.array([[["1", "2"]]]),
        pa.array(["[[1, 2]]"]),
        pa.array(["[[1, 2]]"], pa.large_string()),
    ],
    ids=["bare pair", "fixed bare pair", "fixed pairs", "texts", "text", "large text"],
)
def test_types_of_lists_in_parquet(tmp_path: Path, clips: pa.Array) -> None:
    table = parquet(tmp_path / "t.parquet", {"url": [ID], "clips": clips})
    assert spans(table) == [(ID, 1000, 2000)]


@pytest.mark.parametrize(
    "videos",
    [
        pa.array([ID, "12345678901"]),
        pa.array([ID, "12345678901"], pa.large_string()),
        pa.array([ID, "12345678901"]).dictionary_encode(),
    ],
    ids=["text", "large text", "dictionary"],
)
def test_types_of_ids_in_parquet(tmp_path: Path, videos: pa.Array) -> None:
    table = parquet(tmp_path / "t.parquet", {"videoID": videos, "start": [1, 1], "end": ["2", "2"]})
    assert spans(table) == [(ID, 1000, 2000), ("12345678901", 1000, 2000)]


@pytest.mark.parametrize(
    "cell",
    [
        [[1, 2], [3, 4]],
        ((1, 2), (3, 4)),
        np.array([[1, 2], [3, 4]]),
        [np.array([1.0, 2.0]), np.array([3.0, 4.0])],
        np.array([[1, 2], [3, 4]], dtype=np.float32),
        [[np.float32(1), np.int8(2)], ["3", "4.0"]],
    ],
)
def test_lists_of_pandas(cell: Any) -> None:
    assert spans(of_clips(cell)) == [(ID, 1000, 2000), (ID, 3000, 4000)]


def test_a_pair_of_texts_is_a_span_and_not_its_characters() -> None:
    assert spans(of_clips("['12', '34']")) == [(ID, 12000, 34000)]


@pytest.mark.parametrize(
    "cell",
    [
        "",
        "[]",
        "[[]]",
        "[[1]]",
        "[[1, 2, 3]]",
        "[1]",
        "[1, 2, 3]",
        "[[1, 2], 3]",
        "12",
        "'12'",
        "{1, 2}",
        "{1: 2, 3: 4}",
        "{[1]}",
        "None",
        "[[1, None]]",
        "[[1, [2]]]",
        "[[2, 1]]",
        "[[1, 1]]",
        "[[-1, 1]]",
        "[[0, 1e999]]",
        "[[0, 1e308]]",
        f"[[0, 1{'0' * 400}]]",
        "[[nan, 1]]",
        "[[0, 1j]]",
        "open('x')",
        "[[1, 2]",
        "\x00",
        None,
        3.5,
        {},
        [[1, 2], None],
        np.array(5),
        np.array([]),
    ],
)
def test_what_is_no_list_of_spans(cell: Any) -> None:
    table = of_clips(cell, "[[1, 2]]")
    assert spans(table) == [(ID, 1000, 2000)]
    assert [row.row for row in table.rejected] == [1]
    assert table.rejected[0].reason


@pytest.mark.parametrize(
    "text", ["[" * 10**5, "-" * 10**5 + "1", "1+" * 10**4 + "1", "[1,2]," * 10**4]
)
def test_a_monstrous_list_neither_crashes_nor_hangs(text: str) -> None:
    begin = time.monotonic()
    table = of_clips(text)
    assert time.monotonic() - begin < 10
    assert len(table.clips) + len(table.rejected) > 0


def test_usual_columns_can_be_overruled(tmp_path: Path) -> None:
    header = ("videoID", "start", "end", "clips", "where", "when")
    path = write_csv(
        tmp_path / "t.csv",
        [(ID, 1, 2, "[[3, 4]]", "https://youtu.be/-1234567890", "[5, 6]")],
        header,
    )
    assert spans(read_table(str(path))) == [(ID, 3000, 4000)]
    named = read_table(str(path), url_col="where", clip_col="when")
    assert spans(named) == [("-1234567890", 5000, 6000)]


# --- ids and links


@pytest.mark.parametrize(
    "video",
    [
        "12345678901",
        "00000000000",
        "-1234567890",
        "--_________",
        "NA_NULL_NaN",
        "nan-None-No",
        "1e100000000",
        "0x123456789",
        "TRUEFALSE__",
        "ABCDEFGHIJK",
        "1234567890_",
    ],
)
def test_ids_that_look_like_something_else(tmp_path: Path, video: str) -> None:
    table = read_table(str(write_csv(tmp_path / "t.csv", [(video, 1, 2)])))
    assert spans(table) == [(video, 1000, 2000)]
    assert parse_video(f"  {video}\n")[0] == video


@pytest.mark.parametrize(
    "link",
    [
        "https://www.youtube.com/watch?v={}",
        "https://youtube.com/watch?v={}&t=10s",
        "https://www.youtube.com/watch?feature=share&list=PLx&v={}#top",
        "https://www.youtube.com/watch/?v={}",
        "http://m.youtube.com/watch?v={}",
        "https://music.youtube.com/watch?v={}",
        "HTTPS://WWW.YouTube.COM/watch?v={}",
        "https://youtu.be/{}",
        "https://youtu.be/{}?si=abc&t=3",
        "https://www.youtube.com/shorts/{}",
        "https://www.youtube.com/shorts/{}?feature=share",
        "https://www.youtube.com/embed/{}",
        "https://www.youtube-nocookie.com/embed/{}?rel=0",
        "https://www.youtube.com/live/{}",
        "https://www.youtube.com/v/{}",
        "youtube.com/watch?v={}",
        "www.youtube.com/shorts/{}",
        "youtu.be/{}",
        "//www.youtube.com/watch?v={}",
        "youtube.com/watch?v={}&u=http://x.org",
        "youtube.com:443/watch?v={}",
        "  https://youtu.be/{}\r\n",
    ],
)
@pytest.mark.parametrize("video", [ID, "-_-_-_-_-_-", "12345678901"])
def test_links(link: str, video: str) -> None:
    assert parse_video(link.format(video)) == (video, f"https://www.youtube.com/watch?v={video}")


@pytest.mark.parametrize(
    "link",
    [
        "https://example.com/a.mp4",
        "http://10.0.0.1:8000/x?y=1",
        "https://notyoutube.com/watch?v=" + ID,
    ],
)
def test_links_elsewhere_keep_their_url(link: str) -> None:
    video_id, url = parse_video(f" {link} ")
    assert url == link
    assert video_id[0] == "u"
    assert int(video_id[1:], 16) >= 0
    assert len(video_id) == 17
    assert parse_video(link + "&")[0] != video_id


@pytest.mark.parametrize(
    "value",
    [
        "",
        "abc",
        ID + "l",
        ID[:-1],
        "abcdefghij\n",
        "abc defghij",
        "äbcdefghijk",
        "\N{ARABIC-INDIC DIGIT ONE}" * 11,
        "https://www.youtube.com/",
        "https://www.youtube.com/watch?v=",
        "https://www.youtube.com/@you",
        "https://www.youtube.com/playlist?list=PLabcdefghijk",
        "https://youtu.be/",
        "youtu.be/abc",
        "https://www.youtube.com/watch?v=" + ID + "l",
        "ftp://example.com/a",
        "file:///etc/passwd",
        "https://",
        "http://[",
        "http://a]b/",
        "https://example.com/a\nHost: b",
        "example.com/a.mp4",
        None,
        12345678901,
        1.5,
        float("nan"),
        pd.NA,
        b"abcdefghijk",
        [ID],
    ],
)
def test_what_is_no_video(value: Any) -> None:
    with pytest.raises(ValueError, match="video id"):
        parse_video(value)


@settings(max_examples=300, deadline=None)
@given(HOSTILE)
def test_any_text_is_a_video_or_rejected(text: str) -> None:
    try:
        video_id, url = parse_video(text)
    except ValueError as error:
        assert type(error).__name__ == "_BadRowError"  # noqa: PT017
        return
    assert url.lower().startswith(("http://", "https://"))
    assert url.isprintable()
    assert is_youtube_id(video_id) or (video_id[0] == "u" and len(video_id) == 17)
    assert parse_video(url) == (video_id, url)


# --- times


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 999_999_998), st.integers(1, 999_999_999))
def test_whole_milliseconds_are_kept(start: int, length: int) -> None:
    end = min(start + length, 999_999_999)
    assert parse_span(start / 1000, end / 1000) == (start, end)
    assert parse_span(f"{start / 1000:.3f}", f" {end / 1000:.3f} ") == (start, end)


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(HOSTILE, st.floats(), st.integers(), st.none(), st.binary(max_size=8)),
    st.one_of(HOSTILE, st.floats(), st.integers(), st.none()),
)
def test_any_times_are_a_span_or_rejected(start: Any, end: Any) -> None:
    frame = pd.DataFrame({"v": ID, "s": [start], "e": [end]}, dtype=object)
    table = clean(frame, Columns("v", None, "s", "e", None))
    assert len(table.clips) + len(table.rejected) == 1
    for _, start_ms, end_ms in spans(table):
        assert 0 <= start_ms < end_ms <= 999_999_999


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [
        (-0.001, 1, "negative"),
        (2, 1, "not before"),
        (1, 1.0004, "not before"),
        (0, 1_000_000, "11 days"),
        ("1:30", "2:00", "not a number"),
        ("nan", 1, "not a number"),
        (0, "inf", "not a number"),
        (0, 10**400, "not a number"),
        (0, 1e308, "not a number"),
    ],
)
def test_spans_that_are_none(start: Any, end: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_span(start, end)


# --- lists


@settings(max_examples=300, deadline=None)
@given(HOSTILE)
def test_any_text_is_a_list_of_spans_or_rejected(text: str) -> None:
    table = of_clips(text)
    assert (len(table.rejected) == 1) == table.clips.empty


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**5)), min_size=1, max_size=8))
def test_written_lists_come_back(pairs: list[tuple[int, int]]) -> None:
    wanted = [(start, start + length) for start, length in pairs]
    seconds = [[start / 1000, end / 1000] for start, end in wanted]
    table = of_clips(
        str(seconds), seconds, np.array(seconds), repr([tuple(pair) for pair in seconds])
    )
    assert [(start, end) for _, start, end in spans(table)] == wanted * 4


# --- rejected rows


def test_rejected_rows_tell_where_and_why(tmp_path: Path) -> None:
    rows = [(ID, 1, 2), ("what?", 1, 2), (ID, 5, 4), (ID, 3, 4), (ID, "x", 4)]
    table = read_table(str(write_csv(tmp_path / "t.csv", rows)))
    assert spans(table) == [(ID, 1000, 2000), (ID, 3000, 4000)]
    assert [row.row for row in table.rejected] == [2, 3, 5]
    assert "video id" in table.rejected[0].reason
    assert "what?" in table.rejected[0].value
    assert "not before the end" in table.rejected[1].reason
    assert "not a number" in table.rejected[2].reason


def test_a_row_is_used_as_a_whole_or_not_at_all() -> None:
    table = of_clips("[[1, 2], [4, 3], [5, 6]]", "[[7, 8], [9, 10]]", "[[1, 2], [3]]")
    assert spans(table) == [(ID, 7000, 8000), (ID, 9000, 10000)]
    assert [row.row for row in table.rejected] == [1, 3]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([ID, "https://youtu.be/-1234567890", "bad"]),
            st.lists(st.tuples(st.integers(-1, 9), st.integers(-1, 9)), max_size=4),
        ),
        max_size=12,
    )
)
def test_every_row_is_used_or_rejected(rows: list[tuple[str, list[tuple[int, int]]]]) -> None:
    frame = pd.DataFrame(
        {
            "url": pd.Series([video for video, _ in rows], dtype=object),
            "clips": pd.Series([pairs for _, pairs in rows], dtype=object),
            "number": pd.Series(range(1, len(rows) + 1), dtype=object),
        }
    )
    table = clean(frame, Columns("url", "clips", None, None, "number"))
    used = [int(number) for number in table.clips["caption"]]
    rejected = [row.row for row in table.rejected]
    assert set(used) | set(rejected) == set(range(1, len(rows) + 1))
    assert not set(used) & set(rejected)
    for number in set(used):
        assert used.count(number) == len(rows[number - 1][1])


def test_a_rejected_value_is_shown_in_part(tmp_path: Path) -> None:
    table = read_table(str(write_csv(tmp_path / "t.csv", [("x" * 10**6, 1, 2), (ID, 1, 2)])))
    assert len(table.rejected[0].value) <= 200


# --- captions


def test_captions_of_csv_are_kept_word_for_word(tmp_path: Path) -> None:
    captions = [
        'a "b", c',
        "two\nlines\r\nand more",
        "ünïcode 🎬 日本",
        "",
        "NA",
        " padded ",
        "007",
        *(["a\x00b"] if READS_NUL else []),
    ]
    rows = [(ID, number, number + 1, text) for number, text in enumerate(captions)]
    path = write_csv(tmp_path / "t.csv", rows, ("videoID", "start", "end", "text"))
    table = read_table(str(path), caption_col="text")
    assert table.clips["caption"].tolist() == captions
    assert table.rejected == ()


def test_a_caption_longer_than_what_columns_are_found_in(tmp_path: Path) -> None:
    long = "line\n" * 200_000
    path = write_csv(
        tmp_path / "t.csv", [(ID, 1, 2, long), (ID, 3, 4, "")], ("videoID", "start", "end", "text")
    )
    table = read_table(str(path), caption_col="text")
    assert table.clips["caption"].tolist() == [long, ""]


def test_a_missing_caption_is_none_and_not_the_word_nan(tmp_path: Path) -> None:
    columns = {"videoID": [ID] * 3, "start": [1, 2, 3], "end": [9, 9, 9]}
    texts = parquet(tmp_path / "a.parquet", {**columns, "c": ["x", None, ""]}, caption_col="c")
    assert texts.clips["caption"].tolist() == ["x", None, ""]
    numbers = parquet(tmp_path / "b.parquet", {**columns, "c": [1.5, None, 2]}, caption_col="c")
    assert numbers.clips["caption"].tolist() == ["1.5", None, "2.0"]
    short = read(
        tmp_path / "c.csv", f"videoID,start,end,c\n{ID},1,2,x\n{ID},3,4\n", caption_col="c"
    )
    assert short.clips["caption"].tolist() == ["x", ""]


def test_all_clips_of_a_row_have_its_caption(tmp_path: Path) -> None:
    clips = pa.array([[[1, 2], [3, 4]], [[5, 6]]], PAIRS)
    columns = {"url": [ID, ID], "clips": clips, "title": ["a", "b"]}
    table = parquet(tmp_path / "t.parquet", columns, caption_col="title")
    assert table.clips["caption"].tolist() == ["a", "a", "b"]


# --- shapes of files


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfvideoID,start,end\nabcdefghijk,1,2\n",
        b"videoID,start,end\r\nabcdefghijk,1,2\r\n",
        b"videoID,start,end\rabcdefghijk,1,2\r",
        b"videoID,start,end\nabcdefghijk,1,2",
        b'"videoID","start","end"\n"abcdefghijk","1","2"\n',
        b"\n\nvideoID,start,end\n\n\nabcdefghijk,1,2\n\n\n",
        b"end,\xc3\xa9,start,videoID\n2,\xe6\x97\xa5,1,abcdefghijk\n",
        b"videoID,start,end\nabcdefghijk, 1 , 2 \n",
    ],
    ids=["BOM", "CRLF", "CR", "no last newline", "quotes", "blank lines", "other order", "spaces"],
)
def test_shapes_of_csv(tmp_path: Path, data: bytes) -> None:
    table = read(tmp_path / "t.csv", data)
    assert spans(table) == [(ID, 1000, 2000)]
    assert table.rejected == ()


def test_the_ending_may_have_capitals(tmp_path: Path) -> None:
    assert spans(read(tmp_path / "T.CSV", f"videoID,start,end\n{ID},1,2\n")) == [(ID, 1000, 2000)]


@pytest.mark.skipif(not READS_NUL, reason="this pandas cuts the fields of a csv at NUL")
def test_a_nul_spoils_its_row_alone(tmp_path: Path) -> None:
    table = read(tmp_path / "t.csv", f"videoID,start,end\nabc\0defghij,1,2\n{ID},1\0,2\n{ID},1,2\n")
    assert spans(table) == [(ID, 1000, 2000)]
    assert [row.row for row in table.rejected] == [1, 2]


def test_a_short_row_is_rejected(tmp_path: Path) -> None:
    table = read(tmp_path / "t.csv", f"videoID,start,end\n{ID},1\n{ID},1,2\n{ID}\n")
    assert spans(table) == [(ID, 1000, 2000)]
    assert [row.row for row in table.rejected] == [1, 3]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "No columns"),
        (b"\n\n", "No columns"),
        (b"videoID,start,end\nabcdefghijk,1,2,3\n", "more fields than the header"),
        (b"videoID,start,end\nabcdefghijk,1,2,3,4\n", "more fields than the header"),
        (b"videoID,start,end\nabcdefghijk,1,2\nabcdefghijk,1,2,3\n", "line 3"),
        (b'videoID,start,end\nabcdefghijk,1,"2\n', "EOF inside string"),
        (b"videoID,start,end\nabcdefghijk,1,\xff\n", "utf-8"),
        ("videoID,start,end\nabcdefghijk,1,2\n".encode("utf-16"), "utf-8"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9, "utf-8"),
    ],
)
def test_csv_that_cannot_be_read(tmp_path: Path, data: bytes, told: str) -> None:
    with pytest.raises(UsageError, match=told) as raised:
        read(tmp_path / "t.csv", data)
    assert str(tmp_path / "t.csv") in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_parquet_that_is_half_written(tmp_path: Path, size: int) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"videoID": [ID] * 50, "start": range(50), "end": range(1, 51)}), path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UsageError, match=r"cannot read .*t\.parquet") as raised:
        read_table(str(path))
    assert "\n" not in str(raised.value)


def test_parquet_with_damaged_data(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    rows = range(1000)
    pq.write_table(
        pa.table({"videoID": [f"{i:011d}" for i in rows], "start": rows, "end": [1e4] * 1000}), path
    )
    data = bytearray(path.read_bytes())
    data[4:2000] = b"\xff" * 1996
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"cannot read .*t\.parquet"):
        read_table(str(path))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("t.txt", r"\.csv or \.parquet"),
        ("t", r"\.csv or \.parquet"),
        ("folder.csv", "not a file"),
        ("missing.csv", "not a file"),
        ("https://example.com/t.csv", "not a file"),
    ],
)
def test_what_is_no_table(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "folder.csv").mkdir()
    for present in ("t.txt", "t"):
        (tmp_path / present).write_text(f"videoID,start,end\n{ID},1,2\n")
    with pytest.raises(UsageError, match=told):
        read_table(name if "://" in name else str(tmp_path / name))


@pytest.mark.parametrize(
    ("header", "options", "told"),
    [
        ("a,b,c", {}, ["a, b, c", "videoID", "start", "end", "clips", "--url-col"]),
        ("videoID,start,stop", {}, ["videoID, start, stop", "end"]),
        ("start,end,clips", {}, ["start, end, clips", "videoID"]),
        ("url,text", {}, ["url, text", "clips"]),
        ("url,clips", {"caption_col": "text"}, ["'text'", "--caption-col", "url, clips"]),
        ("url,clips", {"url_col": "link"}, ["'link'", "--url-col", "url, clips"]),
        ("url,clips", {"clip_col": "spans"}, ["'spans'", "--clip-col", "url, clips"]),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_missing_columns_are_named_with_what_is_there(
    tmp_path: Path, kind: str, header: str, options: dict[str, str], told: list[str]
) -> None:
    path = tmp_path / f"t.{kind}"
    if kind == "csv":
        path.write_text(f"{header}\n")
    else:
        pq.write_table(pa.table({name: ["x"] for name in header.split(",")}), path)
    with pytest.raises(UsageError) as raised:
        read_table(str(path), **options)
    for part in (*told, str(path)):
        assert part in str(raised.value)


def test_a_header_alone_is_an_empty_table(tmp_path: Path) -> None:
    with pytest.raises(EmptyTableError, match="no usable row"):
        read(tmp_path / "t.csv", "videoID,start,end\n")
    nothing = {"videoID": pa.array([], pa.string()), "start": pa.array([], pa.float64())}
    with pytest.raises(EmptyTableError, match="no usable row"):
        parquet(tmp_path / "t.parquet", {**nothing, "end": pa.array([], pa.float64())})


def test_a_table_of_rejected_rows_alone_tells_why(tmp_path: Path) -> None:
    with pytest.raises(EmptyTableError, match="not before the end in row 1"):
        read(tmp_path / "t.csv", f"videoID,start,end\n{ID},2,1\nx,1,2\n")
