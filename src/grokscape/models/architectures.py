"""ResNet, ViT, BERT and GPT-2 of `transformers`, from configuration, as networks of studies.

The body comes from transformers (an optional dependency), the head is one linear layer of our own. Nothing is dropped
out at random. Images of another size than asked for are scaled in the network.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from grokscape.models.module_network import ModuleNetwork
from grokscape.settings import Layers, Settings, Size, Sizes
from grokscape.testbeds.types import InputSpec

Place = Literal["pooled", "first", "last"]
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def transformers_package() -> Any:
    """The package `transformers`.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"this model needs transformers ({error}): pip install 'grokscape[hf]'") from error
    return transformers


class Classifier(nn.Module):
    """A body, a choice of features in what it puts out, and a linear head.

    Args:
        body: of transformers.
        features: body and inputs → (N, d).
        width: d.
        num_classes: K.
        head_std: standard deviation of the head's initial weights, with biases at zero; None for PyTorch's own.
    """

    def __init__(
        self,
        body: nn.Module,
        features: Callable[[nn.Module, Tensor], Tensor],
        width: int,
        num_classes: int,
        head_std: float | None = None,
    ) -> None:
        super().__init__()
        self.body = body
        self._features = features
        self.head = nn.Linear(width, num_classes)
        if head_std is not None:
            nn.init.normal_(self.head.weight, std=head_std)
            nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (N, K)."""
        return self.head(self._features(self.body, inputs))


def scaled(images: Tensor, pixels: int | None) -> Tensor:
    """Images (N, C, H, W) at a size; as they are for None."""
    if pixels is None or images.shape[-2:] == (pixels, pixels):
        return images
    return F.interpolate(images, size=(pixels, pixels), mode="bilinear", align_corners=False)


def pooled_image(body: nn.Module, images: Tensor, *, pixels: int | None) -> Tensor:
    """What a body pools of images."""
    return body(pixel_values=scaled(images, pixels)).pooler_output.flatten(1)


def first_token_of_image(body: nn.Module, images: Tensor, *, pixels: int | None) -> Tensor:
    """The first of the tokens that a body makes of images."""
    return body(pixel_values=scaled(images, pixels)).last_hidden_state[:, 0]


def _present(tokens: Tensor, padding: int | None) -> Tensor:
    """Which positions hold a token, (N, T)."""
    return torch.ones_like(tokens, dtype=torch.bool) if padding is None else tokens != padding


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """What to add to attention scores: 0 where visible, the most negative number elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)


def read_text(
    body: nn.Module, tokens: Tensor, *, padding: int | None, causal: bool, place: Place, spelled: bool = True
) -> Tensor:
    """Features of texts (N, T): what the body pools, or its first or last token, padding apart.

    The mask is spelled out for every pair of positions, which can be batched over replicas, or else left to the body.
    """
    present = _present(tokens, padding)
    mask = present.long()
    if spelled:
        pairs = present[:, None, None, :].expand(-1, 1, tokens.shape[1], -1)
        mask = _additive(pairs.tril() if causal else pairs, _dtype(body))
    output = body(input_ids=tokens, attention_mask=mask)
    if place == "pooled":
        return output.pooler_output
    if place == "first":
        return output.last_hidden_state[:, 0]
    last = (present.sum(1) - 1).clamp(min=0)
    index = last[:, None, None].expand(-1, 1, output.last_hidden_state.shape[-1])
    return output.last_hidden_state.gather(1, index).squeeze(1)


def _dtype(body: nn.Module) -> torch.dtype:
    return next(body.parameters()).dtype


class Architecture(Settings):
    """A network of transformers' parts, as settings."""

    _one_by_one: ClassVar[str | None] = None

    def make(self, input_spec: InputSpec, num_classes: int) -> nn.Module:
        """One module, initialised from PyTorch's global generator."""
        raise NotImplementedError

    def build(self, input_spec: InputSpec, num_classes: int) -> ModuleNetwork:
        """The network for inputs of the given kind and K classes.

        Raises:
            ValueError: the inputs are of another kind.
            ImportError: transformers is not installed.
        """
        make = partial(self.make, input_spec, num_classes)
        return ModuleNetwork(make, "head", input_spec, num_classes, self._one_by_one)


def need(kind: str, input_spec: InputSpec, model: str) -> None:
    """Refuse inputs of another kind than a model takes."""
    if input_spec.kind != kind:
        raise ValueError(f"a {model} needs {kind} inputs, got {input_spec.kind!r} inputs; choose a testbed with {kind}")


def _tokens(vocabulary: int | None, input_spec: InputSpec) -> int:
    """Size of the vocabulary: as asked for, or the testbed's."""
    if vocabulary is not None and vocabulary < input_spec.vocabulary:
        raise ValueError(
            f"expected a vocabulary of at least the testbed's {input_spec.vocabulary} tokens, got {vocabulary}; "
            f"leave it out for the testbed's"
        )
    return vocabulary or input_spec.vocabulary


class ResNet(Architecture):
    """ResNet with basic blocks (He et al. 2016); the defaults are ResNet-18.

    Attributes:
        widths: channels of each stage; the last is the number of features d.
        depths: blocks of each stage.
        stem: "imagenet" is torchvision's (7 × 7, stride 2, max-pooling), "cifar" is 3 × 3 with stride 1.
        pixels: size that images are scaled to; None for their own.
    """

    _one_by_one: ClassVar[str | None] = "one replica after another: batch normalisation keeps statistics of its own"

    kind: Literal["resnet"] = "resnet"
    widths: Sizes = (64, 128, 256, 512)
    depths: Sizes = (2, 2, 2, 2)
    stem: Literal["imagenet", "cifar"] = "imagenet"
    pixels: Size | None = Field(default=None, ge=8)

    @model_validator(mode="after")
    def _stage_by_stage(self) -> "ResNet":
        if len(self.widths) != len(self.depths):
            raise ValueError(
                f"expected as many widths as depths, one per stage, got {len(self.widths)} and {len(self.depths)}"
            )
        return self

    def make(self, input_spec: InputSpec, num_classes: int) -> nn.Module:
        """One ResNet."""
        need("image", input_spec, "resnet")
        hf = transformers_package()
        config = hf.ResNetConfig(
            num_channels=input_spec.shape[0],
            embedding_size=self.widths[0],
            hidden_sizes=list(self.widths),
            depths=list(self.depths),
            layer_type="basic",
        )
        body = hf.ResNetModel(config)
        if self.stem == "cifar":
            first = nn.Conv2d(input_spec.shape[0], self.widths[0], 3, padding=1, bias=False)
            nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
            body.embedder.embedder.convolution = first
            body.embedder.pooler = nn.Identity()
        return Classifier(body, partial(pooled_image, pixels=self.pixels), self.widths[-1], num_classes)


class ViT(Architecture):
    """Vision transformer (Dosovitskiy et al. 2021); the defaults are ViT-tiny with 16 × 16 patches.

    Attributes:
        patch: pixels of a patch's side.
        width: d.
        layers, heads: of the encoder.
        mlp_ratio: hidden units of a block's MLP, in multiples of `width`.
        pixels: size that images are scaled to; None for their own.
    """

    kind: Literal["vit"] = "vit"
    patch: Size = 16
    width: Size = 192
    layers: Layers = 12
    heads: Size = 3
    mlp_ratio: Size = 4
    pixels: Size | None = None

    def make(self, input_spec: InputSpec, num_classes: int) -> nn.Module:
        """One ViT."""
        need("image", input_spec, "vit")
        pixels = self.pixels or min(input_spec.shape[1:])
        if pixels < self.patch:
            raise ValueError(
                f"expected images of at least a patch, {self.patch} pixels, got {pixels}; use a smaller patch"
            )
        hf = transformers_package()
        config = hf.ViTConfig(
            image_size=self.pixels or input_spec.shape[-1],
            num_channels=input_spec.shape[0],
            patch_size=self.patch,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.mlp_ratio * self.width,
            **_NO_DROPOUT,
        )
        body = hf.ViTModel(config, add_pooling_layer=False)
        return Classifier(body, partial(first_token_of_image, pixels=self.pixels), self.width, num_classes, 0.02)


class BERT(Architecture):
    """BERT encoder with its pooler (Devlin et al. 2019); the defaults are TinyBERT's shape (Jiao et al. 2020).

    Attributes:
        width: d.
        layers, heads: of the encoder.
        hidden: hidden units of a block's MLP.
        vocabulary: tokens; None for the testbed's.
    """

    kind: Literal["bert"] = "bert"
    width: Size = 312
    layers: Layers = 4
    heads: Size = 12
    hidden: Size = 1200
    vocabulary: Size | None = None

    def make(self, input_spec: InputSpec, num_classes: int) -> nn.Module:
        """One BERT."""
        need("tokens", input_spec, "bert")
        hf = transformers_package()
        config = hf.BertConfig(
            vocab_size=_tokens(self.vocabulary, input_spec),
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.hidden,
            max_position_embeddings=max(input_spec.shape[0], 8),
            pad_token_id=input_spec.padding,
            **_NO_DROPOUT,
        )
        features = partial(read_text, padding=input_spec.padding, causal=False, place="pooled")
        return Classifier(hf.BertModel(config), features, self.width, num_classes, 0.02)


class GPT2(Architecture):
    """GPT-2 decoder read at the last token (Radford et al. 2019); the defaults are DistilGPT2's shape.

    Attributes:
        width: d.
        layers, heads: of the decoder.
        vocabulary: tokens; None for the testbed's.
    """

    kind: Literal["gpt2"] = "gpt2"
    width: Size = 768
    layers: Layers = 6
    heads: Size = 12
    vocabulary: Size | None = None

    def make(self, input_spec: InputSpec, num_classes: int) -> nn.Module:
        """One GPT-2."""
        need("tokens", input_spec, "gpt2")
        hf = transformers_package()
        config = hf.GPT2Config(
            vocab_size=_tokens(self.vocabulary, input_spec),
            n_embd=self.width,
            n_layer=self.layers,
            n_head=self.heads,
            n_positions=max(input_spec.shape[0], 8),
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=input_spec.padding,
            use_cache=False,
        )
        features = partial(read_text, padding=input_spec.padding, causal=True, place="last")
        return Classifier(hf.GPT2Model(config), features, self.width, num_classes, 0.02)
