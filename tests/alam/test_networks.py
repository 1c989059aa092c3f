"""Ensembles of perceptrons: every layout computes the same function."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alam.networks import MLP, EnsembleMLP, make_adam, polyak_update

pytestmark = pytest.mark.usefixtures("float64")


class OnDevice(torch.Tensor):
    """A CPU tensor that says it is on a GPU, so that the batched layout can be run here."""

    is_cuda = True


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ensemble(activation="silu", **changes) -> EnsembleMLP:
    shape = {"num_members": 3, "in_features": (4, 2), "hidden": (5, 6), "out_features": 2} | changes
    return EnsembleMLP(**shape, activation=activation, generator=seeded())


@pytest.mark.parametrize(
    ("activation", "function"),
    [("relu", F.relu), ("silu", F.silu), ("tanh", torch.tanh), ("mish", F.mish)],
)
def test_each_member_is_a_plain_perceptron(activation, function):
    network = ensemble(activation)
    obs, action = torch.randn(7, 4, generator=seeded(1)), torch.randn(7, 2, generator=seeded(2))
    for member, output in enumerate(network(obs, action)):
        hidden = torch.cat([obs, action], dim=-1)
        for layer in range(3):
            weight, bias = network.weights[layer][member], network.biases[layer][member]
            hidden = (function(hidden) if layer else hidden) @ weight + bias
        torch.testing.assert_close(output, hidden)


@pytest.mark.parametrize("leading", [(7,), (3, 7)])
@pytest.mark.parametrize("shared_obs", [False, True])
def test_batched_layout_of_the_gpu_equals_the_loop_over_members(leading, shared_obs):
    network = ensemble()
    obs = torch.randn(*(leading[-1:] if shared_obs else leading), 4, generator=seeded(1))
    action = torch.randn(*leading, 2, generator=seeded(2))
    looped = network(obs, action)
    batched = network(obs.as_subclass(OnDevice), action.as_subclass(OnDevice))
    assert looped.shape == (3, *leading, 2)
    torch.testing.assert_close(batched.as_subclass(torch.Tensor), looped, rtol=1e-12, atol=1e-12)


def test_broadcast_observations_equal_repeated_ones():
    network = ensemble()
    obs = torch.randn(7, 4, generator=seeded(1))
    actions = torch.randn(5, 7, 2, generator=seeded(2))
    repeated = network(obs.expand(5, 7, 4), actions)
    torch.testing.assert_close(network(obs, actions), repeated, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.Tensor, OnDevice])
def test_gradients_of_inputs_and_weights_match_finite_differences(layout):
    network = ensemble("tanh", hidden=(3,), num_members=2)
    obs = torch.randn(2, 4, generator=seeded(1), requires_grad=True)
    action = torch.randn(3, 2, 2, generator=seeded(2), requires_grad=True)

    def evaluate(obs, action, *_weights):
        return network(obs.as_subclass(layout), action.as_subclass(layout)).as_subclass(
            torch.Tensor
        )

    assert torch.autograd.gradcheck(evaluate, (obs, action, *network.parameters()))


def test_frozen_network_passes_gradients_to_inputs_alone():
    network = ensemble()
    obs = torch.randn(7, 4, generator=seeded(1))
    action = torch.randn(7, 2, generator=seeded(2), requires_grad=True)
    (free,) = torch.autograd.grad(network(obs, action).sum(), action)
    network(obs, action, frozen=True).sum().backward()
    assert all(parameter.grad is None for parameter in network.parameters())
    torch.testing.assert_close(action.grad, free)
    assert free.abs().min() > 0


def test_single_perceptron_has_no_ensemble_dimension():
    network = MLP((4, 2), (5,), 3, generator=seeded())
    assert network(torch.randn(6, 1, 4), torch.randn(7, 2)).shape == (6, 7, 3)


def test_initial_weights_are_uniform_within_one_over_root_fan_in():
    network = ensemble(num_members=50, in_features=(16,), hidden=(25,), out_features=1)
    for layer, bound in enumerate([0.25, 0.2]):
        for values in (network.weights[layer], network.biases[layer]):
            assert values.abs().max() <= bound
        # standard deviation of a uniform law: bound / sqrt(3)
        assert network.weights[layer].std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_other_laws_of_initial_weights_are_those_of_their_names():
    sizes = {"num_members": 50, "in_features": (16,), "hidden": (25,), "out_features": 1}
    xavier, normal = (ensemble(**sizes, initial=initial) for initial in ("xavier", "normal"))
    for layer, (fan_in, fan_out) in enumerate([(16, 25), (25, 1)]):
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert 0.9 * bound < xavier.weights[layer].abs().max() <= bound
        assert xavier.weights[layer].std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert normal.weights[layer].std().item() == pytest.approx(0.5 / fan_in**0.5, rel=0.05)
        assert normal.weights[layer].abs().max() > 1.1 / fan_in**0.5  # not truncated
        for network in (xavier, normal):
            assert network.biases[layer].abs().max() == 0


def test_equal_seeds_give_equal_weights_and_members_differ():
    first, second = ensemble(), ensemble()
    for mine, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert not torch.equal(first.weights[0][0], first.weights[0][1])


def test_polyak_moves_the_target_by_the_rate():
    source, target = nn.Linear(1, 1), nn.Linear(1, 1)
    for module, value in ((source, 5.0), (target, 1.0)):
        for parameter in module.parameters():
            nn.init.constant_(parameter, value)
    polyak_update(target, source, rate=0.25)
    assert [parameter.item() for parameter in target.parameters()] == [2.0, 2.0]
    assert [parameter.item() for parameter in source.parameters()] == [5.0, 5.0]


def test_first_step_of_adam_has_the_length_of_the_learning_rate():
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = make_adam([parameter], learning_rate=0.01)
    parameter.grad = torch.tensor([30.0, -0.2])
    optimizer.step()
    assert parameter.tolist() == pytest.approx([0.99, -1.99], abs=1e-8)
