"""constraints.txt: the exact version of every package that this package, its extras and their requirements install."""

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from release.requirements import direct_requirements, oldest, required


REPOSITORY = Path(__file__).resolve().parents[1]
LINES = [
    line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")
]
LOCKED = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in LINES)}


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
            found = distribution(name)
        except PackageNotFoundError:
            continue
        if "_vendor" in Path(found.locate_file("")).parts:  # setuptools' own copies
            continue
        installed = found.version
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


def test_the_oldest_versions_are_the_lower_bounds_of_the_ranges():
    assert oldest(Requirement("peft>=0.21")) == "peft==0.21"
    assert oldest(Requirement("transformers<5.25,>=5.23")) == "transformers==5.23"
    with pytest.raises(ValueError, match="`soxr` in pyproject.toml has no oldest version: write `soxr>=...`"):
        oldest(Requirement("soxr"))
    assert len([oldest(each) for each in direct_requirements(extras=False)]) == 10
