"""Cleaning: which rows of a set to train on, and why the others are dropped (paper section 3 and appendix A)."""
