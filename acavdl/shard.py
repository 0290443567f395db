"""One shard: resolve, fetch, cut and write its clips; the only place that composes those."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import logging
import shutil
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import orjson
import pandas as pd
import pyarrow.parquet as pq
from distributed import Worker, get_worker

from acavdl.breaker import Verdict
from acavdl.budget import Budget, cancel_all
from acavdl.config import CaptionFrom, Clipping, Config, Reading
from acavdl.cut import CutForm, cut_chosen, cut_files
from acavdl.errors import ClipError, Outcome, Retry, Scope, StorageError
from acavdl.fetch import NoRangesError, RemoteFile, fetch_file
from acavdl.governor import Gate, gate_of
from acavdl.inflight import Crew, Step, StoppedError, Work, in_order
from acavdl.journal import Journal, Resumed
from acavdl.ledger import Published, published, shard_name
from acavdl.media import File, LocalFile, Media
from acavdl.models import Clip, ClipResult, Cut, Line, ShardReport, Source, Stream
from acavdl.mp4 import BrokenError, UnsupportedError, Want
from acavdl.net import Network
from acavdl.pick import Chosen, Span, choose_clips, choose_sound
from acavdl.planfile import by_video, clips_of
from acavdl.progress import INTERVAL, TOPIC, ShardProgress
from acavdl.removal import DETAIL, finish_shard, remove_from, removed_ids
from acavdl.remux import is_copied
from acavdl.resolve import EXTRACTOR_VERSION, Resolver, is_youtube
from acavdl.spans import split_span
from acavdl.storage import Store
from acavdl.writer import (
    Finished,
    FolderWriter,
    Layout,
    SampleWriter,
    TarWriter,
    counts_of,
    parquet_table,
    row_of,
)

logger = logging.getLogger(__name__)

#: Clips (of 10 s) that are in flight or wait for an earlier one, for each thread: bounds those in
#: memory, and lets the threads go on while one video takes its time.
_AHEAD = 2
#: Clips (of 10 s) of one video that are made in one go.
_GROUP = 16
#: Objects more than before the youngest are looked through, and how often older ones are.
_GC_THRESHOLD = (50_000, 20, 50)
#: Seconds that a site may ask to wait before its media are there.
_LONGEST_WAIT = 600.0
#: Threads that hang, from which on the process hands its shard back and makes room for a new one.
_MOST_HANGING = 8
#: Bytes of media that a probe of a refused address takes.
_PROBE_BYTES = 1024
#: Clips that the subtitles of one video may become: a line for each second of a day.
_MOST_LINES = 86_400

#: Columns of what `process_shard` returns: one row for each shard.
REPORT = {
    "shard": "int64",
    "state": "object",
    "clips": "int64",
    "counts": "object",
    "bytes_fetched": "int64",
    "bytes_stored": "int64",
    "seconds": "float64",
    "host": "object",
    "held_back": "bool",
    "worn_out": "object",
}


#: Set while this process is to end its work (see `stop`).
_stopping = threading.Event()


#: Threads that were left behind.
_hanging: list[threading.Thread] = []


def worn_out() -> bool:
    """Whether so many threads hang that this process had better be replaced."""
    _hanging[:] = [thread for thread in _hanging if thread.is_alive()]
    return len(_hanging) >= _MOST_HANGING


def stop() -> None:
    """Save what the open shards of this process have, and end them: now, and until `go_on`."""
    _stopping.set()
    cancel_all()


def go_on() -> None:
    """Let this process make shards again."""
    _stopping.clear()


def check_going_on() -> None:
    """Raise StoppedError if this process is to make no shards now (see `stop`)."""
    if _stopping.is_set():
        raise StoppedError


@dataclass(frozen=True)
class Job:
    """What the tasks of a run have in common.

    Parameters
    ----------
    output_folder
        Where the dataset lies.
    config
        The settings.
    captions
        Whether samples have a ``.txt`` member: wherever captions come from.
    tmp_dir
        Local folder for media files on their way; None = the system's.
    caption_from
        Field of the extraction that is each sample's caption; None = the plan's, or a line of the
        subtitles (`Storage.captions_are_subtitles`).
    extra
        The additional columns: their types by name (see `acavdl.writer.Layout`).
    run
        Tells the tasks of one run from those of another on the same scheduler.
    hands_back
        Whether a shard goes back to the driver while its egress is held back; else its task waits.
    """

    output_folder: str
    config: Config
    captions: bool
    tmp_dir: str | None = None
    caption_from: CaptionFrom | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    run: str = ""
    hands_back: bool = True

    @property
    def store(self) -> Store:
        """Where the dataset lies."""
        return Store(self.output_folder, self.config.storage.options)

    @property
    def layout(self) -> Layout:
        """What the samples and rows of the run hold."""
        reading = self.config.reading
        languages = None if reading.writesubtitles is None else reading.subtitleslangs
        return Layout(self.captions, languages, self.extra)


def process_shard(frame: pd.DataFrame, job: Job) -> pd.DataFrame:
    """Make one shard from its rows of the plan and publish it; Dask's ``map_partitions`` calls it.

    A shard that is already published is left alone, so that running the task again (Dask may) costs
    nothing and repeats nothing.

    Parameters
    ----------
    frame
        The rows of `acavdl.planfile.read_shard`.

    Returns
    -------
    pandas.DataFrame
        One row with the columns `REPORT`.

    Raises
    ------
    StorageError
        If the store can't be written.
    OSError
        If the local disk can't be.
    """
    report = make_shard(clips_of(frame, job.extra), job)
    worker = _worker(needed=False)
    if worker is not None and worn_out():
        report = replace(report, worn_out=worker.address)
    return _as_row(report)


def make_shard(clips: Sequence[Clip], job: Job) -> ShardReport:
    """Make the shard that `clips` (all of one shard, in order) stand for, and publish it.

    It goes on behind the last checkpoint of any task on this shard. Where there can be checkpoints,
    it begins no other video when `distribution.slice` is over, or its egress is held back, and
    returns with a ``partial`` one; so it does at once, wherever it stands, when the process is told
    to `stop`.
    """
    shard, begun = clips[0].shard, time.monotonic()
    store, host = job.store, socket.gethostname()
    digits, layout = job.config.storage.oom_shard_count, job.layout
    name = shard_name(shard, digits)
    finish_shard(store, name)
    found = published(store, shard, digits)
    if found is not None:
        return _present(found, host)
    journal = Journal(store, name)
    removed = removed_ids(store)
    resumed = _usable(journal.resumed(), clips, job, removed)
    with contextlib.ExitStack() as stack:
        stack.enter_context(journal.begun(job.run, int(resumed.state.get("done", 0))))
        samples = stack.enter_context(_sample_writer(job, name, journal, resumed))
        made = _Open(clips, job, samples, journal, resumed)
        hands_back = job.hands_back and samples.keeps
        with _rare_collections(), _Maker(job, removed, hands_back=hands_back) as maker:
            made.work_off(maker)
        if made.done < len(clips):
            made.save()
            return replace(made.report("partial"), held_back=maker.held_back)
        samples.close()
        parquet = stack.enter_context(store.stage(f"{name}.parquet"))
        pq.write_table(parquet_table(made.rows, layout), parquet)
        with store.lock(name):
            found = published(store, shard, digits)
            if found is not None:
                # Another copy of this task was quicker: what stands there stays.
                journal.clear()
                return _present(found, host)
            samples.commit()
            parquet.commit()
            files = {
                **samples.stats(),
                "parquet": {"bytes": parquet.size, "sha256": parquet.sha256},
            }
            # Last: a shard counts as published when its stats are there and tell the truth.
            stats = orjson.dumps(made.stats(files), option=orjson.OPT_INDENT_2)
            store.write(f"{name}_stats.json", stats)
            if published(store, shard, digits) is None:
                raise StorageError(f"shard {name} is not there, though it was just published")
        journal.clear()
    if not removed_ids(store) <= removed:
        # Somebody took videos out while the shard was made.
        remove_from(store, shard, removed_ids(store), digits)
    return replace(made.report("done"), seconds=time.monotonic() - begun)


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Let Python look for garbage less often.

    A page becomes 50,000 objects, which counting frees. Looking for cycles among them and all that
    Dask has loaded took a fifth of the CPU of a clip.
    """
    before = gc.get_threshold()
    gc.set_threshold(*_GC_THRESHOLD)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _usable(resumed: Resumed, clips: Sequence[Clip], job: Job, removed: Set[str]) -> Resumed:
    """Return what an open shard has made, if it is this one's, and all of it is there.

    Not if it holds a sample of a video that was removed since.
    """
    rows, state = resumed.rows, resumed.state
    lines = job.config.storage.captions_are_subtitles
    expected = [clip.key for clip in clips[: len(rows)]]
    if not rows or not (lines or [row["key"] for row in rows] == expected):
        return Resumed()
    if any(row["video_id"] in removed and row["outcome"] == Outcome.OK for row in rows):
        return Resumed()
    if "tar" in state and job.store.kept_size(state["tar"]) < state["bytes"]:
        return Resumed()
    return resumed


@contextlib.contextmanager
def _sample_writer(
    job: Job, name: str, journal: Journal, resumed: Resumed
) -> Iterator[SampleWriter]:
    """Open what the shard's samples go into, a tar or a folder of files, behind a checkpoint."""
    store, state = job.store, resumed.state
    if job.config.output.output_format == "files":
        yield FolderWriter(store, name, job.layout, state.get("written"))
        return
    kept = journal.path("tar")
    with store.stage(f"{name}.tar", kept) as tar:
        if "tar" in state:
            store.copy_kept(state["tar"], state["bytes"], tar)
        with contextlib.closing(TarWriter(tar, job.layout, kept)) as samples:
            yield samples


class _Open:
    """A shard on its way: its samples, rows and counts so far, and when it is to be saved.

    Attributes
    ----------
    rows : list of dict
        Of its parquet.
    done : int
        Clips of the plan that they stand for.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        job: Job,
        samples: SampleWriter,
        journal: Journal,
        resumed: Resumed,
    ) -> None:
        host = socket.gethostname()
        self._clips, self._samples, self._journal = clips, samples, journal
        self._layout, self._distribution = job.layout, job.config.distribution
        self._lines = job.config.storage.captions_are_subtitles
        self._finished = Finished(host, EXTRACTOR_VERSION)
        self._begun = time.monotonic()
        self._before = float(resumed.state.get("seconds", 0.0))
        self._started_at = float(resumed.state.get("started_at", time.time()))
        self.rows: list[Mapping[str, Any]] = list(resumed.rows)
        self.done = int(resumed.state.get("done", 0))
        # What a resumed shard has must be in the first checkpoint of its own.
        self._saved, self._whole = 0, len(self.rows)
        self._counter = _Counter(clips[0].shard, host)
        self._counter.restore(self.rows)

    def work_off(self, maker: _Maker) -> None:
        """Make what is missing, or as much of it as the slice has time for."""
        ends_at, before = self._begun + self._distribution.slice, len(self.rows)

        def over() -> bool:
            # However short a slice is, it makes something.
            late = time.monotonic() > ends_at and len(self.rows) > before
            return self._samples.keeps and (late or worn_out())

        left = self._clips[self.done :]
        places = {clip.row: place for place, clip in enumerate(left, start=self.done)}
        place: int | None = None
        try:
            for result in maker.results(by_video(left), over):
                if self._lines and place is not None and place != places[result.clip.row]:
                    # All lines of the video before are there.
                    self._pass(place)
                place = places[result.clip.row]
                self._add(result)
                if not self._lines:
                    self._pass(place)
        except StoppedError:
            return
        if place is not None:
            self._pass(place)

    def _add(self, result: ClipResult) -> None:
        if result.cut is not None:
            self._samples.write(result)
        now = time.time_ns() // 1_000_000
        self.rows.append(row_of(result, self._finished, now, self._layout))
        self._counter.add(result)

    def _pass(self, place: int) -> None:
        """Note that a clip of the plan is made, and save what there is if it is time."""
        self.done, self._whole = place + 1, len(self.rows)
        if self._whole - self._saved >= self._distribution.checkpoint:
            self.save()

    def save(self) -> None:
        """Make a checkpoint, if there can be one, and clips since the last one."""
        if not self._samples.keeps or len(self.rows) != self._whole or self._whole == self._saved:
            return
        state = {
            **self._samples.checkpoint(),
            "done": self.done,
            "seconds": self._seconds(),
            "started_at": self._started_at,
        }
        rows = self.rows[self._saved :]
        self._journal.save(parquet_table(rows, self._layout), state)
        self._saved = self._whole

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._begun

    def stats(self, files: Mapping[str, Any]) -> dict[str, Any]:
        """Return the shard's stats; `files` tells sizes and hashes."""
        return {
            **_reference_stats(self._counter.counts, self._started_at, self._seconds()),
            "bytes_downloaded": self._counter.bytes_fetched,
            "outcomes": dict(self._counter.counts),
            "host": self._finished.host,
            "files": files,
        }

    def report(self, state: str) -> ShardReport:
        """Return what the driver is told."""
        return ShardReport(
            shard=self._clips[0].shard,
            state=state,
            clips=self._counter.counts.total(),
            counts=dict(self._counter.counts),
            bytes_fetched=self._counter.bytes_fetched,
            bytes_stored=self._samples.size,
            seconds=self._seconds(),
            host=self._finished.host,
        )


def _present(found: Published, host: str) -> ShardReport:
    return ShardReport(found.shard, "present", found.count, found.counts, 0, 0, 0.0, host)


def _as_row(report: ShardReport) -> pd.DataFrame:
    return pd.DataFrame([{name: getattr(report, name) for name in REPORT}]).astype(REPORT)


def report_of(frame: pd.DataFrame) -> ShardReport:
    """Return the report that a task's one row holds."""
    row: dict[str, Any] = frame.iloc[0].to_dict()  # type: ignore[assignment]
    return ShardReport(**row)


def _reference_stats(counts: Counter[str], started_at: float, seconds: float) -> dict[str, object]:
    """Return the keys of the reference's ``_stats.json``; times in its format, in UTC."""
    return {
        **counts_of(counts),
        "duration": seconds,
        "start_time": started_at,
        "end_time": time.time(),
    }


class _Counter:
    """Counts the results of a shard, and tells the driver about once a second."""

    def __init__(self, shard: int, host: str) -> None:
        self._shard, self._host = shard, host
        self.counts: Counter[str] = Counter()
        self.bytes_fetched = 0
        self._told = time.monotonic()

    def restore(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Count what was made before."""
        for row in rows:
            self.counts[row["outcome"]] += 1
            self.bytes_fetched += row["bytes_fetched"]

    def add(self, result: ClipResult) -> None:
        self.counts[str(result.outcome)] += 1
        self.bytes_fetched += result.bytes_fetched
        if time.monotonic() - self._told >= INTERVAL:
            self._told = time.monotonic()
            progress = ShardProgress(self._shard, self._host, self.counts, self.bytes_fetched)
            # Outside of Dask there is nobody to tell.
            with contextlib.suppress(ValueError):
                get_worker().log_event(TOPIC, progress.as_message())


class _Maker:
    """Turns the videos of a shard into results, with `thread_count` of them in flight."""

    def __init__(
        self, job: Job, removed: Set[str] = frozenset(), *, hands_back: bool = True
    ) -> None:
        self._job, self._removed = job, removed
        self._reading = _needed(job.config)
        self._threads = job.config.distribution.thread_count
        self._network = Network(self._reading.ytdlp.get("proxy"))
        self._resolver = Resolver(self._network, self._reading, job.config.output.encode_formats)
        config = job.config
        self._form = CutForm(config.output.encode_formats, config.audio, config.clipping.precision)
        self._folder = tempfile.TemporaryDirectory(prefix="acavdl-", dir=job.tmp_dir)
        self._pool = Crew(self._threads)
        self._busy: set[_Video] = set()
        # The worker is known to the task's own thread alone.
        worker = _worker(needed=self._reading.rate_limit is not None)
        self._gate: Gate | None = None
        if worker is not None:
            # With a rate, what is not used here is missing elsewhere.
            spare = self._threads if self._reading.rate_limit is None else 0
            self._gate = gate_of(worker, self._probe, spare=spare, hands_back=hands_back)

    def __enter__(self) -> _Maker:
        return self

    def __exit__(self, *_: object) -> None:
        # Whatever is still on its way stands behind what is left for another task.
        for video in tuple(self._busy):
            video.budget.cancel()
        if self._gate is not None:
            self._gate.close()
        self._pool.shutdown(cancel_futures=True)
        self._resolver.close()
        self._network.close()
        self._folder.cleanup()

    @property
    def held_back(self) -> bool:
        """Whether the site may not be asked for now."""
        return self._gate is not None and self._gate.held

    def results(
        self, videos: Iterable[list[Clip]], draining: Callable[[], bool]
    ) -> Iterator[ClipResult]:
        """Yield the results of all clips in the order of the plan.

        Videos begin in that order, too; those that finish early wait, and `_AHEAD` × threads clips
        are begun before the earliest is written, at most. When `draining` tells so, no other one is
        begun, and those that wait for a lease are left. One that the site holds back ends it.
        """
        timeout = self._reading.timeout

        def ends() -> bool:
            ending = draining()
            if ending and self._gate is not None:
                self._gate.drain()
            return ending

        works = (
            Work(
                functools.partial(self._turn, video),
                min(_weight(video.clips), _GROUP),
                functools.partial(self._late, video),
            )
            for video in (_Video(clips, Budget(timeout * len(clips))) for clips in videos)
        )
        limit = _AHEAD * self._threads
        yield from in_order(self._pool, works, limit, _stopping, ends)

    def _turn(self, video: _Video) -> Step[ClipResult]:
        """Go on with a video until its next clips are made, or the site asks to wait."""
        # What passed since the last turn is no time of the clips.
        video.budget.extend(time.monotonic() - video.paused)
        video.thread = threading.current_thread()
        self._busy.add(video)
        try:
            with video.budget.scope():
                step = self._next_step(video)
        finally:
            self._busy.discard(video)
        video.paused = time.monotonic()
        if step.more is None and video.folder is not None:
            shutil.rmtree(video.folder, ignore_errors=True)
        return step

    def _next_step(self, video: _Video) -> Step[ClipResult]:
        if video.clips[0].video_id in self._removed:
            # The site is not asked: that takes no lease.
            return Step(_failures(video, ClipError(Outcome.REMOVED, DETAIL)))
        while True:
            if video.source is None and not self._has_lease(video):
                return Step((), functools.partial(self._turn, video), after=video.lease)
            check_going_on()
            try:
                if video.source is None:
                    video.source = self._look_up(video)
                    wait = _wait(video.source.available_at)
                    if wait > 0:
                        return Step((), functools.partial(self._turn, video), wait)
                group = _group(video.wanted[video.done :])
                with _timed(video.seconds, "fetch"):
                    cuts = self._fetch(video, video.source, group)
            except ClipError as error:
                step = self._failed(video, _in_time(error, video.budget))
                if step is None:
                    continue
                return step
            self._settle(video, video.source)
            made = ClipResult(
                group[0],
                Outcome.OK,
                None,
                info=video.source.info if self._reading.get_info else None,
                counts=video.source.counts,
                subtitles=video.source.subtitles,
                format_id="+".join(stream.format_id for stream in video.source.streams),
                video_duration=video.source.duration,
                attempts=video.attempt,
            )
            results = _cut(video, made, group, cuts)
            video.done += len(group)
            if video.parts is not None:
                for media in video.parts:
                    media.release()
            if video.done == len(video.wanted):
                return Step(results)
            return Step(results, functools.partial(self._turn, video))

    def _late(self, video: _Video) -> Sequence[ClipResult] | None:
        """Give a video up whose thread hangs: it is over its time by that much again."""
        allowance = self._reading.timeout * len(video.clips)
        if video not in self._busy or time.monotonic() < video.budget.deadline + allowance:
            return None
        self._busy.discard(video)
        self._settle(video)
        _hanging.append(video.thread)
        logger.warning("a thread hangs on %s and is left behind", video.url)
        hangs = ClipError(Outcome.TIMEOUT, "it hung: neither sockets nor processes end it")
        return _failures(video, hangs)

    def _has_lease(self, video: _Video) -> bool:
        """Ask for leave to look the video up, where it takes one; tell whether it is there.

        Raises
        ------
        GivenBackError
            If the video goes back.
        """
        if self._gate is None or not is_youtube(video.url):
            return True
        if video.lease is None:
            video.lease = self._gate.lease(video.url)
        if not video.lease.done():
            return False
        video.lease.result()
        return True

    def _failed(self, video: _Video, failed: ClipError) -> Step[ClipResult] | None:
        """Return what becomes of a video that failed; None = it begins again."""
        if self._gate is not None and video.lease is not None:
            if failed.outcome.scope is Scope.EGRESS:
                verdict = self._gate.refused(video.url, failed.outcome)
                turn = functools.partial(self._judged, video, failed, verdict)
                return Step((), turn, after=verdict)
            self._settle(video)
        # A refused media URL may have expired: one fresh extraction tells.
        if failed.outcome is Outcome.HTTP_403_MEDIA and not video.fresh:
            video.fresh = True
            video.begin_again()
            return None
        return Step(_failures(video, failed))

    def _judged(
        self, video: _Video, failed: ClipError, verdict: Future[Verdict]
    ) -> Step[ClipResult]:
        """Try a video that was refused once more, or let that stand; it raises if it goes back."""
        if verdict.result() is Verdict.RECORD:
            return Step(_failures(video, failed))
        video.begin_again()
        # The verdict is a lease.
        video.lease = Future()
        video.lease.set_result(None)
        return self._turn(video)

    def _settle(self, video: _Video, source: Source | None = None) -> None:
        """Tell the gate, once for each lease, that media came from `source`, or none."""
        if self._gate is None or video.lease is None or video.settled:
            return
        video.settled = True
        if source is None:
            self._gate.passed(video.url)
        else:
            self._gate.worked(video.url, source.streams[0].url)

    def _probe(self, url: str) -> str | None:
        """Try a video, and a little of its media, for the gate."""
        with Budget(self._reading.timeout).scope():
            try:
                source = self._resolver.resolve(url)
                self._part(source, source.streams[0]).load([Want(0, _PROBE_BYTES)])
            except ClipError as error:
                return str(error.outcome) if error.outcome.scope is Scope.EGRESS else None
            except NoRangesError:
                logger.debug("the probe %s came as a whole", url)
        return str(Outcome.OK)

    def _look_up(self, video: _Video) -> Source:
        """Extract the video, and tell which clips are wanted of it."""
        with _timed(video.seconds, "resolve"):
            source = self._resolver.resolve(video.url)
        if not video.wanted:
            video.wanted = self._wanted(video.clips, source)
            # Each line that became a clip has its time, too.
            more = len(video.wanted) - len(video.clips)
            video.budget.extend(self._reading.timeout * max(0, more))
        return source

    def _wanted(self, clips: Sequence[Clip], source: Source) -> Sequence[Clip]:
        """Return the clips to make, with what the extraction says of them.

        Raises
        ------
        ClipError
            ``no_subtitles`` where there are none to make clips of.
        """
        if self._job.config.storage.captions_are_subtitles:
            return _line_clips(clips, source, self._job.config.clipping)
        if self._job.caption_from is None:
            return clips
        return [_captioned(clip, source.info.get(self._job.caption_from)) for clip in clips]

    def _fetch(
        self, video: _Video, source: Source, clips: Sequence[Clip]
    ) -> Sequence[Callable[[], Cut]]:
        """Fetch what some clips of a video need; return, for each, what makes its cut of that.

        Parts of the files where those can be told, else all of them.
        """
        spans = _spans(clips)
        if spans is not None and self._reading.fetch == "ranges" and _in_parts(source):
            with contextlib.suppress(UnsupportedError, BrokenError, NoRangesError):
                parts = [self._part(source, stream) for stream in source.streams]
                return self._cuts(video, source, parts, spans)
        video.parts = None
        files = self._files(video, source)
        if spans is not None:
            with contextlib.suppress(UnsupportedError, BrokenError):
                return self._cuts(video, source, [LocalFile(file) for file in files], spans)
        return [
            functools.partial(cut_files, files, clip.start, clip.end, self._form) for clip in clips
        ]

    def _part(self, source: Source, stream: Stream) -> File:
        if stream.path is not None:
            return LocalFile(Path(stream.path))
        return RemoteFile(self._network, stream, source.headers, self._reading.retries)

    def _files(self, video: _Video, source: Source) -> list[Path]:
        """Return whole files, fetched if they are not there yet."""
        if video.folder is None:
            video.folder = Path(tempfile.mkdtemp(dir=self._folder.name))
        files = []
        for number, stream in enumerate(source.streams):
            if stream.path is not None:
                files.append(Path(stream.path))
                continue
            path = video.folder / f"{number}.{stream.container or 'media'}"
            if path not in video.fetched:
                fetch_file(self._network, stream, source.headers, path, self._reading.retries)
                video.fetched.add(path)
            files.append(path)
        return files

    def _cuts(
        self, video: _Video, source: Source, files: Sequence[File], spans: Sequence[Span]
    ) -> Sequence[Callable[[], Cut]]:
        """Load what spans take of one or two files, and return what makes the cuts.

        Raises
        ------
        UnsupportedError, BrokenError
            If it can't be told: then whole files are needed.
        """
        if video.parts is None:
            video.parts = [
                Media(file, _head_size(stream, source.duration))
                for file, stream in zip(files, source.streams, strict=True)
            ]
        picture, sound, form = video.parts[0], video.parts[-1], self._form
        pictures = "video" in form.formats
        if not is_copied(sound, video=False) or (pictures and not is_copied(picture, video=True)):
            raise UnsupportedError("codecs that are not copied")
        if pictures:
            found = choose_clips(picture, sound, spans, form.precision)
        else:
            found = choose_sound(sound, spans, form.around)
        return [functools.partial(_made, each, picture, sound, form) for each in found]


def _worker(*, needed: bool) -> Worker | None:
    """Return the worker that this thread's task runs on; outside of Dask there is none."""
    try:
        return get_worker()
    except ValueError:
        if needed:
            raise
        return None


@dataclass(eq=False)
class _Video:
    """A video on its way.

    `wanted` are the clips to make of it, of which `done` are made; `parts` what is read of its
    files, `fetched` those that are there as a whole. `told` is what of its cost stands with clips
    that are made. `lease` is its leave to ask the site, `settled` whether the governor knows what
    came of that, `fresh` whether expired addresses were asked for anew. `thread` works on it.
    """

    clips: Sequence[Clip]
    budget: Budget
    attempt: int = 1
    source: Source | None = None
    wanted: Sequence[Clip] = ()
    done: int = 0
    parts: Sequence[Media] | None = None
    folder: Path | None = None
    fetched: set[Path] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)
    told: tuple[int, int] = (0, 0)
    paused: float = field(default_factory=time.monotonic)
    lease: Future[None] | None = None
    settled: bool = False
    fresh: bool = False
    thread: threading.Thread = field(default_factory=threading.current_thread)

    @property
    def url(self) -> str:
        """What the extractor is given."""
        return self.clips[0].url

    def begin_again(self) -> None:
        """Forget its addresses, for another extraction."""
        self.attempt += 1
        self.source, self.parts, self.lease, self.settled = None, None, None, False


def _weight(clips: Sequence[Clip]) -> float:
    """Return how much clips weigh in memory: about 1 for each of 10 s or less."""
    return sum(
        1 if c.start is None or c.end is None else max(1, (c.end - c.start) / 10) for c in clips
    )


def _group(clips: Sequence[Clip]) -> Sequence[Clip]:
    """Return the first clips, as many as are made in one go: at least one."""
    weights = itertools.accumulate(_weight([clip]) for clip in clips)
    return clips[: max(1, sum(weight <= _GROUP for weight in weights))]


def _failures(video: _Video, failed: ClipError) -> list[ClipResult]:
    """Return the results of all clips that are not made: of those planned, if none is."""
    clips = video.wanted[video.done :] if video.done else video.clips
    results = [
        ClipResult(clip, failed.outcome, failed.detail, attempts=video.attempt) for clip in clips
    ]
    return _with_cost(video, results)


def _with_cost(video: _Video, results: Sequence[ClipResult]) -> list[ClipResult]:
    """Return results with what the video cost since the last ones, on the first of them.

    So sums are right.
    """
    first, *others = results
    spent, seconds = (video.budget.bytes_received, video.budget.requests), video.seconds
    first = replace(
        first,
        bytes_fetched=spent[0] - video.told[0],
        requests=spent[1] - video.told[1],
        seconds=seconds,
    )
    video.told, video.seconds = spent, {}
    return [first, *others]


def _cut(
    video: _Video, made: ClipResult, clips: Sequence[Clip], cuts: Sequence[Callable[[], Cut]]
) -> list[ClipResult]:
    """Return the results of some clips; `made` tells what they have in common."""
    with _timed(video.seconds, "cut"):
        found = [
            _with_cut(replace(made, clip=clip), cut, video.budget)
            for clip, cut in zip(clips, cuts, strict=True)
        ]
    return _with_cost(video, found)


def _spans(clips: Sequence[Clip]) -> list[Span] | None:
    """Return starts and ends in seconds; None if a clip is a whole video."""
    found = [
        (Fraction(clip.start_ms, 1000), Fraction(clip.end_ms, 1000))
        for clip in clips
        if clip.start_ms is not None and clip.end_ms is not None
    ]
    return found if len(found) == len(clips) else None


#: Containers that parts can be told of, by yt-dlp's names.
_PARTS = ("mp4", "m4a", "m4v", "mov")


def _in_parts(source: Source) -> bool:
    return all(stream.path or stream.container in _PARTS for stream in source.streams)


def _head_size(stream: Stream, duration: float | None) -> int:
    """Return how many bytes to read first: about what a file's tables take.

    Fragments of picture last 5 s on the site and those of sound 10 s, with 12 bytes each in the
    index. The table of a progressive file has 8 to 16 bytes a frame, and 4 a packet of sound.
    """
    if duration is None:
        return 1 << 16
    if stream.video_codec and stream.audio_codec:
        return 4096 + round(600 * duration)
    return 1024 + round(13 * duration / (5 if stream.video_codec else 10))


def _made(chosen: Chosen | ClipError, picture: Media, sound: Media, form: CutForm) -> Cut:
    if isinstance(chosen, ClipError):
        raise chosen
    return cut_chosen(chosen, picture, sound, form)


def _with_cut(made: ClipResult, cut: Callable[[], Cut], budget: Budget) -> ClipResult:
    """Return `made` with its cut, or with what came in its way."""
    if budget.exceeded:
        return replace(made, outcome=Outcome.TIMEOUT, detail="no time was left for the cut")
    try:
        return replace(made, cut=cut())
    except ClipError as error:
        return replace(made, outcome=error.outcome, detail=error.detail)


def _needed(config: Config) -> Reading:
    """Return how videos are looked up: clips of subtitles need them, wanted in the JSON or not."""
    reading = config.reading
    if config.storage.captions_are_subtitles and reading.writesubtitles is None:
        return replace(reading, writesubtitles="first")
    return reading


def _captioned(clip: Clip, caption: str | None) -> Clip:
    return replace(clip, caption=caption, captions=None if caption is None else (caption,))


def _line_clips(clips: Sequence[Clip], source: Source, clipping: Clipping) -> list[Clip]:
    """Return a clip for each line of the video's first subtitles, with the line as its caption.

    Of lines with the same span the first counts: keys are unique.

    Raises
    ------
    ClipError
        ``no_subtitles``.
    """
    lines: Sequence[Line] = next(iter((source.subtitles or {}).values()), ())
    if not lines:
        raise ClipError(Outcome.NO_SUBTITLES, "no line in the languages asked for")
    pieces = (
        _captioned(replace(clip, start_ms=start, end_ms=end), line.text)
        for clip, line in itertools.product(clips, lines)
        for start, end in split_span(line.start_ms, line.end_ms, **clipping.limits())
    )
    made: dict[str, Clip] = {}
    for number, piece in enumerate(pieces):
        if number == _MOST_LINES:
            # A day's line in pieces of milliseconds, say.
            raise ClipError(Outcome.NO_SUBTITLES, f"more than {_MOST_LINES} clips would be made")
        made.setdefault(piece.key, piece)
    if not made:
        detail = f"none of {len(lines)} lines is as long as min_length, {clipping.min_length:g} s"
        raise ClipError(Outcome.NO_SUBTITLES, detail)
    return list(made.values())


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the seconds of the block to its stage: of the wall clock, and of this thread's CPU."""
    begun, cpu_begun = time.monotonic(), time.thread_time()
    try:
        yield
    finally:
        spent = {stage: time.monotonic() - begun, f"{stage}_cpu": time.thread_time() - cpu_begun}
        for name, value in spent.items():
            seconds[name] = seconds.get(name, 0.0) + value


def _wait(available_at: float | None) -> float:
    """Return how many seconds the site asks to wait.

    Raises
    ------
    ClipError
        If it asks for more than an advertisement could last.
    """
    seconds = 0.0 if available_at is None else available_at - time.time()
    if seconds > _LONGEST_WAIT:
        raise ClipError(Outcome.TIMEOUT, f"the site asks to wait {seconds:.0f} s")
    return max(0.0, seconds)


def _in_time(error: ClipError, budget: Budget) -> ClipError:
    """Return a timeout where the end of the budget is the likely cause of `error`.

    A refusal stays one: it tells of the egress.
    """
    lasting = error.outcome.retry is Retry.NEVER or error.outcome.scope is Scope.EGRESS
    if budget.exceeded and not lasting:
        return ClipError(Outcome.TIMEOUT, f"timed out: {error.detail}")
    return error
