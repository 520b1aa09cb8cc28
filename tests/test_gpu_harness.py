"""`make gpu` does all that it does on a GPU in a rehearsal too; none of this has run on one here."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.gpu import __main__ as harness
from benchmarks.gpu import accuracy, kernels
from benchmarks.gpu.report import name_of

ROOT = Path(harness.ROOT)


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def failures(found):
    """Whatever is told under "error", at any depth, but for what is not installed."""
    if isinstance(found, dict):
        own = [found["error"]] if found.get("error", "not installed") != "not installed" else []
        return own + [x for part in found.values() for x in failures(part)]
    return [x for part in found for x in failures(part)] if isinstance(found, list) else []


def test_a_rehearsal_runs_all_sections_and_is_no_result(tmp_path):
    done = run("--rehearse", "--out", str(tmp_path), "--tests", "tests/test_layers.py")
    assert done.returncode in (0, 1), done.stdout  # pytest ends with 5 where no test is marked
    assert {x.name for x in tmp_path.iterdir()} == {"rehearsal.json", "rehearsal.md"}
    report = json.loads((tmp_path / "rehearsal.json").read_text())
    assert list(report["sections"]) == ["tests", "roofs", *harness.SECTIONS]
    assert failures(report["sections"]) == []
    assert "no number here says anything about a GPU" in (tmp_path / "rehearsal.md").read_text()
    assert len(report["sections"]["kernels"]["found"]["rows"]) > 25


def test_without_a_gpu_nothing_is_measured():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run()
    assert done.returncode == 2
    assert "there is no GPU: torch" in done.stdout and "--rehearse" in done.stdout


def run_here(monkeypatch, tmp_path, *sections):
    monkeypatch.setattr(
        sys, "argv", ["gpu", "--rehearse", "--out", str(tmp_path), "--sections", *sections]
    )
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    status = harness.main()
    return status, json.loads((tmp_path / "rehearsal.json").read_text())


def test_a_section_that_fails_loses_no_other(monkeypatch, tmp_path):
    def fails(bench, roofs):
        raise RuntimeError("no such kernel\nat all")

    monkeypatch.setattr(kernels, "measure", fails)
    status, report = run_here(monkeypatch, tmp_path, "kernels", "peers")
    assert status == 1
    assert report["sections"]["kernels"]["error"] == "RuntimeError: no such kernel"
    assert "Failed: RuntimeError: no such kernel" in (tmp_path / "rehearsal.md").read_text()
    assert report["sections"]["peers"]["found"]["rows"][0]["triples_per_second"] > 0.0


WITHOUT = """
import importlib.util, runpy, sys
missing = {missing}
sys.modules.update(dict.fromkeys(missing))
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda x: None if x in missing else find_spec(x)
sys.argv = ["gpu", *sys.argv[1:]]
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""


def test_torch_and_numpy_are_enough_and_what_is_missing_is_said(tmp_path):
    missing = [*harness.OPTIONAL, "scipy", "pandas"]
    command = [
        sys.executable,
        "-c",
        WITHOUT.format(missing=missing),
        "--rehearse",
        "--out",
        tmp_path,
    ]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stdout
    report = json.loads((tmp_path / "rehearsal.json").read_text())
    assert list(report["sections"]) == ["tests", "roofs", *harness.SECTIONS]
    assert failures(report["sections"]) == []
    assert report["sections"]["tests"]["found"]["summary"] == "pytest is not installed: not run"
    assert [x.split(" (")[0] for x in report["missing"]] == list(harness.OPTIONAL)
    assert "pytest (the tests of the GPU)" in (tmp_path / "rehearsal.md").read_text()


def test_graphs_are_read_without_the_package(tmp_path):
    parts = {"train": "b\tr\ta\nb\ts\tc\n", "valid": "c\tr\tb\n", "test": "d\ts\ta e\n"}
    for part, lines in parts.items():
        with lzma.open(tmp_path / f"{part}.tsv.xz", "wt", encoding="utf-8") as file:
            file.write(lines)
    graph = accuracy.read(tmp_path)
    assert (graph.n_entity, graph.n_relation_type) == (5, 2)
    assert {part: x.tolist() for part, x in graph.triples.items()} == {
        "train": [[0, 0, 1], [0, 1, 2]], "valid": [[2, 0, 0]], "test": [[3, 1, 4]],
    }  # fmt: skip


def test_a_rehearsal_never_goes_among_the_results(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--rehearse", "--out", str(ROOT / harness.RESULTS)])
    with pytest.raises(SystemExit):
        harness.parse_options()
    assert "a rehearsal is no result" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["gpu", "--rehearse"])
    assert harness.parse_options().out == ROOT / "build/gpu-rehearsal"


def test_tests_that_fail_are_named(tmp_path):
    test = tmp_path / "test_it.py"
    test.write_text(
        "import pytest\n@pytest.mark.gpu\ndef test_a():\n    assert 0\ndef test_b():\n    assert 0\n"
    )
    found = harness.run_marked(SimpleNamespace(tests=str(test)), 200.0)
    assert found["status"] == 1 and "1 failed" in found["summary"]
    assert len(found["failures"]) == 1 and "test_a" in found["failures"][0]


def test_tests_that_take_too_long_are_stopped(tmp_path):
    test = tmp_path / "test_it.py"
    test.write_text("import time\ndef test_a():\n    time.sleep(600)\n")
    found = harness.run_tests([str(test)], 2.0)
    assert found["status"] == 1 and found["summary"] == "not done after 2 s"


def test_results_are_named_after_the_device():
    assert name_of("NVIDIA H200") == "gpu-nvidia-h200"
