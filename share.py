"""Kept so that scripts written for the original, which start with ``from share import *``, run as they are.

The original patched the text encoder and attention here. Nothing needs patching any more: a chosen text layer
and long prompts are options of the text encoder, and memory is saved where ``config.save_memory`` asks for
it.
"""

__all__: list[str] = []
