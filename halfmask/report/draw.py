"""Draw pages: jinja2 templates, the filters they use, and pictures: masks over images, errors, feature maps."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, UInt8
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from PIL import Image

from halfmask import __version__
from halfmask.infer.bootstrap import Interval
from halfmask.palette import Color, colorize, default_palette
from halfmask.progress import duration
from halfmask.task import Task

_HERE = Path(__file__).parent
_SIDE = 300
# Okabe and Ito, "Color Universal Design", 2008, and black: told apart with any color vision.
_SAFE: tuple[Color, ...] = (
    (86, 180, 233), (213, 94, 0), (0, 158, 115), (240, 228, 66), (204, 121, 167), (0, 114, 178), (230, 159, 0),
    (0, 0, 0),
)  # fmt: skip
_WRONG, _SKIPPED = (213, 40, 160), (120, 144, 190)
# Cividis (Nunez, Anderton, Renslow, PLoS ONE 2018), every 32nd color: even steps for color-blind readers too.
_CIVIDIS = (
    (0, 32, 76), (0, 49, 111), (52, 70, 107), (85, 91, 109), (112, 113, 115), (141, 137, 120), (173, 161, 112),
    (207, 188, 92), (255, 234, 70),
)  # fmt: skip


def percent(value: float, digits: int = 1) -> str:
    """Write a fraction in percent; "n/a" where there is no number.

    >>> percent(0.5), percent(float("nan"))
    ('50.0', 'n/a')
    """
    return "n/a" if math.isnan(value) else f"{100 * value:.{digits}f}"


def signed(value: float) -> str:
    """Write a difference of fractions in points, with sign.

    >>> signed(0.031), signed(-0.0001)
    ('+3.1', '±0.0')
    """
    if math.isnan(value):
        return "n/a"
    text = f"{100 * value:+.1f}"
    return "±0.0" if text in {"+0.0", "-0.0"} else text.replace("-", "\N{MINUS SIGN}")


def between(interval: Interval, sign: bool = False) -> str:
    """Write the interval of a score, or nothing where there is none."""
    if math.isnan(interval.low):
        return ""
    write = signed if sign else percent
    return f"{write(interval.low)} to {write(interval.high)}"


def count(number: int, unit: str = "") -> str:
    """Write a whole number, with its unit if one is given.

    >>> count(1200), count(1, "image"), count(2, "image")
    ('1,200', '1 image', '2 images')
    """
    return f"{number:,} {unit}{'s' if number != 1 else ''}" if unit else f"{number:,}"


def place(value: float) -> str:
    """Write a fraction as a place on a scale from 0 to 100 %."""
    return f"{100 * min(max(value, 0.0), 1.0):.2f}%"


def palette(task: Task) -> tuple[Color, ...]:
    """Return the task's own colors; for up to 8 classes without any, colors that color-blind readers tell apart."""
    if task.palette:
        return task.palette
    return _SAFE[: task.n_classes] if task.n_classes <= len(_SAFE) else default_palette(task.n_classes)


def encoded(picture: UInt8[np.ndarray, "H W C"], side: int = _SIDE, smooth: bool = True) -> tuple[str, tuple[int, int]]:
    """Return a picture as a `data:` address, and its width and height; without `smooth` edges stay hard."""
    image = Image.fromarray(picture)
    scale = side / max(image.size)
    if scale < 1:
        size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        image = image.resize(size, Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    kind = "jpeg" if smooth and image.mode == "RGB" else "png"
    image.save(buffer, kind, quality=84, optimize=True)  # PNG has no quality and ignores it
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", image.size


def three_bands(image: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "H W 3"]:
    """Return the first three bands of an image; a gray image three times."""
    return np.ascontiguousarray(image[:, :, :3] if image.shape[2] >= 3 else np.repeat(image[:, :, :1], 3, axis=2))


def over(
    image: UInt8[np.ndarray, "H W 3"], mask: Integer[np.ndarray, "H W"], colors: Sequence[Color]
) -> UInt8[np.ndarray, "H W 3"]:
    """Paint a mask over an image: 60 % color, dark lines where classes meet; ignored pixels stay as they are."""
    known = (mask >= 0) & (mask < len(colors))
    painted = 0.4 * image.astype(np.float32) + 0.6 * colorize(mask, tuple(colors))
    result = np.where(known[..., None], painted, image).astype(np.uint8)
    edge = np.zeros(mask.shape, dtype=bool)
    edge[1:] |= mask[1:] != mask[:-1]
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    result[edge] //= 3
    return result


def errors(
    image: UInt8[np.ndarray, "H W 3"],
    truth: Integer[np.ndarray, "H W"],
    found: Integer[np.ndarray, "H W"],
    classes: int,
) -> UInt8[np.ndarray, "H W 3"]:
    """Paint wrong pixels magenta and ignored ones in blue stripes over the gray image."""
    gray = image.astype(np.float32).mean(2, keepdims=True)
    result = np.repeat(0.65 * gray + 80, 3, axis=2)
    known = truth < classes
    result[known & (truth != found)] = _WRONG
    rows, columns = np.mgrid[: truth.shape[0], : truth.shape[1]]
    result[~known & ((rows + columns) // 4 % 2 == 0)] = _SKIPPED
    return result.astype(np.uint8)


def heat(values: Float[np.ndarray, "h w"], side: int = 128) -> UInt8[np.ndarray, "H W 3"]:
    """Paint a feature map in colors from its lowest to its highest value, each cell a square."""
    low, high = float(values.min()), float(values.max())
    level = (values - low) / ((high - low) or 1.0) * (len(_CIVIDIS) - 1)
    table = np.array(_CIVIDIS, dtype=np.float32)
    below = np.clip(level.astype(int), 0, len(_CIVIDIS) - 2)
    part = (level - below)[..., None]
    colored = (table[below] * (1 - part) + table[below + 1] * part).astype(np.uint8)
    times = max(side // max(values.shape), 1)
    return np.ascontiguousarray(colored.repeat(times, 0).repeat(times, 1))


def draw(template: str, **values: Any) -> str:
    """Fill a template: one of `templates/`, or a file of another package by its path in `halfmask/`."""
    return _ENVIRONMENT.get_template(template).render(values)


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader([_HERE / "templates", _HERE.parent]),
        autoescape=select_autoescape(["html"]),  # the other templates are no HTML: style sheet, Markdown, LaTeX
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (percent, signed, between, duration, count, place, encoded, heat)
    made.filters |= {filter.__name__: filter for filter in filters}
    made.tests["nan"] = math.isnan
    made.globals["version"] = __version__
    return made


_ENVIRONMENT = _environment()
PIECES: Any = _ENVIRONMENT.get_template("pieces.html").module
_ENVIRONMENT.globals["ui"] = PIECES
