"""What reading a dataset back costs: `acavdl.open_dataset` against a bare loop, by turns.

The bare loop is what one would write with webdataset and PyAV: decode a sample's mp4 from front to
back, convert the frames that lie in the requested span to RGB, keep the sound of the span. Both run
in this process, on the same shards, of clips of 10 s that a run against the sandbox has made; CPU
is the process's, all its threads included. PyAV spreads decoding and conversion over threads unless
told not to, which costs CPU: so there is a careful loop, too, that tells it.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
import webdataset
from clips import SHORT

from acavdl import open_dataset, run
from acavdl.config import Clipping, Config, Distribution, Reading, Storage
from acavdl.demo import environment
from acavdl.sandbox import Sandbox, video_id

_CLIP = 10.0  # seconds


def make(folder: Path, precision: str, clips: int) -> Path:
    """Make a dataset of clips all over videos of 140 s; return its folder."""
    table = folder / f"{precision}.csv"
    rows = [
        f"{video_id(number, master=SHORT.code)},{start},{start + _CLIP}"
        for number, start in ((number, 3.017 + 7.3 * (number % 17)) for number in range(clips))
    ]
    table.write_text("\n".join(["videoID,start,end", *rows]))
    config = Config(
        Reading(rate_limit=None),
        Storage(number_sample_per_shard=16),
        Distribution(processes_count=1),
        Clipping(precision=precision),  # type: ignore[arg-type]
    )
    run(str(table), str(folder / precision), config=config, progress="quiet")
    return folder / precision


def bare(folder: Path, threads: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the samples of a dataset as a loop by hand does, with PyAV's own choice of threads."""
    tars = sorted(str(path) for path in folder.glob("*.tar"))
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        info = json.loads(sample["json"])
        cut = info["cut"]
        begin = cut["start"] - cut["actual_start"]
        end = cut["end"] - cut["actual_start"]
        pictures, sound = [], []
        with av.open(io.BytesIO(sample["mp4"])) as container:
            for stream in container.streams:
                stream.thread_count = threads
            for frame in container.decode(video=0, audio=0):
                if not begin - 0.04 < frame.time < end:
                    continue
                if isinstance(frame, av.VideoFrame):
                    pictures.append(frame.reformat(format="rgb24", threads=threads).to_ndarray())
                else:
                    sound.append(frame.to_ndarray())
        yield {"json": info, "video": np.stack(pictures), "audio": np.concatenate(sound, axis=1)}


def careful(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the same with one thread."""
    yield from bare(folder, threads=1)


def ours(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the samples of a dataset as acavdl does."""
    yield from open_dataset(folder, tensors="numpy")


def cost(read: Callable[[Path], Iterator[dict[str, Any]]], folder: Path) -> tuple[float, float]:
    """Return CPU and wall seconds of a sample, read to the end."""
    cpu, wall, count = time.process_time(), time.perf_counter(), 0
    for sample in read(folder):
        count += 1
        if abs(len(sample["video"]) - _CLIP * float(SHORT.fps)) > 2:
            sys.exit(f"{read.__name__} shows {len(sample['video'])} frames")
    return (time.process_time() - cpu) / count, (time.perf_counter() - wall) / count


def main() -> int:
    """Measure and print; return 1 if acavdl reads less than 0.9 of what a bare loop does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clips", type=int, default=32, help="of each precision")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    # webdataset leaves the tars that it has read to the garbage collector.
    warnings.simplefilter("ignore", ResourceWarning)
    least = 1.0
    with tempfile.TemporaryDirectory(prefix="acavdl-bench-") as name:
        with Sandbox(masters=[SHORT]) as site, environment(site.environ()):
            folders = [make(Path(name), kind, options.clips) for kind in ("low", "editlist")]
        for folder in folders:
            turns = [
                {read: cost(read, folder) for read in (bare, careful, ours)}
                for _ in range(options.rounds + 1)
            ][1:]
            for read in (bare, careful, ours):
                cpu, wall = (median(turn[read][kind] for turn in turns) for kind in (0, 1))
                ratios = sorted(turn[read][0] / turn[ours][0] for turn in turns)
                least = min(least, median(ratios))
                sys.stdout.write(
                    f"{folder.name:9} {read.__name__:8} {1 / cpu:5.2f} samples per CPU second, "
                    f"{1 / wall:5.2f} per second; acavdl's over its {median(ratios):.2f} "
                    f"({ratios[0]:.2f} to {ratios[-1]:.2f})\n"
                )
    return 0 if least >= 0.9 else 1


if __name__ == "__main__":
    sys.exit(main())
