"""Keys that recipes, runs and bundles of earlier versions hold, and that are gone."""

import warnings
from typing import Any

_PLAIN = "recipes have no plain forms any more; the run computes the same up to rounding"


def drop_retired(raw: dict[str, Any]) -> None:
    """Remove retired keys from a recipe in place; warn where one asked for something that is gone.

    >>> raw = {"run": {"steps": 4, "reference": False}, "model": {"decoder": {"name": "segformer", "impl": "auto"}}}
    >>> drop_retired(raw)
    >>> raw
    {'run': {'steps': 4}, 'model': {'decoder': {'name': 'segformer'}}}
    """
    run = raw.get("run")
    if isinstance(run, dict) and run.get("reference", None) in (True, False) and run.pop("reference"):
        warnings.warn(f"run.reference=true is ignored: {_PLAIN}.", stacklevel=2)
    if isinstance(raw.get("model"), dict):
        raw["model"] = without_retired_parts(raw["model"])


def without_retired_parts(model: dict[str, Any]) -> dict[str, Any]:
    """Copy a model section without the retired parameters of its decoder and bottleneck."""
    parts = {key: dict(value) for key, value in model.items() if isinstance(value, dict)}
    decoder, bottleneck = parts.get("decoder", {}), parts.get("bottleneck", {})
    if decoder.get("name") == "segformer" and decoder.pop("impl", "auto") == "reference":
        warnings.warn(f"model.decoder.impl=reference is ignored: {_PLAIN}.", stacklevel=2)
    if bottleneck.get("impl") == "reference":
        bottleneck["impl"] = "auto"
        warnings.warn(f"model.bottleneck.impl=reference is taken as auto: {_PLAIN}.", stacklevel=2)
    return {**model, **parts}
