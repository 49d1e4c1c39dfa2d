"""Architectures of transformers as networks: the features are those of the model itself."""

import pytest
import torch

from grokscape.models import BERT, GPT2, ResNet, ViT
from grokscape.testbeds.types import InputSpec

transformers = pytest.importorskip("transformers")
IMAGE, TOKENS = InputSpec("image", (1, 8, 8)), InputSpec("tokens", (6,), 20, 0)
SMALL = [
    (ResNet(widths=(4, 8), depths=(1, 1), pixels=16), IMAGE, 8),
    (ResNet(widths=(4, 8), depths=(1, 1), stem="cifar"), IMAGE, 8),
    (ViT(patch=4, width=8, layers=1, heads=2), IMAGE, 8),
    (BERT(width=8, layers=1, heads=2, hidden=8), TOKENS, 8),
    (GPT2(width=8, layers=1, heads=2), TOKENS, 8),
]


@pytest.mark.parametrize(("model", "spec", "width"), SMALL, ids=lambda v: getattr(v, "kind", ""))
def test_features_of_several_replicas(model, spec, width):
    network = model.build(spec, 5)
    first, second = (network.init(torch.Generator().manual_seed(s)) for s in (0, 1))
    parameters = {name: torch.stack([first[name], second[name]]) for name in first}
    inputs = torch.rand(2, 4, *spec.shape) if spec is IMAGE else torch.randint(1, 20, (2, 4, 6))
    network.prepare(2, torch.device("cpu"), torch.float32)
    features = network.features(parameters, inputs)
    assert features.shape == (2, 4, width)
    assert network.head == ("head.weight", "head.bias")
    again = network.init(torch.Generator().manual_seed(0))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("model", ["bert", "gpt2"])
def test_padding_does_not_matter(model):
    chosen = {"bert": BERT(width=8, layers=1, heads=2, hidden=8), "gpt2": GPT2(width=8, layers=1, heads=2)}[model]
    module = chosen.make(TOKENS, 3).eval()
    short, long = torch.tensor([[3, 4, 5]]), torch.tensor([[3, 4, 5, 0, 0, 0]])
    torch.testing.assert_close(module(short), module(long))


def test_the_body_is_the_one_of_transformers():
    torch.manual_seed(0)
    module = BERT(width=8, layers=1, heads=2, hidden=8).make(TOKENS, 3).eval()
    tokens = torch.tensor([[3, 4, 5, 0, 0, 0], [1, 2, 3, 4, 5, 6]])
    expected = module.body(input_ids=tokens, attention_mask=(tokens != 0).long()).pooler_output
    torch.testing.assert_close(module(tokens), module.head(expected))


def test_a_decoder_sees_no_later_token():
    torch.manual_seed(0)
    module = GPT2(width=8, layers=2, heads=2).make(TOKENS, 3).eval()
    tokens = torch.tensor([[3, 4, 5, 0, 0, 0], [3, 4, 5, 6, 7, 8]])
    alone = [module.body(input_ids=row[None]).last_hidden_state[:, -1] for row in (tokens[0, :3], tokens[1])]
    torch.testing.assert_close(module(tokens), module.head(torch.cat(alone)))


def test_pictures_of_the_right_width_alone_are_scaled_too():
    torch.manual_seed(0)
    module = ResNet(widths=(4, 8), depths=(1, 1), pixels=16).make(InputSpec("image", (1, 24, 16)), 3).eval()
    pictures = torch.rand(2, 1, 24, 16)
    scaled = torch.nn.functional.interpolate(pictures, size=(16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(module(pictures), module(scaled))


def test_resnet18_has_the_size_of_resnet18():
    network = ResNet().make(InputSpec("image", (3, 32, 32)), 10)
    assert sum(p.numel() for p in network.parameters()) == 11_181_642  # torchvision's resnet18(num_classes=10)


@pytest.mark.parametrize(("model", "spec"), [(ResNet(), TOKENS), (ViT(), TOKENS), (BERT(), IMAGE), (GPT2(), IMAGE)])
def test_inputs_of_another_kind(model, spec):
    with pytest.raises(ValueError, match="choose a testbed with"):
        model.make(spec, 3)


@pytest.mark.parametrize(("model", "spec", "text"), [
    (ViT(patch=9), IMAGE, "expected images of at least a patch, 9 pixels, got 8; use a smaller patch"),
    (ViT(patch=4, pixels=3), IMAGE, "at least a patch, 4 pixels, got 3"),
    (BERT(vocabulary=19), TOKENS, "expected a vocabulary of at least the testbed's 20 tokens, got 19; leave it out"),
    (GPT2(vocabulary=19), TOKENS, "expected a vocabulary of at least the testbed's 20 tokens, got 19; leave it out"),
])
def test_inputs_that_do_not_fit(model, spec, text):
    with pytest.raises(ValueError, match=text):
        model.make(spec, 3)


@pytest.mark.parametrize(("model", "spec"), [
    (ViT(patch=8, width=8, layers=1, heads=1), IMAGE), (BERT(vocabulary=20, width=8, layers=1, heads=1), TOKENS),
])
def test_inputs_that_just_fit(model, spec):
    assert sum(parameter.numel() for parameter in model.make(spec, 3).parameters())


@pytest.mark.parametrize(("changes", "text"), [
    ({"widths": ()}, "at least 1 item"),
    ({"depths": (2, 2, 2, 0)}, "greater than or equal to 1"),
    ({"widths": (8, 8)}, "expected as many widths as depths, one per stage, got 2 and 4"),
])
def test_a_resnet_has_a_width_and_a_depth_for_each_stage(changes, text):
    with pytest.raises(ValueError, match=text):
        ResNet(**changes)
