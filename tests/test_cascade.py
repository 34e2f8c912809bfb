import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from eeutils.analysis.decisions import decide
from eeutils.analysis.policies import ThresholdPolicy, score_of
from eeutils.analysis.predictions import Predictions, predict
from eeutils.analysis.thresholds import Choice
from eeutils.cascade import Cascade, CascadeResult
from eeutils.data import Normalization, Split
from eeutils.device import unrounded_convolutions
from eeutils.models import MultiExitNet, resnet18

PLACES = {1: (), 2: (4,), 3: (2, 4), 6: (0, 1, 2, 4, 6)}
NEVER, ALWAYS = ThresholdPolicy(float("inf")), ThresholdPolicy(0.0)


def make_net(num_exits: int = 3, **kwargs) -> MultiExitNet:
    """Untrained, but with BatchNorm statistics that matter when they are folded."""
    torch.manual_seed(num_exits)
    net = resnet18(width=4, exit_after=PLACES[num_exits], **kwargs)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


def make_split(count: int, size: int = 8, num_classes: int = 10) -> Split:
    pixels = torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(size)
    )
    normalization = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return Split(pixels, torch.arange(count) % num_classes, tuple(map(str, range(num_classes))), normalization)


def between_scores(scores: Tensor, share: float) -> float:
    """A threshold that about this share of the images (N,) does not reach, halfway between two scores."""
    ordered = scores.double().sort().values
    place = min(int(share * len(ordered)), len(ordered) - 1)
    return float((ordered[max(place - 1, 0)] + ordered[place]).clamp(0, 2) / 2)


def close_calls(predictions: Predictions, policy: ThresholdPolicy) -> Tensor:
    """(N,) bool: the images that rounding may send either way."""
    scores = score_of(predictions.logits[:-1], policy.score)
    return ((scores - torch.tensor(policy.thresholds)[:, None]).abs() < 1e-5).any(0)


def answers(cascade: Cascade, split: Split) -> CascadeResult:
    """For all images of `split` as one batch."""
    return cascade(split.normalization(split.images))


def assert_agreement(net: MultiExitNet, split: Split, policy: ThresholdPolicy, batch_size: int) -> None:
    predictions = predict(net, split)
    cascade, expected = Cascade(net, policy), decide(predictions, policy)
    result, together = cascade.run(split, batch_size=batch_size), answers(cascade, split)
    clear = ~close_calls(predictions, policy)
    assert torch.equal(result.exit_index[clear], expected.exit_index[clear])
    assert torch.equal(result.predicted[clear], together.predicted[clear])
    assert torch.equal(result.exit_index[clear], together.exit_index[clear])
    logits = predictions.logits[expected.exit_index, torch.arange(len(split))]
    torch.testing.assert_close(together.logits[clear], logits[clear], rtol=1e-3, atol=1e-4)


@settings(max_examples=10)
@given(
    num_exits=st.sampled_from([1, 2, 3, 6]),
    pool=st.sampled_from(["avg", "spp"]),
    stem=st.sampled_from(["cifar", "imagenet"]),
    score_name=st.sampled_from(["confidence", "entropy", "margin"]),
    count=st.integers(1, 12),
    data=st.data(),
)
def test_cascade_and_table_agree_image_by_image(num_exits, pool, stem, score_name, count, data):
    net, split = make_net(num_exits, pool=pool, stem=stem), make_split(count, 32 if stem == "imagenet" else 8)
    shares = data.draw(st.lists(st.floats(0, 1), min_size=num_exits - 1, max_size=num_exits - 1))
    scores = score_of(predict(net, split).logits[:-1], score_name)
    policy = ThresholdPolicy(tuple(map(between_scores, scores, shares)), score_name)
    assert_agreement(net, split, policy, batch_size=data.draw(st.integers(1, count)))


def test_cascade_and_table_agree_at_every_batch_size():
    net, split = make_net(3), make_split(60)
    scores = score_of(predict(net, split).logits[:-1])
    policy = ThresholdPolicy((between_scores(scores[0], 0.6), between_scores(scores[1], 0.5)))
    assert set(decide(predict(net, split), policy).exit_index.tolist()) == {0, 1, 2}  # else this shows little
    for batch_size in (1, 7, 60, 500):
        assert_agreement(net, split, policy, batch_size)


def watched_cascade(net: MultiExitNet, policy: ThresholdPolicy) -> tuple[Cascade, list[list[int]]]:
    """A cascade, and for each unit the sizes of the batches that come to it, filled as the cascade runs."""
    seen = [[] for _ in net.units]
    for unit, sizes in zip(net.units, seen, strict=True):
        unit.register_forward_hook(lambda _, inputs, __, sizes=sizes: sizes.append(len(inputs[0])))
    cascade = Cascade(net, policy)
    cascade(torch.randn(1, 3, 8, 8))  # the first image of a shape runs through the whole network
    for sizes in seen:
        sizes.clear()
    return cascade, seen


@settings(max_examples=5)
@given(shares=st.tuples(st.floats(0, 1), st.floats(0, 1)), count=st.integers(1, 20))
def test_cascade_runs_no_unit_for_images_that_have_left(shares, count):
    net, split = make_net(3), make_split(count)
    scores = score_of(predict(net, split).logits[:-1])
    policy = ThresholdPolicy(tuple(map(between_scores, scores, shares)))
    cascade, seen = watched_cascade(net, policy)
    exit_index = answers(cascade, split).exit_index
    for unit, sizes in enumerate(seen):
        exits_before = sum(place < unit for place in net.exit_after)
        still_in = int((exit_index >= exits_before).sum())
        assert sizes == ([still_in] if still_in else [])  # an empty batch does not run at all


@pytest.mark.parametrize("count", [1, 5])
def test_cascade_stops_when_all_images_leave_at_once(count):
    cascade, seen = watched_cascade(make_net(3), ALWAYS)
    assert answers(cascade, make_split(count)).exit_index.tolist() == [0] * count
    assert seen == [[count]] * 3 + [[]] * 6


def test_cascade_takes_no_other_policy_later():
    cascade = Cascade(make_net(), NEVER)

    with pytest.raises(AttributeError):
        cascade.policy = ALWAYS
    assert cascade.policy == NEVER


@pytest.mark.parametrize("batch_size", [1, 40])
def test_cascade_agrees_with_a_policy_that_looks_back(batch_size, two_in_a_row):
    net, split = make_net(6, num_classes=2), make_split(40, num_classes=2)
    with torch.no_grad():  # an untrained head names one class for all images; moved so that it names both
        for head, logits in zip(net.exits.values(), predict(net, split).logits, strict=True):
            head[2].bias -= logits.mean(0)
    decisions = decide(predict(net, split), two_in_a_row())
    assert len(decisions.exit_index.unique()) > 2  # else this shows little
    result = Cascade(net, two_in_a_row()).run(split, batch_size=batch_size)
    assert torch.equal(result.exit_index, decisions.exit_index)
    assert torch.equal(result.predicted, decisions.predicted)


def test_cascade_passes_errors_of_large_batches_on():
    class Forgetful(nn.Module):
        def forward(self, x):
            if len(x) > 3:
                raise RuntimeError("out of memory")
            return x

    plain = make_net(1)
    net = MultiExitNet([Forgetful(), *plain.units], {9: plain.exits["8"]})
    Cascade(net, NEVER).run(make_split(3))
    with pytest.raises(RuntimeError, match="out of memory"):
        Cascade(net, NEVER).run(make_split(4))


def test_cascade_leaves_the_network_as_it_was():
    net = make_net(3).train()
    net.units[0].eval()
    modes = [module.training for module in net.modules()]
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    cascade = Cascade(net, ThresholdPolicy(0.2))
    cascade.run(make_split(4))
    assert [module.training for module in net.modules()] == modes
    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())
    sum(answer.sum() for answer in net(torch.randn(2, 3, 8, 8))).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_cascade_does_not_follow_later_training():
    net, split = make_net(2), make_split(3)
    cascade = Cascade(net, NEVER)
    before = answers(cascade, split).logits
    with torch.no_grad():
        net.units[0][0].weight.zero_()
    assert torch.equal(answers(cascade, split).logits, before)


def test_cascade_run_returns_the_decisions():
    net, split = make_net(3), make_split(20)
    predictions = predict(net, split)
    policy = ThresholdPolicy(between_scores(score_of(predictions.logits[:-1])[0], 0.5))
    result, expected = Cascade(net, policy).run(split), decide(predictions, policy)
    assert (result.accuracy, result.mean_cost) == (expected.accuracy, expected.mean_cost)
    assert torch.equal(result.labels, split.labels)
    assert torch.equal(result.costs, predictions.costs)  # folded norms are no multiply-adds before either


def test_cascade_run_takes_other_costs():
    cascade, split = Cascade(make_net(3), ALWAYS), make_split(4)
    assert cascade.run(split, costs=[1, 2, 4]).relative_cost == 0.25
    assert cascade.run(split).relative_cost != 0.25
    with pytest.raises(ValueError, match="costs"):
        cascade.run(split, costs=[1, 2])


def test_cascade_run_has_costs_for_each_image_size():
    cascade = Cascade(make_net(2), ALWAYS)
    small, large = (cascade.run(make_split(4, size)).mean_cost for size in (8, 16))
    assert small < large
    assert cascade.run(make_split(4, 8)).mean_cost == small


def test_cascade_results_can_be_written_to_and_differentiated():
    result = Cascade(make_net(2), NEVER)(torch.randn(2, 3, 8, 8))
    result.logits[0] = 0
    temperature = torch.ones((), requires_grad=True)
    ((result.logits / temperature) ** 2).sum().backward()
    assert temperature.grad is not None


def test_cascade_confidence_is_the_probability_of_the_predicted_class():
    result = CascadeResult(torch.tensor([[0.0, 3.0], [1.0, 1.0], [2.0, 0.0]]).log(), torch.zeros(3).long())
    assert result.confidence.tolist() == [1.0, 0.5, 1.0]
    run = answers(Cascade(make_net(3), ThresholdPolicy(0.15)), make_split(20))
    named = run.logits.softmax(-1).gather(1, run.predicted[:, None])[:, 0]
    torch.testing.assert_close(run.confidence, named)
    assert (run.confidence.shape, run.confidence.dtype) == ((20,), torch.float32)
    assert repr(run) == "CascadeResult(20 images of 10 classes)"


def test_cascade_keeps_images_and_takes_any_memory_format_or_precision():
    cascade = Cascade(make_net(3), ThresholdPolicy(0.15))
    images = torch.randn(6, 3, 8, 8).to(memory_format=torch.channels_last)
    before = images.clone()
    expected = cascade(images)
    assert torch.equal(images, before)
    for other in (images.contiguous(), images.double(), images.repeat_interleave(2, 0)[::2]):
        result = cascade(other)
        assert torch.equal(result.exit_index, expected.exit_index)
        torch.testing.assert_close(result.logits, expected.logits)
        assert result.logits.dtype == torch.float32


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


@pytest.mark.parametrize("broken", [255.0, torch.nan])
def test_cascade_refuses_one_broken_image_among_others(broken):
    images = torch.randn(5, 3, 8, 8)
    images[3, 0, 0, 0] = broken
    with pytest.raises(ValueError, match=f"{broken:g}"):
        Cascade(make_net(3), ThresholdPolicy(0.1))(images)


def test_cascade_normalises_uint8_images():
    net, split, policy = make_net(3), make_split(20), ThresholdPolicy(0.15)
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
        Cascade(make_net(3), NEVER, normalization=make_split(1).normalization)(images)


def test_cascade_takes_whatever_its_normalization_makes():
    """A few bright pixels on black: their size after normalisation has no bound."""
    pixels = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    pixels[:, :, 5, 5] = 255
    net, normalization = make_net(3, num_classes=4), Normalization.of(pixels)
    assert normalization(pixels).max() > 60
    assert len(Cascade(net, NEVER, normalization=normalization)(pixels).predicted) == 4


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["exits.2.2.bias", "units.0.1.running_var"])
def test_cascade_refuses_broken_weights(name, value):
    net = make_net(3)
    net.state_dict()[name][0] = value
    with pytest.raises(ValueError, match=re.escape(name)):
        Cascade(net, NEVER)


def test_cascade_takes_an_attention_mask_of_infinities():
    net = make_net(3)
    net.units[0].register_buffer("mask", torch.full((2,), -torch.inf))
    assert len(Cascade(net, NEVER)(torch.randn(3, 3, 8, 8)).predicted) == 3


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


# Networks that others have made.


class Tokens(nn.Module):
    """Feature map (N, C, H, W) -> (N, H * W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class MeanToken(nn.Sequential):
    """(N, T, C) -> logits of the mean token."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mean(1))


def head(channels: int, *first: nn.Module) -> nn.Sequential:
    return nn.Sequential(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4))


def vgg_by_layers() -> MultiExitNet:
    """As one cuts `list(vgg16().features)`: the unit after an exit overwrites the map that the exit reads."""
    units = [nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True)]
    return MultiExitNet(units, {0: head(8), 2: head(8), 3: head(8)})


def convolutions(*layers: nn.Module) -> MultiExitNet:
    return MultiExitNet([nn.Sequential(*layers, nn.ReLU()), nn.Conv2d(8, 8, 3)], {0: head(8), 1: head(8)})


def hooked(register: str, module: nn.Module, hook: Callable) -> nn.Module:
    getattr(module, register)(hook)
    return module


def tokens() -> MultiExitNet:
    patches = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), Tokens())
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return MultiExitNet([patches, block, MeanToken()], {0: MeanToken(nn.Linear(8, 4)), 2: nn.Linear(8, 4)})


class SkippingUnit(nn.Module):
    """Images -> a map, and the images themselves for a unit behind the exit."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"map": self.convolution(x), "images": x}


class Joined(nn.Module):
    """The map, or where `both` map and images, through `layers`."""

    def __init__(self, layers: nn.Module, *, both: bool) -> None:
        super().__init__()
        self.layers, self.both = layers, both

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return self.layers(torch.cat([x["map"], x["images"]], 1) if self.both else x["map"])


def skipping() -> MultiExitNet:
    joined = Joined(nn.Conv2d(11, 8, 3), both=True)
    exits = {0: Joined(head(8, nn.ReLU(inplace=True)), both=False), 1: head(8)}
    return MultiExitNet([SkippingUnit(), joined], exits)


class PositionBias(nn.Module):
    """A parameter that channels-last memory does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1, 8, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias[..., 0]


FOREIGN_NETWORKS = {
    "units that work in place": vgg_by_layers,
    "a head that works in place": lambda: MultiExitNet(
        [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)], {0: head(8, nn.ReLU(inplace=True)), 1: head(8)}
    ),
    "spectral norm": lambda: convolutions(spectral_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8)),
    "a hook after the convolution": lambda: convolutions(
        hooked("register_forward_hook", nn.Conv2d(3, 8, 3), lambda _, __, x: x.square()), nn.BatchNorm2d(8)
    ),
    "a hook before the norm": lambda: convolutions(
        nn.Conv2d(3, 8, 3), hooked("register_forward_pre_hook", nn.BatchNorm2d(8), lambda _, x: x[0].square())
    ),
    "tokens": tokens,
    "flat features": lambda: MultiExitNet(
        [nn.Flatten(), nn.Sequential(nn.Linear(192, 8), nn.ReLU())], {0: nn.Linear(192, 4), 1: nn.Linear(8, 4)}
    ),
    "a connection that skips an exit": skipping,
    "a parameter of five dimensions": lambda: convolutions(nn.Conv2d(3, 8, 3), PositionBias()),
}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_cascade_keeps_images_from_a_first_layer_that_works_in_place(memory_format):
    net = MultiExitNet([nn.ReLU(inplace=True), nn.Conv2d(3, 8, 3)], {1: head(8)})
    images = torch.randn(4, 3, 8, 8).to(memory_format=memory_format)
    before = images.clone()

    Cascade(net, ALWAYS)(images)

    assert torch.equal(images, before)


@pytest.mark.parametrize("kind", FOREIGN_NETWORKS)
def test_cascade_and_table_agree_on_foreign_networks(kind):
    torch.manual_seed(0)
    net, split = FOREIGN_NETWORKS[kind](), make_split(40, num_classes=4)
    net.train()(torch.randn(64, 3, 8, 8))  # statistics that matter
    predictions = predict(net, split)
    thresholds = tuple(between_scores(each, 0.5) for each in score_of(predictions.logits[:-1]))
    exits = decide(predictions, ThresholdPolicy(thresholds)).exit_index
    assert 0 < (exits == 0).sum() < len(split)  # else this shows little

    assert_agreement(net, split, ThresholdPolicy(thresholds), batch_size=40)


class Named(nn.Sequential):
    """A head that answers a dict."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": super().forward(x)}


def one_output() -> nn.Sequential:
    return nn.Sequential(*head(8)[:-1], nn.Linear(8, 1))


@pytest.mark.parametrize(
    ("heads", "answers"),
    [
        ((one_output(), one_output()), r"\(3, 1\)"),
        ((Named(*head(8)), head(8)), "dict"),
        ((nn.Sequential(one_output(), nn.Flatten(0)), head(8)), r"\(3,\)"),
        ((head(8), one_output()), r"\(3, 1\)"),
    ],
)
def test_cascade_refuses_heads_that_return_anything_but_logits(heads, answers):
    net = MultiExitNet([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)], dict(enumerate(heads)))
    split = make_split(6, num_classes=4)
    with pytest.raises(ValueError, match=answers):
        Cascade(net, ALWAYS).run(split)
    with pytest.raises(ValueError, match="logits"):
        predict(net, split)


class TokensFirst(Tokens):
    """Feature map (N, C, H, W) -> (H * W, N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).transpose(0, 1)


class MeanOfFirst(nn.Linear):
    """(T, N, C) -> logits of the mean token."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mean(0))


def test_cascade_refuses_units_that_do_not_keep_images_first():
    torch.manual_seed(0)
    patches = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), TokensFirst())
    net = MultiExitNet([patches, nn.Linear(8, 8)], {0: MeanOfFirst(8, 4), 1: MeanOfFirst(8, 4)})
    split = make_split(10, num_classes=4)
    policy = ThresholdPolicy(between_scores(score_of(predict(net, split).logits[0]), 0.5))
    with pytest.raises(ValueError, match=r"\(4, 3, 8\)"):
        Cascade(net, policy).run(split)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_cascade_and_table_agree_in_other_precisions(dtype):
    net, split = make_net(3).to(dtype), make_split(60)
    scores = score_of(predict(net, split).logits[:-1])
    for share in (0.3, 0.97):
        policy = ThresholdPolicy(tuple(between_scores(each, share) for each in scores))
        cascade = Cascade(net, policy)
        assert next(cascade.net.parameters()).dtype is dtype
        table, result = decide(predict(net, split), policy), cascade.run(split)
        assert (table.exit_index == result.exit_index).double().mean() > (0.9 if dtype is torch.bfloat16 else 0.999)
        assert answers(cascade, split).logits.dtype == torch.float32


def test_cascade_computes_in_the_precision_asked_for():
    net, split = make_net(3), make_split(60)
    half = Cascade(net, NEVER, precision="bf16")
    assert next(net.parameters()).dtype == torch.float32
    result = answers(half, split)
    assert result.logits.dtype == torch.float32
    whole = answers(Cascade(net, NEVER), split)
    assert not torch.equal(result.logits, whole.logits)
    torch.testing.assert_close(result.logits, whole.logits, rtol=0.1, atol=0.1)


def test_cascade_keeps_several_precisions():
    class Widened(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float()

    torch.manual_seed(0)
    half, whole = (nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()) for _ in range(2))
    net = MultiExitNet([half.bfloat16(), Widened(), whole], {1: head(3), 2: head(3)})
    split = make_split(6, num_classes=4)
    torch.testing.assert_close(answers(Cascade(net, NEVER), split).logits, predict(net, split).logits[-1])


@pytest.mark.parametrize(
    "wrong", [{"precision": "bfloat16"}, {"precision": "int8"}, {"engine": "tensorflow"}, {"fallback": "first"}]
)
def test_cascade_refuses_unknown_options(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        Cascade(make_net(3), NEVER, **wrong)


def test_cascade_agrees_with_predictions_in_its_precision():
    net, split = make_net(3), make_split(60)
    predictions = predict(net, split, engine="torch", precision="bf16")
    policy = ThresholdPolicy(tuple(between_scores(each, 0.5) for each in score_of(predictions.logits[:-1])))
    exit_index = Cascade(net, policy, precision="bf16").run(split).exit_index
    assert (decide(predictions, policy).exit_index == exit_index).double().mean() > 0.95  # unfolded it is 0.9


def test_cascade_runs_a_compiled_network_uncompiled(compiled):
    net, split = make_net(3), make_split(20)
    wrapped, graphs = compiled(net)
    cascade = Cascade(wrapped, ThresholdPolicy(0.15))
    assert type(cascade.net) is MultiExitNet
    assert torch.equal(answers(cascade, split).logits, answers(Cascade(net, ThresholdPolicy(0.15)), split).logits)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\)"):
        cascade(torch.zeros(2, 1, 8, 8))
    assert not graphs


def test_cascade_keeps_norms_without_statistics():
    net = convolutions(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False))
    split = make_split(40, num_classes=4)
    result = answers(Cascade(net, NEVER), split)
    torch.testing.assert_close(result.logits, predict(net, split).logits[-1], rtol=1e-3, atol=1e-4)


def test_cascade_tells_scores_near_1_apart_in_16_bits():
    net = make_net(2)
    with torch.no_grad():
        net.exits["4"][2].weight.zero_()
        net.exits["4"][2].bias.zero_()[0] = 9.0  # a confidence of 0.9989, which bf16 rounds to 1
    result = Cascade(net.bfloat16(), ThresholdPolicy(0.9999)).run(make_split(5))
    assert result.exit_index.tolist() == [1] * 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cascade_gives_the_same_results_on_a_gpu():
    net, split = make_net(3), make_split(50)
    scores = score_of(predict(net, split).logits[:-1])
    policy = ThresholdPolicy((between_scores(scores[0], 0.5), between_scores(scores[1], 0.5)))
    with unrounded_convolutions():
        there = Cascade(net, policy, device="cuda").run(split)
    here = Cascade(net, policy).run(split)
    assert torch.equal(there.exit_index, here.exit_index)
    assert next(net.parameters()).device.type == "cpu"


def test_cascade_and_table_agree_on_a_network_without_weights():
    net = MultiExitNet([nn.ReLU(), nn.AvgPool2d(2)], {0: MeanOfChannels(), 1: MeanOfChannels()})
    split = make_split(8)
    predictions = predict(net, split, costs=[1, 2])
    assert torch.equal(answers(Cascade(net, ThresholdPolicy(0.0)), split).logits, predictions.logits[0])


class MeanOfChannels(nn.Module):
    """Logits without a weight, ten of them."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 2, 3))[:, None] * torch.arange(10)
