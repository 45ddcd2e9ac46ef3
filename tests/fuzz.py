"""Damage files at random, in ways that disks, editors and export tools do."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

_VALUES: tuple[Any, ...] = (
    None, -1, 0, 255, 256, 10**30, float("inf"), float("nan"), True, "", "1e9", "../x", "a\0b", "ä" * 300, [], {},
    [[1]], {"a": 1},
)  # fmt: skip
_LINES = ("", "  ", "/etc/passwd", "..", ".", "images", "*", "a" * 5000, "\tx\t", "images/shape_0?.png")


class Damager:
    """Damages a file in a way that a seed decides.

    Args:
        seed: same seed, same damage.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def damage(self, path: Path) -> str:
        """Change the file in one way that fits its kind; return which."""
        ways: list[Callable[[Path, bytes], bytes | None]] = [
            self.emptied, self.cut, self.one_bit, self.many_bits, self.noise, self.inserted, self.zeros, self.doubled,
            self.another_file, self.removed, self.folder,
        ]  # fmt: skip
        ways += [self.entry] * 12 if path.suffix in {".json", ".yaml"} else []
        ways += [self.line] * 8 if path.suffix == ".txt" else []
        way = self.random.choice(ways)
        content = way(path, path.read_bytes())
        if content is not None:
            path.write_bytes(content)
        return way.__name__

    def emptied(self, path: Path, content: bytes) -> bytes:
        return b""

    def cut(self, path: Path, content: bytes) -> bytes:
        return content[: self.random.randrange(len(content))]

    def one_bit(self, path: Path, content: bytes, times: int = 1) -> bytes:
        changed = bytearray(content)
        for _ in range(times):
            changed[self.random.randrange(len(changed))] ^= 1 << self.random.randrange(8)
        return bytes(changed)

    def many_bits(self, path: Path, content: bytes) -> bytes:
        return self.one_bit(path, content, times=20)

    def noise(self, path: Path, content: bytes) -> bytes:
        return self.random.randbytes(self.random.randrange(1, 500))

    def inserted(self, path: Path, content: bytes) -> bytes:
        at = self.random.randrange(len(content))
        return content[:at] + self.random.randbytes(5) + content[at:]

    def zeros(self, path: Path, content: bytes) -> bytes:
        """What a file system that lost power leaves of the end."""
        at = self.random.randrange(len(content))
        return content[:at] + bytes(len(content) - at)

    def doubled(self, path: Path, content: bytes) -> bytes:
        return content + content

    def another_file(self, path: Path, content: bytes) -> bytes:
        return self.random.choice(sorted(other for other in path.parent.iterdir() if other.is_file())).read_bytes()

    def removed(self, path: Path, content: bytes) -> None:
        path.unlink()

    def folder(self, path: Path, content: bytes) -> None:
        path.unlink()
        path.mkdir()

    def entry(self, path: Path, content: bytes) -> bytes:
        """Remove, rename or replace one entry of a YAML or JSON file."""
        value = yaml.safe_load(content)
        places: list[tuple[Any, Any]] = []
        inside = [value]
        while inside:
            part = inside.pop()
            keys = list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()
            places += [(part, key) for key in keys]
            inside += [part[key] for key in keys]
        holder, key = self.random.choice(places)
        way = self.random.choice(("remove", "replace", "rename"))
        if way == "remove":
            del holder[key]
        elif way == "rename" and isinstance(holder, dict):
            holder[self.random.choice(("x", "7", "", "classes"))] = holder.pop(key)
        else:
            holder[key] = self.random.choice(_VALUES)
        text = json.dumps(value) if path.suffix == ".json" else yaml.safe_dump(value, allow_unicode=True)
        return text.encode()

    def line(self, path: Path, content: bytes) -> bytes:
        """Replace one line of a list."""
        lines = content.decode().splitlines()
        at = self.random.randrange(len(lines))
        other = self.random.choice(lines)
        lines[at] = self.random.choice((*_LINES, other, f"{other} {lines[at]}", f"\ufeff{lines[at]}", f"{lines[at]} x"))
        return "\n".join(lines).encode()
