"""Figures of the multiplier over states: the arena, the state line, the corridor, or an episode.

In: an ``AgentEnergy``, rollouts, and for navigation tasks an environment. Out: pngs. Where the task
is analytic the exact multiplier is drawn beside it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algd.analysis.agent_energy import AgentEnergy
from algd.environments.make import EnvConfig, make_env
from algd.experiments.figure_style import (
    BLACK,
    BLUE,
    GREY,
    ONE_COLUMN,
    ORANGE,
    SKY,
    TWO_COLUMNS,
    new_figure,
    paper_style,
    save,
)
from algd.experiments.lab_arena import Arena, arena_observations, read_arena
from algd.experiments.lab_rollouts import Rollouts

Floats = NDArray[np.float64]

PRICE = r"$\lambda$(s) (reward / cost)"
_MAP_NODES = 41
_NUM_HEADINGS = 32  # of 8 the largest differs by a factor of two around a circle of equal states
_COLOURS = {
    "hazards": "#D55E00",
    "goal": "#009E73",
    "buttons": "#E69F00",
    "vases": "#56B4E9",
    "pillars": "#7F7F7F",
    "gremlins": "#CC79A7",
    "push_box": "#F0E442",
    "circle": "#009E73",
}


@dataclass(frozen=True)
class ArenaMap:
    """Multipliers of the robot at rest at (x, y), each (N, N), x along the first axis.

    line: (N,) metres, of both axes. mean, largest: over headings.
    """

    arena: Arena
    line: Floats
    mean: Floats
    largest: Floats


def map_arena(probe: AgentEnergy, config: EnvConfig, *, seed: int) -> ArenaMap | None:
    """Put the robot at every node of a grid over one layout; None where that is impossible."""
    env = make_env(config)
    try:
        env.reset(seed=seed)
        arena = read_arena(env)
        if arena is None:
            return None
        line = np.linspace(-arena.half_side, arena.half_side, _MAP_NODES)
        places = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
        headings = np.linspace(0.0, 2.0 * np.pi, _NUM_HEADINGS, endpoint=False)
        seen = arena_observations(env, places, headings)
    finally:
        env.close()
    if seen is None:
        return None
    values = probe.multiplier(seen.reshape(-1, seen.shape[-1])).reshape(seen.shape[:2])
    shape = (_MAP_NODES, _MAP_NODES)
    return ArenaMap(
        arena=arena,
        line=line,
        mean=values.mean(1).reshape(shape),
        largest=values.max(1).reshape(shape),
    )


def draw_arena(
    probe: AgentEnergy, found: ArenaMap, rollouts: Rollouts, path: Path, *, env_id: str
) -> Path:
    """Draw the multiplier over one layout, and over the positions visited in all episodes."""
    with paper_style():
        figure, axes = new_figure(TWO_COLUMNS, 2.7, 1, 3)
        for axis, name, values in (
            (axes[0, 0], f"mean of {_NUM_HEADINGS} headings", found.mean),
            (axes[0, 1], f"largest of {_NUM_HEADINGS} headings", found.largest),
        ):
            mesh = axis.pcolormesh(
                found.line, found.line, values.T, cmap="magma", shading="nearest", rasterized=True
            )
            figure.colorbar(mesh, ax=axis, shrink=0.6, pad=0.02)
            draw_objects(axis, found.arena)
            axis.set_title(f"robot put at (x, y),\n{name}")
        _visited(figure, axes[0, 2], probe, rollouts, found.arena.half_side)
        pairs = [axis.get_legend_handles_labels() for axis in (axes[0, 0], axes[0, 2])]
        handles, labels = ([*first, *second] for first, second in zip(*pairs, strict=True))
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.suptitle(f"{env_id}: multiplier {PRICE}")
        return save(figure, path)


def draw_visited(
    probe: AgentEnergy, rollouts: Rollouts, path: Path, *, half_side: float, env_id: str
) -> Path:
    """Draw the multiplier at the positions visited alone, where the robot cannot be put."""
    with paper_style():
        figure, axes = new_figure(ONE_COLUMN, 3.0)
        _visited(figure, axes[0, 0], probe, rollouts, half_side)
        axes[0, 0].legend(loc="upper right")
        figure.suptitle(f"{env_id}: multiplier {PRICE}")
        return save(figure, path)


def draw_objects(axis: Any, arena: Arena) -> None:
    """Draw a layout's things to scale; what costs is solid, the rest dashed."""
    from matplotlib.patches import Circle

    named: set[str] = set()
    for thing in arena.objects:
        label = None if thing.name in named else thing.name
        named.add(thing.name)
        label = None if label is None else label.replace("_", " ")
        axis.add_patch(
            Circle(
                thing.centre,
                thing.radius,
                fill=False,
                edgecolor=_COLOURS.get(thing.name, GREY),
                linewidth=1.1,
                linestyle="-" if thing.costs else "--",
                label=label,
            )
        )
    for direction, place in arena.walls:
        line = axis.axvline if direction == "x" else axis.axhline
        line(place, color=_COLOURS["hazards"], linewidth=1.1)
    axis.set_aspect("equal")
    axis.set_xlim(-arena.half_side, arena.half_side)
    axis.set_ylim(-arena.half_side, arena.half_side)
    axis.set_xlabel("x (m)")
    axis.set_ylabel("y (m)")


def draw_state_line(
    probe: AgentEnergy, path: Path, *, env_id: str, exact: tuple[Floats, Floats] | None
) -> Path:
    """Draw the multiplier of a task whose observation is one number in [-1, 1]."""
    states = np.linspace(-1.0, 1.0, 201)
    with paper_style():
        figure, axes = new_figure(ONE_COLUMN, 2.3)
        axis = axes[0, 0]
        axis.plot(states, probe.multiplier(states[:, None]), color=BLUE, label="learnt")
        if exact is not None:
            axis.plot(*exact, "o", color=ORANGE, markersize=3, label="exact at its temperature")
        axis.set_xlabel("state s")
        axis.set_ylabel(PRICE)
        axis.set_ylim(bottom=0.0)
        axis.legend()
        axis.set_title(env_id)
        return save(figure, path)


def draw_state_bars(
    probe: AgentEnergy, path: Path, *, env_id: str, obs: NDArray[np.float32], exact: Floats | None
) -> Path:
    """Draw the multiplier of a few states side by side."""
    places = np.arange(len(obs))
    with paper_style():
        figure, axes = new_figure(ONE_COLUMN, 2.3)
        axis = axes[0, 0]
        axis.bar(places - 0.2, probe.multiplier(obs), 0.4, color=BLUE, label="learnt")
        if exact is not None:
            axis.bar(places + 0.2, exact, 0.4, color=ORANGE, label="exact at its temperature")
        axis.set_xlabel("state")
        axis.set_ylabel(PRICE)
        axis.set_xticks(places)
        axis.legend()
        axis.set_title(env_id)
        return save(figure, path)


def draw_episodes(
    probe: AgentEnergy, rollouts: Rollouts, path: Path, *, env_id: str, count: int = 3
) -> Path:
    """Draw multiplier and cost step by step in the first episodes; for any environment."""
    multipliers = probe.multiplier(rollouts.obs)
    shown = min(count, int(rollouts.episode.max()) + 1)
    with paper_style():
        figure, axes = new_figure(TWO_COLUMNS, 2.2, 1, shown)
        for index, axis in enumerate(axes[0]):
            rows = rollouts.episode == index
            axis.plot(multipliers[rows], color=BLUE)
            for step in np.flatnonzero(rollouts.costs[rows] > 0):
                axis.axvline(step, color=ORANGE, linewidth=0.4, alpha=0.5)
            axis.set_xlabel("step of the episode")
            axis.set_title(f"episode {index + 1}, cost {rollouts.costs[rows].sum():.3g}")
            axis.set_ylim(bottom=0.0)
        axes[0, 0].set_ylabel(PRICE)
        figure.suptitle(f"{env_id}: multiplier along episodes; orange: steps that cost")
        return save(figure, path)


def _visited(
    figure: Any, axis: Any, probe: AgentEnergy, rollouts: Rollouts, half_side: float
) -> None:
    assert rollouts.positions is not None
    values = probe.multiplier(rollouts.obs)
    order = np.argsort(values)
    points = rollouts.positions[order]
    dots = axis.scatter(
        points[:, 0], points[:, 1], c=values[order], s=2, cmap="magma", rasterized=True
    )
    figure.colorbar(dots, ax=axis, shrink=0.6, pad=0.02)
    costly = rollouts.positions[rollouts.costs > 0]
    axis.plot(costly[:, 0], costly[:, 1], "x", color=BLUE, markersize=2, label="step that cost")
    reach = max(half_side, float(np.abs(rollouts.positions).max()) * 1.05)
    axis.set_xlim(-reach, reach)
    axis.set_ylim(-reach, reach)
    axis.set_aspect("equal")
    axis.set_xlabel("x (m)")
    axis.set_ylabel("y (m)")
    count = int(rollouts.episode.max()) + 1
    axis.set_title(
        "states visited,\n1 episode" if count == 1 else f"states visited,\n{count} layouts"
    )


def draw_corridor(probe: AgentEnergy, path: Path) -> Path:
    """Draw the multiplier over the corridor at rest, the obstacle, and the exact safe set."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    from algd.analysis.corridor_solution import solve_corridor
    from algd.environments.analytic_corridor import CorridorTask

    task = CorridorTask()
    solution = solve_corridor(task)
    lateral = np.linspace(-1.0, 1.0, 101)
    steps = np.arange(task.num_steps)
    obs = np.stack([task.observation(int(k), float(y), 0.0) for k in steps for y in lateral])
    values = probe.multiplier(obs).reshape(len(steps), len(lateral))
    safe = np.stack([solution.is_safe(int(k), lateral, 0.0) for k in steps])
    along = 0.1 * steps
    with paper_style():
        figure, axes = new_figure(ONE_COLUMN, 2.5)
        axis: Any = axes[0, 0]
        mesh = axis.pcolormesh(
            along, lateral, values.T, cmap="magma", shading="nearest", rasterized=True
        )
        figure.colorbar(mesh, ax=axis, label=PRICE)
        axis.contour(along, lateral, safe.T, levels=[0.5], colors=SKY, linewidths=1.2)
        first, last = task.obstacle_steps
        low, high = task.obstacle_span
        obstacle = Rectangle(
            (0.1 * first, low),
            0.1 * (last - first),
            high - low,
            facecolor="#DDDDDD",
            edgecolor=BLACK,
            hatch="///",
            linewidth=0.8,
            label="obstacle",
        )
        axis.add_patch(obstacle)
        edge = Line2D([], [], color=SKY, label="edge of the exact safe set")
        figure.legend(handles=[obstacle, edge], loc="outside lower center", ncols=2)
        axis.set_xlabel("way down the corridor x (m)")
        axis.set_ylabel("lateral position y (m)")
        axis.set_title("multiplier at lateral velocity 0")
        return save(figure, path)
