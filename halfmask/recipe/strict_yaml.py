"""Read YAML, and refuse a key given twice, of which the last one would win in silence."""

from typing import Any

import yaml


class StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping from its node.

        Raises:
            ConstructorError: two keys are equal, for example 1 and 0x1.
        """
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
