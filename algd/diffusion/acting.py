"""One action of a denoising policy at a time, in numpy; see ``alam.acting``.

In: one observation and the normals of one chain. Out: one action in (-1, 1)^A.
"""

import numpy as np
from jaxtyping import Float

from alam.acting import Array, RowPerceptron, view
from algd.diffusion.policy import DiffusionPolicy
from algd.diffusion.release import ReleasePolicy


class ChainSampler:
    """The reverse chain of a denoising policy for one observation.

    What observation and levels give to the first layer, what the noise adds to the latents, and
    the output layer times the length of each step are computed for all steps at once.

    Raises:
        ValueError: weights on another device than a CPU, or the DDPM form of the release.
    """

    def __init__(self, policy: DiffusionPolicy | ReleasePolicy) -> None:
        if isinstance(policy, ReleasePolicy):
            if policy.config.variant != "vesde":
                raise ValueError(
                    f"numpy acting knows variant 'vesde', got {policy.config.variant!r}; use act"
                )
            network, embedding = policy.network, policy.embedding
        else:
            network, embedding = policy.network.network, policy.network.embedding
        self.network = RowPerceptron(network)
        self.embedding = view(embedding)
        self.prior_std = float(policy.prior_std())
        steps = policy.reverse_steps
        self.moves = np.array([step.move for step in steps], np.float32)[:, None]
        self.spreads = np.array([step.spread for step in steps], np.float32)[:, None]
        self.noises = np.array([step.noise_index for step in steps])
        width, action_dim = self.network.weights[0].shape[1], policy.action_dim
        self.zero_noise = np.zeros((policy.num_noises, action_dim), np.float32)
        self.observed, self.hidden = np.empty(width, np.float32), np.empty(width, np.float32)
        self.first = np.empty((len(self.embedding), width), np.float32)
        self.outputs = np.empty((len(steps), *self.network.weights[-1].shape), np.float32)
        self.steps = [
            (
                self.first[step.level],
                None if step.of_input is None else np.float32(step.of_input),
                None if step.keep == 1.0 else np.float32(step.keep),
                self.outputs[index].T.dot,
            )
            for index, step in enumerate(steps)
        ]

    @np.errstate(all="ignore")  # weights that diverge are told of where they are checked
    def sample(
        self, obs: Float[Array, " O"], noise: Float[Array, "K A"] | None
    ) -> Float[Array, " A"]:
        """Return an action; without noise that of the noise-free chain."""
        network, first, hidden, observed = self.network, self.first, self.hidden, self.observed
        add = np.add
        of_obs, of_latent, of_level = network.blocks
        self.embedding.dot(of_level, first)
        obs.dot(of_obs, observed)
        add(first, add(observed, network.biases[0], out=observed), out=first)
        np.multiply(network.weights[-1], self.moves[:, :, None], out=self.outputs)
        if noise is None:
            noise = self.zero_noise
        shifts = noise[self.noises]
        shifts *= self.spreads
        shifts += self.moves * network.biases[-1]
        latent = self.prior_std * noise[-1]
        of_latent = of_latent.T.dot
        last_hidden = network.last_hidden
        for (known, of_input, keep, output), shift in zip(self.steps, shifts, strict=True):
            of_latent(np.tanh(latent) if of_input is None else of_input * latent, hidden)
            moved = output(last_hidden(add(hidden, known, out=hidden)))
            if keep is not None:
                latent *= keep
            latent += moved
            latent += shift
        return np.tanh(latent)
