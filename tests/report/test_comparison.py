"""Several runs in one page."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from grokscape.analysis import analyze
from grokscape.report import write_comparison
from grokscape.report.comparison import together, verdict_matrix
from grokscape.report.run import read_run
from grokscape.store import RunFolder


@pytest.fixture(scope="module")
def other(make_run: Any, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A second testbed, unfinished, with two arms of the first and one of its own."""
    from_first = [
        {
            "name": "loss",
            "title": "Loss held ≥ 0.02",
            "role": "control",
            "interventions": [{"kind": "clamp", "measure": "loss", "at_least": 0.02}],
        },
        {"name": "baseline", "title": "Baseline", "role": "baseline"},
        {
            "name": "cdnv16",
            "title": "CDNV held ≥ 1.6",
            "role": "manipulation",
            "interventions": [{"kind": "clamp", "measure": "cdnv", "at_least": 1.6}],
        },
    ]
    folder = make_run(
        tmp_path_factory.mktemp("other") / "run",
        arms=from_first,
        seeds=5,
        every=25,
        name="other",
        state="interrupted",
        reached=1400,
    )
    spec = {**folder.spec, "title": "A second testbed <b>", "testbed": {"kind": "modular", "p": 59}}
    (folder.path / "spec.json").write_text(json.dumps(spec))
    analyze(folder)
    return folder


@pytest.fixture(scope="module")
def compared(finished: RunFolder, other: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page about both."""
    return write_comparison([finished, other], tmp_path_factory.mktemp("compared"))


def test_arms_of_one_name_look_alike(finished: RunFolder, other: RunFolder) -> None:
    first, second = together([read_run(finished), read_run(other)])
    assert {arm.name for arm in second.arms} == {"baseline", "cdnv16", "loss"}
    for arm in second.arms:
        assert arm == first.arm_by_name[arm.name]


def test_the_page_holds_every_run_and_every_verdict(finished: RunFolder, other: RunFolder, compared: Path) -> None:
    html = compared.read_text()
    assert compared.name == "comparison.html"
    assert "A second testbed &lt;b&gt;" in html
    assert "This run was interrupted: it reached step 1400 of 1500." in html
    runs = [read_run(finished), read_run(other)]
    rows = verdict_matrix(runs, [])["rows"]
    assert [bool(cell["verdict"]) for cell in rows[0]["cells"]] == [True, True]
    assert [bool(cell["verdict"]) for cell in rows[1]["cells"]] == [False, True]
    for target in set(re.findall(r'href="#([^"]+)"', html)):
        assert f'id="{target}"' in html, target
    assert len(html.encode()) < 8_000_000


def test_the_same_runs_give_the_same_bytes(finished: RunFolder, other: RunFolder, compared: Path) -> None:
    again = write_comparison([finished, other], compared.with_name("again.html"))
    assert again.read_bytes() == compared.read_bytes()


def test_one_run_is_nothing_to_compare(finished: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least two run folders to compare, got 1"):
        write_comparison([finished], tmp_path)


def test_runs_that_share_a_seed_are_shown_but_not_pooled(finished: RunFolder, tmp_path: Path) -> None:
    html = write_comparison([finished, finished], tmp_path).read_text()
    assert "The runs cannot be pooled" in html


def test_runs_of_one_title_are_told_apart_by_their_folders(make_run: Any, tmp_path: Path) -> None:
    places = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "longer"]
    runs = together([read_run(make_run(place, seeds=2, every=50)) for place in places])
    assert [run.title for run in runs] == [str(places[0]), str(places[1]), "longer"]
    html = write_comparison(places, tmp_path).read_text()
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
