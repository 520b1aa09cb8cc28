"""Training against all entities: each shard scores everyone's queries with its own entities.

Entities do not move to be candidates. What travels is the queries; and, for a softmax, one
log-sum-exp of each query from every shard, which together give that over all entities (and are
exact in their gradients, for the shares of the shards are a softmax too).

Axes as in the package's docstring; Q: queries of all shards; K: answers.
"""

from __future__ import annotations

import abc
import contextlib
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from besskge_core.bess.products import scores_products
from besskge_core.bess.tables import OverTables
from besskge_core.bess.tiled import Here, Task, TileShape, all_entity_loss
from besskge_core.errors import ConfigError
from besskge_core.exchange import Exchange, LocalExchange
from besskge_core.loss import CrossEntropyLoss, LabelledLoss
from besskge_core.ops.pairwise import serves
from besskge_core.regularizer import Regularizer
from besskge_core.scoring import BaseScoreFunction, Query
from besskge_core.scoring.native_form import native_form
from besskge_core.sharding import Sharding

#: Which of everyone's queries have their answers here, and in which rows: (K,) each.
Answers = Tuple[Tensor, Tensor]

#: Numbers that scores which are no inner products hold, over those of an inner product: 140 to 290
#: bytes a score were measured for HAKE and, in plain torch, RotatE; 13 for products. Native
#: distances hold their scores, and on the way back the coefficients of the pairs.
NUMBERS_OF_A_DISTANCE = 8
NUMBERS_OF_A_NATIVE_DISTANCE = 2


class AllEntitiesBessKGE(OverTables, abc.ABC):
    """Base of what is trained with the scores of all entities.

    Args:
        score_fn: score function, which owns the tables.
        loss_fn: loss of scores with labels; None: cross-entropy.
        label_smoothing: of the labels; what it means is the loss's business.
        regularizer: penalty of the embeddings of the triples.
        max_scores: scores held at a time, an eighth of it where scores are not inner products (half
            of it for native distances); the numbers do not depend on it.
        score_dtype: torch.bfloat16 or torch.float16 for the matrix products that score candidates
            (distances have none, and stay as they are); None: that of the tables. Losses are
            computed in float32 in any case.

    Attributes:
        tile_shape: how many queries and entities are scored at once; None: as `max_scores` says.
        exchange: the collectives; set by the runtime, one process by default.
        inputs: columns of a batch that `forward` takes.
        paired: batches are of triples partitioned by shard pairs.
    """

    inputs: Tuple[str, ...]
    paired: bool

    def __init__(
        self,
        score_fn: BaseScoreFunction,
        loss_fn: Optional[LabelledLoss] = None,
        label_smoothing: float = 0.0,
        regularizer: Optional[Regularizer] = None,
        max_scores: int = 2**25,
        score_dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        loss_fn = CrossEntropyLoss() if loss_fn is None else loss_fn
        if not isinstance(loss_fn, LabelledLoss):
            raise ConfigError(
                f"{type(loss_fn).__name__} is of sampled negatives; with all entities give a loss"
                " of labels, such as CrossEntropyLoss or BCEWithLogitsLoss"
            )
        if score_fn.sharding.hub_rows is not None:
            raise ConfigError(
                "no entity moves here, so hubs mean nothing: create the sharding without hubs"
            )
        if score_dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
            raise ConfigError(
                f"score_dtype is {score_dtype}, expected torch.bfloat16, torch.float16 or None"
            )
        if max_scores < 1:
            raise ConfigError(f"max_scores must be at least 1, got {max_scores}")
        self.score_fn, self.loss_fn, self.regularizer = score_fn, loss_fn, regularizer
        self.smoothing = loss_fn.smoothing(label_smoothing, score_fn.sharding.n_entity)
        self.max_scores, self.score_dtype = max_scores, score_dtype
        self.tile_shape: Optional[TileShape] = None
        self._padding_of: Tuple[Optional[Sharding], Optional[Tensor]] = (None, None)
        self.exchange: Exchange = LocalExchange(score_fn.sharding.n_shard)

    def prepare(self, columns: Mapping[str, Tensor]) -> Dict[str, Tensor]:
        """What the host adds to a micro-batch of the hosted shards: here, nothing."""
        return dict(columns)

    def _own_shard(self) -> Tensor:
        """(L, 1): which shards are hosted."""
        hosted = self.exchange.hosted
        return torch.arange(hosted.start, hosted.stop, device=self.entity_embedding.device)[:, None]

    def _queries(self, known: Tensor, relation: Tensor, heads: bool) -> List[Query]:
        """Of each hosted shard: known rows (L, B, D), relation IDs (L, B)."""
        of_shards = zip(known.unbind(), relation.unbind())
        return [self.score_fn.query(rows, r, heads) for rows, r in of_shards]

    def _outputs(
        self, loss: Tensor, relation: Sequence[Tensor], triple_mask: Optional[Tensor]
    ) -> Dict[str, Tensor]:
        """The outputs of a step, from the part of the loss and the relation IDs of each side (L, B).

        The terms of the embeddings' regularisers are of the look-ups of the hosted shards.
        """
        n_host = len(relation[0])
        counted = True if triple_mask is None else triple_mask.reshape(n_host, -1)
        term = self.score_fn.pop_regularization_term(relation, counted)
        return {"loss": loss * (self.exchange.n_shard / n_host) + term}

    def _against_all(
        self,
        query: Sequence[Query],
        heads: bool,
        answers: Sequence[Answers],
        weight: Tensor,
        table: Tensor,
    ) -> Tensor:
        """The loss of queries with all entities, or the hosted shards' part of it, ().

        Args:
            query: of each hosted shard, (B, ...) each.
            heads: whether heads are asked for.
            answers: of each hosted shard.
            weight: (L, B), of the queries.
            table: (L, E, D), rows of all entities.
        """
        score_fn, exchange = self.score_fn, self.exchange
        table = self._entities(table)
        padding = self._padding(len(query))
        everyone = [exchange.all_gather(torch.stack(x)).flatten(1, 2) for x in zip(*query)]
        # Of a table alone, a view, whose gradient needs no copy.
        tables = table.unbind() if len(table) > 1 else (table.squeeze(0),)
        here = [
            Here(tuple(own), tables[i], *answers[i], None if padding is None else padding[i])
            for i, own in enumerate(zip(*(x.unbind() for x in everyone)))
        ]
        pair_query = None
        if self.loss_fn.pairs:
            here, pair_query = self._with_pairs(here, heads)
        weights = exchange.all_gather(weight).flatten(1)[0].unsqueeze(1)  # (Q, 1), the same on all
        n_here = torch.zeros(len(here), len(weights), device=weights.device)
        for count, shard in zip(n_here, here):
            count.index_add_(0, shard.which.long(), torch.ones_like(shard.which, dtype=count.dtype))
        n_positive = exchange.all_reduce(n_here)[0].to(weights.dtype).unsqueeze(1)

        def score(of_query: Query, rows: Tensor) -> Tensor:
            return score_fn.score_candidates(of_query, rows.unsqueeze(0), heads)

        task = Task(
            loss_fn=self.loss_fn,
            smoothing=self.smoothing,
            score=score,
            weight=weights,
            n_positive=n_positive,
            n_kept=torch.full_like(n_positive, score_fn.sharding.n_entity),
            pair_query=pair_query,
            exchange=exchange,
            shape=self._shape(len(weights), len(here)),
            cast=self._cast,
            product_dtype=self._product_dtype(),
        )
        others: List[Tensor] = [x for x in score_fn.parameters() if x is not self.entity_embedding]
        return all_entity_loss(task, here, others)

    def _entities(self, table: Tensor) -> Tensor:
        """Rows of all entities (L, E, D), as they are scored."""
        padding = self._padding(len(table))
        return self.score_fn.entities(table, True if padding is None else ~padding)

    def _with_pairs(self, here: Sequence[Here], heads: bool) -> Tuple[List[Here], Tensor]:
        """Tell all shards the scores of all answers."""
        most = torch.tensor([[len(x.which)] for x in here], device=here[0].which.device)
        n_answer = int(self.exchange.all_gather(most).max())
        which, score = [], []
        for x in here:
            query = tuple(part[x.which] for part in x.query)
            own = self.score_fn.score_query(query, x.table[x.row], heads)
            missing = n_answer - len(own)
            which.append(nn.functional.pad(x.which, (0, missing), value=-1))
            score.append(nn.functional.pad(own, (0, missing)))
        all_which = self.exchange.all_gather(torch.stack(which)).flatten(1)
        all_score = self.exchange.all_gather(torch.stack(score)).flatten(1)
        pairs = [x._replace(pair_score=of_pairs) for x, of_pairs in zip(here, all_score.unbind())]
        return pairs, all_which[0]

    def _shape(self, n_query: int, n_host: int) -> TileShape:
        """Of the tiles of so many queries and hosted shards."""
        if self.tile_shape is not None:
            return self.tile_shape
        held = 1
        if not self.score_fn.is_inner_product:
            is_native = native_form(self.score_fn) is not None and serves(self.entity_embedding)
            held = NUMBERS_OF_A_NATIVE_DISTANCE if is_native else NUMBERS_OF_A_DISTANCE
        most = max(self.max_scores // held, 1)
        return TileShape.of(n_query, self.entity_embedding.shape[1], n_host, most)

    def _padding(self, n_host: int) -> Optional[Tensor]:
        """bool (L, E), True where a row is of no entity; None if no shard has such rows."""
        sharding, table = self.score_fn.sharding, self.entity_embedding
        if int(sharding.shard_counts.min()) == table.shape[1]:
            return None
        known, padding = self._padding_of
        if known is not sharding or padding is None or padding.device != table.device:
            ids = torch.from_numpy(sharding.shard_and_idx_to_entity).to(table.device)
            padding = (ids >= sharding.n_entity)[self._own_shard()[:, 0]]
            self._padding_of = sharding, padding
        return padding

    def _product_dtype(self) -> Optional[torch.dtype]:
        """What inner products are computed in; None if scores are something else."""
        of_table = self.entity_embedding.dtype
        if not scores_products(self.score_fn):
            return None
        if of_table not in (torch.float32, torch.float64) or self.score_dtype == torch.float16:
            return None
        half = of_table == torch.float32 and self.score_dtype == torch.bfloat16
        return torch.bfloat16 if half else of_table

    def _cast(self) -> contextlib.AbstractContextManager[Any]:
        if self.score_dtype in (None, torch.float32, self.entity_embedding.dtype):
            return contextlib.nullcontext()
        return torch.autocast(self.entity_embedding.device.type, dtype=self.score_dtype)

    def _penalty(self, head: Tensor, relation: Tensor, tail: Tensor, weight: Tensor) -> Tensor:
        """That of triples: rows (L, B, D), relation IDs and weights (L, B); part as of the loss."""
        assert self.regularizer is not None
        cost = self.regularizer.of_triples(self.score_fn, head, relation, tail)
        return self._reduced(cost, weight)

    def _reduced(self, cost: Tensor, weight: Tensor) -> Tensor:
        """Costs and weights of triples (L, B), reduced and scaled as the loss is; their part."""
        total = (weight * cost).sum()
        if self.loss_fn.reduction == "mean":
            size = self.exchange.all_reduce(weight.sum(-1))[0]
            total = total / torch.where(size > 0.0, size, torch.ones_like(size))
        return self.loss_fn.loss_scale * total
