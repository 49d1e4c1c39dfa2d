"""The command line."""

import atexit
import io
import json
import shlex
import signal
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
from cyclopts import Parameter
from rich.console import Console
from rich.text import Text

import grokscape
from grokscape.exits import explain, leave_in_peace, stoppable, terminated, warn
from grokscape.plural import counted
from grokscape.store import CHECKPOINT_SECONDS, RunFolder, RunFolderError

app = cyclopts.App(
    name="grokscape",
    suppress_keyboard_interrupt=False,
    version=grokscape.__version__,
    help=(
        "Which geometric property does generalisation need? Train paired arms × seeds on a grokking testbed, hold "
        "flatness or neural collapse where you want it, and read the verdict."
    ),
    help_epilogue=(
        "**Start with**\n\n"
        "- `grokscape presets` – what there is to run, and what it costs\n"
        "- `grokscape run quickstart` – about a minute; ends in runs/quickstart/report.html\n"
        "- `grokscape show runs/quickstart` – its table and verdicts in the terminal\n\n"
        "**Exit codes**  0 done · 1 wrong input or failure, the message says what to do · 2 unknown command or "
        "option · 130 stopped, the message says how to go on. GROKSCAPE_DEBUG=1 shows where an error came from."
    ),
)
Quiet = Annotated[bool, Parameter(negative="", help="Print nothing but errors.")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print the result as JSON on standard output.")]
LauncherName = Literal["inline", "processes", "ray", "slurm"]
TrackerName = Literal["tensorboard", "wandb", "mlflow"]


@Parameter(name="*")
@dataclass(frozen=True)
class Where:
    """Where and how a study is trained.

    Attributes:
        device: A PyTorch device: cpu, cuda, cuda:1, mps, … Default: cpu, or the one the run had.
        launcher: Where: inline, in this process (the default); processes, several on this machine with a thread each;
            ray, on a Ray cluster; slurm, through sbatch. All but inline cut the study into shards of seeds.
        workers: Number of shards in training at a time. Default: what the machine or cluster has.
        tracker: Log the columns to this as well; may be given several times.
        checkpoint_every: Seconds between checkpoints.
    """

    device: str | None = None
    launcher: LauncherName | None = None
    workers: int | None = None
    tracker: Annotated[tuple[TrackerName, ...], Parameter(negative="", show_default=False)] = ()
    checkpoint_every: float = CHECKPOINT_SECONDS

    def settings(self) -> dict[str, Any]:
        """As `workflow.run` and `workflow.resume` take them."""
        if not self.checkpoint_every > 0:
            raise ValueError(f"expected --checkpoint-every above 0 seconds, got {self.checkpoint_every:g}")
        given = {"device": self.device, "launcher": self.launcher}
        return {
            **{name: value for name, value in given.items() if value is not None},
            "workers": self.workers,
            "trackers": self.tracker,
            "checkpoint_seconds": self.checkpoint_every,
        }


@app.command(name="presets", help_epilogue="")
def presets_command(*, json: Json = False) -> None:
    """List the studies that come with the project: what they ask, what they cost, and the command that runs each."""
    from grokscape.studies import preset, presets

    specs = [preset(name) for name in presets()]
    if json:
        fields = ("name", "title", "question", "description", "seeds", "steps", "replicas")
        _print_json([{name: getattr(s, name) for name in fields} | {"arms": [a.name for a in s.arms]} for s in specs])
        return
    console = Console()
    for spec in specs:
        console.print(Text.assemble((spec.name, "bold"), "  ", spec.title))
        console.print(Text(spec.description), style="dim")
        size = f"{counted(len(spec.arms), 'arm')} × {counted(spec.seeds, 'seed')}, {counted(f'{spec.steps:,}', 'step')}"
        console.print(Text.assemble(f"{size}:  ", (f"grokscape run {spec.name}", "cyan")), end="\n\n")


@app.command(help_epilogue="")
def run(
    study: str,
    *,
    out: Path | None = None,
    seeds: int | None = None,
    steps: int | None = None,
    scale: Literal["paper", "small"] = "paper",
    data: str | None = None,
    where: Where = Where(),
    reuse: Annotated[bool, Parameter(negative="")] = False,
    report: bool = True,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run a study and end in a report.

    Examples:

    - `grokscape run quickstart` – into runs/quickstart
    - `grokscape run quickstart --seeds 16 --launcher processes --out runs/more-seeds`
    - `grokscape run runs/quickstart/spec.json --out runs/again` – an edited copy of a specification will do as well

    Ctrl-C saves and stops; `grokscape resume` goes on, on a CPU with as many threads to the bit, as if it had not been.

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
    scale
        For experiments of the paper: its own settings and data, or the same design on data that needs no download.
    data
        A folder or a name on the Hugging Face hub, in place of the data set that the study names.
    reuse
        If the run folder holds this study already: go on with it, or only say where the report is if it is finished.
    report
        Whether to write figures and report.html at the end.
    """
    from grokscape.studies import StudySpec
    from grokscape.studies.display import Display
    from grokscape.workflow import run as run_study
    from grokscape.workflow import specification

    settings = where.settings()
    spec = specification(study, scale, data)
    changes = {name: value for name, value in (("seeds", seeds), ("steps", steps)) if value is not None}
    spec = StudySpec.model_validate({**spec.model_dump(), **changes})
    out = out or Path("runs") / spec.name
    if reuse and (out / "spec.json").exists():
        if RunFolder.open(out).spec != spec.model_dump(mode="json"):
            raise RunFolderError(f"{out} holds another study than this one; choose another place: --out DIR")
        resume(out, where=where, report=report, quiet=quiet, json=json)
        return
    command = shlex.join(["grokscape", *sys.argv[1:]])
    with stoppable(out), Display(spec, "quiet" if quiet or json else None) as display:
        result = run_study(spec, out, progress=display, report=report, command=command, **settings)
    _say_what_came(result.folder, quiet, json)


@app.command(help_epilogue="")
def resume(
    folder: Path,
    *,
    steps: int | None = None,
    where: Where = Where(),
    report: bool = True,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Go on with a run that was stopped or killed, from its newest checkpoint; or with a finished one for more steps.

    Device, launcher and workers are those it had, unless given.

    Parameters
    ----------
    folder
        The run folder.
    steps
        Number of training steps in all, for a run that is to become longer than it was to be.
    report
        Whether to write figures and report.html at the end.
    """
    from grokscape.studies.display import Display
    from grokscape.workflow import check_where, load
    from grokscape.workflow import resume as resume_study

    settings, study = where.settings(), load(folder)
    check_where(study, where.device, where.launcher, where.workers, where.tracker)
    spec = study.spec if steps is None else study.spec.model_copy(update={"steps": steps})
    if spec == study.spec and study.folder.finished and study.report.exists() and study.findings:
        _say_what_came(study.folder, quiet, json)
        return
    with stoppable(folder), Display(spec, "quiet" if quiet or json else None) as display:
        result = resume_study(folder, steps=steps, progress=display, report=report, **settings)
    _say_what_came(result.folder, quiet, json)


@app.command(help_epilogue="")
def analyze(folders: list[Path], /, *, quiet: Quiet = False, json: Json = False) -> None:
    """Work out onsets, survival, lead and lag, and verdicts of a run; several runs are pooled.

    Parameters
    ----------
    folders
        One run folder, or several.
    """
    from grokscape.analysis import analyze as analyze_folders

    opened = [RunFolder.open(folder).measured() for folder in folders]
    findings = analyze_folders(opened[0] if len(opened) == 1 else opened)
    if json:
        _print_json([finding.to_dict() for finding in findings])
    elif not quiet:
        from grokscape.terminal import verdicts

        Console().print(verdicts([finding.to_dict() for finding in findings]))


@app.command(help_epilogue="")
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

    opened = RunFolder.open(folder).measured()
    if not opened.findings:
        analyze_folder(opened)
    write_figures(opened, style=style)
    path = write_report(opened)
    if not quiet:
        print(f"report: {path}")


@app.command(help_epilogue="")
def figure(
    name: str, folder: Path, /, *, style: Literal["paper", "talk"] = "paper", quiet: Quiet = False, json: Json = False
) -> None:
    """Draw a figure of the paper (Han et al. 2025) from a run, as SVG, PDF and PNG.

    Example: `grokscape figure fig1 runs/grok-transformer`

    Parameters
    ----------
    name
        fig1, fig2, …
    folder
        The run folder; the files go into its figures/.
    style
        How large lines and letters are.
    """
    from grokscape.report import figure as draw

    paths = draw(name, folder, style)
    if json:
        _print_json([str(path) for path in paths])
    elif not quiet:
        print(*paths, sep="\n")


@app.command(help_epilogue="")
def compare(folders: list[Path], /, *, out: Path = Path("comparison.html"), quiet: Quiet = False) -> None:
    """Put several runs side by side in one page.

    Example: `grokscape compare runs/quickstart runs/grok-transformer --out comparison.html`

    Parameters
    ----------
    folders
        Two run folders or more.
    out
        The page.
    """
    from grokscape.report import write_comparison

    path = write_comparison(folders, out)
    if not quiet:
        print(f"comparison: {path}")


@app.command(help_epilogue="")
def show(folder: Path, /, *, json: Json = False) -> None:
    """Show a run in the terminal: its arms, its verdicts, and where its files are.

    Each arm has a line: how many of its seeds memorised and generalised and at which median step, the median delay
    between the two, test accuracy at the end with its interval, and where the measure that it was to hold settled.

    Parameters
    ----------
    folder
        The run folder.
    """
    from grokscape.terminal import show as show_folder

    opened = RunFolder.open(folder)
    if json:
        known = {"folder": str(opened.path), "state": opened.state, "status": opened.status}
        _print_json({**known, "findings": opened.findings})
    else:
        show_folder(opened, Console())


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


def _say_what_came(folder: RunFolder, quiet: bool, as_json: bool) -> None:
    if as_json:
        report = folder.path / "report.html"
        known = {"folder": str(folder.path), "state": folder.status.get("state")}
        _print_json({**known, "report": str(report) if report.exists() else None, "findings": folder.findings})
    elif not quiet:
        from grokscape.terminal import show as show_folder

        show_folder(folder, Console())


def main() -> None:
    """Entry point of the `grokscape` command."""
    signal.signal(signal.SIGTERM, terminated)
    atexit.register(leave_in_peace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without κ shows ?, and the run goes on
    warnings.showwarning = lambda message, *where: warn(str(message))
    try:
        app(sys.argv[1:], exit_on_error=False)
    except cyclopts.CycloptsError:  # already printed
        sys.exit(2)
    except KeyboardInterrupt:
        print("grokscape: stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        sys.exit(explain(error))
