"""After a run: what failed, once more; read back from real shards of the sandbox."""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client
from helpers import write_csv
from hypothesis import given, settings
from hypothesis import strategies as st

import acavdl
from acavdl import after
from acavdl.config import Config, Distribution, Reading, Storage
from acavdl.driver import RunReport
from acavdl.errors import PlanMismatchError, StorageError, UsageError
from acavdl.ledger import plan_of, read_manifest
from acavdl.planfile import ShardPlace, read_shard
from acavdl.sandbox import Fault, Sandbox, video_id
from acavdl.storage import Store
from acavdl.writer import SCHEMA

CONFIG = Config(
    Reading(timeout=8.0, retries=0, rate_limit=None),
    Storage(number_sample_per_shard=4),
    Distribution(thread_count=4),
)
#: 503 to the first request of each kind: each try gets a step further.
ONCE = video_id(1, fault=Fault.FIRST_503)
NEVER = video_id(1, fault=Fault.PAGE_503)
DEAD = video_id(1, fault=Fault.PRIVATE)
GOOD = [video_id(n, master="m60") for n in range(6)]
ROWS = [
    *((name, 0.5, 3.5) for name in GOOD),
    *((name, start, start + 3.0) for name in (ONCE, NEVER, DEAD) for start in (1.0, 5.0)),
]


def run(folder: str, tmp_path: Path, client: Client, rows: Any = None, **more: Any) -> RunReport:
    table = write_csv(tmp_path / "clips.csv", ROWS if rows is None else rows)
    more = {"config": CONFIG, "progress": "quiet", "client": client, **more}
    return acavdl.run(str(table), folder, **more)


def retry(folder: str, client: Client, **more: Any) -> RunReport:
    return acavdl.retry(folder, **{"client": client, "progress": "quiet", **more})


def rows_of(folder: Path) -> pd.DataFrame:
    found = [pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))]
    return pd.concat(found, ignore_index=True)


def last_of(rows: pd.DataFrame) -> pd.DataFrame:
    """As docs/output.md tells readers to do it."""
    return rows.sort_values("shard").drop_duplicates("key", keep="last")


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


def shards_of(store: Store) -> list[list[str]]:
    """Return the videos of each shard of the plan."""
    manifest = read_manifest(store)
    assert manifest is not None
    plan = plan_of(manifest)
    places = (ShardPlace(n, *plan.place(n)) for n in range(len(plan.sizes)))
    return [read_shard(place, store)["video_id"].tolist() for place in places]


# --- failures and retry --------------------------------------------------------------------------


def test_retries_until_all_that_may_pass_has_passed(
    online: Sandbox, client: Client, tmp_path: Path
) -> None:
    """Weeks later as well: new shards with higher numbers; what is there stays as it is."""
    online.reset()
    out = tmp_path / "out"
    report = run(str(out), tmp_path, client)
    assert dict(report.snapshot.counts) == {"ok": 6, "http_5xx": 4, "private": 2}
    before, tries = digests(out), 0
    # Once more it begins with 503.
    online.reset()
    while report.snapshot.counts.get("http_5xx", 0) > 2:
        report = retry(str(out), client)
        tries += 1
        assert tries < 9
        now = digests(out)
        assert before.items() <= now.items()
        before = now
        # A clip counts once, by its last outcome.
        assert (report.snapshot.done, report.snapshot.total) == (12, 12)
    assert tries > 1
    assert dict(report.snapshot.counts) == {"ok": 8, "http_5xx": 2, "private": 2}
    rows = rows_of(out)
    assert rows["shard"].is_monotonic_increasing
    assert len(rows) == 12 + 4 * tries
    last = last_of(rows)
    assert last["outcome"].value_counts().to_dict() == {"ok": 8, "http_5xx": 2, "private": 2}
    assert set(last[last["outcome"] == "ok"]["video_id"]) == {*GOOD, ONCE}
    # What has succeeded is not taken again, what is dead never is.
    shards = shards_of(Store(str(out)))
    retry(str(out), client)
    assert shards_of(Store(str(out))) == [*shards, [NEVER, NEVER]]
    report = retry(str(out), client, outcomes=["private"])
    assert shards_of(Store(str(out)))[-1] == [DEAD, DEAD]
    found = acavdl.failures(str(out))
    assert (found.clips, found.count) == (12, 4)
    assert {name: each.count for name, each in found.outcomes.items()} == {
        "private": 2,
        "http_5xx": 2,
    }
    # The run of the table goes on with the same plan.
    assert dict(run(str(out), tmp_path, client).snapshot.counts) == dict(report.snapshot.counts)


def test_failures_are_told_and_written_as_tables(
    online: Sandbox, client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(str(out), tmp_path, client)
    for kind in ("csv", "parquet"):
        table, buried = tmp_path / f"again.{kind}", tmp_path / f"dead.{kind}"
        found = acavdl.failures(str(out), export=str(table), tombstones=str(buried))
        assert (found.clips, found.shards, found.shards_done) == (12, 3, 3)
        # The table of the failures can be run.
        plan = acavdl.plan(str(table), str(tmp_path / f"plan-{kind}"), progress="quiet")
        assert (plan.plan.clips, plan.plan.videos) == (found.count, 3 if found.count == 6 else 2)
        read = pd.read_csv if kind == "csv" else pd.read_parquet
        (row,) = read(buried).to_dict("records")
        assert (row["video_id"], row["outcome"]) == (DEAD, "private")
        assert row["date"] == str(pd.read_parquet(out / "00000.parquet")["finished_at"][0])[:10]
    after.tell_failures(found)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for word in ("private", "resolve", "video", "never", "http_5xx", f"{DEAD}_000001000_000004000"):
        assert word in text
    after.tell_failures(acavdl.failures(str(out), outcomes=["private"]), as_json=True)
    told = json.loads(capsys.readouterr().out)
    (dead,) = told["outcomes"]
    assert (told["failed"], dead["outcome"], dead["count"]) == (2, "private", 2)
    assert (dead["stage"], dead["scope"], dead["retry"]) == ("resolve", "video", "never")
    assert sum(dead["hosts"].values()) == 2
    assert [each["key"][:11] for each in dead["examples"]] == [DEAD, DEAD]
    assert "private" in dead["examples"][0]["detail"].lower()


def test_mistakes_are_told(online: Sandbox, client: Client, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no dataset of acavdl"):
        acavdl.failures(str(tmp_path / "none"))
    out = tmp_path / "out"
    run(str(out), tmp_path, client, ROWS[:1])
    with pytest.raises(UsageError, match="no outcome of a failure: privat "):
        acavdl.failures(str(out), outcomes=["privat"])
    with pytest.raises(UsageError, match=r"ends in \.csv or \.parquet"):
        acavdl.failures(str(out), export=str(tmp_path / "t.txt"))
    with pytest.raises(PlanMismatchError, match="number_sample_per_shard: 4 there, 2000 now"):
        acavdl.retry(str(out), config=Config(), progress="quiet")
    # Without settings those of the dataset hold, and there is nothing to do.
    assert dict(retry(str(out), client).snapshot.counts) == {"ok": 1}


def test_the_table_still_goes_on_and_grows(online: Sandbox, client: Client, tmp_path: Path) -> None:
    """A plan with retries is extended as any other: by what it has not, up to the limit."""
    online.reset()
    out = str(tmp_path / "out")
    rows = [(NEVER, 0, 2), (GOOD[0], 0, 2)]
    run(out, tmp_path, client, rows, limit=3)
    before = shards_of(Store(out))
    retry(out, client)
    retry(out, client)
    larger = [*rows, *((name, 0, 2) for name in GOOD[1:])]
    report = run(out, tmp_path, client, larger, incremental_mode="extend", limit=4)
    shards = shards_of(Store(out))
    assert shards[: len(before) + 2] == [*before, [NEVER], [NEVER]]
    assert [len(shard) for shard in shards[len(before) + 2 :]] == [2]
    assert dict(report.snapshot.counts) == {"ok": 3, "http_5xx": 1}
    assert report.snapshot.total == 4
    # And once more: what failed is behind what was added.
    retry(out, client)
    assert shards_of(Store(out))[-1] == [NEVER]
    with (Path(out) / "_acavdl/plan/part-00003.parquet").open("r+b") as file:
        file.seek(9)
        file.write(b"?")
    with pytest.raises(StorageError, match=r"part-00003\.parquet was changed"):
        acavdl.verify(out, client=client, progress="quiet")


# --- what a retry takes, whatever came before ----------------------------------------------------

OUTCOMES = ["ok", "network", "private", "bot_check"]


class Model:
    """A dataset whose shards are published without a site, and what its clips have come to."""

    def __init__(self, folder: Path, clips: int) -> None:
        self.folder = folder
        table = write_csv(folder / "t.csv", [(video_id(n), 0, 2) for n in range(clips)])
        acavdl.plan(str(table), str(folder), config=CONFIG, progress="quiet")
        self.store = Store(str(folder))
        self.last: dict[str, str] = {}
        self.open: set[str] = set()
        self.published: set[int] = set()

    def publish(self, shard: int, outcomes: list[str]) -> None:
        name = shards_of(self.store)[shard]
        if shard in self.published:
            return
        ended = [outcomes[i % len(outcomes)] for i in range(len(name))]
        rows = [
            {**dict.fromkeys(SCHEMA.names), "key": f"{video}_000000000_000002000"}
            | {"video_id": video, "shard": shard, "row": i, "outcome": outcome}
            for i, (video, outcome) in enumerate(zip(name, ended, strict=True))
        ]
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), buffer)
        stats = {
            "count": len(rows),
            "outcomes": dict(Counter(ended)),
            "files": {"tar": {"bytes": 0}, "parquet": {"bytes": len(buffer.getvalue())}},
        }
        self.store.write(f"{shard:05d}.parquet", buffer.getvalue())
        self.store.write(f"{shard:05d}.tar", b"")
        self.store.write(f"{shard:05d}_stats.json", json.dumps(stats).encode())
        self.published.add(shard)
        self.last |= dict(zip(name, ended, strict=True))
        self.open -= set(name)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_a_retry_takes_what_failed_last_and_is_not_on_its_way(data: st.DataObject) -> None:
    """Against a model: publish some shards with any outcomes, retry, and so on."""
    with tempfile.TemporaryDirectory() as name:
        model = Model(Path(name), 10)
        for _ in range(data.draw(st.integers(1, 4))):
            shards = shards_of(model.store)
            for shard in data.draw(st.sets(st.integers(0, len(shards) - 1))):
                endings = st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=4)
                model.publish(shard, data.draw(endings))
            wanted = data.draw(st.sampled_from([{"network", "bot_check"}, {"private"}]))
            due = {v for v, o in model.last.items() if o in wanted} - model.open
            told = acavdl.failures(name, outcomes=sorted(wanted))
            # A failure is one until a later shard is published.
            assert told.count == sum(o in wanted for o in model.last.values())
            folder = after.open_folder(name)
            after.plan_retry(folder, wanted)
            now = shards_of(model.store)
            assert now[: len(shards)] == shards
            taken = [video for shard in now[len(shards) :] for video in shard]
            assert sorted(taken) == sorted(due)
            assert all(len(shard) <= 4 for shard in now)
            model.open |= due
