"""One action of a denoising policy at a time, in numpy; see ``alam.acting``.

In: one observation and the normals of one chain. Out: one action in (-1, 1)^A.
"""

import numpy as np
from jaxtyping import Float

from alam.acting import Array, GaussianSampler, RowPerceptron, view
from alam.gaussian import GaussianPolicy
from algd.diffusion.policy import DiffusionPolicy
from algd.diffusion.release import ReleasePolicy


def first_layer(
    network: RowPerceptron, obs: Float[Array, " O"], embedding: Float[Array, "T D"]
) -> Float[Array, "T H"]:
    """Return what observation and level give to the first layer, for every level at once."""
    of_obs, _, of_level = network.blocks
    first = embedding.dot(of_level)
    first += obs.dot(of_obs) + network.biases[0]
    return first


class DiffusionSampler:
    """The reverse chain of a ``DiffusionPolicy`` for one observation."""

    def __init__(self, policy: DiffusionPolicy) -> None:
        self.network = RowPerceptron(policy.network.network)
        self.embedding = view(policy.network.embedding)
        self.prior_std = float(policy.prior_std())
        self.shape = (policy.num_noises, policy.action_dim)
        schedule = policy.schedule
        # Noisiest first: level, then u <- of_latent u + of_prediction prediction + of_noise noise.
        self.steps: list[tuple[int, int, float, float, float, float]] = []
        for step in reversed(range(schedule.num_steps)):
            level = schedule.inference_levels[step]
            score = policy.network.linear[level]
            c_latent, c_score, c_noise = schedule.steps[step]
            self.steps.append(
                (
                    step,
                    level,
                    score.of_input,
                    c_latent + c_score * score.of_latent,
                    c_score * score.of_prediction,
                    c_noise,
                )
            )

    def sample(
        self, obs: Float[Array, " O"], noise: Float[Array, "K A"] | None
    ) -> Float[Array, " A"]:
        """Return an action; without noise that of the noise-free chain."""
        network = self.network
        _, of_latent, _ = network.blocks
        first = first_layer(network, obs, self.embedding)
        if noise is None:
            noise = np.zeros(self.shape, dtype=np.float32)
        latent = self.prior_std * noise[-1]
        for step, level, of_input, keep, move, spread in self.steps:
            hidden = (of_input * latent).dot(of_latent)
            hidden += first[level]
            latent = keep * latent + move * network.from_first(hidden)
            if spread:
                latent += spread * noise[step]
        return np.tanh(latent)


class ReleaseSampler:
    """The reverse chain of the VE ``ReleasePolicy`` for one observation."""

    def __init__(self, policy: ReleasePolicy) -> None:
        if policy.config.variant != "vesde":
            raise ValueError(
                f"numpy acting knows variant 'vesde', got {policy.config.variant!r}; use act"
            )
        self.network = RowPerceptron(policy.network)
        self.embedding = view(policy.embedding)
        variances = np.concatenate([[0.0], view(policy.sigmas).astype(np.float64) ** 2])
        growth = np.diff(variances)
        self.steps = [(k, float(growth[k]), float(growth[k]) ** 0.5) for k in range(len(growth))]
        self.prior_std = float(policy.sigmas[-1])
        self.shape = (policy.num_noises, policy.action_dim)

    def sample(
        self, obs: Float[Array, " O"], noise: Float[Array, "K A"] | None
    ) -> Float[Array, " A"]:
        """Return an action; without noise that of the noise-free chain."""
        network = self.network
        _, of_latent, _ = network.blocks
        first = first_layer(network, obs, self.embedding)
        if noise is None:
            noise = np.zeros(self.shape, dtype=np.float32)
        latent = self.prior_std * noise[-1]
        for step, growth, spread in reversed(self.steps):
            hidden = np.tanh(latent).dot(of_latent)
            hidden += first[step]
            latent = latent + growth * network.from_first(hidden)
            if step:
                latent += spread * noise[step]
        return np.tanh(latent)


Sampler = GaussianSampler | DiffusionSampler | ReleaseSampler


def make_sampler(policy: GaussianPolicy | DiffusionPolicy | ReleasePolicy) -> Sampler:
    """Return the sampler of a policy; it follows the policy's weights as they change.

    Raises:
        ValueError: weights on another device than a CPU, or the DDPM form of the release.
    """
    if isinstance(policy, GaussianPolicy):
        return GaussianSampler(policy)
    if isinstance(policy, ReleasePolicy):
        return ReleaseSampler(policy)
    return DiffusionSampler(policy)
