"""Write the registry of weights."""

import json
from dataclasses import asdict

from eeutils.files import write_text
from eeutils.weights.registry import REGISTRY_FILE, Registry, WeightEntry


def with_entry(registry: Registry, entry: WeightEntry) -> Registry:
    """Return a registry with `entry` added, or put in place of the one of that name."""
    others = [other for other in registry.entries if other.name != entry.name]
    return Registry(tuple(sorted([*others, entry], key=lambda each: each.name)), registry.folder)


def save_registry(registry: Registry) -> None:
    """Write the JSON file into the registry's folder, whole or not at all; the same entries give the same bytes."""
    values = {values.pop("name"): values for values in map(asdict, registry.entries)}
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
    write_text(registry.folder / REGISTRY_FILE, text + "\n")
