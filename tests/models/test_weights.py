"""Pretrained weights: strict loading, authors' layouts, other input channels, helpful failures. No network."""

import logging

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch.testing import assert_close

from halfmask.errors import CheckpointError
from halfmask.models import weights as weights_module
from halfmask.models.encoders.dinov2 import DINOv2
from halfmask.models.encoders.dinov3 import DINOv3
from halfmask.models.encoders.mit import MiT
from halfmask.models.encoders.resnet import ResNet
from halfmask.models.encoders.timm import Timm
from halfmask.models.weights import Release, timm_releases

TINY = {"depth": 18, "width": 8}


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_local_file_restores_every_tensor_and_its_classifier_is_left_out(tmp_path, suffix):
    source = ResNet(**TINY)
    state = source.net.state_dict() | {"fc.weight": torch.zeros(10, 64), "fc.bias": torch.zeros(10)}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":  # as training scripts write it
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, path)
    else:
        save_file(state, path)
    loaded = ResNet(**TINY, weights=str(path))
    for key, value in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_all_keys_that_do_not_fit_are_listed_in_one_error(tmp_path):
    state = ResNet(**TINY).net.state_dict()
    state["layer9.weight"] = state.pop("layer1.0.conv1.weight")
    state["bn1.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError) as error:
        ResNet(**TINY, weights=str(tmp_path / "w.safetensors"))
    message = str(error.value)
    assert "3 problems" in message
    assert "missing: layer1.0.conv1.weight" in message
    assert "unexpected: layer9.weight" in message
    assert "shape of bn1.bias: (3,) in the file, (16,) in the network" in message
    assert "Check that model.encoder" in message


def test_not_one_key_of_a_long_list_is_left_out(tmp_path):
    strangers = {f"layer9.{number}.weight": torch.zeros(1) for number in range(45)}
    save_file(ResNet(**TINY).net.state_dict() | strangers, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="45 problems") as error:
        ResNet(**TINY, weights=str(tmp_path / "w.safetensors"))
    assert all(f"unexpected: {key}\n" in str(error.value) for key in strangers)


@pytest.mark.parametrize("content", [b"", b"not a weight file", b"PK\x03\x04 truncated"])
def test_a_broken_file_is_named(tmp_path, content):
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name} cannot be read.*Is the download complete"):
            ResNet(**TINY, weights=str(tmp_path / name))


def test_files_that_would_run_code_are_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save({"model": Payload()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="Only files of tensors and plain values"):
        ResNet(**TINY, weights=str(tmp_path / "w.pth"))


def test_a_file_of_plain_values_without_tensors_lists_what_is_missing(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"missing: conv1.0.weight"):
        ResNet(**TINY, weights=str(tmp_path / "w.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        ResNet(**TINY, weights=str(tmp_path / "list.pth"))


@pytest.mark.parametrize("channels", [1, 4])
def test_the_stem_of_rgb_weights_is_adapted_to_other_channels(tmp_path, channels):
    source = ResNet(**TINY).eval()
    save_file(source.net.state_dict(), tmp_path / "w.safetensors")
    loaded = ResNet(**TINY, in_channels=channels, weights=str(tmp_path / "w.safetensors")).eval()
    assert len(loaded.mean) == len(loaded.std) == channels
    if channels == 1:  # summed: a gray image gives what it gave as RGB
        gray = torch.randn(1, 1, 64, 64)
        assert_close(loaded(gray)[-1], source(gray.expand(-1, 3, -1, -1))[-1], rtol=1e-4, atol=1e-4)
    else:  # repeated and scaled to the same total response
        stem = source.net.conv1[0].weight
        expected = torch.cat([stem, stem[:, :1]], dim=1) * 3 / 4
        assert_close(loaded.net.conv1[0].weight, expected)


def test_official_mit_files_load_without_their_classifier(tmp_path):
    source = MiT(size="b0")
    state = source.state_dict() | {"head.weight": torch.zeros(1000, 256), "head.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "mit_b0.pth")
    loaded = MiT(size="b0", weights=str(tmp_path / "mit_b0.pth"))
    for key, value in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_official_dinov2_files_load_without_their_mask_token(tmp_path):
    source = DINOv2(dim=24, heads=2)
    torch.save(source.net.state_dict() | {"mask_token": torch.zeros(1, 24)}, tmp_path / "w.pth")
    loaded = DINOv2(dim=24, heads=2, weights=str(tmp_path / "w.pth"))
    for key, value in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_official_names_of_the_giants_gated_feed_forward_are_translated(tmp_path):
    arguments = {"size": "giant", "dim": 24, "heads": 2}
    source = DINOv2(**arguments)
    official = {
        key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): value
        for key, value in source.net.state_dict().items()
    }
    assert sum("w12" in key for key in official) == 80
    torch.save(official | {"mask_token": torch.zeros(1, 24)}, tmp_path / "w.pth")
    loaded = DINOv2(**arguments, weights=str(tmp_path / "w.pth"))
    for key, value in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_timm_files_load_strictly_into_feature_extractors(tmp_path):
    import timm

    whole = timm.create_model("convnext_atto", num_classes=0)
    path = tmp_path / "w.safetensors"
    save_file(whole.state_dict() | {"head.fc.weight": torch.zeros(1000, 320)}, path)
    loaded = Timm(model="convnext_atto", weights=str(path)).eval()
    image = torch.randn(1, 3, 64, 64)
    assert_close(loaded(image)[-1], whole.eval().forward_features(image), rtol=1e-4, atol=1e-5)
    partial = dict(list(whole.state_dict().items())[3:])
    save_file(partial, path)
    with pytest.raises(CheckpointError, match="missing: stem"):
        Timm(model="convnext_atto", weights=str(path))


@pytest.mark.parametrize(
    ("cls", "arguments", "repo"),
    [
        (ResNet, {"weights": "imagenet"}, "timm/resnet50s.gluon_in1k"),
        (ResNet, {"weights": "default", "stem": "plain", "depth": 18}, "timm/resnet18."),
        (MiT, {"weights": "imagenet", "size": "b0"}, "smp-hub/mit_b0.imagenet"),
        (DINOv2, {"weights": "lvd142m"}, "timm/vit_small_patch14_dinov2.lvd142m"),
        (DINOv3, {"weights": "lvd1689m"}, "timm/vit_small_patch16_dinov3.lvd1689m"),
        (Timm, {"weights": "default", "model": "mobilenetv3_small_050"}, "timm/mobilenetv3_small_050."),
    ],
)
def test_without_network_the_error_names_file_repository_folder_and_cure(offline, tmp_path, cls, arguments, repo):
    with pytest.raises(CheckpointError) as error:
        cls(**arguments)
    message = str(error.value)
    assert f"model.safetensors of {repo}" in message
    assert str(tmp_path / f"models--{repo.replace('/', '--')}") in message
    assert "model.encoder.weights=/path/to/model.safetensors" in message


def test_an_unknown_tag_names_the_nearest_one():
    with pytest.raises(CheckpointError, match=r"no weights 'lvd142'. Did you mean `lvd142m`"):
        DINOv2(dim=24, heads=2, weights="lvd142")


def test_networks_without_published_weights_say_so():
    with pytest.raises(CheckpointError, match="no weights are published"):
        ResNet(depth=18, stem="deep", weights="imagenet")


def test_the_license_is_logged_once(monkeypatch, tmp_path, caplog):
    source = ResNet(**TINY)
    save_file(source.net.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(weights_module, "hf_hub_download", lambda repo, file: str(tmp_path / file))
    release = {"tag": Release("someone/license-test", "Apache-2.0")}
    with caplog.at_level(logging.INFO, logger="halfmask"):
        for _ in range(2):
            weights_module.load_weights(source.net, "tag", release, stem="conv1.0.weight")
    assert [record.getMessage() for record in caplog.records] == ["weights someone/license-test (license: Apache-2.0)"]


def test_releases_know_their_license():
    assert timm_releases("vit_base_patch14_dinov2")["lvd142m"].license == "apache-2.0"
    assert "dinov3" in timm_releases("vit_base_patch16_dinov3")["lvd1689m"].license
    assert next(iter(timm_releases("resnet101s"))) == "gluon_in1k"
