"""A model put together from parts by name: interaction, representations, loss, regularizer.

For those who come from PyKEEN's ERModel; what trains it is in :mod:`besskge_core.training`.

Axes:
    B: triples or queries      E: entities      R: relations      W: width of a row
"""

from __future__ import annotations

import inspect
import math
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Type, Union

import torch
from torch import Tensor, nn

from besskge_core.all_entities import evaluating
from besskge_core.embedding import Embedding, unshard_rows
from besskge_core.errors import ConfigError
from besskge_core.loss import LOSSES, LabelledLoss, PairwiseMarginLoss, labelled_losses
from besskge_core.registry import squeezed
from besskge_core.regularizer import REGULARIZERS, Regularizer
from besskge_core.scoring import SCORE_FUNCTIONS, BaseScoreFunction, FormulaScoreFunction
from besskge_core.scoring.formula import ScoreFormula
from besskge_core.shapes import match_shapes
from besskge_core.sharding import Sharding
from besskge_core.triples_factory import TriplesFactory

Options = Optional[Mapping[str, Any]]
Interaction = Union[str, Type[FormulaScoreFunction], ScoreFormula, BaseScoreFunction]

#: PyKEEN's names of losses that have another one here.
PYKEEN_LOSSES = {
    "marginranking": "pairwisemargin",
    "adversarialbcewithlogits": "adversarialbce",
    "adversarialbinarycrossentropywithlogits": "adversarialbce",
}


class KGEModel(nn.Module):
    """Interaction and representations of a graph, with the loss that they are trained with.

    >>> import torch
    >>> from besskge_core.triples_factory import TriplesFactory
    >>> triples = TriplesFactory(torch.tensor([[0, 0, 1], [1, 1, 2]]), 3, 2)
    >>> model = KGEModel(
    ...     triples_factory=triples,
    ...     interaction="distmult",
    ...     entity_representations_kwargs=dict(embedding_dim=3, dropout=0.1),
    ...     relation_representations_kwargs=dict(embedding_dim=3, dropout=0.1),
    ... )
    >>> batch = torch.as_tensor([[0, 1, 0]]).repeat(10, 1)
    >>> scores = model.score_hrt(batch)
    >>> scores.shape, len(scores.unique()) > 1
    (torch.Size([10, 1]), True)

    Args:
        triples_factory: the graph: sizes, and whether relations have inverse ones.
        interaction: name or class of a score function, a formula, or a score function with its
            tables, which is then taken as it is.
        interaction_kwargs: options of the score function, such as `scoring_norm`.
        entity_representations_kwargs: of :class:`~besskge_core.embedding.Embedding`;
            `embedding_dim` is the width of one part of a row, by default 50. Without `initializer`
            tables begin as the score function has them; without `dtype` rows of complex numbers are
            complex.
        relation_representations_kwargs: likewise; the width follows from that of entities.
        loss: name, class or instance of a loss of labels; None: margin ranking, as in PyKEEN.
        loss_kwargs: options of the loss.
        regularizer: name, class or instance of a penalty of the triples of a batch, such as "lp"
            (with p = 3 it is N3) or "dura".
        regularizer_kwargs: its options.
        n_shard: parts that the entity table is split into. Tables begin the same for any number; so
            does a batch of all triples cost the same against all entities.
        random_seed: of torch, set before tables are drawn, and of the sharding. None: not set.

    Attributes:
        score_fn: the score function, with the tables.
        loss: the loss.
        regularizer: the penalty, or None.

    Raises:
        ConfigError: parts that do not fit together.
    """

    def __init__(
        self,
        *,
        triples_factory: Any,
        interaction: Interaction = "distmult",
        interaction_kwargs: Options = None,
        entity_representations_kwargs: Options = None,
        relation_representations_kwargs: Options = None,
        loss: Union[str, Type[LabelledLoss], LabelledLoss, None] = None,
        loss_kwargs: Options = None,
        regularizer: Union[str, Type[Regularizer], Regularizer, None] = None,
        regularizer_kwargs: Options = None,
        n_shard: int = 1,
        random_seed: Optional[int] = None,
    ) -> None:
        super().__init__()
        self.triples_factory = TriplesFactory.of(triples_factory)
        if random_seed is not None:
            torch.manual_seed(random_seed)
        self._build = _Builder(
            self.triples_factory,
            interaction,
            dict(interaction_kwargs or {}),
            dict(entity_representations_kwargs or {}),
            dict(relation_representations_kwargs or {}),
            Sharding.create(self.triples_factory.num_entities, n_shard, random_seed or 0),
        )
        self.score_fn = self._build()
        self.loss: LabelledLoss = make_loss(loss, loss_kwargs)
        self.regularizer = _make_regularizer(regularizer, regularizer_kwargs)
        self.random_seed = random_seed

    @property
    def num_entities(self) -> int:
        """E."""
        return self.score_fn.sharding.n_entity

    @property
    def num_relations(self) -> int:
        """R, without inverse ones."""
        return self.score_fn.n_relation_type

    @torch.no_grad()
    def reset_parameters_(self) -> KGEModel:
        """Draw all parameters anew, in place; then constrain them."""
        self.score_fn.load_state_dict(self._build().state_dict())
        return self

    def post_parameter_update(self) -> None:
        """Apply the constrainers to all rows."""
        self.score_fn.post_parameter_update()

    # -- scores --------------------------------------------------------------------------------------

    def score_hrt(self, hrt_batch: Tensor) -> Tensor:
        """Triples (B, 3) of IDs -> (B, 1)."""
        match_shapes(hrt_batch=(hrt_batch, "B 3"))
        h, r, t = hrt_batch.T
        return self.score_fn(self._entity_rows(h), r, self._entity_rows(t)).unsqueeze(1)

    def score_t(self, hr_batch: Tensor) -> Tensor:
        """Heads and relations (B, 2) -> all tails (B, E)."""
        match_shapes(hr_batch=(hr_batch, "B 2"))
        return self._score_all(hr_batch[:, 0], hr_batch[:, 1], False)

    def score_h(self, rt_batch: Tensor) -> Tensor:
        """Relations and tails (B, 2) -> all heads (B, E); with inverse relations, as tails."""
        match_shapes(rt_batch=(rt_batch, "B 2"))
        relation, tail = rt_batch.T
        heads, asked = self.score_fn.directed(True, relation)
        return self._score_all(tail, asked, heads)

    def score_r(self, ht_batch: Tensor) -> Tensor:
        """Heads and tails (B, 2) -> all relations (B, R)."""
        match_shapes(ht_batch=(ht_batch, "B 2"))
        rows = (self._entity_rows(x) for x in ht_batch.T)
        return self.score_fn.score_relations(*rows)[:, : self.num_relations]

    def predict(self, kind: str, batch: Tensor) -> Tensor:
        """The scores "hrt", "t", "h" or "r" in evaluation mode, without gradient."""
        with evaluating(self):
            scores: Tensor = getattr(self, f"score_{kind}")(batch)
        return scores

    def _entity_rows(self, ids: Tensor) -> Tensor:
        """(B,) -> (B, W)"""
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.num_entities:
            raise IndexError(
                f"entity IDs run from {int(ids.min())} to {int(ids.max())}, expected"
                f" [0, {self.num_entities})"
            )
        flat = self.score_fn.entity_embedding.flatten(end_dim=1)
        place = torch.from_numpy(self.score_fn.sharding.flat_row).to(flat.device)
        return self.score_fn.entities(flat.index_select(0, place[ids]))

    def _score_all(self, known: Tensor, relation: Tensor, heads: bool) -> Tensor:
        query = self.score_fn.query(self._entity_rows(known), relation, heads)
        every = self._entity_rows(torch.arange(self.num_entities, device=known.device))
        return self.score_fn.score_candidates(query, every.unsqueeze(0), heads)


class _Builder:
    """Makes the score function, again and again with other random numbers."""

    def __init__(
        self,
        graph: TriplesFactory,
        interaction: Interaction,
        options: Dict[str, Any],
        entity: Dict[str, Any],
        relation: Dict[str, Any],
        sharding: Sharding,
    ) -> None:
        self.graph, self.options, self.sharding = graph, options, sharding
        self.entity, self.relation = entity, relation
        self.interaction = (
            SCORE_FUNCTIONS[interaction.lower()] if isinstance(interaction, str) else interaction
        )
        late = sorted({"max_id", "num_embeddings", "sharding"} & {*entity, *relation})
        if late:
            raise ConfigError(f"{late} of representations follow from the graph; leave them out")
        self.dim = _dim(entity)
        if isinstance(interaction, ScoreFormula) and self.dim not in (None, interaction.dim):
            raise ConfigError(
                f"the formula is for parts {interaction.dim} wide, got embedding_dim={self.dim}"
            )
        dtype = entity.get("dtype")
        if dtype is not None and "dtype" not in relation and not dtype.is_complex:
            relation["dtype"] = dtype
        self.made, self.taken = isinstance(interaction, BaseScoreFunction), False
        if self.made and (options or entity or relation):
            raise ConfigError(
                f"{type(interaction).__name__} comes with its tables: options of the interaction or"
                " of representations are late"
            )

    def __call__(self) -> BaseScoreFunction:
        if self.made:
            return self._as_it_is()
        by_id = Sharding.create(self.graph.num_entities, 1, 0)
        plain = self._make(by_id, None, None)
        formula = plain.formula
        entities = unshard_rows(plain.entity_embedding.detach(), by_id)
        relations = plain.relation_embedding.detach()
        return self._make(
            self.sharding,
            _embedding(
                "entity", self.entity, entities, formula.complex_entities, sharding=self.sharding
            ),
            _embedding("relation", self.relation, relations, formula.complex_relations),
            plain,
        )

    def _as_it_is(self) -> BaseScoreFunction:
        made, graph = self.interaction, self.graph
        assert isinstance(made, BaseScoreFunction)
        if self.taken:
            raise ConfigError("a score function that was given as it is cannot be drawn anew")
        self.taken = True
        found = (made.sharding.n_entity, made.n_relation_type)
        if found != graph.sizes or (graph.create_inverse_triples and not made.inverse_relations):
            raise ConfigError(
                f"the score function is of {found[0]} entities and {found[1]} relations, the triples"
                f" of {graph.sizes[0]} and {graph.sizes[1]}; inverse relations it has"
                f" {made.inverse_relations}, wanted {graph.create_inverse_triples}"
            )
        return made

    def _make(
        self,
        sharding: Sharding,
        entity: Optional[Embedding],
        relation: Optional[Embedding],
        like: Optional[FormulaScoreFunction] = None,
    ) -> FormulaScoreFunction:
        graph = self.graph
        if isinstance(self.interaction, ScoreFormula):
            formula = self.interaction
            draw: List[Any] = [lambda table: nn.init.normal_(table)]
            return FormulaScoreFunction(
                formula, False, sharding, graph.num_relations, entity or draw, relation or draw,
                graph.create_inverse_triples,
            )  # fmt: skip
        make: Any = self.interaction
        arguments = {
            "scoring_norm": 2,
            **self.options,
            "negative_sample_sharing": False,
            "sharding": sharding,
            "n_relation_type": graph.num_relations,
            "embedding_size": 50 if self.dim is None else self.dim,
            "inverse_relations": graph.create_inverse_triples,
        }
        if entity is not None:
            arguments.update(entity_initializer=entity, relation_initializer=relation)
        taken = inspect.signature(make).parameters
        unknown = sorted(set(self.options) - set(taken))
        if unknown:
            raise ConfigError(f"interaction_kwargs has {unknown}; expected some of {sorted(taken)}")
        made: FormulaScoreFunction = make(**{k: x for k, x in arguments.items() if k in taken})
        if like is not None:  # what a formula learns besides the tables
            made.formula.load_state_dict(like.formula.state_dict())
        return made


def _axes(shape: Union[int, Sequence[int]]) -> Tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)


def _dim(options: Mapping[str, Any]) -> Optional[int]:
    """Width of one part of a row, if it is given."""
    shape = options.get("shape")
    given = [] if shape is None else [math.prod(_axes(shape))]
    given += [options["embedding_dim"]] if options.get("embedding_dim") is not None else []
    if len(set(given)) > 1:
        raise ConfigError(f"shape {shape} and embedding_dim {given[1]} are different widths")
    return int(given[0]) if given else None


def _embedding(
    name: str, options: Mapping[str, Any], table: Tensor, is_complex: bool, **more: Any
) -> Embedding:
    """An embedding as wide as a table (N, W), which it begins as unless told otherwise."""
    given = dict(options)
    dtype = given.get("dtype")
    if is_complex and (dtype is None or dtype.is_complex):
        table = torch.complex(*(x.contiguous() for x in table.chunk(2, -1)))
        if dtype is None:
            given["dtype"] = table.dtype
    if dtype is not None and dtype.is_complex and not is_complex:
        raise ConfigError(
            f"{name} rows of this interaction are real, got dtype {dtype}; leave it out"
        )
    dim = given.pop("embedding_dim", None)
    if name == "relation" and dim is not None and dim != table.shape[-1]:
        raise ConfigError(
            f"relation rows of this interaction are {table.shape[-1]} wide, as follows from the"
            f" entities', but embedding_dim is {dim}"
        )
    shape = given.pop("shape", None)
    if shape is None or (name == "entity" and math.prod(_axes(shape)) != table.shape[-1]):
        shape = (table.shape[-1],)  # all parts of a row
    shape = _axes(shape)
    if given.get("initializer") is None:
        given["initializer"] = table.reshape(len(table), *shape)
    return Embedding(None if "sharding" in more else len(table), shape=shape, **given, **more)


def make_loss(
    choice: Union[str, Type[LabelledLoss], LabelledLoss, None], options: Options
) -> LabelledLoss:
    """A loss of labels by name (PyKEEN's, too), class, or as it is.

    Raises:
        ConfigError: it is none, or options are late.
    """
    if isinstance(choice, LabelledLoss):
        if options:
            raise ConfigError(f"the loss is made already, options {sorted(options)} are late")
        return choice
    make: Any = PairwiseMarginLoss if choice is None else choice
    if isinstance(make, str):
        name = squeezed(make)
        name = name[: -len("loss")] if name.endswith("loss") else name
        make = LOSSES[PYKEEN_LOSSES.get(name, name)]
    if not (isinstance(make, type) and issubclass(make, LabelledLoss)):
        raise ConfigError(
            f"loss {choice!r} is of sampled negatives alone; expected one of {labelled_losses()}"
        )
    return make(**(options or {}))


def _make_regularizer(
    choice: Union[str, Type[Regularizer], Regularizer, None], options: Options
) -> Optional[Regularizer]:
    if choice is None or isinstance(choice, Regularizer):
        if options:
            raise ConfigError(
                f"regularizer_kwargs {sorted(options)} are for a regularizer by name or class, got"
                f" {choice!r}"
            )
        return choice
    make: Any = REGULARIZERS[choice.lower()] if isinstance(choice, str) else choice
    regularizer: Regularizer = make(**(options or {}))
    return regularizer
