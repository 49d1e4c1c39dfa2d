"""Bodies of transformers from a folder: what they are is found out by calling them, whatever they are called."""

import pytest
import torch

from grokscape.models import Pretrained
from grokscape.testbeds.types import InputSpec

transformers = pytest.importorskip("transformers")
IMAGE, TOKENS = InputSpec("image", (3, 16, 16)), InputSpec("tokens", (6,), 20, 0)
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
WORDS = {"vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PATCHES = {"image_size": 16, "patch_size": 8}
SHORT, LONG = torch.tensor([[3, 4, 5]]), torch.tensor([[3, 4, 5, 0, 0, 0]])


def saved(path, kind, dtype=torch.float32, **settings):
    """A freshly initialised body in a folder."""
    torch.manual_seed(0)
    body = transformers.AutoModel.from_config(getattr(transformers, f"{kind}Config")(**settings))
    body.to(dtype).eval().save_pretrained(path)
    return body, str(path)


def test_pretrained_from_a_folder(tmp_path):
    config = transformers.GPT2Config(
        vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8, bos_token_id=1, eos_token_id=1
    )
    body = transformers.GPT2Model(config).eval()
    body.save_pretrained(tmp_path)
    module = Pretrained(name=str(tmp_path)).make(TOKENS, 3).eval()
    tokens = torch.tensor([[3, 4, 5, 0, 0, 0]])
    expected = body(input_ids=tokens[:, :3]).last_hidden_state[:, -1]
    torch.testing.assert_close(module(tokens), module.head(expected))
    assert Pretrained(name=str(tmp_path)).make(InputSpec("tokens", (8,), 20, 0), 3)
    for spec, text in ((InputSpec("tokens", (9,), 20, 0), "9 out of 20"), (InputSpec("tokens", (6,), 21), "21; make")):
        with pytest.raises(ValueError, match=rf"reads texts of up to 8 tokens out of 20, got .*{text}"):
            Pretrained(name=str(tmp_path)).make(spec, 3)


CAUSAL = {
    "Llama": {**SMALL, **WORDS, "num_key_value_heads": 2},
    "Qwen3": {**SMALL, "vocab_size": 20, "num_key_value_heads": 2, "head_dim": 4},
    "Gemma": {**SMALL, **WORDS, "num_key_value_heads": 2, "head_dim": 4},
    "Mistral": {**SMALL, **WORDS, "num_key_value_heads": 2, "sliding_window": 2},
    "OPT": {**{k: SMALL[k] for k in list(SMALL)[:3]}, **WORDS, "ffn_dim": 8, "word_embed_proj_dim": 8},
    "Bloom": {"vocab_size": 20, "hidden_size": 8, "n_layer": 1, "n_head": 2},
}
ENCODERS = {
    "Bert": {**SMALL, **WORDS},
    "DistilBert": {"vocab_size": 20, "dim": 8, "hidden_dim": 8, "n_layers": 1, "n_heads": 2},
    "DebertaV2": {**SMALL, **WORDS},
}


@pytest.mark.parametrize("kind", [*CAUSAL, *ENCODERS])
def test_features_are_those_of_the_model_called_by_itself(tmp_path, kind):
    body, name = saved(tmp_path, kind, **{**CAUSAL, **ENCODERS}[kind])
    whole = body(input_ids=SHORT)
    places = {"first": whole.last_hidden_state[:, 0], "last": whole.last_hidden_state[:, -1]}
    if kind == "Bert":
        places["pooled"] = whole.pooler_output
    usual = "last" if kind in CAUSAL else "pooled" if kind == "Bert" else "first"
    for place, expected in {**places, "auto": places[usual]}.items():
        module = Pretrained(name=name, features=place).make(TOKENS, 3).eval()
        for tokens in (SHORT, LONG):
            torch.testing.assert_close(module(tokens), module.head(expected), rtol=1e-5, atol=1e-6)


def test_a_body_that_takes_no_spelled_mask_runs_one_replica_after_another(tmp_path):
    assert Pretrained(name=saved(tmp_path / "a", "Llama", **CAUSAL["Llama"])[1]).build(TOKENS, 3).batched
    alone = Pretrained(name=saved(tmp_path / "b", "OPT", **CAUSAL["OPT"])[1]).build(TOKENS, 3)
    assert not alone.batched
    assert "one replica after another" in alone.reason


@pytest.mark.parametrize(("kind", "settings", "place"), [
    ("ViT", {**SMALL, **PATCHES}, "first"),
    ("Dinov2", {**SMALL, **PATCHES}, "pooled"),
    ("Swin", {"image_size": 16, "patch_size": 2, "embed_dim": 4, "depths": [1, 1], "num_heads": [2, 2],
              "window_size": 4}, "pooled"),
    ("ResNet", {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}, "pooled"),
    ("MobileNetV2", {"image_size": 16, "depth_multiplier": 0.1, "min_depth": 4}, "pooled"),
])
def test_features_of_images(tmp_path, kind, settings, place):
    body, name = saved(tmp_path, kind, **settings)
    module, images = Pretrained(name=name).make(IMAGE, 3).eval(), torch.rand(2, 3, 16, 16)
    output = body(pixel_values=images)
    expected = output.last_hidden_state[:, 0] if place == "first" else output.pooler_output.flatten(1)
    torch.testing.assert_close(module(images), module.head(expected))


@pytest.mark.parametrize(("kind", "settings", "spec"), [
    ("Llama", {**CAUSAL["Llama"], "attention_dropout": 0.5}, TOKENS),
    ("DistilBert", {**ENCODERS["DistilBert"], "dropout": 0.5, "attention_dropout": 0.5}, TOKENS),
    ("ViT", {**SMALL, **PATCHES, "hidden_dropout_prob": 0.5}, IMAGE),
    ("Dinov2", {**SMALL, **PATCHES, "drop_path_rate": 0.5}, IMAGE),
])
def test_nothing_is_dropped_out(tmp_path, kind, settings, spec):
    _, name = saved(tmp_path, kind, **settings)
    module = Pretrained(name=name).make(spec, 3)
    inputs = torch.rand(4, 3, 16, 16) if spec is IMAGE else torch.randint(1, 20, (4, 6))
    assert torch.equal(module.train()(inputs), module.eval()(inputs))


def test_half_precision_in_a_folder_is_float32_here(tmp_path):
    _, name = saved(tmp_path, "Llama", torch.bfloat16, **CAUSAL["Llama"])
    assert {p.dtype for p in Pretrained(name=name).make(TOKENS, 3).parameters()} == {torch.float32}


@pytest.mark.parametrize(("kind", "settings", "spec", "features", "text"), [
    ("T5", {"vocab_size": 20, "d_model": 8, "num_layers": 1, "num_heads": 2, "d_kv": 4, "d_ff": 8}, TOKENS, "auto",
     r"a T5Model, makes no features of tokens inputs of shape \(6,\) .*takes input_ids and an attention_mask alone"),
    ("Llama", CAUSAL["Llama"], TOKENS, "pooled", "it does not pool; take features='first' or 'last'"),
    ("ViT", {**SMALL, **PATCHES}, IMAGE, "last", "of images it makes no last token"),
    ("ResNet", {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}, IMAGE, "first",
     "makes no first token"),
    ("ViT", {**SMALL, **PATCHES}, InputSpec("image", (1, 16, 16)), "auto", "image inputs of shape .*channel"),
    ("ViT", {**SMALL, **PATCHES}, TOKENS, "auto", "a ViTModel, makes no features of tokens inputs"),
    ("Bert", ENCODERS["Bert"], InputSpec("vector", (6,)), "auto", "choose a testbed with tokens"),
])
def test_what_makes_no_features(tmp_path, kind, settings, spec, features, text):
    _, name = saved(tmp_path, kind, **settings)
    with pytest.raises(ValueError, match=text):
        Pretrained(name=name, features=features).make(spec, 3)
