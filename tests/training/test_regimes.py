import fnmatch
from operator import mul
from pathlib import Path

import pytest
import torch
from torch import nn

from eeutils.data import TrainBatches
from eeutils.models import MultiExitNet, wideresnet32_4, with_internal_classifiers
from eeutils.training import LossConfig, fit, recipe
from eeutils.training.checkpoint import load_checkpoint, save_checkpoint
from eeutils.training.compute import start_training, trained_part, training_forward
from eeutils.training.loop import _Run
from eeutils.training.losses import exit_weights
from eeutils.training.parallel import Workers

EARLY = {"trained": "early_exits", "loss": LossConfig(weights="equal")}
ADAM = {**EARLY, "optimizer": "adam", "learning_rate": 0.01, "schedule": "steps", "drops": (0.6,)}
TIMES = ["images_per_second", "seconds"]


@pytest.fixture
def dropout_net() -> MultiExitNet:
    """A network for `tiny_data` with norms, dropout and two internal classifiers."""
    return build_dropout_net()


def build_dropout_net() -> MultiExitNet:
    torch.manual_seed(0)
    net = wideresnet32_4(width=1, num_classes=4, image_size=8)
    return with_internal_classifiers(net, (3, 8, 8), after=(2, 4))


def weights(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


def changed(net: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}


def early_exits(net: MultiExitNet) -> set[str]:
    places = tuple(f"exits.{unit}." for unit in net.exit_after[:-1])
    return {name for name in net.state_dict() if name.startswith(places)}


@pytest.mark.parametrize("settings", [ADAM, EARLY, {**EARLY, "precision": "bf16"}])
def test_early_exits_learn_and_nothing_else_moves_by_a_bit(dropout_net, tiny_data, tiny_config, settings):
    before = weights(dropout_net)
    assert any("running_mean" in name for name in before)
    frame = fit(dropout_net, tiny_data, tiny_config(epochs=3, **settings), progress=False).frame()
    assert changed(dropout_net, before) == early_exits(dropout_net)
    assert frame["train_loss_exit1"].iloc[-1] < frame["train_loss_exit1"].iloc[0]
    assert frame["val_accuracy_exit3"].nunique() == 1  # the frozen exit answers as it always did
    assert all(parameter.grad is None for parameter in dropout_net.parameters())
    assert not any(module.training for module in dropout_net.modules())


@pytest.mark.parametrize("settings", [{}, {"precision": "bf16"}, {"average_decay": 0.9}])
def test_all_exits_learn_on_a_backbone_that_does_not_move_by_a_bit(dropout_net, tiny_data, tiny_config, settings):
    before = weights(dropout_net)
    frame = fit(dropout_net, tiny_data, tiny_config(epochs=3, trained="exits", **settings), progress=False).frame()
    moved = {name for name in changed(dropout_net, before) if "num_batches" not in name}  # which is not averaged
    assert moved == {name for name in before if name.startswith("exits.") and "num_batches" not in name}
    assert (frame.filter(like="train_loss_exit").diff().iloc[-1] < 0).all()


def test_the_classifier_of_a_plain_network_can_be_trained_alone(tiny_data, tiny_config):
    net = wideresnet32_4(width=1, num_classes=4, image_size=8)
    before = weights(net)
    fit(net, tiny_data, tiny_config(epochs=1, trained="exits"), progress=False)
    assert changed(net, before) == {name for name in before if name.startswith("exits.")}


def test_training_it_all_moves_the_statistics_too(dropout_net, tiny_data, tiny_config):
    before = weights(dropout_net)
    fit(dropout_net, tiny_data, tiny_config(epochs=1), progress=False)
    statistics = {name for name in before if "running_" in name}
    assert statistics <= changed(dropout_net, before)


def test_a_frozen_backbone_answers_without_dropout_and_without_gradients(dropout_net):
    images = torch.randn(4, 3, 8, 8)
    expected = dropout_net.eval()(images)
    start_training(dropout_net, "early_exits")
    answers = training_forward(dropout_net, "early_exits")(images)
    assert all(torch.equal(ours, other) for ours, other in zip(answers, expected, strict=True))
    assert [answer.requires_grad for answer in answers] == [True, True, False]
    sum(answer.sum() for answer in answers).backward()
    touched = {name for name, parameter in dropout_net.named_parameters() if parameter.grad is not None}
    assert touched == early_exits(dropout_net)


def test_where_all_is_trained_all_gets_gradients(dropout_net):
    start_training(dropout_net, "all")
    sum(answer.sum() for answer in training_forward(dropout_net, "all")(torch.randn(4, 3, 8, 8))).backward()
    assert all(parameter.grad is not None for parameter in dropout_net.parameters())


def test_a_frozen_backbone_may_work_in_place():
    units = [nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)]
    net = MultiExitNet(units, {unit: nn.Sequential(nn.Flatten(), nn.Linear(144, 2)) for unit in (0, 1)})
    images = torch.randn(4, 3, 8, 8)
    expected = net(images)
    answers = training_forward(net, "early_exits")(images)
    assert all(torch.equal(ours, other) for ours, other in zip(answers, expected, strict=True))
    answers[0].sum().backward()
    assert {name for name, each in net.named_parameters() if each.grad is not None} == early_exits(net)


def test_the_forward_on_a_frozen_backbone_compiles_as_one_graph(dropout_net, compiled):
    start_training(dropout_net, "early_exits")
    forward, images = training_forward(dropout_net, "early_exits"), torch.randn(4, 3, 8, 8)
    as_compiled, graphs = compiled(forward)
    answers = as_compiled(images)
    assert len(graphs) == 1
    assert [answer.requires_grad for answer in answers] == [True, True, False]
    for ours, expected in zip(answers, forward(images), strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_optimiser_knows_the_early_exits_only(dropout_net, tiny_data, tiny_config):
    run = _Run(dropout_net, tiny_data, tiny_config(**ADAM), torch.device("cpu"), Workers())
    known = {id(parameter) for group in run.optimizer.param_groups for parameter in group["params"]}
    assert isinstance(run.optimizer, torch.optim.Adam)
    assert known == {id(dict(dropout_net.named_parameters())[name]) for name in early_exits(dropout_net)}


def test_all_that_is_trained_is_in_training_mode(dropout_net):
    start_training(dropout_net, "all")
    assert all(module.training for module in dropout_net.modules())
    start_training(dropout_net, "early_exits")
    training = {module for module in dropout_net.modules() if module.training}
    assert training == set(trained_part(dropout_net, "early_exits").modules()) & set(dropout_net.modules())


def test_a_network_without_early_exits_has_none_to_train(tiny_data, tiny_config):
    net = wideresnet32_4(width=1, num_classes=4, image_size=8)
    with pytest.raises(ValueError, match="has none before its last exit"):
        fit(net, tiny_data, tiny_config(**EARLY), progress=False)


def test_the_ramp_weighs_each_epoch_by_itself(dropout_net, tiny_data, tiny_config):
    config = tiny_config(epochs=4, loss=LossConfig(weights="sdn"))
    frame = fit(dropout_net, tiny_data, config, progress=False).frame()
    for epoch, row in frame.iterrows():
        losses = [row[f"train_loss_exit{number}"] for number in (1, 2, 3)]
        taus = exit_weights("sdn", 3, epoch / 4)
        assert row["train_loss"] == pytest.approx(sum(map(mul, taus, losses)), rel=1e-5)


def test_a_step_follows_the_ramp(dropout_net, tiny_data, tiny_config):
    config = tiny_config(epochs=4, loss=LossConfig(weights="sdn"))
    run = _Run(dropout_net, tiny_data, config, torch.device("cpu"), Workers())
    assert run.weights.tolist() == pytest.approx(exit_weights("sdn", 3, 0.25))


@pytest.mark.parametrize("settings", [{"loss": LossConfig(weights="sdn")}, ADAM], ids=["sdn", "early_exits"])
def test_an_interrupted_run_with_dropout_goes_on_as_if_nothing_had_happened(
    tiny_data, tiny_config, tmp_path, monkeypatch, settings
):
    path, config, original = tmp_path / "checkpoint.pt", tiny_config(**settings), TrainBatches.epoch

    def stop_in_the_second_epoch(self, number):
        for step, batch in enumerate(original(self, number)):
            if number == 1 and step == 2:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(TrainBatches, "epoch", stop_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        fit(build_dropout_net(), tiny_data, config, checkpoint=path, progress=False)
    monkeypatch.setattr(TrainBatches, "epoch", original)
    assert load_checkpoint(path)["epoch"] == 1
    resumed, undisturbed = build_dropout_net(), build_dropout_net()
    history = fit(resumed, tiny_data, config, checkpoint=path, progress=False).frame()
    expected = fit(undisturbed, tiny_data, config, progress=False).frame()
    assert changed(resumed, weights(undisturbed)) == set()
    assert history.drop(columns=TIMES).equals(expected.drop(columns=TIMES))


def checkpoint_without(path: Path, settings: tuple[str, ...]) -> None:
    state = load_checkpoint(path)
    for setting in settings:
        del state["config"][setting]
    save_checkpoint(path, state)


def test_a_checkpoint_from_before_a_setting_existed_stands_for_its_default(tiny_net, tiny_data, tiny_config, tmp_path):
    path = tmp_path / "checkpoint.pt"
    rows = fit(tiny_net(), tiny_data, tiny_config(epochs=1), checkpoint=path, progress=False).rows
    checkpoint_without(path, ("trained", "optimizer", "drops"))
    assert fit(tiny_net(), tiny_data, tiny_config(epochs=1), checkpoint=path, progress=False).rows == rows
    changed = tiny_config(epochs=1, drops=(0.5,), optimizer="adam")
    with pytest.raises(ValueError, match=r"optimizer='sgd', not 'adam' and drops=\(.*\), not \(0\.5,\);"):
        fit(tiny_net(), tiny_data, changed, checkpoint=path, progress=False)


@pytest.mark.parametrize("kind", ["units.*.weight", "units.*.running_mean", "exits.*.bias"])
def test_a_checkpoint_of_exits_on_another_network_is_refused(tiny_data, tiny_config, tmp_path, kind):
    path, net = tmp_path / "checkpoint.pt", build_dropout_net()
    fit(build_dropout_net(), tiny_data, tiny_config(epochs=1, **ADAM), checkpoint=path, progress=False)
    name = fnmatch.filter(sorted(set(net.state_dict()) - early_exits(net)), kind)[-1]
    net.state_dict()[name].view(-1)[0] += 1e-3
    before, content = weights(net), path.read_bytes()
    with pytest.raises(ValueError, match=rf"another backbone or last exit \({name} differs\); use another file"):
        fit(net, tiny_data, tiny_config(epochs=1, **ADAM), checkpoint=path, progress=False)
    assert changed(net, before) == set()
    assert path.read_bytes() == content


@pytest.mark.parametrize("trained", ["exits", "early_exits"])
def test_a_checkpoint_of_exits_is_resumed_whatever_these_exits_were(tiny_data, tiny_config, tmp_path, trained):
    path, net, other = tmp_path / "checkpoint.pt", build_dropout_net(), build_dropout_net()
    config = tiny_config(epochs=1, **{**ADAM, "trained": trained})
    history = fit(net, tiny_data, config, checkpoint=path, progress=False)
    for parameter in trained_part(other, trained).parameters():
        nn.init.zeros_(parameter)
    assert fit(other, tiny_data, config, checkpoint=path, progress=False) == history
    assert changed(other, weights(net)) == set()


@pytest.mark.parametrize("name", ["cnn_resnet56", "sdn_wideresnet32_4", "ic_only"])
def test_the_published_recipes_run(dropout_net, tiny_data, name):
    config = recipe(name, epochs=1, batch_size=16)
    assert len(fit(dropout_net, tiny_data, config, progress=False).rows) == 1
