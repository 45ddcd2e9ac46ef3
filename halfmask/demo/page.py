"""Write the demonstration's page: one HTML file with everything inside, in the style of a report."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from halfmask.atomic import write_text
from halfmask.demo.figure import contact_sheet
from halfmask.demo.scene import PALETTE
from halfmask.errors import DataError
from halfmask.report.charts import Series, line_chart
from halfmask.report.draw import draw, signed
from halfmask.report.records import read_run

if TYPE_CHECKING:
    from halfmask.demo.run import DemoResult


class _Link(NamedTuple):
    """An entry of the navigation."""

    name: str
    link: str


_LINKS = (
    _Link("scenes", "Scenes"),
    _Link("data", "Data"),
    _Link("classes", "Classes"),
    _Link("training", "Training"),
    _Link("origin", "Origin"),
)


def write_page(result: "DemoResult", runs: Sequence[str]) -> None:
    """Write `report.html`; every figure on it comes from this run's files."""
    first, second = (result.scores[name] for name in runs)
    plain, semi = (read_run(result.out / name) for name in runs)
    lines = [
        Series("masks alone", plain.curve("val/miou"), 1),
        Series("with unlabeled images", semi.curve("val/miou"), 0),
        Series("pixels with a pseudo-label", semi.curve("pseudo/coverage"), 0, 1),
    ]
    train = result.out / "data" / "train"
    labeled = sorted((train / "images").glob("*.png")), sorted((train / "masks").glob("*.png"))
    without = sorted((result.out / "data" / "unlabeled").glob("*.png"))
    gain = f"the mean IoU by {signed(result.gain)} points" if round(1000 * result.gain) else "nothing this time"
    page = draw(
        "demo/page.html",
        title="halfmask demo",
        heading=f"{result.size.unlabeled} images without masks changed {gain}",
        chapters=_LINKS,
        result=result,
        size=result.size,
        runs=runs,
        first=first,
        second=second,
        palette=PALETTE,
        predictions=np.asarray(Image.open(result.out / "predictions.png")),
        labeled=contact_sheet([*labeled[0], *labeled[1]], min(len(labeled[0]), 8), 120),
        unlabeled=contact_sheet(without[:36], 12, 80),
        chart=line_chart(lines, "Mean IoU, and share of pixels with a pseudo-label"),
    )
    write_text(result.page, page, error=DataError)
