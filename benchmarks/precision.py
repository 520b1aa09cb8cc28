"""What tables of 16 bits cost in MRR: float32, bfloat16 rounded to the nearest and at random.

    python -m benchmarks.precision [--device DEVICE] [--epochs N] [--datasets NAME ...] [--quick]

Each run is the same but for its seed and the type of its tables; all else is in float32. With a GPU
there is a row for TF32 products besides. Writes `benchmarks/precision.md`, anew after every run, and
goes on with the runs that are in `benchmarks/results/precision.json` for the same settings.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any, Dict, List

import torch

from besskge_core.config import replace_flags
from besskge_core.environment import describe
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
}
#: On GPUs alone: products of float32 numbers cut to 10 bits.
TF32 = "float32, products in TF32"

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


def measured(config: TrainingConfig, variant: str) -> Dict[str, Any]:
    torch.backends.cuda.matmul.allow_tf32 = variant == TF32
    with tempfile.TemporaryDirectory() as folder:
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
        for variant in (*VARIANTS, TF32):
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
    if not any(TF32 in key for key in runs):
        lines += ["", "Products in TF32 need a GPU, and none was there: not run."]
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
    variants: List[str] = [*VARIANTS, *([TF32] if options.device.startswith("cuda") else [])]
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
            for variant in variants:
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
