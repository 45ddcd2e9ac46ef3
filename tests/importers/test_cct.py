"""Checkpoints of CCT: the rules on recorded weights, the published list of 577 tensors, a file of the official form."""

import json

import pytest
import timm
import torch
from torch.testing import assert_close

from halfmask import import_checkpoint, load_bundle
from halfmask.importers.cct import CCTCheckpoint
from halfmask.models.build import Builder
from halfmask.models.decoders.psp import PSP
from halfmask.models.key_rules import check_fit, rename
from halfmask.recipe.read import load
from halfmask.task import Task

from .official import part


def renamed(state, ours):
    made = rename(state, CCTCheckpoint.rules)
    assert not made.unknown
    return part(made.state, ours)


def test_recorded_encoder_and_pyramid_give_the_recorded_maps(golden):
    # The recorded network keeps the full-size stem on thin stages, which is no encoder of ours: timm builds it.
    # Recorded in float32: 1e-5.
    tensors = golden("cct/encoder_thin")
    state = {f"encoder.{key}": value for key, value in part(tensors, "w/").items()}
    net = timm.create_model(
        "resnet50", num_classes=0, output_stride=8, stem_type="deep", stem_width=64, channels=(4, 8, 16, 32)
    )
    net.load_state_dict(renamed(state, "encoder.net."))
    decoder = PSP((128,), (8,))
    decoder.load_state_dict(renamed(state, "decoder."))
    with torch.no_grad():
        last = net.double().eval().forward_features(tensors["in"].double())
        assert_close(last, tensors["base4_eval"].double(), rtol=1e-4, atol=1e-5)
        out = decoder.double().eval().refine(decoder.fuse([last]))
    assert_close(out, tensors["out_eval"].double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["init", "rand"])
def test_recorded_main_decoder_gives_the_recorded_logits(golden, kind):
    tensors = golden("cct/decoder")
    state = {f"main_decoder.{key}": value for key, value in part(tensors, f"{kind}/").items()}
    classifier = PSP((48,), (8,), embedding=12).make_classifier(6)
    classifier.load_state_dict(renamed(state, "classifier."))
    with torch.no_grad():
        out = classifier.double()(tensors["in"].double())
    assert_close(out, tensors[f"out_{kind}"].double(), rtol=1e-4, atol=1e-5)


def published(shared):
    described = json.loads((shared / "golden/cct/checkpoint_keys.json").read_text())
    keys = dict(described["keys"])
    for key, size in described["keys"].items():
        if key.startswith("module.aux_decoders.0."):
            keys |= {key.replace("decoders.0.", f"decoders.{index}."): size for index in range(1, 29)}
    assert len(keys) == described["n_keys_total"] == 577
    return {key.removeprefix("module."): torch.empty(size, device="meta") for key, size in keys.items()}


def test_the_published_577_tensors_are_recognized_and_every_name_finds_its_place(shared):
    state = published(shared)
    importer = CCTCheckpoint()
    assert importer.recognizes(state)
    task = Task("segmentation", tuple(map(str, range(importer.classes(state)))))
    recipe = load({"model": importer.section(state, task)})
    assert (recipe.model.encoder.params["depth"], recipe.model.encoder.params["output_stride"]) == (50, 8)
    with torch.device("meta"):
        model = Builder(recipe.model, task, crop=320, pretrained=False)()
    made = rename(state, importer.rules)
    assert len(made.dropped) == 30 * 7
    own = {key: value for key, value in model.state_dict().items() if key not in ("mean", "std")}
    check_fit(made, own, "published shapes", "")


@pytest.mark.parametrize("supervised", [False, True])
def test_a_file_of_the_official_form_gives_the_logits_of_its_network(tmp_path, supervised):
    """Official names are written here as in the authors' modules, with other sizes."""
    task = Task("segmentation", ("a", "b", "c"))
    model = {"encoder": {"name": "resnet", "depth": 50, "output_stride": 8, "width": 4, "blocks": [1, 1, 1, 1]}}
    recipe = load({"model": model | {"decoder": {"name": "psp", "embedding": 8}}})
    source = Builder(recipe.model, task, crop=320)().eval()
    stem = {
        "conv1.0": "conv1",
        "conv1.1": "bn1",
        "conv1.3": "conv2",
        "conv1.4": "bn2",
        "conv1.6": "conv3",
        "bn1": "bn3",
    }
    names = {f"encoder.net.{ours}.": f"encoder.base.0.0.{theirs}." for ours, theirs in stem.items()}
    names |= {f"encoder.net.layer{stage}.": f"encoder.base.{stage}." for stage in range(1, 5)}
    names |= {f"decoder.branches.{b}.{i}.": f"encoder.psp.stages.{b}.{i + 1}." for b in range(4) for i in range(2)}
    names |= {"decoder.bottleneck.": "encoder.psp.bottleneck.", "classifier.project.": "main_decoder.upsample.0."}
    names |= {f"classifier.stages.{i}.": f"main_decoder.upsample.{i + 1}.conv." for i in range(3)}
    state = {}
    for key, value in source.state_dict().items():
        state |= {f"module.{t}{key.removeprefix(o)}": value for o, t in names.items() if key.startswith(o)}
    assert len(state) == len(source.state_dict()) - 2
    if not supervised:
        state |= {"module.aux_decoders.0.upsample.0.weight": torch.zeros(3, 8, 1, 1)}
    file = tmp_path / "best_model.pth"
    torch.save(
        {"arch": "CCT", "epoch": 60, "state_dict": state, "monitor_best": 0.694, "config": {"name": "CCT"}}, file
    )
    made = import_checkpoint(file, tmp_path / "m", classes="a,b,c")
    assert (made.format, made.entry, len(made.dropped)) == ("cct", "state_dict", int(not supervised))
    image = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        assert torch.equal(load_bundle(tmp_path / "m").model(image), source(image))
