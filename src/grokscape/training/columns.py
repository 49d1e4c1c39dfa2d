"""Which measure is taken on which split, and what its column is called and means."""

from collections.abc import Sequence
from typing import Any

from grokscape.measures import MEASURES

ALWAYS = ("accuracy", "loss")
SPLITS = {
    "train": "on the training set",
    "test": "on held-out samples, around their own class means",
    "cross": "on held-out samples, around the training set's class means",
    "params": "of the parameters",
}
_HEAD_ONLY = {"weight", "bias", "parameters"}


def measures_of(names: Sequence[str], side: str) -> tuple[str, ...]:
    """The measures, among `names`, that are taken on a split; accuracy and loss always are.

    Raises:
        ValueError: a name is not in the table of measures.
    """
    unknown = [name for name in names if name not in MEASURES]
    if unknown:
        raise ValueError(
            f"expected names of measures, got {', '.join(unknown)}; there are {', '.join(sorted(MEASURES))}"
        )
    names = tuple(dict.fromkeys((*ALWAYS, *names)))
    of_parameters = {name for name in names if set(MEASURES[name].inputs) <= _HEAD_ONLY}
    if side == "params":
        return tuple(name for name in names if name in of_parameters)
    samples = tuple(name for name in names if name not in of_parameters)
    return samples if side != "cross" else tuple(name for name in samples if MEASURES[name].around)


def column_table(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Column name → measure, split, property, direction, unit, source and title, for a trajectory's metadata."""
    table = {}
    for side, where in SPLITS.items():
        for name in measures_of(names, side):
            row = MEASURES[name]
            table[f"{side}/{name}"] = {
                "measure": name,
                "split": side,
                "property": row.property,
                "direction": row.direction,
                "unit": row.unit,
                "source": row.source,
                "title": row.title,
                "positive": row.positive,
                "description": f"{row.title} {where}",
            }
    return table
