"""The fingerprint of a mask file: its type, bands, pages, palette, coding and coordinates; and whether masks agree.

One file alone tells what cannot be read rightly (lossy coding, several layers). Whether a palette or a type means what
it seems to mean only shows beside the other masks, so `check`, `train` and `convert` compare the fingerprints of all.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from halfmask.data.folder.images.ground import world_file
from halfmask.errors import DataError
from halfmask.palette import Color

# TIFF tags
_PAGE_KIND, _COMPRESSION, _PHOTOMETRIC, _STRIPS, _BANDS, _TILES, _EXTRA = 254, 259, 262, 273, 277, 324, 338
_REDUCED, _TRANSPARENCY = 1, 4  # kinds of pages that belong to the first one
_NODATA = 42113
_GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
_JPEG_TIFF, _WEBP_TIFF, _JXL_TIFF = frozenset({6, 7, 34892}), 50001, frozenset({50002, 52546})
_ALPHA = frozenset({1, 2})
_GRAY_OR_PALETTE = frozenset({0, 1, 3})
TOLD = "halfmask"  # text inside a PNG that halfmask wrote, see `halfmask.data.folder.masks.ids`
_SMALLEST_SEEN = 32  # a gray palette that stays below is no choice of colors to look at
_MODES = {"P": "palette", "PA": "palette", "1": "1-bit", "L": "8-bit gray", "LA": "8-bit gray", "F": "float"}


@dataclass(frozen=True, slots=True)
class MaskForm:
    """How a mask file holds its values."""

    kind: str  # "palette", "1-bit", "8-bit gray", "16-bit gray", "color", "array", ...
    colors: tuple[tuple[int, Color], ...] = ()  # index and color of the entries of its palette that occur
    hidden: bool = False  # alpha tells pixels of one color apart
    placed: bool = False  # it has coordinates
    nodata: int | None = None  # the value that it declares as no data

    @classmethod
    def from_plain(cls, said: Mapping[str, Any]) -> "MaskForm":
        """Make it from plain data, such as JSON of its fields."""
        colors = tuple((int(index), (int(r), int(g), int(b))) for index, (r, g, b) in said["colors"])
        return cls(str(said["kind"]), colors, bool(said["hidden"]), bool(said["placed"]), said.get("nodata"))


class Disagreement(NamedTuple):
    """What some masks do differently from the others."""

    level: Literal["error", "warning"]  # "error": their ids cannot be trusted; "warning": deserves a look
    code: str  # of the finding
    text: str  # what it is
    files: tuple[str, ...]  # the fewer ones that differ


_collected: ContextVar[list[MaskForm] | None] = ContextVar("collected", default=None)


@contextmanager
def collected_forms() -> Iterator[list[MaskForm]]:
    """Collect the fingerprints of the masks that this thread reads within the block."""
    found: list[MaskForm] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def record_form(form: MaskForm) -> None:
    """Add the fingerprint of a mask that was read to the list of `collected_forms`."""
    found = _collected.get()
    if found is not None:
        found.append(form)


def form_of_opened(image: Image.Image, data: bytes, path: Path) -> MaskForm:
    """Take the fingerprint of a file that Pillow has opened; `data` are its bytes.

    Raises:
        DataError: lossy coding, or several layers.
    """
    coding = _lossy_coding(image, data)
    if coding:
        raise lossy(path, coding)
    layers = _layers(image)
    if layers:
        raise several_layers(path, layers)
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    mode = image.mode
    kind = _MODES.get(mode) or ("16-bit gray" if "16" in mode else "32-bit gray" if mode == "I" else "color")
    # What halfmask wrote says itself what its ids mean: its palette is for the eye alone.
    colors = used_colors(image) if mode == "P" and TOLD not in image.info else ()
    placed = any(tag in tags for tag in _GEO_TAGS) or world_file(path) is not None
    return MaskForm(kind, colors, _is_hidden(image), placed, _whole(tags.get(_NODATA)))


def form_of_raster(source: Any, path: Path) -> MaskForm:
    """Take the fingerprint of a TIFF that only rasterio can open. Raises DataError: lossy coding, or several layers."""
    coding = str(source.profile.get("compress", "")).lower()
    if coding in {"jpeg", "webp", "jxl"}:
        raise lossy(path, f"{coding.upper()} in TIFF")
    if source.count > 1:
        raise several_layers(path, f"{source.count} bands of {source.dtypes[0]}")
    if len(source.subdatasets) > 1:
        raise several_layers(path, f"{len(source.subdatasets)} pages")
    placed = source.crs is not None or not source.transform.is_identity
    return MaskForm(f"{source.dtypes[0]}", placed=placed, nodata=_whole(source.nodata))


def has_palette(path: Path) -> bool:
    """Return whether a file holds indices of colors; what cannot be opened does not."""
    try:
        with Image.open(path) as image:
            return image.mode == "P"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def used_colors(image: Image.Image) -> tuple[tuple[int, Color], ...]:
    """Return index and color of the palette entries that occur in an image of mode P."""
    palette = image.getpalette("RGB") or []
    used = [index for index, count in enumerate(image.histogram()[:256]) if count]
    return tuple(
        (i, (palette[3 * i], palette[3 * i + 1], palette[3 * i + 2])) for i in used if 3 * i + 2 < len(palette)
    )


def gray_ids(form: MaskForm, container: str) -> dict[int, int] | None:
    """Return index -> gray value where a writer put gray ids into a palette; `None` where indices are the ids.

    GIF holds nothing but palettes, so its gray ids are the gray values. Elsewhere a palette of grays that are all
    nearly black is not made to be looked at: it holds ids.

    >>> gray_ids(MaskForm("palette", ((0, (0, 0, 0)), (1, (2, 2, 2)))), "PNG")
    {0: 0, 1: 2}
    >>> gray_ids(MaskForm("palette", ((0, (0, 0, 0)), (1, (255, 255, 255)))), "PNG") is None
    True
    """
    if not form.colors or any(len(set(color)) > 1 for _, color in form.colors):
        return None
    table = {index: color[0] for index, color in form.colors}
    equal = all(index == gray for index, gray in table.items())
    return table if equal or container == "GIF" or max(table.values()) < _SMALLEST_SEEN else None


def disagreements(
    forms: Mapping[str, MaskForm],
    table: Mapping[Color, int] | None = None,
    class_of: Callable[[int], str | None] = lambda value: None,
) -> Iterator[Disagreement]:
    """Compare the fingerprints of the masks of a dataset.

    Args:
        forms: by path.
        table: color -> id, as halfmask.yaml names them; palettes of these colors alone are read by it.
        class_of: name of the class of a stored value, `None` if it is ignored or unknown.
    """
    by_index: dict[int, Counter[Color]] = defaultdict(Counter)
    paletted = {
        path: form
        for path, form in forms.items()
        if form.colors and not (table and all(color in table for _, color in form.colors))
    }
    for form in paletted.values():
        for index, color in form.colors:
            by_index[index][color] += 1
    usual = {index: colors.most_common(1)[0][0] for index, colors in by_index.items()}
    odd = [path for path, form in paletted.items() if any(usual[index] != color for index, color in form.colors)]
    if odd:
        index, color = next((i, c) for i, c in paletted[odd[0]].colors if usual[i] != c)
        yield Disagreement(
            "error",
            "H214",
            f"the palettes of masks differ: index {index} is {_shown(color)} in {odd[0]} and {_shown(usual[index])} in "
            f"{by_index[index][usual[index]]} others, so an index does not mean the same class everywhere",
            tuple(odd),
        )
    kinds = Counter(form.kind for form in forms.values())
    if len(kinds) > 1:
        most = kinds.most_common(1)[0][0]
        listed = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common())
        files = tuple(path for path, form in forms.items() if form.kind != most)
        yield Disagreement("warning", "H124", f"masks of several types: {listed}", files)
    placed = [path for path, form in forms.items() if form.placed]
    if placed and len(placed) < len(forms):
        bare = tuple(path for path, form in forms.items() if not form.placed)
        files = bare if len(bare) <= len(placed) else tuple(placed)
        text = f"{len(placed)} masks with coordinates and {len(bare)} without, which lie on their images pixel by pixel"
        yield Disagreement("warning", "H125", text, files)
    declared = {path: form.nodata for path, form in forms.items() if form.nodata is not None}
    for value in sorted(set(declared.values())):
        if (name := class_of(value)) is not None:
            files = tuple(path for path, nodata in declared.items() if nodata == value)
            text = f"{len(files)} masks declare {value} as no data, and it is read as the class {name}"
            yield Disagreement("warning", "H127", text, files)


def several_layers(path: Path, what: str) -> DataError:
    """Make the error for a mask that is more than one layer."""
    return DataError(
        f"{path}: a mask of several layers ({what}); which class a pixel has is not said by one of them. Save one "
        "layer of class ids, for example layers.argmax(0) with numpy, as gray PNG or TIFF.",
        "H215",
    )


def palette_ids(form: MaskForm, colors: Mapping[Color, int], path: Path) -> dict[int, int] | None:
    """Return index -> id of a paletted mask whose colors are named; `None` where the indices are the ids.

    >>> form = MaskForm("palette", ((0, (9, 0, 0)), (1, (0, 0, 0))))
    >>> palette_ids(form, {(0, 0, 0): 0, (9, 0, 0): 1}, Path("a.png"))
    {0: 1, 1: 0}

    Raises:
        DataError: some colors are those of other classes than their indices say, and others are not named.
    """
    named = {index: colors[color] for index, color in form.colors if color in colors}
    moved = {index: id for index, id in named.items() if index != id}
    if not moved:
        return None
    if len(named) == len(form.colors):
        return named
    index, id = next(iter(moved.items()))
    rest = ", ".join(f"{index} ({_shown(color)})" for index, color in form.colors if color not in colors)
    raise DataError(
        f"{path}: in its palette, index {index} has the color of class {id}, and {rest} have no color of `palette` in "
        "halfmask.yaml. Name all of its colors there, or save the mask with class ids as gray values.",
        "H206",
    )


def hidden_layer(path: Path) -> DataError:
    """Make the error for a mask in which alpha says something that the colors do not."""
    return DataError(
        f"{path}: a mask whose transparency tells pixels of one color apart: is the class said by the color, or by "
        "alpha? Save it without alpha; or, if transparent pixels are unknown, set "
        "data.dataset.transparent_ignored=true.",
        "H215",
    )


def lossy(path: Path, coding: str) -> DataError:
    """Make the error for a mask whose coding invents values."""
    return DataError(
        f"{path}: a mask with lossy coding ({coding}) has blurred values at every edge. Save masks without loss (PNG), "
        "from the original.",
        "H208",
    )


def _whole(nodata: Any) -> int | None:
    """Return the value that a raster declares as no data, if a mask can hold it."""
    try:
        value = float(nodata)
    except (TypeError, ValueError):
        return None
    return int(value) if value.is_integer() else None


def _shown(color: Color) -> str:
    return ",".join(map(str, color))


def _lossy_coding(image: Image.Image, data: bytes) -> str:
    match image.format:
        case "JPEG" | "MPO":
            return "JPEG"
        case "AVIF" | "HEIF" | "JXL":
            return str(image.format)
        case "WEBP":
            return "lossy WebP" if b"VP8 " in _webp_chunks(data) else ""
        case "JPEG2000":
            return "JPEG 2000" if _is_irreversible(data) else ""
        case "TIFF":
            return _tiff_coding(image, data)
    return ""


def _tiff_coding(image: Any, data: bytes) -> str:
    coding = image.tag_v2.get(_COMPRESSION, 1)
    if coding in _JPEG_TIFF:
        return "JPEG in TIFF"
    if coding in _JXL_TIFF:
        return "JPEG XL in TIFF"
    if coding == _WEBP_TIFF:
        starts = image.tag_v2.get(_TILES) or image.tag_v2.get(_STRIPS) or (0,)
        return "lossy WebP in TIFF" if b"VP8 " in _webp_chunks(data[starts[0] :]) else ""
    return ""


def _webp_chunks(data: bytes) -> set[bytes]:
    """Return the kinds of chunks of a WebP file, also those inside of frames."""
    kinds, place = set(), 12
    while place + 8 <= len(data):
        kind, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        kinds.add(kind)
        if kind == b"ANMF":
            kinds.add(data[place + 24 : place + 28])
        if kind in {b"VP8 ", b"VP8L"}:
            break
        place += 8 + size + size % 2
    return kinds


def _is_irreversible(data: bytes) -> bool:
    """Return whether JPEG 2000 uses the wavelet that rounds: said in the 14th byte of its coding style."""
    place = data.find(b"\xff\x52")
    return place >= 0 and len(data) > place + 13 and data[place + 13] == 0


def _layers(image: Any) -> str:
    """Say what layers there are, or nothing."""
    if image.format == "TIFF":
        bands, extra = image.tag_v2.get(_BANDS, 1), image.tag_v2.get(_EXTRA, ())
        extra = extra if isinstance(extra, tuple) else (extra,)
        colors = 1 if image.tag_v2.get(_PHOTOMETRIC, 1) in _GRAY_OR_PALETTE else 3
        if bands > colors and not (bands == colors + 1 and extra and extra[0] in _ALPHA):
            return f"{bands} bands"
        pages = _pages(image)
        return f"{pages} pages" if pages > 1 else ""
    frames = int(getattr(image, "n_frames", 1))
    return f"{frames} frames" if frames > 1 else ""


def _pages(image: Any) -> int:
    """Count the pages of a TIFF file that are no smaller copy and no transparency of another one."""
    pages = getattr(image, "n_frames", 1)
    if pages == 1:
        return 1
    count = 0
    for page in range(pages):
        image.seek(page)
        count += not image.tag_v2.get(_PAGE_KIND, 0) & (_REDUCED | _TRANSPARENCY)
    image.seek(0)
    return count


def _is_hidden(image: Image.Image) -> bool:
    """Return whether alpha tells pixels of one color apart."""
    if image.mode not in {"LA", "RGBA"}:
        return False
    low, high = image.getchannel("A").getextrema()
    if low == high:
        return False
    listed: Any = image.convert("RGBA").getcolors(1 << 14)
    colors = [color[:3] for _, color in listed or ()]
    return len(colors) > len(set(colors))
