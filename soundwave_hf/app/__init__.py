"""The page of `soundwave-hf app`. `run_app` serves it; a Space calls the same function."""

from .serve import run_app


__all__ = ["run_app"]
