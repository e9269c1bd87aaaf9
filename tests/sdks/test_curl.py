"""curl, as people paste it."""

import json
import shutil
import subprocess

import pytest

from .conftest import Site
from .vendors import PIECES, TEXT

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")


def curl(*arguments: str) -> list[str]:
    return ["curl", "-sS", "--noproxy", "*", "--max-time", "30", *arguments]


def chat(site: Site, token: str, **more: object) -> list[str]:
    body = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], **more})
    url = f"{site.base}/openai/v1/chat/completions"
    return curl("-N", url, "-H", f"Authorization: Bearer {token}", "-H", "Content-Type: application/json", "-d", body)


def test_chat(site: Site) -> None:
    run = subprocess.run(chat(site, site.token), capture_output=True, text=True, check=True, timeout=30)
    assert json.loads(run.stdout)["choices"][0]["message"]["content"] == TEXT
    site.vendors["openai"].check("POST /v1/chat/completions")


def test_chat_streamed(site: Site) -> None:
    vendor, pieces = site.vendors["openai"], []
    with subprocess.Popen(chat(site, site.token, stream=True), stdout=subprocess.PIPE, text=True, encoding="utf-8") as running:
        assert running.stdout is not None
        for line in running.stdout:
            vendor.release()
            if line.startswith("data: {"):
                pieces.append(json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content"))
    assert running.returncode == 0
    assert [piece for piece in pieces if piece] == PIECES
    vendor.check("POST /v1/chat/completions")


def test_an_error_ends_it_where_asked(site: Site) -> None:
    run = subprocess.run([*chat(site, "aisbreaker_x"), "--fail-with-body"], capture_output=True, text=True, timeout=30)
    assert run.returncode == 22
    assert json.loads(run.stdout)["error"]["code"] == "invalid_token"
    assert not site.vendors["openai"].requests


def test_a_file_is_uploaded_and_another_saved(site: Site, tmp_path: object) -> None:
    vendor = site.vendors["openai"]
    token = f"Authorization: Bearer {site.token}"
    base = f"{site.base}/openai/v1"
    upload = curl(f"{base}/files", "-H", token, "-F", "purpose=batch", "-F", "file=@-;filename=lines.jsonl")
    run = subprocess.run(upload, input=b"\x00\xff" * 100_000, capture_output=True, check=True, timeout=30)
    assert json.loads(run.stdout)["id"] == "file-abc123"
    assert b"\x00\xff" * 100_000 in vendor.last.body
    saved = f"{tmp_path}/speech.mp3"
    speech = curl(
        f"{base}/audio/speech", "-H", token, "-H", "Content-Type: application/json", "-d", '{"input":"hi"}', "-o", saved
    )
    subprocess.run(speech, check=True, timeout=30)
    with open(saved, "rb") as file:
        assert file.read(3) == b"ID3"
    vendor.check("POST /v1/files", "POST /v1/audio/speech")
