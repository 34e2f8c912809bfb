import pytest
import torch
from torch.nn import functional as F

from eeutils.models import create_exit, list_pools
from eeutils.models.exits import pool_of_each_exit


def test_the_average_exit_is_a_linear_layer_on_the_mean():
    head, x = create_exit("avg", 6, 4), torch.randn(3, 6, 5, 7)
    torch.testing.assert_close(head(x), F.linear(x.mean((2, 3)), head[-1].weight, head[-1].bias))


def test_the_pyramid_exit_divides_each_level_by_its_grid_size():
    head, x = create_exit("spp", 6, 4), torch.randn(3, 6, 8, 8)
    levels = [F.adaptive_max_pool2d(x, level).flatten(1) / (level * 3**0.5) for level in (1, 2, 4)]
    torch.testing.assert_close(head(x), F.linear(torch.cat(levels, 1), head.linear.weight, head.linear.bias))


def test_the_pyramids_scale_is_no_part_of_the_weights():
    assert sorted(create_exit("spp", 2, 4).state_dict()) == ["linear.bias", "linear.weight"]


def test_the_convolutional_exit_doubles_the_channels_and_halves_the_map():
    head, x = create_exit("conv", 6, 4).eval(), torch.randn(3, 6, 8, 8)

    features = head[0](x)

    assert features.shape == (3, 12, 4, 4)
    torch.testing.assert_close(head(x), head[1](features))


@pytest.mark.parametrize(("size", "cells"), [(None, 16), (32, 16), (4, 16), (2, 4)])
def test_the_mixed_exit_has_no_more_cells_than_its_map_has_pixels(size, cells):
    assert create_exit("mixed", 6, 4, size).linear.in_features == 6 * cells


@pytest.mark.parametrize(
    ("pool", "pools"), [("spp", ["spp"] * 3), ("conv+spp+avg", ["conv", "spp", "avg"])], ids=["one for all", "each"]
)
def test_every_exit_can_have_a_head_of_its_kind(pool, pools):
    assert pool_of_each_exit(pool, 3) == pools


@pytest.mark.parametrize(("pool", "message"), [("conv+spp", "names 2 heads.* 3 exits"), ("conv+max+avg", "'max'")])
def test_heads_that_do_not_add_up_are_named(pool, message):
    with pytest.raises(ValueError, match=message):
        pool_of_each_exit(pool, 3)


@pytest.mark.parametrize("pool", list_pools())
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8)])
def test_every_exit_answers_maps_of_any_size(pool, size):
    assert create_exit(pool, 6, 4)(torch.randn(2, 6, *size)).shape == (2, 4)


def test_an_unknown_pool_lists_the_choices():
    with pytest.raises(ValueError, match=r"'mean'.*\['avg', 'conv', 'mixed', 'spp'\]"):
        create_exit("mean", 6, 4)
