"""Convert text and audio to model inputs: the LLM's tokens, with one per clip, and Whisper's log-mel features."""

import difflib
import inspect
import json
import math
import os
import re
from collections.abc import Callable, Iterator

import numpy as np
import torch
from transformers import BatchFeature, WhisperFeatureExtractor
from transformers.audio_utils import AudioInput, prepare_language_inputs
from transformers.processing_utils import (
    AudioKwargs,
    ProcessingKwargs,
    ProcessorMixin,
    TextKwargs,
    Unpack,
    prepare_prompt_input,
)
from transformers.tokenization_utils_base import TextInput
from transformers.utils import PROCESSOR_NAME, logging

from .audio_soundwave import (
    AUDIO_OPTIONS,
    AudioOptions,
    audio_of_part,
    flatten_clips,
    is_clip_list,
    lacks_rate,
    load_clip,
)
from .chat_soundwave import (
    FLATTEN_PARTS,
    SYSTEM_PROMPT,  # noqa: F401 (for those who import it from here, as in 0.1.0)
    refuse_clip_at_end,
    standard_parts,
    takes_strings,
    with_system_prompt,
)
from .languages_soundwave import LANGUAGE_NAMES, language_names
from .llm_tokenizer_soundwave import (
    HUB_OPTIONS,
    find_file,
    lacks_tokenizer,
    local_backbone,
    locate_tokenizer,
    named_llm,
    read_config,
    read_llm_tokenizer,
)
from .text_soundwave import check_ctc_text, normalize_text


# Keywords of `from_pretrained` that a pipeline gives to the processor too. The LLM's tokenizer does not take them: it
# would save them with its own options, and code of the adapters' repository is not code of the LLM's.
NOT_FOR_TOKENIZER = (
    *("subfolder", "dtype", "torch_dtype", "device_map", "attn_implementation", "quantization_config", "max_memory"),
    *("low_cpu_mem_usage", "offload_folder", "offload_buffers", "use_safetensors", "weights_only", "adapter_kwargs"),
    *("trust_remote_code", "code_revision", "tokenizer_type", "return_unused_kwargs"),
    *("_from_auto", "_from_pipeline", "_commit_hash"),
)


logger = logging.get_logger(__name__)


AUDIO_TOKEN = "<|audio|>"
# Paper, section "Prompts": question of speech recognition.
ASR_QUESTION = "What does the person say?"

OWN_FIELDS = ("audio_token", "trailing_silence", "require_sampling_rate", "chat_template", "ctc_text")
RETURN_FORMATS = ("raw", "parsed", "transcription_only")
CTC_TEXT = "lower"  # for a new CTC head; see `ctc_text` of the processor
TRAILING_SILENCE = 0.3  # seconds; Whisper was trained on speech with silence behind it
NO_PROCESSOR = (
    f"`{{}}` holds no {PROCESSOR_NAME}, which has settings of its adapters: give a folder that `soundwave-hf train` "
    "or `soundwave-hf export` wrote."
)
MIN_MEL_FRAMES = 4  # 40 ms: two mel frames make an encoder frame, two encoder frames make one position


def name_of(tokenizer) -> str:
    return tokenizer.name_or_path or type(tokenizer).__name__


def transcription_question(prompt: str | None, language: str | None) -> str:
    """The paper's question, or the caller's. It names the language, except English, the language of training."""
    question = ASR_QUESTION if prompt is None else prompt
    if language in (None, "english"):
        return question
    return f"{question} The speech is in {language.title()}."


def check_lists(name: str, lists, clips: int):
    """Raises: `ValueError` for no list, and if there are several and their number is not that of the clips."""
    if isinstance(lists, (str, Iterator)):
        raise ValueError(f"`{name}` is {lists!r}; expected a list of texts, or a list for each clip.")
    is_nested = lists is not None and any(not isinstance(own, str) for own in lists)
    if is_nested and len(lists) != clips:
        raise ValueError(f"`{name}` holds {len(lists)} lists for {clips} clips: give one for each, or one for all.")


def marks(rows: int, input_ids):
    """A mask `(rows,)` that is true for each row, with the type of the ids: tensor, array or list."""
    if isinstance(input_ids, (torch.Tensor, np.ndarray)):
        return (torch if isinstance(input_ids, torch.Tensor) else np).ones(rows, dtype=bool)
    return [True] * rows


def trained_values(adapter: str | os.PathLike) -> dict:
    """`trailing_silence` and `ctc_text` at the training of adapters; by default 0 and "lower".

    Raises: `FileNotFoundError` if the folder has no processor_config.json.
    """
    path = os.path.join(adapter, PROCESSOR_NAME)
    if not os.path.isfile(path):
        raise FileNotFoundError(NO_PROCESSOR.format(adapter))
    with open(path, encoding="utf-8") as file:
        saved = json.load(file)
    return {"trailing_silence": saved.get("trailing_silence", 0.0), "ctc_text": saved.get("ctc_text", "lower")}


def refuse_other(field: str, given: str | None, trained: str, folder: str | os.PathLike):
    if given not in (None, trained):
        raise ValueError(
            f"`{field}` is set to {given!r}, and `{folder}` was trained with {trained!r}: leave it out, or name "
            "another folder."
        )


def refuse_misspelt_field(options: dict):
    """Refuse options that resemble a field of the processor. Others are for its parts, or for the hub."""
    for name in options.keys() - {*OWN_FIELDS}:
        if near := difflib.get_close_matches(name, OWN_FIELDS, n=1, cutoff=0.85):
            raise ValueError(f"`SoundwaveProcessor` got an unknown argument `{name}`. Did you mean `{near[0]}`?")


class SoundwaveAudioKwargs(AudioKwargs, total=False):
    """The library's audio options and the fields of `AudioOptions`."""

    mono: bool
    allow_truncated: bool
    max_seconds: float | None
    max_bytes: int | None


class SoundwaveProcessingKwargs(ProcessingKwargs, total=False):
    audio_kwargs: SoundwaveAudioKwargs


class SoundwaveProcessor(ProcessorMixin):
    r"""
    Whisper's feature extractor and the LLM's tokenizer in one processor.

    The text has one `audio_token` for each clip. The model replaces it by the clip's positions, because only the model
    can compute their number.

    Args:
        feature_extractor (`WhisperFeatureExtractor`): the encoder's: sampling rate, mel bins and window (30 s).
        tokenizer (`PreTrainedTokenizerBase`): the LLM's, with `audio_token`; pads on its own `padding_side`.
        chat_template (`str`, *optional*): template for conversations; by default the tokenizer's.
        audio_token (`str`, *optional*, defaults to `"<|audio|>"`): the token for a clip in the text.
        trailing_silence (`float`, *optional*, defaults to 0): seconds of silence added after each clip, within the
            encoder's window. `from_backbones` sets 0.3, or the value of the adapters' training.
        require_sampling_rate (`bool`, *optional*, defaults to `False`): refuse an array without a rate. Otherwise it
            is taken as 16 kHz, with a warning, as in the library's processors. `from_backbones` sets True.
        ctc_text (`"as_written"`, `"lower"` or `"lower_spelled"`, *optional*, defaults to `"lower"`): form of the CTC
            targets: with case and punctuation; lower case without punctuation; the same with numbers as words, by
            default English. `SoundwaveConfig.ctc_text` of the model has the same value.

    Raises: `ValueError` if the tokenizer has no token `audio_token`, the silence fills the encoder's window, or
        `ctc_text` is unknown.

    Example:

    ```python
    >>> from soundwave_hf import SoundwaveProcessor

    >>> processor = SoundwaveProcessor.from_backbones(encoder, llm)  # such as "openai/whisper-base", "Qwen/Qwen3-0.6B"
    >>> inputs = processor(text=f"{processor.audio_token} What is said?", audio="speech.wav")
    >>> sorted(inputs)
    ['attention_mask', 'input_features', 'input_features_mask', 'input_ids']
    ```
    """

    _auto_class = "AutoProcessor"  # saved with its code
    text_kwargs = {"padding": True, "return_tensors": "pt"}
    valid_processor_kwargs = SoundwaveProcessingKwargs

    def __init__(
        self,
        feature_extractor,
        tokenizer,
        chat_template=None,
        audio_token=AUDIO_TOKEN,
        trailing_silence=0.0,
        require_sampling_rate=False,
        ctc_text="lower",
    ):
        super().__init__(
            feature_extractor, tokenizer, chat_template=chat_template or getattr(tokenizer, "chat_template", None)
        )
        if not 0 <= trailing_silence < feature_extractor.chunk_length:
            raise ValueError(
                f"`trailing_silence` is {trailing_silence}; expected seconds from 0 to less than the encoder's window "
                f"of {feature_extractor.chunk_length} s."
            )
        check_ctc_text(ctc_text)
        self.ctc_text = ctc_text
        self.trailing_silence = trailing_silence
        self.require_sampling_rate = require_sampling_rate
        self.auto_map = {"AutoProcessor": "processing_soundwave.SoundwaveProcessor"}  # as after `save_pretrained`
        self.audio_token = audio_token
        self.audio_token_id = tokenizer.convert_tokens_to_ids(audio_token)
        if self.audio_token_id is None or tokenizer.convert_ids_to_tokens(self.audio_token_id) != audio_token:
            raise ValueError(
                f"The tokenizer ({name_of(tokenizer)}) has no token {audio_token!r} for clips. Build the processor "
                "with `SoundwaveProcessor.from_backbones(encoder, llm)`, which adds it."
            )

    @classmethod
    def from_backbones(
        cls,
        encoder: str,
        llm: str,
        adapter: str | os.PathLike | None = None,
        audio_token: str = AUDIO_TOKEN,
        trailing_silence: float | None = None,
        ctc_text: str | None = None,
    ) -> "SoundwaveProcessor":
        """Join the feature extractor of a Whisper and the tokenizer of a causal LM.

        Adds `audio_token` to the tokenizer if it is missing, pads with the end token if the LLM has no padding token,
        and pads on the left, as generation needs.

        Args:
            encoder, llm: name on the Hub or local folder.
            adapter (*optional*): folder of trained adapters.
            audio_token: the token for a clip in the text.
            trailing_silence (*optional*): seconds after each clip; by default that of `adapter`, or 0.3.
            ctc_text (*optional*): form of the CTC targets; by default that of `adapter`, or "lower".

        Raises: `FileNotFoundError` if the adapter's folder has no processor_config.json, `ValueError` if
        `adapter` was trained with another `ctc_text`.
        """
        usual = {"trailing_silence": TRAILING_SILENCE, "ctc_text": CTC_TEXT}
        if adapter is not None:
            usual = trained_values(adapter)
            refuse_other("ctc_text", ctc_text, usual["ctc_text"], adapter)
        feature_extractor = WhisperFeatureExtractor.from_pretrained(local_backbone(encoder))
        tokenizer = read_llm_tokenizer(local_backbone(llm), audio_token)
        return cls(
            feature_extractor,
            tokenizer,
            audio_token=audio_token,
            trailing_silence=usual["trailing_silence"] if trailing_silence is None else trailing_silence,
            require_sampling_rate=True,
            ctc_text=usual["ctc_text"] if ctc_text is None else ctc_text,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, llm: str | None = None, **kwargs):
        """As in transformers. Trained adapters use the tokenizer of the LLM in their config.

        Args: llm (`str`, *optional*): hub name or folder of another LLM, whose tokenizer is used instead.

        Raises: `ValueError` for a misspelt field of the processor, if the model was trained with another `ctc_text` or
        `audio_token`, and if the tokenizer's id of the audio token differs from the adapters' config.
        """
        for option in ("encoder", "allow_other_backbones", "merge_lora", "is_trainable"):
            kwargs.pop(option, None)  # a pipeline also passes the model's options to the processor
        name = os.path.expanduser(os.fspath(pretrained_model_name_or_path))
        place = {"subfolder": kwargs.get("subfolder") or ""}
        place |= {key: kwargs[key] for key in HUB_OPTIONS if kwargs.get(key) is not None}
        refuse_misspelt_field(kwargs)
        if llm is None and not lacks_tokenizer(name, **place):
            usual = {"ctc_text": "lower", "audio_token": AUDIO_TOKEN}
            if given := usual.keys() & kwargs.keys():
                saved = usual | cls.get_processor_dict(name, **place)[0]
                for field in given:
                    refuse_other(field, kwargs[field], saved[field], name)
            try:
                return super().from_pretrained(name, *args, **kwargs)
            except OSError as error:
                if os.path.isdir(name):
                    raise
                raise OSError(
                    f"`{name}` is no folder here (current folder: {os.getcwd()}), and its files did not come from the "
                    f"hub. {error}"
                ) from error
        if find_file(name, PROCESSOR_NAME, **place) is None:
            raise FileNotFoundError(NO_PROCESSOR.format(name))
        values, _ = cls.get_processor_dict(name, **place)
        refuse_other("ctc_text", kwargs.get("ctc_text"), values.get("ctc_text", "lower"), name)
        # As in the library, the tokenizer takes what is not the processor's own.
        own = {*values, *OWN_FIELDS}
        others = {*own, *HUB_OPTIONS, *NOT_FOR_TOKENIZER}
        of_tokenizer = {key: value for key, value in kwargs.items() if key not in others}
        values = {**values, **{key: kwargs[key] for key in own if key in kwargs}}
        audio_token = values.get("audio_token", AUDIO_TOKEN)
        hub = {key: place[key] for key in ("cache_dir", "local_files_only", "token") if key in place}
        folder = locate_tokenizer(llm or named_llm(name, **place), **hub)
        tokenizer = read_llm_tokenizer(folder, audio_token, **of_tokenizer)
        expected = read_config(name, **place).get("audio_token_id")
        if llm is None and expected not in (None, tokenizer.convert_tokens_to_ids(audio_token)):
            raise ValueError(
                f"The audio token has id {expected} in the adapters of `{name}`, but id "
                f"{tokenizer.convert_tokens_to_ids(audio_token)} in the tokenizer of `{folder}`: give the LLM that "
                "they were trained with (`llm=`)."
            )
        extractor = WhisperFeatureExtractor.from_pretrained(name, **place)
        return cls(extractor, tokenizer, **{key: values[key] for key in OWN_FIELDS if values.get(key) is not None})

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "input_features_mask"]

    def __call__(
        self,
        text: TextInput | list[TextInput] | None = None,
        audio: AudioInput | str | dict | list | None = None,
        **kwargs: Unpack[SoundwaveProcessingKwargs],
    ) -> BatchFeature:
        r"""
        Tokenize text and turn its clips into features.

        Args:
            text (`str` or `list[str]`): with one `audio_token` for each clip.
            audio (*optional*): a clip, a list of clips in the order of their tokens, or one such list per text. A clip
                is a 1-D array, tensor or list of numbers; `(samples, rate)` or `(rate, samples)`; a path, a URL,
                base64 text, the bytes of an audio file or an open binary file; a row of a `datasets` audio column; an
                audio part of a chat. It must last 40 ms or more, and is resampled to the encoder's rate. Audio with
                its own rate is averaged to mono. Integers are PCM and divided by the full scale of their type.
            sampling_rate (`int`, *optional*): Hz of arrays without a rate.
            mono (`bool`, *optional*): average the channels of arrays without a rate; otherwise they are an error.
            allow_truncated (`bool`, *optional*): read a truncated file, with a warning.
            max_seconds, max_bytes (*optional*): limits of a clip, by default 4 hours and 1 GiB, and none for a path.
            kwargs: options of the tokenizer (`padding`, `return_tensors`, ...), flat or as `text_kwargs={...}`.

        Returns: [`BatchFeature`]:
            - **input_ids**, **attention_mask** `(batch, tokens)`
            - **input_features** `(clips, mel_bins, mel_frames)` -- float32 log-mel of 10 ms frames, zeros
              after a clip and its trailing silence; only with audio
            - **input_features_mask** `(clips, mel_frames)` -- int64, 1 at frames of a clip or its silence

        Raises: `ValueError` if the numbers of clips and audio tokens differ, and for audio that cannot be used.
        """
        refuse_unread(kwargs)
        if holds_samples(text):
            raise ValueError(
                "Audio arrived as `text`, which comes first here: pass clips as `audio=`, and `text` with one "
                f"{self.audio_token} for each, or call `apply_transcription_request(array, sampling_rate=...)`."
            )
        return super().__call__(text=text, audio=audio, **kwargs)

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs):
        """Texts and clips as flat lists. Clips are counted here and read later."""
        _, text, _, _ = super().prepare_inputs_layout(text=text, **kwargs)
        if audio is not None:
            check_clips_per_text(text, audio, self.audio_token)
            audio = flatten_clips(audio)
        return images, text, videos, audio or None

    def validate_inputs(self, images=None, text=None, videos=None, audio=None, **kwargs):
        if text is None and audio is not None:
            raise ValueError(
                f"{len(audio)} clips arrived without text. Pass `text=` with one {self.audio_token} per clip, or use "
                "`apply_chat_template` or `apply_transcription_request`, which add it."
            )
        if text is not None and all(isinstance(sample, str) for sample in text):
            tokens, clips = sum(sample.count(self.audio_token) for sample in text), len(audio or [])
            if tokens != clips:
                raise ValueError(
                    f"The text holds {tokens} {self.audio_token} tokens and {clips} clips arrived: the number of "
                    f"{self.audio_token} tokens in the prompts should be the same as the number of clips. "
                    f"Write one {self.audio_token} where each clip belongs, and pass the clips in `audio=`."
                )
        super().validate_inputs(text=text, audio=audio, **kwargs)

    def ctc_target(self, text: str, language: str | None = None) -> str:
        """A transcript in the form of the CTC targets, by the processor's `ctc_text`.

        Args: language: of the transcript, see `normalize_text`; with "lower_spelled" it decides the words of numbers.
        """
        return normalize_text(text, self.ctc_text, language)

    def load_clips(
        self, clips: list, sampling_rate: int | None = None, *, first: int = 0, **options
    ) -> list[np.ndarray]:
        """Read, check and resample clips in any form. All clips are loaded by this method.

        Args: clips: a flat list, as `audio` of the call; sampling_rate: Hz of arrays without a rate; first: number of
            the first clip in error messages; options: `mono`, `allow_truncated`, `max_seconds`, `max_bytes`.
        Returns: float32 arrays of shape `(samples,)` at the encoder's rate.
        """
        extractor = self.feature_extractor
        rate = extractor.sampling_rate
        shortest = MIN_MEL_FRAMES * extractor.hop_length / rate
        if sampling_rate is None and not self.require_sampling_rate and any(map(lacks_rate, clips)):
            sampling_rate = self._assume_rate()
        options = AudioOptions(**options)
        return [
            load_clip(clip, f"audio[{index}]", sampling_rate, rate, shortest, options)
            for index, clip in enumerate(clips, start=first)
        ]

    def _assume_rate(self) -> int:
        rate = self.feature_extractor.sampling_rate
        logger.warning_once(
            f"An array arrived without its sampling rate and is taken as {rate} Hz. With another rate, the "
            "transcript is wrong. Pass the clip as {'array': samples, 'sampling_rate': rate}. The processor also "
            "takes `sampling_rate=` in Hz."
        )
        return rate

    def _process_audio(self, audio: list, sampling_rate=None, device=None, **kwargs) -> tuple[dict, list[str]]:
        inputs = self.log_mel(self.load_clips(audio, sampling_rate, **audio_options(kwargs)), device or "cpu")
        return inputs, [self.replace_audio_token(inputs, index) for index in range(len(audio))]

    def replace_audio_token(self, audio_inputs: dict, audio_idx: int, **kwargs) -> str:
        """The token for a clip. The model replaces it by the clip's positions."""
        return self.audio_token

    def log_mel(self, clips: list[np.ndarray], device: str = "cpu") -> dict[str, np.ndarray]:
        """Whisper's features of each clip and its trailing silence, padded with zeros to the longest.

        Args: clips: arrays of shape `(samples,)` at the encoder's rate. The model cuts long clips.
        Returns: `input_features` `(clips, mel_bins, mel_frames)`, `input_features_mask` `(clips, mel_frames)`.
        """
        features = [self._log_mel_of_clip(clip, device) for clip in clips]
        longest = max(feature.shape[1] for feature in features)
        input_features = np.zeros((len(clips), features[0].shape[0], longest), dtype=np.float32)
        input_features_mask = np.zeros((len(clips), longest), dtype=np.int64)
        for index, feature in enumerate(features):
            input_features[index, :, : feature.shape[1]] = feature
            input_features_mask[index, : feature.shape[1]] = 1
        return {"input_features": input_features, "input_features_mask": input_features_mask}

    def _log_mel_of_clip(self, samples: np.ndarray, device: str) -> np.ndarray:
        """Whisper's frames of a clip and its trailing silence, the same as for the clip padded with zeros.

        Returns: float32 array of shape `(mel_bins, mel_frames)`.
        """
        extractor = self.feature_extractor
        # Features are scaled by their maximum, so each frame that overlaps the clip is needed. The STFT mirrors its
        # end. A window and a hop of zeros after the clip give the same result as padding to 30 s.
        kept = len(samples) + round(self.trailing_silence * extractor.sampling_rate)
        padded = kept + extractor.n_fft + extractor.hop_length
        if len(samples) <= extractor.n_samples:  # the silence must not make a second window
            kept, padded = min(kept, extractor.n_samples), min(padded, extractor.n_samples)
        samples = np.pad(samples, (0, padded - len(samples)))  # on the right, whatever `padding_side` says
        features = extractor(
            samples,
            sampling_rate=extractor.sampling_rate,
            padding="max_length",
            max_length=padded,
            return_tensors="np",
            device=device,
        )["input_features"][0]
        return features[:, : math.ceil(kept / extractor.hop_length)]  # [mel_bins, mel_frames]

    def apply_chat_template(
        self,
        conversation: list[dict] | list[list[dict]],
        chat_template: str | None = None,
        *,
        add_system_prompt: bool = True,
        sampling_rate: int | None = None,
        processor_kwargs: dict | None = None,
        **kwargs,
    ):
        r"""
        Render conversations with the LLM's own template; with `tokenize=True, return_dict=True` make model inputs.

        Args:
            conversation: messages of one conversation, or a list of conversations. Content is a string or a list of
                strings, `{"type": "text", "text": ...}` and `{"type": "audio", "audio": ...}` with a clip in any form
                of the call, or under "path", "url", "audio_url" or "base64"; also OpenAI's `input_audio`. An array's
                rate is given beside it: `{"type": "audio", "audio": array, "sampling_rate": 16000}`.
            chat_template (`str`, *optional*): a template, or the name of one, instead of the processor's. A template
                for messages as parts must add audio tokens and a system prompt itself.
            add_system_prompt (`bool`): add the paper's `SYSTEM_PROMPT` to conversations without a system message. If
                false, the LLM's template may still add its own.
            sampling_rate (`int`, *optional*): Hz of arrays without a rate.
            processor_kwargs (`dict`, *optional*): options of the call, such as `{"padding": False}`. Audio options
                (`mono`, `allow_truncated`, `max_seconds`, `max_bytes`) may also be given directly.
            kwargs: as in [`ProcessorMixin.apply_chat_template`]: `tokenize`, `return_dict`, `add_generation_prompt`,
                `continue_final_message`, `tools`, `return_tensors`, and variables of the template.

        Returns: `str` or list of `str` with `tokenize=False` (the default), else the output of the call, or only its
            `input_ids` with `return_dict=False`.

        Raises: `ValueError` for a misspelt keyword, and for one of `apply_transcription_request`.
        """
        if len(conversation) == 0:
            raise ValueError("An empty conversation arrived; expected messages {'role': ..., 'content': ...}.")
        if chat_template is None and self.chat_template is None:
            raise ValueError(
                f"The tokenizer ({name_of(self.tokenizer)}) has no chat template to render a conversation. "
                "Pass `chat_template=`, set `processor.chat_template`, or write the prompt yourself: "
                f"`processor(text='{self.audio_token}...', audio=...)`."
            )
        template = self._resolve_chat_template(chat_template)
        self._refuse_unknown(kwargs, self.apply_chat_template, template)
        special_tokens = self.tokenizer.special_tokens_map
        flatten = takes_strings(template, special_tokens)
        if flatten:
            template = FLATTEN_PARTS.replace("AUDIO_TOKEN", json.dumps(self.audio_token)) + template
        conversations, is_batched = self._normalize_conversations(conversation)
        conversations = [[standard_parts(message) for message in messages] for messages in conversations]
        if kwargs.get("continue_final_message") in (True, "content"):
            for messages in conversations:
                refuse_clip_at_end(messages)
        if add_system_prompt and (flatten or chat_template is None):
            conversations = [with_system_prompt(messages, template, special_tokens) for messages in conversations]
        given = {name: kwargs.pop(name) for name in AUDIO_OPTIONS if name in kwargs}
        if sampling_rate is not None:
            given["sampling_rate"] = sampling_rate
        if given:
            processor_kwargs = {**(processor_kwargs or {}), **given}
        if kwargs.get("tokenize"):  # the template writes all special tokens, here and in training
            processor_kwargs = {"add_special_tokens": False, **(processor_kwargs or {})}
        return super().apply_chat_template(
            conversations if is_batched else conversations[0],
            chat_template=template,
            processor_kwargs=processor_kwargs,
            **kwargs,
        )

    def _resolve_audio_loading_params(self, processor_kwargs: dict) -> dict:
        audio_kwargs = self._merge_kwargs(**processor_kwargs)["audio_kwargs"]
        # The library passes "sampling_rate" on with the loaded clips, which have the encoder's rate.
        return {
            "sampling_rate": self.feature_extractor.sampling_rate,
            "array_sampling_rate": audio_kwargs.get("sampling_rate"),
            "options": audio_options(audio_kwargs),
        }

    def _multimodal_inputs_from_conversations(
        self, conversations: list[list[dict]], audio_loading_params: dict, load_audio_from_video: bool = False
    ) -> tuple[list, list, list[np.ndarray], dict]:
        """Load the clips of all conversations in order. There are no images or videos."""
        clips = [
            audio_of_part(part)
            for messages in conversations
            for message in messages
            if isinstance(message.get("content"), list)
            for part in message["content"]
            if part["type"] == "audio"
        ]
        rate, options = audio_loading_params["array_sampling_rate"], audio_loading_params["options"]
        return [], [], self.load_clips(clips, rate, **options), {}

    def apply_transcription_request(
        self,
        audio: AudioInput | str | dict | list,
        language: str | list[str | None] | None = None,
        prompt: str | list[str | None] | None = None,
        tokenize: bool = True,
        *,
        hotwords: list[str] | list[list[str]] | None = None,
        model_id: str | None = None,
        format: str | list[str] | None = None,
        task: str | None = None,
        **kwargs,
    ) -> BatchFeature | list[str]:
        """Inputs that request the transcript of each clip, one conversation per clip.

        Accepts the arguments of the processors of Voxtral and Qwen3-ASR, so that scripts for them work unchanged.

        Args:
            audio: a clip or a list of clips, in any form of the call. An array without a rate is taken as 16 kHz, with
                a warning, as in these processors.
            language: code or English name ("fr", "fr-CA", "French"), one for all or one per clip; "auto" for none. The
                question names the language, except English, the language of the training data.
            prompt: question instead of "What does the person say?", one for all or one per clip.
            tokenize: `False` returns the prompts as strings and does not read the audio.
            hotwords: names and terms for `generate` to favour where they are heard, one list for all or one per clip.
            model_id, format: arguments of Voxtral's request (model, container of arrays). They have no effect here.
            task: "transcribe", as in scripts for Whisper. Other tasks raise an error.
            kwargs: passed to [`~SoundwaveProcessor.apply_chat_template`], such as `sampling_rate` in Hz.

        Returns: as [`~SoundwaveProcessor.apply_chat_template`] with `return_dict=True, add_generation_prompt=True`,
            and **is_transcription** `(clips,)`, true: `generate` returns an empty transcript for such rows if the
            clip has no speech (`SoundwaveConfig.no_speech_threshold`). Other questions are always answered.

        Raises: `ValueError` for no clip, an unknown language or keyword, lists whose length is not the number of
        clips, and audio that cannot be used.

        Example:

        ```python
        >>> inputs = processor.apply_transcription_request("speech.wav", language="en")
        >>> ids = model.generate(**inputs, max_new_tokens=100)
        >>> texts = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        ```
        """
        refuse_task(task)
        self._refuse_unknown(
            kwargs, self.apply_transcription_request, (kwargs.get("chat_template"), self.chat_template)
        )
        clips = flatten_clips(audio)
        if not clips:
            raise ValueError("No clip arrived to transcribe; expected at least one in `audio`.")
        options = {"audio_kwargs": kwargs.get("audio_kwargs") or {}, **(kwargs.get("processor_kwargs") or {})}
        given = self._resolve_audio_loading_params(options)["array_sampling_rate"]
        if kwargs.get("sampling_rate") is None and given is None and any(map(lacks_rate, clips)):
            kwargs["sampling_rate"] = self._assume_rate()
        check_lists("hotwords", hotwords, len(clips))
        languages = prepare_language_inputs(language_names(language), len(clips), LANGUAGE_NAMES, return_code=False)
        prompts = prepare_prompt_input(prompt, len(clips), input_name="prompt")
        conversations = []
        for clip, prompt_text, language_name in zip(clips, prompts, languages, strict=True):
            question = {"type": "text", "text": transcription_question(prompt_text, language_name)}
            conversations.append([{"role": "user", "content": [{"type": "audio", "audio": clip}, question]}])
        usual = {"return_dict": True, "add_generation_prompt": True}
        inputs = self.apply_chat_template(conversations, tokenize=tokenize, **{**usual, **kwargs})
        if isinstance(inputs, BatchFeature):
            inputs["is_transcription"] = marks(len(conversations), inputs["input_ids"])
            if hotwords is not None:
                inputs["hotwords"] = hotwords
        elif hotwords is not None:
            raise ValueError(
                "`hotwords` was given, but the output is not a dict of inputs and cannot hold them: leave `tokenize` "
                "and `return_dict` out, or pass `hotwords` to `generate`."
            )
        return inputs

    def _refuse_unknown(self, kwargs: dict, method: Callable, template):
        """Refuse keywords that neither the method, nor what it calls, nor the chat template know.

        For a chat template, a name that resembles none of ours may be a variable of other models' templates, such as
        `enable_thinking`: the library says that it has no effect.
        """
        doors = (method, self.apply_chat_template, super().apply_chat_template)
        known = {name for door in doors for name in inspect.signature(door).parameters} - {"self", "kwargs"}
        for options in (SoundwaveProcessingKwargs, TextKwargs, SoundwaveAudioKwargs):
            known |= options.__annotations__.keys()
        for name in kwargs.keys() - known:
            if re.search(rf"\b{re.escape(name)}\b", str(template)):  # a variable of the template
                continue
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f"Did you mean `{near[0]}`?" if near else "Remove it."
            if name in inspect.signature(self.apply_transcription_request).parameters:
                hint = "It belongs to `apply_transcription_request`."
            elif not near and method == self.apply_chat_template:
                continue
            raise ValueError(f"`{method.__name__}` got an unknown argument `{name}={kwargs[name]!r}`. {hint}")

    def align_word_timestamps(
        self, transcriptions: str | list[str], clips: list, return_timestamps: str = "word"
    ) -> dict | list[dict]:
        """
        Align transcripts, by the model or any others of the same clips, with the sound: times and scores of each word.

        Args:
            transcriptions: the text of each clip.
            clips: one for each text: `clips` in the output of `generate(..., return_timestamps="word")`, that output
                itself, or the result of `model.get_ctc_clips(**inputs)`.
            return_timestamps: "word", or "segment" for sentences.

        Returns: a dict, or for a list of texts a list of dicts: **text**; **chunks**, a list of words as in the speech
            recognition pipeline: "text" with case and punctuation, "timestamp" `(start, end)` in seconds, "aligned",
            false with `(None, None)` for a word without frames, "supported", false for a word that the sound does not
            support, "probability" from 0 to 1; and **probability** of the whole transcript.

        Raises: `ValueError` if the numbers of clips and texts differ, or for an unknown `return_timestamps`.

        Example:

        ```python
        >>> inputs = processor.apply_transcription_request("speech.wav")
        >>> clips = model.get_ctc_clips(**inputs)
        >>> processor.align_word_timestamps("hello there", clips)["text"]
        'hello there'
        ```
        """
        is_single = isinstance(transcriptions, str)
        texts = [transcriptions] if is_single else list(transcriptions)
        clips = getattr(clips, "clips", clips)
        if clips is None or len(clips) != len(texts):
            raise ValueError(
                f"{len(texts)} transcripts arrived and {0 if clips is None else len(clips)} clips; expected one clip "
                'for each text. Pass `clips` of `model.generate(..., return_timestamps="word")`, or of '
                "`model.get_ctc_clips`."
            )
        aligned = [
            clip.align(text, self.tokenizer, return_timestamps) for text, clip in zip(texts, clips, strict=True)
        ]
        return aligned[0] if is_single else aligned

    def decode(self, *args, return_format: str = "raw", **kwargs) -> str | list[str] | dict | list[dict]:
        """The tokenizer's `decode`: ids `(tokens,)` to a text, ids `(batch, tokens)` to a list of texts.

        Args:
            return_format: as in Qwen3-ASR: `"raw"` for the tokenizer's output, `"transcription_only"` for the text
                without special tokens and outer spaces, `"parsed"` for a dict with it and "language", which is `None`,
                because the model does not name the language.

        Raises: `ValueError` for an unknown format.
        """
        if return_format not in RETURN_FORMATS:
            raise ValueError(f"`return_format` is {return_format!r}; expected one of {RETURN_FORMATS}.")
        if return_format == "raw":
            return super().decode(*args, **kwargs)
        decoded = super().decode(*args, **{**kwargs, "skip_special_tokens": True})
        texts = [text.strip() for text in ([decoded] if isinstance(decoded, str) else decoded)]
        if return_format == "parsed":
            texts = [{"language": None, "transcription": text} for text in texts]
        return texts[0] if isinstance(decoded, str) else texts

    def batch_decode(self, sequences, *args, return_format: str = "raw", **kwargs) -> list[str] | list[dict]:
        """The tokenizer's `batch_decode`, or with another `return_format` as `decode`."""
        if return_format == "raw":
            return super().batch_decode(sequences, *args, **kwargs)
        return self.decode(sequences, *args, return_format=return_format, **kwargs)


def audio_options(kwargs: dict) -> dict:
    """The fields of `AudioOptions` among the keywords of a call."""
    return {name: kwargs[name] for name in AUDIO_OPTIONS if kwargs.get(name) is not None}


def refuse_task(task: str | None):
    if task not in (None, "transcribe"):
        raise ValueError(
            f"`task` is {task!r}; a transcription request supports only 'transcribe'. For another task, use "
            "`apply_chat_template` with the clip and a text such as 'Translate the speech to English.'"
        )


def holds_samples(text) -> bool:
    """Whether audio was given in place of text: an array, a tensor, numbers, bytes, a row, or a list of these."""
    first = text[0] if isinstance(text, list | tuple) and text else text
    return first is not None and not isinstance(first, str | list | tuple)


def check_clips_per_text(text: list[str] | None, audio, audio_token: str):
    """If there is one list of clips per text, check that each text has as many audio tokens as its list has clips."""
    if not (is_clip_list(audio) and len(audio) > 0 and all(is_clip_list(clips) for clips in audio)) or text is None:
        return
    if len(audio) != len(text):
        raise ValueError(
            f"`audio` arrived as {len(audio)} lists of clips for {len(text)} texts; expected one list per text. "
            "Give a text without audio an empty list, or pass all clips as one flat list."
        )
    for index, (sample, clips) in enumerate(zip(text, audio, strict=True)):
        tokens = sample.count(audio_token)
        if tokens != len(clips):
            raise ValueError(
                f"text[{index}] holds {tokens} {audio_token} tokens and audio[{index}] {len(clips)} clips: the "
                f"number of {audio_token} tokens in the prompts should be the same as the number of clips. "
                f"Write one {audio_token} where each clip belongs."
            )


def refuse_unread(kwargs: dict):
    """Refuse inputs and audio options that would have no effect."""
    for name in ("images", "videos"):
        if kwargs.get(name) is not None:
            raise ValueError(f"`{name}` arrived, but this processor supports only text and audio. Remove it.")
    audio_kwargs = {"load_audio_backend": kwargs.get("load_audio_backend"), **(kwargs.get("audio_kwargs") or {})}
    read = ("sampling_rate", "device", "return_tensors", *AUDIO_OPTIONS)
    unread = [name for name, value in audio_kwargs.items() if value is not None and name not in read]
    if unread:
        raise ValueError(
            f"Audio options {unread} arrived; expected some of {sorted(read)}. Clips are decoded with soundfile or "
            "PyAV, padded to the longest and never cut: remove the other options."
        )
