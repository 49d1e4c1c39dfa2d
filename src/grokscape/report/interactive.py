"""A plate as plotly reads it: traces and layout, JSON only.

Colours are written as "light|dark|opacity"; the page's script resolves them for the theme in use, so one document
serves both. Texts are escaped, because plotly reads a subset of HTML in them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log10
from typing import Any

from grokscape.report.palette import GRID, INK, MUTED, Colour
from grokscape.report.plate import Axis, Band, Layer, Line, Panel, Plate, Points, Rule
from grokscape.report.ticks import log_ticks

ROW_HEIGHT = 300  # pixels of a panel of height 1
NARROW = 380

DASHES = {
    "solid": "solid", "dash": "6px,3px", "longdash": "13px,3px", "dot": "2px,3px", "dashdot": "9px,3px,2px,3px",
    "longdashdot": "18px,3px,2px,3px", "dashdotdot": "9px,3px,2px,3px,2px,3px",
}
_SYMBOLS = {"circle": "circle", "circle-open": "circle-open", "x": "x-thin", "diamond": "diamond", "square": "square"}


def themed(colour: Colour, opacity: float = 1.0) -> str:
    """A colour in both themes, for the page's script to resolve."""
    return f"{colour.light}|{colour.dark}|{opacity:g}"


def escaped(text: str) -> str:
    """A text that plotly shows as it is."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def figure_for_page(plate: Plate) -> dict[str, Any]:
    """A plate as traces and layout, and the layout for narrow screens: one column, less room for names."""
    panels = list(plate.panels)
    for place, panel in enumerate(panels):  # names that stand at the left of a row have to stand at each panel
        if place and panel.y.categories and not any(panel.y.categories):
            panels[place] = replace(panel, y=panels[place - 1].y)
    narrow = plotly_figure(replace(plate, panels=tuple(panels), columns=1), width=NARROW)
    return {**plotly_figure(plate), "narrow": {"layout": narrow["layout"], "height": narrow["height"]}}


def plotly_figure(plate: Plate, width: int = 960) -> dict[str, Any]:
    """Traces and layout of a plate drawn about `width` pixels wide, and its height in pixels."""
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"annotations": [], "shapes": [], "showlegend": False}
    grid = _Grid.of(plate, width)
    for number, panel in enumerate(plate.panels, start=1):
        bottom = number > len(plate.panels) - plate.columns or not plate.shared_x
        _add_panel(data, layout, panel, number, grid, plate.shared_x and number > 1, bottom)
    layout["margin"] = {"l": grid.left, "r": 60 if any(p.right for p in plate.panels) else 18, "t": 30, "b": 50}
    return {"data": data, "layout": layout, "height": grid.height + 80}


@dataclass(frozen=True)
class _Grid:
    """Where panels lie: margin at the left and height in pixels, domains as shares of the plotting area."""

    left: int
    height: int
    domains: tuple[tuple[list[float], list[float]], ...]

    @classmethod
    def of(cls, plate: Plate, width: int) -> "_Grid":
        """Where the panels of a plate lie at a given width."""
        n, rows = plate.columns, -(-len(plate.panels) // plate.columns)
        labels = [max(_label_width(p.y, width) for p in plate.panels[c::n]) for c in range(n)]
        free = width - sum(labels) - 18 - 24 * (n - 1)
        inside = width - labels[0] - 18
        heights = [round(ROW_HEIGHT * max(p.height for p in plate.panels[r * n : r * n + n])) for r in range(rows)]
        gap = 26 if plate.shared_x else 78
        height = sum(heights) + gap * (rows - 1)
        domains = []
        for number in range(len(plate.panels)):
            row, column = divmod(number, n)
            start = sum(labels[1 : column + 1]) + column * (free / n + 24)
            top = height - sum(heights[:row]) - gap * row
            x = [round(start / inside, 4), round(min((start + free / n) / inside, 1.0), 4)]
            domains.append((x, [round((top - heights[row]) / height, 4), round(top / height, 4)]))
        return cls(labels[0], height, tuple(domains))


def _label_width(axis: Axis, width: int) -> int:
    """Room for an axis's names or numbers in pixels; on narrow screens the page wraps names into two lines."""
    if not axis.categories:
        return 62 if axis.title else 44
    longest = max(map(len, axis.categories))
    if not longest:
        return 8
    return (
        14 + round(6.7 * longest)
        if width > NARROW
        else 14 + round(6.2 * (longest / 2 + 3 if longest > 15 else longest))
    )


def legend_entries(plate: Plate) -> list[dict[str, str | None]]:
    """What a plate's labelled layers are, once each: {"label", "arm", "colour", "dash", "symbol"}."""
    if not plate.legend:
        return []
    entries: dict[str, dict[str, str | None]] = {}
    for panel in plate.panels:
        for layer in panel.layers:
            if isinstance(layer, (Line, Points)) and layer.label:
                symbol = layer.symbol if isinstance(layer, Points) else ""
                dash = DASHES[layer.dash] if isinstance(layer, Line) else ""
                entry = {
                    "label": layer.label,
                    "arm": layer.arm,
                    "colour": themed(layer.colour),
                    "dash": dash,
                    "symbol": symbol,
                }
                entries.setdefault(layer.label, entry)
    return list(entries.values())


def _add_panel(
    data: list[dict[str, Any]],
    layout: dict[str, Any],
    panel: Panel,
    number: int,
    grid: _Grid,
    follows: bool,
    bottom: bool,
) -> None:
    suffix = "" if number == 1 else str(number)
    x_domain, y_domain = grid.domains[number - 1]
    x = {**_axis(panel.x, panel.extent("x")), "domain": x_domain, "anchor": f"y{suffix}", "showticklabels": bottom}
    layout[f"xaxis{suffix}"] = x | ({"matches": "x"} if follows else {}) | ({} if bottom else {"title": {"text": ""}})
    layout[f"yaxis{suffix}"] = {**_axis(panel.y, panel.extent("y")), "domain": y_domain, "anchor": f"x{suffix}"}
    right = f"y{100 + number}"
    if panel.right:
        layout[f"yaxis{100 + number}"] = {
            **_axis(panel.right, panel.extent("right")),
            "overlaying": f"y{suffix}",
            "side": "right",
            "anchor": f"x{suffix}",
            "showgrid": False,
        }
    for layer in panel.layers:
        on = right if panel.right and getattr(layer, "right", False) else f"y{suffix}"
        if isinstance(layer, Rule):
            _add_rule(layout, layer, panel, suffix)
        else:
            data += [{**trace, "xaxis": f"x{suffix}", "yaxis": on} for trace in _traces(layer)]
    if panel.title:
        layout["annotations"].append(_heading(panel.title, x_domain[0], y_domain[1]))


def _heading(text: str, x: float, y: float) -> dict[str, Any]:
    return {
        "text": escaped(text),
        "showarrow": False,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "bottom",
        "x": x,
        "y": y,
        "yshift": 4,
        "font": {"size": 13, "color": themed(INK)},
    }


def _axis(axis: Axis, extent: tuple[float, float] | None) -> dict[str, Any]:
    described: dict[str, Any] = {
        "title": {"text": escaped(axis.title), "font": {"size": 12}, "standoff": 8},
        "type": "log" if axis.log else "linear",
        "gridcolor": themed(GRID),
        "linecolor": themed(MUTED),
        "zeroline": False,
    }
    if axis.percent:
        described["tickformat"] = ".0%"
    elif axis.log and extent:
        ticks = log_ticks(*extent)
        described |= {"tickvals": [value for value, _ in ticks], "ticktext": [text for _, text in ticks]}
    if axis.limits:
        described["range"] = _range(axis)
    if axis.categories:
        names = [
            f'<span style="color:{themed(c)}">{escaped(n)}</span>' for n, c in zip(axis.categories, _colours(axis))
        ]
        described |= {
            "tickvals": list(range(len(names))),
            "ticktext": names,
            "range": [len(names) - 0.4, -0.6],
            "showgrid": False,
            "fixedrange": True,
            "tickfont": {"size": 12},
        }
    return described


def _colours(axis: Axis) -> Sequence[Colour]:
    return axis.colours or (INK,) * len(axis.categories)


def _range(axis: Axis) -> list[float]:
    assert axis.limits is not None
    return [round(log10(v), 4) for v in axis.limits] if axis.log else list(axis.limits)


def _traces(layer: Layer) -> list[dict[str, Any]]:
    arm: dict[str, Any] = {"meta": {"arm": layer.arm}} if not isinstance(layer, Rule) and layer.arm else {}
    if isinstance(layer, Band):
        edge: dict[str, Any] = {
            "mode": "lines",
            "line": {"width": 0, **_shape(layer.stairs)},
            "hoverinfo": "skip",
            "x": list(layer.x),
            **arm,
        }
        fill = {"fill": "tonexty", "fillcolor": themed(layer.colour, layer.opacity)}
        return [{**edge, "y": list(layer.low)}, {**edge, "y": list(layer.high), **fill}]
    if isinstance(layer, Line):
        line = {"color": themed(layer.colour), "width": layer.width, "dash": DASHES[layer.dash], **_shape(layer.stairs)}
        hover = "%{fullData.name}: %{y:.4~g} at %{x:.4~g}<extra></extra>"
        named = {"name": escaped(layer.label), "hovertemplate": hover} if layer.label else {"hoverinfo": "skip"}
        return [
            {
                "mode": "lines",
                "x": list(layer.x),
                "y": list(layer.y),
                "line": line,
                "opacity": layer.opacity,
                **named,
                **arm,
            }
        ]
    assert isinstance(layer, Points)
    return [{**_marks(layer), **arm}]


def _shape(stairs: bool) -> dict[str, str]:
    return {"shape": "hv"} if stairs else {}


def _marks(layer: Points) -> dict[str, Any]:
    colour = themed(layer.colour)
    edge = 2 if layer.symbol in ("circle-open", "x") else 0
    trace: dict[str, Any] = {
        "mode": "markers",
        "x": list(layer.x),
        "y": list(layer.y),
        "name": escaped(layer.label),
        "marker": {
            "symbol": _SYMBOLS[layer.symbol],
            "size": layer.size,
            "color": colour,
            "line": {"width": edge, "color": colour},
        },
        "cliponaxis": False,
    }
    if layer.hover:
        trace |= {"text": [escaped(text) for text in layer.hover], "hovertemplate": "%{text}<extra></extra>"}
    for name, ends, centre in (("error_x", layer.x_ends, layer.x), ("error_y", layer.y_ends, layer.y)):
        if ends:
            trace[name] = _error(ends, centre, colour)
    return trace


def _error(
    ends: Sequence[tuple[float | None, float | None]], centre: Sequence[float | None], colour: str
) -> dict[str, Any]:
    up = [None if h is None or c is None else h - c for (_, h), c in zip(ends, centre)]
    down = [None if low is None or c is None else c - low for (low, _), c in zip(ends, centre)]
    return {
        "type": "data",
        "symmetric": False,
        "array": up,
        "arrayminus": down,
        "color": colour,
        "thickness": 1.6,
        "width": 0,
    }


def _add_rule(layout: dict[str, Any], rule: Rule, panel: Panel, suffix: str) -> None:
    vertical = rule.axis == "x"
    along, across = (f"x{suffix}", f"y{suffix} domain") if vertical else (f"x{suffix} domain", f"y{suffix}")
    ends = (
        {"x0": rule.at, "x1": rule.at, "y0": 0, "y1": 1}
        if vertical
        else {"x0": 0, "x1": 1, "y0": rule.at, "y1": rule.at}
    )
    line = {"color": themed(rule.colour), "width": 1, "dash": DASHES[rule.dash]}
    layout["shapes"].append({"type": "line", "xref": along, "yref": across, "line": line, "layer": "above", **ends})
    if not rule.label:
        return
    axis = panel.x if vertical else panel.y
    at = log10(rule.at) if axis.log else rule.at
    above = sum(1 for note in layout["annotations"] if note["xref"] == along)  # labels of a panel take turns in height
    where = (
        {"x": at, "y": 1, "xanchor": "center", "yanchor": "bottom", "yshift": 11 * (above % 2)}
        if vertical
        else {"x": 1, "y": at, "xanchor": "right", "yanchor": "bottom"}
    )
    layout["annotations"].append(
        {
            "text": escaped(rule.label),
            "showarrow": False,
            "xref": along,
            "yref": across,
            "font": {"size": 11, "color": themed(rule.colour)},
            **where,
        }
    )
