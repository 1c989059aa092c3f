"""Pictures and videos of a run directory, and how a page refers to them.

In: run directories. Out: files that are what their names say, and addresses: data embedded in the
page, or paths relative to it. A link that leads out of the run directory is not followed.
"""

import base64
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from algd.experiments.run_data import printable

_KINDS = {".png": "image/png", ".mp4": "video/mp4"}
_PNG_START = b"\x89PNG\r\n\x1a\n"
_MP4_BRAND = b"ftyp"  # at byte 4
# Not written for readers: W&B's files (but for its pictures, below), weights, replay rows.
_PASSED_OVER = ("wandb", "checkpoints", "replay", "replay_copy", "policies", "tensorboard")
_DEEPEST = 3
# What a trainer draws at its evaluations goes to W&B, which names it NAME_STEP_DIGEST.png.
_WANDB_IMAGES = "wandb/*run-*/files/media/images"
_WANDB_NAME = re.compile(r"(?P<name>.+)_(?P<step>\d+)_[0-9a-f]+\.png")
_PICTURE_BUDGET = 6_000_000  # bytes embedded in one page; further pictures are linked
_VIDEO_BUDGET = 60_000_000


@dataclass(frozen=True)
class MediaFile:
    """A PNG or MP4 file. name: its path below the run directory, printable."""

    path: Path
    name: str
    content_type: str


class Media(NamedTuple):
    """What a run directory has to look at."""

    pictures: list[MediaFile]
    videos: list[MediaFile]


def find_media(run_dir: Path) -> Media:
    """Return pictures and videos; of a series that differs in digits alone, the last picture."""
    root = run_dir.resolve()
    newest: dict[str, MediaFile] = {}
    videos = []
    for path in _files(run_dir):
        content_type = _KINDS.get(path.suffix.lower())
        if content_type is None or not _is_genuine(path, root, content_type):
            continue
        file = MediaFile(path, printable(str(path.relative_to(run_dir))), content_type)
        if content_type == "video/mp4":
            videos.append(file)
        else:
            series = re.sub(r"\d+", "#", file.name)
            newest[series] = max(newest.get(series, file), file, key=lambda one: _natural(one.name))
    return Media([*newest.values(), *_wandb_pictures(run_dir, root)], videos)


def _wandb_pictures(run_dir: Path, root: Path) -> list[MediaFile]:
    """Return the newest picture of each name among W&B's files, by name."""
    newest: dict[str, tuple[tuple[list[int], int], MediaFile]] = {}
    for images in run_dir.glob(_WANDB_IMAGES):
        started = _natural(images.relative_to(run_dir).parts[1])[:2]  # run-DATE_TIME-ID
        for path in _files(images):
            parts = _WANDB_NAME.fullmatch(str(path.relative_to(images)))
            if parts is None or not _is_genuine(path, root, "image/png"):
                continue
            name = printable(parts["name"])
            age = (started, int(parts["step"]))
            if name not in newest or age > newest[name][0]:
                newest[name] = age, MediaFile(path, name, "image/png")
    return [file for _, (_, file) in sorted(newest.items())]


class MediaSources:
    """Gives each file an address for a page that lies in ``directory``.

    Pictures are embedded within a budget, then linked. ``videos``: ``embed`` likewise, ``link``
    always a relative path, ``none`` leaves them out.
    """

    def __init__(self, directory: Path, *, videos: str = "embed") -> None:
        self.directory = directory.resolve()
        self.videos = videos
        self.left = {"image/png": _PICTURE_BUDGET, "video/mp4": _VIDEO_BUDGET}
        self.linked = 0

    def __call__(self, file: MediaFile) -> str | None:
        """Return the address, or None for what is left out or can no longer be read."""
        is_video = file.content_type == "video/mp4"
        if is_video and self.videos == "none":
            return None
        try:
            size = file.path.stat().st_size
            if size <= self.left[file.content_type] and not (is_video and self.videos == "link"):
                self.left[file.content_type] -= size
                coded = base64.b64encode(file.path.read_bytes()).decode()
                return f"data:{file.content_type};base64,{coded}"
        except OSError:
            return None
        self.linked += 1
        return quote(os.fsencode(os.path.relpath(file.path.resolve(), self.directory)))


def _files(directory: Path, depth: int = 0) -> Iterator[Path]:
    try:
        entries: Sequence[Path] = sorted(directory.iterdir())
    except OSError:
        return
    for entry in entries:
        if not entry.is_dir():
            yield entry
        elif depth < _DEEPEST and entry.name not in _PASSED_OVER and not entry.is_symlink():
            yield from _files(entry, depth + 1)


def _is_genuine(path: Path, root: Path, content_type: str) -> bool:
    try:
        if not path.resolve().is_relative_to(root) or not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(12)
    except OSError:
        return False
    is_png = start.startswith(_PNG_START)
    return is_png if content_type == "image/png" else start[4:8] == _MP4_BRAND


def _natural(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d{1,18}", name)]
