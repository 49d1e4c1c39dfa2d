"""What the terminal shows of a run: its arms as a table that fits 80 columns, verdicts, and where files are."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from grokscape.plural import counted, duration
from grokscape.store import RunFolder
from grokscape.symbols import SYMBOLS

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDE = 92  # columns from which on the table has room for three digits
_GLYPHS = {"consistent with necessary": "●", "consistent with sufficient": "●", "not necessary": "○"}
_STYLES = {"●": "bold green", "○": "bold blue", "◐": "bold yellow"}


def sparkline(curve: Mapping[int, float], steps: int, width: int = 24) -> str:
    """A curve between 0 and 1 as a row of blocks over log(1 + step), blank where the run has not got to.

    >>> sparkline({0: 0.0, 9: 0.5, 99: 1.0}, steps=99, width=6)
    '▁▁▁▅▅█'
    """
    cells: list[float | None] = [None] * width
    for step, value in sorted(curve.items()):
        cells[min(int(width * math.log1p(step) / math.log1p(steps)), width - 1)] = value
    reached = max((i for i, value in enumerate(cells) if value is not None), default=-1)
    drawn, last = "", math.nan
    for value in cells[: reached + 1]:
        last = last if value is None else value
        drawn += " " if math.isnan(last) else _BLOCKS[round(min(max(last, 0.0), 1.0) * (len(_BLOCKS) - 1))]
    return drawn.ljust(width)


def show(folder: RunFolder, console: Console) -> None:
    """Print a run: how far it is, its arms, its verdicts, its files."""
    from grokscape.analysis import summary_table

    console.print(head(folder), soft_wrap=True)
    frame = folder.trajectory()
    if frame.is_empty():
        console.print(Text("Nothing was measured yet."))
        return
    console.print()
    table = summary_table(frame, folder.spec, folder.columns(), folder.status)
    console.print(arms(table, console.width))
    console.print()
    console.print(verdicts(folder.findings))
    console.print(files(folder), highlight=False, soft_wrap=True)


def head(folder: RunFolder) -> RenderableType:
    """The study's title, and how far the run got."""
    spec, status = folder.spec, folder.status
    step, steps = status.get("step", 0), status.get("steps", spec.get("steps"))
    state = folder.state
    parts = [
        str(spec.get("name")),
        state if state == "finished" else f"{state} at step {step:,} of {steps:,}" if steps else state,
        f"{counted(len(spec.get('arms', [])), 'arm')} × {counted(spec.get('seeds'), 'seed')}",
    ]
    if state == "finished":
        parts.insert(2, counted(f"{step:,}", "step"))
    if "seconds" in status:
        parts.append(f"{duration(status['seconds'])} on {status.get('device', 'cpu')}")
    lines = [Text(str(spec.get("title") or spec.get("name")), style="bold"), Text(" · ".join(parts), style="dim")]
    replicas = status.get("replicas", [])
    if diverged := sum(row.get("diverged_at") is not None for row in replicas):
        share = f"{diverged} of {counted(len(replicas), 'replica')} diverged, which counts as not generalising"
        lines.append(Text(share, style="yellow"))
    if state not in ("finished", "running"):
        lines.append(Text(_unfinished(folder, state, status.get("error")), style="yellow"))
    return Group(*lines)


def _unfinished(folder: RunFolder, state: str, error: str | None) -> str:
    if state == "waiting":
        return "It waits for its workers, none of which trains at this moment."
    resume = folder.command("resume")
    if state == "abandoned":
        return f"Its workers train on, but the command that started them is gone. Take it up again with: {resume}"
    return f"It is not finished{f' ({error})' if error and state == 'failed' else ''}. Go on with: {resume}"


def arms(table: pl.DataFrame, width: int = 100) -> Table:
    """One line for each arm: counts and median steps of the two onsets, delay, accuracy, level of what was held.

    In fewer columns than 70, and again than 56, what matters less is left out; no name or number is cut.
    """
    digits = 3 if width >= _WIDE else 2
    titles = ["memorised", "generalised", "delay", "test accuracy", "held"]
    titles = titles if width >= 70 else ["generalised", "test accuracy", "held"] if width >= 56 else titles[1:4:2]
    shown = Table(box=None, padding=(0, digits - 1, 0, 0), pad_edge=False, header_style="dim")
    shown.add_column("", min_width=12, overflow="fold")
    for title in titles:
        shown.add_column(title, no_wrap=title != "held", justify="right" if title == "delay" else "left")
    for row in table.iter_rows(named=True):
        cells: dict[str, Text | str] = {
            "memorised": _onset(row, "memorised"),
            "generalised": _onset(row, "generalised"),
            "delay": _steps(row["delay"]),
            "test accuracy": _accuracy(row, digits, interval=width >= 60),
            "held": _level(row),
        }
        name = Text(row["title"] or row["arm"], style="" if row["valid"] else "dim")
        shown.add_row(name, *(cells[title] for title in titles))
    return shown


def _steps(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _onset(row: Mapping[str, Any], event: str) -> Text:
    count, n, step = row[event], row["n"], row[f"{event}_step"]
    colour = "green" if count == n else "red" if count == 0 else "yellow"
    text = Text(f"{count}/{n}", style=colour)
    return text if step is None else text.append(f" @ {step:.0f}", style="default")


def _accuracy(row: Mapping[str, Any], digits: int, interval: bool) -> str:
    value, low, high = (row[f"final_accuracy{end}"] for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    if low is None or high is None or not interval:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _level(row: Mapping[str, Any]) -> Text:
    if row["measure"] is None:
        return Text("")
    measure = str(row["measure"]).split("/")[-1]
    level = "?" if row["level"] is None else f"{row['level']:.2g}"
    name, _, layer = measure.partition("@")
    symbol = SYMBOLS.get(name, name) + (f" of {layer}" if layer else "")
    text = Text(f"{symbol} {level}")
    return text if row["state"] == "held" else text.append(f", {row['state']}", style="yellow")


def is_verdict(finding: Mapping[str, Any]) -> bool:
    """Whether a finding belongs on the first screen: of each property, and alarms."""
    kind, identity = finding["kind"], str(finding["id"])
    if kind in ("necessity", "sufficiency"):
        return identity.count("/") == 1 and finding["subject"].get("property", identity.split("/")[1]) in identity
    return kind == "pooled" or (kind == "control" and finding["verdict"] != "passed")


def verdicts(findings: Iterable[Mapping[str, Any]]) -> RenderableType:
    """The verdicts among the findings, each as one paragraph."""
    return Group(*(verdict(finding) for finding in findings if is_verdict(finding)), "")


def verdict(finding: Mapping[str, Any]) -> Text:
    """A finding as a glyph (● consistent with, ○ not, ◐ open), its verdict and its sentence."""
    glyph = _GLYPHS.get(str(finding["verdict"]), "◐")
    open_ = finding["verdict"] == "inconclusive"
    sentence = str(finding["data"].get("reason") or ("" if open_ else finding["statement"]))
    sentence = sentence[:1].upper() + sentence[1:]
    sentence += "." if sentence and not sentence.endswith(".") else ""
    subject = finding["subject"].get("property") or str(finding["id"]).split("/")[-1]
    label = {"necessity": f"Is {subject} necessary?", "sufficiency": f"Does {subject} suffice?"}
    text = Text(f"{glyph} ", style=_STYLES[glyph])
    text.append(label.get(finding["kind"], str(finding["kind"]).capitalize()), style="bold")
    text.append(f" {str(finding['verdict']).capitalize()}.", style=_STYLES[glyph])
    return text.append(f" {sentence}".rstrip(), style="default not bold")


def files(folder: RunFolder) -> Text:
    """Where a run's files are."""
    return Text("\n".join(f"{name + ':':<12}{place}" for name, place in _places(folder)))


def _places(folder: RunFolder) -> Iterable[tuple[str, str]]:
    path = folder.path
    yield "run folder", str(path)
    yield "trajectory", f"{path / 'trajectory'} ({len(folder.parts())} Parquet files)"
    count = len(folder.findings)
    yield "findings", f"{path / 'findings.json'} ({count})" if count else f"not yet; {folder.command('analyze')}"
    report = path / "report.html"
    yield "report", str(report) if report.exists() else f"not yet; {folder.command('report')}"
