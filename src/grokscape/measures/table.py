"""The table of measures, and the evaluation of many at once.

A measure is a row here and a function: columns of trajectories, interventions, printed tables, documentation and the
contract tests all follow from the row.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from grokscape.measures import collapse, comparison, flatness, representation, representativeness
from grokscape.measures.snapshot import Measure, Quantities, Snapshot

_PETZKA = "Petzka et al., NeurIPS 2021, Definition 3"
_PAPER = "Han et al., NeurIPS 2025"
_PAPYAN = "Papyan, Han & Donoho, PNAS 2020"
_GALANTI = "Galanti, György & Hutter, ICLR 2022"
_SAKAMOTO = "Sakamoto & Sato, ICLR 2026 (arXiv 2509.20829)"
_BARTLETT = "Bartlett et al., NeurIPS 2017"
_PETZKA_GAP = "Petzka et al., NeurIPS 2021, Section 3"
_ILDR = "arXiv 2604.20923"
_OURS = "grokscape"


def _row(
    name: str, function: Callable[..., Tensor], inputs: str, title: str, unit: str, source: str, **more: Any
) -> Measure:
    more = {"direction": "lower", **more}
    return Measure(name, function, tuple(inputs.split()), unit=unit, source=source, title=title, **more)


def _flatness(*row: Any, **more: Any) -> Measure:
    return _row(*row, property="flatness", **more)


def _collapse(*row: Any, **more: Any) -> Measure:
    return _row(*row, property="collapse", **more)


_ROWS = (
    _flatness("relative_flatness", flatness.relative_flatness_from, "squared_norms row_variance",
              "relative flatness κ", "≥ 0", _PETZKA),
    _flatness("relative_flatness_bound", flatness.relative_flatness_bound_from, "softmax squared_norms weight",
              "surrogate flatness κ̄", "≥ κ", f"Walter et al. 2024; {_PAPER}, Lemma A.2"),
    _flatness("relative_flatness_looseness", flatness.relative_flatness_looseness,
              "softmax squared_norms weight row_variance",
              "looseness of the surrogate κ̄/κ", "≥ 1", _OURS, direction="neither"),
    _flatness("relative_flatness_per_loss", flatness.relative_flatness_per_loss,
              "squared_norms row_variance cross_entropies",
              "relative flatness over loss κ/L", "≥ 0", _OURS),
    _flatness("relative_flatness_geometric", flatness.relative_flatness_geometric, "squared_norms log_row_variance",
              "relative flatness κ, geometric mean over samples", "0 … κ", _OURS),
    _flatness("relative_flatness_participation", flatness.relative_flatness_participation,
              "squared_norms row_variance",
              "share of the samples that carry κ", "1/N … 1", "Kish 1965 (effective sample size)",
              direction="neither"),
    _collapse("cdnv", collapse.cdnv, "statistics",
              "class-distance normalised variance", "≥ 0", f"{_GALANTI}; {_PAPER}, Definition 3.1", around=True),
    _collapse("cdnv_sum", collapse.cdnv_sum, "statistics",
              "class-distance normalised variance, summed", "≥ 0", f"{_PAPER}, Definition 3.1 to the letter",
              around=True),
    _collapse("within_variance", collapse.within_variance, "statistics",
              "within-class variance", "≥ 0, squared features", _GALANTI, around=True),
    _collapse("between_distance", collapse.between_distance, "statistics",
              "squared distance between class means", "≥ 0, squared features", _GALANTI, direction="higher"),
    _collapse("classes", collapse.classes, "statistics",
              "classes with at least two samples", "count", _OURS, direction="neither", differentiable=False,
              around=True),
    _collapse("nc1", collapse.nc1, "statistics",
              "within-class variability NC1", "≥ 0", _PAPYAN, around=True),
    _collapse("nc1_rank", collapse.nc1_rank, "statistics",
              "rank of the between-class scatter", "0 … K−1", _PAPYAN, direction="neither", differentiable=False),
    _collapse("nc1_ratio", collapse.nc1_ratio, "statistics",
              "within- over between-class scatter", "≥ 0", _PAPYAN, around=True),
    _collapse("rnc1", collapse.rnc1, "statistics squared_norms",
              "within-class scatter over squared mean norm", "≥ 0", _SAKAMOTO, around=True),
    _collapse("rnc1_max", collapse.rnc1_max, "statistics squared_norms",
              "within-class scatter over squared largest norm", "≥ 0", _SAKAMOTO, around=True),
    _collapse("nc2_equinorm", collapse.nc2_equinorm, "statistics",
              "spread of class-mean norms", "≥ 0", _PAPYAN),
    _collapse("nc2_equinorm_weight", collapse.nc2_equinorm_weight, "statistics weight",
              "spread of head-row norms", "≥ 0", _PAPYAN),
    _collapse("nc2_equiangular", collapse.nc2_equiangular, "statistics",
              "class-mean angles off the simplex", "0 … 2", _PAPYAN),
    _collapse("nc2_equiangular_weight", collapse.nc2_equiangular_weight, "statistics weight",
              "head-row angles off the simplex", "0 … 2", _PAPYAN),
    _collapse("nc2_etf", collapse.nc2_etf, "statistics",
              "class means off the simplex", "0 … 2", "Zhu et al., NeurIPS 2021"),
    _collapse("nc3", collapse.nc3, "statistics weight",
              "head off the class means (self-duality)", "0 … 4", _PAPYAN),
    _collapse("nc4", collapse.nc4, "statistics prediction",
              "decisions off the nearest class mean", "0 … 1", _PAPYAN, around=True, differentiable=False),
    _collapse("ildr", collapse.ildr, "statistics",
              "inter- over intra-class distance", "≥ 0", _ILDR, direction="higher", around=True),
    _row("collapse_radius", collapse.collapse_radius, "statistics",
         "radius of the centred class means", "≥ 0", f"{_PAPER}, Proposition 5.3", property="representation",
         direction="neither"),
    _row("collapse_scale", collapse.collapse_scale, "statistics weight",
         "scale of the head over the centred class means", "any", f"{_PAPER}, Proposition 5.3",
         property="representation", direction="neither", positive=False),
    _row("mean_offset", collapse.mean_offset, "statistics",
         "distance of the class means' centre from the origin", "≥ 0", f"{_PAPER}, Proposition 5.3",
         property="representation", direction="neither"),
    *(_row(f"class_angle_{name}", partial(collapse.class_angle, share=share), "statistics",
           f"angle between centred class means, {words}", "0 … 180, degrees", f"{_PAPER}, Figure 3",
           property="representation", direction="neither", differentiable=False)
      for name, share, words in (("min", 0.0, "smallest"), ("q25", 0.25, "lower quartile"), ("median", 0.5, "median"),
                                 ("q75", 0.75, "upper quartile"), ("max", 1.0, "largest"))),
    _row("loss", comparison.cross_entropy_from, "cross_entropies",
         "cross-entropy", "nats", "–", property="fit"),
    _row("accuracy", comparison.accuracy, "prediction labels weight",
         "accuracy", "0 … 1", "–", property="fit", direction="higher", differentiable=False),
    _row("predictive_entropy", comparison.predictive_entropy, "entropies",
         "entropy of predictions", "0 … log K, nats", "Pereyra et al. 2017 (arXiv 1701.06548)", property="margin"),
    _row("margin", comparison.margin, "margins",
         "mean logit margin", "logits", _BARTLETT, property="margin", direction="higher", positive=False),
    _row("margin_min", comparison.margin_min, "margins",
         "smallest logit margin", "logits", _BARTLETT, property="margin", direction="higher",
         positive=False),
    _row("margin_normalised", comparison.margin_normalised, "margins weight squared_norms",
         "margin over norms of head and features", "−2 … 2", _BARTLETT, property="margin",
         direction="higher", positive=False),
    _row("softmax_collapse", representation.softmax_collapse, "saturated weight",
         "samples with a one-hot softmax, to rounding (softmax collapse)", "0 … 1", "Prieto et al., ICLR 2025",
         property="margin", direction="neither", differentiable=False),
    _row("feature_robustness", representativeness.robustness_column, "smoothing_excesses",
         "rise of the loss under noise in the features", "≥ 0, nats", _PETZKA_GAP, property="representativeness"),
    _row("representativeness", representativeness.representativeness_column, "cross_entropies smoothed_loss",
         "loss beyond that of noisy training features", "nats", f"{_PETZKA_GAP}; {_PAPER}, Appendix D",
         property="representativeness", positive=False, around=True),
    _row("effective_rank", representation.effective_rank, "spectrum",
         "effective rank of the features", "1 … d", "Roy & Vetterli, EUSIPCO 2007", property="representation",
         differentiable=False),
    _row("spectral_entropy", representation.spectral_entropy, "spectrum",
         "entropy of the features' principal variances", "0 … log d, nats", "Roy & Vetterli, EUSIPCO 2007",
         property="representation", differentiable=False),
    _row("kernel_alignment", representation.kernel_alignment, "statistics",
         "alignment of features with labels (CKA)", "0 … 1", "Kornblith et al., ICML 2019", property="representation",
         direction="higher"),
    _row("fourier_concentration", representation.fourier_concentration, "weight",
         "concentration of the head on few frequencies", "0 … 1", "Nanda et al., ICLR 2023", property="representation",
         direction="higher"),
    _row("head_sharpness", representation.head_sharpness, "features logits labels",
         "SAM sharpness of the head, radius 0.05", "nats", "Foret et al., ICLR 2021", property="curvature",
         positive=False),
    _row("weight_norm", comparison.weight_norm, "parameters weight",
         "norm of all parameters", "≥ 0", "Liu et al., ICLR 2023 (Omnigrok)", property="norm"),
    _row("head_norm", comparison.head_norm, "weight",
         "norm of the head's weight", "≥ 0", "–", property="norm", direction="neither"),
)

MEASURES: dict[str, Measure] = {row.name: row for row in _ROWS}
"""Every measure of a snapshot by name; the names are those of trajectory columns and of interventions."""

OF_LAYER = "relative_flatness@"
OF_LAYER_ERROR = "relative_flatness_stderr@"


def _taken_with(layers: Mapping[str, Tensor], *, name: str) -> Tensor:
    """A measure of a hidden layer, out of those of a snapshot."""
    if name not in layers:
        raise ValueError(
            f"expected a snapshot with {name}, got one with {', '.join(layers) or 'no hidden layer'}; name the layer "
            f"in Probe(layers=…), or in the measures of a run; for a trained model take layer_flatness"
        )
    return layers[name]


def find_measure(name: str) -> Measure | None:
    """The row of a measure, hidden layers' too; None if there is none.

    "relative_flatness@LAYER" is κ of a hidden layer, estimated with a probe for every sample, and
    "relative_flatness_stderr@LAYER" the standard error of that estimate where it is measured.

    >>> find_measure("relative_flatness@layers.0").title
    'relative flatness κ of layers.0'
    """
    kind, _, layer = name.partition("@")
    if not layer or f"{kind}@" not in (OF_LAYER, OF_LAYER_ERROR):
        return MEASURES.get(name)
    function = partial(_taken_with, name=name)
    if f"{kind}@" == OF_LAYER:
        return _flatness(name, function, "layers", f"relative flatness κ of {layer}", "> 0 near a minimum", _PETZKA)
    title = f"standard error of relative flatness κ of {layer}"
    return _flatness(name, function, "layers", title, "≥ 0", _OURS, direction="neither", differentiable=False)


DEFAULT = (
    "loss", "accuracy", "relative_flatness", "relative_flatness_bound", "relative_flatness_per_loss",
    "relative_flatness_geometric", "relative_flatness_participation", "cdnv", "within_variance", "between_distance",
    "nc1", "nc1_ratio", "rnc1", "nc2_equinorm", "nc2_equiangular", "nc2_etf", "nc3", "nc4", "ildr", "margin",
    "head_norm", "weight_norm",
)
"""What is measured when nobody says what to measure."""


def layers_of(names: Iterable[str]) -> tuple[str, ...]:
    """Hidden layers that measures are about, each once."""
    layers = [name.partition("@")[2] for name in names if name.startswith((OF_LAYER, OF_LAYER_ERROR))]
    return tuple(dict.fromkeys(layers))


def evaluate(
    snapshot: Snapshot | Quantities,
    names: Iterable[str] = DEFAULT,
    *,
    around: Snapshot | Quantities | None = None,
) -> dict[str, Tensor]:
    """Many measures of one snapshot, with class statistics, probabilities and norms computed once for all.

    Args:
        snapshot: what the head saw; or `Quantities` of that, to share them with other evaluations.
        names: keys of `MEASURES`.
        around: measure around the class means of this other snapshot (held-out samples around training means); then
            only measures with `around=True` exist.

    Returns:
        name → value of shape (...), NaN where the measure does not exist.

    Raises:
        KeyError: a name is not in the table.
        ValueError: `around` was given and a measure has no meaning around other means.
    """
    quantities = Quantities.of(snapshot)
    if around is not None:
        quantities = quantities.measured_around(Quantities.of(around))
    values = {}
    for name in names:
        row = find_measure(name)
        if row is None:
            raise KeyError(f"no measure is called {name!r}; there are {', '.join(MEASURES)}")
        if around is not None and not row.around:
            able = ", ".join(row.name for row in MEASURES.values() if row.around)
            raise ValueError(f"{name!r} has no meaning around other class means; these have: {able}")
        values[name] = row.of(quantities)
    return values
