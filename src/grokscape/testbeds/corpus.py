"""A generated corpus of opinions with graded sentiment, for small language models without a download.

A grammar writes reviews of one or two clauses about things. Every opinion word has a polarity; intensifiers stretch it,
"not" turns it round and weakens it, and after "but" the second clause counts double. The sum, plus noise as between
human raters, falls into one of five classes from very negative (0) to very positive (4).
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from grokscape.settings import Settings
from grokscape.testbeds.splits import split_in_order
from grokscape.testbeds.texts import PADDING, words_as_tokens
from grokscape.testbeds.types import InputSpec, Split

LENGTH = 24
OPINIONS = {
    "dreadful": -2.0, "awful": -2.0, "hateful": -2.0, "abysmal": -2.0, "unbearable": -2.0, "insulting": -2.0,
    "poor": -1.0, "dull": -1.0, "flat": -1.0, "clumsy": -1.0, "tired": -1.0, "messy": -1.0, "thin": -1.0, "stale": -1.0,
    "plain": 0.0, "usual": 0.0, "long": 0.0, "quiet": 0.0, "modest": 0.0, "familiar": 0.0, "odd": 0.0, "loud": 0.0,
    "good": 1.0, "fresh": 1.0, "warm": 1.0, "neat": 1.0, "lively": 1.0, "clever": 1.0, "charming": 1.0, "solid": 1.0,
    "superb": 2.0, "brilliant": 2.0, "dazzling": 2.0, "perfect": 2.0, "wonderful": 2.0, "moving": 2.0,
}  # fmt: skip
INTENSIFIERS = {"barely": 0.4, "somewhat": 0.7, "rather": 1.0, "truly": 1.3, "utterly": 1.6}
THINGS = (
    "plot", "cast", "script", "music", "ending", "camera", "pace", "humour", "dialogue", "story", "lead", "villain",
    "scenery", "editing", "opening", "sequel", "romance", "chase", "costume", "song", "joke", "twist", "drama", "tone",
)  # fmt: skip
_SYLLABLES = ("ka", "ro", "mi", "ten", "sol", "va", "lu", "ber", "na", "dor")
NAMES = tuple(a + b for a in _SYLLABLES for b in _SYLLABLES if a != b)
_GLUE = ("the", "of", "was", "is", "feels", "a", "and", "but", "not", "in", "by", "with", ".", ",")
WORDS = (*_GLUE, *OPINIONS, *INTENSIFIERS, *THINGS, *NAMES)
TOKENS = {word: token for token, word in enumerate(WORDS, start=3)}
_EDGES = torch.tensor([-1.4, -0.45, 0.45, 1.4])


class Sentiment(Settings):
    """Generated reviews in five grades of sentiment.

    No review is in both train and test. With noise 0 the label follows from the words; with more, neighbouring grades
    overlap, as those of human raters do, and no network can be right on all of the test set.

    Attributes:
        train_samples, test_samples: numbers of reviews.
        noise: standard deviation of the raters' noise, in units of an opinion's polarity.
        random_labels: the control without structure: all labels are shuffled, by the split's seed.
    """

    kind: Literal["sentiment"] = "sentiment"
    train_samples: int = Field(default=400, ge=10, le=20_000)
    test_samples: int = Field(default=1000, ge=10, le=20_000)
    noise: float = Field(default=0.3, ge=0)
    random_labels: bool = False

    @property
    def input_spec(self) -> InputSpec:
        """24 word tokens, padded."""
        return InputSpec("tokens", (LENGTH,), len(WORDS) + 3, PADDING)

    @property
    def num_classes(self) -> int:
        """5."""
        return 5

    def split(self, seed: int) -> Split:
        """Different reviews, the first of them to train on."""
        generator = torch.Generator().manual_seed(seed)
        texts, scores = reviews(self.train_samples + self.test_samples, generator)
        scores = scores + self.noise * torch.randn(len(scores), generator=generator)
        tokens, order = words_as_tokens(texts, TOKENS, LENGTH), torch.arange(len(texts))
        return split_in_order(tokens, grades(scores), order, self.train_samples, seed, self)


def grades(scores: Tensor) -> Tensor:
    """Classes 0 to 4 of scores."""
    return torch.bucketize(scores, _EDGES)


def reviews(count: int, generator: torch.Generator) -> tuple[list[str], Tensor]:
    """So many different reviews and their scores before noise."""
    writer = _Writer(generator)
    found: dict[str, float] = {}
    while len(found) < count:
        text, score = writer.review()
        found.setdefault(text, score)
    return list(found), torch.tensor(list(found.values()))


class _Writer:
    """The grammar, with a source of chance."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def _below(self, number: int) -> int:
        return int(torch.randint(number, (), generator=self._generator))

    def _one(self, words: tuple[str, ...]) -> str:
        return words[self._below(len(words))]

    def _opinion(self) -> tuple[str, float]:
        word = self._one(tuple(OPINIONS))
        score, words = OPINIONS[word], word
        if self._below(2):
            intensifier = self._one(tuple(INTENSIFIERS))
            score, words = score * INTENSIFIERS[intensifier], f"{intensifier} {words}"
        if not self._below(4):
            score, words = -0.6 * score, f"not {words}"
        return words, score

    def _clause(self) -> tuple[str, float]:
        opinion, score = self._opinion()
        thing, verb = self._one(THINGS), self._one(("was", "is", "feels"))
        form = self._below(3)
        if form == 0:
            return f"the {thing} by {self._one(NAMES)} {verb} {opinion}", score
        if form == 1:
            return f"the {thing} of {self._one(NAMES)} and {self._one(NAMES)} {verb} {opinion}", score
        return f"in {self._one(NAMES)} the {thing} {verb} {opinion}", score

    def review(self) -> tuple[str, float]:
        """A review of one or two clauses, and its score."""
        first, score = self._clause()
        form = self._below(3)
        if form == 0:
            return f"{first} .", score
        second, other = self._clause()
        if form == 1:
            return f"{first} , and {second} .", (score + other) / 1.4
        return f"{first} , but {second} .", (score + 2 * other) / 2.2
