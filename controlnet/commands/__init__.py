"""The command lines: one module each, with a ``main`` that the flat scripts at the root call."""

from __future__ import annotations

from ldm.command import command_name

__all__ = ["command_name"]
