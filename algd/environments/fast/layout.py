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
    """The uniform numbers that a generator will draw, read ahead; `close` gives the rest back.

    From `offset` on, `array` and its copy `numbers` hold what comes next.
    """

    def __init__(self, generator: np.random.RandomState) -> None:
        self._generator = generator
        self._start = generator.get_state(legacy=False)
        self._passed = 0
        self.array: NDArray[np.float64] = np.empty(0)
        self.numbers: list[float] = []
        self.offset = 0

    def provide(self, count: int) -> None:
        """Make sure that `count` numbers lie ahead."""
        if self.offset + count <= len(self.numbers):
            return
        fresh = self._generator.random_sample(_BLOCK)
        self.array = np.concatenate([self.array[self.offset :], fresh])
        self.numbers = self.array.tolist()
        self._passed += self.offset
        self.offset = 0

    def close(self) -> None:
        """Leave the generator as though only the numbers before `offset` had been drawn."""
        self._generator.set_state(self._start)
        self._generator.random_sample(self._passed + self.offset)


@functools.cache
def layout_generator_class() -> type[Any]:
    """Build the package's random generator with the fast sampling of layouts."""
    generator_class: type[Any] = load().random_generator.RandomGenerator
    resampling_error: type[Exception] = load().builder.ResamplingError

    class LayoutGenerator(generator_class):
        """Draws what the package's generator draws."""

        def set_placements_info(self, placements: Any, extents: Any, margin: float) -> None:
            super().set_placements_info(placements, extents, margin)
            areas = {name: self._area(*placement) for name, placement in placements.items()}
            self._placing = Placing(areas, margin)

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
                    layout = self._placing.sample(stream)
                    if layout is not None:
                        self.layout = layout
                        return layout
            finally:
                stream.close()
            raise resampling_error("Failed to sample layout of objects")

        def sample_goal_position(self) -> bool:
            areas = self._placing.areas
            area = areas["goal"]
            draw = self.random_generator.random_sample
            x = area.x_low + area.x_range * draw()
            y = area.y_low + area.y_range * draw()
            for name, place in self.layout.items():
                other_x, other_y = place.tolist()
                gap = areas[name].keepout + self._placing.margin + area.keepout
                dx, dy = x - other_x, y - other_y
                if math.sqrt(dx * dx + dy * dy) < gap:
                    return False
            self.layout["goal"] = np.array([x, y])
            return True

    return LayoutGenerator


class Placing:
    """The areas of a task's objects, in the order in which they are placed."""

    def __init__(self, areas: dict[str, Area], margin: float) -> None:
        self.areas = areas
        self.margin = margin
        order = list(areas.values())
        # The gap between two objects, in metres; summed in the package's order, to the last bit.
        self._gaps = [
            [other.keepout + margin + area.keepout for other in order[:index]]
            for index, area in enumerate(order)
        ]

    def sample(self, stream: Stream) -> dict[str, NDArray[np.float64]] | None:
        """Place each object in turn, clear of those before; None where one finds no place."""
        xs: list[float] = []
        ys: list[float] = []
        for area, gaps in zip(self.areas.values(), self._gaps, strict=True):
            place = _place_one(area, xs, ys, gaps, stream)
            if place is None:
                return None
            xs.append(place[0])
            ys.append(place[1])
        return {name: np.array(place) for name, *place in zip(self.areas, xs, ys, strict=True)}


def _place_one(
    area: Area, xs: list[float], ys: list[float], gaps: list[float], stream: Stream
) -> tuple[float, float] | None:
    x_low, x_range, y_low, y_range, _ = area
    stream.provide(2 * _OBJECT_TRIES)
    start, numbers, sqrt = stream.offset, stream.numbers, math.sqrt
    for index in range(start, start + 2 * _SINGLE_TRIES, 2):
        x = x_low + x_range * numbers[index]
        y = y_low + y_range * numbers[index + 1]
        for other_x, other_y, gap in zip(xs, ys, gaps, strict=True):
            dx = x - other_x
            dy = y - other_y
            if sqrt(dx * dx + dy * dy) < gap:
                break
        else:
            stream.offset = index + 2
            return x, y
    first = start + 2 * _SINGLE_TRIES
    end = start + 2 * _OBJECT_TRIES
    tried_x = x_low + x_range * stream.array[first:end:2]
    tried_y = y_low + y_range * stream.array[first + 1 : end : 2]
    dx, dy = np.subtract.outer(xs, tried_x), np.subtract.outer(ys, tried_y)
    clear = np.sqrt(dx * dx + dy * dy) >= np.array(gaps)[:, None]
    free = np.logical_and.reduce(clear, axis=0)
    found = int(free.argmax())
    if not free[found]:
        stream.offset = end
        return None
    stream.offset = first + 2 * (found + 1)
    return float(tried_x[found]), float(tried_y[found])
