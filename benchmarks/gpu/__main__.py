"""See the package's docstring."""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

ROOT = Path(__file__).parents[2]

#: Where results go, and those of a rehearsal, which are none.
RESULTS, REHEARSED = "benchmarks/results", "build/gpu-rehearsal"

#: Seconds of a run, and of them at most for the tests.
BUDGET, TEST_BUDGET = 520.0, 170.0

#: Of the operations and of training, after the tests.
SECTIONS = ("kernels", "steps", "accuracy", "peers")

#: What else is used where it is there, and what for.
OPTIONAL = {
    "triton": "kernels of our own: plain torch serves instead",
    "pytest": "the tests of the GPU",
    "einops": "the tests of the GPU",
    "hypothesis": "the tests of the GPU",
    "rich": "the tests of the GPU",
    "safetensors": "the tests of the GPU",
    "yaml": "the tests of the GPU",
    "click": "the tests of the GPU",
    "pyarrow": "the tests of the GPU",
}


def main() -> int:
    options = parse_options()
    if options.rehearse:
        os.environ.setdefault("TRITON_INTERPRET", "1")
    for name in ("torch", "numpy"):
        if not is_there(name):
            print(f"make gpu needs {name}, which {sys.executable} has not; give PYTHON=...")
            return 2
    import torch

    if not options.rehearse and not torch.cuda.is_available():
        print(
            f"there is no GPU: torch {torch.__version__} sees no CUDA device. On a machine with one run"
            " `make gpu`; here `make gpu ARGS=--rehearse` tests the harness with tiny sizes on the CPU"
        )
        return 2
    run = Run(options)
    run.sections()
    print((options.out / f"{run.file}.md").read_text())
    failed = run.failed()
    if failed:
        print(f"failed: {', '.join(failed)}")
    return int(bool(failed))


class Run:
    """The sections of a run, one after the other, each with its results written.

    Args:
        options: see :func:`parse_options`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        import torch

        from benchmarks.gpu import measure, report

        self.options, self.began = options, time.monotonic()
        device = torch.device("cpu" if options.rehearse else "cuda:0")
        self.bench = measure.Bench(device, options.rehearse, self.began + options.budget)
        name = "rehearsal" if options.rehearse else torch.cuda.get_device_name(0)
        self.file = "rehearsal" if options.rehearse else report.name_of(name)
        missing = [f"{x} ({why})" for x, why in OPTIONAL.items() if not is_there(x)]
        self.report: Dict[str, Any] = {
            "device": name, "rehearsal": options.rehearse, "versions": versions(torch),
            "missing": missing, "sections": {}, "seconds": 0.0,
        }  # fmt: skip
        self._in_words: Dict[str, Callable[..., List[str]]] = {}

    def sections(self) -> None:
        """All that were asked for."""
        from benchmarks.gpu import kernels, measure

        wanted, bench = self.options.sections, self.bench
        roofs: Dict[str, float] = {}

        def measure_roofs() -> Dict[str, float]:
            roofs.update(measure.roofs(bench))
            return roofs

        if "tests" in wanted:
            self._section(
                "tests", "Tests", lambda: run_marked(self.options, bench.left()), tests_in_words
            )
        self._section("roofs", "The machine", measure_roofs, kernels.roofs_as_markdown)
        for name in SECTIONS:
            if name in wanted:
                module = importlib.import_module(f"benchmarks.gpu.{name}")
                act = functools.partial(module.measure, bench, roofs)
                self._section(name, module.TITLE, act, module.as_markdown)

        kernels_of = sorted(str(x.relative_to(ROOT)) for x in ROOT.glob("tests/test_triton_*.py"))
        if "tests" in wanted and kernels_of and not self.options.rehearse:
            # Last, for compiling all of them may take what time is left.
            self._section(
                "kernel_tests", "Tests of the kernels, compiled here",
                lambda: run_tests(["-m", "not gpu", *kernels_of], bench.left() - 5.0),
                tests_in_words,
            )  # fmt: skip

    def failed(self) -> List[str]:
        """The sections that did, and the tests if some of them did."""
        found = [x for x, entry in self.report["sections"].items() if "error" in entry]
        for name in ("tests", "kernel_tests"):
            tests = self.report["sections"].get(name, {}).get("found")
            found += [name] if tests and tests["status"] else []
        return found

    def _section(
        self, name: str, title: str, act: Callable[[], Any], words: Callable[..., List[str]]
    ) -> None:
        from benchmarks.gpu import measure, report

        started = time.monotonic()
        print(f"{name}: {self.bench.left():.0f} s are left", flush=True)
        entry: Dict[str, Any] = {"title": title}
        try:
            entry["found"] = act()
        except Exception as error:  # which must not lose the other sections
            entry["error"] = measure.in_a_line(error)
            print(f"{name} failed: {entry['error']}", flush=True)
        now = time.monotonic()
        entry["seconds"] = round(now - started, 1)
        self.report["sections"][name], self._in_words[name] = entry, words
        self.report["seconds"] = now - self.began
        report.write(self.options.out, self.file, self.report, self._in_words)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    names = ["tests", *SECTIONS]
    parser.add_argument("--sections", nargs="+", choices=names, default=names)
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds in all")
    parser.add_argument("--out", help=f"folder of the results; default: {RESULTS}")
    parser.add_argument("--tests", default="tests", help="what pytest is given")
    options = parser.parse_args()
    if options.rehearse and options.out and Path(options.out).resolve() == ROOT / RESULTS:
        parser.error("a rehearsal is no result: give --out another folder")
    options.out = Path(options.out or (ROOT / (REHEARSED if options.rehearse else RESULTS)))
    return options


def is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def versions(torch: Any) -> Dict[str, Optional[str]]:
    from importlib import metadata

    found: Dict[str, Optional[str]] = {
        "Python": platform.python_version(),
        "torch": str(torch.__version__),
    }
    for name in ("triton", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    if torch.cuda.is_available():
        found["CUDA"] = str(torch.version.cuda)
    return found


def run_marked(options: argparse.Namespace, left: float) -> Dict[str, Any]:
    """What pytest says of the tests that are marked `gpu`."""
    return run_tests(["-m", "gpu", options.tests], min(left / 2, TEST_BUDGET))


def run_tests(which: List[str], seconds: float) -> Dict[str, Any]:
    """What pytest says of some tests, in a process of its own."""
    if not is_there("pytest"):
        return {"summary": "pytest is not installed: not run", "status": 0}
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
        "-o", "filterwarnings=default", "-rfE", *which,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TRITON_INTERPRET", None)
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, timeout=max(seconds, 1.0), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        output = error.stdout or b""
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        return {"summary": f"not done after {seconds:.0f} s", "status": 1, "output": text[-4000:]}
    lines = done.stdout.strip().splitlines() or ["no output"]
    print(done.stdout[-6000:] if done.returncode else lines[-1], flush=True)
    failures = [x for x in lines if re.match(r"(FAILED|ERROR) ", x)]
    return {"summary": lines[-1], "status": done.returncode, "failures": failures}


def tests_in_words(found: Dict[str, Any]) -> List[str]:
    return [found["summary"], *(f"* {line}" for line in found.get("failures", []))]


if __name__ == "__main__":
    sys.exit(main())
