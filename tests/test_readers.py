"""Files of a table: every format, whatever they hold, in pieces of any size."""

from __future__ import annotations

import contextlib
import csv
import functools
import gzip
import http.server
import io
import json
import re
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clip_tables import HOSTILE, ID, parquet, raw_rows, read, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acavdl import readers
from acavdl.errors import AcavdlError, EmptyTableError, StorageError, UsageError
from acavdl.readers import Columns, find_files, find_pieces, merged_kinds, read_head

CSV = f"videoID,start,end\n{ID},1,2\n"
ONE = [(ID, 1_000, 2_000)]
#: A test with hypothesis has one folder for all its examples, which overwrite their file.
SAME_FOLDER = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
#: What a text file can hold: no halves of surrogate pairs.
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)


def told(source: Path | str, **options: Any) -> str:
    """Return the one line that a table is refused with."""
    with pytest.raises(AcavdlError) as raised:
        read(source, **options)
    text = str(raised.value)
    assert "\n" not in text
    assert "\r" not in text
    assert len(text) < 900
    return text


# --- places


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


class _Ranges(_Quiet):
    """Serves parts of files, as all that publish tables do."""

    def do_GET(self) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        path = Path(self.translate_path(self.path))
        if found is None or not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()
        begin, end = int(found[1]), min(int(found[2] or len(data)), len(data) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{end}/{len(data)}")
        self.send_header("Content-Length", str(end - begin + 1))
        self.end_headers()
        self.wfile.write(data[begin : end + 1])


@contextlib.contextmanager
def served(folder: Path, handler: type[_Quiet] = _Ranges) -> Iterator[str]:
    """Serve a folder on this machine; return its URL."""
    serve = functools.partial(handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_folder_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name, start in (("b.csv", 2), ("a.csv", 1), ("deep/c.CSV", 3)):
        written(tmp_path / name, f"videoID,start,end\n{ID},{start},9\n")
    for name in ("_SUCCESS", ".hidden.csv", "_old.csv", "readme.md", "deep/.x.csv"):
        written(tmp_path / name, "nonsense")
    for folder in (str(tmp_path), f"{tmp_path}/", f"file://{tmp_path}"):
        found = read(folder)
        assert [start for _, start, _ in found.spans] == [1_000, 2_000, 3_000]
        assert [piece.file for piece in found.pieces] == [0, 1, 2]


def test_a_pattern(tmp_path: Path) -> None:
    for name, start in (("a-2.csv", 2), ("a-1.csv", 1), ("b.csv", 3)):
        written(tmp_path / name, f"videoID,start,end\n{ID},{start},9\n")
    assert [start for _, start, _ in read(f"{tmp_path}/a-*.csv").spans] == [1_000, 2_000]
    assert "no file is like" in told(f"{tmp_path}/c*.csv")
    # A file may be named like a pattern.
    odd = written(tmp_path / "a[1].csv", CSV)
    assert read(odd).spans == ONE


def test_files_that_differ_in_order_of_columns_only(tmp_path: Path) -> None:
    written(tmp_path / "a.csv", CSV)
    written(tmp_path / "b.csv", f"end,more,start,videoID\n2,x,1,{ID}\n")
    assert read(tmp_path).spans == ONE * 2
    written(tmp_path / "c.csv", f"videoID,start,stop\n{ID},1,2\n")
    assert re.search(r"c\.csv has no column 'end'; it has: videoID, start, stop", told(tmp_path))


def test_empty_files_beside_others(tmp_path: Path) -> None:
    written(tmp_path / "a.csv", "")
    written(tmp_path / "b.csv", CSV)
    written(tmp_path / "c.csv", "videoID,start,end\n")
    found = read(tmp_path)
    assert found.spans == ONE
    assert [piece.file for piece in found.pieces] == [1]


def test_formats_in_one_folder(tmp_path: Path) -> None:
    written(tmp_path / "a.csv", CSV)
    written(tmp_path / "b.jsonl", "{}\n")
    assert "csv and jsonl: choose by --input-format" in told(tmp_path)
    assert read(tmp_path, input_format="csv").spans == ONE


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("t", "the name tells no format"),
        ("t.xlsx", "the name tells no format"),
        ("missing.csv", "is not a file, a folder or a pattern"),
        ("empty", "has no file that ends in .parquet, .csv"),
    ],
)
def test_what_is_no_table(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    for present in ("t", "t.xlsx"):
        written(tmp_path / present, CSV)
    text = told(tmp_path / name)
    assert message in text
    assert str(tmp_path / name) in text


def test_the_format_can_be_named(tmp_path: Path) -> None:
    path = written(tmp_path / "table", CSV)
    assert read(path, input_format="csv").spans == ONE
    packed = written(tmp_path / "packed", gzip.compress(CSV.replace(",", "\t").encode()))
    assert read(packed, input_format="tsv.gz").spans == ONE
    assert "no input format 'xlsx'; there are: parquet, csv, tsv" in told(path, input_format="xlsx")


def test_the_same_table_under_another_name(tmp_path: Path) -> None:
    one, two = written(tmp_path / "a.csv", CSV), written(tmp_path / "b.csv", CSV)
    assert find_files(str(one), None).digest() == find_files(str(two), None).digest()
    both = find_files(str(tmp_path), None).digest()
    written(two, CSV + "\n")
    assert find_files(str(tmp_path), None).digest() != both


@pytest.fixture
def memory() -> Iterator[Any]:
    """The file system of fsspec that lies in memory, empty."""
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.rm("/", recursive=True)


def test_memory(tmp_path: Path, memory: Any) -> None:
    memory.pipe({"/x/a.csv": CSV.encode(), "/x/b.csv.gz": gzip.compress(CSV.encode())})
    memory.put(
        str(parquet(tmp_path / "t.parquet", {"id": [ID], "start": [1], "end": [2]})), "/t.parquet"
    )
    assert read("memory://x/a.csv").spans == ONE
    assert read("memory://x").spans == ONE * 2
    assert read("memory://x/*.gz").spans == ONE
    assert read("memory://t.parquet").spans == ONE
    assert "is not a file" in told("memory://nothing.csv")


@pytest.mark.parametrize("handler", [_Ranges, _Quiet], ids=["ranges", "no ranges"])
def test_http(tmp_path: Path, no_variables: None, handler: type[_Quiet]) -> None:
    (tmp_path / "x").mkdir()
    written(tmp_path / "x" / "a.csv", CSV)
    written(tmp_path / "x" / "b.csv", CSV)
    written(tmp_path / "t.tsv.gz", gzip.compress(CSV.replace(",", "\t").encode()))
    written(tmp_path / "t.jsonl", f'{{"videoID": "{ID}", "start": 1, "end": 2}}\n')
    columns = {"videoID": [ID] * 9, "start": [1] * 9, "end": [2] * 9}
    parquet(tmp_path / "t.parquet", columns)
    with served(tmp_path, handler) as url:
        assert read(f"{url}/x/a.csv").spans == ONE
        assert read(f"{url}/x/a.csv?download=true").spans == ONE
        assert read(f"{url}/x/").spans == ONE * 2
        assert read(f"{url}/x/*.csv").spans == ONE * 2
        assert read(f"{url}/t.tsv.gz").spans == ONE
        assert read(f"{url}/t.jsonl").spans == ONE
        assert read(f"{url}/t.parquet", piece_rows=2).spans == ONE * 9
        assert f"{url}/missing.csv is not a file" in told(f"{url}/missing.csv")
    assert "cannot read http" in told(f"{url}/x/a.csv")


def test_a_large_file_over_http(tmp_path: Path, no_variables: None) -> None:
    rows = 60_000
    text = "videoID,start,end,text\n" + f"{ID},1,2,{'x' * 90}\n" * rows
    written(tmp_path / "t.csv", text)
    assert len(text) > 6e6  # more than fsspec asks for at once
    with served(tmp_path) as url:
        assert read(f"{url}/t.csv", piece_rows=25_000).clips.num_rows == rows
    with served(tmp_path, _Quiet) as url:
        assert "range" in told(f"{url}/t.csv")


class _Failing(_Ranges):
    def do_GET(self) -> None:
        if self.headers.get("Range"):
            self.send_error(503)
        else:
            super().do_GET()


class _Cutting(_Ranges):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"videoID,start")
        self.close_connection = True


@pytest.mark.parametrize("handler", [_Failing, _Cutting])
def test_a_server_that_fails(tmp_path: Path, no_variables: None, handler: type[_Quiet]) -> None:
    written(tmp_path / "t.csv", CSV)
    with served(tmp_path, handler) as url:
        assert f"cannot read {url}/t.csv: " in told(f"{url}/t.csv")


def test_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("x/a.csv", CSV)
        archive.writestr("x/b.csv", CSV)
    assert read(f"zip://x/a.csv::file://{tmp_path}/t.zip").spans == ONE
    assert read(f"zip://x/*.csv::file://{tmp_path}/t.zip").spans == ONE * 2


# --- csv


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbfvideoID,start,end\nabcdefghijk,1,2\n",
        b'\xef\xbb\xbf"videoID",start,end\nabcdefghijk,1,2\n',
        b"videoID,start,end\r\nabcdefghijk,1,2\r\n",
        b"videoID,start,end\rabcdefghijk,1,2\r",
        b"videoID,start,end\r\nabcdefghijk,1,2\n\r\n\n",
        b"videoID,start,end\nabcdefghijk,1,2",
        b'videoID,start,end\nabcdefghijk,1,"2"',
        b'"videoID","start","end"\n"abcdefghijk","1","2"\n',
        b"\n\nvideoID,start,end\n\n\nabcdefghijk,1,2\n\n\n",
        b"end,\xc3\xa9,start,videoID\n2,\xe6\x97\xa5,1,abcdefghijk\n",
        b"videoID,start,end\nabcdefghijk, 1 , 2 \n",
        b"videoID ,start ,end \nabcdefghijk,1,2\n",
    ],
    ids=[
        *("BOM", "BOM and quotes", "CRLF", "CR", "mixed", "no last newline", "quote at the end"),
        *("quotes", "blank lines", "other order", "spaces", "spaces in names"),
    ],
)
def test_shapes_of_csv(tmp_path: Path, data: bytes) -> None:
    found = read(written(tmp_path / "t.csv", data))
    assert found.spans == ONE
    assert found.why == []


def test_captions_are_kept_word_for_word(tmp_path: Path) -> None:
    captions = [
        *('a "b", c', "two\nlines\r\nand more", "ünïcode 🎬 日本", "", "NA", " padded ", "007"),
        *("a\x00b", "#tag", "a\u2028b\x85c\x0bd", '"', "'", "\\", "line\n" * 200_000, "nan"),
    ]
    path = tmp_path / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("videoID", "start", "end", "text"))
        writer.writerows((ID, i, i + 1, text) for i, text in enumerate(captions))
    found = read(path, caption_col="text")
    assert found.captions == captions
    assert found.why == []


def test_rows_with_too_few_or_too_many_fields(tmp_path: Path) -> None:
    rows = [f"{ID},1", f"{ID},1,2", ID, f"{ID},1,2,3", f'{ID},1,"2,3"']
    path = written(tmp_path / "t.csv", "\n".join(["videoID,start,end", *rows]))
    found = read(path)
    assert found.spans == ONE
    reasons = [(1, "malformed"), (3, "malformed"), (4, "malformed"), (5, "not_a_number")]
    assert found.why == reasons
    assert found.rejected["detail"][0].as_py() == "it has 2 fields, not 3"


def test_quotes_as_people_write_them(tmp_path: Path) -> None:
    path = written(
        tmp_path / "t.csv",
        f'videoID,start,end,c\n{ID},1,2,say "hi" now\n{ID},1,2,"a" b\n{ID},3,4,x\n',
    )
    found = read(path, caption_col="c")
    assert found.captions == ['say "hi" now', "a b", "x"]


def test_nul_and_bytes_that_are_no_text_spoil_their_row_alone(tmp_path: Path) -> None:
    path = written(
        tmp_path / "t.csv",
        f"videoID,start,end\nabc\0defghij,1,2\n{ID},1\0,2\n{ID},1,2\n".encode()
        + b"abc\xffdefghij,1,2\n",
    )
    found = read(path)
    assert found.spans == ONE
    assert found.why == [(1, "bad_id"), (2, "not_a_number"), (4, "bad_id")]


@pytest.mark.parametrize("rows", [1, 3, 400])
def test_a_quote_that_is_not_closed(tmp_path: Path, rows: int) -> None:
    good = f"{ID},1,2\n"
    for end in ("", "\n", '\n"', ",", '""'):
        path = written(
            tmp_path / "t.csv", f'videoID,start,end\n{good * rows}{ID},1,"2{end}{good * 2}'
        )
        if end == '\n"':
            # Closed, in another row: that row has too many fields.
            assert read(path).why[0][0] == rows + 1
            continue
        assert "a quote is not closed by the end of the file" in told(path)
        assert f"begins in line {rows + 2};" in told(path)
        assert "t.csv" in told(path)


def test_a_field_without_end(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", f'{CSV}{ID},1,"2\n' + f"{ID},1,2\n" * 100_000)
    assert "field larger than field limit" in told(path)
    assert "begins in line 3 " in told(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"# only a comment\n", "is empty"),
        ("videoID,start,end\nabcdefghijk,1,2\n".encode("utf-16"), "expected is UTF-8"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9, "Expected: videoID"),
        (b"x" * 3_000_000, "t.csv"),
        (b'"two\nlines",b\n1,2\n', "Expected: videoID"),
        (b'"never closed,b\n1,2\n', "is not closed"),
    ],
    ids=[
        *("nothing", "blank", "BOM", "comment", "UTF-16", "PNG", "one field", "names of two lines"),
        "names not closed",
    ],
)
def test_csv_that_cannot_be_read(tmp_path: Path, data: bytes, message: str) -> None:
    text = told(written(tmp_path / "t.csv", data))
    assert message in text
    assert str(tmp_path / "t.csv") in text


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl", "txt", "parquet"])
def test_no_file_is_a_traceback(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0)
    for size in (1, 2, 3, 10, 1000, 70_000):
        data = noise.integers(0, 256, size, dtype=np.uint8).tobytes()
        for content in (data, b"\x1f\x8b" + data, gzip.compress(data), b"\0" * size):
            path = written(tmp_path / f"t.{kind}", content)
            with contextlib.suppress(AcavdlError):
                assert read(path).clips.num_rows == 0


def test_a_gzip_that_is_half_written(tmp_path: Path) -> None:
    text = CSV + "".join(f"{number:011d},1,2\n" for number in range(20_000))
    data = gzip.compress(text.encode())
    for name in ("t.csv.gz", "t.csv"):
        for size in (9, 100, len(data) // 2, len(data) - 1):
            assert f"cannot read {tmp_path / name}: " in told(written(tmp_path / name, data[:size]))
        broken = data[: len(data) // 2] + b"\xff" * 99 + data[len(data) // 2 + 99 :]
        assert f"cannot read {tmp_path / name}: " in told(written(tmp_path / name, broken))


def test_names_of_gzip_are_not_trusted(tmp_path: Path) -> None:
    assert read(written(tmp_path / "t.csv.gz", CSV)).spans == ONE
    assert read(written(tmp_path / "t.csv", gzip.compress(CSV.encode()))).spans == ONE


@pytest.mark.parametrize(
    ("header", "options", "parts"),
    [
        ("a,b,c", {}, ["a, b, c", "videoID", "start", "end", "clips", "--url-col"]),
        ("videoID,start,stop", {}, ["videoID, start, stop", "end"]),
        ("start,end,clips", {}, ["start, end, clips", "videoID"]),
        ("url,text", {}, ["url, text", "clips"]),
        ("url,clips", {"caption_col": "text"}, ["'text'", "--caption-col", "url, clips"]),
        ("url,clips", {"url_col": "link"}, ["'link'", "--url-col", "url, clips"]),
        ("url,clips", {"clip_col": "spans"}, ["'spans'", "--clip-col", "url, clips"]),
        ("url,clips", {"start_col": "s"}, ["'s'", "--start-col", "url, clips"]),
        (
            "url,clips",
            {"save_additional_columns": ("a",)},
            ["'a'", "--save-additional-columns", "url, clips"],
        ),
        ("videoID,start,end,start_time", {"url_col": "videoID"}, ["start and start_time"]),
        ("videoID,start,start,end", {}, ["2 columns 'start'", "videoID, start, start, end"]),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_missing_columns_are_named_with_what_is_there(
    tmp_path: Path, kind: str, header: str, options: dict[str, Any], parts: list[str]
) -> None:
    path = tmp_path / f"t.{kind}"
    names = header.split(",")
    if kind == "csv":
        written(path, f"{header}\n{','.join('1' for _ in names)}\n")
    else:
        pq.write_table(pa.table([pa.array(["x"])] * len(names), names=names), path)
    text = told(path, **options)
    for part in (*parts, str(path)):
        assert part in text


def test_very_many_columns_are_named_in_part(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", ",".join(f"column{i}" for i in range(5000)) + "\n")
    assert "column0, column1" in told(path)


def test_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    assert read(written(tmp_path / "t.csv", "videoID,start,end\n")).pieces == []
    empty = {"videoID": pa.array([], pa.string()), "clips": pa.array([], pa.string())}
    assert read(parquet(tmp_path / "t.parquet", empty)).clips.num_rows == 0


@SAME_FOLDER
@given(st.lists(st.tuples(TEXT, TEXT), max_size=8), st.sampled_from([1, 2, 3, 1000]))
def test_what_python_writes_as_csv(
    tmp_path: Path, rows: list[tuple[str, str]], piece_rows: int
) -> None:
    for kind, mark in (("csv", ","), ("tsv", "\t")):
        path = tmp_path / f"t.{kind}"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter=mark)
            writer.writerow(("url", "clips", "x"))
            writer.writerows((*row, "z") for row in rows)
        found = raw_rows(path, piece_rows, save_additional_columns=("x",))
        assert [(row["video"], row["clips"]) for row in found] == rows
        assert [row["row"] for row in found] == list(range(1, len(rows) + 1))
        assert all(json.loads(row["extra"]) == {"x": "z"} for row in found)
        assert all(row["problem"] is None for row in found)


@SAME_FOLDER
@given(
    st.lists(
        # pandas does not quote a lone carriage return.
        st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r"), max_size=20),
        max_size=6,
    )
)
def test_what_pandas_writes_as_csv(tmp_path: Path, texts: list[str]) -> None:
    frame = pd.DataFrame({"url": [ID] * len(texts), "clips": texts})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_csv(tmp_path / "u.csv.gz")
    for name in ("t.csv", "u.csv.gz"):
        found = raw_rows(tmp_path / name) if texts else []
        assert [row["clips"] for row in found] == texts


# --- json


def test_shapes_of_json_lines(tmp_path: Path) -> None:
    lines = [
        f'{{"videoID": "{ID}", "start": 1, "end": 2.0}}',
        "",
        f'{{"end": "2", "start": "0:01", "videoID": "{ID}", "more": [NaN, {{"a": null}}]}}',
        f'{{"videoID": "{ID}", "start": 1, "end": 2, "title": "\\ud83c"}}',
        "{",
        "[1]",
        "null",
        '"x"',
        f'{{"videoID": "{ID}", "start": 1}}',
        '{"videoID": 12345678901, "start": 1, "end": 2}',
        f'{{"videoID": "{ID}", "start": true, "end": 2}}',
        f'{{"videoID": "{ID}", "start": {{}}, "end": [2]}}',
        f'{{"videoID": "{ID}", "start": 1, "end": 2}}',
    ]
    for end in ("\n", "\r\n"):
        data = b"\xef\xbb\xbf" + end.join(lines).encode()
        found = read(written(tmp_path / "t.jsonl", data), save_additional_columns=("title", "more"))
        assert found.spans == [
            *ONE * 3,
            ("12345678901", 1_000, 2_000),
            *ONE,
        ]
        assert found.why == [
            *((row, "malformed") for row in (4, 5, 6, 7)),
            *((row, "not_a_number") for row in (8, 10, 11)),
        ]
        assert found.rejected["value"][0].as_py().startswith("{")
        extra = [json.loads(text) for text in found.clips["extra"].to_pylist()]
        assert extra[1]["more"] == [None, {"a": None}]
        assert extra[2]["title"] == "?"


@pytest.mark.parametrize(
    "content",
    [
        [{"videoID": ID, "start": 1, "end": 2}],
        {"videoID": ID, "start": 1, "end": 2},
        {"videoID": [ID], "start": [1], "end": [2]},
        {"videoID": {"0": ID}, "start": {"0": 1}, "end": {"0": 2}},
    ],
    ids=["records", "one", "columns", "columns of pandas"],
)
def test_shapes_of_json(tmp_path: Path, content: Any) -> None:
    for indent in (None, 2):
        text = json.dumps(content, indent=indent)
        assert read(written(tmp_path / "t.json", f"\ufeff{text}\n")).spans == ONE
    lines = f'{{"videoID": "{ID}", "start": 1, "end": 2}}\n' * 3
    assert read(written(tmp_path / "t.json", lines)).spans == ONE * 3


def test_json_of_pandas(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"videoID": [ID] * 3, "start": [1.0, np.nan, 1.0], "end": 2, "clips": [[1]] * 3}
    )[["videoID", "start", "end"]]
    for options in ({"orient": "records"}, {"orient": "records", "lines": True}, {}):
        frame.to_json(tmp_path / "t.json", **options)
        found = read(tmp_path / "t.json")
        assert found.spans == ONE * 2
        assert found.why == [(2, "not_a_number")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "is empty"),
        ("[]", "is empty"),
        ("{}", "is empty"),
        ("3", "holds no records"),
        ('"x"', "holds no records"),
        ("[1, 2]", "holds no JSON objects; it begins with: 1"),
        ('[{"videoID": "x"}, {"vid', "is no JSON, or not all of it"),
        ('[\n{"videoID": "x"},\n', "is no JSON, or not all of it"),
        ('{"videoID": ["x"', "is no JSON, or not all of it"),
        ("[" * 100_000, "is no JSON, or not all of it"),
        ('[{"a": 1}]', "has the columns: a. Expected: videoID"),
    ],
)
def test_json_that_cannot_be_read(tmp_path: Path, data: str, message: str) -> None:
    text = told(written(tmp_path / "t.json", data))
    assert message in text
    assert str(tmp_path / "t.json") in text


def test_json_lines_that_are_none(tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl", f"https://youtu.be/{ID}\n")
    assert f"holds no JSON objects; it begins with: https://youtu.be/{ID}" in told(path)
    second = written(tmp_path / "u.jsonl", "x\n")
    written(path, f'{{"videoID": "{ID}", "start": 1, "end": 2}}\n')
    assert f"{second} has no column 'videoID'; it has: none" in told(tmp_path)


def test_a_column_that_most_records_lack(tmp_path: Path) -> None:
    lines = [{"videoID": ID, "start": 1, "end": 2}] * 5
    text = "".join(f"{json.dumps(line)}\n" for line in [*lines, {**lines[0], "x": 7}])
    found = read(written(tmp_path / "t.jsonl", text), piece_rows=2, save_additional_columns=("x",))
    assert [json.loads(x)["x"] for x in found.clips["extra"].to_pylist()] == [None] * 5 + [7]
    assert found.kinds == {"x": "int64"}


def test_values_that_no_json_can_hold(tmp_path: Path) -> None:
    deep = "[" * 600 + "]" * 600
    huge = "9" * 400
    values = [deep, huge, "-1e400", "1e300", '"\\udc00"', '{"\\udc00": 1}', "[" * 300 + "]" * 300]
    text = "".join(
        f'{{"videoID": "{ID}", "start": 1, "end": 2, "x": {value}, "y": {value}}}\n'
        for value in values
    )
    path = written(tmp_path / "t.jsonl", text)
    found = read(path, save_additional_columns=("x",), caption_col="y")
    assert found.why == []
    for extra in found.clips["extra"].to_pylist():
        assert "x" in json.loads(extra)
    # And where times are expected.
    assert {why for _, why in read(path, start_col="x").why} <= {"not_a_number", "too_late"}
    assert {why for _, why in read(path, clip_col="y").why} == {"bad_clips", "not_a_number"}


# --- txt


def test_a_link_a_line(tmp_path: Path) -> None:
    data = f"\ufeff{ID}\r\n\n  https://youtu.be/-1234567890 \nhttps://x.org/a,b.mp4\nwhat?\n12345678901"
    found = read(written(tmp_path / "t.txt", data))
    assert [video for video, _, _ in found.spans][:2] == [ID, "-1234567890"]
    assert [video for video, _, _ in found.spans][3] == "12345678901"
    assert found.clips["url"].to_pylist() == [None, None, "https://x.org/a,b.mp4", None]
    assert found.why == [(4, "bad_id")]
    assert "is empty" in told(written(tmp_path / "t.txt", "\n\n"))


# --- parquet


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_parquet_that_is_half_written(tmp_path: Path, size: int) -> None:
    path = parquet(tmp_path / "t.parquet", {"videoID": [ID] * 50, "clips": ["[1, 2]"] * 50})
    path.write_bytes(path.read_bytes()[:size])
    assert f"cannot read {path}: " in told(path)


def test_parquet_with_damaged_data(tmp_path: Path) -> None:
    rows = range(1000)
    columns = {"videoID": [f"{i:011d}" for i in rows], "start": rows, "end": [1e4] * 1000}
    path = parquet(tmp_path / "t.parquet", columns, 1000)
    data = bytearray(path.read_bytes())
    data[4:2000] = b"\xff" * 1996
    path.write_bytes(data)
    for piece_rows in (1, 1000):
        assert f"cannot read {path}: " in told(path, piece_rows=piece_rows)


@pytest.mark.parametrize(
    "videos",
    [
        pa.array([ID, "12345678901"]),
        pa.array([ID, "12345678901"], pa.large_string()),
        pa.array([ID, "12345678901"]).dictionary_encode(),
        pa.array([ID, "12345678901"], pa.large_string()).dictionary_encode(),
        pa.array([ID.encode(), b"12345678901"]),
        pa.array([ID.encode(), b"12345678901"], pa.large_binary()),
        pa.array([ID.encode(), b"12345678901"], pa.binary(11)),
    ],
    ids=[
        *("text", "large text", "dictionary", "large dictionary"),
        *("bytes", "large bytes", "fixed bytes"),
    ],
)
def test_types_of_ids_in_parquet(tmp_path: Path, videos: pa.Array) -> None:
    columns = {"videoID": videos, "start": [1, 1], "end": ["2", "2"], "again": videos}
    path = parquet(tmp_path / "t.parquet", columns, 1)
    found = read(path, piece_rows=1, save_additional_columns=("again",))
    assert found.spans == [(ID, 1_000, 2_000), ("12345678901", 1_000, 2_000)]
    assert found.kinds == {"again": "string"}
    assert json.loads(found.clips["extra"][1].as_py()) == {"again": "12345678901"}


def test_ids_that_were_taken_for_numbers(tmp_path: Path) -> None:
    columns = {"videoID": [12345678901, 7], "start": [1, 1], "end": [2, 2]}
    found = read(parquet(tmp_path / "t.parquet", columns))
    assert found.spans == [("12345678901", 1_000, 2_000)]
    assert found.why == [(2, "bad_id")]


TIMES = [
    pa.array([1, None, -1], pa.int8()),
    pa.array([1, None, 2], pa.uint64()),
    pa.array([1, None, float("nan")], pa.float32()),
    pa.array([1, float("inf"), float("-inf")], pa.float64()),
    pa.array([1, 2**62, 2**63 - 1], pa.int64()),
    pa.array([1, 2**64 - 1, None], pa.uint64()),
    pa.array([1, 1e308, -1e308]),
    pa.array(["1", "x", None]),
    pa.array(["0:01", "", "nan"], pa.large_string()),
    pa.array(["1.0", "1_0", "1e999"]).dictionary_encode(),
    pa.array([b"1", b"\xff", None]),
    pa.array([1, None, None], pa.decimal128(5, 2)),
    pa.array([[1], None, []]),
    pa.array([True, False, None]),
    pa.nulls(3),
]


@pytest.mark.parametrize("times", TIMES, ids=lambda times: str(times.type))
def test_types_of_times_in_parquet(tmp_path: Path, times: pa.Array) -> None:
    path = parquet(tmp_path / "t.parquet", {"videoID": [ID] * 3, "start": times, "end": [2] * 3})
    found = read(path)
    good = not isinstance(times.type, pa.ListType) and str(times.type) not in ("bool", "null")
    assert found.spans == (ONE if good else [])
    assert {row for row, _ in found.why} == ({2, 3} if good else {1, 2, 3})


PAIRS = pa.list_(pa.list_(pa.float64()))


@pytest.mark.parametrize(
    "clips",
    [
        pa.array([[1.0, 2.0]]),
        pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)),
        pa.array([[[1, 2]]], PAIRS),
        pa.array([[[1, 2]]], pa.list_(pa.list_(pa.int64(), 2))),
        pa.array([[[1, 2]]], pa.list_(pa.list_(pa.int64()), 1)),
        pa.array([[[1, 2]]], pa.large_list(pa.large_list(pa.int16()))),
        pa.array([[["1", "0:02"]]]),
        pa.array([[["1", "2"]]], pa.large_list(pa.list_(pa.large_string()))),
        pa.array(["[[1, 2]]"]),
        pa.array(["[1.000, 2.000]"], pa.large_string()),
        pa.array([b"[[1, 2]]"]),
        pa.array(["[[1, 2]]"]).dictionary_encode(),
        pa.array([{"start": 1, "end": 2}]),
        pa.array([[{"start": 1.0, "end": 2.0}]]),
        pa.array([[{"clip_id": "x.0.mp4", "span": ["00:00:01.000", "00:00:02.000"]}]]),
    ],
    ids=lambda clips: str(clips.type),
)
def test_types_of_lists_in_parquet(tmp_path: Path, clips: pa.Array) -> None:
    found = read(parquet(tmp_path / "t.parquet", {"url": [ID], "clips": clips}))
    assert found.spans == ONE


def test_lists_in_parquet(tmp_path: Path) -> None:
    cells = [
        [[1, 2], [3.25, 4]],
        [[5, 6]],
        [],
        None,
        [[7, 8, 9]],
        [None],
        [[None, 1], [1, 2]],
        [[]],
    ]
    clips = pa.array(cells, PAIRS)
    path = parquet(tmp_path / "t.parquet", {"url": [f"youtu.be/{ID}"] * 8, "clips": clips})
    for piece_rows in (1, 3, 100):
        found = read(path, piece_rows=piece_rows)
        starts = [start for _, start, _ in found.spans]
        assert starts == [1_000, 3_250, 5_000, 1_000]
        assert found.why == [
            *((row, "bad_clips") for row in (3, 4, 5, 6)),
            (7, "not_a_number"),
            (8, "bad_clips"),
        ]


def test_captions_of_parquet(tmp_path: Path) -> None:
    columns = {"videoID": [ID] * 3, "start": [1, 2, 3], "end": [9, 9, 9]}
    texts = read(
        parquet(tmp_path / "t.parquet", {**columns, "c": ["x", None, ""]}), caption_col="c"
    )
    assert texts.captions == ["x", None, ""]
    numbers = parquet(tmp_path / "t.parquet", {**columns, "c": [1.5, None, 2]})
    assert read(numbers, caption_col="c").captions == ["1.5", None, "2.0"]
    lists = parquet(tmp_path / "t.parquet", {**columns, "c": [["a", "b"], None, []]})
    assert read(lists, caption_col="c").captions == ["a", "b", None, None]


def test_additional_columns_of_parquet(tmp_path: Path) -> None:
    extra = {
        "text": ["a", None],
        "number": [1, None],
        "fraction": [1.5, float("nan")],
        "truth": [True, None],
        "nothing": pa.nulls(2),
        "kind": pa.array(["a", "b"]).dictionary_encode(),
        "list": [["a"], []],
        "object": [{"a": 1}, None],
        "time": pa.array([0, None], pa.timestamp("us")),
        "bytes": [b"a", b"\xff"],
        "large": pa.array([2**64 - 1, 0], pa.uint64()),
        "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
        "exact": pa.array([1, None], pa.decimal128(5, 2)),
    }
    columns = {"videoID": [ID] * 2, "start": [1, 1], "end": [2, 2], **extra}
    path = parquet(tmp_path / "t.parquet", columns)
    found = read(path, save_additional_columns=tuple(extra))
    # Lists and the like become text.
    assert found.kinds == {
        **dict.fromkeys(("text", "kind", "nothing", "time", "bytes"), "string"),
        **{"number": "int64", "large": "int64", "fraction": "float64", "truth": "bool"},
        **dict.fromkeys(("list", "object", "map", "exact"), "string"),
    }
    first, second = (json.loads(text) for text in found.clips["extra"].to_pylist())
    assert first["time"].startswith("1970-01-01")
    assert first["kind"] == "a"
    assert first["object"] == {"a": 1}
    assert second["bytes"] == "\ufffd"
    assert second["fraction"] is None


def test_row_groups_of_one_row(tmp_path: Path) -> None:
    count = 3000
    columns = {"videoID": [f"{i:011d}" for i in range(count)], "start": [1] * count}
    path = parquet(tmp_path / "t.parquet", {**columns, "end": [2] * count}, 1)
    begin = time.monotonic()
    found = read(path, piece_rows=1000)
    assert time.monotonic() - begin < 20
    assert [piece.rows for piece in found.pieces] == [1000] * 3
    assert [piece.groups for piece in found.pieces] == [(0, 1000), (1000, 2000), (2000, 3000)]
    assert [video for video, _, _ in found.spans] == columns["videoID"]


def test_very_many_row_groups_are_counted_fast() -> None:
    begin = time.monotonic()
    runs = readers._runs([1] * 200_000, [1] * 200_000, 150_000)
    assert runs == [(0, 150_000), (150_000, 200_000)]
    assert time.monotonic() - begin < 5
    assert readers._runs([], [], 10) == []
    assert readers._runs([50, 50, 1, 200, 1], [1] * 5, 100) == [(0, 2), (2, 3), (3, 4), (4, 5)]


def test_large_row_groups_are_spooled(tmp_path: Path) -> None:
    count = 1000
    columns = {
        "videoID": [f"{i:011d}" for i in range(count)],
        "clips": pa.array([[[i, i + 1]] for i in range(count)], PAIRS),
        "x": range(count),
    }
    path = parquet(tmp_path / "t.parquet", columns, 600)
    whole = read(path, save_additional_columns=("x",))
    spooled = read(path, piece_rows=50, save_additional_columns=("x",))
    assert all(piece.groups is not None for piece in whole.pieces)
    assert all(piece.groups is None for piece in spooled.pieces)
    assert [piece.rows for piece in spooled.pieces] == [50] * 20
    assert spooled.clips.equals(whole.clips)
    assert spooled.kinds == whole.kinds == {"x": "int64"}
    assert spooled.clips["row"].to_pylist() == list(range(1, count + 1))


def test_large_rows_make_small_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_PIECE_BYTES", 1000)
    texts = ["x" * 300] * 20
    rows = [{"videoID": ID, "start": 1, "end": 2, "c": text} for text in texts]
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    for name in ("t.csv", "t.jsonl"):
        found = read(tmp_path / name, caption_col="c")
        assert found.captions == texts
        assert max(piece.rows for piece in found.pieces) <= 4


def test_a_spool_that_cannot_be_written(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", CSV)
    table = find_files(str(path), None)
    columns = Columns("videoID", start="start", end="end")
    with pytest.raises(StorageError, match=r"cannot write to .*nowhere"):
        find_pieces(table, columns, tmp_path / "nowhere")


def test_a_spooled_table_outlives_its_file(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", CSV)
    table = find_files(str(path), None)
    columns = Columns("videoID", start="start", end="end")
    (piece,) = find_pieces(table, columns, tmp_path)
    path.unlink()
    assert readers.read_piece(piece, columns)["video"].to_pylist() == [ID]


# --- pieces

CELLS = st.lists(st.tuples(HOSTILE, HOSTILE, st.one_of(st.none(), HOSTILE)), min_size=1, max_size=9)


def equal_in_pieces(path: Path, rows: int, **options: Any) -> list[Any]:
    whole = raw_rows(path, 10**6, **options)
    for piece_rows in (1, 2, 3):
        assert raw_rows(path, piece_rows, **options) == whole
    assert [row["row"] for row in whole] == list(range(1, rows + 1))
    return whole


@SAME_FOLDER
@given(CELLS)
def test_pieces_of_csv(tmp_path: Path, rows: list[tuple[str, str, str | None]]) -> None:
    path = tmp_path / "t.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(("url", "clips", "c", "x"))
        for number, row in enumerate(rows):
            writer.writerow([*row, "1", "more"][: 4 + number % 2])
    whole = equal_in_pieces(path, len(rows), caption_col="c", save_additional_columns=("x",))
    assert [(row["video"], row["clips"]) for row in whole] == [row[:2] for row in rows]
    assert [row["problem"] is None for row in whole] == [i % 2 == 0 for i in range(len(rows))]


@SAME_FOLDER
@given(CELLS, st.booleans())
def test_pieces_of_json(
    tmp_path: Path, rows: list[tuple[str, str, str | None]], as_list: bool
) -> None:
    records = [{"url": u, "clips": [[c, 1]], "c": t, "x": len(u)} for u, c, t in rows]
    text = json.dumps(records) if as_list else "\n".join(json.dumps(r) for r in records)
    path = written(tmp_path / ("t.json" if as_list else "t.jsonl"), text)
    whole = equal_in_pieces(path, len(rows), caption_col="c", save_additional_columns=("x",))
    assert [(row["video"], row["caption"]) for row in whole] == [(u, t) for u, _, t in rows]
    assert [json.loads(row["clips"]) for row in whole] == [[[c, 1]] for _, c, _ in rows]


@SAME_FOLDER
@given(CELLS, st.integers(1, 9))
def test_pieces_of_parquet(
    tmp_path: Path, rows: list[tuple[str, str, str | None]], group: int
) -> None:
    columns = {
        "url": [row[0] for row in rows],
        "clips": [[[row[1], "1"]] for row in rows],
        "c": pa.array([row[2] for row in rows], pa.string()),
        "x": range(len(rows)),
    }
    path = parquet(tmp_path / "t.parquet", columns, group)
    whole = equal_in_pieces(path, len(rows), caption_col="c", save_additional_columns=("x",))
    assert [(row["video"], row["caption"]) for row in whole] == [(r[0], r[2]) for r in rows]
    assert [row["clips"] for row in whole] == columns["clips"]
    assert [json.loads(row["extra"])["x"] for row in whole] == list(range(len(rows)))


def test_kinds_are_those_of_all_pieces(tmp_path: Path) -> None:
    values = [[1, None], [1.5], [None], [True, 1], ["a"], [[1]], [None, "b"]]
    expected = ["int64", "float64", "string", "string", "string", "string", "string"]
    for cells, kind in zip(values, expected, strict=True):
        rows = [{"videoID": ID, "start": 1, "end": 2, "x": cell} for cell in cells]
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        found = read(
            written(tmp_path / "t.jsonl", text), piece_rows=1, save_additional_columns=("x",)
        )
        assert found.kinds == {"x": kind}
    both = [{"x": frozenset({"int64"})}, {"x": frozenset({"float64"})}, {"x": frozenset()}]
    pieces = [readers.Piece(0, "", 0, 1, None, kinds) for kinds in both]
    assert merged_kinds(pieces, Columns("videoID", extra=("x", "y"))) == {
        "x": "float64",
        "y": "string",
    }


def test_the_head_is_that_of_the_first_file_that_has_one(tmp_path: Path) -> None:
    written(tmp_path / "a.csv", "")
    written(tmp_path / "b.csv", CSV)
    assert read_head(find_files(str(tmp_path), None)).names == ("videoID", "start", "end")
    with pytest.raises(EmptyTableError, match="is empty; expected is a table of clips"):
        read_head(find_files(str(tmp_path / "a.csv"), None))


def test_a_table_that_was_changed_meanwhile(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", {"videoID": [ID], "clips": ["[1, 2]"]})
    table = find_files(str(path), None)
    columns = Columns("videoID", "clips")
    (piece,) = find_pieces(table, columns, tmp_path)
    path.write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=f"cannot read {path}: "):
        readers.read_piece(piece, columns)
    path.unlink()
    with pytest.raises(UsageError, match=f"cannot read {path}: No such file"):
        readers.read_piece(piece, columns)


def test_text_is_read_as_it_comes(tmp_path: Path) -> None:
    """A file that is much larger than what is read ahead, packed, with rows over all its edges."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(("videoID", "start", "end", "c"))
    captions = [f'{number}\n"{"x" * (number % 500)}' for number in range(8_000)]
    writer.writerows((ID, 1, 2, caption) for caption in captions)
    path = written(tmp_path / "t.csv.gz", gzip.compress(buffer.getvalue().encode(), 1))
    found = read(path, piece_rows=999, caption_col="c")
    assert found.captions == captions
