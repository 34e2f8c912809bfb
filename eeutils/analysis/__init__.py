"""What predictions say: each analysis is a function of one table, `Predictions`.

The names below are imported when they are first used: some of them need packages that take a second to load.
"""

from importlib import import_module
from typing import Any

_NAMES = {
    "bootstrap": ("bootstrap_interval",),
    "confusion": (
        "ErrorIndicator",
        "Standardization",
        "auroc_draws",
        "confusion_scores",
        "doubt",
        "error_indicator",
        "indicator_table",
    ),
    "costs": ("NetworkCosts", "exit_costs", "measure_costs"),
    "decisions": ("Decisions", "decide"),
    "fallbacks": ("with_fallback",),
    "gradcam": (
        "Explanation",
        "central_share",
        "explain",
        "grad_cam",
        "guided_backprop",
        "guided_grad_cam",
        "hires_cam",
        "map_correlation",
        "map_spread",
    ),
    "metrics": (
        "accuracy_of",
        "accuracy_per_exit",
        "calibration_error",
        "cost_table",
        "ensemble_probs",
        "ensemble_weights",
        "exit_table",
        "gains",
        "paired_bootstrap",
        "sure_images",
    ),
    "overthinking": (
        "Destructive",
        "Wasteful",
        "attack_success",
        "destructive",
        "first_correct",
        "first_correct_at",
        "only_correct_at",
        "overthinking_table",
        "wasteful",
    ),
    "policies": ("SDN_THRESHOLDS", "AgreementPolicy", "PatiencePolicy", "Policy", "ThresholdPolicy"),
    "predictions": ("Predictions", "predict"),
    "risk": ("GUARANTEE_THRESHOLDS", "RiskTest", "choose_with_guarantee", "measure_risk"),
    "scores": (
        "certainty",
        "confidence",
        "ensemble_confidence",
        "geometric_confidence",
        "margin",
        "register_score",
        "score_of",
    ),
    "seconds": ("measure_seconds",),
    "thresholds": (
        "Choice",
        "Curve",
        "accuracy_cost_curve",
        "choose_for_accuracy",
        "choose_for_budget",
        "choose_one_threshold",
        "exit_rates_at",
    ),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # the next access finds it at once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
