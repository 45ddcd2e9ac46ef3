"""AllSpark: channels before and after the bottleneck, channels chosen per class, the class memory."""

import numpy as np
from jaxtyping import Float, Int

from halfmask.report.channels import Channels, Grouping, Slots, is_allspark
from halfmask.report.charts import Series, line_chart, sparkline
from halfmask.report.markup import chapter, chip, esc, meter, note, percent, table
from halfmask.report.material import Material
from halfmask.report.pictures import heat, img, palette
from halfmask.report.records import Run
from halfmask.task import Task

_LINES = 4  # classes drawn as lines; more get a small curve each
_BARS = 12


def allspark(found: Material) -> str:
    """Return the chapter `allspark`, or nothing for other methods."""
    if not is_allspark(found.run):
        return ""
    title = "AllSpark: bottleneck and class memory"
    if found.figures is None or found.tally is None:
        why = found.missing.get("figures", "The images of the run are not there (see Result).")
        return chapter("allspark", title, note(esc(why)), _fill(found.run))
    figures = found.figures
    parts = [_channels(one) for one in figures.channels]
    used = (
        "Keys are the class memory, as in the last training step."
        if figures.uses_memory
        else "Keys are the image's own channels: the memory is not used yet, or the method has none."
    )
    before = note(
        "The same channels of a labeled image in the encoder's last map and after the bottleneck, yellow high, "
        f"those that vary most in both. {used}"
    )
    shown = [f"<h3>Channels before and after</h3>{before}{''.join(parts)}"]
    if figures.grouping is not None:
        shown.append(_grouping(figures.grouping, found.tally.task))
    shown.append(f"<h3>Fill of the memory</h3>{_fill(found.run)}")
    if figures.slots:
        shown.append(_memory(figures.slots))
    return chapter("allspark", title, *shown)


def _channels(one: Channels) -> str:
    tiles = [f"<figure>{img(one.image, f'Labeled image {one.id}')}<figcaption>image</figcaption></figure>"]
    for number, before, after in zip(one.numbers, one.before, one.after, strict=True):
        tiles.append(
            f"<figure class='pair'>{_map(before, f'channel {number} before')}{_map(after, f'channel {number} after')}"
            f"<figcaption>{number}: before, after</figcaption></figure>"
        )
    text = (
        f"Mean absolute correlation of two channels: {one.likeness[0]:.2f} before, {one.likeness[1]:.2f} after "
        "(lower = more diverse)."
    )
    shown = f'<div class="channels">{"".join(tiles)}</div>{note(text)}'
    return f'<article class="example"><h4>{esc(one.id)}</h4>{shown}</article>'


def _grouping(grouping: Grouping, task: Task) -> str:
    lead = note(
        f"Every channel of an unlabeled image goes to the class whose map it resembles most. Means over "
        f"{grouping.images} images of {grouping.channels} channels, beside the share of pixels predicted as the class."
    )
    examples = "".join(
        f'<article class="example"><h4>{esc(id)}</h4><div class="grouped">'
        f"<figure>{img(picture, f'Unlabeled image {id}')}</figure>"
        f"{_bars(chosen, share, task, grouping.channels)}</div></article>"
        for id, picture, chosen, share in grouping.examples
    )
    means = _bars(grouping.chosen, grouping.share, task, grouping.channels)
    return f"<h3>Channels chosen per class</h3>{lead}{means}{examples}"


def _bars(
    chosen: Int[np.ndarray, " K"] | Float[np.ndarray, " K"], share: Float[np.ndarray, " K"], task: Task, total: int
) -> str:
    colors = palette(task)
    order = [int(k) for k in np.argsort(-chosen, kind="stable")[:_BARS] if chosen[k] > 0 or share[k] > 0]
    rows = [
        (
            chip(colors[k]) + esc(task.classes[k]),
            f"{chosen[k]:.0f}",
            meter(chosen[k] / max(total, 1), f"{task.classes[k]}, channels"),
            f"{percent(share[k])} %",
            meter(float(share[k]), f"{task.classes[k]}, pixels", 2),
        )
        for k in order
    ]
    return table(("class", "channels", "", "pixels", ""), rows, label="Channels and pixels of each class", css="bars")


def _fill(run: Run) -> str:
    families = run.family("memory/filled")
    if not families:
        return note("The run recorded no fill of a memory: its labeled images attend to the batch.")
    if len(families) <= _LINES:
        lines = [Series(name, points, number, number) for number, (name, points) in enumerate(families.items())]
        return f'<div class="charts">{line_chart(lines, title="Slots that hold a channel")}</div>'
    rows = [
        (esc(name), sparkline(points, name), percent(points[0][1]), percent(points[-1][1]))
        for name, points in families.items()
    ]
    lead = note("Part of each class's slots that hold a channel; the others still hold their initial noise.")
    return lead + table(
        ("class", "over the run", "first, %", "last, %"), rows, label="Fill of the memory", css="pseudo"
    )


def _memory(slots: tuple[Slots, ...]) -> str:
    lead = note(
        "The newest slots of each class, one per image, beside the image that the channel came from. Training saw a "
        "random crop of that image, perhaps mirrored, so places correspond only roughly."
    )
    parts = []
    for one in slots:
        pairs = []
        for values, source in zip(one.maps, one.sources, strict=True):
            picture = (
                img(source[1], f"Source of the slot: {source[0]}", side=128)
                if source
                else "<span class='gone'>not in the list</span>"
            )
            pairs.append(
                f"<figure class='pair'>{_map(values, f'slot of {one.name}')}{picture}"
                f"<figcaption>{esc(source[0].rpartition('/')[2] if source else 'unknown')}</figcaption></figure>"
            )
        content = "".join(pairs) or note("empty: no channel was ever given to this class")
        parts.append(
            f'<article class="example"><h4>{esc(one.name)} <span>{percent(one.filled)} % filled</span></h4>'
            f'<div class="channels">{content}</div></article>'
        )
    return f"<h3>Slots beside their images</h3>{lead}{''.join(parts)}"


def _map(values: Float[np.ndarray, "h w"], name: str) -> str:
    return img(heat(values), name, side=10_000, smooth=False)
