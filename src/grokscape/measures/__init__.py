"""Measures of a head: relative flatness, neural collapse, representativeness, and what they are compared with."""

from grokscape.measures.checks import MeasureWarning
from grokscape.measures.curvature import hessian_eigenvalues, hessian_trace, sharpness
from grokscape.measures.functional import (
    cdnv,
    collapse_by_class,
    neural_collapse,
    relative_flatness,
    relative_flatness_bound,
)
from grokscape.measures.layers import layer_flatness
from grokscape.measures.measurement import Measurement
from grokscape.measures.measuring import measure
from grokscape.measures.probe import Probe
from grokscape.measures.representativeness import GapDecomposition, decompose_gap, feature_robustness
from grokscape.measures.snapshot import Measure, Snapshot
from grokscape.measures.table import DEFAULT, MEASURES, OF_LAYER, OF_LAYER_ERROR, evaluate, find_measure, layers_of
from grokscape.measures.theory import CollapseTheory, collapse_flatness, collapse_flatness_bound, collapse_theory
from grokscape.numerics import Estimate

__all__ = [
    "DEFAULT",
    "MEASURES",
    "OF_LAYER",
    "OF_LAYER_ERROR",
    "CollapseTheory",
    "Estimate",
    "GapDecomposition",
    "Measure",
    "MeasureWarning",
    "Measurement",
    "Probe",
    "Snapshot",
    "cdnv",
    "collapse_by_class",
    "collapse_flatness",
    "collapse_flatness_bound",
    "collapse_theory",
    "decompose_gap",
    "evaluate",
    "feature_robustness",
    "find_measure",
    "hessian_eigenvalues",
    "hessian_trace",
    "layer_flatness",
    "layers_of",
    "measure",
    "neural_collapse",
    "relative_flatness",
    "relative_flatness_bound",
    "sharpness",
]
