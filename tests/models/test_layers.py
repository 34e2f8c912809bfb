import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from eeutils.models import SpatialPyramidPool

POOLS = {"max": F.adaptive_max_pool2d, "avg": F.adaptive_avg_pool2d}


def level_by_level(x: torch.Tensor, levels: tuple[int, ...], reduce: str) -> torch.Tensor:
    """The definition: every grid is pooled from the feature map itself."""
    return torch.cat([POOLS[reduce](x, level).flatten(1) for level in levels], dim=1)


@pytest.mark.parametrize("reduce", ["max", "avg"])
@settings(max_examples=50)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 20), st.integers(1, 20)),
    levels=st.lists(st.integers(1, 8), min_size=1, max_size=4).map(tuple),
    seed=st.integers(0, 2**16),
)
@example(shape=(2, 3, 12, 12), levels=(4, 3, 2), seed=0)  # no nested grids
@example(shape=(2, 3, 12, 10), levels=(4, 2), seed=0)  # uneven columns
@example(shape=(2, 3, 10, 12), levels=(4, 2), seed=0)  # uneven rows
def test_spatial_pyramid_pool_is_what_pooling_the_whole_map_gives(reduce, shape, levels, seed):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    pool = SpatialPyramidPool(levels, reduce)
    pooled, expected = pool(x), level_by_level(x, levels, reduce)
    assert pooled.shape == (shape[0], shape[1] * pool.cells)
    if reduce == "max":
        assert torch.equal(pooled, expected)
    else:
        torch.testing.assert_close(pooled, expected)


def test_spatial_pyramid_pool_has_the_gradient_of_pooling_the_whole_map():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    weights = torch.randn(2, 3 * 21)
    (ours,) = torch.autograd.grad((SpatialPyramidPool()(x) * weights).sum(), x)
    (expected,) = torch.autograd.grad((level_by_level(x, (1, 2, 4), "max") * weights).sum(), x)
    torch.testing.assert_close(ours, expected)
