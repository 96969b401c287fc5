"""Orbax knows gs:// and local folders; this lets it take s3:// for a bucket as well.

TensorStore, which writes the arrays beneath Orbax, has a driver for S3, and epath reads and writes the small files.
Orbax 0.12.8 alone stands between the two: it takes every path but gs:// for a local one ("Checkpoint path should be
absolute", https://github.com/google/orbax/pull/2739).  What it does in a Google bucket is right in any: no renames, a
checkpoint is there when its last file is.
"""

import functools
import os
from typing import Any

from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

_SCHEMES = ("gs://", "s3://")


@functools.cache
def teach() -> None:
  """For this process, once."""
  of_google, normalize = gcs_utils.get_kvstore_for_gcs, tensorstore_utils._normalize_path

  def kvstore(path: str) -> dict[str, Any]:
    return _spec(path) if path.startswith("s3://") else of_google(path)

  gcs_utils._GCS_PATH_PREFIX = _SCHEMES
  gcs_utils.get_kvstore_for_gcs = kvstore
  tensorstore_utils._use_gcs_driver = lambda path: path.startswith(_SCHEMES)
  tensorstore_utils._normalize_path = lambda path: normalize(path).replace("s3:/", "s3://")


def _spec(path: str) -> dict[str, Any]:
  """TensorStore's for a folder, https://google.github.io/tensorstore/kvstore/s3.

  It finds credentials where s3fs does, and is told the rest that s3fs reads from the environment.
  """
  bucket, _, key = path.removeprefix("s3://").partition("/")
  said = {"endpoint": os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
          "aws_region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")}
  return {"driver": "s3", "bucket": bucket, "path": key} | {name: value for name, value in said.items() if value}
