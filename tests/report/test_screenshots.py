"""The page in a real browser, at desktop and phone width, light and dark; the pictures stay as test artifacts."""

import html
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from halfmask.report.make import report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium: apt-get install chromium")
_DARK = "--blink-settings=preferredColorScheme=0"


def take(page: Path, out: Path, width: int, *flags: str) -> np.ndarray:
    """Photograph a page at one width, tall enough for its first screens."""
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},2400",
        f"--screenshot={out}", *flags, page.as_uri(),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return np.asarray(Image.open(out).convert("RGB")).astype(int)


def content_width(page: Path, width: int) -> int:
    """Ask the browser how wide the page becomes in a frame of some width; its windows are never narrower than 500."""
    probe = page.with_name(f"probe-{width}.html")
    measure = "document.title = document.querySelector('iframe').contentDocument.documentElement.scrollWidth"
    frame = f'<iframe style="width:{width}px;height:900px;border:0" onload="{measure}"'
    probe.write_text(f'<!doctype html><title></title>{frame} srcdoc="{html.escape(page.read_text())}"></iframe>')
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--dump-dom",
        probe.as_uri(),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return int(done.stdout.partition("<title>")[2].partition("</title>")[0])


@pytest.fixture(scope="module")
def pages(fix, allspark, seeds, labels, tmp_path_factory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("report-pages")
    made = {"run": [fix], "allspark": [allspark], "labels": [labels], "comparison": [seeds, fix]}
    return {name: report(*runs, out=out / name, quiet=True).page for name, runs in made.items()}


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("name", ["run", "allspark", "labels", "comparison"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_its_window(pages, name, width):
    """Wide tables scroll inside the page; the page itself does not."""
    assert content_width(pages[name], width) <= width


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("name", ["run", "allspark", "labels", "comparison"])
def test_the_page_is_drawn_at_desktop_and_phone_width_and_follows_the_readers_colors(pages, name):
    folder = pages[name].parent
    light = take(pages[name], folder / "desktop.png", 1280)
    phone = take(pages[name], folder / "phone.png", 390)
    dark = take(pages[name], folder / "desktop-dark.png", 1280, _DARK)
    for picture, width in ((light, 1280), (phone, 390), (dark, 1280)):
        assert picture.shape == (2400, width, 3)
        assert len(np.unique(picture @ (65536, 256, 1))) > 50  # text and charts, not an empty page
    assert light[-1, 0].mean() > 200
    assert dark[-1, 0].mean() < 60
    assert (light != light[-1, 0]).any(2)[:, :24].mean() < 0.05  # the margin is empty: nothing sticks out
