"""Where a study is trained: in this process, in several, on a Ray cluster or through Slurm.

A launcher is a function that trains one shard somewhere and comes back when its worker has ended, well or not. What
the shard got to stands in its run folder, on a file system that all machines share; so a worker that was killed costs
its work since its last checkpoint, and the next one goes on from there.
"""

import contextlib
import importlib
import os
import queue
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch

from grokscape.plural import counted
from grokscape.store import RunFolder, RunFolderError
from grokscape.studies import shards as parts
from grokscape.studies.launch import set_steps, train
from grokscape.studies.shards import Order
from grokscape.studies.slurm import Slurm
from grokscape.studies.spec import StudySpec
from grokscape.training import CHECKPOINT_SECONDS, Interrupted, Progress
from grokscape.training.run import stop_requests

_ATTEMPTS = 3
_LOOK_SECONDS = 0.2
_SHARD_SECONDS = 0.02
_BUSY_SECONDS = 1.0
_COLLECT_SECONDS = 5.0
_SAID = 3
_KNOCK_SECONDS = 10.0


class Launcher(Protocol):
    """Trains shards.

    Attributes:
        workers: how many shards it trains at a time.
    """

    workers: int

    def __call__(self, shard: Path) -> None:
        """Have a shard trained; return when its worker has ended. Raises what went wrong with the worker."""


class Inline:
    """One shard after another in this process."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self.workers = 1

    def __call__(self, shard: Path) -> None:
        """Train it here."""
        parts.train_shard(str(shard), self._order.device, 0, self._order.checkpoint_seconds)


class Processes:
    """A process of its own for each shard, with one thread; several GPUs are taken in turn."""

    def __init__(self, order: Order) -> None:
        self._order = order
        gpus = torch.cuda.device_count() if order.device == "cuda" else 0
        self.workers = order.workers or gpus or _cores()
        self._devices: queue.SimpleQueue[str] = queue.SimpleQueue()
        for worker in range(self.workers):
            self._devices.put(f"cuda:{worker % gpus}" if gpus > 1 else order.device)

    def __call__(self, shard: Path) -> None:
        """Train it in a new process, which saves and stops when this one is gone."""
        device, before = self._devices.get(), parts.said(shard)
        command = [sys.executable, "-m", "grokscape.studies.worker", str(shard), device]
        command.append(str(self._order.checkpoint_seconds))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        try:
            with open(shard / parts.LOG, "ab") as log:
                pipe = subprocess.PIPE  # a session of its own: Ctrl-C reaches it through the file that stops shards
                with subprocess.Popen(
                    command, stdin=pipe, stdout=log, stderr=log, env=environment, start_new_session=True
                ) as process:
                    code = process.wait()
        finally:
            self._devices.put(device)
        if code:
            raise RuntimeError(f"worker ended with {_exit(code)}; last words: {parts.last_words(shard, before)}")


def _cores() -> int:
    """Those that this process may use; of the machine, where the system does not say (macOS, Windows)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _exit(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


class Ray:
    """A Ray task for each shard, on the cluster that RAY_ADDRESS names, or one on this machine."""

    def __init__(self, order: Order) -> None:
        self._ray = ray = self.found()
        self._owns = not ray.is_initialized()
        if self._owns:
            address = os.environ.get("RAY_ADDRESS", "not set: a cluster on this machine")
            try:
                _knock_at(address)
                ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
            except Exception as error:  # it has no class of its own for this
                raise ValueError(f"no Ray cluster lets us in (RAY_ADDRESS is {address}): {error}") from error
        gpus = 1 if order.device.startswith("cuda") else 0
        has = ray.cluster_resources().get("GPU" if gpus else "CPU", 0)
        if not has:
            warnings.warn(f"the Ray cluster has no {'GPU' if gpus else 'CPU'} yet; shards wait for one", stacklevel=2)
        self.workers = order.workers or max(1, int(has))
        needs = {"num_cpus": 1, "num_gpus": gpus, "max_retries": 0}
        self._order, self._task = order, ray.remote(**needs)(parts.train_shard)

    @staticmethod
    def found() -> Any:
        """The package; a ValueError where it is not installed."""
        try:
            return importlib.import_module("ray")
        except ImportError:
            raise ValueError("this launcher needs ray, which is not installed: pip install 'grokscape[ray]'") from None

    def __call__(self, shard: Path) -> None:
        """Train it somewhere in the cluster."""
        order, ray, folder = self._order, self._ray, RunFolder(shard)
        task = self._task.remote(str(shard.resolve()), order.device, 1, order.checkpoint_seconds)
        while not ray.wait([task], timeout=_BUSY_SECONDS)[0]:
            if (shard.parent / parts.STOP).exists() and not folder.in_use:  # it waits for a machine
                ray.cancel(task)
        try:
            ray.get(task)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def close(self) -> None:
        """Leave the cluster, if it was entered here."""
        if self._owns:
            self._ray.shutdown()


def _knock_at(address: str) -> None:
    """Raise an OSError where nobody listens at HOST:PORT, which takes Ray two minutes; other addresses are its own."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_SECONDS).close()


LAUNCHERS: dict[str, Callable[[Order], Launcher]] = {
    "inline": Inline,
    "processes": Processes,
    "ray": Ray,
    "slurm": Slurm,
}
ELSEWHERE = ("ray", "slurm")  # their workers need not be on this machine


@contextmanager
def _opened(name: str | Launcher, order: Order) -> Iterator[Launcher]:
    launcher = LAUNCHERS[name](order) if isinstance(name, str) else name
    try:
        yield launcher
    finally:
        getattr(launcher, "close", lambda: None)()


def check(spec: StudySpec, launcher: str | Launcher) -> None:
    """Refuse a launcher that there is not, that lacks what it needs, or that cannot train this study.

    Raises:
        ValueError: unknown launcher, what it needs is not there, or data that lives in this process only.
    """
    if isinstance(launcher, str) and launcher not in LAUNCHERS:
        raise ValueError(f"expected a launcher among {', '.join(LAUNCHERS)}, got {launcher!r}")
    if launcher != "inline" and spec.testbed.kind == "tensors":
        raise ValueError(f"launcher {launcher!r} trains in other processes, where your tensors are not; use 'inline'")
    if isinstance(launcher, str):
        getattr(LAUNCHERS[launcher], "found", bool)()


def check_workers(workers: int | None) -> None:
    """Raise a ValueError if a number of workers is given and is none."""
    if workers is not None and not workers >= 1:
        raise ValueError(f"expected workers of 1 or more, got {workers}; leave them out for the launcher's own number")


def launch(
    spec: StudySpec,
    folder: RunFolder,
    launcher: str | Launcher = "inline",
    *,
    device: str = "cpu",
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    about: dict[str, Any] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> None:
    """Train a study into a run folder, or go on with it.

    Args:
        spec: the study.
        folder: where to.
        launcher: a name in `LAUNCHERS`, or one of one's own.
        device: a PyTorch device.
        workers: number of shards in training at a time, and of shards if the run is new.
        progress: called after measurements.
        about: extra entries for status.json.
        checkpoint_seconds: time between checkpoints.

    Raises:
        ValueError: unknown launcher, what it needs is not there, or data that lives in this process only.
        RunFolderError: a shard failed again and again; the others are finished, or the run began in another way.
        Interrupted: the process was asked to stop; everything so far is saved.
    """
    check(spec, launcher)
    sharded = parts.place_of(folder).exists()
    if launcher == "inline" and not sharded:
        about = {**(about or {}), "launcher": launcher}
        train(spec, folder, device=device, progress=progress, about=about, checkpoint_seconds=checkpoint_seconds)
        return
    if not sharded and any((folder.path / "checkpoints").glob("*.json")):
        raise RunFolderError(f"{folder.path} was begun in one process; go on with it there: --launcher inline")
    about = {**(about or {}), "launcher": launcher if isinstance(launcher, str) else type(launcher).__name__.lower()}
    about["device"] = device  # not one of several that a worker was given
    with folder.claim():
        known = {"step": 0, "steps": spec.steps, "seconds": 0.0, **folder.status, "state": "interrupted", **about}
        folder.write_status(**known | ({"workers": workers} if workers else {}))  # to be resumed as begun if this fails
        with _opened(launcher, Order(device, checkpoint_seconds, workers)) as opened:
            _Sharded(spec, folder, opened, about, progress).execute()


class _Sharded:
    """One sitting of a run in shards."""

    def __init__(
        self,
        spec: StudySpec,
        folder: RunFolder,
        launcher: Launcher,
        about: dict[str, Any],
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._spec, self._folder, self._launcher, self._progress = spec, folder, launcher, progress
        self._about, self._seconds_before = about, folder.status.get("seconds", 0.0)
        self._shards = parts.shards_of(folder, spec, launcher.workers)
        parts.check_unchanged(folder, spec, self._shards)
        self._workers = min(launcher.workers, len(self._shards))
        self._stop_file = parts.place_of(folder) / parts.STOP
        self._began = time.monotonic()
        self._shown: Progress | None = None
        self._waiting = False

    def execute(self) -> None:
        """Train every shard, show how far they are, and put the parts together."""
        self._stop_file.unlink(missing_ok=True)
        try:
            with stop_requests() as stop, ThreadPoolExecutor(self._workers, thread_name_prefix="shard") as pool:
                futures = [pool.submit(self._until_it_ends, shard) for shard in self._shards]
                try:
                    self._watch(futures, stop)
                finally:  # also after a second Ctrl-C: the pool waits for its workers, which now save
                    self._stop_file.touch()
        except KeyboardInterrupt:
            parts.collect(self._folder, self._spec, self._shards)
            self._status("interrupted")
            raise
        except BaseException as error:
            with contextlib.suppress(OSError):  # the disk may be full
                self._status("failed", error=f"{type(error).__name__}: {error}")
            raise
        self._conclude([future.exception() for future in futures])

    def _until_it_ends(self, shard: parts.Shard) -> None:
        """Start a worker again while workers end without having finished or been asked to stop."""
        attempts, step = 0, -1
        if self._free(shard):
            set_steps(shard.folder, self._spec.steps)  # those of a run that was made longer
        while self._free(shard) and not shard.folder.finished:
            failure = "the worker did not finish"
            try:
                self._launcher(shard.folder.path)
            except ValueError:  # no use in trying again
                raise
            except Exception as error:
                failure = str(error)
            if self._stop_file.exists():
                return
            now = shard.folder.status.get("step", 0)
            attempts, step = (1, now) if now > step else (attempts + 1, step)
            if attempts >= _ATTEMPTS and not shard.folder.finished:
                raise RunFolderError(f"{shard.folder.path.name} failed {attempts} times at step {step}: {failure}")

    def _free(self, shard: parts.Shard) -> bool:
        """Wait for a worker that an earlier sitting left, or that was lost sight of; False if all are to stop."""
        while not self._stop_file.exists():
            if not shard.folder.in_use:
                return True
            if not self._waiting:
                self._waiting = True
                warnings.warn("waiting for workers of an earlier sitting, which are still training", stacklevel=2)
            time.sleep(_BUSY_SECONDS)
        return False

    def _watch(self, futures: list[Future[None]], stop: Callable[[], bool]) -> None:
        next_collect = 0.0
        pause = max(_LOOK_SECONDS, len(self._shards) * _SHARD_SECONDS)  # a shared file system has other users
        while wait(futures, pause).not_done:
            if stop():
                self._stop_file.touch()
            self._show()
            if time.monotonic() >= next_collect:
                parts.collect(self._folder, self._spec, self._shards)
                self._status("running")
                next_collect = time.monotonic() + _COLLECT_SECONDS
        self._show()

    def _show(self) -> None:
        now = parts.merged_progress(self._shards, self._spec, self._seconds)
        if self._progress is None or now is None:
            return
        if self._shown is None or now.values != self._shown.values:
            self._shown = now
            self._progress(now)

    @property
    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began

    def _status(self, state: str, **extra: Any) -> None:
        status = {**parts.merged_status(self._shards, self._spec), "state": state, **self._about}
        self._folder.write_status(**status, workers=self._workers, **extra)

    def _conclude(self, errors: list[BaseException | None]) -> None:
        parts.collect(self._folder, self._spec, self._shards)
        failed = [str(error) for error in errors if error is not None]
        if failed:
            self._status("failed", error="; ".join(dict.fromkeys(failed)))
            unusable = next((error for error in errors if isinstance(error, ValueError)), None)
            if unusable is not None:
                raise unusable
            said = "; ".join(failed[:_SAID]) + (f"; and {len(failed) - _SAID} more" if len(failed) > _SAID else "")
            raise RunFolderError(
                f"{len(failed)} of {counted(len(self._shards), 'shard')} failed, the others are saved: "
                f"{said}. Try again with: {self._folder.command('resume')}"
            )
        if any(shard.folder.status.get("state") != "finished" for shard in self._shards):
            self._status("interrupted")
            raise Interrupted(
                f"stopped; everything so far is in {self._folder.path}. "
                f"Go on with: {self._folder.command('resume')}"
            )
        self._status("finished", parts=len(self._folder.parts()))
        with contextlib.suppress(FileNotFoundError):
            self._stop_file.unlink()
