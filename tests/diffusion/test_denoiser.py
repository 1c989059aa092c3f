"""What the network predicts, and that every convention gives the same score."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algd.diffusion.denoiser import ScoreNetwork
from algd.diffusion.schedule import NoiseSchedule, ScheduleConfig

few = settings(max_examples=25, deadline=None)
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
SCHEDULES = {
    "ve": ScheduleConfig(),
    "linear": ScheduleConfig(kind="vp", beta_schedule="linear", beta_end=0.2),
    "cosine": ScheduleConfig(kind="vp"),
}


def network_of(prediction: str, schedule: str = "ve") -> ScoreNetwork:
    return ScoreNetwork(
        3,
        2,
        NoiseSchedule(SCHEDULES[schedule]),
        hidden=(8,),
        activation="silu",
        embedding_dim=4,
        prediction_type=prediction,
        generator=torch.Generator().manual_seed(0),
    ).double()


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def saying(network: ScoreNetwork, prediction: torch.Tensor) -> ScoreNetwork:
    """Make the network predict these rows whatever it is asked."""
    network.predict = lambda obs, noisy_latent, level: prediction
    return network


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_score_along_the_chain_is_that_of_forward(prediction, schedule):
    network = network_of(prediction, schedule)
    obs, noisy = normals(5, 3), 2 * normals(5, 2, seed=1)
    along = network.along_chain(obs)
    for level in range(len(network.alphas)):
        expected = network(obs, noisy, torch.full((5,), level))
        torch.testing.assert_close(along(noisy, level), expected, rtol=1e-10, atol=1e-10)


@few
@given(
    st.sampled_from(PREDICTIONS),
    st.sampled_from(sorted(SCHEDULES)),
    st.integers(0, 9),
    st.integers(0, 1000),
)
def test_prediction_target_is_the_inverse_of_forward(prediction, schedule, level, seed):
    network = network_of(prediction, schedule)
    noisy, level = 2 * normals(5, 2, seed=seed), torch.full((5,), level)
    score = normals(5, 2, seed=seed + 1) / network.levels(level)[1]
    target = network.prediction_target(score, noisy, level)
    again = saying(network, target)(normals(5, 3), noisy, level)
    torch.testing.assert_close(again, score, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_predictions_of_a_known_pair_of_sample_and_noise(prediction, schedule):
    # u_t = alpha u_0 + sigma eps has score -eps / sigma given u_0.
    network = network_of(prediction, schedule)
    level = torch.arange(10)
    alpha, sigma = network.levels(level)
    clean, epsilon = normals(10, 2), normals(10, 2, seed=1)
    norm = (alpha**2 + sigma**2).sqrt()
    expected = {
        "epsilon": epsilon,
        "sample": clean,
        "v_prediction": (alpha * epsilon - sigma * clean) / norm,
    }[prediction]
    noisy = alpha * clean + sigma * epsilon
    target = network.prediction_target(-epsilon / sigma, noisy, level)
    torch.testing.assert_close(target, expected)
    score = saying(network, expected)(normals(10, 3), noisy, level)
    torch.testing.assert_close(score, -epsilon / sigma)


def test_epsilon_by_hand():
    network = network_of("epsilon")
    level = torch.tensor([0, 9])  # sigma 0.05 and 1.5
    prediction = torch.tensor([[1.0, -2.0], [1.0, -2.0]], dtype=torch.float64)
    score = saying(network, prediction)(normals(2, 3), normals(2, 2), level)
    expected = [[-20.0, 40.0], [-2 / 3, 4 / 3]]
    torch.testing.assert_close(score, torch.tensor(expected).double(), rtol=1e-6, atol=1e-6)


def test_latent_enters_at_unit_scale_with_the_embedding_of_its_level():
    network = network_of("epsilon")
    obs, noisy, level = normals(10, 3), normals(10, 2, seed=1), torch.arange(10)
    alpha, sigma = network.levels(level)
    scaled = noisy / (1 + sigma**2).sqrt()
    expected = network.network(obs, scaled, network.embedding)
    torch.testing.assert_close(network.predict(obs, noisy, level), expected)
    assert torch.equal(alpha, torch.ones(10, 1).double())


def test_prediction_of_v_is_as_large_for_every_level_of_a_unit_law():
    # With u_0 and eps standard normal, v has variance 1 at every level of both kinds of schedule.
    for schedule in SCHEDULES:
        network = network_of("v_prediction", schedule)
        level = torch.arange(10).repeat_interleave(4000)
        alpha, sigma = network.levels(level)
        clean, epsilon = normals(40_000, 1), normals(40_000, 1, seed=1)
        target = network.prediction_target(-epsilon / sigma, alpha * clean + sigma * epsilon, level)
        spread = target.reshape(10, 4000).std(1)
        assert spread.min().item() > 0.95
        assert spread.max().item() < 1.05


def test_levels_are_constants_and_no_parameters():
    network = network_of("epsilon")
    names = {name for name, _ in network.named_parameters()}
    assert not names & {"alphas", "sigmas"}
    assert "embedding" in names
