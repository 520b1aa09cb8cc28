"""Imports point one way: a module may import its own layer and those below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.util import resolve_name
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "besskge_core"
LAYERS = [  # low to high; modules of one line may know each other
    "errors", "registry", "config environment vocabulary", "ahead counting whole_files", "philox", "shapes",
    "reading", "dataset", "prepared", "catalogue", "sharding", "preparation", "known",
    "negative_sampler", "ops", "exchange", "batch_sampler", "embedding", "loss", "metric", "scoring",
    "regularizer", "utils", "bess", "optim", "runtime", "all_entities", "top_k", "evaluation", "predict",
    "pipeline", "triples_factory", "model", "training", "exporting", "report", "planning",
    "cli_prepare", "cli",
]  # fmt: skip
RANK = {name: rank for rank, line in enumerate(LAYERS) for name in line.split()}
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    return ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts))


def imported(path):
    """Every name that the file imports, absolute or relative, wherever it does."""
    package = ".".join((PACKAGE.name, *path.parent.relative_to(PACKAGE).parts))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def layer(module):
    name = module.split(".")[1]
    assert name in RANK, f"give {name} its place in LAYERS"
    return RANK[name]


def test_imports_point_one_way():
    wrong = [
        f"{name_of(path)} imports {other}"
        for path in MODULES
        if path.parent != PACKAGE or path.stem not in ("__init__", "__main__")
        for other in imported(path)
        if other.startswith(PACKAGE.name + ".") and not other.endswith("__version__")
        and layer(other) > layer(name_of(path))
    ]  # fmt: skip
    assert not wrong, "\n".join(wrong)


def test_every_layer_that_exists_is_looked_at():
    found = {layer(name_of(path)) for path in MODULES if path.name[:2] != "__"}
    assert len(found) > 18 and len(MODULES) > 30


@pytest.mark.parametrize("foreign", ["poptorch", "popart"])
def test_device_libraries_are_imported_inside_functions(foreign):
    wrong = [
        name_of(path)
        for path in MODULES
        for name in top_level_imports(path.read_text())
        if name.split(".")[0] == foreign
    ]
    assert not wrong


def test_an_import_is_found_unless_a_function_makes_it():
    hidden = "def f():\n    import poptorch\nclass A:\n    def g(self):\n        import poptorch"
    seen = ["import poptorch", "try:\n    from poptorch import x\nexcept ImportError: pass",
            "class A:\n    import poptorch", "if True:\n    import poptorch.optim as o"]  # fmt: skip
    assert list(top_level_imports(hidden)) == []
    assert [next(top_level_imports(source)).split(".")[0] for source in seen] == 4 * ["poptorch"]


def top_level_imports(source):
    """Names imported when the file is, not when one of its functions runs."""
    waiting = list(ast.parse(source).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        waiting += ast.iter_child_nodes(node)


def test_importing_everything_imports_no_device_library():
    names = [name_of(path).replace(".__init__", "") for path in MODULES]
    names = [name for name in names if not name.endswith("__main__")]
    program = (
        f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('poptorch', 'popart')])"
    )
    out = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    assert out.stdout.decode().strip() == "[]"


def test_the_data_layer_needs_no_torch():
    names = [
        f"besskge_core.{name}" for name in ("dataset", "sharding", "known", "negative_sampler")
    ]
    program = f"import sys, {', '.join(names)}; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    assert out.stdout.decode().strip() == "False"


def test_every_module_delays_its_annotations():
    # Python 3.8 could not read `int | None` otherwise.
    wrong = [
        name_of(path)
        for path in MODULES
        if "\ndef " in path.read_text() or "\nclass " in path.read_text()
        if "\nfrom __future__ import annotations\n" not in path.read_text()
    ]
    assert not wrong
