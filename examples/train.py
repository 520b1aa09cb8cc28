"""Train, evaluate and query a knowledge graph, part by part: everything that BESS is made of.

    python examples/train.py

The graph is generated, so nothing is downloaded. `besskge train` does the same from one command,
with checkpoints, early stopping and a report; read this page to see what happens underneath.
"""

from besskge_core.batch_sampler import RigidShardedBatchSampler
from besskge_core.bess import EmbeddingMovingBessKGE
from besskge_core.catalogue import load_dataset
from besskge_core.evaluation import rank_triples
from besskge_core.known import KnownTriples
from besskge_core.loss import SampledSoftmaxCrossEntropyLoss
from besskge_core.negative_sampler import RandomShardedNegativeSampler
from besskge_core.optim import Adagrad
from besskge_core.predict import Predictor
from besskge_core.runtime import LocalRuntime
from besskge_core.scoring import ComplEx
from besskge_core.sharding import PartitionedTripleSet, Sharding

N_SHARD, SEED, EPOCHS = 4, 0, 10


def main(epochs: int = EPOCHS, n_person: int = 2000) -> float:
    graph = load_dataset("family", n_person=n_person)

    # Entities are split over the shards; triples are sorted by the shards of head and tail. Each
    # relation is also learned backwards, so that (?, r, t) is asked as (t, inverse of r, ?).
    sharding = Sharding.create(graph.n_entity, N_SHARD, seed=SEED)
    triples = PartitionedTripleSet.create_from_dataset(
        graph, "train", sharding, add_inverse_triples=True
    )

    # A step takes equally many triples of each shard pair, and negatives from every shard.
    negatives = RandomShardedNegativeSampler(
        n_negative=128,
        sharding=sharding,
        seed=SEED,
        corruption_scheme="t",
        flat_negative_format=True,
    )
    batches = RigidShardedBatchSampler(
        triples, negatives, shard_bs=128, batches_per_step=1, seed=SEED
    )

    # The score function owns the tables; the BESS module moves rows between shards and scores.
    score_fn = ComplEx(
        negative_sample_sharing=False,
        sharding=sharding,
        n_relation_type=graph.n_relation_type,
        embedding_size=64,
        inverse_relations=True,
    )
    loss = SampledSoftmaxCrossEntropyLoss(graph.n_entity, loss_scale=1 / batches.shard_bs)
    model = EmbeddingMovingBessKGE(negatives, score_fn, loss)

    # The runtime drives it; the optimiser touches only the rows of a batch.
    runtime = LocalRuntime(model)
    step = runtime.training_step(Adagrad(model.parameters(), lr=0.1))
    for epoch in range(epochs):
        losses = [float(step(batch)["loss"]) for batch in runtime.dataloader(batches, epoch)]
        print(f"epoch {epoch + 1}  loss {sum(losses) / len(losses):.4f}")

    # Every test triple against all entities, other known answers taken out.
    known = KnownTriples.of(graph)
    ranking = rank_triples(score_fn, graph.triples["test"], known)
    metrics = ranking.metrics()
    print("  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))

    # And a question: the best answers of (h, r, ?) for the first test triple.
    head, relation, _ = graph.triples["test"][0]
    assert graph.entity_dict and graph.relation_dict
    predictor = Predictor(score_fn, graph, known)
    for answer in predictor.tails(graph.entity_dict[head], graph.relation_dict[relation], k=5):
        print(answer)
    return metrics["mrr"]


if __name__ == "__main__":
    main()
