"""Buckets on 127.0.0.1 that speak the protocols of Google's and Amazon's, and can be made to fail for a moment."""

import contextlib
import http.server
import os
import socket
import threading
from collections.abc import Iterator
from unittest import mock

import gcp_storage_emulator.server
import moto.server
from gcp_storage_emulator import exceptions
from gcp_storage_emulator.handlers import objects

NAME = "idistill-test"


class Bucket:
  """url: of the bucket.  environment: what a process needs to find it in place of the real one.

  busy: how many of the next requests are answered with 503; Google and Amazon do that, and mean "try again".
  """

  def __init__(self, url: str, environment: dict[str, str]):
    self.url, self.environment, self.busy = url, environment, 0

  def is_busy(self) -> bool:
    self.busy -= self.busy > 0
    return self.busy > 0


def _free_port() -> int:
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


@contextlib.contextmanager
def google() -> Iterator[Bucket]:
  port = _free_port()
  server = gcp_storage_emulator.server.create_server("127.0.0.1", port, in_memory=True, default_bucket=NAME)
  at = f"http://127.0.0.1:{port}"
  bucket = Bucket(f"gs://{NAME}", {
    "STORAGE_EMULATOR_HOST": at, "TENSORSTORE_GCS_HTTP_URL": at,
    # gcsfs asks for the kind of a bucket over gRPC, which is not spoken here.
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
  })
  handle, alone = gcp_storage_emulator.server.Router.handle, threading.Lock()

  def sometimes(router, method) -> None:
    with alone:
      if bucket.is_busy():
        router._request_handler.send_error(503)
      else:
        handle(router, method)

  upload = objects._multipart_upload

  def preconditioned(request, response, storage) -> None:
    """As Google's does, and the emulator does not: https://cloud.google.com/storage/docs/request-preconditions"""
    name = request.data["meta"]["name"]
    if request.query.get("ifGenerationMatch") == ["0"] and _exists(storage, request.params["bucket_name"], name):
      response.status = http.HTTPStatus.PRECONDITION_FAILED
    else:
      upload(request, response, storage)

  # One request at a time is what it can take; one connection at a time would have the others wait until they give up.
  threaded = mock.patch.object(http.server, "HTTPServer", http.server.ThreadingHTTPServer)
  with (mock.patch.object(gcp_storage_emulator.server.Router, "handle", sometimes), threaded,
        mock.patch.object(objects, "_multipart_upload", preconditioned)):
    server.start()
    try:
      yield bucket
    finally:
      server.stop()


def _exists(storage, bucket: str, name: str) -> bool:
  try:
    storage.get_file_obj(bucket, name)
  except exceptions.NotFound:
    return False
  return True


@contextlib.contextmanager
def amazon() -> Iterator[Bucket]:
  port = _free_port()
  server = moto.server.ThreadedMotoServer("127.0.0.1", port, verbose=False)
  bucket = Bucket(f"s3://{NAME}", {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_DEFAULT_REGION": "us-east-1",
  })
  answer = moto.server.DomainDispatcherApplication.__call__

  def sometimes(application, environ, start_response):
    if bucket.is_busy():
      start_response("503 Slow Down", [("Content-Length", "0")])
      return [b""]
    return answer(application, environ, start_response)

  with mock.patch.object(moto.server.DomainDispatcherApplication, "__call__", sometimes):
    server.start()
    try:
      yield bucket
    finally:
      server.stop()


SERVERS = {"gs": google, "s3": amazon}


@contextlib.contextmanager
def running(scheme: str) -> Iterator[Bucket]:
  """An empty bucket; this process finds it, and so does a child that is given its environment."""
  with SERVERS[scheme]() as bucket, mock.patch.dict(os.environ, bucket.environment):
    if scheme == "s3":
      import fsspec

      fsspec.filesystem("s3", skip_instance_cache=True).mkdir(NAME)
    yield bucket
