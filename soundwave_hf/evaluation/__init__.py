"""Scores: metrics on plain texts and numbers, and their use on a loaded model."""
