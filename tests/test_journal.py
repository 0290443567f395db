"""Checkpoints of open shards: found again, and given up where they can't be trusted."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from acavdl.errors import ShardError
from acavdl.journal import Journal, Resumed
from acavdl.storage import Store


def rows(*values: int) -> pa.Table:
    return pa.table({"key": [f"k{value}" for value in values], "n": list(values)})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def files(store: Store) -> list[str]:
    return sorted(store.sizes("_acavdl/open/00007"))


def test_nothing_is_there_at_first(store: Store) -> None:
    assert Journal(store, "00007").resumed() == Resumed()
    Journal(store, "00007").clear()


def test_rows_and_the_last_state_come_back(store: Store) -> None:
    journal = Journal(store, "00007")
    journal.save(rows(0, 1), {"bytes": 10})
    journal.save(rows(2), {"bytes": 30, "tar": journal.path("tar")})
    found = Journal(store, "00007").resumed()
    assert [row["n"] for row in found.rows] == [0, 1, 2]
    assert found.state == {"bytes": 30, "tar": journal.path("tar")}
    assert Journal(store, "00008").resumed() == Resumed()


def test_the_task_that_came_farthest_counts(store: Store) -> None:
    first, second = Journal(store, "00007"), Journal(store, "00007")
    assert first.path("tar") != second.path("tar")
    first.save(rows(0, 1, 2), {"of": "first"})
    second.save(rows(0), {"of": "second"})
    assert Journal(store, "00007").resumed().state == {"of": "first"}
    second.save(rows(1, 2, 3), {"of": "second"})
    assert Journal(store, "00007").resumed().state == {"of": "second"}


@pytest.mark.parametrize("damage", ["lost", "empty", "cut", "other"])
def test_a_damaged_one_is_not_gone_on_from(
    store: Store, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole, damaged = Journal(store, "00007"), Journal(store, "00007")
    whole.save(rows(0), {"of": "whole"})
    for value in range(3):
        damaged.save(rows(value), {"of": "damaged"})
    folder = tmp_path / "_acavdl/open/00007"
    name = damaged.path("").rsplit("/", 1)[1].rstrip(".")
    path = folder / f"{name}-000001.parquet"
    if damage == "lost":
        path.unlink()
    elif damage == "other":
        path.write_bytes((folder / f"{name}-000000.parquet").read_bytes().replace(b"PAR1", b"PARX"))
    else:
        path.write_bytes(path.read_bytes()[: 40 if damage == "cut" else 0])
    assert Journal(store, "00007").resumed().state == {"of": "whole"}
    assert "cannot go on from" in caplog.text


def test_all_of_it_is_removed_at_the_end(store: Store, tmp_path: Path) -> None:
    first, second = Journal(store, "00007"), Journal(store, "00007")
    for journal in (first, second):
        journal.save(rows(0), {})
        (tmp_path / journal.path("tar")).write_bytes(b"x")
    Journal(store, "00008").save(rows(0), {})
    assert len(files(store)) == 4
    first.clear()
    assert files(store) == []
    assert len(store.sizes("_acavdl/open/00008")) == 1


def test_a_shard_at_which_workers_die_is_set_aside(store: Store) -> None:
    killed = []

    def die(run: str, done: int) -> None:
        # As a process that is killed: nothing of it is undone.
        killed.append(Journal(store, "00007").begun(run, done))
        killed[-1].__enter__()

    for _ in range(4):
        die("a", 64)
    with Journal(store, "00007").begun("a", 64):
        pass
    die("a", 64)
    with pytest.raises(ShardError, match="5 workers have died at it, behind its first 64 clips"):
        Journal(store, "00007").begun("a", 64).__enter__()
    # Where it has come farther, and in the next run, there is another chance.
    for run, done in (("a", 128), ("b", 64)):
        with Journal(store, "00007").begun(run, done):
            assert any(f"-{run}-{done}.begun" in name for name in files(store))
    assert len(files(store)) == 5
    assert Journal(store, "00007").resumed() == Resumed()
    Journal(store, "00007").clear()
    assert files(store) == []


def test_a_task_that_fails_leaves_no_mark(store: Store) -> None:
    with pytest.raises(KeyError), Journal(store, "00007").begun("a", 0):
        raise KeyError
    assert files(store) == []
