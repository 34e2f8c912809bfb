import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet

from eeutils.models import MultiExitNet, create_model
from eeutils.models.layers import SpatialPyramidPool
from eeutils.weights import compare_with, read_pickled_tensors
from eeutils.weights.tensors import mapped_tensors


def slim_torchvision_resnet(width: int = 4, num_classes: int = 3) -> ResNet:
    """torchvision's ResNet18, slim: its constructor knows no width."""
    net = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=num_classes)
    net.inplanes = width
    net.conv1, net.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
    for index in range(4):
        setattr(
            net, f"layer{index + 1}", net._make_layer(BasicBlock, width * 2**index, 2, stride=1 if index == 0 else 2)
        )
    net.fc = nn.Linear(width * 8, num_classes)
    return net


class OtherPyramidNet(nn.Module):
    """Three exits as others write them: other names, heads without scales, and listed deepest first."""

    def __init__(self, width: int = 4, num_classes: int = 3) -> None:
        super().__init__()
        self.backbone = slim_torchvision_resnet(width, num_classes)
        self.backbone.fc = nn.Identity()
        self.pool = SpatialPyramidPool((1, 2, 4))
        self.last = nn.Linear(width * 8 * 21, num_classes)
        self.second = nn.Linear(width * 2 * 21, num_classes)
        self.first = nn.Linear(width * 21, num_classes)

    def forward(self, x):
        net = self.backbone
        x = one = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))
        x = two = net.layer2(x)
        three = net.layer4(net.layer3(x))
        return [head(self.pool(x)) for head, x in ((self.first, one), (self.second, two), (self.last, three))]


def give(net: MultiExitNet, tensors) -> MultiExitNet:
    net.load_state_dict(mapped_tensors(net, compare_with(net, tensors)))
    return net.eval()


def shaken(net: nn.Module) -> nn.Module:
    """Every tensor random, so that no two could be mistaken for each other unnoticed."""
    generator = torch.Generator().manual_seed(0)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return net.eval()


def test_mapped_tensors_of_torchvision_compute_the_same():
    theirs = shaken(slim_torchvision_resnet())
    ours = give(create_model("resnet18", width=4, num_classes=3, stem="imagenet"), theirs.state_dict())
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(ours(images)[0], theirs(images))


def test_mapped_tensors_of_unscaled_pyramids_compute_the_same():
    theirs = shaken(OtherPyramidNet())
    ours = give(
        create_model("resnet18_3exits", width=4, num_classes=3, pool="spp", stem="imagenet", exit_after=(2, 4)),
        theirs.state_dict(),
    )
    images = torch.rand(2, 3, 64, 64)
    for mine, other in zip(ours(images), theirs(images), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_compare_matches_equal_names_first():
    net = create_model("resnet18_2exits", width=4)
    shuffled = dict(reversed(net.state_dict().items()))
    report = compare_with(net, shuffled)
    assert report.shapes_fit
    assert all(own == theirs for own, theirs, _ in report.matched)


def test_compare_names_every_tensor_once():
    net = create_model("resnet18_2exits", width=4, num_classes=3)
    tensors = slim_torchvision_resnet(num_classes=5).state_dict() | {"extra.thing": torch.ones(1)}
    report = compare_with(net, tensors)
    counted = [name for name in net.state_dict() if "batches" not in name]
    listed = [row[0] for row in (*report.matched, *report.missing)]
    assert sorted(listed) == sorted(counted)
    theirs = [row[1] for row in report.matched] + [name for name, _ in report.unexpected]
    assert sorted(theirs) == sorted(name for name in tensors if "batches" not in name)
    assert not report.shapes_fit
    text = str(report)
    assert "- units.0.0.weight (4, 3, 3, 3)" in text
    assert "+ extra.thing (1,) of the file has no place" in text
    assert "- exits.8.2.weight" in text


def test_mapped_tensors_refuses_what_does_not_fit():
    net = create_model("resnet18", width=4)
    with pytest.raises(ValueError, match=r"units\.0\.0\.weight"):
        mapped_tensors(net, compare_with(net, {"w": torch.ones(1)}))


@given(dropped=st.sets(st.integers(0, 61), max_size=5), width=st.sampled_from([4, 5]))
def test_compare_fits_only_without_a_gap(dropped, width):
    net = create_model("resnet18", width=4, num_classes=3)
    state = create_model("resnet18", width=width, num_classes=3).state_dict()
    kept = {name: tensor for index, (name, tensor) in enumerate(state.items()) if index not in dropped}
    lost = [name for name in state if name not in kept and "batches" not in name]
    assert compare_with(net, kept).shapes_fit == (not lost and width == 4)


WRAPPERS = {
    "DataParallel": lambda net: nn.DataParallel(net).state_dict(),
    "AveragedModel": lambda net: torch.optim.swa_utils.AveragedModel(net).state_dict(),
    "compiled": lambda net: torch.compile(net, backend="eager").state_dict(),
    "averaged and compiled": lambda net: torch.optim.swa_utils.AveragedModel(torch.compile(net)).state_dict(),
    "inner": lambda net: {name.replace("units.", "units.module."): tensor for name, tensor in net.state_dict().items()},
}


@pytest.mark.parametrize("wrapped", WRAPPERS.values(), ids=WRAPPERS)
def test_compare_passes_over_the_prefixes_of_wrappers(wrapped):
    net = create_model("resnet18", width=2)
    report = compare_with(net, wrapped(net))
    assert report.shapes_fit
    assert all(own == theirs for own, theirs, _ in report.matched)


def test_compare_keeps_names_apart_that_differ_in_a_prefix():
    tensors = {"weight": torch.ones(1), "module.weight": torch.ones(2)}
    report = compare_with(create_model("resnet18", width=2), tensors)
    assert {name for name, _ in report.unexpected} == {"weight", "module.weight"}


def test_compare_claims_names_and_shapes_alone():
    """A network that computes something else from the same tensors fits."""
    net = create_model("resnet56", width=2)
    report = compare_with(net, net.state_dict())
    assert report.shapes_fit
    assert "only answers show" in str(report)


def test_compare_lists_the_foreign_names_of_a_pickle(tmp_path):
    torch.save(OtherPyramidNet(), tmp_path / "module.pt")
    tensors = read_pickled_tensors(tmp_path / "module.pt")
    report = compare_with(create_model("resnet18", width=4, num_classes=3), tensors)
    assert f"{OtherPyramidNet.__module__}.OtherPyramidNet" in report.foreign
    assert "OtherPyramidNet" in str(report)
