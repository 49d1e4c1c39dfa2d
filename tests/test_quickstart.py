"""What the demo shows, on its own testbed with fewer seeds. A minute, so marked slow."""

import pytest

from grokscape.analysis import summary_table
from grokscape.store import RunFolder
from grokscape.studies import StudySpec, preset, train


@pytest.mark.slow
def test_flatness_held_back_blocks_generalisation_and_collapse_held_back_does_not(tmp_path):
    spec = StudySpec.model_validate({**preset("quickstart").model_dump(), "seeds": 3})
    folder = RunFolder.create(tmp_path / "run", spec.model_dump(mode="json"))
    train(spec, folder)
    frame = folder.trajectory()
    arms = {row["arm"]: row for row in summary_table(frame, folder.spec, folder.columns()).iter_rows(named=True)}
    final = frame.filter(frame["step"] == spec.steps)
    baseline = final.filter(final["arm"] == "baseline")
    assert arms["baseline"]["memorised"] == arms["baseline"]["generalised"] == 3
    assert arms["baseline"]["memorised_step"] <= 100
    assert (baseline["test/accuracy"] >= 0.99).all()
    strong, weak = arms["flatness-held-30"], arms["collapse-held-1.2"]
    assert strong["memorised"] == 3
    assert strong["generalised"] == 0
    assert strong["final_accuracy"] < 0.9
    assert weak["memorised"] == weak["generalised"] == 3
    assert weak["final_accuracy"] > 0.98
    assert arms["flatness-promoted"]["delay"] < arms["baseline"]["delay"]
    assert arms["loss-held"]["generalised"] == 3
    assert arms["loss-held"]["delay"] < arms["baseline"]["delay"]
