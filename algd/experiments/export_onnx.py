"""Write a policy as ONNX graphs, and prove on observations that they compute the same actions.

In: a loaded policy. Out: two files that need no Python: ``policy.onnx`` (obs, noise -> action) and
``policy_deterministic.onnx`` (obs -> action). Observations are raw (the normaliser is inside),
actions are in the environment's box, the reverse steps of a denoising policy are unrolled.

``noise`` holds standard normals (batch, K, A): K = 1 for a Gaussian policy, the prior and one per
reverse step for a denoising one. With ``candidates`` > 1 the deterministic mode is the best of so
many samples by energy: critics and multiplier are inside too, and it reads noise
(batch, candidates, K, A).
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from numpy.typing import NDArray
from torch import Tensor, nn

from alam.gaussian import GaussianPolicy
from algd.diffusion.agent import ALGDAgent
from algd.diffusion.policy import best_of
from algd.errors import UserError, install_command
from algd.training.load import LoadedPolicy

STOCHASTIC_FILE = "policy.onnx"
DETERMINISTIC_FILE = "policy_deterministic.onnx"
TOLERANCE = 1e-5  # of half the action range
_TALKATIVE = ("torch.onnx", "onnxscript")  # loggers
_EXAMPLE_ROWS = 2  # a traced batch of 1 would be taken for a constant


class DeployedPolicy(nn.Module):
    """Raw observations and noise to actions in the environment's box, as one module.

    Args:
        policy: what to deploy; its weights are shared, not copied.
        deterministic: the deterministic mode in place of samples.
    """

    mean: Tensor
    scale: Tensor
    center: Tensor
    half_range: Tensor

    def __init__(self, policy: LoadedPolicy, *, deterministic: bool) -> None:
        super().__init__()
        self.agent = policy.agent
        self.policy = policy.agent.policy
        self.normalizer = policy.normalizer
        self.obs_dim, self.action_dim = policy.obs_dim, policy.agent.action_dim
        self.deterministic = deterministic
        self.candidates = 1
        if deterministic and isinstance(policy.agent, ALGDAgent):
            self.candidates = policy.agent.config.policy.candidates
            self.critics, self.multiplier = policy.agent.critics, policy.agent.multiplier
        low, high = policy.action_low, policy.action_high
        for name, value in {"center": (low + high) / 2, "half_range": (high - low) / 2}.items():
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32))

    @property
    def noise_shape(self) -> tuple[int, ...] | None:
        """Shape of the noise of one observation; None where the mode reads none."""
        if self.deterministic and self.candidates == 1:
            return None
        count = 1 if isinstance(self.policy, GaussianPolicy) else self.policy.num_noises
        shape = (count, self.action_dim)
        return (self.candidates, *shape) if self.deterministic else shape

    def forward(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return actions (batch, A)."""
        obs = self.normalizer.normalize_tensor(obs)
        return self.center + self.half_range * self._normalized_action(obs, noise)

    def _normalized_action(self, obs: Tensor, noise: Tensor | None) -> Tensor:
        if noise is None:
            return self.policy.mode(obs)
        if not self.deterministic:
            return self._sample(obs, rearrange(noise, "b k a -> k b a"))
        count = self.candidates
        flat = rearrange(noise, "b s k a -> k (s b) a")
        samples = self._sample(repeat(obs, "b o -> (s b) o", s=count), flat)
        actions = rearrange(samples, "(s b) a -> s b a", s=count)
        return best_of(actions, self.agent.evaluate(obs, actions)[0])

    def _sample(self, obs: Tensor, noise: Tensor) -> Tensor:
        if isinstance(self.policy, GaussianPolicy):
            return self.policy.sample(obs, noise[0])[0]
        return self.policy.sample(obs, noise)

    def draw_noise(self, rows: int, generator: torch.Generator) -> Tensor | None:
        """Return noise for so many observations, None where the mode reads none."""
        shape = self.noise_shape
        return None if shape is None else torch.randn(rows, *shape, generator=generator)


@dataclass(frozen=True)
class OnnxReport:
    """One written graph: file name, input shapes after the batch dimension, and its parity.

    max_difference: largest difference to torch, in units of half the action range, over
        ``observations`` observations.
    """

    file: str
    inputs: dict[str, list[int]]
    max_difference: float
    observations: int


def export_onnx(
    policy: LoadedPolicy, directory: Path, observations: NDArray[np.float32]
) -> list[OnnxReport]:
    """Write both graphs and check each on ``observations`` (N, O) with onnxruntime.

    Raises:
        UserError: a package is missing, or a graph differs from torch by more than 1e-5 of half
            the action range; then the graph is removed.
    """
    require_onnx()
    reports = []
    for name, deterministic in ((STOCHASTIC_FILE, False), (DETERMINISTIC_FILE, True)):
        module = DeployedPolicy(policy, deterministic=deterministic).eval()
        path = directory / name
        _write(module, path)
        difference = parity(module, path, observations)
        if not difference <= TOLERANCE:
            path.unlink()
            raise UserError(
                f"{path} differs from torch by {difference:.3g} of half the action range over "
                f"{len(observations)} observations; allowed is {TOLERANCE:g}, so it was removed"
            )
        inputs = {"obs": [module.obs_dim]}
        if module.noise_shape is not None:
            inputs["noise"] = list(module.noise_shape)
        reports.append(OnnxReport(name, inputs, difference, len(observations)))
    return reports


def require_onnx() -> None:
    """Complain in one line where a package of the extra ``export`` is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"ONNX export needs the package {error.name}: {install_command('export')}"
        ) from error


@torch.no_grad()
def parity(module: DeployedPolicy, path: Path, observations: NDArray[np.float32]) -> float:
    """Return the largest difference of actions to onnxruntime, in half action ranges."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    obs = torch.from_numpy(observations)
    noise = module.draw_noise(len(obs), torch.Generator().manual_seed(0))
    feed = {"obs": observations}
    if noise is not None:
        feed["noise"] = noise.numpy()
    expected = module(obs, noise).numpy()
    (got,) = session.run(None, feed)
    return float(np.abs((np.asarray(got) - expected) / module.half_range.numpy()).max())


def _write(module: DeployedPolicy, path: Path) -> None:
    obs = torch.zeros(_EXAMPLE_ROWS, module.obs_dim)
    noise = module.draw_noise(_EXAMPLE_ROWS, torch.Generator().manual_seed(0))
    batch = torch.export.Dim("batch")
    inputs: tuple[Any, ...] = (obs,) if noise is None else (obs, noise)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module,
            inputs,
            input_names=["obs", "noise"][: len(inputs)],
            output_names=["action"],
            dynamic_shapes={
                "obs": {0: batch},
                **({} if noise is None else {"noise": {0: batch}}),
            },
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise UserError("torch.onnx.export returned nothing; torch >= 2.11 is needed")
    program.save(str(path), external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what torch and its graph optimiser say about themselves while they export."""
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in _TALKATIVE}
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
