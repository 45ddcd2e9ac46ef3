"""Every command and every piece of code of README.md and docs/ works, top to bottom, page by page."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.docs.pages import LANGUAGES, OPTIONS, PAGES, ROOT, Block, blocks
from tests.processes import command_in

BLOCKS = [block for page in PAGES for block in blocks(page)]


def runs_commands(page: Path) -> bool:
    return any(block.runs and block.language == "bash" for block in blocks(page))


def write_field(folder: Path) -> None:
    """Twelve pictures of a bright patch on dark ground; eight have masks."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(12):
        target = np.zeros((72, 96), np.uint8)
        top, left = rng.integers(0, 40, size=2)
        target[top : top + 28, left : left + 28] = 1
        image = rng.integers(0, 90, (72, 96, 3)) + 120 * target[..., None]
        Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"f_{number:03d}.jpg")
        if number < 8:
            Image.fromarray(target).save(folder / "masks" / f"f_{number:03d}.png")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a small dataset `field/`, in which the page's blocks run."""
    write_field(tmp_path / "field")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    (tmp_path / "bin").mkdir()
    with command_in(tmp_path / "bin"):
        yield tmp_path
    for name in set(sys.modules) - before:  # files that a page wrote must not answer for another page's
        if not (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            continue
        del sys.modules[name]


def run_command(block: Block, place: Path) -> str:
    """Run a block and give what it printed."""
    environment = {
        **os.environ,
        "PATH": os.pathsep.join((str(place / "bin"), str(Path(sys.executable).parent), os.environ["PATH"])),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.tested_code],
        cwd=place,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{block.where} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.relative_to(ROOT).as_posix(), marks=[pytest.mark.slow] * runs_commands(page))
        for page in PAGES
    ],
)
def test_the_blocks_of_a_page_run_in_order(page, place):
    names = {"__name__": "__page__"}
    printed = ""
    for block in blocks(page):
        if "file" in block.options:
            path = place / block.options["file"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.tested_code)
        elif block.runs and block.language == "bash":
            printed = run_command(block, place)
        elif "output" in block.options:
            assert [line for line in block.code.splitlines() if line not in printed] == [], f"{block.where}\n{printed}"
        elif block.runs:
            exec(compile(block.tested_code, block.where, "exec"), names)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_a_block_says_what_it_is_and_why_it_does_not_run(block):
    assert block.language in LANGUAGES
    assert block.options.keys() <= OPTIONS
    assert block.options.get("no-run", "a reason") != ""
    assert block.tested_code  # raises where a substitution no longer fits


@pytest.mark.slow
def test_a_block_finds_only_what_its_shell_leads_to(place):
    """A page whose `export PYTHONPATH=.` is missing fails, though the tests themselves find the page's files."""
    (place / "own.py").write_text(
        "from halfmask.methods.supervised import Supervised\n\n\nclass Mine(Supervised): ...\n"
    )
    (place / "elsewhere").mkdir()
    page = ROOT / "docs" / "x.md"
    listed = "cd elsewhere && halfmask list methods own:Mine"
    assert "Mine" in run_command(Block(page, 1, "bash", {}, f"export PYTHONPATH=..\n{listed}\n"), place)
    with pytest.raises(AssertionError, match="exited with 2"):
        run_command(Block(page, 1, "bash", {}, f"unset PYTHONPATH\n{listed}\n"), place)


def test_a_stale_substitution_is_an_error(tmp_path):
    page = ROOT / "docs" / "x.md"
    block = Block(page, 1, "bash", {}, "halfmask list methods\n", (("--out runs/a", "--out runs/b"),))
    with pytest.raises(ValueError, match="not in it"):
        _ = block.tested_code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_inside_the_repository_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_two_commands_of_the_readme_are_complete():
    code = "".join(block.code for block in blocks(ROOT / "README.md"))
    assert "python3 -m pip install uv && python3 -m uv run halfmask demo" in code
    assert "python3 -m pip install uv && python3 -m uv run pytest" in code
