"""The picture-book world of :mod:`controlnet.storybook.dataset`: what is where, how it looks, and what it is
called.

``layout`` decides which things stand where; ``looks`` decides light, season and colours; ``canvas`` is the
paper; ``backdrop``, ``ground``, ``plants``, ``buildings`` and ``figures`` are the brushes; ``prompts`` names
what was painted, and ``judge`` reads it off a picture again.
"""
