"""Frozen sweeps and regression steps written out for a CPU equal plain torch."""

import pytest
import torch
from torch import Tensor

from alam import networks
from alam.networks import Activation, EnsembleMLP

pytestmark = pytest.mark.usefixtures("float64")

OBS_DIM, ACTION_DIM, ROWS = 5, 3, 40


def normals(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ensemble(activation: Activation, hidden: tuple[int, ...] = (18, 20)) -> EnsembleMLP:
    return EnsembleMLP(
        3,
        (OBS_DIM, ACTION_DIM),
        hidden,
        1,
        activation=activation,
        generator=torch.Generator().manual_seed(0),
    )


def plain(network: EnsembleMLP, obs: Tensor, action: Tensor) -> Tensor:
    """The ensemble member by member, by its definition."""
    joined = torch.cat([obs.expand(*action.shape[:-1], -1), action], dim=-1)
    outputs = []
    for member in range(3):
        value = joined
        for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
            value = network.activation(value) if layer else value
            value = value @ weight[member] + bias[member, 0]
        outputs.append(value)
    return torch.stack(outputs)


@pytest.mark.parametrize("samples", [(), (1,), (7,), (30,)])
@pytest.mark.parametrize("activation", ["relu", "silu", "tanh", "mish"])
@pytest.mark.parametrize("hidden", [(18,), (18, 20), (18, 20, 17)])
def test_sweep_gives_outputs_and_their_gradient_in_the_actions(
    samples: tuple[int, ...], activation: Activation, hidden: tuple[int, ...]
) -> None:
    network = ensemble(activation, hidden)
    obs, upstream = normals(ROWS, OBS_DIM, seed=1), normals(3, *samples, ROWS, 1, seed=2)
    actions = [normals(*samples, ROWS, ACTION_DIM, seed=3).requires_grad_(True) for _ in range(2)]
    swept, expected = network(obs, actions[0], frozen=True), plain(network, obs, actions[1])
    assert type(swept.grad_fn.next_functions[0][0]).__name__ == "_FrozenBackward"
    torch.testing.assert_close(swept, expected, rtol=1e-12, atol=1e-12)
    (upstream * swept).sum().backward()
    (upstream * expected).sum().backward()
    torch.testing.assert_close(actions[0].grad, actions[1].grad, rtol=1e-11, atol=1e-12)
    assert all(parameter.grad is not None for parameter in network.parameters())  # of ``plain``
    with torch.no_grad():
        silent = network(obs, actions[0], frozen=True)
    torch.testing.assert_close(silent, expected, rtol=1e-12, atol=1e-12)


def test_sweep_is_cut_into_blocks_of_rows_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    network = ensemble("silu")
    obs = normals(700, OBS_DIM, seed=1)
    action = normals(700, ACTION_DIM, seed=2).requires_grad_(True)
    cut = network(obs, action, frozen=True)
    (gradient,) = torch.autograd.grad(cut.sum(), action)
    monkeypatch.setattr(networks, "can_sweep", lambda *_: False)
    whole = network(obs, action, frozen=True)
    assert type(whole.grad_fn.next_functions[0][0]).__name__ == "_PerceptronsBackward"
    (expected,) = torch.autograd.grad(whole.sum(), action)
    torch.testing.assert_close(cut, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


def test_second_derivatives_of_a_sweep() -> None:
    network = ensemble("tanh")
    obs = normals(ROWS, OBS_DIM, seed=1)
    hessians = []
    for call in (lambda x: network(obs, x, frozen=True), lambda x: plain(network, obs, x)):
        action = normals(ROWS, ACTION_DIM, seed=2).requires_grad_(True)
        (slope,) = torch.autograd.grad(call(action).sum(), action, create_graph=True)
        (second,) = torch.autograd.grad(slope[:, 0].sum(), action)
        hessians.append(second)
    assert hessians[1].abs().max() > 1e-3
    torch.testing.assert_close(*hessians, rtol=1e-10, atol=1e-12)


def test_observations_that_ask_for_a_gradient_get_one() -> None:
    network = ensemble("relu")
    obs = normals(ROWS, OBS_DIM, seed=1).requires_grad_(True)
    action = normals(4, ROWS, ACTION_DIM, seed=2)
    gradients = [
        torch.autograd.grad(call.sum(), obs)[0]
        for call in (network(obs, action, frozen=True), plain(network, obs, action))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("own_targets", [True, False])
@pytest.mark.parametrize("activation", ["relu", "silu", "tanh", "mish"])
def test_regression_leaves_the_gradient_of_the_squared_error(
    activation: Activation, own_targets: bool
) -> None:
    network = ensemble(activation)
    obs, action = normals(ROWS, OBS_DIM, seed=1), normals(ROWS, ACTION_DIM, seed=2)
    target = normals(*((3,) if own_targets else ()), ROWS, seed=3)
    expected = plain(network, obs, action).squeeze(-1)
    (expected - target).square().mean(-1).sum().backward()
    gradients = [parameter.grad.clone() for parameter in network.parameters()]
    for _ in range(2):  # what was there before does not stay
        outputs = network.regress(obs, action, target=target)
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
    assert not outputs.requires_grad
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-12)


def test_regression_under_a_compiler_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network = ensemble("silu")
    obs, action = normals(ROWS, OBS_DIM, seed=1), normals(ROWS, ACTION_DIM, seed=2)
    target = normals(ROWS, seed=3)
    outputs = network.regress(obs, action, target=target)
    gradients = [parameter.grad.clone() for parameter in network.parameters()]
    monkeypatch.setattr(EnsembleMLP, "written_out", lambda *_: False)
    torch.testing.assert_close(network.regress(obs, action, target=target), outputs)
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-10, atol=1e-12)
