"""A run folder on disk: what it holds, who is at work in it, and what its files say."""

import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from grokscape.store.contents import FINDING, SPEC, STATUS, check_entries, check_objects
from grokscape.store.files import (
    RunFolderError,
    is_ours,
    is_temporary,
    locked,
    ours,
    read_json,
    write_bytes,
    write_json,
)

KEYS = ("replica", "arm", "seed", "init_seed", "split_seed", "step")
CHECKPOINT_SECONDS = 20.0  # between checkpoints, unless asked otherwise
_METADATA_KEY = b"grokscape.columns"
_SAVING_SECONDS = 5.0  # for so long who claims a folder waits for a process that is still saving into it


def damaged_part(path: Path, error: Exception) -> RunFolderError:
    """What to say of a part of a run's trajectory that cannot be read."""
    remedy = f"remove it and the parts after it, then go on with: {RunFolder(path.parent.parent).command('resume')}"
    return RunFolderError(f"{path} is damaged ({error}); {remedy}")


def _read_part(path: Path) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(path, glob=False)  # a folder may be called x*y
        frame.select(KEYS)
    except pl.exceptions.PolarsError as error:
        raise damaged_part(path, error) from None
    return frame


@dataclass(frozen=True)
class RunFolder:
    """A run folder on disk.

    Attributes:
        path: the folder.
    """

    path: Path

    @classmethod
    def create(cls, path: str | Path, spec: Mapping[str, Any]) -> "RunFolder":
        """Make a new run folder; refuse one that holds anything.

        Raises:
            RunFolderError: the folder is not empty.
        """
        folder = cls(Path(path))
        try:
            folder._check_empty()
            folder.path.mkdir(parents=True, exist_ok=True)
            with folder.claim():  # another process may be at the same
                folder._check_empty()
                write_json(folder.path / "spec.json", spec)
        except OSError as error:
            raise RunFolderError(
                f"no run folder can be made at {folder.path} ({error.strerror}); choose another place: `--out DIR`"
            ) from None
        return folder

    def _check_empty(self) -> None:
        there = self.path.iterdir() if self.path.exists() else ()
        if any(not is_temporary(path) and path.name != ".lock" for path in there):
            raise RunFolderError(
                f"{self.path} exists and is not empty. Go on with it: `{self.command('resume')}`. "
                f"Or keep it and choose another place: `--out DIR`."
            )

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Open an existing run folder.

        Raises:
            RunFolderError: there is no readable spec.json in it, or it has no name, something else than arms, or an
                entry of another type than the analysis reads.
        """
        folder = cls(Path(path))
        spec = folder.spec
        arms, place, remedy = spec.get("arms", []), folder.path / "spec.json", "restore it or start the run anew"
        named = isinstance(arms, list) and all(isinstance(arm, dict) and "name" in arm for arm in arms)
        if not named or not isinstance(spec.get("name"), str):
            raise RunFolderError(f"{place} is not a study's: expected a name and a list of named arms; {remedy}")
        check_entries(place, spec, SPEC, remedy)
        for arm in arms:
            check_objects(place, arm.get("interventions") or [], remedy, {"kind": str})
        return folder

    def command(self, verb: str) -> str:
        """What to type to have something done with the folder, or with the run that it is a shard of."""
        run = self.path.parent.parent if self.path.parent.name == "shards" else self.path
        return shlex.join(["grokscape", verb, str(run if (run / "spec.json").exists() else self.path)])

    @property
    def spec(self) -> dict[str, Any]:
        """The study as it was asked for."""
        return read_json(self.path / "spec.json", dict, "restore it or start the run anew")

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Be the only one who trains into the folder, and clear away files that a killed process had begun.

        Raises:
            RunFolderError: another process is at work in it, or this one already.
        """
        if is_ours(self.path / ".lock"):
            raise self._taken("this process")
        with open(self.path / ".lock", "a") as lock:
            last = time.monotonic() + _SAVING_SECONDS
            while not locked(lock):
                if time.monotonic() >= last:
                    raise self._taken("another process")
                time.sleep(0.1)
            with ours(lock):
                for place in (self.path, self.path / "trajectory", self.path / "checkpoints"):
                    for path in filter(is_temporary, place.glob(".*")):
                        path.unlink(missing_ok=True)
                yield

    def _taken(self, by: str) -> RunFolderError:
        remedy = f"wait for it, or stop it, then go on with: {self.command('resume')}"
        return RunFolderError(f"{by} is training into {self.path}; {remedy}")

    @property
    def in_use(self) -> bool:
        """Whether a process is training into the folder at this moment; whoever may read it can ask."""
        path = self.path / ".lock"
        if is_ours(path):
            return True
        try:
            with open(path) as lock:
                return not locked(lock, shared=True)
        except OSError:  # nobody ever did, or who did keeps it to himself
            return False

    @property
    def state(self) -> str:
        """What is true of the run at this moment, by its status and by the locks of other processes.

        "running"; "waiting" while none of its workers trains (jobs in a queue, say); "abandoned" where workers train
        but the command that started them is gone; "killed"; "not started"; or else as status.json has it.
        """
        if (known := self.status.get("state", "not started")) == "finished":
            return known
        shards = [RunFolder(path) for path in (self.path / "shards").glob("seeds-*")]
        training = any(shard.in_use for shard in shards)
        if self.in_use:
            return "running" if training or not shards else "waiting"
        return "abandoned" if training else "killed" if known == "running" else known

    @property
    def status(self) -> dict[str, Any]:
        """How far the run got; empty before its first step."""
        path = self.path / "status.json"
        remedy = f"remove it, then go on with: {self.command('resume')}"
        status = read_json(path, dict, remedy) if path.exists() else {}
        check_entries(path, status, STATUS, remedy)
        check_objects(path, status.get("replicas", []), remedy)
        return status

    @property
    def finished(self) -> bool:
        """Whether the run is finished and its trajectory has as many parts as it had then."""
        status = self.status
        return status.get("state") == "finished" and len(self.parts()) >= status.get("parts", 0)

    def write_status(self, **status: Any) -> None:
        """Replace the status."""
        write_json(self.path / "status.json", status)

    def parts(self) -> list[Path]:
        """The trajectory's parts, oldest first."""
        return sorted((self.path / "trajectory").glob("part-*.parquet"))

    def append(self, rows: Mapping[str, Sequence[Any]], columns: Mapping[str, Mapping[str, Any]]) -> Path:
        """Add a part to the trajectory.

        Args:
            rows: column name → values, all of one length.
            columns: column name → {"measure", "split", "property", "direction", "unit", "source", "title"}.
        """
        parts = self.parts()
        number = int(parts[-1].stem.removeprefix("part-")) + 1 if parts else 0
        table = pa.table(dict(rows))
        table = table.replace_schema_metadata({_METADATA_KEY: json.dumps(columns).encode()})
        return self.write_part(f"part-{number:05d}", table)

    def write_part(self, stem: str, table: pa.Table) -> Path:
        """Write a part of the trajectory, or one in its place: rows with `KEYS`, metadata in the schema."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        path = self.path / "trajectory" / f"{stem}.parquet"
        write_bytes(path, sink.getvalue().to_pybytes())
        return path

    def truncate(self, number_of_parts: int) -> None:
        """Drop the parts that came after a checkpoint, newest first, before a run goes on from it."""
        for path in reversed(self.parts()[number_of_parts:]):
            path.unlink()

    def measured(self) -> "RunFolder":
        """This folder; a `RunFolderError` if nothing was measured yet."""
        if not self.parts():
            at_work = self.state in ("running", "waiting")
            remedy = "wait for the first" if at_work else f"go on with: {self.command('resume')}"
            raise RunFolderError(f"{self.path} holds no measurements yet; {remedy}")
        return self

    def trajectory(self) -> pl.DataFrame:
        """All parts as one frame, sorted by replica and step; the keys without rows if nothing was measured yet.

        Raises:
            RunFolderError: a part is damaged, or two hold the same rows.
        """
        parts = self.parts()
        if not parts:
            return pl.DataFrame(schema={key: pl.String if key == "arm" else pl.Int64 for key in KEYS})
        frame = pl.concat([_read_part(part) for part in parts], how="diagonal_relaxed")
        twice = frame.filter(pl.struct("replica", "step").is_duplicated())
        if len(twice):
            replica, step = twice.select("replica", "step").row(0)
            raise RunFolderError(
                f"{self.path / 'trajectory'} holds step {step} of replica {replica} twice; was a file copied into it? "
                f"Expected each part-*.parquet to have rows of its own: remove those that do not belong there"
            )
        return frame.sort("replica", "step")

    def columns(self) -> dict[str, dict[str, Any]]:
        """What each measured column is: measure, split, property, direction, unit, source, title."""
        merged: dict[str, dict[str, Any]] = {}
        for part in self.parts():
            metadata = pq.read_schema(part).metadata or {}
            merged.update(json.loads(metadata.get(_METADATA_KEY, b"{}")))
        return merged

    @property
    def findings(self) -> list[dict[str, Any]]:
        """What the analysis found; empty before it ran."""
        path = self.path / "findings.json"
        remedy = f"remove it, then make it anew with: {self.command('analyze')}"
        findings = read_json(path, list, remedy) if path.exists() else []
        check_objects(path, findings, remedy, FINDING)
        return findings

    def write_findings(self, findings: Sequence[Mapping[str, Any]]) -> None:
        """Replace the findings."""
        write_json(self.path / "findings.json", list(findings))
