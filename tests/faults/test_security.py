"""Nothing is let in: no code from files, no path that leaves, no secret in what a run writes."""

import ast
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.tiny_runs import run
from test_state_tree import Trap

import algd
from algd.errors import CheckpointError, ConfigError
from algd.experiments.config import load_config

ROOT = Path(__file__).parents[2]
SOURCES = sorted(p for house in ("alam", "algd") for p in (ROOT / house).rglob("*.py"))


def calls(path: Path) -> list[ast.Call]:
    return [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_no_module_can_unpickle_or_evaluate() -> None:
    """The worker's pipe is multiprocessing's: both of its ends are this program."""
    banned_modules = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
    banned_calls = {
        *("eval", "exec", "torch.load", "torch.save", "torch.jit.load", "np.load", "numpy.load"),
        *("yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen"),
    }
    for path in SOURCES:
        assert not imports(path) & banned_modules, path
        for call in calls(path):
            name = ast.unparse(call.func)
            assert name not in banned_calls, f"{path}:{call.lineno}"
            if name == "yaml.load":  # with a reader that derives from SafeLoader
                assert ast.unparse(call.args[1]) == "_Reader", f"{path}:{call.lineno}"
            shell = [k for k in call.keywords if k.arg == "shell"]
            assert not shell, f"{path}:{call.lineno}"


@pytest.mark.parametrize("name", ["tensors.safetensors", "tree.json", "manifest.json"])
@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_malicious_checkpoint_is_refused_and_not_executed(
    tmp_path: Path, name: str, form: str
) -> None:
    run_dir = run(tmp_path / "run", train__total_steps=30)
    (checkpoint,) = (run_dir / "checkpoints").glob("step_*")
    trap = Trap(tmp_path / "sprung")
    if form == "pickle":
        (checkpoint / name).write_bytes(pickle.dumps(trap))
    else:
        torch.save({"state": trap}, checkpoint / name)
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        algd.load(run_dir)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(trap))  # noqa: S301 - the trap itself works
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch sprung']",
        "seed: !!python/object/apply:os.system ['touch sprung']",
        "env: !!python/name:os.system",
        "a: &a [*a]",
        "seed: !custom 3",
    ],
)
def test_yaml_that_would_run_code_is_one_line(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.yaml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_config([tmp_path / "evil.yaml"])
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "sprung").exists()


SECRETS = {
    "WANDB_API_KEY": "5ec7e7" * 6 + "abcd",
    "HF_TOKEN": "hf_secretsecretsecret",
    "AWS_SECRET_ACCESS_KEY": "awsSecretawsSecretawsSecret",
    "MY_PASSWORD": "correct horse battery staple",
}


@pytest.mark.parametrize("wandb", ["disabled", "offline"])
def test_no_secret_of_the_environment_is_in_what_a_run_writes_or_says(
    tmp_path: Path, wandb: str, no_wandb_login: None
) -> None:
    script = (
        "import sys; from pathlib import Path; from faults.tiny_runs import run\n"
        f"run(Path(sys.argv[1]), train__total_steps=30, tracking__wandb={wandb!r})"
    )
    environment: dict[str, Any] = {
        **os.environ,
        **SECRETS,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "run")],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    written = [p for p in (tmp_path / "run").rglob("*") if p.is_file()]
    assert len(written) > 8
    places = {str(p): p.read_bytes() for p in written}
    places |= {"stdout": result.stdout, "stderr": result.stderr}
    for name, secret in SECRETS.items():
        for place, content in places.items():
            assert secret.encode() not in content, f"{name} is in {place}"
