import pytest
from hypothesis import given
from hypothesis import strategies as st

from eeutils.training import TrainConfig
from eeutils.training.optimizer import learning_rate


def rates(config: TrainConfig, steps_per_epoch: int) -> list[float]:
    steps = range(1, config.epochs * steps_per_epoch + 1)
    return [learning_rate(config, step, steps_per_epoch) for step in steps]


def test_linear_rises_over_the_first_fifth_and_falls_to_nothing_after_the_last_step():
    config = TrainConfig(epochs=5, learning_rate=0.9, warmup=0.2)
    assert rates(config, 2) == pytest.approx([0.45, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_linear_without_a_warmup_only_falls():
    assert rates(TrainConfig(epochs=4, learning_rate=0.4, warmup=0.0), 1) == pytest.approx([0.4, 0.3, 0.2, 0.1])


@given(
    schedule=st.sampled_from(["linear", "halving", "steps"]),
    epochs=st.integers(1, 30),
    steps_per_epoch=st.integers(1, 30),
    warmup=st.floats(0, 1, exclude_max=True),
)
def test_every_step_counts_and_the_highest_rate_is_the_configs(schedule, epochs, steps_per_epoch, warmup):
    config = TrainConfig(epochs=epochs, learning_rate=0.3, schedule=schedule, warmup=warmup)
    found = rates(config, steps_per_epoch)
    assert min(found) > 0
    assert max(found) == pytest.approx(0.3)


def test_halving_after_every_so_many_epochs():
    config = TrainConfig(epochs=5, learning_rate=0.4, schedule="halving", halve_every=2)
    assert rates(config, 2) == pytest.approx([0.4] * 4 + [0.2] * 4 + [0.1] * 2)


@pytest.mark.parametrize("steps_per_epoch", [1, 7, 390])
def test_steps_to_a_tenth_after_shares_of_the_run(steps_per_epoch):
    config = TrainConfig(epochs=20, learning_rate=0.4, schedule="steps", drops=(0.35, 0.6, 0.85))
    epochs = [0.4] * 7 + [0.04] * 5 + [0.004] * 5 + [0.0004] * 3
    assert rates(config, steps_per_epoch) == pytest.approx([rate for rate in epochs for _ in range(steps_per_epoch)])


def test_shares_of_the_run_are_whole_steps_though_floating_point_falls_short_of_them():
    assert 0.29 * 100 < 29
    dropping = rates(TrainConfig(epochs=100, learning_rate=0.4, schedule="steps", drops=(0.29,)), 1)
    assert dropping == pytest.approx([0.4] * 29 + [0.04] * 71)
    rising = rates(TrainConfig(epochs=100, learning_rate=0.4, warmup=0.29), 1)
    assert rising.index(max(rising)) == 28
