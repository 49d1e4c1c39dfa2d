"""The report of one run: what stands on the page, in the order in which it is read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grokscape.report import glossary
from grokscape.report.delays import survival_plate
from grokscape.report.doses import dose_plates
from grokscape.report.geometry import angle_plate, theory_plate
from grokscape.report.html import render
from grokscape.report.interactive import figure_for_page, legend_entries
from grokscape.report.onsets import Outcomes, hero
from grokscape.report.ordering import lead_lag_plate, ranking_plate
from grokscape.report.panels import trajectories
from grokscape.report.plate import Missing, Plate
from grokscape.report.provenance import provenance
from grokscape.report.run import Run, read_run
from grokscape.report.tables import outcome_table, replica_table
from grokscape.report.verdicts import alarms, cards, dispute, findings, no_verdicts
from grokscape.store import RunFolder, write_bytes

LEAD = (
    "In grokking, a network first memorises its training samples and only much later gets unseen ones right. What "
    "generalisation needs must arrive with that second moment, and holding it back must hold generalisation back."
)
MOVED = "Each arm holds one thing back, or pushes it, and is compared seed by seed with a baseline."
WATCHED = "Here nothing is moved by hand: the run shows what arrives when."


def write_report(folder: RunFolder | str | Path) -> Path:
    """Write `report.html` into a run folder and return its path.

    The page needs no network, and its bytes depend on the folder's content alone.

    Raises:
        RunFolderError: there is no run folder, or one of its files is damaged.
    """
    run = read_run(folder)
    path = run.path / "report.html"
    write_bytes(path, page(run).encode())
    return path


def page(run: Run) -> str:
    """The report of a run as HTML."""
    found = Outcomes.of(run)
    first = hero(run, found)
    sections = evidence(run)
    plates = [first, *(item for section in sections for item in section["plates"])]
    panels, trajectory_payload = trajectories(run, found)
    context = {
        "run": run,
        "heading": run.title,
        "finished": run.unfinished is None,
        "question": str(run.spec.get("question") or "Which geometric property does generalisation need?"),
        "lead": f"{LEAD} {MOVED if len(run.arms) > 1 else WATCHED}",
        "alarms": alarms(run),
        "cards": cards(run),
        "no_verdicts": no_verdicts(run),
        "hero": first,
        "outcomes": outcome_table(run, found),
        "trajectories": panels,
        "sections": sections,
        "replicas": replica_table(run, found),
        "dispute": dispute(run),
        "findings": findings(run),
        "provenance": provenance(run),
        "glossary": glossary.entries(run, found.rules),
        "contents": contents(sections, disputed=bool(run.of_kind("dispute"))),
        "legends": {item.key: legend_entries(item) for item in plates if isinstance(item, Plate)},
    }
    payload = {
        "plates": {item.key: figure_for_page(item) for item in plates if isinstance(item, Plate)},
        "trajectories": trajectory_payload,
    }
    return render("report.html.j2", context, payload)


def evidence(run: Run) -> list[dict[str, Any]]:
    """The figures behind the verdicts, section by section: {"id", "short", "title", "plates"}."""
    doses = dose_plates(run)
    first = sum(f["id"].count("/") < 2 for f in run.of_kind("necessity")) or 1
    titled: list[tuple[str, str, str, list[Plate | Missing]]] = [
        ("delays", "Delay", "How long generalisation takes", [survival_plate(run)]),
        ("dose-response", "Dose and response", "Does more of it do more?", doses),
        ("order", "Order in time", "What moves first, and what foretells", [lead_lag_plate(run), ranking_plate(run)]),
        ("geometry", "Geometry", "Geometry and theory", [angle_plate(run), theory_plate(run)]),
    ]
    folded = {"dose-response": first}  # measures beside the one that stands for its property
    return [
        {"id": id_, "short": short, "title": title, "plates": plates, "open": folded.get(id_, len(plates))}
        for id_, short, title, plates in titled
    ]


def contents(sections: Sequence[Mapping[str, Any]], *, disputed: bool) -> list[dict[str, str]]:
    """Entries of the table of contents."""
    first = [("verdicts", "Verdicts"), ("outcomes", "Outcomes"), ("trajectories", "Trajectories")]
    last = [
        *([("dispute", "The dispute")] if disputed else []),
        ("replicas", "Every replica"),
        ("findings", "Findings, rules"),
        ("provenance", "How it was made"),
        ("definitions", "Definitions"),
    ]
    middle = [(str(section["id"]), str(section["short"])) for section in sections]
    return [{"id": id_, "title": title} for id_, title in first + middle + last]
