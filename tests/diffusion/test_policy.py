"""The reverse chain and the objective of the denoising policy."""

import math

import pytest
import torch
from torch import nn

from algd.diffusion.denoiser import Score
from algd.diffusion.policy import (
    DiffusionPolicy,
    DiffusionPolicyConfig,
    best_of,
    latent_energy,
)
from algd.diffusion.schedule import ScheduleConfig

B = 6


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def policy_of(action_dim: int = 1, schedule: dict | None = None, **settings) -> DiffusionPolicy:
    config = DiffusionPolicyConfig(
        **({"hidden": (8,), "embedding_dim": 4} | settings),
        schedule=ScheduleConfig(**(schedule or {})),
    )
    generator = torch.Generator().manual_seed(0)
    return DiffusionPolicy(3, action_dim, config, generator=generator)


def linear(obs, action):
    """Energy -a, whose Gibbs law has the normaliser 2 T sinh(1 / T)."""
    energy = -action.sum(-1)
    return energy, torch.zeros_like(energy)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_change_of_variables_keeps_the_normaliser_and_the_mean_over_actions(temperature):
    latent = torch.linspace(-20, 20, 20_001, dtype=torch.float64)
    scale = torch.tensor(temperature, dtype=torch.float64)
    energy = latent_energy(linear, torch.zeros(1, 3), latent[:, None, None], scale)[:, 0]
    density = (-energy / scale).exp()
    normaliser = torch.trapezoid(density, latent).item()
    assert normaliser == pytest.approx(2 * temperature * math.sinh(1 / temperature), rel=1e-8)
    mean = torch.trapezoid(density * latent.tanh(), latent).item() / normaliser
    # Langevin's function of 1 / T
    assert mean == pytest.approx(1 / math.tanh(1 / temperature) - temperature, rel=1e-7)


def test_latent_energy_sums_over_action_dimensions_by_hand():
    latent = torch.tensor([[[0.0, math.atanh(0.5)]]])
    energy = latent_energy(linear, torch.zeros(1, 3), latent, torch.tensor(2.0))
    assert energy.item() == pytest.approx(-0.5 - 2.0 * math.log(0.75), rel=1e-5)


class LearntConstants(Score):
    """A score that is one parameter per level."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.linspace(-1, 1, levels))

    def forward(self, obs, latent, level):
        return self.scores[level][:, None].expand_as(latent)


@pytest.mark.parametrize("kept", [None, 1, 3, 10, 99])
def test_gradient_flows_through_the_last_steps_alone(kept):
    policy = policy_of(schedule={"kind": "vp"})
    policy.network = LearntConstants(10)
    latent = policy.denoise(
        torch.zeros(B, 3), normals(policy.num_noises, B, 1), gradient_steps=kept
    )
    (gradient,) = torch.autograd.grad(latent.mean(), policy.network.scores)
    # u_0 is linear: step k contributes c1_k times the product of c0 over the steps after it.
    c_latent, c_score, _ = policy.schedule.coefficients.unbind(1)
    after = torch.cat([torch.ones(1), c_latent.cumprod(0)[:-1]])
    expected = c_score * after
    expected[10 if kept is None else kept :] = 0
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_truncation_changes_gradients_and_no_values():
    policy, noise = policy_of(2), normals(11, B, 2)
    full = policy.denoise(torch.zeros(B, 3), noise)
    torch.testing.assert_close(full, policy.denoise(torch.zeros(B, 3), noise, gradient_steps=2))


@pytest.mark.parametrize(
    ("schedule", "base_std", "expected"),
    [
        ({}, 1.5, math.hypot(1.5, 1.5)),
        ({"sigma_max": 2.0}, None, 2.0),
        ({"kind": "vp", "beta_schedule": "linear", "beta_end": 0.2}, 1.0, 1.0),
    ],
)
def test_chain_starts_from_the_noised_base_law(schedule, base_std, expected):
    policy = policy_of(schedule=schedule, base_std=base_std)
    assert policy.prior_std().item() == pytest.approx(expected, rel=1e-5)


def test_mode_is_the_chain_without_noise_and_actions_lie_in_the_box():
    policy, obs = policy_of(2), normals(B, 3)
    assert torch.equal(policy.mode(obs), policy.sample(obs, torch.zeros(11, B, 2)))
    actions = policy.sample(obs, 100 * normals(11, B, 2))
    assert actions.abs().max().item() <= 1


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 0.8, 1.0])
def test_training_points_interleave_replay_and_policy_in_every_leading_part(fraction):
    policy = policy_of(replay_fraction=fraction)
    latent = policy.training_latent(torch.full((100, 1), 7.0), torch.zeros(100, 1))
    from_replay = (latent[:, 0] == 0).int().cumsum(0)
    wanted = fraction * torch.arange(1, 101)
    assert (from_replay - wanted).abs().max().item() < 1
    assert from_replay[-1].item() == round(100 * fraction)


def test_replayed_actions_at_the_edge_of_the_box_have_finite_latents():
    policy = policy_of(replay_fraction=1.0)
    latent = policy.training_latent(torch.zeros(3, 1), torch.tensor([[-1.0], [0.5], [1.0]]))
    expected = [-math.atanh(0.999), math.atanh(0.5), math.atanh(0.999)]
    assert latent[:, 0].tolist() == pytest.approx(expected, rel=1e-4)


def gaussian_in_the_latent(obs, action):
    """Energy at temperature 0.4 whose latent law is N(0, 1.5^2) in each dimension."""
    latent = torch.atanh(action)
    log_density = -latent.square() / (2 * 1.5**2) - torch.log1p(-action.square())
    energy = -0.4 * log_density.sum(-1)
    return energy, torch.zeros_like(energy)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("kind", ["ve", "vp"])
def test_score_loss_is_the_squared_error_of_the_prediction_at_the_renoised_point(kind, prediction):
    # With the base law as the Gibbs law the denoising estimate is exact: -u / (1.5^2 a^2 + s^2).
    policy = policy_of(
        2, {"kind": kind}, prediction_type=prediction, estimator="denoising"
    ).double()
    obs, clean = normals(10, 3).double(), normals(10, 2, seed=1).double()
    noise, level = normals(5, 10, 2, seed=2).double(), torch.arange(10)
    temperature = torch.tensor(0.4, dtype=torch.float64)
    loss = policy.score_loss(obs, clean, gaussian_in_the_latent, temperature, noise, level)
    alpha, sigma = policy.network.levels(level)
    noisy = alpha * clean + sigma * noise[0]
    score = -noisy / ((1.5 * alpha) ** 2 + sigma**2)
    target = policy.network.prediction_target(score, noisy, level)
    expected = (policy.network.predict(obs, noisy, level) - target).square().sum(-1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_violations_are_those_of_the_policys_actions_not_of_replayed_ones():
    def told_by_the_action(obs, action):
        return -action.sum(-1), action.sum(-1)

    loss = loss_of(policy_of(2), told_by_the_action)
    torch.testing.assert_close(loss.violation, loss.action.sum(-1))


def loss_of(policy: DiffusionPolicy, evaluate=linear, rows: int = 8):
    return policy.loss(
        normals(rows, 3),
        torch.tanh(normals(rows, policy.action_dim, seed=1)),
        evaluate,
        torch.tensor(0.5),
        normals(policy.num_loss_noises(), rows, policy.action_dim, seed=2),
        torch.arange(rows) % policy.schedule.num_levels,
    )


def test_loss_is_the_sum_of_its_two_terms_with_their_coefficients():
    both = loss_of(policy_of(chain_coef=2.0, score_coef=3.0))
    chain, score = both.metrics["loss/chain"], both.metrics["loss/score"]
    assert both.loss.item() == pytest.approx(2 * chain.item() + 3 * score.item(), rel=1e-5)
    assert chain.item() == pytest.approx(both.metrics["train/energy"].item() / 0.5, rel=1e-5)
    assert both.metrics["train/energy"].item() == pytest.approx(-both.action.mean().item())
    chain_only = loss_of(policy_of(chain_coef=2.0, score_coef=0.0))
    assert chain_only.loss.item() == pytest.approx(2 * chain.item(), rel=1e-5)
    score_only = loss_of(policy_of(chain_coef=0.0, score_coef=3.0))
    assert score_only.loss.item() == pytest.approx(3 * score.item(), rel=1e-5)


def test_chain_gradient_is_that_of_energy_over_temperature():
    policy = policy_of(chain_coef=1.0, score_coef=0.0)
    result = loss_of(policy)
    mine = torch.autograd.grad(result.loss, list(policy.parameters()))
    noise = normals(policy.num_loss_noises(), 8, 1, seed=2)[: policy.num_noises]
    energy = -policy.sample(normals(8, 3), noise).mean() / 0.5
    for gradient, expected in zip(
        mine, torch.autograd.grad(energy, list(policy.parameters())), strict=True
    ):
        torch.testing.assert_close(gradient, expected)


def gradients(policy: DiffusionPolicy) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss_of(policy).loss, list(policy.parameters())))


def test_score_term_adds_its_own_gradient_and_none_through_its_training_points():
    both = gradients(policy_of(chain_coef=1.0, score_coef=2.0))
    chain = gradients(policy_of(chain_coef=1.0, score_coef=0.0))
    score = gradients(policy_of(chain_coef=0.0, score_coef=2.0))
    for total, first, second in zip(both, chain, score, strict=True):
        torch.testing.assert_close(total, first + second, rtol=1e-4, atol=1e-6)


def test_chain_term_is_cut_to_the_configured_steps():
    # The embeddings of levels that are cut off get no gradient.
    for steps, reached in ((None, 10), (3, 3), (1, 1)):
        policy = policy_of(chain_coef=1.0, score_coef=0.0, chain_steps=steps)
        (slope,) = torch.autograd.grad(loss_of(policy).loss, policy.network.embedding)
        assert (slope.abs().sum(1) > 0).tolist() == [level < reached for level in range(10)]


@pytest.mark.parametrize("estimator", ["target", "denoising", "mixed"])
def test_score_term_regresses_to_a_detached_target(estimator):
    slope = torch.tensor(1.5, requires_grad=True)

    def tilted(obs, action):
        energy = slope * action.sum(-1)
        return energy, torch.zeros_like(energy)

    result = loss_of(policy_of(chain_coef=0.0, estimator=estimator), tilted)
    assert torch.autograd.grad(result.loss, slope, allow_unused=True) == (None,)


def test_score_term_uses_the_leading_rows_it_is_given():
    def with_rows(count):
        return loss_of(policy_of(chain_coef=0.0, score_batch_size=count, estimator="target"))

    # Per-row losses: the mean over the first four of eight rows differs from that over all.
    first_four, all_rows = with_rows(4), with_rows(None)
    assert first_four.loss.item() != all_rows.loss.item()
    assert first_four.action.shape == all_rows.action.shape == (8, 1)
    alone = loss_of_rows(policy_of(chain_coef=0.0, estimator="target"), 4)
    assert first_four.loss.item() == pytest.approx(alone, rel=1e-5)


def loss_of_rows(policy: DiffusionPolicy, count: int) -> float:
    noise = normals(policy.num_loss_noises(), 8, 1, seed=2)
    return policy.loss(
        normals(8, 3)[:count],
        torch.tanh(normals(8, 1, seed=1))[:count],
        linear,
        torch.tensor(0.5),
        noise[:, :count],
        torch.arange(8)[:count],
    ).loss.item()


@pytest.mark.parametrize(("antithetic", "samples", "extra"), [(True, 8, 5), (False, 8, 9)])
def test_normals_consumed_by_the_loss(antithetic, samples, extra):
    policy = policy_of(antithetic=antithetic, num_score_samples=samples)
    # ten steps and the prior, one re-noising, and the proposals
    assert policy.num_noises == 11
    assert policy.num_loss_noises() == 11 + extra


def test_best_candidate_has_the_lowest_energy_of_its_row():
    actions = torch.tensor([[[0.1], [0.2]], [[0.3], [0.4]], [[0.5], [0.6]]])
    energy = torch.tensor([[3.0, 1.0], [2.0, 9.0], [5.0, 4.0]])
    assert best_of(actions, energy).flatten().tolist() == pytest.approx([0.3, 0.2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": ()}, r"hidden must be .* got \(\)"),
        ({"chain_coef": -1.0}, "chain_coef must be >= 0, got -1"),
        ({"chain_coef": 0.0, "score_coef": 0.0}, "chain_coef and score_coef are both 0"),
        ({"chain_steps": 0}, "chain_steps must be null or >= 1, got 0"),
        ({"num_score_samples": 5}, "even with antithetic noise, got 5"),
        ({"num_score_samples": 1, "antithetic": False}, "num_score_samples must be >= 2"),
        ({"base_std": 0.0}, "base_std must be null or positive, got 0"),
        ({"score_batch_size": 0}, "score_batch_size must be null or >= 1, got 0"),
        ({"replay_fraction": 1.5}, r"replay_fraction must be in \[0, 1\], got 1.5"),
        ({"candidates": 0}, "candidates must be >= 1, got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be positive, got -1"),
        (
            {"schedule": ScheduleConfig("vp", beta_schedule="linear")},
            r"beta_schedule 'linear' with beta_end 0.02 and 10 levels ends at sigma 0.31",
        ),
        (
            {"schedule": ScheduleConfig("vp"), "estimator": "target"},
            r"estimator must be 'mixed' or 'denoising' .* ends at alpha 0.0049.*, got 'target'",
        ),
        (
            {"schedule": ScheduleConfig("vp"), "base_std": None},
            r"base_std must be positive .* ends at alpha 0.0049.*, got null",
        ),
    ],
)
def test_impossible_configurations_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        DiffusionPolicyConfig(**changes)
