"""Scores while a model trains: word errors of what it writes, of a sample that is the same each time."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer, TrainerCallback

from ..evaluation.metrics import character_error_rate, collapse_ctc, exact_match, word_error_rate
from .augment import Augmentation
from .collator import SoundwaveCollator
from .stages import Stage


SPEECH_INPUTS = ("input_features", "input_features_mask")
MORE_TOKENS = 16  # than twice those of the longest reference of a batch: an answer that goes on and on is cut there


def evaluation_collator(collator):
    """A collator's copy that evaluates: no augmentation, the whole vocabulary for CTC, clips encoded anew.

    One that is no `SoundwaveCollator` is the caller's, and returned as it is.
    """
    if not isinstance(collator, SoundwaveCollator):
        return collator
    return dataclasses.replace(
        collator, augmentation=Augmentation(), spoken_ids=None, negatives=0, encoder_cache=None, epoch=0
    )


def is_transcription(row: dict) -> bool:
    """Whether a row asks for its transcript, and is scored by words; what answers a question is right or wrong."""
    return row.get("text") is not None and not row.get("answer") and not row.get("messages")


def has_transcript(row: dict) -> bool:
    """Whether a row is one clip with a transcript, which the CTC head can be scored on."""
    return isinstance(row.get("text"), str) and row.get("audio") is not None


def metric_names(stage: Stage, rows) -> set[str]:
    """What is measured on rows in a stage: losses, and scores of what is written."""
    columns = [name for name in ("text", "answer", "messages", "audio") if name in rows.column_names]
    light = rows.select_columns([name for name in columns if name != "audio"])
    kinds = [dict(row) | ({"audio": True} if "audio" in columns else {}) for row in light]
    names = {"loss", *(f"{loss}_loss" for loss in stage.losses)}
    spoken = [row for row in kinds if row.get("text")]  # clips without speech have no word error rate of their own
    if any(map(has_transcript, spoken)):
        names.add("ctc_wer")
    if stage.has_llm:
        transcriptions = sum(map(is_transcription, kinds))
        names |= {"wer", "cer"} if any(map(is_transcription, spoken)) else set()
        names |= {"exact_match"} if transcriptions < len(kinds) else set()
    return names


def check_metric(metric: str | None, names: dict[str, set[str]]):
    """Raise `ValueError` where a run is to be judged by what is not measured.

    Args: names: of the metrics of each set; the only set of a run that names none is "".
    """
    known = sorted(f"{place}_{name}" if place else name for place, each in names.items() for name in each)
    if metric is not None and metric.removeprefix("eval_") not in known:
        raise ValueError(f"`metric_for_best_model` is `{metric}`, and what is measured is {known}: give one of them.")


def draw_sample(rows, count: int, seed: int) -> list[dict]:
    """So many rows, in their order, the same for the same seed; of a stream the first."""
    if not hasattr(rows, "__getitem__"):
        return list(itertools.islice(rows, count))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:count])
    return [rows[int(index)] for index in chosen]


# ---- one model, some rows ----


def in_batches(rows: Sequence[dict], batch_size: int) -> Iterator[list[dict]]:
    """Rows in batches of like length, where their `seconds` are known."""
    ordered = sorted(rows, key=lambda row: row.get("seconds") or 0)
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]


def ctc_transcripts(model, collator: SoundwaveCollator, rows: list[dict]) -> list[str]:
    """Greedy transcripts of the CTC head, a clip a row."""
    batch = dataclasses.replace(collator, losses=())(rows)
    hear = getattr(model, "get_audio_features", model)  # stage I's model is the audio side itself
    audio = hear(**{name: batch[name].to(model.device) for name in SPEECH_INPUTS})
    ids = [
        collapse_ctc(best[:frames], model.config.audio_token_id)
        for best, frames in zip(audio.ctc_best.tolist(), audio.num_frames.tolist(), strict=True)
    ]
    return [text.strip() for text in collator.processor.batch_decode(ids, skip_special_tokens=True)]


def answers(model, collator: SoundwaveCollator, rows: list[dict]) -> list[tuple[str, str]]:
    """What was to be answered to each row, its last answer, and the greedy answer of the model."""
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
def collect_texts(model, collator: SoundwaveCollator, rows: list[dict], batch_size: int) -> dict[str, list]:
    """References and what was found, in pairs, for `ctc`, `transcripts` and `answers`."""
    base = model.get_base_model() if hasattr(model, "peft_config") else model
    pairs: dict[str, list] = {"ctc": [], "transcripts": [], "answers": []}
    for batch in in_batches([row for row in rows if has_transcript(row)], batch_size):
        pairs["ctc"] += zip([row["text"] for row in batch], ctc_transcripts(base, collator, batch), strict=True)
    for batch in in_batches(rows if base.can_generate() else [], batch_size):
        for row, pair in zip(batch, answers(base, collator, batch), strict=True):
            pairs["transcripts" if is_transcription(row) else "answers"].append(pair)
    return pairs


def score_texts(pairs: dict[str, list]) -> dict[str, float]:
    """`ctc_wer`, `wer`, `cer` and `exact_match`, each where there is something to score."""
    scores = {}
    for name, score, kind in (
        ("ctc_wer", word_error_rate, "ctc"),
        ("wer", word_error_rate, "transcripts"),
        ("cer", character_error_rate, "transcripts"),
        ("exact_match", exact_match, "answers"),
    ):
        # Without a reference word there are insertions, but no rate.
        if any(said for said, _ in pairs[kind]) or (pairs[kind] and kind == "answers"):
            scores[name] = score(*map(list, zip(*pairs[kind], strict=True)))
    return scores


# ---- beside a trainer ----


class SpeechEvaluationCallback(TrainerCallback):
    """Adds scores of what the model writes to each evaluation of a trainer, this package's or the library's.

    `eval_ctc_wer` is of the CTC head (greedy); by generation (greedy) `eval_wer` and `eval_cer` are of the rows that
    ask for a transcript, `eval_exact_match` is of those that answer a question. They are logged, and `evaluate`
    returns them, so that `metric_for_best_model="wer"` and early stopping can use them: add that callback after this.
    A data set of a dictionary has its name in front: `eval_NAME_wer`.

    Args:
        trainer (`Trainer`): whose `data_collator` is a `SoundwaveCollator`.
        samples (`int`, *optional*, defaults to 100): rows of each data set, drawn once by the trainer's seed.

    `trainer.add_callback(SpeechEvaluationCallback(trainer))` is all that it needs.
    """

    def __init__(self, trainer: Trainer, samples: int = 100):
        if not isinstance(trainer.data_collator, SoundwaveCollator):
            raise ValueError(
                f"The trainer's `data_collator` is a {type(trainer.data_collator).__name__}, and a "
                "`SoundwaveCollator` was expected: what it makes of a row is what the model is asked."
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
        # As many in each process, since sharded weights are gathered in all of them at once.
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
