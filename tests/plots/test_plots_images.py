"""Figures of data sets, read back from the axes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from eeutils import plots


def test_the_histogram_has_a_bar_for_each_class_of_each_split(split):
    ax = plots.plot_class_histogram({"train": split, "test": split.take(slice(0, 3))})

    assert [bar.get_height() for bar in ax.patches] == [3, 2, 1, 1, 1, 1]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", "b", "c"]


def test_images_stand_in_order_under_their_class(split):
    figure = plots.plot_images(split, [4, 0], columns=3)

    shown = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in shown] == ["b", "a"]
    assert [int(ax.images[0].get_array()[0, 0, 0]) for ax in shown] == [4, 0]


@pytest.mark.parametrize("titles", [[], ["x"], ["x"] * 5])
def test_titles_that_are_not_as_many_as_the_images_are_refused(split, titles):
    with pytest.raises(ValueError, match=f"4, .*got {len(titles)}: "):
        plots.plot_images(split, [0, 1, 2, 3], titles=titles)


def test_images_stand_under_the_titles_given(split):
    figure = plots.plot_images(split, [4, 0], ["x", "y"], columns=2)

    assert [ax.get_title() for ax in figure.axes] == ["x", "y"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_on_a_gpu_are_drawn_too(split):
    there = replace(split, images=split.images.cuda(), labels=split.labels.cuda())

    assert [ax.get_title() for ax in plots.plot_images(there, [4, 0], columns=2).axes] == ["b", "a"]
    assert [bar.get_height() for bar in plots.plot_class_histogram({"all": there}).patches] == [3, 2, 1]
    assert len(plots.plot_embedding(np.zeros((6, 2)), there).collections) == 3


def test_no_images_give_an_empty_grid_and_no_error(split):
    assert not any(ax.images for ax in plots.plot_images(split, torch.tensor([], dtype=torch.int64)).axes)


def test_an_embedding_colours_every_class(split):
    ax = plots.plot_embedding(np.arange(12.0).reshape(6, 2), split)

    assert [len(points.get_offsets()) for points in ax.collections] == [3, 2, 1]
