import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torchvision.ops import Permute

from eeutils.analysis.decisions import decide
from eeutils.analysis.policies import ThresholdPolicy, score_of
from eeutils.analysis.predictions import predict
from eeutils.analysis.thresholds import Choice
from eeutils.cascade import Cascade, CascadeResult
from eeutils.data import Normalization, Split
from eeutils.models import MultiExitNet, create_exit, resnet18
from tests.toys import (
    Applies,
    assert_same_answers,
    between_scores,
    carrying_net,
    cut_by_layers,
    dividing,
    random_split,
    unchanged,
    with_statistics,
)

PLACES = {1: (), 2: (4,), 3: (2, 4), 6: (0, 1, 2, 4, 6)}
NEVER, ALWAYS = ThresholdPolicy(float("inf")), ThresholdPolicy(0.0)


def make_net(num_exits: int = 3, **kwargs) -> MultiExitNet:
    torch.manual_seed(num_exits)
    return with_statistics(resnet18(width=4, exit_after=PLACES[num_exits], **kwargs))


def answers(cascade: Cascade, split: Split) -> CascadeResult:
    """For all images of `split` as one batch."""
    return cascade(split.normalization(split.images))


def assert_agreement(net: MultiExitNet, split: Split, policy: ThresholdPolicy, batch_size: int) -> None:
    """The cascade answers as the table, but for images so near a threshold that rounding may send them either way."""
    table = predict(net, split)
    distances = score_of(table.logits[:-1], policy.score) - torch.tensor(policy.thresholds)[:, None]
    clear = (distances.abs() >= 1e-5).all(0)
    cascade, expected = Cascade(net, policy), decide(table, policy)
    result, together = cascade.run(split, batch_size=batch_size), answers(cascade, split)
    for each in (result, together):
        assert torch.equal(each.exit_index[clear], expected.exit_index[clear])
    assert torch.equal(result.predicted[clear], together.predicted[clear])
    assert torch.equal(result.labels, split.labels)
    assert torch.equal(result.costs, table.costs)  # folded norms are no multiply-adds before either
    logits = table.logits[expected.exit_index, torch.arange(len(split))]
    torch.testing.assert_close(together.logits[clear], logits[clear], rtol=1e-3, atol=1e-4)


@settings(max_examples=10)
@given(
    num_exits=st.sampled_from([1, 2, 3, 6]),
    pool=st.sampled_from(["avg", "spp"]),
    stem=st.sampled_from(["cifar", "imagenet"]),
    score=st.sampled_from(["confidence", "entropy", "margin"]),
    count=st.integers(1, 12),
    data=st.data(),
)
def test_cascade_and_table_agree_image_by_image(num_exits, pool, stem, score, count, data):
    net, split = make_net(num_exits, pool=pool, stem=stem), random_split(count, 32 if stem == "imagenet" else 8)
    shares = data.draw(st.lists(st.floats(0, 1), min_size=num_exits - 1, max_size=num_exits - 1))
    scores = score_of(predict(net, split).logits[:-1], score)
    policy = ThresholdPolicy(tuple(map(between_scores, scores, shares)), score)
    assert_agreement(net, split, policy, batch_size=data.draw(st.integers(1, count)))


@pytest.mark.parametrize("batch_size", [1, 7, 60, 500])
def test_cascade_and_table_agree_at_every_batch_size(batch_size):
    net, split = make_net(3), random_split(60)
    policy = dividing(predict(net, split))
    assert set(decide(predict(net, split), policy).exit_index.tolist()) == {0, 1, 2}  # else this shows little
    assert_agreement(net, split, policy, batch_size)


@settings(max_examples=5)
@given(shares=st.tuples(st.floats(0, 1), st.floats(0, 1)), count=st.integers(1, 20))
@example(shares=(0.0, 0.0), count=1)
@example(shares=(0.0, 0.0), count=5)
def test_cascade_runs_no_unit_for_images_that_have_left(shares, count):
    net, split = make_net(3), random_split(count)
    policy = ThresholdPolicy(tuple(map(between_scores, predict(net, split).confidence, shares)))
    seen = [[] for _ in net.units]
    for unit, sizes in zip(net.units, seen, strict=True):
        unit.register_forward_hook(lambda _, inputs, __, sizes=sizes: sizes.append(len(inputs[0])))
    cascade = Cascade(net, policy)
    cascade(torch.randn(1, 3, 8, 8))  # the first image of a shape runs through the whole network
    for sizes in seen:
        sizes.clear()
    exit_index = answers(cascade, split).exit_index
    assert shares != (0, 0) or not exit_index.any()
    for unit, sizes in enumerate(seen):
        exits_before = sum(place < unit for place in net.exit_after)
        still_in = int((exit_index >= exits_before).sum())
        assert sizes == ([still_in] if still_in else [])  # an empty batch does not run at all


def test_cascade_takes_no_other_policy_later():
    cascade = Cascade(make_net(), NEVER)
    with pytest.raises(AttributeError):
        cascade.policy = ALWAYS
    assert cascade.policy == NEVER


def test_cascade_passes_errors_of_large_batches_on():
    def few_only(x: Tensor) -> Tensor:
        if len(x) > 3:
            raise RuntimeError("out of memory")
        return x

    cascade = Cascade(MultiExitNet([Applies(few_only)], {0: create_exit("avg", 3, 10)}), NEVER)
    cascade.run(random_split(3))
    with pytest.raises(RuntimeError, match="out of memory"):
        cascade.run(random_split(4))


def test_cascade_and_its_network_do_not_change_each_other():
    net, split = make_net(3).train(), random_split(4)
    net.units[0].eval()
    modes = [module.training for module in net.modules()]
    cascade = Cascade(net, NEVER)
    with unchanged(net):
        before = answers(cascade, split).logits
    assert [module.training for module in net.modules()] == modes
    sum(answer.sum() for answer in net(torch.randn(2, 3, 8, 8))).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    with torch.no_grad():
        net.units[0][0].weight.zero_()
    assert torch.equal(answers(cascade, split).logits, before)


def test_cascade_run_counts_costs_for_each_image_size_unless_they_are_given():
    cascade, split = Cascade(make_net(3), ALWAYS), random_split(4)
    assert cascade.run(split, costs=[1, 2, 4]).relative_cost == 0.25
    small, large, again = (cascade.run(random_split(4, size)).mean_cost for size in (8, 16, 8))
    assert 0.25 < small == again < large
    with pytest.raises(ValueError, match="costs"):
        cascade.run(split, costs=[1, 2])


def test_cascade_results_can_be_written_to_and_differentiated():
    result = Cascade(make_net(2), NEVER)(torch.randn(2, 3, 8, 8))
    result.logits[0] = 0
    temperature = torch.ones((), requires_grad=True)
    ((result.logits / temperature) ** 2).sum().backward()
    assert temperature.grad is not None


def test_cascade_result_confidence_is_the_probability_of_the_predicted_class():
    result = CascadeResult(torch.tensor([[0.0, 3.0], [1.0, 1.0], [2.0, 0.0]]).log(), torch.zeros(3).long())
    assert result.predicted.tolist() == [1, 0, 0]
    assert result.confidence.tolist() == [1.0, 0.5, 1.0]
    assert repr(result) == "CascadeResult(3 images of 2 classes)"


def test_cascade_takes_any_memory_format_or_precision():
    cascade = Cascade(make_net(3), ThresholdPolicy(0.15))
    images = torch.randn(6, 3, 8, 8).to(memory_format=torch.channels_last)
    expected = cascade(images)
    for other in (images.contiguous(), images.double(), images.repeat_interleave(2, 0)[::2]):
        result = cascade(other)
        assert torch.equal(result.exit_index, expected.exit_index)
        torch.testing.assert_close(result.logits, expected.logits)
        assert result.logits.dtype == torch.float32


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_cascade_keeps_images_from_a_first_layer_that_works_in_place(memory_format):
    net = MultiExitNet([nn.ReLU(inplace=True), nn.Conv2d(3, 8, 3)], {1: create_exit("avg", 8, 4)})
    images = torch.randn(4, 3, 8, 8).to(memory_format=memory_format)
    before = images.clone()
    Cascade(net, ALWAYS)(images)
    assert torch.equal(images, before)


def with_one_broken(value: float) -> Tensor:
    images = torch.randn(5, 3, 8, 8)
    images[3, 0, 0, 0] = value
    return images


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 8, 8), r"got \(3, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8), r"got \(0, 3, 8, 8\)"),
        (torch.full((1, 3, 8, 8), 9, dtype=torch.uint8), "uint8"),
        (torch.zeros(2, 1, 8, 8), r"\(1, 8, 8\).*unit 0"),
        (torch.rand(2, 3, 8, 8), r"float32 in \[\d.*, 0\.9\d+\]"),
        (torch.randint(0, 256, (2, 3, 32, 32)).float(), r"float32 in \[0, 255\]"),
        (torch.full((2, 3, 8, 8), torch.inf), r"\[inf, inf\]"),
        (torch.full((2, 3, 8, 8), torch.nan), r"\[nan, nan\]"),
        (with_one_broken(255.0), "255"),
        (with_one_broken(torch.nan), "nan"),
    ],
)
@pytest.mark.parametrize("policy", [NEVER, ALWAYS])
def test_cascade_refuses_images(images, message, policy):
    with pytest.raises(ValueError, match=message):
        Cascade(make_net(2), policy)(images)


@pytest.mark.parametrize("images", [np.zeros((1, 3, 8, 8), np.float32), "photo.jpg", [torch.zeros(3, 8, 8)]])
def test_cascade_refuses_other_than_tensors(images):
    with pytest.raises(TypeError, match=type(images).__name__):
        Cascade(make_net(3), NEVER)(images)


def test_cascade_normalises_uint8_images():
    net, split, policy = make_net(3), random_split(20), ThresholdPolicy(0.15)
    expected = answers(Cascade(net, policy), split)
    cascade = Cascade(net, policy, normalization=split.normalization)
    assert torch.equal(cascade(split.images).logits, expected.logits)
    elsewhere = replace(split, normalization=Normalization((0.0,) * 3, (1.0,) * 3))
    assert torch.equal(cascade.run(elsewhere).exit_index, expected.exit_index)


@pytest.mark.parametrize(
    "images", [torch.randn(2, 3, 8, 8), torch.rand(2, 3, 8, 8), torch.arange(384).view(2, 3, 8, 8).byte() % 2]
)
def test_cascade_with_a_normalization_refuses_other_than_pixels(images):
    with pytest.raises(ValueError, match=str(images.dtype)):
        Cascade(make_net(3), NEVER, normalization=random_split(1).normalization)(images)


def test_cascade_takes_whatever_its_normalization_makes():
    """A few bright pixels on black: their size after normalisation has no bound."""
    pixels = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    pixels[:, :, 5, 5] = 255
    normalization = Normalization.of(pixels)
    assert normalization(pixels).max() > 60
    assert len(Cascade(make_net(3), NEVER, normalization=normalization)(pixels).predicted) == 4


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["exits.2.2.bias", "units.0.1.running_var"])
def test_cascade_refuses_broken_weights_but_takes_a_mask_of_infinities(name, value):
    net = make_net(3)
    net.units[0].register_buffer("mask", torch.full((2,), -torch.inf))
    assert len(Cascade(net, NEVER)(torch.randn(3, 3, 8, 8)).predicted) == 3
    net.state_dict()[name][0] = value
    with pytest.raises(ValueError, match=re.escape(name)):
        Cascade(net, NEVER)


@pytest.mark.parametrize(
    ("net", "policy", "message"),
    [
        (nn.Conv2d(3, 4, 1), NEVER, "Conv2d"),
        (make_net(3), 0.5, "float"),
        (make_net(3), CascadeResult(torch.zeros(1, 2), torch.zeros(1)), "CascadeResult"),
        (make_net(3), Choice(NEVER, 0.0, 0.0), "Choice"),
    ],
)
def test_cascade_refuses_other_networks_and_policies(net, policy, message):
    with pytest.raises(TypeError, match=message):
        Cascade(net, policy)


@pytest.mark.parametrize(
    "wrong", [{"precision": "bfloat16"}, {"precision": "int8"}, {"engine": "tensorflow"}, {"fallback": "first"}]
)
def test_cascade_refuses_unknown_options(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        Cascade(make_net(3), NEVER, **wrong)


# Networks that others have made.


def convolutions(*layers: nn.Module) -> MultiExitNet:
    exits = {0: create_exit("avg", 8, 4), 1: create_exit("avg", 8, 4)}
    return MultiExitNet([nn.Sequential(*layers, nn.ReLU()), nn.Conv2d(8, 8, 3)], exits)


def hooked(register: str, module: nn.Module, hook: Callable) -> nn.Module:
    getattr(module, register)(hook)
    return module


def tokens(*order: int) -> nn.Sequential:
    """Images -> four tokens each, as (N, T, C) in another order."""
    return nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Flatten(2), Permute([0, 2, 1]), Permute(list(order)))


def of_mean_token(*order: int) -> nn.Sequential:
    """Tokens, in this order (N, C, T), -> logits of their mean."""
    return nn.Sequential(Permute(list(order)), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 4))


class PositionBias(nn.Module):
    """A parameter that channels-last memory does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1, 8, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias[..., 0]


FOREIGN_NETWORKS = {
    "units and heads that work in place": cut_by_layers,
    "a connection that skips an exit": carrying_net,
    "spectral norm": lambda: convolutions(spectral_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8)),
    "a hook after the convolution": lambda: convolutions(
        hooked("register_forward_hook", nn.Conv2d(3, 8, 3), lambda _, __, x: x.square()), nn.BatchNorm2d(8)
    ),
    "a hook before the norm": lambda: convolutions(
        nn.Conv2d(3, 8, 3), hooked("register_forward_pre_hook", nn.BatchNorm2d(8), lambda _, x: x[0].square())
    ),
    "a parameter of five dimensions": lambda: convolutions(nn.Conv2d(3, 8, 3), PositionBias()),
    "tokens": lambda: MultiExitNet(
        [tokens(0, 1, 2), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)],
        {0: of_mean_token(0, 2, 1), 1: of_mean_token(0, 2, 1)},
    ),
    "flat features": lambda: MultiExitNet(
        [nn.Flatten(), nn.Sequential(nn.Linear(192, 8), nn.ReLU())], {0: nn.Linear(192, 4), 1: nn.Linear(8, 4)}
    ),
}


@pytest.mark.parametrize("kind", FOREIGN_NETWORKS)
def test_cascade_and_table_agree_on_foreign_networks(kind):
    torch.manual_seed(0)
    net, split = FOREIGN_NETWORKS[kind](), random_split(40, num_classes=4)
    net.train()(torch.randn(64, 3, 8, 8))  # statistics that matter
    policy = dividing(predict(net, split))
    exits = decide(predict(net, split), policy).exit_index
    assert 0 < (exits == 0).sum() < len(split)  # else this shows little
    assert_agreement(net, split, policy, batch_size=40)


def test_cascade_and_table_agree_on_a_network_without_weights():
    net = MultiExitNet([nn.ReLU(), nn.AvgPool2d(2)], {unit: create_exit("avg", 3, 3)[:2] for unit in (0, 1)})
    split = random_split(8, num_classes=3)
    assert torch.equal(answers(Cascade(net, ALWAYS), split).logits, predict(net, split, costs=[1, 2]).logits[0])


def test_cascade_keeps_norms_without_statistics():
    net = convolutions(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False))
    split = random_split(40, num_classes=4)
    result = answers(Cascade(net, NEVER), split)
    torch.testing.assert_close(result.logits, predict(net, split).logits[-1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("heads", "answers"),
    [
        ((create_exit("avg", 8, 1), create_exit("avg", 8, 1)), r"\(3, 1\)"),
        ((Applies(lambda x: {"logits": x.mean((2, 3))}), create_exit("avg", 8, 4)), "dict"),
        ((nn.Sequential(create_exit("avg", 8, 1), nn.Flatten(0)), create_exit("avg", 8, 4)), r"\(3,\)"),
        ((create_exit("avg", 8, 4), create_exit("avg", 8, 1)), r"\(3, 1\)"),
    ],
)
def test_cascade_refuses_heads_that_return_anything_but_logits(heads, answers):
    net = MultiExitNet([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)], dict(enumerate(heads)))
    with pytest.raises(ValueError, match=answers):
        Cascade(net, ALWAYS).run(random_split(6, num_classes=4))
    with pytest.raises(ValueError, match="logits"):
        predict(net, random_split(6, num_classes=4))


def test_cascade_refuses_units_that_do_not_keep_images_first():
    torch.manual_seed(0)
    net = MultiExitNet([tokens(1, 0, 2), nn.Linear(8, 8)], {0: of_mean_token(1, 2, 0), 1: of_mean_token(1, 2, 0)})
    split = random_split(10, num_classes=4)
    policy = dividing(predict(net, split))
    with pytest.raises(ValueError, match=r"\(4, 3, 8\)"):
        Cascade(net, policy).run(split)


def test_cascade_runs_a_compiled_network_uncompiled(graphs):
    net, split = make_net(3), random_split(20)
    cascade = Cascade(torch.compile(net), ThresholdPolicy(0.15))
    assert type(cascade.net) is MultiExitNet
    assert torch.equal(answers(cascade, split).logits, answers(Cascade(net, ThresholdPolicy(0.15)), split).logits)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\)"):
        cascade(torch.zeros(2, 1, 8, 8))
    assert not graphs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_cascade_and_table_agree_in_other_precisions(dtype):
    net, split = make_net(3).to(dtype), random_split(60)
    table = predict(net, split)
    for share in (0.3, 0.97):
        policy = dividing(table, share=share)
        cascade = Cascade(net, policy)
        assert next(cascade.net.parameters()).dtype is dtype
        alike = decide(table, policy).exit_index == cascade.run(split).exit_index
        assert alike.double().mean() > (0.9 if dtype is torch.bfloat16 else 0.999)
        assert answers(cascade, split).logits.dtype == torch.float32


def test_cascade_computes_in_the_precision_asked_for_as_predict_does():
    net, split = make_net(3), random_split(60)
    half, whole = (answers(Cascade(net, NEVER, precision=each), split).logits for each in ("bf16", None))
    assert next(net.parameters()).dtype == half.dtype == torch.float32
    assert not torch.equal(half, whole)
    torch.testing.assert_close(half, whole, rtol=0.1, atol=0.1)
    table = predict(net, split, engine="torch", precision="bf16")
    exit_index = Cascade(net, dividing(table), precision="bf16").run(split).exit_index
    assert (decide(table, dividing(table)).exit_index == exit_index).double().mean() > 0.95  # unfolded it is 0.9


def test_cascade_keeps_several_precisions():
    half, whole = (nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()) for _ in range(2))
    units = [half.bfloat16(), Applies(lambda x: x.float()), whole]
    net = MultiExitNet(units, {unit: create_exit("avg", 3, 4) for unit in (1, 2)})
    split = random_split(6, num_classes=4)
    torch.testing.assert_close(answers(Cascade(net, NEVER), split).logits, predict(net, split).logits[-1])


def test_cascade_tells_scores_near_1_apart_in_16_bits():
    net = make_net(2)
    with torch.no_grad():
        net.exits["4"][2].weight.zero_()
        net.exits["4"][2].bias.zero_()[0] = 9.0  # a confidence of 0.9989, which bf16 rounds to 1
    result = Cascade(net.bfloat16(), ThresholdPolicy(0.9999)).run(random_split(5))
    assert result.exit_index.tolist() == [1] * 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cascade_gives_the_same_results_on_a_gpu():
    net, split = make_net(3), random_split(50)
    policy = dividing(predict(net, split))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        there = Cascade(net, policy, device="cuda").run(split)
    assert_same_answers(there, Cascade(net, policy).run(split))
    assert next(net.parameters()).device.type == "cpu"
