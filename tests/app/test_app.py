"""`halfmask app`: a page on a port of its own, given real images and broken ones, and stopped by Ctrl-C."""

import importlib.util
import io
import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from halfmask.app.app import Guard, app
from halfmask.app.look import LARGEST, Looker
from halfmask.app.results import about, layers, predict_files, ranked, write_zip
from halfmask.cli.app import app as command_line
from halfmask.errors import DataError, MissingExtraError, RecipeError
from halfmask.infer.bundle import save_bundle
from halfmask.infer.predict.predict import predict
from halfmask.models.build import Builder
from halfmask.recipe.read import ModelRecipe
from halfmask.task import Task
from tests.run.toy import THREE, small_model


def photo(width: int = 70, height: int = 48, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def png(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def varied_model() -> Any:
    """A network that predicts several classes in one image."""
    model = small_model()
    pixels = np.moveaxis(np.asarray(photo(), np.float32), -1, 0)[None] / 255
    with torch.no_grad():
        *_, last = (layer for layer in model.classifier.modules() if isinstance(layer, torch.nn.Conv2d))
        last.weight *= 50
        last.bias -= model(torch.from_numpy(pixels)).mean((0, 2, 3))
    return model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app") / "bundle"
    save_bundle(folder, varied_model(), THREE)
    return folder


class Browser:
    """Talks to the page as its own script does: uploads files, and asks for what shows them."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, data: bytes | None = None, **headers: str) -> tuple[int, Any, bytes]:
        request = urllib.request.Request(
            f"{self.url}{path}", data, {k.replace("_", "-"): v for k, v in headers.items()}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return reply.status, reply.headers, reply.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def upload(self, name: str, data: bytes) -> tuple[int, Any]:
        head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        status, _, body = self.ask(
            "gradio_api/upload", head + data + b"\r\n--x--\r\n", Content_Type="multipart/form-data; boundary=x"
        )
        return status, json.loads(body) if status == 200 else body.decode()

    def drop(self, **files: bytes) -> dict[str, Any]:
        """Drop files; returns the new values of the page's parts by label."""
        config = json.loads(self.ask("config")[2])
        dropped = next(part["id"] for part in config["components"] if part["type"] == "file")
        event = next(one for one in config["dependencies"] if (dropped, "change") in map(tuple, one["targets"]))
        values = [
            {"path": self.upload(name, data)[1][0], "orig_name": name, "meta": {"_type": "gradio.FileData"}}
            for name, data in files.items()
        ]
        body = {"data": [values], "fn_index": event["id"], "session_hash": "s", "trigger_id": dropped}
        self.ask("gradio_api/queue/join", json.dumps(body).encode(), Content_Type="application/json")
        stream = self.ask("gradio_api/queue/data?session_hash=s")[2].decode()
        messages = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: ")]
        done = next(message for message in messages if message["msg"] == "process_completed")
        assert done["success"], done
        kinds = {part["id"]: part["type"] for part in config["components"]}
        return {kinds[id]: value for id, value in zip(event["outputs"], done["output"]["data"], strict=True)}

    def file(self, value: dict[str, Any]) -> bytes:
        return self.ask(f"gradio_api/file={value['path']}")[2]


@pytest.fixture
def page(bundle: Path) -> Iterator[tuple["subprocess.Popen[str]", Browser]]:
    command = [sys.executable, "-m", "halfmask", "app", bundle.name, "--port", "0", "--json", "--max-mb", "0.5"]
    process = subprocess.Popen(command, cwd=bundle.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    yield process, Browser(json.loads(line)["url"])
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_page_shows_images_names_broken_ones_and_stops_at_ctrl_c(page: Any, bundle: Path, tmp_path: Path) -> None:
    process, browser = page
    status, headers, body = browser.ask("")
    assert status == 200
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert "fonts.googleapis" not in body.decode()
    assert browser.ask("", Host="rebound.example")[0] == 421
    assert browser.ask("gradio_api/upload", b"x", Host="rebound.example")[0] == 421
    assert browser.ask("gradio_api/file=/etc/passwd")[0] in (403, 404)

    photo().save(tmp_path / "good.png")
    predict(bundle, tmp_path / "good.png", tmp_path / "out", quiet=True)
    data = (tmp_path / "good.png").read_bytes()
    shown = browser.drop(**{"good.png": data, "cut.png": data[:300]})
    assert "cut.png: cannot be decoded" in shown["textbox"]["value"]
    assert "[H2" in shown["textbox"]["value"]
    assert "tmp" not in shown["textbox"]["value"]  # no name but the user's own
    layers = shown["annotatedimage"]["value"]["annotations"]
    assert {layer["label"] for layer in layers} <= set(THREE.classes)
    colored = Image.open(io.BytesIO(browser.file(layers[0]["image"])))
    assert colored.size == (70, 48)
    archive = zipfile.ZipFile(io.BytesIO(browser.file(shown["downloadbutton"]["value"])))
    assert archive.read("good.png") == (tmp_path / "out" / "good.png").read_bytes()
    assert browser.upload("big.png", b"x" * 600_000)[0] == 413

    with socket.create_connection(("127.0.0.1", int(browser.url.rpartition(":")[2].strip("/")))):  # and says nothing
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out == ""
    assert err.splitlines()[-1] == "stopped"
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ("bundle --port {taken}", 2, "H303 | in use | --port 0"),
        ("bundle --port 70000", 2, "--port"),
        ("bundle --host 203.0.113.9", 2, "not an address of this machine"),
        ("bundle data.crop=3", 2, "only eval.*"),
        ("nowhere", 3, "nowhere does not exist"),
    ],
)
def test_what_cannot_be_served_is_one_clear_message(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, options: str, code: int, says: str
) -> None:
    monkeypatch.chdir(bundle.parent)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        done = CliRunner().invoke(command_line, ["app", *options.format(taken=busy.getsockname()[1]).split()])
    assert done.exit_code == code, done
    assert [text for text in says.split(" | ") if text not in done.stderr] == [], done.stderr
    assert isinstance(done.exception, SystemExit)  # no other error reaches the user
    assert done.stdout == ""


def test_without_gradio_the_extra_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "halfmask\[app\]"'):
        app(bundle)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("notes.txt", b"hello", "notes.txt: not an image"),
        ("phone.heic", b"ftypheic", "phone.heic: not an image"),
        ("x.png", b"hello", "x.png: cannot be decoded"),
        ("empty.jpg", b"", "empty.jpg: the file is empty"),
        ("cut.png", png(photo())[:300], "cut.png: cannot be decoded"),
        ("deep.png", png(Image.fromarray(np.full((9, 9), 999, np.uint16))), "deep.png: 1 bands of uint16"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_image_costs_only_itself(bundle: Path, tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    photo().save(tmp_path / "good.png")
    looks, problems = predict_files(Looker(bundle, device="cpu"), [str(tmp_path / name), str(tmp_path / "good.png")])
    assert [look.name for look in looks] == ["good.png"]
    assert len(problems) == 1
    assert problems[0].startswith(says)
    assert "[H2" in problems[0]
    assert str(tmp_path) not in problems[0]


def test_a_class_is_seen_alone_and_all_of_them_cover_the_mask_that_predict_writes(bundle: Path, tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    predict(bundle, tmp_path / "a.png", tmp_path / "out", quiet=True)
    mask = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    look = Looker(bundle, device="cpu").look((tmp_path / "a.png").read_bytes(), "a.png")
    picture, shown = layers(look, THREE.classes)
    assert picture.shape == (48, 70, 3)
    names = [name for _, name in shown]
    assert len(names) > 1
    for layer, name in shown:
        assert (layer == (mask == THREE.classes.index(name))).all()
    assert ranked(look, THREE.classes) == {
        name: pytest.approx((mask == THREE.classes.index(name)).mean()) for name in names
    }
    alone = layers(look, THREE.classes, names[1])[1]
    assert [name for _, name in alone] == names
    assert [bool(layer.any()) for layer, _ in alone] == [name == names[1] for name in names]


def test_masks_of_equal_names_do_not_replace_each_other_in_the_zip(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    looker = Looker(bundle, device="cpu")
    looks = [looker.look(png(photo(seed=seed)), "a.png") for seed in range(2)]
    path = write_zip(looks, THREE.classes)
    assert tmp_path in path.parents
    with zipfile.ZipFile(path) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "a.png": looks[0].mask,
            "a-2.png": looks[1].mask,
        }


def test_five_bands_are_shown_by_their_first_three(tmp_path: Path) -> None:
    section = small_model().spec["model"]
    builder = Builder(ModelRecipe.model_validate(section), THREE, crop=64, channels=5, mean=(0.5,) * 5, std=(0.2,) * 5)
    save_bundle(tmp_path, builder().eval(), THREE)
    looker = Looker(tmp_path, device="cpu")
    assert about(looker) == "segmentation, 3 classes, 5 bands."
    bands = np.random.default_rng(0).integers(0, 255, (30, 40, 5), dtype=np.uint8)
    buffer = io.BytesIO()
    np.save(buffer, bands)
    seen = looker.look(buffer.getvalue(), "bands.npy")
    assert seen.size == (30, 40)
    assert np.abs(seen.pixels().mean((0, 1)) - bands[..., :3].mean((0, 1))).max() < 9
    with pytest.raises(DataError, match=r"a\.png: 3 bands of uint8, but the model was trained on 5"):
        looker.look(png(photo()), "a.png")


def test_large_images_are_shown_smaller_and_very_large_ones_refused(bundle: Path) -> None:
    looker = Looker(bundle, device="cpu")
    seen = looker.look(png(photo(1701, 41)), "wide.png")
    assert seen.size == (41, 1701)
    assert seen.mask is not None
    assert Image.open(io.BytesIO(seen.mask)).size == (1701, 41)
    picture, shown = layers(seen, THREE.classes)
    assert picture.shape == (21, 851, 3)
    assert {layer.shape for layer, _ in shown} == {(21, 851)}
    huge = png(Image.new("1", (LARGEST // 5000 + 1, 5000)))
    with pytest.raises(DataError, match="halfmask predict"):
        looker.look(huge, "huge.png")


def test_pictures_are_turned_upright_and_pasted_ones_need_no_name(bundle: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    seen = Looker(bundle, device="cpu").look(png(photo(), exif=exif), "image")
    assert seen.size == (70, 48)


def test_labels_of_whole_images_come_without_a_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    task = Task("classification", ("dark", "bright"))
    section = {"encoder": {"name": "resnet", "depth": 18, "width": 8}, "decoder": "pool"}
    save_bundle(tmp_path, Builder(ModelRecipe.model_validate(section), task, crop=32)().eval(), task)
    seen = Looker(tmp_path, device="cpu").look(png(photo(32, 32)), "a.png")
    assert layers(seen, task.classes)[1] == []
    assert sum(ranked(seen, task.classes).values()) == pytest.approx(1, abs=1e-5)
    with zipfile.ZipFile(write_zip([seen], task.classes)) as archive:
        header, row = archive.read("labels.csv").decode().splitlines()
    assert header == "image,label,confidence"
    assert row == f"a.png,{task.classes[int(np.argmax(seen.shares))]},{max(seen.shares):.4f}"


def test_two_dates_do_not_fit_on_the_page(tmp_path: Path) -> None:
    task = Task("change", ("same", "changed"))
    save_bundle(tmp_path, small_model(task), task)
    with pytest.raises(RecipeError, match=r"predict .* A/ and B/"):
        Looker(tmp_path)


def test_only_local_names_lead_to_a_local_page() -> None:
    local = Guard(None, "127.0.0.1")
    assert all(map(local.knows, ("localhost:8765", "127.0.0.1:1", "localhost", "[::1]:9")))
    assert not any(map(local.knows, ("rebound.example:8765", "", "localhost.example:1")))
    assert Guard(None, "0.0.0.0").knows("workstation:8765")  # the user opened it to the network
