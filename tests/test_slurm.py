"""Slurm: what its commands say, and datasets made on a real one (marked slurm)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import slurm_lab
import yaml
from helpers import write_csv
from slurm_lab import Lab, waited_for

from acavdl import driver, slurm
from acavdl.errors import ClusterError
from acavdl.sandbox import Fault, Sandbox, video_id

ACAVDL = [sys.executable, "-m", "acavdl"]
ROOT = Path(__file__).parents[1]
CLIPS_A_SHARD, SHARDS = 5, 40
PROCESSES = 2

# --- what the commands say ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:00:07", 7.0),
        ("01:02:03", 3723.0),
        ("2-00:00:01", 172_801.0),
        ("05:09", 309.0),
        ("INVALID", 0.0),
        ("", 0.0),
    ],
)
def test_times_of_slurm(text: str, seconds: float) -> None:
    assert slurm.seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "sbatch: error: invalid partition specified: x\n"
            "sbatch: error: Batch job submission failed: Invalid partition name specified\n",
            "invalid partition specified: x; "
            "Batch job submission failed: Invalid partition name specified",
        ),
        ("allocation failure: Requested node is busy", "Requested node is busy"),
        ("squeue: fatal: no\n\nsqueue: fatal: no\n", "no"),
        ("", ""),
    ],
)
def test_complaints_become_one_line(said: str, told: str) -> None:
    assert slurm.words(said) == told


def job(number: int, state: str, reason: str = "None") -> slurm.Queued:
    return slurm.Queued(str(number), state, reason, "")


def test_why_jobs_wait_is_counted() -> None:
    assert slurm.waiting([job(1, "RUNNING"), job(2, "RUNNING")], 2) == "2 of 2 nodes at work"
    assert slurm.waiting([job(1, "PENDING", "Priority")], 4) == (
        "0 of 4 nodes at work, 1 waiting: Priority"
    )
    jobs = [job(0, "COMPLETING"), job(1, "PENDING", "Resources"), job(2, "RUNNING")]
    jobs += [job(number, "PENDING", "Priority") for number in range(3, 6)]
    assert slurm.waiting(jobs, 6) == (
        "1 of 6 nodes at work, 4 waiting: Priority (3), Resources (1)"
    )


def test_the_end_of_a_log(tmp_path: Path) -> None:
    assert slurm.tail(tmp_path, "av", "7") == []
    (tmp_path / "av-7.out").write_text("\n".join(str(n) for n in range(100_000)) + "\n\n")
    (tmp_path / "av-7.err").write_bytes(b"bad \xff byte\n")
    assert slurm.tail(tmp_path, "av", "7", lines=3) == ["99998", "99999", "bad � byte"]


@pytest.mark.parametrize("missing", ["sbatch", "scontrol"])
def test_a_machine_without_slurm_is_none_to_submit_from(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in {"sbatch", "squeue", "scancel", "sinfo", "scontrol"} - {missing}:
        (tmp_path / name).symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match=f"{missing} is not on the PATH.* login node"):
        slurm.check_commands()


def test_outside_of_a_job_there_is_no_allocation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sbatch", "squeue", "scancel", "sinfo", "scontrol"):
        (tmp_path / name).symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_NUM_NODES", raising=False)
    config = {"distribution": {"slurm": {"cores": 2, "memory": "4GB"}}}
    table = write_csv(tmp_path / "t.csv", [(video_id(1), 1, 5)])
    with pytest.raises(ClusterError, match="--in-allocation works within a job of Slurm"):
        driver.run(
            str(table), str(tmp_path / "out"), config=config, nodes="allocation", progress="quiet"
        )


# --- on a real one ------------------------------------------------------------------------------


def on_a_real_one(test: Any) -> Any:
    return pytest.mark.slurm(pytest.mark.timeout(400)(test))


@pytest.fixture(scope="module")
def whole_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with slurm_lab.slurm(tmp_path_factory.mktemp("lab"), 4, PROCESSES) as lab:
        yield lab


@pytest.fixture
def lab(whole_lab: Lab) -> Iterator[Lab]:
    yield whole_lab
    assert whole_lab.mend() == [], "jobs are left behind"


@pytest.fixture(scope="module")
def site() -> Iterator[Sandbox]:
    """A site that takes its time, so that there is a middle in which nodes can fail."""
    with Sandbox(latency=0.3) as sandbox:
        yield sandbox


def table(folder: Path, clips: int = SHARDS * CLIPS_A_SHARD) -> Path:
    rows = [
        (
            video_id(n, fault=Fault.PRIVATE) if n % 10 == 9 else video_id(n, master="m60"),
            1.0,
            4.0,
        )
        for n in range(clips)
    ]
    return write_csv(folder / "clips.csv", rows)


def settings(folder: Path, clips: int = SHARDS * CLIPS_A_SHARD, **slurm_options: object) -> Path:
    """Write a table and the settings for it, as a user has them in a folder."""
    tree = {
        "url_list": str(table(folder, clips)),
        "output_folder": str(folder / "out"),
        "reading": {"rate_limit": None, "timeout": 60},
        "storage": {"number_sample_per_shard": CLIPS_A_SHARD},
        "distribution": {"thread_count": 1, "slurm": slurm_options},
    }
    path = folder / "acavdl.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@contextlib.contextmanager
def started(folder: Path, site: Sandbox, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with (
        (folder / "said").open("w") as stderr,
        subprocess.Popen(
            [*ACAVDL, *arguments, "--progress", "plain"], cwd=folder,
            env={**os.environ, **site.environ()}, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=stderr,
        ) as process,
    ):  # fmt: skip
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def said(folder: Path) -> str:
    return (folder / "said").read_text()


def samples(out: Path) -> dict[str, bytes]:
    """Return all members of all tars."""
    found: dict[str, bytes] = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                data = tar.extractfile(member)
                assert member.name not in found
                assert data is not None
                found[f"{path.name}/{member.name}"] = data.read()
    return found


def published(out: Path) -> list[Path]:
    return sorted(out.glob("*_stats.json"))


def check_all(out: Path, expected: dict[str, bytes], shards: int = SHARDS) -> None:
    assert samples(out) == expected
    counts = Counter[str]()
    for path in published(out):
        counts.update(json.loads(path.read_bytes())["outcomes"])
    assert len(published(out)) == shards
    clips = shards * CLIPS_A_SHARD
    assert dict(counts) == {"ok": clips - clips // 10, "private": clips // 10}


@pytest.fixture(scope="module")
def local(site: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The samples of a run on this machine."""
    folder = tmp_path_factory.mktemp("local")
    with started(
        folder, site, "run", "--config", str(settings(folder)), "--thread-count", "16"
    ) as process:
        assert process.wait(120) == 0, said(folder)
    return samples(folder / "out")


@on_a_real_one
def test_nodes_that_fail_in_every_way_cost_no_sample(
    lab: Lab, site: Sandbox, local: dict[str, bytes], tmp_path: Path
) -> None:
    """A job is cancelled, a node set down, a slurmd killed, and a job comes to its walltime."""
    config = settings(tmp_path, walltime="00:01:00", processes=PROCESSES)
    site.reset()
    with started(tmp_path, site, "slurm", "--nodes", "4", "--config", str(config)) as process:
        out = tmp_path / "out"
        waited_for(lambda: len(published(out)) >= 4)
        nodes = dict(entry.split("|") for entry in lab.jobs("-t", "RUNNING", columns="%N|%A"))
        assert len(nodes) == 4, said(tmp_path)
        cancelled, down, killed, longest = sorted(nodes)
        lab.call("scancel", nodes[cancelled])
        waited_for(lambda: len(published(out)) >= 8)
        lab.set_node(down, "down")
        waited_for(lambda: len(published(out)) >= 12)
        lab.kill_daemon(killed)
        waited_for(lambda: nodes[longest] not in lab.jobs(), 120)
        lab.set_node(down, "resume")
        assert process.wait(200) == 0, said(tmp_path)
    text = said(tmp_path)
    check_all(out, local)
    assert f"Job {nodes[cancelled]} on {cancelled} has ended" in text
    assert "(CANCELLED); another takes its place" in text
    assert "(NODE_FAIL); another takes its place" in text
    assert "(TIMEOUT); another takes its place" in text
    assert "Traceback" not in text
    # Each of the processes that were lost had one shard open, at most.
    extractions = sum(kinds["page"] for kinds in site.stats().videos.values())
    assert extractions - SHARDS * CLIPS_A_SHARD <= 4 * PROCESSES * CLIPS_A_SHARD
    assert lab.jobs() == []


@on_a_real_one
def test_ctrl_c_saves_and_leaves_no_job(
    lab: Lab, site: Sandbox, local: dict[str, bytes], tmp_path: Path
) -> None:
    config = settings(tmp_path, processes=PROCESSES)
    out = tmp_path / "out"
    with started(tmp_path, site, "slurm", "--nodes", "2", "--config", str(config)) as process:
        waited_for(lambda: len(published(out)) >= 2)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130, said(tmp_path)
    assert lab.jobs() == []
    text = said(tmp_path)
    assert "open shards are saved" in text
    assert "go on with:\n" in text
    assert "acavdl slurm --nodes 2 --config" in text
    assert "Traceback" not in text
    there = len(published(out))
    assert there < SHARDS
    # Fewer nodes than it was begun with, and those of one machine: it is the same dataset.
    with started(tmp_path, site, "run", "--config", str(config), "--thread-count", "16") as process:
        assert process.wait(120) == 0
    check_all(out, local)


@on_a_real_one
def test_a_run_is_ended_from_elsewhere(lab: Lab, site: Sandbox, tmp_path: Path) -> None:
    config = settings(tmp_path, processes=PROCESSES)
    out = tmp_path / "out"
    with started(tmp_path, site, "slurm", "--nodes", "1", "--config", str(config)) as process:
        waited_for(lambda: len(published(out)) >= 1)
        done = subprocess.run([*ACAVDL, "stop", str(out)], capture_output=True, check=False)
        assert done.returncode == 0
        assert process.wait(60) == 130, said(tmp_path)
    assert "acavdl stop asks for it" in said(tmp_path)
    assert lab.jobs() == []
    assert len(published(out)) < SHARDS


@on_a_real_one
def test_what_is_wrong_is_said_at_once_and_nothing_is_submitted(
    lab: Lab, site: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    cases: list[tuple[Sequence[str], str]] = [
        (
            ["--queue", "nowhere"],
            "Slurm has no nodes in partition nowhere; there are: ",
        ),
        (["--queue", "nowhere", "--slurm", "cores=2", "--slurm", "memory=1GB"], "nvalid partition"),
        (["--slurm", "memory=900GB"], "Slurm does not take the job: "),
        (["--slurm", "cores=64"], "Slurm does not take the job: "),
        (["--slurm", "job_extra_directives=[--qos]"], "Slurm does not take the job: "),
        (["--walltime", "soon"], "Slurm does not take the job: "),
        (["--output-folder", str(tmp_path / "file/out")], "Not a directory"),
    ]
    config, there = settings(tmp_path), all_jobs(lab)
    for arguments, told in cases:
        begun = time.monotonic()
        with started(
            tmp_path, site, "slurm", "--nodes", "2", "--config", str(config), *arguments
        ) as process:
            assert process.wait(30) == 5, (arguments, said(tmp_path))
        text = said(tmp_path)
        assert told in text, (arguments, text)
        assert len(re.findall("^acavdl: ", text, re.MULTILINE)) == 1
        assert "Traceback" not in text
        assert time.monotonic() - begun < 30
    assert all_jobs(lab) == there


def all_jobs(lab: Lab) -> list[str]:
    """Return the jobs that Slurm remembers, those that have ended too."""
    return re.findall(r"JobId=(\d+)", lab.call("scontrol", "show", "jobs"))


@on_a_real_one
def test_a_controller_that_is_down(lab: Lab, site: Sandbox, tmp_path: Path) -> None:
    config = settings(tmp_path)
    os.kill(int((lab.folder / "slurmctld.pid").read_text()), signal.SIGKILL)
    with started(tmp_path, site, "slurm", "--nodes", "2", "--config", str(config)) as process:
        assert process.wait(30) == 5, said(tmp_path)
    assert "ontact slurm controller" in said(tmp_path) or "not answered" in said(tmp_path)
    assert "Traceback" not in said(tmp_path)


@on_a_real_one
def test_jobs_that_wait_say_why(lab: Lab, site: Sandbox, tmp_path: Path) -> None:
    config = settings(tmp_path, clips=10, processes=PROCESSES)
    other = lab.call(
        "sbatch", "--parsable", "-o/dev/null", "--exclusive", "-N4", "--wrap", "sleep 300"
    ).strip()
    waited_for(lambda: lab.nodes_in("alloc"))
    with started(tmp_path, site, "slurm", "--nodes", "4", "--config", str(config)) as process:
        waited_for(lambda: re.search(r"waiting: (Resources|Priority)", said(tmp_path)))
        assert process.poll() is None
        lab.call("scancel", other)
        assert process.wait(120) == 0, said(tmp_path)
    # Two shards keep one node of two processes busy.
    assert "2 shards keep 1 nodes busy, no more" in said(tmp_path)


@on_a_real_one
def test_jobs_that_die_at_once_show_their_log(lab: Lab, site: Sandbox, tmp_path: Path) -> None:
    config = settings(tmp_path, python=str(tmp_path / "no/python"))
    with started(tmp_path, site, "slurm", "--nodes", "2", "--config", str(config)) as process:
        assert process.wait(60) == 5, said(tmp_path)
    text = said(tmp_path)
    assert "acavdl: no job lasts. Job" in text
    assert f"{tmp_path}/no/python: No such file or directory" in text
    assert "cannot work: it needs the same environment and the network" in text
    assert lab.jobs() == []


@on_a_real_one
def test_a_node_whose_jobs_die_is_left_out(lab: Lab, site: Sandbox, tmp_path: Path) -> None:
    config = settings(
        tmp_path, clips=150, processes=PROCESSES,
        job_script_prologue=['if [ "$(hostname)" = n1 ]; then echo "no disk"; exit 1; fi'],
    )  # fmt: skip
    with started(tmp_path, site, "slurm", "--nodes", "4", "--config", str(config)) as process:
        assert process.wait(200) == 0, said(tmp_path)
    text = said(tmp_path)
    assert "| no disk" in text
    assert "n1 is left out from now on: 3 jobs have died there" in text
    assert len(published(tmp_path / "out")) == 30


@on_a_real_one
def test_a_dry_run_submits_nothing(lab: Lab, site: Sandbox, tmp_path: Path) -> None:
    config = settings(tmp_path)
    with started(
        tmp_path, site, "slurm", "--nodes", "64", "--config", str(config), "--dry-run"
    ) as process:
        assert process.wait(30) == 0, said(tmp_path)
    assert "40 shards to make: 20 jobs of 2 processes, which Slurm would take" in said(tmp_path)
    assert "#SBATCH --cpus-per-task=2\n#SBATCH --mem=0\n" in said(tmp_path)
    with started(tmp_path, site, "slurm", "--config", str(config), "--print-job-script") as process:
        assert process.stdout is not None
        assert process.stdout.read().startswith("#!/usr/bin/env bash\n\n#SBATCH -J acavdl-")
        assert process.wait(30) == 0
    assert lab.jobs() == []


@on_a_real_one
def test_one_job_for_all_goes_on_without_a_node(
    lab: Lab, site: Sandbox, local: dict[str, bytes], tmp_path: Path
) -> None:
    config, out = settings(tmp_path, processes=PROCESSES), tmp_path / "out"
    number = submit(tmp_path, site, ["sbatch", "--parsable", *TEMPLATE, str(config)])
    waited_for(lambda: len(published(out)) >= 4, 90)
    lab.set_node("n3", "down")
    waited_for(lambda: not lab.jobs(), 200)
    text = (tmp_path / f"acavdl-{number}.out").read_text()
    assert state_of(lab, number) == "COMPLETED", text
    assert "200 of 200 clips in 40 of 40 shards" not in text
    assert "180 of 200 clips in 40 of 40 shards" in text
    check_all(out, local)


@on_a_real_one
def test_a_chain_of_jobs_finishes_it(
    lab: Lab, site: Sandbox, local: dict[str, bytes], tmp_path: Path
) -> None:
    config, out = settings(tmp_path, processes=PROCESSES), tmp_path / "out"
    # Seconds of work for each link.
    limited = [*TEMPLATE, str(config), "--max-hours", "0.01"]
    said_of_it = submit(tmp_path, site, [str(ROOT / "slurm/chain"), "8", *limited])
    numbers = re.findall(r"^job (\d+)", said_of_it, re.MULTILINE)
    assert len(numbers) == 8
    waited_for(lambda: not lab.jobs(), 300)
    check_all(out, local)
    states = [state_of(lab, number) for number in numbers]
    finished = states.index("COMPLETED")
    assert finished > 0
    assert set(states[:finished]) == {"FAILED"}
    assert set(states[finished + 1 :]) <= {"CANCELLED"}
    first = (tmp_path / f"acavdl-{numbers[0]}.out").read_text()
    assert "--max-hours 0.01 are over. The same command goes on" in first


TEMPLATE = ["-N4", "--output=acavdl-%j.out", str(ROOT / "slurm/acavdl.sbatch")]


def submit(folder: Path, site: Sandbox, command: Sequence[str]) -> str:
    environment = {**os.environ, **site.environ(), "ACAVDL_VENV": sys.prefix}
    return subprocess.check_output(command, cwd=folder, env=environment, text=True).strip()


def state_of(lab: Lab, number: str) -> str:
    return lab.call("scontrol", "show", "job", number).partition("JobState=")[2].split()[0]
