"""The command line.

Exit codes: 0 done; 1 bad input, the message says what to do; 130 stopped, the run can be resumed.
"""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
from cyclopts import Parameter
from pydantic import ValidationError
from rich.console import Console

import grokscape
from grokscape.store import RunFolder, RunFolderError

app = cyclopts.App(
    name="grokscape",
    version=grokscape.__version__,
    help=(
        "Which geometric property does generalisation need? Train paired arms × seeds on a grokking testbed, hold "
        "flatness or neural collapse where you want it, and read the verdict.\n\n"
        "Start with: grokscape run quickstart --out runs/quickstart"
    ),
)
Quiet = Annotated[bool, Parameter(negative="", help="Print nothing but errors.")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print the result as JSON on standard output.")]


@app.command(name="presets")
def presets_command(*, json: Json = False) -> None:
    """List the studies that come with the project: what they ask, what they cost, and the command that runs each."""
    from grokscape.studies import preset, presets

    specs = [preset(name) for name in presets()]
    if json:
        _print_json(
            [{"name": s.name, "title": s.title, "description": s.description, "replicas": s.replicas} for s in specs]
        )
        return
    console = Console()
    for spec in specs:
        console.print(f"[bold]{spec.name}[/bold]  {spec.title}", highlight=False)
        console.print(f"  {spec.description}", highlight=False)
        console.print(
            f"  {len(spec.arms)} arms × {spec.seeds} seeds, {spec.steps} steps.  grokscape run {spec.name}\n",
            highlight=False,
        )


@app.command
def run(
    study: str,
    *,
    out: Path | None = None,
    seeds: int | None = None,
    steps: int | None = None,
    device: str = "cpu",
    reuse: Annotated[bool, Parameter(negative="")] = False,
    report: bool = True,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run a study and end in a report.

    Parameters
    ----------
    study
        A preset's name (see `grokscape presets`) or a JSON file with a specification, such as a run folder's spec.json.
    out
        The run folder, new or empty. Default: runs/NAME.
    seeds
        Number of paired seeds, in place of the study's.
    steps
        Number of training steps, in place of the study's.
    device
        A PyTorch device: cpu, cuda, cuda:1, …
    reuse
        If the run folder exists: go on with it, or only say where the report is if it is finished.
    report
        Whether to write figures and report.html at the end.
    """
    from grokscape.studies import StudySpec
    from grokscape.studies.display import Display
    from grokscape.workflow import run as run_study

    spec = _specification(study)
    changes = {name: value for name, value in (("seeds", seeds), ("steps", steps)) if value is not None}
    spec = StudySpec.model_validate({**spec.model_dump(), **changes})
    out = out or Path("runs") / spec.name
    if reuse and (out / "spec.json").exists():
        resume(out, report=report, quiet=quiet, json=json)
        return
    with Display(spec, "quiet" if quiet or json else None) as display:
        result = run_study(spec, out, device=device, progress=display, report=report, command=_command_line())
    _say_where(result.folder, quiet, json)


@app.command
def resume(
    folder: Path, *, device: str | None = None, report: bool = True, quiet: Quiet = False, json: Json = False
) -> None:
    """Go on with a run that was stopped or killed, from its newest checkpoint.

    Parameters
    ----------
    folder
        The run folder.
    device
        A PyTorch device, in place of the one it ran on.
    report
        Whether to write figures and report.html at the end.
    """
    from grokscape.studies.display import Display
    from grokscape.workflow import load
    from grokscape.workflow import resume as resume_study

    study = load(folder)
    if study.folder.status.get("state") == "finished" and study.report.exists() and study.findings:
        _say_where(study.folder, quiet, json)
        return
    with Display(study.spec, "quiet" if quiet or json else None) as display:
        result = resume_study(folder, device=device, progress=display, report=report)
    _say_where(result.folder, quiet, json)


@app.command
def analyze(folders: list[Path], /, *, quiet: Quiet = False, json: Json = False) -> None:
    """Work out onsets, survival, lead and lag, and verdicts of a run; several runs are pooled.

    Parameters
    ----------
    folders
        One run folder, or several.
    """
    from grokscape.analysis import analyze as analyze_folders

    opened = [RunFolder.open(folder) for folder in folders]
    findings = analyze_folders(opened[0] if len(opened) == 1 else opened)
    if json:
        _print_json([finding.to_dict() for finding in findings])
    elif not quiet and len(opened) == 1:
        show(folders[0])
    elif not quiet:
        _print_findings([finding.to_dict() for finding in findings])


@app.command
def report(folder: Path, *, style: Literal["paper", "talk"] = "paper", quiet: Quiet = False) -> None:
    """Write report.html and the figures of a run, analysing it first if that has not happened.

    Parameters
    ----------
    folder
        The run folder.
    style
        How large the figures' lines and letters are.
    """
    from grokscape.analysis import analyze as analyze_folder
    from grokscape.report import write_figures, write_report

    opened = RunFolder.open(folder)
    if not opened.findings:
        analyze_folder(opened)
    write_figures(opened, style=style)
    path = write_report(opened)
    if not quiet:
        print(f"report: {path}")


@app.command
def show(folder: Path, /, *, json: Json = False) -> None:
    """Show a run in the terminal: a table of its arms, its verdicts, and where its files are.

    Parameters
    ----------
    folder
        The run folder.
    """
    from grokscape.analysis import summary_table

    opened = RunFolder.open(folder)
    findings = opened.findings
    if json:
        _print_json({"status": opened.status, "findings": findings})
        return
    frame = opened.trajectory()
    status = opened.status
    console = Console()
    console.print(f"{opened.spec.get('title') or opened.spec['name']}", style="bold", highlight=False)
    console.print(
        f"{status.get('state', 'not started')}, step {status.get('step', 0)} of {opened.spec['steps']}", highlight=False
    )
    if frame.is_empty():
        console.print(f"Nothing was measured yet. Go on with: grokscape resume {folder}", highlight=False)
        return
    _print_frame(console, summary_table(frame, opened.spec, opened.columns()))
    _print_findings(findings, console)
    _say_where(opened, quiet=False, as_json=False)


def _specification(study: str):
    from grokscape.studies import StudySpec, preset

    if study.endswith(".json"):
        return StudySpec.model_validate(json.loads(Path(study).read_text()))
    return preset(study)


def _command_line() -> str:
    import shlex

    return shlex.join(["grokscape", *sys.argv[1:]])


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def _print_frame(console: Console, frame) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1))
    for name in frame.columns:
        table.add_column(name)
    for row in frame.iter_rows():
        table.add_row(
            *(
                Text("–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value))
                for value in row
            )
        )
    console.print(table)


def _print_findings(findings: list[dict], console: Console | None = None) -> None:
    console = console or Console()
    for finding in findings:
        if finding["kind"] in ("necessity", "convergence", "control", "pooled"):
            console.print(f"• {finding['statement']}", highlight=False, markup=False)


def _say_where(folder: RunFolder, quiet: bool, as_json: bool) -> None:
    if as_json:
        _print_json({"folder": str(folder.path), "state": folder.status.get("state"), "findings": folder.findings})
    elif not quiet:
        report = folder.path / "report.html"
        print(f"run folder: {folder.path}")
        print(f"report:     {report}" if report.exists() else f"report:     not yet; grokscape report {folder.path}")


def main() -> None:
    """Entry point of the `grokscape` command."""
    from grokscape.training.run import Interrupted

    try:
        app()
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
    except (RunFolderError, ValidationError, ValueError, FileNotFoundError) as error:
        print(f"grokscape: {_plain(error)}", file=sys.stderr)
        if os.environ.get("GROKSCAPE_DEBUG"):
            traceback.print_exc()
        sys.exit(1)


def _plain(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()
        )
    return str(error)


if __name__ == "__main__":
    main()
