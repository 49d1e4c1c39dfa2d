"""Shards as Slurm jobs: sbatch starts them, squeue says which are still there, scancel takes back those that wait.

Nothing else is needed, accounting for one. A job's name says which shard it trains, so a launcher that was killed finds
its jobs again in the queue.
"""

import contextlib
import hashlib
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import NamedTuple

from grokscape.studies.shards import LOG, STOP, Order, last_words, said

_JOBS = 64
_PREFIX = "grokscape-"
_ASK_SECONDS = 10.0
_TRAIN = (
    "import sys; from grokscape.studies.shards import train_shard; "
    "train_shard(sys.argv[1], sys.argv[2], 1, float(sys.argv[3]))"
)


class _Job(NamedTuple):
    number: str
    state: str
    reason: str
    name: str


class Slurm:
    """A Slurm job for each shard; sbatch's variables (SBATCH_PARTITION, SBATCH_TIMELIMIT, …) say where and how long.

    A job that is ended before its shard, at its time limit for instance, saves; then the next one goes on.
    """

    def __init__(self, order: Order) -> None:
        self._order = order
        self.workers = order.workers or _JOBS
        self._began, self._asking = time.monotonic(), threading.Lock()
        self._asked, self._queue = -math.inf, list[_Job]()
        self._accepted = False
        self._told = set[str]()

    @staticmethod
    def found() -> None:
        """Raise a ValueError where there is no Slurm."""
        if shutil.which("sbatch") is None:
            raise ValueError("no Slurm here (there is no sbatch on the PATH); choose another --launcher")

    def __call__(self, shard: Path) -> None:
        """Train it in a job, or wait for the one that is in the queue already; return when it has left the queue."""
        before, number = said(shard), self._job(shard)
        self._wait(number, shard.parent / STOP)
        done = _slurm("squeue", "--all", "--states=all", f"--jobs={number}", "--noheader", "--format=%T")
        state = (done.stdout.split() or ["unknown"])[-1]  # after its cluster's name; Slurm forgets after some minutes
        if state != "COMPLETED":
            raise RuntimeError(f"Slurm job {number} ended, state {state}; last words: {last_words(shard, before)}")

    def _job(self, shard: Path) -> str:
        """The job that is in the queue already, or a new one; once Slurm has taken a job, it is asked until it does."""
        path = str(shard.resolve())
        name = f"{_PREFIX}{shard.name}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"
        since = self._began
        while True:
            try:
                queued = [job.number for job in self._jobs(since) if job.name == name]
                return queued[0] if queued else self._submit(path, name)
            except RuntimeError as refusal:  # a limit, or no answer in time, perhaps to a job that it took
                if not self._takes_jobs():
                    raise ValueError(
                        f"Slurm took no job ({refusal}); what it is asked for stands in "
                        f"SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT, SBATCH_MEM_PER_NODE and SBATCH_GRES, "
                        f"or is your cluster's own"
                    ) from None
                self._tell(f"Slurm takes no more jobs for now ({refusal})")
                if _appears(shard.parent / STOP, _ASK_SECONDS):
                    raise
            since = time.monotonic() - _ASK_SECONDS / 2

    def _submit(self, path: str, name: str) -> str:
        log = f"{path.replace('%', '%%')}/{LOG}"
        options = ["--parsable", f"--job-name={name}", f"--output={log}", "--open-mode=append"]
        done = _slurm("sbatch", *options, script=self._script(path))
        number = re.search(r"^(\d+)(;.*)?$\s*\Z", done.stdout, re.MULTILINE)
        if done.returncode or number is None:
            raise RuntimeError(_said(done))
        self._accepted = True
        return number[1]

    def _takes_jobs(self) -> bool:
        """Whether Slurm took a job, in this sitting or in one whose jobs are still there."""
        with contextlib.suppress(RuntimeError):
            self._accepted |= any(job.name.startswith(_PREFIX) for job in self._jobs(time.monotonic()))
        return self._accepted

    def _script(self, path: str) -> str:
        order = self._order
        command = [sys.executable, "-c", _TRAIN, path, order.device, str(order.checkpoint_seconds)]
        lines = ["#!/bin/bash", "#SBATCH --cpus-per-task=1"]  # which sbatch's variables override, unlike its options
        if order.device.startswith("cuda"):
            lines.append("#SBATCH --gres=gpu:1")
        lines += ["export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1", f"exec {shlex.join(command)}"]  # exec: signals reach it
        return "\n".join(lines) + "\n"

    def _tell(self, news: str) -> None:
        if news not in self._told:
            self._told.add(news)
            warnings.warn(news, stacklevel=2)

    def _wait(self, number: str, stop: Path) -> None:
        """Return when the job has left the queue; one that is not running when all are to stop is taken out of it."""
        submitted = time.monotonic()
        while True:
            stopping = _appears(stop, _ASK_SECONDS)
            recently = time.monotonic() - (0.5 if stopping else _ASK_SECONDS / 2)
            try:
                job = next((job for job in self._jobs(max(submitted, recently)) if job.number == number), None)
            except RuntimeError:  # Slurm's controller is away; jobs go on without it
                if stopping:
                    raise
                continue
            if job is None:
                return
            if stopping and job.state not in ("RUNNING", "COMPLETING"):
                _slurm("scancel", number)
            elif job.state == "PENDING":
                self._tell(f"jobs wait in Slurm's queue ({job.reason}); `squeue --me` lists them")

    def _jobs(self, since: float) -> list[_Job]:
        """The user's jobs in the queue at a moment after `since`; asked for once for all shards."""
        with self._asking:
            if self._asked <= since:
                self._asked = time.monotonic()
                done = _slurm("squeue", "--all", f"--user={os.getuid()}", "--noheader", "--format=%A|%T|%r|%j")
                if done.returncode:
                    self._asked = -math.inf
                    raise RuntimeError(_said(done))
                rows = (line.split("|", 3) for line in done.stdout.splitlines())
                self._queue = [_Job(*row) for row in rows if len(row) == 4]
            return self._queue


def _slurm(*command: str, script: str = "") -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands, out of Ctrl-C's reach, where jobs go and without the user's filters of squeue."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    if "SBATCH_CLUSTERS" in kept:
        kept["SLURM_CLUSTERS"] = kept["SBATCH_CLUSTERS"]
    return subprocess.run(
        command, input=script, capture_output=True, text=True, errors="replace", env=kept, start_new_session=True
    )


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return "; ".join((done.stderr or done.stdout).strip().splitlines()) or f"{done.args[0]} failed without a word"


def _appears(file: Path, seconds: float) -> bool:
    """Whether a file is there, after waiting for it so long; after a second where it is there already."""
    if file.exists():
        time.sleep(min(1.0, seconds))
        return True
    end = time.monotonic() + seconds
    while not file.exists():
        if time.monotonic() >= end:
            return False
        time.sleep(min(1.0, seconds))
    return True
