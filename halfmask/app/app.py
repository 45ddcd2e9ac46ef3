"""Serve a local page that shows the masks of images. The page is made with gradio, the extra `app`.

The server listens on this machine only, unless told otherwise; then it also answers to no other name than its own, so
that a foreign web page cannot reach it by a name that leads here. The browser is told to load nothing from elsewhere,
and gradio to report nothing. Files that were dropped on the page are deleted when the program ends.
"""

import errno
import importlib.util
import os
import socket
import tempfile
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from halfmask.app.look import Looker
from halfmask.errors import MissingExtraError, RecipeError

_LOCAL = frozenset({"127.0.0.1", "localhost", "::1", "[::1]"})
_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; connect-src 'self'; worker-src 'self' blob:; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
_HEADERS = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


def app(
    run: str | Path,
    *,
    port: int = 8765,
    host: str = "127.0.0.1",
    open: bool = False,
    max_mb: float = 64.0,
    overrides: Sequence[str] = (),
    device: str = "auto",
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        run: run folder, bundle folder or model.json.
        port: to listen on; 0: any free one.
        host: address to listen on; `0.0.0.0` lets every machine of the network in.
        open: also open it in the browser.
        max_mb: largest file that is taken, in megabytes.
        overrides: dotted `eval.*` keys.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        ready: called with the address of the page once it can be opened.

    Raises:
        CheckpointError: no bundle, or a damaged one.
        MissingExtraError: gradio is not installed.
        RecipeError: an override is wrong, the port or the address cannot be used, or the model compares two dates.
    """
    if importlib.util.find_spec("gradio") is None:
        raise MissingExtraError("halfmask app", "app")
    # First the port: whether it is free is known at once, the model takes a while.
    with listening(host, port) as listener, _private_folder():
        looker = Looker(run, overrides, device)
        import uvicorn

        from halfmask.app.page import make_page, mounted

        site = Guard(mounted(make_page(looker, str(run), max_mb), max_mb), host)
        config = uvicorn.Config(site, log_level="critical", access_log=False, timeout_graceful_shutdown=1)
        url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/"
        try:
            ready(url)  # from here on a browser that connects is answered as soon as the server runs
            if open:
                webbrowser.open(url)
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            looker.wait()


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises RecipeError: the port or the address cannot be used."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        raise _unusable(host, port, error) from error
    return listener


class Guard:
    """Refuses requests under foreign names, and tells browsers to load nothing from elsewhere. An ASGI application.

    Args:
        app: application that answers.
        host: address that the server listens on.
    """

    def __init__(self, app: Any, host: str) -> None:
        self.app, self._host = app, host

    def knows(self, host: str) -> bool:
        """Return whether a request's host is one that the page is served under."""
        return self._host not in _LOCAL or host.rpartition(":")[0] in _LOCAL or host in _LOCAL

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        named = dict(scope.get("headers", ())).get(b"host", b"").decode("latin-1")
        if not self.knows(named):
            refusal = b"this page is served to this machine only"
            await send({"type": "http.response.start", "status": 421, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": refusal})
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        await self.app(scope, receive, with_headers)


@contextmanager
def _private_folder() -> Iterator[None]:
    """Keep what is dropped on the page in a folder that is deleted, and let gradio send no statistics."""
    with tempfile.TemporaryDirectory(prefix="halfmask-app-", ignore_cleanup_errors=True) as folder:
        wanted = {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _unusable(host: str, port: int, error: Exception) -> RecipeError:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return RecipeError(
            f"--port {port} is in use by another program. Choose another, or any free one: --port 0", "H303"
        )
    if number == errno.EACCES:
        return RecipeError(
            f"--port {port} may not be used here. Choose one above 1023, or any free one: --port 0", "H303"
        )
    if isinstance(error, OverflowError):
        return RecipeError(f"--port {port}: a port is a number from 0 (any free one) to 65535.", "H303")
    return RecipeError(
        f"--host {host}: not an address of this machine ({error}). Leave it out, or use 0.0.0.0.", "H303"
    )
