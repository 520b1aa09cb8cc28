"""A library that is missing, foreign or stale is told once, and plain torch serves."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from besskge_core.ops import native
from besskge_core.ops.sources import sources_digest

ROOT = Path(__file__).parent.parent

COUNT = """
import torch
from besskge_core.ops import rank_counts
from besskge_core.ops.native import MISSING, operations
print(rank_counts(torch.tensor([[1., 2., 3.]]), torch.tensor([2.]))[0].item(), MISSING, operations())
"""

built = pytest.mark.skipif(not native.NATIVE, reason="the native operations are not built")


def test_a_missing_build_is_logged_and_no_warning(monkeypatch, caplog):
    def fail(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(native.importlib, "import_module", fail)
    assert native._missing() == "not built"
    (line,) = caplog.messages
    assert line.startswith("native operations are not built, plain torch serves and is slower;")


def test_a_foreign_build_is_told(monkeypatch):
    def fail(name):
        raise ImportError("undefined symbol: _ZN3c10")

    monkeypatch.setattr(native.importlib, "import_module", fail)
    expected = "for another torch or Python .undefined symbol: _ZN3c10.; plain torch serves instead"
    with pytest.warns(RuntimeWarning, match=f"native operations were built {expected}"):
        assert native._missing().startswith("built for another torch or Python")


@built
def test_a_build_without_sources_beside_it_is_taken_as_it_is(monkeypatch):
    for digest in ("", native.torch.ops.besskge.built_from()):
        monkeypatch.setattr(native, "sources_digest", lambda folder, digest=digest: digest)
        assert native._missing() == ""


@built
def test_a_stale_build_is_told_once_and_not_used(tmp_path):
    shutil.copytree(ROOT / "besskge_core", tmp_path / "besskge_core")
    shutil.copytree(ROOT / "custom_ops", tmp_path / "custom_ops")
    with (tmp_path / "custom_ops" / "library.cpp").open("a") as source:
        source.write("// newer\n")
    done = subprocess.run([sys.executable, "-c", COUNT], cwd=tmp_path, capture_output=True)
    assert done.stdout.decode().strip() == "1 built from other sources []", done.stderr.decode()
    told = "native operations were built from other sources; plain torch serves instead"
    assert done.stderr.decode().count(told) == 1


def test_the_digest_is_of_names_and_text_but_not_of_line_ends(tmp_path):
    assert sources_digest(tmp_path) == ""
    digests = set()
    for name, text in [
        ("a.cpp", b"x\n"),
        ("a.cpp", b"y\n"),
        ("b.cpp", b"y\n"),
        ("b.cpp", b"y\r\n"),
    ]:
        for file in tmp_path.iterdir():
            file.unlink()
        (tmp_path / name).write_bytes(text)
        digests.add(sources_digest(tmp_path))
    assert len(digests) == 3
