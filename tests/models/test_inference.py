import torch
from torch import nn

from eeutils.models import prepared_for_inference, resnet18


def test_a_prepared_network_answers_the_same_and_has_no_batch_norm_left():
    net = resnet18(width=4, exit_after=(2, 4), pool="spp")
    net(torch.randn(16, 3, 16, 16) * 2 + 1)  # in training mode: norms get statistics that matter when they are folded
    net.eval()
    prepared = prepared_for_inference(net)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    images = torch.randn(5, 3, 16, 16)
    for folded, plain in zip(prepared(images), net(images), strict=True):
        torch.testing.assert_close(folded, plain.detach(), rtol=1e-3, atol=1e-4)
