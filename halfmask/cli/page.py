"""`halfmask app`: a local page to drop images on and see their masks."""

import json
from typing import Annotated

import typer

from halfmask.cli import flags


def app(
    run: flags.Run,
    overrides: flags.Overrides = None,
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="Port to listen on; 0: any free one.")
    ] = 8765,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on; 0.0.0.0: for the whole network.")
    ] = "127.0.0.1",
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = False,
    max_mb: Annotated[float, typer.Option("--max-mb", metavar="N", min=0.001, help="Largest file, in MB.")] = 64.0,
    device: flags.Device = "auto",
    *,
    output: flags.Output,
) -> None:
    """Drop images on a local page and see their masks.

    The page shows the masks over the images and the share of each class; click a class to see it alone. It gives the
    masks as palette PNGs in a zip file. It loads nothing from elsewhere, and listens on this machine only. Ctrl-C stops
    it. Needs the extra app.
    """
    flags.check_overrides(overrides or (), folder="")
    from halfmask.app.app import app as serve

    def ready(url: str) -> None:
        print(json.dumps({"url": url}) if output.as_json else url, flush=True)
        flags.say("drop images on this page; Ctrl-C stops it", output.quiet)

    serve(
        run,
        port=port,
        host=host,
        open=open_,
        max_mb=max_mb,
        overrides=overrides or (),
        device=device,
        ready=ready,
    )
    flags.say("stopped", output.quiet)
