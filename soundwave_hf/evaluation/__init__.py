"""Metrics of plain texts and numbers, and scores of a loaded model."""
