"""Reading a dataset back: a webdataset pipeline whose samples are decoded pictures and sound.

Who reads what is settled by counting, so that nothing is read twice or missed: of `readers` (each
worker of a DataLoader on each node is one) reader `i` takes each `readers`-th shard from the `i`-th
on, as webdataset's ``split_by_node`` and ``split_by_worker`` do; where there are fewer shards than
readers, it takes each `readers`-th sample of all shards.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import context, sharedctypes
from typing import Any, Literal, cast

import numpy as np
import orjson
import webdataset
from webdataset import filters, tariterators, utils

from acavdl.decode import Decoder
from acavdl.errors import SampleError, UsageError
from acavdl.ledger import plan_of, published_of, read_manifest, shard_name
from acavdl.storage import Store

#: What a webdataset handler is: told an error, returns whether to go on behind it.
Handler = Callable[[Exception], bool]

reraise: Handler = filters.reraise_exception

#: Workers of a DataLoader whose epochs are counted apart.
_WORKERS = 1024


@dataclass(frozen=True)
class Shard:
    """A published shard: the name of its tar, and how many samples that holds."""

    name: str
    samples: int


@dataclass
class Position:
    """How far the readers of a dataset have come; what `open_dataset` resumes from.

    Made empty, and told each sample or batch that was used; `as_dict` goes into a checkpoint.
    """

    readers: int | None = None
    at: dict[str, tuple[int, int]] = field(default_factory=dict)

    def update(self, sample: Mapping[str, Any]) -> None:
        """Note that a sample, or a batch of some, was used."""
        states = sample["__state__"]
        for state in [states] if isinstance(states, Mapping) else states:
            self.readers = state["readers"]
            self.at[str(state["reader"])] = state["epoch"], state["done"]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it: of each reader its epoch, and the samples it had of that."""
        return {
            "readers": self.readers,
            "at": {name: list(place) for name, place in self.at.items()},
        }


class Dataset(webdataset.DataPipeline, webdataset.compat.FluidInterface):  # type: ignore[misc]
    """What `open_dataset` returns: a pipeline of webdataset with its methods (``map``, …)."""

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards that were published when it was opened."""
        return cast("_Samples", self.pipeline[0]).shards

    @property
    def samples(self) -> int:
        """How many samples these hold: of all nodes, before any selection."""
        return sum(shard.samples for shard in self.shards)

    def set_epoch(self, epoch: int) -> None:
        """Say with which epoch the next iteration begins; without it, with the one that is next."""
        cast("_Samples", self.pipeline[0]).next_epoch.fill(epoch)


def open_dataset(
    output_folder: str | os.PathLike[str],
    *,
    fps: float | None = None,
    size: int | tuple[int, int] | None = None,
    video: bool = True,
    audio: bool = True,
    audio_rate: int | None = None,
    audio_channels: int | None = None,
    pad: bool = False,
    shuffle: int = 0,
    seed: int = 0,
    epochs: int | None = 1,
    resume: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    tensors: Literal["auto", "numpy", "torch"] = "auto",
    rank: int | None = None,
    world_size: int | None = None,
    select: Callable[[Mapping[str, Any]], bool] | None = None,
    handler: Handler = reraise,
    storage_options: Mapping[str, Any] | None = None,
) -> Dataset:
    """Open a dataset for reading: decoded samples of exactly the spans that were asked for.

    Parameters
    ----------
    output_folder
        Path or URL of a folder that a run has made, or makes: the shards that are published now.
    fps, size, video, audio, audio_rate, audio_channels, pad
        What is decoded, and how: see `acavdl.Decoder`.
    shuffle
        Samples in the buffer that each reader shuffles; the order of shards is then random, too.
        The buffer holds clips as they are stored (about 1 MB each). 0 = the order on disk.
    seed
        Which random order; another one in each epoch.
    epochs
        How often one iteration goes over the dataset; None = without end.
    resume
        What `Position.as_dict` told: each reader goes on behind the last sample used, in the order
        that it would have had. As many readers as then, the same shards, `shuffle`, `seed` and
        `select` are needed.
    batch_size
        Samples that are stacked (see below); None = single samples.
    tensors
        ``torch`` or ``numpy``; ``auto`` = torch where it is installed.
    rank, world_size
        Which node this is, of how many; None = as ``RANK`` and ``WORLD_SIZE`` or torch.distributed
        say, else the only one.
    select
        Told a sample's JSON, returns whether the sample is wanted.
    handler
        Told what is wrong with a sample or shard, as in webdataset: the default raises, and
        ``webdataset.warn_and_continue`` goes on with the next one.
    storage_options
        What fsspec gets: endpoint, profile, credentials.

    Returns
    -------
    Dataset
        Its samples are those of `acavdl.Decoder`, with ``__state__`` for `Position`. In a batch
        ``video``, ``audio``, ``video_times`` and what ends in ``_valid`` are stacked, filled to the
        longest with 0 (times with NaN); all else are lists.

    Raises
    ------
    UsageError
        For options that can't be, a folder that holds no dataset, or nothing published yet; when
        read, if batches are of samples that can't be stacked.
    SampleError
        When read: if a sample or a tar can't be read; it names both.
    StorageError
        If the store doesn't tell, or, when read, fails.
    """
    decoder = Decoder(fps, size, video, audio, audio_rate, audio_channels, pad)
    _check_options(
        decoder,
        shuffle=shuffle,
        epochs=epochs,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
    )
    url = os.fspath(output_folder)
    options = dict(storage_options or {})
    shards = _shards(Store(url, options), video=video)
    node = None if rank is None or world_size is None else (rank, world_size)
    source = _Samples(url, options, shards, _Order(shuffle, seed), epochs, node, select, handler)
    source.resume(resume)
    stages = [source, webdataset.map(decoder, handler=handler)]
    if batch_size is not None:
        stages.append(webdataset.batched(batch_size, collation_fn=stacked))
    if tensors == "torch" or (tensors == "auto" and importlib.util.find_spec("torch")):
        stages.append(webdataset.map(with_tensors))
    return Dataset(*stages)


def _check_options(
    decoder: Decoder,
    *,
    shuffle: int,
    epochs: int | None,
    batch_size: int | None,
    rank: int | None,
    world_size: int | None,
) -> None:
    problems = {
        "shuffle: 0, or samples in the buffer": shuffle < 0,
        "epochs: 1 or more, or None": epochs is not None and epochs < 1,
        "batch_size: 1 or more, or None": batch_size is not None and batch_size < 1,
        "rank and world_size: both or none": (rank is None) != (world_size is None),
        "rank: from 0 to world_size - 1": rank is not None
        and world_size is not None
        and not 0 <= rank < world_size,
        "batch_size: pictures need size=(height, width)": batch_size is not None
        and decoder.video
        and not isinstance(decoder.size, tuple),
        "batch_size: sound needs audio_rate and audio_channels": batch_size is not None
        and decoder.audio
        and None in (decoder.audio_rate, decoder.audio_channels),
    }
    for problem, wrong in problems.items():
        if wrong:
            raise UsageError(problem)


def _shards(store: Store, *, video: bool) -> tuple[Shard, ...]:
    """Return the published shards that hold samples.

    Raises
    ------
    UsageError
        If there is none, or none that can be read so.
    """
    manifest = read_manifest(store)
    if manifest is None:
        raise UsageError(f"{store} is no folder that acavdl has made: _acavdl/run.json is missing")
    made_as = manifest["fingerprint"]
    if made_as["output_format"] != "webdataset":
        raise UsageError(f"{store} holds files and no tars (output_format: files)")
    if video and "video" not in made_as["encode_formats"]:
        raise UsageError(f"{store} holds sound alone: open it with video=False")
    shards = sum(len(part.sizes) for part in plan_of(manifest).parts)
    digits = manifest["config"]["storage"]["oom_shard_count"]
    found = published_of(store, shards, digits)
    named = tuple(
        Shard(f"{shard_name(one.shard, digits)}.tar", one.counts.get("ok", 0))
        for one in sorted(found.values(), key=lambda one: one.shard)
    )
    if not any(shard.samples for shard in named):
        raise UsageError(f"{store}: no shard with samples is published (yet)")
    return tuple(shard for shard in named if shard.samples)


@dataclass(frozen=True)
class _Order:
    """In which order samples come."""

    shuffle: int
    seed: int

    def shards(self, shards: Sequence[Shard], epoch: int) -> list[Shard]:
        """Return the shards in the order of an epoch: the same for all readers."""
        order = list(shards)
        if self.shuffle:
            random.Random(f"{self.seed} {epoch}").shuffle(order)
        return order

    def samples(self, samples: Iterator[Any], epoch: int, reader: int) -> Iterator[Any]:
        """Return the samples of a reader in the order of an epoch."""
        if not self.shuffle:
            return samples
        mixed = filters.shuffle(
            self.shuffle, initial=self.shuffle, seed=f"{self.seed} {epoch} {reader}"
        )
        return cast("Iterator[Any]", mixed(samples))


class _Epochs:
    """With which epoch each worker of a DataLoader goes on: in memory that processes share.

    So it lasts where workers are started anew for each epoch, and is heard where they are kept.
    """

    def __init__(self) -> None:
        self._next: Any = sharedctypes.RawArray("q", _WORKERS)

    def __getitem__(self, worker: int) -> int:
        return int(self._next[worker % _WORKERS])

    def __setitem__(self, worker: int, epoch: int) -> None:
        self._next[worker % _WORKERS] = epoch

    def fill(self, epoch: int) -> None:
        """Let all workers begin with an epoch."""
        self._next[:] = [epoch] * _WORKERS

    def __getstate__(self) -> Any:
        """Share the memory with a process that is being started; else go as a copy."""
        return list(self._next) if context.get_spawning_popen() is None else self._next

    def __setstate__(self, state: Any) -> None:
        self._next = sharedctypes.RawArray("q", state) if isinstance(state, list) else state


@dataclass
class _Samples:
    """The first stage: the samples of this reader, as they are stored. It pickles."""

    url: str
    options: Mapping[str, Any]
    shards: tuple[Shard, ...]
    order: _Order
    epochs: int | None
    node: tuple[int, int] | None
    select: Callable[[Mapping[str, Any]], bool] | None
    handler: Handler
    next_epoch: _Epochs = field(default_factory=_Epochs)
    resumed: Position = field(default_factory=Position)

    def resume(self, state: Mapping[str, Any] | None) -> None:
        """Begin where a `Position` tells.

        Raises
        ------
        UsageError
            If it is none.
        """
        if not state:
            return
        try:
            at = {str(reader): (int(epoch), int(n)) for reader, (epoch, n) in state["at"].items()}
            self.resumed = Position(state["readers"], at)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"resume: not what Position.as_dict tells: {error!r}") from error
        self.next_epoch.fill(min((epoch for epoch, _ in at.values()), default=0))

    def __call__(self) -> Iterator[dict[str, Any]]:
        """Yield the samples of this reader, of one epoch after the other."""
        worker, reader, readers = self._reader()
        begin, done = self.resumed.at.get(str(reader), (0, 0))
        first = max(self.next_epoch[worker], begin)
        # Iterations end at multiples of `epochs`, so that one that is resumed ends where it would
        # have. One that is given up counts: the next one begins with other epochs.
        every = self.epochs or 1
        stop = (first // every + 1) * every
        for epoch in itertools.count(first) if self.epochs is None else range(first, stop):
            self.next_epoch[worker] = max(epoch + 1, stop)
            skipped = done if epoch == begin else 0
            for number, sample in self._epoch(epoch, reader, readers, skipped):
                state = {"reader": reader, "readers": readers, "epoch": epoch, "done": number + 1}
                yield {**sample, "__state__": state}

    def _reader(self) -> tuple[int, int, int]:
        """Return which worker this is, which reader, and of how many readers.

        Raises
        ------
        UsageError
            If they are not as many as those whose position is to be resumed from.
        """
        rank, world_size, worker, workers = utils.pytorch_worker_info()
        rank, world_size = self.node or (rank, world_size)
        readers = world_size * workers
        if self.resumed.readers not in (None, readers):
            raise UsageError(
                f"resume: there were {self.resumed.readers} readers (nodes times workers), and now "
                f"there are {readers}"
            )
        return worker, rank + world_size * worker, readers

    def _epoch(
        self, epoch: int, reader: int, readers: int, skipped: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the samples of an epoch behind those skipped, each with its number."""
        shards = self.order.shards(self.shards, epoch)
        apart = len(shards) >= readers
        own = shards[reader::readers] if apart else shards
        number = 0
        if apart and self.select is None and not self.order.shuffle:
            # What was read to the end need not be opened again.
            while own and number + own[0].samples <= skipped:
                number += own.pop(0).samples
        samples = self._read(own)
        if not apart:
            samples = itertools.islice(samples, reader, None, readers)
        if self.select is not None:
            samples = filter(self._wanted, samples)
        samples = self.order.samples(samples, epoch, reader)
        yield from itertools.islice(enumerate(samples, number), skipped - number, None)

    def _read(self, shards: Sequence[Shard]) -> Iterator[dict[str, Any]]:
        """Yield the samples of tars as webdataset does: members as bytes, by extension."""
        # Each process has a connection of its own.
        store = Store(self.url, self.options)
        for shard in shards:
            path, count = store.path(shard.name), 0
            with store.open(shard.name) as file:
                for sample in self._members(path, file):
                    count += 1
                    yield sample
            # A tar that is damaged may look like one that ends there.
            if count != shard.samples:
                told = f"{path} holds {shard.samples} samples, and {count} could be read"
                if not self.handler(SampleError(told)):
                    return

    def _members(self, path: str, file: Any) -> Iterator[dict[str, Any]]:
        def handler(error: Exception) -> bool:
            cause = f"{type(error).__name__}: {error.args[0] if error.args else ''}"
            return self.handler(SampleError(f"{path} can't be read: {cause}"))

        opened = iter([{"url": path, "stream": file}])
        files = tariterators.tar_file_expander(opened, handler=handler)
        return cast("Iterator[dict[str, Any]]", tariterators.group_by_keys(files, handler=handler))

    def _wanted(self, sample: dict[str, Any]) -> bool:
        sample["json"] = orjson.loads(sample["json"])
        return self.select is not None and bool(self.select(sample["json"]))


#: What is stacked, and what fills it.
_STACKED = {
    "video": 0,
    "audio": 0.0,
    "video_times": np.nan,
    "video_valid": 0,
    "audio_valid": 0,
}


def stacked(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return samples as a batch: arrays are filled to the longest and stacked, the rest are lists.

    Raises
    ------
    UsageError
        If arrays differ in more than their length.
    """
    return {
        name: _stack(name, [sample[name] for sample in samples])
        if name in _STACKED
        else [sample[name] for sample in samples]
        for name in samples[0]
    }


def _stack(name: str, arrays: Sequence[Any]) -> Any:
    axis = 1 if name == "audio" else 0
    shapes = {(*array.shape[:axis], *array.shape[axis + 1 :]) for array in arrays}
    if len(shapes) > 1:
        raise UsageError(f"{name} of {' and '.join(map(str, sorted(shapes)))} can't be a batch")
    longest = max(array.shape[axis] for array in arrays)
    shape = list(arrays[0].shape)
    shape[axis] = longest
    batch = np.full((len(arrays), *shape), _STACKED[name], arrays[0].dtype)
    for place, array in enumerate(arrays):
        batch[place][tuple(slice(length) for length in array.shape)] = array
    return batch


def with_tensors(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sample, or a batch, with tensors in the place of arrays; they share the memory."""
    import torch

    return {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in sample.items()
    }
