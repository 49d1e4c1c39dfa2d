"""Texts through a tokenizer of transformers, made here; tokenizers and models that are not here."""

import pytest

from grokscape.models import Pretrained
from grokscape.testbeds import Texts
from grokscape.testbeds.hub import DataNotHere
from grokscape.testbeds.types import InputSpec

pytest.importorskip("datasets")
huggingface_hub = pytest.importorskip("huggingface_hub")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "good", "bad", "film"]


@pytest.fixture
def texts(tmp_path):
    for name, rows in (("train", ["a good film,1", "a bad film,0"]), ("test", ["good,1", "a bad bad bad bad film,0"])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows]))
    return str(tmp_path)


def folder_of(path, **signs):
    """A tokenizer of whole words with these signs, saved."""
    whole = tokenizers.Tokenizer(tokenizers.models.WordLevel(dict(zip(WORDS, range(8), strict=True)), "[UNK]"))
    whole.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if "cls_token" in signs:
        whole.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=whole, unk_token="[UNK]", padding_side="left", **signs)
    wrapped.save_pretrained(path)
    return str(path)


def test_its_own_signs_frame_the_text_and_padding_stands_last(texts, tmp_path):
    name = folder_of(tmp_path / "own", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    split = Texts(source=texts, tokenizer=name, length=6).split(0)
    assert split.train_inputs.tolist() == [[2, 4, 5, 7, 3, 0], [2, 4, 6, 7, 3, 0]]
    assert split.test_inputs.tolist() == [[2, 5, 3, 0, 0, 0], [2, 4, 6, 6, 6, 3]]
    assert split.train_labels.tolist() == [1, 0]
    assert (split.input_spec.vocabulary, split.input_spec.padding, split.input_spec.shape) == (8, 0, (6,))


def test_one_without_a_padding_sign_pads_with_its_end_sign(texts, tmp_path):
    name = folder_of(tmp_path / "own", eos_token="[SEP]")
    split = Texts(source=texts, tokenizer=name, length=4).split(0)
    assert split.train_inputs.tolist() == [[4, 5, 7, 3], [4, 6, 7, 3]]
    assert split.input_spec.padding == 3


def test_one_with_neither_is_refused(texts, tmp_path):
    name = folder_of(tmp_path / "own")
    with pytest.raises(ValueError, match=r"expected a tokenizer with a padding or an end sign, got .*own.*pad_token"):
        Texts(source=texts, tokenizer=name, length=4).split(0)


def test_without_a_connection_nobody_waits_for_one(texts, monkeypatch):
    monkeypatch.setattr("grokscape.testbeds.hub._reachable", lambda endpoint: False)
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    with pytest.raises(DataNotHere, match=r"the tokenizer 'nobody/nothing' .*`hf download nobody/nothing --local-dir"):
        Texts(source=texts, tokenizer="nobody/nothing", length=4).split(0)
    with pytest.raises(DataNotHere, match=r"the model 'nobody/nothing' .*`hf download nobody/nothing --local-dir"):
        Pretrained(name="nobody/nothing").make(InputSpec("tokens", (4,), 8, 0), 2)
    assert before == huggingface_hub.constants.HF_HUB_OFFLINE


def test_folders_without_one(texts, tmp_path):
    (tmp_path / "empty").mkdir()
    for name, kind, text in (
        (str(tmp_path / "empty"), ValueError, r"empty holds no {} that transformers can read .*save_pretrained writes"),
        ("./nowhere", DataNotHere, r"the folder \./nowhere does not exist; give a folder with a {}"),
    ):
        with pytest.raises(kind, match=text.format("tokenizer")):
            Texts(source=texts, tokenizer=name, length=4).split(0)
        with pytest.raises(kind, match=text.format("model")):
            Pretrained(name=name).make(InputSpec("tokens", (4,), 8, 0), 2)
