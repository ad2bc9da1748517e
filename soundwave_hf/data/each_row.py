"""Rows of any source, one after the other: for verbs that look at data of any size. No row is kept in memory."""

from collections.abc import Iterator, Mapping

from .cuts import Cutter
from .locate import OWN_KINDS, find, folder_of, list_sources
from .named_rows import own_rows, undecoded, under_our_names, with_constants
from .rows import row_at_folder
from .streams import library_stream
from .tables import open_rows


def each_row(source, columns: Mapping | None = None) -> Iterator[tuple[str, dict]]:
    """Rows with our column names, unchecked, each with the name that errors use; clips are not read.

    Args: source, columns: as in `open_rows`.

    Returns: rows in the order of `open_rows`. The `audio` of a segment of a recording holds `path`, `start`, `end` and
        `channel`; `cut_segment` cuts it.
    """
    for each in list_sources(source, columns):
        found = find(each)
        if found.has_parts:
            rows = open_rows(each, with_seconds=False, keep_others=True)
            yield from ((f"row {index} of `{each.path}`", row) for index, row in enumerate(rows))
        elif found.kind in OWN_KINDS:
            yield from own_rows(found.files, found.kind, each, cut=False)
        else:
            stream, folder = library_stream(found)[0], folder_of(found)
            stream = under_our_names(undecoded(stream), each, keep_others=True)
            for index, row in enumerate(stream):
                yield f"row {index} of `{each.path}`", with_constants(row_at_folder(row, folder), each)


def is_segment(clip) -> bool:
    return isinstance(clip, Mapping) and "start" in clip


def with_whole_clip(row):
    """A row for a check that reads no clip: a segment's clip is its recording."""
    clip = row.get("audio") if isinstance(row, Mapping) else None
    return {**row, "audio": clip["path"]} if is_segment(clip) else row


def cut_segment(row: Mapping, name: str) -> dict:
    """A row whose clip is no segment of a recording any more.

    Raises: the errors of `Cutter.cut`.
    """
    if not is_segment(row.get("audio")):
        return dict(row)
    with Cutter() as cutter:
        return {**row, "audio": cutter.cut(row["audio"], str(row.get("id")), name)}


__all__ = ["cut_segment", "each_row", "is_segment", "with_whole_clip"]
