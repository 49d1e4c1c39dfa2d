"""A user's own `nn.Module` with a linear head, as a network of this library."""

import importlib
from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, field_serializer
from torch import nn

from grokscape.models.module_network import ModuleNetwork
from grokscape.settings import Settings
from grokscape.testbeds.types import InputSpec


class ModuleModel(Settings):
    """Networks made by a function of yours, one call per initialisation.

    The module takes inputs `(N, *input_shape)` and ends in a linear layer whose output is its answer. If every
    operation in it can be batched over replicas (`torch.func.vmap`), all replicas run as one; otherwise they run one
    after another, and `ModuleNetwork.reason` says why.

    Attributes:
        factory: function that makes a freshly initialised module, or where to import it from: "package.module:name".
            Specifications hold the latter; a study can be resumed if the function can be imported again.
        head: name of the linear layer at the end, such as "fc" or "classifier.3".
        arguments: keyword arguments of the factory.
    """

    kind: Literal["module"] = "module"
    factory: str | Callable[..., nn.Module]
    head: str
    arguments: dict[str, Any] = Field(default_factory=dict)

    @field_serializer("factory")
    def _path(self, factory: str | Callable[..., nn.Module]) -> str:
        return factory if isinstance(factory, str) else f"{factory.__module__}:{factory.__qualname__}"

    def make(self) -> nn.Module:
        """One module, initialised from PyTorch's global generator.

        Raises:
            ValueError: the factory cannot be found, or makes something else.
        """
        factory = self.factory if callable(self.factory) else _imported(self.factory)
        module = factory(**self.arguments)
        if not isinstance(module, nn.Module):
            raise ValueError(f"expected {self._path(self.factory)} to make an nn.Module, got {type(module).__name__}")
        return module

    def build(self, input_spec: InputSpec, num_classes: int) -> ModuleNetwork:
        """The network for inputs of the given kind and K classes; tries once whether replicas can be batched.

        Raises:
            ValueError: the head is no linear layer with K outputs at the end, or the module drops units at random.
        """
        return ModuleNetwork(self.make, self.head, input_spec, num_classes)


def _imported(path: str) -> Callable[..., nn.Module]:
    """The object at "package.module:function"."""
    module_name, _, name = path.partition(":")
    found: Any = None
    try:
        found = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"cannot import the model factory {path!r} ({error}); expected 'package.module:name' on the import path"
        ) from error
    if not callable(found):
        raise ValueError(f"expected {path!r} to be a function that makes an nn.Module, got {type(found).__name__}")
    return found
