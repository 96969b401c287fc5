"""A folder that has a stage's name and holds what the stage has not written: a commit would take it away."""

import json

from idistill_jax.workdir import store as store_lib


def refuse(store: store_lib.Store, stated: str, stage: str, *, last: str) -> None:
  """Raises FileExistsError where what lies under the stage's name is not the stage's.

  stated: the workdir as its user writes it.  last: the file that a commit ends with.  A commit is whole or not there,
  but for one in a bucket that was cut off (`store.is_torn`), which the stage's next run makes anew.
  """
  # In this order: a commit that ends meanwhile takes with it what `is_torn` goes by.
  is_torn, end = store.is_torn(stage), store.read(f"{stage}/{last}")
  if _is_ours(end) if end is not None else is_torn or not _is_anything(store, stage):
    return
  raise FileExistsError(
    f"{stated}/{stage}: holds files, and no {last} of the stage {stage}, which would replace it; move it away, or name "
    "another folder with --workdir"
  )


def _is_ours(end: bytes) -> bool:
  """Whether it is a manifest: browser extensions and web pages have files of that name, too."""
  try:
    found = json.loads(end)
  except ValueError:  # what the disk lost the end of was ours; who reads it says what to do
    return True
  return isinstance(found, dict) and "key" in found


def _is_anything(store: store_lib.Store, name: str) -> bool:
  """Whether a file, or a folder that is not empty, has the name."""
  return bool(store.written(name).keys() - {""}) or store.path(name).is_file()
