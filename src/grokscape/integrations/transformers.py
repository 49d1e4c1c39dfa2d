"""Interventions and measures in the Trainer of transformers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from grokscape.integrations.applied import Applied, of_whole_sets
from grokscape.interventions import Intervention
from grokscape.measures import measure

try:
    from transformers import Trainer, TrainerCallback
except ImportError as error:  # pragma: no cover - depends on the installation
    raise ImportError(f"this needs transformers ({error}); pip install 'grokscape[hf]'") from error


if TYPE_CHECKING:  # the mixin calls what it is mixed with
    from transformers import Trainer as _Mixed
else:
    _Mixed = object


class InterventionMixin(_Mixed):
    """For a `Trainer` of one's own: penalties in the loss, caps, unplugging, logged measures.

        class MyTrainer(InterventionMixin, Trainer): ...

    Put it before `Trainer`; it takes the arguments below and hands the others on. Works with gradient accumulation,
    mixed precision and label smoothing. Logged with the Trainer's own entries are `penalty` (mean since the last log)
    and `batch_NAME` of the last batch; where `data` is given also `train_NAME` and `test_NAME` after each epoch.

    A penalty is a mean over the accumulated batch. Some models (BERT's classifiers in transformers 5) return the mean
    over a micro-batch although the Trainer takes it for scaled; set `trainer.loss_is_scaled_for_ga = False` for them,
    with or without interventions, or their loss grows with the accumulation, and `average_tokens_across_devices=False`
    in the arguments, or it grows with the number of processes.

    Args:
        interventions: as in an arm of a study.
        head: name of the head; None to look for it.
        measures: names of `grokscape.MEASURES`; of batches also "relative_flatness@LAYER" that a penalty is about.
        data, test_data: datasets of the Trainer's kind, or loaders of batches, measured whole at fixed weights after
            each epoch.
    """

    def __init__(
        self,
        *arguments: Any,
        interventions: Sequence[Intervention] = (),
        head: str | None = None,
        measures: Sequence[str] = (),
        data: Any = None,
        test_data: Any = None,
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.interventions, self.head, self.measures = tuple(interventions), head, tuple(measures)
        self.data, self.test_data = data, test_data
        self.arm: Applied | None = None
        self.penalties: list[Tensor] = []
        self.last_measures: dict[str, float] = {}
        self.add_callback(_Events(self))

    def train(self, *arguments: Any, **keywords: Any) -> Any:
        """Train as the Trainer does, with the interventions in place meanwhile."""
        try:
            return super().train(*arguments, **keywords)
        finally:
            self.remove()

    def remove(self) -> None:
        """Take everything off the model."""
        if self.arm is not None:
            self.arm.__exit__(None, None, None)
            self.arm = None

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **keywords: Any) -> Any:
        """The Trainer's loss plus the penalties."""
        labels = inputs.get("labels")
        training = self.arm is not None and model.training
        if training:
            assert self.arm is not None
            self.arm.before_forward(self.state.global_step)
        found = super().compute_loss(model, inputs, return_outputs=return_outputs, **keywords)
        if not training:
            return found
        if labels is None:
            raise ValueError("penalties need the labels of each batch; the data collator must give a 'labels' entry")
        loss, outputs = found if return_outputs else (found, None)
        loss = loss + self._penalty(labels) / self._accumulated(keywords.get("num_items_in_batch"))
        return (loss, outputs) if return_outputs else loss

    def _penalty(self, labels: Tensor) -> Tensor:
        assert self.arm is not None
        penalty = self.arm.penalty(labels, self.state.global_step)
        self.penalties.append(penalty.detach())
        if self.measures and self._logs_next():
            self.last_measures = self.arm.measures(labels, self.measures)
        return penalty

    def _logs_next(self) -> bool:
        every = self.args.logging_steps
        return every < 1 or (self.state.global_step + 1) % int(every) == 0

    def _accumulated(self, items: Any) -> int:
        """By how much to divide a penalty that the Trainer will add up over micro-batches without dividing it."""
        stated = getattr(self, "loss_is_scaled_for_ga", None)
        scaled = (self.model_accepts_loss_kwargs and items is not None) or self.compute_loss_func is not None
        scaled = scaled if stated is None else stated
        return self.current_gradient_accumulation_steps if scaled else 1

    def log(self, logs: dict[str, float], *arguments: Any, **keywords: Any) -> None:
        """The Trainer's log with penalty and measures of the batch added."""
        if "loss" in logs and self.penalties:
            if self.interventions:
                logs["penalty"] = float(torch.stack(self.penalties).mean())
            logs |= {f"batch_{name}": value for name, value in self.last_measures.items()}
            self.penalties = []
        super().log(logs, *arguments, **keywords)

    def log_whole(self) -> None:
        """Measure `data` and `test_data` at fixed weights and log the values."""
        with torch.random.fork_rng():
            data, test_data = self._loader(self.data), self._loader(self.test_data)
            found = measure(self.model, data, self.head, test_data, measures=of_whole_sets(self.measures) or None)
        self.log({k.replace("/", "_") if "/" in k else f"train_{k}": v for k, v in found.items()})

    def _loader(self, data: Any) -> Any:
        """All of a data set, as often as it is asked for; the Trainer's own loader gives a process its share."""
        if data is None or isinstance(data, DataLoader):
            return data
        its = self.get_test_dataloader(data)
        rows = data if isinstance(data, IterableDataset) else its.dataset
        return DataLoader(rows, self.args.eval_batch_size, collate_fn=its.collate_fn, num_workers=its.num_workers)


class _Events(TrainerCallback):
    """What happens around the loss."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **keywords: Any) -> None:
        """Look for the head and watch it."""
        mine = self._trainer
        mine.remove()
        wrapped = getattr(mine, "model_wrapped", None)
        outer = model if wrapped is None else wrapped  # a compiled model has no truth value
        mine.arm = Applied(outer, mine.interventions, head=mine.head, steps=state.max_steps).__enter__()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """Unplug."""
        self._trainer.arm.before_step(self._trainer.optimizer, state.global_step)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """Cap the head's weight."""
        self._trainer.arm.after_step(state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """Measure whole data sets."""
        if self._trainer.data is not None:
            self._trainer.log_whole()


class InterventionTrainer(InterventionMixin, Trainer):
    """`Trainer` with interventions and measures; see `InterventionMixin`.

    trainer = InterventionTrainer(model, args, train_dataset=data, interventions=[gs.Suppress("cdnv", strength=1e-3)])
    """
