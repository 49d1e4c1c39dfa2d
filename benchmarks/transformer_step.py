"""A training step of the 2-layer transformer, against the same network as it is usually written.

    python benchmarks/transformer_step.py [--rounds 40] [--threads 2] [--compiled]

All train 2 blocks, 4 heads, width 128, layer norm before each sub-layer, no biases, on x + y mod 97 with batches of
512 and AdamW, in one process, taking turns. The usual way: one module per head with its own query, key and value maps,
every position computed up to the logits, PyTorch's default AdamW. Ours: heads in one product, the last block at the
last position only, states that samples share computed once, fused AdamW; with `--compiled` (which needs a C++ compiler
and half a minute) also through `torch.compile`, as with `compile: true` in a study. Two pairs of the same network:

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

from grokscape.models import Transformer
from grokscape.testbeds import ModularArithmetic
from grokscape.training.allocation import keep_freed_memory

P, BATCH, WIDTH, HEADS, LAYERS = 97, 512, 128, 4, 2
TASK = ModularArithmetic(p=P)
CONFIGS = {
    "published": Transformer(layers=LAYERS, heads=HEADS, width=WIDTH, start=True),
    "short": Transformer(layers=LAYERS, heads=HEADS, width=WIDTH),
}
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


def batches(seed: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """Random batches of the training set."""
    split, generator = TASK.split(0), torch.Generator().manual_seed(seed)

    def draw() -> tuple[Tensor, Tensor]:
        index = torch.randint(len(split.train_labels), (BATCH,), generator=generator)
        return split.train_inputs[index], split.train_labels[index]

    return draw


def usual_step(model: Usual, *, fused: bool) -> Callable[[], Tensor]:
    """One training step of the usual network, with PyTorch's default AdamW or the fused one."""
    optimizer, draw = torch.optim.AdamW(model.parameters(), fused=fused, **ADAMW), batches(1)

    def step() -> Tensor:
        inputs, labels = draw()
        loss = F.cross_entropy(model(inputs, labels)[:, -2 if model.published else -1], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def our_step(name: str, parameters: dict[str, Tensor], *, compiled: bool = False) -> Callable[[], Tensor]:
    """One training step of R replicas of ours; every replica sees the same batch."""
    network = CONFIGS[name].build(TASK.input_spec, TASK.num_classes)
    optimizer, draw = torch.optim.AdamW(parameters.values(), fused=True, **ADAMW), batches(1)
    replicas, features = len(parameters["embedding"]), network.features
    if compiled:
        features = torch.compile(features)

    def step() -> Tensor:
        inputs, labels = draw()
        logits = features(parameters, inputs.expand(replicas, -1, -1)) @ parameters["head.weight"].mT
        loss = F.cross_entropy(logits.mT, labels.expand(replicas, -1), reduction="none").mean(1).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach() / replicas

    return step


def stacked(name: str, replicas: int) -> dict[str, Tensor]:
    """Initial parameters, (R, *shape)."""
    network = CONFIGS[name].build(TASK.input_spec, TASK.num_classes)
    each = [network.init(torch.Generator().manual_seed(r)) for r in range(replicas)]
    return {name: torch.stack([one[name] for one in each]).requires_grad_() for name in each[0]}


def check_equal(name: str, steps: int = 5) -> float:
    """Largest difference of the losses of a pair over a few steps from the same start."""
    ours, usual = stacked(name, 1), Usual(published=name == "published")
    usual.fill({key: value[0] for key, value in ours.items()})
    step, usual_one = our_step(name, ours), usual_step(usual, fused=False)
    differences = [float((step() - usual_one()).abs()) for _ in range(steps)]
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
        first = (start + 4 * P) * 3 * square + rows * 9 * square
        last = rows * 2 * square + BATCH * 10 * square
        multiplications = first + last + BATCH * P * WIDTH
    return 3 * 2.0 * multiplications


def race(
    steps: dict[str, Callable[[], Tensor]], rounds: int, clock: Callable[[], float]
) -> dict[str, dict[str, float]]:
    """Milliseconds of each, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 3):
        for name, step in steps.items():
            start = clock()
            step()
            if turn >= 3:
                times[name].append(1e3 * (clock() - start))
    return {name: {"least_ms": min(all_), "median_ms": statistics.median(all_)} for name, all_ in times.items()}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    keep_freed_memory()  # as every run of grokscape does; here the usual way has it too
    differences = {name: check_equal(name) for name in CONFIGS}
    steps = {}
    for name in CONFIGS:
        steps[f"{name}: usual"] = usual_step(Usual(published=name == "published"), fused=False)
        steps[f"{name}: usual, fused AdamW"] = usual_step(Usual(published=name == "published"), fused=True)
        steps[f"{name}: ours"] = our_step(name, stacked(name, 1))
        if arguments.compiled:
            steps[f"{name}: ours, compiled"] = our_step(name, stacked(name, 1), compiled=True)
    times, best = race(steps, arguments.rounds, clock), peak(clock)
    ratio = {
        name: {kind: times[name][kind] / times[f"{name.split(':')[0]}: ours"][kind] for kind in times[name]}
        for name in times
        if not name.endswith("ours")  # "compiled" below 1: faster still
    }
    which = ("usual", "ours")
    pairs = {f"{name}: {way}": operations(name, usual=way == "usual") for name in CONFIGS for way in which}
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
