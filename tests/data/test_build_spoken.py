"""Texts are read aloud by a command or a function, without a shell."""

import random
import shutil
import sys

import numpy as np
import pytest

from soundwave_hf.data.build import spoken
from soundwave_hf.data.build.draws import NotBuilt
from soundwave_hf.data.build.spoken import Synthesizer, find_function, run_command, speak


# Writes a tone of as many seconds as its text has words, and the text beside it.
PROGRAM = """
import pathlib, sys
import numpy as np, soundfile
out, text = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else sys.stdin.read()
pathlib.Path("{seen}").write_text(text + "|" + " ".join(sys.argv[3:]))
soundfile.write(out, 0.1 * np.sin(np.arange(8000 * len(text.split())) / 10), 8000)
"""


@pytest.fixture
def program(tmp_path):
    (tmp_path / "say.py").write_text(PROGRAM.format(seen=tmp_path / "seen.txt"))
    return f"{sys.executable} {tmp_path / 'say.py'} {{out}}"


def heard(tmp_path) -> str:
    return (tmp_path / "seen.txt").read_text()


def test_the_text_comes_on_standard_input(program, tmp_path):
    samples = Synthesizer(program).load()("Hello there", None, 1.0)
    assert len(samples) == 2 * 16_000 and heard(tmp_path) == "Hello there\n|"  # 2 s at 8 kHz, resampled


@pytest.mark.parametrize("text", ["$(touch hacked); `id`", "a' b\" c", "&& rm -rf x", "{voice} {0}", "new\nline"])
def test_no_shell_reads_the_text(program, tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Synthesizer(f"{program} {{text}} {{voice}} {{speed}} {{stretch}} {{words_per_minute}}", voices=["a b"]).load()(
        text, "a b", 1.25
    )
    assert heard(tmp_path) == f"{text}|a b 1.25 0.8000 219" and not (tmp_path / "hacked").exists()


def test_the_text_can_come_as_a_file(tmp_path):
    (tmp_path / "copy.py").write_text(
        "import sys, shutil, numpy as np, soundfile\n"
        f"shutil.copy(sys.argv[1], {str(tmp_path / 'seen.txt')!r})\n"
        "soundfile.write(sys.argv[2], np.ones(1600) / 10, 16000)\n"
    )
    Synthesizer(f"{sys.executable} {tmp_path / 'copy.py'} {{text_file}} {{out}}").load()("- Grüße", None, 1.0)
    assert (tmp_path / "seen.txt").read_text(encoding="utf-8") == "- Grüße\n"


def test_a_text_that_looks_like_an_option_is_not_passed_as_one(program):
    with pytest.raises(NotBuilt, match="'-o /etc/x' begins with a dash"):
        run_command((*program.split(), "{text}"), "-o /etc/x", None, 1.0)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('no voice')", "failed with exit code 1 for 'Hi': no voice"),
        ("import sys; sys.exit(3)", "failed with exit code 3 for 'Hi': it printed no error"),
        ("pass", "wrote no sound for 'Hi'"),
        ("import sys; open(sys.argv[1], 'w').write('x')", "could not be decoded"),
        ("import sys, numpy, soundfile; soundfile.write(sys.argv[1], numpy.zeros(99), 16000)", "is silent"),
    ],
)
def test_a_command_that_fails_is_a_row_that_is_left_out(code, message):
    with pytest.raises(NotBuilt, match=message):
        run_command((sys.executable, "-c", code, "{out}"), "Hi", None, 1.0)


def test_a_command_that_hangs_is_stopped(monkeypatch):
    monkeypatch.setattr(spoken, "COMMAND_SECONDS", 0.2)
    with pytest.raises(NotBuilt, match="took over 0.2 s"):
        run_command((sys.executable, "-c", "import time; time.sleep(9)", "{out}"), "Hi", None, 1.0)


def test_a_program_that_is_not_there_stops_the_run():
    with pytest.raises(FileNotFoundError, match="There is no program `no-such-voice`: install it"):
        run_command(("no-such-voice", "{out}"), "Hi", None, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "`command` is None and `function` is None; give one of them"),
        ({"command": "say {out}", "function": "a:b"}, "give one of them"),
        ({"command": "say"}, "does not say where the sound goes: add `{out}`"),
        ({"command": "say {out} {pitch}"}, "has the placeholder {pitch}; known: text, text_file"),
        ({"command": "say '{out}"}, "cannot be read: No closing quotation"),
        ({"command": "say {out} {"}, "cannot be read"),
        ({"command": "sh -c 'say {text} > {out}'"}, "is a part of an argument, which a shell or a program could read"),
        ({"command": "say --text={text} {out}"}, "make it an argument by itself, or use `{text_file}`"),
        ({"command": "say {out} {voice}"}, "names {voice}, and there are no `voices`"),
        ({"command": "say {out}", "speed": [1.2, 0.8]}, r"`speed` is \[1.2, 0.8\]"),
        ({"command": "say {out}", "speed": 1}, "give the lowest and the highest"),
        ({"command": "say {out}", "voices": "slt"}, "`voices` is 'slt'; give a list"),
        ({"command": "say {out}", "voices": {"slt": 0}}, "a weight over 0 for each name"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Synthesizer(**options)


# ---- functions ----


def hum(text: str, voice: str, speed: float):
    if text == "%":
        raise ValueError("no letters")
    samples = np.full(8000, {"low": 0.1, "high": 0.2}[voice] / speed, np.float32)
    return (samples, 8000) if text != "one" else samples


def test_a_function_reads_texts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "my_voices", sys.modules[__name__])
    say = Synthesizer(function="my_voices:hum", voices=["low"]).load()
    row = speak({"text": " Hi ", "answer": "Hello.", "task": "t"}, say, "low", 2.0)
    assert row["audio"]["array"].mean() == pytest.approx(0.05, rel=0.01) and row["seconds"] == 1.0
    assert {**row, "audio": 0} == {
        "text": "Hi", "answer": "Hello.", "task": "t", "audio": 0, "seconds": 1.0, "voice": "low", "speed": 2.0
    }  # fmt: skip
    with pytest.raises(NotBuilt, match="`my_voices:hum` cannot read '%': no letters"):
        say("%", "low", 1.0)
    with pytest.raises(ValueError, match="returned ndarray; expected the samples and their rate"):
        say("one", "low", 1.0)
    with pytest.raises(KeyError):  # a fault of the function, not of the text: the run stops
        say("Hi", "middle", 1.0)


@pytest.mark.parametrize("name", ["no_such_module:say", "json:no_such", "json", "json:__name__", ":x"])
def test_a_function_that_is_not_there_is_named(name):
    with pytest.raises(ValueError, match=f"`function` is '{name}'"):
        find_function(name)


def test_voices_are_drawn_by_weight_and_speeds_between_the_limits():
    synthesizer = Synthesizer("say {voice} {out}", voices={"a": 3, "b": 1}, speed=[0.9, 1.1])
    drawn = [synthesizer.draw(random.Random(seed)) for seed in range(400)]
    assert 60 < sum(voice == "b" for voice, _ in drawn) < 140
    assert min(speed for _, speed in drawn) >= 0.9 and max(speed for _, speed in drawn) <= 1.1
    assert synthesizer.draw(random.Random(3)) == drawn[3]


@pytest.mark.parametrize("text", [None, "", "  ", 5])
def test_a_row_without_a_text_is_named(text):
    with pytest.raises(NotBuilt, match="expected a transcript"):
        speak({"text": text}, lambda *_: None, None, 1.0)


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
def test_flite_speaks_slower_when_told(tmp_path):
    say = Synthesizer(
        "flite -voice {voice} --setf duration_stretch={stretch} -o {out} {text_file}", voices=["slt"]
    ).load()
    slow, fast = (say("Good morning to all of you.", "slt", speed) for speed in (0.8, 1.25))
    assert 1.2 < len(slow) / len(fast) < 1.8  # 1.5625 without the pauses


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_espeak_reads_standard_input():
    say = Synthesizer("espeak-ng -v {voice} -s {words_per_minute} -w {out} --stdin", voices=["en-us"]).load()
    assert len(say("Good morning.", "en-us", 1.0)) > 8000
