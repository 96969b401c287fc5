"""A finished model folder -> a repository on the Hugging Face Hub, in one commit.

The token comes from HF_TOKEN and the address from HF_ENDPOINT, both from the environment and from nowhere else.
"""

import os
import pathlib
from collections.abc import Iterable
from typing import Any

from idistill_jax import extras

TOKEN, ENDPOINT = "HF_TOKEN", "HF_ENDPOINT"


class UploadError(OSError):
  """A folder that could not be uploaded; the message says why and what to do."""


def client() -> Any:
  """A huggingface_hub.HfApi; raises UploadError where the extra or the token is missing."""
  try:
    import huggingface_hub  # an extra: export itself needs none of it
  except ModuleNotFoundError as e:
    raise UploadError(f"uploading needs huggingface_hub: {extras.install('hf')}") from e
  token = os.environ.get(TOKEN)
  if not token:
    raise UploadError(f"uploading needs a token that may write, in the environment variable {TOKEN} "
                      "(https://huggingface.co/settings/tokens); or unset --config.export.upload_*")
  return huggingface_hub.HfApi(endpoint=os.environ.get(ENDPOINT), token=token)


def client_for(repositories: Iterable[str | None]) -> Any:
  """A `client`, or None where all of them are None, which is no repository; raises UploadError for another name that
  is none.

  Asked for before a long job, it fails while nothing has been done yet.
  """
  named = [name for name in repositories if name is not None]
  if not named:
    return None
  api = client()
  from huggingface_hub import utils  # an extra, as above

  for name in named:
    try:
      utils.validate_repo_id(name)  # type: ignore[attr-defined]
    except ValueError as e:
      raise UploadError(f"--config.export.upload_*: {name!r} names no repository, as owner/name does: {e}") from e
  return api


def upload(api: Any, folder: pathlib.Path, repository: str, *, private: bool) -> str:
  """Makes the repository (`owner/name`) where it is missing, and commits the folder's files; returns the commit's URL.

  `private` says how a new repository is made; one that is there keeps its visibility.
  Raises UploadError where the Hub refuses or cannot be reached.
  """
  try:
    api.create_repo(repository, private=private, exist_ok=True)
    commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload the trained model")
  except Exception as e:
    # Not a list of classes: refused connections come as those of the HTTP library that this version of the client uses.
    raise UploadError(f"{folder} could not be uploaded to {api.endpoint}/{repository}: {e}\n"
                      f"The folder is whole; check that {TOKEN} may write there, and run the same command again") from e
  return commit.commit_url
