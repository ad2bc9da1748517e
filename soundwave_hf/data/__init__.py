"""Data sets: rows from any source, checks, cleaning, building, counts and cards; and backbones by name."""
