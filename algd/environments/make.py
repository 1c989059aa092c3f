"""One door to every environment: an id or an `EnvConfig` in, a `CostEnv` out.

An id is one of Safety-Gymnasium's, one of the analytic tasks', or any that gymnasium can make, its
`module:Id` form included. Nothing of gymnasium is imported before the first environment is made.
"""

import difflib
import importlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from algd.errors import ConfigError, EnvironmentFault

if TYPE_CHECKING:
    import gymnasium
    from gymnasium.envs.registration import EnvSpec

    from algd.environments.gymnasium import CostEnv, CostFunction

VectorKind = Literal["sync", "subprocess", "parallel"]
RENDER_MODES = (None, "rgb_array")

_MAX_SUGGESTIONS = 3
_ANALYTIC_PREFIX = "Analytic"
_SAFETY_PREFIX = "Safety"


@dataclass(frozen=True)
class EnvConfig:
    """Which environment to make, how many of it, and where its cost comes from."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    id: str = "SafetyPointGoal1-v0"
    """Id of a Safety-Gymnasium, analytic or Gymnasium environment (`module:Id` imports first)."""
    num_envs: int = 1
    """Environments stepped together, at least 1."""
    vector: VectorKind = "sync"
    """`sync` steps them one by one; `subprocess` in one worker process per core, whose crashes are
    survived; `parallel`, the fastest, likewise, but this process steps one core's share itself.
    Same numbers."""
    fast: bool = True
    """Step Safety-Gymnasium's tasks through `algd.environments.fast`, which gives the package's
    numbers; `false` steps the untouched package."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment's constructor."""
    cost_fn: str | None = None
    """`module:function`, called as cost_fn(obs, action, next_obs, info); replaces info["cost"]."""
    max_episode_steps: int | None = None
    """Replaces the environment's time limit, in steps."""
    worker_timeout: float = 120.0
    """Seconds a worker may take to start or to answer one step; then it counts as hung."""
    max_restarts: int = 20
    """Crashes of workers (exception, signal, hang) to survive; each drops the running episode."""

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("env.id must name an environment, got an empty string")
        if self.num_envs < 1:
            raise ValueError(f"env.num_envs must be >= 1, got {self.num_envs}")
        if self.vector not in get_args(VectorKind):
            raise ValueError(f"env.vector must be one of {get_args(VectorKind)}, got {self.vector}")
        if self.max_episode_steps is not None and self.max_episode_steps < 1:
            raise ValueError(f"env.max_episode_steps must be >= 1, got {self.max_episode_steps}")
        if not 0 < self.worker_timeout < float("inf"):
            raise ValueError(f"env.worker_timeout must be positive, got {self.worker_timeout}")
        if self.max_restarts < 0:
            raise ValueError(f"env.max_restarts must be >= 0, got {self.max_restarts}")
        if callable(self.cost_fn):
            raise ValueError(
                'env.cost_fn must read "module:function", got a function; for one that has no '
                "such name make algd.environments.gymnasium.CostEnv(env, env_id=..., "
                "max_episode_steps=..., cost_fn=...)"
            )
        if self.cost_fn is not None and not all(self.cost_fn.partition(":")):
            raise ValueError(f'env.cost_fn must read "module:function", got {self.cost_fn!r}')
        if "render_mode" in self.kwargs:
            raise ValueError("env.kwargs must not hold render_mode; recording a video sets it")


def make_env(config_or_id: EnvConfig | str, *, render_mode: str | None = None) -> "CostEnv":
    """Make one environment that fulfils the contract of `CostEnv`.

    Raises:
        ConfigError: the id, `cost_fn` or `kwargs` name nothing that exists.
        EnvironmentFault: the environment cannot be made here, or has spaces or a time limit that
            cannot be used, or no cost.
    """
    if render_mode not in RENDER_MODES:
        raise ConfigError(f"render_mode must be one of {RENDER_MODES}, got {render_mode!r}")
    config = EnvConfig(id=config_or_id) if isinstance(config_or_id, str) else config_or_id
    if not isinstance(config, EnvConfig):
        raise ConfigError(
            f"make_env takes an id or an EnvConfig, got a {type(config).__name__}; an environment "
            "that is made already goes into algd.environments.gymnasium.CostEnv(env, env_id=..., "
            "max_episode_steps=...)"
        )
    if importlib.util.find_spec("gymnasium") is None:
        raise EnvironmentFault("gymnasium is not installed; pip install 'gymnasium>=1.2,<2'")
    from algd.environments.gymnasium import CostEnv

    cost_fn = None if config.cost_fn is None else _cost_function(config.cost_fn)
    env, steps = _make_inner(config, render_mode)
    try:
        made = CostEnv(env, env_id=config.id, max_episode_steps=steps, cost_fn=cost_fn)
        if cost_fn is None and not _is_safety_task(config.id):
            _require_cost(made)
    except Exception:
        env.close()
        raise
    return made


def known_env_ids() -> list[str]:
    """Return the ids that `make_env` takes without importing a module of the user's, sorted."""
    import gymnasium

    from algd.environments.safety_gymnasium import safety_task_ids

    _register_analytic_tasks()
    return sorted({*safety_task_ids(), *gymnasium.registry})


def _make_inner(
    config: EnvConfig, render_mode: str | None
) -> "tuple[gymnasium.Env[Any, Any], int]":
    if _is_safety_task(config.id):
        from algd.environments.safety_gymnasium import make_safety_env

        return make_safety_env(
            config.id,
            max_episode_steps=config.max_episode_steps,
            render_mode=render_mode,
            kwargs=config.kwargs,
            fast=config.fast,
        )
    return _make_gymnasium_env(config, render_mode)


def _make_gymnasium_env(
    config: EnvConfig, render_mode: str | None
) -> "tuple[gymnasium.Env[Any, Any], int]":
    import gymnasium

    module, separator, name = config.id.rpartition(":")
    if separator:
        _import_module(module, "env.id", config.id)
    if config.id.startswith(_ANALYTIC_PREFIX):
        _register_analytic_tasks()
    spec = gymnasium.registry.get(name)
    if spec is None:
        raise _unknown_id(config.id)
    steps = config.max_episode_steps or spec.max_episode_steps
    if steps is None:
        raise EnvironmentFault(
            f"{config.id} has no time limit, and the cost budget is one of an episode: "
            "set env.max_episode_steps"
        )
    if render_mode is not None:
        _require_rendering(spec, render_mode)
    try:
        # Constructors need not know of rendering.
        rendering = {} if render_mode is None else {"render_mode": render_mode}
        env = gymnasium.make(
            spec,
            max_episode_steps=steps,
            disable_env_checker=True,
            **rendering,
            **config.kwargs,
        )
    except Exception as error:
        text = " ".join(str(error).split())
        raise EnvironmentFault(
            f"{config.id} cannot be made with env.kwargs {config.kwargs}: "
            f"{type(error).__name__}: {text}"
        ) from error
    if render_mode is not None and render_mode not in env.metadata.get("render_modes", ()):
        env.close()
        raise _cannot_render(spec.id, render_mode, env.metadata)
    return env, steps


def _cannot_render(env_id: str, render_mode: str, metadata: dict[str, Any]) -> EnvironmentFault:
    modes = list(metadata.get("render_modes", ()))
    return EnvironmentFault(f"{env_id} cannot render {render_mode}, only {modes}")


def _require_rendering(spec: "EnvSpec", render_mode: str) -> None:
    from gymnasium.envs.registration import load_env_creator

    entry_point = spec.entry_point
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    metadata = getattr(creator, "metadata", None)  # a function has none; what it makes is asked
    if metadata is not None and render_mode not in metadata.get("render_modes", ()):
        raise _cannot_render(spec.id, render_mode, metadata)
    if "mujoco" in str(entry_point):
        from algd.environments.rendering import require_gl_backend

        require_gl_backend()


def _is_safety_task(env_id: str) -> bool:
    if not env_id.startswith(_SAFETY_PREFIX):
        return False
    from algd.environments.safety_gymnasium import safety_task_ids

    return env_id in safety_task_ids()


def _require_cost(env: "CostEnv") -> None:
    """Take one step, so that an environment without a cost is refused before any training."""
    import numpy as np

    env.reset(seed=0)
    env.step(np.zeros(env.action_dim, np.float32))


def _register_analytic_tasks() -> None:
    from algd.environments.analytic import register_analytic_tasks

    register_analytic_tasks()


def _unknown_id(env_id: str) -> ConfigError:
    from algd.environments.safety_gymnasium import why_unsupported

    reason = why_unsupported(env_id)
    verdict = "is not known" if reason is None else f"is not supported: {reason}"
    near = nearest(env_id.rpartition(":")[2], known_env_ids())
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return ConfigError(f"env.id {env_id!r} {verdict}{hint}")


def nearest(name: str, allowed: Iterable[str]) -> list[str]:
    """Return up to three of `allowed` that `name` may have meant, nearest first."""
    folded = {candidate.casefold(): candidate for candidate in allowed}
    near = difflib.get_close_matches(name.casefold(), folded, n=_MAX_SUGGESTIONS)
    return [folded[match] for match in near]


def _cost_function(path: str) -> "CostFunction":
    module_name, _, name = path.partition(":")
    module = _import_module(module_name, "env.cost_fn", path)
    function = getattr(module, name, None)
    if not isinstance(function, Callable):
        raise ConfigError(f"env.cost_fn {path!r}: module {module_name} has no function {name!r}")
    return function


def _import_module(module: str, key: str, value: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:
        text = " ".join(str(error).split())
        here = Path(module.partition(".")[0])
        hint = (
            "; it is in this directory: install it, or set PYTHONPATH=."
            if isinstance(error, ModuleNotFoundError)
            and (here.is_dir() or here.with_suffix(".py").is_file())
            else ""
        )
        raise ConfigError(
            f"{key} {value!r}: module {module!r} cannot be imported: {type(error).__name__}: "
            f"{text}{hint}"
        ) from error
