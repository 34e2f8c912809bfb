"""The learning rate over a run."""

from eeutils.training.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """For the `step`-th update of the run, counted from 1; see `TrainConfig.schedule`. Always above 0."""
    if config.schedule == "halving":
        return config.learning_rate * 0.5 ** ((step - 1) // (config.halve_every * steps_per_epoch))
    total = config.epochs * steps_per_epoch
    if config.schedule == "steps":
        passed = sum(step > max(round(drop * total), 1) for drop in config.drops)
        return config.learning_rate * 0.1**passed
    rising = max(round(config.warmup * total), 1)
    # To 0 after the last step and not with it, or that one would be computed for nothing.
    return config.learning_rate * min(step / rising, (total + 1 - step) / (total + 1 - rising))
