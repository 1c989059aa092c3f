"""The convex dual of a reward-weighted law under a cost constraint and a KL bound.

In: values and violations of S actions per state, drawn from the old policy. Out: temperature eta
and multiplier lambda of q ~ pi_old exp((Q_r - lambda v) / eta), the E-step of CVPO (arXiv
2201.11927). Everything stays on the device: a fixed number of Newton steps, no branches.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_TEMPERATURE_MIN, _TEMPERATURE_MAX = 1e-6, 1e5  # bounds of eta in the released code
_MAX_LOG_STEP = 2.0  # per Newton step, of log eta: beyond it the quadratic model means nothing
_STEP_HALVINGS = 8
_RIDGE = 1e-12


class Dual(NamedTuple):
    """The variables of the E-step's dual: eta and lambda, scalars in double precision."""

    temperature: Float[Tensor, ""]
    multiplier: Float[Tensor, ""]


def dual_value(
    q_reward: Float[Tensor, "S B"],
    violation: Float[Tensor, "S B"],
    dual: Dual,
    *,
    kl_bound: float,
) -> Float[Tensor, "*C"]:
    """Return eta kl_bound + eta E_s log mean_i exp((q_reward_i - lambda violation_i) / eta).

    The variables of ``dual`` may be vectors of candidates (C,); the value has their shape.
    """
    temperature, multiplier = dual.temperature[..., None, None], dual.multiplier[..., None, None]
    exponent = (q_reward - multiplier * violation) / temperature
    count = exponent.new_full((), len(q_reward))
    log_mean = exponent.logsumexp(-2) - count.log()
    return dual.temperature * (kl_bound + log_mean.mean(-1))


def solve_dual(
    q_reward: Float[Tensor, "S B"],
    violation: Float[Tensor, "S B"],
    start: Dual,
    *,
    kl_bound: float,
    multiplier_max: float,
    steps: int,
) -> Dual:
    """Minimise the dual over eta in its bounds and lambda in [0, multiplier_max].

    Newton's method in (log eta, lambda) with the exact Hessian, its concave part in log eta
    reflected; a step that would lead out of a bound of lambda is taken in each variable alone; of
    each step the best fraction 2^-k is taken, or none, so that the value never rises.
    """
    q_reward, violation = q_reward.double(), violation.double()
    fractions = 0.5 ** torch.arange(_STEP_HALVINGS, dtype=torch.float64, device=q_reward.device)
    fractions = torch.cat([fractions, torch.zeros_like(fractions[:1])])
    dual = start
    for _ in range(steps):
        log_step, step = _newton_step(q_reward, violation, dual, kl_bound, multiplier_max)
        candidates = Dual(
            (dual.temperature * (fractions * log_step).exp()).clamp(
                _TEMPERATURE_MIN, _TEMPERATURE_MAX
            ),
            (dual.multiplier + fractions * step).clamp(0.0, multiplier_max),
        )
        best = dual_value(q_reward, violation, candidates, kl_bound=kl_bound).argmin()
        dual = Dual(candidates.temperature.take(best), candidates.multiplier.take(best))
    return dual


def _newton_step(
    q_reward: Float[Tensor, "S B"],
    violation: Float[Tensor, "S B"],
    dual: Dual,
    kl_bound: float,
    multiplier_max: float,
) -> tuple[Tensor, Tensor]:
    """Return the steps of log eta and lambda.

    With y = q_reward - lambda violation and moments under q = softmax(y / eta):
    g_eta = kl_bound - KL(q || uniform), g_lambda = -E[v], g_eta_eta = Var[y] / eta^3,
    g_eta_lambda = Cov[y, v] / eta^2, g_lambda_lambda = Var[v] / eta, averaged over states.
    """
    eta, multiplier = dual
    y = q_reward - multiplier * violation
    weights = F.softmax(y / eta, dim=0)
    mean_y, mean_v = (weights * y).sum(0), (weights * violation).sum(0)
    dy, dv = y - mean_y, violation - mean_v
    kl = mean_kl_to_uniform(weights)
    slope_log, slope = eta * (kl_bound - kl), -mean_v.mean()
    # eta^2 g_eta_eta + eta g_eta is the second derivative in log eta; the last term may be < 0.
    curve_log = (weights * dy.square()).sum(0).mean() / eta + slope_log.abs() + _RIDGE
    cross = (weights * dy * dv).sum(0).mean() / eta
    curve = (weights * dv.square()).sum(0).mean() / eta + _RIDGE
    determinant = (curve_log * curve - cross.square()).clamp(min=_RIDGE * curve_log * curve)
    joint = -(curve_log * slope - cross * slope_log) / determinant
    at_low, at_high = multiplier <= 0.0, multiplier >= multiplier_max
    # At a bound neither the gradient nor the joint step may lead out: the variables part there.
    parted = (at_low & (joint < 0)) | (at_high & (joint > 0))
    log_step = torch.where(
        parted, -slope_log / curve_log, -(curve * slope_log - cross * slope) / determinant
    )
    step = torch.where(parted, -slope / curve, joint)
    step = torch.where((at_low & (step < 0)) | (at_high & (step > 0)), 0.0, step)
    limit = 1.0 + multiplier
    shrink = torch.minimum(
        _MAX_LOG_STEP / log_step.abs().clamp(min=_MAX_LOG_STEP), limit / step.abs().clamp(min=limit)
    )
    return shrink * log_step, shrink * step


def mean_kl_to_uniform(weights: Float[Tensor, "S B"]) -> Float[Tensor, ""]:
    """Return E_s KL(q || pi_old), both on the same samples: E_s sum_i q_i log(q_i S)."""
    count = weights.new_full((), len(weights))
    return (torch.xlogy(weights, weights).sum(0) + count.log()).mean()
