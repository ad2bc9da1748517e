"""Open the source of a clip (path, URL, base64 text, bytes, open file): a path or the bytes of an audio file."""

import base64
import http.client
import inspect
import io
import os
import re
import urllib.error
import urllib.parse
import urllib.request


URL_TIMEOUT_SECONDS = 30
# 9 hours of 16 kHz WAV, or 1.7 hours in CD quality.
MAX_BYTES = 2**30
BLOCK_BYTES = 2**20
# A shorter string is a path: 40 ms of 8-bit WAV at 8 kHz, the shortest clip, are 484 characters of base64.
SHORTEST_BASE64 = 100
# A longer one may be either. Of audio files only raw MP3 and AAC frames begin with a slash: `//`, or `/+` (MPEG 2.5).
ABSOLUTE_PATH = re.compile(r"/[^/+]")
BASE64_TEXT = re.compile(r"[A-Za-z0-9+/_\-\s]+={0,2}\s*")
URL_SAFE = "/%:@!$&'()*+,;=~?[]"


def open_source(source, name: str, max_bytes: int | None = None) -> str | io.BytesIO:
    """Open a string, a path, bytes or an open file.

    Args:
        source: `str`, `os.PathLike`, `bytes`, `bytearray`, `memoryview` or a binary file.
        name: what error messages call the clip.
        max_bytes: largest source; by default 1 GiB, and no limit for a file on disk.
    Returns: the path of a file on disk, or a buffer of the bytes of an audio file.
    """
    limit = MAX_BYTES if max_bytes is None else max_bytes
    if isinstance(source, str):
        opened = open_string(source, name, limit)
    elif isinstance(source, os.PathLike):
        opened = open_path(os.fsdecode(source), name, limit)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        refuse_size(source.nbytes if isinstance(source, memoryview) else len(source), limit, name)
        opened = io.BytesIO(bytes(source))
    else:
        opened = read_file(source, name, limit)
    if isinstance(opened, str):
        if max_bytes is not None:
            refuse_size(os.path.getsize(opened), max_bytes, name)
    elif not opened.getbuffer().nbytes:
        raise ValueError(f"{name} holds 0 bytes; expected the bytes of an audio file. Check what wrote it.")
    return opened


def open_string(text: str, name: str, max_bytes: int) -> str | io.BytesIO:
    """A path, a URL of any kind, a `data:` URI or base64 text."""
    source = text.strip()
    scheme = source.partition(":")[0].lower() if ":" in source else ""
    if scheme in ("http", "https"):
        return io.BytesIO(fetch(source, name, max_bytes))
    if scheme == "data":
        return io.BytesIO(read_data_uri(source, name, max_bytes))
    if scheme == "file":
        return open_path(path_of_file_uri(source, name), name, max_bytes)
    if "://" in source:
        return io.BytesIO(read_remote(source, name, max_bytes))
    is_path = ABSOLUTE_PATH.match(source) or os.path.exists(os.path.expanduser(text))
    if not is_path and is_base64(source):
        return io.BytesIO(read_base64(source, name, max_bytes))
    return open_path(text, name, max_bytes)


def open_path(path: str, name: str, max_bytes: int) -> str | io.BytesIO:
    """The path of a file, `~` expanded; a pipe is read."""
    path = os.path.expanduser(path)
    if os.path.isdir(path) or not os.path.exists(path):
        found = "is a folder" if os.path.isdir(path) else "is not a file"
        error = IsADirectoryError if os.path.isdir(path) else FileNotFoundError
        raise error(
            f"{name} {found} (current folder: {os.getcwd()}). Check the path; a URL begins with http:// or https://."
        )
    try:
        with open(path, "rb") as file:
            return path if os.path.isfile(path) else io.BytesIO(read_up_to(file.read, max_bytes, name))
    except OSError as error:
        raise OSError(f"{name} could not be opened: {error.strerror}. Check its permissions.") from error


def path_of_file_uri(uri: str, name: str) -> str:
    """`file:///tmp/a%20clip.wav` -> `/tmp/a clip.wav`."""
    rest = uri[len("file:") :]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host.lower() not in ("", "localhost", "~"):
            raise ValueError(
                f"{name} has the host {host!r}; expected a file on this machine. "
                "Write `file:///folder/clip.wav`, with three slashes, or pass the path."
            )
        rest = (host if host == "~" else "") + slash + path
    decoded = urllib.parse.unquote(rest)
    # Often "file://" + path is not percent-encoded: then the text itself is the path.
    is_file = [os.path.isfile(os.path.expanduser(path)) for path in (decoded, rest)]
    return rest if is_file == [False, True] else decoded


def fetch(url: str, name: str, max_bytes: int) -> bytes:
    """Download a URL. Raises an error if it is larger than `max_bytes`, not audio, or incomplete."""
    request = request_for(url, name)
    try:
        with urllib.request.urlopen(request, timeout=URL_TIMEOUT_SECONDS) as response:
            length = int(response.headers.get("Content-Length") or 0)
            refuse_size(length, max_bytes, name)
            content = read_up_to(response.read, max_bytes, name)
            content_type = response.headers.get_content_type()
    except (OSError, http.client.HTTPException) as error:
        raise failed_download(name, error) from error
    if len(content) < length:
        raise failed_download(name, f"the connection was lost after {len(content)} of {length} bytes")
    refuse_web_page(content, content_type, name)
    return content


def failed_download(name: str, error) -> OSError:
    cause = error.reason if type(error) is urllib.error.URLError else error
    reason = " ".join(map(without_secrets, str(cause).split())) or type(cause).__name__
    return OSError(f"{name} could not be fetched: {reason}. Check the URL, or download the file and pass its path.")


def request_for(url: str, name: str) -> urllib.request.Request:
    """A request for a URL, which may contain spaces, letters of any alphabet and `user:password@`."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
        if not host:
            raise ValueError("it has no host")
        host = f"[{host}]" if ":" in host else host.encode("idna").decode()
    except ValueError as error:
        raise ValueError(f"{name} is not a valid URL: {error}. Expected `https://host/clip.wav`.") from error
    # A percent sign without two hex digits is a plain character.
    path, query = (
        urllib.parse.quote(re.sub("%(?![0-9A-Fa-f]{2})", "%25", part), safe=URL_SAFE)
        for part in (parts.path, parts.query)
    )
    address = urllib.parse.urlunsplit((parts.scheme, host + (f":{port}" if port else ""), path, query, ""))
    # Some hosts refuse Python's default user agent.
    request = urllib.request.Request(address, headers={"User-Agent": "soundwave-hf", "Accept-Encoding": "identity"})
    if parts.username is not None:
        login = urllib.parse.unquote(f"{parts.username}:{parts.password or ''}")
        # Not sent to another host after a redirect.
        request.add_unredirected_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    return request


def refuse_web_page(content: bytes, content_type: str, name: str):
    """Refuse text such as a login page or an error message. (Some hosts also declare audio as text.)"""
    is_text = content_type.startswith("text/") or content_type.endswith(("json", "xml"))
    if is_text and content and not re.search(rb"[\x00-\x08\x0e-\x1a]", content[:512]):
        raise ValueError(
            f"{name} answered with {content_type}, not with audio. Use the URL of the file itself; "
            "on the Hub it contains `/resolve/`, not `/blob/`."
        )


def read_remote(url: str, name: str, max_bytes: int) -> bytes:
    """A file of a streamed data set (`hf://`, `zip://...::https://...`) or of another store that fsspec supports."""
    try:
        import fsspec

        with fsspec.open(url, "rb") as file:
            return read_up_to(file.read, max_bytes, name)
    except ImportError as error:
        raise ImportError(f"{name} needs a package that is not installed: {error}.") from error
    except (OSError, KeyError) as error:
        raise failed_download(name, error) from error
    except ValueError as error:
        if "Protocol not known" not in str(error):
            raise
        reason = without_secrets(str(error))
        raise ValueError(f"{name} is an unknown kind of URL: {reason}. Pass http://, https:// or a path.") from error


def read_data_uri(uri: str, name: str, max_bytes: int) -> bytes:
    """Read `data:audio/wav;base64,...`, with any parameters. Without `;base64` the bytes are percent-encoded."""
    header, comma, payload = uri.partition(",")
    if not comma:
        raise ValueError(f"{name} is a data URI without a comma; expected `data:audio/wav;base64,...`.")
    if header.lower().rstrip().endswith(";base64") or is_base64(payload):
        return read_base64(payload, name, max_bytes)
    refuse_size(len(payload) // 3, max_bytes, name)
    return urllib.parse.unquote_to_bytes(payload)


def is_base64(text: str) -> bool:
    return len(text) >= SHORTEST_BASE64 and BASE64_TEXT.fullmatch(text) is not None


def read_base64(text: str | bytes, name: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Bytes of base64 text. Accepts the URL-safe alphabet, line breaks, percent-encoding and missing padding."""
    try:
        text = text.decode("ascii") if isinstance(text, (bytes, bytearray)) else text
        text = "".join((urllib.parse.unquote(text) if "%" in text else text).split())
        text = text.translate({ord("-"): "+", ord("_"): "/"}).rstrip("=")
        refuse_size(3 * len(text) // 4, max_bytes, name)
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (UnicodeError, base64.binascii.Error) as error:
        hint = "Expected `data:audio/wav;base64,...`: encode the bytes of an audio file with `base64.b64encode`."
        raise ValueError(f"{name} is not valid base64: {error}. {hint}") from error


def read_file(file, name: str, max_bytes: int) -> io.BytesIO:
    """All bytes of an open binary file, from its beginning if it can seek. Its position is restored."""
    if inspect.iscoroutinefunction(file.read) and hasattr(file, "file"):  # an upload of FastAPI
        file = file.file
    if isinstance(file, io.TextIOBase):
        raise TypeError(f"{name} arrived as a file in text mode; expected binary. Open it with `open(path, 'rb')`.")
    if getattr(file, "closed", False):
        raise ValueError(f"{name} arrived as a closed file; expected an open one. Open it with `open(path, 'rb')`.")
    try:
        place = file.tell() if hasattr(file, "seekable") and file.seekable() else None
        if place is not None:
            file.seek(0)
        content = read_up_to(file.read, max_bytes, name)
        if place is not None:
            file.seek(place)
    except OSError as error:
        raise OSError(f"{name} could not be read: {error}. Open it with `open(path, 'rb')`.") from error
    return io.BytesIO(content)


def read_up_to(read, max_bytes: int, name: str) -> bytes:
    """Read in blocks to the end. Raises an error as soon as more than `max_bytes` were read."""
    blocks, size = [], 0
    while block := read(BLOCK_BYTES):
        if not isinstance(block, (bytes, bytearray, memoryview)):
            raise TypeError(
                f"{name} gave {type(block).__name__} when read; expected bytes. Open it with `open(path, 'rb')`."
            )
        size += len(block)
        refuse_size(size, max_bytes, name)
        blocks.append(block)
    return b"".join(blocks)


def refuse_size(size: int, max_bytes: int, name: str):
    if size > max_bytes:
        raise ValueError(
            f"{name} holds {size} bytes or more; at most {max_bytes} are read. "
            "Cut the recording. The processor and the pipeline also take a larger `max_bytes=`."
        )


def describe(source: str, limit: int = 120) -> str:
    """A source for messages: shortened, without passwords and the values of a query."""
    query = "?..." if is_url(source) and "?" in source.partition("#")[0] else ""
    source = without_secrets(source) + query
    return source if len(source) <= limit else source[: limit - 3] + "..."


def is_url(source: str) -> bool:
    """Whether a text is a URL that is downloaded by itself, and not a path, or a name of another store."""
    return source.strip()[:8].lower().startswith(("http://", "https://"))


def without_secrets(source: str) -> str:
    """A URL, or a chain of them (`zip://a.wav::https://...`), without passwords, queries and fragments, which may
    hold tokens or signatures; a path as it is."""
    if "://" not in source:
        return source
    parts = [re.sub(r"//[^/?#]*@", "//", part) for part in source.strip().split("::")]
    return "::".join(re.split("[?#]", part, maxsplit=1)[0] if is_url(part) else part for part in parts)
