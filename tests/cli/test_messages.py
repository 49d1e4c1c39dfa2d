"""What people read when something is wrong, and the exit codes."""

import errno
import json
import re
import shlex
import sys
import warnings

import pytest

import tiny
from grokscape.store import RunFolder

STEPS = 12


def test_a_wrong_preset_lists_near_ones(grokscape):
    outcome = grokscape("run", "quikstart")
    assert outcome.code == 1
    assert "no preset is called 'quikstart'; did you mean quickstart?" in outcome.err
    assert "grokscape presets" in outcome.err
    assert outcome.out == ""


def test_a_preset_unlike_any_lists_all(grokscape):
    assert "there are quickstart, " in grokscape("run", "zzz").err


def test_a_filled_folder_is_refused_with_two_ways_out(grokscape, finished, study_file):
    outcome = grokscape("run", study_file(), "--out", finished)
    assert outcome.code == 1
    assert f"{finished} exists and is not empty" in outcome.err
    assert f"grokscape resume {finished}" in outcome.err
    assert "--out DIR" in outcome.err


def test_somebodys_files_are_refused_too(grokscape, tmp_path, study_file):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("…")
    outcome = grokscape("run", study_file(), "--out", tmp_path / "thesis")
    assert outcome.code == 1
    assert "exists and is not empty" in outcome.err
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


TESTBED = tiny.study()["testbed"]
ONE_ARM = tiny.study()["arms"][:1]
IMPOSSIBLE = {
    "a name that leaves runs/": ({"name": "../elsewhere"}, ["name that a folder can have", "../elsewhere"]),
    "no name": ({"name": ""}, ["name", "at least 1 character"]),
    "primary measure that is none": (
        {"verdict": {"primary": {"flatness": "kappa"}}},
        ["flatness: kappa", "of flatness there are relative_flatness"],
    ),
    "primary measure of a property that is none": ({"verdict": {"primary": {"flat": "cdnv"}}}, ["flat there are none"]),
    "one network twice": ({"init_seeds": [1], "same_split": True}, ["seed that differ", "first_seed"]),
    "train fraction 0": ({"testbed": {**TESTBED, "train_fraction": 0}}, ["train_fraction", "greater than 0"]),
    "p not prime for division": ({"testbed": {**TESTBED, "operation": "x/y", "p": 8}}, ["prime", "8"]),
    "unknown operation": ({"testbed": {**TESTBED, "operation": "x^y"}}, ["x^y", "x+y"]),
    "no seeds": ({"seeds": 0}, ["seeds", "greater than or equal to 1, got 0"]),
    "a seed that no generator takes": ({"first_seed": 2**64}, ["first_seed", "less than", f"got {2**64}"]),
    "more evaluations than there is memory": (
        {"evaluation": {"measures": ["cdnv"], "points": 10**9}}, ["points", "less than", "got 1000000000"],
    ),
    "an arm's setting": (
        {"arms": [{**ONE_ARM[0], "optimizer": {"rate": 1}}]}, ["baseline.optimizer.rate: ", "is it misspelt?"],
    ),
    "an arm's testbed": (
        {"arms": [{**ONE_ARM[0], "testbed": {"p": 1}}]}, ["baseline.testbed.p: ", "greater than or equal to 2, got 1"],
    ),
    "no steps": ({"steps": 0}, ["steps", "greater than or equal to 1"]),
    "unknown measure": ({"evaluation": {"measures": ["flatnes"]}}, ["flatnes", "relative_flatness"]),
    "unknown field": ({"sedes": 3}, ["sedes", "not permitted; is it misspelt?"]),
    "two arms of one name": ({"arms": ONE_ARM * 2}, ["different names", "baseline"]),
    "no baseline": ({"arms": [{"name": "a", "role": "control"}]}, ["exactly one arm with role 'baseline', got 0"]),
    "learning rate 0": ({"optimizer": {"kind": "adamw", "lr": 0}}, ["lr", "greater than 0"]),
    "a margin without bounds": (
        {"verdict": {"delay_ratio_margin": float("inf")}}, ["delay_ratio_margin", "finite number, got inf"],
    ),
    "infinite weights": (
        {"model": {"kind": "quadratic_mlp", "init_std": float("inf")}}, ["init_std", "finite number, got inf"],
    ),
    "an infinite level": (
        {"arms": [{**ONE_ARM[0], "interventions": [{"kind": "weight_cap", "at_most": float("inf")}]}]},
        ["at_most", "finite number, got inf"],
    ),
    "unknown optimiser": ({"optimizer": {"kind": "lion"}}, ["lion", "adamw", "sgd"]),
    "batch larger than the training set": ({"batch_size": 1000}, ["1 ≤ batch_size ≤ 29", "1000"]),
    **{
        f"a step that no schedule reaches: {name}": ({"arms": [{**ONE_ARM[0], "interventions": [at]}]}, [
            f"interventions.0.{at['kind']}.{name.split()[-1]}: ", "less than or equal to 1000000000000000000, got 1844",
        ])
        for name, at in {
            "start": {**tiny.CLAMP, "start": 2**64},
            "until": {**tiny.CLAMP, "until": 2**64},
            "ramp": {**tiny.CLAMP, "ramp": 2**64},
            "unplug's step": {"kind": "unplug", "step": 2**64},
        }.items()
    },
    "a warm-up that does not end": (
        {"optimizer": {**tiny.ADAMW, "warmup": 10**400}}, ["optimizer.adamw.warmup", "less than or equal to"],
    ),
    "more steps than there are": ({"steps": 10**400}, ["steps", "less than or equal to 1000000000000000000"]),
    **{
        f"a network of a size that nobody has: {name}": ({"model": {"kind": kind, name: size}}, [words, "got 1000"])
        for kind, name, size, words in [
            ("quadratic_mlp", "width", 10**30, "width: Input should be less than or equal to 100000000"),
            ("mlp", "widths", [8, 10**30], "widths.1: Input should be less than or equal to 100000000"),
            ("transformer", "layers", 10**6, "layers: Input should be less than or equal to 10000"),
        ]
    },
    "true for a number": ({"evaluation": {"measures": [], "refine": True}}, ["neither true nor false as refine"]),
    "false in a list of numbers": ({"init_seeds": [3, False]}, ["true nor false as init_seeds, got [3, False]"]),
    "true for an intervention's number": (
        {"arms": [{**ONE_ARM[0], "interventions": [{"kind": "weight_cap", "at_most": True}]}]},
        ["interventions.0.weight_cap.at_most: ", "number, got True"],
    ),
    "a moment that is none": (
        {"arms": [{**ONE_ARM[0], "interventions": [{**tiny.CLAMP, "relative_to": True}]}]},
        ["interventions.0.clamp.relative_to: expected a number, got True"],
    ),
    "clamp of nothing": (
        {"arms": [{**ONE_ARM[0], "interventions": [{"kind": "clamp", "measure": "cdnv"}]}]},
        ["at_least", "at_most"],
    ),
}


@pytest.mark.parametrize(("changes", "words"), IMPOSSIBLE.values(), ids=list(IMPOSSIBLE))
def test_impossible_settings_say_what_is_allowed(grokscape, tmp_path, study_file, changes, words):
    outcome = grokscape("run", study_file(**changes), "--out", tmp_path / "run")
    assert outcome.code == 1
    assert all(word in outcome.err for word in words), outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "value", "code", "words"),
    [
        ("--seeds", "0", 1, ["seeds", "greater than or equal to 1"]),
        ("--seeds", "many", 2, ["many"]),
        ("--device", "gpu0", 1, ["expected a device of this machine (cpu", "'gpu0'"]),
        ("--device", "meta", 1, ["expected a device of this machine (cpu", "'meta'"]),
        ("--scale", "small", 1, ["study.json has one scale only; leave `--scale small` out"]),
        ("--device", "cuda:99", 1, ["expected a device of this machine (cpu", "'cuda:99'"]),
        ("--launcher", "cloud", 2, ["cloud", "inline", "processes", "ray", "slurm"]),
        ("--workers", "0", 1, ["workers of 1 or more, got 0"]),
        ("--checkpoint-every", "0", 1, ["--checkpoint-every above 0 seconds, got 0"]),
        ("--tracker", "excel", 2, ["excel", "tensorboard"]),
    ],
)
def test_impossible_options_say_what_is_allowed(grokscape, tmp_path, study_file, reported, option, value, code, words):
    outcomes = [grokscape("run", study_file(), "--out", tmp_path / "run", option, value)]
    assert not (tmp_path / "run").exists()
    if option not in ("--seeds", "--scale"):  # even where nothing is left to do
        outcomes.append(grokscape("resume", reported, option, value))
    for outcome in outcomes:
        assert outcome.code == code
        text = " ".join((outcome.out + outcome.err).replace("│", " ").split())
        assert all(word in text for word in words), text


def test_a_missing_or_broken_specification_is_named(grokscape, tmp_path):
    missing = grokscape("run", tmp_path / "none.json")
    assert missing.code == 1
    assert f"there is no file {tmp_path / 'none.json'}" in missing.err
    (tmp_path / "folder.json").mkdir()
    assert f"there is no file {tmp_path / 'folder.json'}" in grokscape("run", tmp_path / "folder.json").err
    (tmp_path / "half.json").write_text('{"name": "tiny", ')
    broken = grokscape("run", tmp_path / "half.json")
    assert broken.code == 1
    assert "half.json is not a study's specification" in broken.err
    assert "JSON" in broken.err


@pytest.mark.parametrize("command", ["resume", "show", "analyze", "report"])
def test_no_run_folder_no_result(grokscape, tmp_path, command):
    outcome = grokscape(command, tmp_path)
    assert outcome.code == 1
    assert "spec.json does not exist" in outcome.err
    assert "`grokscape run` makes one" in outcome.err
    (tmp_path / "spec.json").touch()
    assert f"is {tmp_path / 'spec.json'} a run folder?" in grokscape(command, tmp_path / "spec.json").err


@pytest.mark.parametrize("text", ['{"name": "tiny",', "[1, 2]", "\x00\xff"])
@pytest.mark.parametrize("command", ["resume", "show", "report"])
def test_a_damaged_specification_of_a_run_is_named(grokscape, stopped, command, text):
    (stopped / "spec.json").write_text(text)
    outcome = grokscape(command, stopped)
    assert outcome.code == 1
    assert "spec.json" in outcome.err
    assert "start the run anew" in outcome.err


def test_a_file_that_is_no_json_is_told_how_specifications_are_given(grokscape):
    outcome = grokscape("run", "mine.toml")
    assert outcome.code == 1
    assert "A specification of your own is a path that ends in .json" in outcome.err


def test_stopping_before_there_is_a_folder_says_so(grokscape, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("grokscape.workflow.specification", stop)
    outcome = grokscape("run", "quickstart")
    assert (outcome.code, outcome.err) == (130, "grokscape: stopped\n")


def test_a_damaged_part_of_a_finished_run_is_made_anew_as_the_message_says(grokscape, finished):
    folder = RunFolder.open(finished)
    rows, part = folder.trajectory(), folder.parts()[0]
    part.write_bytes(part.read_bytes()[:100])
    outcome = grokscape("show", finished)
    assert f"remove it and the parts after it, then go on with: grokscape resume {finished}" in outcome.err
    part.unlink()
    findings = folder.findings
    assert f"go on with: grokscape resume {finished}" in grokscape("analyze", finished).err
    assert folder.findings == findings
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert grokscape("resume", finished, "--no-report").code == 0
    assert folder.trajectory().equals(rows)


def test_a_place_where_no_folder_can_be_is_named(grokscape, tmp_path, study_file):
    for out in (study_file(), study_file() / "run"):
        outcome = grokscape("run", study_file(), "--out", out)
        assert outcome.code == 1
        assert f"no run folder can be made at {out} (Not a directory)" in outcome.err
        assert "--out DIR" in outcome.err


def test_a_full_disk_says_how_to_go_on(grokscape, tmp_path, study_file, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("grokscape.training.run.save_checkpoint", full)
    out = tmp_path / "run"
    outcome = grokscape("run", study_file(steps=STEPS), "--out", out, "--no-report", "--quiet")
    assert outcome.code == 1
    assert "No space left on device" in outcome.err
    assert f"go on with: grokscape resume {out}" in outcome.err
    assert RunFolder.open(out).status["state"] == "failed"


def test_networks_that_have_no_loss_to_begin_with_are_refused(grokscape, tmp_path, study_file):
    study = study_file(model={"kind": "mlp", "widths": [8, 8], "init_scale": 1e30})
    outcome = grokscape("run", study, "--out", tmp_path / "run", "--quiet")
    assert outcome.code == 1
    assert "expected a finite training loss before the first step" in outcome.err
    assert "initial weights smaller" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_specification_that_lost_an_entry_is_named(grokscape, stopped):
    spec = json.loads((stopped / "spec.json").read_text())
    del spec["testbed"]
    (stopped / "spec.json").write_text(json.dumps(spec))
    outcome = grokscape("resume", stopped)
    assert outcome.code == 1
    assert "spec.json is not a study's specification: testbed: Field required" in outcome.err


def test_what_to_type_is_what_a_shell_takes(grokscape, tmp_path):
    folder = RunFolder.create(tmp_path / "my runs" / "it's", tiny.spec().model_dump(mode="json"))
    said = grokscape("show", folder.path).out
    command = next(line for line in said.splitlines() if "Go on with: " in line).partition("Go on with: ")[2]
    assert shlex.split(command) == ["grokscape", "resume", str(folder.path)]


def test_nothing_measured_yet_says_how_to_go_on(grokscape, tmp_path):
    folder = RunFolder.create(tmp_path / "run", tiny.spec().model_dump(mode="json"))
    outcome = grokscape("show", folder.path)
    assert outcome.code == 0
    assert outcome.out.count(f"Go on with: grokscape resume {folder.path}") == 1
    assert "Nothing was measured yet." in outcome.out


def test_a_damaged_checkpoint_is_mentioned_and_the_run_ends_well(grokscape, stopped):
    path = next((stopped / "checkpoints").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        outcome = grokscape("resume", stopped, "--no-report")
    assert outcome.code == 0
    assert "is damaged" in outcome.err
    assert "going on from an earlier moment" in outcome.err
    assert RunFolder.open(stopped).status["state"] == "finished"


def test_bugs_come_with_where_they_happened(grokscape, finished, monkeypatch):

    def broken(folder, console):
        raise KeyError("a bug")

    monkeypatch.setattr("grokscape.terminal.show", broken)
    outcome = grokscape("show", finished)
    assert outcome.code == 1
    assert "Traceback" in outcome.err


@pytest.mark.parametrize("error", [
    MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 112 bytes"),
])
def test_a_study_too_large_for_memory_says_what_to_make_smaller(grokscape, finished, monkeypatch, error):
    def full(folder, console):
        raise error

    monkeypatch.setattr("grokscape.terminal.show", full)
    outcome = grokscape("show", finished)
    assert outcome.code == 1
    assert outcome.err.startswith(f"grokscape: {str(error) or 'MemoryError'}\nMemory is full: take fewer --seeds")
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(("package", "changes"), [
    ("transformers", {"testbed": {"kind": "digits", "inputs": "image"}, "model": {"kind": "vit", "patch": 4}}),
    ("datasets", {"testbed": {"kind": "images", "source": "uoft-cs/cifar10"}, "model": {"kind": "small_cnn"}}),
])
def test_a_package_that_is_not_there_is_named_with_how_to_install_it(grokscape, tmp_path, study_file, monkeypatch,
                                                                     package, changes):
    monkeypatch.setitem(sys.modules, package, None)
    outcome = grokscape("run", study_file(**changes), "--out", tmp_path / "run")
    assert outcome.code == 1
    assert re.fullmatch(rf"grokscape: .* need.*{package}.*: pip install 'grokscape\[hf\]'\n", outcome.err), outcome.err
    assert not (tmp_path / "run").exists()


def test_debugging_shows_where_a_message_came_from(grokscape, monkeypatch):
    monkeypatch.setenv("GROKSCAPE_DEBUG", "1")
    outcome = grokscape("run", "quikstart")
    assert outcome.code == 1
    assert "Traceback" in outcome.err


def test_reuse_goes_on_or_says_where_things_are_or_refuses_another_study(grokscape, finished, stopped, study_file):
    study = study_file(steps=STEPS)
    assert grokscape("run", study, "--out", stopped, "--reuse", "--no-report", "--quiet").code == 0
    assert RunFolder.open(stopped).status["state"] == "finished"
    before = RunFolder.open(finished).status
    outcome = grokscape("run", study, "--out", finished, "--reuse", "--no-report")
    assert outcome.code == 0
    assert f"run folder: {finished}" in outcome.out
    assert RunFolder.open(finished).status == before
    outcome = grokscape("run", study, "--out", finished, "--reuse", "--seeds", 3)
    assert outcome.code == 1
    assert f"{finished} holds another study than this one" in outcome.err
