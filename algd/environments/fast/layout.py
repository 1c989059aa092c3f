"""The package's random layouts, drawn from the same stream and about a hundred times faster.

In: the generator's state and the placement areas. Out: the same layout, and the generator in the
same state, as the package's own sampling. Its sampling draws one coordinate after another and
compares arrays of two numbers; here a block of the stream is drawn at once and what was not needed
is given back.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from algd.environments.safety_package import load

# Both are the package's: attempts at one layout, and tries at one object within an attempt.
_LAYOUT_ATTEMPTS = 10_000
_OBJECT_TRIES = 100
# Most objects find a place at once; those that do not are tried all at once.
_SINGLE_TRIES = 6
_BLOCK = 4096


class Area(NamedTuple):
    """The rectangle of an object's centre, and the distance it keeps from others."""

    x_low: float
    x_range: float
    y_low: float
    y_range: float
    keepout: float


class Stream:
    """The uniform numbers that a generator will draw, read ahead; `close` gives the rest back."""

    def __init__(self, generator: np.random.RandomState) -> None:
        self._generator = generator
        self._start = generator.get_state(legacy=False)
        self._used = 0
        self._values: NDArray[np.float64] = np.empty(0)
        self._offset = 0

    def take(self, count: int) -> NDArray[np.float64]:
        """Return the next `count` numbers."""
        end = self._offset + count
        if end > len(self._values):
            rest = self._values[self._offset :]
            fresh = self._generator.random_sample(max(_BLOCK, count))
            self._values, self._offset, end = np.concatenate([rest, fresh]), 0, count
        taken = self._values[self._offset : end]
        self._offset = end
        self._used += count
        return taken

    def give_back(self, count: int) -> None:
        """Return the last `count` numbers to the stream."""
        self._offset -= count
        self._used -= count

    def close(self) -> None:
        """Leave the generator as though only the numbers used had been drawn."""
        self._generator.set_state(self._start)
        self._generator.random_sample(self._used)


@functools.cache
def layout_generator_class() -> type[Any]:
    """Build the package's random generator with the fast sampling of layouts."""
    generator_class: type[Any] = load().random_generator.RandomGenerator
    resampling_error: type[Exception] = load().builder.ResamplingError

    class LayoutGenerator(generator_class):
        """Draws what the package's generator draws."""

        def set_placements_info(self, placements: Any, extents: Any, margin: float) -> None:
            super().set_placements_info(placements, extents, margin)
            self._areas = {name: self._area(*placement) for name, placement in placements.items()}

        def _area(self, rectangles: Any, keepout: float) -> Area:
            if rectangles is None:
                rectangles = [self.placements_extents]
            assert len(rectangles) == 1, "the tasks place each object in one rectangle"
            x_low, y_low, x_high, y_high = self.constrain_placement(rectangles[0], keepout)
            return Area(x_low, x_high - x_low, y_low, y_high - y_low, keepout)

        def build_layout(self) -> Any:
            stream = Stream(self.random_generator)
            try:
                for _ in range(_LAYOUT_ATTEMPTS):
                    layout = sample_layout(self._areas, self.placements_margin, stream)
                    if layout is not None:
                        self.layout = layout
                        return layout
            finally:
                stream.close()
            raise resampling_error("Failed to sample layout of objects")

        def sample_goal_position(self) -> bool:
            area: Area = self._areas["goal"]
            draw = self.random_generator.random_sample
            x = area.x_low + area.x_range * draw()
            y = area.y_low + area.y_range * draw()
            for name, place in self.layout.items():
                other_x, other_y = place.tolist()
                gap = self._areas[name].keepout + self.placements_margin + area.keepout
                if _distance(x - other_x, y - other_y) < gap:
                    return False
            self.layout["goal"] = np.array([x, y])
            return True

    return LayoutGenerator


def sample_layout(
    areas: dict[str, Area], margin: float, stream: Stream
) -> dict[str, NDArray[np.float64]] | None:
    """Place each object in turn, at least its gap from those before; None where one finds no place.

    The gap between two objects is the sum of their keepouts and `margin`, in metres.
    """
    places: list[tuple[float, float]] = []
    keepouts: list[float] = []
    for area in areas.values():
        gaps = [keepout + margin + area.keepout for keepout in keepouts]
        place = _place_one(area, places, gaps, stream)
        if place is None:
            return None
        places.append(place)
        keepouts.append(area.keepout)
    return {name: np.array(place) for name, place in zip(areas, places, strict=True)}


def _place_one(
    area: Area, places: list[tuple[float, float]], gaps: list[float], stream: Stream
) -> tuple[float, float] | None:
    for _ in range(_SINGLE_TRIES):
        along_x, along_y = stream.take(2).tolist()
        x, y = area.x_low + area.x_range * along_x, area.y_low + area.y_range * along_y
        for (other_x, other_y), gap in zip(places, gaps, strict=True):
            if _distance(x - other_x, y - other_y) < gap:
                break
        else:
            return x, y
    tries = _OBJECT_TRIES - _SINGLE_TRIES
    drawn = stream.take(2 * tries)
    xs, ys = area.x_low + area.x_range * drawn[::2], area.y_low + area.y_range * drawn[1::2]
    others = np.array(places)
    dx, dy = xs[:, None] - others[:, 0], ys[:, None] - others[:, 1]
    free = (np.sqrt(dx * dx + dy * dy) >= gaps).all(axis=1)
    first = int(free.argmax())
    if not free[first]:
        return None
    stream.give_back(2 * (tries - first - 1))
    return float(xs[first]), float(ys[first])


def _distance(dx: float, dy: float) -> float:
    return math.sqrt(dx * dx + dy * dy)
