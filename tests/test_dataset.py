"""Datasets that runs have made, read back: each sample once, in order, exactly as asked for."""

from __future__ import annotations

import gc
import itertools
import json
import pickle
import re
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import s3
import webdataset
from barcodes import heard_from, numbers, shown_at
from helpers import QUICK, write_csv

from acavdl import driver
from acavdl.config import Clipping, Output, Storage
from acavdl.dataset import Dataset, Position, open_dataset
from acavdl.demo import environment
from acavdl.errors import SampleError, UsageError
from acavdl.sandbox import DEMO_MASTERS, Fault, Sandbox, parse, video_id

SPECS = {spec.code: spec for spec in DEMO_MASTERS}
SECONDS = 1.5
PRECISIONS = ("low", "editlist", "exact", "keyframe_adjusted")
SHARDS = 5


def table_rows() -> list[tuple[str, float, float]]:
    """Clips of three videos of different kinds: four of each, and one video that is private."""
    starts = (0.517, 3.25, 6.1, 7.45)
    rows = [
        (video_id(number, master=code), start, start + SECONDS)
        for number, code in enumerate(("m30", "ntsc", "port"))
        for start in starts
    ]
    return [*rows, (video_id(1, fault=Fault.PRIVATE), 1.0, 1.0 + SECONDS)]


@pytest.fixture(scope="module")
def made(sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make the dataset of `table_rows`, for each precision once."""
    root = tmp_path_factory.mktemp("datasets")
    rows = table_rows()
    found: dict[str, Path] = {}

    def make(precision: str) -> Path:
        if precision not in found:
            long = precision == "keyframe_adjusted"
            spans = [(v, s, s + 11.6) for v, s, _ in rows[:2]] if long else rows
            table = write_csv(root / f"{precision}.csv", spans)
            config = replace(
                QUICK,
                clipping=Clipping(precision=precision),  # type: ignore[arg-type]
                storage=Storage(number_sample_per_shard=3),
            )
            with environment(sandbox.environ()):
                driver.run(str(table), str(root / precision), config=config, progress="quiet")
            found[precision] = root / precision
        return found[precision]

    return make


@pytest.fixture
def low(made: Callable[[str], Path]) -> Path:
    return made("low")


def keys(dataset: Any) -> list[str]:
    return [sample["__key__"] for sample in dataset]


def quick(folder: Path | str, **options: Any) -> Dataset:
    """Open a dataset without its pictures: sound is decoded sooner."""
    return open_dataset(folder, **{"video": False, "tensors": "numpy", **options})


def planned_keys() -> list[str]:
    return [f"{v}_{round(s * 1000):09d}_{round(e * 1000):09d}" for v, s, e in table_rows()[:-1]]


def check(sample: dict[str, Any]) -> None:
    """See that a sample shows exactly what was asked for."""
    spec = SPECS[parse(sample["json"]["cut"]["video_id"]).master]
    start, end = sample["start"], sample["end"]
    assert numbers(spec, np.asarray(sample["video"])) == list(
        range(shown_at(spec, start), shown_at(spec, end))
    )
    first, last = heard_from(spec, {**sample, "audio": np.asarray(sample["audio"])})
    assert first == pytest.approx(start, abs=0.5 / sample["audio_rate"] + 2e-5)
    assert last == pytest.approx(end, abs=1.1 / float(spec.fps))


# --- what is in a sample --------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["low", "editlist", "exact"])
def test_samples_show_what_was_asked_for(made: Callable[[str], Path], precision: str) -> None:
    samples = list(open_dataset(made(precision), tensors="numpy"))
    assert sorted(sample["__key__"] for sample in samples) == sorted(planned_keys())
    for sample in samples:
        check(sample)


def test_adjusted_samples_are_padded_to_what_was_asked_for(made: Callable[[str], Path]) -> None:
    folder = made("keyframe_adjusted")
    dataset = open_dataset(
        folder,
        fps=10,
        size=(90, 160),
        audio_rate=16_000,
        audio_channels=1,
        pad=True,
        batch_size=2,
        tensors="numpy",
    )
    batches = list(dataset)
    assert batches
    for batch in batches:
        assert batch["video"].shape[1:] == (116, 90, 160, 3)
        assert batch["audio"].shape[1:] == (1, 185_600)
        for place, info in enumerate(batch["json"]):
            cut, spec = info["cut"], SPECS[parse(info["cut"]["video_id"]).master]
            first, stop = batch["video_valid"][place]
            shown = np.array(numbers(spec, batch["video"][place][first:stop])) / float(spec.fps)
            assert shown - cut["start"] == pytest.approx(
                batch["video_times"][place][first:stop], abs=1e-4
            )
            assert shown[0] == pytest.approx(cut["actual_start"], abs=0.051)
            heard = batch["audio_valid"][place] / 16_000 + cut["start"]
            assert heard[0] == pytest.approx(cut["actual_start"], abs=1e-4)


def test_a_batch_is_filled_to_its_longest(low: Path) -> None:
    """Two of the videos have 30 frames a second, the third has 1/1001 less: 44 or 45 of them."""
    dataset = open_dataset(
        low, size=(90, 160), audio_rate=8_000, audio_channels=1, batch_size=12, tensors="numpy"
    )
    (batch,) = dataset
    counts = [stop for _, stop in batch["video_valid"]]
    assert batch["video"].shape == (12, max(counts), 90, 160, 3)
    for count, times in zip(counts, batch["video_times"], strict=True):
        assert not np.isnan(times[:count]).any()
        assert np.isnan(times[count:]).all()
    assert batch["audio"].shape == (12, 1, 12_000)
    assert len(batch["__key__"]) == len(batch["json"]) == 12


# --- who reads what -------------------------------------------------------------------------------


def readers(folder: Path, nodes: int, workers: int, monkeypatch: Any, **options: Any) -> list[Any]:
    """Return the keys that each reader reads: workers as webdataset tells them from variables."""
    found = []
    monkeypatch.setenv("NUM_WORKERS", str(workers))
    for rank, worker in itertools.product(range(nodes), range(workers)):
        monkeypatch.setenv("WORKER", str(worker))
        found.append(keys(quick(folder, rank=rank, world_size=nodes, **options)))
    return found


@pytest.mark.parametrize(("nodes", "workers"), [(1, 1), (2, 1), (1, 2), (2, 2), (3, 4)])
@pytest.mark.parametrize("shuffle", [0, 4])
def test_no_sample_twice_or_missing(
    low: Path, monkeypatch: pytest.MonkeyPatch, nodes: int, workers: int, shuffle: int
) -> None:
    """Also where there are more readers than shards."""
    found = readers(low, nodes, workers, monkeypatch, shuffle=shuffle)
    assert all(found)
    assert sorted(itertools.chain.from_iterable(found)) == sorted(planned_keys())


def test_nodes_are_told_by_the_usual_variables(low: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        found += keys(quick(low))
    assert sorted(found) == sorted(planned_keys())


def test_shards_are_split_as_webdataset_splits_them(
    low: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("NUM_WORKERS", "2")
    for rank, worker in itertools.product("01", "01"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORKER", worker)
        dataset = quick(low)
        urls = [str(low / shard.name) for shard in dataset.shards]
        split = [*webdataset.split_by_worker(webdataset.split_by_node(iter(urls)))]
        assert list(dict.fromkeys(sample["__url__"] for sample in dataset)) == split


def test_without_shuffling_the_order_is_that_on_disk(low: Path) -> None:
    dataset = quick(low)
    assert dataset.samples == 12
    found = keys(dataset)
    assert found == [sample["__key__"] for sample in quick(low)]
    assert found == keys(dataset)


def test_each_epoch_is_shuffled_in_another_way_and_the_same_again(low: Path) -> None:
    dataset = quick(low, shuffle=6, seed=1)
    first, second = keys(dataset), keys(dataset)
    assert first != second
    assert sorted(first) == sorted(second) == sorted(planned_keys())
    again = quick(low, shuffle=6, seed=1, epochs=2)
    assert keys(again) == first + second
    dataset.set_epoch(0)
    assert keys(dataset) == first
    assert keys(quick(low, shuffle=6, seed=2)) != first


def test_the_samples_of_a_shard_are_shuffled_too(low: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(low, copy)
    for stats in sorted(copy.glob("*_stats.json"))[1:]:
        stats.unlink()
    dataset = quick(copy, shuffle=6)
    assert len(dataset.shards) == 1
    orders = {tuple(keys(dataset)) for _ in range(6)}
    assert len(orders) > 1


def test_without_end(low: Path) -> None:
    dataset = quick(low, epochs=None)
    found = [sample["__key__"] for sample in itertools.islice(dataset, 30)]
    once = keys(quick(low))
    assert found == (once * 3)[:30]
    assert len(keys(dataset.with_epoch(7))) == 7


def test_selected_samples_alone(low: Path) -> None:
    found = keys(quick(low, select=lambda info: info["cut"]["start"] > 5))
    assert len(found) == 6
    assert set(found) < set(planned_keys())


# --- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [1, 2, 3, 7, 12, 13, 23, 24])
@pytest.mark.parametrize("shuffle", [0, 5])
def test_resuming_goes_on_with_the_next_sample(low: Path, used: int, shuffle: int) -> None:
    whole = keys(quick(low, shuffle=shuffle, epochs=2))
    position = Position()
    for sample in itertools.islice(quick(low, shuffle=shuffle, epochs=2), used):
        position.update(sample)
    state = json.loads(json.dumps(position.as_dict()))
    dataset = quick(low, shuffle=shuffle, epochs=2, resume=state)
    if used == 24:
        # All of that iteration: the next one.
        assert not keys(dataset)
        return
    assert whole[:used] + keys(dataset) == whole


def test_resuming_with_batches_and_readers(low: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {
        "batch_size": 2,
        "audio_rate": 16_000,
        "audio_channels": 1,
        "shuffle": 3,
    }
    monkeypatch.setenv("NUM_WORKERS", "2")
    position, used = Position(), []
    for worker, batches in (("0", 1), ("1", 2)):
        monkeypatch.setenv("WORKER", worker)
        for batch in itertools.islice(quick(low, **options), batches):
            position.update(batch)
            used += batch["__key__"]
    assert len(used) == 6
    for worker in "01":
        monkeypatch.setenv("WORKER", worker)
        for batch in quick(low, resume=position.as_dict(), **options):
            used += batch["__key__"]
    assert sorted(used) == sorted(planned_keys())
    monkeypatch.setenv("NUM_WORKERS", "3")
    with pytest.raises(UsageError, match=r"2 readers .* now there are 3"):
        next(iter(quick(low, resume=position.as_dict(), **options)))


def test_what_was_read_is_not_opened_again(low: Path, tmp_path: Path) -> None:
    position = Position()
    dataset = quick(low)
    size = dataset.shards[0].samples
    for sample in itertools.islice(dataset, size):
        position.update(sample)
    resumed = quick(low, resume=position.as_dict())
    copy = tmp_path / "copy"
    shutil.copytree(low, copy)
    resumed = quick(copy, resume=position.as_dict())
    (copy / dataset.shards[0].name).unlink()
    assert len(keys(resumed)) == 12 - size


# --- folders --------------------------------------------------------------------------------------


def test_only_published_shards_are_read(low: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(low, copy)
    first, second = (shard.name for shard in quick(low).shards[:2])
    (copy / first.replace(".tar", "_stats.json")).unlink()
    with (copy / second).open("ab") as file:
        file.write(b"\0" * 512)
    assert [shard.name for shard in quick(copy).shards] == [
        shard.name for shard in quick(low).shards[2:]
    ]
    for stats in copy.glob("*_stats.json"):
        stats.unlink()
    with pytest.raises(UsageError, match="no shard with samples is published"):
        open_dataset(copy)


def test_other_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no folder that acavdl has made: .*run\.json"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fps": -1}, "fps"),
        ({"shuffle": -1}, "shuffle"),
        ({"epochs": 0}, "epochs"),
        ({"rank": 1}, "both or none"),
        ({"rank": 2, "world_size": 2}, "from 0 to world_size - 1"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 2}, "pictures need size"),
        ({"batch_size": 2, "video": False}, "audio_rate and audio_channels"),
        ({"resume": {"at": 3}}, "not what Position"),
    ],
)
def test_options_that_can_not_be(low: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        open_dataset(low, **options)


def test_damage_is_told_with_shard_and_key_or_passed_over(low: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(low, copy)
    path = copy / quick(low).shards[0].name
    whole = path.read_bytes()
    told: list[Exception] = []

    def note(error: Exception) -> bool:
        told.append(error)
        return True

    dataset, noting = quick(copy), quick(copy, handler=note)
    with tarfile.open(path) as tar:
        first, second = [each for each in tar if each.name.endswith(".mp4")][:2]
        begin = next(each.offset for each in tar if each.name[:-5] == second.name[:-4])
    # In the first sample's media.
    inside = slice(first.offset_data + 512, first.offset_data + 20_000)
    path.write_bytes(whole[: inside.start] + bytes(19_488) + whole[inside.stop :])
    key = first.name.removesuffix(".mp4")
    with pytest.raises(SampleError, match=rf"{path.name}: sample {key} can't be decoded"):
        keys(dataset)
    assert sorted(keys(noting)) == sorted(set(planned_keys()) - {key})
    assert len(told) == 1
    # Where the second one's begin: that looks like the end of the tar.
    path.write_bytes(whole[:begin] + bytes(512) + whole[begin + 512 :])
    with pytest.raises(SampleError, match=rf"{path.name} holds 3 samples, and 1 could be read"):
        keys(dataset)
    # In the midst of a member.
    path.write_bytes(whole[: second.offset_data + 5_000])
    with pytest.raises(SampleError, match=rf"{path.name} can't be read: ReadError"):
        keys(dataset)
    told.clear()
    assert 9 < len(keys(noting)) < 12
    assert told


def test_a_pipeline_pickles_and_has_the_methods_of_webdataset(low: Path) -> None:
    dataset = quick(low).map(sample_key).slice(4)
    assert isinstance(dataset, webdataset.DataPipeline)
    found = list(dataset)
    assert len(found) == 4
    copy = pickle.loads(pickle.dumps(quick(low)))
    assert keys(copy) == keys(quick(low))


def sample_key(sample: dict[str, Any]) -> str:
    return str(sample["__key__"])


def test_on_s3(low: Path, bucket: str, s3_endpoint: str) -> None:
    filesystem = fsspec.filesystem("s3", endpoint_url=s3_endpoint, skip_instance_cache=True)
    filesystem.put(str(low), f"{bucket}/set", recursive=True)
    for options in ({}, {"endpoint_url": s3_endpoint, "key": s3.KEY, "secret": s3.SECRET}):
        dataset = quick(f"s3://{bucket}/set", storage_options=options)
        assert keys(dataset) == keys(quick(low))


def test_sound_alone(sandbox: Sandbox, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "clips.csv", table_rows()[:2])
    config = replace(QUICK, output=Output(encode_formats={"audio": "flac"}))
    with environment(sandbox.environ()):
        driver.run(str(table), str(tmp_path / "out"), config=config, progress="quiet")
    with pytest.raises(UsageError, match="sound alone: open it with video=False"):
        open_dataset(tmp_path / "out")
    samples = list(quick(tmp_path / "out"))
    assert len(samples) == 2
    for sample in samples:
        first, last = heard_from(SPECS["m30"], sample)
        assert first == pytest.approx(sample["start"], abs=5e-5)
        assert last == pytest.approx(sample["end"], abs=5e-5)


def test_files_in_place_of_tars_are_told(sandbox: Sandbox, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "clips.csv", table_rows()[:1])
    config = replace(QUICK, output=Output(output_format="files"))
    with environment(sandbox.environ()):
        driver.run(str(table), str(tmp_path / "out"), config=config, progress="quiet")
    with pytest.raises(UsageError, match="files and no tars"):
        open_dataset(tmp_path / "out")


# --- the recipes of the documentation -------------------------------------------------------------

PAGE = Path(__file__).parents[1] / "docs" / "loading.md"
RECIPES: dict[str, list[str]] = {
    kind: re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    for kind in ("python", "python torch")
}


def run_recipe(code: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(code, str(PAGE), "exec"), names)
    return names


# webdataset leaves the tars that it read to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("number", range(3), ids=["acavdl", "webdataset", "datasets"])
def test_recipe(
    low: Path,
    tmp_path: Path,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = run_recipe(RECIPES["python"][number], {"OUT": str(low)})
    sample = names["sample"]
    start, spec = sample["start"], SPECS[parse(sample["json"]["cut"]["video_id"]).master]
    assert tuple(sample["video"].shape) == (3, *sample["video"].shape[1:3], 3)
    assert min(sample["video"].shape[1:3]) == 112
    heard = heard_from(spec, {**sample, "audio": np.asarray(sample["audio"])})
    assert heard == pytest.approx((start, start + SECONDS), abs=1e-4)
    if "dataset" in names:
        assert sorted(each["__key__"] for each in names["dataset"]) == sorted(planned_keys())
    else:
        assert len(capsys.readouterr().out.splitlines()) == 12
    # What webdataset leaves to the garbage collector goes while that is no error.
    names.clear()
    gc.collect()


def test_each_recipe_is_run() -> None:
    assert len(RECIPES["python"]) == 3
    assert len(RECIPES["python torch"]) == 2
    assert PAGE.read_text().count("```python") == 5


# --- PyTorch, which CI installs where Debian's packages are ---------------------------------------


@pytest.mark.debian
def test_recipe_for_pytorch(low: Path) -> None:
    torch = pytest.importorskip("torch")
    names = run_recipe(RECIPES["python torch"][0], {"OUT": str(low)})
    # The last one may hold one sample alone.
    assert names["video"].shape[1:] == (3, 112, 112, 3)
    assert names["video"].dtype == torch.uint8
    assert names["audio"].shape[1:] == (1, 24_000)
    run_recipe(RECIPES["python torch"][1], names)
    assert json.loads(json.dumps(names["checkpoint"]))["data"]["readers"] == 2
    assert {epoch for epoch, _ in names["position"].at.values()} == {2}
    found = [key for batch in names["loader"] for key in batch["__key__"]]
    assert sorted(found) == sorted(planned_keys())


@pytest.mark.debian
@pytest.mark.parametrize("precision", ["low", "editlist", "exact"])
def test_two_nodes_of_two_workers(made: Callable[[str], Path], precision: str) -> None:
    data = pytest.importorskip("torch.utils.data")
    found = []
    for rank in range(2):
        dataset = open_dataset(made(precision), rank=rank, world_size=2)
        for sample in data.DataLoader(dataset, batch_size=None, num_workers=2):
            check(sample)
            found.append(sample["__key__"])
    assert sorted(found) == sorted(planned_keys())


@pytest.mark.debian
@pytest.mark.parametrize("kept", [False, True])
def test_each_epoch_of_a_loader_is_another_one(low: Path, kept: bool) -> None:
    data = pytest.importorskip("torch.utils.data")

    def loader(dataset: Dataset) -> Any:
        return data.DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=kept)

    dataset = quick(low, shuffle=6)
    loading = loader(dataset)
    epochs = [keys(loading) for _ in range(3)]
    assert all(sorted(epoch) == sorted(planned_keys()) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 3
    dataset.set_epoch(1)
    assert keys(loading) == epochs[1]
    del loading
    # Given up in the second epoch, and resumed.
    position, used = Position(), []
    dataset = quick(low, shuffle=6)
    loading = loader(dataset)
    keys(loading)
    for sample in itertools.islice(loading, 5):
        position.update(sample)
        used.append(sample["__key__"])
    del loading
    loading = loader(quick(low, shuffle=6, resume=position.as_dict()))
    assert sorted(used + keys(loading)) == sorted(planned_keys())
    assert keys(loading) == epochs[2]


@pytest.mark.debian
def test_workers_read_from_s3_and_tell_what_is_wrong(
    low: Path, bucket: str, s3_endpoint: str
) -> None:
    data = pytest.importorskip("torch.utils.data")
    filesystem = fsspec.filesystem("s3", endpoint_url=s3_endpoint, skip_instance_cache=True)
    filesystem.put(str(low), f"{bucket}/set", recursive=True)
    dataset = quick(f"s3://{bucket}/set")
    assert keys(dataset)
    loader = data.DataLoader(dataset, batch_size=None, num_workers=2)
    assert sorted(keys(loader)) == sorted(planned_keys())
    name = dataset.shards[0].name
    filesystem.pipe(f"{bucket}/set/{name}", filesystem.cat(f"{bucket}/set/{name}")[:100_000])
    with pytest.raises(SampleError, match=rf"{name} can't be read"):
        keys(loader)
