import pytest
import torch
from torch import nn

from eeutils.models import MultiExitNet, create_model, widen_backbone


@pytest.fixture
def images() -> torch.Tensor:
    """Of 32 pixels, as VGG16 wants, and in double precision, as the depth of ResNet56 multiplies rounding."""
    return torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def as_if_trained(model: str, width: int) -> MultiExitNet:
    """Norms that do something, unlike those of a new network, so that channels differ."""
    torch.manual_seed(1)
    net = create_model(model, width=width).eval().double()
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
            tensor.uniform_(0.5, 1.5)
    return net


def answers(units: nn.ModuleList, x: torch.Tensor) -> list[torch.Tensor]:
    return [x := unit(x) for unit in units]


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("model", ["resnet18_3exits", "resnet56", "vgg16", "mobilenet", "wideresnet32_4"])
def test_every_unit_answers_as_the_donors_with_each_channel_repeated(model, factor, images):
    donor = as_if_trained(model, 4)
    net = create_model(model, width=4 * factor).eval().double()
    heads = {name: tensor.clone() for name, tensor in net.exits.state_dict().items()}
    widen_backbone(net, donor)

    for wide, narrow in zip(answers(net.units, images), answers(donor.units, images), strict=True):
        torch.testing.assert_close(wide, narrow.repeat_interleave(factor, dim=1))
    assert all(torch.equal(tensor, heads[name]) for name, tensor in net.exits.state_dict().items())


def test_copies_of_a_channel_get_gradients_of_their_own(net, images):
    donor, wide = net, create_model("resnet18_3exits", width=8, exit_after=(2, 4)).eval()
    widen_backbone(wide, donor)
    first, second = wide.units[1].residual[0].weight.unflatten(0, (4, 2)).unbind(1)  # copies of the same filters
    assert not torch.equal(first, second)  # which read copies, in shares of their own
    stem = wide.units[0][0].weight
    assert torch.equal(stem[::2], stem[1::2])

    sum(logits.square().sum() for logits in wide(images.float())).backward()
    assert (stem.grad[::2] - stem.grad[1::2]).abs().amax(dim=(1, 2, 3)).min() > 0


def test_a_donor_that_is_no_narrower_copy_is_refused_and_nothing_changes(net):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for donor, what in (
        (create_model("resnet56", width=2), "another backbone than this network"),
        (create_model("resnet18", width=3), r"several times as wide: .* has \(3, 3, 3, 3\)"),
        (create_model("resnet18", width=8), r"\(8, 3, 3, 3\) and \(4, 3, 3, 3\)"),
        (create_model("resnet18", width=2, stem="imagenet"), r"\(2, 3, 7, 7\)"),
    ):
        with pytest.raises(ValueError, match=what):
            widen_backbone(net, donor)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_networks_without_exits_are_refused(net):
    with pytest.raises(TypeError, match="MultiExitNet"):
        widen_backbone(net, nn.Linear(2, 2))
