import os
import resource
import subprocess
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from eeutils.analysis.costs import exit_costs
from eeutils.analysis.predictions import Predictions, collect_logits, predict
from eeutils.data import Normalization, Split
from eeutils.errors import IntegrityError, StorageError
from eeutils.models import MultiExitNet, resnet18


def table(logits=None, labels=None, costs=None) -> Predictions:
    """Two exits, three images, two classes; exit 1 is right once, exit 2 always."""
    if logits is None:
        logits = torch.tensor([[[2.0, 0.0], [1.0, 3.0], [0.0, 1.0]], [[4.0, 0.0], [1.0, 0.0], [5.0, 1.0]]])
    labels = torch.tensor([0, 0, 0]) if labels is None else labels
    return Predictions(logits, labels, torch.tensor([1.0, 3.0]).double() if costs is None else costs)


def images(count: int, size: int = 8, device: str = "cpu", channels: int = 3) -> Split:
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    labels = torch.arange(count) % 10
    classes = tuple(map(str, range(10)))
    return Split(pixels, labels, classes, Normalization((0.5,) * channels, (0.25,) * channels)).to(device)


def small_net(**kwargs):
    torch.manual_seed(0)
    return resnet18(width=2, exit_after=(2, 4), **kwargs)


def test_what_follows_from_a_table():
    predictions = table()
    assert predictions.num_exits == 2
    assert predictions.predicted.tolist() == [[0, 1, 1], [0, 0, 0]]
    assert predictions.correct.tolist() == [[True, False, False], [True, True, True]]
    assert predictions.accuracy.tolist() == [1 / 3, 1]
    assert predictions.accuracy.dtype == torch.float64
    assert repr(predictions) == "Predictions(3 images, 2 exits, 2 classes; accuracy 33.33% / 100.00%)"
    assert predictions.relative_costs.tolist() == [1 / 3, 1]
    by_hand = torch.tensor(2.0).exp() / (torch.tensor(2.0).exp() + 1)
    assert predictions.confidence[0, 0].item() == pytest.approx(by_hand.item())
    assert predictions.probs[0, 0].tolist() == pytest.approx([by_hand.item(), 1 - by_hand.item()])


def test_take_picks_the_same_images_by_position_and_by_mask():
    predictions = table(labels=torch.tensor([1, 0, 0]))
    by_position, by_mask = predictions.take(torch.tensor([0, 2])), predictions.take(torch.tensor([True, False, True]))
    assert by_position.predicted.tolist() == by_mask.predicted.tolist() == [[0, 1], [0, 0]]
    assert by_position.labels.tolist() == by_mask.labels.tolist() == [1, 0]
    assert predictions.take(torch.tensor([2, 0])).labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="logits must have shape"):
        predictions.take(torch.tensor([], dtype=torch.int64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": torch.zeros(3, 2)}, r"shape \(E, N, C\)"),
        ({"logits": torch.zeros(2, 0, 2)}, r"shape \(E, N, C\)"),
        ({"logits": torch.zeros(2, 3, 1)}, "C 2 or more"),
        ({"labels": torch.tensor([0, 1])}, r"labels must be \(3,\) int64"),
        ({"labels": torch.tensor([0, 1, 1], dtype=torch.int32)}, "int64"),
        ({"labels": torch.tensor([0, 1, 2])}, r"0 to 2, but the logits are for classes 0\.\.1"),
        ({"labels": torch.tensor([0, -1, 1])}, "-1 to 1"),
        ({"costs": torch.tensor([2.0, 2.0])}, "increasing"),
        ({"costs": torch.tensor([0.0, 2.0])}, "positive"),
        ({"costs": torch.tensor([1.0, float("nan")])}, "increasing"),
        ({"costs": torch.tensor([1.0, float("inf")])}, "increasing"),
        ({"costs": torch.tensor([1.0])}, "2 increasing"),
        ({"costs": torch.tensor([1.0, 2.0])}, r"costs must be float64, got torch\.float32; .*\.double\(\)"),
        ({"costs": torch.tensor([1, 2])}, "costs must be float64, got torch.int64"),
        ({"logits": torch.tensor([[[0.0, 1.0]] * 3, [[0.0, float("nan")]] * 3])}, r"exits \[1\] are NaN"),
        ({"logits": torch.tensor([[[0.0, float("inf")]] * 3, [[0.0, 1.0]] * 3])}, r"exits \[0\] are NaN or infinite"),
    ],
)
def test_impossible_tables_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        table(**changes)


@pytest.mark.parametrize("field", ["logits", "labels", "costs"])
def test_what_is_no_tensor_is_named(field):
    with pytest.raises(TypeError, match=rf"{field} must be a torch\.Tensor, got ndarray; torch\.as_tensor makes one"):
        table(**{field: getattr(table(), field).numpy()})


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(2, 12)),
    scale=st.floats(0.01, 100),
    transposed=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_saved_table_comes_back_rounded_to_half_precision(tmp_path_factory, shape, scale, transposed, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator) * scale
    if transposed:  # a view that is not contiguous
        logits = logits.transpose(0, 1).contiguous().transpose(0, 1)
    labels = torch.randint(0, shape[2], (shape[1],), generator=generator)
    path = tmp_path_factory.mktemp("tables") / "new folder" / "table.safetensors"
    before = Predictions(logits, labels, torch.rand(shape[0], generator=generator).double().cumsum(0) + 0.1)
    before.save(str(path))
    after = Predictions.load(str(path))
    assert after.logits.dtype == torch.float32
    assert torch.equal(after.logits, before.logits.half().float())
    assert torch.equal(after.labels, before.labels)
    assert torch.equal(after.costs, before.costs)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_labels_of_very_many_classes_survive(tmp_path):
    logits = torch.zeros(1, 1, 40_000)
    Predictions(logits, torch.tensor([39_999]), torch.ones(1).double()).save(tmp_path / "table")
    assert Predictions.load(tmp_path / "table").labels.item() == 39_999


def test_logits_beyond_half_precision_are_refused_when_saved_and_leave_no_file(tmp_path):
    with pytest.raises(ValueError, match="float16"):
        table(logits=torch.full((2, 3, 2), 1e5)).save(tmp_path / "table")
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Predictions.load(tmp_path / "missing")


@pytest.mark.parametrize("length", [0, 5, 60, -1])
def test_a_truncated_file_is_an_integrity_error(tmp_path, length):
    path = tmp_path / "table"
    table().save(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(IntegrityError, match="table holds no predictions"):
        Predictions.load(path)


@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": torch.zeros(2)},
        {"logits": torch.zeros(2, 3, 2), "labels": torch.zeros(3)},
        {"logits": torch.full((2, 3, 2), torch.nan), "labels": torch.zeros(3), "costs": torch.tensor([1.0, 2.0])},
        {"logits": torch.zeros(2, 3, 2), "labels": torch.full((3,), 7), "costs": torch.tensor([1.0, 2.0])},
        {"logits": torch.zeros(2, 3, 2), "labels": torch.zeros(3), "costs": torch.tensor([2.0, 1.0])},
        {"logits": torch.zeros(2, 3), "labels": torch.zeros(3), "costs": torch.tensor([1.0, 2.0])},
    ],
)
def test_a_file_of_something_else_is_an_integrity_error(tmp_path, tensors):
    save_file(tensors, tmp_path / "other")
    with pytest.raises(IntegrityError, match="other holds no predictions"):
        Predictions.load(tmp_path / "other")


def test_a_file_from_when_costs_could_be_float32_is_read(tmp_path):
    before = table()
    costs = before.costs.float()
    save_file({"logits": before.logits.half(), "labels": before.labels.int(), "costs": costs}, tmp_path / "table")
    assert torch.equal(Predictions.load(tmp_path / "table").costs, before.costs)


def test_text_is_an_integrity_error(tmp_path):
    (tmp_path / "page.html").write_text("<html>not found</html>")
    with pytest.raises(IntegrityError, match="holds no predictions"):
        Predictions.load(tmp_path / "page.html")


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        table().save(tmp_path / "file" / "table")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into a read-only folder")
def test_a_read_only_folder_is_a_storage_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="cannot write"):
        table().save(tmp_path / "table")


def _small_files_only() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def test_a_full_disk_is_a_storage_error_and_keeps_the_old_file(tmp_path):
    table().save(tmp_path / "table")
    before = (tmp_path / "table").read_bytes()
    code = """if True:
        import signal, sys, torch
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        from eeutils.analysis.predictions import Predictions
        from eeutils.errors import StorageError
        labels, costs = torch.zeros(5000, dtype=torch.int64), torch.tensor([1.0, 2.0]).double()
        large = Predictions(torch.zeros(2, 5000, 2), labels, costs)
        try:
            large.save(sys.argv[1])
        except StorageError as error:
            assert sys.argv[1] in str(error)
            sys.exit(7)
    """
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "table")], preexec_fn=_small_files_only, capture_output=True
    )
    assert run.returncode == 7, run.stderr.decode()
    assert (tmp_path / "table").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["table"]


@settings(max_examples=10, deadline=None)
@given(count=st.integers(1, 9), batch_size=st.integers(1, 12))
def test_predict_answers_what_the_network_answers_image_by_image(count, batch_size):
    net, split = small_net().eval(), images(count)
    predictions = predict(net, split, batch_size=batch_size)
    one_by_one = [torch.stack(net(image)) for image, _ in split.batches(1)]
    torch.testing.assert_close(predictions.logits, torch.cat(one_by_one, dim=1).detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(predictions.labels, split.labels)
    assert torch.equal(predictions.costs, exit_costs(net, (3, 8, 8)))


def test_the_network_sees_a_batch_at_a_time_and_nothing_but_logits_is_kept():
    net, split = small_net(), images(23)
    seen, maps, kept = [], [], []

    def watch(_, inputs, output):
        seen.append(len(inputs[0]))
        kept.append(sum(reference() is not None for reference in maps))  # maps of the batches before
        maps.append(weakref.ref(output))

    net.units[0].register_forward_hook(watch)
    logits = collect_logits(net, split, batch_size=5)
    assert seen == [5, 5, 5, 5, 3]
    assert kept == [0] * 5
    assert not logits.requires_grad


def test_predict_leaves_every_part_in_its_mode_and_the_batch_norm_statistics_alone():
    net = small_net().train()
    net.units.eval()  # as while only the exits are trained
    modes = [module.training for module in net.modules()]
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    predict(net, images(4))
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_predict_leaves_the_mode_also_when_it_fails():
    net = small_net().train()
    with pytest.raises(ValueError, match="batch_size"):
        predict(net, images(4), batch_size=0)
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize("size", [8, 2])
def test_predict_leaves_the_weights_as_they_lay_in_memory(tmp_path, size):
    """Else its owner could not save them."""
    net = MultiExitNet([nn.Conv2d(3, 4, 3)], {0: nn.Sequential(nn.Flatten(), nn.Linear(144, 10))})
    if size == 8:
        predict(net, images(4))
    else:
        with pytest.raises(ValueError, match="does not fit"):
            predict(net, images(4, size=size))
    assert all(tensor.is_contiguous() for tensor in net.state_dict().values())
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    net.to(memory_format=torch.channels_last)
    predict(net, images(4))
    assert net.units[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_predict_computes_in_the_precision_of_the_network(dtype):
    net, split = small_net(), images(8)
    expected = predict(net, split).logits
    tolerance = 1e-4 if dtype is torch.float64 else 0.1
    logits = predict(net.to(dtype), split).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("net", "split", "message"),
    [
        (nn.Conv2d(3, 4, 3), images(4), r"Conv2d has no exits; .*MultiExitNet\(units"),
        (small_net(), torch.zeros(4, 3, 8, 8), r"Tensor is no split of .*Split\(images, labels"),
        (small_net(), torch.utils.data.DataLoader([1, 2]), "DataLoader is no split"),
    ],
)
def test_what_is_no_network_with_exits_or_no_split_is_named(net, split, message):
    with pytest.raises(TypeError, match=message):
        predict(net, split)


def test_exits_that_answer_for_other_numbers_of_classes_are_named():
    nine, ten = (nn.Sequential(nn.Flatten(), nn.Linear(192, classes)) for classes in (9, 10))
    net = MultiExitNet([nn.Identity(), nn.Identity()], {0: nine, 1: ten})
    with pytest.raises(ValueError, match=r"got \(4, 9\), \(4, 10\)"):
        predict(net, images(4))


def test_predict_takes_one_image_through_a_network_with_one_exit():
    predictions = predict(resnet18(width=2), images(1))
    assert predictions.logits.shape == (1, 1, 10)


def test_predicted_logits_can_be_differentiated_through():
    predictions = predict(small_net(), images(4))
    temperature = torch.ones((), requires_grad=True)
    nn.functional.cross_entropy(predictions.logits[0] / temperature, predictions.labels).backward()
    assert temperature.grad is not None


def test_predict_in_inference_mode_leaves_a_network_that_can_be_trained():
    net = small_net()
    with torch.inference_mode():
        predictions = predict(net, images(4))
    assert not any(tensor.is_inference() for tensor in (*net.state_dict().values(), predictions.logits))
    sum(answer.sum() for answer in net(torch.randn(2, 3, 8, 8))).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_predict_takes_a_network_made_in_inference_mode():
    with torch.inference_mode():
        net = small_net()
        assert predict(net, images(4)).num_exits == 3


def test_a_network_with_nan_weights_is_refused():
    net = small_net()
    with torch.no_grad():
        net.exits["4"][2].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"exits \[1\] are NaN"):
        predict(net, images(3))


def test_a_network_with_too_few_outputs_is_refused():
    with pytest.raises(ValueError, match="the network has 4 outputs, the data 10 classes"):
        predict(small_net(num_classes=4), images(10))


def test_images_of_another_number_of_channels_are_refused():
    net = small_net().train()
    with pytest.raises(ValueError, match=r"\(1, 8, 8\) does not fit the network's unit 0 .*channel"):
        predict(net, images(4, channels=1))
    assert all(module.training for module in net.modules())


def test_images_too_small_for_the_network_are_refused():
    units = [nn.Conv2d(3, 4, 5)]
    net = MultiExitNet(units, {0: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))})
    predict(net, images(4))
    with pytest.raises(ValueError, match=r"\(3, 4, 4\) does not fit the network"):
        predict(net, images(4, size=4))


def test_costs_of_another_measure_take_the_place_of_multiply_adds():
    net, split, milliseconds = small_net(), images(4), torch.tensor([0.5, 0.75, 1.5]).double()
    with torch.inference_mode():
        predictions = predict(net, split, costs=milliseconds)
    assert torch.equal(predictions.costs, milliseconds)
    assert torch.equal(predict(net, split, costs=[0.5, 0.75, 1.5]).costs, milliseconds)
    assert torch.equal(predictions.logits, predict(net, split).logits)
    assert net.training


@pytest.mark.parametrize(
    ("costs", "size", "message"),
    [
        ([1.0, 2.0], 8, r"costs must be 3 increasing positive numbers, got \[1.0, 2.0\]"),
        ([1.0, 3.0, 2.0], 8, "increasing"),
        ([1.0, 2.0, 3.0], 4, r"\(2, 1, 1\) does not fit the network's unit 1 \(BasicBlock\): 2 pixels are needed"),
    ],
)
def test_with_such_costs_too_it_is_told_what_is_wrong_before_all_images_are_computed(costs, size, message):
    net = small_net(stem="imagenet")
    net.units[1].register_forward_pre_hook(lambda unit, given: _at_least(given[0], 2))
    net.units[7].register_forward_hook(lambda unit, given, answer: pytest.fail("computed"))
    with pytest.raises(ValueError, match=message):
        predict(net, images(3, size=size), costs=torch.tensor(costs))


@pytest.mark.parametrize("costs", [[1, 2, 3], np.array([1, 2, 3], np.float32), torch.tensor([1, 2, 3])])
def test_costs_may_be_any_numbers_and_become_float64(costs):
    predictions = predict(small_net(), images(3), costs=costs)
    assert predictions.costs.dtype == torch.float64
    assert predictions.costs.tolist() == [1, 2, 3]


def _at_least(x, size):
    if x.shape[-1] < size:
        raise RuntimeError(f"{size} pixels are needed")


@pytest.mark.parametrize("inference", [False, True])
def test_with_such_costs_too_a_head_that_works_in_place_is_named(inference):
    heads = {
        0: nn.Sequential(Doubled(), nn.Flatten(), nn.Linear(144, 10)),
        1: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
    }
    net = MultiExitNet([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)], heads)
    message = "the exit after unit 0 works in place"
    with torch.inference_mode(inference), pytest.raises(ValueError, match=message):
        predict(net, images(3), costs=torch.tensor([1.0, 2.0]))


class Doubled(nn.Module):
    """Writes into what it reads."""

    def forward(self, x):
        return x.mul_(2)


def test_collect_logits_stays_in_float32_when_computed_in_half_precision():
    with torch.autocast("cpu", torch.bfloat16):
        assert collect_logits(small_net(), images(3)).dtype == torch.float32


def test_one_field_can_be_replaced():
    assert replace(table(), labels=torch.tensor([1, 1, 1])).correct[1].tolist() == [False] * 3
