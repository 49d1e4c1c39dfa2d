"""The live view, and the plain lines where there is no terminal."""

import errno
import io
import math

import pytest
from rich.console import Console

import tiny
from grokscape.plural import duration
from grokscape.studies import preset
from grokscape.studies.display import Display
from grokscape.terminal import sparkline
from grokscape.training import Progress

SPEC = preset("quickstart")
ARMS = tuple(arm.name for arm in SPEC.arms for _ in range(3))


def measured(step, *, seconds=None, arms=ARMS, train=1.0, test=0.25, **columns):
    """A measurement in which the three seeds of an arm stand at test − 0.1, test and NaN: median test − 0.05."""
    values = {"train/accuracy": [train] * len(arms), "test/accuracy": [test - 0.1, test, math.nan] * (len(arms) // 3)}
    values |= {name: [value] * len(arms) for name, value in columns.items()}
    return Progress(step, SPEC.steps, step / 10 if seconds is None else seconds, 1234.5, arms, values)


def shown(width, *measurements):
    """Lines of the view after these measurements."""
    console = Console(file=io.StringIO(), width=width, height=40, force_terminal=True, record=True, color_system=None)
    with Display(SPEC, "live", console) as display:
        for each in measurements:
            display(each)
    assert SPEC.arms[0].label in console.file.getvalue()
    console.export_text(clear=True)
    console.print(display.view(measurements[-1], measurements[-1].medians()))
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [40, 50, 60, 80, 100, 140])
def test_the_view_fits_and_has_a_line_for_each_arm(width):
    lines = shown(width, measured(0), measured(750, **{"train/relative_flatness": 12.34, "train/cdnv": 0.5}))
    assert all(len(line) <= width for line in lines)
    text = "\n".join(lines)
    assert "50 % · step 750 of 1,500" in text
    assert "1 min 15 s so far, 1 min 15 s left · 1,234 replica-steps/s" in " ".join(text.split())
    baseline = next(line for line in lines if line.startswith("Baseline"))
    assert "0.200" in baseline
    for arm in SPEC.arms:
        assert any(line.startswith(arm.label[:12]) for line in lines), arm.label
    assert ("12.3" in baseline) == (width >= 64)


def test_columns_that_are_not_measured_are_left_out():
    assert "cdnv" not in "\n".join(shown(100, measured(10)))
    assert "cdnv" in "\n".join(shown(100, measured(10, **{"train/cdnv": 1.0})))


class Closed(io.StringIO):
    """A pipe that nobody reads, or a terminal that is gone."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def flush(self):
        raise self.error


@pytest.mark.parametrize("stream", ["live", "plain"])
@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "Broken pipe"), OSError(errno.EIO, "no terminal")])
def test_a_run_that_nobody_watches_goes_on(stream, error, monkeypatch):
    monkeypatch.setattr("rich.console.os.dup2", lambda *numbers: None)
    console = Console(file=Closed(error), force_terminal=stream == "live")
    with Display(SPEC, stream, console) as display:
        for step in (0, 750, 1500):
            display(measured(step))


def test_an_arm_whose_replicas_all_diverged_says_so():
    lines = shown(100, measured(5), measured(10, arms=ARMS[:-3]))
    assert "diverged" in next(line for line in reversed(lines) if line.startswith(SPEC.arms[-1].label))


def test_time_left_follows_the_present_pace():
    slow_start = [measured(step, seconds=10 * step) for step in (1, 2, 3)]
    then = [measured(step, seconds=30 + step / 10) for step in (100, 200, 400, 500)]
    text = "\n".join(shown(100, *slow_start, *then))
    assert "1 min 40 s left" in text


def test_plain_lines_are_few_and_say_all(tmp_path):
    file = io.StringIO()
    with Display(SPEC, None, Console(file=file, width=80)) as display:
        for step in SPEC.evaluation.grid(SPEC.steps):
            display(measured(step))
    lines = file.getvalue().splitlines()
    assert 5 <= len(lines) <= 14
    assert lines[0].startswith("step 0/1,500 · ")
    assert lines[-1].startswith("step 1,500/1,500 · 2 min 30 s so far, 0 s left · 1,234 replica-steps/s · ")
    assert "baseline 1.00/0.20" in lines[-1]
    assert "\x1b" not in file.getvalue()


def test_quiet_is_quiet():
    file = io.StringIO()
    with Display(SPEC, "quiet", Console(file=file, force_terminal=True)) as display:
        display(measured(10))
    assert file.getvalue() == ""


def test_a_title_with_markup_is_text():
    spec = tiny.spec([{**tiny.arm("baseline"), "title": "[red]<script>[/red]"}])
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with Display(spec, "live", console) as display:
        display(Progress(1, 40, 0.1, 1.0, ("baseline",), {"train/accuracy": [0.5], "test/accuracy": [0.5]}))
    assert "[red]<script>[/red]" in console.file.getvalue()


@pytest.mark.parametrize(
    ("curve", "drawn"),
    [
        ({}, "    "),
        ({0: 0.0}, "▁   "),
        ({0: 0.0, 99: 1.0}, "▁▁▁█"),
        ({0: 0.0, 9: 0.5, 99: 1.0}, "▁▁▅█"),
        ({0: -1.0, 99: 7.0}, "▁▁▁█"),
        ({0: math.nan, 99: 0.0}, "   ▁"),
    ],
)
def test_sparklines(curve, drawn):
    assert sparkline(curve, steps=99, width=4) == drawn


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (75, "1 min 15 s"), (3725, "1 h 02 min"), (math.inf, "?")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
