"""Initializes the alignment adapter from Whisper's decoder.

A decoder layer adds `out_proj(v_proj(frame))` of the frames that it attends to. The sum over layers is scored against
Whisper's token embeddings. For a single frame this sum is linear in the frame and shows which word is spoken. The
words of both vocabularies map it to the LLM's embeddings. This is a better start for CTC than random weights, because
the adapter need not learn from speech how each token sounds.
"""

import torch
from torch import nn
from transformers import AutoTokenizer
from transformers.utils import cached_file

from .backbones_soundwave import read_decoder


def words_of(llm_or_encoder: str, ctc_text: str = "lower") -> dict[str, int]:
    """Ids of tokens that consist of letters, by their text with its space; empty without a tokenizer.

    Args: ctc_text (`str`): form of the CTC transcript. Only "as_written" needs tokens with upper case.
    """
    if cached_file(llm_or_encoder, "tokenizer.json", _raise_exceptions_for_missing_entries=False) is None:
        return {}
    vocabulary = AutoTokenizer.from_pretrained(llm_or_encoder).get_vocab()
    spelt = {token.replace("Ġ", " ").replace("▁", " "): index for token, index in vocabulary.items()}
    words = {text: index for text, index in spelt.items() if text.strip().isalpha()}
    return words if ctc_text == "as_written" else {text: words[text] for text in words if text.islower()}


def decoder_reading(decoder: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight `(decoder_width, encoder_width)` and bias of the sum that the later decoder layers add for a frame.

    The first half of the layers reads sounds and positions, the second half reads words.
    """
    weight = bias = 0.0
    for layer in decoder.layers[len(decoder.layers) // 2 :]:
        value, out = layer.encoder_attn.v_proj, layer.encoder_attn.out_proj
        weight = weight + out.weight.float() @ value.weight.float()
        bias = bias + out.weight.float() @ value.bias.float() + out.bias.float()
    scale = decoder.layer_norm.weight.float()  # of the final norm, without its division, which the adapter's norm does
    return scale[:, None] * (weight - weight.mean(dim=0)), scale * (bias - bias.mean())


def between_embeddings(source: torch.Tensor, target: torch.Tensor, ridge: float = 1e-3) -> torch.Tensor:
    """The map for which `(map @ state) @ target[v]` is closest to `state @ source[v]` over all tokens `v`.

    Least squares. A constant added to the scores of all tokens is ignored.

    Args:
        source (`torch.Tensor` of shape `(tokens, source_width)`), target (`(tokens, target_width)`): embeddings.
        ridge (`float`): share of the mean variance of `target` that is added to each of its directions.

    Returns: `torch.Tensor` of shape `(target_width, source_width)`.
    """
    source, target = source.float() - source.float().mean(dim=0), target.float() - target.float().mean(dim=0)
    gram = target.T @ target
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    return torch.linalg.solve(gram, target.T @ source)


@torch.no_grad()
def init_alignment(adapter: nn.Module, encoder: str, llm: str, llm_rows: torch.Tensor) -> bool:
    """Initialize the alignment adapter from Whisper's decoder, and its layers as the identity.

    Args:
        adapter (`SoundwaveAlignmentAdapter`): changed in place.
        encoder, llm (`str`): hub names or folders of a Whisper and a causal LM.
        llm_rows (`torch.Tensor` of shape `(vocabulary, width)`): the LLM's input embeddings.

    Returns: False, without a change, if the vocabularies share fewer words than the LLM's width, a tokenizer is
    missing, or the Whisper has no decoder; else True.
    """
    whisper_words, llm_words = (words_of(name, adapter.config.ctc_text) for name in (encoder, llm))
    shared = sorted(whisper_words.keys() & llm_words.keys())
    decoder = read_decoder(encoder) if len(shared) >= llm_rows.shape[1] else None
    if decoder is None:
        return False
    whisper_rows = decoder.embed_tokens.weight[[whisper_words[word] for word in shared]]
    carried = between_embeddings(whisper_rows, llm_rows[[llm_words[word] for word in shared]].to(whisper_rows.device))
    weight, bias = decoder_reading(decoder)
    each = carried @ weight / adapter.stack_factor  # the stacked frames are averaged
    adapter.linear.weight.copy_(each.repeat(1, adapter.stack_factor))
    adapter.linear.bias.copy_(carried @ bias)
    for layer in adapter.layers:
        for last in (layer.self_attn.out_proj, layer.fc2):
            last.weight.zero_()
            last.bias.zero_()
    return True


__all__ = ["between_embeddings", "decoder_reading", "init_alignment", "words_of"]
