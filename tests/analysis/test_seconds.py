import time

import pytest
import torch
from torch import Tensor, nn

from eeutils import Cascade, choose_thresholds, decide, measure_seconds, predict
from eeutils.analysis.seconds import stage_seconds, timed
from eeutils.data import Normalization, Split
from eeutils.engines import PreparedNet
from eeutils.models import MultiExitNet, create_exit, resnet18

CPU = torch.device("cpu")


class Clock:
    """Stands still unless a layer lets time pass."""

    seconds = 0.0


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(Clock, "seconds", 0.0)
    monkeypatch.setattr(time, "perf_counter", lambda: Clock.seconds)


class Takes(nn.Module):
    """Hands on what it is given, after `of_call` seconds and `of_image` for each image."""

    def __init__(self, of_call: float, of_image: float = 0.0) -> None:
        super().__init__()
        self.of_call, self.of_image = of_call, of_image

    def forward(self, x: Tensor) -> Tensor:
        Clock.seconds += self.of_call + self.of_image * len(x)
        return x


class SlowAtFirst(nn.Module):
    """Takes a second and, the first two times, a hundred."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        Clock.seconds += 100 if self.calls <= 2 else 1
        return x


class ReadsNumbers(nn.Module):
    """Cannot be counted on shapes alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) < 0 else -x


def head(*before: nn.Module) -> nn.Module:
    return nn.Sequential(*before, create_exit("avg", 3, 4))


def images(count: int, size: int = 8) -> Split:
    pixels = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)
    return Split(pixels, torch.arange(count) % 4, tuple("abcd"), Normalization((0.5,) * 3, (0.25,) * 3))


def test_each_stage_is_its_units_and_its_head(clock):
    net = MultiExitNet([Takes(1), Takes(2), Takes(4)], {0: head(Takes(8)), 2: head(Takes(16))})
    assert stage_seconds(PreparedNet(net), [torch.zeros(2, 3, 8, 8)] * 3).tolist() == [[9, 22]] * 3


@pytest.mark.parametrize(("batch_size", "first", "last"), [(1, 1 + 2, 1 + 2 + 8), (4, 1 / 4 + 2, 1 / 4 + 2 + 8 / 4)])
def test_seconds_are_an_images_up_to_each_exit(clock, batch_size, first, last):
    net = MultiExitNet([Takes(1, 2), Takes(8)], {0: head(), 1: head()})
    assert measure_seconds(net, images(8), batch_size=batch_size).tolist() == [first, last]


@pytest.mark.parametrize("count", [1, 3, 5, 9])
def test_batches_that_are_not_whole_are_not_timed_beside_whole_ones(clock, count):
    """A batch's second is divided by four images, or by as many as there are at all."""
    net = MultiExitNet([Takes(1)], {0: head()})
    assert measure_seconds(net, images(count), batch_size=4).tolist() == [1 / min(count, 4)]


def test_a_few_batches_are_kept_however_many_are_timed(monkeypatch):
    made, split, batches = [], images(90), Split.batches
    monkeypatch.setattr(Split, "batches", lambda *given: (made.append(batch) or batch for batch in batches(*given)))
    measure_seconds(MultiExitNet([nn.Identity()], {0: head()}), split, batch_size=3, batches=30)
    assert len(made) - 1 <= 4  # one is tried out first


def test_the_first_batches_do_not_count(clock):
    net = MultiExitNet([SlowAtFirst()], {0: head()})
    assert measure_seconds(net, images(2), batches=1).tolist() == [1]


def test_a_network_on_a_real_clock_stays_as_it_was_and_can_be_chosen_for():
    net, split = resnet18(width=2, exit_after=(2, 4), num_classes=4), images(40)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    seconds = measure_seconds(net, split, batch_size=8, batches=3)
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert (seconds.shape, seconds.dtype) == ((3,), torch.float64)
    predictions = predict(net, split, costs=seconds)
    assert torch.equal(predictions.costs, seconds)
    assert torch.equal(predictions.logits, predict(net, split).logits)
    budget = float(seconds[1] / seconds[-1])
    policy = choose_thresholds(predictions, budget=budget).policy
    assert decide(predictions, policy).relative_cost <= budget * (1 + 1e-9)


def test_it_is_measured_in_the_precision_asked_for():
    seen = []
    net = resnet18(width=2, exit_after=(2,))
    net.units[0].register_forward_hook(lambda unit, given, answer: seen.append((given[0].dtype, answer.dtype)))
    measure_seconds(net, images(2), batches=1, precision="bf16")
    assert set(seen[2:]) == {(torch.bfloat16, torch.bfloat16)}  # the first two try whether the images fit
    seen.clear()
    measure_seconds(net.double(), images(2), batches=1)
    assert set(seen) == {(torch.float64, torch.float64)}


def test_a_network_that_cannot_be_counted_on_shapes_can_be_timed():
    net, split = MultiExitNet([ReadsNumbers(), nn.Conv2d(3, 3, 3)], {0: head(), 1: head()}), images(10)
    with pytest.raises(ValueError, match=r"ReadsNumbers\) cannot be counted .* costs=measure_seconds"):
        predict(net, split)
    predictions = predict(net, split, costs=measure_seconds(net, split, batches=2))
    policy = choose_thresholds(predictions, budget=1.0).policy
    cascade, expected = Cascade(net, policy), decide(predictions, policy)
    with pytest.raises(ValueError, match="costs=measure_seconds"):
        cascade.run(split)
    result = cascade.run(split, costs=predictions.costs)
    assert torch.equal(result.exit_index, expected.exit_index)
    assert result.mean_cost == expected.mean_cost


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"net": nn.Linear(3, 3)}, TypeError, "Linear has no exits"),
        ({"split": torch.zeros(1, 3, 8, 8)}, TypeError, "got Tensor"),
        ({"split": images(2, size=1)}, ValueError, r"\(3, 1, 1\) does not fit the network's unit 0 \(Conv2d\): "),
        ({"batches": 0}, ValueError, "batches must be positive, got 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be positive, got 0"),
        ({"device": "abacus"}, ValueError, "abacus"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        measure_seconds(**({"net": MultiExitNet([nn.Conv2d(3, 3, 3)], {0: head()}), "split": images(2)} | wrong))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_timed_by_its_own_clock():
    net = resnet18(width=2, exit_after=(2, 4))
    seconds = measure_seconds(net, images(4), batch_size=4, batches=3, device="cuda")
    assert (seconds.diff(prepend=torch.zeros(1)) > 0).all()
    assert next(net.parameters()).device.type == "cpu"


def test_what_is_timed_gives_what_it_gives(clock):
    images = torch.zeros(2, 3, 4, 4)
    seconds, result = timed(lambda: Takes(3.0)(images), CPU)
    assert seconds == 3
    assert result is images
