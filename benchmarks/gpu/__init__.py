"""Tests and measurements on one GPU, in under nine minutes: `make gpu`.

    python -m benchmarks.gpu [--rehearse] [--sections kernels steps ...] [--budget SECONDS]

It runs from the source tree, with whatever Python has torch: no network, no installation, no
compiler. Each section stands alone, so that one that fails loses nothing, and the results,
`benchmarks/results/gpu-DEVICE.json` and `.md`, are written anew after each. What is missing is
named there. `--rehearse` runs all of it on a CPU with tiny sizes, to test the harness; what it
measures says nothing about a GPU and is never written among the results.
"""
