"""A training step of the 2-layer transformer, against the same network as it is usually written.

    python benchmarks/transformer_step.py [--rounds 20] [--threads 2] [--compiled]

All train 2 blocks, 4 heads, width 128, layer norm before each sub-layer, no biases, on x + y mod 97 with batches of
512 and AdamW, in one process, taking turns. The usual way: one module per head with its own query, key and value maps,
every position computed up to the logits, PyTorch's default AdamW. Ours: a step of the engine that studies run on, with
one replica; with `--compiled` (which needs a C++ compiler and half a minute) also through `torch.compile`, as with
`compile: true` in a study. Two pairs of the same network:

* "published": the sequence of the code that Power et al. published, six positions: start, x, +, y, =, answer (the last
  is computed too, and nothing of it is used); ours is `Transformer(start=True)`.
* "short": four positions x, +, y, =; ours is `Transformer()`.

First each pair is checked to give the same losses over a few steps.

Prints and writes to benchmarks/results/transformer_step.json: milliseconds a step (least and median over the rounds),
ratios, and which share of this machine's measured float32 matrix-product peak both use. Run it on an idle machine:
other programs slow threads that wait for each other far more than one alone. `--cpu-time` counts this process's CPU
time instead, which tells something on a busy machine too, with `--threads 1`.
"""

import argparse
import datetime
import itertools
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grokscape.studies import StudySpec, plan, preset
from grokscape.training import Engine
from grokscape.training.allocation import keep_freed_memory
from grokscape.training.levers import Chunk

P, BATCH, WIDTH, HEADS, LAYERS = 97, 512, 128, 4, 2
PAIRS = ("published", "short")
STEPS = 5  # in one turn
ADAMW = {"lr": 1e-3, "weight_decay": 1.0, "betas": (0.9, 0.98)}


class Head(nn.Module):
    """One attention head."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH // HEADS, bias=False) for _ in range(3))

    def forward(self, x: Tensor, future: Tensor) -> Tensor:
        """Causal attention of every position."""
        query, key, value = self.query(x), self.key(x), self.value(x)
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        return torch.softmax(scores.masked_fill(future, -math.inf), -1) @ value


class Block(nn.Module):
    """Heads, then an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head() for _ in range(HEADS))
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, future: Tensor) -> Tensor:
        """Every position."""
        normed = self.norm1(x)
        x = x + self.out(torch.cat([head(normed, future) for head in self.heads], -1))
        return x + self.down(F.relu(self.up(self.norm2(x))))


class Usual(nn.Module):
    """The network as it is usually written: logits of every position."""

    def __init__(self, *, published: bool) -> None:
        super().__init__()
        self.published = published
        self.embedding = nn.Embedding(P + 3 if published else P + 2, WIDTH)
        self.positions = nn.Parameter(torch.zeros(6 if published else 4, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(WIDTH, bias=False), nn.Linear(WIDTH, P, bias=False)

    def forward(self, tokens: Tensor, answers: Tensor) -> Tensor:
        """(N, 2) and (N,) → logits of every position, (N, 6, P) or (N, 4, P)."""
        plus, equals, start = (torch.full_like(answers, P + i) for i in range(3))
        sequence = [tokens[:, 0], plus, tokens[:, 1], equals]
        sequence = [start, *sequence, answers] if self.published else sequence
        x = self.embedding(torch.stack(sequence, 1)) + self.positions
        future = torch.ones(len(sequence), len(sequence), dtype=torch.bool).triu(1)
        for block in self.blocks:
            x = block(x, future)
        return self.head(self.norm(x))

    def fill(self, ours: dict[str, Tensor]) -> None:
        """Take the parameters of one replica of ours."""
        with torch.no_grad():
            self.embedding.weight.copy_(torch.cat([ours["embedding"], ours["signs"]]))
            self.positions[: len(ours["positions"])] = ours["positions"]
            self.norm.weight.copy_(ours["final_norm.weight"])
            self.head.weight.copy_(ours["head.weight"])
            for index, block in enumerate(self.blocks):
                parts = ours[f"layers.{index}.qkv.weight"].view(3, HEADS, -1, WIDTH)
                for number, head in enumerate(block.heads):
                    for map_, weight in zip((head.query, head.key, head.value), parts[:, number], strict=True):
                        map_.weight.copy_(weight)
                for name in ("out", "up", "down", "norm1", "norm2"):
                    getattr(block, name).weight.copy_(ours[f"layers.{index}.{name}.weight"])


def our_engine(name: str, *, compiled: bool = False) -> Engine:
    """One replica on the engine, with the network, data and rates of the preset `grok-transformer`; no warm-up."""
    spec = preset("grok-transformer").model_dump()
    spec["model"] |= {"start": name == "published", "layers": LAYERS, "heads": HEADS, "width": WIDTH}
    spec["optimizer"] |= ADAMW | {"warmup": 0}
    changes = {"arms": spec["arms"][:1], "seeds": 1, "batch_size": BATCH, "compile": compiled}
    return Engine(plan(StudySpec.model_validate(spec | changes), "cpu"))


def usual_step(model: Usual, engine: Engine, *, fused: bool) -> Callable[[], Tensor]:
    """One training step of the usual network on the engine's batches, with PyTorch's default AdamW or the fused one."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused, **ADAMW)
    numbers = itertools.count()

    def step() -> Tensor:
        (inputs,), (labels,) = engine.batches.at(next(numbers), slice(0, 1))
        loss = F.cross_entropy(model(inputs, labels)[:, -2 if model.published else -1], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def our_step(engine: Engine) -> Callable[[], None]:
    """One training step of the engine."""
    numbers = itertools.count()

    def step() -> None:
        with torch.no_grad():
            engine.step(next(numbers))

    return step


def check_equal(name: str, steps: int = 5) -> float:
    """Largest difference of the losses of a pair over a few steps from the same start."""
    engine, usual = our_engine(name), Usual(published=name == "published")
    usual.fill({key: value[0] for key, value in engine.layout.view(engine.state.flat).items()})
    step, usual_one, chunk = our_step(engine), usual_step(usual, engine, fused=False), Chunk(0, 0, slice(0, 1))
    differences = []
    for number in range(steps):
        loss = engine.objective(engine.state.flat, *engine.batches.at(number, chunk.rows), number, chunk)
        differences.append(float((loss - usual_one()).abs()))
        step()
    assert max(differences) < 1e-3, f"not the same network: losses differ by {differences}"
    return max(differences)


def peak(clock: Callable[[], float], seconds: float = 0.5) -> float:
    """Fastest float32 matrix product of this machine, in floating-point operations per second."""
    best = 0.0
    for size in (512, 1024, 2048):
        a, b, out = (torch.randn(size, size) for _ in range(3))
        end = clock() + seconds
        while (start := clock()) < end:
            torch.mm(a, b, out=out)
            best = max(best, 2 * size**3 / (clock() - start))
    return best


def operations(name: str, *, usual: bool) -> float:
    """Floating-point operations of matrix products with weights in one step: forward and twice that backward."""
    square, start = WIDTH * WIDTH, int(name == "published")
    if usual:
        multiplications = (4 + 2 * start) * BATCH * (LAYERS * 12 * square + P * WIDTH)
    else:
        rows = start + 2 * P + 2 * BATCH  # two shared positions of every token, two own ones of every sample
        first = (start + 2 * P + 2) * 3 * square + rows * 9 * square
        last = rows * 2 * square + BATCH * 10 * square
        multiplications = first + last + BATCH * P * WIDTH
    return 3 * 2.0 * multiplications


def race(
    steps: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """Milliseconds a step of each, taking turns of several steps, as a training loop makes them."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):  # the first warms up
        for name, step in steps.items():
            start = clock()
            for _ in range(STEPS):
                step()
            if turn:
                times[name].append(1e3 * (clock() - start) / STEPS)
    return {name: {"least_ms": min(all_), "median_ms": statistics.median(all_)} for name, all_ in times.items()}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    keep_freed_memory()  # as every run of grokscape does; here the usual way has it too
    differences = {name: check_equal(name) for name in PAIRS}
    steps: dict[str, Callable[[], object]] = {}
    for name in PAIRS:
        for title, fused in (("usual", False), ("usual, fused AdamW", True)):
            steps[f"{name}: {title}"] = usual_step(Usual(published=name == "published"), our_engine(name), fused=fused)
        steps[f"{name}: ours"] = our_step(our_engine(name))
        if arguments.compiled:
            steps[f"{name}: ours, compiled"] = our_step(our_engine(name, compiled=True))
    times, best = race(steps, arguments.rounds, clock), peak(clock)
    ratio = {
        name: {kind: times[name][kind] / times[f"{name.split(':')[0]}: ours"][kind] for kind in times[name]}
        for name in times
        if not name.endswith("ours")  # "compiled" below 1: faster still
    }
    which = ("usual", "ours")
    pairs = {f"{name}: {way}": operations(name, usual=way == "usual") for name in PAIRS for way in which}
    result = {
        "times": times,
        "ratio": ratio,
        "peak_gflops": best / 1e9,
        "share_of_peak": {name: count / (times[name]["least_ms"] * 1e-3) / best for name, count in pairs.items()},
        "gflop_per_step": {name: count / 1e9 for name, count in pairs.items()},
        "largest_loss_difference": differences,
        "threads": arguments.threads,
        "clock": "CPU time of the process" if arguments.cpu_time else "wall time",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
    }
    print(json.dumps(result, indent=1))
    place = Path(__file__).parent / "results" / "transformer_step.json"
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
