"""From raw rows to clips: what becomes one, and what is rejected, a column or a row at a time."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from clip_tables import HOSTILE, ID, Read, cleaned, of_clips, parquet, read, written
from hypothesis import given, settings
from hypothesis import strategies as st

from acavdl.models import is_youtube_id
from acavdl.readers import Columns
from acavdl.spans import SpanError, check_span, milliseconds, split_span
from acavdl.tables import WHOLE, RowError, pairs_of, parse_video, youtube_url

PAIRS = pa.list_(pa.list_(pa.float64()))
STARTS = Columns("videoID", start="start", end="end")

# --- ids and links


@pytest.mark.parametrize(
    "video",
    [
        *("12345678901", "00000000000", "-1234567890", "--_________", "NA_NULL_NaN"),
        *("nan-None-No", "1e100000000", "0x123456789", "TRUEFALSE__", "ABCDEFGHIJK"),
        *("1234567890_", "-----------", "=1234567890"[1:] + "_", "1_000_000_0"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "txt", "parquet"])
def test_ids_that_look_like_something_else(tmp_path: Path, kind: str, video: str) -> None:
    path = tmp_path / f"t.{kind}"
    if kind == "parquet":
        parquet(path, {"video_id": [video]})
    elif kind == "jsonl":
        written(path, f'{{"video_id": "{video}"}}')
    else:
        written(path, ("" if kind == "txt" else "video_id\n") + video)
    assert read(path).spans == [(video, WHOLE, WHOLE)]
    assert parse_video(f"  {video}\n") == (video, youtube_url(video))


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
        "http://www.youtu.be/{}",
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
    assert parse_video(link.format(video)) == (video, youtube_url(video))
    found = cleaned({"video": [link.format(video)]}, Columns("url"))
    assert found.clips["video_id"].to_pylist() == [video]
    # The id tells the link.
    assert found.clips["url"].to_pylist() == [None]


@pytest.mark.parametrize(
    "link",
    [
        "https://example.com/a.mp4",
        "http://10.0.0.1:8000/x?y=1",
        "https://vimeo.com/123456789",
        "https://notyoutube.com/watch?v=" + ID,
        "https://youtube.com.example.org/watch?v=" + ID,
    ],
)
def test_links_elsewhere_keep_their_url(link: str) -> None:
    video_id, url = parse_video(f" {link} ")
    assert url == link
    assert video_id[0] == "u"
    assert int(video_id[1:], 16) >= 0
    assert len(video_id) == 17
    assert parse_video(link + "&")[0] != video_id
    found = cleaned({"video": [f" {link} "]}, Columns("url"))
    assert found.clips.select(["video_id", "url"]).to_pylist() == [
        {"video_id": video_id, "url": link}
    ]


NO_VIDEOS = [
    *("", "abc", ID + "l", ID[:-1], "abcdefghij\n", "abc defghij", "äbcdefghijk"),
    *("\N{ARABIC-INDIC DIGIT ONE}" * 11, "https://www.youtube.com/", "https://youtu.be/"),
    *("https://www.youtube.com/watch?v=", "https://www.youtube.com/@you", "youtu.be/abc"),
    "https://www.youtube.com/playlist?list=PLabcdefghijk",
    "https://www.youtube.com/watch?v=" + ID + "l",
    *("ftp://example.com/a", "https://", "http://[", "http://a]b/", "example.com/a.mp4"),
    *("https://example.com/a\nHost: b", "javascript:alert(1)", "data:text/plain,x"),
]


@pytest.mark.parametrize("value", [*NO_VIDEOS, None, 12345678901, 1.5, b"abcdefghijk", [ID]])
def test_what_is_no_video(value: Any) -> None:
    with pytest.raises(RowError, match="neither a video id") as raised:
        parse_video(value)
    assert raised.value.reason == "bad_id"


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("/data/a b.mp4", "file:///data/a%20b.mp4"),
        ("file:///data/a.mp4", "file:///data/a.mp4"),
        ("/data/#1?.mp4", "file:///data/%231%3F.mp4"),
    ],
)
def test_paths_where_they_are_allowed(path: str, url: str) -> None:
    video_id, found = parse_video(path, allow_local=True)
    assert found == url
    assert video_id[0] == "u"
    with pytest.raises(RowError, match="--allow-local") as raised:
        parse_video(path)
    assert raised.value.reason == "local_path"
    for allowed in (False, True):
        table = cleaned({"video": [path, ID]}, Columns("url"), allow_local=allowed)
        assert table.why == ([] if allowed else [(1, "local_path")])
        assert table.clips["url"].to_pylist() == ([url, None] if allowed else [None])


def test_a_path_with_a_line_break_is_none() -> None:
    with pytest.raises(RowError):
        parse_video("/data/a\nb", allow_local=True)


@settings(max_examples=300, deadline=None)
@given(st.one_of(HOSTILE, st.text()))
def test_any_text_is_a_video_or_rejected(text: str) -> None:
    try:
        video_id, url = parse_video(text)
    except RowError as error:
        reason = error.reason
    else:
        assert url.lower().startswith(("http://", "https://"))
        assert url.isprintable()
        assert is_youtube_id(video_id) or (video_id[0] == "u" and len(video_id) == 17)
        assert parse_video(url) == (video_id, url)
        return
    assert reason in ("bad_id", "local_path")


# --- lists


@pytest.mark.parametrize(
    ("cell", "spans"),
    [
        ("[[1, 2], [3.25, 4]]", [(1_000, 2_000), (3_250, 4_000)]),
        ("[5, 6]", [(5_000, 6_000)]),
        ("((7, 8),)", [(7_000, 8_000)]),
        (" [[ '9' , 10 ]] ", [(9_000, 10_000)]),
        ("5, 6", [(5_000, 6_000)]),
        ("[292.3329999997, 302.3329999997]", [(292_333, 302_333)]),
        ("[['0:00:13.280', '0:00:22.680']]", [(13_280, 22_680)]),
        ("['12', '34']", [(12_000, 34_000)]),
        ('["00:00:01.000", "00:00:02.000"]', [(1_000, 2_000)]),
        ('[{"clip_id": "x", "span": ["00:00:01.5", "00:00:02"]}]', [(1_500, 2_000)]),
        ('{"start": 1, "end": 2}', [(1_000, 2_000)]),
        ("[[1, 2, ], ]", [(1_000, 2_000)]),
        ("[[1, 2], [1, 2]]", [(1_000, 2_000)] * 2),
    ],
)
def test_lists_in_text(cell: str, spans: list[tuple[int, int]]) -> None:
    assert of_clips(cell).spans == [(ID, *span) for span in spans]


@pytest.mark.parametrize(
    "cell",
    [
        [[1, 2], [3, 4]],
        ((1, 2), (3, 4)),
        np.array([[1, 2], [3, 4]]),
        [np.array([1.0, 2.0]), np.array([3.0, 4.0])],
        np.array([[1, 2], [3, 4]], dtype=np.float32),
        [[np.float32(1), np.int8(2)], ["3", "4.0"]],
        [{"start": 1, "end": 2}, {"span": (3, 4)}],
    ],
)
def test_pairs_of_lists(cell: Any) -> None:
    found = [(milliseconds(start), milliseconds(end)) for start, end in pairs_of(cell)]
    assert found == [(1_000, 2_000), (3_000, 4_000)]


@pytest.mark.parametrize(
    "cell",
    [
        *("", "[]", "[[]]", "[[1]]", "[[1, 2, 3]]", "[1]", "[1, 2, 3]", "[[1, 2], 3]", "12"),
        *("'12'", "{1, 2}", "{[1]}", "None", "null", "open('x')", "[[1, 2]", "\x00"),
        *(
            "[1, 2]]",
            "[[01, 2]]",
            "[" * 600 + "]" * 600,
            "[[1, 2], [3]]",
            "[[1, 2], None]",
            "true",
            "[[[1, 2]]]",
        ),
    ],
)
def test_what_is_no_list_of_spans(cell: Any) -> None:
    found = of_clips(cell, "[[1, 2]]")
    assert found.spans == [(ID, 1_000, 2_000)]
    assert found.why == [(1, "bad_clips")]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("[[1, None]]", "not_a_number"),
        ("[[1, [2]]]", "not_a_number"),
        ("{1: 2, 3: 4}", "not_a_number"),
        ("[{}]", "not_a_number"),
        ("[[nan, 1]]", "bad_clips"),
        ('[["nan", 1]]', "not_a_number"),
        ("[[0, 1j]]", "not_a_number"),
        ("[[0, 1e999]]", "not_a_number"),
        (f"[[0, 1{'0' * 400}]]", "not_a_number"),
        (f"[[0, 0x{'f' * 9000}]]", "not_a_number"),
        ("[[0, 1e308]]", "not_a_number"),
        ("[[true, 2]]", "not_a_number"),
        ("[[2, 1]]", "start_after_end"),
        ("[[1, 1]]", "start_after_end"),
        ("[[-1, 1]]", "negative"),
        ("[[0, 1e9]]", "too_late"),
        ("[[0, 999999.9999]]", "too_late"),
    ],
)
def test_lists_of_what_is_no_span(cell: str, reason: str) -> None:
    found = of_clips(cell, "[[1, 2]]")
    assert found.spans == [(ID, 1_000, 2_000)]
    assert found.why == [(1, reason)]


def test_a_bad_pair_is_rejected_alone() -> None:
    found = of_clips("[[1, 2], [4, 3], [5, 6], ['x', 7]]", "[[7, 8], [9, 10]]", "[[1, 2], [3]]")
    assert [start for _, start, _ in found.spans] == [1_000, 5_000, 7_000, 9_000]
    assert found.clips["row"].to_pylist() == [1, 1, 2, 2]
    assert found.why == [(1, "start_after_end"), (1, "not_a_number"), (3, "bad_clips")]
    values = found.rejected["value"].to_pylist()
    assert values[:2] == ["clip of 4 s to 3 s", "clip of ? to 7 s"]
    assert values[2] == f"{ID}, [[1, 2], [3]]"


@pytest.mark.parametrize(
    "text",
    [
        *("[" * 10**5, "-" * 10**5 + "1", "1+" * 10**4 + "1", "[1,2]," * 10**4),
        *("{" * 10**5, "(" * 10**5, "'" * 10**5, "\\" * 10**5, "[1," * 10**5, " " * 10**6),
    ],
    ids=lambda text: text[:6],
)
def test_a_monstrous_list_neither_crashes_nor_hangs(text: str) -> None:
    begin = time.monotonic()
    found = of_clips(text)
    assert time.monotonic() - begin < 10
    assert found.clips.num_rows + found.rejected.num_rows > 0


@settings(max_examples=200, deadline=None)
@given(HOSTILE)
def test_any_text_is_a_list_of_spans_or_rejected(text: str) -> None:
    found = of_clips(text)
    assert found.clips.num_rows or found.rejected.num_rows


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**5)), min_size=1, max_size=8))
def test_written_lists_come_back(pairs: list[tuple[int, int]]) -> None:
    wanted = [(ID, start, start + length) for start, length in pairs]
    seconds = [[start / 1000, end / 1000] for _, start, end in wanted]
    assert of_clips(str(seconds), repr(tuple(map(tuple, seconds)))).spans == wanted * 2
    lists = {"video": [ID], "clips": pa.array([seconds], PAIRS)}
    assert cleaned(lists, Columns("url", "clips")).spans == wanted


# --- columns and rows say the same

VIDEOS = st.one_of(
    HOSTILE,
    st.sampled_from([ID, "-_-_-_-_-_-", "12345678901", f" {ID}\t", "/a/b.mp4", *NO_VIDEOS]),
    st.tuples(
        st.sampled_from(["", " ", "http://", "https://", "HTTPS://", "//", "https://www."]),
        st.sampled_from(
            ["youtube.com/watch?v=", "www.youtube.com/watch?v=", "youtu.be/", "x.org/"]
        ),
        st.sampled_from([ID, "-1234567890", ID[1:], ID + "l", "äbcdefghijk"]),
        st.sampled_from(["", "\n", "&t=1", "?x", "\x00", "\u2003", "/"]),
    ).map("".join),
)
NUMBERS = st.one_of(
    st.floats(),
    st.floats(0, 1e6),
    st.integers(-(10**6), 10**12),
    st.integers(0, 2_000_000_000).map(lambda x: x / 2000),
)
TIMES = st.one_of(
    HOSTILE,
    NUMBERS.map(str),
    st.sampled_from(["0.0005", "0.0015", " 1", "1.", ".5", "+1", "-0", "000000001", "1234567890"]),
    st.integers(0, 10**12).map(lambda x: f"{x / 1e6:.6f}"),
    st.sampled_from(["0:00:13.280", "12:34.5", "1:02", "00:00:00.0005", "\u20031\u2003", "٣"]),
)
SETTINGS = settings(max_examples=150, deadline=None)


def by_rows(
    videos: Sequence[Any],
    pairs: Sequence[Any],
    unit: str = "s",
    *,
    allow_local: bool = False,
) -> tuple[list[tuple[Any, ...]], list[tuple[int, str]]]:
    """What the functions for one row say of all: clips with their rows, and reasons."""
    clips: list[tuple[Any, ...]] = []
    rejected: list[tuple[int, str]] = []
    for row, (video, cell) in enumerate(zip(videos, pairs, strict=True), 1):
        try:
            video_id, url = parse_video(video, allow_local=allow_local)
            spans = list(pairs_of(cell))
        except RowError as error:
            rejected.append((row, error.reason))
            continue
        for start, end in spans:
            try:
                span = check_span(milliseconds(start, unit), milliseconds(end, unit))
            except SpanError as error:
                rejected.append((row, error.reason))
            else:
                clips.append((row, video_id, None if is_youtube_id(video_id) else url, *span))
    return clips, rejected


def by_columns(found: Read) -> tuple[list[tuple[Any, ...]], list[tuple[int, str]]]:
    names = ("row", "video_id", "url", "start_ms", "end_ms")
    columns = (found.clips[name].to_pylist() for name in names)
    return list(zip(*columns, strict=True)), found.why


ROWS = st.lists(st.tuples(st.one_of(st.none(), VIDEOS), TIMES, TIMES), min_size=1, max_size=12)


@SETTINGS
@given(ROWS, st.sampled_from(["s", "ms", "us"]), st.booleans())
def test_columns_of_text(rows: list[tuple[Any, str, str]], unit: str, local: bool) -> None:
    videos, starts, ends = zip(*rows, strict=True)
    cells = {"video": videos, "start": starts, "end": ends}
    columns = Columns("v", start="s", end="e", unit=unit)
    found = cleaned(cells, columns, allow_local=local)
    pairs = [[pair] for pair in zip(starts, ends, strict=True)]
    assert by_columns(found) == by_rows(videos, pairs, unit, allow_local=local)


@SETTINGS
@given(
    st.lists(st.tuples(st.one_of(st.none(), NUMBERS), NUMBERS), min_size=1, max_size=12),
    st.sampled_from(["s", "ms", "us"]),
    st.sampled_from([pa.float64(), pa.float32(), pa.int64(), pa.uint64(), pa.int32()]),
)
def test_columns_of_numbers(rows: list[tuple[Any, Any]], unit: str, kind: pa.DataType) -> None:
    if not pa.types.is_floating(kind):
        low, high = (0, 2**64 - 1) if kind == pa.uint64() else (-(2**63), 2**63 - 1)
        low, high = (-(2**31), 2**31 - 1) if kind == pa.int32() else (low, high)
        rows = [
            tuple(
                None if x is None or math.isnan(x) else int(min(max(x, low), high // 2))
                for x in row
            )
            for row in rows
        ]
    starts, ends = (pa.array(column).cast(kind, safe=False) for column in zip(*rows, strict=True))
    found = cleaned(
        {"video": [ID] * len(rows), "start": starts, "end": ends},
        Columns("v", start="s", end="e", unit=unit),
    )
    pairs = [[pair] for pair in zip(starts.to_pylist(), ends.to_pylist(), strict=True)]
    assert by_columns(found) == by_rows([ID] * len(rows), pairs, unit)


LITERALS = st.sampled_from(["0", "00", "01", "1", "2.5", "10.0", "1.", "1e1", "999999999.9"])
CELLS = st.one_of(
    HOSTILE,
    st.tuples(
        *(st.sampled_from(["[[", "[", " [[", "(["]), LITERALS, st.sampled_from([",", ", ", ",  "])),
        *(LITERALS, st.sampled_from(["]]", "]", "]] ", "])", "], [3, 4]]"])),
    ).map("".join),
    st.lists(st.tuples(NUMBERS, NUMBERS), max_size=3).map(lambda pairs: str([*map(list, pairs)])),
    st.tuples(NUMBERS, NUMBERS).map(str),
    st.tuples(TIMES, TIMES).map(lambda pair: f"[{pair[0]}, {pair[1]}]"),
    st.tuples(TIMES, TIMES).map(lambda pair: f"[[{pair[0]},{pair[1]}]]\n"),
    st.tuples(TIMES, TIMES).map(lambda pair: str([list(pair)])),
)


@SETTINGS
@given(st.lists(st.tuples(VIDEOS, CELLS), min_size=1, max_size=10), st.sampled_from(["s", "us"]))
def test_lists_as_text(rows: list[tuple[str, str]], unit: str) -> None:
    videos, cells = zip(*rows, strict=True)
    found = cleaned({"video": videos, "clips": cells}, Columns("v", "clips", unit=unit))
    assert by_columns(found) == by_rows(videos, cells, unit)


def nested(items: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    pair = st.one_of(
        st.none(), st.lists(items, min_size=2, max_size=2), st.lists(items, max_size=3)
    )
    usual = st.lists(st.lists(items, min_size=2, max_size=2), min_size=1, max_size=3)
    return st.lists(st.one_of(st.none(), usual, st.lists(pair, max_size=4)), min_size=1, max_size=8)


@SETTINGS
@given(
    st.one_of(
        nested(st.one_of(st.none(), NUMBERS.map(float))).map(lambda x: pa.array(x, PAIRS)),
        nested(st.one_of(st.none(), st.integers(-5, 10**6))).map(
            lambda x: pa.array(x, pa.large_list(pa.list_(pa.int64())))
        ),
        nested(st.one_of(st.none(), TIMES)).map(
            lambda x: pa.array(x, pa.list_(pa.list_(pa.string())))
        ),
        nested(st.one_of(st.none(), TIMES)).map(
            lambda x: pa.array(x, pa.list_(pa.list_(pa.large_string())))
        ),
    ),
    st.integers(0, 2),
    st.sampled_from(["s", "ms"]),
)
def test_lists_of_arrow(cells: pa.Array, begin: int, unit: str) -> None:
    # A slice has its offsets elsewhere than at 0.
    cells = cells[min(begin, len(cells) - 1) :]
    videos = [ID] * len(cells)
    found = cleaned({"video": videos, "clips": cells}, Columns("v", "clips", unit=unit))
    assert by_columns(found) == by_rows(videos, cells.to_pylist(), unit)


def test_space_around_a_cell_is_what_python_takes_for_it() -> None:
    spaces = [chr(c) for c in range(sys.maxunicode) if chr(c).isspace() or c in (0x200B, 0xFEFF)]
    videos = [f"{space}{ID}{space}" for space in spaces]
    times = [f"{space}1{space}" for space in spaces]
    found = cleaned({"video": videos, "start": times, "end": ["2"] * len(spaces)}, STARTS)
    pairs = [[(start, "2")] for start in times]
    assert by_columns(found) == by_rows(videos, pairs)
    assert found.rejected.num_rows == 2


# --- rejected rows


def test_rejected_rows_tell_where_and_why(tmp_path: Path) -> None:
    rows = ["abcdefghijk,1,2", "what?,1,2", ID + ",5,4", ID + ",3,4", ID + ",x,4", ID + ",-1,4"]
    found = read(written(tmp_path / "t.csv", "\n".join(["videoID,start,end", *rows])))
    assert found.spans == [(ID, 1_000, 2_000), (ID, 3_000, 4_000)]
    assert found.rejected.to_pylist() == [
        {
            "row": 2,
            "reason": "bad_id",
            "detail": "neither a video id (11 characters) nor a link to a video",
            "value": "what?, 1, 2",
        },
        {
            "row": 3,
            "reason": "start_after_end",
            "detail": "the start is not before the end",
            "value": f"{ID}, 5, 4",
        },
        {
            "row": 5,
            "reason": "not_a_number",
            "detail": "a time is not a number of seconds or H:MM:SS",
            "value": f"{ID}, x, 4",
        },
        {
            "row": 6,
            "reason": "negative",
            "detail": "the start is negative",
            "value": f"{ID}, -1, 4",
        },
    ]


def test_a_rejected_value_is_shown_in_part() -> None:
    found = cleaned({"video": ["x" * 10**6, ID], "start": ["1"] * 2, "end": ["2"] * 2}, STARTS)
    assert len(found.rejected["value"][0].as_py()) <= 200


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([ID, "https://youtu.be/-1234567890", "bad"]),
            st.lists(st.tuples(st.integers(-1, 9), st.integers(-1, 9)), max_size=4),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_every_pair_is_used_or_rejected(rows: list[tuple[str, list[tuple[int, int]]]]) -> None:
    videos, pairs = zip(*rows, strict=True)
    found = cleaned({"video": videos, "clips": pa.array(pairs, PAIRS)}, Columns("url", "clips"))
    for number, (video, spans) in enumerate(rows, 1):
        used = found.clips["row"].to_pylist().count(number)
        rejected = [row for row, _ in found.why].count(number)
        assert used + rejected == (max(len(spans), 1) if video != "bad" else 1)


# --- lengths


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 50), st.integers(-1, 60)), min_size=1, max_size=3),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 8),
    st.one_of(st.none(), st.integers(8, 30)),
    st.sampled_from(["all", "first"]),
)
def test_lengths(
    rows: list[list[tuple[int, int]]], least: int, most: int | None, strategy: str
) -> None:
    limits = {
        "min_length_ms": least * 1000,
        "max_length_ms": None if most is None else most * 1000,
        "strategy": strategy,
    }
    pairs = [[[start, start + length] for start, length in row] for row in rows]
    cells = {"video": [ID] * len(rows), "clips": pa.array(pairs, PAIRS)}
    plain = cleaned(cells, Columns("url", "clips"))
    found = cleaned(cells, Columns("url", "clips"), limits=limits)
    expected, short = [], 0
    for row, start, end in zip(
        *(plain.clips[name].to_pylist() for name in ("row", "start_ms", "end_ms")), strict=True
    ):
        pieces = list(split_span(start, end, **limits))
        short += not pieces
        expected += [(row, *piece) for piece in pieces]
    assert [(row, start, end) for row, _, _, start, end in by_columns(found)[0]] == expected
    reasons = [reason for _, reason in found.why]
    assert reasons.count("too_short") == short
    assert len(reasons) == short + len(plain.why)


def test_what_is_too_short_says_so() -> None:
    limits = {"min_length_ms": 2000, "max_length_ms": 5000, "strategy": "all"}
    cells = {"video": [ID, ID], "start": ["1", "10"], "end": ["2.5", "21"]}
    found = cleaned(cells, STARTS, limits=limits)
    assert found.spans == [(ID, 10_000, 15_000), (ID, 15_000, 20_000)]
    (short,) = found.rejected.to_pylist()
    assert short["row"] == 1
    assert short["detail"] == "shorter than 2 s"
    assert short["value"] == "clip of 1 s to 2.5 s"


def test_whole_videos_have_no_length() -> None:
    limits = {"min_length_ms": 2000, "max_length_ms": 5000, "strategy": "all"}
    found = cleaned({"video": [ID, "x"]}, Columns("url"), limits=limits)
    assert found.spans == [(ID, WHOLE, WHOLE)]
    assert found.why == [(2, "bad_id")]


def test_clips_of_a_fixed_length() -> None:
    columns = Columns("url", start="start", length=10)
    found = cleaned({"video": [ID] * 4, "start": ["1", "0:30", "x", "-1"]}, columns)
    assert found.spans == [(ID, 1_000, 11_000), (ID, 30_000, 40_000)]
    assert found.why == [(3, "not_a_number"), (4, "negative")]


# --- captions

LISTED = Columns("url", "clips", caption="c", captions_listed=True)
TWO = "[[1, 2], [3, 4]]"


def test_all_clips_of_a_row_have_its_caption() -> None:
    cells = {"video": [ID] * 2, "clips": [TWO, "[5, 6]"], "caption": ["a", "b"]}
    assert cleaned(cells, Columns("url", "clips", caption="c")).captions == ["a", "a", "b"]


@pytest.mark.parametrize(
    ("cell", "captions"),
    [
        ("['a', \"it's\"]", ["a", "it's"]),
        ('["a", "b"]', ["a", "b"]),
        ("['a\\'b', 'c\\d\\\\e\\n']", ["a'b", "c\\d\\e\n"]),
        ("['\\ud83c', '\\x41\\u00e4']", ["?", "Aä"]),
        ("['one for all']", ["one for all"] * 2),
        ("('a', 'b')", ["a", "b"]),
        ("[1, 2.5]", ["1", "2.5"]),
        ("[None, 'b']", [None, "b"]),
        ('[null, "b"]', [None, "b"]),
        (f"[0x{'f' * 9000}, 'b']", [None, "b"]),
        ("[['a'], 'b']", ["['a']", "b"]),
        ("no list", ["no list"] * 2),
        ("12", ["12"] * 2),
        ("", [""] * 2),
        ("[]", [None] * 2),
        (None, [None] * 2),
    ],
)
def test_lists_of_captions(cell: str | None, captions: list[str | None]) -> None:
    found = cleaned({"video": [ID], "clips": [TWO], "captions": [cell]}, LISTED)
    assert found.captions == captions
    assert found.why == []


@pytest.mark.parametrize(
    ("cell", "detail"),
    [
        ("['a', 'b', 'c']", "3 captions for 2 clips"),
        ("['a', 'b'", "the list of captions can't be read"),
        ("['a', b]", "the list of captions can't be read"),
        (" [Music]", "the list of captions can't be read"),
        ("[" * 5000 + "]" * 5000, "the list of captions can't be read"),
    ],
)
def test_lists_of_captions_that_do_not_fit(cell: str, detail: str) -> None:
    cells = {"video": [ID] * 2, "clips": [TWO, "[5, 6]"], "captions": [cell, "['x']"]}
    found = cleaned(cells, LISTED)
    assert found.captions == ["x"]
    assert found.why == [(1, "bad_captions")]
    assert found.rejected["detail"].to_pylist() == [detail]


def test_captions_stay_with_their_clips_where_one_is_rejected() -> None:
    cells = {
        "video": [ID],
        "clips": ["[[1, 2], [4, 3], [5, 30]]"],
        "captions": ["['a', 'b', 'c']"],
    }
    limits = {"min_length_ms": 0, "max_length_ms": 10_000, "strategy": "all"}
    found = cleaned(cells, LISTED, limits=limits)
    assert found.captions == ["a", "c", "c", "c"]
    assert found.why == [(1, "start_after_end")]


def test_several_captions_of_one_clip() -> None:
    columns = Columns("url", start="start", end="end", caption="c")
    cells = {
        "video": [ID] * 4,
        "start": ["1", "3", "9", "5"],
        "end": ["2", "4", "8", "6"],
        "caption": [None, "plain", None, None],
        "captions": ['["a", "b"]', None, '["c", "d"]', "[]"],
    }
    found = cleaned(cells, columns)
    assert list(zip(found.clips["row"].to_pylist(), found.captions, strict=True)) == [
        (1, "a"),
        (1, "b"),
        (2, "plain"),
        (4, None),
    ]
    # The clip is rejected once.
    assert found.why == [(3, "start_after_end")]


@settings(max_examples=150, deadline=None)
@given(st.lists(HOSTILE, min_size=1, max_size=5))
def test_any_text_is_a_caption_or_rejected(texts: list[str]) -> None:
    cells = {"video": [ID] * len(texts), "clips": [TWO] * len(texts), "captions": texts}
    found = cleaned(cells, LISTED)
    used, rejected = set(found.clips["row"].to_pylist()), {row for row, _ in found.why}
    assert used | rejected == set(range(1, len(texts) + 1))
    assert not used & rejected
    # And lists of them come back, however Python or JSON writes them.
    count = len(texts)
    pairs = str([[i, i + 1] for i in range(count)])
    written = {"video": [ID], "clips": [pairs], "captions": [repr(texts)]}
    assert cleaned(written, LISTED).captions == texts


def test_a_large_piece_takes_no_time() -> None:
    count = 100_000
    ids = pa.array([f"{number:011d}" for number in range(count)])
    begin = time.monotonic()
    found = cleaned(
        {
            "video": ids,
            "start": pa.array(np.arange(count)),
            "end": pa.array(np.arange(count) + 9.5),
        },
        STARTS,
    )
    assert found.clips.num_rows == count - (count - 1) // 10**6
    assert time.monotonic() - begin < 2
