"""`generate` with word times: the steps before and after the library's generation."""

from dataclasses import dataclass

import torch
from transformers import GenerationConfig
from transformers.generation import GenerateBeamDecoderOnlyOutput, LogitsProcessor

from .answers_soundwave import pad_answers
from .ctc_text_soundwave import bridge_of, find_tokenizer
from .decoding_soundwave import given_option
from .drafts_soundwave import OUTPUTS
from .inputs_soundwave import has_clips
from .support_soundwave import (
    CHUNKS,
    LEAST_SUPPORT,
    CTCClip,
    ScoredWord,
    add_llm_log_probs,
    check_kind,
    clip_probability,
    score_words,
    text_of,
)
from .word_times_soundwave import owners, sound_seconds, to_bytes


KEPT_TOKENS = 64  # likeliest tokens kept at each step; any other token counts as likely as the last of them


@dataclass
class SoundwaveGenerateOutput(GenerateBeamDecoderOnlyOutput):
    """Output of `generate` with `return_timestamps`: the library's fields, and these.

    Args:
        texts (`list[str]`): the transcript of each row.
        chunks (`list[list[dict]]`): its words or segments; see `SoundwaveProcessor.align_word_timestamps`.
        probabilities (`torch.FloatTensor` of shape `(rows,)`): one score of each transcript, from 0 to 1.
        clips (`list[CTCClip]`): scores of the clips, to align other texts with.
    """

    texts: list[str] | None = None
    chunks: list[list[dict]] | None = None
    probabilities: torch.FloatTensor | None = None
    clips: list[CTCClip] | None = None


class TokenLogProbs(LogitsProcessor):
    """Stores the log-probabilities of the likeliest tokens of each step. Scores are not changed."""

    def __init__(self):
        self.steps = {}  # row length before a step -> tokens, values; refused drafts are overwritten
        self.rows = {}  # with drafts, which are checked row by row: the log-probabilities of each row

    def for_row(self, row: int) -> "TokenLogProbs":
        """The same for one row of the batch alone."""
        return self.rows.setdefault(row, TokenLogProbs())

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        log_probs = scores.float().log_softmax(dim=-1)
        values, tokens = log_probs.topk(min(KEPT_TOKENS, scores.shape[-1]), dim=-1)
        self.steps[input_ids.shape[1]] = (tokens.cpu(), values.cpu())
        return scores

    def of_sequences(self, sequences: torch.LongTensor, begin: int, beam_indices=None) -> list[list[float]]:
        """Log-probability of each token from `begin` on. Tokens after the last step have none."""
        if self.rows:
            return [self.rows[row].of_sequences(sequences[row : row + 1], begin)[0] for row in range(len(sequences))]
        found = [[] for _ in sequences]
        for place in range(begin, sequences.shape[1]):
            if place not in self.steps:
                break
            tokens, values = self.steps[place]
            rows = torch.arange(len(sequences))
            if beam_indices is not None:
                if place - begin >= beam_indices.shape[1]:
                    break
                rows = beam_indices[:, place - begin].cpu().clamp(min=0)
            is_chosen = tokens[rows] == sequences[:, place, None].cpu()
            chosen = values[rows].masked_fill(~is_chosen, -torch.inf).amax(dim=1)
            chosen = torch.maximum(chosen, values[rows, -1])
            for row, value in enumerate(chosen.tolist()):
                found[row].append(value)
        return found


def check_drops(options: dict, configs: list):
    """Refuse what does not go with `drop_unsupported`.

    Args: options: of `generate`; configs: generation configs with what they leave out.

    Raises: `ValueError` if the answer is shown while it is written, or has values for each of its tokens.
    """
    if not given_option("drop_unsupported", options, configs):
        return
    if options.get("streamer") is not None:
        raise ValueError(
            "`drop_unsupported` and a `streamer` were given, but unsupported words are only known when the answer is "
            "complete: leave one of them out."
        )
    for name in OUTPUTS:
        if given_option(name, options, configs):
            raise ValueError(
                f"`drop_unsupported` and `{name}` were given, but the values of `{name}` belong to the tokens of all "
                "words: leave one of them out."
            )


class TimesRequest:
    """Options of a call of `generate`: word times, and removal of unsupported words.

    Args:
        kind: "word", "segment" or None.
        drops: whether to remove words that the sound does not support.
        returns_dict: whether the caller set `return_dict_in_generate`.
        pad: the padding id of the call, or None.
    """

    def __init__(self, kind: str | None, drops: bool, returns_dict: bool, tokenizer, pad: int | None):
        self.kind, self.drops, self.returns_dict, self.tokenizer = kind, drops, returns_dict, tokenizer
        self.pad = pad
        self.log_probs = TokenLogProbs()

    @classmethod
    def take(cls, model, input_ids, config: GenerationConfig | None, kwargs: dict) -> "TimesRequest | None":
        """Remove the options from the arguments of `generate`; None if none is set.

        Defaults of a generation config have no effect on calls without a transcription request.

        Raises: `ValueError` for an unknown value, or if a row is not a transcription of one clip.
        """
        configs = [config, model.generation_config]
        is_asked = any(kwargs.get(name) is not None for name in ("return_timestamps", "drop_unsupported"))
        kind, drops, returns_dict, pad = (
            given_option(name, kwargs, configs)
            for name in ("return_timestamps", "drop_unsupported", "return_dict_in_generate", "pad_token_id")
        )
        own = {name: kwargs.pop(name, None) for name in ("return_timestamps", "drop_unsupported")}
        marked = kwargs.get("is_transcription")
        has_requests = marked is not None and bool(torch.as_tensor(marked).any())
        if (kind in (None, False) and not drops) or not (is_asked or has_requests):
            return None
        name = "drop_unsupported" if kind in (None, False) else "return_timestamps"
        kind = None if kind in (None, False) else check_kind(kind)
        _check_rows(model, name, input_ids, kwargs)
        check_drops({**kwargs, **own}, configs)
        kwargs["return_dict_in_generate"] = True
        return cls(kind, bool(drops), bool(returns_dict), find_tokenizer(model, kwargs.get("tokenizer")), pad)

    def finish(self, outputs, input_ids: torch.LongTensor, ends: set[int], clips: list[CTCClip]):
        """The output of `generate`, from the output of the library's `generate`."""
        begin, copies = input_ids.shape[1], len(outputs.sequences) // len(clips)
        bridge = bridge_of(self.tokenizer, clips[0].form)
        log_probs = self.log_probs.of_sequences(outputs.sequences, begin, outputs.get("beam_indices"))
        texts, words, answers = [], [], []
        for row, answer in enumerate(outputs.sequences[:, begin:].tolist()):
            end = next((place for place, token in enumerate(answer) if token in ends), len(answer))
            pieces = [bridge.bytes_of[token] if token < len(bridge.bytes_of) else b"" for token in answer[:end]]
            while pieces and not pieces[-1]:  # control tokens behind the text, such as padding
                pieces.pop()
            text = b"".join(pieces).decode(errors="surrogateescape")  # a token may be a part of a character
            scored = score_words(clips[row // copies], text, bridge, LEAST_SUPPORT)
            if len(log_probs[row]) >= len(pieces):
                add_llm_log_probs(scored, pieces, log_probs[row][: len(pieces)])
            if self.drops and not all(word.supported for word in scored):
                answer = _without(answer, owners(pieces, [word.span for word in scored]), scored)
                scored = [word for word in scored if word.supported]
                text = text_of(scored)
            texts.append(to_bytes(text).decode(errors="replace").strip())
            words.append(scored)
            answers.append(answer)
        if self.drops:
            fields = {**outputs, "sequences": self._rewritten(outputs.sequences, begin, answers, ends)}
            fields.pop("beam_indices", None)  # of the tokens of all words
            outputs = type(outputs)(**fields)
        if self.kind is None:
            return outputs if self.returns_dict else outputs.sequences
        scores = [clip_probability(scored, clips[row // copies]) for row, scored in enumerate(words)]
        return SoundwaveGenerateOutput(
            **outputs,
            texts=texts,
            chunks=[CHUNKS[self.kind](scored) for scored in words],
            probabilities=torch.tensor(scores, device=outputs.sequences.device),
            clips=[clips[row // copies] for row in range(len(words))],
        )

    def _rewritten(self, sequences: torch.LongTensor, begin: int, answers: list[list[int]], ends: set[int]):
        """Sequences with new answers, padded on the right."""
        rows = pad_answers(answers, ends, self.pad, self.tokenizer)
        answer_ids = torch.tensor(rows, dtype=sequences.dtype, device=sequences.device)  # [rows, tokens]
        return torch.cat([sequences[:, :begin], answer_ids], dim=1)


def _without(answer: list[int], owner: list[int | None], words: list[ScoredWord]) -> list[int]:
    """An answer's tokens without those of unsupported words. The end token is kept."""
    if not any(word.supported for word in words):
        return answer[len(owner) :]
    kept = [word is None or words[word].supported for word in owner]
    return [token for token, keep in zip(answer[: len(kept)], kept, strict=True) if keep] + answer[len(owner) :]


def _check_rows(model, name: str, input_ids, kwargs: dict):
    if input_ids is None or kwargs.get("inputs_embeds") is not None or not has_clips(kwargs):
        raise ValueError(
            f"`{name}` was given without clips: it needs `input_ids` and the `input_features` of one clip a row, "
            "which `processor.apply_transcription_request` makes. A cache does not hold them."
        )
    marked = kwargs.get("is_transcription")
    marked = [False] * len(input_ids) if marked is None else torch.as_tensor(marked).tolist()
    wrong = next((row for row, mark in enumerate(marked) if not mark), None)
    if wrong is not None:
        raise ValueError(
            f"`{name}` was given and row {wrong} is not a transcription request, so its words cannot be aligned "
            "with a clip: use `processor.apply_transcription_request`, or leave the option out for this row."
        )
    clips = (input_ids == model.config.audio_token_id).sum(dim=1).tolist()
    wrong = next((row for row, number in enumerate(clips) if number != 1), None)
    if wrong is not None:
        raise ValueError(
            f"`{name}` was given and row {wrong} holds {clips[wrong]} clips, but words are aligned with one clip: "
            "give one clip in each row."
        )


def ctc_clips(model, audio, input_features=None, input_features_mask=None, frames=None) -> list[CTCClip]:
    """`CTCClip` of each clip. Args: audio: output of `get_audio_features`; frames: its `ctc_frames`, if computed."""
    config = model.config
    seconds = config.frame_seconds
    ends = [int(frames) * seconds for frames in audio.num_frames]
    if input_features is not None:
        lengths = [input_features.shape[-1]] * len(ends)
        if input_features_mask is not None:
            lengths = input_features_mask.sum(dim=1).tolist()
        ends = [sound_seconds(features, length) for features, length in zip(input_features, lengths, strict=True)]
    form = config.ctc_text
    frames = model.base_model.ctc_frames(audio) if frames is None else frames
    return [CTCClip(own, seconds, end, config.label_peak, form) for own, end in zip(frames, ends, strict=True)]


__all__ = ["SoundwaveGenerateOutput", "TimesRequest", "check_drops", "ctc_clips"]
