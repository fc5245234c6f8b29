"""The one door to mmseg, mmcv and mmengine: slow to import, talkative, and never needed before the first
picture.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings

logger = logging.getLogger(__name__)


def import_mmseg() -> None:
    """Import mmseg with all its models and transforms, without a word on the terminal.

    The default scope of mmengine, a global of the process, stays as it is. Errors of the imports are raised
    as ever; what the packages print while they are imported goes to our log at debug level.
    """
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        # mmcv without compiled operators says so; no model of ours has any use for them.
        warnings.filterwarnings("ignore", message="Fail to import ``MultiScaleDeformableAttention``")
        from mmseg.utils import register_all_modules

        register_all_modules(init_default_scope=False)
    for line in printed.getvalue().splitlines():
        logger.debug("mmseg says while it is imported: %s", line)
