"""A local page to drop an image on and see its mask. The standard library's server; nothing is loaded from elsewhere.

    GET  /                   the page
    POST /look?name=a.jpg    body: the bytes of an image file; answer: JSON, see `answer`
                             or {"error": what, where, cure; "code": "H201"} with status 4xx or 5xx

The server listens on this machine only, unless told otherwise; then it also answers to no other name than its own, so
that a foreign web page cannot reach it by a name that leads here.
"""

import base64
import errno
import json
import socket
import webbrowser
from collections.abc import Callable, Sequence
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from halfmask.app.look import Look, Looker
from halfmask.errors import HalfmaskError, OutOfMemoryError, RecipeError
from halfmask.palette import hex_color, palette_of
from halfmask.task import Task

_LOCAL = frozenset({"127.0.0.1", "localhost", "::1", "[::1]"})
_CHUNK = 2**20
_SECONDS = 60  # that a browser may keep silent in the middle of a request
# Everything is inside the page; the browser is told to refuse anything else.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'"
)


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
        RecipeError: an override is wrong, the port or the address cannot be used, or the model compares two dates.
    """
    with Server((host, port), int(max_mb * 1e6)) as server:  # first: whether a port is free is known at once
        server.show(Looker(run, overrides, device), str(run))
        ready(server.url)
        if open:
            webbrowser.open(server.url)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            server.looker.wait()


class Server(ThreadingHTTPServer):
    """Serves the page of one model.

    Args:
        address: host and port; 0: any free one.
        limit: bytes of the largest upload.

    Raises:
        RecipeError: the port or the address cannot be used.
    """

    daemon_threads = True  # browsers hold connections open; they must not keep the program alive
    looker: Looker
    page: bytes

    def __init__(self, address: tuple[str, int], limit: int) -> None:
        self.limit, self._host = limit, address[0]
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        try:
            super().__init__(address, _Handler)
        except (OSError, OverflowError) as error:
            raise _unusable(address, error) from error

    def show(self, looker: Looker, name: str) -> None:
        """Choose the model; `name` is what the page calls it."""
        self.looker, self.page = looker, page(looker, name, self.limit).encode()

    @property
    def url(self) -> str:
        """Address of the page."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.server_address[1]}/"

    def knows(self, host: str) -> bool:
        """Whether a request's host is one that the page is served under."""
        return self._host not in _LOCAL or host.rpartition(":")[0] in _LOCAL or host in _LOCAL


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = _SECONDS

    def do_GET(self) -> None:
        place = urlsplit(self.path).path
        if not self.server.knows(self.headers.get("Host", "")):
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this page is served to this machine only")
        elif place == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, f"{place}: no such page. Open {self.server.url}")

    def do_POST(self) -> None:
        address = urlsplit(self.path)
        length = self.headers.get("Content-Length", "")
        if not self.server.knows(self.headers.get("Host", "")):
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, "this page is served to this machine only")
        elif address.path != "/look":
            self._refuse(HTTPStatus.NOT_FOUND, f"{address.path}: images go to /look")
        elif not length.isdecimal():
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "the request does not say how long the image is (Content-Length)")
        elif int(length) > self.server.limit:
            self._discard(int(length))  # a browser reads the answer only after it has sent all
            self._refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the file has {int(length) / 1e6:.1f} MB, the limit is {self.server.limit / 1e6:g}. Start the page "
                "with a larger --max-mb, or use halfmask predict.",
            )
        else:
            name = parse_qs(address.query).get("name", ["image"])[0]
            self._look(self.rfile.read(int(length)), Path(name).name or "image")

    def _look(self, data: bytes, name: str) -> None:
        try:
            look = self.server.looker.look(data, name)
        except OutOfMemoryError as error:
            self._refuse(HTTPStatus.INSUFFICIENT_STORAGE, str(error), error.code)
        except HalfmaskError as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error), error.code)
        except Exception as error:  # one image must not end the program
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"{name}: {type(error).__name__}: {error}. This is a bug.")
        else:
            self._json(HTTPStatus.OK, answer(look, name, self.server.looker.task))

    def _discard(self, length: int) -> None:
        while length > 0 and (chunk := self.rfile.read(min(length, _CHUNK))):
            length -= len(chunk)

    def _refuse(self, status: HTTPStatus, message: str, code: str = "") -> None:
        self._json(status, {"error": message, "code": code})

    def _json(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(content).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Security-Policy", _POLICY)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the page was closed meanwhile

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: the page shows what happened."""


def answer(look: Look, name: str, task: Task) -> dict[str, Any]:
    """Return what the page needs of a look, as plain data.

    Returns:
        `name`, `width`, `height`, `seconds`; `classes`: name, color and share, the largest first; `picture` and, of
        a mask, `colored` and `mask` as data addresses; `file`: what to call the mask.
    """
    rows = zip(task.classes, palette_of(task), look.shares, strict=True)
    classes = [{"name": one, "color": hex_color(color), "share": s} for one, color, s in rows]
    return {
        "name": name,
        "width": look.size[1],
        "height": look.size[0],
        "seconds": round(look.seconds, 3),
        "kind": task.kind,
        "classes": sorted(classes, key=lambda row: -float(str(row["share"]))),
        "picture": _address("jpeg", look.picture),
        "colored": None if look.colored is None else _address("png", look.colored),
        "mask": None if look.mask is None else _address("png", look.mask),
        "file": f"{Path(name).stem or 'image'}.png",
    }


def page(looker: Looker, name: str, limit: int) -> str:
    """Write the page of a model."""
    bands = "" if looker.bands == 3 else f", {looker.bands} bands"
    parts = {
        "run": name,
        "about": f"{looker.task.kind}, {looker.task.n_classes} classes{bands}",
        "limit": str(limit),
        "megabytes": f"{limit / 1e6:g}",
    }
    text = Path(__file__).with_name("app.html").read_text(encoding="utf-8")
    for key, value in parts.items():
        text = text.replace(f"{{{{{key}}}}}", escape(value))
    return text


def _address(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _unusable(address: tuple[str, int], error: Exception) -> RecipeError:
    host, port = address
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
