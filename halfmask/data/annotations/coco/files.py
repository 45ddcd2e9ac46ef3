"""Tell the json files that COCO publishes and tools export apart, and choose those with instances."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from halfmask.data.annotations.drawing import Remark
from halfmask.data.annotations.exports import load_json
from halfmask.errors import DataError

_KINDS = {
    "captions": "captions, no outlines",
    "keypoints": "keypoints of persons",
    "panoptic": "segments of panoptic PNG",
    "list": "a list of images, without annotations",
    "other": "no images, annotations and categories",
}


class Read(NamedTuple):
    """A json file and what it holds."""

    path: Path
    content: dict[str, Any]


def load(path: Path) -> dict[str, Any]:
    """Read a json file of COCO instances. Raises DataError: broken json, or of another kind."""
    content = read_json(path)
    kind = _kind(content)
    if kind not in {"instances", "keypoints"}:
        raise _not_instances([(path, kind)])
    require_keys(path, content)
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Read a json file; of one that is no object, nothing. Raises DataError: broken json."""
    content = load_json(path)
    return content if isinstance(content, dict) else {}


def require_keys(path: Path, content: Mapping[str, Any]) -> None:
    """Check that the entries of a file of instances have what names and sizes them, and no id twice.

    Raises:
        DataError: entries that lack a key, by kind, or that share an id.
    """
    needed = {"images": ("id", "file_name", "height", "width"), "annotations": (), "categories": ("id", "name")}
    problems = []
    for kind, keys in needed.items():
        entries = content[kind]
        for key in keys:
            absent = sum(not isinstance(one, dict) or one.get(key) is None for one in entries)
            problems += [f"{absent} of {len(entries)} {kind} without `{key}`"] if absent else []
        if not all(isinstance(one, dict) for one in entries):
            problems.append(f"{kind} that are no objects")
        elif keys:
            twice = [id for id, count in Counter(str(one.get("id")) for one in entries).items() if count > 1]
            problems += [f"{len(twice)} ids of {kind} given twice, such as {twice[0]}"] if twice else []
    if problems:
        raise DataError(f"{path}: not COCO instances: {'; '.join(problems)}. Export it again.", "H208")


def _kind(content: Mapping[str, Any]) -> str:
    """Tell which of the files that COCO publishes one is."""
    if not isinstance(content.get("images"), list):
        return "other"
    if not isinstance(annotations := content.get("annotations"), list):
        return "list" if "categories" in content else "other"
    keys = {key for one in annotations[:100] if isinstance(one, dict) for key, value in one.items() if value}
    if "segments_info" in keys:
        return "panoptic"
    if "caption" in keys and "category_id" not in keys:
        return "captions"
    if not isinstance(categories := content.get("categories"), list):
        return "other"
    return "keypoints" if "keypoints" in keys or any(one.get("keypoints") for one in categories) else "instances"


def choose(read: Sequence[Read]) -> tuple[list[Read], list[tuple[Path, str]]]:
    """Choose the files to use; keypoints have outlines too, and serve for images that no other file lists."""
    kinds = [(one, _kind(one.content)) for one in read]
    for one, kind in kinds:
        if kind in {"instances", "keypoints"}:
            require_keys(one.path, one.content)
    chosen = [one for one, kind in kinds if kind == "instances"]
    listed = {image["file_name"] for one in chosen for image in one.content["images"]}
    for one, kind in kinds:
        if kind == "keypoints" and not listed >= {image["file_name"] for image in one.content["images"]}:
            chosen.append(one)
    if not chosen:
        raise _not_instances([(one.path, kind) for one, kind in kinds])
    return chosen, [(one.path, kind) for one, kind in kinds if one not in chosen]


def _not_instances(found: Sequence[tuple[Path, str]]) -> DataError:
    path = found[0][0]
    held = "; ".join(f"{path.name}: {_KINDS[kind]}" for path, kind in found[:5])
    return DataError(
        f"{path.parent if len(found) > 1 else path}: no COCO instances ({held}). Export it as COCO instances "
        "(COCO 1.0: `images`, `annotations` with `segmentation`, `categories`), or put that file there.",
        "H208",
    )


def remarks_on(aside: Sequence[tuple[Path, str]], root: Path) -> list[Remark]:
    """Say which files are not used, and what they hold."""
    if not aside:
        return []
    shown = ", ".join(f"{path.relative_to(root).as_posix()} ({_KINDS[kind]})" for path, kind in aside[:4])
    files = tuple(path.relative_to(root).as_posix() for path, _ in aside)
    text = f"json files beside the instances that are not used: {shown}"
    return [Remark("note", "H164", text, len(aside), "nothing; or move them out of the folder", files)]
