"""Nothing of a step outlives it."""

import gc
import sys
import weakref
from pathlib import Path

import pytest
import torch

from grokscape.interventions import Clamp, NormalizeFeatures, Promote, WeightCap
from grokscape.measures import Snapshot
from grokscape.models import MLP, QuadraticMLP, Transformer
from grokscape.penalties import Gate
from grokscape.studies import StudySpec, plan
from grokscape.testbeds import ModularArithmetic
from grokscape.training import AdamW, Engine

FLATNESS = ("relative_flatness", "relative_flatness_bound", "relative_flatness_per_loss")
PENALTIES = (*FLATNESS, "cdnv", "nc1", "rnc1", "loss")
ARMS = {
    **{f"promoted-{name}": (Promote(name, strength=1e-4),) for name in PENALTIES},
    **{f"held-{name}": (Clamp(name, at_least=1e3, strength=1e-4),) for name in PENALTIES},
    "at rest": (Clamp("cdnv", at_least=1e-9),),
    "levers": (NormalizeFeatures(2.0), WeightCap(5.0)),
}


def resident() -> float:
    """Memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "model", [QuadraticMLP(width=256), MLP(widths=(256,)), Transformer(width=64, heads=2)], ids=lambda m: m.kind
)
def test_steps_and_measurements_leave_no_memory_behind(model):
    arms = [{"name": "baseline", "role": "baseline"}]
    arms += [{"name": name, "role": "manipulation", "interventions": list(some)} for name, some in ARMS.items()]
    spec = StudySpec(
        name="memory", title="Memory", testbed=ModularArithmetic(p=23, train_fraction=0.9), model=model,
        optimizer=AdamW(lr=1e-3), arms=arms, seeds=1, steps=1000,
    )
    engine = Engine(plan(spec, "cpu"))
    steps = iter(range(1000))

    def work():
        with torch.no_grad():
            for _ in range(8):
                engine.step(next(steps))
            engine.measure(next(steps))
        gc.collect()

    for _ in range(3):  # until the allocator has seen every size
        work()
    before = resident()
    work()
    work()
    assert resident() - before < 60, "MB; one step handles about half of that"


def test_a_gate_goes_with_the_last_that_knows_it():
    features = torch.randn(6, 3, requires_grad=True)
    gate = Gate(Snapshot(features, features, torch.arange(6) % 3, torch.eye(3)))
    gate(gate.snapshot.features.square().sum()).backward()
    known = weakref.ref(gate)
    del gate
    assert known() is None
