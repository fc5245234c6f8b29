"""Measures how well a model keeps to hints and prompts, on any data."""
