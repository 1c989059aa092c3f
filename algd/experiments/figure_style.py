"""How figures look: readable in the column of a paper.

In: nothing, or a figure. Out: matplotlib settings for a while, and a png. Widths are those of one
and two columns of a two-column paper, in inches; text is 8 points at that size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from algd.errors import UserError, install_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ONE_COLUMN = 3.4
TWO_COLUMNS = 7.0
DPI = 200

# Okabe and Ito's palette, told apart by the colour-blind.
BLACK, BLUE, ORANGE, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
SKY, YELLOW, PURPLE, GREY = "#56B4E9", "#E69F00", "#CC79A7", "#7F7F7F"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY, BLACK, GREY)

_SETTINGS: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "figure.titlesize": 9,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}


@contextmanager
def paper_style() -> Iterator[None]:
    """Draw with these settings, without a display, and put the user's own back.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise UserError(f"figures need matplotlib: {install_command('lab')}") from error
    settings: Any = _SETTINGS  # matplotlib's own stubs list each key
    with mpl.rc_context(settings):
        yield


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> Any:
    """Return (figure, axes of shape (rows, columns)); sizes in inches. Owned by nobody else."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: "Figure", path: Path) -> Path:
    """Write a png and return its path."""
    figure.savefig(path, dpi=DPI)
    return path
