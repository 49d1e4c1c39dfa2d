"""A study cut into shards of seeds, each a run folder of its own, and what they record put together again.

All arms of a seed stay in one shard, so pairing holds; a shard's specification is the study's with other first seeds.
"""

import contextlib
import itertools
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from grokscape.numerics import fresh_settings
from grokscape.store import RunFolder, RunFolderError, damaged_part, read_json, write_bytes
from grokscape.studies.launch import plan, train
from grokscape.studies.spec import StudySpec
from grokscape.training import CHECKPOINT_SECONDS, Interrupted, Progress, Trained, take_out

LOG = "log.txt"  # in the folder of a shard: what its workers say, one after another
STOP = "stop"  # in the folder of the shards: all of them save and stop
_BEACON_SECONDS = 0.5


@dataclass(frozen=True)
class Shard:
    """Pairs `first` up to, not including, `stop` of a study.

    Attributes:
        folder: its own run folder.
        first, stop: numbers of pairs.
    """

    folder: RunFolder
    first: int
    stop: int

    @property
    def progress(self) -> Progress | None:
        """Its newest measurement, if it has made one."""
        with contextlib.suppress(RunFolderError):
            return Progress(**read_json(self.folder.path / "progress.json"))
        return None


@dataclass(frozen=True)
class Order:
    """What every worker of a run is told.

    Attributes:
        device: a PyTorch device.
        checkpoint_seconds: time between checkpoints.
        workers: how many are at work at a time; None for the launcher's own number.
    """

    device: str = "cpu"
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    workers: int | None = None


def place_of(folder: RunFolder) -> Path:
    """Where a run folder keeps its shards."""
    return folder.path / "shards"


def shard_spec(spec: StudySpec, first: int, stop: int) -> StudySpec:
    """The study of pairs `first` up to, not including, `stop` alone."""
    shift = 0 if spec.same_split else first
    changes = {
        "seeds": stop - first,
        "first_seed": spec.first_seed + first,
        "init_seeds": spec.init_seeds[first:],
        "first_split_seed": spec.first_split_seed + shift,
    }
    return spec.model_copy(update=changes)


def shards_of(folder: RunFolder, spec: StudySpec, count: int) -> list[Shard]:
    """The shards that a run was cut into; it is cut into `count` (at most one a seed) if it was not yet.

    Raises:
        RunFolderError: some are missing.
    """
    place = place_of(folder)
    if not place.exists():
        unfinished = folder.path / ".shards.making.tmp"
        shutil.rmtree(unfinished, ignore_errors=True)
        count = min(count, spec.seeds)
        edges = [spec.seeds * k // count for k in range(count + 1)]
        for first, stop in itertools.pairwise(edges):
            part = shard_spec(spec, first, stop).model_dump(mode="json")
            RunFolder.create(unfinished / f"seeds-{first:05d}-{stop:05d}", part)
        os.replace(unfinished, place)
    names = sorted(path.name for path in place.iterdir() if re.fullmatch(r"seeds-\d+-\d+", path.name))
    shards = [Shard(RunFolder(place / name), *map(int, name.split("-")[1:])) for name in names]
    if [0, *(shard.stop for shard in shards)] != [*(shard.first for shard in shards), spec.seeds]:
        raise RunFolderError(
            f"{place} holds {', '.join(names) or 'no shards'}, expected each of the study's {spec.seeds} seeds in one; "
            f"restore what is missing, or remove all of {place} to train them anew"
        )
    return shards


def check_unchanged(folder: RunFolder, spec: StudySpec, shards: Sequence[Shard]) -> None:
    """Raise a `RunFolderError` if the study is no longer the one that was cut into these shards, but for its steps."""
    for shard in shards:
        begun = StudySpec.model_validate({**shard.folder.spec, "steps": spec.steps}).model_dump(mode="json")
        if begun != shard_spec(spec, shard.first, shard.stop).model_dump(mode="json"):
            raise RunFolderError(
                f"{folder.path / 'spec.json'} and {shard.folder.path / 'spec.json'} are not of one study any more; "
                f"restore the one that was changed to go on, or start the changed study in a folder of its own"
            )


@fresh_settings()
def trained(folder: RunFolder, spec: StudySpec, arm: str, seed: int) -> Trained:
    """The network of one arm and pair, from the run's own checkpoint or from that of the shard that trained it.

    Raises:
        ValueError: the study has no such arm or pair.
        RunFolderError: there is no checkpoint.
    """
    names = [each.name for each in spec.arms]
    if arm not in names:
        raise ValueError(f"the study has no arm {arm!r}; its arms are {', '.join(names)}")
    if not 0 <= seed < spec.seeds:
        raise ValueError(f"expected a seed from 0 to {spec.seeds - 1}, as in the trajectory, got {seed}")
    number = names.index(arm)
    alone = shard_spec(spec, seed, seed + 1).model_copy(update={"arms": spec.arms[number : number + 1]})
    first, stop = 0, spec.seeds
    if place_of(folder).exists():
        shards = shards_of(folder, spec, 1)
        folder, first, stop = next((s.folder, s.first, s.stop) for s in shards if s.first <= seed < s.stop)
    return take_out(plan(alone), folder, number * (stop - first) + seed - first)


def said(shard: Path) -> int:
    """How many bytes a shard's workers have written to its log."""
    with contextlib.suppress(FileNotFoundError):
        return (shard / LOG).stat().st_size
    return 0


def last_words(shard: Path, since: int = 0) -> str:
    """The last line that a shard's workers wrote to its log after so many bytes."""
    with contextlib.suppress(FileNotFoundError):
        lines = (shard / LOG).read_bytes()[since:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "none"
    return "none"


# --- in a worker ---------------------------------------------------------------------------------------------------


class _Beacon:
    """Writes the newest measurement to the shard's progress.json, for whoever shows the whole run."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._next = 0.0

    def __call__(self, measured: Progress) -> None:
        if time.monotonic() < self._next and measured.step < measured.steps:
            return
        self._next = time.monotonic() + _BEACON_SECONDS
        data = json.dumps(asdict(measured)).encode()  # with NaN, which only Python reads
        write_bytes(self._folder.path / "progress.json", data)


def _asked_to_stop(path: Path, other: Callable[[], bool]) -> Callable[[], bool]:
    next_look = 0.0

    def asked() -> bool:
        """Whether to stop; the file is looked for once in a while only."""
        nonlocal next_look
        if other():
            return True
        if time.monotonic() < next_look:
            return False
        next_look = time.monotonic() + _BEACON_SECONDS
        return path.exists()

    return asked


def train_shard(
    path: str,
    device: str = "cpu",
    threads: int = 1,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    stop: Callable[[], bool] = bool,
) -> None:
    """Train a shard to its end, or until it is asked to stop; its status.json says which.

    Args:
        path: its run folder.
        device: a PyTorch device.
        threads: of this worker; 0 leaves them as they are.
        checkpoint_seconds: time between checkpoints.
        stop: asked between steps, besides the file that stops all shards.
    """
    if threads:
        torch.set_num_threads(threads)
    folder = RunFolder.open(path)
    asked = _asked_to_stop(folder.path.parent / STOP, stop)
    spec = StudySpec.model_validate(folder.spec)
    with contextlib.suppress(Interrupted):
        train(spec, folder, device=device, progress=_Beacon(folder), checkpoint_seconds=checkpoint_seconds, stop=asked)


# --- together again ------------------------------------------------------------------------------------------------


def collect(folder: RunFolder, spec: StudySpec, shards: Sequence[Shard]) -> None:
    """Copy what the shards have recorded since the last time into the run's trajectory, under the run's numbers."""
    kept = set()
    for shard in shards:
        for part in shard.folder.parts():
            stem = f"part-{shard.folder.path.name}-{part.stem.removeprefix('part-')}"
            target = folder.path / "trajectory" / f"{stem}.parquet"
            kept.add(target)
            with contextlib.suppress(FileNotFoundError):  # a worker that goes on from a checkpoint drops later parts
                written = part.stat().st_mtime_ns  # by the clock of its machine
                if not target.exists() or target.stat().st_mtime_ns != written:
                    folder.write_part(stem, _renumbered(_read(part), spec, shard))
                    os.utime(target, ns=(written, written))
    for path in folder.parts():
        if path not in kept:
            path.unlink()


def _read(part: Path) -> pa.Table:
    try:
        return pq.read_table(part)
    except pa.ArrowInvalid as error:
        raise damaged_part(part, error) from None


def _renumbered(table: pa.Table, spec: StudySpec, shard: Shard) -> pa.Table:
    """Replica r of a shard of s pairs is arm r // s, pair r % s of it; arms are outermost in the whole run as well."""
    seed = pc.add(table["seed"], shard.first)
    arm = pc.divide(table["replica"], shard.stop - shard.first)
    replica = pc.add(pc.multiply(arm, spec.seeds), seed)
    for name, column in (("replica", replica), ("seed", seed)):
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table


def merged_progress(shards: Sequence[Shard], spec: StudySpec, seconds: float) -> Progress | None:
    """The shards' newest measurements as one: mean step, sum of rates; None before the first."""
    known = [(shard, shard.progress) for shard in shards]
    seen = [(shard, progress) for shard, progress in known if progress is not None]
    if not seen:
        return None
    steps = sum(progress.step * (shard.stop - shard.first) for shard, progress in seen) / spec.seeds
    names = set.intersection(*(set(progress.values) for _, progress in seen))
    return Progress(
        step=math.floor(steps),
        steps=spec.steps,
        seconds=seconds,
        rate=sum(progress.rate for _, progress in seen),
        arms=tuple(arm for _, progress in seen for arm in progress.arms),
        values={name: [value for _, progress in seen for value in progress.values[name]] for name in names},
    )


def merged_status(shards: Sequence[Shard], spec: StudySpec) -> dict[str, Any]:
    """What the shards' status files say of the whole run; `seconds` is that of the shard that took longest."""
    statuses = [shard.folder.status for shard in shards]
    longest = max(statuses, key=lambda status: status.get("seconds", 0.0))
    replicas = [
        {**row, "replica": row["replica"] // (shard.stop - shard.first) * spec.seeds + shard.first + row["seed"]}
        | {"seed": shard.first + row["seed"]}
        for shard, status in zip(shards, statuses, strict=True)
        for row in status.get("replicas", [])
    ]
    shared = ("seconds", "seconds_measuring", "device", "threads", "batched", "unbatched_because", "versions")
    return {
        "step": min(status.get("step", 0) for status in statuses),
        "steps": spec.steps,
        **{name: longest[name] for name in shared if name in longest},
        "shards": {shard.folder.path.name: status.get("state", "waiting") for shard, status in zip(shards, statuses)},
        "replicas": sorted(replicas, key=lambda row: row["replica"]),
    }
