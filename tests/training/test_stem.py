import torch
from torch.nn import functional as F

from eeutils.data import data_from_tensors
from eeutils.models import airnet
from eeutils.models.airnet import Whitening
from eeutils.training import fit


def test_fit_shows_the_stem_normalised_training_images(tiny_data, tiny_config, monkeypatch):
    images = F.interpolate(tiny_data.train.images.float(), 16).byte()
    data = data_from_tensors(images, tiny_data.train.labels, tiny_data.classes)
    shown, original = [], Whitening.whiten
    monkeypatch.setattr(Whitening, "whiten", lambda layer, images: (shown.append(images), original(layer, images)))
    net = airnet(width=2, num_classes=4)

    fit(net, data, tiny_config(epochs=1), progress=False)
    stem = net.units[0][0].weight.clone()
    fit(net, data, tiny_config(epochs=1, trained="exits"), progress=False)  # the backbone stays as it is

    assert len(shown) == 1
    assert torch.equal(shown[0], data.normalization(data.train.images))
    assert torch.equal(net.units[0][0].weight, stem)
