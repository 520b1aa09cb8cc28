"""The scripts for poprun, with a stand-in that starts instances here; none has run with IPUs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import poprun_double
import poptorch_double
import pytest
from click.testing import CliRunner

from besskge_core.config import load
from besskge_core.errors import ConfigError
from besskge_core.planning import HARDWARE, plan, split_over
from besskge_core.training import TrainingConfig, train
from besskge_core.training.config import read_config

ROOT = Path(__file__).parent.parent
POPRUN = ROOT / "examples" / "poprun"
SCRIPTS = ("one_instance", "several_instances", "several_hosts")
SMALL = ["--dataset-options", "n_person=64", "--dim", "8", "--epochs", "2", "--batch-size", "256",
         "--n-negative", "16", "--threads", "1"]  # fmt: skip


class Poprun:
    """Runs a script with the stand-in first on PATH; `asked` is what it asked poprun for."""

    def __init__(self, folder: Path) -> None:
        stand_in = folder / "poprun"
        stand_in.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{poprun_double.__file__}" "$@"\n')
        stand_in.chmod(0o755)
        self.record = folder / "asked.jsonl"
        kept = {
            k: x
            for k, x in os.environ.items()
            if not k.startswith(("IPUOF", "OMPI", "BESSKGE_IPU"))
        }
        self.environment = dict(
            kept, PATH=f"{folder}{os.pathsep}{os.environ['PATH']}", PYTHON=sys.executable,
            PYTHONPATH=str(ROOT), POPRUN_RECORD=str(self.record), EXECUTABLES=str(folder / "exe"),
            BESSKGE_IPU="emulate", OMP_NUM_THREADS="1",
        )  # fmt: skip

    def __call__(self, script: str, arguments: List[str], **variables: str) -> Any:
        return subprocess.run(
            ["bash", str(POPRUN / f"{script}.sh"), *arguments],
            env={**self.environment, **variables}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    @property
    def asked(self) -> Dict[str, Any]:
        return json.loads(self.record.read_text().splitlines()[-1])


@pytest.fixture
def poprun(tmp_path) -> Poprun:
    return Poprun(tmp_path)


def run_here(arguments: List[str]) -> str:
    """What train.py prints in this process."""
    spec = importlib.util.spec_from_file_location("poprun_example", POPRUN / "train.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return CliRunner().invoke(module.main, arguments, catch_exceptions=False).output


def metrics(run: Path) -> Dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())["metrics"]


def test_one_instance_trains_the_model_of_one_process(poprun, tmp_path, monkeypatch):
    done = poprun("one_instance", [*SMALL, "--out", str(tmp_path / "pod")], IPUS="4")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^device ipu, seed 0: test MRR 0\.\d+, .*pod$", done.stdout, re.MULTILINE)
    expected = dict(num_instances=1, num_replicas=4, ipus_per_replica=1, numa_aware="yes")
    assert {name: poprun.asked[name] for name in expected} == expected
    assert not [name for name in poprun.asked if "vipu" in name or "partition" in name]
    monkeypatch.setitem(os.environ, "BESSKGE_IPU", "emulate")
    told = run_here([*SMALL, "--device", "ipu", "--out", str(tmp_path / "here")])
    assert "device ipu, seed 0" in told
    assert metrics(tmp_path / "pod") == metrics(tmp_path / "here")


def test_several_instances_train_a_model_each(poprun, tmp_path):
    wide = tmp_path / "wide.toml"
    wide.write_text((POPRUN / "run.toml").read_text().replace("dim = 64", "dim = 12"))
    arguments = [
        *SMALL[:2],
        *SMALL[4:],
        "--config",
        str(POPRUN / "run.toml"),
        "--config",
        str(wide),
    ]
    out = tmp_path / "two"
    done = poprun("several_instances", [*arguments, "--out", str(out)], IPUS="4", INSTANCES="2")
    assert done.returncode == 0, done.stderr
    assert (poprun.asked["num_instances"], poprun.asked["num_replicas"]) == (2, 4)
    runs = [load(TrainingConfig, out / f"instance-{i}" / "config.toml") for i in range(2)]
    assert [(x.run.seed, x.model.dim, x.batch.n_shard) for x in runs] == [(0, 64, 2), (1, 12, 2)]
    assert all(metrics(out / f"instance-{i}")["test"] for i in range(2))


def test_instances_on_other_hosts_know_what_they_need(poprun, tmp_path):
    out = tmp_path / "hosts"
    variables = dict(HOSTS="a,b", INTERFACE="eth7", IPUS="4", CPATH="somewhere")
    done = poprun("several_hosts", [*SMALL, "--out", str(out)], **variables)
    assert done.returncode == 0, done.stderr
    forwarded = poprun.asked["mpi_local_args"].split()
    names = {"PATH", "PYTHONPATH", "BESSKGE_IPU", "CPATH"}
    assert forwarded[::2] == ["-x"] * (len(forwarded) // 2) and names <= set(forwarded[1::2])
    assert "OPAL_PREFIX" not in forwarded
    assert poprun.asked["mpi_global_args"].split()[::3] == ["--mca", "--mca"]
    assert poprun.asked["mpi_global_args"].count("_tcp_if_include eth7") == 2
    seeds = [load(TrainingConfig, out / f"instance-{i}" / "config.toml").run.seed for i in range(2)]
    assert seeds == [0, 1]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_partition_that_was_there_is_left_there(poprun, script):
    variables = dict(IPUOF_VIPU_API_PARTITION_ID="pod", IPUOF_VIPU_API_HOST="vipu", HOSTS="a,b",
                     IPUOF_VIPU_API_TIMEOUT="600",
                     INTERFACE="eth0", PYTHON="true")  # fmt: skip
    done = poprun(script, [], **variables)
    assert done.returncode == 0, done.stderr
    expected = dict(
        vipu_partition="pod",
        vipu_server_host="vipu",
        vipu_server_timeout=600,
        remove_partition="no",
        reset_partition="no",
    )
    assert {name: poprun.asked.get(name) for name in expected} == expected
    assert poprun.asked["program"][:2] == ["true", str(POPRUN / "train.py")]


@pytest.mark.parametrize(
    "script,variables,message",
    [
        ("several_instances", dict(INSTANCES="3"), "IPUS is 4, which 3 instances cannot share"),
        ("several_hosts", dict(INTERFACE="eth0"), "HOSTS: the names of the hosts"),
        ("several_hosts", dict(HOSTS="a,b"), "INTERFACE: the network between the hosts"),
        (
            "several_hosts",
            dict(HOSTS="a,b", INTERFACE="eth0", INSTANCES="3", IPUS="6"),
            "IPUS=6, INSTANCES=3, 2 hosts: each must be a multiple of the next",
        ),
        ("one_instance", dict(IPUS="6"), "a power of two of IPUs, not 6"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(poprun, script, variables, message):
    done = poprun(script, [], PYTHON="false", **variables)
    assert done.returncode != 0 and message in done.stderr and not poprun.record.exists()


def test_ranks_train_the_model_of_one_process(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               str(POPRUN / "train.py"), *SMALL, "--out", str(tmp_path / "ranks")]  # fmt: skip
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("device cpu, seed 0: test MRR") == 1
    run_here([*SMALL, "--out", str(tmp_path / "one")])
    found, expected = (metrics(tmp_path / name)["test"]["both"] for name in ("ranks", "one"))
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_run_goes_on_or_begins(tmp_path):
    arguments = [*SMALL, "--resume", "--out", str(tmp_path / "run")]
    run_here([*arguments, "--epochs", "1"])
    assert "resumed from" in run_here(arguments)


# -- several instances under PopTorch --------------------------------------------------------------


def under_poprun(monkeypatch, instance: int, n_instance: int) -> None:
    for name, value in dict(RANK=instance, SIZE=n_instance).items():
        monkeypatch.setitem(os.environ, f"OMPI_COMM_WORLD_{name}", str(value))


@pytest.mark.parametrize("target", ["hardware", "emulate"])
def test_an_instance_that_is_independent_trains_as_one_alone(tmp_path, monkeypatch, target):
    arguments = [*SMALL, "--ipu-target", target, "--n-shard", "2", "--out", str(tmp_path)]
    with poptorch_double.installed(n_ipu=2):
        under_poprun(monkeypatch, 1, 2)
        assert "device ipu, seed 1" in run_here(arguments)
        under_poprun(monkeypatch, 0, 1)
        run_here([*arguments, "--seed", "1", "--out", str(tmp_path / "alone")])
    assert metrics(tmp_path / "instance-1") == metrics(tmp_path / "alone")


@pytest.mark.parametrize("target", ["hardware", "emulate"])
def test_one_model_over_several_instances_is_refused(tmp_path, monkeypatch, target):
    flags = dict(device="ipu", optimizer="adam", ipu_target=target, n_shard=2, epochs=1)
    config = read_config(POPRUN / "run.toml", flags)
    under_poprun(monkeypatch, 0, 2)
    message = "poprun started 2 instances.*--num-instances=1.*independent=True"
    with poptorch_double.installed(n_ipu=2), pytest.raises(ConfigError, match=message):
        train(config, tmp_path / "run")


# -- the guide -------------------------------------------------------------------------------------


def test_the_guide_explains_every_option_that_is_given():
    sources = "".join(path.read_text() for path in POPRUN.glob("*.sh"))
    given = set(re.findall(r"^ +(?:options\+=\()?--([a-z-]+)=", sources, re.MULTILINE))
    guide = (POPRUN / "README.md").read_text()
    assert set(re.findall(r"^\| `--([a-z-]+)` \|", guide, re.MULTILINE)) == given
    known = {*poprun_double.NUMBERS, *poprun_double.SWITCHES, *poprun_double.NAMES, "host"}
    assert given <= known and len(given) > 8


def test_the_guide_has_the_planners_entity_counts():
    guide = (POPRUN / "README.md").read_text()
    rows = re.findall(
        r"^\| (\d+), (\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", guide, re.MULTILINE
    )
    assert len(rows) == 6
    for dim, optimizer, *millions in rows:
        flags = dict(
            score_function="transe", dim=int(dim), table_dtype="float16", optimizer=optimizer,
            scheme="embedding", batch_size=8192, n_negative=256,
        )  # fmt: skip
        for n_ipu, told in zip((4, 16, 64), millions):
            config = split_over(read_config(None, flags), n_ipu)
            found = plan(config, 10**6, 500, 10**7, HARDWARE[f"ipu-pod{n_ipu}"], n_ipu)
            assert f"{found.most_entities / 1e6:.1f}" == told
