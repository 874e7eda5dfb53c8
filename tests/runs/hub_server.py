"""A Hugging Face Hub for tests, in this process: repositories in memory, and the endpoints of an upload.

Its answers follow what huggingface_hub sends to huggingface.co: files ending in .safetensors are uploaded as LFS
objects, the others inside the commit.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from dataclasses import dataclass, field

import huggingface_hub
import yaml

TOKEN = "hf_" + "t" * 24


@dataclass
class Repository:
    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


class Hub:
    """The state of the server. `fail`: the status of the next commits; `account`: the answer to whoami."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fail: int | None = None
        self.account = {
            "name": "me", "orgs": [{"name": "team"}], "auth": {"accessToken": {"role": "write"}},
        }  # fmt: skip
        self.address = ""


class Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args):
        pass

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def dispatch(self):
        path, content = self.path.partition("?")[0], self.body()
        self.hub.requests.append(f"{self.command} {path}")
        if not path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid credentials"}, 401)
        for method, pattern, action in ROUTES:
            if method == self.command and (found := re.fullmatch(pattern, path)):
                return action(self, content, *found.groups())
        return self.answer({"error": f"not found: {path}"}, 404)

    do_GET = do_POST = do_PUT = dispatch

    def whoami(self, content):
        self.answer(self.hub.account)

    def create(self, content):
        asked = json.loads(content)
        name = f"{asked['organization'] or 'me'}/{asked['name']}"
        url = {"url": f"{self.hub.address}/{name}"}
        if name.partition("/")[0] not in ("me", "team"):
            return self.answer({"error": "You don't have the rights to create a model under this namespace"}, 403)
        if name in self.hub.repositories:
            return self.answer(url | {"error": "You already created this model repo"}, 409)
        self.hub.repositories[name] = Repository(asked.get("visibility") == "private")
        return self.answer(url)

    def info(self, content, name):
        if name not in self.hub.repositories:
            return self.answer({"error": "Repository not found"}, 404)
        repository = self.hub.repositories[name]
        files = [{"rfilename": one} for one in repository.files]
        return self.answer({"id": name, "private": repository.private, "siblings": files, "sha": "0" * 40, "tags": []})

    def validate(self, content):
        text = json.loads(content)["content"]
        try:
            assert isinstance(yaml.safe_load(text.split("---\n")[1]), dict)
        except (yaml.YAMLError, AssertionError, IndexError) as error:
            return self.answer({"errors": [{"message": str(error)}], "warnings": []}, 400)
        return self.answer({"errors": [], "warnings": []})

    def preupload(self, content, name):
        files = json.loads(content)["files"]
        mode = lambda path: "lfs" if path.endswith(".safetensors") else "regular"  # noqa: E731
        answers = [{"path": f["path"], "uploadMode": mode(f["path"]), "shouldIgnore": False} for f in files]
        self.answer({"files": answers})

    def batch(self, content, name):
        objects = [
            one | {"actions": {"upload": {"href": f"{self.hub.address}/lfs/{one['oid']}"}}}
            for one in json.loads(content)["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects})

    def store(self, content, oid):
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.objects[oid] = content
        self.answer({})

    def commit(self, content, name):
        if self.hub.fail:
            return self.answer({"error": "the disk of the Hub is full"}, self.hub.fail)
        repository = self.hub.repositories[name]
        for line in content.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                repository.commits.append(value["summary"])
            elif item["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                del repository.files[value["path"]]
        oid = f"{len(repository.commits):040x}"
        return self.answer({"commitOid": oid, "commitUrl": f"{self.hub.address}/{name}/commit/{oid}"})


_NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("GET", f"/api/models/{_NAME}", Handler.info),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", f"/api/models/{_NAME}/preupload/main", Handler.preupload),
    ("POST", f"/{_NAME}.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/lfs/(\w+)", Handler.store),
    ("POST", f"/api/models/{_NAME}/commit/main", Handler.commit),
]


@contextlib.contextmanager
def serve(patch, folder):
    """Runs a Hub; huggingface_hub uses it, logged in, with its files in `folder`."""
    hub = Hub()
    handler = type("OwnHandler", (Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    use(patch, folder, hub.address)
    patch.setenv("HF_TOKEN", TOKEN)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def use(patch, folder, address):
    """Makes huggingface_hub use a Hub, without anybody's login."""
    from paw_fast.runs import hub

    constants = huggingface_hub.constants
    patch.setattr(constants, "ENDPOINT", address)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH", "HF_HUB_CACHE"):
        patch.setattr(constants, name, str(folder / name))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        patch.delenv(name, raising=False)
    hub._whoami.cache_clear()
