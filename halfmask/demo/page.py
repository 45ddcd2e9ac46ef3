"""The demonstration's page: one HTML file with everything inside, readable without a script or a network."""

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from halfmask import __version__
from halfmask.demo.figure import contact_sheet
from halfmask.demo.scene import PALETTE

if TYPE_CHECKING:
    from halfmask.demo.run import DemoResult

_COLORS = ("#9aa0b4", "#2f7de1")  # supervised, with unlabeled images
_STYLE = """
:root { color-scheme: light; --ink: #23252f; --dim: #6b7080; --line: #e4e6ee; }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: #f5f6fa; margin: 0; }
main { max-width: 1060px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 32px; line-height: 1.2; margin: 0 0 8px; } h2 { font-size: 20px; margin: 0 0 12px; }
p { margin: 0 0 12px; } .dim { color: var(--dim); }
section { background: #fff; border: 1px solid var(--line); border-radius: 14px; padding: 24px; margin-top: 20px; }
.big { display: flex; gap: 48px; flex-wrap: wrap; } .big b { font-size: 44px; display: block; line-height: 1.1; }
.two { display: grid; grid-template-columns: 1fr 2fr; gap: 28px; } img { max-width: 100%; display: block; }
table { border-collapse: collapse; width: 100%; } td, th { padding: 5px 10px; text-align: right; }
td:first-child, th:first-child { text-align: left; } tr { border-top: 1px solid var(--line); }
thead tr, .mean { font-weight: 600; } .bar { height: 7px; border-radius: 4px; margin: 3px 0; }
.chip { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 8px; }
.wide { width: 40%; } code { background: #eef0f6; padding: 2px 6px; border-radius: 5px; }
svg text { font: 12px system-ui, sans-serif; fill: #6b7080; }
@media (max-width: 760px) { .two { grid-template-columns: 1fr; } }
"""


def write_page(result: "DemoResult", methods: Sequence[str]) -> None:
    """Write `report.html`; every figure on it comes from this run's files."""
    first, second = (result.scores[name] for name in methods)
    size, out = result.size, result.out
    train = sorted((out / "data" / "train" / "images").glob("*.png"))
    masks = sorted((out / "data" / "train" / "masks").glob("*.png"))
    unlabeled = sorted((out / "data" / "unlabeled").glob("*.png"))
    verdict = (
        f"{size.unlabeled} images without masks changed the mean IoU by {100 * result.gain:+.1f} points"
        if round(1000 * result.gain)
        else f"{size.unlabeled} images without masks changed nothing this time"
    )
    figure = _image(Image.open(out / "predictions.png"), "scene, truth, both predictions")
    labeled_sheet = _image(contact_sheet([*train, *masks], min(len(train), 4), 90), "labeled scenes and their masks")
    unlabeled_sheet = _image(contact_sheet(unlabeled[:36], 9, 64), "scenes without masks")
    body = f"""
<h1>{verdict}</h1>
<p class="dim">Same network, same {size.labeled} masks, same {result.steps} steps, same seed ({result.seed}). Only the
right run also saw the images without masks. Scores are from {size.test} scenes that neither run has seen; each run's
checkpoint was chosen on {size.val} others.</p>
<section class="big">
<div><span class="dim">supervised</span><b style="color:{_COLORS[0]}">{100 * first.miou:.1f} %</b></div>
<div><span class="dim">with unlabeled images (FixMatch)</span>
<b style="color:{_COLORS[1]}">{100 * second.miou:.1f} %</b></div>
<div><span class="dim">difference in mean IoU</span><b>{100 * result.gain:+.1f}</b></div>
</section>
<section><h2>The first test scenes</h2>{figure}</section>
<section class="two">
<div><h2>All the masks there are</h2>{labeled_sheet}</div>
<div><h2>Some of the {size.unlabeled} images without</h2>{unlabeled_sheet}</div>
</section>
<section><h2>Class by class</h2>{_class_table(result, methods)}</section>
<section class="two">
<div><h2>While training</h2><p class="dim">Mean IoU on the {size.val} validation scenes. A pseudo-label is used only
where the teacher is sure; the dashed line is the share of such pixels.</p></div>
<div>{_curves(out, methods, result.steps)}</div></section>
<section><h2>Where this comes from</h2>
<p>The scenes are rendered by this program (sphere tracing, {size.total} images in {result.seconds["render"]:.0f} s); no
mask was written for an unlabeled one. Training took {result.seconds[methods[0]]:.0f} s and
{result.seconds[methods[1]]:.0f} s: a step with unlabeled images costs more.</p>
<p>Again: <code>halfmask demo --out DIR --steps {result.steps} --seed {result.seed}</code> &nbsp; Next, your own images:
<code>halfmask train --data DIR --out RUN</code></p>
<p class="dim">halfmask {__version__}; the runs, their recipes and curves lie beside this page.</p></section>
"""
    title = "halfmask demo"
    result.page.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><main>{body}</main></body></html>\n",
        encoding="utf-8",
    )


def _class_table(result: "DemoResult", methods: Sequence[str]) -> str:
    first, second = (result.scores[name] for name in methods)
    rows = []
    for index, (name, a, b) in enumerate(zip(first.classes, first.iou, second.iou, strict=True)):
        chip = f'<span class="chip" style="background:rgb{PALETTE[index]}"></span>'
        rows.append(_row(chip + html.escape(name), a, b))
    rows.append(_row("mean", first.miou, second.miou, "mean"))
    return (
        "<table><thead><tr><th>IoU, %</th><th>supervised</th><th>+ unlabeled</th><th>difference</th>"
        f'<th class="wide"></th></tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _row(label: str, a: float, b: float, css: str = "") -> str:
    bars = "".join(
        f'<div class="bar" style="width:{100 * max(value, 0):.1f}%;background:{color}"></div>'
        for value, color in zip((a, b), _COLORS, strict=True)
        if value == value  # a class that occurs nowhere has no score
    )
    return (
        f'<tr class="{css}"><td>{label}</td><td>{100 * a:.1f}</td><td>{100 * b:.1f}</td>'
        f"<td>{100 * (b - a):+.1f}</td><td>{bars}</td></tr>"
    )


def _curves(out: Path, methods: Sequence[str], steps: int) -> str:
    """Draw validation mIoU of both runs, and the coverage of the pseudo-labels, as SVG."""
    width, height, left, bottom = 600, 260, 44, 28
    records = {name: _read_metrics(out / name / "metrics.jsonl") for name in methods}
    top = max((row["val/miou"] for rows in records.values() for row in rows if "val/miou" in row), default=1.0)
    coverage = [(row["step"], row["pseudo/coverage"]) for row in records[methods[1]] if "pseudo/coverage" in row]
    scale = max(0.1, -(-10 * max([top, *(value for _, value in coverage)]) // 1) / 10)

    def place(step: int, value: float) -> str:
        x = left + (width - left - 10) * step / max(steps, 1)
        return f"{x:.1f},{height - bottom - (height - bottom - 10) * value / scale:.1f}"

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="validation curves">']
    for tick in range(5):
        value = scale * tick / 4
        y = place(0, value).partition(",")[2]
        parts.append(f'<line x1="{left}" x2="{width - 10}" y1="{y}" y2="{y}" stroke="#e4e6ee"/>')
        parts.append(f'<text x="{left - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{100 * value:.0f} %</text>')
    for name, color in zip(methods, _COLORS, strict=True):
        points = " ".join(place(row["step"], row["val/miou"]) for row in records[name] if "val/miou" in row)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="3"/>')
    dashed = " ".join(place(step, value) for step, value in coverage)
    parts.append(
        f'<polyline points="{dashed}" fill="none" stroke="{_COLORS[1]}" stroke-width="1.5" stroke-dasharray="5 5"/>'
    )
    parts.append(f'<text x="{width - 10}" y="{height - 8}" text-anchor="end">{steps} steps</text></svg>')
    return "".join(parts)


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _image(image: Image.Image, alt: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
