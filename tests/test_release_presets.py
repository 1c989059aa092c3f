"""The presets `release_vesde` and `release_ddpm`: what the released ALGD code does, in numbers.

Expected values are worked out here from the formulas, without the functions under test.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alam.critics import SafeCritics
from alam.multiplier_config import ScalarDualConfig
from alam.networks import Projection
from alam.types import Batch
from algd.diffusion.agent import ALGDAgent
from algd.diffusion.release import ReleasePolicy, ReleasePolicyConfig
from algd.experiments.config import ExperimentConfig, load_config, make_agent

PRESETS = ("release_vesde", "release_ddpm")
OBS, ACTION = 3, 2
THRESHOLD = 25.0 * (1.0 - 0.99**1000) / (0.01 * 1000)  # limit 25 of 1,000 steps, discount 0.99


@pytest.fixture(params=PRESETS)
def config(request: pytest.FixtureRequest) -> ExperimentConfig:
    return load_config([request.param])


def agent_of(name: str, **overrides: object) -> ALGDAgent:
    agent = make_agent(load_config([name], overrides), OBS, ACTION, 1000, "cpu")
    assert isinstance(agent, ALGDAgent)
    return agent


def policy_of(agent: ALGDAgent) -> ReleasePolicy:
    assert isinstance(agent.policy, ReleasePolicy)
    return agent.policy


def batch_of(size: int = 6, *, action: float | None = None, terminated: float = 0.0) -> Batch:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    actions = torch.tanh(normal(size, ACTION))
    if action is not None:
        actions = torch.full_like(actions, action)
    return Batch(
        normal(size, OBS),
        actions,
        normal(size),
        normal(size).abs(),
        normal(size, OBS),
        torch.full((size,), terminated),
    )


# ---- settings


def test_critics_are_as_released(config: ExperimentConfig) -> None:
    critics = config.critics
    assert (critics.hidden, critics.reward_activation) == ((256, 256), "relu")
    assert (critics.cost_activation, critics.num_cost_critics) == ("silu", 4)
    assert critics.cost_pessimism == 1.0
    assert critics.cost_target == "discounted"
    assert (critics.discount, critics.cost_discount) == (0.99, 0.99)
    assert (critics.target_update_rate, critics.target_update_interval) == (0.005, 2)
    assert critics.mask_terminated_cost is False


def test_every_learning_rate_is_3e_4(config: ExperimentConfig) -> None:
    assert isinstance(config.multiplier, ScalarDualConfig)
    rates = (config.critics.learning_rate, config.policy.learning_rate)
    assert (*rates, config.multiplier.learning_rate) == (3e-4, 3e-4, 3e-4)


def test_constraint_is_the_raw_per_sample_penalty(config: ExperimentConfig) -> None:
    constraint = config.constraint
    assert (constraint.augmented, constraint.unit, constraint.hinge) == (True, "raw", "sample")
    assert constraint.penalty_coef == 1.0


def test_multiplier_is_the_logarithm_of_one_number_on_replayed_actions(
    config: ExperimentConfig,
) -> None:
    multiplier = config.multiplier
    assert isinstance(multiplier, ScalarDualConfig)
    assert (multiplier.parameterization, multiplier.signal) == ("log", "replay")
    assert (multiplier.initial_value, multiplier.interval) == (0.6931, 1)
    assert multiplier.multiplier_max == 1e8


def test_pace_is_as_released(config: ExperimentConfig) -> None:
    train = config.train
    assert (train.batch_size, train.buffer_size) == (256, 1_000_000)
    assert (train.learning_starts, train.warmup) == (5000, "policy")
    assert train.updates_per_step == 10.0
    # the first epoch are the 1,000 steps after the warm-up
    assert train.initial_updates_per_step == 5.0
    assert train.initial_steps == train.learning_starts + 1000
    assert train.normalize_obs is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chain_coef": -1.0}, "chain_coef must be >= 0, got -1"),
        ({"chain_coef": 0.0, "score_coef": 0.0}, "chain_coef and score_coef are both 0"),
        ({"embedding_dim": 0}, "embedding_dim must be >= 1, got 0"),
        ({"num_timesteps": 1}, "num_timesteps of variant 'vesde' must be >= 2, got 1"),
    ],
)
def test_impossible_policies_are_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReleasePolicyConfig(**changes)


def test_policy_settings_are_as_released(config: ExperimentConfig) -> None:
    policy = config.policy
    assert isinstance(policy, ReleasePolicyConfig)
    assert (policy.temperature.mode, policy.temperature.value) == ("raw", 1.0)
    assert (policy.num_score_samples, policy.num_timesteps) == (4, 5)
    assert (policy.chain_coef, policy.score_coef) == (1.0, 0.1)
    assert (policy.hidden, policy.embedding_dim) == ((128, 128, 128), 16)
    assert policy.update_interval == 1


def test_the_two_presets_differ_in_the_variant_alone() -> None:
    vesde, ddpm = (load_config([name]) for name in PRESETS)
    assert isinstance(ddpm.policy, ReleasePolicyConfig)
    assert (vesde.policy.kind, ddpm.policy.variant) == ("release", "ddpm")
    assert load_config(["release_ddpm"], {"policy.variant": "vesde"}) == vesde


# ---- networks


def widths(weights: nn.ParameterList) -> list[tuple[int, ...]]:
    return [tuple(weight.shape) for weight in weights]


def test_critic_networks_are_twins_and_an_ensemble_of_four() -> None:
    critics = agent_of("release_vesde").critics
    wide = OBS + ACTION
    assert widths(critics.reward.weights) == [(2, wide, 256), (2, 256, 256), (2, 256, 1)]
    assert widths(critics.cost.weights) == [(4, wide, 256), (4, 256, 256), (4, 256, 1)]
    names = (critics.reward.activation_name, critics.cost.activation_name)
    assert names == ("relu", "silu")


def test_weights_start_as_released() -> None:
    """Xavier-uniform twins and policy, a normal ensemble for the cost; biases 0."""
    agent = agent_of("release_vesde")
    twins, costs, policy = agent.critics.reward, agent.critics.cost, policy_of(agent).network
    assert all(not bias.any() for net in (twins, costs, policy) for bias in net.biases)
    for net in (twins, policy):
        for weight in net.weights:
            bound = (6 / (weight.shape[1] + weight.shape[2])) ** 0.5
            assert weight.abs().max().item() == pytest.approx(bound, rel=0.1)
            assert weight.abs().max() <= bound
    for weight in costs.weights:
        assert weight.std().item() == pytest.approx(0.5 * weight.shape[1] ** -0.5, rel=0.1)
    for target, net in ((agent.critics.reward_target, twins), (agent.critics.cost_target, costs)):
        for mine, other in zip(target.parameters(), net.parameters(), strict=True):
            assert torch.equal(mine, other)


def test_pessimistic_cost_is_mean_plus_one_unbiased_deviation() -> None:
    critics = agent_of("release_vesde").critics
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])  # mean 3, squares of deviations 4, 1, 0, 9

    class Ensemble(nn.Module):
        def forward(self, obs: Tensor, action: Tensor, *, frozen: bool) -> Tensor:
            return values[:, None, None].expand(4, len(obs), 1)

    critics.cost = Ensemble()
    got = critics.q_cost(torch.zeros(2, OBS), torch.zeros(2, ACTION))
    torch.testing.assert_close(got, torch.full((2,), 3.0 + math.sqrt(14.0 / 3.0)))


@pytest.mark.parametrize(("name", "heads"), [("release_vesde", 1), ("release_ddpm", 2)])
def test_score_network_reads_obs_action_and_a_learnt_embedding_of_16(name: str, heads: int) -> None:
    policy = policy_of(agent_of(name))
    assert policy.embedding.shape == (5, 16)
    assert policy.embedding.requires_grad
    wide = OBS + ACTION + 16
    assert widths(policy.network.weights) == [
        (1, wide, 128),
        (1, 128, 128),
        (1, 128, 128),
        (1, 128, heads * ACTION),
    ]
    assert policy.network.activation is F.relu


# ---- schedules and reverse steps


def test_vesde_sigmas_are_geometric_from_a_hundredth_to_one() -> None:
    policy = policy_of(agent_of("release_vesde"))
    expected = torch.tensor([0.01, 10**-1.5, 0.1, 10**-0.5, 1.0])
    torch.testing.assert_close(policy.sigmas, expected, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(policy.alphas, torch.ones(5), rtol=0.0, atol=0.0)


DDPM_BETAS = (0.0001, 0.005075, 0.01005, 0.015025, 0.02)


def ddpm_alphas_cumprod() -> list[float]:
    product, table = 1.0, []
    for beta in DDPM_BETAS:
        product *= 1.0 - beta
        table.append(product)
    return table


def test_ddpm_betas_are_linear_over_five_levels() -> None:
    policy = policy_of(agent_of("release_ddpm"))
    expected = torch.tensor(ddpm_alphas_cumprod())
    torch.testing.assert_close(policy.alphas.square(), expected, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(policy.sigmas.square(), 1.0 - expected, rtol=1e-4, atol=0.0)


class Recorder(nn.Module):
    """Stands in for the score network: notes its inputs, returns a constant row."""

    def __init__(self, output: list[float]) -> None:
        super().__init__()
        self.output = torch.tensor(output)
        self.inputs: list[Tensor] = []

    def project(self, x: Tensor, part: int) -> Projection:
        return Projection(x.unsqueeze(0))

    def forward(self, obs: Tensor | Projection, x: Tensor, level: Tensor | Projection) -> Tensor:
        self.inputs.append(x)
        return self.output.expand(len(x), -1)


LATENT = torch.tensor([[0.4, -1.3]])
NOISE = torch.tensor([[0.7, -0.2]])


@pytest.mark.parametrize(
    ("index", "growth"),
    [(4, 1.0 - 0.1), (3, 0.1 - 0.01), (2, 0.01 - 0.001), (1, 0.001 - 0.0001)],
)
def test_vesde_step_adds_growth_times_score_and_its_root_times_noise(
    index: int, growth: float
) -> None:
    policy = policy_of(agent_of("release_vesde"))
    policy.network = Recorder([2.0, -3.0])
    got = policy.step(torch.zeros(1, OBS), LATENT, NOISE, index)
    expected = LATENT + growth * torch.tensor([2.0, -3.0]) + math.sqrt(growth) * NOISE
    torch.testing.assert_close(got, expected)


def test_vesde_last_step_has_no_noise() -> None:
    policy = policy_of(agent_of("release_vesde"))
    policy.network = Recorder([2.0, -3.0])
    got = policy.step(torch.zeros(1, OBS), LATENT, NOISE, 0)
    torch.testing.assert_close(got, LATENT + 0.0001 * torch.tensor([2.0, -3.0]))


@pytest.mark.parametrize("index", range(5))
def test_ddpm_step_is_the_posterior_mean_plus_a_twentieth_along_the_score(index: int) -> None:
    policy = policy_of(agent_of("release_ddpm"))
    score, epsilon = torch.tensor([3.0, -4.0]), torch.tensor([0.3, 0.9])
    policy.network = Recorder([3.0, -4.0, 0.3, 0.9])
    got = policy.step(torch.zeros(1, OBS), LATENT, NOISE, index)
    table = ddpm_alphas_cumprod()
    beta, cumprod = DDPM_BETAS[index], table[index]
    previous = table[index - 1] if index else 1.0
    mean = (LATENT - beta / math.sqrt(1.0 - cumprod) * epsilon) / math.sqrt(1.0 - beta)
    spread = math.sqrt(beta * (1.0 - previous) / (1.0 - cumprod))
    expected = mean + 0.05 * score / 5.0 + spread * NOISE  # |score| = 5
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_last_step_ignores_the_noise(name: str) -> None:
    policy = policy_of(agent_of(name))
    obs = torch.zeros(1, OBS)
    assert torch.equal(policy.step(obs, LATENT, NOISE, 0), policy.step(obs, LATENT, -NOISE, 0))


def test_network_reads_the_squashed_action_while_its_output_moves_the_latent() -> None:
    policy = policy_of(agent_of("release_vesde"))
    policy.network = recorder = Recorder([1.0, 1.0])
    moved = policy.step(torch.zeros(1, OBS), LATENT, NOISE, 4)
    torch.testing.assert_close(recorder.inputs[0], torch.tanh(LATENT))
    torch.testing.assert_close(moved, LATENT + 0.9 + math.sqrt(0.9) * NOISE)


def test_the_heads_of_ddpm_read_the_squashed_action_and_the_latent() -> None:
    policy = policy_of(agent_of("release_ddpm"))
    policy.network = recorder = Recorder([0.0] * (2 * ACTION))
    policy.step(torch.zeros(1, OBS), LATENT, NOISE, 3)
    torch.testing.assert_close(recorder.inputs, [torch.tanh(LATENT), LATENT])


@pytest.mark.parametrize("name", PRESETS)
def test_chain_starts_from_unit_noise_and_takes_five_steps(name: str) -> None:
    policy = policy_of(agent_of(name))
    noise = torch.zeros(policy.num_noises, 1, ACTION)
    noise[-1] = LATENT
    policy.network = recorder = Recorder(
        [0.0] * (ACTION if name == "release_vesde" else 2 * ACTION)
    )
    action = policy.sample(torch.zeros(1, OBS), noise)
    torch.testing.assert_close(recorder.inputs[0], torch.tanh(LATENT))
    # VE with score 0 stands still, DDPM without epsilon only undoes the shrinking
    scale = 1.0 if name == "release_vesde" else 1.0 / math.sqrt(ddpm_alphas_cumprod()[-1])
    torch.testing.assert_close(action, torch.tanh(scale * LATENT), rtol=1e-5, atol=1e-6)
    per_step = 1 if name == "release_vesde" else 2
    assert len(recorder.inputs) == 5 * per_step


# ---- score target


def quadratic(center: float) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Energy (a - center)^2 summed over dimensions, and a violation of 0."""

    def evaluate(obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        energy = (action - center).square().sum(-1)
        return energy, torch.zeros_like(energy)

    return evaluate


def hand_made_target(
    noisy: float, sigma: float, noise: list[float], *, center: float, temperature: float
) -> float:
    proposals = [noisy + sigma * eps for eps in noise]
    weights = [math.exp(-((a - center) ** 2) / temperature) for a in proposals]
    gradients = [2.0 * (a - center) for a in proposals]
    weighted = sum(w * g for w, g in zip(weights, gradients, strict=True)) / sum(weights)
    return -weighted / temperature


def one_dimensional_policy(name: str) -> ReleasePolicy:
    agent = make_agent(load_config([name]), OBS, 1, 1000, "cpu")
    assert isinstance(agent, ALGDAgent)
    return policy_of(agent)


PROPOSAL_NOISE = [2.0, -1.0, 0.5, -2.4]


@pytest.mark.parametrize("temperature", [1.0, 0.25])
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("index", range(5))
def test_score_target_is_the_weighted_gradient_at_unclipped_proposals_around_the_action(
    name: str, index: int, temperature: float
) -> None:
    """In action space, width sigma, not divided by alpha, not cut to the box."""
    policy = one_dimensional_policy(name)
    sigma = 10.0 ** (-2.0 + 0.5 * index)
    if name == "release_ddpm":
        sigma = math.sqrt(1.0 - ddpm_alphas_cumprod()[index])
    got = policy.score_target(
        torch.zeros(1, OBS),
        torch.tensor([[0.9]]),
        quadratic(0.3),
        torch.tensor(temperature),
        torch.tensor(PROPOSAL_NOISE).reshape(4, 1, 1),
        torch.tensor([index]),
    )
    expected = hand_made_target(0.9, sigma, PROPOSAL_NOISE, center=0.3, temperature=temperature)
    torch.testing.assert_close(got, torch.tensor([[expected]]), rtol=1e-4, atol=1e-5)


def test_score_target_of_the_noisiest_vesde_level_in_numbers() -> None:
    """Proposals 2.9, -0.1, 1.4, -1.5 around 0.9; center 0.3, temperature 1.

    exp(-(a - 0.3)^2): 0.001159, 0.852144, 0.298197, 0.039164; sum 1.190664.
    gradients 5.2, -0.8, 2.2, -3.6; weighted mean -0.134919.
    """
    policy = one_dimensional_policy("release_vesde")
    got = policy.score_target(
        torch.zeros(1, OBS),
        torch.tensor([[0.9]]),
        quadratic(0.3),
        torch.tensor(1.0),
        torch.tensor(PROPOSAL_NOISE).reshape(4, 1, 1),
        torch.tensor([4]),
    )
    assert got.item() == pytest.approx(0.134919, abs=2e-6)


def test_score_target_carries_no_gradient() -> None:
    policy = one_dimensional_policy("release_vesde")
    noisy = torch.tensor([[0.2]], requires_grad=True)
    target = policy.score_target(
        torch.zeros(1, OBS),
        noisy,
        quadratic(0.0),
        torch.tensor(1.0),
        torch.zeros(4, 1, 1),
        torch.tensor([1]),
    )
    assert not target.requires_grad


@pytest.mark.parametrize("name", PRESETS)
def test_change_of_variables_is_left_out(name: str) -> None:
    """With a flat energy the target is 0; a latent energy would pull towards the middle."""
    policy = policy_of(agent_of(name))
    noise = torch.randn(4, 2, ACTION, generator=torch.Generator().manual_seed(0))
    target = policy.score_target(
        torch.zeros(2, OBS),
        torch.tensor([[0.99, -0.5], [0.0, 0.3]]),
        lambda obs, action: (0.0 * action.sum(-1), 0.0 * action.sum(-1)),
        torch.tensor(1.0),
        noise,
        torch.tensor([4, 2]),
    )
    assert torch.equal(target.abs(), torch.zeros(2, ACTION))


# ---- loss


@pytest.mark.parametrize("name", PRESETS)
def test_loss_is_the_mean_energy_plus_a_tenth_of_the_mean_squared_score_error(name: str) -> None:
    policy = policy_of(agent_of(name))
    batch = batch_of()
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(policy.num_loss_noises(), 6, ACTION, generator=generator)
    assert policy.num_loss_noises() == 5 + 1 + 4  # chain, its start, proposals
    level = torch.tensor([0, 1, 2, 3, 4, 2])
    result = policy.loss(batch.obs, batch.action, quadratic(0.3), torch.tensor(1.0), noise, level)
    action, recorded = policy.rollout(batch.obs, noise[:6], level)
    energy, _ = quadratic(0.3)(batch.obs, action)
    target = policy.score_target(
        batch.obs, recorded, quadratic(0.3), torch.tensor(1.0), noise[6:], level
    )
    score = policy.network(batch.obs, recorded, policy.embedding[level])[:, :ACTION]
    expected = energy.mean() + 0.1 * (score - target).square().mean()
    torch.testing.assert_close(result.loss, expected)


def test_training_points_are_levels_of_the_chain_after_their_step() -> None:
    policy = policy_of(agent_of("release_vesde"))
    obs = batch_of(5).obs
    noise = torch.randn(6, 5, ACTION, generator=torch.Generator().manual_seed(1))
    _, recorded = policy.rollout(obs, noise, torch.arange(5))
    latent = noise[-1]
    for index in reversed(range(5)):
        latent = policy.step(obs, latent, noise[index], index)
        torch.testing.assert_close(recorded[index], torch.tanh(latent[index]))


def test_chain_term_reaches_every_step_of_the_chain() -> None:
    policy = policy_of(agent_of("release_vesde"))
    noise = torch.randn(6, 4, ACTION, generator=torch.Generator().manual_seed(1))
    action = policy.sample(batch_of(4).obs, noise)
    (gradient,) = torch.autograd.grad(action.sum(), policy.embedding)
    assert bool((gradient.abs().sum(-1) > 0).all())  # one embedding per step


# ---- critic targets


@pytest.mark.parametrize("terminated", [0.0, 1.0])
@pytest.mark.parametrize("name", PRESETS)
def test_reward_target_has_no_entropy_and_cost_target_is_never_masked(
    name: str, terminated: float
) -> None:
    """The losses of the first update, from targets written out here."""
    agent, twin = agent_of(name), agent_of(name)
    batch = batch_of(terminated=terminated)
    policy, critics = policy_of(twin), twin.critics
    counts = policy.num_noises + policy.num_loss_noises()
    noise = torch.randn(counts, 6, ACTION, generator=twin.generator)[: policy.num_noises]
    with torch.no_grad():
        next_action = policy.sample(batch.next_obs, noise)
        next_q = critics.reward_target(batch.next_obs, next_action).squeeze(-1)
        reward_target = batch.reward + 0.99 * (1.0 - terminated) * next_q.min(0).values
        next_cost = critics.cost_target(batch.next_obs, next_action).squeeze(-1)
        cost_target = batch.cost + 0.99 * next_cost
        q_reward = critics.reward(batch.obs, batch.action).squeeze(-1)
        q_cost = critics.cost(batch.obs, batch.action).squeeze(-1)
    metrics = agent.update(batch)
    torch.testing.assert_close(
        metrics["loss/reward_critic"], (q_reward - reward_target).square().mean(1).sum()
    )
    torch.testing.assert_close(
        metrics["loss/cost_critic"], (q_cost - cost_target).square().mean(1).sum()
    )


def test_targets_move_by_a_two_hundredth_every_second_update() -> None:
    agent = agent_of("release_vesde")

    def flat(critics: SafeCritics, which: str) -> Tensor:
        modules = {"online": (critics.reward, critics.cost)}.get(
            which, (critics.reward_target, critics.cost_target)
        )
        return torch.cat([p.detach().flatten() for m in modules for p in m.parameters()])

    for _ in range(4):
        before = flat(agent.critics, "target")
        agent.update(batch_of())
        after, online = flat(agent.critics, "target"), flat(agent.critics, "online")
        if agent.num_updates % 2:
            assert torch.equal(after, before)
        else:
            torch.testing.assert_close(after, before + 0.005 * (online - before))
            assert not torch.equal(after, before)


# ---- multiplier


@pytest.mark.parametrize(("replayed", "direction"), [(1.0, 1.0), (-1.0, -1.0)])
def test_first_step_moves_log_lambda_by_the_learning_rate_on_replayed_actions(
    replayed: float, direction: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sign follows the replayed actions, whatever the policy does."""
    agent = agent_of("release_vesde")

    def q_cost(obs: Tensor, action: Tensor, *, frozen: bool = False) -> Tensor:
        return THRESHOLD + 100.0 * action.mean(-1)

    monkeypatch.setattr(agent.critics, "q_cost", q_cost)
    assert float(agent.constraint.threshold) == pytest.approx(THRESHOLD, rel=1e-6)
    assert float(agent.multiplier(torch.zeros(1, OBS))) == pytest.approx(0.6931, rel=1e-6)
    agent.update(batch_of(action=replayed))
    after = float(agent.multiplier(torch.zeros(1, OBS)))
    step = math.log(after) - math.log(0.6931)
    assert step == pytest.approx(direction * 3e-4, rel=1e-3)  # float32 holds the logarithm
    assert agent.multiplier_signal(batch_of(action=replayed), torch.zeros(6)).tolist() == (
        pytest.approx([100.0 * direction] * 6, rel=1e-5)
    )


def test_log_lambda_starts_at_the_logarithm_of_0_6931() -> None:
    state = agent_of("release_ddpm").multiplier.state_dict()
    assert float(state["log_value"]) == pytest.approx(-0.366581, abs=1e-6)


def test_violation_is_raw_and_energy_is_the_augmented_lagrangian_with_rho_one() -> None:
    """-q + ([0.6931 + g]_+^2 - 0.6931^2) / 2 at g = q_cost - threshold."""
    agent = agent_of("release_vesde")
    q_cost = torch.tensor([THRESHOLD + 2.0, THRESHOLD - 3.0])
    violation = agent.constraint.violation(q_cost)
    torch.testing.assert_close(violation, torch.tensor([2.0, -3.0]), rtol=1e-5, atol=1e-5)
    energy = agent.constraint.energy(
        torch.tensor([5.0, 5.0]), violation, agent.multiplier(torch.zeros(2, OBS))
    )
    expected = [(2.6931**2 - 0.6931**2) / 2.0 - 5.0, -(0.6931**2) / 2.0 - 5.0]
    torch.testing.assert_close(energy, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_temperature_is_one_and_stays() -> None:
    agent = agent_of("release_vesde")
    for _ in range(3):
        metrics = agent.update(batch_of())
    assert float(agent.temperature()) == 1.0
    assert float(metrics["train/temperature"]) == 1.0
