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
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"\x08\0\0\0\0\0\0\0{}      ",
    "pytorch_model.bin": b"the same weights as a pickle",
    "tokenizer.json": b'{"version": "1.0"}',
    "training/optimizer.bin": b"of no use here",
    "flax_model.msgpack": b"the same weights again",
}


class Hub(BaseHTTPRequestHandler):
    """What `huggingface_hub` asks for: what a revision holds, and each file with its hash and commit."""

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path, _, _ = self.path.partition("?")
        self.server.asked.append(f"{self.command} {path}")
        if path.startswith("/api/models/farm/cows/tree/"):
            self.send([{"type": "file", "path": name, "size": len(c), "oid": "0"} for name, c in FILES.items()])
        elif path.startswith("/api/models/farm/cows"):
            self.send({"id": "farm/cows", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES]})
        elif path.startswith("/farm/cows/resolve/"):
            self.send(FILES[path.removeprefix(f"/farm/cows/resolve/{COMMIT}/")])
        else:
            self.send({"error": "Repository not found"}, 404)

    def send(self, content, status=200):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/octet-stream" if content is body else "application/json")
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
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
    folder = found.stdout.strip()
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors", "tokenizer.json"], found.stderr
    assert Path(folder, "model.safetensors").read_bytes() == FILES["model.safetensors"]
    hub.shutdown()
    hub.server_close()
    again = local("hf:farm/cows", tmp_path, hub.server_port)
    assert again.stdout.strip() == folder, again.stderr


def test_what_can_neither_be_fetched_nor_found_says_what_to_do(hub, tmp_path):
    missing = local("hf:farm/sheep", tmp_path, hub.server_port)
    assert missing.returncode == 2 and missing.stderr.count("\n") == 1
    assert "hf:farm/sheep cannot be fetched" in missing.stderr
    assert "download the files of https://huggingface.co/farm/sheep elsewhere and give their folder" in missing.stderr
