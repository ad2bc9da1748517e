"""What joining two backbones needs of their files: the audio token's place, the embedding table, trained adapters."""

import json
import os

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file

from .configuration_soundwave import SoundwaveConfig


AUDIO_TOKEN = "<|audio|>"
TRAINED_FILE = "trained.safetensors"  # Stage I: the parameters that trained, named as in `SoundwaveModel`


def audio_token_place(llm: str, audio_token: str, num_rows: int) -> tuple[int, int]:
    """Id of the audio token in an LLM's vocabulary, and the rows its embedding table needs for it.

    Args:
        llm (`str`): hub name or folder.
        num_rows (`int`): rows of the LLM's embedding table; some tables have spare ones.
    """
    tokenizer = AutoTokenizer.from_pretrained(llm)
    known = tokenizer.get_vocab()
    audio_token_id = known.get(audio_token, len(tokenizer))
    return audio_token_id, max(num_rows, audio_token_id + 1)


@torch.no_grad()
def refuse_other_heads(language, llm: str):
    """Raises: `ValueError` where an LLM's scores are not its head's rows times its states, as Soundwave takes them."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=language.device)
    expected = language(input_ids=ids).logits
    found = language.base_model(input_ids=ids).last_hidden_state @ language.get_output_embeddings().weight.T
    if not torch.allclose(found, expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item()):
        raise ValueError(
            f"`{llm}` ({type(language).__name__}) caps, scales or shifts its scores after its head, which Soundwave "
            "does not: choose an LLM that does not, such as a Llama, Qwen, Mistral or SmolLM."
        )


def read_input_embeddings(llm: str) -> torch.Tensor:
    """The token embeddings of a causal LM `(vocabulary, width)`, read from its safetensors files and nothing else.

    Raises: `ValueError` where the files hold no such table.
    """
    config = AutoConfig.from_pretrained(llm)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    table = skeleton.get_input_embeddings().weight
    name = next(name for name, parameter in skeleton.named_parameters() if parameter is table)
    index = cached_file(llm, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
    shard = "model.safetensors"
    if index is not None:
        with open(index, encoding="utf-8") as file:
            shard = json.load(file)["weight_map"].get(name, "")
    path = cached_file(llm, shard, _raise_exceptions_for_missing_entries=False) if shard else None
    if path is not None:
        with safe_open(path, "pt") as weights:
            if name in weights.keys():  # noqa: SIM118 (the file is no container)
                return weights.get_tensor(name)
    raise ValueError(
        f"`{llm}` has no safetensors file with `{name}`: save the LLM again with `save_pretrained` and name that "
        "folder."
    )


def adapter_fields(adapter: str, encoder: str, llm: str) -> dict:
    """The `SoundwaveConfig` fields trained adapters need, once their widths are found to be those of the backbones.

    Raises: `ValueError` where widths differ, `FileNotFoundError` where the folder holds no `config.json`.
    """
    path = os.path.join(adapter, "config.json")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"`{adapter}` has no config.json: give a folder that `soundwave-hf train` wrote.")
    config = SoundwaveConfig.from_pretrained(adapter)
    expected = (config.audio_config.d_model, config.text_config.hidden_size)
    found = (AutoConfig.from_pretrained(encoder).d_model, AutoConfig.from_pretrained(llm).hidden_size)
    if found != expected:
        raise ValueError(
            f"The adapters in `{adapter}` join an encoder of width {expected[0]} to an LLM of width {expected[1]}, "
            f"and `{encoder}` has width {found[0]}, `{llm}` {found[1]}. Name the backbones they were trained with."
        )
    names = ("stack_factor", "compat", "alignment_attention", "look_back", "keep_blanks", "tie_ctc_head")
    names += ("adapter_heads", "adapter_dropout", "ctc_loss_weight")
    return {name: getattr(config, name) for name in names}


def load_adapter(model, adapter: str):
    """Load trained adapters into a joined model and merge their LoRA, if any, into its LLM. Returns the model."""
    stage_one = os.path.join(adapter, TRAINED_FILE)
    if os.path.isfile(stage_one):
        load_trained(model, stage_one)
        return model
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ImportError(f"`{adapter}` holds LoRA weights: install `peft` to load them.") from error
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def load_trained(model, path: str):
    """Load the parameters that Stage I trained. Raises: `ValueError` where one has no place in the model."""
    weights = load_file(path)
    audio_model = model if hasattr(model, "alignment_adapter") else model.base_model
    unexpected = audio_model.load_state_dict(weights, strict=False).unexpected_keys
    if unexpected:
        raise ValueError(f"`{path}` holds {unexpected}, for which the model has no place: was its config another?")


__all__ = [
    "AUDIO_TOKEN",
    "TRAINED_FILE",
    "adapter_fields",
    "audio_token_place",
    "load_adapter",
    "read_input_embeddings",
    "refuse_other_heads",
]
