"""The live view of a run: progress, time left, and a line for each arm; plain lines where there is no terminal."""

import math
import statistics
import sys
from collections import defaultdict
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from grokscape.studies.spec import StudySpec
from grokscape.training import Progress as Measured

_BLOCKS = " ▁▂▃▄▅▆▇█"
_HISTORY = 24
_PLAIN_LINES = 12
COLUMNS = {
    "train/accuracy": "train acc",
    "test/accuracy": "test acc",
    "train/relative_flatness": "κ",
    "train/cdnv": "cdnv",
}


def sparkline(values: list[float], width: int = _HISTORY) -> str:
    """Values between 0 and 1 as a row of blocks, newest last; NaN is a gap.

    >>> sparkline([0.0, 0.5, 1.0])
    ' ▄█'
    """
    recent = values[-width:]
    return "".join(" " if math.isnan(v) else _BLOCKS[round(min(max(v, 0.0), 1.0) * 8)] for v in recent)


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> duration(75)
    '1 min 15 s'
    """
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def by_arm(measured: Measured) -> dict[str, dict[str, float]]:
    """Median over an arm's replicas of each displayed column."""
    rows: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name in COLUMNS:
        for arm, value in zip(measured.arms, measured.values.get(name, []), strict=False):
            rows[arm][name].append(value)
    return {arm: {name: statistics.median(values) for name, values in columns.items()} for arm, columns in rows.items()}


class Display:
    """Shows a run while it trains; use as a context manager and call it with each `Progress`.

    Args:
        spec: the study.
        stream: "live" for a terminal, "plain" for lines, "quiet" for nothing; None looks at the console.
        console: where to.
    """

    def __init__(self, spec: StudySpec, stream: str | None = None, console: Console | None = None) -> None:
        self._spec = spec
        self._console = console or Console(file=sys.stderr)
        self._stream = stream or ("live" if self._console.is_terminal else "plain")
        self._labels = {arm.name: arm.label for arm in spec.arms}
        self._history: dict[str, list[float]] = defaultdict(list)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            console=self._console,
        )
        self._task = self._bar.add_task("training", total=spec.steps)
        self._live = Live(self._bar, console=self._console, auto_refresh=False, transient=False)
        self._next_line = 0.0
        self._started_at: tuple[int, float] | None = None

    def __enter__(self) -> "Display":
        if self._stream == "live":
            self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._stream == "live":
            self._live.stop()

    def __call__(self, measured: Measured) -> None:
        """Show the newest measurement."""
        rows = by_arm(measured)
        for arm, values in rows.items():
            self._history[arm].append(values.get("test/accuracy", math.nan))
        if self._stream == "live":
            self._bar.update(self._task, completed=measured.step)
            self._live.update(Group(self._bar, self._line(measured), self._table(rows)), refresh=True)
        elif self._stream == "plain" and measured.step >= self._next_line:
            self._next_line = measured.step + self._spec.steps / _PLAIN_LINES
            self._console.print(self._plain(measured, rows), highlight=False, soft_wrap=True, markup=False)

    def _left(self, measured: Measured) -> float:
        if self._started_at is None:
            self._started_at = (measured.step, measured.seconds)
        steps, seconds = measured.step - self._started_at[0], measured.seconds - self._started_at[1]
        return (measured.steps - measured.step) * seconds / steps if steps else math.inf

    def _line(self, measured: Measured) -> Text:
        return Text(
            f"step {measured.step} of {measured.steps} · {duration(measured.seconds)} so far, "
            f"{duration(self._left(measured))} left · {measured.rate:,.0f} replica-steps/s · "
            f"median over {self._spec.seeds} seeds:",
            style="dim",
        )

    def _table(self, rows: dict[str, dict[str, float]]) -> Table:
        table = Table(box=None, padding=(0, 1))
        table.add_column("arm")
        table.add_column("test accuracy so far", width=_HISTORY)
        for title in COLUMNS.values():
            table.add_column(title, justify="right")
        for arm, label in self._labels.items():
            values = rows.get(arm, {})
            numbers = [_number(values.get(name, math.nan), name) for name in COLUMNS]
            table.add_row(Text(label), Text(sparkline(self._history[arm]), style="green"), *numbers)
        return table

    def _plain(self, measured: Measured, rows: dict[str, dict[str, float]]) -> str:
        parts = [f"step {measured.step}/{measured.steps}, {duration(measured.seconds)}"]
        for arm, values in rows.items():
            train, test = values.get("train/accuracy", math.nan), values.get("test/accuracy", math.nan)
            parts.append(f"{arm} {train:.2f}/{test:.2f}")
        return " | ".join(parts)


def _number(value: float, name: str) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.3f}" if name.endswith("accuracy") else f"{value:.3g}"
