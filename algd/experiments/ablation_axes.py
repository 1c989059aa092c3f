"""The axes of the ablation and their variants.

In: nothing. Out: ``AXES``, by name. ``algd.experiments.ablation_plan`` plans the grid they span.
"""

from collections.abc import Iterable

from algd.experiments.ablation_plan import Axis, Overrides, Variant

_RHOS = (0.1, 0.5, 1.0, 2.0, 4.0)
_LAGS = (1, 10, 100, 1000)
_SAMPLES = (2, 4, 8, 16, 32, 64)
_STEPS = (1, 2, 5, 10, 20)
_DEFAULT_DUAL_RHO = 1.0
# Rates at which plain dual ascent settles within the quick budget; FAC's own serve runs of 1e6.
_DUAL_ASCENT: Overrides = {
    "multiplier.kind": "statewise_dual",
    "multiplier.learning_rate": 1e-3,
    "multiplier.interval": 1,
}
# One run of the bandit (seed 100): at constant rates multipliers were 0.106 off after 5,000
# updates, all of them low, though the learnt critics implied the exact ones to 0.024; with falling
# rates 0.082 after 2,400. Falling to 0.02 within 1,500 updates, they freeze before they settle.
_FALLING_RATES: Overrides = {"train.final_learning_rate": 0.1}


def _convexification() -> Axis:
    """The energy alone changes; the dual target keeps its own coefficient in every cell."""
    dual = {"multiplier.penalty_coef": _DEFAULT_DUAL_RHO}
    variants = [Variant("off", {"constraint.augmented": False, **dual}, position=0.0)]
    variants += [
        Variant(f"rho {rho:g}", {"constraint.penalty_coef": rho, **dual}, position=float(place + 1))
        for place, rho in enumerate(_RHOS)
    ]
    return Axis(
        "convexification",
        "Does the augmented energy help, the multiplier's own rule unchanged?",
        "algd",
        ("bandit", "islands", "finite"),
        tuple(variants),
        "off",
        1_000,
    )


def _rho() -> Axis:
    return Axis(
        "rho",
        "Which penalty coefficient, in the energy and the dual target alike?",
        "algd",
        ("bandit", "islands", "finite"),
        tuple(
            Variant(f"rho {rho:g}", {"constraint.penalty_coef": rho}, position=float(place))
            for place, rho in enumerate(_RHOS)
        ),
        "rho 1",
        1_000,
    )


def _steps() -> Axis:
    variants = [
        Variant(
            f"{steps} steps",
            {"policy.schedule.num_train_timesteps": steps},
            group="this policy",
            position=float(place),
        )
        for place, steps in enumerate(_STEPS)
    ]
    variants[0].overrides["policy.schedule.sigma_min"] = 1.5  # sigma_max: one level
    released = {"policy.kind": "release", "policy.variant": "ddpm"}
    variants.append(Variant("release ddpm, 5", released, "release", 2.0, quick_only=True))
    return Axis(
        "steps",
        "How many denoising steps? Beside them the DDPM form of the release.",
        "algd",
        ("energy1", "energy2", "bandit", "islands"),
        tuple(variants),
        "10 steps",
        1_000,
    )


def _estimator() -> Axis:
    return Axis(
        "estimator",
        "Which score target, from how many samples, by the score term alone?",
        "algd",
        ("energy1", "energy2"),
        tuple(
            Variant(
                f"{kind} {count}",
                {
                    "policy.estimator": kind,
                    "policy.num_score_samples": count,
                    "policy.chain_coef": 0.0,
                },
                group=kind,
                position=float(place),
            )
            for kind in ("target", "denoising", "mixed")
            for place, count in enumerate(_SAMPLES)
        ),
        "mixed 8",
        1_000,
        x_label="samples per noised action",
    )


def _multiplier() -> Axis:
    scalars = ("scalar_dual", "scalar_pid", "scalar_adrc")
    variants = [Variant(kind, {"multiplier.kind": kind}) for kind in scalars]
    variants[0].overrides["multiplier.learning_rate"] = 1e-2
    variants.append(Variant("statewise_dual", dict(_DUAL_ASCENT)))
    variants.append(Variant("statewise_alam", {"multiplier.kind": "statewise_alam"}))
    return Axis(
        "multiplier",
        "Scalar against state-wise multiplier, dual ascent against the dual target?",
        "sac_alam",
        ("bandit", "finite", "corridor"),
        tuple(variants),
        "scalar_dual",
        2_400,
        _FALLING_RATES,
    )


def _lag() -> Axis:
    variants = [Variant("dual ascent", dict(_DUAL_ASCENT), position=0.0)]
    variants += [
        Variant(
            f"lag {lag}",
            {
                "multiplier.kind": "statewise_alam",
                "multiplier.dual_target_interval": lag,
            },
            position=float(place + 1),
        )
        for place, lag in enumerate(_LAGS)
    ]
    return Axis(
        "lag",
        "Dual ascent, or regression to a dual target of which lag (SAC policy)?",
        "sac_alam",
        ("bandit", "finite"),
        tuple(variants),
        "dual ascent",
        1_500,
    )


def _chain() -> Axis:
    depths = (("last 1", 1), ("last 2", 2), ("last 5", 5), ("all", None))
    variants = [Variant("score only", {"policy.chain_coef": 0.0}, position=0.0)]
    variants += [
        Variant(
            f"chain {name}",
            {"policy.chain_coef": 1.0, "policy.chain_steps": depth},
            position=float(place + 1),
        )
        for place, (name, depth) in enumerate(depths)
    ]
    return Axis(
        "chain",
        "Score term alone, or the energy back-propagated through how many steps?",
        "algd",
        ("bandit", "islands"),
        tuple(variants),
        "score only",
        1_000,
    )


def _economy() -> Axis:
    """Each setting by which ``algd_fast`` is cheaper, alone and all together.

    The dual target lags by as many updates in every cell; its interval counts those of the policy.
    """
    few = {"policy.schedule.num_train_timesteps": 5}
    forward = {"policy.estimator": "denoising"}
    twice = {"policy.update_interval": 2, "multiplier.dual_target_interval": 50}
    thrice = {"policy.update_interval": 3, "multiplier.dual_target_interval": 33}
    settings: tuple[tuple[str, Overrides], ...] = (
        ("algd", {}),
        ("5 levels", few),
        ("denoising", forward),
        ("every 2nd", twice),
        ("every 3rd", thrice),
        ("all (algd_fast)", {**few, **forward, **thrice}),
    )
    return Axis(
        "economy",
        "What do fewer levels, forward passes alone and delayed policy updates save, and cost?",
        "algd",
        ("bandit", "islands", "finite"),
        tuple(
            Variant(name, overrides, position=float(place))
            for place, (name, overrides) in enumerate(settings)
        ),
        "algd",
        1_000,
    )


def _axes() -> Iterable[Axis]:
    yield from (_convexification(), _rho(), _steps(), _estimator())
    yield from (_multiplier(), _lag(), _chain(), _economy())


AXES: dict[str, Axis] = {axis.name: axis for axis in _axes()}
