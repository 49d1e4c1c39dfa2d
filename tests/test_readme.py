"""The README's code runs as printed, and its commands exist."""

import re
from pathlib import Path

import pytest

from grokscape.cli import app
from grokscape.models import QuadraticMLP
from grokscape.studies import Arm, StudySpec
from grokscape.testbeds import ModularArithmetic
from grokscape.training import AdamW

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TINY = StudySpec(
    name="tiny",
    testbed=ModularArithmetic(operation="x+y", p=7, train_fraction=0.6),
    model=QuadraticMLP(width=16),
    optimizer=AdamW(lr=1e-2),
    arms=(Arm(name="baseline", role="baseline"),),
    seeds=2,
    steps=40,
)


@pytest.mark.filterwarnings("ignore::UserWarning")  # forty steps of two seeds leave the analysis little to say
def test_python_blocks_run_as_printed_with_a_smaller_study_in_place_of_the_demo(tmp_path):
    assert len(BLOCKS) == 3
    code = "\n".join(BLOCKS)
    call = 'gs.run("quickstart", out="runs/mine", seeds=8)'
    assert call in code
    names = {"TINY": TINY}
    exec(code.replace(call, f"gs.run(TINY, out={str(tmp_path / 'run')!r}, seeds=2)"), names)
    assert names["m"]["relative_flatness"] > 0
    assert names["study"].trajectory["step"].max() == 40
    assert names["study"].findings
    assert names["study"].report.exists()


def test_every_command_of_the_readme_exists():
    commands = set(re.findall(r"^grokscape (\w+)", README, re.MULTILINE))
    assert {"presets", "run", "resume", "show"} <= commands
    for command in commands:
        assert command in app, command


def test_every_page_that_the_readme_links_to_is_there():
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
