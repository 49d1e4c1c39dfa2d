"""Studies: what to run, by name or by specification, and how to run it."""

from grokscape.rules import VerdictRule
from grokscape.studies.launch import plan, train
from grokscape.studies.presets import preset, presets
from grokscape.studies.spec import DEFAULT_MEASURES, Arm, StudySpec

__all__ = ["DEFAULT_MEASURES", "Arm", "StudySpec", "VerdictRule", "plan", "preset", "presets", "train"]
