"""The whole way in one call: train a study, analyse it, write its report; and open a run folder again."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import torch
from pydantic import ValidationError

from grokscape.plural import counted
from grokscape.settings import wrong
from grokscape.store import RunFolder, RunFolderError
from grokscape.studies import StudySpec, launch, launchers, plan, preset, shards
from grokscape.studies.paper_parts import Scale
from grokscape.trackers import Trackers
from grokscape.training import CHECKPOINT_SECONDS, Progress, Trained

if TYPE_CHECKING:  # analysis and report are imported when they are due: seconds that a run need not wait for
    from grokscape.analysis import Finding


@dataclass(frozen=True)
class Study:
    """A run folder, opened.

    Attributes:
        folder: where it lies and how to read its files.
        testbed: the study's testbed, where its data lies outside the folder (`TensorTask`).
    """

    folder: RunFolder
    testbed: Any = None

    @property
    def path(self) -> Path:
        """The run folder's path."""
        return self.folder.path

    @cached_property
    def spec(self) -> StudySpec:
        """What was asked for.

        Raises:
            RunFolderError: spec.json is no specification, or one of another testbed than was given.
        """
        written = self.folder.spec
        if self.testbed is not None:
            given = self.testbed.model_dump(mode="json")
            if given != written.get("testbed"):
                raise RunFolderError(f"{self.path} is a study of {written.get('testbed')}, not of {given}")
            written = {**written, "testbed": self.testbed}
        try:
            return StudySpec.model_validate(written)
        except ValidationError as error:
            raise RunFolderError(
                f"{self.path / 'spec.json'} is not a study's specification: {wrong(error)}. "
                f"Restore it, or start the study anew in another folder"
            ) from None

    @cached_property
    def trajectory(self) -> pl.DataFrame:
        """One row per replica and measured step."""
        return self.folder.trajectory()

    @cached_property
    def findings(self) -> list["Finding"]:
        """What the analysis found; empty before it ran."""
        from grokscape.analysis import Finding

        try:
            return [Finding(**finding) for finding in self.folder.findings]
        except TypeError as error:
            raise RunFolderError(
                f"{self.path / 'findings.json'} is of another version ({error}); make it anew with: "
                f"{self.folder.command('analyze')}"
            ) from None

    def trained(self, arm: str, seed: int) -> Trained:
        """One trained network and its data, from the newest checkpoint: `model, train, test, step`.

        The model is a PyTorch module that takes inputs as its testbed gives them and ends in a linear head, in
        evaluation mode: for `grokscape.measure`, `grokscape.layer_flatness` and code of your own. A module of yours is
        what its factory makes. In networks of this library, layers but the head hold their weights and are not called:
        hooks on them do not run. `torch.autograd` goes through them to any order, `torch.func` does not.

        Args:
            arm: its name.
            seed: number of its pair, as in the trajectory's column `seed`.

        Raises:
            ValueError: the study has no such arm or pair.
            RunFolderError: there is no checkpoint, or none that is undamaged.
        """
        return shards.trained(self.folder, self.spec, arm, seed)

    @property
    def report(self) -> Path:
        """Where the report is, or will be."""
        return self.path / "report.html"

    def __repr__(self) -> str:
        state = self.folder.status.get("state", "not started")
        written = self.folder.spec
        replicas = len(written.get("arms", ())) * written.get("seeds", 0)
        lines = [f"Study {written.get('name')!r} in {self.path}: {state}, {counted(replicas, 'replica')}"]
        lines += [f"  {f.statement}" for f in self.findings if f.kind == "necessity"]
        return "\n".join(lines)


def specification(study: str, scale: Scale = "paper", data: str | None = None) -> StudySpec:
    """A preset by its name, or what a JSON file specifies.

    Args:
        study: a preset's name, or a path that ends in .json.
        scale: which of a preset's scales.
        data: where the data lie, for a testbed that reads them from a source.

    Raises:
        ValueError: no such preset or file, no specification in it, or data for a testbed that makes its own.
    """
    if study.endswith(".json") and scale != "paper":
        raise ValueError(f"{study} has one scale only; leave `--scale {scale}` out")
    spec = preset(study, scale) if not study.endswith(".json") else _specification_in(Path(study))
    if data is None:
        return spec
    if not hasattr(spec.testbed, "source"):
        raise ValueError(f"{spec.name!r} makes its own data ({spec.testbed.kind}); leave `--data {data}` out")
    return StudySpec.model_validate({**spec.model_dump(), "testbed": {**spec.testbed.model_dump(), "source": data}})


def _specification_in(path: Path) -> StudySpec:
    if not path.is_file():
        raise ValueError(f"there is no file {path}; expected a preset's name or a JSON file with a specification")
    try:
        return StudySpec.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path} is not a study's specification: {wrong(error)}") from None


def load(path: str | Path, testbed: Any = None) -> Study:
    """Open a run folder.

    Args:
        path: the folder.
        testbed: for a study of data of one's own, the same `TensorTask` again; needed for `spec` only.

    Raises:
        RunFolderError: it is none.
    """
    return Study(RunFolder.open(path), testbed)


def checked_device(name: str, launcher: str = "inline") -> str:
    """The name of a device that this machine has; of a kind of device, for a launcher that trains on others.

    Raises:
        ValueError: PyTorch knows no such device, or sees none here, or it is one of several where others choose.
    """
    try:
        device = torch.device(name)
        if launcher not in launchers.ELSEWHERE or device.type == "meta":
            torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        has = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
        has += ["mps"] if torch.backends.mps.is_available() else []
        reason = str(error).splitlines()[0]
        raise ValueError(f"expected a device of this machine ({', '.join(has)}), got {name!r} ({reason})") from None
    if launcher in launchers.ELSEWHERE and device.index is not None:
        raise ValueError(f"expected {device.type!r}, one of which {launcher} gives to each worker, got {name!r}")
    return name


def check_where(
    study: Study, device: str | None, launcher: str | None, workers: int | None, trackers: Sequence[str]
) -> None:
    """Refuse, of what is given, a device, launcher, number of workers or tracker that cannot be used here.

    Raises:
        ValueError: one of them is not here, or not for this study.
    """
    Trackers.check(trackers)
    if device is not None:
        checked_device(device, launcher or study.folder.status.get("launcher", "inline"))
    if launcher is not None:
        launchers.check(study.spec, launcher)
    launchers.check_workers(workers)


def run(
    study: str | Path | StudySpec | Mapping[str, Any],
    out: str | Path,
    *,
    seeds: int | None = None,
    device: str = "cpu",
    launcher: str = "inline",
    workers: int | None = None,
    trackers: Sequence[str] = (),
    progress: Callable[[Progress], None] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    report: bool = True,
    command: str | None = None,
) -> Study:
    """Train a study into a new run folder, analyse it and write its report.

    Args:
        study: a preset's name, a specification, what one holds as JSON, or the path of such a file, NAME.json.
        out: a folder that does not exist yet, or is empty.
        seeds: number of paired seeds, in place of the study's.
        device: a PyTorch device.
        launcher: "inline", or where shards of seeds are trained: "processes", "ray", "slurm".
        workers: number of shards, and of those in training at a time; None for the launcher's own.
        trackers: any of "tensorboard", "wandb", "mlflow", which get the medians of all columns, a run for each arm.
        progress: called after measurements.
        checkpoint_seconds: time between checkpoints.
        report: whether to write figures and report.html.
        command: what reproduces the run, for its report; None for the call of this function.

    Returns:
        The opened run folder.

    Raises:
        ValueError: unknown preset, file, device, launcher or tracker, or settings that do not go together.
        RunFolderError: `out` holds something.
        Interrupted: the process was asked to stop; everything so far is saved.
    """
    spec = specification(str(study)) if isinstance(study, str | Path) else StudySpec.model_validate(study)
    if seeds is not None:
        spec = StudySpec.model_validate({**dict(spec), "seeds": seeds})
    plan(spec, checked_device(device, launcher))  # raises what cannot go together before there is a folder
    launchers.check(spec, launcher)
    launchers.check_workers(workers)
    Trackers.check(trackers)
    folder = RunFolder.create(out, spec.model_dump(mode="json"))
    about = {
        "command": command or f"grokscape.run({spec.name!r}, out={str(out)!r}, seeds={spec.seeds}, device={device!r})",
        "host": {"system": platform.system(), "machine": platform.machine()},
    }
    settings = {"device": device, "workers": workers, "about": about, "checkpoint_seconds": checkpoint_seconds}
    _train(folder, spec, launcher, trackers, progress, settings)
    finish(folder, report=report)
    return Study(folder, spec.testbed)


def resume(
    path: str | Path,
    *,
    steps: int | None = None,
    testbed: Any = None,
    device: str | None = None,
    launcher: str | None = None,
    workers: int | None = None,
    trackers: Sequence[str] = (),
    progress: Callable[[Progress], None] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    report: bool = True,
) -> Study:
    """Go on with a run from its newest checkpoint, where and as it ran unless told otherwise; then as `run` does.

    A finished run is only analysed again, unless it gets more `steps` than it had. It then goes on with the weights it
    ended with, is measured on the longer run's grid from there on, and says so in the command that reproduces it. A
    study of data of one's own needs its `TensorTask` again, as `testbed`.

    Raises:
        ValueError: fewer steps than the run has, or more where a cosine ends with the last one.
    """
    study = load(path, testbed)
    check_where(study, device, launcher, workers, trackers)
    if steps is not None and steps != study.spec.steps:
        launch.lengthen(study.folder, study.spec, steps)
        study = load(path, testbed)
    status = study.folder.status
    if not study.folder.finished:
        launcher = launcher or status.get("launcher", "inline")
        settings = {
            "device": checked_device(device or status.get("device", "cpu"), launcher),
            "workers": workers or status.get("workers"),
            "about": {name: status[name] for name in ("command", "host") if name in status},
            "checkpoint_seconds": checkpoint_seconds,
        }
        _train(study.folder, study.spec, launcher, trackers, progress, settings)
    finish(study.folder, report=report)
    return study


def _train(
    folder: RunFolder,
    spec: StudySpec,
    launcher: str,
    trackers: Sequence[str],
    progress: Callable[[Progress], None] | None,
    settings: dict[str, Any],
) -> None:
    """Train, and tell trackers: while it trains in this process, or afterwards all that the shards recorded."""
    with Trackers(trackers, spec.name, folder) as tracking:
        live = launcher == "inline"

        def tell(measured: Progress) -> None:
            """Pass progress on to the display and the trackers."""
            if progress is not None:
                progress(measured)
            if live:
                tracking(measured)

        launchers.launch(spec, folder, launcher, progress=tell, **settings)
        if not live:
            tracking.replay()


def finish(folder: RunFolder, *, report: bool = True) -> Study:
    """Analyse a run folder and write its figures and report."""
    from grokscape.analysis import analyze

    analyze(folder.measured())
    if report:
        from grokscape.report import write_figures, write_report

        write_figures(folder)
        write_report(folder)
    return Study(folder)
