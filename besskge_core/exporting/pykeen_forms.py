"""Which of PyKEEN's interactions scores like ours, and how our rows become its representations.

PyKEEN keeps the parts of a row as representations of their own, complex numbers as (real,
imaginary) pairs. Conventions are those of PyKEEN 1.11.1; each form is checked against it.

Axes:
    n: entities or relations      W: width of a row      *shape: axes of a representation
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from besskge_core.errors import ConfigError
from besskge_core.registry import Registry
from besskge_core.scoring.comparators import unit
from besskge_core.scoring.formula import ScoreFormula

#: Rows (n, W) -> representations (n, *shape) each.
Split = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class PykeenForm:
    """A formula as PyKEEN has it.

    Attributes:
        interaction: class in `pykeen.nn.modules`.
        options: of its constructor, as JSON can hold them.
        entities: from rows of entities to their representations.
        relations: likewise.
        parameters: of the interaction, by PyKEEN's names.
        unit_entities: whether entities are given length 1 when they are looked up.
    """

    interaction: str
    options: Dict[str, Any]
    entities: Split
    relations: Split
    parameters: Dict[str, Tensor] = field(default_factory=dict)
    unit_entities: bool = False


FORMS: Registry[Callable[[Any], PykeenForm]] = Registry("score function that PyKEEN has")


def pykeen_form(name: str, formula: ScoreFormula) -> PykeenForm:
    """How PyKEEN has this formula.

    Args:
        name: of its score function.
        formula: with what it has learned.

    Raises:
        ConfigError: PyKEEN has nothing of the same scores.
    """
    if name not in FORMS:
        raise _no_counterpart(name, "no interaction of PyKEEN's has these scores")
    return FORMS[name](formula)


def _no_counterpart(what: str, why: str) -> ConfigError:
    return ConfigError(
        f"{what} cannot be exported to PyKEEN: {why}; what can be: {', '.join(FORMS)}. A safetensors"
        " file holds any score function"
    )


def _entity_parts(formula: ScoreFormula) -> Split:
    """The parts of an entity row; a bias is a scalar."""
    return lambda rows: [
        part.squeeze(-1) if kind == 1 else part
        for kind, part in zip(formula.entity_parts, formula.split(rows, formula.entity_parts))
    ]


def _relation_parts(formula: ScoreFormula) -> Split:
    return lambda rows: formula.split(rows, formula.relation_parts)


def _in_parts(formula: ScoreFormula, interaction: str, **options: Any) -> PykeenForm:
    """Where PyKEEN's representations are the parts of our rows."""
    return PykeenForm(interaction, options, _entity_parts(formula), _relation_parts(formula))


def _complex(rows: Tensor) -> List[Tensor]:
    """Real half first -> complex numbers."""
    return [torch.complex(*(half.contiguous() for half in rows.chunk(2, -1)))]


# -- distances -------------------------------------------------------------------------------------


@FORMS.register("transe")
def _transe(formula: Any) -> PykeenForm:
    return _in_parts(formula, "TransEInteraction", p=formula.comparator.p, power_norm=False)


@FORMS.register("toruse")
def _toruse(formula: Any) -> PykeenForm:
    return _in_parts(formula, "TorusEInteraction", p=formula.comparator.p, power_norm=False)


@FORMS.register("rotate")
def _rotate(formula: Any) -> PykeenForm:
    if formula.comparator.p != 2:
        raise _no_counterpart(
            f"rotate with norm {formula.comparator.p}", "its RotatE takes norm 2, whatever is asked"
        )
    return PykeenForm(
        "RotatEInteraction", {}, _complex, lambda phase: [torch.complex(phase.cos(), phase.sin())]
    )


def _scaled(formula: Any, interaction: str, **options: Any) -> PykeenForm:
    return PykeenForm(
        interaction,
        dict(p=formula.p, power_norm=False, **options),
        _entity_parts(formula),
        _relation_parts(formula),
        unit_entities=formula.normalize,
    )


@FORMS.register("pairre")
def _pairre(formula: Any) -> PykeenForm:
    return _scaled(formula, "PairREInteraction")


@FORMS.register("triplere")
def _triplere(formula: Any) -> PykeenForm:
    return _scaled(formula, "TripleREInteraction", u=formula.u)


@FORMS.register("lineare")
def _lineare(formula: Any) -> PykeenForm:
    return _scaled(formula, "LineaREInteraction")


@FORMS.register("mure")
def _mure(formula: Any) -> PykeenForm:
    def relations(rows: Tensor) -> List[Tensor]:
        diagonal, moved = formula.split(rows, formula.relation_parts)
        return [-moved, diagonal]  # PyKEEN moves the head

    options = dict(p=2, power_norm=True)
    return PykeenForm("MuREInteraction", options, _entity_parts(formula), relations)


@FORMS.register("transh")
def _transh(formula: Any) -> PykeenForm:
    def relations(rows: Tensor) -> List[Tensor]:
        normal, moved = formula.split(rows, formula.relation_parts)
        return [unit(normal), moved]

    options = dict(p=formula.p, power_norm=False)
    return PykeenForm("TransHInteraction", options, _entity_parts(formula), relations)


@FORMS.register("transr")
def _transr(formula: Any) -> PykeenForm:
    def relations(rows: Tensor) -> List[Tensor]:
        moved, matrix = formula.split(rows, formula.relation_parts)
        return [moved, matrix.reshape(len(rows), formula.dim, formula.relation_parts[0])]

    options = dict(p=formula.p, power_norm=False, max_projection_norm=1.0)
    return PykeenForm("TransRInteraction", options, _entity_parts(formula), relations)


@FORMS.register("transd")
def _transd(formula: Any) -> PykeenForm:
    return _in_parts(formula, "TransDInteraction", p=formula.p, power_norm=False)


@FORMS.register("boxe")
def _boxe(formula: Any) -> PykeenForm:
    if not formula.per_dim:
        raise _no_counterpart(
            "boxe with dist_func_per_dim=False", "its BoxE looks at each dimension alone"
        )

    def size(width: Tensor, size: Tensor) -> Tensor:
        """Ours takes widths below `eps` for that, PyKEEN below its own: the size makes up for it."""
        least = torch.finfo(width.dtype).eps
        ours, its = (
            width.abs().clamp(min=x).log().mean(-1, keepdim=True).exp()
            for x in (formula.eps, least)
        )
        scale = (F.elu(size) + 1.0) * its.clamp(min=least) / ours
        return torch.where(its == ours, size, torch.where(scale > 1, scale - 1.0, scale.log()))

    def relations(rows: Tensor) -> List[Tensor]:
        centre_h, centre_t, width_h, width_t, size_h, size_t = formula.split(
            rows, formula.relation_parts
        )
        of_head = [centre_h, width_h, size(width_h, size_h)]
        return [*of_head, centre_t, width_t, size(width_t, size_t)]

    options = dict(tanh_map=formula.tanh, p=formula.p, power_norm=False)
    return PykeenForm("BoxEInteraction", options, _entity_parts(formula), relations)


# -- products --------------------------------------------------------------------------------------


@FORMS.register("distmult")
def _distmult(formula: Any) -> PykeenForm:
    return _in_parts(formula, "DistMultInteraction")


@FORMS.register("complex")
def _complex_numbers(formula: Any) -> PykeenForm:
    return PykeenForm("ComplExInteraction", {}, _complex, _complex)


@FORMS.register("cp")
def _cp(formula: Any) -> PykeenForm:
    # PyKEEN's has an axis of several such products; here it is one.
    return PykeenForm(
        "CPInteraction",
        {},
        lambda rows: [part.unsqueeze(1) for part in _entity_parts(formula)(rows)],
        lambda rows: [rows.unsqueeze(1)],
    )


@FORMS.register("simple")
def _simple(formula: Any) -> PykeenForm:
    # PyKEEN's SimplE scores (<h, r, t> + <t', r', h'>) / 2: no head ever meets a tail in it.
    blocks = [[0, 0, 1, 1], [1, 1, 0, 1]]  # <h, r, t'> + <h', r', t>
    return PykeenForm(
        "AutoSFInteraction",
        dict(coefficients=blocks),
        _entity_parts(formula),
        lambda rows: [0.5 * part for part in _relation_parts(formula)(rows)],
    )


@FORMS.register("hole")
def _hole(formula: Any) -> PykeenForm:
    return _in_parts(formula, "HolEInteraction")


@FORMS.register("quate")
def _quate(formula: Any) -> PykeenForm:
    def entities(rows: Tensor) -> List[Tensor]:
        return [torch.stack(rows.chunk(4, -1), dim=-1)]

    def relations(rows: Tensor) -> List[Tensor]:
        (quaternions,) = entities(rows)
        return [-unit(quaternions)]  # PyKEEN's score has a minus sign

    return PykeenForm("QuatEInteraction", {}, entities, relations)


@FORMS.register("rescal")
def _rescal(formula: Any) -> PykeenForm:
    dim = formula.dim
    return PykeenForm(
        "RESCALInteraction",
        {},
        _entity_parts(formula),
        lambda rows: [rows.reshape(len(rows), dim, dim)],
    )


# -- networks --------------------------------------------------------------------------------------


@FORMS.register("tucker")
def _tucker(formula: Any) -> PykeenForm:
    core = formula.operator.core
    normalize_head, head_dropout = formula.operator.before
    normalize_moved, moved_dropout = formula.operator.after
    options = dict(
        embedding_dim=core.shape[1],
        relation_dim=core.shape[0],
        head_dropout=head_dropout.p,
        relation_dropout=formula.operator.relation_dropout.p,
        head_relation_dropout=moved_dropout.p,
        apply_batch_normalization=not formula.scores_heads,
    )
    parameters = {
        "core_tensor": core.transpose(0, 1),
        **_named("head_batch_norm", normalize_head),
        **_named("head_relation_batch_norm", normalize_moved),
    }
    return PykeenForm(
        "TuckERInteraction", options, _entity_parts(formula), _relation_parts(formula), parameters
    )


@FORMS.register("conve")
def _conve(formula: Any) -> PykeenForm:
    layers = list(formula.operator.layers)
    flat = next(i for i, layer in enumerate(layers) if isinstance(layer, nn.Flatten))
    (convolution,) = (layer for layer in layers if isinstance(layer, nn.Conv2d))
    dropouts = [layer.p for layer in layers if isinstance(layer, (nn.Dropout, nn.Dropout2d))]
    channels, height, _ = formula.operator.image
    options = dict(
        input_channels=channels,
        output_channels=convolution.out_channels,
        embedding_height=height,  # PyKEEN wants to find the width itself
        kernel_height=convolution.kernel_size[0],
        kernel_width=convolution.kernel_size[1],
        **dict(zip(("input_dropout", "feature_map_dropout", "output_dropout"), dropouts)),
        embedding_dim=formula.dim,
        apply_batch_normalization=any(isinstance(x, nn.BatchNorm2d) for x in layers),
    )
    halves = {"hr2d": layers[:flat], "hr1d": layers[flat + 1 :]}
    parameters = {
        name: x
        for half, its_layers in halves.items()
        for i, layer in enumerate(its_layers)
        for name, x in _named(f"{half}.{i}", layer).items()
    }
    return PykeenForm(
        "ConvEInteraction", options, _entity_parts(formula), _relation_parts(formula), parameters
    )


def _named(prefix: str, module: nn.Module) -> Dict[str, Tensor]:
    return {f"{prefix}.{name}": x for name, x in module.state_dict().items()}
