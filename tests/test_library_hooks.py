"""Private names of the libraries that this package overrides or reads: there, and as we rely on them.

A failure here says what moved in a new version. Whatever has a public way is not here, and does not belong in the
package.
"""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
import torch
import transformers
from transformers import PreTrainedModel, ProcessorMixin, Trainer
from transformers.distributed.mixin import DistributedMixin
from transformers.generation import AssistedCandidateGenerator, GenerationMixin
from transformers.modeling_utils import EmbeddingAccessMixin
from transformers.models.auto.auto_factory import _LazyAutoMapping
from transformers.pipelines.base import Pipeline

import soundwave_hf
from soundwave_hf import SoundwaveForConditionalGeneration, SoundwaveProcessor
from soundwave_hf.modeling.generation_soundwave import SoundwaveCandidateGenerator
from tests.tiny import tiny_processor
from tests.tiny_models import AUDIO, make_clips, tiny_model


PACKAGE = Path(soundwave_hf.__file__).parent
VERSION = f"transformers {transformers.__version__}"

# Owner, method, its first parameters, and what we use it for.
METHODS = [
    (GenerationMixin, "_prepare_model_inputs", "inputs bos_token_id model_kwargs", "merge the clips once"),
    (
        GenerationMixin,
        "_prepare_cache_for_generation",
        "generation_config model_kwargs generation_mode batch_size max_cache_length",
        "make room for the clips' positions and keep the prompt with the cache",
    ),
    (
        GenerationMixin,
        "_get_logits_processor",
        "generation_config input_ids_seq_length encoder_input_ids prefix_allowed_tokens_fn logits_processor device "
        "model_kwargs",
        "tell the repetition penalty the padding of the caller's ids",
    ),
    (
        GenerationMixin,
        "_get_candidate_generator",
        "generation_config input_ids inputs_tensor logits_processor model_kwargs assistant_model",
        "give a draft model the clips",
    ),
    (
        AssistedCandidateGenerator,
        "_update_past_and_masks",
        "input_ids remove_from_pkv num_added_tokens",
        "count the clips' positions in a draft's cache",
    ),
    (PreTrainedModel, "_init_weights", "module", "begin fresh adapters"),
    (ProcessorMixin, "_process_audio", "audio", "read clips of any form and make features of any length"),
    (ProcessorMixin, "_resolve_audio_loading_params", "processor_kwargs", "learn the rate of arrays"),
    (
        ProcessorMixin,
        "_multimodal_inputs_from_conversations",
        "conversations audio_loading_params load_audio_from_video",
        "read the clips of conversations",
    ),
    (ProcessorMixin, "_resolve_chat_template", "chat_template", "find a template by its name"),
    (ProcessorMixin, "_normalize_conversations", "conversation", "tell one conversation from a batch"),
    (ProcessorMixin, "_merge_kwargs", "ModelProcessorKwargs tokenizer_init_kwargs", "find the options of audio"),
    (Pipeline, "_sanitize_parameters", "", "sort the arguments of a call"),
    (Pipeline, "_forward", "input_tensors", "transcribe"),
    (Pipeline, "_prepare_generate_kwargs", "generate_kwargs", "join a call's arguments of `generate` and the model's"),
    (Trainer, "_save", "output_dir state_dict", "write what trained, config and record in one step"),
    (Trainer, "_save_checkpoint", "model trial", "clear up after a full disk"),
    (Trainer, "_load_from_checkpoint", "resume_from_checkpoint model", "read what stage I trained"),
    (Trainer, "_load_best_model", "", "read what stage I trained, for the best checkpoint"),
    (Trainer, "_load_optimizer_and_scheduler", "checkpoint", "go on reading streams where they stood"),
    (Trainer, "_save_rng_state", "output_dir", "write where streams stand"),
]

# Owner, attribute, and what we use it for.
ATTRIBUTES = [
    (PreTrainedModel, "_auto_class", "save the model's code with it"),
    (ProcessorMixin, "_auto_class", "save the processor's code with it"),
    (PreTrainedModel, "_no_split_modules", "keep layers whole on one device"),
    (PreTrainedModel, "_skip_keys_device_placement", "leave a cache where its layers are"),
    (PreTrainedModel, "_supports_flash_attn", "say which attention there is"),
    (PreTrainedModel, "_supports_sdpa", "say which attention there is"),
    (PreTrainedModel, "_supports_flex_attn", "say which attention there is"),
    (PreTrainedModel, "_supports_attention_backend", "say which attention there is"),
    (PreTrainedModel, "_can_compile_fullgraph", "say that a decode step is one graph"),
    (PreTrainedModel, "_is_stateful", "refuse drafts where the LLM keeps a state"),
    (PreTrainedModel, "_tied_weights_keys", "tie the head to the table of any family"),
    (PreTrainedModel, "_keys_to_ignore_on_load_unexpected", "read one half of a Whisper"),
    (DistributedMixin, "_tp_plan", "share out the head"),
    (EmbeddingAccessMixin, "_input_embed_layer", "find the CTC model's table"),
    (Pipeline, "_load_processor", "have a pipeline load the processor"),
    (Pipeline, "_load_tokenizer", "have a pipeline load the processor alone"),
    (Pipeline, "_load_feature_extractor", "have a pipeline load the processor alone"),
    (Pipeline, "_load_image_processor", "have a pipeline load the processor alone"),
    (Pipeline, "_load_video_processor", "have a pipeline load the processor alone"),
    (Pipeline, "_pipeline_calls_generate", "have a pipeline prepare `generate`"),
]

# Private attributes of instances that we read, each with its test below.
READ = {
    "_attn_implementation",
    "_batch_size",
    "_class_to_module",
    "_model_mapping",
    "_reverse_config_mapping",
    "_train_batch_size",
}


@pytest.mark.parametrize(("owner", "name", "parameters", "use"), METHODS, ids=[row[1] for row in METHODS])
def test_a_private_method_takes_what_we_rely_on(owner, name, parameters, use):
    method = getattr(owner, name, None)
    assert method is not None, f"{VERSION} has no `{owner.__name__}.{name}`: find another way to {use}."
    found = [name for name in inspect.signature(method).parameters if name != "self"]
    expected = parameters.split()
    assert found[: len(expected)] == expected, (
        f"In {VERSION} `{owner.__name__}.{name}` takes {found} and we rely on {expected}: adapt ours, used to {use}."
    )


@pytest.mark.parametrize(("owner", "name", "use"), ATTRIBUTES, ids=[row[1] for row in ATTRIBUTES])
def test_a_private_attribute_is_there(owner, name, use):
    assert hasattr(owner, name), f"{VERSION} has no `{owner.__name__}.{name}`: find another way to {use}."


def classes_of_the_package() -> list[type]:
    found = {}
    for module in pkgutil.walk_packages(soundwave_hf.__path__, "soundwave_hf."):
        for value in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(value) and value.__module__ == module.name:
                found[value] = None
    return list(found)


def test_every_private_name_that_we_override_is_listed():
    libraries = ("transformers.", "trl.", "peft.", "accelerate.", "datasets.")
    ours, overridden = classes_of_the_package(), set()
    for mixed in ours:
        for base in mixed.__mro__:
            if base in ours:
                names = [name for name in vars(base) if name.startswith("_") and not name.startswith("__")]
                foreign = [other for other in mixed.__mro__ if other.__module__.startswith(libraries)]
                overridden |= {name for name in names if any(name in vars(other) for other in foreign)}
    listed = {name for _, name, *_ in METHODS + ATTRIBUTES}
    assert overridden - {"_abc_impl"} <= listed, "Use a public way, or list and test what is overridden."


def test_every_private_name_that_we_read_is_listed():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for node in attributes if isinstance(node.ctx, ast.Store)}
    own |= {node.target.id for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    read = {node.attr for node in attributes if node.attr.startswith("_") and not node.attr.startswith("__")}
    listed = {name for _, name, *_ in METHODS + ATTRIBUTES} | READ
    assert read - own <= listed, "Use a public way, or list and test what is read."


# ---- the library calls what we override ----


def spy(monkeypatch, owner: type, names: list[str]) -> list[str]:
    """The names of the methods that are called from here on, in order."""
    called = []
    for name in names:
        original = getattr(owner, name)

        def counted(self, *args, name=name, original=original, **kwargs):
            called.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, counted)
    return called


def prompt() -> dict[str, torch.Tensor]:
    features, mask = make_clips([44])
    return {"input_ids": torch.tensor([[AUDIO, 5]]), "input_features": features, "input_features_mask": mask}


def test_generate_calls_our_hooks_once_and_prepares_every_step(monkeypatch):
    once = ["_prepare_model_inputs", "_prepare_cache_for_generation", "_get_logits_processor"]
    called = spy(monkeypatch, SoundwaveForConditionalGeneration, [*once, "prepare_inputs_for_generation"])
    tiny_model().generate(**prompt(), max_new_tokens=3, do_sample=False)
    assert called == [*once, *["prepare_inputs_for_generation"] * 3], f"`generate` of {VERSION} takes another way."


def test_assisted_decoding_asks_us_for_the_draft(monkeypatch):
    called = spy(monkeypatch, SoundwaveForConditionalGeneration, ["_get_candidate_generator"])
    updated = spy(monkeypatch, SoundwaveCandidateGenerator, ["_update_past_and_masks"])
    tiny_model().generate(**prompt(), max_new_tokens=6, do_sample=False, assistant_model=tiny_model(seed=1))
    assert called == ["_get_candidate_generator"], f"Assisted decoding of {VERSION} takes another way."
    assert updated, f"Assisted decoding of {VERSION} crops a draft's cache another way."


def test_a_processor_calls_our_hooks(monkeypatch):
    names = ["_resolve_audio_loading_params", "_multimodal_inputs_from_conversations", "_process_audio"]
    called = spy(monkeypatch, SoundwaveProcessor, names)
    clip = {"type": "audio", "audio": [0.1] * 1600, "sampling_rate": 16000}
    tiny_processor().apply_chat_template([{"role": "user", "content": [clip]}], tokenize=True, return_dict=True)
    assert called == names, f"`apply_chat_template` of {VERSION} takes another way."


# ---- what we read ----


def test_a_config_tells_its_attention():
    model = tiny_model()
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager", f"{VERSION} keeps the attention elsewhere."


def test_the_auto_classes_have_the_tables_that_we_enter():
    assert isinstance(vars(transformers)["_class_to_module"], dict), f"`transformers` of {VERSION} resolves otherwise."
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    assert isinstance(MODEL_MAPPING, _LazyAutoMapping)
    assert MODEL_MAPPING._reverse_config_mapping["LlamaConfig"] == "llama"
    assert MODEL_MAPPING._model_mapping["soundwave"] == "SoundwaveForConditionalGeneration"


def test_a_trainer_and_a_pipeline_tell_their_batch_size(tmp_path):
    arguments = transformers.TrainingArguments(str(tmp_path), per_device_train_batch_size=3, use_cpu=True)
    trainer = Trainer(torch.nn.Linear(2, 2), arguments, train_dataset=[])
    assert trainer._train_batch_size == 3, f"{VERSION} keeps elsewhere what `auto_find_batch_size` changes."
    pipe = transformers.pipeline("soundwave-asr", model=tiny_model(), processor=tiny_processor(), batch_size=2)
    assert pipe._batch_size == 2, f"A pipeline of {VERSION} keeps its batch size elsewhere."
