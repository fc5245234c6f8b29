"""The Cog predictor for a test of all its types: one process is each of them, one after the other."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from front.small_page import stand_in

import predict


class EveryType(predict.Predictor):
    """Before each prediction it is set up anew for the type that the file ``TYPE_FILE`` names."""

    @functools.wraps(predict.Predictor.predict)
    def predict(self, *given, **inputs):
        os.environ["CONTROLNET_TYPE"] = Path(os.environ["TYPE_FILE"]).read_text()
        self.setup()
        if (detector := stand_in(self.condition)) is not None:
            self.generator.detectors = {self.condition: detector}
        return super().predict(*given, **inputs)
