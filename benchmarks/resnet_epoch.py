"""How fast the paper's ResNet-18 trains: images a second at batch 64 on CIFAR-shaped data, plain and sped up.

    python benchmarks/resnet_epoch.py [--steps 8] [--device cuda] [--threads 1] [--compile]

Times whole training steps (forward, backward, SGD with momentum) of a part of an epoch, with and without the penalty of
figure 4, and writes benchmarks/results/resnet_epoch.json with the machine it ran on. Data lie on the device. On one CPU
thread the clock is that of the process, so that other work on the machine does not count.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

import grokscape as gs
from grokscape.models import ResNet
from grokscape.testbeds.types import InputSpec

BATCH, EPOCH = 64, 50_000
PENALTY = gs.Suppress("relative_flatness_bound", strength=1e-2, temperature=2.0)


def clock_for(device: torch.device) -> Callable[[], float]:
    """Time of this process on one CPU thread, else of the wall."""
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def steps(
    count: int, device: torch.device, channels_last: bool, bf16: bool, compiled: bool, penalised: bool
) -> Iterator[float]:
    """Seconds of each of `count` training steps, after two that warm up."""
    torch.manual_seed(0)
    model = ResNet().make(InputSpec("image", (3, 32, 32)), 10).to(device)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    images = torch.randn(BATCH, 3, 32, 32, device=device).contiguous(memory_format=layout)
    labels = torch.randint(0, 10, (BATCH,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    run = torch.compile(model) if compiled else model
    clock = clock_for(device)
    with gs.Probe(run, head="head") if penalised else contextlib.nullcontext() as probe:
        for step in range(count + 2):
            began = clock()
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                logits = run(images)
            loss = F.cross_entropy(logits.float(), labels)
            if probe is not None:
                loss = loss + PENALTY(probe.snapshot(labels))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if step >= 2:
                yield clock() - began


def measure(arguments: argparse.Namespace) -> list[dict]:
    """One row for each variant."""
    device = torch.device(arguments.device)
    rows = []
    for compiled in (False, True) if arguments.compile else (False,):
        for bf16 in (False, True):
            for channels_last in (False, True):
                for penalised in (False, True):
                    variant = {"compile": compiled, "bf16": bf16, "channels_last": channels_last, "penalty": penalised}
                    seconds = list(steps(arguments.steps, device, channels_last, bf16, compiled, penalised))
                    best, median = min(seconds), statistics.median(seconds)
                    rate = {"images_per_second": round(BATCH / median, 1), "best": round(BATCH / best, 1)}
                    rows.append({**variant, **rate, "epoch_seconds": round(EPOCH / BATCH * median, 1)})
                    print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Run the variants and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    result = {
        "model": "ResNet-18, 3 × 32 × 32, batch 64, SGD with momentum",
        "device": name,
        "cores": os.cpu_count(),
        "threads": arguments.threads,
        "clock": clock_for(device).__name__,
        "load_before": [round(value, 1) for value in os.getloadavg()],
        "torch": torch.__version__,
        "rows": measure(arguments),
        "load_after": [round(value, 1) for value in os.getloadavg()],
    }
    path = Path(__file__).parent / "results" / "resnet_epoch.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
