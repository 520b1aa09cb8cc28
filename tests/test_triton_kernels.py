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
from pairs_support import rows
from sampled_loss_support import RULES, case
from test_softmax_tiles import make_logits, make_slope
from triton_cases import CASES
from triton_support import DEVICE

from besskge_core.ops import Pairing, gpu, native, plan_rows
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
        assert facts["spilled"] <= 64, facts  # a few bytes, out of the loops


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


REGISTERED = """
import sys, torch
torch.version.cuda = "13.0"  # as where torch is built with it; there need be no GPU
if sys.argv[1] == "without":
    sys.modules["besskge_core._native"] = None
from besskge_core.ops import gpu, native
print(native.MISSING_ON_GPU or all(
    torch._C._dispatch_has_kernel_for_dispatch_key(f"besskge::{name}", "CUDA") for name in gpu.MODULES
), native.ON_GPU == frozenset(gpu.MODULES))
x = torch.empty(3, 4, device="meta")
print(tuple(torch.ops.besskge.pairwise(x, x, "l1", None).shape))
"""


@pytest.mark.parametrize("library", ["with", "without"])
def test_kernels_are_registered_with_and_without_the_library(library):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REGISTERED, library], cwd=HERE.parent,
        env={**os.environ, "TRITON_INTERPRET": "0"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "True True\n(3, 3)\n", done.stderr[-3000:]


def test_modules_can_be_imported_without_triton():
    program = (
        "import sys, importlib\nsys.modules['triton'] = None\nfrom besskge_core.ops import gpu\n"
        "for name in gpu.MODULES: gpu.launcher(name)\n"
        "from besskge_core.ops.gpu.language import HAS_TRITON\nprint(HAS_TRITON)"
    )
    out = subprocess.run([sys.executable, "-c", program], cwd=HERE.parent, stdout=subprocess.PIPE)
    assert out.stdout.decode() == "False\n"


@pytest.fixture(scope="module")
def operations():
    """The operations as a device without the C++ library has them, in a space of their own."""
    space = "besskge_by_triton"
    names = gpu.register(space, DEVICE.upper())
    assert names == frozenset(gpu.MODULES)
    for name in names:
        torch.library.register_fake(f"{space}::{name}")(native.FAKES[name])
    return getattr(torch.ops, space)


def samples():
    """Operation -> arguments, one of each at least."""
    generator = torch.Generator().manual_seed(0)
    table, index, relation, relation_id, weight = case(n_host=1)
    q, e, scores = rows(7, 6), rows(9, 6, 1), rows(7, 9, 2)
    lookups, listed = torch.tensor([3, 1, 3]), torch.arange(21).view(7, 3) % 9
    logits = make_logits(7, 9, 3, generator)
    places, slope = (None, logits.row, logits.column), make_slope(7, 3, torch.zeros(7), generator)
    loss = Pairing(11, False, True, "translation", "l1"), RULES[3]
    product = (*places, 0.0, 1.0, torch.float32, False, 1024)
    return {
        "best_k": (scores, torch.tensor([0, 3, 3, 3, 3, 3, 3, 3]), lookups, 4, 0),
        "gather": (table, index[:, :3]),
        "indexed": (q, e, listed, "l1"),
        "indexed_backward": (rows(7, 3), rows(7, 3), q, e, listed, "l2", *plan_rows(listed.flatten(), 9)),
        "pairwise": (q, e, "l1", None),
        "pairwise_backward": (scores, scores, q, e, "l2", rows(7, 6, 3)),
        "rank_counts": (scores, torch.zeros(7), torch.arange(7), torch.zeros(8).long(), lookups[:0], 0),
        "sampled_loss": (
            table[0], index[0], relation, relation_id[0], weight[0], *loss[0], *loss[1][:3],
            list(loss[1][3:9]), 1.0, True, None, None, None,
        ),
        "scatter_update": (
            rows(12, 6), [rows(12, 6).abs()], rows(3, 6), *plan_rows(lookups, 12), "adagrad", 0.1,
            0.0, 0.0, 0.0, 1e-8, 1, None, 0,
        ),
        "softmax_gradient": (scores, *places, *slope, 0.0, 1.0),
        "softmax_gradients": (
            torch.empty(0), q, e, *places, *slope, *product[3:6], q.clone(), e.clone(), True, 1024
        ),
        "softmax_log_sum": (scores, *places, 0.0, 1.0),
        "softmax_scores": (q, e, *product),
    }  # fmt: skip


def on_device(x):
    if isinstance(x, list):
        return [on_device(y) for y in x]
    return x.to(DEVICE) if isinstance(x, torch.Tensor) else x


@pytest.mark.parametrize("name", gpu.MODULES)
def test_torch_is_told_what_the_launchers_do(operations, name):
    checks = ["test_schema", "test_faketensor"]
    if name == "softmax_scores" and DEVICE == "cpu":  # where the C++ library has other scores
        checks.pop()
    given = tuple(on_device(x) for x in samples()[name])
    torch.library.opcheck(getattr(operations, name).default, given, test_utils=checks)


def test_every_operation_has_a_sample():
    assert samples().keys() == gpu.MODULES.keys()
