"""constraints.txt: the exact version of every package that this package, its extras and their requirements install."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
LINES = [
    line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")
]
LOCKED = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES)}


def direct_requirements() -> list[Requirement]:
    """Those of the package and of all its extras, each once, without the package itself."""
    texts = [*PROJECT["dependencies"], *(text for extra in PROJECT["optional-dependencies"].values() for text in extra)]
    return [each for each in map(Requirement, dict.fromkeys(texts)) if each.name != PROJECT["name"]]


def required(roots: list[Requirement]) -> dict[str, str]:
    """Each package that the roots need on this machine, as installed here or not, and what needs it."""
    found, left = {}, [(each, PROJECT["name"]) for each in roots]
    seen = set()
    while left:
        requirement, parent = left.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        found.setdefault(name, parent)
        try:
            needs = map(Requirement, distribution(name).requires or [])
        except PackageNotFoundError:
            continue
        left += [
            (need, name)
            for need in needs
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras))
        ]
    return found


def test_each_line_names_one_exact_version_and_no_package_twice():
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in LINES)
    assert len(LOCKED) == len(LINES)


def test_each_package_that_is_required_is_locked():
    missing = {name: parent for name, parent in required(direct_requirements()).items() if name not in LOCKED}
    assert missing == {}, "add these to constraints.txt (package: what needs it)"


def test_the_lock_is_what_is_installed_here():
    differing = {}
    for name, version in LOCKED.items():
        try:
            installed = distribution(name).version
        except PackageNotFoundError:
            continue
        if Version(installed).public != version:
            differing[name] = f"{installed} is installed and {version} is locked"
    other_transformers = {"transformers", "tokenizers", "huggingface-hub", "safetensors", "hf-xet"}
    if differing.keys() & {"transformers"}:  # `make test TRANSFORMERS=...` or `make test-newest`
        pytest.skip(f"Another set than the locked one is tested: {sorted(differing.keys() & other_transformers)}.")
    assert differing == {}


@pytest.mark.parametrize("requirement", direct_requirements(), ids=str)
def test_the_locked_version_is_in_the_range_that_the_package_asks_for(requirement):
    assert requirement.specifier.contains(LOCKED[canonicalize_name(requirement.name)])


def test_a_package_that_is_missing_in_the_lock_is_found():
    found = required([Requirement("transformers[serving]")])
    assert {"transformers", "tokenizers", "huggingface-hub", "numpy", "fastapi", "starlette"} <= found.keys()
    assert found["tokenizers"] == "transformers" and found["fastapi"] == "transformers"
