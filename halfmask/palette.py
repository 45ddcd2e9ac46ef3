"""Colors of classes: a default palette, colored masks, overlays and a legend."""

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw, ImageFont

from halfmask.task import Task

Color = tuple[int, int, int]


def default_palette(classes: int) -> tuple[Color, ...]:
    """Return distinct colors, class 0 black: the color map of the Pascal VOC development kit.

    Bit b of a color channel's eight bits, counted from the highest, is bit 3 b (red), 3 b + 1 (green) or
    3 b + 2 (blue) of the class id: neighboring ids get colors that are far apart.

    >>> default_palette(4)
    ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    """
    return tuple((_channel(index, 0), _channel(index, 1), _channel(index, 2)) for index in range(classes))


def palette_of(task: Task) -> tuple[Color, ...]:
    """Return the task's own colors, or the default ones."""
    return task.palette or default_palette(task.n_classes)


def hex_color(color: Color) -> str:
    """Write a color as in `halfmask.yaml` and HTML.

    >>> hex_color((255, 128, 0))
    '#ff8000'
    """
    return "#{:02x}{:02x}{:02x}".format(*color)


def colorize(mask: Integer[np.ndarray, "H W"], palette: tuple[Color, ...]) -> UInt8[np.ndarray, "H W 3"]:
    """Replace class ids by their colors; ids without a color (ignored pixels) become white.

    >>> colorize(np.array([[1, 255]]), ((0, 0, 0), (9, 8, 7))).tolist()
    [[[9, 8, 7], [255, 255, 255]]]
    """
    table = np.full((len(palette) + 1, 3), 255, dtype=np.uint8)
    table[:-1] = palette
    known = (mask >= 0) & (mask < len(palette))
    return np.asarray(table[np.where(known, mask, len(palette)).astype(np.intp)])


def overlay(
    image: UInt8[np.ndarray, "H W C"],
    mask: Integer[np.ndarray, "H W"],
    palette: tuple[Color, ...],
    opacity: float = 0.5,
) -> UInt8[np.ndarray, "H W 3"]:
    """Blend the colored mask over the image.

    Args:
        image: gray or RGB; of more bands the first three are shown.
        mask: class ids, of the image's size.
        palette: one color per class.
        opacity: 0 shows the image, 1 the mask.
    """
    shown = image[:, :, :3] if image.shape[2] >= 3 else np.repeat(image[:, :, :1], 3, axis=2)
    blended = (1 - opacity) * shown.astype(np.float32) + opacity * colorize(mask, palette)
    return np.asarray((blended + 0.5).astype(np.uint8))


def legend(classes: tuple[str, ...], palette: tuple[Color, ...]) -> UInt8[np.ndarray, "H W 3"]:
    """Draw one line per class: its color and its name."""
    line, box = 20, 14
    font = ImageFont.load_default(size=12)
    width = max(int(font.getlength(name)) for name in classes) + box + 3 * 6
    image = Image.new("RGB", (width, line * len(classes) + 6), "white")
    draw = ImageDraw.Draw(image)
    for row, (name, color) in enumerate(zip(classes, palette, strict=True)):
        top = row * line + 6
        draw.rectangle((6, top, 6 + box, top + box), fill=color, outline="black")
        draw.text((6 + box + 6, top), name, fill="black", font=font)
    return np.asarray(image)


def _channel(index: int, first_bit: int) -> int:
    return sum((index >> (3 * place + first_bit) & 1) << (7 - place) for place in range(8))
