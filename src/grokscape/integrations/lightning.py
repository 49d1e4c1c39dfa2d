"""Interventions and measures as a Lightning callback."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from grokscape.integrations.applied import Applied, check_outside_studies, of_whole_sets
from grokscape.interventions import Intervention
from grokscape.measures import measure
from grokscape.measures.batches import as_batch

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError(f"this needs Lightning ({error}); pip install 'grokscape[lightning]'") from error


class InterventionCallback(Callback):
    """Adds penalties to the loss of `training_step`, caps and unplugs, and logs measures.

        trainer = Trainer(callbacks=[InterventionCallback([gs.Clamp("cdnv", at_least=1.2)], head="net.fc")])

    For automatic optimisation with any precision, accumulation and strategy; `training_step` returns the loss or a
    mapping with "loss". Logged are `grokscape/penalty`, `grokscape/batch/NAME` of training batches, and, where `data`
    is given, `grokscape/train/NAME` and `grokscape/test/NAME` of whole data sets at fixed weights. Measuring draws no
    random numbers of the training.

    Args:
        interventions: as in an arm of a study.
        head: name of the head in the LightningModule, such as "net.fc"; None to look for it.
        measures: names of `grokscape.MEASURES`; of batches also "relative_flatness@LAYER" that a penalty is about.
        every_n_steps: how often batches are measured.
        data, test_data: what `grokscape.measure` takes; measured at the end of epochs. The module's `forward` must
            return logits.
        every_n_epochs: how often.
        labels: gets the labels out of a batch; by default the last entry, or "labels".
    """

    def __init__(
        self,
        interventions: Sequence[Intervention] = (),
        *,
        head: str | None = None,
        measures: Sequence[str] = (),
        every_n_steps: int = 50,
        data: Any = None,
        test_data: Any = None,
        every_n_epochs: int = 1,
        labels: Callable[[Any], Tensor] | None = None,
    ) -> None:
        check_outside_studies(interventions)
        self.interventions, self.head, self.measures = tuple(interventions), head, tuple(measures)
        self.every_n_steps, self.every_n_epochs = every_n_steps, every_n_epochs
        self.data, self.test_data = data, test_data
        self._labels = labels or _last_or_named
        self._arm: Applied | None = None
        self._compiled_step: Callable[..., Any] | None = None
        self._steps_made = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for the head and put the penalties into `training_step`."""
        if not pl_module.automatic_optimization:
            raise ValueError(
                "InterventionCallback works with automatic optimisation; with manual optimisation use "
                "grokscape.integrations.Applied in training_step"
            )
        steps = trainer.estimated_stepping_batches  # infinity for a training that others will end
        length = None if math.isinf(steps) else int(steps)
        self._arm = Applied(pl_module, self.interventions, head=self.head, steps=length).__enter__()
        self._steps_made = trainer.global_step
        own = pl_module.training_step
        self._compiled_step = pl_module.__dict__.get("training_step")

        @functools.wraps(own)
        def training_step(batch: Any, *arguments: Any, **keywords: Any) -> Any:
            """The module's own step, with the penalty added to its loss."""
            return self._training_step(own, trainer, pl_module, batch, *arguments, **keywords)

        pl_module.__dict__["training_step"] = training_step

    def _training_step(
        self, own: Callable[..., Any], trainer: Trainer, pl_module: LightningModule, batch: Any, *rest: Any, **more: Any
    ) -> Any:
        arm, step = self._arm, trainer.global_step
        assert arm is not None
        arm.before_forward(step)
        output = own(batch, *rest, **more)
        loss = output["loss"] if isinstance(output, dict) else output
        if loss is None:
            return None
        labels = self._labels(batch)
        penalty = arm.penalty(labels, step)
        self._log_batch(arm, pl_module, labels, penalty, step)
        return {**output, "loss": loss + penalty} if isinstance(output, dict) else loss + penalty

    def _log_batch(self, arm: Applied, pl_module: LightningModule, labels: Tensor, penalty: Tensor, step: int) -> None:
        values: dict[str, Any] = {}
        if self.interventions:
            values["grokscape/penalty"] = penalty.detach()
        if self.measures and step % self.every_n_steps == 0:
            values |= {f"grokscape/batch/{k}": v for k, v in arm.measures(labels, self.measures).items()}
        if values:
            pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=len(labels))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Unplug."""
        if self._arm is not None:
            self._arm.before_step(optimizer, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Cap the head's weight after an optimiser step."""
        if self._arm is not None and trainer.global_step > self._steps_made:
            self._steps_made = trainer.global_step
            self._arm.after_step(trainer.global_step - 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure whole data sets at fixed weights."""
        if self.data is None or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        with torch.random.fork_rng():
            found = measure(
                pl_module, self.data, self.head, self.test_data, measures=of_whole_sets(self.measures) or None
            )
        values = {f"grokscape/{k if '/' in k else f'train/{k}'}": v for k, v in found.items()}
        pl_module.log_dict(values, on_epoch=True, batch_size=1)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take everything off again."""
        self._remove(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take everything off again."""
        self._remove(pl_module)

    def _remove(self, pl_module: LightningModule) -> None:
        if self._arm is not None:
            self._arm.__exit__(None, None, None)
            pl_module.__dict__.pop("training_step", None)
            if self._compiled_step is not None:
                pl_module.__dict__["training_step"] = self._compiled_step
            self._arm = None


def _last_or_named(batch: Any) -> Tensor:
    """The labels of a batch."""
    try:
        return as_batch(batch).labels
    except (TypeError, ValueError) as error:
        error.add_note("InterventionCallback(labels=…) takes a function that gets the labels out of other batches")
        raise
