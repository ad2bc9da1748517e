"""Builders: rows from other rows. Sounds and speakers are spliced, labels become questions, texts become speech.

Each builder is a pure function of rows. `recipe` and `run` carry out several of them: `soundwave-hf data build`.
"""
