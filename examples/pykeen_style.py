"""A model of parts by name and a training loop, in the manner of PyKEEN, on a generated graph.

    python examples/pykeen_style.py

What PyKEEN has no counterpart of: `n_shard`, over which tables and scores are split.
"""

from __future__ import annotations

from besskge_core.catalogue import load_dataset
from besskge_core.evaluation import rank_triples
from besskge_core.known import KnownTriples
from besskge_core.model import KGEModel
from besskge_core.training import EarlyStopper, SymmetricLCWATrainingLoop
from besskge_core.triples_factory import TriplesFactory


def main(epochs: int = 20, n_person: int = 512, n_shard: int = 4) -> float:
    """Train ComplEx with N3 against all entities, and return the filtered MRR of the test triples."""
    dataset = load_dataset("family", n_person=n_person)
    training = TriplesFactory.from_dataset(dataset, "train", create_inverse_triples=True)
    model = KGEModel(
        triples_factory=training,
        interaction="complex",
        entity_representations_kwargs=dict(embedding_dim=64),
        loss="crossentropy",
        regularizer="lp",
        regularizer_kwargs=dict(weight=0.01, p=3.0),
        n_shard=n_shard,
        random_seed=0,
    )
    loop = SymmetricLCWATrainingLoop(
        model=model,
        triples_factory=training,
        optimizer="adagrad",
        optimizer_kwargs=dict(lr=0.1),
        lr_scheduler="exponential",
        lr_scheduler_kwargs=dict(gamma=0.95),
    )
    validation = TriplesFactory.from_dataset(dataset, "valid")
    stopper = EarlyStopper(validation, training, frequency=5, patience=2, metric="mrr")
    losses = loop.train(num_epochs=epochs, batch_size=256, stopper=stopper, use_tqdm=False)
    for i, loss in enumerate(losses):
        print(f"epoch {i + 1}  loss {loss:.4f}")
    metrics = rank_triples(
        model.score_fn, dataset.triples["test"], KnownTriples.of(dataset)
    ).metrics()
    print("test", {name: round(value, 4) for name, value in metrics.items()})
    return metrics["mrr"]


if __name__ == "__main__":
    main()
