"""A replica of a run, taken out of its newest checkpoint: a PyTorch module and the data that it was trained on."""

from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from grokscape.interventions import NormalizeFeatures, Rescale
from grokscape.store import RunFolder, RunFolderError
from grokscape.training.checkpoint import newest
from grokscape.training.engine import Engine
from grokscape.training.levers import Levers
from grokscape.training.plan import Plan

_ROW = slice(0, 1)


class Trained(NamedTuple):
    """A trained network with its data.

    Attributes:
        model: inputs → logits, with a linear head, in evaluation mode.
        train, test: inputs as the network sees them (N, …), and labels (N,).
        step: how many training steps it has made; of a replica that diverged, the last whose loss was finite.
    """

    model: nn.Module
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    step: int


def take_out(plan: Plan, folder: RunFolder, row: int) -> Trained:
    """The network of one replica as its run left it, or as it stands in the newest checkpoint.

    Args:
        plan: of this replica alone.
        folder: where it was trained.
        row: its number in that run.

    Raises:
        RunFolderError: there is no undamaged checkpoint of this study.
    """
    found = newest(folder)
    if found is None:
        raise RunFolderError(
            f"expected a checkpoint in {folder.path}, got none: the run has made no step yet, or they were removed"
        )
    (about, packed), engine = found, Engine(plan)
    parameters = {name: value[0] for name, value in engine.layout.view(packed["flat"][row, None]).items()}
    buffers = {name: packed[f"buffers/{name}"][row] for name in engine.state.buffers}
    model = plan.network.single(parameters, buffers).eval()
    step = about["step"] if packed["alive"][row] else int(packed["last_good"][row])
    if any(isinstance(each, NormalizeFeatures | Rescale) for each in plan.replicas[0].interventions):
        head = model.get_submodule(plan.network.head_layer)
        head.register_forward_pre_hook(partial(_as_they_stand, engine.levers, step))
    sides = [engine.batches.all(side, _ROW) for side in ("train", "test")]
    train, test = ((engine.batches.seen(inputs, _ROW)[0], labels[0]) for inputs, labels in sides)
    return Trained(model, train, test, step)


def _as_they_stand(levers: Levers, step: int, _: nn.Module, arguments: tuple[Tensor]) -> Tensor:
    """A hook that gives the head features (N, d) as interventions leave them."""
    return levers.features(arguments[0][None], step, _ROW)[0]
