"""Fixtures of all tests: shape checks on, the reference data, small helpers."""

import os
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path

# Before any import of halfmask: every jaxtyping annotation of the package and its oracles is checked at run time.
# Modules without any are left out, as each call costs time: for what stands there mypy is enough.
from jaxtyping import install_import_hook

_TENSORS = {"batch", "infer", "losses", "method", "methods", "models", "teaching", "testing", "views"}
_ROOT = Path(__file__).parents[1]


def _with_shapes() -> list[str]:
    found = [path for path in (_ROOT / "halfmask").rglob("*.py") if "jaxtyping" in path.read_text(encoding="utf-8")]
    names = [".".join(path.relative_to(_ROOT).with_suffix("").parts) for path in found]
    others = [name.removesuffix(".__init__") for name in names if name.split(".")[1] not in _TENSORS]
    return [*(f"halfmask.{name}" for name in sorted(_TENSORS)), *others, "tests.oracles"]


_hook = install_import_hook(_with_shapes(), "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

# Tests leave nothing in the user's cache, and learn nothing from it.
_CACHE = tempfile.TemporaryDirectory(prefix="halfmask-tests-")
os.environ["HALFMASK_CACHE"] = _CACHE.name

# The networks of the tests are tiny: more threads only wait for one another.
torch.set_num_threads(1)


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


def pytest_configure(config: pytest.Config) -> None:
    """With HALFMASK_SLOW=1, the usual command runs the slow tests, too: one session imports and collects once."""
    if os.environ.get("HALFMASK_SLOW") == "1" and config.option.markexpr == "not slow":
        config.option.markexpr = ""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses the reference data: `pytest -m 'not shared'` leaves it out."""
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker("shared")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With HALFMASK_REQUIRE_SHARED=1, fail where a comparison with the reference data was skipped."""
    report = yield
    required = os.environ.get("HALFMASK_REQUIRE_SHARED") == "1" and item.get_closest_marker("shared") is not None
    if required and report.skipped and not hasattr(report, "wasxfail") and item.get_closest_marker("gpu") is None:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"HALFMASK_REQUIRE_SHARED=1 forbids skipping this test. {reason}"
    return report


@pytest.fixture(scope="session")
def golden(shared: Path) -> Callable[[str], dict[str, Tensor]]:
    """Load the tensors of one reference file, for example `golden("unimatch/ohem")`."""
    from safetensors.torch import load_file

    def load(name: str) -> dict[str, Tensor]:
        return load_file(shared / "golden" / f"{name}.safetensors")

    return load
