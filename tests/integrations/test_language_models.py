"""Next-token heads: κ over masked positions, tied weights, and a vocabulary of 50 000."""

import pytest
import torch
import torch.nn.functional as F

import grokscape as gs

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # of torch.func itself


def gpt2(vocabulary=12, dtype=torch.float64, width=6, **options):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_embd=width, n_layer=1, n_head=2, n_positions=8, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=1, eos_token_id=1, **options,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).to(dtype)


def masked(tokens):
    labels = tokens.clone()
    labels[0, :3] = -100
    labels[1, 5:] = -100
    return labels


def brute_force(features, weight, labels):
    """Σ_{s,s'} ⟨w_s, w_s'⟩ Tr H_{s,s'} from the dense Hessian of the mean loss in the head's weight alone."""

    def loss(w):
        return F.cross_entropy(features @ w.T, labels)

    hessian = torch.func.hessian(loss)(weight)
    return torch.einsum("si,ti,sjtj->", weight, weight, hessian)


@pytest.mark.parametrize("tied", [True, False])
def test_kappa_of_a_next_token_head_over_masked_positions(tied):
    model = gpt2(tie_word_embeddings=tied)
    tokens = torch.randint(0, 12, (2, 7), generator=torch.Generator().manual_seed(1))
    labels = masked(tokens)
    with gs.Probe(model) as probe:
        model(input_ids=tokens)
        seen = probe.snapshot(labels)
    hidden = model.transformer(tokens).last_hidden_state
    kept = labels[:, 1:] != -100
    features, targets = hidden[:, :-1][kept].detach(), labels[:, 1:][kept]
    assert probe.head.name == "lm_head"
    assert (model.lm_head.weight is model.transformer.wte.weight) == tied
    torch.testing.assert_close(seen.features, features)
    assert torch.equal(seen.labels, targets)
    kappa = gs.relative_flatness(seen.features, seen.weight, seen.logits)
    expected = brute_force(features, model.lm_head.weight.detach(), targets)
    torch.testing.assert_close(kappa, expected, rtol=1e-10, atol=0)
    measured = gs.measure(model, [{"input_ids": tokens, "labels": labels}])
    assert measured["relative_flatness"] == pytest.approx(float(expected), rel=1e-10)
    assert measured.samples["train"] == len(targets)


def test_a_vocabulary_of_50_000():
    model = gpt2(vocabulary=50_000, dtype=torch.float32, width=32)
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, 40, (16, 8), generator=generator) * 1000
    names = ["loss", "accuracy", "relative_flatness", "relative_flatness_bound", "nc1_ratio", "classes"]
    measured = gs.measure(model, [{"input_ids": tokens, "labels": masked(tokens)}], measures=names)
    counts = masked(tokens)[:, 1:].flatten()
    counts = counts[counts != -100].bincount()
    assert measured["classes"] == int((counts >= 2).sum())  # words seen twice or more; the others are left out
    assert 0 < measured["relative_flatness"] < measured["relative_flatness_bound"]
    assert measured["nc1_ratio"] > 0


def test_a_penalty_on_a_tied_head_reaches_the_embeddings():
    model = gpt2()
    tokens = torch.randint(0, 12, (4, 7), generator=torch.Generator().manual_seed(3))
    with gs.Probe(model) as probe:
        model(input_ids=tokens)
        gs.Promote("relative_flatness", strength=1.0)(probe.snapshot(tokens)).backward()
    assert model.transformer.wte.weight.grad.abs().sum() > 0


def llama_config(**more):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.LlamaConfig(vocab_size=12, max_position_embeddings=16, **sizes, **more)


def bart_config():
    sizes = {"d_model": 8, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8}
    sizes |= {name.replace("decoder", "encoder"): value for name, value in sizes.items()}
    return transformers.BartConfig(vocab_size=12, max_position_embeddings=16, **sizes)


def t5_config():
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    return transformers.T5Config(vocab_size=12, decoder_start_token_id=0, pad_token_id=0, **sizes)


def llava():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    eyes = transformers.CLIPVisionConfig(**sizes, image_size=8, patch_size=4)
    config = transformers.LlavaConfig(vision_config=eyes, text_config=llama_config(), image_token_index=0)
    return transformers.LlavaForConditionalGeneration(config)


def generation():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertGenerationConfig(vocab_size=12, is_decoder=True, **sizes)
    return transformers.BertGenerationDecoder(config)


def trocr():
    sizes = {"d_model": 8, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8}
    return transformers.TrOCRForCausalLM(transformers.TrOCRConfig(vocab_size=12, **sizes))


class Adapted(torch.nn.Module):
    """As peft wraps a model whose task it was not told."""

    def __init__(self, model):
        super().__init__()
        self.base_model = model

    def get_base_model(self):
        return self.base_model

    def forward(self, **inputs):
        return self.base_model(**inputs)


@pytest.mark.parametrize("make", [
    lambda: transformers.BartForCausalLM(bart_config()),
    lambda: transformers.BartForConditionalGeneration(bart_config()),
    lambda: transformers.LlamaForCausalLM(llama_config()),
    lambda: transformers.LlamaForTokenClassification(llama_config(num_labels=12)),
    lambda: Adapted(transformers.LlamaForCausalLM(llama_config())),
    generation,
    llava,
    trocr,
], ids=["bart", "bart-encoder", "llama", "llama-tokens", "adapted", "generation", "llava", "trocr"])
def test_labels_are_shifted_where_the_model_does(make):
    torch.manual_seed(0)
    model = make().eval()
    tokens = torch.randint(3, 12, (2, 7), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": tokens, "labels": masked(tokens)}
    found = gs.measure(model, [batch], measures=["loss"])
    assert found["loss"] == pytest.approx(float(model(**batch).loss.detach()), rel=1e-5)


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("wrap", [lambda model: model, Adapted])
@pytest.mark.parametrize("make", [
    lambda: transformers.BartForConditionalGeneration(bart_config()),
    lambda: transformers.T5ForConditionalGeneration(t5_config()),
])
def test_a_decoder_sees_what_it_sees_in_training(make, wrap, said):
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    tokens, answers = torch.randint(3, 12, (2, 4, 7), generator=torch.Generator().manual_seed(1)).unbind()
    batch = {"input_ids": tokens, "labels": masked(answers)}
    if said:
        batch["decoder_input_ids"] = tokens.flip(1)
    seen = []
    with model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output))):
        loss = float(model(**batch).loss.detach())
    kept = batch["labels"] != -100
    expected = gs.relative_flatness(seen[0][0][kept].detach(), model.lm_head.weight.detach(), seen[0][1][kept].detach())
    found = gs.measure(wrap(model), [batch], measures=["loss", "relative_flatness"])
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["relative_flatness"] == pytest.approx(float(expected), rel=1e-4)
    assert abs(gs.measures.sharpness(wrap(model), [batch], radius=1e-9)) < 1e-5  # that pass is made in another way


@pytest.mark.parametrize("wrap", ["subclass", "wrapper", "compiled"])
def test_labels_are_shifted_for_what_is_built_on_a_causal_model(wrap):
    class Mine(transformers.GPT2LMHeadModel):
        pass

    model = gpt2(dtype=torch.float32)
    twin = gpt2(dtype=torch.float32)
    if wrap == "subclass":
        twin.__class__ = Mine
    elif wrap == "wrapper":
        twin = torch.nn.DataParallel(twin)
    else:
        twin = torch.compile(twin, backend="eager")
    tokens = torch.randint(0, 12, (2, 7), generator=torch.Generator().manual_seed(1))
    data = [{"input_ids": tokens, "labels": masked(tokens)}]
    assert gs.measure(twin, data, measures=["loss"]) == gs.measure(model, data, measures=["loss"])
    layers = ["transformer.h.0.mlp.c_fc"]
    assert gs.layer_flatness(twin, data, layers, 2) == gs.layer_flatness(model, data, layers, 2)
    assert gs.measures.sharpness(twin, data) == pytest.approx(gs.measures.sharpness(model, data), rel=1e-6)
