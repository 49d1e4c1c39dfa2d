"""The figures of a run as files, for a paper or a talk."""

from pathlib import Path

from grokscape.report.drawing import Style, write_plate
from grokscape.report.onsets import Outcomes, hero
from grokscape.report.plate import Plate
from grokscape.report.run import Run, read_run
from grokscape.report.trajectories import DEFAULT_MEASURES, panel, shown_steps
from grokscape.store import RunFolder


def write_figures(folder: RunFolder | str | Path, style: Style = "paper") -> list[Path]:
    """Write every figure that the run has the data for as SVG, PDF and PNG into `figures/`; return their paths.

    Raises:
        RunFolderError: there is no run folder, or one of its files is damaged.
        ValueError: `style` is not "paper" or "talk".
    """
    run = read_run(folder)
    return [path for plate in plates(run) for path in write_plate(plate, run.path / "figures", style)]


def plates(run: Run) -> list[Plate]:
    """Every plate that can be drawn."""
    candidates = [hero(run, Outcomes.of(run)), trajectory_plate(run)]
    return [plate for plate in candidates if isinstance(plate, Plate)]


def trajectory_plate(run: Run) -> Plate | None:
    """The default measures over steps, one above the other; None before anything was measured."""
    steps = shown_steps(run)
    panels = []
    for measure in DEFAULT_MEASURES:
        splits = run.measures().get(measure, [])
        split = next((s for s in ("test", "train", "params") if s in splits), None)
        if split and (drawn := panel(run, measure, split, steps)):
            panels.append(drawn)
    if not panels:
        return None
    return Plate(
        "trajectories", "Trajectories", "", "Measures over training steps by arm", tuple(panels), shared_x=True
    )
