"""The figures of a run as files, for a paper or a talk."""

from collections.abc import Sequence
from pathlib import Path

from grokscape.report.delays import survival_plate
from grokscape.report.doses import dose_plates
from grokscape.report.drawing import FORMATS, Style, write_plate
from grokscape.report.geometry import angle_plate, theory_plate
from grokscape.report.onsets import Outcomes, hero
from grokscape.report.ordering import lead_lag_plate, ranking_plate
from grokscape.report.plate import Plate
from grokscape.report.run import Run, read_run
from grokscape.report.trajectories import DEFAULT_MEASURES, panel, shown_steps
from grokscape.store import RunFolder


def write_figures(
    folder: RunFolder | str | Path, style: Style = "paper", *, formats: Sequence[str] = FORMATS
) -> list[Path]:
    """Write every figure that the run has the data for into `figures/`; return their paths.

    Args:
        folder: the run.
        style: "paper" (text width of a page, 8 pt) or "talk" (a slide, 17 pt; file names end in -talk).
        formats: endings out of "svg", "pdf", "png".

    Raises:
        RunFolderError: there is no run folder, or one of its files is damaged.
        ValueError: `style` is not "paper" or "talk".
    """
    run = read_run(folder)
    return [path for plate in plates(run) for path in write_plate(plate, run.path / "figures", style, formats)]


def plates(run: Run) -> list[Plate]:
    """Every plate that can be drawn."""
    found = Outcomes.of(run)
    candidates = [
        hero(run, found),
        trajectory_plate(run),
        survival_plate(run),
        *dose_plates(run),
        lead_lag_plate(run),
        ranking_plate(run),
        angle_plate(run),
        theory_plate(run),
    ]
    return [plate for plate in candidates if isinstance(plate, Plate)]


def trajectory_plate(run: Run) -> Plate | None:
    """The default measures over steps, one above the other; None before anything was measured."""
    steps = shown_steps(run)
    panels = []
    for measure in DEFAULT_MEASURES:
        splits = run.measures().get(measure, [])
        order = ("test", "train") if measure in ("accuracy", "loss") else ("train", "test", "params")
        split = next((s for s in order if s in splits), None)
        if split and (drawn := panel(run, measure, split, steps)):
            panels.append(drawn)
    if not panels:
        return None
    return Plate(
        "trajectories", "Trajectories", "",
        "Over training steps by arm: accuracy and loss on held-out samples (dotted: training samples), "
        "other measures on training samples", tuple(panels), shared_x=True,
    )
