# SPDX-License-Identifier: Apache-2.0
"""A hub on this machine: what huggingface_hub asks of one to download a repository, and nothing else."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"

Repositories = Mapping[str, Mapping[str, bytes]]
"""models/owner/name or datasets/owner/name -> path in the repository -> content."""


def digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def answer(repositories: Repositories, path: str) -> bytes | None:
    """What the hub has under a path; None: nothing."""
    for name, files in repositories.items():
        if path in (f"api/{name}", f"api/{name}/revision/main", f"api/{name}/revision/{COMMIT}"):
            about = {"id": name.partition("/")[2], "sha": COMMIT, "private": False, "tags": []}
            return json.dumps(about | {"siblings": [{"rfilename": file} for file in files]}).encode()
        if path == f"api/{name}/tree/{COMMIT}":
            entries = [(file, digest(content), len(content)) for file, content in files.items()]
            tree = [{"type": "file", "path": file, "oid": oid, "size": size} for file, oid, size in entries]
            return json.dumps(tree).encode()
        folder = f"{name.removeprefix('models/')}/resolve/{COMMIT}/"
        if path.startswith(folder) and path.removeprefix(folder) in files:
            return files[path.removeprefix(folder)]
    return None


@contextmanager
def hub(repositories: Repositories, asked: list[str]) -> Iterator[str]:
    """The address of a hub that has these repositories, each at COMMIT; `asked` takes the requested paths."""

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            content = answer(repositories, self.path.partition("?")[0].strip("/"))
            if content is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
            else:
                self.send_response(200)
                self.send_header("ETag", f'"{digest(content)}"')
                self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if content is not None and self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
