"""A small HTTP server on 127.0.0.1 that takes commits as the Hugging Face Hub does; the real client talks to it.

It speaks the part that a commit of small files needs: whoami, create, validate-yaml, preupload (every file "regular",
so no large-file store is asked for) and commit.  What was committed can be listed and fetched, file by file.
"""

import base64
import dataclasses
import hashlib
import http.server
import json
import urllib.parse
from typing import Any

import loopback

COMMIT = "0" * 40


@dataclasses.dataclass
class Repository:
  """private: as it was made.  files: path -> bytes.  commits: their messages."""

  private: bool
  files: dict[str, bytes] = dataclasses.field(default_factory=dict)
  commits: list[str] = dataclasses.field(default_factory=list)


class LoopbackHub(loopback.Loopback):
  """`with LoopbackHub(token) as hub:`; `hub.url`, `hub.repositories`, `hub.asked`: paths in order of arrival."""

  def __init__(self, token: str):
    self.token = token
    self.asked: list[str] = []
    self.repositories: dict[str, Repository] = {}
    outer = self

    class Handler(loopback.Handler):
      def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.reply(*outer.post(self.path.partition("?")[0], body, self.headers))

      def do_GET(self):
        path = urllib.parse.unquote(self.path.partition("?")[0])
        if "/resolve/" in path:
          self.fetch(path)
        else:
          self.reply(*outer.get(path, self.headers))

      def do_HEAD(self):
        self.fetch(urllib.parse.unquote(self.path.partition("?")[0]))

      def fetch(self, path: str):
        outer.asked.append(path)
        name, _, rest = path.strip("/").partition("/resolve/")
        files = outer.repositories[name].files if outer.allows(self.headers) and name in outer.repositories else {}
        found = files.get(rest.partition("/")[2])
        if found is None:
          self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
          return
        etag = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(found).hexdigest()}"'}
        if self.command == "HEAD":
          self.send(200, b"", etag | {"Content-Length": str(len(found))})
        else:
          self.send(200, found, etag)

      def reply(self, status: int, value: Any):
        self.send(status, json.dumps(value).encode())

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    super().__init__(server)

  def allows(self, headers: Any) -> bool:
    return headers.get("authorization") == f"Bearer {self.token}"

  def get(self, path: str, headers: Any) -> tuple[int, Any]:
    self.asked.append(path)
    if not self.allows(headers):
      return 401, {"error": "Invalid username or password."}
    if path == "/api/whoami-v2":
      return 200, {"name": "owner", "type": "user", "orgs": []}
    name, tree, folder = path.removeprefix("/api/models/").partition("/tree/")
    if tree and name in self.repositories:
      inside = {file: content for file, content in self.repositories[name].files.items()
                if file.startswith(folder.partition("/")[2])}
      return 200, [{"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                   for file, content in inside.items()]
    name = path.removeprefix("/api/models/").partition("/revision")[0]
    if name in self.repositories:
      files = [{"rfilename": file} for file in self.repositories[name].files]
      return 200, {"id": name, "sha": COMMIT, "siblings": files, "tags": [], "downloads": 0, "likes": 0}
    return 404, {"error": f"{path} is not here"}

  def post(self, path: str, body: bytes, headers: Any) -> tuple[int, Any]:
    self.asked.append(path)
    if path == "/api/validate-yaml":
      content = json.loads(body)["content"]
      errors = [] if content.startswith("---\n") else [{"message": "no front matter"}]
      return (400 if errors else 200), {"errors": errors, "warnings": []}
    if not self.allows(headers):
      return 401, {"error": "Invalid username or password."}
    if path == "/api/repos/create":
      return self.create(json.loads(body))
    if "/preupload/" in path:
      files = json.loads(body)["files"]
      regular = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
      return 200, {"files": [{"path": file["path"]} | regular for file in files]}
    if "/commit/" in path:
      return self.commit(path.removeprefix("/api/models/").partition("/commit/")[0], body)
    return 404, {"error": f"{path} is not here"}

  def create(self, asked: dict[str, Any]) -> tuple[int, Any]:
    name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
    url = {"url": f"{self.url}/{name}", "name": name, "id": name}
    if name in self.repositories:
      return 409, {"error": "You already created this model repo"} | url
    private = asked.get("private") or asked.get("visibility") == "private"
    self.repositories[name] = Repository(private=bool(private))
    return 200, url

  def commit(self, name: str, body: bytes) -> tuple[int, Any]:
    repository = self.repositories[name]
    for line in body.splitlines():
      entry = json.loads(line)
      match entry["key"]:
        case "header":
          repository.commits.append(entry["value"]["summary"])
        case "file":
          repository.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        case other:
          return 400, {"error": f"{other} is not taken here"}
    oid = hashlib.sha1(body).hexdigest()
    return 200, {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{name}/commit/{oid}", "hookOutput": ""}
