"""Which measure is taken on which split, and what its column is called and means."""

from collections.abc import Sequence
from typing import Any

from grokscape.measures import MEASURES, OF_LAYER, Measure, find_measure
from grokscape.measures.snapshot import WITHOUT_SAMPLES
from grokscape.symbols import SPLITS

ALWAYS = ("accuracy", "loss")


def measures_of(names: Sequence[str], side: str) -> tuple[str, ...]:
    """The measures, among `names`, that are taken on a split; accuracy and loss always are.

    Raises:
        ValueError: a name is not in the table of measures.
    """
    rows = {name: find_measure(name) for name in (*ALWAYS, *names)}
    unknown = [name for name, row in rows.items() if row is None]
    if unknown:
        raise ValueError(
            f"expected names of measures, got {', '.join(unknown)}; there are {', '.join(sorted(MEASURES))}, and "
            f"{OF_LAYER}LAYER for a hidden layer"
        )
    return tuple(name for name, row in rows.items() if row is not None and _is_taken_on(side, row))


def _is_taken_on(side: str, row: Measure) -> bool:
    """Hidden layers are measured on training samples alone."""
    if set(row.inputs) <= WITHOUT_SAMPLES:
        return side == "params"
    if "layers" in row.inputs:
        return side == "train"
    return side in ("train", "test") or (side == "cross" and row.around)


def column_table(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Column name → measure, split, property, direction, unit, source and title, for a trajectory's metadata."""
    table = {}
    for side in SPLITS:
        for name in measures_of(names, side):
            row = find_measure(name)
            assert row is not None
            table[f"{side}/{name}"] = {
                "measure": name,
                "split": side,
                "property": row.property,
                "direction": row.direction,
                "unit": row.unit,
                "source": row.source,
                "title": row.title,
            }
    return table
