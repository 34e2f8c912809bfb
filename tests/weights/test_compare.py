import pytest
import torch
from torch import nn
from torchvision.models import resnet18 as torchvision_resnet18

from eeutils import create_model
from eeutils.models import SpatialPyramidPool
from eeutils.weights import compare_with
from eeutils.weights.tensors import mapped_tensors


class OtherPyramidNet(nn.Module):
    """Three exits as others write them: other names, heads without scales, and listed deepest first."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torchvision_resnet18()
        self.backbone.fc = nn.Identity()
        self.pool = SpatialPyramidPool((1, 2, 4))
        self.last, self.second, self.first = (nn.Linear(channels * 21, 3) for channels in (512, 128, 64))

    def forward(self, x):
        net = self.backbone
        x = one = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(x)))))
        x = two = net.layer2(x)
        three = net.layer4(net.layer3(x))
        return [head(self.pool(x)) for head, x in ((self.first, one), (self.second, two), (self.last, three))]


def shaken(net: nn.Module) -> nn.Module:
    """Every tensor random, so that no two could be mistaken for each other unnoticed."""
    generator = torch.Generator().manual_seed(0)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return net.eval()


def test_mapped_tensors_of_unscaled_pyramids_compute_the_same():
    theirs = shaken(OtherPyramidNet().double())  # such tensors lead to large numbers
    ours = create_model("resnet18_3exits", num_classes=3, pool="spp", stem="imagenet", exit_after=(2, 4)).double()
    ours.load_state_dict(mapped_tensors(ours, compare_with(ours, theirs.state_dict())))
    images = torch.rand(2, 3, 64, 64).double()
    assert theirs(images)[-1].isfinite().all()
    torch.testing.assert_close(ours.eval()(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_compare_with_names_every_tensor_once():
    net = create_model("resnet18_2exits", num_classes=3)
    tensors = torchvision_resnet18(num_classes=5).state_dict() | {"extra.thing": torch.ones(1)}
    report = compare_with(net, tensors)
    counted = [name for name in net.state_dict() if "batches" not in name]
    listed = [row[0] for row in (*report.matched, *report.missing)]
    assert sorted(listed) == sorted(counted)
    theirs = [row[1] for row in report.matched] + [name for name, _ in report.unexpected]
    assert sorted(theirs) == sorted(name for name in tensors if "batches" not in name)
    assert not report.shapes_fit
    text = str(report)
    assert "- units.0.0.weight (64, 3, 3, 3)" in text
    assert "+ extra.thing (1,) of the file has no place" in text
    assert "- exits.8.2.weight" in text


WRAPPERS = {
    "DataParallel": lambda net: nn.DataParallel(net).state_dict(),
    "compiled": lambda net: torch.compile(net, backend="eager").state_dict(),
    "inner": lambda net: {name.replace("units.", "units.module."): tensor for name, tensor in net.state_dict().items()},
}


@pytest.mark.parametrize("wrapped", WRAPPERS.values(), ids=WRAPPERS)
def test_compare_with_passes_over_the_prefixes_of_wrappers(wrapped):
    net = create_model("resnet18", width=2)
    report = compare_with(net, wrapped(net))
    assert report.shapes_fit
    assert all(own == theirs for own, theirs, _ in report.matched)
