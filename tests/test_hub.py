"""hf:OWNER/NAME is fetched from a server that speaks the hub's protocol, kept, and found again without the server."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
COWS = {
    "config.json": b"{}",
    "model.safetensors": b"\x08\0\0\0\0\0\0\0{}      ",
    "pytorch_model.bin": b"the same weights as a pickle",
    "tokenizer.json": b'{"version": "1.0"}',
    "training/optimizer.bin": b"of no use here",
    "flax_model.msgpack": b"the same weights again",
}

SHEEP = {"config.json": b"{}", "sheep-b32.pt": b"one model", "sheep-l14.pt": b"another", "optimizer.npz": b"none"}
REPOSITORIES = {"farm/cows": COWS, "farm/sheep": SHEEP, "farm/fish": {"siglip.npz": b"big_vision's"}}
REVISION = "v1.2"


class Hub(BaseHTTPRequestHandler):
    """What `huggingface_hub` asks for: what a revision holds, and each file with its hash and commit."""

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path, _, _ = self.path.partition("?")
        name = next((name for name in REPOSITORIES if f"/{name}" in path), None)
        files = REPOSITORIES.get(name, {})
        rest = path.partition(f"/{name}")[2]
        if name and rest.startswith(("/tree/", "/revision/")) and rest.split("/")[2] not in ("main", REVISION, COMMIT):
            self.send({"error": "Revision not found"}, 404, "RevisionNotFound")
        elif name and rest.startswith("/tree/"):
            self.send([{"type": "file", "path": name, "size": len(c), "oid": "0"} for name, c in files.items()])
        elif name and path.startswith("/api/models/"):
            self.send({"id": name, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
        elif name and rest.startswith("/resolve/"):
            self.send(files[rest.removeprefix(f"/resolve/{COMMIT}/")])
        else:
            self.send({"error": "Repository not found"}, 404, "RepoNotFound")

    def send(self, content, status=200, code=""):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/octet-stream" if content is body else "application/json")
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def local(spec, home, port):
    """What `hub.local` finds or says, in a process of its own: the hub's library reads its settings once."""
    program = (
        "from agriclip_jax.errors import exit_on_user_error\nfrom agriclip_jax.weights import hub\n"
        f"exit_on_user_error(lambda: print(hub.local({spec!r})))"
    )
    settings = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return subprocess.run(
        [sys.executable, "-c", program], env=os.environ | settings, capture_output=True, text=True, timeout=120
    )


def test_a_repository_is_fetched_once_without_what_is_not_read_and_found_again_offline(hub, tmp_path):
    found = local("hf:farm/cows", tmp_path, hub.server_port)
    weights = Path(found.stdout.strip())
    assert weights.name == "model.safetensors", found.stderr
    assert sorted(os.listdir(weights.parent)) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert weights.read_bytes() == COWS["model.safetensors"]
    hub.shutdown()
    hub.server_close()
    again = local("hf:farm/cows", tmp_path, hub.server_port)
    assert again.stdout.strip() == str(weights), again.stderr


def test_of_several_models_one_is_to_be_named(hub, tmp_path):
    several = local("hf:farm/sheep", tmp_path, hub.server_port)
    assert several.returncode == 2 and several.stderr.count("\n") == 1
    assert (
        "hf:farm/sheep holds several models; name one as hf:OWNER/NAME/FILE: optimizer.npz, sheep-b32.pt"
        in several.stderr
    )
    one = local(f"hf:farm/sheep/sheep-l14.pt@{REVISION}", tmp_path, hub.server_port)
    assert Path(one.stdout.strip()).read_bytes() == SHEEP["sheep-l14.pt"], one.stderr


def test_the_only_weights_of_a_repository_are_taken_whatever_their_ending(hub, tmp_path):
    assert local("hf:farm/fish", tmp_path, hub.server_port).stdout.strip().endswith("/siglip.npz")


@pytest.mark.parametrize("spec", ["hf:farm/horses", "hf:farm/cows@v9"])
def test_what_can_neither_be_fetched_nor_found_says_what_to_do(hub, tmp_path, spec):
    missing = local(spec, tmp_path, hub.server_port)
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1
    assert f"{spec} cannot be fetched" in missing.stderr
    name = spec.removeprefix("hf:").partition("@")[0]
    assert f"download the files of https://huggingface.co/{name} elsewhere and give their folder" in missing.stderr
