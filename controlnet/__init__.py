"""Everything beyond the original: conditions, generation, page, training, evaluation, and the command
line.
"""

import ldm  # noqa: F401 - makes torchvision importable where it lacks its compiled operators

__version__ = "1.0.0"
