"""What a clip costs: acavdl and the reference (video2dataset) by turns, on the same sandbox clips.

CPU is user + system time of everything but the origin, as the slope between a small and a large
run, so that what starting costs does not count; the median of the rounds. Bytes and requests are
what the origin counted in the large run. Both write WebDataset with the site's metadata.

The reference runs from its own virtual environment (made at first use); where it does not install,
its recipe is re-created: see ``reference/``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import imageio_ffmpeg
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from reference.call import Reference, arguments, environ, line_of, reference_of

from acavdl.sandbox import Sandbox, video_id
from acavdl.sandbox.media import MasterSpec, Timeline
from acavdl.sandbox.probe import ProbeError, probe
from acavdl.storage import Store

_LIMIT = 600.0  # seconds after which a run is given up
_CLIP = 10.0  # seconds
_STAGES = ("resolve", "fetch", "cut")
#: What the package took for a clip on another machine, with and without sound: CPU in ms, bytes
#: (pages included), requests.
_SEEN = {True: (1090.0, 10.1e6, 8.3), False: (760.0, 7.8e6, 5.3)}

# With 135 the best picture is a file without sound, as it is on the site; where it is not, the
# reference's metadata fail (KeyError: 'requested_formats').
SHORT = MasterSpec("b140", 140.0, Fraction(30), (134, 135, 140, 18), b_frames=2)
# The repetitions of a virtual master must last the same in picture and sound: 14 x 10.24 s.
_LIKE_LONG = MasterSpec(
    "b143",
    143.36,
    Fraction(25),
    (134, 140),
    gop_seconds=5.12,
    timeline=Timeline.NONE,
    audio_fragment=10.24,
)
_LONG = replace(_LIKE_LONG, code="h143", virtual=10_800.0)
MASTERS = {spec.code: spec for spec in (SHORT, _LIKE_LONG, _LONG)}


class BenchError(Exception):
    """A run did not do what it should; the message says what it said."""


@dataclass(frozen=True)
class Way:
    """One way to make clips, on one kind of video.

    Attributes
    ----------
    reading
        Settings of acavdl's section ``reading`` beside the common ones.
    per_video
        Clips of each video.
    slope
        Whether CPU is of interest, for which two sizes are run each round; else the small one is
        run in the first round alone.
    probed
        Whether some of the clips are decoded, to tell where they were cut.
    """

    name: str
    master: str = SHORT.code
    reading: Mapping[str, Any] = field(default_factory=dict)
    per_video: int = 1
    slope: bool = True
    probed: bool = False


_REFERENCE_WAY = Way("reference", probed=True)
_FULL = Way("acavdl", probed=True)
_LIGHT = Way("light", reading={"extraction": "light"})
_THREE = Way("three of a video", per_video=3)
_SAME = Way("like 3 hours", _LIKE_LONG.code, slope=False)
_HOURS = Way("3 hours", _LONG.code, slope=False, probed=True)
WAYS = (_REFERENCE_WAY, _FULL, _LIGHT, _THREE, _SAME, _HOURS)


@dataclass(frozen=True)
class Row:
    """A clip of the table: seconds of the video."""

    video: str
    start: float
    end: float


@dataclass(frozen=True)
class Cost:
    """What one run took: CPU in seconds (by stage, where it is told), bytes and requests."""

    videos: int
    clips: int
    cpu: float
    stages: Mapping[str, float]
    media_bytes: int
    other_bytes: int
    look_ups: int
    media_requests: int
    origin_cpu: float


@dataclass(frozen=True)
class Cuts:
    """By how much the probed clips are off, seconds; of lengths and offsets the worst one."""

    clips: int
    start: float
    start_worst: float
    length_worst: float
    offset_worst: float | None


def rows_of(way: Way, videos: int) -> list[Row]:
    """Return the clips of so many videos: the same ones each time, apart from each other."""
    spec = MASTERS[way.master]
    room = (spec.virtual or spec.duration) / way.per_video
    rows = []
    for number in range(videos):
        chance = random.Random(number)
        for place in range(way.per_video):
            start = round(room * place + chance.uniform(0, room - _CLIP - 0.5), 3)
            rows.append(Row(video_id(number, master=way.master), start, start + _CLIP))
    return rows


# --- running ------------------------------------------------------------------------------------


def cpu_of(line: Sequence[str], env: Mapping[str, str], log: Path) -> float:
    """Run a program; return the CPU seconds of it and of all its children.

    Raises
    ------
    BenchError
        If it fails or takes too long, with the end of what it said.
    """
    with log.open("wb") as said:
        process = subprocess.Popen(line, env=env, stdout=said, stderr=said)
    timer = threading.Timer(_LIMIT, process.kill)
    timer.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        raise
    finally:
        timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        words = log.read_text("utf-8", "replace").strip()[-1500:]
        raise BenchError(f"{' '.join(line[:4])} … ended with {process.returncode}: {words}")
    return usage.ru_utime + usage.ru_stime


def acavdl_line(
    rows: Sequence[Row], folder: Path, settings: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Write acavdl's table and settings; return the call, whose dataset is ``folder/out``.

    As many shards as cores are made, so that all worker processes have work to the end.
    """
    table, config = folder / "clips.parquet", folder / "acavdl.yaml"
    columns = {
        "videoID": [row.video for row in rows],
        "start": [row.start for row in rows],
        "end": [row.end for row in rows],
    }
    pq.write_table(pa.table(columns), table)
    base: dict[str, dict[str, Any]] = {
        "reading": {
            "yt_args": {
                "download_size": 360,
                "download_audio_rate": 44100,
                "yt_metadata_args": {"get_info": True},
            },
            "rate_limit": None,
        },
        "storage": {"number_sample_per_shard": -(-len(rows) // cores())},
    }
    for section, values in settings.items():
        base[section] = {**base.get(section, {}), **values}
    config.write_text(json.dumps(base))  # JSON is YAML
    return [
        *(sys.executable, "-P", "-m", "acavdl", "run", "--progress", "quiet"),
        *("--config", str(config), "--url-list", str(table), "--output-folder"),
        str(folder / "out"),
    ]


def cores() -> int:
    """Return the cores that the runs may use, each of which gets a process."""
    return len(os.sched_getaffinity(0))


def run_acavdl(way: Way, videos: int, site: Sandbox, folder: Path, precision: str) -> Cost:
    """Run acavdl on so many videos; the dataset stays in ``folder/out``."""
    rows = rows_of(way, videos)
    clipping = {"ClippingSubsampler": {"args": {"precision": precision}}}
    settings = {"reading": way.reading, **({"subsampling": clipping} if precision else {})}
    line = acavdl_line(rows, folder, settings)
    site.reset()
    cpu = cpu_of(line, {**os.environ, **site.environ()}, folder / "log")
    found = [pq.read_table(path).to_pandas() for path in (folder / "out").glob("*.parquet")]
    failed = [row.detail for table in found for row in table.itertuples() if row.outcome != "ok"]
    if failed or sum(map(len, found)) != len(rows):
        raise BenchError(f"{way.name}: {len(failed)} of {len(rows)} clips failed: {failed[:3]}")
    stages = {
        stage: sum(float(table[column].sum()) for table in found)
        for stage in _STAGES
        if (column := f"{stage}_cpu_seconds") in found[0]
    }
    return _cost(site, videos, len(rows), cpu, stages)


def run_reference(way: Way, videos: int, site: Sandbox, folder: Path, reference: Reference) -> Cost:
    """Run the reference on so many videos; the dataset stays in ``folder/out``."""
    rows = rows_of(way, videos)
    call = arguments(
        folder,
        [f"https://www.youtube.com/watch?v={row.video}" for row in rows],
        [(row.start, row.end) for row in rows],
        cores(),
        audio=reference.audio,
    )
    line = line_of(reference, folder, call)
    ours = {**os.environ, **site.environ()}
    site.reset()
    cpu = cpu_of(line, ours | environ(folder, site.ca_file, reference.ffmpeg), folder / "log")
    made = sum(1 for _ in _reference_samples(folder / "out"))
    if made != len(rows):
        words = (folder / "log").read_text("utf-8", "replace")[-1500:]
        raise BenchError(f"the reference made {made} of {len(rows)} clips: {words}")
    return _cost(site, videos, len(rows), cpu, {})


def _cost(site: Sandbox, videos: int, clips: int, cpu: float, stages: Mapping[str, float]) -> Cost:
    stats = site.stats()
    requests, sent = stats.requests, stats.bytes
    media = requests["media"]
    return Cost(
        videos=videos,
        clips=clips,
        cpu=cpu,
        stages=stages,
        media_bytes=sent["media"],
        other_bytes=sum(sent.values()) - sent["media"],
        look_ups=sum(requests.values()) - media,
        media_requests=media,
        origin_cpu=stats.cpu_seconds,
    )


# --- where the clips were cut -------------------------------------------------------------------


@dataclass(frozen=True)
class _Sample:
    row: Row
    video: bytes
    audio: bytes | None


def _members(out: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield the samples of a dataset: keys, and members by extension."""
    for path in sorted(out.glob("*.tar")):
        found: dict[str, dict[str, bytes]] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                found.setdefault(key, {})[extension] = file.read() if file else b""
        yield from found.items()


def _reference_samples(out: Path) -> Iterator[_Sample]:
    for _, parts in _members(out):
        if "mp4" in parts:
            told = json.loads(parts["json"])
            (start, end), *_ = told["clips"]
            row = Row(told["url"].rpartition("=")[2], start, end)
            yield _Sample(row, parts["mp4"], parts.get("m4a"))


def _acavdl_samples(out: Path) -> Iterator[_Sample]:
    for key, parts in _members(out):
        video, start, end = key.rsplit("_", 2)
        yield _Sample(Row(video, int(start) / 1000, int(end) / 1000), parts["mp4"], None)


def cuts_of(samples: Sequence[_Sample], master: str) -> Cuts:
    """Decode clips and tell by how much they are off.

    `start` is how much later than asked for the first picture is (negative: it begins earlier; a
    cut to the frame lies within one frame's time before), `length` the pictures' time against
    what was asked for, `offset` how much the sound is ahead of the picture.

    Raises
    ------
    BenchError
        If one can't be read.
    """
    spec = MASTERS[master]
    starts, lengths, offsets = [], [], []
    for sample in samples:
        start = sample.row.start
        try:
            seen = probe(sample.video, spec, audio=sample.audio, near=start)
        except ProbeError as error:
            raise BenchError(f"a clip of {sample.row}: {error}") from error
        if seen.first_frame is None:
            raise BenchError(f"a clip of {sample.row} shows no frame of its video")
        starts.append(float(seen.first_frame / spec.fps) - start)
        lengths.append(float(seen.frames / spec.fps) - (sample.row.end - start))
        if seen.audio_offset is not None:
            offsets.append(seen.audio_offset)
    worst = max(offsets, key=abs) if offsets else None
    return Cuts(len(starts), median(starts), max(starts, key=abs), max(lengths, key=abs), worst)


def tar_cpu(out: Path, folder: Path) -> float:
    """Return the milliseconds of CPU per sample that it takes to write a dataset's tars again."""
    samples = [{"__key__": key, **parts} for key, parts in _members(out)]
    with Store(str(folder)).stage("again.tar") as file:
        begun = time.process_time()
        with webdataset.TarWriter(file, encoder=False, mtime=0, user="", group="") as tar:
            for sample in samples:
                tar.write(sample)
        return 1000 * (time.process_time() - begun) / len(samples)


# --- the whole ------------------------------------------------------------------------------------


@dataclass
class Measured:
    """What was measured of one way."""

    way: Way
    rounds: list[tuple[Cost, Cost]] = field(default_factory=list)  # small and large
    cuts: Cuts | None = None
    tar: float | None = None  # milliseconds of CPU per clip, in the writer of tars alone
    missing: str | None = None  # why there is nothing

    @property
    def last(self) -> Cost:
        """The last large run."""
        return self.rounds[-1][1]

    @property
    def cpus(self) -> list[float]:
        """Milliseconds of CPU per clip, for each round."""
        return [
            1000 * (large.cpu - small.cpu) / (large.clips - small.clips)
            for small, large in self.rounds
        ]

    @property
    def cpu(self) -> float:
        """Milliseconds of CPU per clip."""
        return median(self.cpus)

    def stage(self, name: str) -> float | None:
        """Return milliseconds of CPU per clip in a stage; None if it is not told."""
        values = [
            1000 * (large.stages[name] - small.stages[name]) / (large.clips - small.clips)
            for small, large in self.rounds
            if name in large.stages and large.clips > small.clips
        ]
        return median(values) if values else None

    @property
    def plausible(self) -> bool:
        """Whether the slope is no less than the CPU of the threads that did the work.

        What starting costs varies by some tenths of a second: small sizes cannot tell.
        """
        return self.cpu >= sum(self.stage(name) or 0.0 for name in _STAGES)

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {
            "rounds": [list(map(asdict, pair)) for pair in self.rounds],
            "cuts": asdict(self.cuts) if self.cuts else None,
            "tar_cpu_ms": self.tar,
            "missing": self.missing,
            "cpu_ms": self.cpu if self.rounds and self.way.slope else None,
        }


class _Bench:
    def __init__(self, site: Sandbox, reference: Reference, options: argparse.Namespace) -> None:
        self._site, self._reference, self._options = site, reference, options

    def measure(self, ways: Sequence[Way]) -> dict[str, Measured]:
        """Run all ways by turns; a way that the program does not know is told as missing."""
        found = {way.name: Measured(way) for way in ways}
        for number in range(self._options.rounds):
            pairs: dict[str, list[Cost]] = {way.name: [] for way in ways}
            for large in (False, True):
                for way in ways:
                    if found[way.name].missing or not (way.slope or (number == 0 and not large)):
                        continue
                    last = number == self._options.rounds - 1 and large
                    try:
                        pairs[way.name].append(self._run(found[way.name], large=large, last=last))
                    except BenchError as error:
                        if way is _REFERENCE_WAY or way is _FULL:
                            raise
                        found[way.name].missing = str(error)
            for name, costs in pairs.items():
                if costs and not found[name].missing:
                    found[name].rounds.append((costs[0], costs[-1]))
                    self._tell(number, found[name])
        return found

    def _tell(self, number: int, measured: Measured) -> None:
        if measured.way.slope and sys.stderr.isatty():
            sys.stderr.write(
                f"round {number + 1}: {measured.way.name} {measured.cpus[-1]:.0f} ms\n"
            )

    def _run(self, measured: Measured, *, large: bool, last: bool) -> Cost:
        way, options = measured.way, self._options
        of_reference = way is _REFERENCE_WAY
        sizes = options.reference_sizes if of_reference else options.sizes
        videos = -(-sizes[large] // way.per_video)
        with tempfile.TemporaryDirectory(prefix="acavdl-bench-", dir=options.tmp_dir) as name:
            folder = Path(name)
            cost = (
                run_reference(way, videos, self._site, folder, self._reference)
                if of_reference
                else run_acavdl(way, videos, self._site, folder, options.precision)
            )
            if last or not way.slope:
                self._look(measured, folder)
        return cost

    def _look(self, measured: Measured, folder: Path) -> None:
        """Look at what was made: where it is cut, and what its tars took."""
        way, out, count = measured.way, folder / "out", self._options.probe
        if way is not _REFERENCE_WAY:
            measured.tar = tar_cpu(out, folder)
        if way.probed:
            read = _reference_samples if way is _REFERENCE_WAY else _acavdl_samples
            samples = list(read(out))
            step = max(1, len(samples) // count)
            measured.cuts = cuts_of(samples[::step][:count], way.master)


# --- what is said ---------------------------------------------------------------------------------


def table(found: Mapping[str, Measured]) -> Iterator[str]:
    """Yield the lines of the table: figures per clip, at most 80 columns."""
    yield "per clip            CPU    media   other   requests    start off s   length    A/V"
    yield "                     ms       MB      kB  page media  median  worst   off s  off s"
    for name, measured in found.items():
        if not measured.rounds:
            yield f"{name:16}  not measured"
            continue
        cost = measured.last
        cpu = f"{measured.cpu:7.1f}" if measured.way.slope else "      –"
        yield (
            f"{name:16}{cpu}  {cost.media_bytes / 1e6 / cost.clips:7.2f}"
            f"  {cost.other_bytes / 1e3 / cost.clips:6.0f}"
            f"  {cost.look_ups / cost.clips:4.1f} {cost.media_requests / cost.clips:5.1f}"
            f"{_cut_columns(measured.cuts)}"
        )


def _cut_columns(cuts: Cuts | None) -> str:
    if cuts is None:
        return ""
    offset = "     –" if cuts.offset_worst is None else f"{cuts.offset_worst:+6.3f}"
    return f"  {cuts.start:+6.2f} {cuts.start_worst:+6.2f}  {cuts.length_worst:+6.2f} {offset}"


def ratios(found: Mapping[str, Measured]) -> Iterator[str]:
    """Yield how many times as much the reference takes, and how much the rounds differ."""
    reference = found[_REFERENCE_WAY.name]
    for name in (_FULL.name, _LIGHT.name):
        if (ours := found.get(name)) and ours.rounds:
            theirs, own = reference.last, ours.last
            yield (
                f"reference / {name}: CPU {reference.cpu / ours.cpu:.1f}, "
                f"media {_per(theirs.media_bytes, theirs) / _per(own.media_bytes, own):.1f}, "
                f"requests {_requests(theirs) / _requests(own):.1f}"
            )
    for name, measured in found.items():
        if measured.rounds and measured.way.slope:
            yield f"CPU of the rounds, {name}: " + ", ".join(f"{v:.1f}" for v in measured.cpus)


def _per(value: float, cost: Cost) -> float:
    return value / cost.clips


def _requests(cost: Cost) -> float:
    return (cost.look_ups + cost.media_requests) / cost.clips


def stages(found: Mapping[str, Measured]) -> Iterator[str]:
    """Yield acavdl's CPU by stage."""
    told = [m for m in found.values() if m.way.slope and m.rounds and m.stage("resolve")]
    if told:
        yield "CPU by stage, ms    resolve   fetch     cut     tar    rest"
    for measured in told:
        values = [measured.stage(stage) or 0.0 for stage in _STAGES] + [measured.tar or 0.0]
        values.append(measured.cpu - sum(values))
        yield f"{measured.way.name:20}" + " ".join(f"{value:7.1f}" for value in values)


@dataclass(frozen=True)
class Verdict:
    """A limit, what was found, and whether it is kept (None: it could not be told)."""

    limit: str
    found: str
    kept: bool | None


def _at_most(limit: str, value: float | None, bound: float, unit: str) -> Verdict:
    if value is None:
        return Verdict(limit, "not measured", None)
    return Verdict(limit, f"{value:.2f} {unit}", value <= bound)


def _saved(limit: str, theirs: Measured, ours: Measured | None, bound: float) -> Verdict:
    """Judge by how many times as much CPU the reference takes."""
    if ours is None:
        return Verdict(limit, "not measured", None)
    times = theirs.cpu / ours.cpu
    found = f"1/{times:.1f}, {ours.cpu:.1f} of {theirs.cpu:.0f} ms"
    if not ours.plausible:
        return Verdict(limit, f"{found}, less than its stages: larger --sizes", None)
    return Verdict(limit, found, times >= bound)


def verdicts(found: Mapping[str, Measured]) -> list[Verdict]:
    """Hold what was measured against the limits."""

    def have(way: Way) -> Measured | None:
        measured = found.get(way.name)
        return measured if measured and measured.rounds else None

    reference, full = found[_REFERENCE_WAY.name], found[_FULL.name]
    light, three, same, hours = map(have, (_LIGHT, _THREE, _SAME, _HOURS))
    own = full.last
    parts = [full.stage("fetch"), full.stage("cut"), full.tar]
    known = None if None in parts else sum(filter(None, parts))
    longer = hours.last.media_bytes / same.last.media_bytes if hours and same else None
    told = three and three.plausible and full.plausible
    tripled = 3 * three.cpu / full.cpu if three and told else None
    return [
        _saved("CPU at most 1/15 of the reference", reference, full, 15),
        _saved("light: CPU at most 1/25", reference, light, 25),
        _at_most("fetch, cut and tar at most 15 ms", known, 15, "ms"),
        _at_most("media at most 1.3 MB a clip", own.media_bytes / 1e6 / own.clips, 1.3, "MB"),
        _at_most("3 hours: media at most 8 % more", longer, 1.08, "times"),
        _at_most("at most 2 requests to extract", own.look_ups / own.videos, 2, "a video"),
        _at_most("at most 4 requests for media", own.media_requests / own.videos, 4, "a video"),
        _at_most("three clips of a video below 1.8 times one", tripled, 1.8, "times the CPU"),
    ]


def resemblance(reference: Reference, cost: Cost, cpu: float) -> Iterator[str]:
    """Yield how a re-created recipe compares with what the package itself was once seen to take."""
    if not reference.own:
        seen_cpu, seen_bytes, seen_requests = _SEEN[reference.audio]
        moved = (cost.media_bytes + cost.other_bytes) / cost.clips
        yield (
            f"re-created against the package elsewhere: CPU {cpu / seen_cpu:.2f}, "
            f"bytes {moved / seen_bytes:.2f}, requests {_requests(cost) / seen_requests:.2f}"
        )


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "acavdl" / "bench"


def _sizes(text: str) -> tuple[int, int]:
    small, large = map(int, text.split(","))
    if not 0 < small < large:
        raise argparse.ArgumentTypeError("two numbers, the smaller one first")
    return small, large


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", type=_sizes, default=(100, 300), help="clips of acavdl's runs")
    parser.add_argument("--reference-sizes", type=_sizes, default=(8, 32))
    parser.add_argument("--probe", type=int, default=16, help="clips to decode")
    parser.add_argument("--precision", default="", help="of acavdl's cuts; default: its own")
    parser.add_argument("--no-audio", action="store_true", help="the reference makes no m4a")
    parser.add_argument("--ways", default=",".join(way.name for way in WAYS[2:]))
    parser.add_argument("--reference-venv", type=Path, default=_cache() / "reference")
    parser.add_argument("--recipe", action="store_true", help="re-create the reference's recipe")
    usual = shutil.which("ffmpeg") or imageio_ffmpeg.get_ffmpeg_exe()
    parser.add_argument("--ffmpeg", default=usual, help=f"the reference's; default: {usual}")
    parser.add_argument("--tmp-dir", default=None)
    parser.add_argument("--json", type=Path, default=None, help="file for all that was measured")
    return parser.parse_args()


def main() -> int:
    """Measure, print, and return 1 if a limit is not kept."""
    options = _options()
    wanted = {name.strip() for name in options.ways.split(",") if name.strip()}
    ways = [way for way in WAYS if way in WAYS[:2] or way.name in wanted]
    ffmpeg = shutil.which(options.ffmpeg) or sys.exit(f"no program {options.ffmpeg}")
    reference = reference_of(
        options.reference_venv, ffmpeg, audio=not options.no_audio, recipe=options.recipe
    )
    say = sys.stdout.write
    with contextlib.ExitStack() as stack:
        specs = [MASTERS[code] for code in dict.fromkeys(way.master for way in ways)]
        site = stack.enter_context(Sandbox(masters=specs))
        made = site.masters[SHORT.code]
        whole = sum(made.rendition(itag).size for itag in (134, 140)) / 1e6
        say(
            f"{SHORT.duration:g} s videos of {whole:.1f} MB (360p and sound, {whole * 10 / 140:.2f}"
            f" MB for 10 s); yt-dlp {version('yt-dlp')}; {cores()} cores\n"
            f"reference: {reference}\n\n"
        )
        try:
            found = _Bench(site, reference, options).measure(ways)
        except BenchError as error:
            sys.exit(str(error))
    judged = verdicts(found)
    first = found[_REFERENCE_WAY.name]
    alike = resemblance(reference, first.last, first.cpu)
    for line in (*table(found), "", *ratios(found), *alike, "", *stages(found), ""):
        say(f"{line}\n")
    for name, measured in found.items():
        if measured.missing:
            say(f"{name}: {measured.missing}\n")
    for verdict in judged:
        word = {True: "kept", False: "NOT KEPT", None: "?"}[verdict.kept]
        say(f"{word:8}  {verdict.limit}: {verdict.found}\n")
    if options.json:
        values = {
            "reference": str(reference),
            "ways": {name: measured.as_dict() for name, measured in found.items()},
            "limits": [asdict(verdict) for verdict in judged],
        }
        options.json.write_text(json.dumps(values, indent=1))
    return 1 if any(verdict.kept is False for verdict in judged) else 0


if __name__ == "__main__":
    sys.exit(main())
