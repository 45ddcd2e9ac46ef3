"""Write the files of a suggestion: lists, drafts of masks, and a page to look at."""

import base64
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from halfmask.data.convert.convert import OUTLINES, describe, mask_name, write_outlines
from halfmask.infer.predict.outputs import TABLE, Writing
from halfmask.palette import overlay, palette_of
from halfmask.task import Task
from halfmask.written import LIST, Written

FORMATS = ("png", *OUTLINES)
_THUMBNAIL = 320


class MaskDraft(NamedTuple):
    """A chosen image with the mask to begin with."""

    id: str  # of the image
    file: Path  # that it is read from; of a pair the later one
    image: UInt8[np.ndarray, "H W C"]  # its pixels
    mask: Integer[np.ndarray, "H W"]  # predicted class ids


class Chosen(NamedTuple):
    """What the page tells of a chosen image: its score, and its rank by each criterion."""

    score: float
    ranks: Mapping[str, float]


def earlier_files(out: Path) -> list[Path]:
    """Find the files that an earlier suggestion has written and that are still there, to be removed before the next.

    Raises:
        DataError: the folder holds files that halfmask did not write; or somebody has worked on its drafts since.
    """
    written = Written(out)
    written.require_alone()
    files: list[Path] = []
    for own in (written, *(Written(out / format) for format in OUTLINES)):
        there = [path for name in own.listed() if not name.startswith("../") and (path := own.folder / name).is_file()]
        own.require_unchanged(there)
        files += there
    return sorted({*files, *(path for path in out.rglob(LIST) if path.is_file())})


def write_lists(files: Written, chosen: Sequence[str], labeled: Sequence[str] | None) -> None:
    """Write the chosen images; and, with the labeled ones, a list to train with once the masks are there."""
    files.text(files.folder / "suggested.txt", "".join(f"{id}\n" for id in chosen))
    if labeled is not None:
        files.text(files.folder / "labeled.txt", "".join(f"{id}\n" for id in (*labeled, *chosen)))


def write_table(files: Written, path: Path, chosen: Sequence[str], scores: Sequence[float]) -> None:
    """Write the chosen images as a table: rank, image, score."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("rank", "image", "score"))
    table.writerows((rank, id, f"{score:.6f}") for rank, (id, score) in enumerate(zip(chosen, scores, strict=True), 1))
    files.text(path, text.getvalue())


def write_files(writing: Writing, drafts: Iterable[MaskDraft], rows: Sequence[Chosen], formats: Sequence[str]) -> None:
    """Write drafts, best first, in each format of `FORMATS`, and the page of rows; one draft at a time is kept."""
    files, task, out = writing.files, writing.task, writing.files.folder
    done: list[tuple[str, Path, Path]] = []
    figures: list[str] = []
    for draft, row in zip(drafts, rows, strict=True):
        # Outlines are made from the written masks.
        path = out / "png" / f"{mask_name(draft.id)}.png"
        writing.picture(path, draft.mask)
        done.append((draft.id, draft.file, path))
        figures.append(_figure(len(done), draft, row, task))
    for format in formats:
        if format != "png":
            write_outlines(done, out, format, task, writing.table)
    files.text(out / "png" / TABLE, describe(task, writing.table))
    files.text(out / "index.html", _page(figures, task))


def _figure(number: int, draft: MaskDraft, row: Chosen, task: Task) -> str:
    shown = overlay(draft.image, draft.mask, palette_of(task), opacity=0.0)
    blended = overlay(draft.image, draft.mask, palette_of(task))
    ranks = ", ".join(f"{escape(name)} {value:.2f}" for name, value in row.ranks.items())
    name = escape(draft.id)
    return (
        f'<figure><img src="{_thumbnail(shown)}" alt="{name}"><img src="{_thumbnail(blended)}" alt="draft of the mask '
        f'of {name}"><figcaption><b>{number}. {name}</b><br>score {row.score:.3f} ({ranks})</figcaption></figure>'
    )


def _thumbnail(pixels: UInt8[np.ndarray, "H W 3"]) -> str:
    picture = Image.fromarray(pixels)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def _page(figures: Sequence[str], task: Task) -> str:
    colors = palette_of(task)
    legend = " ".join(
        f'<span><i style="background:rgb{color}"></i>{escape(name)}</span>'
        for name, color in zip(task.classes, colors, strict=True)
    )
    style = (
        "body{font:15px/1.4 system-ui,sans-serif;margin:1.5rem;color:#1b1b1b;background:#fff}"
        "figure{display:inline-block;margin:0 1.2rem 1.4rem 0;max-width:100%;vertical-align:top}"
        "img{max-width:48vw;margin-right:4px}figcaption{font-size:.85rem;overflow-wrap:anywhere}"
        "i{display:inline-block;width:.9em;height:.9em;border:1px solid #555;margin:0 .3em -.1em .8em}"
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Label next</title><style>{style}</style><h1>Label next</h1>"
        f"<p>{len(figures)} images, the most to gain first; beside each the draft of its mask. Numbers in brackets are "
        f"ranks among all candidates: 1 is the highest.</p><p>{legend}</p>{''.join(figures)}</html>\n"
    )
