"""Classifiers in folders and repositories as the Hugging Face Hub has them."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download

from eeutils import __repository__
from eeutils.analysis.costs import exit_costs
from eeutils.analysis.decisions import decide
from eeutils.analysis.predictions import Predictions
from eeutils.classifier import Classifier

_WEIGHTS = "model.safetensors"
_CARD = """---
{{ card_data }}
---
# {{ repo }}

An image classifier that answers at the first of {{ exits | length }} exits that is sure, of {{ made_of }}.

```python
from eeutils import Classifier, load_image  # pip install "eeutils[hub] @ git+{{ repo_url }}"

classifier = Classifier.from_pretrained("{{ repo }}")
result = classifier(load_image("photo.jpg", size={{ size }}))
print(classifier.classes[result.predicted[0]], "at exit", 1 + int(result.exit_index[0]))
```

| {{ columns | join(" | ") }} |
|{{ "---:|" * (columns | length) }}
{% for row in exits %}| {{ row | join(" | ") }} |
{% endfor %}
{{ outcome }}

Classes: {{ classes | join(", ") }}.
"""


class Stored(
    ModelHubMixin,
    library_name="eeutils",
    pipeline_tag="image-classification",
    tags=["early-exit"],
    repo_url=__repository__,
    model_card_template=_CARD,
):
    """A classifier, and predictions on test images for its card."""

    def __init__(self) -> None:  # without arguments, so that the mixin does not look for them in config.json
        self.classifier: Classifier | None = None
        self.predictions: Predictions | None = None

    def generate_model_card(self, **kwargs: Any) -> ModelCard:
        """Fill the card from the table of exits."""
        return super().generate_model_card(**kwargs, **_card_values(self.classifier, self.predictions))

    def _save_pretrained(self, save_directory: Path) -> None:
        self.classifier.save(save_directory / _WEIGHTS)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, token: Any, revision: Any, cache_dir: Any, **kwargs: Any) -> "Stored":
        names = {"force_download", "local_files_only"} & kwargs.keys()
        options = {name: kwargs.pop(name) for name in names} | {"revision": revision, "cache_dir": cache_dir}
        is_folder = Path(model_id).is_dir()
        path = Path(model_id, _WEIGHTS) if is_folder else hf_hub_download(model_id, _WEIGHTS, token=token, **options)
        return stored(Classifier.load(path, **kwargs), None)


def stored(classifier: Classifier, predictions: Predictions | None) -> Stored:
    """Return `classifier` as the Hub's mixin takes it."""
    made, about = Stored(), classifier.about()
    del about["policy"]  # infinity is no JSON; the card has the thresholds
    made.classifier, made.predictions, made._hub_mixin_config = classifier, predictions, about
    return made


def _card_values(classifier: Classifier, predictions: Predictions | None) -> dict[str, Any]:
    net, policy, shape, origin = classifier.net, classifier.policy, classifier.image_shape, classifier.net.origin
    given = policy.thresholds if isinstance(policy.thresholds, tuple) else (policy.thresholds,) * (net.num_exits - 1)
    columns = {
        "exit": list(range(1, net.num_exits + 1)),
        f"least {policy.score}": [f"{threshold:.3f}" for threshold in given] + [""],
    }
    if shape:
        columns["multiply-adds (M)"] = [f"{macs / 1e6:,.1f}" for macs in exit_costs(net, shape).tolist()]
    outcome = ""
    if predictions is not None:
        decisions = decide(predictions, policy, classifier.fallback)
        columns["test accuracy (%)"] = [f"{100 * share:.2f}" for share in predictions.accuracy.tolist()]
        columns["images that leave (%)"] = [f"{100 * share:.1f}" for share in decisions.exit_rates.tolist()]
        outcome = (
            f"On {len(predictions.labels):,} test images, leaving early gives {decisions.accuracy:.2%} accuracy for "
            f"{decisions.relative_cost:.1%} of the network's cost."
        )
    return {
        "columns": list(columns),
        "exits": list(zip(*columns.values(), strict=True)),
        "outcome": outcome,
        "classes": classifier.classes,
        "size": shape[-1] if shape else "...",
        "made_of": f"{origin.name} ({origin.library})" if origin else "a network of its own",
    }
