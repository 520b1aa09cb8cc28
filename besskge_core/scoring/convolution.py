"""ConvE: a convolutional network makes the query of a head and a relation."""

from __future__ import annotations

from typing import List, Optional

import torch
from torch import Tensor, nn

from besskge_core.embedding import init_xavier_norm
from besskge_core.errors import ConfigError
from besskge_core.scoring.base import SCORE_FUNCTIONS
from besskge_core.scoring.comparators import Dot
from besskge_core.scoring.formula import QueryScore
from besskge_core.scoring.models import NamedScoreFunction
from besskge_core.scoring.operators import Operator, no_query_for_heads
from besskge_core.scoring.representations import Table
from besskge_core.sharding import Sharding


class Convolution(Operator):
    """The image of an entity above that of a relation, through a network; ends in a 1 for biases.

    Args:
        image: channels, height, width of what a row is, read as an image.
        output_channels: of the convolution.
        kernel: height and width of it.
        dropout: of the input, of feature maps and of the output.
        batch_normalization: of the input, of feature maps and of the output.
    """

    entity_parts = ("d", 1)  # entity, bias of a tail
    scores_heads = False

    def __init__(
        self,
        image: List[int],
        output_channels: int,
        kernel: List[int],
        dropout: List[float],
        batch_normalization: bool,
    ) -> None:
        super().__init__()
        self.image = image
        channels, height, width = image
        size = channels * height * width
        n_feature = output_channels * (2 * height - kernel[0] + 1) * (width - kernel[1] + 1)
        layers = [
            nn.BatchNorm2d(channels),
            nn.Dropout(dropout[0]),
            nn.Conv2d(channels, output_channels, (kernel[0], kernel[1])),
            nn.BatchNorm2d(output_channels),
            nn.ReLU(),
            nn.Dropout2d(dropout[1]),
            nn.Flatten(),
            nn.Linear(n_feature, size),
            nn.Dropout(dropout[2]),
            nn.BatchNorm1d(size),
            nn.ReLU(),
        ]
        normalizations = () if batch_normalization else (nn.BatchNorm1d, nn.BatchNorm2d)
        self.layers = nn.Sequential(*(x for x in layers if not isinstance(x, normalizations)))

    def forward(self, e: Tensor, r: Tensor) -> Tensor:
        images = [x.reshape(len(x), *self.image) for x in (e[:, :-1], r)]
        query = self.layers(torch.cat(images, dim=-2))
        return torch.cat([query, torch.ones_like(e[:, :1])], dim=-1)

    def adjoint(self, e: Tensor, r: Tensor) -> Tensor:
        no_query_for_heads("ConvE")


@SCORE_FUNCTIONS.register("conve")
class ConvE(NamedScoreFunction):
    """<relu(relu([h; r] * w) W), t> + b_t, without a sigmoid. Dettmers et al., AAAI 2018.

    Heads cannot be asked for: add inverse triples, and corrupt tails only. Entities: entity, bias
    as a tail, `embedding_size` + 1. Arguments as for
    :class:`~besskge_core.scoring.models.SimilarityModel`, and:

    Args:
        embedding_height, embedding_width: of the image that a row is read as; with
            `input_channels` their product is `embedding_size`.
        input_channels: of the image.
        output_channels: feature maps of the convolution.
        kernel_height, kernel_width: of the convolution.
        input_dropout, feature_map_dropout, hidden_dropout: while training.
        batch_normalization: of input, feature maps and output.

    Raises:
        ConfigError: the image does not have `embedding_size` numbers, or the kernel is too large.
    """

    entity_initializers, relation_initializers = (
        (init_xavier_norm, nn.init.zeros_),
        (init_xavier_norm,),
    )

    def __init__(
        self,
        negative_sample_sharing: bool,
        sharding: Sharding,
        n_relation_type: int,
        embedding_size: int,
        embedding_height: int,
        embedding_width: int,
        entity_initializer: Optional[Table] = None,
        relation_initializer: Optional[Table] = None,
        inverse_relations: bool = True,
        input_channels: int = 1,
        output_channels: int = 32,
        kernel_height: int = 3,
        kernel_width: int = 3,
        input_dropout: float = 0.2,
        feature_map_dropout: float = 0.2,
        hidden_dropout: float = 0.3,
        batch_normalization: bool = True,
    ) -> None:
        image = [input_channels, embedding_height, embedding_width]
        if input_channels * embedding_height * embedding_width != embedding_size:
            raise ConfigError(
                f"embedding_size is {embedding_size}, expected {' * '.join(map(str, image))} ="
                f" {input_channels * embedding_height * embedding_width}:"
                " input_channels * embedding_height * embedding_width"
            )
        if kernel_height > 2 * embedding_height or kernel_width > embedding_width:
            raise ConfigError(
                f"a kernel of {kernel_height} x {kernel_width} is larger than the image of head"
                f" and relation, {2 * embedding_height} x {embedding_width}"
            )
        operator = Convolution(
            image, output_channels, [kernel_height, kernel_width],
            [input_dropout, feature_map_dropout, hidden_dropout], batch_normalization,
        )  # fmt: skip
        super().__init__(
            QueryScore(operator, Dot(), embedding_size), negative_sample_sharing, sharding,
            n_relation_type, entity_initializer, relation_initializer, inverse_relations,
        )  # fmt: skip
