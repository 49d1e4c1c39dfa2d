"""Text classification on data sets of the hub or of a folder."""

import re
from collections import Counter
from functools import lru_cache
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from grokscape.settings import Settings, Size
from grokscape.testbeds.hub import column_of, labels_of, load_tables, pretrained
from grokscape.testbeds.pictures import some
from grokscape.testbeds.splits import assigned
from grokscape.testbeds.types import InputSpec, Split

PADDING, UNKNOWN, START = 0, 1, 2
_WORD = re.compile(r"\w+|[^\w\s]")


class Texts(Settings):
    """Texts and their classes, as token sequences of one length.

    Attributes:
        source: name on the hub, or a folder (see `grokscape.testbeds.hub`).
        config: the hub's configuration, where there are several; of a folder, the folder in it.
        tokenizer: name or folder of a transformers tokenizer; None for words of the training set.
        length: tokens per text; longer texts are cut, shorter ones padded.
        vocabulary: without a tokenizer, so many of the most frequent words, three signs included.
        train_samples, test_samples: so many random samples, by the split's seed; None for all.
        text_column, label_column: where they are not called "text" or "sentence", and "label".
        random_labels: the control without structure: all labels are shuffled, by the split's seed.
    """

    kind: Literal["texts"] = "texts"
    source: str
    config: str | None = None
    tokenizer: str | None = None
    length: Size = Field(default=64, ge=2)
    vocabulary: Size = Field(default=10_000, ge=4)
    train_samples: Size | None = None
    test_samples: Size | None = None
    text_column: str | None = None
    label_column: str | None = None
    random_labels: bool = False

    def split(self, seed: int) -> Split:
        """Train and held-out texts; the seed chooses samples, where not all are wanted."""
        own = self.model_dump(exclude={"kind", "train_samples", "test_samples", "random_labels"})
        train, test, spec = _encoded(**own)
        inputs, labels = some(*train, self.train_samples, seed)
        test_inputs, test_labels = some(*test, self.test_samples, seed)
        num_classes = int(max(train[1].max(), test[1].max())) + 1
        labels, test_labels = assigned(labels, test_labels, seed, self.random_labels)
        return Split(inputs, labels, test_inputs, test_labels, spec, num_classes)


@lru_cache(maxsize=4)
def _encoded(
    source: str, config: str | None, tokenizer: str | None, length: int, vocabulary: int, text_column: str | None,
    label_column: str | None,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], InputSpec]:
    """Tokens (N, L) and labels of both splits, and what one input looks like."""
    texts, labels = [], []
    for table in load_tables(source, config):
        column = table[column_of(table, text_column, ("text", "sentence"), "texts")]
        texts.append(["" if text is None else str(text) for text in column])
        labels.append(labels_of(table, column_of(table, label_column, ("label", "labels"), "labels")))
    if tokenizer is None:
        words = vocabulary_of(texts[0], vocabulary)
        tokens = [words_as_tokens(part, words, length) for part in texts]
        spec = InputSpec("tokens", (length,), len(words) + 3, PADDING)
    else:
        tokens, spec = _with_tokenizer(tokenizer, texts, length)
    return (tokens[0], labels[0]), (tokens[1], labels[1]), spec


def vocabulary_of(texts: list[str], size: int) -> dict[str, int]:
    """The most frequent words and their tokens, which count from 3."""
    counts = Counter(word for text in texts for word in _WORD.findall(text.lower()))
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return {word: token for token, (word, _) in enumerate(ranked[: size - 3], start=3)}


def words_as_tokens(texts: list[str], words: dict[str, int], length: int) -> Tensor:
    """Start sign, words, padding: (N, length)."""
    tokens = torch.full((len(texts), length), PADDING, dtype=torch.int64)
    for row, text in enumerate(texts):
        ids = [START, *(words.get(word, UNKNOWN) for word in _WORD.findall(text.lower()))][:length]
        tokens[row, : len(ids)] = torch.tensor(ids)
    return tokens


def _with_tokenizer(name: str, texts: list[list[str]], length: int) -> tuple[list[Tensor], InputSpec]:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ImportError("tokenizers need the package `transformers`: pip install 'grokscape[hf]'") from error
    tokenizer = pretrained(AutoTokenizer.from_pretrained, name, "tokenizer")
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ValueError(
            f"expected a tokenizer with a padding or an end sign, got {name!r}, which has neither; load it by "
            f"AutoTokenizer, give it a pad_token, save it by .save_pretrained(FOLDER), and name that folder"
        )
    options = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
    tokens = [tokenizer(part, **options)["input_ids"] for part in texts]
    return tokens, InputSpec("tokens", (length,), len(tokenizer), int(tokenizer.pad_token_id))
