"""`check_env` reports and never raises: one finding per defect, with its remedy."""

import re

import pytest

from algd.environments import rendering
from algd.environments.checking import check_env
from algd.environments.make import EnvConfig

HERE = "environments.faulty_envs"


def problems(findings):
    return lines(findings, "problem")


def lines(findings, kind):
    return [str(finding) for finding in findings if finding.kind == kind]


def facts(findings, topic):
    return [f.message for f in findings if f.kind == "fact" and f.topic == topic]


def test_a_sound_task_yields_facts_alone():
    findings = check_env(EnvConfig(id="SafetySwimmerVelocity-v1"), steps=1500)
    assert problems(findings) == []
    assert facts(findings, "observation") == ["8 numbers"]
    assert facts(findings, "action")[0].startswith("2 numbers in [-1, 1]")
    assert facts(findings, "horizon") == ["1000 steps"]
    assert "same bits over 100 steps" in facts(findings, "determinism")[0]
    assert "limit 25" in facts(findings, "cost")[0]
    assert "us per step" in facts(findings, "speed")[0]
    assert facts(findings, "rendering") == ["frames of 480 x 480 pixels"]
    assert all("\n" not in str(finding) for finding in findings)


def test_cost_statistics_are_those_of_the_episodes():
    findings = check_env(EnvConfig(id=f"{HERE}:Counting-v0"), steps=20)
    assert facts(findings, "cost") == ["2.50 per episode (limit 25), 0.5000 per step"]
    expected = "20 steps, 4 episodes finished, of 5 steps and return 5.00, 0 ended by termination"
    assert facts(findings, "random policy") == [expected]


def test_an_episode_that_was_cut_off_is_no_episode():
    findings = check_env(EnvConfig(id=f"{HERE}:Counting-v0"), steps=18)
    assert facts(findings, "cost") == ["2.50 per episode (limit 25), 0.5000 per step"]
    assert facts(findings, "random policy")[0].startswith("18 steps, 3 episodes finished, of 5")
    findings = check_env(EnvConfig(id=f"{HERE}:Counting-v0"), steps=3)
    assert facts(findings, "cost") == ["0.5000 per step (limit 25 per episode)"]
    told = facts(findings, "random policy")
    assert told == ["no episode finished in 3 steps; --steps=5 finishes one"]


def test_an_environment_need_not_know_of_rendering():
    findings = check_env(EnvConfig(id=f"{HERE}:Blind-v0"), steps=10)
    assert problems(findings) == []
    (note,) = lines(findings, "note")
    assert "(no videos, then)" in note


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (EnvConfig(id="SafetyPointGaol1-v0"), "construction: .*did you mean SafetyPointGoal1-v0"),
        (EnvConfig(id="Pendulum-v1"), "construction: .*set env.cost_fn"),
        (EnvConfig(id="CartPole-v1"), "construction: .*must be continuous"),
        (EnvConfig(id=f"{HERE}:Unseeded-v0"), "determinism: .*differ from step 0 on.*draw all"),
        (EnvConfig(id=f"{HERE}:Counting-v0", kwargs={"bad": "reward"}), "reward is nan at step 3"),
        (EnvConfig(id=f"{HERE}:Counting-v0", kwargs={"bad": "step"}), "IndexError"),
        (
            EnvConfig(id=f"{HERE}:Counting-v0", kwargs={"bad": "observation", "value": 1e6}),
            r"values up to 1e\+06",
        ),
        (EnvConfig(id=f"{HERE}:OutOfBounds-v0"), "outside the announced bounds"),
        (EnvConfig(id=f"{HERE}:Flat-v0"), "action: low equals high in dimension 1"),
        (EnvConfig(id=f"{HERE}:Warning-v0"), "warning: .*something is deprecated"),
    ],
    ids=lambda value: value.id if isinstance(value, EnvConfig) else None,
)
def test_each_defect_is_one_line(config, expected):
    found = problems(check_env(config, steps=50))
    assert [line for line in found if re.search(expected, line)], found
    assert all("\n" not in line for line in found)


def test_without_frames_there_are_no_videos_but_training():
    findings = check_env(EnvConfig(id=f"{HERE}:Counting-v0"), steps=50)
    assert problems(findings) == []
    (note,) = lines(findings, "note")
    assert re.search(r"rendering: .*cannot render.*\(no videos, then\)$", note)


def test_a_machine_that_cannot_render_is_reported(monkeypatch):
    monkeypatch.setattr(rendering, "_works", lambda backend: False)
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    found = lines(check_env(EnvConfig(id="SafetyPointGoal0-v0"), steps=10), "note")
    assert len(found) == 1
    assert "apt-get install" in found[0]
