"""Configuration of Soundwave: a frozen Whisper encoder, two small adapters, any causal LM."""

import difflib
import math
import os
from dataclasses import fields
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, WhisperConfig
from transformers.configuration_utils import SubConfigSpec


PUBLISHED_MODEL_TYPE = "Soundwave"  # in the config.json of the authors' own checkpoints
# Defaults of the fields in which the paper and the published code differ.
COMPAT = {
    "paper": {"alignment_attention": "sequence", "look_back": "all", "keep_blanks": True, "tie_ctc_head": True},
    "published": {"alignment_attention": "frame", "look_back": "kept", "keep_blanks": True, "tie_ctc_head": False},
}
# In a saved model's config, so that the Auto classes find the code that is saved with it.
AUTO_MAP = {
    "AutoConfig": "configuration_soundwave.SoundwaveConfig",
    "AutoModel": "modeling_soundwave.SoundwaveForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_soundwave.SoundwaveForConditionalGeneration",
    "AutoModelForSeq2SeqLM": "modeling_soundwave.SoundwaveForConditionalGeneration",
    "AutoModelForSpeechSeq2Seq": "modeling_soundwave.SoundwaveForConditionalGeneration",
    "AutoProcessor": "processing_soundwave.SoundwaveProcessor",
}
# Keyword arguments of `PreTrainedConfig` that are not among its fields. Any other unknown keyword is an error.
_INHERITED_KEYWORDS = {
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "per_layer_config",
    "quantization_config",
    "torch_dtype",
    "use_cache",
}
# Fields of backbones that must be 1 or more. (`_refuse_mistaken_part` checks them in a dict.)
_SIZES = {
    "d_model",
    "encoder_attention_heads",
    "encoder_layers",
    "hidden_size",
    "max_source_positions",
    "num_attention_heads",
    "num_hidden_layers",
    "num_mel_bins",
    "vocab_size",
}


@strict
class SoundwaveConfig(PreTrainedConfig):
    r"""
    Configuration of [`SoundwaveForConditionalGeneration`] and of its parts.

    Args:
        audio_config (`dict` or [`WhisperConfig`], *optional*): the audio encoder; only its encoder is used.
        text_config (`dict` or `PreTrainedConfig`, *optional*, defaults to Llama): any causal LM.
        audio_token_id (`int`, *optional*): id of the audio token, one per clip in `input_ids`, and the CTC blank.
            Defaults to the last id of the LLM's vocabulary.
        stack_factor (`int`): encoder frames (20 ms each) joined into one aligned frame.
        alignment_layers (`int`): Transformer layers of the alignment adapter (paper: 1).
        compat (`"paper"` or `"published"`): names the defaults of the next four fields: what arXiv 2502.12900 says, or
            what the code behind the published weights computes.
        alignment_attention (`"sequence"` or `"frame"`): a frame of the alignment layer attends to its whole clip, or
            only to itself.
        look_back (`"all"` or `"kept"`): frames that the kept frames attend to in the shrinking adapter (Eq. 1).
        keep_blanks (`bool`): whether one frame of each run of blanks becomes a position too.
        tie_ctc_head (`bool`): whether the CTC head uses the LLM's input embeddings (Figure 2), or a separate
            matrix.
        blank_margin (`float`): nats by which the blank must exceed a frame's likeliest token to be the frame's label.
            CTC prefers the blank if it is unsure. With a margin above 0, unsure frames keep their token for the LLM.
        label_embeddings (`bool` or `"expected"`): whether to add to each position the LLM's embedding of its CTC
            label, so that the LLM can read the CTC transcript from the first training step. `"expected"` adds the mean
            embedding of the 16 likeliest tokens, weighted by their CTC probabilities (as LegoSLM, arXiv 2505.11352):
            the LLM also reads what else the CTC head may have heard. False for both values of `compat`.
        adapter_heads (`int`, *optional*): attention heads of both adapters. Defaults to those of the LLM.
        adapter_dropout (`float`): dropout of the alignment layer.
        ctc_loss_weight (`float`): weight of the CTC loss when it is added to the LLM's loss.
        no_speech_threshold (`float`, *optional*): a transcription request returns an empty transcript if the CTC
            head gives the blank at least this probability at every frame of the clip. None and 0 switch this off.
        ctc_text (`"as_written"`, `"lower"` or `"lower_spelled"`): form of the CTC transcript: with case and
            punctuation; lower case without punctuation; the same with numbers as words. The processor has the same
            value and makes the targets.
        encoder_lora (`str`, *optional*): digest of the LoRA of the encoder that the adapters were trained with. The
            loaders merge it into the encoder.
        label_peak (`float`): share of a label's letters that are spoken before the frame where the CTC head scores it
            highest, for word times. `benchmarks/word_times.py` measures it.

    Example:

    ```python
    >>> from soundwave_hf import SoundwaveConfig

    >>> config = SoundwaveConfig(compat="published", text_config={"vocab_size": 100})
    >>> config.look_back, config.audio_token_id
    ('kept', 99)
    ```"""

    model_type = "soundwave"
    sub_configs_defaults = {
        "audio_config": SubConfigSpec(config_class=AutoConfig, model_type="whisper"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }
    # Output fields that `Trainer` does not gather in an evaluation.
    keys_to_ignore_at_inference = [
        "past_key_values",
        "cache",
        "ce_loss",
        "ctc_loss",
        "num_positions",
        "num_frames",
        "num_ctc_skipped",
        "ctc_best",
        "last_hidden_state",
    ]

    audio_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    audio_token_id: int | None = None
    stack_factor: int = 2
    alignment_layers: int = 1
    compat: Literal["paper", "published"] = "paper"
    alignment_attention: Literal["sequence", "frame"] | None = None
    look_back: Literal["all", "kept"] | None = None
    keep_blanks: bool | None = None
    tie_ctc_head: bool | None = None
    blank_margin: float | int = 0.0
    label_embeddings: bool | Literal["expected"] = False
    adapter_heads: int | None = None
    adapter_dropout: float = 0.1
    ctc_loss_weight: float | int = 0.3
    no_speech_threshold: float | int | None = None
    ctc_text: Literal["as_written", "lower", "lower_spelled"] = "lower"
    label_peak: float | int = 0.45
    encoder_lora: str | None = None
    tie_word_embeddings: bool | None = None

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As in transformers, but keywords are checked like the fields of the file.

        Raises: `ValueError` for a checkpoint in the published layout or of another model type, a misspelt field, a
        value out of range and another `compat` than the file's.
        """
        if config_dict.get("model_type") == PUBLISHED_MODEL_TYPE:
            raise ValueError(
                f'This config.json has model type "{PUBLISHED_MODEL_TYPE}", the layout that the authors published, '
                f'and "{cls.model_type}" was expected. Convert the folder first: `soundwave-hf convert SRC DST`.'
            )
        if config_dict.get("model_type") not in (None, cls.model_type):
            raise ValueError(
                f'This config.json has model type "{config_dict["model_type"]}" and "{cls.model_type}" was expected: '
                "load it with `AutoModel`, or join a Whisper and a causal LM with "
                "`SoundwaveForConditionalGeneration.from_backbones`."
            )
        own = cls.own_fields() - cls.sub_configs_defaults.keys()
        for name in (config_dict.keys() | kwargs.keys()) - cls.own_fields() - _known_names(cls):
            # Other unknown names may be keywords of a loader (`device_map`) or attributes that a user saved.
            if near := difflib.get_close_matches(name, own, n=1, cutoff=0.8):
                raise ValueError(f"`SoundwaveConfig` got an unknown field `{name}`. Did you mean `{near[0]}`?")
        for part in cls.sub_configs_defaults.keys() & kwargs.keys():
            saved = config_dict.get(part) or {}
            cls._refuse_mistaken_part(part, kwargs[part], saved.get("model_type") if isinstance(saved, dict) else None)
        given = {name: kwargs.pop(name) for name in own & kwargs.keys()}
        saved = config_dict.get("compat")
        if saved is not None and given.get("compat", saved) != saved:
            raise ValueError(
                f"`compat` is set to {given['compat']!r}, and this config.json has {saved!r} and the fields that it "
                f"names ({', '.join(COMPAT[saved])}), which would stay: leave it out, or set these fields."
            )
        added = {name: config_dict[name] for name in config_dict.keys() - _known_names(cls) if name[:1] != "_"}
        known = {name: value for name, value in config_dict.items() if name not in added}
        config = super().from_dict({**known, **given}, **kwargs)
        for name, value in added.items():
            setattr(config[0] if isinstance(config, tuple) else config, name, value)
        return config

    def save_pretrained(self, save_directory, names_from: str | os.PathLike | None = None, **kwargs):
        """As in transformers, but folders of backbones are saved as paths relative to this folder.

        Args: names_from: the folder that will contain the file in the end; by default `save_directory`.
        """
        parts = [getattr(self, part) for part in self.sub_configs_defaults]
        names = [part.name_or_path for part in parts]
        try:
            for part in parts:
                part.name_or_path = relative_name(part.name_or_path, os.fspath(names_from or save_directory))
            super().save_pretrained(save_directory, **kwargs)
        finally:
            for part, name in zip(parts, names, strict=True):
                part.name_or_path = name

    def __post_init__(self, **kwargs):
        self._refuse_misspelt(kwargs)
        for part in self.sub_configs_defaults:
            self._refuse_mistaken_part(part, getattr(self, part))
        for name, value in COMPAT[self.compat].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        super().__post_init__(**kwargs)
        text = self.text_config
        if self.audio_token_id is None:
            self.audio_token_id = text.vocab_size - 1
        if self.adapter_heads is None:
            self.adapter_heads = text.num_attention_heads
        if self.tie_word_embeddings is None:
            self.tie_word_embeddings = bool(getattr(text, "tie_word_embeddings", False))

    def _refuse_misspelt(self, kwargs: dict):
        known = _known_names(type(self))
        for name in kwargs:
            if name in known or name.startswith("_"):
                continue
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean `{near[0]}`?" if near else f"Its own fields are {sorted(self.own_fields())}."
            raise ValueError(f"`SoundwaveConfig` got an unknown field `{name}`. {hint}")

    @classmethod
    def _refuse_mistaken_part(cls, part: str, given, model_type: str | None = None):
        """Refuse sizes below 1 and misspelt names in the dict of a backbone. (Config objects have been checked.)

        Names that resemble no field are accepted: a config.json may hold more than its class reads.
        """
        if not isinstance(given, dict):
            return
        model_type = given.get("model_type") or model_type or cls.sub_configs_defaults[part].model_type
        if model_type not in CONFIG_MAPPING:
            raise ValueError(
                f'`{part}` has model type "{model_type}", unknown to this version of transformers: pass a config '
                "object, for example from `AutoConfig.from_pretrained`."
            )
        known = _known_names(CONFIG_MAPPING[model_type]) | CONFIG_MAPPING[model_type].attribute_map.keys()
        for name, value in given.items():
            if name in _SIZES and isinstance(value, int) and value < 1:
                raise ValueError(f"`{part}.{name}` is {value}; expected 1 or more.")
            near = difflib.get_close_matches(name, known - given.keys(), n=1, cutoff=0.85)
            if name not in known and name[:1] != "_" and near and abs(len(near[0]) - len(name)) < 2:
                raise ValueError(f"`{part}` got an unknown field `{name}`. Did you mean `{near[0]}`?")

    @property
    def frame_seconds(self) -> float:
        """Seconds of an aligned frame: `stack_factor` encoder frames of 20 ms."""
        return 0.02 * self.stack_factor

    @classmethod
    def own_fields(cls) -> set[str]:
        """Names of the fields that this class adds to `PreTrainedConfig`."""
        return {field.name for field in fields(cls)} - {field.name for field in fields(PreTrainedConfig)}

    def validate_architecture(self):
        """Check the values of fields; transformers calls this. Raises: `ValueError`."""
        text = self.text_config
        self._refuse_other_backbones()
        if not 0 <= self.audio_token_id < text.vocab_size:
            raise ValueError(
                f"`audio_token_id` is {self.audio_token_id} and the LLM's vocabulary has {text.vocab_size} ids: add "
                "the audio token to the LLM first (`SoundwaveForConditionalGeneration.from_backbones` does)."
            )
        if self.adapter_heads < 1 or text.hidden_size % self.adapter_heads:
            raise ValueError(
                f"`adapter_heads` is {self.adapter_heads} and does not divide the LLM's width {text.hidden_size}. "
                "Choose a divisor of the width."
            )
        if self.stack_factor < 1:
            raise ValueError(f"`stack_factor` is {self.stack_factor}; expected 1 encoder frame or more.")
        if self.alignment_layers < 1:
            raise ValueError(f"`alignment_layers` is {self.alignment_layers}; expected 1 (as in the paper) or more.")
        if not 0 <= self.adapter_dropout < 1:
            raise ValueError(f"`adapter_dropout` is {self.adapter_dropout}; expected a number from 0 to less than 1.")
        if not math.isfinite(self.blank_margin):
            raise ValueError(
                f"`blank_margin` is {self.blank_margin}; expected a finite number of nats, 0 for plain CTC."
            )
        if not 0 <= self.ctc_loss_weight < float("inf"):
            raise ValueError(f"`ctc_loss_weight` is {self.ctc_loss_weight}; expected 0 (no CTC loss) or more.")
        if not 0 < self.label_peak < 1:
            raise ValueError(f"`label_peak` is {self.label_peak}; expected a number between 0 and 1, such as 0.45.")
        if self.no_speech_threshold is not None and not 0 <= self.no_speech_threshold < 1:
            raise ValueError(
                f"`no_speech_threshold` is {self.no_speech_threshold}; expected a number from 0 to less than 1, or "
                "None to transcribe every clip."
            )

    def _refuse_other_backbones(self):
        audio, text = self.audio_config, self.text_config
        if text.is_encoder_decoder:
            raise ValueError(
                f'`text_config` has model type "{text.model_type}", an encoder-decoder: give the config of a causal '
                "LM."
            )
        if not isinstance(audio, WhisperConfig):
            raise ValueError(
                f'`audio_config` has model type "{audio.model_type}" and "whisper" was expected: give the config of a '
                "Whisper model."
            )
        if audio.d_model % audio.encoder_attention_heads:
            raise ValueError(
                f"`audio_config.encoder_attention_heads` is {audio.encoder_attention_heads} and does not divide the "
                f"encoder's width {audio.d_model} (`d_model`). Choose a divisor of the width."
            )


def relative_name(name: str, folder: str) -> str:
    """The name of a backbone for a config in `folder`: an absolute path becomes relative, a hub name is kept."""
    if not os.path.isabs(name):
        return name
    found = os.path.relpath(name, folder).replace(os.sep, "/")
    return found if found.startswith(".") else f"./{found}"


def _known_names(config_class: type) -> set[str]:
    return {field.name for field in fields(config_class)} | _INHERITED_KEYWORDS


__all__ = ["AUTO_MAP", "SoundwaveConfig", "relative_name"]
