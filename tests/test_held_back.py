"""The site refuses addresses: no clip is lost, work goes on by itself, or ends with code 6."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from distributed import Client
from helpers import write_csv

from acavdl import driver
from acavdl.breaker import Terms
from acavdl.cluster import local_client
from acavdl.config import Config, Distribution, Reading, Storage
from acavdl.demo import environment
from acavdl.driver import RunReport
from acavdl.errors import HeldBackError, Outcome
from acavdl.sandbox import Fault, Sandbox, video_id

#: The policy in a hundredth of its time and less.
TERMS = Terms(quiet=1.0, cool_down=1.5, longest=3.0, together=20.0, unclear=0.5, poll=0.2)
CONFIG = Config(
    Reading(timeout=10.0, retries=1, rate_limit=None),
    Storage(number_sample_per_shard=20),
    Distribution(thread_count=4, checkpoint=4),
)
REFUSALS = {Outcome.BOT_CHECK, Outcome.HTTP_429, Outcome.RATE_LIMITED}


def table(folder: Path, videos: int = 80, faults: tuple[Fault, ...] = ()) -> str:
    names = [video_id(n, master="m60") for n in range(videos)]
    names += [video_id(n, fault=fault) for n, fault in enumerate(faults)]
    return str(write_csv(folder / "clips.csv", [(name, 1.0, 4.0) for name in names]))


def rows(out: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in sorted(out.glob("*.parquet"))])


def _take_proxy(proxy: str) -> None:
    os.environ.update({"HTTPS_PROXY": proxy, "https_proxy": proxy})


@contextlib.contextmanager
def two_addresses(site: Sandbox) -> Iterator[Client]:
    """Two worker processes, each behind an address of its own."""
    with environment(site.environ()), local_client(2) as client:
        for worker, proxy in zip(client.nthreads(), site.proxies, strict=True):
            client.run(_take_proxy, proxy, workers=[worker])
        yield client


@pytest.fixture(scope="module")
def site() -> Iterator[Sandbox]:
    with Sandbox(egresses=2) as sandbox:
        yield sandbox


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "TERMS", TERMS)


class Run:
    """A run in a thread, and what its roll-up shows meanwhile."""

    def __init__(self, client: Client, table: str, out: Path, config: Config = CONFIG) -> None:
        self.report: RunReport | None = None
        self._roll_up: Any = None

        def work() -> None:
            self.report = driver.run(
                table, str(out), config=config, client=client, progress="quiet"
            )

        real = driver.RollUp

        def made(*args: Any, **more: Any) -> Any:
            self._roll_up = real(*args, **more)
            return self._roll_up

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(driver, "RollUp", made)
            self._thread = threading.Thread(target=work)
            self._thread.start()
            self.until(lambda: self._roll_up is not None)

    @property
    def shown(self) -> Mapping[str, int]:
        return dict(self._roll_up.snapshot().egresses)

    @property
    def done(self) -> int:
        return int(self._roll_up.snapshot().done)

    def until(self, true: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not true():
            assert time.monotonic() < end, self._roll_up and self._roll_up.snapshot()
            time.sleep(0.02)

    def ended(self) -> RunReport:
        self._thread.join(90)
        assert not self._thread.is_alive()
        assert self.report is not None
        return self.report


def test_one_address_is_refused_then_both_and_work_goes_on(site: Sandbox, tmp_path: Path) -> None:
    site.reset()
    out = tmp_path / "out"
    with two_addresses(site) as client:
        run = Run(client, table(tmp_path, 160), out)
        run.until(lambda: run.done >= 8)
        site.refuse(0, Fault.BOT_CHECK)
        run.until(lambda: run.shown.get("cooling", 0) + run.shown.get("blocked", 0) == 1)
        assert run.shown.get("open") == 1, run._roll_up.snapshot()
        before = site.stats().egress_requests
        run.until(lambda: site.stats().egress_requests[1] > before[1] + 40)
        # Next to nothing is asked where it is refused: probes alone, whose cool-down grows.
        assert site.stats().egress_requests[0] - before[0] < 20
        site.refuse(1, Fault.PAGE_429)
        run.until(lambda: "open" not in run.shown)
        run.until(lambda: run.shown.get("blocked", 0) >= 1)
        site.refuse(0, None)
        site.refuse(1, None)
        report = run.ended()
    assert dict(report.snapshot.counts) == {"ok": 160}
    assert (report.held_back, report.failed_shards) == (False, {})
    assert set(rows(out)["outcome"]) == {"ok"}


def test_a_refusal_that_stays_ends_the_run_and_the_next_goes_on(
    site: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.reset()
    out, source = tmp_path / "out", table(tmp_path, 60)
    config = replace(CONFIG, reading=replace(CONFIG.reading, give_up_after=4.0))
    try:
        with two_addresses(site) as client:
            run = Run(client, source, out, config)
            run.until(lambda: run.done >= 8)
            site.refuse(0, Fault.BOT_CHECK)
            site.refuse(1, Fault.PLAYER_429)
            report = run.ended()
            assert report.held_back
            assert driver.tell(report) == 6
            said = capsys.readouterr().err
            assert "Held back by the site: it refuses 192.0.2." in said
            assert "the same command goes on" in said
            done = report.snapshot.counts["ok"]
            assert dict(report.snapshot.counts) == {"ok": done}
            assert 8 <= done < 60
            asked = site.stats().videos
            site.refuse(0, None)
            site.refuse(1, None)
            again = Run(client, source, out, config).ended()
    finally:
        site.refuse(0, None)
        site.refuse(1, None)
    assert dict(again.snapshot.counts) == {"ok": 60}
    assert set(rows(out)["outcome"]) == {"ok"}
    # What was made is not made again.
    twice = [name for name, kinds in site.stats().videos.items() if kinds["media"] > 8]
    assert len(twice) <= 60 - done, asked


def test_single_refused_videos_are_rows_and_stop_nothing(site: Sandbox, tmp_path: Path) -> None:
    site.reset()
    out = tmp_path / "out"
    faults = (Fault.BOT_CHECK, Fault.PLAYER_429, Fault.MEDIA_429, Fault.CAPTCHA, Fault.PRIVATE)
    with two_addresses(site) as client:
        report = Run(client, table(tmp_path, 60, faults), out).ended()
    assert dict(report.snapshot.counts) == {"ok": 60, "bot_check": 2, "http_429": 2, "private": 1}
    found = rows(out).set_index("video_id")
    refused = found[found["outcome"].isin(REFUSALS)]
    # Each was tried twice.
    assert refused["attempts"].tolist() == [2] * 4
    asked = site.stats().videos
    assert all(asked[name]["page"] >= 2 for name in refused.index)


@pytest.mark.slow
def test_a_lazy_frame_waits_and_gives_up(site: Sandbox, tmp_path: Path) -> None:
    site.reset()
    config = replace(
        CONFIG,
        reading=replace(CONFIG.reading, give_up_after=4.0),
        storage=Storage(number_sample_per_shard=60),
    )
    with two_addresses(site) as client:
        made = driver.plan(table(tmp_path, 60), str(tmp_path / "out"), config=config)
        for number in (0, 1):
            site.refuse(number, Fault.PLAYER_429)
        try:
            with pytest.raises(HeldBackError, match="the site refuses this address"):
                driver.download(made, client).compute()
        finally:
            for number in (0, 1):
                site.refuse(number, None)
        # Held back for a while, it goes on where it is.
        site.refuse(0, Fault.BOT_CHECK)
        site.refuse(1, Fault.BOT_CHECK)
        threading.Timer(3.0, lambda: [site.refuse(number, None) for number in (0, 1)]).start()
        assert set(driver.download(made, client).compute()["outcome"]) == {"ok"}


@pytest.mark.slow
def test_a_table_of_refused_videos_alone_is_held_back(site: Sandbox, tmp_path: Path) -> None:
    """Nothing tells that it is not the address."""
    names = [video_id(n, fault=Fault.BOT_CHECK) for n in range(9)]
    source = str(write_csv(tmp_path / "clips.csv", [(name, 1.0, 4.0) for name in names]))
    config = replace(CONFIG, reading=replace(CONFIG.reading, give_up_after=3.0))
    with two_addresses(site) as client:
        report = Run(client, source, tmp_path / "out", config).ended()
    assert report.held_back
    assert dict(report.snapshot.counts) == {}
