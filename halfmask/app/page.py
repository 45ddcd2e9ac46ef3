"""Build the page: images go in, masks over the images and a zip of the masks come out."""

from html import escape
from typing import TYPE_CHECKING, Any

from halfmask.app.look import Look, Looker
from halfmask.app.results import about, layers, predict_files, ranked, write_zip
from halfmask.palette import hex_color, palette_of
from halfmask.task import Task

if TYPE_CHECKING:
    import gradio
    from fastapi import FastAPI

_FONT = ("system-ui", "sans-serif")  # the reader's own: gradio would load others
_STYLE = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
#name { overflow-wrap: anywhere; }
#seen .mask:not(.inactive) { opacity: var(--opacity, 0.55) !important; image-rendering: pixelated; }
#seen .mask.active { opacity: 1 !important; }
.shares h2 { font-size: 0 !important; height: 26px; margin: 0 !important; }
"""
_SET_OPACITY = "value => { document.documentElement.style.setProperty('--opacity', value / 100); return []; }"


def make_page(looker: Looker, name: str, max_mb: float) -> "gradio.Blocks":
    """Lay out the page of a model, and connect its parts."""
    import gradio as gr  # takes seconds, and is an extra

    task, masks = looker.task, looker.task.kind != "classification"
    colors = {one: hex_color(color) for one, color in zip(task.classes, palette_of(task), strict=True)}
    with gr.Blocks(title=f"halfmask: {name}", analytics_enabled=False, fill_width=True) as page:
        part: dict[str, Any] = {"looks": gr.State([]), "at": gr.State(0), "alone": gr.State("")}
        gr.HTML(f'<h2 id="name">{escape(name)}</h2><p>{escape(about(looker))} Images stay on this machine.</p>')
        files = gr.File(label=f"Drop images here (at most {max_mb:g} MB each)", file_count="multiple", height=140)
        with gr.Accordion("Or paste one", open=False):
            pasted = gr.Image(sources=["clipboard"], type="filepath", format="png", show_label=False, height=140)
        part["broken"] = gr.Textbox(label="Not shown", visible=False, interactive=False, max_lines=20)
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                part["seen"] = gr.AnnotatedImage(color_map=colors, elem_id="seen", visible=False)
                part["opacity"] = gr.Slider(0, 100, 55, step=1, label="Opacity of the mask", visible=False)
                part["thumbs"] = gr.Gallery(
                    label="Images", columns=6, height=170, object_fit="contain", allow_preview=False, visible=False
                )
            with gr.Column(scale=1, min_width=280):
                meaning = "Share of pixels" if masks else "Probability"
                part["shares"] = gr.Label(label=meaning, visible=False, elem_classes="shares" if masks else None)
                part["zip"] = gr.DownloadButton("Download masks" if masks else "Download labels", visible=False)
        _connect(looker, part, (files, pasted))
    return page


def _connect(looker: Looker, part: dict[str, Any], sources: tuple[Any, ...]) -> None:
    """Connect the parts of the page with the functions that they call."""
    import gradio as gr

    def take(paths: list[str] | str | None, progress: gr.Progress = gr.Progress()) -> dict[Any, Any]:  # noqa: B008
        """Predict the images that were dropped, or the one that was pasted."""
        given = [paths] if isinstance(paths, str) else paths or []
        looks, problems = predict_files(looker, progress.tqdm(given, desc="predicting"))
        messages = {"value": "\n".join(problems), "lines": max(len(problems), 1), "visible": bool(problems)}
        file = {"value": str(write_zip(looks, looker.task.classes)) if looks else None, "visible": bool(looks)}
        new = {"broken": gr.update(**messages), "zip": gr.update(**file), "looks": looks}
        return by_part(new | _shown(looks, 0, "", looker.task))

    def choose(looks: list[Look], event: gr.SelectData) -> dict[Any, Any]:
        """Show another image."""
        return by_part(_shown(looks, int(event.index), "", looker.task))

    def isolate(looks: list[Look], at: int, alone: str, event: gr.SelectData) -> dict[Any, Any]:
        """Show one class alone, or all again."""
        return by_part(_shown(looks, at, "" if event.value == alone else str(event.value), looker.task))

    def by_part(values: dict[str, Any]) -> dict[Any, Any]:
        return {part[name]: value for name, value in values.items()}

    options: dict[str, Any] = {"outputs": list(part.values()), "api_visibility": "private"}
    for source in sources:
        source.change(take, source, show_progress_on=[source], **options)
    part["thumbs"].select(choose, part["looks"], show_progress="hidden", **options)
    part["seen"].select(isolate, [part[name] for name in ("looks", "at", "alone")], show_progress="hidden", **options)
    part["opacity"].input(None, part["opacity"], None, js=_SET_OPACITY, api_visibility="private")


def _shown(looks: list[Look], at: int, alone: str, task: Task) -> dict[str, Any]:
    """Return the new value of each part that shows the image at a place of the list."""
    import gradio as gr

    if not looks:
        return {name: gr.update(visible=False) for name in ("seen", "opacity", "shares", "thumbs")}
    look, masks = looks[at], task.kind != "classification"
    hint = f": {alone} alone; click it again for all" if alone else ": click a class to see it alone"
    pictures = [(one.pixels(), one.name) for one in looks]
    return {
        "at": at,
        "alone": alone,
        "seen": gr.update(value=layers(look, task.classes, alone), label=look.name + hint * masks, visible=True),
        "opacity": gr.update(visible=masks),
        "shares": gr.update(value=ranked(look, task.classes), visible=True),
        "thumbs": gr.update(value=pictures, selected_index=at, visible=len(looks) > 1),
    }


def mounted(page: "gradio.Blocks", max_mb: float) -> "FastAPI":
    """Return the web application of a page."""
    import gradio as gr
    from fastapi import FastAPI

    theme = gr.themes.Base(font=_FONT, font_mono=("ui-monospace", "monospace"))
    site = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    options = {"max_file_size": int(max_mb * 1e6), "show_error": True, "ssr_mode": False, "footer_links": []}
    return gr.mount_gradio_app(site, page, "/", theme=theme, css=_STYLE, pwa=False, **options)
