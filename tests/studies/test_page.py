"""The page on studies: its example runs as printed, only shorter, and its commands exist."""

import re
import sys
import types
from pathlib import Path

import pytest

from grokscape.cli import app

PAGE = (Path(__file__).parents[2] / "docs" / "studies.md").read_text()


@pytest.mark.filterwarnings("ignore::UserWarning")  # two seeds leave the analysis little to say
def test_the_example_runs_and_can_be_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, again = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    example = types.ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", example)
    names = vars(example)
    exec(first.replace("seeds=8", "seeds=2").replace("steps=400", "steps=20"), names)
    assert names["study"].trajectory["arm"].n_unique() == 6
    assert "Study 'wine' in runs/wine: finished, 12 replicas" in repr(names["study"])
    exec(again, names)
    assert names["study"].report.exists()
    assert names["step"] == 20
    assert names["gs"].resume("runs/wine", testbed=names["wine"], report=False).spec.steps == 20


def test_every_command_and_option_of_the_page_exists(capsys):
    for command, rest in re.findall(r"^grokscape (\w+)(.*)$", PAGE, re.MULTILINE):
        app([command, "--help"], exit_on_error=False, result_action="return_value")
        options = re.findall(r"--[a-z]+", rest.partition("#")[0])
        printed = capsys.readouterr().out
        assert all(option in printed for option in options), (command, options)
