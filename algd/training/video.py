"""Write frames to an mp4 file that every browser plays, or say in one line why not.

In: RGB frames. Out: the path of the file, None where this machine cannot encode. A video is never
worth a run: a missing encoder or a full disk is a warning here, not an error.
"""

import logging
from collections.abc import Generator, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger(__name__)


def write_video(path: Path, frames: Iterable[NDArray[np.uint8]], fps: int) -> Path | None:
    """Encode frames as H.264 and put the file in place when it is complete.

    Args:
        path: the mp4 file; its directory is created, an older file replaced.
        frames: height x width x 3 uint8 each, all of one size; consumed one at a time. An odd
            height or width loses its last row or column, since H.264 stores colour at half size.
        fps: frames per second, > 0.

    Returns:
        ``path``; None when there is no frame, no encoder, or no space, which is said in one line.

    Raises:
        ValueError: a frame of another shape or type.
    """
    try:
        import imageio_ffmpeg
    except ImportError:
        _log.warning("no video %s: imageio-ffmpeg is missing (pip install imageio-ffmpeg)", path)
        return None
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        _log.warning("no video %s: there is no frame", path)
        return None
    shape = _checked_shape(first)
    height, width = shape[0] - shape[0] % 2, shape[1] - shape[1] % 2
    temporary = path.with_name(f".{path.stem}.tmp.mp4")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _log.warning("no video %s: %s", path, error.strerror)
        return None
    try:
        encoder = imageio_ffmpeg.write_frames(
            str(temporary),
            (width, height),
            fps=fps,
            codec="libx264",
            macro_block_size=2,
            ffmpeg_log_level="error",
            output_params=["-movflags", "+faststart"],
        )
        _encode(encoder, chain([first], frames), shape, height, width)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        _log.warning("no video %s: %s", path, reason)
        return None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _encode(
    encoder: Generator[Any, Any, None],
    frames: Iterable[NDArray[np.uint8]],
    shape: tuple[int, ...],
    height: int,
    width: int,
) -> None:
    encoder.send(None)  # starts ffmpeg
    try:
        for frame in frames:
            if _checked_shape(frame) != shape:
                raise ValueError(f"frames must all have shape {shape}, got {frame.shape}")
            encoder.send(np.ascontiguousarray(frame[:height, :width]))
    finally:
        encoder.close()


def _checked_shape(frame: NDArray[np.uint8]) -> tuple[int, ...]:
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or min(frame.shape) < 2:
        raise ValueError(
            f"a frame must be height x width x 3 uint8, got {frame.shape} {frame.dtype}"
        )
    return frame.shape
