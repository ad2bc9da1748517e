"""Debian packages without root: downloaded with `apt-get download` and unpacked below `$SOUNDWAVE_HOME`.

Only building training data needs them (speech, sentences, a speech synthesiser); nothing is installed.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from soundwave_hf.paths import soundwave_home


# Any one name of a row will do: Debian 13 and Ubuntu 24.04 renamed the sound library that flite is linked to.
PACKAGES = (
    ("flite",),
    ("libflite1",),
    ("libasound2", "libasound2t64"),
    ("fortunes",),
    ("fortunes-min",),
    ("wamerican",),
    ("asterisk-core-sounds-en-g722",),
    ("pocketsphinx-testdata",),
)


def debian_root(*more: str) -> Path:
    """Folder that stands for `/` of the unpacked packages; filled at the first call.

    Args: more: names of packages beside `PACKAGES`.
    Raises: RuntimeError where `apt-get` and `dpkg-deb` are missing or a package does not arrive.
    """
    root = soundwave_home() / "data" / "debian"
    wanted = (*PACKAGES, *((name,) for name in more))
    missing = [names for names in wanted if not any((root / ".unpacked" / name).exists() for name in names)]
    if not missing:
        return root
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise RuntimeError(
                f"`{tool}` is not on this machine, and the training data is built from Debian packages "
                f"({', '.join(names[0] for names in wanted)}). Build it on Debian or Ubuntu (root is not needed), "
                f"or unpack those packages into {root} and create an empty file {root}/.unpacked/NAME for each."
            )
    (root / ".unpacked").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as temporary:
        options = update_package_lists(Path(temporary))
        for names in missing:
            unpack_package(names, options, Path(temporary), root)
    return root


def update_package_lists(folder: Path) -> list[str]:
    """Fetch the package lists into `folder` (the system's own may be absent, and only root may write them)."""
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True)
    options = ["-o", f"Dir::State::lists={folder / 'lists'}", "-o", f"Dir::Cache={folder / 'cache'}", "--quiet"]
    result = subprocess.run(["apt-get", *options, "update"], capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"`apt-get update` failed: {last_lines(result.stderr)}\nA Debian mirror must be reachable.")
    return options


def unpack_package(names: tuple[str, ...], options: list[str], folder: Path, root: Path) -> None:
    """Download the first package of `names` that the mirror has and unpack it below `root`."""
    for name in names:
        print(f"Fetching the Debian package {name} ...", file=sys.stderr, flush=True)
        target = folder / name
        target.mkdir()
        result = subprocess.run(["apt-get", *options, "download", name], cwd=target, capture_output=True, text=True)
        if result.returncode == 0:
            subprocess.run(["dpkg-deb", "-x", str(next(target.glob("*.deb"))), str(root)], check=True)
            (root / ".unpacked" / name).touch()
            return
    raise RuntimeError(
        f"The Debian mirror did not deliver {' or '.join(names)}: {last_lines(result.stderr)}\n"
        "The package lies in Debian's `main` and Ubuntu's `universe`: see that the sources name them."
    )


def last_lines(text: str) -> str:
    return " / ".join(text.strip().splitlines()[-3:])
