"""`merge_adapter` lies in `soundwave_hf.adapters`, and is still found here."""

from .adapters import merge_adapter


__all__ = ["merge_adapter"]
