"""Operations for the IPU: what can be said of them where no SDK is. None has run on an IPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
IPU = ROOT / "custom_ops" / "ipu"
CODELETS = sorted(IPU.glob("*_codelet.cpp"))
SOURCES = [path for path in sorted(IPU.glob("*.cpp")) if path not in CODELETS]
TEXT = {path.name: path.read_text() for path in [*SOURCES, *CODELETS, *IPU.glob("*.h")]}
README = (IPU / "README.md").read_text()

IDENTIFIER = r'OperatorIdentifier (k\w+)\{kDomain, "(\w+)", kVersion\}'
OPS = {
    name: (source.name, constant)
    for source in SOURCES
    for constant, name in re.findall(IDENTIFIER, TEXT[source.name])
}
GRADIENTS = {"PairwiseGrad"}  # made by autodiff alone
UPDATES = {"ScatterUpdate"}  # made by a pattern alone; they have no gradient
PATTERNS = ("BesskgeRemoveAllReduce", "BesskgeSparseUpdate")


@pytest.fixture(scope="module")
def checker():
    """The folder of check.sh, and the environment that it wants."""
    folder = os.environ.get("BESSKGE_IPU_CHECK")
    if not folder or not (Path(folder) / "check.sh").exists():
        pytest.skip("BESSKGE_IPU_CHECK names no folder with check.sh: nothing is type-checked")
    return Path(folder).resolve()


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_the_operations_fit_the_headers_of_popart_and_poplibs(checker, source):
    headers = os.environ.get("IPU_HEADERS")
    if not headers:
        pytest.skip("IPU_HEADERS names no folder with popart/ and poplibs/: not type-checked")
    done = run([str(checker / "check.sh"), str(source)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"ok      {source}\n" and not done.stderr  # and no warnings


@pytest.mark.parametrize("codelet", CODELETS, ids=lambda path: path.name)
def test_the_codelets_are_those_of_a_tile(checker, codelet):
    done = run([str(checker / "check_codelet.sh"), str(codelet)])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"ok      host  {codelet}" in done.stdout and not done.stderr


def test_every_file_says_what_it_is_for():
    for source in SOURCES:
        header = TEXT[source.name].partition("#include")[0]
        assert header.startswith("// "), source.name
        if any(of == source.name for of, _ in OPS.values()):
            for word in ("Inputs:", "Gradient:", "->"):
                assert word in header, f"{source.name} lacks '{word}'"


@pytest.mark.parametrize("op", sorted(OPS))
def test_an_operation_is_listed_and_lowered(op):
    source, constant = OPS[op]
    assert f"`{op}`" in README and f"`{source}`" in README
    lowered = re.findall(r"OpxCreator<(\w+)> \w+\((k\w+)\)", TEXT[source])
    (opx,) = [opx for opx, of in lowered if of == constant]
    assert f"verifyOp<{op}Op>(op, {constant})" in TEXT[source]
    assert f"class {opx} : public" in TEXT[source] and "void grow(" in TEXT[source]


@pytest.mark.parametrize("op", sorted(set(OPS) - GRADIENTS - UPDATES))
def test_an_operation_that_is_called_has_a_schema_checks_and_a_gradient(op):
    source, constant = OPS[op]
    text = TEXT[source]
    assert f"popart::OpCreator<{op}Op> creator(" in text
    schema = text.partition("OpCreator<")[2]
    for part in ("Inputs(", "Outputs(", "Attributes("):
        assert part in schema, f"{op} lacks {part}"
    assert re.search(r"::getGradOps\(\)|> getGradOps\(\) override \{", text)
    checks = re.findall(r"expect\((?:[^;]|\n)*?;", text)
    assert checks and all(f'"{op} ' in check for check in checks), "errors name the operation"


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_is_listed_and_is_off_unless_asked_for(name):
    (text,) = [text for text in TEXT.values() if f'pattern("{name}", /*enabled=*/false)' in text]
    assert f"`{name}`" in README


def test_what_the_host_connects_is_what_a_codelet_has():
    """Names are text on the host's side, so no compiler compares them."""
    text = TEXT["pairwise_codelet.cpp"]
    fields = set(re.findall(r"(?:>> |unsigned )(\w+);", text))
    used = set(re.findall(r'v\["(\w+)"\]', TEXT["pairwise.cpp"]))
    assert used == fields
    vertices = set(re.findall(r"class (\w+) : public poplar::MultiVertex", text))
    assert set(re.findall(r"besskge_core::(\w+)[\"<]", TEXT["pairwise.cpp"])) == vertices
    names = re.findall(r"constexpr unsigned (k\w+) = \d; +//", TEXT["comparisons.h"])
    assert len(names) == 4
    for vertex in vertices - {"NormCoefficients"}:
        for name in names:
            assert f"BESSKGE_OF_EACH_TYPE({vertex}, {name})" in text


def test_what_is_an_operator_of_python_is_so_on_the_ipu():
    from besskge_core.ops.pairwise import COMPARISONS

    listed = re.search(r"kComparisonNames.*\{(.*)\}", TEXT["comparisons.h"])
    names = set(re.findall(r'"(\w+)"', listed.group(1)))
    assert names - {"l2_squared"} <= set(COMPARISONS)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_says_what_is_missing(tmp_path):
    path = [p for p in os.environ["PATH"].split(os.pathsep) if not (Path(p) / "popc").exists()]
    environment = {"PATH": os.pathsep.join(path), "CPATH": "", "POPLAR_SDK_ENABLED": ""}
    make = ["make", "-C", str(ROOT), "ipu-ops"]
    done = run(make, env=environment)
    assert done.returncode and "there is no Poplar SDK" in done.stderr
    environment["POPLAR_SDK_ENABLED"] = str(tmp_path)
    done = run(make, env=environment)
    assert done.returncode and "popc is not on PATH" in done.stderr
    popc = tmp_path / "popc"
    popc.write_text("#!/bin/sh\n")
    popc.chmod(0o755)
    environment["PATH"] = os.pathsep.join([str(tmp_path), *path])
    done = run(make, env=environment)
    assert done.returncode and "finds no popart/op.hpp" in done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_builds_every_file():
    out = run(["make", "-C", str(IPU), "-n", "-B"], env={"POPLAR_SDK_ENABLED": "/sdk"}).stdout
    for source in SOURCES:
        assert f"-c {source.name} " in out
    for codelet in CODELETS:
        assert re.search(f"popc .* {codelet.name} -o", out)


def run(command, env=None):
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **(env or {})}
    )
