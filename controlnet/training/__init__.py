"""The steps that make the embedded model, and the worlds that they learn."""
