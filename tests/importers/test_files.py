"""Encoder files, foreign files, broken files, folders that are taken: one clear error each."""

import pytest
import torch
from typer.testing import CliRunner

from halfmask import import_checkpoint, load_bundle
from halfmask.cli.app import app
from halfmask.errors import CheckpointError, DataError, RecipeError
from halfmask.importers._importer import Importer
from halfmask.models.encoders.dinov2 import DINOv2
from halfmask.models.encoders.mit import MiT
from halfmask.plugins import documentation, names, resolve

from .official import part, write


def run(*arguments):
    return CliRunner().invoke(app, ["import", *map(str, arguments)])


def test_dinov2_files_become_weights_that_the_encoder_takes(tmp_path):
    source = DINOv2(dim=24, heads=2)
    state = source.net.state_dict() | {"mask_token": torch.zeros(1, 24)}
    torch.save(state, tmp_path / "dinov2_tiny.pth")
    made = import_checkpoint(tmp_path / "dinov2_tiny.pth", tmp_path / "w", overrides=["model.encoder.heads=2"])
    assert (made.format, made.path.name, made.dropped) == ("dinov2", "encoder.safetensors", ("mask_token",))
    assert f"model.encoder.weights={made.path}" in made.use
    loaded = DINOv2(dim=24, heads=2, weights=str(made.path))
    for key, value in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_dinov2_files_that_do_not_fit_list_every_problem(tmp_path):
    state = DINOv2(dim=24, heads=2).net.state_dict() | {"stranger": torch.zeros(1)}
    del state["norm.weight"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"(?s)2 problems.*missing: norm.weight.*unexpected: stranger"):
        import_checkpoint(tmp_path / "w.pth", tmp_path / "w")
    torch.save(state | {"register_tokens": torch.zeros(1, 4, 24)}, tmp_path / "reg.pth")
    with pytest.raises(CheckpointError, match=r"register tokens, another network.*without `reg`"):
        import_checkpoint(tmp_path / "reg.pth", tmp_path / "w")


def test_dinov2_files_of_another_patch_or_position_grid_are_refused_with_both_shapes(tmp_path):
    state = DINOv2(dim=24, heads=2).net.state_dict()
    state["patch_embed.proj.weight"] = torch.zeros(24, 3, 16, 16)
    state["pos_embed"] = torch.zeros(1, 257, 24)
    del state["norm.bias"]
    torch.save(state | {"mask_token": torch.zeros(1, 24)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError) as error:
        import_checkpoint(tmp_path / "w.pth", tmp_path / "w", overrides=["model.encoder.heads=2"])
    for problem in (
        "3 problems",
        "missing: norm.bias",
        "shape of patch_embed.proj.weight: (24, 3, 16, 16) in the file, (24, 3, 14, 14) in the network",
        "shape of pos_embed: (1, 257, 24) in the file, (1, 1370, 24) in the network",
    ):
        assert problem in str(error.value)
    assert not (tmp_path / "w").exists()


def test_mit_files_become_weights_that_the_encoder_takes(tmp_path):
    source = MiT(size="b0")
    state = source.state_dict() | {"head.weight": torch.zeros(1000, 256), "head.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "mit_b0.pth")
    made = import_checkpoint(tmp_path / "mit_b0.pth", tmp_path / "w")
    assert (made.format, made.dropped) == ("mit", ("head.weight", "head.bias"))
    assert "model.encoder.size=b0" in made.use
    loaded = MiT(size="b0", weights=str(made.path))
    for key, value in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_foreign_files_are_refused_with_the_formats_and_what_is_in_them(tmp_path):
    torch.save({"state_dict": {"layers.0.kernel": torch.zeros(2)}}, tmp_path / "other.pth")
    result = run(tmp_path / "other.pth", "--out", tmp_path / "m")
    assert result.exit_code == 3
    assert f"none of the formats {', '.join(names('importers'))}. Its tensors: layers.0.kernel" in result.stderr
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    assert "holds no tensors" in run(tmp_path / "empty.pth", "--out", tmp_path / "m").stderr
    named = run(tmp_path / "other.pth", "--format", "unimatch_v2", "--out", tmp_path / "m")
    assert named.exit_code == 3
    assert "head.scratch.output_conv.2.weight is missing" in named.stderr


def test_files_that_are_cut_short_or_run_code_are_refused(tmp_path):
    torch.save({"model": MiT(size="b0").state_dict()}, tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    result = run(tmp_path / "cut.pth", "--out", tmp_path / "m")
    assert result.exit_code == 3
    assert "Is the download complete?" in result.stderr

    class Payload:
        def __reduce__(self):
            return (print, ("code ran",))

    torch.save({"model": Payload()}, tmp_path / "code.pth")
    result = run(tmp_path / "code.pth", "--out", tmp_path / "m")
    assert result.exit_code == 3
    assert "code ran" not in result.stdout
    assert "Only files of tensors and plain values" in result.stderr
    assert run(tmp_path / "none.pth", "--out", tmp_path / "m").exit_code == 3


def test_a_folder_that_is_taken_is_refused_before_anything_is_read(tmp_path):
    torch.save(MiT(size="b0").state_dict(), tmp_path / "mit_b0.pth")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"not empty.*--overwrite"):
        import_checkpoint(tmp_path / "mit_b0.pth", tmp_path / "m")


def test_overwriting_leaves_nothing_of_an_earlier_run(golden, tmp_path):
    file = write(tmp_path / "official.pth", model=part(golden("unimatch/deeplab_os16"), "weight."))
    (tmp_path / "m" / "checkpoints").mkdir(parents=True)
    for name in ("recipe.yaml", "model.json", "mine.txt"):
        (tmp_path / "m" / name).write_text("old")
    import_checkpoint(file, tmp_path / "m", classes="a,b,c,d,e,f,g", overwrite=True)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["mine.txt", "model.json", "model.safetensors"]
    load_bundle(tmp_path / "m")


def test_wrong_words_are_refused_with_the_right_ones(tmp_path):
    torch.save(MiT(size="b0").state_dict(), tmp_path / "w.pth")
    with pytest.raises(RecipeError, match=r"no importer 'unimatchv2'\. Did you mean `unimatch_v2`"):
        import_checkpoint(tmp_path / "w.pth", tmp_path / "m", format="unimatchv2")
    assert "segmentation or change" in run(tmp_path / "w.pth", "--task", "chnge", "--out", tmp_path / "m").stderr


@pytest.mark.parametrize("name", names("importers"))
def test_every_importer_keeps_the_contract(name):
    importer = resolve("importers", name)()
    assert isinstance(importer, Importer)
    assert len(documentation("importers", name).partition("\n")[0]) > 20
    assert importer.signs
    assert not importer.recognizes({"layers.0.kernel": torch.zeros(1)})
    if importer.holds == "model":
        assert importer.rules
        assert {"", *importer.crop} >= {""}
        assert "" in importer.crop
        assert "" in importer.protocols
