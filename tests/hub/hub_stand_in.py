"""A Hugging Face hub on loopback: the listing, the files, and a second host behind redirects, with faults on request."""
import dataclasses
import functools
import hashlib
import http.server
import json
import re
import threading
import time
import urllib.parse

LARGE = (".safetensors", ".gguf", ".bin")


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclasses.dataclass
class File:
    data: bytes
    large: bool

    @functools.cached_property
    def etag(self):
        return hashlib.sha256(self.data).hexdigest() if self.large else self.git_id

    @functools.cached_property
    def git_id(self):
        return git_sha1(self.data)


@dataclasses.dataclass
class Seen:
    """A request as it came."""
    host: str  # "hub" or "store"
    method: str
    path: str
    headers: dict
    file: str = ""
    range: tuple = None  # first and last byte


@dataclasses.dataclass
class Fault:
    """What happens to a request instead of a right answer; several may be set."""
    status: int = 0
    headers: dict = dataclasses.field(default_factory=dict)
    cut_after: int = -1          # bytes of the body, then the connection ends
    ignore_range: bool = False
    bytes_per_second: int = 0
    stall: float = 0             # seconds before the body
    body: bytes = None           # instead of the file's
    location: str = ""           # of a redirect


class StandIn:
    """with StandIn() as hub: hub.add(...); HF_ENDPOINT is hub.url. `fault` is asked for each request for a file:
    fault(seen) -> Fault or None."""

    def __init__(self):
        self.repos = {}  # "org/name" -> {revision or commit: (commit, {file name: File})}
        self.seen = []
        self.fault = lambda seen: None
        self.token = None      # wanted, when set
        self.metadata = True   # the listing has sizes and hashes
        self._lock = threading.Lock()
        self._servers = {host: _server(self, host) for host in ("hub", "store")}

    def __enter__(self):
        for server in self._servers.values():
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        for server in self._servers.values():
            server.shutdown()
            server.server_close()

    def address(self, host):
        return "http://127.0.0.1:%d" % self._servers[host].server_address[1]

    @property
    def url(self):
        return self.address("hub")

    def add(self, repo, files, revision="main"):
        """Returns the commit."""
        made = {name: File(data, name.endswith(LARGE)) for name, data in files.items()}
        text = json.dumps([repo, sorted((n, f.etag) for n, f in made.items())])
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.repos.setdefault(repo, {})[revision] = self.repos[repo][commit] = (commit, made)
        return commit

    def see(self, seen):
        with self._lock:
            self.seen.append(seen)

    def requests(self, file=None, host=None, method="GET"):
        with self._lock:
            return [s for s in self.seen
                    if s.file and file in (None, s.file) and host in (None, s.host) and method in (None, s.method)]

    def forget(self):
        with self._lock:
            self.seen.clear()


def _server(hub, host):
    class Handler(_Handler):
        pass

    Handler.hub, Handler.host = hub, host
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    return server


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub = host = None

    def log_message(self, *_):
        pass

    def do_GET(self):
        try:
            self._answer()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_HEAD = do_GET

    def _answer(self):
        path = urllib.parse.urlsplit(self.path).path
        seen = Seen(self.host, self.command, self.path, dict(self.headers))
        if match := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            seen.range = int(match[1]), int(match[2])
        if self.host == "store":
            return self._store(seen, path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            return self._listing(seen, match[1], urllib.parse.unquote(match[2] or "main"))
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(seen, match[1], urllib.parse.unquote(match[2]), urllib.parse.unquote(match[3]))
        return self._status(404)

    def _status(self, status, headers=None, body=b""):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _revision(self, repo, revision):
        """(commit, files), or None after the answer says why not."""
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            code = {} if self.headers.get("Authorization") else {"X-Error-Code": "RepoNotFound"}
            return self._status(401, code | {"X-Error-Message": "Invalid username or password."})
        if repo not in self.hub.repos:
            return self._status(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        if revision not in self.hub.repos[repo]:
            return self._status(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        return self.hub.repos[repo][revision]

    def _listing(self, seen, repo, revision):
        seen.file = ""
        self.hub.see(seen)
        if fault := self.hub.fault(seen):
            if fault.status:
                return self._status(fault.status, fault.headers, fault.body or b"")
        if not (found := self._revision(repo, revision)):
            return
        commit, files = found
        siblings = []
        for name, file in files.items():
            entry = {"rfilename": name}
            if self.hub.metadata and "blobs=true" in self.path.lower():
                entry |= {"size": len(file.data), "blobId": file.git_id}
                if file.large:
                    entry["lfs"] = {"sha256": file.etag, "size": len(file.data), "pointerSize": 134}
            siblings.append(entry)
        body = json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode()
        self._status(200, {"Content-Type": "application/json"}, body)

    def _resolve(self, seen, repo, revision, name):
        seen.file = name
        self.hub.see(seen)
        fault = self.hub.fault(seen) or Fault()
        if fault.status or fault.location:
            return self._status(fault.status or 302,
                                fault.headers | ({"Location": fault.location} if fault.location else {}))
        if not (found := self._revision(repo, revision)):
            return
        commit, files = found
        headers = {"X-Repo-Commit": commit}
        if name not in files:
            return self._status(404, headers | {"X-Error-Code": "EntryNotFound"})
        file = files[name]
        if file.large:
            self.hub.repos.setdefault("", {})[file.etag] = file
            location = f"{self.hub.address('store')}/{file.etag}?sign=x"
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(len(file.data)), "Location": location}
            return self._status(302, headers)
        self._send(file, seen, fault, headers | {"ETag": f'"{file.etag}"'})

    def _store(self, seen, path):
        file = self.hub.repos.get("", {}).get(path[1:])
        if file is None:
            return self._status(404)
        seen.file = path[1:]
        self.hub.see(seen)
        fault = self.hub.fault(seen) or Fault()
        if fault.status:
            return self._status(fault.status, fault.headers)
        self._send(file, seen, fault, {"ETag": '"of-the-store"'})

    def _send(self, file, seen, fault, headers):
        data = file.data if fault.body is None else fault.body
        self.close_connection = fault.cut_after >= 0
        if seen.range and not fault.ignore_range:
            first, last = seen.range
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
            data = data[first:last + 1]
        else:
            self.send_response(200)
        for name, value in (headers | fault.headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault.cut_after >= 0:
            data = data[:fault.cut_after]
        if fault.stall:
            time.sleep(fault.stall)
        step = 1 << 16 if not fault.bytes_per_second else max(fault.bytes_per_second // 20, 1)
        for at in range(0, len(data), step):
            self.wfile.write(data[at:at + step])
            if fault.bytes_per_second:
                time.sleep(0.05)
        self.wfile.flush()
