"""Is that a voice? silero's detector, run from the model file inside its wheel: no download, no account, one thread.

The file is run by onnxruntime directly, because importing ``silero_vad`` sets the number of threads of the whole
process to one, which would slow the networks down.

This module knows nothing of turns, talkers or pages.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
import onnxruntime

from livetalk.stream.turns import SLICE_SAMPLES
from livetalk.types import MODEL_RATE, LiveTalkError

_CONTEXT_SAMPLES = 64
_STATE_SHAPE = (2, 1, 128)
_HELP = "Install it with 'pip install silero-vad'; typing to the avatar works without it."


class SileroDetector:
    """A ``SpeechDetector``: how likely is it that somebody speaks in this slice?

    The weights are loaded once per process and shared; what the detector remembers of the sound is its own, so each
    microphone needs its own detector. About 0.1 ms of one core per slice.

    Raises:
        LiveTalkError: silero-vad is not installed, or its model cannot be read.
    """

    def __init__(self) -> None:
        self._model = _model()
        self._rate = np.array(MODEL_RATE, np.int64)
        self.reset()

    def reset(self) -> None:
        """Forget all sound."""
        self._state = np.zeros(_STATE_SHAPE, np.float32)
        self._heard = np.zeros((1, _CONTEXT_SAMPLES + SLICE_SAMPLES), np.float32)

    def __call__(self, samples: np.ndarray) -> float:
        """The next slice.

        Args:
            samples: float32 ``[SLICE_SAMPLES]`` mono at ``MODEL_RATE``, in -1..1.

        Returns:
            Probability of speech, 0..1.

        Raises:
            LiveTalkError: not a slice.
        """
        if samples.shape != (SLICE_SAMPLES,):
            raise LiveTalkError(
                f"The voice detector got samples of shape {samples.shape}: expected ({SLICE_SAMPLES},) at "
                f"{MODEL_RATE} Hz. Push sound of any length through a TurnTaker instead."
            )
        self._heard[0, :_CONTEXT_SAMPLES] = self._heard[0, -_CONTEXT_SAMPLES:]
        self._heard[0, _CONTEXT_SAMPLES:] = samples
        fed = {"input": self._heard, "state": self._state, "sr": self._rate}
        probability, self._state = self._model.run(None, fed)
        return float(probability[0, 0])


@functools.lru_cache(maxsize=1)
def _model() -> onnxruntime.InferenceSession:
    """The one session of this process; it keeps nothing between calls and may be run from several threads."""
    found = importlib.util.find_spec("silero_vad")  # looks for the package without running it
    file = Path(found.origin).parent / "data" / "silero_vad.onnx" if found and found.origin else None
    if file is None or not file.exists():
        raise LiveTalkError(f"The voice detector silero-vad was not found. {_HELP}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common base
        raise LiveTalkError(f"The voice detector {file} cannot be read ({error}). {_HELP}") from error
