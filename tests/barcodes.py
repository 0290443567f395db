"""From decoded pictures and sound of the sandbox back to the frames and times they are of."""

from __future__ import annotations

import io
import math
import wave
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acavdl.sandbox.media import CODE_CELLS, CODE_ROWS, MasterSpec, code_box, read_code, tag
from acavdl.sandbox.probe import probe


def numbers(spec: MasterSpec, pictures: NDArray[np.uint8]) -> list[int]:
    """Read which frame of the master each picture is."""
    left, top, across, down = code_box(pictures.shape[2], pictures.shape[1])
    rows = (top + (np.arange(CODE_ROWS) + 0.5) * down / CODE_ROWS).astype(int)
    columns = (left + (np.arange(CODE_CELLS) + 0.5) * across / CODE_CELLS).astype(int)
    found = []
    for picture in pictures:
        code = read_code(picture[rows[:, None], columns].mean(axis=-1))
        assert code is not None
        assert code[1] == tag(spec)
        found.append(code[0])
    return found


def heard_from(spec: MasterSpec, sample: dict[str, Any]) -> tuple[float, float]:
    """Tell from where to where of the master the sound is, in seconds."""
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setparams((1, 2, sample["audio_rate"], 0, "NONE", ""))
        mixed = sample["audio"].mean(axis=0)
        written.writeframes((mixed * 32767).round().astype("<i2").tobytes())
    shown = probe(file.getvalue(), spec)
    assert shown.audio_steady
    assert shown.audio_start is not None
    assert shown.audio_end is not None
    return shown.audio_start, shown.audio_end


def shown_at(spec: MasterSpec, seconds: float) -> int:
    return math.floor(Fraction(str(seconds)) * spec.fps)
