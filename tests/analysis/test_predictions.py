import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from eeutils import MultiExitNet, Predictions, predict
from eeutils.analysis import exit_costs
from eeutils.analysis.predictions import collect_logits
from eeutils.errors import IntegrityError
from eeutils.models import resnet18
from tests.analysis.tables import random_table
from tests.toys import random_split, unchanged


def table(**changes: torch.Tensor) -> Predictions:
    """Two exits, three images, two classes; exit 1 is right once, exit 2 always."""
    logits = torch.tensor([[[2.0, 0.0], [1.0, 3.0], [0.0, 1.0]], [[4.0, 0.0], [1.0, 0.0], [5.0, 1.0]]])
    return replace(Predictions(logits, torch.tensor([0, 0, 0]), torch.tensor([1.0, 3.0]).double()), **changes)


def small_net(**kwargs) -> MultiExitNet:
    torch.manual_seed(0)
    return resnet18(width=2, exit_after=(2, 4), **kwargs)


def test_predictions_by_hand():
    predictions = table()
    assert predictions.num_exits == 2
    assert predictions.predicted.tolist() == [[0, 1, 1], [0, 0, 0]]
    assert predictions.correct.tolist() == [[True, False, False], [True, True, True]]
    assert predictions.accuracy.tolist() == [1 / 3, 1]
    assert predictions.accuracy.dtype == torch.float64
    assert repr(predictions) == "Predictions(3 images, 2 exits, 2 classes; accuracy 33.33% / 100.00%)"
    assert predictions.relative_costs.tolist() == [1 / 3, 1]
    by_hand = torch.tensor(2.0).sigmoid().item()
    assert predictions.confidence[0, 0].item() == pytest.approx(by_hand)
    assert predictions.probs[0, 0].tolist() == pytest.approx([by_hand, 1 - by_hand])
    assert replace(predictions, labels=torch.tensor([1, 1, 1])).correct[1].tolist() == [False] * 3


@given(k=st.integers(1, 5), seed=st.integers(0, 99))
def test_predictions_top_k_agrees_with_sorting(k, seed):
    predictions = random_table((2, 7, 5), seed)
    best = predictions.logits.argsort(-1, descending=True)[..., :k].tolist()
    labels = predictions.labels.tolist()
    expected = [sum(label in row for label, row in zip(labels, of_exit, strict=True)) / 7 for of_exit in best]
    assert predictions.top_k(k).tolist() == pytest.approx(expected)
    assert torch.equal(predictions.top_k(1), predictions.accuracy)


def test_predictions_take_selects_images_by_position_and_by_mask():
    predictions = table(labels=torch.tensor([1, 0, 0]))
    by_position, by_mask = predictions.take(torch.tensor([0, 2])), predictions.take(torch.tensor([True, False, True]))
    assert by_position.predicted.tolist() == by_mask.predicted.tolist() == [[0, 1], [0, 0]]
    assert by_position.labels.tolist() == by_mask.labels.tolist() == [1, 0]
    with pytest.raises(ValueError, match="logits"):
        predictions.take(torch.tensor([], dtype=torch.int64))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logits", torch.zeros(2, 3, 2).half()),
        ("logits", torch.full((2, 3, 2), torch.nan)),
        ("labels", torch.tensor([0, 1])),
        ("labels", torch.tensor([0, 1, 2])),
        ("costs", torch.tensor([2.0, 2.0]).double()),
        ("costs", torch.tensor([1.0, 2.0])),
    ],
)
def test_predictions_refuse_impossible_fields(field, value):
    with pytest.raises(ValueError, match=field):
        table(**{field: value})


def test_predictions_save_and_load_round_to_half_precision(tmp_path):
    before = random_table((3, 20, 12))
    before.save(str(tmp_path / "new folder" / "table.safetensors"))
    after = Predictions.load(str(tmp_path / "new folder" / "table.safetensors"))
    assert torch.equal(after.logits, before.logits.half().float())
    assert torch.equal(after.labels, before.labels)
    assert torch.equal(after.costs, before.costs)


def test_predictions_save_refuses_logits_beyond_half_precision(tmp_path):
    with pytest.raises(ValueError, match="100000"):
        table(logits=torch.full((2, 3, 2), 1e5)).save(tmp_path / "table")
    assert not list(tmp_path.iterdir())


def test_predictions_load_refuses_other_content(tmp_path):
    tensors = {"logits": torch.zeros(2, 3, 2), "labels": torch.zeros(3), "costs": torch.tensor([1.0, 2.0]).double()}
    for content in (tensors | {"labels": torch.full((3,), 7)}, {"logits": tensors["logits"]}):
        save_file(content, tmp_path / "other")
        with pytest.raises(IntegrityError, match="other"):
            Predictions.load(tmp_path / "other")


@settings(max_examples=4)
@given(count=st.integers(1, 9), batch_size=st.integers(1, 12))
def test_predict_agrees_with_the_network_image_by_image(count, batch_size):
    net, split = small_net().eval(), random_split(count)
    predictions = predict(net, split, batch_size=batch_size)
    one_by_one = [torch.stack(net(image)) for image, _ in split.batches(1)]
    torch.testing.assert_close(predictions.logits, torch.cat(one_by_one, dim=1).detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(predictions.labels, split.labels)
    assert torch.equal(predictions.costs, exit_costs(net, (3, 8, 8)))


def test_predict_shows_hooks_each_batch_once_and_keeps_nothing_but_logits():
    net, split = small_net(), random_split(23)
    seen, maps, kept = [], [], []

    def watch(_, inputs, output):
        seen.append((len(inputs[0]), inputs[0].device.type))
        kept.append(sum(reference() is not None for reference in maps))  # maps of the batches before
        maps.append(weakref.ref(output))

    net.units[0].register_forward_hook(watch)
    predict(net, split, batch_size=5)
    assert seen == [(count, "cpu") for count in (5, 5, 5, 5, 3)]
    assert kept == [0] * 5


@pytest.mark.parametrize("batch_size", [4, 0])
def test_predict_leaves_the_network_as_it_was_also_when_it_fails(batch_size):
    net = small_net().train()
    net.units.eval()  # as while only the exits are trained
    modes = [module.training for module in net.modules()]
    with unchanged(net), nullcontext() if batch_size else pytest.raises(ValueError, match="0"):
        predict(net, random_split(4), batch_size=batch_size)
    assert [module.training for module in net.modules()] == modes


def test_predict_in_threads_takes_turns_on_a_network_in_training_mode():
    net, split = small_net().train(), random_split(30)
    expected = predict(small_net().eval(), split, batch_size=3).logits
    with unchanged(net), ThreadPoolExecutor(4) as pool:
        tables = list(pool.map(lambda _: predict(net, split, batch_size=3).logits, range(4)))
    assert all(torch.equal(each, expected) for each in tables)
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_predict_computes_in_the_precision_of_the_network(dtype):
    net, split = small_net(), random_split(8)
    expected = predict(net, split).logits
    logits = predict(net.to(dtype), split).logits
    assert logits.dtype == torch.float32
    tolerance = 1e-4 if dtype is torch.float64 else 0.1
    torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)
    with torch.autocast("cpu", torch.bfloat16):
        assert collect_logits(small_net(), random_split(3)).dtype == torch.float32


def two_exits(*classes: int) -> MultiExitNet:
    heads = [nn.Sequential(nn.Flatten(), nn.Linear(192, count)) for count in classes]
    return MultiExitNet([nn.Identity(), nn.Identity()], dict(enumerate(heads)))


def with_nan() -> MultiExitNet:
    net = small_net()
    net.exits["4"][2].weight.data[0, 0] = torch.nan
    return net


@pytest.mark.parametrize(
    ("net", "split", "message"),
    [
        (two_exits(9, 10), random_split(4), r"\(4, 9\), \(4, 10\)"),
        (small_net(num_classes=4), random_split(10), "10 outputs.*got 4"),
        (small_net(), random_split(4, channels=1), r"\(1, 8, 8\).*unit 0"),
        (with_nan(), random_split(3), "nan"),
    ],
)
def test_predict_refuses_what_does_not_fit_together(net, split, message):
    with pytest.raises(ValueError, match=message):
        predict(net.train(), split)
    assert all(module.training for module in net.modules())


def test_predict_gives_logits_that_can_be_differentiated_also_in_inference_mode():
    net, split = small_net(), random_split(4)
    with torch.inference_mode():
        assert predict(small_net(), random_split(1)).logits.shape == (3, 1, 10)
        predictions = predict(net, split)
    assert not any(tensor.is_inference() for tensor in net.state_dict().values())
    temperature = torch.ones((), requires_grad=True)
    nn.functional.cross_entropy(predictions.logits[0] / temperature, predictions.labels).backward()
    assert temperature.grad is not None
