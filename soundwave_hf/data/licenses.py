"""Licences of data: the hub's ids, and which of them forbid commercial use."""

import difflib
import re
from collections.abc import Sequence


# https://huggingface.co/docs/hub/repositories-licenses
IDS = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    openrail++ afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0
    cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0
    cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl
    gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr
    mpl-2.0 odc-by odbl openmdw-1.0 osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
    other
"""
HUB_IDS = frozenset(IDS.split())
NON_COMMERCIAL = re.compile(
    r"(^|[^a-z])(nc|non[- ]?commercial\w*|research|academic)([^a-z]|$)|apple-amlr", re.IGNORECASE
)


def hub_id(license: str) -> str | None:
    """The hub's id of a licence; None if it has none."""
    name = re.sub(r"[\s_]+", "-", license.strip().lower())
    return name if name in HUB_IDS else None


def is_non_commercial(license: str) -> bool:
    """Whether a licence, by its id or name, forbids commercial use."""
    return bool(NON_COMMERCIAL.search(license))


def license_fields(licenses: Sequence[str | None]) -> dict[str, str | list[str]]:
    """`license` of a card for the licences of its sources, and `license_name` where the hub has no id for one."""
    named = sorted({license for license in licenses if license})
    ids = sorted({hub_id(name) for name in named if hub_id(name)})
    others = [name for name in named if hub_id(name) is None]
    if others:
        slug = re.sub(r"[^a-z0-9.]+", "-", " ".join(others).lower()).strip("-")
        return {"license": [*ids, "other"] if ids else "other", "license_name": slug}
    if not ids or None in licenses:
        return {"license": [*ids, "unknown"] if ids else "unknown"}
    return {"license": ids[0] if len(ids) == 1 else ids}


def nearest_id(license: str) -> str | None:
    """The id that a misspelt one may mean."""
    near = difflib.get_close_matches(license.strip().lower(), HUB_IDS, n=1, cutoff=0.85)
    return near[0] if near else None


def check_license(license: str, name: str):
    """Raises: `ValueError` if a licence is a misspelt id of the hub. Args: name: of what has the licence."""
    if (near := nearest_id(license)) not in (None, license.strip().lower()):
        raise ValueError(f"`{name}` has the licence {license!r}. Did you mean `{near}`?")


__all__ = ["HUB_IDS", "check_license", "hub_id", "is_non_commercial", "license_fields", "nearest_id"]
