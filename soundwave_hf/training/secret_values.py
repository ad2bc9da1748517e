"""`soundwave_hf.secret_values` under its earlier name."""

from ..secret_values import hide_secrets, holds_secret, names_secret, refuse_secrets


__all__ = ["hide_secrets", "holds_secret", "names_secret", "refuse_secrets"]
