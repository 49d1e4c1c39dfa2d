"""How a study is cut into shards of seeds, what is missing or was changed, and what they record put together again."""

import itertools
import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import tiny
from grokscape.store import RunFolder, RunFolderError
from grokscape.studies import StudySpec, plan
from grokscape.studies.launchers import launch
from grokscape.studies.shards import collect, shard_spec, shards_of, trained
from sharded import SPEC, Scripted, new_folder, stopped_shard


def test_a_shard_is_the_study_of_its_seeds_alone():
    for same_split, init_seeds in itertools.product((False, True), ((), (1, 42, 15213))):
        changes = {"same_split": same_split, "init_seeds": init_seeds}
        spec = tiny.spec(seeds=5, first_seed=7, first_split_seed=70, **changes)
        shard = shard_spec(spec, 2, 4)
        assert [shard.pair(k) for k in range(shard.seeds)] == [spec.pair(k) for k in (2, 3)]
        assert StudySpec.model_validate(shard.model_dump()) == shard
        assert [r.seed for r in plan(shard).replicas] == [0, 1, 0, 1]


@pytest.mark.parametrize(("count", "sizes"), [(1, [5]), (2, [2, 3]), (3, [1, 2, 2]), (9, [1] * 5)])
def test_shards_cover_all_seeds_once(tmp_path, count, sizes):
    folder = new_folder(tmp_path / "run")
    shards = shards_of(folder, SPEC, count)
    assert [shard.stop - shard.first for shard in shards] == sizes
    assert [k for shard in shards for k in range(shard.first, shard.stop)] == list(range(5))
    assert shards_of(folder, SPEC, 4) == shards, "once cut, it stays cut"


def test_what_a_worker_writes_anew_is_collected_whatever_its_clock_says(tmp_path):
    folder = new_folder(tmp_path / "run")
    shard = stopped_shard(folder)
    collect(folder, SPEC, [shard])
    (part,), (collected,) = shard.folder.parts(), folder.parts()
    written = collected.stat().st_mtime_ns
    collect(folder, SPEC, [shard])
    assert collected.stat().st_mtime_ns == written
    shard.folder.write_part(part.stem, pq.read_table(part).slice(0, 15))
    os.utime(part, ns=(0, written - 3600 * 10**9))
    collect(folder, SPEC, [shard])
    assert folder.trajectory().height == 15


def test_a_damaged_part_of_a_shard_is_named(tmp_path):
    folder = new_folder(tmp_path / "run")
    (part,) = stopped_shard(folder).folder.parts()
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(RunFolderError, match=rf"^{part} is damaged .* go on with: grokscape resume {folder.path}$"):
        launch(SPEC, folder, Scripted())


def test_what_is_said_of_a_shard_is_done_with_the_run(tmp_path):
    folder = new_folder(tmp_path / "run")
    shard = stopped_shard(folder)
    (shard.folder.path / "status.json").write_text("{")
    with pytest.raises(RunFolderError, match=rf"remove it, then go on with: grokscape resume {folder.path}$"):
        launch(SPEC, folder, Scripted())
    assert RunFolder(Path("shards/mine")).command("show") == "grokscape show shards/mine"


HALVES = ["seeds-00000-00002", "seeds-00002-00005"]


@pytest.mark.parametrize("missing", [HALVES[:1], HALVES[1:], HALVES], ids=["first", "last", "all"])
def test_a_run_without_all_of_its_shards_is_refused(tmp_path, missing):
    folder = new_folder(tmp_path / "run")
    (shards_of(folder, SPEC, 2)[0].folder.path.parent / "seeds-00000-00002 (copy)").mkdir()
    for name in missing:
        shutil.rmtree(folder.path / "shards" / name)
    with pytest.raises(RunFolderError, match=r"expected each of the study's 5 seeds in one; restore what is missing"):
        launch(SPEC, folder, Scripted())
    assert folder.status["state"] == "interrupted"
    with pytest.raises(RunFolderError, match=r"holds (no shards|seeds-\d+-\d+), expected"):
        trained(folder, SPEC, "baseline", 0)


def test_a_study_that_was_changed_after_it_was_cut_is_refused(tmp_path):
    folder = new_folder(tmp_path / "run")
    stopped_shard(folder)
    changed = {**SPEC.model_dump(mode="json"), "early_stop": True}
    (folder.path / "spec.json").write_text(json.dumps(changed))
    with pytest.raises(RunFolderError, match=r"are not of one study any more; restore the one that was changed"):
        launch(StudySpec.model_validate(changed), folder, Scripted())


def test_a_cut_that_was_killed_half_way_is_made_anew(tmp_path):
    folder = new_folder(tmp_path / "run")
    half = folder.path / ".shards.making.tmp" / "seeds-00000-00004"
    half.mkdir(parents=True)
    assert [shard.first for shard in shards_of(folder, SPEC, 2)] == [0, 2]
    assert not half.parent.exists()
