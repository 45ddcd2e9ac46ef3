"""The content of a recipe file before it is checked: YAML without a key given twice, and without keys that are gone."""

import warnings
from typing import Any

import yaml

# Of the keys that recipes, runs and bundles of earlier versions hold.
_PLAIN = "recipes have no plain forms any more; the run computes the same up to rounding"


class StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, of which the last one would win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping from its node. Raises ConstructorError: two keys are equal, for example 1 and 0x1."""
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            seen: set[Any] = set()
            for key, _ in node.value:
                value = self.construct_object(key, deep=True)
                if value in seen:
                    text = f"the key {key.value} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, text, key.start_mark)
                seen.add(value)
        return mapping


def read_yaml(text: str) -> Any:
    """Read YAML text.

    >>> read_yaml("a: [1, 2]")
    {'a': [1, 2]}

    Raises:
        YAMLError: no YAML, a key given twice, or a value that cannot be (a number of 5,000 digits, a 13th month).
    """
    try:
        return yaml.load(text, Loader=StrictLoader)
    except ValueError as error:
        raise yaml.YAMLError(str(error)) from error


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
