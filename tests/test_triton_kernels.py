"""Kernels compile for an H200, and torch knows them by the schemas of the C++ library."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triton_cases import CASES
from triton_support import DEVICE

from besskge_core.ops import gpu, native
from besskge_core.ops.gpu import language

HERE = Path(__file__).parent

#: Bytes of shared memory that a block of threads can have, on compute capability 9.0.
SHARED = 227 * 1024

built = pytest.mark.skipif(not native.NATIVE, reason="the native operations are not built")


@pytest.fixture(scope="module")
def compiled():
    """Case -> facts of each kernel that it launches."""
    done = subprocess.run(
        [sys.executable, HERE / "triton_compile.py"], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for line in done.stdout.splitlines():
        facts = json.loads(line)
        found.setdefault(facts["case"], []).append(facts)
    return found


@pytest.mark.parametrize("case", CASES)
def test_kernels_compile_for_an_h200_and_fit(compiled, case):
    assert compiled[case]
    for facts in compiled[case]:
        assert facts["cubin"] > 0
        assert facts["shared"] <= SHARED, facts
        assert facts["spilled"] == 0, facts


def test_every_kernel_is_compiled_by_a_case(compiled):
    kernels = set()
    for path in (HERE.parent / "besskge_core" / "ops" / "gpu").glob("*.py"):
        kernels.update(re.findall(r"def (\w+_kernel)\(", path.read_text()))
    assert kernels
    assert kernels == {facts["kernel"] for found in compiled.values() for facts in found}


def plain(schema):
    """A schema without names of results and of aliases; integers are plain."""
    arguments, results = re.sub(r"SymInt", "int", schema).split(" -> ")
    arguments = re.sub(r"\(\w+!\)", "(!)", arguments[arguments.index("(") :])
    return arguments, re.findall(r"Tensor\[?", results)


@built
@pytest.mark.parametrize("name", gpu.MODULES)
def test_launchers_have_the_schema_of_the_library(name):
    of_library = str(getattr(torch.ops.besskge, name).default._schema)
    assert plain(gpu.schema(name)) == plain(of_library)


def test_why_there_are_no_kernels_is_told(monkeypatch):
    if torch.version.cuda is None:
        assert native.MISSING_ON_GPU == "torch is built without CUDA"
        assert frozenset() == native.ON_GPU
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert gpu.missing() == ""
    with monkeypatch.context() as without:
        without.setattr(language, "HAS_TRITON", False)
        assert gpu.missing() == "Triton 3.3 or newer is not installed"
    monkeypatch.delattr(torch.library, "infer_schema")
    assert gpu.missing() == f"torch {torch.__version__} is too old"


def test_operations_are_registered_and_defined_where_there_are_none():
    names = gpu.register("besskge_by_triton", DEVICE.upper())
    assert names == frozenset(gpu.MODULES)
    for name in names:
        operation = f"besskge_by_triton::{name}"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(operation, DEVICE.upper())
    table, index = torch.randn(1, 5, 3), torch.tensor([[4, 0]])
    found = torch.ops.besskge_by_triton.gather(table.to(DEVICE), index.to(DEVICE))
    assert torch.equal(found.cpu(), table[:, [4, 0]])
