"""Figures.

A plot draws on the axes it is given, or on new ones, and returns them. Plots that need a grid of axes return a figure.
"""

from eeutils.plots.diagram import plot_network, plot_poolings, plot_shrinking_batch
from eeutils.plots.exits import (
    plot_accuracies,
    plot_confidence,
    plot_curves,
    plot_exit_places,
    plot_exit_rates,
    plot_exit_rates_by_threshold,
    plot_gains,
    plot_policies,
    plot_threshold_effect,
)
from eeutils.plots.images import plot_attributions, plot_class_histogram, plot_embedding, plot_images
from eeutils.plots.overthinking import (
    plot_destructive_by_class,
    plot_destructive_confidence,
    plot_first_correct,
    plot_images_by_exit,
    plot_risk_coverage,
    plot_shares_by_exit,
    plot_suspicion,
)
from eeutils.plots.style import ABOVE, BELOW, RIGHT, WRONG, exit_name, use_style
from eeutils.plots.training import plot_exit_losses, plot_losses, plot_validation
