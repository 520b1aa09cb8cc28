"""Builds the native operations, where a torch and a compiler are there; `setup.cfg` has the rest.

Without them the package is pure Python, and plain torch computes what the operations would. The
build looks for an installed torch and never fetches one, so install without build isolation:
`pip install --no-build-isolation .`
"""

import os
import runpy
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import setup

SOURCES = sorted(str(path) for path in Path("custom_ops").glob("*.cpp")) + sorted(
    str(path) for path in Path("custom_ops", "cpu").glob("*.cpp")
)
HEADERS = sorted(str(path) for path in Path("custom_ops", "cpu").glob("*.h"))


def what_is_missing():
    """Why the operations cannot be built here, or nothing."""
    compiler = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    if not SOURCES:
        return "there are no sources"
    if shutil.which(shlex.split(compiler)[0]) is None and shutil.which("c++") is None:
        return f"there is no C++ compiler ({compiler})"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "there is no Python.h; the headers of Python are not installed"
    try:
        import torch.utils.cpp_extension  # noqa: F401
    except ImportError as error:
        return f"torch cannot be imported ({error}); build without isolation to find it"
    return ""


def native():
    """Arguments of setup() that build `besskge_core._native`."""
    missing = what_is_missing()
    if missing:
        print(f"besskge_core is built as pure Python: {missing}", file=sys.stderr)
        return {}
    from torch.utils.cpp_extension import BuildExtension, CppExtension, is_ninja_available

    # Threads are torch's own: OpenMP is compiled for and not linked, torch's runtime serves.
    openmp = ["-fopenmp"] if sys.platform == "linux" else []
    # No errno of a square root, so that it is an instruction; and no word on how vectors are passed
    # to functions, for all that take them are inlined.
    flags = ["-O3", "-g0", "-fno-math-errno", "-Wno-psabi", *openmp]
    # By which a build of other sources is known when it is loaded.
    digest = runpy.run_path("besskge_core/ops/sources.py")["sources_digest"](Path("custom_ops"))
    flags.append(f'-DBESSKGE_SOURCES="{digest}"')
    extension = CppExtension(
        "besskge_core._native", SOURCES, depends=HEADERS, extra_compile_args=flags
    )
    return {
        "ext_modules": [extension],
        # Files are compiled side by side where there is a ninja.
        "cmdclass": {"build_ext": BuildExtension.with_options(use_ninja=is_ninja_available())},
    }


setup(**native())
