"""The jobs of nodes as Slurm gets them, without a Slurm."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import pytest

from acavdl.errors import UsageError
from acavdl.nodes import job_shape

BASE: dict[str, Any] = {"cores": 48, "memory": "180GB"}


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No jobqueue.yaml of this machine's user; logs go to a folder of the test's."""
    monkeypatch.chdir(tmp_path)
    with dask.config.set({"jobqueue.slurm": {**dask.config.get("jobqueue.slurm"), "cores": None}}):
        yield


def directives(script: str) -> list[str]:
    return re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)


def worker(script: str) -> str:
    return next(line for line in script.splitlines() if "dask_worker" in line)


def test_a_job_has_its_node_alone_and_a_process_for_each_core(tmp_path: Path) -> None:
    shape = job_shape({**BASE, "walltime": "24:00:00", "queue": "cpu", "account": "lab"})
    script = shape.script()
    asked = directives(script)
    assert {"-p cpu", "-A lab", "-n 1", "--cpus-per-task=48", "-t 24:00:00"} <= set(asked)
    assert {"--exclusive", "--no-requeue", "--mem=168G"} <= set(asked)
    assert f"--output={tmp_path}/acavdl-logs/%x-%j.out" in asked
    assert f"-J {shape.name}" in asked
    assert re.fullmatch(r"acavdl-[0-9a-f]{8}", shape.name)
    assert "--nworkers 48" in worker(script)
    # The last of them counts: one thread, and no limit by Dask, which knows nothing of shards.
    assert worker(script).endswith("--nthreads 1 --memory-limit 0")
    assert worker(script).startswith(sys.executable)
    assert shape.processes == 48
    assert shape.logs == tmp_path / "acavdl-logs"


def test_each_run_has_a_name_of_its_own() -> None:
    assert job_shape(BASE).name != job_shape(BASE).name
    assert job_shape({**BASE, "job_name": "av"}).name.startswith("av-")


def test_what_the_user_asks_for_comes_behind_ours(tmp_path: Path) -> None:
    shape = job_shape(
        {
            **BASE,
            "processes": 12,
            "python": "/opt/env/bin/python",
            "interface": "ib0",
            "log_directory": str(tmp_path / "logs"),
            "local_directory": "/scratch",
            "job_mem": "200G",
            "job_cpu": 96,
            "job_extra_directives": ["--qos=long", "--constraint=ssd"],
            "job_directives_skip": ["-n 1"],
            "job_script_prologue": ["module load ffmpeg"],
            "worker_extra_args": ["--resources", "net=1"],
        }
    )
    script = shape.script()
    asked = directives(script)
    assert asked.index("--exclusive") < asked.index("--qos=long")
    assert {"--constraint=ssd", "--cpus-per-task=96", "--mem=200G"} <= set(asked)
    assert "-n 1" not in asked
    assert f"-o {tmp_path}/logs/{shape.name}-%J.out" in asked
    assert not any("acavdl-logs" in line for line in asked)
    lines = script.splitlines()
    check = next(i for i, line in enumerate(lines) if "acavdl.reach" in line)
    # Modules are there before anything of ours is called.
    assert lines.index("module load ffmpeg") < check < lines.index(worker(script))
    assert lines[check].startswith("/opt/env/bin/python -m acavdl.reach 'tcp://<scheduler>' || ")
    assert worker(script).startswith("/opt/env/bin/python -m distributed")
    assert "--nworkers 12" in worker(script)
    assert worker(script).endswith("--resources net=1 --interface ib0")
    assert "--local-directory /scratch" in worker(script)


def test_jobqueue_yaml_holds_where_nothing_else_is_said() -> None:
    own = {
        "cores": 32, "memory": "64GB", "queue": "night", "walltime": "08:00:00", "name": "mine",
        "job-extra-directives": ["--qos=q"], "job-script-prologue": ["export A=1"],
        "worker-extra-args": ["--no-dashboard"], "processes": 16, "python": "python3",
    }  # fmt: skip
    merged = {**dask.config.get("jobqueue.slurm"), **own}
    with dask.config.set({"jobqueue.slurm": merged}):
        shape = job_shape({"queue": "day"})
        script = shape.script()
    asked = directives(script)
    assert {"-p day", "-t 08:00:00", "--qos=q", "--mem=60G", "--cpus-per-task=32"} <= set(asked)
    assert shape.name.startswith("mine-")
    assert shape.processes == 16
    assert "export A=1" in script.splitlines()
    assert worker(script).startswith("python3 -m")
    assert "--no-dashboard" in worker(script)


def test_a_section_of_ones_own_in_jobqueue_yaml() -> None:
    own = {**dask.config.get("jobqueue.slurm"), "cores": 8, "memory": "8GB", "queue": "b"}
    with dask.config.set({"jobqueue.big": own}):
        shape = job_shape({"config_name": "big"})
        assert "-p b" in directives(shape.script())
    assert shape.processes == 8


def test_the_job_has_a_folder_on_its_node_that_goes_with_it(tmp_path: Path) -> None:
    script = job_shape(BASE, str(tmp_path / "a b")).script()
    (tmp_path / "a b").mkdir()
    begin, end = script.index("TMPDIR="), script.index("export DASK")
    lines = script[begin:end] + '\necho "$TMPDIR"; touch "$TMPDIR/x"; ls "$TMPDIR"'
    said = subprocess.check_output(["bash", "-c", lines], text=True).split("\n")
    assert said[0].startswith(f"{tmp_path}/a b/acavdl-")
    assert said[1] == "x"
    assert list((tmp_path / "a b").iterdir()) == []


def test_a_script_is_one_that_bash_can_read() -> None:
    script = job_shape({**BASE, "python": "apptainer exec image.sif python"}).script()
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_the_node_is_looked_at_first(tmp_path: Path) -> None:
    """A node without the environment says so, and its job ends at once."""
    script = job_shape({**BASE, "python": str(tmp_path / "no/python")}).script()
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{tmp_path}/no/python: No such file" in done.stderr
    assert "cannot work: it needs the same environment" in done.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"core": 4}, "distribution.slurm has no core; the nearest is cores"),
        ({"wall_time": "1:00"}, "distribution.slurm has no wall_time; the nearest is walltime"),
        ({"zzzzzz": 1}, "distribution.slurm has no zzzzzz; there are: account, "),
        ({"n_workers": 4}, "distribution.slurm has no n_workers"),
        ({**BASE, "walltime": 86400}, 'quote it in YAML, as in walltime: "24:00:00"'),
        ({**BASE, "memory": "much"}, "distribution.slurm: "),
        ({**BASE, "log_directory": "/proc/none"}, "distribution.slurm: /proc/none"),
    ],
)
def test_a_wrong_option_is_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as raised:
        job_shape(options).script()
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_as_many_nodes_as_have_work() -> None:
    shape = job_shape(BASE)
    assert shape.nodes_for(10_000, 64) == 64
    assert shape.nodes_for(49, 64) == 2
    assert shape.nodes_for(48, 64) == 1
    assert shape.nodes_for(0, 64) == 0
    # Where the rate of its address lets a node have one shard open, forty need as many nodes.
    assert replace(shape, at_once=1).nodes_for(40, 64) == 40
    assert replace(shape, at_once=100).nodes_for(49, 64) == 2
