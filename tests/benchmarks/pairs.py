"""Agents at the measured setting, their references, and batches for both.

The released setting: observation 60, action 2, batch 256, 5 levels, 4 score samples, 4 cost
critics. SAC-ALaM and the corrected ALGD run at the same observation, action and batch.
"""

from collections.abc import Callable, Sequence

import torch
from benchmarks.reference_algd import ReferenceALGD
from benchmarks.reference_learner import ReferenceLearner
from benchmarks.reference_release import ReferenceRelease
from benchmarks.reference_sac import ReferenceSAC
from torch import Tensor, nn

from alam.captured import CapturedUpdates
from alam.networks import EnsembleMLP
from alam.sac import SACAgent
from alam.statewise_multipliers import StatewiseALaM
from alam.types import Batch, Metrics
from algd.diffusion.agent import ALGDAgent
from algd.diffusion.release import ReleasePolicy
from algd.experiments.config import load_config, make_agent

OBS, ACTION, BATCH = 60, 2, 256
EPISODE_LENGTH = 1000
_REFERENCES = {
    "release_vesde": ReferenceRelease,
    "corrected": ReferenceALGD,
    "sac_alam": ReferenceSAC,
}
EXACT = tuple(_REFERENCES)
# The corrected method in full, whatever the defaults of algd leave out to be cheaper.
_CORRECTED = {
    "policy.chain_coef": 1.0,
    "policy.score_coef": 1.0,
    "policy.chain_steps": None,
    "policy.estimator": "mixed",
    "policy.num_score_samples": 16,
    "policy.antithetic": True,
    "policy.base_std": 1.5,
    "policy.score_batch_size": None,
    "policy.schedule.num_train_timesteps": 10,
    "policy.temperature.mode": "relative",
}
Agent = SACAgent | ALGDAgent


def agent_of(preset: str, *, device: str = "cpu", **overrides: object) -> Agent:
    """Return the agent of a shipped preset, or of `corrected`, at the measured widths."""
    settings: dict[str, object] = overrides
    if preset == "corrected":
        preset, settings = "algd", _CORRECTED | overrides
    config = load_config([preset], settings)
    agent = make_agent(config, OBS, ACTION, EPISODE_LENGTH, device)
    assert isinstance(agent, SACAgent | ALGDAgent)
    return agent


def reference_of(preset: str, agent: Agent) -> ReferenceLearner:
    """Return the plain implementation with the weights and the noise of an agent."""
    return _REFERENCES[preset](agent)  # pyright: ignore[reportArgumentType]


def make_batch(size: int = BATCH, *, seed: int = 0, device: str = "cpu") -> Batch:
    """Return random transitions, a tenth of them terminal."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    batch = Batch(
        normal(size, OBS),
        torch.tanh(normal(size, ACTION)),
        normal(size),
        normal(size).abs(),
        normal(size, OBS),
        (torch.rand(size, generator=generator) < 0.1).to(torch.get_default_dtype()),
    )
    return Batch(*(tensor.to(device) for tensor in batch))


def update_alone(agents: Sequence[Agent | CapturedUpdates], batch: Batch) -> list[Metrics]:
    """Update each agent on its own slice of a batch with a leading seed dimension."""
    return [
        agent.update(Batch(*(column[seed] for column in batch)))
        for seed, agent in enumerate(agents)
    ]


def to_float64(agent: Agent) -> Agent:
    """Turn every module of an agent to double precision in place."""
    for module in (agent.critics, agent.constraint, agent.multiplier, agent.policy):
        module.double()
    if isinstance(agent, ALGDAgent):
        agent.temperature.double()
    return agent


def optimizers_of(learner: Agent | ReferenceLearner) -> list[torch.optim.Optimizer]:
    """Return the optimisers of a learner and of its parts."""
    owners = [learner, learner.critics, learner.multiplier]
    values = [value for owner in owners for value in vars(owner).values()]
    return [value for value in values if isinstance(value, torch.optim.Optimizer)]


def record_gradients(learner: Agent | ReferenceLearner) -> dict[Tensor, Tensor]:
    """Return a table that holds, by parameter, the gradient of its latest optimiser step.

    The reference leaves critic gradients of the policy loss behind, as published code does, so
    that ``parameter.grad`` after an update is not the gradient that was used.
    """
    table: dict[Tensor, Tensor] = {}

    def before_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                table[parameter] = parameter.grad.clone()

    for optimizer in optimizers_of(learner):
        optimizer.register_step_pre_hook(before_step)
    return table


Read = Callable[[Tensor], Tensor]
"""From a parameter to what is compared: itself, or its gradient; of the same shape."""


def _of_ensemble(name: str, ensemble: EnsembleMLP, read: Read) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for layer, pair in enumerate(zip(ensemble.weights, ensemble.biases, strict=True)):
        for kind, parameter in zip(("weight", "bias"), pair, strict=True):
            for member, row in enumerate(read(parameter)):
                result[f"{name}.{member}.{layer}.{kind}"] = row.squeeze(0)
    return result


def _of_stacks(name: str, stacks: Sequence[nn.Module], read: Read) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for member, stack in enumerate(stacks):
        linears = [module for module in stack.modules() if isinstance(module, nn.Linear)]
        for layer, linear in enumerate(linears):
            # ``torch.nn.Linear`` keeps (out, in); the ensemble keeps (in, out).
            result[f"{name}.{member}.{layer}.weight"] = read(linear.weight).T.squeeze(0)
            result[f"{name}.{member}.{layer}.bias"] = read(linear.bias)
    return result


def tensors_of_agent(agent: Agent, read: Read = Tensor.detach) -> dict[str, Tensor]:
    """Return what ``read`` says of every trained network, by name of network, member and layer."""
    result = _of_ensemble("reward", agent.critics.reward, read)
    result |= _of_ensemble("cost", agent.critics.cost, read)
    if isinstance(agent, SACAgent):
        result |= _of_ensemble("policy", agent.policy.network, read)
    else:
        policy = agent.policy
        owner = policy if isinstance(policy, ReleasePolicy) else policy.network
        result |= _of_ensemble("policy", owner.network, read)
        result["embedding"] = read(owner.embedding)
    if isinstance(agent.multiplier, StatewiseALaM):
        result |= _of_ensemble("multiplier", agent.multiplier.network.network, read)
    return result


def tensors_of_reference(
    reference: ReferenceLearner, read: Read = Tensor.detach
) -> dict[str, Tensor]:
    """Return the same of a reference, under the same names."""
    result = _of_stacks("reward", list(reference.critics.reward), read)
    result |= _of_stacks("cost", list(reference.critics.cost), read)
    if isinstance(reference, ReferenceSAC):
        result |= _of_stacks("policy", [reference.policy], read)
    else:
        assert isinstance(reference, ReferenceRelease | ReferenceALGD)
        owner = reference.score if isinstance(reference, ReferenceRelease) else reference.denoiser
        result |= _of_stacks("policy", [owner.network], read)
        result["embedding"] = read(owner.embedding.weight)
    if reference.multiplier.network is not None:
        result |= _of_stacks("multiplier", [reference.multiplier.network], read)
    return result
