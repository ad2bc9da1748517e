"""What the CTC head should learn to write: transcripts as written, or lower case without marks; data and scores.

`docs/results/ctc_targets.md` has the commands, the figures and the decision.

    python examples/soundwave-small/compare_targets.py data          # stage1.jsonl and stage2.jsonl, with their speech
    python examples/soundwave-small/compare_targets.py tokens        # what the texts alone tell
    python examples/soundwave-small/compare_targets.py head RUN ...  # scores of heads (output of stage align)
    python examples/soundwave-small/compare_targets.py llm RUN ...   # of LLMs, and of the head as their draft
    python examples/soundwave-small/compare_targets.py table RUN ... # what was scored, side by side
"""

import argparse
import json
import random
import statistics
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from difflib import SequenceMatcher
from functools import cache
from itertools import groupby
from pathlib import Path

import soundfile
import torch
from build_data import demo_data_folder, text_digest
from debian_packages import debian_root
from human_speech import TRAINING, prompt_rows
from kokoro_voices import TRAINING_VOICES
from training_sets import all_clips, is_transcribed, small_folder, split_of
from transformers import AutoTokenizer
from voices import VALIDATION_VOICE, VOICES, Utterance, speak_all

from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveForCTC, SoundwaveProcessor
from soundwave_hf.atomic import atomic_file
from soundwave_hf.data.backbones import resolve_backbone
from soundwave_hf.data.manifest import read_rows, write_rows
from soundwave_hf.evaluation.evaluate import model_system, run_rows
from soundwave_hf.evaluation.metrics import word_error_rate
from soundwave_hf.evaluation.sets import SETS, read_set
from soundwave_hf.evaluation.shipped import LLM
from soundwave_hf.paths import soundwave_home
from soundwave_hf.processing.text_soundwave import ctc_target, lower


CLIPS = {"stage1": 2_500, "stage2": 800}  # spoken by flite, of the texts of each half
TIMED_CLIPS = 60  # of the synthetic set, spoken anew with their phones' times
LLM_CLIPS = 100  # of each set at most: generating takes a second a clip
FRAME_SECONDS = 0.04


def targets_folder() -> Path:
    return soundwave_home() / "runs" / "targets"


# ---- speech ----


def utterances_of(split: str, folder: Path) -> list[Utterance]:
    """The first texts of one half, each in a training voice of flite; no text of a validation set is among them."""
    texts = [row["text"] for row in read_rows(small_folder() / "texts.jsonl")]
    chosen = [text for text in dict.fromkeys(texts) if split_of(text) == split][: CLIPS[split]]
    flite = [name for name, voice in VOICES.items() if voice.engine == "flite" and name != VALIDATION_VOICE]
    found = []
    for text in chosen:
        rng = random.Random(f"targets {text}")
        voice = rng.choice(flite)
        path = folder / "clips" / split / f"{text_digest(text)}_{voice}.flac"
        found.append(Utterance(path, text, voice, rng.randrange(2**31)))
    return found


def make_data() -> None:
    """Write `stage1.jsonl` and `stage2.jsonl`: spoken texts, natural clips of the same half, and human prompts.

    The prompts are in the first alone: each stage hears other clips, so that the head errs in the second as it will
    on new speech.
    """
    folder, demo = targets_folder(), demo_data_folder()
    # The name of a mixture begins with that of its first voice.
    natural = [row for row in all_clips() if is_transcribed(row) and row["voice"].startswith(TRAINING_VOICES)]
    human = [row | {"audio": str(demo / row["audio"])} for row in prompt_rows(demo, TRAINING)]
    for split in CLIPS:
        spoken = [
            {"audio": str(clip.path), "text": clip.text, "seconds": round(seconds, 3), "source": clip.voice}
            for clip, seconds in speak_all(utterances_of(split, folder), label=split)
            if seconds
        ]
        kokoro = [
            {"audio": row["audio"], "text": row["text"], "seconds": row["seconds"], "source": "kokoro"}
            for row in natural
            if split_of(row["text"]) == split
        ]
        write_rows(folder / f"{split}.jsonl", spoken + kokoro + (human if split == "stage1" else []))


# ---- texts ----


def matched_words(first: list, second: list) -> list[tuple[int, int]]:
    """Places of the words (or tokens) that two texts have in common, in order."""
    blocks = SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks()
    return [(block.a + step, block.b + step) for block in blocks for step in range(block.size)]


def case_and_marks(references: list[str], texts: list[str]) -> float:
    """Of the words heard right, the share that has the case and marks of the reference."""
    right = total = 0
    for reference, text in zip(references, texts, strict=True):
        # A word of the text may be none without its marks ("--"): it is compared with nothing.
        written, heard = ([(lower(word), word) for word in each.split() if lower(word)] for each in (reference, text))
        pairs = matched_words([key for key, _ in written], [key for key, _ in heard])
        right += sum(written[a][1] == heard[b][1] for a, b in pairs)
        total += len(pairs)
    return right / max(total, 1)


def common_prefix(first: list, second: list) -> int:
    """How many items two lists begin with in common."""
    shared = [a == b for a, b in zip(first, second, strict=False)]
    return [*shared, False].index(False)


def written_draft(text: str) -> str:
    """A draft without case and marks as a sentence: a capital first, a full stop last."""
    return text[:1].upper() + text[1:] + "." if text else text


# ---- what the texts alone tell ----


def count_tokens() -> None:
    """Print, for both forms, the tokens a word, and the share of test tokens that are not in the texts of training.

    Then what a head without a single error could give as a draft: the share of the reference's tokens that
    `written_draft` of its lower-case form has, up to the first other one and in all. As written, it is all of them.
    """
    tokenizer = AutoTokenizer.from_pretrained(resolve_backbone(LLM))
    texts = list(dict.fromkeys(row["text"] for row in read_rows(small_folder() / "texts.jsonl")))
    sets = {name: [row["text"] for row in read_set(name)] for name in SETS}

    def ids(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False).input_ids

    for name in ("as_written", "lower"):
        heard = Counter(token for each in ids([ctc_target(text, name) for text in texts]) for token in each)
        words = sum(len(lower(text).split()) for text in texts)
        print(f"{name}: {heard.total() / words:.3f} tokens a word, {len(heard)} different tokens")
        for place, references in sets.items():
            said = [token for each in ids([ctc_target(text, name) for text in references]) for token in each]
            shares = [sum(heard[token] < times for token in said) / len(said) for times in (1, 5)]
            print(f"  {place}: {len(said)} tokens, {shares[0]:.1%} never heard, {shares[1]:.1%} fewer than 5 times")
    for place, references in sets.items():
        drafts = [written_draft(lower(text).strip()) for text in references]
        pairs = list(zip(ids(references), ids(drafts), strict=True))
        total = sum(len(reference) for reference, _ in pairs)
        first = sum(common_prefix(*pair) for pair in pairs) / total
        each = sum(len(matched_words(*pair)) for pair in pairs) / total
        print(f"drafts in lower case, {place}: {first:.1%} of tokens up to the first other one, {each:.1%} in all")


# ---- the head alone ----


def score_texts(references: list[str], texts: list[str]) -> dict:
    return {
        "wer": word_error_rate(references, texts),
        "wer_as_written": word_error_rate(references, texts, normalize=False),
        "case_and_marks": case_and_marks(references, texts),
    }


def score_head(run: str) -> dict:
    """Word errors, case and marks, peaks a second and timing of one head."""
    model = SoundwaveForCTC.from_pretrained(run).eval()
    processor = SoundwaveProcessor.from_pretrained(run)
    scores: dict = {"run": Path(run).name, "ctc_text": model.config.ctc_text}
    for name in SETS:
        rows = read_set(name)
        results, _ = run_rows(model_system(model, processor, ctc=True), rows, 8, name, True)
        texts, seconds = [result.text for result in results], sum(row["seconds"] for row in rows)
        labels = sum(len(processor.tokenizer(f" {text}").input_ids) for text in texts if text)
        scores[name] = score_texts([row["text"] for row in rows], texts) | {"peaks_per_second": labels / seconds}
    return scores | {"times": score_times(model, processor)}


@cache
def flite(text: str, *options: str) -> str:
    """What flite prints of a text."""
    root = debian_root()
    libraries = ":".join(str(path) for path in sorted((root / "usr/lib").glob("*-linux-gnu*")))
    command = [str(root / "usr/bin/flite"), "-voice", "awb", *options, "-t", text]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env={"LD_LIBRARY_PATH": libraries}
    ).stdout


def true_starts(text: str, wav: str) -> dict[int, float]:
    """Seconds at which words of `text`, by their place, begin in the clip that is written to `wav`."""
    spoken = [part.rsplit(":", 1) for part in flite(text, "-psdur", "-o", wav).split()]
    ends = [0.0, *(float(end) for _, end in spoken)]
    alone = [
        (phone, place, number)
        for place, word in enumerate(lower(text).split())
        for number, phone in enumerate(p for p in flite(word, "-ps", "-o", "none").split() if p != "pau")
    ]
    pairs = matched_words([phone for phone, _, _ in alone], [phone for phone, _ in spoken])
    return {alone[a][1]: ends[b] for a, b in pairs if alone[a][2] == 0}


@torch.inference_mode()
def heard_starts(model, processor, samples) -> list[tuple[str, float]]:
    """Words of the greedy CTC transcript, and the middle of the frame of each one's first label in seconds."""
    features = processor.log_mel([samples])
    audio = model(**{name: torch.from_numpy(values) for name, values in features.items()})
    words: list[tuple[str, float]] = []
    frame = 0
    for label, run in groupby(audio.ctc_best[0, : audio.num_frames[0]].tolist()):
        start, frame = frame, frame + len(list(run))
        if label == model.config.audio_token_id:
            continue
        text = processor.tokenizer.decode([label])
        if text.startswith(" ") or not words:
            words.append((text, (start + 0.5) * FRAME_SECONDS))
        else:
            words[-1] = (words[-1][0] + text, words[-1][1])
    return [(lower(word).strip(), time) for word, time in words if lower(word)]


def score_times(model, processor) -> dict:
    """How far the first label of a word is from where the word begins, in ms: the lag, and what is left without it."""
    differences = []
    for row in read_set("synthetic")[:TIMED_CLIPS]:
        with tempfile.NamedTemporaryFile(suffix=".wav") as wav:
            truth = true_starts(row["text"], wav.name)
            samples = soundfile.read(wav.name, dtype="float32")[0]
        heard = heard_starts(model, processor, samples)
        for place, other in matched_words(lower(row["text"]).split(), [word for word, _ in heard]):
            if place in truth:
                differences.append(1000 * (heard[other][1] - truth[place]))
    lag = statistics.median(differences)
    return {
        "words": len(differences),
        "lag_ms": lag,
        "median_error_ms": statistics.median(abs(difference - lag) for difference in differences),
    }


# ---- the LLM, and the head as its draft ----


@torch.inference_mode()
def greedy_after(model, processor, row: dict, draft: str) -> tuple[list[int], list[int]]:
    """Tokens of a draft and its end, and what the LLM would write at each of them after those before."""
    inputs = processor.apply_transcription_request(row["audio"])
    inputs.pop("is_transcription")
    ids = processor.tokenizer(draft, add_special_tokens=False).input_ids + [processor.tokenizer.eos_token_id]
    prompt = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return ids, model(**inputs).logits[0, prompt - 1 : -1].argmax(dim=-1).tolist()


def score_drafts(model, processor, rows: list[dict], drafts: list[str]) -> dict:
    """Of the drafts' tokens, the share that the greedy LLM accepts: up to the first that it does not, and of all."""
    first = of_all = total = 0
    for row, draft in zip(rows, drafts, strict=True):
        ids, greedy = greedy_after(model, processor, row, draft)
        first += common_prefix(ids, greedy)
        of_all += sum(a == b for a, b in zip(ids, greedy, strict=True))
        total += len(ids)
    return {"first": first / total, "each": of_all / total}


def score_words(answers: list[str], drafts: list[str]) -> dict:
    """The same of words, without case and marks, against the LLM's own greedy answers."""
    pairs = [(lower(answer).split(), lower(draft).split()) for answer, draft in zip(answers, drafts, strict=True)]
    total = sum(len(draft) for _, draft in pairs)
    return {
        "first": sum(common_prefix(*pair) for pair in pairs) / total,
        "each": sum(len(matched_words(*pair)) for pair in pairs) / total,
    }


def score_llm(run: str) -> dict:
    """Word errors of the LLM and of the head that it reads, and how much of the head's transcript it accepts."""
    model = SoundwaveForConditionalGeneration.from_pretrained(run).eval()
    processor = SoundwaveProcessor.from_pretrained(run)
    scores: dict = {"run": Path(run).name, "ctc_text": model.config.ctc_text}
    for name in SETS:
        rows = read_set(name)[:LLM_CLIPS]
        results, _ = run_rows(model_system(model, processor), rows, 8, name)
        references, answers, drafts = zip(
            *((row["text"], result.text, result.ctc_text) for row, result in zip(rows, results, strict=True)),
            strict=True,
        )
        scores[name] = {
            "llm": score_texts(references, answers),
            "ctc_wer": word_error_rate(references, drafts),
            "draft": score_drafts(model, processor, rows, drafts),
            "words": score_words(answers, drafts),
        }
        if model.config.ctc_text == "lower":
            sentences = [written_draft(draft) for draft in drafts]
            scores[name]["draft_as_sentence"] = score_drafts(model, processor, rows, sentences)
    return scores


def write_scores(runs: list[str], score: Callable[[str], dict], name: str) -> None:
    """Print the scores of each run, and keep them in its folder."""
    for run in runs:
        scores = score(run)
        with atomic_file(Path(run) / f"{name}.json") as part:
            part.write_text(json.dumps(scores, indent=1), encoding="utf-8")
        print(json.dumps(scores, indent=1), flush=True)


def flat(scores: dict, above: str = "") -> dict[str, object]:
    """`{"human": {"wer": 0.5}}` -> `{"human wer": 0.5}`."""
    found: dict[str, object] = {}
    for name, value in scores.items():
        found |= flat(value, f"{above}{name} ") if isinstance(value, dict) else {above + name: value}
    return found


def print_table(runs: list[str]) -> None:
    """A line of Markdown for each score, with a column for each run; the shares are as they were measured, 0 to 1."""
    scored = [flat(json.loads(path.read_text(encoding="utf-8"))) for run in runs for path in score_files(run)]
    for number, name in enumerate(dict.fromkeys(name for scores in scored for name in scores)):
        cells = [scores.get(name, "-") for scores in scored]
        cells = [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells]
        print(f"| {' | '.join([name, *cells])} |")
        if number == 0:
            print("|" + "---|" * (1 + len(cells)))


def score_files(run: str) -> list[Path]:
    """Raises: `FileNotFoundError` where a run was not scored."""
    if not (found := sorted(Path(run).glob("*_scores.json"))):
        raise FileNotFoundError(f"`{run}` holds no scores: run `compare_targets.py head` or `llm` on it first.")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["data", "tokens", "head", "llm", "table"])
    parser.add_argument("runs", nargs="*", help="output folders of stage align, or of stage shrink")
    options = parser.parse_args()
    if options.what == "data":
        make_data()
    elif options.what == "tokens":
        count_tokens()
    elif options.what == "table":
        print_table(options.runs)
    else:
        score = {"head": score_head, "llm": score_llm}[options.what]
        write_scores(options.runs, score, f"{options.what}_scores")


if __name__ == "__main__":
    main()
