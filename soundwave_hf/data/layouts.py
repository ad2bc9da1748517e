"""Folders of well-known speech corpora, by the name of their layout: `data: {layout: librispeech, path: LibriSpeech}`.

A layout finds the files of each split, and reads them as rows with our column names. Rows of a segment of a longer
recording have `audio` `{"path", "start", "end", "channel"}`, which `named_rows` cuts.
"""

import csv
import difflib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import fsspec
import yaml

from .readers import AUDIO_SUFFIXES


NamedRows = Iterator[tuple[str, dict]]
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
SAME_LENGTH = 1e-3  # seconds; a segment that differs less from its recording is the recording


@dataclass(frozen=True)
class Layout:
    """How a corpus lies on disk.

    Args:
        name (`str`): how the corpus is called.
        columns (`tuple[str, ...]`): the columns of its rows.
        expects (`str`): what the folder should hold, for errors.
        find: folder and `config` -> the files of each split.
        read: files of one split -> rows, each with the name that errors use.
        cuts: whether rows of these files may be segments of longer recordings.
        split_files: whether each file can be read alone.
        config (`str`, *optional*): what `config` chooses; without it, `config` is refused.
    """

    name: str
    columns: tuple[str, ...]
    expects: str
    find: Callable[[Path, str | None], dict[str, tuple[str, ...]]]
    read: Callable[[Sequence[str]], NamedRows]
    cuts: Callable[[Sequence[str]], bool] = lambda files: False
    split_files: bool = False
    config: str | None = None


def find_layout(name: str) -> Layout:
    """The layout of a name, in any case and with any `-`, `_` or space in it.

    Raises: `ValueError` that lists the names.
    """
    wanted = re.sub(r"[-_\s]", "", str(name).lower())
    names = {re.sub(r"[-_]", "", key): key for key in LAYOUTS}
    if wanted not in names:
        near = difflib.get_close_matches(wanted, names, n=1)
        hint = f" Did you mean `{names[near[0]]}`?" if near else ""
        raise ValueError(f"`layout` is {name!r}; the layouts are {', '.join(LAYOUTS)}.{hint}")
    return LAYOUTS[names[wanted]]


def find_splits(name: str, path: str, config: str | None) -> dict[str, tuple[str, ...]]:
    """The files of each split of a corpus.

    Raises: `FileNotFoundError` that says what is missing and what the layout expects; `ValueError` for a `config`
        that the layout does not have.
    """
    layout = find_layout(name)
    if config is not None and layout.config is None:
        raise ValueError(f"`config` is {config!r}, and the layout `{name}` has no configs: leave it out.")
    if not os.path.exists(path):
        raise _missing(layout, f"There is no `{path}` (current folder: {os.getcwd()})")
    splits = layout.find(Path(path), config)
    if not splits:
        raise _missing(layout, f"`{path}` holds no data in the layout `{name}`")
    return splits


def _missing(layout: Layout, what: str) -> FileNotFoundError:
    return FileNotFoundError(f"{what}: {layout.name} expects {layout.expects}.")


def _require(key: str, path: Path):
    """Raises: `FileNotFoundError` if a file that a layout needs does not exist."""
    if not path.exists():
        raise _missing(LAYOUTS[key], f"There is no `{path}`")


def _only(key: str, found: dict[str, object], config: str | None, path: Path):
    """The value that `config` names, or the only one."""
    layout = LAYOUTS[key]
    if config is not None and config not in found:
        raise ValueError(f"`config` is {config!r}; `{path}` has {sorted(found)} ({layout.config}).")
    if config is None and len(found) > 1:
        raise ValueError(f"`{path}` has {sorted(found)}: choose {layout.config} with `config`.")
    return found[next(iter(found)) if config is None else config] if found else None


# ---- LibriSpeech: `84/121123/84-121123.trans.txt` beside the clips ----


def _find_librispeech(path: Path, config: str | None) -> dict[str, tuple[str, ...]]:
    root = path / "LibriSpeech" if (path / "LibriSpeech").is_dir() else path
    splits: dict[str, list[str]] = {}
    for file in sorted(root.rglob("*.trans.txt")):
        parts = file.relative_to(root).parts
        # subset / speaker / chapter / file, or the folder of one subset
        splits.setdefault(parts[0] if len(parts) == 4 else root.name, []).append(str(file))
    return {split: tuple(files) for split, files in splits.items()}


def _read_librispeech(files: Sequence[str]) -> NamedRows:
    for file in files:
        folder = Path(file).parent
        ending = None
        for name, line in _lines(file):
            clip_id, _, text = line.partition(" ")
            ending = ending or _ending(folder, clip_id, name)
            yield (
                name,
                {
                    "id": clip_id,
                    "audio": str(folder / f"{clip_id}{ending}"),
                    "text": text.strip(),
                    "language": "en",
                    "speaker": clip_id.partition("-")[0],
                },
            )


def _ending(folder: Path, clip_id: str, name: str) -> str:
    for ending in (".flac", *AUDIO_SUFFIXES):
        if (folder / f"{clip_id}{ending}").is_file():
            return ending
    raise FileNotFoundError(f"{name}: there is no clip `{folder / clip_id}.flac` beside its transcript.")


# ---- Common Voice: `clips/` and a table for each split ----


COMMON_VOICE_TABLES = ("train", "dev", "test", "validated", "other", "invalidated")


def _find_common_voice(path: Path, config: str | None) -> dict[str, tuple[str, ...]]:
    if not any((path / f"{name}.tsv").is_file() for name in COMMON_VOICE_TABLES):
        inner = {
            table.parent.name: table.parent for name in COMMON_VOICE_TABLES for table in path.glob(f"*/{name}.tsv")
        }
        path = _only("common_voice", inner, config, path) or path
    elif config not in (None, path.name):
        raise ValueError(f"`config` is {config!r}, and `{path}` is the folder of one language: leave it out.")
    splits = {name: (str(path / f"{name}.tsv"),) for name in COMMON_VOICE_TABLES if (path / f"{name}.tsv").is_file()}
    if splits:
        _require("common_voice", path / "clips")
    return splits


def _read_common_voice(files: Sequence[str]) -> NamedRows:
    (table,) = files
    folder = Path(table).parent
    lengths = _durations(folder / "clip_durations.tsv")
    for name, row in _table(table, ("path", "sentence")):
        clip = _mp3(row["path"])
        yield (
            name,
            {
                "id": Path(clip).stem,
                "audio": str(folder / "clips" / clip),
                "text": row["sentence"],
                "language": row.get("locale") or folder.name,
                "speaker": row.get("client_id") or None,
                "seconds": lengths.get(clip),
                "gender": row.get("gender") or None,
                "age": row.get("age") or None,
                "accent": row.get("accents") or row.get("accent") or None,
            },
        )


def _mp3(clip: str) -> str:
    return clip if os.path.splitext(clip)[1] else f"{clip}.mp3"


def _durations(table: Path) -> dict[str, float]:
    """Seconds of clips, where the release has a table of them."""
    if not table.is_file():
        return {}
    rows = (row for _, row in _table(str(table), ("clip",)))
    return {
        row["clip"]: _number(next(value for key, value in row.items() if key != "clip"), f"`{table}`") / 1000
        for row in rows
    }


# ---- MuST-C: talks, and for each split a list of segments and their lines in two languages ----


def _find_must_c(path: Path, config: str | None) -> dict[str, tuple[str, ...]]:
    if not (path / "data").is_dir() and any(path.glob("*/txt")):
        data = path  # the folder `data` itself
    else:
        if not (path / "data").is_dir():
            pairs = {each.name: each for each in path.glob("??-*") if (each / "data").is_dir()}
            pairs |= {name.partition("-")[2]: each for name, each in pairs.items()}
            folders = {each.name: each for each in pairs.values()}
            path = pairs[config] if config in pairs else (_only("must_c", folders, config, path) or path)
        data = path / "data"
    splits = {}
    for listed in sorted(data.glob("*/txt/*.yaml")):
        split, folder = listed.stem, listed.parent
        texts = [folder / f"{split}.en", *sorted(set(folder.glob(f"{split}.??")) - {folder / f"{split}.en"})]
        _require("must_c", texts[0])
        _require("must_c", folder.parent / "wav")
        if len(texts) != 2:
            raise FileNotFoundError(
                f"`{folder}` has the texts {[text.name for text in texts]}; MuST-C expects one in English and one in "
                "another language."
            )
        splits[split] = (str(listed), *map(str, texts))
    return splits


def _read_must_c(files: Sequence[str]) -> NamedRows:
    listed, english, other = files
    folder, target = Path(listed).parent.parent / "wav", Path(other).suffix[1:]
    numbers: dict[str, int] = {}
    with open(english, encoding="utf-8-sig") as texts, open(other, encoding="utf-8-sig") as translations:
        for (name, segment), text, translation in _aligned(listed, texts, translations):
            stem = Path(segment["wav"]).stem
            numbers[stem] = numbers.get(stem, -1) + 1
            start, seconds = (_number(segment[key], f"{name}: `{key}`") for key in ("offset", "duration"))
            yield (
                name,
                {
                    "id": f"{stem}_{numbers[stem]}",
                    "audio": _segment(str(folder / segment["wav"]), start, start + seconds),
                    "text": text.strip(),
                    "translation": translation.strip(),
                    "language": "en",
                    "target_language": target,
                    "speaker": segment.get("speaker_id"),
                    "seconds": seconds,
                },
            )


def _aligned(listed: str, texts, translations):
    """Segments and their lines. Raises: `ValueError` if one of the three files is shorter."""
    for number, (segment, text, translation) in enumerate(
        zip_longest(_yaml_segments(listed), texts, translations), start=1
    ):
        if segment is None or text is None or translation is None:
            raise ValueError(
                f"`{listed}` and the texts beside it have different numbers of segments: the first ends after "
                f"{number - 1}. Unpack the corpus again."
            )
        yield segment, text, translation


def _yaml_segments(listed: str) -> NamedRows:
    """Segments of a list, one line at a time: the YAML of a corpus has a quarter of a million lines."""
    for name, line in _lines(listed):
        try:
            (segment,) = yaml.load(line, YAML_LOADER)
            segment["wav"], segment["offset"], segment["duration"]
        except (yaml.YAMLError, TypeError, ValueError, KeyError) as error:
            raise ValueError(
                f"{name} is {line[:80]!r}; expected "
                "`- {duration: 3.5, offset: 16.1, speaker_id: spk.1, wav: a.wav}`."
            ) from error
        yield name, segment


# ---- CoVoST 2: translations of Common Voice 4 ----


COVOST = re.compile(r"covost_v2\.([\w-]+)_([\w-]+?)(?:\.(train|dev|test))?\.tsv")


def _find_covost2(path: Path, config: str | None) -> dict[str, tuple[str, ...]]:
    pairs: dict[str, dict[str, tuple[str, ...]]] = {}
    for table in sorted(path.glob("covost_v2.*.tsv")):
        if (match := COVOST.fullmatch(table.name)) is None:
            continue
        source, target, split = match.groups()
        splits = pairs.setdefault(f"{source}_{target}", {})
        if split is not None:
            splits[split] = (str(table),)
        elif not splits:
            _require("covost2", path / "validated.tsv")
            splits |= {name: (str(table), str(path / "validated.tsv"), name) for name in ("train", "dev", "test")}
    splits = _only("covost2", pairs, config, path)
    if splits:
        _require("covost2", path / "clips")
    return splits or {}


def _read_covost2(files: Sequence[str]) -> NamedRows:
    table = files[0]
    source, target, _ = COVOST.fullmatch(Path(table).name).groups()
    needed = ("path", "sentence", "translation")
    rows = _table(table, needed) if len(files) == 1 else _joined_covost2(*files)
    for name, row in rows:
        clip = _mp3(row["path"])
        yield (
            name,
            {
                "id": Path(clip).stem,
                "audio": str(Path(table).parent / "clips" / clip),
                "text": row["sentence"],
                "translation": row["translation"],
                "language": source,
                "target_language": target,
                "speaker": row.get("client_id") or None,
            },
        )


def _joined_covost2(table: str, validated: str, split: str) -> NamedRows:
    """Rows of Common Voice's `validated.tsv` that the released table translates.

    Raises: `ValueError` if a clip of the table is not in it.
    """
    wanted = {row["path"]: row for _, row in _table(table, ("path", "translation", "split")) if row["split"] == split}
    for name, row in _table(validated, ("path", "sentence")):
        if (translated := wanted.pop(row["path"], None)) is not None:
            yield name, {**row, "translation": translated["translation"]}
    if wanted:
        raise ValueError(
            f"{len(wanted)} clips of `{table}` are not in `{validated}`, the first `{next(iter(wanted))}`: CoVoST 2 "
            "translates version 4 of Common Voice."
        )


# ---- Kaldi ----


def _find_kaldi(path: Path, config: str | None) -> dict[str, tuple[str, ...]]:
    if (path / "wav.scp").is_file() or (path / "text").is_file():
        return {"train": _kaldi_files(path)}
    inner = sorted(each.parent for each in path.glob("*/wav.scp"))
    return {folder.name: _kaldi_files(folder) for folder in inner}


def _kaldi_files(folder: Path) -> tuple[str, ...]:
    for name in ("wav.scp", "text"):
        _require("kaldi", folder / name)
    others = ("segments", "utt2spk", "utt2lang", "utt2dur")
    return tuple(str(folder / name) for name in ("wav.scp", "text", *others) if (folder / name).is_file())


def _read_kaldi(files: Sequence[str]) -> NamedRows:
    tables = {Path(file).name: file for file in files}
    recordings = _kaldi_table(tables["wav.scp"])
    segments = _kaldi_table(tables["segments"]) if "segments" in tables else None
    speakers, languages, lengths = (
        _kaldi_table(tables[name]) if name in tables else {} for name in ("utt2spk", "utt2lang", "utt2dur")
    )
    seen = set()
    for name, line in _lines(tables["text"]):
        key, *rest = line.split(maxsplit=1)
        if key in seen:
            raise ValueError(f"{name} names `{key}` a second time.")
        seen.add(key)
        text = rest[0] if rest else ""
        audio, seconds = _kaldi_audio(key, recordings, segments, tables, name)
        if key in lengths:
            seconds = _number(lengths[key], f"`{tables['utt2dur']}` for {key}")
        yield (
            name,
            {
                "id": key,
                "audio": audio,
                "text": text.strip(),
                "language": languages.get(key),
                "speaker": speakers.get(key),
                "seconds": seconds,
            },
        )


def _kaldi_table(file: str) -> dict[str, str]:
    table = {}
    for name, line in _lines(file):
        key, *rest = line.split(maxsplit=1)
        if key in table:
            raise ValueError(f"{name} names `{key}` a second time.")
        table[key] = rest[0].strip() if rest else ""
    return table


def _kaldi_audio(key: str, recordings: dict, segments: dict | None, tables: dict, name: str):
    """The clip of an utterance, and its seconds if it is a segment."""
    if segments is None:
        return _kaldi_path(key, recordings, tables["wav.scp"], name), None
    if key not in segments:
        raise ValueError(
            f"{name} is of `{key}`, which is not in `{tables['segments']}`: `utils/fix_data_dir.sh` helps."
        )
    fields = segments[key].split()
    if len(fields) != 3:
        raise ValueError(
            f"`{tables['segments']}` has {segments[key]!r} for `{key}`; expected a recording, and start and end in "
            "seconds."
        )
    start, end = (_number(field, f"`{tables['segments']}` for `{key}`") for field in fields[1:])
    path = _kaldi_path(fields[0], recordings, tables["wav.scp"], name)
    return _segment(path, start, None if end < 0 else end), None if end < 0 else end - start


def _kaldi_path(key: str, recordings: dict[str, str], scp: str, name: str) -> str:
    if key not in recordings:
        raise ValueError(f"{name} needs `{key}`, which is not in `{scp}`: `utils/fix_data_dir.sh` helps.")
    written = recordings[key]
    if written.endswith("|"):
        raise ValueError(
            f"`{scp}` has the command `{written}` for `{key}`, and a command in a data file is not run: write the "
            "audio to files (Kaldi's `wav-copy` does), and name those."
        )
    if re.search(r":\d+$", written) or written == "-":
        raise ValueError(
            f"`{scp}` has `{written}` for `{key}`; expected the path of an audio file, not of an archive."
        )
    return _found_path(written, Path(scp).parent)


# ---- lhotse ----


LHOTSE = re.compile(r"(.*?)(recordings|supervisions|cuts)(.*?)\.jsonl(\.gz)?")


def _find_lhotse(path: Path, config: str | None) -> dict[str, tuple[str, ...]]:
    files = [path] if path.is_file() else sorted(path.glob("*.jsonl*"))
    kinds: dict[str, dict[str, str]] = {}
    for file in files:
        if (match := LHOTSE.fullmatch(file.name)) is not None:
            split = "_".join(part.strip("_-.") for part in match.group(1, 3) if part.strip("_-."))
            kinds.setdefault(split or "train", {})[match[2]] = str(file)
    splits = {}
    for split, found in kinds.items():
        if "cuts" in found:
            splits[split] = (found["cuts"],)
        elif len(found) == 2:
            splits[split] = (found["recordings"], found["supervisions"])
        else:
            other = {"recordings": "supervisions", "supervisions": "recordings"}[next(iter(found))]
            raise _missing(LAYOUTS["lhotse"], f"`{next(iter(found.values()))}` has no {other} beside it")
    return splits


def _read_lhotse(files: Sequence[str]) -> NamedRows:
    if len(files) == 1:
        yield from _read_lhotse_cuts(files[0])
        return
    recordings = {row["id"]: row for _, row in _json_lines(files[0])}
    for name, supervision in _json_lines(files[1]):
        if (recording := recordings.get(supervision.get("recording_id"))) is None:
            raise ValueError(f"{name} is of recording {supervision.get('recording_id')!r}, which `{files[0]}` lacks.")
        yield name, _supervision_row(supervision, recording, 0.0, files[0], name)


def _read_lhotse_cuts(file: str) -> NamedRows:
    for name, cut in _json_lines(file):
        if cut.get("type", "MonoCut") not in ("MonoCut", "MultiCut"):
            raise ValueError(f"{name} is a {cut['type']}; expected cuts of one recording: save mixed audio first.")
        if not cut.get("recording"):
            raise ValueError(f"{name} has no recording: write the cuts with their recordings.")
        if not cut.get("supervisions"):
            raise ValueError(f"{name} has no supervision, so nothing says what is spoken in it.")
        for supervision in cut["supervisions"]:
            start = _number(cut.get("start", 0), f"{name}: `start`")
            yield name, _supervision_row(supervision, cut["recording"], start, file, name)


def _supervision_row(supervision: dict, recording: dict, offset: float, file: str, name: str) -> dict:
    """Args: offset: seconds of the recording before the supervision's own zero."""
    start = offset + _number(supervision.get("start"), f"{name}: `start` of the supervision")
    seconds = _number(supervision.get("duration"), f"{name}: `duration` of the supervision")
    channel, whole = (
        supervision.get("channel"),
        _number(recording.get("duration"), f"{name}: `duration` of its recording"),
    )
    path = _lhotse_path(recording, file, name)
    channels = recording.get("channel_ids") or recording["sources"][0].get("channels") or []
    picked = channel if isinstance(channel, int) and len(channels) > 1 else None
    is_whole = start < SAME_LENGTH and abs(seconds - whole) < SAME_LENGTH and picked is None
    return {
        "id": supervision.get("id"),
        "audio": path if is_whole else _segment(path, start, start + seconds, picked),
        "text": supervision.get("text"),
        "language": supervision.get("language"),
        "speaker": supervision.get("speaker"),
        "seconds": seconds,
        "gender": supervision.get("gender"),
    }


def _lhotse_path(recording: dict, file: str, name: str) -> str:
    sources = recording.get("sources") or []
    if len(sources) != 1 or sources[0].get("type") != "file" or not sources[0].get("source"):
        kinds = [source.get("type") for source in sources]
        raise ValueError(
            f"{name}: recording {recording.get('id')!r} has the sources {kinds}; expected one file with its "
            "path in `source`. A command in a data file is not run: save the recordings as files."
        )
    if recording.get("transforms"):
        raise ValueError(
            f"{name}: recording {recording['id']!r} has `transforms`, which only lhotse applies: save it as a file."
        )
    return _found_path(sources[0]["source"], Path(file).parent)


# ---- shared ----


def _segment(path: str, start: float, end: float | None, channel: int | None = None) -> dict:
    return {"path": path, "start": start, "end": end, "channel": channel}


def _found_path(written: str, folder: Path) -> str:
    """A path of a manifest. These tools mean the folder that they were started in; the manifest's own comes first."""
    beside = folder / written
    return str(beside if beside.exists() or not os.path.exists(written) else os.path.abspath(written))


def _number(text, name: str) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        raise ValueError(f"{name} has {text!r}; expected seconds.") from None


def _lines(file: str) -> Iterator[tuple[str, str]]:
    """Lines that are not empty, without the line end."""
    with fsspec.open(file, "rt", encoding="utf-8-sig", compression="infer") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"line {number} of `{file}`", line.strip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"`{file}` is not in UTF-8 ({error.reason} at byte {error.start}): convert it."
            ) from error
        except (EOFError, zlib.error) as error:
            raise ValueError(f"`{file}` is compressed and was cut off or damaged ({error}): copy it again.") from error


def _json_lines(file: str) -> NamedRows:
    for name, line in _lines(file):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name} is not JSON: {error}.") from error
        if not isinstance(row, dict) or "id" not in row:
            raise ValueError(f"{name} is {line[:80]!r}; expected an object with `id`.")
        yield name, row


def _table(file: str, needed: Sequence[str]) -> NamedRows:
    """Rows of a TSV without quotes, as Common Voice writes it. Raises: `ValueError` if a column is missing."""
    with open(file, encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        header = next(rows, [])
        if missing := [name for name in needed if name not in header]:
            raise ValueError(f"`{file}` has no column {', '.join(map(repr, missing))}; it has {header}.")
        for row in rows:
            name = f"line {rows.line_num} of `{file}`"
            if row and len(row) != len(header):
                raise ValueError(f"{name} has {len(row)} fields, and the first line names {len(header)}: {header}.")
            if row:
                yield name, dict(zip(header, row, strict=True))


LAYOUTS = {
    "librispeech": Layout(
        "LibriSpeech",
        ("id", "audio", "text", "language", "speaker"),
        "SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt with the clips (.flac) beside it",
        _find_librispeech,
        _read_librispeech,
        split_files=True,
    ),
    "common_voice": Layout(
        "Common Voice",
        ("id", "audio", "text", "language", "speaker", "seconds", "gender", "age", "accent"),
        "the folder of a language with train.tsv (or another table of the release) and clips/",
        _find_common_voice,
        _read_common_voice,
        config="the language",
    ),
    "must_c": Layout(
        "MuST-C",
        ("id", "audio", "text", "translation", "language", "target_language", "speaker", "seconds"),
        "en-XX/data/SPLIT/txt/SPLIT.yaml with SPLIT.en and SPLIT.XX beside it, and en-XX/data/SPLIT/wav/",
        _find_must_c,
        _read_must_c,
        cuts=lambda files: True,
        config="the pair of languages",
    ),
    "covost2": Layout(
        "CoVoST 2",
        ("id", "audio", "text", "translation", "language", "target_language", "speaker"),
        "covost_v2.XX_YY.SPLIT.tsv, or covost_v2.XX_YY.tsv with Common Voice 4's validated.tsv, and clips/",
        _find_covost2,
        _read_covost2,
        config="the pair of languages",
    ),
    "kaldi": Layout(
        "Kaldi",
        ("id", "audio", "text", "language", "speaker", "seconds"),
        "a folder with wav.scp and text (segments, utt2spk, utt2lang and utt2dur are read too), or a folder of those",
        _find_kaldi,
        _read_kaldi,
        cuts=lambda files: any(Path(file).name == "segments" for file in files),
    ),
    "lhotse": Layout(
        "lhotse",
        ("id", "audio", "text", "language", "speaker", "seconds", "gender"),
        "*recordings*.jsonl.gz and *supervisions*.jsonl.gz, or *cuts*.jsonl.gz (.jsonl too)",
        _find_lhotse,
        _read_lhotse,
        cuts=lambda files: True,
    ),
}

__all__ = ["LAYOUTS", "Layout", "find_layout", "find_splits"]
