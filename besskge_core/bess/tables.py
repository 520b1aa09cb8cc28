"""What every module of BESS says of the tables that it computes with."""

from __future__ import annotations

from typing import cast

from torch import nn

from besskge_core.scoring import BaseScoreFunction
from besskge_core.sharding import Sharding


class OverTables(nn.Module):
    """A module whose tables are those of its score function."""

    score_fn: BaseScoreFunction

    @property
    def entity_embedding(self) -> nn.Parameter:
        """The entity table of the score function, (L, E, D).

        A replica of PopTorch sees its own part of it, (E, D), which here has its axis L = 1.
        """
        table = self.score_fn.entity_embedding
        return table if table.dim() == 3 else cast(nn.Parameter, table.unsqueeze(0))

    @property
    def entity_embedding_size(self) -> int:
        """D."""
        return int(self.entity_embedding.shape[-1])

    @property
    def sharding(self) -> Sharding:
        """Of the entities, that of the score function."""
        return self.score_fn.sharding
