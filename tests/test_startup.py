"""What must be instant: importing the package, and every help screen. Each case is a fresh interpreter."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import halfmask
from halfmask.cli.app import app
from halfmask.errors import RecipeError
from halfmask.on_demand import on_demand

# Each costs more than all of `--help` may.
HEAVY = {"torch", "torchvision", "timm", "numpy", "cv2", "lightning", "PIL", "pydantic", "rich", "matplotlib"}
VERBS = sorted(command.name for command in app.registered_commands if command.name)


def imported_by(*command: str) -> set[str]:
    """Run python and give the top-level packages it imported."""
    done = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert len(lines) > 20
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


@pytest.mark.parametrize("verb", [[], *([verb] for verb in VERBS)], ids=["halfmask", *VERBS])
def test_help_imports_nothing_heavy(verb):
    assert not imported_by("-m", "halfmask", *verb, "--help") & HEAVY


@pytest.mark.parametrize(
    "code", ["import halfmask; dir(halfmask)", "import halfmask.errors, halfmask.recipe.shipped, halfmask.docstrings"]
)
def test_importing_the_package_imports_nothing_heavy(code):
    assert not imported_by("-c", code) & HEAVY


@pytest.mark.parametrize("what", ["methods", "encoders", "datasets", "recipes"])
def test_plain_lists_import_neither_torch_nor_numpy(what):
    assert not imported_by("-m", "halfmask", "list", what) & {"torch", "numpy", "timm", "lightning"}


def test_version_imports_nothing_heavy():
    assert not imported_by("-m", "halfmask", "--version") & HEAVY


def test_help_costs_little_more_than_the_parser_library():
    """A ratio, because machines differ: the library alone is most of the time."""
    help_time = min(cpu_seconds("-m", "halfmask", "train", "--help") for _ in range(3))
    library_time = min(cpu_seconds("-c", "import typer") for _ in range(3))
    assert help_time < 2.5 * library_time


def cpu_seconds(*command: str) -> float:
    before = os.times()
    subprocess.run([sys.executable, *command], capture_output=True, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.parametrize("name", halfmask.__all__)
def test_every_public_name_exists(name):
    assert getattr(halfmask, name) is not None


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match="load_recipe"):
        halfmask.trian  # noqa: B018


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Six images, four of them with masks."""
    folder = tmp_path_factory.mktemp("small")
    for part in ("images", "masks"):
        (folder / part).mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(folder / f"images/{i}.png")
        if i < 4:
            Image.fromarray(rng.integers(0, 3, (48, 64), dtype=np.uint8)).save(folder / f"masks/{i}.png")
    return folder


def test_check_imports_neither_torch_nor_timm(small):
    code = (
        "import sys; from halfmask.data.check.check import check; "
        f"assert check({str(small)!r}).usable; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "timm", "torchvision", "lightning"} & set(done.stdout.split())


def test_check_still_looks_at_a_method_that_the_user_names(small):
    from halfmask.data.check.check import check

    with pytest.raises(RecipeError, match="unimatch"):
        check(small, overrides=["method=unimatsh"])


def test_a_network_of_timm_is_built_without_the_compiler():
    code = (
        "import sys, torch; disable = torch.compiler.disable; from halfmask.plugins import resolve; "
        "resolve('encoders', 'resnet')(depth=18, weights=None); resolve('encoders', 'dinov2'); "
        "print(*[name for name in sys.modules if name.startswith('torch._dynamo')], torch.compiler.disable is disable)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]


def test_lightning_is_imported_without_signal_processing_and_triton():
    code = """
import sys, halfmask.run.fit
print(*[name in sys.modules for name in ("lightning", "scipy.signal", "triton")])
import torch
from lightning.pytorch.utilities.model_summary import ModelSummary
module = sys.modules["lightning"].LightningModule()
module.layer, module.example_input_array = torch.nn.Linear(3, 5), torch.ones(2, 3)
module.forward = lambda x: module.layer(x)
print(ModelSummary(module).total_flops)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "False", "60"]


def test_a_step_of_an_optimizer_needs_no_compiler_and_gives_the_same_weights():
    code = """
import sys, torch
from halfmask.run.loop.lightning_library import L
from halfmask.run.loop.eager import without_compiler

def stepped():
    weight = torch.nn.Parameter(torch.arange(4.0))
    optimizer = torch.optim.AdamW([{"params": [weight]}], lr=0.1, fused=True)
    for _ in range(2):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    return weight, optimizer.state_dict()["state"][0]["exp_avg"]

with without_compiler():
    fast = stepped()
assert "torch._dynamo" not in sys.modules, "the compiler was imported"
import torch._dynamo
assert torch._dynamo.OptimizedModule.__module__.startswith("torch.")
assert all(torch.equal(a, b) for a, b in zip(fast, stepped()))
compiled = torch.compile(lambda x: x + 1, backend="eager")
assert compiled(torch.ones(1)).item() == 2
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_stand_in_asks_the_real_module_and_leaves():
    for name in [name for name in sys.modules if name.partition(".")[0] == "colorsys"]:
        del sys.modules[name]
    with on_demand("colorsys", "rgb_to_yiq"):
        from colorsys import rgb_to_yiq

        assert not hasattr(sys.modules["colorsys"], "__file__")
    assert "colorsys" not in sys.modules
    assert rgb_to_yiq(1, 1, 1)[0] == pytest.approx(1)
    assert sys.modules["colorsys"].__file__


def test_a_stand_in_gives_way_to_a_name_that_it_does_not_know():
    sys.modules.pop("colorsys", None)
    with on_demand("colorsys", "rgb_to_yiq"):
        from colorsys import ONE_THIRD

        assert sys.modules["colorsys"].__file__
    assert ONE_THIRD == 1 / 3
    assert sys.modules["colorsys"].ONE_THIRD == ONE_THIRD
