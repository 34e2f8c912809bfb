"""The learning rate over a run."""

from eeutils.training.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """For the `step`-th update of the run, counted from 1; see `TrainConfig.schedule`."""
    if config.schedule == "halving":
        return config.learning_rate * 0.5 ** ((step - 1) // (config.halve_every * steps_per_epoch))
    total = config.epochs * steps_per_epoch
    if config.schedule == "steps":
        passed = sum(step > round(drop * total) for drop in config.drops)
        return config.learning_rate * 0.1**passed
    rising = config.warmup * total
    return config.learning_rate * min(step / max(rising, 1), (total - step) / (total - rising))
