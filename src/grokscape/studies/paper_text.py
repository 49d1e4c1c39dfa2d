"""The paper's experiments on text: TinyBERT and DistilGPT2 on SST-5."""

from typing import Any

from grokscape.interventions import Unplug
from grokscape.models import BERT, GPT2, Pretrained
from grokscape.studies.paper_parts import Scale, describe, flatness_arms, schedule, three_seeds
from grokscape.studies.spec import StudySpec
from grokscape.testbeds import Sentiment, Texts
from grokscape.training import SGD, AdamW, OnsetRule

SST5 = "SetFit/sst5"
TINYBERT, DISTILGPT2 = "huawei-noah/TinyBERT_General_4L_312D", "distilbert/distilgpt2"
_SST5_SAMPLES = 8544
_QUICK = 400  # training sentences at small scale


def _small(model: Any) -> dict[str, Any]:
    return {
        "testbed": Sentiment(train_samples=_QUICK, test_samples=400, noise=0.2),
        "model": model,
        "optimizer": AdamW(lr=1e-3, weight_decay=0.0),
        "onset": OnsetRule(test_threshold=0.4),
        **schedule(40, _QUICK, 20, 2, max_samples=400),
    }


def _paper(name: str, batch_size: int) -> dict[str, Any]:
    return {
        "testbed": Texts(source=SST5, tokenizer=name, length=64),
        "model": Pretrained(name=name),
        "optimizer": SGD(lr=1e-3, momentum=0.9),
        "onset": OnsetRule(test_threshold=0.42),
        **schedule(300, _SST5_SAMPLES, batch_size, 5),
    }


def _text(
    name: str, title: str, fields: dict[str, Any], strength: float, cap: float, bump: float, data: str, result: str,
    scale: Scale,
) -> StudySpec:  # fmt: skip
    unplug = Unplug(fields["steps"] // 2, lr=bump * fields["optimizer"].lr, cosine=True)
    what = (
        f"Flatness suppressed (λ = {strength:g}, τ = 2, cap {cap:g}) and unplugged at half time with {bump:g} times "
        f"the learning rate: {data}, 3 seeds."
    )
    cost = f"15 runs × 300 epochs × {_SST5_SAMPLES} sentences."
    return StudySpec(
        name=name,
        title=title,
        question="Does a network whose flatness is suppressed fail to generalise, and recover when it is let go?",
        description=describe(name, what, result, cost, scale),
        arms=flatness_arms(strength, cap, unplug),
        **three_seeds(),
        **fields,
    )


def fig16(scale: Scale) -> StudySpec:
    """TinyBERT; figure 17 is of the same runs."""
    small = scale == "small"
    fields = _small(BERT(width=48, layers=2, heads=4, hidden=96)) if small else _paper(TINYBERT, 32)
    data = "generated opinions, BERT with 2 layers of width 48" if small else "SST-5, TinyBERT (4 layers)"
    result = "accuracy 44 % without, 38 % while suppressed, 44 % after unplugging."
    title = "Flatness suppressed in BERT, then unplugged"
    return _text("fig16", title, fields, 0.1 if small else 0.3, 20.0 if small else 30.0, 3.0, data, result, scale)


def fig18(scale: Scale) -> StudySpec:
    """DistilGPT2; figure 19 is of the same runs."""
    small = scale == "small"
    fields = _small(GPT2(width=48, layers=2, heads=4)) if small else _paper(DISTILGPT2, 64)
    data = "generated opinions, GPT-2 with 2 layers of width 48" if small else "SST-5, DistilGPT2"
    result = "accuracy 45 % without, 37 % while suppressed, 45 % after unplugging."
    title = "Flatness suppressed in GPT-2, then unplugged"
    return _text("fig18", title, fields, 0.1 if small else 0.03, 20.0 if small else 30.0, 5.0, data, result, scale)
