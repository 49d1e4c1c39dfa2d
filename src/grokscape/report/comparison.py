"""Several runs in one page: verdicts side by side, testbeds as small multiples, and what they say together."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from grokscape.analysis import FrameError, analyze
from grokscape.report import glossary, wording
from grokscape.report.arms import Arm, arms_of
from grokscape.report.html import render
from grokscape.report.interactive import figure_for_page, legend_entries
from grokscape.report.onsets import Outcomes
from grokscape.report.panels import arms_for_page
from grokscape.report.plate import Axis, Layer, Panel, Plate, Points, Rule
from grokscape.report.provenance import provenance
from grokscape.report.run import Run, read_run
from grokscape.report.trajectories import panel, shown_steps
from grokscape.report.verdicts import PROPERTY_TITLES, judged, stands_for_its_property
from grokscape.store import RunFolder, write_bytes

LEAD = (
    "The same question put to several testbeds. A verdict of one run holds for its network, its data and its "
    "optimiser; what the runs share is what may hold beyond them."
)
MULTIPLES = (("accuracy", "test"), ("relative_flatness", "train"), ("cdnv", "train"))


def write_comparison(folders: Sequence[RunFolder | str | Path], out: str | Path) -> Path:
    """Write one page about several runs and return its path.

    Args:
        folders: two run folders or more.
        out: the HTML file, or a folder that gets a `comparison.html`.

    Raises:
        RunFolderError: one of them is no run folder, or one of its files is damaged.
        ValueError: there are fewer than two.
    """
    if len(folders) < 2:
        raise ValueError(
            f"expected at least two run folders to compare, got {len(folders)}; `grokscape report DIR` shows one"
        )
    path = Path(out) if Path(out).suffix == ".html" else Path(out) / "comparison.html"
    write_bytes(path, page(together([read_run(folder) for folder in folders]), path.parent).encode())
    return path


def together(runs: Sequence[Run]) -> list[Run]:
    """The runs with arms of one name drawn alike, and those of one title called by their folders."""
    specs: dict[str, Mapping[str, Any]] = {}
    for run in runs:
        for arm in run.spec.get("arms") or []:
            specs.setdefault(str(arm.get("name")), arm)
    present = [arm.name for run in runs for arm in run.arms]
    measures = {column.rpartition("/")[2]: run for run in runs for column in run.columns}
    properties = {measure: run.measure_property(measure) for measure, run in measures.items()}
    titles = {measure: run.measure_short(measure) for measure, run in measures.items()}
    shared = arms_of({"arms": list(specs.values())}, present, properties, titles)
    known, folders = [_title(run) for run in runs], [run.path.name for run in runs]
    renamed = []
    for run, title, folder in zip(runs, known, folders, strict=True):
        place = folder if folders.count(folder) == 1 else str(run.path)
        spec = run.spec if known.count(title) == 1 else {**run.spec, "title": place}
        renamed.append(replace(run, shared=shared, spec=spec))
    return renamed


def page(runs: Sequence[Run], place: Path) -> str:
    """The comparison as HTML, to be put into the folder `place`."""
    drawn = (*(multiples(runs, measure, split) for measure, split in MULTIPLES), delay_forest(runs))
    plates = [plate for plate in drawn if plate is not None]
    pooled, why = _pooled(runs)
    terms = {entry["id"]: entry for run in runs for entry in glossary.entries(run, Outcomes.of(run).rules)}
    context = {
        "heading": f"{len(runs)} runs compared",
        "finished": all(run.unfinished is None for run in runs),
        "lead": LEAD,
        "notices": [f"{_title(run)}: {run.unfinished}" for run in runs if run.unfinished],
        "matrix": verdict_matrix(runs, pooled),
        "no_verdicts": "None of the runs holds a verdict. Run `grokscape analyze` on each, then compare again.",
        "plates": plates,
        "pooled": [_entry(finding, runs[0]) for finding in pooled],
        "pooled_rule": pooled[0]["rule"] if pooled else "",
        "no_pool": why,
        "runs": [_about(run, place) for run in runs],
        "glossary": list(terms.values()),
        "contents": [
            {"id": id_, "title": title}
            for id_, title in (
                ("verdicts", "Verdicts"),
                ("multiples", "Run beside run"),
                ("pooled", "All together"),
                ("runs", "The runs"),
                ("definitions", "Definitions"),
            )
        ],
        "legends": {plate.key: legend_entries(plate) for plate in plates},
    }
    payload = {"plates": {plate.key: figure_for_page(plate) for plate in plates}, "trajectories": _arms_only(runs)}
    return render("comparison.html.j2", context, payload)


def multiples(runs: Sequence[Run], measure: str, split: str) -> Plate | None:
    """A measure over steps, one panel per run; None if no run has it."""
    panels = []
    for run in runs:
        drawn = panel(run, measure, split, shown_steps(run, 160), title=_title(run), seeds_shown=0)
        if drawn is not None:
            panels.append(drawn)
    if not panels:
        return None
    title = wording.sentence(next(run.measure_title(measure) for run in runs if measure in run.measures()))
    words = {"test": "held-out samples; dotted, training samples", "train": "training samples"}[split]
    caption = f"{title} on {words}. Medians over seeds with the range from the 10th to the 90th percentile."
    alt = f"{title} over training steps by arm in {len(panels)} runs."
    links = (("Definition", f"def-{measure}"),)
    return Plate(f"multiples-{measure}", title, caption, alt, tuple(panels), columns=min(2, len(panels)), links=links)


def delay_forest(runs: Sequence[Run]) -> Plate | None:
    """Every arm's delay over its baseline's, one row per run, arms of one name in one panel; None if none is known."""
    rows = tuple(_title(run) for run in runs)
    layers: list[Layer] = [Rule(1.0, label="baseline")]
    labelled: set[str] = set()
    for row, run in enumerate(runs):
        found = [f for f in run.of_kind("survival") if f["estimates"]["delay ratio"]["value"] is not None]
        for rank, finding in enumerate(found):
            arm = run.arm_by_name[finding["subject"]["arm"]]
            layers.append(_delay(finding, arm, row + 0.7 * ((rank + 0.5) / len(found) - 0.5), arm.name not in labelled))
            labelled.add(arm.name)
    if not labelled:
        return None
    caption = "Mean delay from memorisation to generalisation over the baseline's, with bootstrap intervals over seeds."
    drawn = Panel(
        Axis("Delay over the baseline's"), Axis(categories=rows), tuple(layers), height=max(0.6, 0.4 * len(rows))
    )
    return Plate(
        "delays",
        "Delay over the baseline's",
        caption,
        f"{caption} One row per run.",
        (drawn,),
        links=(("Definition", "def-delay"),),
    )


def _delay(finding: Mapping[str, Any], arm: Arm, row: float, label: bool) -> Points:
    ratio = finding["estimates"]["delay ratio"]
    text = f"{arm.title}: {wording.times(ratio['value'])}"
    ends = (ratio["low"], ratio["high"])
    return Points(
        [ratio["value"]], [row], arm.colour, arm.title if label else "", arm.name, size=7, x_ends=[ends], hover=[text]
    )


def verdict_matrix(runs: Sequence[Run], pooled: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Runs × properties, with a last row for what they say together."""
    found = [{_property(f): f for f in run.of_kind("necessity") if stands_for_its_property(f)} for run in runs]
    properties = list(dict.fromkeys(name for row in found for name in row))
    shared = {_property(f): f for f in pooled if f["id"] == f"pooled/necessity/{_property(f)}"}
    rows = [
        {
            "title": _title(run),
            "link": wording.anchor(_title(run)),
            "together": False,
            "cells": [_cell(run, name, row.get(name)) for name in properties],
        }
        for run, row in zip(runs, found)
    ]
    if shared:
        cells = [_cell(runs[0], name, shared.get(name)) for name in properties]
        rows.append({"title": "All together", "link": "", "together": True, "cells": cells})
    heads = [f"Is {PROPERTY_TITLES.get(name, name)} necessary?" for name in properties]
    return {"heads": heads, "rows": rows if properties else []}


def _property(finding: Mapping[str, Any]) -> str:
    return str(finding["subject"]["property"])


def _cell(run: Run, property_: str, finding: Mapping[str, Any] | None) -> dict[str, str]:
    if finding is None:
        return {"verdict": "", "why": "", "glyph": "", "hue": ""}
    return {**judged(finding, property_), "why": wording.sentence(run.readable(finding["data"]["reason"]))}


def _pooled(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], str]:
    """What the analysis says about all runs, or why it says nothing."""
    try:
        found = [finding.to_dict() for finding in analyze([run.path for run in runs])]
    except FrameError as error:
        return [], f"The runs cannot be pooled: {error}."
    kept = [finding for finding in found if finding["kind"] == "pooled"]
    return kept, "" if kept else "The runs share no finding, or they are one study with other seeds."


def _entry(finding: Mapping[str, Any], run: Run) -> dict[str, Any]:
    return {
        "anchor": wording.anchor(finding["id"]),
        "statement": run.readable(finding["statement"]),
        "verdict": finding["verdict"],
        "basis": wording.basis({**finding, "n": 0}),
    }


def _title(run: Run) -> str:
    return run.title if run.title != run.name else run.path.name


def _about(run: Run, place: Path) -> dict[str, Any]:
    report = run.path / "report.html"
    link = Path(os.path.relpath(report, place)).as_posix() if report.exists() else ""
    keep = ("Reproduce it", "State", "Arms × seeds", "Device", "Cost", "Testbed", "Model", "Optimiser")
    facts = [fact for fact in provenance(run)["facts"] if fact["name"] in keep]
    return {
        "title": _title(run),
        "anchor": wording.anchor(_title(run)),
        "question": run.spec.get("question") or "",
        "report": link,
        "facts": facts,
    }


def _arms_only(runs: Sequence[Run]) -> dict[str, Any]:
    arms = {arm.name: arm for run in runs for arm in run.arms}
    return {
        "steps": [],
        "columns": {},
        "measures": {},
        "arms": arms_for_page(arms.values()),
        "onsets": {},
        "splits": {},
        "log_steps": False,
    }
