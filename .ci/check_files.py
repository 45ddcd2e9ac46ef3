"""Look for what must not be in the repository: machine paths, package indexes, lock files, large files, outputs.

    python .ci/check_files.py              every file git knows
    python .ci/check_files.py FILE ...     these files (as pre-commit calls it)

Prints one line per finding and exits with 1 if there is any. Needs the standard library only.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

MAX_BYTES = 1_000_000
LOCK_FILES = frozenset({"uv.lock", "poetry.lock", "pylock.toml", "pdm.lock"})
# Lock files and install notes of one machine break everywhere else.
FORBIDDEN = {
    "a machine path": re.compile(r"(?:^|[^\w.~-])/(?:work|farm|root|home|Users)/"),
    "the host of a package index": re.compile(
        r"pypi\.(?:org|python\.org)|pythonhosted\.org|(?:npmjs|anaconda)\.(?:org|com)|https?://\S+/simple\b"
    ),
    "an index option": re.compile(r"-index-url[ =]+\S*://"),
}


def tracked_files() -> list[Path]:
    """List what git tracks, without files deleted in the work tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True, text=True).stdout
    return [Path(name) for name in listed.split("\0") if name and Path(name).is_file()]


def findings(path: Path) -> list[str]:
    """Say what is wrong with one file."""
    found = []
    if path.name in LOCK_FILES:
        found.append(f"{path}: a lock file names package indexes; pin in constraints.txt")
    content = path.read_bytes()
    if len(content) > MAX_BYTES:
        found.append(f"{path}: {len(content):,} bytes, more than {MAX_BYTES:,}")
    if b"\0" in content[:8192]:
        return found
    text = content.decode("utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        found += [f"{path}:{number}: {what}" for what, pattern in FORBIDDEN.items() if pattern.search(line)]
    if path.suffix == ".ipynb" and _has_outputs(text):
        found.append(f"{path}: a notebook with outputs; clear them before committing")
    return found


def _has_outputs(text: str) -> bool:
    cells = json.loads(text).get("cells", [])
    return any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def main(arguments: list[str]) -> int:
    """Check the named files, or all tracked ones."""
    paths = [Path(name) for name in arguments] or tracked_files()
    found = [finding for path in paths for finding in findings(path)]
    print("\n".join(found) or f"{len(paths)} files checked")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
