"""Compile kernels for an H200 where there is none: `python tests/triton_compile.py CASE ...`.

Launchers are called with tensors of the meta device, which have shapes and no memory; in the place
of each launch its kernel is compiled to machine code for these arguments. Prints one JSON object for
each: the case, the kernel, its bytes of shared memory, and what ptxas says of registers.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

#: compute capability 9.0: H100, H200.
TARGET = GPUTarget("cuda", 90, 32)

NAMES = {
    torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16",
    torch.int32: "i32", torch.int64: "i64", torch.bool: "i1", torch.uint8: "u8", torch.int8: "i8",
}  # fmt: skip


def source_of(kernel, args, kwargs):
    """The kernel as Triton would compile it for these arguments, and what else was asked for."""
    names = kernel.arg_names
    given = {**dict(zip(names, args)), **{k: v for k, v in kwargs.items() if k in names}}
    options = {k: v for k, v in kwargs.items() if k not in names and k not in ("grid", "warmup")}
    signature, constants, hints = {}, {}, {}
    for i, (name, parameter) in enumerate(zip(names, kernel.params)):
        value = given[name]
        fixed = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (fixed and type(value) is int and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = "*" + NAMES[value.dtype]
        elif isinstance(value, bool):
            signature[name] = "u1"
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        else:
            signature[name] = "fp32"
        if isinstance(value, torch.Tensor) or (fixed and type(value) is int and value % 16 == 0):
            hints[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, constants, hints), options


def registers_of(ptx):
    """What ptxas says of a kernel: registers of a thread, and bytes that it spills."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        told = subprocess.run(
            [triton.knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", file.name, "-o", os.devnull],
            capture_output=True, text=True, check=True,
        ).stderr  # fmt: skip
    spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", told))
    return {"registers": int(re.search(r"Used (\d+) registers", told)[1]), "spilled": spilled}


def compiled(case, launch):
    """Facts of each kernel that `launch` launches."""
    found = []

    def instead(kernel, *args, **kwargs):
        source, options = source_of(kernel, args, kwargs)
        made = triton.compile(source, target=TARGET, options=options)
        about = {"case": case, "kernel": kernel.__name__, "shared": made.metadata.shared}
        found.append({**about, **registers_of(made.asm["ptx"]), "cubin": len(made.asm["cubin"])})

    original, JITFunction.run = JITFunction.run, instead
    try:
        launch()
    finally:
        JITFunction.run = original
    return found


def main(names):
    from triton_cases import CASES

    for name in names or CASES:
        for facts in compiled(name, CASES[name]):
            print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
