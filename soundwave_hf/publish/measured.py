"""The last scores in a trainer's log."""

from collections.abc import Mapping, Sequence


WORD_OF = {"wer": "word error rate", "cer": "character error rate", "ctc_wer": "word error rate of the CTC head"}
WORD_OF |= {"exact_match": "exact answers", "loss": "loss", "ce_loss": "next-token loss", "ctc_loss": "CTC loss"}
LONGEST_FIRST = sorted(WORD_OF, key=len, reverse=True)  # `eval_ctc_wer` is not the `wer` of a set `ctc`


def last_measured(history: Sequence[Mapping]) -> list[tuple[str, str, float]]:
    """Set, metric and value of the last evaluation of each, from a trainer's log."""
    found = {}
    for entry in history:
        for key, value in entry.items():
            name = next((name for name in LONGEST_FIRST if f"_{key}".endswith(f"_{name}")), None)
            if name is not None and key.startswith("eval_"):
                found[key.removeprefix("eval_").removesuffix(name).rstrip("_"), name] = value
    return [(place, name, value) for (place, name), value in found.items()]


__all__ = ["WORD_OF", "last_measured"]
