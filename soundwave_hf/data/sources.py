"""Rows for `data:` of a recipe. Other folders import this module.

`locate` finds the files of a source, `named_rows` renames columns, `tables` loads all rows and `streams` reads rows
while they are used.
"""

from collections.abc import Iterator

from .lengths import row_seconds
from .locate import (
    Source,
    describe_source,
    digest_source,
    file_digest,
    find,
    find_files,
    list_sources,
    looks_local,
)
from .named_rows import renamed, undecoded, with_label_names
from .rows import transcripts_of
from .streams import Streams, open_streams
from .tables import check_rows, fill_seconds, lengths_of, open_rows


def transcripts_with_language(rows) -> Iterator[tuple[str, str | None]]:
    """The transcripts of rows, one by one, and their languages."""
    for row in rows:
        yield from ((text, row.get("language")) for text in transcripts_of(row) if text is not None)


__all__ = [
    "Source",
    "Streams",
    "check_rows",
    "describe_source",
    "digest_source",
    "file_digest",
    "fill_seconds",
    "find",
    "find_files",
    "lengths_of",
    "list_sources",
    "looks_local",
    "open_rows",
    "open_streams",
    "renamed",
    "row_seconds",
    "transcripts_with_language",
    "undecoded",
    "with_label_names",
]
