"""An embedding: a table, and all that happens between its weights and what a model scores.

::

    IDs -> rows of the weight -> representations -> normalizer -> regularizer.update -> dropout

Axes:
    N: IDs      S: shards, of which L are hosted      M: rows of a shard's table
    W: numbers in a row of the weight
    U: rows that an update changed      ...: axes of indices
"""

from __future__ import annotations

import math
from typing import Any, Mapping, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from besskge_core.embedding.constrainers import CONSTRAINERS
from besskge_core.embedding.initializers import TABLE_INITIALIZERS, PretrainedInitializer
from besskge_core.embedding.layout import (
    Layout,
    checked_ids,
    count_ids,
    representation_shape,
    same_shape,
)
from besskge_core.embedding.normalizers import NORMALIZERS
from besskge_core.embedding.norms import acts_on_rows, widen
from besskge_core.embedding.penalties import Orthogonality, make_regularizer
from besskge_core.embedding.resolving import Choice, resolve
from besskge_core.embedding.storage import RowTable
from besskge_core.errors import ConfigError, ShapeError
from besskge_core.sharding import Sharding

Options = Optional[Mapping[str, Any]]
#: Which look-ups a regulariser sees: all, none, or bool (...) each.
Counted = Union[bool, Tensor]


class Embedding(nn.Module):
    """Trainable representations of entities or relations, by ID.

    A drop-in for torch.nn.Embedding in the manner of PyKEEN's: the same arguments, names and
    numbers, with a choice of sharding. The difference between a normaliser and a constrainer: a
    normaliser is part of the forward pass and of the gradient; a constrainer changes the weights
    themselves, after an update and outside the gradient.

    Dropout draws anew in each call in training, so that scores of one triple are samples (Monte
    Carlo dropout):

    >>> import torch
    >>> from besskge_core.scoring import DistMult
    >>> _ = torch.manual_seed(0)
    >>> entities = Embedding(max_id=14, embedding_dim=3, dropout=0.1)
    >>> relations = Embedding(max_id=55, embedding_dim=3, dropout=0.1)
    >>> head, relation, tail = torch.tensor([[0, 1, 0]]).repeat(10, 1).T
    >>> score = DistMult.make_formula(3)
    >>> scores = score.triples(entities(head), relations(relation), entities(tail))
    >>> scores.shape, len(scores.unique()) > 1
    (torch.Size([10]), True)
    >>> entities, relations = entities.eval(), relations.eval()
    >>> len(score.triples(entities(head), relations(relation), entities(tail)).unique())
    1

    Names of initialisers, constrainers, normalisers and regularisers are matched without case and
    underscores; a class or a function does as well. What differs from PyKEEN 1.11 on purpose:

    - the table is filled, and constrained, when the constructor returns, not at the first reset;
    - a pre-trained tensor is copied, keeps its dtype and its imaginary part, and a reset restores
      it; with PyKEEN training writes to the tensor;
    - a normaliser acts on the axes of each representation, whatever the shape of the indices:
      it is called with (n, *shape). "softmax" takes the last axis;
    - "normalize" and the initialisers "..._norm" give each representation norm 1, whatever its
      shape. With PyKEEN the norm is along axis 1, so that each column of a matrix has norm 1, which
      "normalize" does here with dict(dim=1), and in "..._norm" each of the two parts of a complex
      row, whose norm is then sqrt(2);
    - "clamp_norm" bounds the norm of each row, that of the whole table with dict(dim=None);
    - dropout works on complex representations: one real mask for both parts of an entry;
    - a constrainer changes the weight in place, only the rows that an update changed if it is told
      them, and no frozen table after it is filled;
    - half precision is drawn, normalised and constrained in single precision, and rounded;
    - the regulariser's term is a scalar (), and no part of the state dictionary; "orthogonality" is
      silent in evaluation, and refused here, since it is of two tensors;
    - `num_embeddings` is as good a name as `max_id`; options of nothing are refused.

    **Sharding.** With a sharding the weight is (L, M, W), padding rows zero, filled by ID before it
    is dealt to the shards: one seed gives the same embeddings for every number of shards. forward
    takes IDs as ever. BESS gathers `weight` by shard and row, and passes what it got to
    :meth:`represent`. A score function takes an embedding as `entity_initializer`, if its sharding
    is the same, and one without a sharding as `relation_initializer`; all of the above is then in
    force in training, evaluation and prediction.

    **Gradient.** A dense one is as large as the table, and what torch's optimisers need: the
    default without a sharding. A sparse one (torch.sparse_coo, one entry for each look-up) is as
    large as the batch, and what those of :mod:`besskge_core.optim` and torch.optim.SparseAdam want:
    the default with a sharding. Values are the same.

    Args:
        max_id: N, number of IDs; not needed with a sharding.
        num_embeddings: torch's name of the same.
        embedding_dim: width of a representation; this or `shape`.
        shape: axes of a representation, () for scalars.
        initializer: of `TABLE_INITIALIZERS`, a function of a table (N, *shape), with a last axis of
            two numbers if complex, that fills it or returns another, or a table. None: N(0, 1).
        initializer_kwargs: options.
        constrainer: of `CONSTRAINERS`, or a function of rows (n, *shape) of the table, each for
            itself.
        constrainer_kwargs: options.
        trainable: whether the weight gets a gradient.
        dtype: of representations, floating or complex; None: torch's default.
        normalizer: of `NORMALIZERS`, or a function of representations (n, *shape).
        normalizer_kwargs: options.
        regularizer: of `EMBEDDING_REGULARIZERS`, one that is made already, or a function of
            representations to a scalar.
        regularizer_kwargs: options, such as `weight`.
        dropout: share of entries that are set to zero in training.
        unique: look each ID of a call up once, and normalise it once. None: no.
        sharding: of the IDs.
        sparse: whether the weight gets a sparse gradient; see above.
        hosted: with a sharding, the shards whose rows this worker holds; None: those of
            :func:`~besskge_core.embedding.hosting`, or all. The rows are those that one worker with
            all shards would have.

    Attributes:
        weight: the parameter, real: (N, W), or (L, M, W) if sharded. W is the product of `shape`,
            and twice as much if complex, (real, imaginary) entry by entry. Its key in the state
            dictionary is PyKEEN's, `_embeddings.weight`; torch's, `weight`, can be loaded.
        max_id, num_embeddings: N.
        embedding_dim: product of `shape`.

    Raises:
        ConfigError: sizes that are missing or contradict each other, or options of another kind.
        TypeError: sizes that are no integers, or unknown options.
    """

    def __init__(
        self,
        max_id: Optional[int] = None,
        num_embeddings: Optional[int] = None,
        embedding_dim: Optional[int] = None,
        shape: Union[int, Sequence[int], None] = None,
        initializer: Union[Choice, Tensor, None] = None,
        initializer_kwargs: Options = None,
        constrainer: Optional[Choice] = None,
        constrainer_kwargs: Options = None,
        trainable: bool = True,
        dtype: Optional[torch.dtype] = None,
        *,
        normalizer: Optional[Choice] = None,
        normalizer_kwargs: Options = None,
        regularizer: Optional[Choice] = None,
        regularizer_kwargs: Options = None,
        dropout: Optional[float] = None,
        unique: Optional[bool] = None,
        sharding: Optional[Sharding] = None,
        sparse: Optional[bool] = None,
        hosted: Optional[Sequence[int]] = None,
    ) -> None:
        super().__init__()
        self.max_id = self.num_embeddings = count_ids(max_id, num_embeddings, sharding)
        self.shape, self.unique = representation_shape(embedding_dim, shape), bool(unique)
        self.embedding_dim = math.prod(self.shape)
        self.layout = Layout(self.shape, torch.get_default_dtype() if dtype is None else dtype)
        if isinstance(initializer, Tensor):
            initializer = PretrainedInitializer(initializer)
        self.initializer = resolve(
            TABLE_INITIALIZERS,
            "normal" if initializer is None else initializer,
            initializer_kwargs,
        )
        self.constrainer = resolve(CONSTRAINERS, constrainer, constrainer_kwargs)
        self._constrains_rows = acts_on_rows(
            (constrainer_kwargs or {}).get("dim", "row"), 1 + len(self.shape)
        )
        self.normalizer = resolve(NORMALIZERS, normalizer, normalizer_kwargs)
        self.regularizer = None
        if regularizer is not None or regularizer_kwargs:
            self.regularizer = make_regularizer(regularizer, **(regularizer_kwargs or {}))
        if isinstance(self.regularizer, Orthogonality):
            raise ConfigError("orthogonality is of two embeddings: make it apart, and update it")
        self.dropout = None if dropout is None else nn.Dropout(dropout)
        self._embeddings = RowTable(
            self.max_id, self.layout.width, self.layout.real_dtype, trainable, sharding,
            sharding is not None if sparse is None else sparse, hosted,
        )  # fmt: skip
        self.reset_parameters()

    @classmethod
    def from_pretrained(
        cls, tensor: Tensor, *, trainable: bool = False, **kwargs: Any
    ) -> Embedding:
        """An embedding that begins with a copy of a tensor, (N, *shape) by ID.

        Args:
            tensor: floating or complex; gives the size, shape and dtype.
            trainable: as in the constructor, but off.
            kwargs: more for the constructor. A `dtype` there wins; complex if `tensor` is.
        """
        if tensor.dim() == 0:
            raise ShapeError("tensor has shape (), expected (N, ...) with a row for each ID")
        dtype = kwargs.pop("dtype", None) or tensor.dtype
        if tensor.is_complex() and not dtype.is_complex:
            raise ConfigError(
                f"dtype {dtype} would lose the imaginary part of a {tensor.dtype} tensor; give a"
                " complex dtype, or tensor.real"
            )
        start = PretrainedInitializer(tensor.to(dtype) if dtype.is_complex else tensor)
        return cls(
            tensor.shape[0], shape=tensor.shape[1:], initializer=start, trainable=trainable,
            dtype=dtype, **kwargs,
        )  # fmt: skip

    @property
    def weight(self) -> nn.Parameter:
        return self._embeddings.weight

    @property
    def sharding(self) -> Optional[Sharding]:
        """Of the IDs; None: the weight is by ID."""
        return self._embeddings.sharding

    @property
    def dtype(self) -> torch.dtype:
        """Of representations."""
        return self.layout.dtype(self.weight.dtype)

    # -- look-ups ----------------------------------------------------------------------------------

    def forward(self, indices: Optional[Tensor] = None, counted: Counted = True) -> Tensor:
        """Representations of IDs.

        Args:
            indices: int32 or int64 (...), any shape; None: all IDs in order, which without anything
                to be done to them is a view of the weight.
            counted: whether the regulariser sees them; all, or bool (...) each.

        Returns:
            (..., *shape), or (N, *shape).

        Raises:
            IndexError: an ID not in [0, N); on the CPU, other devices have assertions of their own.
            TypeError: other dtypes.
        """
        if indices is None:
            return self.represent(self._embeddings.look_up(None), counted)
        ids = checked_ids(indices, self.max_id, "indices", f"max_id={self.max_id}")
        if not self.unique:
            rows = self._embeddings.look_up(ids)
            return self.represent(rows.view(*indices.shape, rows.shape[-1]), counted)
        ids, place = ids.unique(return_inverse=True)
        x = self._normalized(self._embeddings.look_up(ids))
        x = x.index_select(0, place).reshape((*indices.shape, *self.shape))
        return self._regularized(x, counted)

    def represent(self, rows: Tensor, counted: Counted = True) -> Tensor:
        """Rows of the weight (..., W), gathered by whom it may be -> (..., *shape).

        Normaliser, regulariser and dropout act as in :meth:`forward`.

        Raises:
            ShapeError: rows of another width.
        """
        width = self.weight.shape[-1]
        if rows.dim() == 0 or rows.shape[-1] != width:
            raise ShapeError(
                f"rows have shape {tuple(rows.shape)}, expected (..., W) with W={width}"
            )
        x = self._normalized(rows.reshape(rows.shape[:-1].numel(), width))
        return self._regularized(x.reshape((*rows.shape[:-1], *self.shape)), counted)

    def _normalized(self, rows: Tensor) -> Tensor:
        """Rows of the weight (n, W) -> (n, *shape)."""
        if self.normalizer is None:
            return self.layout.representations(rows)
        before = self.layout.representations(widen(rows))
        after = same_shape(self.normalizer(before), before, "normalizer")
        return after.to(self.layout.dtype(rows.dtype))

    def _regularized(self, x: Tensor, counted: Counted) -> Tensor:
        """Update the regulariser, then drop entries."""
        if self.regularizer is not None and counted is not False:
            seen = x[counted] if isinstance(counted, Tensor) else x
            # A mean of nothing is no number; but of several ranks all take part in the sum.
            if seen is x or len(seen) or self.regularizer.n_rank > 1:
                self.regularizer.update(seen)
        if self.dropout is None or not self.dropout.training:
            return x
        if x.dtype in (torch.float32, torch.float64, torch.bfloat16):
            return self.dropout(x)
        # One real mask an entry, in float32 or wider: torch has no complex one, 2.0 no half one.
        parts = torch.view_as_real(x) if x.is_complex() else x.unsqueeze(-1)
        mask = self.dropout(torch.ones_like(widen(parts[..., :1]))).to(parts.dtype)
        masked = parts * mask
        return torch.view_as_complex(masked) if x.is_complex() else masked.squeeze(-1)

    # -- weights -----------------------------------------------------------------------------------

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fill the table anew by ID, in place, and constrain it; frozen ones, too."""
        dtype = widen(self.weight.new_empty(0)).dtype
        table = torch.empty(
            self.max_id, *self.layout.real_shape, dtype=dtype, device=self.weight.device
        )
        if table.numel():
            made = self.initializer(table)
            if made.is_complex() and self.layout.is_complex:
                made = torch.view_as_real(made.resolve_conj())
            table = same_shape(made, table, "initializer")
        self._embeddings.fill(self.layout.rows(table))
        if self.constrainer is not None:
            self._embeddings.change(self._constrained)

    def post_parameter_update(self, rows: Optional[Tensor] = None) -> None:
        """Apply the constrainer to the weight, in place; a frozen weight has not changed.

        Args:
            rows: integer (U,), the rows that changed: IDs, or with a sharding places in (L, M) laid
                end to end, such as `RowPlan.unique_rows`. None: all. A constrainer of the whole
                table, such as clamp_norm with dim=None, does all in any case.

        Raises:
            IndexError: there are no such rows.
        """
        if self.constrainer is None or not self.weight.requires_grad:
            return
        if rows is not None:
            n_row = self.weight.shape[:-1].numel()
            rows = checked_ids(rows, n_row, "rows", f"a weight {tuple(self.weight.shape)}")
        self._embeddings.change(self._constrained, rows if self._constrains_rows else None)

    def _constrained(self, rows: Tensor) -> Tensor:
        """Rows of the weight (n, W) -> (n, W)."""
        if not rows.numel():
            return rows
        before = self.layout.representations(widen(rows))
        after = same_shape(self.constrainer(before), before, "constrainer")
        if self.layout.is_complex:
            after = after.to(before.dtype)  # a real table is one of real numbers
        return self.layout.rows(after).to(rows.dtype)

    def pop_regularization_term(self) -> Tensor:
        """What the regulariser asks for the look-ups since the last pop, a scalar; or 0."""
        if self.regularizer is None:
            return torch.zeros((), device=self.weight.device)
        term: Tensor = self.regularizer.pop_regularization_term()
        return term

    @property
    def hosted(self) -> Tuple[int, ...]:
        """The shards whose rows are here; (0,) without a sharding."""
        return self._embeddings.hosted

    def keep_shards(self, shards: Sequence[int]) -> None:
        """Keep the rows of some shards alone; optimisers made before hold the old weight."""
        self._embeddings.keep_shards(shards)

    def update_sharding(self, new_sharding: Sharding) -> None:
        """Lay the weight out for another sharding; values, dtype and `requires_grad` stay.

        Optimisers made before still hold the old weight: make them anew.

        Raises:
            ConfigError: there is no sharding, or the new one is of another number of IDs.
        """
        if self.sharding is None:
            raise ConfigError("this embedding is not sharded; make it with sharding=")
        if new_sharding.n_entity != self.max_id:
            raise ConfigError(
                f"the new sharding is of {new_sharding.n_entity} entities, the embedding of"
                f" {self.max_id}"
            )
        self._embeddings.update_sharding(new_sharding)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        if f"{prefix}weight" in state_dict:  # of torch.nn.Embedding
            state_dict[f"{prefix}_embeddings.weight"] = state_dict.pop(f"{prefix}weight")
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def extra_repr(self) -> str:
        layout = "" if self.sharding is None else f", n_shard={self.sharding.n_shard}"
        return f"{self.max_id}, shape={self.shape}, dtype={self.dtype}{layout}"
