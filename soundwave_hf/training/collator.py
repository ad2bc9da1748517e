"""Rows of a manifest -> a batch: decode, augment, log-mel, prompt, labels."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from ..processing.processing_soundwave import ASR_QUESTION
from .augment import Augmentation
from .encoder_cache import EncoderCache, clip_digest, version_name


def ctc_text(text: str) -> str:
    """A transcript as the CTC head learns it: lower case, apostrophes the only marks, a space before each word.

    One spelling a word gives one run of tokens a word, whatever stands around it; case and marks are the LLM's work.
    """
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace("’", "'"))
    return "".join(f" {word}" for word in words)


@dataclass
class SoundwaveCollator:
    """Makes batches for the three stages.

    A row holds `audio` (path of a clip, or the clip as a row of `datasets` has it: `{"path", "bytes"}`, `{"array",
    "sampling_rate"}`), `text` (its transcript) and, for instructions, `question` and `answer`;
    without these the question is the paper's ("What does the person say?") and the answer the transcript. An empty
    question leaves the clip alone in the user's turn. `task_id`, where rows have one, is handed on as `task_ids`.

    Args:
        processor (`SoundwaveProcessor`): the model's.
        folder (`Path` or `str`): what the rows' paths are relative to.
        losses (`tuple[str, ...]`): "ctc" adds `ctc_labels`; "ce" adds `input_ids`, `attention_mask`, `labels`.
        augmentation (`Augmentation`): drawn anew for each row and epoch.
        seed (`int`), epoch (`int`): of those draws, so that a resumed run makes the same batches.
        spoken_ids (`torch.LongTensor`, *optional*), negatives (`int`): see `set_negatives`.
        encoder_cache (`EncoderCache`, *optional*): gives the clips' encoder states, in place of their log-mel.

    Example:

    ```python
    >>> from soundwave_hf import SoundwaveCollator

    >>> collator = SoundwaveCollator(processor, ".", ("ce", "ctc"))
    >>> sorted(collator([{"row": 0, "audio": "speech.wav", "text": "hello"}]))
    ['attention_mask', 'ctc_labels', 'input_features', 'input_features_mask', 'input_ids', 'labels']
    ```
    """

    processor: Any
    folder: str | Path
    losses: tuple[str, ...]
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    epoch: int = 0
    spoken_ids: torch.Tensor | None = None
    negatives: int = 0
    encoder_cache: EncoderCache | None = None
    _digests: dict[str, str] = field(default_factory=dict, init=False, repr=False)  # of clips, by their path

    def __post_init__(self):
        self.folder = Path(self.folder)
        if "ce" in self.losses and self.processor.tokenizer.eos_token_id is None:
            raise ValueError(
                "The LLM's tokenizer has no `eos_token`, with which an answer ends: set "
                "`processor.tokenizer.eos_token` to the token that closes a turn of its chat template."
            )
        self._prompt_ids = lru_cache(maxsize=10_000)(self._tokenize_prompt)

    def __getstate__(self):
        # Where workers are spawned, not forked, the collator goes to them as a pickle, which a cache cannot.
        return {name: value for name, value in vars(self).items() if name != "_prompt_ids"}

    def __setstate__(self, state: dict):
        vars(self).update(state)
        self.__post_init__()

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """`list` of rows -> a batch of tensors, as `SoundwaveForConditionalGeneration.forward` takes them."""
        if self.encoder_cache is None:
            batch = self.features(rows, [(self.seed, self.epoch, row["row"]) for row in rows])
        else:
            variant = self.epoch % self.encoder_cache.variants
            batch = self.encoder_cache.read([self.clip_name(row, variant) for row in rows])
        if "ctc" in self.losses:
            targets = [self._token_ids(ctc_text(row["text"])) for row in rows]
            batch["ctc_labels"] = pad_sequence(targets, batch_first=True, padding_value=-100)
            if self.spoken_ids is not None:
                batch["ctc_candidates"] = self._draw_candidates(rows)
        if "ce" in self.losses:
            batch.update(self._prompts(rows))
        if "task_id" in rows[0]:
            batch["task_ids"] = torch.tensor([row["task_id"] for row in rows])
        return batch

    def set_negatives(self, texts: Iterable[str], negatives: int):
        """From now on let the tokens of these transcripts, and `negatives` others, compete in the CTC of a batch.

        Raises: `ValueError` where `negatives` is not between 0 and the size of the vocabulary.
        """
        if not 0 <= negatives <= len(self.processor.tokenizer):
            raise ValueError(
                f"`ctc_negatives` is {negatives}; give 0 to {len(self.processor.tokenizer)}, the LLM's vocabulary."
            )
        spoken = self.processor.tokenizer([ctc_text(text) for text in texts], add_special_tokens=False).input_ids
        self.spoken_ids = torch.tensor(sorted(set().union(*spoken)), dtype=torch.long)
        self.negatives = negatives

    def _draw_candidates(self, rows: list[dict]) -> torch.Tensor:
        rng = np.random.default_rng((self.seed, self.epoch, rows[0]["row"], 1))
        others = rng.choice(len(self.processor.tokenizer), size=self.negatives, replace=False)
        return torch.cat([self.spoken_ids, torch.from_numpy(others)]).unique()

    def features(self, rows: list[dict], draws: list[tuple[int, ...]]) -> dict[str, torch.Tensor]:
        """Log-mel `input_features` of the rows' clips, each augmented as its `draws` (a seed) say, and their mask."""
        extractor = self.processor.feature_extractor
        generators = [np.random.default_rng(draw) for draw in draws]
        audio = [row["audio"] for row in rows]
        clips = self.processor.load_clips([str(self.folder / a) if isinstance(a, str | Path) else a for a in audio])
        clips = [
            self.augmentation.change_samples(clip, extractor.sampling_rate, rng)
            for clip, rng in zip(clips, generators, strict=True)
        ]
        batch = self.processor.log_mel(clips)
        lengths = batch["input_features_mask"].sum(axis=1)
        for features, length, rng in zip(batch["input_features"], lengths, generators, strict=True):
            features[:, :length] = self.augmentation.mask_features(features[:, :length], rng)
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def clip_name(self, row: dict, variant: int) -> str:
        """The name of one version of a clip in an `EncoderCache`: the same where clip and augmentation are."""
        changes = vars(self.augmentation)
        drawn = [changes, self.clip_draw(row, variant)] if any(changes.values()) else None
        return version_name(self._digest(row), self.processor.trailing_silence, drawn)

    def clip_draw(self, row: dict, variant: int) -> tuple[int, ...]:
        """The seed that one version of a clip is augmented with, whichever row has it."""
        return self.seed, variant, int(self._digest(row)[:16], 16)

    def _digest(self, row: dict) -> str:
        if not isinstance(row["audio"], str | Path):
            raise ValueError(
                f"`encoder_cache` is for clips in files, and one arrived as {type(row['audio']).__name__}: give "
                "paths, or train without the cache."
            )
        if (digest := self._digests.get(row["audio"])) is None:
            digest = self._digests[row["audio"]] = clip_digest(self.folder / row["audio"])
        return digest

    def _prompts(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        end = torch.tensor([self.processor.tokenizer.eos_token_id])
        prompts = [self._prompt_ids(row.get("question") if row.get("answer") else ASR_QUESTION) for row in rows]
        answers = [torch.cat([self._token_ids(row.get("answer") or row["text"]), end]) for row in rows]
        whole = [torch.cat(pair) for pair in zip(prompts, answers, strict=True)]
        labels = [torch.cat([torch.full_like(p, -100), a]) for p, a in zip(prompts, answers, strict=True)]
        pad_id = self.processor.tokenizer.pad_token_id
        return {
            "input_ids": pad_sequence(whole, batch_first=True, padding_value=pad_id),
            "attention_mask": pad_sequence([torch.ones_like(ids) for ids in whole], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
        }

    def _token_ids(self, text: str) -> torch.Tensor:
        return torch.tensor(self.processor.tokenizer(text, add_special_tokens=False).input_ids, dtype=torch.long)

    def _tokenize_prompt(self, question: str | None) -> torch.Tensor:
        content = [{"type": "audio"}]
        if question:
            content.append({"type": "text", "text": question})
        prompt = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return self._token_ids(prompt)


__all__ = ["SoundwaveCollator", "ctc_text"]
