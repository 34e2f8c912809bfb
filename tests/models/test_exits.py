import pytest
import torch
from torch.nn import functional as F

from eeutils.models import InternalClassifier, MixedPool, create_exit, list_pools
from eeutils.models.exits import pool_of_each_exit


@pytest.mark.parametrize(("pool", "pooled"), [("avg", lambda x: x.mean((2, 3))), ("max", lambda x: x.amax((2, 3)))])
def test_create_exit_of_one_cell_is_a_linear_layer_on_the_pooled_map(pool, pooled):
    head, x = create_exit(pool, 6, 4), torch.randn(3, 6, 5, 7)
    torch.testing.assert_close(head(x), F.linear(pooled(x), head[-1].weight, head[-1].bias))


@pytest.mark.parametrize(
    ("pool", "reduce"), [("spp", F.adaptive_max_pool2d), ("spp_avg", F.adaptive_avg_pool2d)], ids=["max", "avg"]
)
def test_spatial_pyramid_exit_divides_each_level_by_its_grid_size(pool, reduce):
    head, x = create_exit(pool, 6, 4), torch.randn(3, 6, 8, 8)
    levels = [reduce(x, level).flatten(1) / (level * 3**0.5) for level in (1, 2, 4)]
    torch.testing.assert_close(head(x), F.linear(torch.cat(levels, 1), head.linear.weight, head.linear.bias))
    assert sorted(head.state_dict()) == ["linear.bias", "linear.weight"]


@pytest.mark.parametrize("pool", list_pools())
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8)])
def test_create_exit_reads_maps_of_any_size(pool, size):
    assert create_exit(pool, 6, 4)(torch.randn(2, 6, *size)).shape == (2, 4)


def test_pool_of_each_exit_takes_one_name_or_one_each():
    assert pool_of_each_exit("spp", 3) == ["spp"] * 3
    assert pool_of_each_exit("conv+spp+avg", 3) == ["conv", "spp", "avg"]
    with pytest.raises(ValueError, match=r"'conv\+spp'"):
        pool_of_each_exit("conv+spp", 3)
    with pytest.raises(ValueError, match="'mean'"):
        create_exit("mean", 6, 4)


def test_mixed_pool_starts_in_the_middle_and_learns():
    pool, x = MixedPool(1), torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    assert pool(x).item() == (6 + 3) / 2
    pool(x).sum().backward()
    assert pool.mix.grad.item() == 6 - 3


def test_mixed_pool_keeps_the_dtype_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert MixedPool(2)(torch.randn(1, 2, 4, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
        assert InternalClassifier(2, 4, 3)(torch.randn(1, 2, 4, 4)).dtype == torch.bfloat16


@pytest.mark.parametrize(("size", "grid"), [(1, 1), (3, 3), (5, 4), (32, 4)])
def test_internal_classifier_is_linear_on_at_most_4x4_cells(size, grid):
    head, x = InternalClassifier(3, size, 7), torch.randn(2, 3, size, size)
    assert head.linear.in_features == 3 * grid**2
    pooled = F.adaptive_max_pool2d(x, grid) / 2 + F.adaptive_avg_pool2d(x, grid) / 2
    torch.testing.assert_close(head(x), F.linear(pooled.flatten(1), head.linear.weight, head.linear.bias))
