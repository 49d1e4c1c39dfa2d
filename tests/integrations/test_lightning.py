"""A real Lightning Trainer on the CPU."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import grokscape as gs

lightning = pytest.importorskip("lightning.pytorch")
from grokscape.integrations.lightning import InterventionCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own advice on workers, loggers and leaves


class Module(lightning.LightningModule):
    def __init__(self, lr=0.5):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.ModuleDict({"body": nn.Linear(4, 6), "fc": nn.Linear(6, 3)})
        self.lr = lr

    def forward(self, x):
        return self.net["fc"](torch.relu(self.net["body"](x)))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return {"loss": F.cross_entropy(self(x), y)}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(24, 4, generator=generator), torch.arange(24) % 3)


def fit(module, data, callbacks, batch_size=24, shuffle=False, **options):
    options = {"max_steps": 1, **options}
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=callbacks, **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, batch_size=batch_size, shuffle=shuffle))
    return trainer


def hand_gradient(module, x, y, bound, strength, temperature=1.0):
    module = copy.deepcopy(module)
    features = torch.relu(module.net["body"](x))
    logits = module.net["fc"](features)
    loss = F.cross_entropy(logits, y) - strength * bound(features, module.net["fc"].weight, logits, temperature)
    return torch.autograd.grad(loss, list(module.parameters()))


@pytest.mark.parametrize(("batch_size", "accumulate"), [(24, 1), (12, 2)])
def test_one_step_follows_the_gradient_by_hand(data, bound, batch_size, accumulate):
    module = Module()
    before = copy.deepcopy(module)
    callback = InterventionCallback(
        [gs.Suppress("relative_flatness_bound", strength=0.05, temperature=2.0)], head="net.fc"
    )
    trainer = fit(module, data, [callback], batch_size, accumulate_grad_batches=accumulate)
    expected = hand_gradient(before, *data.tensors, bound, 0.05, 2.0)
    for new, old, gradient in zip(module.parameters(), before.parameters(), expected, strict=True):
        torch.testing.assert_close(new, old - 0.5 * gradient, rtol=1e-4, atol=1e-6)
    assert float(trainer.callback_metrics["grokscape/penalty"]) < 0


def test_measuring_changes_neither_weights_nor_random_numbers(data):
    def run(callbacks):
        module = Module()
        torch.manual_seed(9)
        fit(module, data, callbacks, batch_size=8, shuffle=True, max_steps=6)
        return module.state_dict(), torch.get_rng_state()

    loader = DataLoader(data, batch_size=10, shuffle=True)
    callback = InterventionCallback(measures=["cdnv", "relative_flatness"], every_n_steps=1, data=loader)
    (measured, numbers), (plain, same) = run([callback]), run([])
    assert torch.equal(numbers, same)
    assert all(torch.equal(measured[name], plain[name]) for name in plain)


def test_measures_are_those_of_the_whole_set(data):
    module = Module()
    callback = InterventionCallback(head="net.fc", measures=["relative_flatness", "cdnv"], data=data, test_data=data)
    trainer = fit(module, data, [callback], batch_size=8, max_steps=-1, max_epochs=1)
    expected = gs.measure(module, data, head="net.fc")
    for name in ("relative_flatness", "cdnv"):
        assert float(trainer.callback_metrics[f"grokscape/train/{name}"]) == pytest.approx(expected[name], rel=1e-5)
        assert f"grokscape/test/{name}" in trainer.callback_metrics
    assert "training_step" not in module.__dict__
    assert not module._forward_hooks


def test_a_hidden_layer_that_is_held_is_measured_in_batches(data):
    name = "relative_flatness@net.body"
    held = gs.Suppress(name, strength=0.5)
    callback = InterventionCallback([held], measures=[name, "cdnv"], every_n_steps=1, data=data, head="net.fc")
    metrics = fit(Module(), data, [callback], max_steps=-1, max_epochs=1).callback_metrics
    assert float(metrics[f"grokscape/batch/{name}"]) == pytest.approx(float(metrics["grokscape/penalty"]) / -0.5)
    assert metrics["grokscape/batch/cdnv"] > 0
    assert "grokscape/train/cdnv" in metrics
    assert f"grokscape/train/{name}" not in metrics


def test_cap_and_unplug(data):
    module, rates, norms = Module(), [], []

    class Watch(lightning.Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            rates.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]))

        def on_train_batch_end(self, trainer, pl_module, *rest):
            norms.append(float(pl_module.net["fc"].weight.norm()))

    arm = [gs.WeightCap(0.2), gs.NormalizeFeatures(), gs.Unplug(3, lr=0.1, cosine=True, weight_decay=2e-4)]
    fit(module, data, [InterventionCallback(arm, head="net.fc"), Watch()], batch_size=8, max_steps=6, max_epochs=2)
    assert norms[0] == pytest.approx(0.2, rel=1e-5)
    assert max(norms[:3]) <= 0.2 + 1e-6
    after = [0.1, 0.1 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi / 3)).item())]
    assert [r for r, _ in rates][:3] == [0.5] * 3
    assert [r for r, _ in rates][4:6] == pytest.approx(after, rel=1e-6)
    assert rates[-1][1] == 2e-4


def test_a_training_step_that_calls_a_part_of_the_module(data):
    class Parts(Module):
        def training_step(self, batch, batch_idx):
            x, y = batch
            return F.cross_entropy(self.net["fc"](torch.relu(self.net["body"](x))), y)

    arm, weights = [gs.Suppress("cdnv", strength=1e-3)], []
    for kind in (Module, Parts):
        module = kind()
        fit(module, data, [InterventionCallback(arm, data=data, measures=["cdnv"])], 8, max_steps=-1, max_epochs=2)
        weights.append(module.net["fc"].weight)
    assert torch.equal(*weights)


def test_a_module_that_was_compiled_as_a_whole(data):
    arm, weights = [gs.Suppress("cdnv", strength=1e-3)], []
    for wrap in (lambda module: module, lambda module: torch.compile(module, backend="eager")):
        module = Module()
        callback = InterventionCallback(arm, data=data, measures=["cdnv"])
        fit(wrap(module), data, [callback], 8, max_steps=-1, max_epochs=2)
        weights.append(module.net["fc"].weight)
    torch.testing.assert_close(*weights)
    assert hasattr(module.training_step, "_torchdynamo_orig_callable")


def test_batches_of_which_nobody_knows_the_labels(data):
    class Two(Module):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["one"], batch_idx)

    loaders = {"one": DataLoader(data, 8), "two": DataLoader(data, 8)}
    arm = [gs.Suppress("cdnv", strength=1e-3)]
    options = {"logger": False, "enable_checkpointing": False, "max_epochs": 1}
    with pytest.raises(ValueError, match="needs an entry 'labels'") as raised:
        lightning.Trainer(callbacks=[InterventionCallback(arm)], **options).fit(Two(), loaders)
    assert "InterventionCallback(labels=…)" in raised.value.__notes__[0]
    known = InterventionCallback(arm, labels=lambda batch: batch["one"][1])
    lightning.Trainer(callbacks=[known], **options).fit(Two(), loaders)


def test_a_training_whose_length_nobody_knows(data):
    class Stop(lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = True

    endless = {"max_steps": -1, "max_epochs": -1}
    fit(Module(), data, [InterventionCallback([gs.Clamp("cdnv", at_least=1.0)]), Stop()], **endless)
    with pytest.raises(ValueError, match=r"pass steps= \(max_steps of a Trainer\)"):
        fit(Module(), data, [InterventionCallback([gs.Unplug(2, cosine=True)]), Stop()], **endless)


def test_manual_optimisation_says_what_to_use(data):
    class Manual(Module):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(ValueError, match=r"grokscape\.integrations\.Applied"):
        fit(Manual(), data, [InterventionCallback()])


def test_a_clamp_that_needs_a_study():
    with pytest.raises(ValueError, match="give absolute levels here"):
        InterventionCallback([gs.Clamp("cdnv", at_least=2.0, relative_to="memorisation")])
    with pytest.raises(ValueError, match="Rescale changes the initial weights, which a study makes; leave it out"):
        InterventionCallback([gs.interventions.Rescale(factor=2.0)])
