"""What is tracked: no machine paths, lock files or large files."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CHECKER = ROOT / ".ci" / "check_files.py"


@pytest.fixture(scope="module")
def checker():
    spec = importlib.util.spec_from_file_location("check_files", CHECKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tracked_files_hold_no_machine_paths_indexes_lock_files_or_large_files():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run([sys.executable, CHECKER], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "text", "finding"),
    [
        ("a.md", "data in /{}/me/images".format("home"), "machine path"),
        ("a.md", "https://example.com/{}/torch".format("simple"), "package index"),
        ("a.toml", "url = 'https://files.{}.org/x'".format("pythonhosted"), "package index"),
        ("uv.lock", "version = 1", "lock file"),
        ("a.bin", "x" * 1_000_001, "1,000,001 bytes"),
        ("a.ipynb", '{"cells": [{"outputs": [{"text": "3"}]}]}', "notebook with outputs"),
    ],
)
def test_the_check_of_files_finds_each_kind_of_mistake(checker, tmp_path, name, text, finding):
    (tmp_path / name).write_text(text)
    assert any(finding in line for line in checker.findings(tmp_path / name))


def test_the_check_of_files_accepts_relative_paths_and_clean_notebooks(checker, tmp_path):
    relative = "runs/{}/x and ~/{}/x, https://example.org/paper".format("home", "work")
    (tmp_path / "a.md").write_text(relative)
    (tmp_path / "a.ipynb").write_text('{"cells": [{"outputs": [], "execution_count": null}]}')
    assert checker.findings(tmp_path / "a.md") == []
    assert checker.findings(tmp_path / "a.ipynb") == []


def test_constraints_hold_names_versions_and_hashes_only():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    packages = [line for line in lines if not line.startswith(" ")]
    assert len(packages) > 50
    assert all("==" in line for line in packages)
    assert all(line.strip().startswith(("--hash=sha256:", "#")) for line in lines if line.startswith(" "))
