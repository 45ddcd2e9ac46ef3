"""Checkpoints of AllSpark: the recorded pseudo-labels from official names; the older layout is refused."""

import json

import pytest
import torch

from halfmask import import_checkpoint, load_bundle
from halfmask.errors import CheckpointError

from .official import part, write

FIVE = "a,b,c,d,e"


@pytest.fixture
def official(golden):
    encoder = part(golden("allspark/mit_b0"), "weight/")
    decoder = part(golden("allspark/end_to_end"), "weight/")
    return {f"backbone.{key}": value for key, value in encoder.items()} | decoder


def test_the_first_pseudo_labels_of_the_published_training_come_out(golden, official, tmp_path):
    # They are the initial weights' predictions in evaluation mode, with keys pooled over the batch as published.
    tensors = golden("allspark/end_to_end")
    made = import_checkpoint(write(tmp_path / "official.pth", model=official), tmp_path / "m", classes=FIVE)
    assert (made.format, made.predictor) == ("allspark", "student")
    assert sorted(made.dropped) == ["decoder.allspark.attn.kv_queue", "decoder.allspark.attn.queue_ptr"]
    model = load_bundle(tmp_path / "m").model.double()
    image = tensors["input/unlabeled_image1"].double() * model.std + model.mean
    with torch.no_grad():
        *fine, last = model.encode(image)
        tokens, residual = model.bottleneck.embed(last)
        keys = tokens.transpose(1, 2).contiguous()
        last = model.bottleneck.attend(tokens, residual, keys, labeled=len(image))
        logits = model.classify(model.decoder.refine(model.decoder.fuse([*fine, last])), (65, 65))
    assert torch.equal(logits.argmax(1), tensors["step1/pseudo_label"].long())


def test_the_older_layout_is_refused_for_the_bottleneck_and_loads_the_rest(official, tmp_path):
    older = {key: value for key, value in official.items() if not key.startswith("decoder.allspark.")}
    older |= {
        "decoder.allspark.embeddings.patch_embeddings.weight": torch.zeros(3),
        "decoder.allspark.encoder.layer.0.attn_norm1.weight": torch.zeros(3),
    }
    file = write(tmp_path / "first_release.pth", model=older)
    with pytest.raises(CheckpointError, match=r"first_release.pth as allspark: .*older layout.*--partial"):
        import_checkpoint(file, tmp_path / "m", classes=FIVE)
    made = import_checkpoint(file, tmp_path / "m", classes=FIVE, partial=True)
    assert all(key.startswith("decoder.allspark.") for key in made.dropped)
    bundle = load_bundle(tmp_path / "m")
    assert bundle.model.bottleneck is None
    state = bundle.model.state_dict()
    assert torch.equal(state["classifier.weight"], official["decoder.decoder.linear_pred.weight"].float())
    assert torch.equal(state["encoder.norm4.weight"], official["backbone.norm4.weight"].float())


def test_a_lost_tensor_of_the_bottleneck_is_named(official, tmp_path):
    del official["decoder.allspark.attn.v_u.weight"]
    with pytest.raises(CheckpointError, match=r"missing: the tensor that is bottleneck.own.v.weight here"):
        import_checkpoint(write(tmp_path / "o.pth", model=official), tmp_path / "m", classes=FIVE)


def test_the_license_of_the_encoders_first_weights_is_kept(official, tmp_path):
    import_checkpoint(write(tmp_path / "o.pth", model=official), tmp_path / "m", classes=FIVE)
    assert "NVIDIA" in json.loads((tmp_path / "m" / "model.json").read_text())["license"]
