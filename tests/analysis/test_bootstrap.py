import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eeutils.analysis.metrics import bootstrap_interval, draw_images, draw_kinds


@given(num_images=st.integers(1, 20), draws=st.integers(1, 5), seed=st.integers(0, 99))
def test_every_sample_has_as_many_images_as_there_are(num_images, draws, seed):
    times = draw_images(num_images, draws, seed)
    assert times.shape == (draws, num_images)
    assert times.sum(1).tolist() == [num_images] * draws
    assert torch.equal(times, draw_images(num_images, draws, seed))


@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any), seed=st.integers(0, 99))
def test_every_sample_of_kinds_has_as_many_images_and_none_of_a_kind_that_is_not_there(counts, seed):
    drawn = draw_kinds(torch.tensor(counts), 4, seed)
    assert drawn.shape == (4, len(counts))
    assert drawn.sum(1).tolist() == [sum(counts)] * 4
    assert not drawn[:, torch.tensor(counts) == 0].any()
    assert torch.equal(drawn, draw_kinds(torch.tensor(counts), 4, seed))


def test_another_seed_draws_other_samples():
    counts = torch.tensor([60, 30, 10])
    assert not torch.equal(draw_images(100, 4, seed=0), draw_images(100, 4, seed=1))
    assert not torch.equal(draw_kinds(counts, 4, seed=0), draw_kinds(counts, 4, seed=1))


def test_kinds_are_drawn_as_the_images_themselves_would_be():
    counts = torch.tensor([60, 30, 10])
    kinds = torch.arange(3).repeat_interleave(counts)
    by_image = draw_images(100, 4000, seed=0).double() @ torch.nn.functional.one_hot(kinds).double()
    by_kind = draw_kinds(counts, 4000, seed=0)
    torch.testing.assert_close(by_kind.mean(0), by_image.mean(0), atol=0.3, rtol=0)
    torch.testing.assert_close(by_kind.T.cov(), by_image.T.cov(), atol=1.5, rtol=0)


def test_an_interval_holds_the_middle_and_leaves_out_what_says_nothing():
    values = torch.cat([torch.linspace(0, 1, 1001), torch.tensor([math.nan] * 50)]).double()
    assert bootstrap_interval(values[torch.randperm(len(values))]) == pytest.approx((0.025, 0.975))
    assert all(map(math.isnan, bootstrap_interval(torch.tensor([math.nan]))))
