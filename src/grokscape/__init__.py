"""grokscape: which geometric property does generalisation need?

Names are imported on first use, so that reading run folders and analysing them never loads PyTorch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "grokscape.measures": (
        "MEASURES", "Probe", "Snapshot", "cdnv", "evaluate", "layer_flatness", "measure", "neural_collapse",
        "relative_flatness", "relative_flatness_bound",
    ),
    "grokscape.interventions": (
        "Clamp", "NormalizeFeatures", "Promote", "Suppress", "Unplug", "WeightCap",
    ),
    "grokscape.studies": ("Arm", "StudySpec", "preset", "presets"),
    "grokscape.workflow": ("Study", "load", "resume", "run"),
    "grokscape.analysis": ("Finding", "analyze"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if f"grokscape.{name}" in _HOMES:
        return import_module(f"grokscape.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'grokscape' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
