"""Every byte of an exported folder arrives at a Hub, through the real client; what goes wrong is told."""

import builtins
import json
import os
import subprocess
import sys

import pytest
from loopback_hub import COMMIT, LoopbackHub

from idistill_jax import config
from idistill_jax.hf import export, networks, upload

pytest.importorskip("huggingface_hub")
CARD = "---\nlibrary_name: sentence-transformers\n---\n# A model\n"


@pytest.fixture
def hub(monkeypatch):
  with LoopbackHub("hf_right") as server:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    # Tests run offline; here the client may speak, and every address that it knows is the loopback server's.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    yield server


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_weights):
  root = tmp_path_factory.mktemp("export")
  encoder, cut = config.Encoder(weights=tiny_weights), export.Cut(query_tokens=8, passage_tokens=16)
  network = networks.retriever(encoder)
  similarity = export.Similarity(weight=10.0, params=network.initial(0), network=network, cut=cut, card=CARD)
  export.export_retriever(network.initial(0), network, root / "retriever", cut=cut, card=CARD)
  for name, head in (("ranker", "classifier"), ("pairs", "pair_cosine")):
    network = networks.ranker(encoder, head)
    export.export_ranker(network.initial(0), network, root / name, head=head, cut=cut, similarity=similarity, card=CARD)
  return root


def contents(folder) -> dict[str, bytes]:
  return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("model", ["ranker", "pairs", "retriever"])
def test_every_byte_arrives(hub, folders, model):
  url = upload.upload(upload.client(), folders / model, f"owner/{model}", private=True)
  repository = hub.repositories[f"owner/{model}"]
  assert repository.files == contents(folders / model)
  assert "model.safetensors" in repository.files
  assert repository.private
  assert len(repository.commits) == 1
  assert "/api/validate-yaml" in hub.asked
  assert f"owner/{model}/commit/" in url


FROM_THE_HUB = """
import json, sys
sys.modules["idistill_jax"] = None
from huggingface_hub import snapshot_download
from sentence_transformers import CrossEncoder, SentenceTransformer
pairs, found = [("open a file", "io.open. Open file. " * 9), ("wait " * 30, "os.wait")], []
for place in sys.argv[1:]:
  found.append(CrossEncoder(place, device="cpu", trust_remote_code=True).predict(pairs).tolist())
found.append(SentenceTransformer(snapshot_download("owner/pairs") + "/similarity", device="cpu").max_seq_length)
print(json.dumps(found))
"""


@pytest.mark.torch
def test_a_ranker_is_loaded_by_its_name_code_and_similarity_included(hub, folders, tmp_path):
  pytest.importorskip("sentence_transformers")
  upload.upload(upload.client(), folders / "pairs", "owner/pairs", private=True)
  online = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_right"}
  homes = {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "code")}
  load = lambda changes: subprocess.run(
    [sys.executable, "-c", FROM_THE_HUB, "owner/pairs", str(folders / "pairs")], cwd=tmp_path, text=True,
    capture_output=True, env={**os.environ, **homes, **changes})  # fmt: skip
  done = load(online)
  assert done.returncode == 0, done.stderr
  by_name, by_folder, length = json.loads(done.stdout)
  assert by_name == by_folder and length == 16
  for file in ("pair_score.py", "similarity/model.safetensors"):
    assert f"/owner/pairs/resolve/{COMMIT}/{file}" in hub.asked
  # What was fetched once is there without a Hub.
  hub.repositories.clear()
  again = load({"HF_ENDPOINT": hub.url})
  assert again.returncode == 0, again.stderr
  assert json.loads(again.stdout) == json.loads(done.stdout)


def test_a_second_upload_is_a_second_commit(hub, folders):
  for private in (False, True):
    upload.upload(upload.client(), folders / "ranker", "owner/again", private=private)
  assert len(hub.repositories["owner/again"].commits) == 2
  assert not hub.repositories["owner/again"].private


def test_a_wrong_token_is_told_with_where_and_what_to_do(hub, folders, monkeypatch):
  monkeypatch.setenv("HF_TOKEN", "hf_wrong")
  told = f"(?s)could not be uploaded to {hub.url}/owner/no: .*401.*HF_TOKEN"
  with pytest.raises(upload.UploadError, match=told) as e:
    upload.upload(upload.client(), folders / "ranker", "owner/no", private=True)
  assert "hf_wrong" not in str(e.value)
  assert not hub.repositories


def test_a_name_that_is_no_repository(hub, folders):
  with pytest.raises(upload.UploadError, match="a/b/c"):
    upload.upload(upload.client(), folders / "ranker", "a/b/c", private=True)


def test_a_hub_that_cannot_be_reached(hub, folders, monkeypatch):
  with LoopbackHub("hf_right") as gone:
    monkeypatch.setenv("HF_ENDPOINT", gone.url)
  with pytest.raises(upload.UploadError, match=f"could not be uploaded to {gone.url}/owner/name"):
    upload.upload(upload.client(), folders / "ranker", "owner/name", private=True)


def test_no_token(monkeypatch):
  monkeypatch.delenv("HF_TOKEN", raising=False)
  with pytest.raises(upload.UploadError, match="environment variable HF_TOKEN"):
    upload.client()


def test_no_extra(monkeypatch):
  real = builtins.__import__

  def without(name, *args, **kwargs):
    if name.startswith("huggingface_hub"):
      raise ModuleNotFoundError(name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", without)
  with pytest.raises(upload.UploadError, match=r"source launch/env\.sh hf`"):
    upload.client()
