"""Spoken instructions: texts read aloud by any synthesiser that is a command or a Python function."""

import importlib
import random
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...processing.audio_soundwave import load_clip
from .clips import RATE, SILENT_PEAK, as_clip
from .draws import NotBuilt, is_weight
from .sounds import text_of
from .wordings import placeholders


COMMAND_SECONDS = 120  # a command that takes longer for one text is stopped
WORDS_PER_MINUTE = 175  # at speed 1; espeak-ng takes its speed in this unit
PLACEHOLDERS = ("text", "text_file", "voice", "speed", "stretch", "words_per_minute", "out")


@dataclass(frozen=True)
class Synthesizer:
    """Reads a text aloud.

    Args:
        command (`str`, *optional*): a program and its options, without a shell: `flite -voice {voice} -o {out}`. It
            must write `{out}`, a WAV file. The text comes on standard input, or where `{text}` (a whole argument) or
            `{text_file}` (the path of a file) stands. `{speed}` is 1 for the voice's own speed, `{stretch}` is
            1 / speed, `{words_per_minute}` is 175 x speed.
        function (`str`, *optional*): `module:function`, called with text, voice and speed; it returns samples
            `(samples,)` and their rate in Hz. Its `ValueError` means that it cannot read this text; another error
            stops the run.
        voices (`list` or `dict`, *optional*): names, or weights of names; needed where the command names `{voice}`.
        speed (`tuple`): lowest and highest speed.

    Raises: `ValueError` unless there is either a command or a function, and for a template that lacks `{out}` or has
        an unknown placeholder.
    """

    command: str | None = None
    function: str | None = None
    voices: Sequence[str] | Mapping[str, float] = ()
    speed: Sequence[float] = (1.0, 1.0)
    arguments: tuple[str, ...] = field(default=(), init=False)

    def __post_init__(self):
        if (self.command is None) == (self.function is None):
            raise ValueError(f"`command` is {self.command!r} and `function` is {self.function!r}; give one of them.")
        low_high = list(self.speed) if isinstance(self.speed, list | tuple) else []
        if len(low_high) != 2 or not all(_is_speed(value) for value in low_high) or low_high[0] > low_high[1]:
            raise ValueError(f"`speed` is {self.speed!r}; give the lowest and the highest, such as [0.9, 1.1].")
        named = isinstance(self.voices, list | tuple | Mapping)
        names = named and all(isinstance(voice, str) and voice for voice in self.voices)
        weights = list(self.voices.values()) if isinstance(self.voices, Mapping) else []
        if not names or not all(is_weight(weight) for weight in weights):
            raise ValueError(f"`voices` is {self.voices!r}; give a list of names, or a weight over 0 for each name.")
        if self.command is not None:
            object.__setattr__(self, "arguments", _read_command(self.command))
            if any("{voice}" in word for word in self.arguments) and not self.voices:
                raise ValueError(f"`command` names {{voice}}, and there are no `voices`: {self.command!r}.")

    def load(self) -> Callable[[str, str | None, float], np.ndarray]:
        """What reads a text aloud: text, voice and speed -> samples at 16 kHz."""
        if self.function is None:
            return lambda text, voice, speed: run_command(self.arguments, text, voice, speed)
        function = find_function(self.function)
        return lambda text, voice, speed: call_function(function, self.function, text, voice, speed)

    def draw(self, rng: random.Random) -> tuple[str | None, float]:
        """A voice and a speed, to two decimals."""
        weights = list(self.voices.values()) if isinstance(self.voices, Mapping) else None
        voice = rng.choices(list(self.voices), weights)[0] if self.voices else None
        return voice, round(rng.uniform(*self.speed), 2)


def _is_speed(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.1 <= value <= 10


def _read_command(command: str) -> tuple[str, ...]:
    try:
        arguments = tuple(shlex.split(command))
        found = set().union(*(placeholders(word) for word in arguments)) if arguments else set()
    except ValueError as error:
        raise ValueError(f"`command` is {command!r}, which cannot be read: {error}.") from error
    if unknown := found - set(PLACEHOLDERS):
        raise ValueError(f"`command` has the placeholder {{{min(unknown)}}}; known: {', '.join(PLACEHOLDERS)}.")
    if any("{text}" in word and word != "{text}" for word in arguments):
        raise ValueError(
            f"`command` is {command!r}, where `{{text}}` is a part of an argument, which a shell or a program could "
            "read as code: make it an argument by itself, or use `{text_file}`."
        )
    if "out" not in found:
        raise ValueError(f"`command` is {command!r} and does not say where the sound goes: add `{{out}}`, a WAV file.")
    return arguments


def run_command(arguments: Sequence[str], text: str, voice: str | None, speed: float) -> np.ndarray:
    """Samples at 16 kHz by one call of a program. No shell reads the text.

    Raises: `FileNotFoundError` if there is no such program; `NotBuilt` if it fails, takes too long or writes no sound.
    """
    if "{text}" in arguments and text.startswith("-"):
        raise NotBuilt(
            f"The text {text!r} begins with a dash, and a program could take it for an option: use "
            "`{text_file}`, or standard input."
        )
    if "\0" in text:
        raise NotBuilt(f"The text {text!r} holds a NUL, which no program can be given.")
    with tempfile.TemporaryDirectory() as folder:
        out, text_file = Path(folder) / "speech.wav", Path(folder) / "text.txt"
        text_file.write_text(text + "\n", encoding="utf-8")
        values = {"text": text, "text_file": str(text_file), "voice": voice, "out": str(out), "speed": f"{speed:g}"}
        values |= {"stretch": f"{1 / speed:.4f}", "words_per_minute": str(round(WORDS_PER_MINUTE * speed))}
        words = [word.format(**values) for word in arguments]
        on_stdin = not any("{text" in word for word in arguments)
        given = {"input": f"{text}\n"} if on_stdin else {"stdin": subprocess.DEVNULL}
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_SECONDS, **given)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"There is no program `{words[0]}`: install it, or change `command`.") from error
        except subprocess.TimeoutExpired as error:
            raise NotBuilt(f"`{words[0]}` took over {COMMAND_SECONDS} s for {text!r} and was stopped.") from error
        if done.returncode:
            raise NotBuilt(f"`{words[0]}` failed with exit code {done.returncode} for {text!r}: {_said(done.stderr)}")
        if not out.is_file():
            raise NotBuilt(f"`{words[0]}` wrote no sound for {text!r}: {_said(done.stderr)}")
        return _checked({"path": str(out)}, f"What `{words[0]}` wrote for {text!r}")


def _said(stderr: str) -> str:
    """The end of what a program wrote about its error."""
    return stderr.strip()[-200:] or "it printed no error."


def find_function(name: str) -> Callable:
    """The function that `module:function` names. Raises: `ValueError` if there is none."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"`function` is {name!r}, which cannot be imported ({error}); expected `module:function`, with the "
            "module on `PYTHONPATH`."
        ) from error
    if not callable(found):
        raise ValueError(f"`function` is {name!r}, and that is {type(found).__name__}; expected a function.")
    return found


def call_function(function: Callable, name: str, text: str, voice: str | None, speed: float) -> np.ndarray:
    """Samples at 16 kHz by a function. Raises: `NotBuilt` for its `ValueError`, and for what is no sound."""
    try:
        made = function(text, voice, speed)
    except ValueError as error:
        raise NotBuilt(f"`{name}` cannot read {text!r}: {error}") from error
    if not isinstance(made, tuple) or len(made) != 2:
        raise ValueError(f"`{name}` returned {type(made).__name__}; expected the samples and their rate in Hz.")
    return _checked({"array": np.asarray(made[0]), "sampling_rate": made[1]}, f"What `{name}` made of {text!r}")


def _checked(clip: Mapping, name: str) -> np.ndarray:
    try:
        samples = load_clip(clip, name, None, RATE, 0.0)
    except (TypeError, ValueError) as error:
        raise NotBuilt(str(error)) from error
    if not len(samples) or np.abs(samples).max() < SILENT_PEAK:
        raise NotBuilt(f"{name} is {'silent' if len(samples) else 'empty'}.")
    return samples


def speak(row: Mapping, say: Callable, voice: str | None, speed: float, name: str = "A row") -> dict:
    """A row of text with its speech.

    Args: say: of `Synthesizer.load`.
    Returns: the row with `audio` (samples at 16 kHz), `seconds`, `voice` and `speed`. Its other columns stay.
    Raises: `NotBuilt` if the text is missing or cannot be read aloud.
    """
    text = text_of(row, name)
    samples = say(text, voice, speed)
    made = {"audio": as_clip(samples), "text": text, "seconds": len(samples) / RATE, "voice": voice, "speed": speed}
    return {**row, **{key: value for key, value in made.items() if value is not None}}


__all__ = ["Synthesizer", "find_function", "run_command", "speak"]
