"""What the package requires, and the two ends of the versions that it accepts.

python -m release.requirements oldest                # arguments for pip: the oldest version of each requirement
python -m release.requirements newest                # the newest ones
python -m release.requirements transformers-5.24.0   # one version of one requirement
"""

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


PROJECT = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]
# On Linux, PyPI has torch with gigabytes of CUDA libraries, and its CPU builds are elsewhere: it stays as it is.
KEPT = {"torch"}


def direct_requirements(extras: bool = True) -> list[Requirement]:
    """Those of the package, and of all its extras, each once."""
    texts = list(PROJECT["dependencies"])
    if extras:
        texts += [text for extra in PROJECT["optional-dependencies"].values() for text in extra]
    return [each for each in map(Requirement, dict.fromkeys(texts)) if each.name != PROJECT["name"]]


def required(roots: list[Requirement]) -> dict[str, str]:
    """Each package that the roots need on this machine, and what needs it. Needs of missing packages are not known."""
    found, left, seen = {}, [(each, PROJECT["name"]) for each in roots], set()
    while left:
        requirement, parent = left.pop()
        name = canonicalize_name(requirement.name)
        if (key := (name, frozenset(requirement.extras))) in seen:
            continue
        seen.add(key)
        found.setdefault(name, parent)
        try:
            needs = map(Requirement, distribution(name).requires or [])
        except PackageNotFoundError:
            continue
        extras = ("", *requirement.extras)
        left += [
            (need, name)
            for need in needs
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras)
        ]
    return found


def oldest(requirement: Requirement) -> str:
    """`peft>=0.21` -> `peft==0.21`. Raises: `ValueError` if a requirement has no lower bound."""
    for bound in requirement.specifier:
        if bound.operator in (">=", "=="):
            return f"{requirement.name}=={bound.version}"
    raise ValueError(f"`{requirement}` in pyproject.toml has no oldest version: write `{requirement.name}>=...`.")


def arguments_of(which: str) -> list[str]:
    """Arguments of `pip install` for "oldest", "newest" or a name and version such as "transformers-5.24.0"."""
    tested = [each for each in direct_requirements(extras=False) if each.name not in KEPT]
    if which == "oldest":
        return [oldest(each) for each in tested]
    if which == "newest":
        return ["--upgrade", *map(str, tested)]
    name, _, version = which.rpartition("-")
    return [f"{name}=={version}"]


if __name__ == "__main__":
    print(" ".join(arguments_of(sys.argv[1])))
