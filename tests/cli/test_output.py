"""What commands print when all is well."""

import io
import json
import re
import shutil
import subprocess
import sys

import pytest

import synthetic
import tiny
from grokscape.analysis import analyze
from grokscape.store import RunFolder
from grokscape.studies.shards import shards_of


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    """A made-up, analysed run."""
    study = synthetic.study(
        seeds=6,
        arms=(
            synthetic.ArmTruth("baseline", role="baseline"),
            synthetic.ArmTruth(
                "flatness-held-back",
                interventions=(synthetic.clamp("relative_flatness", at_least=30.0),),
                floor={"relative_flatness": 30.0},
                never=True,
                final_accuracy=0.6,
            ),
        ),
    )
    folder = synthetic.write(tmp_path_factory.mktemp("made-up") / "run", study)
    analyze(folder)
    return folder


@pytest.fixture
def run_folder(analysed, tmp_path):
    """A copy of it."""
    shutil.copytree(analysed.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


@pytest.mark.parametrize("width", [80, 100])
def test_show_is_a_table_that_fits(grokscape, run_folder, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = grokscape("show", run_folder.path).out.splitlines()
    table = lines[: next(i for i, line in enumerate(lines) if line.startswith("run folder:"))]
    assert all(len(line) <= width for line in table)
    header = next(line for line in table if "memorised" in line)
    for title in ("memorised", "generalised", "delay", "test accuracy", "held"):
        assert title in header
    baseline = next(line for line in table if line.startswith("Baseline"))
    assert baseline.count("6/6 @ ") == 2
    held = next(line for line in table if line.startswith("Flatness held"))
    assert "0/6" in held
    assert re.search(r"κ \d\d$", held)
    assert "0.6" in held


@pytest.mark.parametrize("width", [40, 56, 60, 69])
def test_a_narrow_terminal_loses_no_name_and_cuts_no_number(grokscape, run_folder, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    out = grokscape("show", run_folder.path).out
    lines = out[: min(out.find(glyph) % len(out) for glyph in "◐●○")].splitlines()[3:]
    assert all(len(line) <= width for line in lines)
    assert "…" not in "".join(lines)
    assert any(re.match(r"Baseline +6/6 @ 530 +1\.00", line) for line in lines)
    assert any(re.match(r"Flatness.* 0/6 +0\.59", line) for line in lines)
    assert any(re.search(r"κ \d\d\b", line) for line in lines) == (width >= 56)


def test_a_long_state_of_an_arm_is_not_cut(grokscape, study_file, tmp_path, monkeypatch):
    assert grokscape("run", study_file(steps=8), "--out", tmp_path / "run", "--no-report", "--quiet").code == 0
    monkeypatch.setenv("COLUMNS", "80")
    assert "memorisation" in grokscape("show", tmp_path / "run").out.split("◐")[0]


def test_show_ends_with_verdicts_and_files(grokscape, run_folder):
    out = grokscape("show", run_folder.path).out
    assert "Is flatness necessary?" in out
    for name in ("run folder:", "trajectory:", "findings:", "report:"):
        assert name in out
    assert f"not yet; grokscape report {run_folder.path}" in out


def test_a_run_ends_with_what_show_shows(grokscape, study_file, tmp_path):
    ended = grokscape("run", study_file(steps=8), "--out", tmp_path / "run", "--no-report")
    assert "Is flatness necessary?" in ended.out
    assert ended.out.endswith(grokscape("show", tmp_path / "run").out)


def test_show_says_that_a_run_was_killed(grokscape, run_folder):
    run_folder.write_status(**{**run_folder.status, "state": "running"})
    out = grokscape("show", run_folder.path).out
    assert "killed at step" in out
    assert f"Go on with: grokscape resume {run_folder.path}" in out


HOLDER = """
import fcntl, sys
locks = [open(path, "a") for path in sys.argv[1:]]
for lock in locks:
    fcntl.lockf(lock, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("held", "state", "words"), [
    (("", "shards/seeds-00000-00001"), "running", ""),
    (("",), "waiting", "It waits for its workers, none of which trains at this moment."),
    (("shards/seeds-00000-00001",), "abandoned", "but the command that started them is gone. Take it up again with: "),
    ((), "killed", "It is not finished. Go on with: "),
])
def test_show_says_who_is_at_work(grokscape, tmp_path, held, state, words):
    spec, pipe = tiny.spec(), subprocess.PIPE
    folder = RunFolder.create(tmp_path / "run", spec.model_dump(mode="json"))
    shards_of(folder, spec, 2)
    for lock in list(folder.path.rglob(".lock")):  # as of a run of an earlier version
        lock.unlink()
    folder.write_status(state="running", step=0, steps=40)
    locks = [folder.path / place / ".lock" for place in held]
    with subprocess.Popen([sys.executable, "-SE", "-c", HOLDER, *locks], stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout.readline()
        shown = grokscape("show", folder.path).out
        report = grokscape("report", folder.path).err
        assert json.loads(grokscape("show", folder.path, "--json").out)["state"] == state
        holder.stdin.close()
    assert f"tiny · {state} at step 0 of 40" in shown
    assert words in shown
    assert shown.endswith("Nothing was measured yet.\n")
    assert (f"grokscape resume {folder.path}" in shown) == words.endswith(": ")
    assert (f"go on with: grokscape resume {folder.path}" in report) == ("" not in held)
    assert len(list(folder.path.rglob(".lock"))) == len(held), "whoever looks leaves nothing behind"


def test_who_looks_at_a_run_is_not_taken_for_one_who_trains(tmp_path):
    folder = RunFolder.create(tmp_path / "run", tiny.spec().model_dump(mode="json"))
    looker = HOLDER.replace('"a"', '"r"').replace("LOCK_EX", "LOCK_SH")
    lock, pipe = folder.path / ".lock", subprocess.PIPE
    lock.touch()
    with subprocess.Popen([sys.executable, "-SE", "-c", looker, lock], stdin=pipe, stdout=pipe) as other:
        assert other.stdout.readline()
        assert not folder.in_use
        other.stdin.close()


def test_show_says_that_replicas_diverged(grokscape, run_folder):
    assert "diverged" not in grokscape("show", run_folder.path).out
    replicas = [{"replica": i, "diverged_at": 40 if i < 3 else None} for i in range(12)]
    run_folder.write_status(**{**run_folder.status, "replicas": replicas})
    assert "3 of 12 replicas diverged, which counts as not generalising" in grokscape("show", run_folder.path).out


@pytest.mark.parametrize("arms", [["baseline"], ["baseline", "held"]])
def test_one_of_a_kind_is_told_in_the_singular(grokscape, study_file, tmp_path, arms):
    said = grokscape("run", study_file(arms=arms, seeds=1, steps=1, onset={"hold": 1}), "--out", tmp_path / "run")
    page = re.sub(r"<script.*?</script>|<[^>]+>", "", (tmp_path / "run" / "report.html").read_text(), flags=re.DOTALL)
    folder = RunFolder.open(tmp_path / "run")
    statements = [str(finding[name]) for finding in folder.findings for name in ("statement", "rule")]
    text = "\n".join([said.out, said.err, grokscape("show", folder.path).out, page, *statements])
    assert "1 seed" in text
    assert "1 step " in text
    assert re.findall(r"(?<![\d.,–])1 (?:arm|seed|step|replica|run|evaluation|measure|hand)s\b.*", text) == []


def test_show_as_json(grokscape, run_folder):
    shown = json.loads(grokscape("show", run_folder.path, "--json").out)
    assert shown["folder"] == str(run_folder.path)
    assert shown["status"] == run_folder.status
    assert shown["findings"] == run_folder.findings


def test_analyze_prints_verdicts(grokscape, run_folder):
    assert "Is flatness necessary?" in grokscape("analyze", run_folder.path).out
    assert json.loads(grokscape("analyze", run_folder.path, "--json").out) == run_folder.findings


def test_run_ends_in_a_report_and_says_where(grokscape, study_file, tmp_path):
    outcome = grokscape("run", study_file(steps=20), "--out", tmp_path / "run")
    assert outcome.code == 0
    assert f"report:     {tmp_path / 'run' / 'report.html'}" in outcome.out
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    lines = outcome.err.splitlines()
    assert lines[0].startswith("step 0/20 · ")
    assert lines[-1].startswith("step 20/20 · ")
    assert "replica-steps/s" in lines[-1]
    assert "baseline" in lines[-1]
    again = grokscape("resume", tmp_path / "run")
    assert again.code == 0
    assert again.err == ""
    assert str(tmp_path / "run" / "report.html") in again.out


def test_quiet_and_json(grokscape, study_file, tmp_path):
    quiet = grokscape("run", study_file(steps=8), "--out", tmp_path / "quiet", "--no-report", "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    outcome = grokscape("run", study_file(steps=8), "--out", tmp_path / "json", "--no-report", "--json")
    result = json.loads(outcome.out)
    assert outcome.err == ""
    assert result["folder"] == str(tmp_path / "json")
    assert result["state"] == "finished"
    assert result["report"] is None
    assert result["findings"]


def test_presets_say_what_they_cost_and_how_to_run_them(grokscape):
    out = grokscape("presets").out
    assert "grokscape run quickstart" in out
    assert "8 arms × 8 seeds, 1,500 steps" in out
    listed = json.loads(grokscape("presets", "--json").out)
    assert {"quickstart", "grok-transformer"} <= {row["name"] for row in listed}
    assert listed[0]["replicas"] == listed[0]["seeds"] * len(listed[0]["arms"])


@pytest.mark.parametrize("command", [(), ("run",), ("resume",), ("show",), ("report",), ("analyze",), ("presets",)])
def test_help_teaches(grokscape, command):
    outcome = grokscape(*command, "--help")
    assert outcome.code == 0
    assert "Usage: grokscape" in outcome.out
    if command == ("run",):
        assert "grokscape run quickstart --seeds 16" in " ".join(outcome.out.split())
    if not command:
        assert "130" in outcome.out
        assert "grokscape run quickstart" in outcome.out


def test_a_mistyped_command_is_answered_with_the_near_one(grokscape):
    outcome = grokscape("rum", "quickstart")
    assert outcome.code == 2
    assert 'Did you mean "run"' in outcome.out + outcome.err


@pytest.mark.parametrize(("encoding", "command"), [("latin-1", "show"), ("ascii", "run")])
def test_a_terminal_without_greek_shows_something_else_and_nothing_breaks(run_folder, process, study_file, encoding,
                                                                          command):
    environment = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    told = {"show": [run_folder.path], "run": [study_file(steps=8), "--out", run_folder.path / "x"]}
    child = process(command, *told[command], environment=environment, encoding=encoding)
    output, errors = child.communicate(timeout=600)
    assert child.returncode == 0, errors
    assert "run folder:" in output


def test_a_stream_that_is_no_terminal_is_written_to_as_it_is(grokscape, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert grokscape("presets", "--json").code == 0
    assert "quickstart" in [study["name"] for study in json.loads(sys.stdout.getvalue())]
