"""One environment step of MuJoCo: the substeps, then one evaluation of sensors and contacts.

In: an action in the task's units. Out: the data at the new state, as the package leaves it. The
package evaluates the new state three times and the sensors in every substep; a second evaluation
of a state changes no bit, and nothing reads the sensors in between.
"""

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

mujoco: Any = importlib.import_module("mujoco")  # its functions have no types

_NO_SENSORS = int(mujoco.mjtDisableBit.mjDSBL_SENSOR)
# Hierarchies of bounding volumes pay for bodies of many geoms; no body here has more than a few.
# The contacts are the same, and in the same order.
_NO_HIERARCHIES = int(mujoco.mjtDisableBit.mjDSBL_MIDPHASE)


class Physics:
    """Advances the simulation of one task, its mocap bodies included."""

    def __init__(self, task: Any) -> None:
        self._model, self._data = task.model, task.data
        self._options = self._model.opt
        self._flags = int(self._options.disableflags) | _NO_HIERARCHIES
        self._substep_flags = self._flags | _NO_SENSORS
        self._low, self._high = self._model.actuator_ctrlrange.T.copy()
        self._control = self._data.ctrl
        self._substeps = task.sim_conf.frameskip_binom_n
        self._probability = task.sim_conf.frameskip_binom_p
        self._generator = task.random_generator
        mocaps = list(task._mocaps.values())
        self._gremlins = mocaps[0] if mocaps else None
        # The state after a step is fully evaluated, so the next one may begin at its second half.
        # Not under Runge-Kutta, whose `mj_step` has other halves, and not where a mocap body was
        # moved since.
        self._resumes = not mocaps and (self._options.integrator != mujoco.mjtIntegrator.mjINT_RK4)

    def step(self, action: NDArray[np.floating[Any]]) -> None:
        """Apply `action` and evaluate the state it leads to."""
        np.maximum(action, self._low, out=self._control)
        np.minimum(self._control, self._high, out=self._control)
        substeps = self._count_substeps()
        model, data = self._model, self._data
        self._options.disableflags = self._substep_flags
        try:
            if self._gremlins is not None:
                self._step_with_gremlins(self._gremlins, substeps)
            elif self._resumes and substeps > 0:
                mujoco.mj_step2(model, data)
                if substeps > 1:
                    mujoco.mj_step(model, data, substeps - 1)
            elif substeps > 0:
                mujoco.mj_step(model, data, substeps)
        finally:
            self._options.disableflags = self._flags
        mujoco.mj_forward(model, data)

    def _count_substeps(self) -> int:
        if self._probability == 1:
            # A certain count takes one number of the stream all the same, and it places goals.
            self._generator.random_generator.random_sample()
            return self._substeps
        return int(self._generator.binomial(self._substeps, self._probability))

    def _step_with_gremlins(self, gremlins: Any, substeps: int) -> None:
        """Step, moving every gremlin along its circle by the time before each substep."""
        model, data = self._model, self._data
        first = 0
        times, targets = self._targets(gremlins, substeps)
        for index in range(substeps):
            if data.time != times[index - first]:
                # MuJoCo restarts an unstable simulation, at time 0.
                first = index
                times, targets = self._targets(gremlins, substeps)
            data.mocap_pos[:] = targets[index - first]
            mujoco.mj_step(model, data)

    def _targets(self, gremlins: Any, substeps: int) -> tuple[list[float], NDArray[np.float64]]:
        times, time = [], self._data.time
        for _ in range(substeps):
            times.append(time)
            time += self._options.timestep
        targets = np.empty((substeps, 3))
        targets[:, 0] = np.sin(times) * gremlins.travel
        targets[:, 1] = np.cos(times) * gremlins.travel
        targets[:, 2] = gremlins.size
        return times, targets
