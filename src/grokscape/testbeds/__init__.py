"""Tasks as frozen configurations; `split(seed)` gives labelled samples to train on and to test on.

>>> task = ModularArithmetic(operation="x+y", p=31)
>>> split = task.split(seed=0)
>>> split.train_inputs.shape, split.test_inputs.shape, split.num_classes
(torch.Size([480, 2]), torch.Size([481, 2]), 31)
"""

from typing import Annotated

from pydantic import Field

from grokscape.testbeds.corpus import Sentiment
from grokscape.testbeds.digits import Digits
from grokscape.testbeds.modular import ModularArithmetic
from grokscape.testbeds.parity import SparseParity
from grokscape.testbeds.permutations import SymmetricGroup
from grokscape.testbeds.pictures import Images
from grokscape.testbeds.tensors import TensorTask
from grokscape.testbeds.texts import Texts
from grokscape.testbeds.types import InputSpec, Split

Task = Annotated[
    ModularArithmetic | SymmetricGroup | SparseParity | Digits | Sentiment | Images | Texts | TensorTask,
    Field(discriminator="kind"),
]
"""Any task, told apart by `kind`."""

__all__ = [
    "Digits",
    "Images",
    "InputSpec",
    "ModularArithmetic",
    "Sentiment",
    "SparseParity",
    "Split",
    "SymmetricGroup",
    "Task",
    "TensorTask",
    "Texts",
]
