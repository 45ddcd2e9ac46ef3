"""Tables of what was measured: benchmarks/results as text for README.md and docs/*.md."""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from halfmask.compare.table import table_of

ROOT = Path(__file__).parents[1]


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def results() -> str:
    """One table per file of benchmarks/results that compares methods over seeds."""
    parts = []
    for path, content in contents(""):
        settings, machine = content["settings"], content["environment"]
        data = settings["data"]
        facts = [data if isinstance(data, str) else " and ".join(data), f"{settings['steps']} steps"]
        facts += [f"crop {settings['crop']}"] if "crop" in settings else []
        facts += [f"network `{settings['model']}`"] if settings.get("model") else []
        facts += [f"{len(settings['seeds'])} seeds", f"{machine['cpu_cores']} CPU cores"]
        facts.append(f"torch {machine['packages']['torch']}")
        link = f"[all numbers](../benchmarks/results/{path.name})"
        parts.append(f"## {path.stem}\n\n{', '.join(facts)}; {link}.\n\n{_scores(content['rows'])}")
    return "\n\n".join(parts)


def leaderboard() -> str:
    """One table and figure per file of `halfmask compare`."""
    parts = []
    for path, content in contents("leaderboard_"):
        settings, machine = content["settings"], content["environment"]
        model, batch = settings["model"], settings["batch"]
        facts = [f"{settings['labeled']} masks", f"{settings['steps']} steps", f"crop {settings['crop']}"]
        facts += [f"batch {batch['labeled']}+{batch['unlabeled']}", f"{settings['images']} {settings['part']} images"]
        facts += [f"`{model['encoder']['name']}` with `{model['decoder']['name']}`", f"{len(settings['seeds'])} seeds"]
        facts += [", ".join(machine["devices"]) or f"{machine['cpu_cores']} CPU cores"]
        facts.append(f"torch {machine['packages']['torch']}")
        link = f"[all numbers](../benchmarks/results/{path.name})"
        heads, rows = table_of(content)
        name = path.stem.removeprefix("leaderboard_")
        picture = ROOT / "docs" / "figures" / f"{path.stem}.svg"
        figure = f"\n\n![Differences to the controls on {name}](figures/{picture.name})" if picture.exists() else ""
        parts.append(f"### {name}\n\n{', '.join(facts)}; {link}.\n\n{table(heads, rows)}{figure}")
    return "\n\n".join(parts) or "Not measured yet: the commands below write it."


_OWN_TABLES = ("bench_", "leaderboard_", "whole_job_", "growth_", "recipes_")


def contents(start: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Files of benchmarks/results: by the first word of their names; "": all that are read as tables of scores."""
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        kind = next((one for one in _OWN_TABLES if path.name.startswith(one)), "")
        if kind == start:
            yield path, json.loads(path.read_text(encoding="utf-8"))


def _scores(rows: list[dict[str, Any]]) -> str:
    """A table of rows that hold one score (`mean`, `sd`, `values`), or several such by name."""
    first = rows[0]
    keys = [key for key, value in first.items() if isinstance(value, str | int)]
    scores = [key for key, value in first.items() if isinstance(value, dict)]
    heads = [_HEADS.get(key, key.replace("_", " ")) for key in [*keys, *scores]]
    if not scores:
        heads.append("test mIoU")
    controls = {_place(row, keys): row for row in rows if str(row.get("method", "")).endswith("-control")}
    if controls:
        heads.append("over its control")
    lines = []
    for row in rows:
        groups = [row[name] for name in scores] or [row]
        cells = [f"`{row[key]}`" if key in ("method", "form") else str(row[key]) for key in keys]
        for group in groups:
            cells.append(f"{group['mean']:.1%}" + ("" if group["sd"] is None else f" ± {100 * group['sd']:.1f}"))
        if controls:
            control = controls.get(_place({**row, "method": f"{row['method']}-control"}, keys))
            cells.append(_gain(groups[0], control[scores[0]] if control and scores else control))
        cells.append(", ".join(f"{100 * value:.1f}" for value in groups[0]["values"]))
        lines.append([*cells, f"{row['minutes']:.1f}"] if "minutes" in row else cells)
    return table([*heads, "seeds", *(["minutes"] if "minutes" in first else [])], lines)


def _place(row: dict[str, Any], keys: list[str]) -> tuple[Any, ...]:
    return tuple(row[key] for key in keys)


def _gain(own: dict[str, Any], control: dict[str, Any] | None) -> str:
    """Points over the control, seed by seed.

    >>> _gain({"values": [0.52, 0.5]}, {"values": [0.5, 0.5]})
    '+1.0 ± 1.4'
    """
    if control is None:
        return ""
    pairs = [100 * (a - b) for a, b in zip(own["values"], control["values"], strict=True)]
    return f"{statistics.mean(pairs):+.1f}" + (f" ± {statistics.stdev(pairs):.1f}" if len(pairs) > 1 else "")


def speed() -> str:
    """One table per file of results of `benchmarks/operations.py`; rows that lose are in it."""
    parts = []
    for path, content in contents("bench_"):
        rows = content["rows"]
        judged = [measure for row in rows for measure in row["measures"] if measure["target"]]
        facts = [content["device"], f"{content['threads']} thread(s)", f"{content['settings']['rounds']} rounds"]
        facts += [f"torch {content['environment']['packages']['torch']}"]
        facts += [f"{sum(measure['reached'] for measure in judged)} of {len(judged)} targets reached"]
        link = f"[all numbers](../benchmarks/results/{path.name})"
        parts.append(f"{', '.join(facts)}; {link}.\n\n{table(_SPEED_HEADS, [_speed(row) for row in rows])}")
    return "\n\n".join(parts)


def whole_jobs() -> str:
    """Write one table per file of results of `benchmarks/whole_job.py --jobs`."""
    parts = []
    for path, content in contents("whole_job_"):
        rows = []
        for row in content["jobs"]:
            own, theirs, ratio = row["halfmask"], row["published"], row["ratio"]
            low, high = ratio["range"]
            value = f"{ratio['median']:.2f} (>= {row['target']:g})" if row["reached"] else (
                f"**{ratio['median']:.2f} (>= {row['target']:g} missed)**"
            )  # fmt: skip
            peak = row.get("peak_bytes")
            rows.append(
                [
                    f"`{row['job']}`",
                    {"32-true": "float32", "bf16-mixed": "bfloat16"}[row["precision"]],
                    _amount(theirs["cpu_seconds"], "s"),
                    _amount(own["cpu_seconds"], "s"),
                    value,
                    f"{low:.2f}-{high:.2f}",
                    f"{peak['published'] / peak['halfmask']:.2f}" if peak else "",
                    f"{own['matmul_share']:.0%}, {theirs['matmul_share']:.0%}",
                ]
            )
        facts = [content["device"], f"{content['threads']} thread(s)"]
        facts += [f"torch {content['environment']['packages']['torch']}"]
        facts += [f"{sum(row['reached'] for row in content['jobs'])} of {len(content['jobs'])} targets reached"]
        link = f"[all numbers](../benchmarks/results/{path.name})"
        heads = ["job", "precision", "published", "halfmask", "ratio", "range", "peak ratio", "matmul, ours and theirs"]
        parts.append(f"{', '.join(facts)}; {link}.\n\n{table(heads, rows)}")
    return "\n\n".join(parts)


def recipes() -> str:
    """Write one table per file of results of `benchmarks/recipes.py`: images per second and memory of each recipe."""
    parts = []
    for path, content in contents("recipes_"):
        rows = [
            [
                f"`{row['recipe']}`",
                str(row["images"]),
                f"{row['images_per_second']['with_loading']:.1f}",
                f"{row['images_per_second']['without_loading']:.1f}",
                f"{row['memory'] / 2**30:.2f} GiB",
            ]
            for row in content["rows"]
            if "failed" not in row  # the others need tags or several data sets
        ]
        facts = [content["device"], f"{content['threads']} thread(s)", f"`{content['data']}`"]
        facts += [f"`{' '.join(content['keys'])}`", f"torch {content['environment']['packages']['torch']}"]
        link = f"[all numbers](../benchmarks/results/{path.name})"
        heads = ["recipe", "images per step", "images/s", "without loading", "peak"]
        parts.append(f"{', '.join(facts)}; {link}.\n\n{table(heads, rows)}")
    return "\n\n".join(parts) or "Not measured yet: `benchmarks/recipes.py` writes it."


def growth() -> str:
    """Write one table per file of results of `benchmarks/growth.py`: commands by numbers of images."""
    parts = []
    for path, content in contents("growth_"):
        found = {(row["command"], row["images"]): row for row in content["rows"]}
        counts = sorted({images for _, images in found})
        rows = []
        for command in dict.fromkeys(name for name, _ in found):
            cells = [found.get((command, images)) for images in counts]
            rows.append([f"`{command}`", *(_taken(row) for row in cells)])
        facts = [content["device"], f"{content['threads']} thread(s)"]
        facts += [f"torch {content['environment']['packages']['torch']}"]
        link = f"[all numbers](../benchmarks/results/{path.name})"
        heads = ["command", *(f"{images:,} images" for images in counts)]
        parts.append(f"{', '.join(facts)}; {link}.\n\n{table(heads, rows)}")
    return "\n\n".join(parts) or "Not measured yet: `benchmarks/growth.py` writes it."


def _taken(row: dict[str, Any] | None) -> str:
    return f"{row['cpu_seconds']:.1f} s, {row['peak_bytes'] / 2**20:.0f} MiB" if row else ""


def _speed(row: dict[str, Any]) -> list[str]:
    """Cells of one row: its first measure in full, of the others the value."""
    name = [f"`{row['id']}`", row["size"]]
    if row["problem"]:
        return [*name, row["problem"], *[""] * (len(_SPEED_HEADS) - 3)]
    first, *others = row["measures"]
    span = "" if first["low"] is None else f"{first['low']:.3g}-{first['high']:.3g}"
    amounts = [_amount(first[form], first["base_unit"]) for form in ("reference", "fast")]
    by_name = {measure["name"]: _value(measure) for measure in others}
    memory = [by_name.pop(key, "") for key in ("saved", "peak")]
    if first["name"] == "time":  # of the work itself; the clock on the wall has no column
        by_name.pop("wall", None)
    ratio = _value(first) if first["name"] == "time" else f"{first['name']} {_value(first)}"
    limit = next((f"{m['limit']['share']:.0%} {m['limit']['name']}" for m in row["measures"] if m["limit"]), "")
    return [*name, *amounts, ratio, span, *memory, ", ".join(f"{key} {text}" for key, text in by_name.items()), limit]


def _value(measure: dict[str, Any]) -> str:
    """A value and its target: `2.9 x (>= 2)`; in bold where the target is missed."""
    text = f"{measure['value']:.3g} {measure['unit']}".strip()
    if not measure["target"]:
        return text
    return f"{text} ({measure['target']})" if measure["reached"] else f"**{text} ({measure['target']} missed)**"


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    if unit == "B":
        return f"{value / 2**20:.0f} MiB"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


_SPEED_HEADS = ["row", "input", "plain", "fast", "ratio", "range", "saved", "peak", "also", "limit"]
_HEADS = {"labeled": "masks", "changed_iou": "changed IoU", "f1": "F1", "acc": "accuracy"}
