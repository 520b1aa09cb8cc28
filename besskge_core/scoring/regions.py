"""Score functions that place entities in boxes, or in polar coordinates."""

from __future__ import annotations

from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from besskge_core.embedding import init_uniform_norm, init_uniform_rotation
from besskge_core.scoring.base import SCORE_FUNCTIONS
from besskge_core.scoring.comparators import norm, widened
from besskge_core.scoring.formula import PairScore
from besskge_core.scoring.initializers import init_near_one
from besskge_core.scoring.models import NamedScoreFunction
from besskge_core.scoring.representations import Table
from besskge_core.sharding import Sharding


class BoxDistance(PairScore):
    """Negated distances of the bumped head and tail to the boxes of the relation."""

    entity_parts = ("d", "d")  # position, bump
    relation_parts = ("d", "d", "d", "d", 1, 1)  # centres h t, widths h t, sizes h t

    def __init__(self, dim: int, p: float, tanh: bool, per_dim: bool, eps: float) -> None:
        super().__init__(dim)
        self.p, self.tanh, self.per_dim, self.eps = p, tanh, per_dim, eps

    def prepare_relation(self, r: Tensor) -> Tensor:
        """(..., 4 d + 2) -> (..., 4 d), centres h t and widths h t as they are."""
        parts = self.split(widened(r), self.relation_parts)
        centre_h, width_h = self._box(*parts[0::2])
        centre_t, width_t = self._box(*parts[1::2])
        return torch.cat([centre_h, centre_t, width_h, width_t], dim=-1).to(r.dtype)

    def _box(self, centre: Tensor, width: Tensor, size: Tensor) -> Tuple[Tensor, Tensor]:
        width = width.abs()
        mean = width.clamp(min=self.eps).log().mean(-1, keepdim=True).exp()  # geometric
        width = width / mean * (F.elu(size) + 1.0)
        if not self.tanh:
            return centre, width
        low, high = (centre - 0.5 * width).tanh(), (centre + 0.5 * width).tanh()
        return 0.5 * (low + high), high - low

    def score(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        centre_h, centre_t, width_h, width_t = r.chunk(4, -1)
        h, bump_of_h = self.split(h, self.entity_parts)
        t, bump_of_t = self.split(t, self.entity_parts)
        from_h = self._distance(h + bump_of_t, centre_h, width_h)
        return -(from_h + self._distance(t + bump_of_h, centre_t, width_t))

    def _distance(self, x: Tensor, centre: Tensor, width: Tensor) -> Tensor:
        x = x.tanh() if self.tanh else x
        off_centre = (x - centre).abs()
        inside = off_centre <= 0.5 * width
        if not self.per_dim:
            inside = inside.all(-1, keepdim=True)
        wide = width + 1.0
        outside = off_centre * wide - 0.5 * width * (wide - 1.0 / wide)
        return norm(torch.where(inside, off_centre / wide, outside), self.p)


@SCORE_FUNCTIONS.register("boxe")
class BoxE(NamedScoreFunction):
    """-(d(h + b_t, box_h) + d(t + b_h, box_t)), b the bumps. Abboud et al., NeurIPS 2020.

    With centre c and width w, d is the p-norm of |x - c| / (w + 1) where x is in the box, and of
    |x - c| (w + 1) - w / 2 (w + 1 - 1 / (w + 1)) where not. w is |width| / its geometric mean,
    times elu(size) + 1. Entities: position, bump, 2 * `embedding_size`; relations: centres of the
    boxes of head and tail, their widths, their sizes, 4 * `embedding_size` + 2.

    Two differences from upstream BESS-KGE: with `apply_tanh` the upper edge is tanh(c + w / 2), not
    tanh(tanh(c - w / 2) + w); and sizes start uniform in [0, 1), centres and widths with rows of
    length 1, as in PyKEEN. Upstream has them the other way round, where all sizes start as 1.

    Arguments as for :class:`~besskge_core.scoring.models.DistanceModel`, and:

    Args:
        relation_initializer: of two initialisers, the first is for centres and widths and the
            second for sizes.
        apply_tanh: map boxes and bumped entities into (-1, 1).
        dist_func_per_dim: ask for each dimension alone whether x is in the box, not for all at once.
        eps: least width in the geometric mean.
    """

    entity_initializers = (nn.init.uniform_, nn.init.uniform_)
    relation_initializers = (init_uniform_norm,) * 4 + (nn.init.uniform_,) * 2

    def __init__(
        self,
        negative_sample_sharing: bool,
        scoring_norm: int,
        sharding: Sharding,
        n_relation_type: int,
        embedding_size: int,
        entity_initializer: Optional[Table] = None,
        relation_initializer: Optional[Table] = None,
        apply_tanh: bool = True,
        dist_func_per_dim: bool = True,
        eps: float = 1e-6,
        inverse_relations: bool = False,
    ) -> None:
        if isinstance(relation_initializer, (list, tuple)) and len(relation_initializer) == 2:
            of_box, of_size = relation_initializer
            relation_initializer = [of_box] * 4 + [of_size] * 2
        super().__init__(
            BoxDistance(embedding_size, scoring_norm, apply_tanh, dist_func_per_dim, eps),
            negative_sample_sharing, sharding, n_relation_type,
            entity_initializer, relation_initializer, inverse_relations,
        )  # fmt: skip


class PolarDistance(PairScore):
    """-(a ||h_m o (r_m + b) - t_m o (1 - b)||_2 + c ||sin((h_p + r_p - t_p) / 2)||_1)."""

    entity_parts = ("d", "d")  # phases, moduli
    relation_parts = ("d", "d", "d")  # phases, moduli, mixture bias

    def __init__(self, dim: int, modulus_weight: float, phase_weight: float) -> None:
        super().__init__(dim)
        self.modulus_weight = nn.Parameter(torch.tensor(modulus_weight, dtype=torch.float32))
        self.phase_weight = nn.Parameter(torch.tensor(phase_weight, dtype=torch.float32))

    def prepare_relation(self, r: Tensor) -> Tensor:
        """(..., 3 d) -> (..., 3 d), phases, r_m + b, 1 - b, with r_m > 0 and -r_m <= b <= 1."""
        phase, modulus, bias = self.split(r, self.relation_parts)
        modulus = modulus.abs()
        bias = torch.maximum(bias.clamp(max=1.0), -modulus)
        return torch.cat([phase, modulus + bias, 1.0 - bias], dim=-1)

    def score(self, h: Tensor, r: Tensor, t: Tensor) -> Tensor:
        phase, of_h, of_t = self.split(r, self.relation_parts)
        phase_h, modulus_h = self.split(h, self.entity_parts)
        phase_t, modulus_t = self.split(t, self.entity_parts)
        by_modulus = norm(modulus_h * of_h - modulus_t * of_t, 2)
        by_phase = norm((0.5 * (phase_h + phase - phase_t)).sin(), 1)
        return -(self.modulus_weight * by_modulus + self.phase_weight * by_phase)


@SCORE_FUNCTIONS.register("hake")
class HAKE(NamedScoreFunction):
    """-(a ||h_m o (r_m + b) - t_m o (1 - b)||_2 + c ||sin((h_p + r_p - t_p) / 2)||_1).

    Zhang et al., AAAI 2020. Entities: phases p in radians, moduli m, 2 * `embedding_size`;
    relations: phases, moduli, mixture bias b, 3 * `embedding_size`, of which |m| and
    max(min(b, 1), -|m|) count. Phases start uniform; the moduli of relations start as 1 and biases
    as 0, as in the authors' code, the moduli of entities in U(0.5, 1.5). The weights a and c of the
    two distances are learned, too. Arguments as for
    :class:`~besskge_core.scoring.models.SimilarityModel`, and:

    Args:
        modulus_weight: what a starts with.
        phase_weight: what c starts with; the authors' code divides it by `embedding_size`, and
            multiplies it by the margin + 2.
    """

    entity_initializers = (init_uniform_rotation, init_near_one)
    relation_initializers = (init_uniform_rotation, nn.init.ones_, nn.init.zeros_)

    def __init__(
        self,
        negative_sample_sharing: bool,
        sharding: Sharding,
        n_relation_type: int,
        embedding_size: int,
        entity_initializer: Optional[Table] = None,
        relation_initializer: Optional[Table] = None,
        modulus_weight: float = 1.0,
        phase_weight: float = 0.5,
        inverse_relations: bool = False,
    ) -> None:
        super().__init__(
            PolarDistance(embedding_size, modulus_weight, phase_weight),
            negative_sample_sharing, sharding, n_relation_type,
            entity_initializer, relation_initializer, inverse_relations,
        )  # fmt: skip
