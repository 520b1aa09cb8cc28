"""What tables of 16 bits cost in MRR: float32, bfloat16 rounded to the nearest and at random.

    python -m benchmarks.precision [--device DEVICE] [--epochs N] [--datasets NAME ...] [--quick]

Each run is the same but for its seed and the type of its tables; all else is in float32. One more
row is of float32 tables and products in TF32, by the GPU or, on a CPU, by matrix products of operands
that are rounded to its 10 bits. Writes `benchmarks/precision.md`, anew after every run, and
goes on with the runs that are in `benchmarks/results/precision.json` for the same settings.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Dict, Iterator
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from besskge_core.config import replace_flags
from besskge_core.environment import describe
from besskge_core.ops import native
from besskge_core.training import TrainingConfig, train
from besskge_core.training.config import DataConfig
from besskge_core.whole_files import write_json

HERE = Path(__file__).parent
RESULT, STORED = HERE / "precision.md", HERE / "results" / "precision.json"

#: Settings by how tables are kept.
VARIANTS: Dict[str, Dict[str, Any]] = {
    "float32": {},
    "bfloat16, to the nearest": dict(table_dtype="bfloat16", stochastic_rounding=False),
    "bfloat16, at random": dict(table_dtype="bfloat16"),
    "float32, products in TF32": {},
}
TF32 = "float32, products in TF32"

#: Matrix products, as torch calls them.
PRODUCTS = tuple(
    getattr(torch.ops.aten, name).default for name in ("mm", "bmm", "addmm", "baddbmm")
)
#: Operations of our own that multiply.
MULTIPLY = ("inner_products", "pairwise", "sampled_loss", "softmax_scores")

#: ComplEx with reciprocal relations, N3 and sampled softmax, linear decay; as the recipes of
#: examples/configs, but narrower and with fewer negatives, so that 27 runs take an hour.
COMMON: Dict[str, Any] = dict(
    score_function="complex", dim=64, init_scale=1e-3, n_shard=4, batch_size=1024,
    n_negative=1024, loss="sampledsoftmax", optimizer="adagrad", schedule="linear",
    evaluate_every=0, threads=1,
)  # fmt: skip
DATASETS: Dict[str, Dict[str, Any]] = {
    "codex-s": dict(lr=0.2, regularization=0.05, epochs=20),
    "wn18rr": dict(lr=0.4, regularization=0.1, epochs=10),
    "fb15k-237": dict(lr=0.2, regularization=0.05, epochs=5),
}
SEEDS = (0, 1, 2)


def configuration(dataset: str, variant: str, seed: int, options: Any) -> TrainingConfig:
    config = TrainingConfig(data=DataConfig(dataset))
    flags = {**COMMON, **DATASETS[dataset], **VARIANTS.get(variant, {}), "seed": seed}
    if options.epochs:
        flags["epochs"] = options.epochs
    if options.quick:
        flags.update(epochs=1, n_negative=64, dim=8)
    return replace_flags(config, {**flags, "device": options.device, "max_valid": 500})


class RoundedProducts(TorchDispatchMode):
    """Rounds what matrix products of float32 multiply to the nearest number of TF32."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            n_kept = len(args) - 2  # what is added to the product
            args = (*args[:n_kept], *map(to_tf32, args[n_kept:]))
        return func(*args, **(kwargs or {}))


def to_tf32(x: Tensor) -> Tensor:
    """The nearest numbers of 10 bits behind the point, ties to even."""
    if x.dtype != torch.float32:
        return x
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0xFFF + (bits >> 13 & 1)) & ~0x1FFF).view(torch.float32)


@contextmanager
def products_in_tf32(device: str) -> Iterator[None]:
    """While this lasts, products of float32 are those of tensor cores."""
    if device != "cpu":
        torch.backends.cuda.matmul.allow_tf32 = True
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = False
        return
    serves = native.serves

    def in_plain_torch(operation: str, *given: Any) -> bool:
        return operation not in MULTIPLY and serves(operation, *given)

    with mock.patch.object(native, "serves", in_plain_torch), RoundedProducts():
        yield


def measured(config: TrainingConfig, variant: str) -> Dict[str, Any]:
    device = config.run.device
    products = products_in_tf32(device) if variant == TF32 else nullcontext()
    with tempfile.TemporaryDirectory() as folder, products:
        result = train(config, Path(folder) / "run")
    test = result.metrics["test"]
    return {
        "mrr": test["mrr"],
        "hits@10": test["hits@10"],
        "loss": result.history[-1]["loss"],
    }


def report(runs: Dict[str, Dict[str, Any]], options: Any) -> str:
    machine = describe()
    where = machine["cpu"] if options.device == "cpu" else machine["devices"][-1]
    lines = [
        "# Precision of the tables, and MRR",
        "",
        f"`python -m benchmarks.precision`: {where}, torch {machine['torch']}, Python"
        f" {machine['python']}. ComplEx, {COMMON['dim']} complex numbers, {COMMON['n_negative']} negatives,"
        f" sampled softmax, N3, Adagrad with linear decay; {len(SEEDS)} seeds of sharding, initial tables"
        " and batches. Short trainings of narrow tables: what counts is the difference between rows."
        " Filtered, realistic test MRR of both sides; mean and standard deviation over seeds.",
        "",
        "| graph | epochs | tables | test MRR | of float32 | Hits@10 | last loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for dataset, settings in DATASETS.items():
        base = None
        for variant in VARIANTS:
            found = [runs[key] for seed in SEEDS if (key := f"{dataset}/{variant}/{seed}") in runs]
            if not found:
                continue
            mrr = [run["mrr"] for run in found]
            mean = statistics.mean(mrr)
            base = mean if variant == "float32" else base
            spread = statistics.stdev(mrr) if len(mrr) > 1 else float("nan")
            share = f"{mean / base:.3f}" if base else "-"
            hits, loss = (statistics.mean(run[x] for run in found) for x in ("hits@10", "loss"))
            lines.append(
                f"| {dataset} | {options.epochs or settings['epochs']} | {variant} | {mean:.4f} ±"
                f" {spread:.4f} | {share} | {hits:.4f} | {loss:.4f} |"
            )
    if options.device == "cpu":
        lines += ["", "TF32 is emulated: what matrix products multiply is rounded to its 10 bits."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--epochs", type=int, default=0, help="0: as many as each graph's settings say"
    )
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=list(DATASETS))
    parser.add_argument("--quick", action="store_true", help="to try the script; writes nothing")
    options = parser.parse_args()
    settings = {
        "common": COMMON,
        "datasets": DATASETS,
        "epochs": options.epochs,
        "device": options.device,
    }
    stored = json.loads(STORED.read_text()) if STORED.is_file() else {}
    as_stored = json.loads(json.dumps(settings))
    runs = stored["runs"] if stored.get("settings") == as_stored and not options.quick else {}
    for dataset in options.datasets:
        for seed in SEEDS:
            for variant in VARIANTS:
                key = f"{dataset}/{variant}/{seed}"
                if key in runs:
                    continue
                config = configuration(dataset, variant, seed, options)
                runs[key] = measured(config, variant)
                print(key, runs[key], flush=True)
                if not options.quick:
                    write_json(STORED, {"settings": settings, "runs": runs})
                    RESULT.write_text(report(runs, options), encoding="utf-8")
    print(report(runs, options))


if __name__ == "__main__":
    main()
