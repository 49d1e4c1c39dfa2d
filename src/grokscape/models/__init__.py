"""Networks as frozen configurations; `build` turns one into a function of stacked parameters.

>>> import torch
>>> from grokscape.testbeds.types import InputSpec
>>> network = QuadraticMLP(width=8).build(InputSpec("tokens", (2,), vocabulary=5), num_classes=5)
>>> parameters = {name: value.unsqueeze(0) for name, value in network.init(torch.Generator().manual_seed(0)).items()}
>>> network.features(parameters, torch.tensor([[[0, 1], [2, 3], [4, 4]]])).shape
torch.Size([1, 3, 8])
"""

from typing import Annotated

from pydantic import Field

from grokscape.models.architectures import BERT, GPT2, ResNet, ViT
from grokscape.models.cnn import SmallCNN
from grokscape.models.mlp import MLP
from grokscape.models.module import ModuleModel
from grokscape.models.network import Network
from grokscape.models.pretrained import Pretrained
from grokscape.models.quadratic import QuadraticMLP
from grokscape.models.transformer import Transformer

Model = Annotated[
    QuadraticMLP | MLP | Transformer | SmallCNN | ModuleModel | ResNet | ViT | BERT | GPT2 | Pretrained,
    Field(discriminator="kind"),
]

__all__ = [
    "BERT",
    "GPT2",
    "MLP",
    "Model",
    "ModuleModel",
    "Network",
    "Pretrained",
    "QuadraticMLP",
    "ResNet",
    "SmallCNN",
    "Transformer",
    "ViT",
]
