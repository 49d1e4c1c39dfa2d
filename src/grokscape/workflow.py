"""The whole way in one call: train a study, analyse it, write its report; and open a run folder again."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from grokscape.analysis import Finding, analyze
from grokscape.report import write_figures, write_report
from grokscape.store import RunFolder, RunFolderError
from grokscape.studies import StudySpec, preset, train
from grokscape.training import Progress


@dataclass(frozen=True)
class Study:
    """A run folder, opened.

    Attributes:
        folder: where it lies and how to read its files.
    """

    folder: RunFolder

    @property
    def path(self) -> Path:
        """The run folder's path."""
        return self.folder.path

    @cached_property
    def spec(self) -> StudySpec:
        """What was asked for."""
        return StudySpec.model_validate(self.folder.spec)

    @cached_property
    def trajectory(self) -> pl.DataFrame:
        """One row per replica and measured step."""
        return self.folder.trajectory()

    @cached_property
    def findings(self) -> list[Finding]:
        """What the analysis found; empty before it ran."""
        return [Finding(**finding) for finding in self.folder.findings]

    @property
    def report(self) -> Path:
        """Where the report is, or will be."""
        return self.path / "report.html"

    def __repr__(self) -> str:
        state = self.folder.status.get("state", "not started")
        lines = [f"Study {self.spec.name!r} in {self.path}: {state}, {self.spec.replicas} replicas"]
        lines += [f"  {f.statement}" for f in self.findings if f.kind == "necessity"]
        return "\n".join(lines)


def load(path: str | Path) -> Study:
    """Open a run folder.

    Raises:
        RunFolderError: it is none.
    """
    return Study(RunFolder.open(path))


def run(
    study: str | StudySpec,
    out: str | Path,
    *,
    seeds: int | None = None,
    device: str = "cpu",
    progress: Callable[[Progress], None] | None = None,
    report: bool = True,
    command: str | None = None,
) -> Study:
    """Train a study into a new run folder, analyse it and write its report.

    Args:
        study: a preset's name or a specification.
        out: a folder that does not exist yet, or is empty.
        seeds: number of paired seeds, in place of the study's.
        device: a PyTorch device.
        progress: called after each measurement.
        report: whether to write figures and report.html.
        command: what reproduces the run, for its report; None for the call of this function.

    Returns:
        The opened run folder.

    Raises:
        ValueError: unknown preset.
        RunFolderError: `out` holds something.
        Interrupted: the process was asked to stop; everything so far is saved.
    """
    spec = preset(study) if isinstance(study, str) else study
    if seeds is not None:
        spec = StudySpec.model_validate({**spec.model_dump(), "seeds": seeds})
    folder = RunFolder.create(out, spec.model_dump(mode="json"))
    about = {
        "command": command or f"grokscape.run({spec.name!r}, out={str(out)!r}, seeds={spec.seeds}, device={device!r})",
        "host": {"system": platform.system(), "machine": platform.machine()},
    }
    train(spec, folder, device=device, progress=progress, about=about)
    return finish(folder, report=report)


def resume(
    path: str | Path,
    *,
    device: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    report: bool = True,
) -> Study:
    """Go on with a run from its newest checkpoint; a finished one is only analysed again."""
    study = load(path)
    status = study.folder.status
    if status.get("state") != "finished":
        about = {name: status[name] for name in ("command", "host") if name in status}
        train(study.spec, study.folder, device=device or status.get("device", "cpu"), progress=progress, about=about)
    return finish(study.folder, report=report)


def finish(folder: RunFolder, *, report: bool = True) -> Study:
    """Analyse a run folder and write its figures and report."""
    if folder.trajectory().is_empty():
        raise RunFolderError(f"{folder.path} holds no measurements yet; go on with: grokscape resume {folder.path}")
    analyze(folder)
    if report:
        write_figures(folder)
        write_report(folder)
    return Study(folder)
