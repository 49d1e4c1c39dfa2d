"""A real transformers Trainer on the CPU, with models from configuration."""

import copy

import pytest
import torch
import torch.nn.functional as F

import grokscape as gs

transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")
from grokscape.integrations.transformers import InterventionTrainer  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the Trainer's own advice


def bert(dropout=0.0):
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=8, num_labels=3, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        )
    )  # fmt: skip


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(2)
    return [
        {"input_ids": torch.randint(1, 30, (6,), generator=generator), "labels": torch.tensor(i % 3)} for i in range(12)
    ]


def trainer(tmp_path, model, rows, *, lr=0.5, batch=12, accumulate=1, steps=1, own=InterventionTrainer, **options):
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=steps, per_device_train_batch_size=batch, max_grad_norm=0.0,
        gradient_accumulation_steps=accumulate, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True,
        disable_tqdm=True, lr_scheduler_type="constant", **options.pop("arguments", {}),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return own(model, arguments, train_dataset=rows, optimizers=(optimizer, None), **options)


@pytest.mark.parametrize(("batch", "accumulate"), [(12, 1), (6, 2)])
def test_one_step_follows_the_gradient_by_hand(tmp_path, rows, bound, batch, accumulate):
    model = bert()
    before = copy.deepcopy(model)
    run = trainer(tmp_path, model, rows, batch=batch, accumulate=accumulate,
                  interventions=[gs.Suppress("relative_flatness_bound", strength=0.05)])  # fmt: skip
    # BERT's classification loss is a mean over the micro-batch; the switch that says so has changed its name
    run.loss_is_scaled_for_ga = run.model_accepts_loss_kwargs = False
    run.train()
    inputs = torch.stack([row["input_ids"] for row in rows])
    labels = torch.stack([row["labels"] for row in rows])
    features = before.bert(inputs).pooler_output
    logits = before.classifier(features)
    loss = F.cross_entropy(logits, labels) - 0.05 * bound(features, before.classifier.weight, logits)
    expected = torch.autograd.grad(loss, list(before.parameters()))
    for new, old, gradient in zip(model.parameters(), before.parameters(), expected, strict=True):
        torch.testing.assert_close(new, old - 0.5 * gradient, rtol=1e-3, atol=1e-5)
    assert run.state.log_history[0]["penalty"] < 0
    assert not any(part._forward_hooks for part in model.modules())


def test_measuring_changes_neither_weights_nor_random_numbers(tmp_path, rows):
    def train(own, **options):
        model = bert(dropout=0.1)
        run = trainer(tmp_path, model, rows, lr=0.05, batch=4, steps=4, own=own, **options)
        run.train()
        return model.state_dict(), torch.get_rng_state(), run

    measured, numbers, run = train(InterventionTrainer, measures=["cdnv", "relative_flatness"], data=rows)
    plain, same, _ = train(transformers.Trainer)
    assert torch.equal(numbers, same)
    assert all(torch.equal(measured[name], plain[name]) for name in plain)
    assert any("batch_cdnv" in entry for entry in run.state.log_history)
    assert any("train_relative_flatness" in entry for entry in run.state.log_history)


@pytest.mark.parametrize(("arguments", "processes"), [
    ({}, 2),
    ({"dataloader_drop_last": True, "per_device_eval_batch_size": 5}, 1),
    ({"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "eval_strategy": "epoch"}, 1),
])
def test_whole_data_sets_are_measured(tmp_path, rows, arguments, processes):
    model, names = bert(), ["relative_flatness", "margin"]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    run = trainer(tmp_path, model, rows, steps=3, batch=4, arguments=arguments, measures=names,
                  data=rows, test_data=rows[:7], eval_dataset=rows[7:])  # fmt: skip
    run.accelerator.prepare_data_loader = lambda loader, **_: accelerate.data_loader.prepare_data_loader(
        loader, num_processes=processes, process_index=0
    )
    run.train()
    logged = {name: value for entry in run.state.log_history for name, value in entry.items()}
    both = ("input_ids", "labels")
    whole, part = ({name: torch.stack([row[name] for row in some]) for name in both} for some in (rows, rows[:7]))
    for name, value in gs.measure(model, whole, test_loader=part, measures=names).items():
        assert logged[name.replace("/", "_") if "/" in name else f"train_{name}"] == pytest.approx(value, rel=1e-5)


def test_mixed_precision_and_a_language_model_that_answers_at_the_last_token(tmp_path, rows):
    torch.manual_seed(0)
    model = transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(
            vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=8, num_labels=3, pad_token_id=0,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip
    run = trainer(tmp_path, model, rows, steps=3, arguments={"bf16": True}, measures=["cdnv"],
                  interventions=[gs.Clamp("cdnv", at_least=1.2), gs.WeightCap(0.2)])  # fmt: skip
    run.train()
    assert float(model.score.weight.norm()) <= 0.2 + 1e-6
    assert all(entry["penalty"] >= 0 for entry in run.state.log_history if "penalty" in entry)


def gpt2():
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=8, tie_word_embeddings=True,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip


@pytest.mark.parametrize(("batch", "accumulate"), [(12, 1), (6, 2)])
def test_a_language_model_with_tied_weights_and_masked_positions(tmp_path, rows, bound, batch, accumulate):
    model = gpt2()
    before = copy.deepcopy(model)
    for row in rows:
        row["labels"] = row["input_ids"].clone()
        row["labels"][:2] = -100
    run = trainer(tmp_path, model, rows, batch=batch, accumulate=accumulate,
                  interventions=[gs.Suppress("relative_flatness_bound", strength=0.02)])  # fmt: skip
    run.train()
    assert run.arm is None
    inputs = torch.stack([row["input_ids"] for row in rows])
    features = before.transformer(inputs).last_hidden_state[:, 1:-1].flatten(0, 1)  # positions 2 … 5 are predicted
    logits = features @ before.lm_head.weight.T
    loss = F.cross_entropy(logits, inputs[:, 2:].flatten()) - 0.02 * bound(features, before.lm_head.weight, logits)
    expected = torch.autograd.grad(loss, list(before.parameters()))
    for new, old, gradient in zip(model.parameters(), before.parameters(), expected, strict=True):
        torch.testing.assert_close(new, old - 0.5 * gradient, rtol=1e-3, atol=1e-5)


def test_a_compiled_model(tmp_path, rows):
    settings = {"torch_compile": True, "torch_compile_backend": "eager"}
    run = trainer(tmp_path, bert(), rows, interventions=[gs.Clamp("cdnv", at_least=50.0)], arguments=settings)
    run.train()
    assert run.state.log_history[0]["penalty"] > 0
