"""THIRD_PARTY_LICENSES.md: the licences of what is shipped and of what it needs, read from installed metadata."""

from pathlib import Path

import pytest

from release.licences import LIST, licence_list, licence_of, runtime_licences
from release.requirements import PROJECT


REPOSITORY = Path(__file__).resolve().parents[1]


def test_the_list_is_what_the_metadata_say():
    try:
        found = licence_list()
    except ModuleNotFoundError as error:
        pytest.skip(f"A requirement is not installed: {error}.")
    assert LIST.read_text("utf-8") == found, "run `python -m release.licences --write`"


def test_each_runtime_requirement_names_a_licence():
    found = runtime_licences()
    assert len(found) > 40 and "not named in its metadata" not in found.values()


def test_a_licence_is_the_expression_else_the_classifiers():
    assert licence_of("numpy").startswith("BSD-3-Clause AND ")  # an expression
    assert licence_of("jinja2") == "BSD License"  # a classifier


def test_the_list_and_the_notice_are_in_what_is_built():
    assert PROJECT["license-files"] == ["LICENSE", "NOTICE", "THIRD_PARTY_LICENSES.md"]
    assert "examples/librivox/" in LIST.read_text("utf-8") and "cc-by-sa-3.0" in LIST.read_text("utf-8")
