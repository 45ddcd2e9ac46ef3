"""Draw the demonstration's pictures: scenes, their true masks, and the masks that each run predicts."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from halfmask.demo.scene import CLASSES, PALETTE
from halfmask.infer.bundle import load_bundle
from halfmask.infer.inference import class_map
from halfmask.palette import colorize

_TILE, _GAP, _MARGIN, _LEGEND = 192, 6, 150, 40
_INK, _PAPER = (112, 116, 128), (0, 0, 0, 0)  # legible on a light and on a dark page, which shows through
# The first scenes of the test part: chosen by number, not by score.
SHOWN = 6


def write_figure(out: Path, runs: Sequence[str]) -> None:
    """Write `predictions.png`: columns are test scenes, rows are image, truth, and one row per run."""
    paths = sorted((out / "data" / "test" / "images").glob("*.png"))[:SHOWN]
    images = [np.asarray(Image.open(path)) for path in paths]
    truths = [np.asarray(Image.open(out / "data" / "test" / "masks" / path.name)) for path in paths]
    rows: list[tuple[str, list[np.ndarray]]] = [("scene", images), ("truth", [_paint(mask) for mask in truths])]
    for name, title in zip(runs, ("masks alone", "+ unlabeled"), strict=True):
        rows.append((title, [_paint(mask) for mask in _predict(out / name, images)]))
    _sheet(rows, CLASSES, PALETTE).save(out / "predictions.png")


def contact_sheet(paths: Sequence[Path], columns: int, tile: int) -> UInt8[np.ndarray, "H W 4"]:
    """Put images side by side, `columns` in a row."""
    lines = -(-len(paths) // columns)
    sheet = Image.new("RGBA", (columns * (tile + 3) - 3, lines * (tile + 3) - 3), _PAPER)
    for position, path in enumerate(paths):
        with Image.open(path) as image:
            small = image.convert("RGB").resize((tile, tile), Image.Resampling.LANCZOS)
        sheet.paste(small, (position % columns * (tile + 3), position // columns * (tile + 3)))
    return np.asarray(sheet)


def _predict(run: Path, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    bundle = load_bundle(run)
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255  # (N, 3, H, W)
    with torch.no_grad():
        classes = class_map(bundle.model, batch, bundle.protocol)
    return [mask.cpu().numpy().astype(np.uint8) for mask in classes]


def _paint(mask: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    return colorize(mask, PALETTE)


def _sheet(
    rows: Sequence[tuple[str, Sequence[np.ndarray]]], classes: Sequence[str], palette: Sequence[tuple[int, int, int]]
) -> Image.Image:
    columns = len(rows[0][1])
    width = _MARGIN + columns * (_TILE + _GAP)
    height = len(rows) * (_TILE + _GAP) + _LEGEND
    sheet = Image.new("RGBA", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(20)
    for line, (title, tiles) in enumerate(rows):
        top = line * (_TILE + _GAP)
        draw.text((_MARGIN - 14, top + _TILE // 2), title, fill=_INK, font=font, anchor="rm")
        for column, pixels in enumerate(tiles):
            # Masks keep hard edges; only photographs are smoothed.
            smooth = Image.Resampling.BICUBIC if line == 0 else Image.Resampling.NEAREST
            tile = Image.fromarray(pixels).resize((_TILE, _TILE), smooth)
            sheet.paste(tile, (_MARGIN + column * (_TILE + _GAP), top))
    step = (width - _MARGIN) // len(classes)
    small = ImageFont.load_default(16)
    for index, (name, color) in enumerate(zip(classes, palette, strict=True)):
        left, top = _MARGIN + index * step, height - _LEGEND + 10
        draw.rectangle((left, top, left + 16, top + 16), fill=color)
        draw.text((left + 23, top + 8), name, fill=_INK, font=small, anchor="lm")
    return sheet
