"""Offline batch inference for language models, with deadlines."""

__version__ = "0.1.0"
