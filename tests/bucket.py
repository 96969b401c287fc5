"""Buckets on 127.0.0.1 that speak the protocols of Google's and Amazon's, and can be made to fail for a moment."""

import contextlib
import http.server
import os
import re
import socket
import threading
import types
from collections.abc import Iterator
from unittest import mock

import gcp_storage_emulator.server
import moto.server
from gcp_storage_emulator import exceptions
from gcp_storage_emulator.handlers import objects

from benchmarks import ports

NAME = "idistill-test"


class Bucket:
  """url: of the bucket.  environment: what a process needs to find it in place of the real one.

  busy: how many of the next requests, of those in whose method and address `busy_with` (an expression) is found, are
  answered with `status`: 503 is how Google and Amazon say "try again"; with None they are not answered at all, as where
  a connection breaks.  lost: how many of the next uploads are answered with `status` although they are done.
  requests: how many there were.
  """

  status: int | None

  def __init__(self, url: str, environment: dict[str, str]):
    self.url, self.environment, self.status, self.requests = url, environment, 503, 0
    self.busy, self.busy_with, self.lost = 0, "", 0

  def is_busy(self, method: str, address: str) -> bool:
    self.requests += 1
    if self.busy == 0 or not re.search(self.busy_with, f"{method} {address}"):
      return False
    self.busy -= 1
    return True

  def is_lost(self) -> bool:
    if self.lost == 0:
      return False
    self.lost -= 1
    return True


@contextlib.contextmanager
def google() -> Iterator[Bucket]:
  port = ports.free()
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
      request = router._request_handler
      if not bucket.is_busy(method, request.path):
        handle(router, method)
      elif bucket.status is None:
        request.connection.shutdown(socket.SHUT_RDWR)
      else:
        request.send_error(bucket.status)

  # One request at a time is what it can take; one connection at a time would have the others wait until they give up.
  # Not in `http.server` itself: a class that somebody derives meanwhile stays what it is, as wsgiref's does.
  threading_server = types.SimpleNamespace(HTTPServer=http.server.ThreadingHTTPServer)
  threaded = mock.patch.object(gcp_storage_emulator.server, "server", threading_server)
  with mock.patch.object(gcp_storage_emulator.server.Router, "handle", sometimes), threaded, _uploads(bucket):
    server.start()
    try:
      yield bucket
    finally:
      server.stop()


@contextlib.contextmanager
def _uploads(bucket: Bucket) -> Iterator[None]:
  """What Google's has and the emulator lacks: an object's generation beside its content, and uploads on condition of
  it, https://cloud.google.com/storage/docs/request-preconditions; "0" is that of what is not there."""

  def conditional(upload):
    def uploaded(request, response, storage) -> None:
      name = request.query["name"][0] if "name" in request.query else request.data["meta"]["name"]
      if request.query.get("ifGenerationMatch", [now := generation(request, storage, name)])[0] == now:
        upload(request, response, storage)
        if bucket.is_lost():
          response.status = http.HTTPStatus(bucket.status)
      else:
        response.status = http.HTTPStatus.PRECONDITION_FAILED
    return uploaded

  def generation(request, storage, name: str) -> str:
    try:
      return storage.get_file_obj(request.params["bucket_name"], name)["generation"]
    except exceptions.NotFound:
      return "0"

  download = objects.download

  def downloaded(request, response, storage, *args, **kwargs) -> None:
    download(request, response, storage, *args, **kwargs)
    response["x-goog-generation"] = generation(request, storage, request.params["object_id"])

  with (mock.patch.object(objects, "_multipart_upload", conditional(objects._multipart_upload)),
        mock.patch.object(objects, "_media_upload", conditional(objects._media_upload)),
        mock.patch.object(objects, "download", downloaded)):
    yield


@contextlib.contextmanager
def amazon() -> Iterator[Bucket]:
  port = ports.free()
  server = moto.server.ThreadedMotoServer("127.0.0.1", port, verbose=False)
  bucket = Bucket(f"s3://{NAME}", {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_DEFAULT_REGION": "us-east-1",
  })
  answer = moto.server.DomainDispatcherApplication.__call__

  def sometimes(application, environ, start_response):
    if bucket.is_busy(environ["REQUEST_METHOD"], environ["PATH_INFO"]):
      if bucket.status is None:
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError  # which the server takes for the end of it
      start_response(f"{bucket.status} No", [("Content-Length", "0")])
      return [b""]
    if environ["REQUEST_METHOD"] == "PUT" and bucket.is_lost():
      list(answer(application, environ, lambda *_: None))
      start_response(f"{bucket.status} No", [("Content-Length", "0")])
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
  """A bucket; this process finds it, and so does a child that is given its environment.

  All s3:// ones of a process are the same, however many servers it has.
  """
  import fsspec

  with SERVERS[scheme]() as bucket, mock.patch.dict(os.environ, bucket.environment):
    # A file system that was made for another test's server would ask for that one.
    fsspec.get_filesystem_class(scheme).clear_instance_cache()
    if scheme == "s3":
      fsspec.filesystem("s3", skip_instance_cache=True).makedirs(NAME, exist_ok=True)
    yield bucket
