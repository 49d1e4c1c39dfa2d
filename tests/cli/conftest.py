"""The command line, called in this process or as a process of its own."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest

import tiny
from grokscape import cli
from grokscape.store import RunFolder
from grokscape.studies import train
from grokscape.training import Interrupted
from grokscape.workflow import run

STEPS = 12
SOURCES = str(Path(cli.__file__).parents[1])


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture
def grokscape(monkeypatch, capsys):
    """Call `grokscape ARGUMENTS` in this process, at 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("GROKSCAPE_DEBUG", raising=False)
    monkeypatch.setattr(cli.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["grokscape", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def process():
    """Start `grokscape ARGUMENTS` as a process of its own."""
    started = []

    def start(*arguments, environment=(), **options):
        ours = {"PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
        environment = {**os.environ, **ours, **dict(environment)}
        command = [sys.executable, "-m", "grokscape", *map(str, arguments)]
        pipe = subprocess.PIPE
        child = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, **options)
        started.append(child)
        return child

    yield start
    for child in started:
        if child.poll() is None:
            child.kill()
        child.communicate()


@pytest.fixture
def study_file(tmp_path):
    """Write a tiny study's specification, with changes, and give its path."""

    def write(file="study.json", /, **changes):
        path = tmp_path / file
        path.write_text(json.dumps(tiny.study(**changes)))
        return path

    return write


@pytest.fixture
def finished(tmp_path, grokscape, study_file):
    """A finished run without a report."""
    folder = tmp_path / "finished"
    assert grokscape("run", study_file(steps=STEPS), "--out", folder, "--no-report", "--quiet").code == 0
    return folder


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A finished run with its report."""
    return run(tiny.spec(steps=STEPS), tmp_path_factory.mktemp("reported") / "run").path


@pytest.fixture
def stopped(tmp_path):
    """A run that was stopped before its sixth step."""
    spec = tiny.spec(steps=STEPS)
    folder = RunFolder.create(tmp_path / "stopped", spec.model_dump(mode="json"))
    count = iter(range(100))
    with pytest.raises(Interrupted):
        train(spec, folder, stop=lambda: next(count) == 5)
    return folder.path
