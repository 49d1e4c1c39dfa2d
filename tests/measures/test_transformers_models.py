"""Measures on models of transformers: dictionaries as batches, masked positions, shifted labels, tied heads."""

import pytest
import torch
import torch.nn.functional as F

import grokscape as gs
from dense import dense_kappa

transformers = pytest.importorskip("transformers")


def gpt2(kind, **more):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=1, n_head=2, n_embd=8, vocab_size=12, n_positions=8, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        **more,
    )
    return getattr(transformers, kind)(config).eval()


def tokens(count=24, length=6, high=12):
    return torch.randint(1, high, (count, length), generator=torch.Generator().manual_seed(0))


def test_a_classifier_that_picks_one_position():
    model = gpt2("GPT2ForSequenceClassification", num_labels=3)
    inputs = tokens()
    inputs[::2, 4:] = 0
    labels = torch.arange(24) % 3
    batch = {"input_ids": inputs, "attention_mask": (inputs > 0).long(), "labels": labels}
    found = gs.measure(model, batch, test_loader=[batch], batch_size=7)
    output = model(input_ids=inputs, attention_mask=batch["attention_mask"])
    assert found.head == "score"
    assert found["loss"] == pytest.approx(F.cross_entropy(output.logits, labels).item(), rel=1e-5)
    hidden = model.transformer(input_ids=inputs, attention_mask=batch["attention_mask"]).last_hidden_state
    last = hidden[torch.arange(24), (inputs > 0).sum(1) - 1].detach()
    expected = gs.relative_flatness(last, model.score.weight.detach())
    assert found["relative_flatness"] == pytest.approx(float(expected), rel=1e-4)
    assert found["cross/cdnv"] == pytest.approx(float(gs.cdnv(last, labels)), rel=1e-4)


def test_a_language_model_is_measured_where_it_predicts():
    model = gpt2("GPT2LMHeadModel")
    inputs = tokens()
    labels = inputs.clone()
    labels[:, :2] = -100
    found = gs.measure(model, {"input_ids": inputs, "labels": labels}, batch_size=5)
    assert found.head == "lm_head"
    assert found.samples == {"train": 24 * 4}
    with torch.no_grad():
        output = model(input_ids=inputs, labels=labels)
        hidden = model.transformer(input_ids=inputs).last_hidden_state
    assert found["loss"] == pytest.approx(float(output.loss), rel=1e-5)
    rows = hidden[:, 1:-1].flatten(0, 1)
    expected = gs.relative_flatness(rows, model.lm_head.weight.detach())
    assert found["relative_flatness"] == pytest.approx(float(expected), rel=1e-4)


def test_layers_of_a_bert_and_the_attention_kernels_it_had():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, vocab_size=12,
        max_position_embeddings=8, num_labels=3,
    )
    model = transformers.BertForSequenceClassification(config).double().train()
    inputs, labels = tokens(9), torch.arange(9) % 3
    batch = {"input_ids": inputs, "labels": labels}
    kernels = (torch.backends.cuda.flash_sdp_enabled(), torch.backends.mha.get_fastpath_enabled())
    query = "bert.encoder.layer.0.attention.self.query"
    found = gs.layer_flatness(model, [batch], layers=[query, "classifier"], exact=True)
    assert (torch.backends.cuda.flash_sdp_enabled(), torch.backends.mha.get_fastpath_enabled()) == kernels
    assert model.training
    weight = model.bert.encoder.layer[0].attention.self.query.weight
    expected = dense(model, f"{query}.weight", weight.detach(), inputs, labels)
    assert found[query].value == pytest.approx(expected, rel=1e-8)
    assert found["classifier"].value == pytest.approx(gs.measure(model, batch)["relative_flatness"], rel=1e-9)


def dense(model, name, weight, inputs, labels):
    model.eval()
    parameters = dict(model.named_parameters())

    def loss(flat):
        values = {**parameters, name: flat.reshape(weight.shape)}
        return F.cross_entropy(torch.func.functional_call(model, values, (inputs,)).logits, labels)

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        hessian = torch.autograd.functional.hessian(loss, weight.flatten())
    rows, width = weight.shape
    blocks = hessian.reshape(rows, width, rows, width)
    model.train()
    return float(torch.einsum("si,ti,sjtj->", weight, weight, blocks))


def test_layers_of_a_language_model_with_a_tied_head():
    model = gpt2("GPT2LMHeadModel").double()
    inputs = tokens(5)
    found = gs.layer_flatness(model, {"input_ids": inputs, "labels": inputs}, probes=2)
    assert set(found) == {
        "transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_proj", "transformer.h.0.mlp.c_fc",
        "transformer.h.0.mlp.c_proj", "lm_head",
    }


class Predictions(torch.nn.Module):
    """Logits of a language model at the positions that have a next one."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(input_ids=tokens).logits[:, :-1]


@pytest.mark.parametrize(("layer", "cost"), [("attn.c_attn", 8 * 8), ("attn.c_proj", 8), ("mlp.c_fc", 8)])
def test_layers_of_a_language_model_with_masked_positions(layer, cost):
    model, inputs = gpt2("GPT2LMHeadModel", tie_word_embeddings=False).double(), tokens(5)
    torch.nn.init.normal_(model.transformer.h[0].get_submodule(layer).weight)
    labels, name = inputs.clone(), f"transformer.h.0.{layer}"
    labels[:3, :2], labels[4, 3:] = -100, -100
    data = {"input_ids": inputs, "labels": labels}
    expected = dense_kappa(Predictions(model), f"model.{name}.weight", inputs, labels[:, 1:], transposed=True)
    sure = gs.layer_flatness(model, data, [name], exact=True)[name]
    assert sure.value == pytest.approx(expected, rel=1e-8)
    assert sure.probes == cost
    found = gs.layer_flatness(model, data, [name], 400, exact=False, batch_size=2)[name]
    assert abs(found.value - expected) <= 4 * found.stderr < 0.5 * abs(expected)
