"""What exits look at, read back from the axes."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from eeutils import plots
from eeutils.analysis.gradcam import Explanation


def explanation(classes: list[int], shift: float = 0.0) -> Explanation:
    count = len(classes)
    cams = torch.linspace(0, 1, 16).view(1, 4, 4).repeat(count, 1, 1)
    guided = torch.zeros(count, 3, 4, 4)
    guided[:, 0, 0, 0], guided[:, 0, 0, 1] = 2.0 + shift, -2.0 - shift
    return Explanation(torch.tensor(classes, dtype=torch.int64), torch.full((count,), 0.75), cams, guided)


def titles(figure) -> list[str]:
    return [ax.get_title() for ax in figure.axes]


def test_a_row_has_the_image_the_maps_and_the_guided_maps(split):
    figure = plots.plot_attributions(split, [4, 0], {"exit 1": explanation([1, 0]), "last": explanation([2, 2])})

    assert titles(figure) == [
        *("b", "exit 1: b 75%", "last: c 75%", "exit 1, guided", "last, guided"),
        *("a", "exit 1: a 75%", "last: c 75%", "exit 1, guided", "last, guided"),
    ]
    assert [len(ax.images) for ax in figure.axes] == [1, 2, 2, 1, 1] * 2
    assert [int(figure.axes[5 * row].images[0].get_array()[0, 0, 0]) for row in (0, 1)] == [4, 0]


def test_the_map_lies_over_the_image_on_a_scale_that_all_share(split):
    figure = plots.plot_attributions(split, [4], {"exit 1": explanation([1])})

    image, cam = figure.axes[1].images
    assert np.allclose(image.get_array(), 4)
    assert np.allclose(cam.get_array(), np.linspace(0, 1, 16).reshape(4, 4))
    assert cam.get_clim() == (0, 1)
    assert 0 < cam.get_alpha() < 1


def test_guided_maps_are_grey_where_they_are_zero_and_use_the_whole_scale(split):
    figure = plots.plot_attributions(split, [4], {"quiet": explanation([1]), "loud": explanation([1], shift=100.0)})

    for ax in figure.axes[3:]:
        shown = ax.images[0].get_array()
        assert shown[2, 2].tolist() == [0.5, 0.5, 0.5]
        assert shown[0, 0, 0] == pytest.approx(1)
        assert shown[0, 1, 0] == pytest.approx(0)


def test_a_guided_map_of_zeros_is_grey(split):
    nothing = explanation([1], shift=-2.0)

    figure = plots.plot_attributions(split, [4], {"exit 1": nothing})

    assert np.allclose(figure.axes[2].images[0].get_array(), 0.5)


def test_no_images_give_an_empty_row_and_no_error(split):
    figure = plots.plot_attributions(split, [], {"exit 1": explanation([])})

    assert not any(ax.images for ax in figure.axes)


def test_every_image_needs_an_explanation(split):
    with pytest.raises(ValueError, match=r"2 .*got 1 of 'exit 1'"):
        plots.plot_attributions(split, [0, 1], {"exit 1": explanation([1])})


def test_other_figures_do_without_captum():
    code = "import sys, eeutils.plots; print('captum' in sys.modules)"

    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
