"""Hessians and eigenvalues of energies whose curvature is known."""

import pytest
import torch

from alam.lagrangian import augmented_lagrangian, lagrangian
from algd.analysis.curvature import compare_curvature, energy_hessian, smallest_curvature

MATRIX = torch.tensor([[2.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
# Trace 1, determinant -3: (1 -+ sqrt(13)) / 2
SMALLEST = (1 - 13**0.5) / 2


def quadratic(actions):
    return 0.5 * torch.einsum("bi,ij,bj->b", actions, MATRIX, actions)


@pytest.mark.parametrize("step", [None, 0.05])
def test_quadratic_energy_has_its_matrix_as_hessian(step):
    actions = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hessian = energy_hessian(quadratic, actions, step=step)
    torch.testing.assert_close(hessian, MATRIX.expand(7, 2, 2))
    smallest = smallest_curvature(quadratic, actions, step=step)
    torch.testing.assert_close(smallest, torch.full((7,), SMALLEST, dtype=torch.float64))
    assert not hessian.requires_grad


def test_each_action_has_its_own_curvature():
    actions = torch.tensor([[0.0], [1.0], [-2.0]])
    found = energy_hessian(lambda a: (a**4).sum(-1), actions)
    torch.testing.assert_close(found[:, 0, 0], torch.tensor([0.0, 12.0, 48.0]))


def test_linear_energy_is_flat():
    flat = energy_hessian(lambda a: 3 * a.sum(-1), torch.ones(2, 3))
    torch.testing.assert_close(flat, torch.zeros(2, 3, 3))


@pytest.mark.parametrize("step", [None, 1e-3])
def test_augmentation_adds_the_penalty_times_the_squared_cost_gradient(step):
    gradient = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64)
    coef, price = 2.5, torch.tensor(0.3, dtype=torch.float64)

    def q_reward(a):
        return (a**2).sum(-1)  # a reward that curves the wrong way

    def violation(a):
        return a @ gradient

    found = compare_curvature(
        lambda a: lagrangian(q_reward(a), violation(a), price),
        lambda a: augmented_lagrangian(q_reward(a), violation(a), price, penalty_coef=coef),
        # Hinge 0.3 + 2.5 g: active for g = 0.6, inactive for g = -0.6.
        torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], dtype=torch.float64),
        step=step,
    )
    # |gradient| = 1: added curvature is the penalty coefficient itself, along one direction only.
    torch.testing.assert_close(found.added, torch.tensor([2.5, 0.0], dtype=torch.float64))
    torch.testing.assert_close(found.plain, torch.full((2,), -2.0, dtype=torch.float64))
    torch.testing.assert_close(found.augmented, torch.full((2,), -2.0, dtype=torch.float64))
    assert found.convex_shares == (0.0, 0.0)


def test_one_dimensional_augmentation_makes_a_concave_energy_convex():
    price = torch.tensor(1.0)
    found = compare_curvature(
        lambda a: lagrangian((a**2).sum(-1), a.sum(-1), price),
        lambda a: augmented_lagrangian((a**2).sum(-1), a.sum(-1), price, penalty_coef=3.0),
        torch.tensor([[0.0], [0.5], [-0.9]]),
    )
    # -2 + 3 where 1 + 3 a > 0
    torch.testing.assert_close(found.augmented, torch.tensor([1.0, 1.0, -2.0]))
    assert found.convex_shares == pytest.approx((0.0, 2 / 3))


@pytest.mark.parametrize("dim", [2, 6])
def test_convex_energies_with_kinks_are_convex_at_a_length_scale(dim):
    generator = torch.Generator().manual_seed(0)
    slopes = torch.randn(64, dim, generator=generator)
    offsets = 0.5 * torch.randn(64, generator=generator)

    def energy(a):
        return torch.relu(a @ slopes.T + offsets).mean(-1)

    actions = 2 * torch.rand(512, dim, generator=generator) - 1
    hessians = energy_hessian(energy, actions, step=0.05)
    assert (torch.linalg.eigvalsh(hessians)[:, 0] < -1e-3).any()  # what a matrix would tell
    assert (smallest_curvature(energy, actions, step=0.05) >= 0).all()
    assert (smallest_curvature(lambda a: -energy(a), actions, step=0.05) < 0).any()


@pytest.mark.parametrize("step", [None, 0.05])
def test_an_eigenvalue_of_zero_does_not_turn_negative_by_rounding(step):
    generator = torch.Generator().manual_seed(0)
    slope = torch.randn(6, generator=generator)
    actions = 2 * torch.rand(512, 6, generator=generator) - 1
    found = smallest_curvature(lambda a: (a @ slope) ** 2, actions, step=step)
    assert (found == 0).all()


def test_relu_energy_is_flat_exactly_but_curved_at_a_length_scale():
    def energy(a):
        return torch.relu(a).sum(-1)

    actions = torch.tensor([[0.01]])
    assert smallest_curvature(energy, actions).item() == 0.0
    # Slope goes from 0 to 1 across the difference 2 * 0.05.
    assert smallest_curvature(energy, actions, step=0.05).item() == pytest.approx(10.0)


def test_impossible_step_is_refused():
    with pytest.raises(ValueError, match="step must be positive or None, got 0"):
        energy_hessian(quadratic, torch.zeros(1, 2), step=0.0)
