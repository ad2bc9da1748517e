"""Rows of data -> a batch: decode, augment, log-mel, prompt, labels."""

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from ..data.rows import RowCheck, at_folder, clips_of, conversation_of, plain_number, transcripts_of
from ..processing.processing_soundwave import ASR_QUESTION
from ..processing.text_soundwave import lower
from .augment import Augmentation
from .encoder_cache import EncoderCache, clip_digest, version_name
from .mixture import PASS, TASK


# The marks in a chat template around what the assistant writes.
GENERATION_MARKS = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")
BEGIN, END = "\ue000", "\ue001"  # private use characters, which no text holds


ctc_text = lower  # its name in earlier versions


@dataclass
class SoundwaveDataCollator:
    """Makes batches for the three stages.

    A row holds `audio` (path of a clip, or the clip as a row of `datasets` has it: `{"path", "bytes"}`, `{"array",
    "sampling_rate"}`, a decoder; or a list of clips), `text` (its transcript; a list with one for each of several
    clips) and, for instructions, `question` and `answer`. Without a question the paper's is asked ("What does the
    person say?"), without an answer the transcript is the answer. With an empty question the user's turn
    is the clip alone. A row without `audio` is text only. A row may have `messages` instead: turns of text and audio
    parts; all turns of the assistant are learnt, and audio parts without a clip take those of `audio` in order.

    Args:
        processor (`SoundwaveProcessor`): the model's.
        folder (`Path` or `str`): the folder of the rows' relative paths; the current one by default.
        losses (`tuple[str, ...]`): "ctc" adds `ctc_labels`, and `ctc_mask` where a clip has no transcript; "ce" adds
            `input_ids`, `attention_mask`, `labels`. With "ctc" alone, `labels` are the `ctc_labels`.
        augmentation (`Augmentation`): random changes, new for each row and epoch.
        seed (`int`), epoch (`int`): of these changes, so that a resumed run makes the same batches. They also depend
            on the row's number `row`, a whole number, or, without one, on the content of the clip.
        spoken_ids (`torch.LongTensor`, *optional*), negatives (`int`): see `set_negatives`.
        encoder_cache (`EncoderCache`, *optional*): gives the clips' encoder states instead of their log-mel.
        check_rows (`bool`): whether to check each row. `soundwave-hf train` checks rows when it opens the data, and
            not again in each batch.

    Raises: `ValueError` for a row from which nothing can be learnt, with the value.

    Example:

    ```python
    >>> from soundwave_hf import SoundwaveDataCollator

    >>> collator = SoundwaveDataCollator(processor)
    >>> sorted(collator([{"audio": "speech.wav", "text": "hello"}]))
    ['attention_mask', 'ctc_labels', 'input_features', 'input_features_mask', 'input_ids', 'labels']
    ```
    """

    processor: Any
    folder: str | Path = "."
    losses: tuple[str, ...] = ("ce", "ctc")
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int = 0
    epoch: int = 0
    spoken_ids: torch.Tensor | None = None
    negatives: int = 0
    encoder_cache: EncoderCache | None = None
    check_rows: bool = True
    _digests: dict[str, str] = field(default_factory=dict, init=False, repr=False)  # of clips, by their path

    def __post_init__(self):
        self.folder = Path(self.folder)
        if unknown := set(self.losses) - {"ce", "ctc"}:
            raise ValueError(
                f'`losses` are {self.losses!r}, which holds {sorted(unknown)}: give a tuple of "ce", "ctc" or both.'
            )
        if "ce" in self.losses and self.processor.tokenizer.eos_token_id is None:
            raise ValueError(
                "The LLM's tokenizer has no `eos_token`, with which an answer ends: set "
                "`processor.tokenizer.eos_token` to the token that closes a turn of its chat template."
            )
        self.check = RowCheck.of(self.processor, self.losses) if self.check_rows else None
        self._prompt_ids = lru_cache(maxsize=10_000)(self._tokenize_prompt)

    def __getstate__(self):
        # Spawned workers get the collator as a pickle, and an `lru_cache` cannot be pickled.
        return {name: value for name, value in vars(self).items() if name != "_prompt_ids"}

    def __setstate__(self, state: dict):
        vars(self).update(state)
        self.__post_init__()

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """`list` of rows -> a batch of tensors, as `SoundwaveForConditionalGeneration.forward` takes them."""
        if self.check is not None:
            for index, row in enumerate(rows):
                self.check(row, f"Row {row.get('row', index)}")
        clips = [(clip, row, place) for row in rows for place, clip in enumerate(clips_of(row))]
        batch = self._encoder_inputs(clips) if clips else {}
        if "ctc" in self.losses and clips:
            batch.update(self._transcripts(rows))
        if "ce" in self.losses:
            batch.update(self._conversations(rows))
        if TASK in rows[0]:  # for the trainer, which counts them
            batch["task_ids"] = torch.tensor([row[TASK] for row in rows])
        return batch

    def _encoder_inputs(self, clips: list[tuple[Any, dict, int]]) -> dict[str, torch.Tensor]:
        """Log-mel or cached encoder states of clips; with each come its row and its place in the row."""
        if self.encoder_cache is not None:
            variants = self.encoder_cache.variants
            return self.encoder_cache.read(
                [self.clip_name(clip, self._epoch_of(row) % variants) for clip, row, _ in clips]
            )
        return self.features([clip for clip, _, _ in clips], [self._draw(*each) for each in clips])

    def _epoch_of(self, row: dict) -> int:
        """The epoch, or in a stream that is read again and again its pass."""
        return self.epoch + row.get(PASS, 0)

    def _draw(self, clip, row: dict, place: int) -> tuple[int, ...]:
        """The seed of a clip's augmentation in this epoch."""
        if not any(vars(self.augmentation).values()):
            return (self.seed,)
        if (number := _number_of(row)) is None:
            return self.clip_draw(clip, self._epoch_of(row))
        return (self.seed, self._epoch_of(row), number, *([place] if place else []))

    def _transcripts(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        spoken = [(text, row.get("language")) for row in rows for text in transcripts_of(row)]
        texts = [text for text, _ in spoken]
        targets = [self._token_ids(self.processor.ctc_target(text or "", language)) for text, language in spoken]
        batch = {"ctc_labels": pad_sequence(targets, batch_first=True, padding_value=-100)}
        if "ce" not in self.losses:  # the name that `Trainer` looks for
            batch["labels"] = batch["ctc_labels"]
        if None in texts:
            batch["ctc_mask"] = torch.tensor([text is not None for text in texts])
        if self.spoken_ids is not None:
            batch["ctc_candidates"] = self._draw_candidates(rows)
        return batch

    def set_negatives(self, texts: Iterable[str | tuple[str, str | None]], negatives: int):
        """Compute the CTC of later batches over the tokens of these transcripts and `negatives` random others.

        Args: texts: transcripts, or pairs of a transcript and its language.

        Raises: `ValueError` where `negatives` is not between 0 and the size of the vocabulary.
        """
        if not 0 <= negatives <= len(self.processor.tokenizer):
            raise ValueError(
                f"`ctc_negatives` is {negatives}; give 0 to {len(self.processor.tokenizer)}, the LLM's vocabulary."
            )
        pairs = ((text, None) if isinstance(text, str) else text for text in texts)
        targets = [self.processor.ctc_target(text, language) for text, language in pairs]
        spoken = self.processor.tokenizer(targets, add_special_tokens=False).input_ids
        self.spoken_ids = torch.tensor(sorted(set().union(*spoken)), dtype=torch.long)
        self.negatives = negatives

    def _draw_candidates(self, rows: list[dict]) -> torch.Tensor:
        first = _number_of(rows[0])
        if first is None:
            first = int(text_digest(rows[0])[:16], 16)
        rng = np.random.default_rng((self.seed, self._epoch_of(rows[0]), first, 1))
        others = rng.choice(len(self.processor.tokenizer), size=self.negatives, replace=False)
        return torch.cat([self.spoken_ids, torch.from_numpy(others)]).unique()

    def features(self, clips: list, draws: list[tuple[int, ...]]) -> dict[str, torch.Tensor]:
        """Log-mel `input_features` of clips (or rows of one clip) and their mask; `draws` has the seed of each."""
        extractor = self.processor.feature_extractor
        generators = [np.random.default_rng(draw) for draw in draws]
        clips = self.processor.load_clips([at_folder(_one_clip(clip), self.folder) for clip in clips])
        clips = [
            self.augmentation.change_samples(clip, extractor.sampling_rate, rng)
            for clip, rng in zip(clips, generators, strict=True)
        ]
        batch = self.processor.log_mel(clips)
        lengths = batch["input_features_mask"].sum(axis=1)
        for features, length, rng in zip(batch["input_features"], lengths, generators, strict=True):
            features[:, :length] = self.augmentation.mask_features(features[:, :length], rng)
        return {name: torch.from_numpy(values) for name, values in batch.items()}

    def clip_name(self, clip, variant: int) -> str:
        """The name of one version of a clip (or of a row of one) in an `EncoderCache`, by its content and changes."""
        changes = vars(self.augmentation)
        drawn = [changes, self.clip_draw(clip, variant)] if any(changes.values()) else None
        return version_name(self._digest(clip), self.processor.trailing_silence, drawn)

    def clip_draw(self, clip, variant: int) -> tuple[int, ...]:
        """The seed of the changes to one version of a clip; it does not depend on the row."""
        return self.seed, variant, int(self._digest(clip)[:16], 16)

    def _digest(self, clip) -> str:
        clip = at_folder(_one_clip(clip), self.folder)
        if isinstance(clip, Mapping) and clip.get("bytes") is None and clip.get("array") is None:
            clip = clip["path"]
        if not isinstance(clip, str):
            return clip_digest(clip)
        if (digest := self._digests.get(clip)) is None:
            digest = self._digests[clip] = clip_digest(clip)
        return digest

    # ---- what the LLM reads and learns ----

    def _conversations(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        pairs = [self._conversation(conversation_of(row, ASR_QUESTION)) for row in rows]
        whole, labels = [ids for ids, _ in pairs], [labels for _, labels in pairs]
        pad_id = self.processor.tokenizer.pad_token_id
        return {
            "input_ids": pad_sequence(whole, batch_first=True, padding_value=pad_id),
            "attention_mask": pad_sequence([torch.ones_like(ids) for ids in whole], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
        }

    def _conversation(self, messages: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
        """Messages -> their ids `(tokens,)` up to the end of the last answer, and labels: -100 outside of answers."""
        if len(messages) == 2 and messages[0]["role"] == "user":
            prompt = self._prompt_ids(tuple(part.get("text") for part in messages[0]["content"]))
            answer = torch.cat([self._token_ids(_text_of(messages[1])), self._end()])
            return torch.cat([prompt, answer]), torch.cat([torch.full_like(prompt, -100), answer])
        ids, labels = [], []
        for text, is_answer in self._spans(messages):
            tokens = self._token_ids(text)
            ids.append(tokens)
            labels.append(tokens if is_answer else torch.full_like(tokens, -100))
        if ids[-1][-1:].tolist() != self._end().tolist():
            ids.append(self._end())
            labels.append(self._end())
        return torch.cat(ids), torch.cat(labels)

    def _spans(self, messages: list[dict]) -> list[tuple[str, bool]]:
        """The text of a conversation in pieces, and whether the assistant writes each.

        The marks of the chat template (`{% generation %}`) say so. Without them the whole conversation must begin with
        the conversation up to each answer.
        """
        if GENERATION_MARKS.search(self.processor.chat_template or ""):
            return self._marked_spans(messages)
        spans, done = [], ""
        last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
        whole = self._render(messages[: last + 1])
        for index, message in enumerate(messages[: last + 1]):
            if message["role"] != "assistant":
                continue
            before, after = self._before_answer(messages[:index]), self._render(messages[: index + 1])
            if not (whole.startswith(before) and before.startswith(done)) or not whole.startswith(after.rstrip()):
                raise ValueError(
                    "The LLM's chat template changes an earlier turn when a later one follows, so the answers in "
                    f"{len(messages)} messages cannot be found: give each answer its own row, or use a template with "
                    "`{% generation %}` marks."
                )
            spoken = self._up_to_end(after[len(before) :], _text_of(message))
            spans += [(before[len(done) :], False), (spoken, True)]
            done = before + spoken
        return spans

    def _before_answer(self, messages: list[dict]) -> str:
        """What a template writes before an answer to these messages. There may be none: an answer can come first."""
        if messages:
            return self._render(messages, prompted=True)
        return self._render([{"role": "assistant", "content": [{"type": "text", "text": BEGIN}]}]).partition(BEGIN)[0]

    def _up_to_end(self, written: str, answer: str) -> str:
        """What a template wrote for an answer, up to its end token if there is one."""
        if not written.lstrip().startswith(answer.strip()):
            raise ValueError(
                f"The LLM's chat template writes the answer {answer[:60]!r} as {written[:60]!r}: give it a template "
                "with `{% generation %}` marks."
            )
        end = self.processor.tokenizer.eos_token
        found = written.find(end)
        return written[: found + len(end)] if found >= 0 else written.rstrip()

    def _marked_spans(self, messages: list[dict]) -> list[tuple[str, bool]]:
        marked = copy.copy(self.processor)
        marked.chat_template = GENERATION_MARKS.sub(
            lambda mark: f'{{%{mark[1]} if true %}}{{{{ "{END if mark[2] else BEGIN}" }}}}{{% endif {mark[3]}%}}',
            self.processor.chat_template,
        )
        text = marked.apply_chat_template(messages, tokenize=False)
        answers = sum(message["role"] == "assistant" for message in messages)
        if text.count(BEGIN) != answers or text.count(END) != answers:
            raise ValueError(
                f"The LLM's chat template marks {text.count(BEGIN)} answers of {answers}: every turn of the assistant "
                "needs its `{% generation %}`."
            )
        spans = []
        for piece in text.split(END)[:-1]:
            before, _, answer = piece.partition(BEGIN)
            spans += [(before, False), (answer, True)]
        return spans

    def _render(self, messages: list[dict], prompted: bool = False) -> str:
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted)

    def _end(self) -> torch.Tensor:
        return torch.tensor([self.processor.tokenizer.eos_token_id])

    def _token_ids(self, text: str) -> torch.Tensor:
        return torch.tensor(self.processor.tokenizer(text, add_special_tokens=False).input_ids, dtype=torch.long)

    def _tokenize_prompt(self, texts: tuple[str | None, ...]) -> torch.Tensor:
        """Ids of a user's turn of these parts (None is a clip) and of the prompt for the answer."""
        content = [{"type": "audio"} if text is None else {"type": "text", "text": text} for text in texts]
        return self._token_ids(self._render([{"role": "user", "content": content}], prompted=True))


def _one_clip(clip):
    """A clip itself, or the only one of a row."""
    return clips_of(clip)[0] if isinstance(clip, Mapping) and "audio" in clip else clip


def _number_of(row: dict) -> int | None:
    """The row's number, from which random draws follow. Raises: `ValueError` if its `row` is something else."""
    if (number := row.get("row")) is None:
        return None
    number = plain_number(number)
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError(
            f"A row has `row` {number!r}; random draws follow from the row's number in this column, 0 or more. Rename "
            "the column, or leave it out."
        )
    return number


def _text_of(message: dict) -> str:
    return "".join(part["text"] for part in message["content"])


def text_digest(row: dict) -> str:
    """Digest of a row's transcripts: the seed of draws if the row has no number."""
    return version_name("", list(transcripts_of(row)))


SoundwaveCollator = SoundwaveDataCollator  # its name in version 0.1.0

__all__ = ["SoundwaveCollator", "SoundwaveDataCollator", "ctc_text"]
