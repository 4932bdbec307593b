"""A hub on this machine with one repository, tiny/llama, whose files are those of a folder.

Usage: hub.py FOLDER. Prints its address, and ends with its standard input.
"""

import hashlib
import http.server
import json
import pathlib
import sys
import threading

REPO = "tiny/llama"
COMMIT = "0" * 40
FILES = {path.name: path.read_bytes() for path in pathlib.Path(sys.argv[1]).iterdir()}


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path.startswith(f"/api/models/{REPO}/revision/"):
            siblings = [{"rfilename": name} for name in FILES]
            self.respond(200, json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}).encode())
            return
        folder, _, name = self.path.rpartition("/")
        if not folder.startswith(f"/{REPO}/resolve/"):
            self.respond(404, b"", {"x-error-code": "RepoNotFound"})
        elif name not in FILES:
            self.respond(404, b"", {"x-error-code": "EntryNotFound", "x-repo-commit": COMMIT})
        else:
            data = FILES[name]
            etag = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            self.respond(200, data, {"etag": f'"{etag}"', "x-repo-commit": COMMIT})

    do_HEAD = do_GET

    def respond(self, status, body, headers={}):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(f"http://127.0.0.1:{server.server_port}", flush=True)
sys.stdin.read()
