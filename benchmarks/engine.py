"""What training all replicas at once gains, and what measuring costs.

    python benchmarks/engine.py [--threads 2] [--cpu-time] [--replicas 32] [--rounds 7] [--shares quickstart …]
    python benchmarks/engine.py --device cuda --network transformer --replicas 64 [--out engine_gpu.json]

1. One batched run of R networks against R runs in a row: steps of the engine with R replicas and of the engine with
   one, taking turns in one process; the ratio is R times a step of the one over a step of the other. With `--network
   quadratic`, the baseline of `quickstart` (x + y mod 31, width 128, full batch, AdamW); with `--network transformer`,
   the first arm of `grok-transformer` (2 layers, x + y mod 97, batches of 512).
2. The same for whole runs of 300 steps, measuring and writing included: one run of R replicas against R runs in a row,
   of which three are made. Quadratic networks only.
3. What interventions cost: steps of 8 quadratic networks in an arm that promotes or holds a measure, or with SAM, over
   steps of the baseline.
4. For each preset named by --shares: the whole study is trained, and the share of its time that went into measuring is
   read from the run folder's status.json. Minutes each.

Prints, and writes to benchmarks/results/engine.json with date and machine. `--cpu-time` counts this process's CPU time,
which tells something on a busy machine too, with `--threads 1`.
"""

import argparse
import datetime
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from grokscape.interventions import Clamp, Intervention, Promote
from grokscape.store import RunFolder
from grokscape.studies import StudySpec, plan, preset, train
from grokscape.training import Engine
from grokscape.training.allocation import keep_freed_memory

RESULT = Path(__file__).parent / "results" / "engine.json"
STEPS = 20


SAM = {"kind": "adamw", "lr": 1e-2, "weight_decay": 1.0, "betas": (0.9, 0.98), "sam_radius": 0.05}
PRESETS = {"quadratic": "quickstart", "transformer": "grok-transformer"}


def study(network: str, replicas: int, **changes: Any) -> StudySpec:
    """The first arm of the network's preset alone, with so many seeds."""
    spec = preset(PRESETS[network]).model_dump()
    return StudySpec.model_validate({**spec, "arms": spec["arms"][:1], "seeds": replicas, **changes})


def whole_runs(replicas: int, clock: Callable[[], float], device: str) -> dict[str, float]:
    """Seconds of one run of R replicas and of one run of one, measuring and writing included, and the ratio."""

    def seconds(count: int) -> float:
        with tempfile.TemporaryDirectory() as place:
            spec = study("quadratic", count, steps=300)
            folder = RunFolder.create(Path(place) / "run", spec.model_dump(mode="json"))
            began = clock()
            train(spec, folder, device=device)
            return clock() - began

    together, alone = seconds(replicas), statistics.median(seconds(1) for _ in range(3))
    return {
        "replicas": replicas,
        "seconds_together": round(together, 3),
        "seconds_alone": round(alone, 3),
        "times_as_fast": round(replicas * alone / together, 2),
    }


def steps(engine: Engine, clock: Callable[[], float], first: int) -> float:
    """Seconds a step, over `STEPS` steps."""

    def finished() -> float:
        if engine.device.type == "cuda":
            torch.cuda.synchronize(engine.device)
        return clock()

    began = finished()
    with torch.no_grad():
        for step in range(first, first + STEPS):
            engine.step(step)
    return (finished() - began) / STEPS


def batching(network: str, replicas: int, rounds: int, clock: Callable[[], float], device: str) -> dict[str, Any]:
    """Milliseconds a step with R replicas and with one, and how many times as fast the former trains them."""
    together, alone = (Engine(plan(study(network, count), device)) for count in (replicas, 1))
    times: dict[str, list[float]] = {"together": [], "alone": []}
    for turn in range(rounds + 1):  # the first warms up
        for name, engine in (("together", together), ("alone", alone)):
            times[name].append(steps(engine, clock, turn * STEPS))
    middle = {name: statistics.median(values[1:]) for name, values in times.items()}
    pairs = zip(times["alone"][1:], times["together"][1:], strict=True)
    ratios = [replicas * one / many for one, many in pairs]
    return {
        "network": network,
        "replicas": replicas,
        "ms_per_step_together": round(1e3 * middle["together"], 3),
        "ms_per_step_alone": round(1e3 * middle["alone"], 3),
        "times_as_fast": round(statistics.median(ratios), 2),
        "times_as_fast_least": round(min(ratios), 2),
        "times_as_fast_most": round(max(ratios), 2),
    }


ARMS: dict[str, Intervention] = {
    "relative_flatness promoted": Promote("relative_flatness", strength=1e-2),
    "relative_flatness held": Clamp("relative_flatness", at_least=1e3, strength=1e-6),
    "relative_flatness_bound promoted": Promote("relative_flatness_bound", strength=1e-4),
    "cdnv promoted": Promote("cdnv", strength=1e-2),
    "cdnv held": Clamp("cdnv", at_least=1e3, strength=1e-6),
    "loss held": Clamp("loss", at_least=1e3, strength=1e-6),
}
"""Goals that are out of reach, so that no clamp rests, and too weak to matter."""


def costs(rounds: int, clock: Callable[[], float], device: str) -> dict[str, float]:
    """How many times as long a step takes as one without intervention."""
    bare = plan(study("quadratic", 8), device)
    plans = {"none": bare, "SAM": plan(study("quadratic", 8, optimizer={**SAM}), device)}
    for name, intervention in ARMS.items():
        replicas = tuple(replace(replica, interventions=(intervention,)) for replica in bare.replicas)
        plans[name] = replace(bare, replicas=replicas)
    engines = {name: Engine(each) for name, each in plans.items()}
    times: dict[str, list[float]] = {name: [] for name in engines}
    for turn in range(rounds + 1):  # the first warms up
        for name, engine in engines.items():
            times[name].append(steps(engine, clock, turn * STEPS))
    pairs = {name: zip(values[1:], times["none"][1:], strict=True) for name, values in times.items()}
    return {name: round(statistics.median(one / bare for one, bare in both), 2) for name, both in pairs.items()}


def share(name: str) -> dict[str, float]:
    """Time of a whole study and the share of it that went into measuring."""
    spec = preset(name)
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder.create(Path(place) / name, spec.model_dump(mode="json"))
        train(spec, folder)
        status = folder.status
    seconds, measuring = status["seconds"], status["seconds_measuring"]
    return {"seconds": seconds, "seconds_measuring": measuring, "share_of_measuring": round(measuring / seconds, 4)}


def machine(device: str) -> dict[str, Any]:
    """What the numbers were measured on."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "processor": model,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--network", choices=PRESETS, default="quadratic")
    parser.add_argument("--replicas", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--shares", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as every run does
    clock = time.process_time if options.cpu_time else time.perf_counter
    before = json.loads(options.out.read_text()) if options.out.exists() else {}
    result = {
        "machine": machine(options.device) | {"clock": "CPU time of the process" if options.cpu_time else "wall clock"},
        "batching": batching(options.network, options.replicas, options.rounds, clock, options.device),
        "measuring": before.get("measuring", {}) | {name: share(name) for name in options.shares},
    }
    if options.network == "quadratic":
        result["interventions"] = costs(options.rounds, clock, options.device)
        result["whole runs"] = whole_runs(options.replicas, clock, options.device)
    print(json.dumps(result, indent=1))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
