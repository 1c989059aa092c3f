"""The package's `Builder` with the same numbers and a fast step.

In: seeds and actions in the task's units. Out: what the package's `Builder` returns. The task
object stays the package's own and owns what lasts: layout, goal, timers, remembered distances. Only
how a step is simulated, seen and judged is done by the other modules here.
"""

import functools
import importlib
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algd.environments.fast.costs import Contacts, Costs
from algd.environments.fast.layout import layout_generator_class
from algd.environments.fast.physics import Physics
from algd.environments.fast.rewards import Reward, reward_of
from algd.environments.fast.sensing import Observer, Scene
from algd.environments.safety_package import load

mujoco: Any = importlib.import_module("mujoco")  # its functions have no types

_LOGGER = logging.getLogger(__name__)


@functools.cache
def fast_builder_class() -> type[Any]:
    """Build the subclass of the package's Builder."""
    builder_class: type[Any] = load().builder.Builder
    resampling_error: type[Exception] = load().builder.ResamplingError

    class FastBuilder(builder_class):
        """Resets and steps one task; the world is compiled at the first reset."""

        engine: Any = None

        def _setup_simulation(self) -> None:
            super()._setup_simulation()
            task = self.task
            task.random_generator = task.agent.random_generator = layout_generator_class()()
            self.set_seed()

        def build_world(self) -> None:
            """Draw a layout and move the world to it; compile the world the first time."""
            task = self.task
            task._build()
            layout = task.world_info.layout
            task.world_info.reset_layout = {name: xy.copy() for name, xy in layout.items()}

        def bind(self) -> "_Engine":
            """Look up, once the world is compiled, where everything is."""
            if self.engine is None:
                self.engine = _Engine(self.task)
            return self.engine

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[NDArray[np.float64], dict[str, Any]]:
            del options  # the package ignores them
            if seed is not None:
                self.set_seed(seed)
            self.terminated = self.truncated = False
            self.steps = 0
            task = self.task
            self.build_world()
            task.update_world()
            task.specific_reset()
            task.agent.reset()
            mujoco.mj_forward(task.model, task.data)
            engine = self.bind()
            engine.scene.settle()
            engine.read()
            self.cost = engine.costs.judge()
            # The caller knows the package's AssertionError as a layout to be replaced.
            assert self.cost["cost_sum"] == 0, f"World has starting cost! {self.cost}"
            self.first_reset = False
            return engine.observer.observe(), {}

        def step(
            self, action: NDArray[np.floating[Any]]
        ) -> tuple[NDArray[np.float64], float, float, bool, bool, dict[str, Any]]:
            assert not self.done, "reset the environment before stepping"
            task, engine = self.task, self.engine
            engine.physics.step(action)
            engine.read()
            reward, reached = engine.reward()
            clip = task.reward_conf.reward_clip
            if clip and not -clip < reward < clip:
                _LOGGER.info("reward %g was outside of its range", reward)
                reward = float(np.clip(reward, -clip, clip))
            self.cost = engine.costs.judge()
            info: dict[str, Any] = dict(self.cost)
            task.specific_step()
            if reached:
                info["goal_met"] = True
                self._place_new_goal()
                engine.scene.read()
            if not task.agent.is_alive():
                self.terminated = True
            self.steps += 1
            if self.steps >= task.num_steps:
                self.truncated = True
            observation = engine.observer.observe()
            return (
                observation,
                reward,
                info["cost_sum"],
                self.terminated,
                self.truncated,
                info,
            )

        def _place_new_goal(self) -> None:
            task = self.task
            # A new goal keeps its distance from where things are now. The package leaves the
            # places of gremlins as the layout had them.
            layout = task.world_info.layout
            for name, body in self.engine.movable.items():
                layout[name] = task.data.xpos[body, :2].copy()
            try:
                task.update_world()
            except resampling_error:
                self.terminated = True

    return FastBuilder


class _Engine:
    """The parts that simulate, see and judge one compiled task."""

    def __init__(self, task: Any) -> None:
        self.physics = Physics(task)
        self.scene = Scene(task)
        self.contacts = Contacts(task)
        self.observer = Observer(task, self.scene)
        self.costs = Costs(task, self.scene, self.contacts)
        self.reward: Reward = reward_of(task, self.scene, self.contacts)

        ids = {
            name: mujoco.mj_name2id(task.model, mujoco.mjtObj.mjOBJ_BODY, name)
            for name in task.world_info.layout
            if "gremlin" not in name
        }
        self.movable = {name: body for name, body in ids.items() if body >= 0}
        """The ids of the bodies whose places the layout follows when a new goal is placed."""

    def read(self) -> None:
        """Read the state that the physics reached."""
        self.scene.read()
        self.contacts.read()
