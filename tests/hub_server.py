"""A hub on this machine: real requests over HTTP, for the tests that fetch models."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = {"main", "v1", COMMIT}


class Hub:
    """Repositories by name, each a dict of file names and bytes; and what was asked for."""

    def __init__(self):
        self.repositories, self.private, self.gated = {}, set(), set()
        self.fetched = []
        self.url = ""

    def answer(self, path):
        """Status, headers and body of a request."""
        parts = unquote(urlsplit(path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            name, rest = "/".join(parts[2:4]), parts[4:]
        else:
            name, rest = "/".join(parts[:2]), parts[2:]
        if name in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        if name not in self.repositories or name in self.private:
            return 401, {"X-Error-Code": "RepoNotFound"}, b"{}"
        files = self.repositories[name]
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in REVISIONS:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if rest[:1] == ["resolve"]:
            file = "/".join(rest[2:])
            if file not in files:
                return 404, {"X-Error-Code": "EntryNotFound"}, b""
            mark = hashlib.sha256(files[file]).hexdigest()
            return 200, {"ETag": f'"{mark}"', "X-Repo-Commit": COMMIT}, files[file]
        if rest[:1] == ["tree"]:
            rows = [
                {"type": "file", "path": file, "size": len(data), "oid": "0" * 40}
                for file, data in files.items()
            ]
            return 200, {}, json.dumps(rows).encode()
        listed = [{"rfilename": file} for file in files]
        body = {"id": name, "modelId": name, "sha": COMMIT, "siblings": listed, "private": False}
        return 200, {}, json.dumps(body).encode()


@contextmanager
def serving():
    """A hub that answers until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                if "/resolve/" in self.path and status == 200:
                    hub.fetched.append(self.path.rpartition("/")[2])
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_):
            """Nothing: the tests look at `fetched`."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
