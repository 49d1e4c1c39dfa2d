"""How fast the measures are, against the straightforward way of computing the same numbers, in one process.

    python benchmarks/measures.py [--threads 1] [--quick] [--out benchmarks/results/measures.json]

Each pair is checked to agree. Times are processor time of this process, so that other work on the machine counts
little, with one thread unless asked otherwise. The slow ways are written here from the definitions:

* relative flatness by automatic differentiation: one gradient of a gradient for each entry of the head's weight, in a
  double loop, filling the tensor (K, d, K, d) of second derivatives, as published code does;
* the same through `torch.func.hessian`;
* class-distance normalised variance with one-hot matrices and a loop over pairs of classes;
* relative flatness and CDNV in a loss, with their gradients by autograd of the formulas that books have;
* many measures one by one instead of at once.
"""

import argparse
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from grokscape.measures import DEFAULT, MEASURES, Snapshot, cdnv, evaluate, relative_flatness


def head(samples: int, width: int, classes: int, *lead: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features, weight and labels of a random head."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(*lead, samples, width, generator=generator)
    weight = torch.randn(*lead, classes, width, generator=generator) / width**0.5
    labels = torch.randint(classes, (*lead, samples), generator=generator)
    return features, weight, labels


def double_loop(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """κ with every second derivative taken by automatic differentiation, row by row and entry by entry."""
    weight = weight.clone().requires_grad_()
    loss = F.cross_entropy(features @ weight.T, labels)
    (slope,) = torch.autograd.grad(loss, weight, create_graph=True)
    classes, width = weight.shape
    second = torch.zeros(classes, width, classes, width)
    for s in range(classes):
        for i in range(width):
            (second[s, i],) = torch.autograd.grad(slope[s, i], weight, retain_graph=True)
    traces = torch.einsum("sjtj->st", second)
    return ((weight @ weight.T) * traces).sum().detach()


def functional_hessian(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """κ from the whole Hessian of `torch.func`."""
    second = torch.func.hessian(lambda w: F.cross_entropy(features @ w.T, labels))(weight)
    return torch.einsum("si,ti,sjtj->", weight, weight, second)


def closed_form(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """κ as this library computes it, logits included."""
    return relative_flatness(features, weight, features @ weight.mT)


def pairwise_cdnv(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The measure with one-hot matrices and a loop over the classes of a pair."""
    hot = F.one_hot(labels, classes).to(features.dtype)
    counts = hot.sum(0)
    means = (hot.T @ features) / counts[:, None]
    variances = (hot * (features - means[labels]).square().sum(1, keepdim=True)).sum(0) / counts
    total = torch.zeros(())
    for c in range(classes):
        distances = (means - means[c]).square().sum(1)
        distances[c] = float("inf")
        total = total + ((variances + variances[c]) / (2 * distances)).sum()
    return total / (classes * (classes - 1))


def timed(function: Callable[[], Tensor], repeats: int) -> tuple[Tensor, float]:
    """What a function gives, and the median of its processor times; the first call of several warms up."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        value = function()
        times.append(time.process_time() - start)
    return value, statistics.median(times[1:] or times)


def compare(name: str, fast: Callable[[], Tensor], slow: dict[str, tuple[Callable[[], Tensor], int]]) -> dict:
    """Check that all ways agree, time them, and print the ratios."""
    value, quick = timed(fast, 30)
    print(f"{name}: {quick * 1e3:.3g} ms")
    row: dict = {"seconds": quick, "others": {}}
    for other, (function, repeats) in slow.items():
        again, taken = timed(function, repeats)
        torch.testing.assert_close(again, value, rtol=2e-3, atol=0)
        row["others"][other] = {"seconds": taken, "ratio": taken / quick}
        print(f"    {other}: {taken * 1e3:.4g} ms, {taken / quick:.4g} times as long")
    return row


def flatness(quick: bool) -> dict:
    """κ of a small head, and of one with d = 128, K = 97, N = 512: a transformer on modular addition.

    For the latter `torch.func.hessian` needs tens of gigabytes, and is left out.
    """
    rows = {}
    for width, classes in [(32, 20)] if quick else [(32, 20), (128, 97)]:
        features, weight, labels = data = head(512, width, classes)
        slow = {"double loop of autograd": (partial(double_loop, *data), 1)}
        if width == 32:
            slow["torch.func.hessian"] = (partial(functional_hessian, *data), 3)
        name = f"relative flatness, d={width}, K={classes}, N=512"
        rows[name] = compare(name, partial(closed_form, features, weight, labels), slow)
    return rows


def collapse(quick: bool) -> dict:
    """Class-distance normalised variance of N = 20 000 samples of K = 1000 classes, d = 512."""
    samples, width, classes = (2000, 64, 100) if quick else (20_000, 512, 1000)
    features, _, labels = head(samples, width, classes)
    labels[: 2 * classes] = torch.arange(classes).repeat(2)
    features += 3 * torch.randn(classes, width, generator=torch.Generator().manual_seed(1))[labels]
    name = f"cdnv, d={width}, K={classes}, N={samples}"
    return {name: compare(name, lambda: cdnv(features, labels, num_classes=classes),
                          {"one-hot matrices and a loop": (lambda: pairwise_cdnv(features, labels, classes), 3)})}


def textbook(features: Tensor, weight: Tensor) -> Tensor:
    """κ by the formula that books have, Σ_c p_c ‖w_c‖² − ‖Σ_c p_c w_c‖²; it cancels where p is nearly one-hot."""
    p = (features @ weight.mT).softmax(-1)
    variance = (p @ weight.square().sum(-1, keepdim=True)).squeeze(-1) - (p @ weight).square().sum(-1)
    return (features.square().sum(-1) * variance).mean(-1)


def textbook_cdnv(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The measure from one-hot matrices and a table of all pairs."""
    hot = F.one_hot(labels, classes).to(features.dtype)
    means = (hot.mT @ features) / hot.sum(-2)[..., None]
    variances = (hot * (features - hot @ means).square().sum(-1, keepdim=True)).sum(-2) / hot.sum(-2)
    apart = (means[..., :, None, :] - means[..., None, :, :]).square().sum(-1)
    pairs = (variances[..., :, None] + variances[..., None, :]) / (2 * apart + torch.eye(classes))
    return (pairs * (1 - torch.eye(classes))).sum((-2, -1)) / (classes * (classes - 1))


def slopes(quick: bool) -> dict:
    """κ and CDNV in a loss: value and gradient, for 8 replicas of a small head, against autograd of the textbook."""
    classes, replicas = 31, 2 if quick else 8
    features, weight, labels = head(480, 128, classes, replicas)
    labels[:, : 2 * classes] = torch.arange(classes).repeat(2)
    inputs = features.requires_grad_(), weight.requires_grad_()

    def sizes(function: Callable[[], Tensor], *of: Tensor) -> Tensor:
        """Value and length of its gradients."""
        value = function().sum()
        return torch.stack([value.detach(), *(slope.norm() for slope in torch.autograd.grad(value, of))])

    def both(name: str, ours: Callable[[], Tensor], theirs: Callable[[], Tensor], *of: Tensor) -> dict:
        """One row."""
        name = f"{name} and its gradient, {replicas} replicas, d=128, K={classes}, N=480"
        slow = {"autograd of the textbook's formula": (lambda: sizes(theirs, *of), 20)}
        return {name: compare(name, lambda: sizes(ours, *of), slow)}

    return {
        **both("relative flatness", lambda: closed_form(*inputs, labels), lambda: textbook(*inputs), *inputs),
        **both("cdnv", lambda: cdnv(features, labels, num_classes=classes),
               lambda: textbook_cdnv(features, labels, classes), features),
    }


def together(quick: bool) -> dict:
    """All default measures of 64 replicas of a small head, at once and one by one."""
    replicas = 8 if quick else 64
    features, weight, labels = head(480, 128, 31, replicas)
    snapshot = Snapshot(features, features @ weight.mT, labels, weight, None, {"head": weight})

    def at_once() -> Tensor:
        return torch.stack(list(evaluate(snapshot, DEFAULT).values()))

    def one_by_one() -> Tensor:
        return torch.stack([MEASURES[name](snapshot) for name in DEFAULT])

    name = f"{len(DEFAULT)} measures of {replicas} replicas, d=128, K=31, N=480"
    return {name: compare(name, at_once, {"one by one": (one_by_one, 5)})}


def machine() -> dict:
    """What the numbers were measured on."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.processor())
    return {"processor": model, "threads": torch.get_num_threads(), "clock": "processor time",
            "torch": torch.__version__, "python": platform.python_version(),
            "date": datetime.date.today().isoformat()}


def main() -> None:
    """Run everything and, if asked, keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="small sizes, seconds instead of minutes")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {"machine": machine(), "measurements": {}}
    for part in (flatness, collapse, slopes, together):
        results["measurements"] |= part(options.quick)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
