"""Numbers and findings in words."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from grokscape.plural import counted
from grokscape.report.palette import FAMILY_COLOURS, FAMILY_OF_PROPERTY, MUTED, Colour, Family
from grokscape.report.run import Run
from grokscape.report.ticks import ten_to


def number(value: float | None, unit: str = "") -> str:
    """A number for people: three significant digits, thousands apart, "–" for none."""
    if value is None or value != value:
        return "–"
    size = abs(value)
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if size and (size < 1e-3 or size >= 1e6):
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa}·{ten_to(int(exponent))}" + _unit(unit)
    text = f"{value:,.0f}".replace(",", "\u2009") if size >= 999.5 or float(value).is_integer() else f"{value:.3g}"
    return text.replace("-", "−") + _unit(unit)


def _unit(unit: str) -> str:
    return f" {unit}" if unit else ""


def estimates(finding: Mapping[str, Any], run: Run) -> list[dict[str, str]]:
    """A finding's estimates as {"name", "of", "value", "interval"}; `of`: title of the arm they are about, or ""."""
    rows = []
    for name, estimate in finding["estimates"].items():
        what, _, arm = name.rpartition(", ")
        about = run.title_of(arm) if what and arm in run.arm_by_name else ""
        unit, value, low, high = (estimate[key] for key in ("unit", "value", "low", "high"))
        kind, _, condition = unit.partition(", ")  # "times the baseline's delay, counting at most 1400 steps"
        show = _FORMATS.get(kind, number)
        interval = "" if low is None and high is None else f"{bare(show(low))} to {bare(show(high))}"
        shown = show(value) if value is None or kind in _FORMATS else number(value, unit)
        if value is not None and kind in _FORMATS and condition:
            shown += f", {condition}"
        label = (what if about else name).replace("_", " ")
        rows.append({"name": sentence(label), "of": about, "value": shown, "interval": interval})
    return rows


def bare(shown: str) -> str:
    """A shown number without its unit, for the ends of an interval."""
    return shown.removesuffix(" points").removesuffix(" %").removeprefix("× ")


def grouped(rows: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Estimates by the arm they are about: {"title", "rows"}, in order."""
    groups: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        groups.setdefault(row["of"], []).append(row)
    return [{"title": title, "numbers": numbers} for title, numbers in groups.items()]


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return "–" if value is None else f"{100 * value:.0f} %"


def points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    return (
        "–"
        if value is None
        else f"{100 * value:+.1f} points".replace("-", "−").replace("+0.0", "0.0").replace("−0.0 ", "0.0 ")
    )


def times(value: float | None) -> str:
    """A factor."""
    return "–" if value is None else f"× {value:.2f}"


_FORMATS: dict[str, Callable[[float | None], str]] = {
    "share of seeds": percent,
    "difference in test accuracy": points,
    "times the baseline's delay": times,
}


def sentence(text: str) -> str:
    """A text with a capital first letter, unless that is a symbol such as κ, whose capital means something else."""
    return text[:1].upper() + text[1:] if text[:1].isascii() else text


def basis(finding: Mapping[str, Any]) -> str:
    """What a finding rests on: seeds, test, p value."""
    p = finding["p"]
    return ", ".join(filter(None, (seeds(finding["n"]), finding["test"], "" if p is None else p_value(p))))


def seeds(n: int) -> str:
    """A number of seeds; "" for none."""
    return "" if not n else counted(n, "seed")


def p_value(p: float) -> str:
    """A p value with three digits."""
    return "p < 0.001" if p < 1e-3 else f"p = {p:.3f}"


def finding_anchor(finding: Mapping[str, Any]) -> str:
    """Where on the page a finding stands."""
    return f"finding-{anchor(finding['id'])}"


def anchor(identifier: object) -> str:
    """A finding's id as the page's anchor: letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", str(identifier)).strip("-") or "finding"


_FAMILIES: dict[str, Family] = {**FAMILY_OF_PROPERTY, "norm": "control", "margin": "other"}


def property_colour(property_: str) -> Colour:
    """The colour that stands for a property."""
    family = _FAMILIES.get(property_)
    return FAMILY_COLOURS[family][0] if family else MUTED
