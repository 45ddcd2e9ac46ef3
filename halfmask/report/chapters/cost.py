"""What the run cost, and what it ran on."""

from statistics import median

from halfmask.report.markup import chapter, duration, esc, note, table
from halfmask.report.material import Material
from halfmask.report.records import Run


def cost(found: Material) -> str:
    """Return the chapter `cost`."""
    run = found.run
    runs = [run, found.twin] if found.twin is not None else [run]
    names = ["this run", "twin"][: len(runs)]
    rows = [
        (name, *(_cell(one, name) for one in runs))
        for name in ("time", "steps", "images per second", "memory", "device")
    ]
    parts = [table(("", *names), rows, label="Cost", css="text narrow")]
    if found.parameters is not None:
        parts.append(f"<p>The shipped network has {found.parameters / 1e6:.2f} M parameters.</p>")
    versions = run.environment.get("packages", {})
    said = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    python = run.environment.get("python", "")
    if said:
        git = f"; checkout {run.environment['git']}" if run.environment.get("git") else ""
        parts.append(note(esc(f"Python {python}; {said}{git}.")))
    parts.append(
        note("Time is from the first to the last line of log.txt and includes validations; images per second do not.")
    )
    return chapter("cost", "Cost", *parts)


def device_hours(run: Run) -> float:
    """Return the hours of all devices together."""
    settings = run.recipe.get("run", {})
    return run.seconds / 3600 * int(settings.get("devices", 1)) * int(settings.get("nodes", 1))


def _cell(run: Run, name: str) -> str:
    if name == "time":
        return duration(run.seconds) if run.seconds else "not recorded"
    if name == "steps":
        return f"{run.steps:,}"
    if name == "images per second":
        values = [value for _, value in run.curve("train/img_per_s")]
        return f"{median(values):.1f} (median)" if values else "not recorded"
    if name == "memory":
        values = [value for _, value in run.curve("sys/mem_gb")]
        return f"{max(values):.2f} GB at the most" if values else "not recorded (on GPUs only)"
    devices = run.environment.get("devices") or []
    settings = run.recipe.get("run", {})
    count = int(settings.get("devices", 1)) * int(settings.get("nodes", 1))
    used = (
        devices[0]
        if devices and settings.get("accelerator") != "cpu"
        else f"CPU ({run.environment.get('cpu_cores', '?')} cores)"
    )
    return esc(f"{count} x {used}" if count > 1 else used)
