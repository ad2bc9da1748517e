"""Scores while a model trains: error rates of the texts it writes, on the same sample each time."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerCallback

from ..evaluation.metrics import character_error_rate, collapse_ctc, exact_match, has_words, word_error_rate
from .augment import Augmentation
from .collator import SoundwaveDataCollator
from .saving import base_of
from .stages import Stage


SPEECH_INPUTS = ("input_features", "input_features_mask")
MORE_TOKENS = 16  # an answer may have twice the tokens of the longest reference of its batch, and so many more


def evaluation_collator(collator):
    """A copy of a collator for evaluation: no augmentation, no encoder cache, CTC over the whole vocabulary.

    A collator of another class is returned as it is.
    """
    if not isinstance(collator, SoundwaveDataCollator):
        return collator
    return dataclasses.replace(
        collator, augmentation=Augmentation(), spoken_ids=None, negatives=0, encoder_cache=None, epoch=0
    )


def is_transcription(row: dict) -> bool:
    """Whether a row asks for its transcript, which is scored by words. An answer to a question is right or wrong."""
    return row.get("text") is not None and not row.get("answer") and not row.get("messages")


def has_transcript(row: dict) -> bool:
    """Whether a row is one clip with a transcript, which the CTC head can be scored on."""
    return isinstance(row.get("text"), str) and row.get("audio") is not None


def _says_words(row: dict) -> bool:
    """Whether a row has an error rate: clips without speech, or with sounds alone ("[laughter]"), have none."""
    texts = row.get("text")
    return has_words(text for text in (texts if isinstance(texts, list) else [texts]) if text)


def metric_names(stage: Stage, rows) -> set[str]:
    """Names of the metrics of rows in a stage: losses, and scores of the texts that the model writes."""
    columns = [name for name in ("text", "answer", "messages", "audio") if name in rows.column_names]
    light = rows.select_columns([name for name in columns if name != "audio"])
    kinds = [dict(row) | ({"audio": True} if "audio" in columns else {}) for row in light]
    names = {"loss", *(f"{loss}_loss" for loss in stage.losses)}
    if any(has_transcript(row) and _says_words(row) for row in kinds):
        names.add("ctc_wer")
    if stage.has_llm:
        transcriptions = sum(map(is_transcription, kinds))
        says_words = any(is_transcription(row) and _says_words(row) for row in kinds)
        names |= {"wer", "cer"} if says_words else set()
        names |= {"exact_match"} if transcriptions < len(kinds) else set()
    return names


def check_metric(metric: str | None, names: dict[str, set[str]]):
    """Raise `ValueError` if `metric_for_best_model` is not measured.

    Args: names: of the metrics of each set; a single set without a name is "".
    """
    known = sorted(f"{place}_{name}" if place else name for place, each in names.items() for name in each)
    if metric is not None and metric.removeprefix("eval_") not in known:
        raise ValueError(f"`metric_for_best_model` is `{metric}`, and what is measured is {known}: give one of them.")


def draw_sample(rows, count: int, seed: int) -> list[dict]:
    """A random sample of rows in their order, the same for the same seed; of a stream the first rows."""
    if isinstance(rows, IterableDataset) or not hasattr(rows, "__getitem__"):
        return list(itertools.islice(rows, count))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:count])
    return [rows[int(index)] for index in chosen]


# ---- one model, some rows ----


def in_batches(rows: Sequence[dict], batch_size: int) -> Iterator[list[dict]]:
    """Rows in batches, sorted by their `seconds` if these are known."""
    ordered = sorted(rows, key=lambda row: row.get("seconds") or 0)
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]


def ctc_transcripts(model, collator: SoundwaveDataCollator, rows: list[dict]) -> list[str]:
    """Greedy transcripts of the CTC head, for rows of one clip each."""
    batch = dataclasses.replace(collator, losses=())(rows)
    encode = getattr(model, "get_audio_features", model)  # the model of stage I is the audio side itself
    audio = encode(**{name: batch[name].to(model.device) for name in SPEECH_INPUTS})
    ids = [
        collapse_ctc(best[:frames], model.config.audio_token_id)
        for best, frames in zip(audio.ctc_best.tolist(), audio.num_frames.tolist(), strict=True)
    ]
    return [text.strip() for text in collator.processor.batch_decode(ids, skip_special_tokens=True)]


def answers(model, collator: SoundwaveDataCollator, rows: list[dict]) -> list[tuple[str, str]]:
    """The last answer of each row, as reference, and the greedy answer of the model."""
    batch = dataclasses.replace(collator, losses=("ce",))(rows)
    prompts, references = [], []
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        last = int(torch.nonzero(labels != -100).max()) + 1
        first = int(torch.nonzero(labels[:last] == -100).max()) + 1
        prompts.append(ids[:first])
        references.append(ids[first:last])
    tokenizer = collator.processor.tokenizer
    inputs = {
        "input_ids": pad_sequence(prompts, True, tokenizer.pad_token_id, padding_side="left"),
        "attention_mask": pad_sequence([torch.ones_like(ids) for ids in prompts], True, 0, padding_side="left"),
        **{name: batch[name] for name in SPEECH_INPUTS if name in batch},
    }
    inputs = {name: value.to(model.device) for name, value in inputs.items()}
    most = 2 * max(map(len, references)) + MORE_TOKENS
    found = model.generate(**inputs, max_new_tokens=most, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    texts = [tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (references, found)]
    return [(said.strip(), text.strip()) for said, text in zip(*texts, strict=True)]


@torch.no_grad()
def collect_texts(model, collator: SoundwaveDataCollator, rows: list[dict], batch_size: int) -> dict[str, list]:
    """Pairs of reference and found text for `ctc`, `transcripts` and `answers`."""
    base = base_of(model)
    pairs: dict[str, list] = {"ctc": [], "transcripts": [], "answers": []}
    for batch in in_batches([row for row in rows if has_transcript(row)], batch_size):
        pairs["ctc"] += zip([row["text"] for row in batch], ctc_transcripts(base, collator, batch), strict=True)
    for batch in in_batches(rows if base.can_generate() else [], batch_size):
        for row, pair in zip(batch, answers(base, collator, batch), strict=True):
            pairs["transcripts" if is_transcription(row) else "answers"].append(pair)
    return pairs


def score_texts(pairs: dict[str, list]) -> dict[str, float]:
    """`ctc_wer`, `wer`, `cer` and `exact_match`, each if there are texts to score."""
    scores = {}
    for name, score, kind in (
        ("ctc_wer", word_error_rate, "ctc"),
        ("wer", word_error_rate, "transcripts"),
        ("cer", character_error_rate, "transcripts"),
        ("exact_match", exact_match, "answers"),
    ):
        # Without a reference word there are insertions, but no rate.
        if has_words(said for said, _ in pairs[kind]) or (pairs[kind] and kind == "answers"):
            scores[name] = score(*map(list, zip(*pairs[kind], strict=True)))
    return scores


# ---- beside a trainer ----


class SpeechEvaluationCallback(TrainerCallback):
    """Adds scores of the texts that the model writes to each evaluation of a trainer, ours or `transformers.Trainer`.

    `eval_ctc_wer` scores the CTC head. `eval_wer` and `eval_cer` score generated transcripts, `eval_exact_match`
    generated answers to questions; all decoding is greedy. The scores are logged, and `evaluate` returns them. For
    `metric_for_best_model="wer"` with early stopping, add the callback of early stopping after this one. Scores of one
    of several data sets have its name: `eval_NAME_wer`.

    Args:
        trainer (`Trainer`): whose `data_collator` is a `SoundwaveDataCollator`.
        samples (`int`, *optional*, defaults to 100): rows of each data set, drawn with the trainer's seed.

    `trainer.add_callback(SpeechEvaluationCallback(trainer))` is all that it needs.
    """

    def __init__(self, trainer: Trainer, samples: int = 100):
        if not isinstance(trainer.data_collator, SoundwaveDataCollator):
            raise ValueError(
                f"The trainer's `data_collator` is a {type(trainer.data_collator).__name__}, and a "
                "`SoundwaveDataCollator` was expected, which makes the prompts."
            )
        if not isinstance(samples, int) or samples < 1:
            raise ValueError(f"`samples` is {samples!r}; give a number of rows, 1 or more.")
        self.trainer, self.samples = trainer, samples

    def on_evaluate(self, args, state, control, metrics, model=None, eval_dataloader=None, **kwargs):
        prefix = next(key.removesuffix("_runtime") for key in metrics if key.endswith("_runtime"))
        rows = draw_sample(eval_dataloader.dataset, self.samples, args.seed)
        scores = {f"{prefix}_{name}": value for name, value in self._score(model, rows).items()}
        metrics.update(scores)
        if scores:
            self.trainer.log(scores)

    def _score(self, model, rows: list[dict]) -> dict[str, float]:
        accelerator, args = self.trainer.accelerator, self.trainer.args
        world = accelerator.num_processes
        # The same number in each process: all gather sharded weights together.
        shares = range(max(1, len(rows) // world))
        rows = [rows[(accelerator.process_index + turn * world) % len(rows)] for turn in shares]
        trained = model.training
        model.eval()
        with accelerator.autocast():
            pairs = collect_texts(
                model, evaluation_collator(self.trainer.data_collator), rows, args.per_device_eval_batch_size
            )
        model.train(trained)
        if world > 1:
            every = gather_object([pairs])
            pairs = {kind: [pair for each in every for pair in each[kind]] for kind in pairs}
        return score_texts(pairs)


__all__ = ["SpeechEvaluationCallback", "check_metric", "draw_sample", "evaluation_collator", "metric_names"]
