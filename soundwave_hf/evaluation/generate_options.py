"""Options of `generate` for many recordings: errors are found before a model is loaded."""

import difflib
from collections.abc import Mapping
from numbers import Integral
from types import SimpleNamespace
from typing import Any

from transformers import GenerationConfig
from transformers.generation import StoppingCriteriaList

from ..modeling.decoding_soundwave import CTC_OPTIONS, take_ctc_decoding
from ..modeling.hotwords_soundwave import check_hotwords, has_lists
from ..modeling.positions_soundwave import POSITION_OPTIONS, take_position_limits
from ..modeling.timed_generation_soundwave import check_drops


# Options of transcription requests alone.
TRANSCRIPT_OPTIONS = (*CTC_OPTIONS, "drop_unsupported")
# Options of `generate` that have a name of their own here.
OWN_OPTIONS = {
    "max_new_tokens": "The number of tokens has an option of its own.",
    "language": "The language has an option of its own: `language` (`--language`).",
    "num_return_sequences": "Each clip gets one text.",
    "transcription_num_beams": "It is a default of generation configs: give `num_beams`.",
    "return_timestamps": "Word times have an option of their own: `word_times` (`--word-times`).",
}
# Entries of a generation config that say where it comes from.
NO_OPTIONS = ("transformers_version", "_from_model_config")
# A model before it is loaded: its generation config sets nothing, and its frames may be of any length.
ANY_MODEL = SimpleNamespace(generation_config=GenerationConfig(), config=SimpleNamespace(frame_seconds=0.0))


def default_options(place: str) -> dict[str, Any]:
    """What the generation config of a folder or hub name sets, without token ids; empty if there is no config."""
    try:
        config = GenerationConfig.from_pretrained(place)
    except OSError:
        return {}
    names = config.to_diff_dict().items()
    return {name: value for name, value in names if not name.endswith("_token_id") and name not in NO_OPTIONS}


def is_whole(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_count(value) -> bool:
    return is_whole(value) and value >= 1


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_flag(value) -> bool:
    return isinstance(value, bool)


def are_ids(value) -> bool:
    return is_whole(value) or (isinstance(value, (list, tuple)) and all(map(is_whole, value)))


def are_texts(value) -> bool:
    return isinstance(value, str) or (isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value))


# What the library's `generate` does not check, or only when it fails.
KINDS = (
    (
        "a whole number",
        is_whole,
        *("max_length", "min_length", "min_new_tokens", "top_k", "no_repeat_ngram_size"),
        *("encoder_no_repeat_ngram_size", "prompt_lookup_num_tokens", "max_matching_ngram_size"),
    ),
    ("a whole number of 1 or more", is_count, "num_beams"),
    (
        "a number",
        is_number,
        *("max_time", "temperature", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
        *("repetition_penalty", "encoder_repetition_penalty", "length_penalty", "guidance_scale"),
    ),
    (
        "true or false",
        is_flag,
        *("do_sample", "use_cache", "drop_unsupported", "renormalize_logits", "remove_invalid_values"),
        *("token_healing", "output_attentions", "output_hidden_states", "output_scores", "output_logits"),
        "return_dict_in_generate",
    ),
    (
        "a token's id, or a list of ids",
        are_ids,
        *("eos_token_id", "pad_token_id", "bos_token_id", "suppress_tokens", "begin_suppress_tokens"),
    ),
    ("a text, or a list of texts", are_texts, "stop_strings"),
)


def check_generate(options: Mapping[str, Any], needs_times: bool = False, streamer=None):
    """Refuse options of `generate` that work with no recording and no model.

    Args: needs_times: whether word times or probabilities are requested too.

    Raises: `ValueError` for what is no option of `generate`, is decided elsewhere, has a wrong value, or cannot be
        combined with another option.
    """
    known = {*vars(GenerationConfig()), *TRANSCRIPT_OPTIONS, *POSITION_OPTIONS} - OWN_OPTIONS.keys()
    for name in options:
        if name.startswith("_") or name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = OWN_OPTIONS.get(name) or (f"Did you mean `{near[0]}`?" if near else "Leave it out.")
            raise ValueError(f"`generate` has the option `{name}`, which is not taken here. {hint}")
    options = {name: value for name, value in options.items() if value is not None}
    for kind, is_kind, *names in KINDS:
        for name in names:
            if name in options and not is_kind(options[name]):
                raise ValueError(f"`{name}` is {options[name]!r}; expected {kind}.")
    if "hotwords" in options and has_lists(check_hotwords(options["hotwords"])):
        raise ValueError("`hotwords` holds lists; expected phrases, which are for all recordings here.")
    check_together(options, needs_times, streamer)


def check_together(options: Mapping[str, Any], needs_times: bool, streamer):
    """The checks of `generate` itself for options that exclude each other, without a model."""
    given = {**options, "is_transcription": True, "input_features": True}
    check_drops({**given, "streamer": streamer}, [])
    drops = given.pop("drop_unsupported", False)
    take_position_limits(ANY_MODEL, None, given)
    take_ctc_decoding(ANY_MODEL, None, given, needs_times=needs_times or drops)
    drafted = given.pop("custom_generate", None)
    own = {name: value for name, value in given.items() if name in vars(GenerationConfig())}
    try:
        config = GenerationConfig(**{"use_cache": True, **own})
    except (TypeError, AttributeError) as error:
        raise not_taken(options, error) from error
    if drafted is not None:
        drafted.refuse_options(config, StoppingCriteriaList(), False, streamer)


def not_taken(options: Mapping[str, Any], error: Exception) -> ValueError:
    """An error of the library's own code, as a sentence about the options that caused it."""
    return ValueError(
        f"`generate` is {dict(options)}, and the library's `generate` fails with it ({type(error).__name__}: "
        f"{error}): correct the option, or leave it out."
    )


__all__ = ["TRANSCRIPT_OPTIONS", "check_generate", "not_taken"]
