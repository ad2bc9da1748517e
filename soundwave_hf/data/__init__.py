"""Backbones from PyPI, and the data of the small model: texts, voices, human clips, instructions."""
