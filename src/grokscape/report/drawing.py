"""A plate as a figure file: SVG, PDF and PNG with matplotlib, the same bytes every time.

Glyphs are outlines in SVG and embedded TrueType in PDF. The font ships with matplotlib, so a figure does not
depend on the machine.
"""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator, PercentFormatter

from grokscape.report.palette import GRID, INK, MUTED
from grokscape.report.plate import Axis, Band, Layer, Line, Panel, Plate, Points, Rule
from grokscape.report.ticks import log_ticks
from grokscape.store import write_bytes

Style = Literal["paper", "talk"]

STYLES: dict[Style, dict[str, float]] = {
    "paper": {"width": 5.5, "font": 8.0, "line": 0.65, "row": 1.75},
    "talk": {"width": 11.0, "font": 17.0, "line": 1.4, "row": 3.6},
}
FORMATS = ("svg", "pdf", "png")

_DASHES: dict[str, Any] = {
    "solid": "-",
    "dash": (0, (4, 2)),
    "longdash": (0, (9, 2)),
    "dot": (0, (1, 1.6)),
    "dashdot": (0, (6, 2, 1, 2)),
    "longdashdot": (0, (12, 2, 1, 2)),
    "dashdotdot": (0, (6, 2, 1, 2, 1, 2)),
}
_LEGEND_LETTERS = 86  # that fit beside each other across a figure, in both styles
_LABEL_LETTERS = {"x": 34, "y": 24}  # that fit along a panel, in both styles
_SYMBOLS = {"circle": "o", "circle-open": "o", "x": "x", "diamond": "D", "square": "s"}


def _settings(style: Style) -> dict[Any, Any]:
    if style not in STYLES:
        raise ValueError(f"expected a style out of {', '.join(STYLES)}, got {style!r}; use one of those")
    font = STYLES[style]["font"]
    return {
        "font.family": ["DejaVu Sans"],
        "font.size": font,
        "axes.titlesize": font,
        "axes.labelsize": font,
        "legend.fontsize": font * 0.9,
        "xtick.labelsize": font * 0.9,
        "ytick.labelsize": font * 0.9,
        "axes.edgecolor": MUTED.light,
        "axes.labelcolor": INK.light,
        "text.color": INK.light,
        "xtick.color": MUTED.light,
        "ytick.color": MUTED.light,
        "xtick.labelcolor": INK.light,
        "ytick.labelcolor": INK.light,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "axes.grid": True,
        "grid.color": GRID.light,
        "grid.linewidth": 0.5,
        "axes.axisbelow": True,
        "svg.fonttype": "path",
        "svg.hashsalt": "grokscape",
        "pdf.fonttype": 42,
        "text.parse_math": False,
        "figure.dpi": 300 if style == "paper" else 150,
        "figure.facecolor": "white",
        "axes.titlelocation": "left",
    }


def draw(plate: Plate, style: Style = "paper") -> Figure:
    """The plate as a matplotlib figure, without the page's heading and caption.

    Raises:
        ValueError: `style` is not one of `STYLES`.
    """
    with mpl.rc_context(_settings(style)):
        return _draw(plate, style)


def _draw(plate: Plate, style: Style) -> Figure:
    size = STYLES[style]
    rows = -(-len(plate.panels) // plate.columns)
    ratios = [max(p.height for p in plate.panels[r * plate.columns : (r + 1) * plate.columns]) for r in range(rows)]
    legend = _entries(plate, size["line"]) if plate.legend else {}
    columns = max(1, min(len(legend), round(_LEGEND_LETTERS / (max(map(len, legend), default=0) + 8))))
    height = size["row"] * sum(ratios) + 0.35 + max(0, -(-len(legend) // columns) - 1) * size["font"] * 1.4 / 72
    figure = Figure(figsize=(size["width"], height), layout="constrained")
    grid = figure.subplots(
        rows,
        plate.columns,
        squeeze=False,
        sharex="col" if plate.shared_x else False,
        gridspec_kw={"height_ratios": ratios},
    )
    for number, axes in enumerate(grid.flat):
        if number >= len(plate.panels):
            axes.set_axis_off()
            continue
        _draw_panel(axes, plate.panels[number], size["line"], (7, 4, 3)[min(plate.columns, 3) - 1])
        if plate.shared_x and number < len(plate.panels) - plate.columns:
            axes.set_xlabel("")
    if len(legend) > 1:
        figure.legend(legend.values(), legend.keys(), loc="outside upper left", ncols=columns, frameon=False)
    return figure


def _draw_panel(axes: Axes, panel: Panel, scale: float, most: int) -> None:
    right = axes.twinx() if panel.right else None
    for layer in panel.layers:
        target = right if right is not None and getattr(layer, "right", False) else axes
        _draw_layer(target, layer, scale)
    _dress(axes, panel.x, "x", panel.extent("x"), most)
    _dress(axes, panel.y, "y", panel.extent("y"))
    if right is not None and panel.right:
        _dress(right, panel.right, "y", panel.extent("right"), most)
        right.spines["right"].set_visible(True)
        right.grid(False)
    if panel.title:
        axes.set_title(panel.title)


def _dress(axes: Axes, axis: Axis, which: Literal["x", "y"], extent: tuple[float, float] | None, most: int = 7) -> None:
    target = axes.xaxis if which == "x" else axes.yaxis
    target.set_label_text(textwrap.fill(axis.title, _LABEL_LETTERS[which], break_on_hyphens=False))
    set_scale, set_limits = (axes.set_xscale, axes.set_xlim) if which == "x" else (axes.set_yscale, axes.set_ylim)
    if axis.log:
        set_scale("log")
        target.set_minor_locator(NullLocator())
        if extent:
            ticks = log_ticks(*extent, most)
            target.set_ticks([value for value, _ in ticks], [text for _, text in ticks])
    if axis.limits:
        set_limits(*axis.limits)
    if axis.percent:
        target.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if axis.categories:
        target.set_ticks(range(len(axis.categories)), axis.categories)
        for label, colour in zip(target.get_ticklabels(), axis.colours):
            label.set_color(colour.light)
        set_limits(len(axis.categories) - 0.4, -0.6)
        target.set_tick_params(length=0)
        target.grid(False)


def _draw_layer(axes: Axes, layer: Layer, scale: float) -> None:
    colour = layer.colour.light
    if isinstance(layer, Band):
        step: Any = "post" if layer.stairs else None
        axes.fill_between(
            _floats(layer.x),
            _floats(layer.low),
            _floats(layer.high),
            color=colour,
            alpha=layer.opacity,
            lw=0,
            step=step,
        )
    elif isinstance(layer, Line):
        axes.plot(
            _floats(layer.x),
            _floats(layer.y),
            color=colour,
            lw=layer.width * scale,
            ls=_DASHES[layer.dash],
            alpha=layer.opacity,
            drawstyle="steps-post" if layer.stairs else "default",
        )
    elif isinstance(layer, Rule):
        draw_rule = axes.axvline if layer.axis == "x" else axes.axhline
        draw_rule(layer.at, color=colour, lw=scale, ls=_DASHES[layer.dash], zorder=0.5)
        if layer.label:
            _label_rule(axes, layer)
    else:
        _draw_points(axes, layer, scale)


def _label_rule(axes: Axes, rule: Rule) -> None:
    vertical = rule.axis == "x"
    where = (rule.at, 1.0) if vertical else (1.0, rule.at)
    axes.annotate(
        rule.label,
        where,
        xycoords=axes.get_xaxis_transform() if vertical else axes.get_yaxis_transform(),
        textcoords="offset points",
        xytext=(0, 1) if vertical else (-2, 1),
        color=rule.colour.light,
        ha="center" if vertical else "right",
        va="bottom",
        fontsize="small",
    )


def _draw_points(axes: Axes, layer: Points, scale: float) -> None:
    x, y, colour = _floats(layer.x), _floats(layer.y), layer.colour.light
    for ends, along in ((layer.x_ends, "x"), (layer.y_ends, "y")):
        for (low, high), cx, cy in zip(ends, x, y):
            if low is not None and high is not None:
                span = ([low, high], [cy, cy]) if along == "x" else ([cx, cx], [low, high])
                axes.plot(*span, color=colour, lw=1.6 * scale, solid_capstyle="butt")
    edged = layer.symbol in ("circle-open", "x")
    axes.plot(x, y, **_marker(layer, scale), mew=1.4 * scale if edged else 0, clip_on=False)


def _marker(layer: Points, scale: float) -> dict[str, Any]:
    """How matplotlib draws a mark, without the width of its edge."""
    colour, face = layer.colour.light, "none" if layer.symbol == "circle-open" else layer.colour.light
    return {"ls": "", "marker": _SYMBOLS[layer.symbol], "ms": layer.size * scale, "mec": colour, "mfc": face}


def _entries(plate: Plate, scale: float) -> dict[str, Line2D]:
    """Label → mark for the legend."""
    entries: dict[str, Line2D] = {}
    for panel in plate.panels:
        for layer in panel.layers:
            if isinstance(layer, Line) and layer.label:
                line = Line2D([], [], color=layer.colour.light, lw=layer.width * scale, ls=_DASHES[layer.dash])
                entries.setdefault(layer.label, line)
            elif isinstance(layer, Points) and layer.label:
                entries.setdefault(layer.label, Line2D([], [], **_marker(layer, scale), mew=1.4 * scale))
    return entries


def _floats(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else float(value) for value in values]


def write_plate(plate: Plate, folder: Path, style: Style = "paper", formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write a plate's files; their bytes depend on the plate and the style alone."""
    metadata: dict[str, dict[str, Any]] = {
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "ModDate": None, "Creator": None, "Producer": None},
        "png": {"Software": None},
    }
    paths = []
    with mpl.rc_context(_settings(style)):
        figure = _draw(plate, style)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once, not once per format
        for format_ in formats:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=format_, metadata=metadata[format_])
            suffix = "" if style == "paper" else f"-{style}"
            path = folder / f"{plate.key}{suffix}.{format_}"
            write_bytes(path, buffer.getvalue())
            paths.append(path)
    return paths
