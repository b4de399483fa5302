"""A hub that speaks as much of Hugging Face's HTTP as a download needs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_COMMIT = "c0ffee" + "0" * 34


@contextmanager
def hub(files: Mapping[str, bytes], tells_sizes: bool = True) -> Iterator[str]:
    """Give the URL of a hub that has each model with these files; without `tells_sizes` nobody knows what will come."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/api/models/"):
                siblings = [
                    {"rfilename": name, **({"size": len(data)} if tells_sizes else {})} for name, data in files.items()
                ]
                self._answer(json.dumps({"id": "org/m", "sha": _COMMIT, "siblings": siblings}).encode(), {})
                return
            self.do_HEAD()

        def do_HEAD(self) -> None:
            data = files[self.path.partition("/resolve/")[2].partition("/")[2]]
            self._answer(data, {"X-Repo-Commit": _COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

        def _answer(self, data: bytes, headers: Mapping[str, str]) -> None:
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
