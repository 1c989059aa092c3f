"""Exported policies on the Hugging Face hub: push a directory, load a repository.

In: an exported directory, or the name of a repository. Out: a commit, or a loaded policy. The
client is huggingface_hub (extra ``export``); its variables (HF_TOKEN, HF_ENDPOINT, HF_HOME) hold.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from algd.errors import UserError, install_command
from algd.training.exported import CONFIG_FILE, POLICY_FILE, WEIGHTS_FILE, is_export, load_export
from algd.training.load import LoadedPolicy


def push_to_hub(directory: Path, repo: str, *, private: bool = False) -> str:
    """Upload an exported policy as one commit; return the address of the commit.

    Args:
        directory: what ``algd export`` wrote.
        repo: ``OWNER/NAME``; created if it does not exist.
        private: of a new repository.

    Raises:
        UserError: not an export, no package, no login, no permission, or no network.
    """
    if not is_export(directory):
        raise UserError(f"{directory} holds no exported policy; expected a {POLICY_FILE} there")
    with _explained(f"pushing to {repo}"):
        from huggingface_hub import HfApi

        api = HfApi(library_name="algd")
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=directory,
            commit_message=f"Add the policy of step {_env_step(directory)}",
        )
    return commit.commit_url


def load_from_hub(repo: str, *, revision: str | None = None) -> LoadedPolicy:
    """Download a policy (or take it from the cache) and load it.

    Args:
        repo: ``OWNER/NAME``.
        revision: branch, tag or commit; None is the main branch.

    Raises:
        UserError: no package, no such repository, or no network.
        CheckpointError: the repository holds no exported policy.
    """
    with _explained(f"loading {repo}"):
        from huggingface_hub import snapshot_download

        directory = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=[WEIGHTS_FILE, CONFIG_FILE, POLICY_FILE],
            library_name="algd",
        )
    return load_export(Path(directory))


def _env_step(directory: Path) -> int:
    description = json.loads((directory / POLICY_FILE).read_text(encoding="utf-8"))
    return int(description["task"]["env_step"])


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn what the client raises into one line a user can act on."""
    try:
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            LocalTokenNotFoundError,
            RepositoryNotFoundError,
        )
    except ImportError as error:
        raise UserError(f"{what} needs a package: {install_command('export')}") from error
    try:
        yield
    except (LocalTokenNotFoundError, RepositoryNotFoundError) as error:
        raise UserError(
            f"{what}: no such repository, or not logged in (hf auth login, or set HF_TOKEN)"
        ) from error
    except HFValidationError as error:
        raise UserError(f"{what}: a repository is named OWNER/NAME; {_first(error)}") from error
    except HfHubHTTPError as error:
        raise UserError(f"{what}: the hub refused: {_first(error)}") from error
    except LocalEntryNotFoundError as error:
        raise UserError(f"{what}: the hub cannot be reached, and no copy is kept here") from error
    except Exception as error:  # its transports differ between versions, and so do their errors
        cause = error.__cause__ or error
        raise UserError(f"{what}: the hub cannot be reached: {_first(cause)}") from error


def _first(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
