"""New tokens for the labels of sounds, in an LLM's own vocabulary.

By default a label such as `<throat_clearing>` is written with tokens that the LLM has. A token of its own makes it one
CTC label. The CTC head is tied to the LLM's frozen embeddings, so the new rows must exist before Stage I, in the LLM
itself: `add_sound_tokens` writes such an LLM, and the recipes of all stages name it as `llm:`.
"""

import os
import re
from collections.abc import Sequence

import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from ...atomic import atomic_folder, refuse_used
from .sounds import sound_token


def add_sound_tokens(llm: str, labels: Sequence[str], folder: str | os.PathLike) -> list[str]:
    """Write an LLM whose vocabulary has a token for each label, with the space before it: `" <throat_clearing>"`.

    The row of a new token, in the embeddings and in the head, is the mean of the rows of its words, plus noise of a
    hundredth of its spread, so that labels of the same words in another order differ.

    Args:
        llm: hub name or folder of a causal LM.
        labels: of sounds, as in the column `label`; several spellings of one label become one token.
        folder: a new folder.
    Returns: the new tokens. Labels that the vocabulary has already are left out.
    Raises: `FileExistsError` if the folder is used; `ValueError` if there is no label, or the tokenizer does not give
        a text with a new token back as it was.
    """
    refuse_used(folder)
    tokenizer = AutoTokenizer.from_pretrained(llm)
    tokens = [f" {token}" for token in dict.fromkeys(sound_token(label) for label in labels)]
    if not tokens:
        raise ValueError("There are no labels: give at least one, such as 'throat clearing'.")
    new = [token for token in tokens if token not in tokenizer.get_vocab()]
    words = {token: tokenizer.encode(_words(token), add_special_tokens=False) for token in new}
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in new])
    _check_round_trip(tokenizer, tokens, llm)
    model = AutoModelForCausalLM.from_pretrained(llm, dtype="auto")
    _add_rows(model, {tokenizer.convert_tokens_to_ids(token): ids for token, ids in words.items()}, len(tokenizer))
    with atomic_folder(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
    return [token.strip() for token in new]


def _words(token: str) -> str:
    """`" <throat_clearing>"` -> `" throat clearing"`"""
    return re.sub(r"[<>]", "", token).replace("_", " ")


def _check_round_trip(tokenizer, tokens: Sequence[str], llm: str):
    for token in tokens:
        text = f"hello{token} there"
        ids = tokenizer.encode(text, add_special_tokens=False)
        back = tokenizer.decode(ids)
        if ids.count(tokenizer.convert_tokens_to_ids(token)) != 1 or back != text:
            raise ValueError(
                f"The tokenizer of `{llm}` turns {text!r} with the new token {token!r} into {back!r}; expected the "
                "same text. Leave the labels in its own tokens: they need no change."
            )


@torch.no_grad()
def _add_rows(model, rows: dict[int, list[int]], vocabulary: int):
    """Resize the embeddings and fill the new rows. Args: rows: ids of the words of each new token."""
    if vocabulary > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    tables = [table for table in (model.get_input_embeddings(), model.get_output_embeddings()) if table is not None]
    tied = len(tables) == 2 and tables[0].weight is tables[1].weight
    for table in tables[:1] if tied else tables:
        for place, (new, ids) in enumerate(rows.items()):
            mean = table.weight[ids].float().mean(dim=0)
            generator = torch.Generator().manual_seed(place)
            noise = torch.randn(mean.shape, generator=generator) * mean.std() / 100
            table.weight[new] = (mean + noise.to(mean.device)).to(table.weight.dtype)


__all__ = ["add_sound_tokens"]
