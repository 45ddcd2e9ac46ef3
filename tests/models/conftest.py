"""Official key names of the reference tensors, turned into ours."""

import re
from collections.abc import Callable

import pytest
from torch import Tensor

Renamer = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def _rename(state: dict[str, Tensor], rules: list[tuple[str, str | None]]) -> dict[str, Tensor]:
    """Apply the first matching rule to each key; `None` drops it; a key no rule matches is an error."""
    renamed = {}
    for key, value in state.items():
        for pattern, replacement in rules:
            if re.match(pattern, key):
                if replacement is not None:
                    renamed[re.sub(pattern, replacement, key)] = value
                break
        else:
            raise KeyError(key)
    return renamed


@pytest.fixture(scope="session")
def deeplab_names() -> Renamer:
    return lambda state: _rename(
        state,
        [
            (r"^backbone\.", "encoder.net."),
            (r"^head\.b([0-3])\.", r"decoder.branches.\1."),
            (r"^head\.b4\.gap\.1\.", "decoder.pool.0."),
            (r"^head\.b4\.gap\.2\.", "decoder.pool.1."),
            (r"^head\.project\.", "decoder.project."),
            (r"^reduce\.", "decoder.reduce."),
            (r"^fuse\.0\.", "decoder.convs.0.0."),
            (r"^fuse\.1\.", "decoder.convs.0.1."),
            (r"^fuse\.3\.", "decoder.convs.1.0."),
            (r"^fuse\.4\.", "decoder.convs.1.1."),
            (r"^classifier\.", "classifier."),
        ],
    )


@pytest.fixture(scope="session")
def dpt_names() -> Renamer:
    fusion = r"^head\.scratch\.refinenet"
    rules: list[tuple[str, str | None]] = [
        (r"^backbone\.mask_token$", None),
        (fusion + r"4\.resConfUnit1\.", None),
        (r"^backbone\.", "encoder.net."),
        (r"^head\.projects\.", "decoder.projects."),
        (r"^head\.resize_layers\.", "decoder.resize."),
        (r"^head\.scratch\.output_conv\.0\.", "decoder.head.0."),
        (r"^head\.scratch\.output_conv\.2\.", "classifier."),
    ]
    for level in range(4):
        rules += [
            (rf"^head\.scratch\.layer{level + 1}_rn\.", f"decoder.to_common.{level}."),
            (rf"{fusion}{level + 1}\.out_conv\.", f"decoder.fusions.{level}.out."),
            (rf"{fusion}{level + 1}\.resConfUnit1\.", f"decoder.fusions.{level}.skip."),
            (rf"{fusion}{level + 1}\.resConfUnit2\.", f"decoder.fusions.{level}.unit."),
        ]
    return lambda state: _rename(state, rules)


@pytest.fixture(scope="session")
def mlp_head_names() -> Renamer:
    rules: list[tuple[str, str | None]] = [
        (r"^linear_fuse\.conv\.", "decoder.mix."),
        (r"^linear_fuse\.bn\.", "decoder.norm."),
        (r"^linear_pred\.", "classifier."),
    ]
    rules += [(rf"^linear_c{level + 1}\.proj\.", f"decoder.projections.{level}.") for level in range(4)]
    return lambda state: _rename(state, rules)


@pytest.fixture(scope="session")
def psp_names() -> Renamer:
    rules: list[tuple[str, str | None]] = [
        (r"^stages\.(\d)\.1\.", r"branches.\1.0."),
        (r"^stages\.(\d)\.2\.", r"branches.\1.1."),
        (r"^bottleneck\.", "bottleneck."),
    ]
    return lambda state: _rename(state, rules)
