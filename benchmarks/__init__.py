"""Timings against a peer in the same process. Tests say what is right; these say how fast it is."""
