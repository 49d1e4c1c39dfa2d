"""Measures of a head: relative flatness, neural collapse, representativeness, and what they are compared with."""

from grokscape.measures.checks import MeasureWarning
from grokscape.measures.functional import cdnv, neural_collapse, relative_flatness, relative_flatness_bound
from grokscape.measures.layers import layer_flatness
from grokscape.measures.measurement import Measurement
from grokscape.measures.measuring import measure
from grokscape.measures.probe import Probe
from grokscape.measures.snapshot import Measure, Snapshot
from grokscape.measures.table import DEFAULT, MEASURES, evaluate

__all__ = [
    "DEFAULT",
    "MEASURES",
    "Measure",
    "MeasureWarning",
    "Measurement",
    "Probe",
    "Snapshot",
    "cdnv",
    "evaluate",
    "layer_flatness",
    "measure",
    "neural_collapse",
    "relative_flatness",
    "relative_flatness_bound",
]
