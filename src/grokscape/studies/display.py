"""The live view of a run: progress, time left, and a line for each arm; plain lines where there is no terminal."""

import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from grokscape.plural import counted, duration, rounded
from grokscape.studies.spec import StudySpec
from grokscape.terminal import sparkline
from grokscape.training import Progress

_PLAIN_LINES = 12
_PLAIN_SECONDS = 30.0
COLUMNS = {
    "train/accuracy": "train",
    "test/accuracy": "test",
    "train/relative_flatness": "κ",
    "train/cdnv": "cdnv",
}


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
        self._live = Live(console=self._console, auto_refresh=False)
        self._curves: dict[str, dict[int, float]] = defaultdict(dict)
        self._times: list[tuple[int, float]] = []
        self._next_line = (0.0, 0.0)

    def __enter__(self) -> "Display":
        with self._perhaps_unseen():
            if self._stream == "live":
                self._live.start()
                title = self._spec.title or self._spec.name
                self._live.update(Text(f"{title}: setting up …", style="dim"), refresh=True)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._perhaps_unseen():
            if self._stream == "live":
                self._live.stop()

    def __call__(self, measured: Progress) -> None:
        """Show the newest measurement."""
        with self._perhaps_unseen():
            self._show(measured)

    @contextmanager
    def _perhaps_unseen(self) -> Iterator[None]:
        """Where nobody looks any more, at a closed pipe or a terminal that is gone, the run goes on unseen."""
        try:
            yield
        except (OSError, SystemExit):  # rich leaves the program when a pipe is closed
            self._stream = "quiet"

    def _show(self, measured: Progress) -> None:
        if self._stream == "quiet":
            return
        rows = measured.medians()
        self._times.append((measured.step, measured.seconds))
        for arm, values in rows.items():
            self._curves[arm][measured.step] = values.get("test/accuracy", math.nan)
        if self._stream == "live":
            self._live.update(self.view(measured, rows), refresh=True)
        elif measured.step >= self._next_line[0] or time.monotonic() >= self._next_line[1]:
            step = measured.step + self._spec.steps / _PLAIN_LINES
            self._next_line = step, time.monotonic() + _PLAIN_SECONDS
            self._console.print(self._plain(measured, rows), highlight=False, soft_wrap=True, markup=False)

    def view(self, measured: Progress, rows: dict[str, dict[str, float]]) -> RenderableType:
        """Title, bar, times and the table of arms."""
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        share = f"{measured.step / measured.steps:.0%}".replace("%", " %")
        label = Text(f"{share} · step {measured.step:,} of {measured.steps:,}", style="bold")
        bar.add_row(ProgressBar(total=measured.steps, completed=measured.step), label)
        title = Text(self._spec.title or self._spec.name, style="bold", no_wrap=True, overflow="ellipsis")
        return Group(title, bar, Text(self._times_line(measured), style="dim"), "", self._table(measured, rows))

    def _times_line(self, measured: Progress) -> str:
        return (
            f"{duration(measured.seconds)} so far, {duration(self._left(measured))} left · "
            f"{measured.rate:,.0f} replica-steps/s"
        )

    def _left(self, measured: Progress) -> float:
        """Seconds, at the pace since half of the measurements of this sitting."""
        step, seconds = self._times[len(self._times) // 2 if len(self._times) > 3 else 0]
        made, left = measured.step - step, measured.steps - measured.step
        return 0.0 if left == 0 else left * (measured.seconds - seconds) / made if made else math.inf

    def _table(self, measured: Progress, rows: dict[str, dict[str, float]]) -> Table:
        width = self._console.width
        names = [name for name in COLUMNS if any(name in values for values in rows.values())]
        names = names if width >= 64 else names[:2] if width >= 48 else names[1:2]
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        longest = max(12, width - 17 - 10 * len(names)) if width < 64 else None
        first = f"median of {counted(self._spec.seeds, 'seed')}"
        table.add_column(first, no_wrap=True, overflow="ellipsis", max_width=longest)
        history = max(8, min(24, width - 34 - 8 * len(names)))
        table.add_column("test accuracy", width=max(history, 13), no_wrap=True)
        for name in names:
            table.add_column(COLUMNS[name], justify="right", no_wrap=True)
        for arm in self._spec.arms:
            values = rows.get(arm.name)
            if values is None:
                table.add_row(Text(arm.label, style="dim"), Text("diverged" if self._curves.get(arm.name) else ""))
                continue
            style = self._style(values)
            curve = Text(sparkline(self._curves[arm.name], self._spec.steps, history), style=style)
            numbers = [Text(_number(values[name], name), style=style if "acc" in name else "") for name in names]
            table.add_row(Text(arm.label), curve, *numbers)
        return table

    def _style(self, values: dict[str, float]) -> str:
        """Grey until the training set is memorised, yellow until the network generalises, then green."""
        onset = self._spec.onset
        if values.get("test/accuracy", 0) >= onset.test_threshold:
            return "green"
        return "yellow" if values.get("train/accuracy", 0) >= onset.train_threshold else "bright_black"

    def _plain(self, measured: Progress, rows: dict[str, dict[str, float]]) -> str:
        parts = [f"step {measured.step:,}/{measured.steps:,}", self._times_line(measured)]
        for arm, values in rows.items():
            train, test = values.get("train/accuracy", math.nan), values.get("test/accuracy", math.nan)
            parts.append(f"{arm} {train:.2f}/{test:.2f}")
        return " · ".join(parts)


def _number(value: float, name: str) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.3f}" if name.endswith("accuracy") else rounded(value)
