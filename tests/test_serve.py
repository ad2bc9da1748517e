"""`transformers serve` with the package imported, as docs/native.md starts it: a server of its own on this machine."""

import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.tiny_models import save_tiny_soundwave


pytestmark = pytest.mark.slow  # a server of its own

GUIDE = (Path(__file__).parents[1] / "docs" / "native.md").read_text(encoding="utf-8")
COMMAND = "import soundwave_hf; from transformers.cli.transformers import main; main()"
SECONDS_TO_START = 120


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a server, and the folder of the model that it can be asked for."""
    for name in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(name)
    folder = str(save_tiny_soundwave(tmp_path_factory.mktemp("served")))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = open(tmp_path_factory.mktemp("log") / "serve.log", "w+")  # noqa: SIM115 (closed below)
    words = ["serve", folder, "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words], stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, process, log)
        yield address, folder
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


def wait_for(address: str, process, log):
    for _ in range(SECONDS_TO_START):
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5)
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(1)
        if process.poll() is not None:
            break
    log.seek(0)
    pytest.fail(f"the server did not start: {log.read()[-2000:]}")


def second_of_noise() -> bytes:
    wav = io.BytesIO()
    soundfile.write(wav, 0.1 * np.random.default_rng(0).standard_normal(16_000), 16_000, format="WAV")
    return wav.getvalue()


def ask(server: tuple[str, str], **options) -> str:
    """One chat completion about one second of noise: the body of the answer."""
    address, folder = server
    audio = {"data": base64.b64encode(second_of_noise()).decode(), "format": "wav"}
    content = [{"type": "input_audio", "input_audio": audio}, {"type": "text", "text": "What is it?"}]
    body = {"model": folder, "messages": [{"role": "user", "content": content}], "max_tokens": 12, **options}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return response.read().decode()


def test_a_chat_completion_with_input_audio_is_answered_whole_and_streamed(server):
    answer = json.loads(ask(server, temperature=0.0))
    assert answer["object"] == "chat.completion"
    text = answer["choices"][0]["message"]["content"]
    assert text
    events = [line[len("data: ") :] for line in ask(server, temperature=0.0, stream=True).splitlines() if line]
    chunks = [json.loads(event) for event in events if event.startswith("{")]
    pieces = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]]
    assert len([piece for piece in pieces if piece]) >= 1
    # Random tokens are random bytes: a character that they leave unfinished is not streamed.
    assert "".join(pieces) == text.rstrip("\ufffd")


def test_the_python_of_the_guide_gets_an_answer(server, tmp_path, monkeypatch, capsys):
    address, folder = server
    monkeypatch.chdir(tmp_path)
    Path("speech.wav").write_bytes(second_of_noise())
    (block,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    for word, here in (("http://localhost:8000", address), ('"my-model"', repr(folder)), ("=100", "=12")):
        assert block.count(word) == 1
        block = block.replace(word, here)
    exec(block, {})
    assert capsys.readouterr().out.strip()
