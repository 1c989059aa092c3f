"""What holds for every test: one thread, no network tracking, and shapes checked at run time.

The jaxtyping hook must be installed before the first import of alam or algd, so it stands here,
where pytest arrives before it collects anything.
"""

import os
import signal
from collections.abc import Iterator

# A job started in the background by a shell ignores Ctrl-C, and so would the programs under test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["OMP_NUM_THREADS"] = "1"  # read once, when torch is imported
os.environ["WANDB_MODE"] = "disabled"  # a developer's login must not turn tests into uploads
os.environ["WANDB_SILENT"] = "true"

from pathlib import Path

import hypothesis
import jaxtyping
import pytest

# A deadline per example measures how busy the machine is.
hypothesis.settings.register_profile("algd", deadline=None)
hypothesis.settings.load_profile("algd")

jaxtyping.install_import_hook(["alam", "algd"], "shape_checks.check")


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Keep results and timings free of OpenMP on a shared machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def float64() -> Iterator[None]:
    """Build and compute in double precision, for comparisons to 1e-9 and closer."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def no_shape_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch the checks off for one test: torch.compile cannot trace through them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def no_wandb_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the developer's W&B key, login file and mode."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
