"""The page: one self-contained HTML file, the same bytes for the same run folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from grokscape.report.trajectories import Summary, rounded

_PLACE = Path(__file__).parent / "page"


def render(template: str, context: Mapping[str, Any], payload: Mapping[str, Any]) -> str:
    """A page from its template; names are escaped, the data stand in the page as JSON."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PLACE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = {name: (_PLACE / f"{name}.js").read_text(encoding="utf-8") for name in ("theme", "report")}
    return environment.get_template(template).render(
        **context,
        stylesheet=(_PLACE / "report.css").read_text(encoding="utf-8"),
        theme_script=scripts["theme"],
        report_script=scripts["report"],
        plotly_script=get_plotlyjs(),
        payload=json_in_html(payload),
    )


def json_in_html(value: Any) -> str:
    """JSON that can stand inside a script element, whatever strings it holds."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def summary_json(summary: Summary, *, seeds: bool = True) -> dict[str, Any]:
    """A summary for the page: m(edian), l(ow), h(igh), s(eeds)."""
    described: dict[str, Any] = {"m": rounded(summary.median)}
    if summary.replicas > 2:
        described |= {"l": rounded(summary.low, 3), "h": rounded(summary.high, 3)}
    if seeds and len(summary.seeds) > 1:
        described["s"] = [rounded(row, 3) for row in summary.seeds]
    return described
