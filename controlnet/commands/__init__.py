"""The command lines: one module each, with a ``main`` that the flat scripts at the root call."""
