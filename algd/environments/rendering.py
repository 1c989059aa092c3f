"""Choose MuJoCo's offscreen OpenGL backend before anything renders.

In: the environment variable MUJOCO_GL and the libraries of the machine. Out: MUJOCO_GL set to a
backend that was seen to work here, or one error that names the Debian packages to install.
"""

import functools
import importlib.util
import os
import subprocess
import sys

from algd.errors import EnvironmentFault

OFFSCREEN_BACKENDS = ("egl", "osmesa")
INSTALL_GL = (
    "install one of them: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri (EGL), "
    "or apt-get install libosmesa6 (OSMesa)"
)

_VARIABLE = "MUJOCO_GL"
_PROBE_SECONDS = 60
# A missing or broken driver may abort the process that asks, so a child process asks.
_PROBE = """
import mujoco
context = mujoco.GLContext(16, 16)
context.make_current()
model = mujoco.MjModel.from_xml_string("<mujoco/>")
mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
"""


@functools.cache
def _works(backend: str) -> bool:
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env={**os.environ, _VARIABLE: backend},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode == 0


def gl_backend() -> str | None:
    """Return the offscreen backend that works here, or None; takes about a second the first time.

    A value already in MUJOCO_GL is the only one tried; otherwise EGL, then OSMesa.
    """
    if importlib.util.find_spec("mujoco") is None:
        return None
    chosen = os.environ.get(_VARIABLE)
    candidates = (chosen,) if chosen else OFFSCREEN_BACKENDS
    return next((backend for backend in candidates if _works(backend)), None)


def select_gl_backend() -> str | None:
    """Set MUJOCO_GL to a working backend where it is unset; return it, or None without one."""
    backend = gl_backend()
    if backend is not None:
        os.environ[_VARIABLE] = backend
    return backend


def require_gl_backend() -> str:
    """Set MUJOCO_GL as `select_gl_backend` does.

    Raises:
        EnvironmentFault: no backend works here; says which packages to install.
    """
    chosen = os.environ.get(_VARIABLE)
    backend = select_gl_backend()
    if backend is not None:
        return backend
    tried = f"{_VARIABLE}={chosen} does" if chosen else "neither EGL nor OSMesa does"
    raise EnvironmentFault(f"rendering needs an OpenGL backend and {tried} not work; {INSTALL_GL}")
