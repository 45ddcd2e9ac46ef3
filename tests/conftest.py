"""Fixtures of all tests: shape checks on, the reference data, small helpers."""

import os
from collections.abc import Callable
from pathlib import Path

# Before any import of halfmask: every jaxtyping annotation of the package is checked at run time.
from jaxtyping import install_import_hook

_hook = install_import_hook("halfmask", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference tensors and real images; tests skip where it does not exist."""
    path = Path(os.environ.get("HALFMASK_SHARED", Path(__file__).parents[1].parent / "shared"))
    if not (path / "golden").is_dir():
        pytest.skip(f"needs reference data: set HALFMASK_SHARED (looked in {path})")
    return path


@pytest.fixture(scope="session")
def golden(shared: Path) -> Callable[[str], dict[str, Tensor]]:
    """Load the tensors of one reference file, for example `golden("unimatch/ohem")`."""
    from safetensors.torch import load_file

    def load(name: str) -> dict[str, Tensor]:
        return load_file(shared / "golden" / f"{name}.safetensors")

    return load
