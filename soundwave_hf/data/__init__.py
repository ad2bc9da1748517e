"""Backbones by name, manifests, and tiny data for tests."""
