"""torch_geometric.nn.kge: its models, loader and random negatives, each triple repeated for its own."""

from __future__ import annotations

from typing import Any, Iterator, Tuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch_geometric.nn import kge

from .common import Answer, StepRequest, serve, split_names, time_steps

OPTIMIZERS = {"adagrad": torch.optim.Adagrad, "adam": torch.optim.Adam}
MODELS = {
    "transe": kge.TransE,
    "distmult": kge.DistMult,
    "complex": kge.ComplEx,
    "rotate": kge.RotatE,
}


def step(**fields: Any) -> Answer:
    request = StepRequest(**fields)
    request.only(optimizer=list(OPTIMIZERS), layout=["per_triple"])
    names = split_names(request.model)
    dim = request.dim // 2 if names["name"] in ("complex", "rotate") else request.dim
    options = {"p_norm": float(names["p"])} if names["p"] else {}
    model = MODELS[names["name"]](request.n_entity, request.n_relation, dim, **options)
    optimizer = OPTIMIZERS[request.optimizer](model.parameters(), lr=0.01)
    head, relation, tail = torch.from_numpy(request.triples()).T.contiguous()
    loader = model.loader(head, relation, tail, batch_size=request.batch, shuffle=True)

    def forever() -> Iterator[Tuple[Tensor, ...]]:
        while True:
            yield from loader

    batches = forever()

    def one() -> float:
        optimizer.zero_grad()
        positive = next(batches)
        repeated = [x.repeat_interleave(request.n_negative) for x in positive]
        scores = [model(*positive), model(*model.random_sample(*repeated))]
        truth = torch.cat([torch.ones_like(scores[0]), torch.zeros_like(scores[1])])
        loss = binary_cross_entropy_with_logits(torch.cat(scores), truth)
        loss.backward()
        optimizer.step()
        return loss.item()

    note = "half of the negatives corrupt heads; TransE normalises entities in its forward pass"
    return time_steps(
        request, one, loss="binary cross-entropy", note=f"{request.optimizer}, dense; {note}"
    )


if __name__ == "__main__":
    serve(["torch_geometric"], step=step)
