"""The licences of what is shipped, and of what it needs: THIRD_PARTY_LICENSES.md.

python -m release.licences            # print the list
python -m release.licences --write    # write it to the file; a test compares the two
"""

import re
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import yaml
from packaging.utils import canonicalize_name

from release.requirements import direct_requirements, required


REPOSITORY = Path(__file__).resolve().parents[1]
LIST = REPOSITORY / "THIRD_PARTY_LICENSES.md"
WEIGHTS = Path("weights/soundwave-small")
OF_CUDA = ("nvidia-", "cuda-", "triton")
# Packages whose metadata name no licence.
READ_BY_HAND = {
    "torchao": "BSD-3-Clause (its LICENSE file)",
}
HEADER = """# Licences

`make dist` prints this file. `python -m release.licences --write` makes it again from the metadata of the installed
packages; a test compares the two.

## What the wheel and the sdist hold

| part | licence |
|---|---|
| code, recipes and texts | Apache-2.0 (`LICENSE`) |
| {weights} | {weights_licence} |

## Data of the repository

They are in the repository, and not in the wheel or the sdist.

```
{notice}
```

## What pip installs with it

These packages are not shipped. `torch` for CUDA also installs NVIDIA's libraries, under NVIDIA's own terms.

{runtime}

## What the extras install

Packages that only an extra needs. A package here may need others in turn.

{extras}
"""


def licence_of(name: str) -> str:
    """By the installed metadata: the SPDX expression, else the classifiers, else the first line of the licence."""
    told = metadata(name)
    if told["License-Expression"]:
        return told["License-Expression"]
    classifiers = [
        each.rpartition(" :: ")[2] for each in told.get_all("Classifier", []) if each.startswith("License ::")
    ]
    named = [each for each in classifiers if each not in ("OSI Approved", "Other/Proprietary License")]
    line = next(iter((told["License"] or "").strip().splitlines()), "")
    if line and len(line) < 40 and re.search("[A-Za-z]", line):
        return line
    return "; ".join(named) or READ_BY_HAND.get(name, "not named in its metadata")


def table(packages: dict[str, str]) -> str:
    rows = [f"| {name} | {licence} |" for name, licence in sorted(packages.items())]
    return "\n".join(["| package | licence |", "|---|---|", *rows])


def runtime_licences() -> dict[str, str]:
    """Of the requirements of the CPU build of torch, and their requirements."""
    names = [name for name in required(direct_requirements(extras=False)) if not name.startswith(OF_CUDA)]
    return {name: licence_of(name) for name in names}


def extras_licences() -> dict[str, str]:
    """Of the direct requirements of the extras. Of one that is not installed, what the file says."""
    listed = dict(
        re.findall(r"^\| (\S+) \| (.+) \|$", LIST.read_text("utf-8") if LIST.is_file() else "", re.MULTILINE)
    )
    runtime, found = required(direct_requirements(extras=False)), {}
    for name in {canonicalize_name(each.name) for each in direct_requirements()} - runtime.keys():
        try:
            found[name] = licence_of(name)
        except PackageNotFoundError:
            found[name] = READ_BY_HAND.get(name) or listed.get(name, "not installed where this list was made")
    return found


def licence_list() -> str:
    card = (REPOSITORY / WEIGHTS / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    return HEADER.format(
        weights=f"`{WEIGHTS.as_posix()}`",
        weights_licence=front.get("license_name") or front["license"],
        notice=(REPOSITORY / "NOTICE").read_text(encoding="utf-8").strip(),
        runtime=table(runtime_licences()),
        extras=table(extras_licences()),
    )


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        LIST.write_text(licence_list(), encoding="utf-8")
    else:
        print(licence_list())
