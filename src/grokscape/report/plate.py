"""What a figure shows, before anything is drawn: plates of panels of layers.

The page draws a plate with plotly, the figure files draw the same plate with matplotlib; neither knows what it means.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from grokscape.report.palette import INK, MUTED, Colour, Dash

Symbol = Literal["circle", "circle-open", "x", "diamond", "square"]
Numbers = Sequence[float | None]


@dataclass(frozen=True)
class Line:
    """A curve. `stairs` holds each value until the next; `right` refers it to the right axis; `arm` lets it hide."""

    x: Numbers
    y: Numbers
    colour: Colour = INK
    label: str = ""
    arm: str | None = None
    dash: Dash = "solid"
    width: float = 2.0
    opacity: float = 1.0
    stairs: bool = False
    right: bool = False


@dataclass(frozen=True)
class Band:
    """The area between two curves."""

    x: Numbers
    low: Numbers
    high: Numbers
    colour: Colour = INK
    arm: str | None = None
    opacity: float = 0.1
    stairs: bool = False
    right: bool = False


@dataclass(frozen=True)
class Points:
    """Marks, with intervals along x or y where given (ends, not lengths), and one hover text each."""

    x: Numbers
    y: Numbers
    colour: Colour = INK
    label: str = ""
    arm: str | None = None
    symbol: Symbol = "circle"
    size: float = 8.0
    x_ends: Sequence[tuple[float | None, float | None]] = ()
    y_ends: Sequence[tuple[float | None, float | None]] = ()
    hover: Sequence[str] = ()


@dataclass(frozen=True)
class Rule:
    """A straight reference line across the panel at one value of an axis."""

    at: float
    axis: Literal["x", "y"] = "x"
    label: str = ""
    colour: Colour = MUTED
    dash: Dash = "dash"


Layer = Line | Band | Points | Rule


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        title: what it measures, with its unit.
        log: logarithmic from the start.
        limits: lowest and highest value shown, or None for what the data need.
        categories: names at positions 0, 1, …, instead of numbers.
        colours: colour of each category's name.
        percent: numbers between 0 and 1 that read as percentages.
    """

    title: str = ""
    log: bool = False
    limits: tuple[float, float] | None = None
    categories: tuple[str, ...] = ()
    colours: tuple[Colour, ...] = ()
    percent: bool = False


@dataclass(frozen=True)
class Panel:
    """One coordinate system and what is in it."""

    x: Axis
    y: Axis
    layers: tuple[Layer, ...]
    title: str = ""
    right: Axis | None = None
    height: float = 1.0

    def extent(self, which: Literal["x", "y", "right"]) -> tuple[float, float] | None:
        """Smallest and largest positive value on an axis, limits of the axis first; None if there is none."""
        axis = {"x": self.x, "y": self.y, "right": self.right}[which]
        given = axis.limits if axis else None
        values = list(given) if given else [v for layer in self.layers for v in _values(layer, which)]
        positive = [v for v in values if v is not None and v > 0]
        return (min(positive), max(positive)) if positive else None


def _values(layer: Layer, which: Literal["x", "y", "right"]) -> list[float | None]:
    if isinstance(layer, Rule):
        return [layer.at] if layer.axis == which else []
    if which != "x" and getattr(layer, "right", False) != (which == "right"):
        return []
    if isinstance(layer, Band):
        return list(layer.x) if which == "x" else [*layer.low, *layer.high]
    ends = (layer.x_ends if which == "x" else layer.y_ends) if isinstance(layer, Points) else ()
    return [*(layer.x if which == "x" else layer.y), *(end for pair in ends for end in pair)]


@dataclass(frozen=True)
class Plate:
    """A figure: panels in a grid, row by row.

    Attributes:
        key: file name and anchor.
        title: heading.
        caption: how to read it, in one or two sentences.
        alt: what it shows, in words, for someone who does not see it.
        panels: the panels.
        columns: panels per row; with one column all share the x axis if `shared_x`.
        shared_x: zooming one zooms all.
        legend: whether labelled layers are listed.
        links: texts and anchors of the definitions and findings that the numbers follow.
    """

    key: str
    title: str
    caption: str
    alt: str
    panels: tuple[Panel, ...]
    columns: int = 1
    shared_x: bool = False
    legend: bool = True
    links: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Missing:
    """A plate that cannot be drawn: why, and what to do about it."""

    key: str
    title: str
    reason: str
    remedy: str
