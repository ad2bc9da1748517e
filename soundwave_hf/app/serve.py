"""Serve the page of a model: load it, start the server, clean up."""

import errno
import ipaddress
import math
import os
import signal
import socket
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from ..paths import SHIPPED_WEIGHTS, find_weights


LOOPBACK = "127.0.0.1"
PORTS = range(7860, 7960)
MAX_SECONDS = 300.0
SECONDS_TO_END = 3  # for requests that are not done when the server is told to end
BYTES_PER_SECOND = 400_000  # largest upload for each second of sound: stereo of 48 kHz in 32 bits, and its header


def run_app(
    folder: str | None = None,
    host: str = LOOPBACK,
    port: int | None = None,
    max_seconds: float = MAX_SECONDS,
    device: str | None = None,
    dtype: str | None = None,
):
    """Serve the page of a model until Ctrl-C.

    Args:
        folder: adapters or a whole checkpoint, by folder or hub name; by default the shipped weights.
        host: address to listen on. Others than this machine reach the page only if it is not a loopback address.
        port: by default the first free one from 7860.
        max_seconds: longest recording.
        device, dtype: of the model, as in `load_adapter`.

    Raises: `ImportError` without gradio; `ValueError` and `OSError` for bad values, before the model is loaded.
    """
    check_gradio()
    check_served(host, port, max_seconds)
    # So that the temporary folder is deleted too when a service is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="soundwave-app-") as temporary, listen(host, port) as listener:
        quiet_gradio(temporary)
        speech, name = load_speech(folder, max_seconds, device, dtype)
        server = make_server(speech, name, host, port_of(listener))
        announce(host, port_of(listener))
        server.run(sockets=[listener])


def check_gradio():
    """Raises: `ImportError` that says how to install what the page needs, if something is missing."""
    missing = [name for name in ("gradio", "matplotlib") if find_spec(name) is None]
    if missing:
        raise ImportError(f"The page needs {' and '.join(missing)}: `pip install 'soundwave-hf[app]'`.")


def check_served(host: str, port: int | None, max_seconds: float):
    if not host.strip():
        raise ValueError(f"`--host` is {host!r}; expected an address, such as {LOOPBACK}, or 0.0.0.0 for all.")
    if port is not None and not 1 <= port <= 65_535:
        raise ValueError(f"`--port` is {port}; expected 1 to 65535.")
    if not (math.isfinite(max_seconds) and max_seconds >= 1):
        raise ValueError(f"`--max-seconds` is {max_seconds:g}; expected 1 or more.")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def load_speech(folder: str | None, max_seconds: float, device: str | None, dtype: str | None) -> tuple:
    """The model of a folder or hub name as the page uses it, and its name."""
    from ..evaluation.shipped import load_weights
    from ..modeling.folders_soundwave import find_adapter
    from .speech import SpeechModel

    name = folder or SHIPPED_WEIGHTS
    found = find_weights(name)
    is_adapter = find_adapter(found) is not None
    print(f"Loading {name} ...", flush=True)
    model, processor = load_weights(found, is_adapter, device=device, dtype=dtype)
    return SpeechModel(model, processor, max_seconds), Path(name).name if os.path.isdir(name) else name


def quiet_gradio(temporary: str):
    """Keep temporary files in one folder, and send nothing to anyone. Gradio reads this when it is imported."""
    os.environ |= {"GRADIO_TEMP_DIR": temporary, "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_SHARE": "False"}


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that waits for browsers.

    Raises: `OSError` for a port that is taken, and an address that this machine does not have.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    tried = PORTS if port is None else [port]
    for number in tried:
        try:
            return socket.create_server((host, number), family=family)
        except OSError as error:
            if number == tried[-1] or error.errno != errno.EADDRINUSE:
                raise OSError(
                    f"The page cannot listen on {host}, port {number}: {error.strerror}. Give another `--port` or "
                    "`--host`."
                ) from error


def port_of(listener: socket.socket) -> int:
    return listener.getsockname()[1]


def announce(host: str, port: int):
    """Say where the page is, and who can use it."""
    if not is_loopback(host):
        print(
            f"Warning: the page listens on {host}, and it has no password. Whoever reaches this machine can use it.",
            file=sys.stderr,
        )
    name = f"[{host}]" if ":" in host else host
    print(f"The page is at http://{name}:{port} (Ctrl-C ends it).", flush=True)


def make_server(speech, name: str, host: str, port: int):
    """The server of the page, a `uvicorn.Server`. Gradio's own `launch` refuses to start where a page takes 3 s."""
    import gradio
    import uvicorn
    from fastapi import FastAPI

    from .html import CSS, SCRIPT
    from .page import build_page

    served = gradio.mount_gradio_app(
        FastAPI(openapi_url=None),
        build_page(speech, name, shipped_examples()),
        path="/",
        **{"server_name": host, "server_port": port, "css": CSS, "js": SCRIPT, "footer_links": []},
        **{"show_error": False, "ssr_mode": False, "pwa": False, "mcp_server": False, "run_history": False},
        **{"enable_monitoring": False, "max_file_size": math.ceil(speech.max_seconds * BYTES_PER_SECOND)},
    )
    config = uvicorn.Config(served, log_level="warning", timeout_graceful_shutdown=SECONDS_TO_END)
    return uvicorn.Server(config)


def shipped_examples() -> list[str]:
    """The clips of a checkout of this repository; none in an installed package, which has no clips."""
    from ..evaluation.shipped import EXAMPLES

    paths = [*sorted((EXAMPLES / "librivox").glob("*.flac")), EXAMPLES / "spoken_question.flac"]
    return [str(path) for path in paths if path.is_file()]


__all__ = ["run_app"]
