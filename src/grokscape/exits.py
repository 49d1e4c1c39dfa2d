"""How a command ends: exit codes, signals, and what is said of an error.

Exit codes: 0 done; 1 the input is wrong or something failed, and the message says what to do; 2 the command line cannot
be understood; 130 stopped by Ctrl-C or a signal, and the message says how to go on.
"""

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from grokscape.settings import wrong
from grokscape.store import RunFolder, RunFolderError

_TOLD = RunFolderError, ValueError, OSError, ImportError  # their messages say what to do, and where does not matter


@contextmanager
def stoppable(folder: Path) -> Iterator[None]:
    """Say how to go on when Ctrl-C comes before or after training, which sees to it itself, or a disk is full."""
    from grokscape.training import Interrupted

    try:
        yield
    except (KeyboardInterrupt, OSError) as error:
        if not (folder / "spec.json").exists():
            raise
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"stopped; go on with: {RunFolder(folder).command('resume')}") from None
        kept = f"what was computed until the newest checkpoint is in {folder}"
        remedy = f"Put that right, then go on with: {RunFolder(folder).command('resume')}"
        raise RunFolderError(f"{error}; {kept}. {remedy}") from error


def terminated(number: int, frame: object) -> None:
    """A signal's handler: as if Ctrl-C had been pressed."""
    raise KeyboardInterrupt


def leave_in_peace() -> None:
    """Take no more signals."""
    for number in (signal.SIGINT, signal.SIGTERM):  # all is said; Python's own leaving is not to be disturbed
        signal.signal(number, signal.SIG_IGN)


def warn(message: str) -> None:
    """Say it on standard error, as the command says everything there."""
    with suppress(OSError):  # nobody looks
        print(f"grokscape: {message}", file=sys.stderr)


def explain(error: Exception) -> int:
    """Print what went wrong, and give the exit code."""
    from grokscape.training import Interrupted

    said = wrong(error) if isinstance(error, ValidationError) else str(error)
    print(f"grokscape: {said or type(error).__name__}", file=sys.stderr)
    if isinstance(error, Interrupted):
        return 130
    full = isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)
    if full:
        print("Memory is full: take fewer --seeds, or a smaller batch_size or evaluation.max_samples", file=sys.stderr)
    if os.environ.get("GROKSCAPE_DEBUG") or not (full or isinstance(error, _TOLD)):
        traceback.print_exception(error)
    return 1
