"""Histograms and pictures of a run on its own disk, so that a kill takes none from W&B.

In: what a run shows besides rows of numbers, with env steps. Out: ``histograms.csv`` (counts and
edges of 64 bins) and ``pictures/NAME-STEP.png`` in the run directory, and all of it once more for a
resumed run, whose killed predecessor may have handed over more than W&B had written.
"""

import json
import logging
import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from algd.training.csv_table import CsvTable
from algd.training.durable_files import replace_durably

_BINS = 64  # W&B's number
_PICTURE = re.compile(r"(.+)-(\d{12,})\.png")
_log = logging.getLogger("algd")
Histogram = tuple[NDArray[np.int64], NDArray[np.floating]]


class MediaJournal:
    """The histograms and pictures of one run.

    Args:
        table: of histograms.
        directory: of pictures; made with the first one.
        resume_step: those after it are deleted, since the resumed run makes them again.
    """

    def __init__(self, table: CsvTable, directory: Path, *, resume_step: int | None) -> None:
        self._table = table
        self._directory = directory
        if resume_step is not None:
            for path, _, env_step in self._pictures():
                if env_step > resume_step:
                    path.unlink()

    def histogram(self, env_step: int, name: str, values: NDArray[np.floating]) -> Histogram:
        """Keep and return counts and edges of finite values."""
        counts, edges = np.histogram(values, bins=_BINS)
        text = {"counts": json.dumps(counts.tolist()), "edges": json.dumps(edges.tolist())}
        self._table.append({"env_step": env_step, "name": name, **text})
        return counts, edges

    def picture(self, env_step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """Keep an RGB array (height, width, 3); a disk that refuses it is one warning."""
        from PIL import Image

        path = self._directory / f"{name.replace('/', '.')}-{env_step:012d}.png"
        png = BytesIO()
        Image.fromarray(pixels).save(png, "png")
        try:
            self._directory.mkdir(exist_ok=True)
            replace_durably(path, png.getvalue())
        except OSError as error:
            _log.warning("no picture %s: %s", path, error.strerror)

    def histograms(self) -> Iterator[tuple[int, str, Histogram]]:
        """Yield env step, name, and counts and edges of everything kept."""
        for row in self._table.rows():
            counts, edges = (np.array(json.loads(row[key])) for key in ("counts", "edges"))
            yield int(row["env_step"]), row["name"], (counts, edges)

    def pictures(self) -> Iterator[tuple[int, str, NDArray[np.uint8]]]:
        """Yield env step, name and pixels of everything kept."""
        from PIL import Image

        for path, name, env_step in self._pictures():
            with Image.open(path) as image:
                yield env_step, name, np.asarray(image.convert("RGB"))

    def _pictures(self) -> list[tuple[Path, str, int]]:
        """Return path, name and env step of each picture, oldest first."""
        matches = [(path, _PICTURE.fullmatch(path.name)) for path in self._directory.glob("*.png")]
        found = [(path, m[1].replace(".", "/"), int(m[2])) for path, m in matches if m is not None]
        return sorted(found, key=lambda entry: (entry[2], entry[1]))
