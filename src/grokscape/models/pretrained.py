"""Pretrained models of `transformers`, from the hub or a folder, as networks of studies.

What a body is, an encoder or a decoder, and whether it takes a mask that is spelled out, is found out by calling it:
names and configurations do not tell.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from grokscape.models.architectures import (
    Architecture,
    Classifier,
    Place,
    first_token_of_image,
    need,
    pooled_image,
    read_text,
    scaled,
    transformers_package,
)
from grokscape.models.module_checks import random_inputs
from grokscape.settings import Size
from grokscape.testbeds.hub import first_line, pretrained
from grokscape.testbeds.types import InputSpec

Features = Callable[[nn.Module, Tensor], Tensor]


class Pretrained(Architecture):
    """The body of a pretrained model by name or folder, with a fresh linear head.

    Every seed starts from the same body; the head is drawn, and what weights the body lacks. It is float32, and drops
    nothing out.

    Attributes:
        name: on the hub, such as "distilgpt2", or a folder made by `save_pretrained`.
        features: where the features come from: "pooled" (the model's own pooling), "first" or "last" token; "auto" for
            the last token of decoders, else pooled where the model pools, else the first. Of images, "auto" passes by
            a pooling with a dense layer, which is not always trained.
        pixels: size that images are scaled to; None for the model's.
    """

    kind: Literal["pretrained"] = "pretrained"
    name: str
    features: Literal["auto", "pooled", "first", "last"] = "auto"
    pixels: Size | None = None

    def make(self, input_spec: InputSpec, num_classes: int) -> nn.Module:
        """The pretrained body with a new head."""
        if input_spec.kind != "image":
            need("tokens", input_spec, "pretrained language model")
        hf = transformers_package()
        config = pretrained(hf.AutoConfig.from_pretrained, self.name, "model")
        _drop_nothing(config)
        load = partial(hf.AutoModel.from_pretrained, config=config, dtype=torch.float32)
        body: nn.Module = pretrained(load, self.name, "model").eval()
        _check_fits(config, input_spec)
        read = self._of_images if input_spec.kind == "image" else self._of_texts
        inputs = random_inputs(input_spec)[0]
        try:
            with torch.no_grad():
                features = read(body, inputs, input_spec)
                width = features(body, inputs).shape[-1]
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            takes = "pixel_values" if input_spec.kind == "image" else "input_ids and an attention_mask"
            raise ValueError(
                f"{self.name!r}, a {type(body).__name__}, makes no features of {input_spec.kind} inputs of shape "
                f"{tuple(input_spec.shape)} ({first_line(error)}); expected a model that takes {takes} alone"
            ) from error
        return Classifier(body, features, width, num_classes, 0.02)

    def _of_images(self, body: nn.Module, images: Tensor, input_spec: InputSpec) -> Features:
        size = getattr(body.config, "image_size", None)
        pixels = self.pixels or (size if isinstance(size, int) else None)
        output = body(pixel_values=scaled(images, pixels))
        tokens = output.last_hidden_state.dim() == 3
        dense = any(isinstance(part, nn.Linear) for part in getattr(body, "pooler", nn.Identity()).modules())
        place = self._place(output, "first" if tokens and (dense or not _pools(output)) else "pooled")
        if place == "last" or (place == "first" and not tokens):
            raise ValueError(f"of images it makes no {place} token")
        return partial(pooled_image if place == "pooled" else first_token_of_image, pixels=pixels)

    def _of_texts(self, body: nn.Module, tokens: Tensor, input_spec: InputSpec) -> Features:
        """With the mask spelled out where that says what the body's own reading of it does."""
        padding = input_spec.padding
        tokens = _other(tokens, padding, input_spec.vocabulary)
        output, changed = body(input_ids=tokens), tokens.clone()
        changed[:, -1] = _other(changed[:, -1] + 1, padding, input_spec.vocabulary)
        first, again = (out.last_hidden_state[:, 0] for out in (output, body(input_ids=changed)))
        causal = torch.equal(first, again)
        place = self._place(output, "last" if causal else "pooled" if _pools(output) else "first")
        spelled = partial(read_text, padding=padding, causal=causal, place=place)
        own = partial(spelled, spelled=False)
        if padding is not None:
            tokens[::2, (tokens.shape[1] + 1) // 2 :] = padding
        expected = own(body, tokens)
        try:
            apart = spelled(body, tokens) - expected
        except (RuntimeError, TypeError, ValueError, IndexError):
            return own
        return spelled if apart.norm() <= 1e-4 * expected.norm() else own

    def _place(self, output: Any, usual: Place) -> Place:
        place = usual if self.features == "auto" else self.features
        if place == "pooled" and not _pools(output):
            raise ValueError("it does not pool; take features='first' or 'last'")
        return place


def _pools(output: Any) -> bool:
    return getattr(output, "pooler_output", None) is not None


def _other(tokens: Tensor, padding: int | None, vocabulary: int) -> Tensor:
    """Tokens of the vocabulary, none of them padding."""
    tokens = tokens % vocabulary
    return tokens.where(tokens != padding, (tokens + 1) % vocabulary) if padding is not None else tokens


def _drop_nothing(config: Any) -> None:
    """Set every rate at which something is left out at random to zero, those of functions too."""
    for name, value in list(vars(config).items()):
        if "drop" in name and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, name, type(value)(0))
        elif hasattr(value, "to_dict"):
            _drop_nothing(value)


def _check_fits(config: Any, input_spec: InputSpec) -> None:
    """Refuse texts that are longer than a pretrained language model reads, or of other tokens."""
    sizes = (getattr(config, of, None) or 0 for of in ("max_position_embeddings", "vocab_size"))
    longest, known = (size if size > 0 else math.inf for size in sizes)
    if input_spec.kind == "tokens" and (input_spec.shape[0] > longest or input_spec.vocabulary > known):
        raise ValueError(
            f"{config.name_or_path!r} reads texts of up to {longest} tokens out of {known}, got {input_spec.shape[0]} "
            f"out of {input_spec.vocabulary}; make the testbed's length shorter, and give it the model's own tokenizer"
        )
