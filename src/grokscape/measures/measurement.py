"""What `grokscape.measure` gives back: a mapping from names to numbers that prints as a table."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from grokscape.measures.table import MEASURES
from grokscape.plural import counted


@dataclass(frozen=True, eq=False, repr=False)
class Measurement(Mapping[str, float]):
    """Measures of a model: m["relative_flatness"] of the training data, m["test/cdnv"], m["cross/cdnv"].

    Attributes:
        values_by_name: name or split/name → value.
        head: name of the module taken as head.
        head_found: whether the head was found rather than named.
        samples: split → number of samples (positions that carry a loss).
        notes: what a reader should know, such as classes that were left out.
    """

    values_by_name: dict[str, float]
    head: str
    head_found: bool
    samples: dict[str, int]
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> float:
        if name not in self.values_by_name:
            raise KeyError(f"{name!r} was not measured; there are {', '.join(self.values_by_name)}")
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values; None for a measure that does not exist."""
        return {
            "head": self.head,
            "samples": dict(self.samples),
            "notes": list(self.notes),
            "values": {name: value if math.isfinite(value) else None for name, value in self.items()},
        }

    def to_frame(self) -> pl.DataFrame:
        """One row per value, with split, unit, direction, property, title and source of its measure."""
        rows = []
        for key, value in self.items():
            split, name = _split(key)
            row = MEASURES[name]
            rows.append({
                "measure": name, "split": split, "value": value, "title": row.title, "property": row.property,
                "direction": row.direction, "unit": row.unit, "source": row.source,
            })
        return pl.DataFrame(rows)

    def __str__(self) -> str:
        splits, names = (list(dict.fromkeys(_split(key)[part] for key in self)) for part in (0, 1))
        lines = [["measure", *splits, ""]]
        for name in names:
            cells = [_cell(self.values_by_name.get(_key(split, name))) for split in splits]
            lines.append([name, *cells, f"{_arrow(name)} {MEASURES[name].title} ({MEASURES[name].unit})"])
        widths = [max(len(line[column]) for line in lines) for column in range(len(splits) + 1)]
        text = [self._headline(), ""]
        for name, *cells, title in lines:
            numbers = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
            text.append(f"{name:<{widths[0]}}{numbers}  {title}".rstrip())
        return "\n".join([*text, *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__

    def _headline(self) -> str:
        how = "found" if self.head_found else "named"
        counts = ", ".join(counted(count, f"{split} sample") for split, count in self.samples.items())
        return f"head {self.head!r} ({how}), {counts}"


def _split(key: str) -> tuple[str, str]:
    split, _, name = key.rpartition("/")
    return split or "train", name


def _key(split: str, name: str) -> str:
    return name if split == "train" else f"{split}/{name}"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _arrow(name: str) -> str:
    return {"lower": "↓", "higher": "↑", "neither": " "}[MEASURES[name].direction]
