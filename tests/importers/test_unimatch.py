"""Checkpoints of UniMatch V1 and V2 under their official names give the recorded logits.

Recorded in float64 and stored as float32, so 1e-5 relative, as in the README of the recordings; the networks run in
float64. Normalizing again what the recording holds normalized costs 1e-15.
"""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from halfmask import import_checkpoint, load_bundle
from halfmask.errors import CheckpointError, DataError, RecipeError
from halfmask.importers.unimatch import UniMatchCheckpoint
from halfmask.importers.unimatch_v2 import UniMatchV2Checkpoint
from halfmask.models.key_rules import rename

from .official import logits, part, write

SEVEN = "a,b,c,d,e,f,g"
HEADS = "model.encoder.heads=2"  # 24 channels in two heads; published networks have 64 channels per head


@pytest.fixture
def dpt(golden):
    tensors = golden("unimatch/dpt_forward")
    return part(tensors, "weight."), tensors


def test_v2_from_the_command_line_gives_the_published_logits_of_the_teacher(dpt, tmp_path):
    weights, tensors = dpt
    student = {key: torch.zeros_like(value) for key, value in weights.items()}
    file = write(tmp_path / "official.pth", model=student, model_ema=weights)
    command = [sys.executable, "-m", "halfmask", "import", str(file), "--out", str(tmp_path / "m"), "--classes", SEVEN]
    done = subprocess.run([*command, HEADS, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["format"], said["predictor"], said["entry"]) == ("unimatch_v2", "teacher", "model_ema")
    assert said["classes"] == SEVEN.split(",")
    unused = [key for key in weights if key.startswith(("backbone.mask_token", "head.scratch.refinenet4.resConfUnit1"))]
    assert sorted(said["dropped"]) == sorted(unused)
    assert_close(logits(tmp_path / "m", tensors["input"]), tensors["logits"].double(), rtol=1e-5, atol=1e-5)
    meta = json.loads((tmp_path / "m" / "model.json").read_text())
    assert meta["imported"]["epoch"] == 42
    assert meta["imported"]["previous_best"] == 86.25
    assert meta["eval"]["fit"] == "resize"


def test_v2_student_is_taken_on_request(dpt, tmp_path):
    weights, tensors = dpt
    teacher = {key: torch.zeros_like(value) for key, value in weights.items()}
    file = write(tmp_path / "official.pth", model=weights, model_ema=teacher)
    made = import_checkpoint(file, tmp_path / "m", predictor="student", classes=SEVEN, overrides=[HEADS])
    assert made.entry == "model"
    assert_close(logits(tmp_path / "m", tensors["input"]), tensors["logits"].double(), rtol=1e-5, atol=1e-5)
    with pytest.raises(RecipeError, match="Known: teacher, student"):
        import_checkpoint(file, tmp_path / "n", predictor="ema", classes=SEVEN, overrides=[HEADS])


def test_a_supervised_v2_file_has_a_student_only(dpt, tmp_path):
    file = write(tmp_path / "official.pth", model=dpt[0])
    made = import_checkpoint(file, tmp_path / "m", classes=SEVEN, overrides=[HEADS])
    assert (made.predictor, made.entry) == ("student", "model")
    with pytest.raises(CheckpointError, match="no network 'model_ema' in it; it holds model"):
        import_checkpoint(file, tmp_path / "n", predictor="teacher", classes=SEVEN, overrides=[HEADS])


@pytest.mark.parametrize("output_stride", [16, 8])
def test_v1_gives_the_published_logits(golden, tmp_path, output_stride):
    tensors = golden(f"unimatch/deeplab_os{output_stride}")
    file = write(tmp_path / "official.pth", model=part(tensors, "weight."))
    overrides = [] if output_stride == 16 else [f"model.encoder.output_stride={output_stride}"]
    made = import_checkpoint(file, tmp_path / "m", classes=SEVEN, overrides=overrides)
    assert (made.format, made.predictor, made.dropped) == ("unimatch", "student", ())
    assert_close(logits(tmp_path / "m", tensors["input"]), tensors["logits"].double(), rtol=1e-5, atol=1e-5)


def test_change_detection_checkpoints_give_the_published_logits_of_pairs(golden, tmp_path):
    tensors = golden("unimatch/change_dpt")
    file = write(tmp_path / "levir.pth", model=part(tensors, "weight."))
    made = import_checkpoint(file, tmp_path / "m", task="change", overrides=[HEADS])
    assert made.classes == ("unchanged", "changed")
    assert load_bundle(tmp_path / "m").crop == 252
    pairs = torch.stack([tensors["image_a"], tensors["image_b"]], dim=1)
    assert_close(logits(tmp_path / "m", pairs), tensors["logits"].double(), rtol=1e-5, atol=1e-5)


def test_bare_tables_of_tensors_are_read_too(dpt, tmp_path):
    weights, tensors = dpt
    torch.save(weights, tmp_path / "bare.pth")
    import_checkpoint(tmp_path / "bare.pth", tmp_path / "m", classes=SEVEN, overrides=[HEADS])
    assert_close(logits(tmp_path / "m", tensors["input"]), tensors["logits"].double(), rtol=1e-5, atol=1e-5)


def test_unexpected_missing_and_misshapen_tensors_are_one_list(dpt, tmp_path):
    weights = dict(dpt[0])
    weights["head.strange.weight"] = weights.pop("head.scratch.refinenet1.out_conv.weight")
    weights["backbone.norm.weight"] = torch.zeros(5)
    weights["backbone.extra"] = torch.zeros(1)
    weights |= {f"backbone.more.{number}": torch.zeros(1) for number in range(40)}
    file = write(tmp_path / "official.pth", model=weights)
    with pytest.raises(CheckpointError) as error:
        import_checkpoint(file, tmp_path / "m", classes=SEVEN, overrides=[HEADS])
    message = str(error.value)
    assert "44 problems" in message
    assert all(f"unexpected: backbone.more.{number} " in message for number in range(40))
    assert "unexpected: head.strange.weight" in message
    assert "unexpected: backbone.extra (encoder.net.extra here)" in message
    assert "missing: the tensor that is decoder.fusions.0.out.weight here" in message
    assert "shape of backbone.norm.weight: (5,) in the file, (24,) in the network" in message
    assert not (tmp_path / "m" / "model.json").exists()


def _published(shapes: dict[str, list[int]], blocks: int) -> dict[str, torch.Tensor]:
    """Official names with shapes and no memory; only block 0 is listed, the others are like it."""
    names = dict(shapes)
    for key, size in shapes.items():
        if key.startswith("backbone.blocks.0."):
            names |= {key.replace("blocks.0.", f"blocks.{block}."): size for block in range(1, blocks)}
    return {key: torch.empty(size, device="meta") for key, size in names.items()}


@pytest.mark.parametrize("size", ["small", "base", "large", "giant"])
def test_every_published_dpt_is_recognized_and_every_name_finds_its_place(shared, size):
    described = json.loads((shared / "golden/unimatch/state_dict_shapes.json").read_text())[f"dpt_{size}"]
    state = _published(described["keys"], described["n_blocks"])
    _check_published(UniMatchV2Checkpoint(), state, {"size": size, "weights": "lvd142m"}, described["params"]["total"])


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        ("resnet50", {"depth": 50, "weights": "imagenet"}),
        ("resnet101", {"depth": 101, "weights": "imagenet"}),
        ("xception", {"width": 32, "blocks": 16, "output_stride": 16}),
    ],
)
def test_every_published_deeplab_is_recognized_and_every_name_finds_its_place(shared, name, encoder):
    described = json.loads((shared / "golden/unimatch/state_dict_shapes.json").read_text())[f"deeplabv3plus_{name}"]
    state = {key: torch.empty(size, device="meta") for key, size in described["keys"].items()}
    _check_published(UniMatchCheckpoint(), state, encoder, described["params"]["total"])


def _check_published(importer, state, encoder, parameters):
    from halfmask.models.build import Builder
    from halfmask.models.key_rules import check_fit
    from halfmask.recipe.read import load
    from halfmask.task import Task

    assert importer.recognizes(state)
    assert importer.classes(state) == 21
    task = Task("segmentation", tuple(map(str, range(21))))
    recipe = load({"model": importer.section(state, task)})
    assert encoder.items() <= recipe.model.encoder.params.items()
    with torch.device("meta"):
        model = Builder(recipe.model, task, crop=518, pretrained=False)()
    made = rename(state, importer.rules)
    own = {key: value for key, value in model.state_dict().items() if key not in ("mean", "std")}
    check_fit(made, own, "published shapes", "")
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert sum(value.numel() for key, value in state.items() if not key.endswith(buffers)) == parameters


# Our names to the authors', read the other way round than the importer's rules.
OFFICIAL = (
    (r"encoder\.net\.", "backbone."),
    (r"decoder\.branches\.", "head.b"),
    (r"decoder\.pool\.0\.", "head.b4.gap.1."),
    (r"decoder\.pool\.1\.", "head.b4.gap.2."),
    (r"decoder\.project\.", "head.project."),
    (r"decoder\.reduce\.", "reduce."),
    (r"decoder\.convs\.0\.", "fuse."),
    (r"decoder\.convs\.1\.0\.", "fuse.3."),
    (r"decoder\.convs\.1\.1\.", "fuse.4."),
    (r"classifier\.", "classifier."),
)


@pytest.fixture
def narrow_xception():
    """A network with all blocks of the published one, of few channels, and its tensors under official names."""
    from halfmask.models.build import Builder
    from halfmask.recipe.read import load
    from halfmask.task import Task

    torch.manual_seed(0)
    decoder = {"name": "deeplabv3plus", "aspp": 8, "low": 4, "embedding": 12}
    recipe = load({"model": {"encoder": {"name": "xception", "width": 1}, "decoder": decoder}})
    model = Builder(recipe.model, Task("segmentation", tuple(SEVEN.split(","))), crop=65)().double().eval()
    with torch.no_grad():
        for value in model.parameters():
            value += 0.1 * torch.randn_like(value)
    made = rename({k: v for k, v in model.state_dict().items() if k not in ("mean", "std")}, OFFICIAL)
    assert not made.unknown
    return model, made.state


def test_xception_checkpoints_give_the_logits_of_the_network_behind_them(narrow_xception, shared, tmp_path):
    model, state = narrow_xception
    published = json.loads((shared / "golden/unimatch/state_dict_shapes.json").read_text())["deeplabv3plus_xception"]
    assert state.keys() == published["keys"].keys()
    made = import_checkpoint(write(tmp_path / "coco.pth", model=state), tmp_path / "m", classes=SEVEN)
    assert (made.format, made.predictor, made.dropped) == ("unimatch", "student", ())
    image = torch.randn(1, 3, 65, 97, dtype=torch.float64)
    with torch.no_grad():
        expected = model(image * model.std + model.mean)
        assert_close(logits(tmp_path / "m", image), expected, rtol=1e-5, atol=1e-5)  # bundles hold float32


def test_xception_tensors_that_do_not_fit_are_one_list(narrow_xception, tmp_path):
    state = narrow_xception[1]
    state["backbone.block4.skip.weight"] = state.pop("backbone.block20.skip.weight")
    with pytest.raises(CheckpointError, match="2 problems") as error:
        import_checkpoint(write(tmp_path / "coco.pth", model=state), tmp_path / "m", classes=SEVEN)
    assert "unexpected: backbone.block4.skip.weight (encoder.net.block4.skip.weight here)" in str(error.value)
    assert "missing: the tensor that is encoder.net.block20.skip.weight here" in str(error.value)


def test_class_names_come_from_the_number_of_classes_or_must_be_given(dpt, golden, tmp_path):
    file = write(tmp_path / "official.pth", model=dpt[0])
    with pytest.raises(RecipeError, match=r"predicts 7 classes and does not hold their names.*--classes"):
        import_checkpoint(file, tmp_path / "m", overrides=[HEADS])
    with pytest.raises(RecipeError, match="predicts 7 classes, but --classes names 2"):
        import_checkpoint(file, tmp_path / "m", classes="a,b", overrides=[HEADS])
    with pytest.raises(RecipeError, match="dataset pascal names 21"):
        import_checkpoint(file, tmp_path / "m", dataset="pascal", overrides=[HEADS])
    with pytest.raises(RecipeError, match=r"no dataset 'pascall'\. Did you mean `pascal`"):
        import_checkpoint(file, tmp_path / "m", dataset="pascall", overrides=[HEADS])
    (tmp_path / "names.txt").write_text("0\tsky\t0,0,0\n1 tree\nc\nd\ne\nf\ng\n")
    made = import_checkpoint(file, tmp_path / "m", classes=str(tmp_path / "names.txt"), overrides=[HEADS])
    assert made.classes == ("sky", "tree", "c", "d", "e", "f", "g")
    with pytest.raises(DataError, match="missing"):
        import_checkpoint(file, tmp_path / "n", classes=tmp_path / "missing", overrides=[HEADS])
    (tmp_path / "data" / "images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "images" / "a.png")
    (tmp_path / "data" / "halfmask.yaml").write_text("classes: [h, i, j, k, l, m, n]\n")
    assert import_checkpoint(file, tmp_path / "n", classes=tmp_path / "data", overrides=[HEADS]).classes == tuple(
        "hijklmn"
    )
    city = write(tmp_path / "city.pth", model=part(golden("unimatch/v2_eval"), "weight."))
    import_checkpoint(city, tmp_path / "c", overrides=[HEADS])
    bundle = load_bundle(tmp_path / "c")
    assert bundle.task.classes[:2] == ("road", "sidewalk")
    assert bundle.task.palette is not None
    assert (bundle.protocol.mode, bundle.protocol.border, bundle.crop) == ("slide", "shift", 798)


def test_only_what_the_file_does_not_tell_can_be_overridden(dpt, tmp_path):
    file = write(tmp_path / "official.pth", model=dpt[0])
    with pytest.raises(RecipeError, match=r"optim.lr=1: an import takes keys of model and eval"):
        import_checkpoint(file, tmp_path / "m", overrides=["optim.lr=1"])
