"""Tell from its first and last bytes whether an image file is whole and plain, without decoding it.

Most images of a large unlabeled list are. Only files that this cannot vouch for need to be decoded.
"""

from pathlib import Path

from PIL import Image

from halfmask.data.folder.images import png_depth

_JPEG_END, _PNG_END = b"\xff\xd9", b"IEND\xaeB`\x82"
_TAIL = 64  # some cameras pad the end of a JPEG
# Modes of 8 bits that the readers turn into three bands.
_PLAIN_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"})


def is_plain(path: Path, channels: int = 3) -> bool:
    """Tell whether a file surely decodes to 8-bit pixels of three bands: known mode, and nothing cut off its end.

    `False` does not mean that anything is wrong: decode the file to find out.
    """
    if channels != 3:
        return False
    try:
        with path.open("rb") as file:
            head = file.read(64)
            file.seek(0, 2)
            size = file.tell()
            file.seek(max(0, size - _TAIL))
            tail = file.read(_TAIL)
            if not _is_whole(head, tail, size):
                return False
            file.seek(0)
            with Image.open(file) as image:
                return image.mode in _PLAIN_MODES and min(image.size) > 0
    except Exception:  # Pillow raises many kinds; whoever decodes the file gets the exact one
        return False


def _is_whole(head: bytes, tail: bytes, size: int) -> bool:
    if head.startswith(b"\xff\xd8"):
        return _JPEG_END in tail
    if head.startswith(b"\x89PNG"):
        return tail.endswith(_PNG_END) and png_depth(head)[0] <= 8
    if head.startswith(b"RIFF"):  # WebP: its length stands in the header
        return size >= int.from_bytes(head[4:8], "little") + 8
    return False
