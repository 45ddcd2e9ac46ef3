"""`halfmask app`: a page on a port of its own, given real images and broken ones, and stopped by Ctrl-C."""

import base64
import io
import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from halfmask.app.app import Server, answer, page
from halfmask.app.look import LARGEST, Looker
from halfmask.errors import DataError, RecipeError
from halfmask.infer.bundle import save_bundle
from halfmask.infer.predict import predict
from halfmask.models.build import Builder
from halfmask.recipe.read import ModelRecipe
from halfmask.task import Task
from tests.cli.processes import run as call
from tests.report.test_screenshots import content_width, needs_browser, take
from tests.run.toy import THREE, small_model

Reply = tuple[int, dict[str, Any]]


def photo(width: int = 70, height: int = 48, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def png(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def opened(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def ask(url: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=120) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def look(url: str, data: bytes, name: str) -> Reply:
    status, body = ask(f"{url}look?name={quote(name)}", data)
    return status, json.loads(body)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("app") / "bundle"
    save_bundle(folder, small_model(), THREE)
    return folder


def start(folder: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "halfmask", "app", folder.name, "--port", "0", "--json", *options]
    return subprocess.Popen(command, cwd=folder.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def url(bundle: Path) -> Iterator[str]:
    process = start(bundle, "--max-mb", "0.5")
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    yield json.loads(line)["url"]
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_the_page_is_whole_and_names_the_model(url: str) -> None:
    status, body = ask(url)
    text = body.decode()
    assert status == 200
    assert "bundle" in text
    assert "segmentation, 3 classes" in text
    assert "at most 0.5 MB" in text
    assert "{{" not in text
    assert "http" not in text  # nothing is loaded from anywhere


@pytest.mark.slow
def test_the_mask_of_a_real_image_is_the_one_predict_writes(url: str, bundle: Path, tmp_path: Path) -> None:
    photo().save(tmp_path / "a photo.png")
    predict(bundle, tmp_path / "a photo.png", tmp_path / "out", quiet=True)
    status, found = look(url, (tmp_path / "a photo.png").read_bytes(), "a photo.png")
    assert status == 200
    assert (found["name"], found["file"], found["width"], found["height"]) == ("a photo.png", "a photo.png", 70, 48)
    expected = Image.open(tmp_path / "out" / "a photo.png")
    mask = opened(found["mask"])
    assert mask.mode == "P"
    assert mask.getpalette() == expected.getpalette()
    assert (np.asarray(mask) == np.asarray(expected)).all()
    shares = {row["name"]: row["share"] for row in found["classes"]}
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    for id, name in enumerate(THREE.classes):
        assert shares[name] == pytest.approx((np.asarray(expected) == id).mean())
    colored = np.asarray(opened(found["colored"]))
    assert (colored[..., :3] == np.asarray(expected.convert("RGB"))).all()
    assert opened(found["picture"]).size == (70, 48)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data", "status", "says"),
    [
        ("notes.txt", b"hello", 422, "notes.txt: not an image"),
        ("phone.heic", b"ftypheic", 422, "phone.heic: not an image"),
        ("x.png", b"hello", 422, "x.png: cannot be decoded"),
        ("empty.jpg", b"", 422, "empty.jpg: the file is empty"),
        ("cut.png", png(photo())[:300], 422, "cut.png: cannot be decoded"),
        ("deep.png", png(Image.fromarray(np.full((9, 9), 999, np.uint16))), 422, "deep.png: 1 bands of uint16"),
        ("big.png", b"x" * 600_000, 413, "0.6 MB, the limit is 0.5"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_image_is_one_clear_message(url: str, name: str, data: bytes, status: int, says: str) -> None:
    found, reply = look(url, data, f"../elsewhere/{name}")
    assert found == status
    assert says in reply["error"]
    assert "tmp" not in reply["error"]  # no name but the user's own
    assert status == 413 or reply["code"].startswith("H2")
    assert look(url, png(photo()), "good.png")[0] == 200


@pytest.mark.slow
def test_other_pages_other_names_and_other_requests_are_refused(url: str) -> None:
    assert ask(f"{url}etc/passwd")[0] == 404
    assert ask(f"{url}other", b"x")[0] == 404
    assert ask(url, Host="rebound.example")[0] == 421
    assert ask(f"{url}look", png(photo()), Host="rebound.example")[0] == 421
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2].strip("/")))) as raw:
        raw.sendall(b"POST /look HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 411 " in raw.recv(200)


@pytest.mark.slow
def test_ctrl_c_stops_the_page_and_is_no_error(bundle: Path) -> None:
    process = start(bundle)
    assert process.stdout is not None
    address = json.loads(process.stdout.readline())["url"]
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2].strip("/")))):  # and says nothing
        assert look(address, png(photo()), "a.png")[0] == 200
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
def test_what_cannot_be_served_is_one_clear_message(bundle: Path, options: str, code: int, says: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        done = call(bundle.parent, "app", *options.format(taken=busy.getsockname()[1]).split())
    assert done.code == code, done
    assert [text for text in says.split(" | ") if text not in done.err] == [], done.err
    assert "Traceback" not in done.err
    assert done.out == ""


def test_five_bands_are_shown_by_their_first_three(tmp_path: Path) -> None:
    section = small_model().spec["model"]
    builder = Builder(ModelRecipe.model_validate(section), THREE, crop=64, channels=5, mean=(0.5,) * 5, std=(0.2,) * 5)
    save_bundle(tmp_path, builder().eval(), THREE)
    looker = Looker(tmp_path, device="cpu")
    assert "segmentation, 3 classes, 5 bands" in page(looker, "x", 1000)
    bands = np.random.default_rng(0).integers(0, 255, (30, 40, 5), dtype=np.uint8)
    buffer = io.BytesIO()
    np.save(buffer, bands)
    seen = looker.look(buffer.getvalue(), "bands.npy")
    assert seen.size == (30, 40)
    assert np.abs(np.asarray(Image.open(io.BytesIO(seen.picture))).mean((0, 1)) - bands[..., :3].mean((0, 1))).max() < 9
    with pytest.raises(DataError, match=r"a\.png: 3 bands of uint8, but the model was trained on 5"):
        looker.look(png(photo()), "a.png")


def test_large_images_are_shown_smaller_and_very_large_ones_refused(bundle: Path) -> None:
    looker = Looker(bundle, device="cpu")
    seen = looker.look(png(photo(1700, 40)), "wide.png")
    assert seen.size == (40, 1700)
    assert seen.mask is not None
    assert seen.colored is not None
    assert Image.open(io.BytesIO(seen.mask)).size == (1700, 40)
    assert Image.open(io.BytesIO(seen.picture)).size == Image.open(io.BytesIO(seen.colored)).size == (850, 20)
    huge = png(Image.new("1", (LARGEST // 5000 + 1, 5000)))
    with pytest.raises(DataError, match="halfmask predict"):
        looker.look(huge, "huge.png")


def test_pictures_are_turned_upright_and_pasted_ones_need_no_name(bundle: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    seen = Looker(bundle, device="cpu").look(png(photo(), exif=exif), "image")
    assert seen.size == (70, 48)


def test_labels_of_whole_images_come_without_a_mask(tmp_path: Path) -> None:
    task = Task("classification", ("dark", "bright"))
    section = {"encoder": {"name": "resnet", "depth": 18, "width": 8}, "decoder": "pool"}
    save_bundle(tmp_path, Builder(ModelRecipe.model_validate(section), task, crop=32)().eval(), task)
    looker = Looker(tmp_path, device="cpu")
    seen = answer(looker.look(png(photo(32, 32)), "a.png"), "a.png", looker.task)
    assert (seen["mask"], seen["colored"], seen["kind"]) == (None, None, "classification")
    assert sum(row["share"] for row in seen["classes"]) == pytest.approx(1, abs=1e-5)


def test_two_dates_do_not_fit_on_the_page(tmp_path: Path) -> None:
    task = Task("change", ("same", "changed"))
    save_bundle(tmp_path, small_model(task), task)
    with pytest.raises(RecipeError, match=r"predict .* A/ and B/"):
        Looker(tmp_path)


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("size", [(70, 48), (900, 300), (48, 200)])
def test_the_page_with_a_mask_fits_a_desktop_and_a_phone(bundle: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    looker = Looker(bundle, device="cpu")
    name = "a picture with a rather long name, as cameras and people give them.png"
    shown = json.dumps(answer(looker.look(png(photo(*size)), name), name, looker.task))
    text = page(looker, "runs/first", 1000).replace("</script>", f"show({shown});</script>")
    file = tmp_path / "app.html"
    file.write_text(text)
    for width in (1280, 390):
        assert content_width(file, width) <= width
        picture = take(file, tmp_path / f"app-{width}.png", width)
        assert len(np.unique(picture @ (65536, 256, 1))) > 50  # the photograph, not an empty page


def test_only_local_names_lead_to_a_local_page() -> None:
    with Server(("127.0.0.1", 0), 1000) as server:
        assert all(map(server.knows, ("localhost:8765", "127.0.0.1:1", "localhost", "[::1]:9")))
        assert not any(map(server.knows, ("rebound.example:8765", "", "localhost.example:1")))
    with Server(("0.0.0.0", 0), 1000) as server:
        assert server.knows("workstation:8765")  # the user opened it to the network
