"""The reference's recipe, re-created for where it does not install: ``python recipe.py CALL``.

For each video three fresh extractions (sound, picture, metadata), whole files, each cut by
``ffmpeg -f segment -c copy``, as video2dataset 1.3.0 does it with precision ``low``; CALL is the
same file of JSON that `launch.py` takes.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yt_dlp

_FORMATS = {
    "m4a": "wa[asr>={rate}][ext=m4a] / ba[ext=m4a]",
    "mp4": "wv*[height>={size}][ext=mp4]/w[height>={size}][ext=mp4]/bv/b[ext=mp4]",
}
# What is taken out of the metadata before they are stored.
_LEFT_OUT = ("subtitles", "requested_formats", "formats", "thumbnails", "automatic_captions")


def _extract(url: str, path: Path | None, **options: Any) -> dict[str, Any]:
    """Ask for a video with an instance of its own; download it, if there is a path."""
    where = {"skip_download": True} if path is None else {"outtmpl": str(path)}
    # As the launcher of the package does it: no-certifi lets SSL_CERT_FILE count.
    options |= {"quiet": True, "no_warnings": True, "compat_opts": ["no-certifi"], **where}
    with yt_dlp.YoutubeDL(options) as extractor:
        found: dict[str, Any] = extractor.extract_info(url, download=path is not None)
    return found


def _segment(path: Path, start: float, end: float) -> bytes:
    """Cut a file at the keyframes at or behind both times; return the piece between them."""
    pieces = path.with_name(f"clip_%d{path.suffix}")
    times = ",".join(str(time) for time in (start, end) if time)
    command = ["ffmpeg", "-nostdin", "-i", str(path), "-map", "0", "-c", "copy", "-f", "segment"]
    command += ["-segment_times", times, "-reset_timestamps", "1", str(pieces)]
    subprocess.run(command, check=True, capture_output=True)
    return path.with_name(f"clip_{1 if start else 0}{path.suffix}").read_bytes()


def _sample(url: str, start: float, end: float, call: Mapping[str, Any]) -> dict[str, bytes]:
    """Make the members of a sample, by extension."""
    wanted = call["config"]["reading"]["yt_args"]
    values = {"size": wanted["download_size"], "rate": wanted["download_audio_rate"]}
    members = {}
    with tempfile.TemporaryDirectory(dir=call["tmp_dir"]) as folder:
        for extension in sorted(call["encode_formats"].values()):
            path = Path(folder) / f"{extension}.{extension}"
            _extract(url, path, format=_FORMATS[extension].format(**values))
            members[extension] = _segment(path, start, end)
    info = _extract(url, None)
    kept = {name: value for name, value in info.items() if name not in _LEFT_OUT}
    told = {"url": url, "clips": [[start, end]], "yt_meta_dict": {"info": kept}}
    members["json"] = json.dumps(told, indent=4, default=str).encode()
    return members


def _shard(number: int, rows: list[dict[str, Any]], call: Mapping[str, Any]) -> None:
    """Make one tar."""

    def make(row: dict[str, Any]) -> dict[str, bytes]:
        (start, end), *_ = row["clips"]
        return _sample(row["url"], start, end, call)

    with (
        tarfile.open(Path(call["output_folder"]) / f"{number:05d}.tar", "w") as tar,
        ThreadPoolExecutor(call["config"]["distribution"]["thread_count"]) as pool,
    ):
        for place, members in enumerate(pool.map(make, rows)):
            for extension, content in members.items():
                entry = tarfile.TarInfo(f"{number:05d}{place:05d}.{extension}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def _shards(call: Mapping[str, Any]) -> Iterator[tuple[int, list[dict[str, Any]], Any]]:
    rows = pq.read_table(call["url_list"]).to_pylist()
    size = call["config"]["storage"]["number_sample_per_shard"]
    for number, begin in enumerate(range(0, len(rows), size)):
        yield number, rows[begin : begin + size], call


if __name__ == "__main__":
    arguments = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    Path(arguments["output_folder"]).mkdir()
    processes = arguments["config"]["distribution"]["processes_count"]
    with multiprocessing.get_context("spawn").Pool(processes) as workers:
        workers.starmap(_shard, _shards(arguments), chunksize=1)
        # Let them end by themselves, so that their CPU is counted.
        workers.close()
        workers.join()
