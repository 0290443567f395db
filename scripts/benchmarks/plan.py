"""What it costs to plan a large table: wall, CPU and memory for several numbers of partitions.

A synthetic table like ACAV100M's (random ids, 1.67 clips of 10 s each in the mean) is written once;
each partitioning is planned in a process of its own. The digests must be equal.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

_LETTERS = np.frombuffer(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", dtype="S1"
)
_CHUNK = 1_000_000
_ROW_GROUP = 100_000


def write_table(path: Path, rows: int) -> None:
    """Write `rows` clips as one parquet or csv file; the same ones each time."""
    chance = np.random.default_rng(100)
    videos = _LETTERS[chance.integers(0, 64, (max(1, round(rows / 1.67)), 11))].view("S11").ravel()
    schema = pa.schema([("videoID", pa.string()), ("start", pa.float64()), ("end", pa.float64())])
    writer = (
        pq.ParquetWriter(path, schema)
        if path.suffix == ".parquet"
        else pyarrow.csv.CSVWriter(path, schema)
    )
    with writer:
        for begin in range(0, rows, _CHUNK):
            count = min(_CHUNK, rows - begin)
            ids = videos[chance.integers(0, len(videos), count)].astype("U11")
            start = chance.integers(0, 600_000, count) / 1000
            table = pa.table([pa.array(ids), start, start + 10], schema=schema)
            if path.suffix == ".parquet":
                writer.write_table(table, row_group_size=_ROW_GROUP)
            else:
                writer.write_table(table)


def plan_once(table: Path, folder: Path, piece_rows: int) -> None:
    """Plan the table in this process, and print what it took."""
    from acavdl.config import Config, TableOptions
    from acavdl.prepare import prepare
    from acavdl.storage import Store

    begun = time.monotonic()
    prepared = prepare(
        Store(str(folder)),
        TableOptions(str(table)),
        Config(),
        tmp_dir=str(table.parent),
        piece_rows=piece_rows,
    )
    usage = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "wall": time.monotonic() - begun,
        "cpu": usage.ru_utime + usage.ru_stime,
        "rss": usage.ru_maxrss * 1024,
        "digest": prepared.plan.digest,
        "clips": prepared.plan.clips,
        "shards": len(prepared.plan.sizes),
    }
    sys.stdout.write(json.dumps(found) + "\n")


def main() -> int:
    """Write the table, plan it for each number of partitions, print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--partitions", default="1,8,64")
    parser.add_argument("--format", choices=["parquet", "csv"], default="parquet")
    parser.add_argument("--tmp-dir", default=None)
    parser.add_argument("--one", nargs=3, metavar=("TABLE", "OUT", "ROWS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        table, folder, piece_rows = options.one
        plan_once(Path(table), Path(folder), int(piece_rows))
        return 0
    say = sys.stdout.write
    digests = set()
    with tempfile.TemporaryDirectory(prefix="acavdl-bench-", dir=options.tmp_dir) as scratch:
        table = Path(scratch) / f"clips.{options.format}"
        write_table(table, options.rows)
        say(f"{options.rows:,} rows, {table.stat().st_size / 1e6:,.0f} MB of {options.format}\n")
        say("partitions  wall s   CPU s  peak GB  shards  digest\n")
        for partitions in map(int, options.partitions.split(",")):
            piece_rows = -(-options.rows // partitions)
            folder = Path(scratch) / f"out-{partitions}"
            line = [sys.executable, __file__, "--one", str(table), str(folder), str(piece_rows)]
            done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout)
            digests.add(found["digest"])
            say(
                f"{partitions:10d}  {found['wall']:6.1f}  {found['cpu']:6.1f}  "
                f"{found['rss'] / 1e9:7.2f}  {found['shards']:6d}  {found['digest'][:16]}\n"
            )
    say("the digests are equal\n" if len(digests) == 1 else "THE DIGESTS DIFFER\n")
    return len(digests) - 1


if __name__ == "__main__":
    sys.exit(main())
