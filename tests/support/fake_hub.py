"""A Hugging Face hub of this machine: it lists the files of some folders and sends them."""

import contextlib
import hashlib
import http.server
import json
import re
import threading

COMMIT = "0123456789" * 4


@contextlib.contextmanager
def fake_hub(repos):
    """Serves `repos`, {"org/name": folder}; gives the address and the list of paths that were asked
    for. The revisions of each are main and v1."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self, with_body=True):
            path = self.path.partition("?")[0]
            asked.append(path)
            name = re.match(r"/(?:api/models/)?([\w.-]+/[\w.-]+)", path)
            folder = repos.get(name and name[1])
            if folder is None:
                return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
            rest = path.partition(name[1])[2].strip("/").split("/")
            if rest[0] in ("revision", "tree", "resolve") and rest[1] not in ("main", "v1", COMMIT):
                return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body)
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            names = [str(file.relative_to(folder)) for file in files]
            if rest[0] == "tree":
                listed = [{"type": "file", "path": path, "size": file.stat().st_size,
                           "oid": hashlib.sha1(file.read_bytes()).hexdigest()}
                          for path, file in zip(names, files, strict=True)]  # fmt: skip
                return self.answer(200, json.dumps(listed).encode(), {}, with_body)
            if rest[0] == "resolve":
                content = (folder / "/".join(rest[2:])).read_bytes()
                tag = hashlib.sha1(content).hexdigest()
                headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"'}
                return self.answer(200, content, headers, with_body)
            siblings = [{"rfilename": path} for path in names]
            found = {"id": name[1], "modelId": name[1], "sha": COMMIT, "siblings": siblings,
                     "private": False, "tags": [], "downloads": 0, "likes": 0}  # fmt: skip
            return self.answer(200, json.dumps(found).encode(), {}, with_body)

        def do_HEAD(self):
            self.do_GET(with_body=False)

        def answer(self, code, content, headers, with_body):
            self.send_response(code)
            self.send_header("Content-Length", str(len(content)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
