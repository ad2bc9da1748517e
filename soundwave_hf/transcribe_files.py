"""`soundwave-hf transcribe`: write transcripts to files, once for each recording and each set of options."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from tqdm import tqdm
from transformers import CONFIG_NAME
from transformers.utils import cached_file

from .adapters import resolve_adapter
from .atomic import atomic_file, refuse_file_name
from .audio_files import STANDARD_INPUT, AudioFile, find_audio, read_standard_input, refuse_terminal
from .data.locate import file_digest
from .evaluation.shipped import ADAPTER, load_weights
from .evaluation.transcribe import WINDOW_SECONDS
from .modeling.pipeline_soundwave import SHORTEST_CHUNK
from .paths import one_or_more
from .processing.audio_soundwave import LOWEST_RATE
from .processing.sources_soundwave import describe
from .transcribe import CLIP_ERRORS, TranscribeOptions, outcomes
from .transcripts import FORMATS, Transcript, as_json, one_line, read_formats


RECORD = ".soundwave-transcripts.jsonl"  # in each folder of transcripts: recording, options and content of each


# ---- output files ----


@dataclass
class Job:
    """A file to transcribe, and the output file for each format."""

    audio: AudioFile
    outputs: dict[str, Path] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """sha256 of the recording."""
        return file_digest(self.audio.path)


def plan_jobs(
    files: Sequence[AudioFile], formats: Sequence[str], output: str | os.PathLike | None, beside: bool
) -> list[Job]:
    """A job for each file; without `output` and `beside`, nothing is written.

    Raises: `ValueError` if `output` is named like a transcript, two transcripts have the same path, or one would
        overwrite a recording.
    """
    if output is not None and beside:
        raise ValueError("`--output` and `--beside` were both given: give one of them.")
    if output is None and not beside:
        return [Job(file) for file in files]
    if output is not None:
        name = Path(output).suffix[1:].lower()
        advice = f"write `--format {name} --output FOLDER`, or `--format {name} > {output}`"
        refuse_file_name(output, "`--output`", [f".{each}" for each in FORMATS], advice)
        check_folder(Path(output))
    jobs = [Job(file, outputs_of(file, formats, output)) for file in files]
    refuse_collisions(jobs)
    return jobs


def outputs_of(file: AudioFile, formats: Sequence[str], output: str | os.PathLike | None) -> dict[str, Path]:
    if output is None and file.path == STANDARD_INPUT:
        raise ValueError("`--beside` was given, but standard input has no folder: give `--output FOLDER`.")
    stem = Path(file.path).with_suffix("") if output is None else Path(output) / file.stem
    return {name: stem.with_name(f"{stem.name}.{name}") for name in formats}


def check_folder(folder: Path):
    """Raises: `OSError` if an output folder, or a parent of it, is a file or not writable."""
    place = next(place for place in (folder, *folder.parents) if place.exists())
    if not place.is_dir():
        raise NotADirectoryError(f"`{place}` is a file, and `--output` expects a folder: give another name.")
    if not os.access(place, os.W_OK):
        raise PermissionError(f"You may not write to the folder `{place}`: give another `--output`.")


def refuse_collisions(jobs: Sequence[Job]):
    recordings = {os.path.realpath(job.audio.path) for job in jobs}
    writers: dict[str, str] = {}
    for job in jobs:
        for path in job.outputs.values():
            place = os.path.realpath(path)
            if place in recordings:
                raise ValueError(f"The output `{path}` would overwrite a recording: rename the recording.")
            if place in writers:
                raise ValueError(
                    f"What is made of `{writers[place]}` and `{job.audio.path}` would both be written to `{path}`: "
                    "rename one, or give them different output folders."
                )
            writers[place] = job.audio.path


# ---- transcripts that exist already ----


def request_digest(job: Job, settings: dict, format_name: str) -> str:
    """Digest of all that a transcript depends on: recording, format, weights and options."""
    asked = [job.digest, format_name, settings]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Weights:
    """The weights of a run, and how they are loaded."""

    checkpoint: str | None = None  # a whole model, by folder or hub name
    adapter: str | os.PathLike | None = None  # without `checkpoint`; the shipped ones by default
    encoder: str | None = None  # backbones of the adapters, as in `load_adapter`
    llm: str | None = None
    allow_other_backbones: bool = False
    device: str | None = None
    dtype: str | None = None

    @cached_property
    def folder(self) -> str:
        return self.checkpoint or resolve_adapter(self.adapter or ADAPTER)

    def settings(self) -> dict:
        """What transcripts depend on, for `request_digest`."""
        return weights_settings(self.folder, self.encoder, self.llm, self.dtype)

    def load(self, ctc_only: bool) -> tuple:
        """The model in eval mode and the processor."""
        backbones = {name: getattr(self, name) for name in ("encoder", "llm", "allow_other_backbones")}
        return load_weights(self.folder, not self.checkpoint, ctc_only, self.device, self.dtype, **backbones)


def text_settings(options: TranscribeOptions) -> dict:
    """What transcripts depend on besides the weights, for `request_digest`."""
    settings = asdict(options)
    for name in ("batch_size", "streamer"):  # they change no transcript
        del settings[name]
    for name in ("hotwords", "word_times", "confidence"):
        if not settings[name]:  # records of version 0.1 do not have them
            del settings[name]
    return settings


def weights_settings(folder: str, encoder: str | None, llm: str | None, dtype: str | None) -> dict:
    """The weights and how they are loaded, for `request_digest`."""
    return {"weights": weights_of(folder), "encoder": weights_of(encoder), "llm": weights_of(llm), "dtype": dtype}


def weights_of(name: str | None) -> str | None:
    """Digest of a folder, or a hub name with its current commit."""
    if name is None:
        return None
    if os.path.isdir(name):
        return folder_digest(name)
    config = cached_file(name, CONFIG_NAME, _raise_exceptions_for_missing_entries=False)
    return f"{name}@{Path(config).parent.name}" if config else name


def folder_digest(folder: str) -> str:
    """sha256 of the names and contents of a folder's weights and JSON files."""
    digest = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.suffix in (".safetensors", ".bin", ".json", ".jinja", ".model"):
            digest.update(f"{path.name} {file_digest(path)}\n".encode())
    return digest.hexdigest()


def recorded(folder: Path) -> set[tuple[str, str, str]]:
    """Name, request and content of each transcript in a folder's record. Incomplete lines are skipped."""
    found = set()
    try:
        lines = (folder / RECORD).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return found
    for line in lines:
        try:
            entry = json.loads(line)
            found.add((entry["file"], entry["request"], entry["content"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def split_done(jobs: Sequence[Job], settings: dict, force: bool) -> tuple[list[Job], int]:
    """Remove outputs that exist already. Returns the jobs that still have outputs, and the number of finished jobs.

    Raises: `FileExistsError` if another file would be overwritten, without `force`.
    """
    records = {folder: recorded(folder) for folder in {path.parent for job in jobs for path in job.outputs.values()}}
    remaining, others = [], []
    for job in jobs:
        there = {name: path for name, path in job.outputs.items() if path.exists()}
        done = {name for name, path in there.items() if is_done(job, name, path, records[path.parent], settings)}
        others += [path for name, path in there.items() if name not in done]
        job.outputs = {name: path for name, path in job.outputs.items() if name not in done}
        remaining += [job] if job.outputs or not done else []
    if others and not force:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise FileExistsError(
            f"A transcript would overwrite `{others[0]}`{more}, which has another recording or other options, or was "
            "edited: `--force` overwrites it, `--output FOLDER` writes elsewhere."
        )
    return remaining, len(jobs) - len(remaining)


def is_done(job: Job, format_name: str, path: Path, records: set, settings: dict) -> bool:
    """Whether a file holds what this job would write."""
    if job.audio.path == STANDARD_INPUT or not path.is_file():
        return False
    return (path.name, request_digest(job, settings, format_name), file_digest(path)) in records


def write_outputs(job: Job, transcript: Transcript, settings: dict):
    """Write the files of one transcript, each in one step. The record of a file is written just before it."""
    for format_name, path in job.outputs.items():
        content = FORMATS[format_name](transcript).encode()
        with atomic_file(path) as part:
            part.write_bytes(content)
            if job.audio.path != STANDARD_INPUT:
                add_record(path, request_digest(job, settings, format_name), hashlib.sha256(content).hexdigest())


def add_record(path: Path, request: str, content: str):
    line = json.dumps({"file": path.name, "request": request, "content": content}) + "\n"
    with open(path.with_name(RECORD), "a", encoding="utf-8") as file:
        file.write(line)  # one short write, so that several processes may share the file


# ---- the command ----


@dataclass
class Report:
    """Counts of files."""

    transcribed: int = 0
    skipped: int = 0  # their transcripts existed
    failed: int = 0

    def __str__(self) -> str:
        parts = [f"{self.transcribed} transcribed"]
        if self.skipped:
            parts.append(f"{self.skipped} skipped (transcripts of the same recording and options exist)")
        if self.failed:
            parts.append(f"{self.failed} failed")
        return f"{', '.join(parts)}."


def transcribe_files(
    inputs: str | os.PathLike | Sequence[str],
    *,
    formats: str | Sequence[str] = "txt",
    output: str | os.PathLike | None = None,
    beside: bool = False,
    force: bool = False,
    rate: int | None = None,
    checkpoint: str | None = None,
    adapter: str | os.PathLike | None = None,
    encoder: str | None = None,
    llm: str | None = None,
    allow_other_backbones: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    **options,
) -> Report:
    """Transcribe files. Transcripts are written to files, or printed without `output` and `beside`.

    If a file cannot be transcribed, its name and the reason go to standard error, and the others are transcribed.

    Args:
        inputs: files, folders, patterns; `-` is standard input.
        formats: names of `FORMATS`, also separated by commas, or "all".
        output: folder to write to; it keeps the subfolders of an input folder.
        beside: write into the folder of each recording.
        force: overwrite files of another recording or other options.
        rate: Hz of raw samples on standard input: 16 bits, little-endian, one channel.
        checkpoint: a whole model, by folder or hub name.
        adapter, encoder, llm, allow_other_backbones: without `checkpoint`, adapters as in `load_adapter`; the shipped
            ones by default.
        device, dtype: as in `load_adapter`.
        options: fields of `TranscribeOptions`.

    Raises: `ValueError` and `OSError` for bad options, inputs and outputs, before a model is loaded.
    """
    options, formats = TranscribeOptions.of(options), read_formats(formats)
    refuse_unwritten(options, formats)
    inputs = one_or_more(inputs)
    files = find_audio(inputs)
    check_rate(rate, files)
    jobs = plan_jobs(files, formats, output, beside)
    screen = None
    if output is None and not beside:
        alone = len(files) == len(inputs) == 1 and files[0].path == os.fspath(inputs[0])
        screen = Screen(formats, alone, num_files=len(files))
    weights = Weights(checkpoint, adapter, encoder, llm, allow_other_backbones, device, dtype)
    settings = {} if screen else {**text_settings(options), **weights.settings()}
    jobs, skipped = split_done(jobs, settings, force)
    report = Report(skipped=skipped)
    if jobs:
        model, processor = weights.load(options.ctc_only)
        run_jobs(model, processor, jobs, options, settings, rate, screen, report)
    if report.failed or not screen:
        print(report, file=sys.stderr)
    return report


def refuse_unwritten(options: TranscribeOptions, formats: Sequence[str]):
    """Raises: `ValueError` if no format shows the word times or the confidence that were requested."""
    shown_by = {"word_times": ("json", "srt", "vtt", "tsv"), "confidence": ("json",)}
    for name, known in shown_by.items():
        if getattr(options, name) and not set(known) & set(formats):
            raise ValueError(
                f"`--{name.replace('_', '-')}` was given, but the format is {','.join(formats)}, which does not show "
                f"it: add {' or '.join(known)} to `--format`, or leave the option out."
            )


def check_rate(rate: int | None, files: Sequence[AudioFile]):
    if rate is None:
        return
    if all(file.path != STANDARD_INPUT for file in files):
        raise ValueError(
            "`--rate` is for raw samples on standard input. Files state their own rate: give `-`, or no `--rate`."
        )
    if rate < LOWEST_RATE:
        raise ValueError(f"`--rate` is {rate}; expected {LOWEST_RATE} Hz or more, such as 16000.")


NAMED_LINES = ("txt", "json")  # formats that print a file's name and text on one line


@dataclass
class Screen:
    """Prints transcripts to standard output."""

    formats: Sequence[str]
    alone: bool  # whether the input was a single file, whose name is not printed
    num_files: int = 1

    def __post_init__(self):
        if len(self.formats) > 1:
            raise ValueError(
                f"The formats {', '.join(self.formats)} cannot be printed together: give one format, `--output "
                "FOLDER` or `--beside`."
            )
        if self.num_files > 1 and self.formats[0] not in NAMED_LINES:
            raise ValueError(
                f"Several files cannot be printed together as {self.formats[0]}: give `--output FOLDER` or `--beside`."
            )

    def show(self, path: str, transcript: Transcript):
        """Print the transcript of a single file; otherwise a line with the name and text of each file."""
        if self.alone or self.formats[0] not in NAMED_LINES:
            text = FORMATS[self.formats[0]](transcript)
        elif self.formats[0] == "json":
            text = as_json(transcript, audio=path, indent=None)
        else:
            text = f"{path}: {one_line(transcript.text)}\n"
        tqdm.write(text, file=sys.stdout, end="")
        sys.stdout.flush()


def run_jobs(model, processor, jobs, options: TranscribeOptions, settings: dict, rate, screen, report: Report):
    """Transcribe, write or print, and count. A terminal shows a progress bar on standard error."""
    with tqdm(total=len(jobs), unit="file", disable=None) as bar:
        progress = AudioProgress(bar)
        clips = (clip_of(job, rate) for job in jobs)
        for job, outcome in zip(jobs, outcomes(model, processor, clips, options, progress), strict=True):
            if isinstance(outcome, Exception):
                report.failed += 1
                warn(message_of(outcome, job.audio.path))
            else:
                report.transcribed += 1
                warn_of_unfinished(job, outcome, options)
                if screen:
                    screen.show(job.audio.path, outcome)
                else:
                    write_outputs(job, outcome, settings)
            bar.update()


class AudioProgress:
    """Shows the transcribed minutes of audio in a progress bar."""

    def __init__(self, bar):
        self.bar, self.seconds = bar, 0.0

    def __call__(self, seconds: float):
        self.seconds += seconds
        self.bar.set_postfix_str(f"{self.seconds / 60:.1f} min of audio")


def clip_of(job: Job, rate: int | None) -> dict | Path | Exception:
    """The processor's input for a job, or the error that prevented it."""
    try:
        if job.audio.path == STANDARD_INPUT:
            return read_standard_input(rate)
        if job.outputs:
            _ = job.digest  # cached before the file is read
        return Path(job.audio.path)  # a string may be a URL
    except CLIP_ERRORS as error:
        return error


def message_of(error: Exception, path: str) -> str:
    """The message of an error, with the file's name instead of the clip number."""
    name = "Standard input" if path == STANDARD_INPUT else f"`{path}`"
    text = re.sub(rf"audio\[\d+\](?: \({re.escape(describe(path))}\))?", lambda found: name, str(error))
    return text if name in text or path in text else f"{name}: {text}"


def warn(text: str, verb: str = "transcribe"):
    tqdm.write(f"soundwave-hf {verb}: {text}", file=sys.stderr)


def warn_of_unfinished(job: Job, transcript: Transcript, options: TranscribeOptions):
    seconds = (options.generate or {}).get("max_time")
    limit, longer = ("", "") if seconds is None else (f" and {seconds:g} s", ", a longer `max_time`")
    for segment in transcript.segments:
        if not segment.finished:
            warn(
                f"`{job.audio.path}`: the text from {segment.start:.1f} to {segment.end:.1f} s did not end within "
                f"{options.most_tokens} tokens{limit}, and its rest is missing. Give more `--max-new-tokens`{longer}, "
                "or a smaller `--chunk-seconds`."
            )


def transcribe_live(
    inputs: Sequence[str],
    rate: int | None,
    *,
    formats: str | Sequence[str] = "txt",
    checkpoint: str | None = None,
    adapter: str | os.PathLike | None = None,
    encoder: str | None = None,
    llm: str | None = None,
    allow_other_backbones: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    chunk_length_s: float | None = None,
    **options,
):
    """Transcribe raw samples from standard input live, and print partial and final text.

    Args: as in `transcribe_files`; inputs: only `-`; formats: `txt`, or `json` for one JSON line for each text;
        chunk_length_s: longest segment in seconds.

    Raises: `ValueError` and `OSError` for bad options.
    """
    from .live import LiveScreen, StreamingTranscriber, transcribe_pipe

    checked, formats = TranscribeOptions.of(options), read_formats(formats)
    for name in ("word_times", "confidence"):
        if options.pop(name, False):
            raise ValueError(
                f"`--live` prints text alone: leave `--{name.replace('_', '-')}` out, or transcribe a file."
            )
    if list(inputs) != [STANDARD_INPUT]:
        raise ValueError("`--live` transcribes standard input: give only `-` instead of files.")
    if rate is None:
        raise ValueError(
            "`--live` reads raw samples and needs their rate: `ffmpeg -i INPUT -f s16le -ac 1 -ar 16000 - | "
            "soundwave-hf transcribe --live - --rate 16000`."
        )
    check_rate(rate, [AudioFile(STANDARD_INPUT)])
    refuse_terminal()
    check_live_seconds(chunk_length_s, WINDOW_SECONDS)
    if formats not in (("txt",), ("json",)):
        raise ValueError(f"The format is {','.join(formats)}, but `--live` prints only txt or json: give one of them.")
    weights = Weights(checkpoint, adapter, encoder, llm, allow_other_backbones, device, dtype)
    model, processor = weights.load(checked.ctc_only)
    check_live_seconds(chunk_length_s, processor.feature_extractor.chunk_length)
    transcriber = StreamingTranscriber(model, processor, rate, longest_seconds=chunk_length_s, **options)
    transcribe_pipe(transcriber, sys.stdin.buffer, LiveScreen(as_json=formats == ("json",)))


def check_live_seconds(seconds: float | None, window: float):
    if seconds is not None and not SHORTEST_CHUNK <= seconds <= window:
        raise ValueError(
            f"`--chunk-seconds` is {seconds:g}; expected {SHORTEST_CHUNK:g} to {window:g} with `--live`. The longest "
            "segment must fit into the encoder's window."
        )


__all__ = ["Report", "transcribe_files", "transcribe_live"]
