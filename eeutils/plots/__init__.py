"""Figures. Every function draws on the axes it is given, or on new ones, and returns them."""

from eeutils.plots.exits import plot_accuracies, plot_confidence, plot_curves, plot_exit_rates, plot_gains
from eeutils.plots.images import plot_class_histogram, plot_embedding, plot_images
from eeutils.plots.style import ABOVE, BELOW, exit_name, use_style
from eeutils.plots.training import plot_exit_losses, plot_losses, plot_validation

__all__ = [
    "ABOVE",
    "BELOW",
    "exit_name",
    "plot_accuracies",
    "plot_class_histogram",
    "plot_confidence",
    "plot_curves",
    "plot_embedding",
    "plot_exit_losses",
    "plot_exit_rates",
    "plot_gains",
    "plot_images",
    "plot_losses",
    "plot_validation",
    "use_style",
]
