r"""Serve the page that `examples/mobilenet_web.py` made.

    python examples/web/serve.py runs/mobilenet_web

It takes LiteRT.js, which npm fetches once. The two headers that a page needs
for fast WebAssembly, and for more than one thread, are sent with every file.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CORE = Path("@litertjs/core/package.json")


def modules(given: str | None = None) -> Path:
    """A `node_modules` that holds LiteRT.js.

    Raises:
        RuntimeError: If there is none, and no npm to fetch it.
    """
    where = Path(given) if given else HERE / "node_modules"
    if not (where / CORE).exists():
        if given or shutil.which("npm") is None:
            raise RuntimeError(
                "The page takes LiteRT.js: install Node 20, whose npm fetches "
                f"it. Received: no {CORE} in {str(where)!r}"
            )
        subprocess.run(
            ["npm", "install", "--no-audit", "--no-fund", "--silent"],
            cwd=HERE,
            check=True,
        )
    return where.resolve()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of the site, the page, and LiteRT.js; takes one result."""

    extensions_map = {
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".wasm": "application/wasm",
        ".tflite": "application/octet-stream",
    }

    def __init__(
        self, *args: Any, site: Path, libraries: Path, **kwargs: Any
    ) -> None:
        self.site, self.libraries = site, libraries
        super().__init__(*args, **kwargs)

    def translate_path(self, path: str) -> str:
        parts = [
            part
            for part in path.partition("?")[0].split("/")
            if part not in ("", ".", "..")
        ]
        if parts[:1] == ["node_modules"]:
            return str(self.libraries.joinpath(*parts[1:]))
        if parts in ([], ["index.html"], ["page.js"]):
            return str(HERE / (parts or ["index.html"])[0])
        return str(self.site.joinpath(*parts))

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def do_POST(self) -> None:  # the name that http.server looks for
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.result = json.loads(body)  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Say nothing of each request."""


def server(
    site: str | Path, port: int = 0, libraries: str | None = None
) -> http.server.ThreadingHTTPServer:
    """A server of the page, not started; port 0 takes any that is free."""
    handler = functools.partial(
        Handler, site=Path(site).resolve(), libraries=modules(libraries)
    )
    return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("site", help="What mobilenet_web.py wrote.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--modules", help="A node_modules with LiteRT.js.")
    options = parser.parse_args()
    with server(options.site, options.port, options.modules) as running:
        print(f"http://localhost:{running.server_port}/  (Ctrl-C ends it)")
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
