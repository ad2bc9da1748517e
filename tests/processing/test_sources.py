"""Where audio comes from: URLs, paths, base64, open files; what is lost, too large or no audio is one sentence."""

import base64
import http.server
import io
import os
import pathlib
import threading
import time
import urllib.parse

import numpy as np
import pytest
import soundfile

from soundwave_hf.processing.audio_soundwave import AudioOptions, load_clip
from soundwave_hf.processing.sources_soundwave import open_source, without_secrets
from tests.tiny import tiny_processor


def load(audio, **options) -> np.ndarray:
    return load_clip(audio, "audio[0]", None, 16000, 0.04, AudioOptions(**options))


def clip_bytes() -> bytes:
    """0.1 s of a ramp as 16-bit WAV: 3,244 bytes."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.linspace(-0.5, 0.5, 1600), 16000, format="WAV")
    return buffer.getvalue()


CLIP = clip_bytes()
EXPECTED = load(CLIP)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the path that it is asked for."""

    seen: list[tuple[str, str | None]] = []

    def do_GET(self):
        path = urllib.parse.unquote(self.path)
        self.seen.append((path, self.headers["Authorization"]))
        if path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/clip.wav")
            self.end_headers()
        elif path.startswith("/status/"):
            self.send_error(int(path.removeprefix("/status/")[:3]))
        elif path == "/slow":
            time.sleep(0.3)
        elif path == "/page":
            self.answer(b"<!doctype html><p>Log in</p>", "text/html; charset=utf-8")
        elif path == "/text":
            self.answer(CLIP, "text/plain")
        elif path == "/noise":
            self.answer(b"\0\1\2" * 999, "audio/wav")
        elif path == "/empty":
            self.answer(b"", "audio/wav")
        elif path == "/lost":
            self.answer(CLIP[:1000], "audio/wav", len(CLIP))
        elif path == "/lost-chunk":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n" + CLIP[:99])
        elif path == "/nothing":
            self.close_connection = True
        elif path == "/endless":
            self.answer(b"", "audio/wav", None)
            for _ in range(1000):
                self.wfile.write(bytes(2**20))
        else:
            self.answer(CLIP, "audio/wav")

    def answer(self, content: bytes, content_type: str, length: int | None = -1):
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        if length is not None:
            self.send_header("Content-Length", str(len(content) if length < 0 else length))
        self.end_headers()
        self.wfile.write(content)

    def handle(self):
        try:
            super().handle()
        except ConnectionError:  # the reader stopped
            self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://{}/a clip.wav", "/a clip.wav"),
        ("http://{}/a%20clip.wav", "/a clip.wav"),
        ("HTTP://{}/größe/音.wav?name=音 1&b=2", "/größe/音.wav?name=音 1&b=2"),
        ("http://{}/100%/x.wav#t=1", "/100%/x.wav"),
        (" http://{}/[1](2)'3.wav\n", "/[1](2)'3.wav"),
        ("http://{}", ""),
        ("http://{}/text", "/text"),
    ],
)
def test_a_url_of_any_characters_is_fetched(server, url, asked):
    np.testing.assert_array_equal(load(url.format(server)), EXPECTED)
    assert Handler.seen[-1][0] in (asked, asked or "/")


def test_a_password_in_a_url_is_sent_to_its_host_alone_and_never_shown(server):
    np.testing.assert_array_equal(load(f"http://user:p%40ss@{server}/clip.wav"), EXPECTED)
    assert Handler.seen[-1][1] == "Basic " + base64.b64encode(b"user:p@ss").decode()
    load(f"http://user:secret@{server}/moved")
    assert [login is None for _, login in Handler.seen[-2:]] == [False, True]
    with pytest.raises(OSError) as error:
        load(f"http://user:secret@{server}/status/403?token=hidden")
    assert f"(http://{server}/status/403?...) could not be fetched: HTTP Error 403" in str(error.value)


FAILED_DOWNLOADS = {
    "/status/404": "HTTP Error 404: Not Found",
    "/status/500": "HTTP Error 500: Internal Server Error",
    "/lost": f"the connection was lost after 1000 of {len(CLIP)} bytes",
    "/lost-chunk": "IncompleteRead",
    "/nothing": "Remote end closed connection without response",
}


@pytest.mark.parametrize(("path", "reason"), FAILED_DOWNLOADS.items())
def test_a_failed_download_is_one_sentence_that_names_the_url(server, path, reason):
    with pytest.raises(OSError) as error:
        load(f"http://{server}{path}")
    message = str(error.value)
    assert message.startswith(f"audio[0] (http://{server}{path}) could not be fetched: {reason}")
    assert message.endswith(". Check the URL, or download the file and pass its path.") and "\n" not in message


def test_a_refused_connection_a_slow_host_and_a_bad_url_are_one_sentence(server, monkeypatch):
    with pytest.raises(OSError, match="could not be fetched: .*[Rr]efused"):
        load("http://127.0.0.1:9/clip.wav")
    monkeypatch.setattr("soundwave_hf.processing.sources_soundwave.URL_TIMEOUT_SECONDS", 0.05)
    with pytest.raises(OSError, match="could not be fetched: timed out. Check"):
        load(f"http://{server}/slow")
    for url in ("http://", "http:///clip.wav", "http://host:port/clip.wav", "http://[::1/clip.wav"):
        with pytest.raises(ValueError, match="is not a valid URL: .* Expected `https://host/clip.wav`"):
            load(url)
    with pytest.raises(ValueError, match="unknown kind of URL: .* Pass http://"):
        load("gopher://host/clip.wav")


def test_what_is_no_audio_is_told_from_what_is(server):
    with pytest.raises(ValueError, match="answered with text/html, not with audio. Use the URL of the file"):
        load(f"http://{server}/page")
    with pytest.raises(ValueError, match=r"noise\) could not be decoded: "):
        load(f"http://{server}/noise")
    with pytest.raises(ValueError, match=r"empty\) holds 0 bytes; expected the bytes of an audio file"):
        load(f"http://{server}/empty")


def test_a_download_stops_at_its_limit(server):
    with pytest.raises(ValueError, match=rf"holds {len(CLIP)} bytes or more; at most 3000 are read. .*`max_bytes=`"):
        load(f"http://{server}/clip.wav", max_bytes=3000)
    with pytest.raises(ValueError, match=r"holds 3145728 bytes or more; at most 2097152 are read"):
        load(f"http://{server}/endless", max_bytes=2**21)


def test_the_same_limit_holds_for_bytes_base64_and_files(tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(CLIP)
    for clip in (CLIP, memoryview(CLIP), base64.b64encode(CLIP).decode(), io.BytesIO(CLIP), path, {"bytes": CLIP}):
        with pytest.raises(ValueError, match="bytes or more; at most 3000 are read"):
            load(clip, max_bytes=3000)
        np.testing.assert_array_equal(load(clip, max_bytes=len(CLIP)), EXPECTED)
    with pytest.raises(ValueError, match="`max_bytes` is 0; expected a number above 0"):
        tiny_processor().load_clips([CLIP], max_bytes=0)


def test_paths_are_taken_as_they_are_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "a 100%25 clip.wav"
    path.write_bytes(CLIP)
    for clip in (
        "~/a 100%25 clip.wav",
        pathlib.Path("~/a 100%25 clip.wav"),
        path.as_uri(),
        path.as_uri().replace("file:", "FILE:"),
        f"file://{path}",
        f"file:{path}",
        f"file://localhost{urllib.parse.quote(str(path))}",
        "file://~/a 100%25 clip.wav",
    ):
        np.testing.assert_array_equal(load(clip), EXPECTED)


def test_a_path_that_is_no_file_says_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"audio\[0\] \(gone.wav\) is not a file \(current folder: .* URL"):
        load("gone.wav")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        load("speech")  # its letters could be base64
    with pytest.raises(FileNotFoundError, match="is not a file"):
        load("/data/" + 20 * "speech/" + "clip")  # and here there are enough of them
    with pytest.raises(FileNotFoundError, match="is not a file"):
        load("file:///gone/clip.wav")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        load(tmp_path)
    with pytest.raises(ValueError, match="has the host 'server'; expected a file on this machine. Write `file:///"):
        load("file://server/clip.wav")


def test_a_pipe_is_read(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    threading.Thread(target=pipe.write_bytes, args=(CLIP,)).start()
    np.testing.assert_array_equal(load(pipe), EXPECTED)


def test_a_file_of_a_streamed_data_set_is_read(tmp_path):
    import fsspec

    with fsspec.open("memory://rows/clip.wav", "wb") as file:
        file.write(CLIP)
    np.testing.assert_array_equal(load({"path": "memory://rows/clip.wav", "bytes": None}), EXPECTED)
    with pytest.raises(OSError, match=r"memory://gone.wav\) could not be fetched"):
        load("memory://gone.wav")


TEXT = base64.b64encode(CLIP).decode()
BASE64 = {
    "plain": TEXT,
    "URL-safe": base64.urlsafe_b64encode(CLIP).decode(),
    "without padding": TEXT.rstrip("="),
    "in lines": "\n".join(TEXT[place : place + 76] for place in range(0, len(TEXT), 76)) + "\n",
    "data URI": f"data:audio/wav;base64,{TEXT}",
    "parameters": f"data:audio/webm;codecs=opus;name=a.wav;base64,{TEXT}",
    "upper case": f"DATA:audio/wav;BASE64,{TEXT}",
    "no type": f"data:;base64,{TEXT}",
    "no mark": f"data:audio/wav,{TEXT}",  # as `load_audio` takes it
    "percent in base64": f"data:audio/wav;base64,{urllib.parse.quote(TEXT, safe='')}",
    "percent-encoded": f"data:audio/wav,{urllib.parse.quote(CLIP)}",
    "blanks": f"data:audio/wav;base64, {TEXT[:99]} {TEXT[99:]}\r\n",
}


@pytest.mark.parametrize("text", BASE64.values(), ids=BASE64.keys())
def test_base64_is_read_however_it_is_written(text):
    np.testing.assert_array_equal(load(text), EXPECTED)
    if not text.lower().startswith("data:"):
        np.testing.assert_array_equal(load({"type": "audio", "base64": text}), EXPECTED)
        np.testing.assert_array_equal(load({"data": text.encode(), "format": "wav"}), EXPECTED)


@pytest.mark.parametrize("begin", [b"\xff\xfb\x90", b"\xff\xe3\x18", b"\xff\xf1\x50"], ids=["MP3", "MP3 8 kHz", "AAC"])
def test_base64_of_raw_frames_begins_with_a_slash_and_is_no_path(begin):
    content = begin + bytes(97)
    text = base64.b64encode(content).decode()
    assert text[0] == "/"
    assert open_source(text, "clip").getvalue() == content


def test_base64_that_is_none_is_refused():
    with pytest.raises(
        ValueError, match=r"audio\[0\]\['base64'\] is not valid base64: .* encode the bytes of an audio file"
    ):
        load({"type": "audio", "base64": "@@@"})
    with pytest.raises(ValueError, match="is a data URI without a comma"):
        load("data:audio/wav;base64")
    with pytest.raises(ValueError, match="could not be decoded"):
        load("QUJD" * 100)


def test_open_files_are_read_from_their_beginning_and_left_where_they_were(tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(CLIP)
    for file in (io.BytesIO(CLIP), path.open("rb"), path.open("rb", buffering=0)):
        with file:
            file.seek(77)
            np.testing.assert_array_equal(load(file), EXPECTED)
            assert file.tell() == 77
    reader, writer = os.pipe()
    with open(writer, "wb") as file:
        file.write(CLIP)
    with open(reader, "rb") as file:
        np.testing.assert_array_equal(load(file), EXPECTED)


def test_files_that_cannot_be_read_say_how_to_open_them(tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(CLIP)
    with path.open(errors="replace") as file, pytest.raises(TypeError, match=r"in text mode; expected binary. .*'rb'"):
        load(file)
    with pytest.raises(TypeError, match="in text mode"):
        load(io.StringIO("text"))
    with path.open("rb") as file:
        pass
    with pytest.raises(ValueError, match="arrived as a closed file"):
        load(file)
    with (tmp_path / "new.wav").open("wb") as file, pytest.raises(OSError, match="could not be read: .*'rb'"):
        load(file)
    with pytest.raises(ValueError, match="holds 0 bytes"):
        open_source(b"", "audio[0]")


@pytest.mark.parametrize(
    ("source", "plain"),
    [
        ("https://me:pw@h.org/a.wav?sig=abc#t", "https://h.org/a.wav"),
        (" https://h.org/a.wav?sig=abc", "https://h.org/a.wav"),
        ("zip://a.wav::https://me:pw@h.org/x.zip?sig=abc", "zip://a.wav::https://h.org/x.zip"),
        ("s3://key:secret@bucket/a.wav", "s3://bucket/a.wav"),
        ("https-corpus/odd?name#1.wav", "https-corpus/odd?name#1.wav"),
        ("/data/a#1.wav", "/data/a#1.wav"),
    ],
)
def test_a_url_is_named_without_its_secrets(source, plain):
    assert without_secrets(source) == plain
