"""What a config names is read alike from this machine and from a bucket, and noticed when it changes there."""

import dataclasses
import gzip
import hashlib
import json
import pathlib
import re
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import bucket as bucket_lib
import fsspec
import numpy as np
import pytest

from idistill_jax import config, dry_run, fingerprints, flow, upsert, validation
from idistill_jax.data import collection
from idistill_jax.data.corpora import SOURCES, files, jsonl, rankings
from idistill_jax.hf import card, folders, weights
from idistill_jax.llm.providers import replay
from idistill_jax.retrieval import runs, systems
from idistill_jax.workdir import artifacts, outside, remote

PASSAGES = "".join(f'{{"_id": "p{i}", "title": "T{i}", "text": "the text of {i}"}}\n' for i in range(9))
QUERIES = '{"_id": "q1", "text": "which one", "metadata": {"answers": ["a"]}}\n{"_id": "q2", "text": "another"}\n'
FILES = {
  "corpus.jsonl": PASSAGES, "queries.jsonl": QUERIES, "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\tp1\t1\n",
}
RUN = "q2 Q0 p1 1 2.0 x\nq2 Q0 p3 2 1.0 x\n"


@dataclasses.dataclass(frozen=True)
class Place:
  """url: where a test may put files.  server: None for fsspec's memory."""

  url: str
  server: bucket_lib.Bucket | None

  def put(self, name: str, content: str | bytes) -> str:
    fs, base = remote.file_system(f"{self.url}/{name}")
    fs.pipe_file(base, content.encode() if isinstance(content, str) else content)
    return f"{self.url}/{name}"

  def put_all(self, folder: pathlib.Path, name: str) -> str:
    for path in folder.rglob("*"):
      if path.is_file():
        self.put(f"{name}/{path.relative_to(folder)}", path.read_bytes())
    return f"{self.url}/{name}"


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, bucket_lib.Bucket]]:
  with bucket_lib.running("gs") as google, bucket_lib.running("s3") as amazon:
    yield {"gs": google, "s3": amazon}


def _place(url: str, server: bucket_lib.Bucket | None, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Place:
  (folder / "kept").mkdir()
  monkeypatch.setattr("tempfile.tempdir", str(folder / "kept"))
  return Place(f"{url}/{folder.name}", server)


@pytest.fixture(params=["gs", "s3"])
def place(request, servers, tmp_path, monkeypatch) -> Place:
  servers[request.param].busy = 0  # a test that failed may have left it so
  return _place(servers[request.param].url, servers[request.param], tmp_path, monkeypatch)


@pytest.fixture
def memory(tmp_path, monkeypatch) -> Iterator[Place]:
  yield _place("memory://outside", None, tmp_path, monkeypatch)
  fsspec.filesystem("memory").store.clear()


def here(folder: pathlib.Path, **more: str | bytes) -> pathlib.Path:
  for name, content in (FILES | more).items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
  return folder


def content(found: collection.Collection) -> dict[str, Any]:
  fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
  return fields | {"passages": list(found.passages)}


def kept(what: str) -> list[pathlib.Path]:
  return sorted(path for path in (remote.kept() / what).glob("*") if path.suffix != ".lock")


def test_a_collection_is_the_same_in_a_bucket(place, tmp_path):
  folder = here(tmp_path / "mine")
  (folder / "corpus.jsonl.gz").write_bytes(gzip.compress((folder / "corpus.jsonl").read_bytes()))
  (folder / "corpus.jsonl").unlink()
  local, there = (config.Collection(source="beir", path=path) for path in (str(folder), place.put_all(folder, "mine")))
  source = SOURCES["beir"]
  place.server.busy = 2  # "try again", which it does
  assert content(source.load(there)) == content(source.load(local))
  assert place.server.busy == 0
  # In a stage's key stands what lies there, and not when it was put there.
  before = source.fingerprint(there)
  assert before == source.fingerprint(local)
  place.put("mine/qrels/test.tsv", FILES["qrels/test.tsv"] + "q1\tp2\t1\n")
  assert source.fingerprint(there) != before and source.load(there).qrels["test"]["q1"] == {"p1": 1, "p2": 1}


def test_the_stage_is_done_until_something_changes_there(place, tmp_path):
  cfg = config.Config(name="x")
  cfg.collection = config.Collection(source="beir", path=place.put_all(here(tmp_path / "mine"), "mine"))
  validation.validate(cfg)
  workdir, stage = artifacts.Workdir(tmp_path / "run"), flow.STAGES["collection"]
  assert workdir.execute(stage, cfg)["counts"]["passages"] == 9
  assert workdir.is_done(stage, cfg)
  place.put("mine/corpus.jsonl", PASSAGES + '{"_id": "p9", "text": "one more"}\n')
  assert not workdir.is_done(stage, cfg)
  assert workdir.execute(stage, cfg)["counts"]["passages"] == 10


def test_a_hash_is_remembered_by_the_machine_until_its_object_changes(place):
  path = place.put("corpus.jsonl", 300_000 * "x")
  before = place.server.requests
  first = outside.sha256(path)
  cost = place.server.requests - before
  assert outside.sha256(path) == first and place.server.requests - before < 2 * cost
  place.put("corpus.jsonl", 300_000 * "y")
  assert outside.sha256(path) != first
  assert len(kept("sha256")) == 2


def test_a_corpus_in_a_bucket_is_a_stream(place, monkeypatch):
  monkeypatch.setattr(outside, "_AHEAD_BYTES", 1 << 16)
  monkeypatch.setattr(outside, "_BUFFER_BYTES", 1 << 12)
  texts = "".join(json.dumps({"_id": f"p{i}", "text": 1000 * "x"}) + "\n" for i in range(1500))
  path = outside.at(place.put("corpus.jsonl", texts))
  before = place.server.requests
  passages = files.read_passages(path)
  assert next(passages).id == "p0"
  first = place.server.requests - before
  assert sum(1 for _ in passages) == 1499
  assert place.server.requests - before > 3 * first
  assert not list(remote.kept().iterdir()), "nothing of it is kept"


def test_every_input_may_lie_there(memory, tmp_path):
  """Each as the same file here is read."""
  folder, cfg = here(tmp_path / "all", **{
    "rank.jsonl": '{"qid": "q2", "ranking": ["p1", "p2"]}\n', "rank.json.gz":
    gzip.compress(b'[{"qid": "q2", "ranking": ["p2", "p1"]}]'), "runs/theirs.trec": RUN,
    "runs/other.run.gz": gzip.compress(RUN.encode()), "runs/notes.md": "none", "answers.jsonl":
    '{"query_id": "q2", "candidates": ["p1"], "response": "[1]"}\n', "qrels/dev.txt": "q2 0 p4 1\n",
    "mine.tsv": "p1\tthe text\tthe title\n", "said.json.gz": gzip.compress(b'["[2] > [1]"]'), "shown.jsonl":
    '{"query_id": "q2", "retrieved_passages": [{"docid": "p1"}, {"docid": "p2"}]}\n',
  }), config.Config(name="x")
  there = memory.put_all(folder, "all")

  def read(root: str) -> list[Any]:
    whole = config.Collection(source="jsonl", path=root)
    found: list[Any] = [content(SOURCES["jsonl"].load(whole)), SOURCES["jsonl"].fingerprint(whole)]
    alone = config.Collection(source="corpus", path=f"{root}/corpus.jsonl")
    found += [content(SOURCES["corpus"].load(alone)), SOURCES["corpus"].fingerprint(alone)]
    found += [list(files.read_passages(outside.at(f"{root}/mine.tsv")))]
    for name in ("rank.jsonl", "rank.json.gz"):
      found += [list(rankings.read(config.Collection(rankings=f"{root}/{name}"), [], []))]
    of_two = config.Collection(rankings=f"{root}/said.json.gz", rankings_shown=f"{root}/shown.jsonl")
    found += [list(rankings.read(of_two, [], []))]
    cfg.collection.rankings, cfg.collection.source, cfg.collection.path = f"{root}/rank.jsonl", "jsonl", root
    cfg.candidates.run, cfg.evaluate.runs = f"{root}/runs/theirs.trec", f"{root}/runs"
    cfg.encoder.weights = "pypi:idistill_jax/data/quickstart"
    found += [runs.read_trec(cfg.candidates.run), systems.read_runs(cfg)]
    found += [made(cfg) for made in (fingerprints.collection, fingerprints.candidates, fingerprints.evaluate)]
    found += [len(replay.Replay(f"{root}/answers.jsonl")), replay.fingerprint(f"{root}/answers.jsonl")]
    found += [said for stage in ("collection", "candidates", "evaluate") for said in dry_run.reads(stage, cfg)
              if "NOT THERE" in said]  # fmt: skip
    return found

  assert read(there) == read(str(folder))
  # The control: what is not there is named, as it is here.
  for root in (f"{there}/none", str(folder / "none")):
    with pytest.raises(FileNotFoundError, match=f"{root}: neither corpus.jsonl nor corpus.jsonl.gz is there"):
      read(root)
    assert dry_run.reads("collection", cfg) and f"{root} (NOT THERE)" in [
      dry_run._file(root)], "a dry run says it before anything is done"
    for one in (runs.read_trec, outside.sha256, lambda path: replay.locate(path)):
      with pytest.raises(FileNotFoundError, match=root):
        one(root)


def test_what_is_malformed_there_names_object_and_line(memory):
  path = memory.put("mine/corpus.jsonl", '{"_id": "p1", "text": "a"}\nno JSON\n')
  with pytest.raises(collection.CollectionError, match=f"{path}:2: not JSON"):
    list(files.read_passages(outside.at(path)))
  zipped = memory.put("mine/corpus.jsonl.gz", gzip.compress(PASSAGES.encode())[:60])
  said = rf"{zipped}:\d+: cannot be read further: .*; fetch the gzip file again"
  with pytest.raises(collection.CollectionError, match=said):
    list(files.read_passages(outside.at(zipped)))


def test_a_file_whose_reading_is_cut_off_is_not_called_a_gzip_file(place, monkeypatch):
  monkeypatch.setattr(outside, "_AHEAD_BYTES", 1 << 16)
  monkeypatch.setattr(outside, "_BUFFER_BYTES", 1 << 12)
  url = place.put("corpus.jsonl", 20_000 * (PASSAGES.splitlines()[0] + "\n"))
  monkeypatch.setattr(place.server, "status", 403)
  lines = jsonl.lines(url)
  next(lines)
  place.server.busy = 99
  with pytest.raises(collection.CollectionError, match=rf"{url}:\d+: cannot be read further: {url}: ") as said:
    list(lines)
  place.server.busy = 0
  assert "gzip" not in str(said.value)


def test_weights_are_fetched_once_a_machine_and_again_when_they_change(place, tmp_path, tiny_weights):
  folder = shutil.copytree(folders.resolve(tiny_weights), tmp_path / "model", copy_function=shutil.copyfile)
  (folder / "optimizer.pt").write_bytes(b"large")
  (folder / "pytorch_model.bin").write_bytes(b"as large again")
  url = place.put_all(folder, "a/model")
  found = folders.resolve(url)
  assert str(found).endswith("/a/model"), "what is wrong with a file there is said with a name that can be told"
  assert not {"optimizer.pt", "pytorch_model.bin"} & {path.name for path in found.rglob("*")}
  mine, theirs = weights.read_tensors(folder), weights.read_tensors(found)
  assert mine.keys() == theirs.keys() and all(np.array_equal(mine[name], theirs[name]) for name in mine)
  assert folders.fingerprint(url) == folders.fingerprint(str(folder))
  fetched = (found / "model.safetensors").stat().st_mtime_ns
  place.put("a/model/optimizer.pt", "another")  # nobody reads it
  assert folders.resolve(f"{url}/") == found and len(kept("inputs")) == 1
  assert (found / "model.safetensors").stat().st_mtime_ns == fetched
  place.put("a/model/config.json", (folder / "config.json").read_text() + "\n")
  assert folders.resolve(url) != found and folders.fingerprint(url) != folders.fingerprint(str(folder))
  weights.check(config.Encoder(weights=url))
  assert card._without_path(url) == "model" and card.base_model(url, "") is None


def test_weights_that_are_not_there_or_change_meanwhile_are_said_so(memory, monkeypatch):
  url = f"{memory.url}/none"
  with pytest.raises(FileNotFoundError, match=url):
    folders.resolve(url)
  cfg = config.Config(name="x", encoder=config.Encoder(weights=url))
  assert any(f"{url} (NOT USABLE: " in said for said in dry_run.reads("candidates", cfg))
  memory.put("model/config.json", "{}")
  assert not any("NOT USABLE" in said for said in dry_run.reads(
    "candidates", dataclasses.replace(cfg, encoder=config.Encoder(weights=f"{memory.url}/model"))))
  assert not list(remote.kept().iterdir()), "a dry run fetches nothing"
  fs, get = remote.file_system(memory.url)[0], fsspec.AbstractFileSystem.get
  changed = lambda *of, **more: (get(*of, **more), memory.put("model/config.json", '{"model_type": "bert"}'))[0]
  with monkeypatch.context() as patched, pytest.raises(OSError, match=f"{memory.url}/model: was changed while"):
    patched.setattr(type(fs), "get", changed)
    folders.resolve(f"{memory.url}/model")
  assert "bert" in (folders.resolve(f"{memory.url}/model") / "config.json").read_text()


@pytest.mark.parametrize("status", [401, 403])
def test_what_is_refused_is_an_error_that_names_the_url(place, monkeypatch, status):
  """Whatever the cloud's own kind of error is, and wherever in the reading it comes."""
  monkeypatch.setattr(outside, "_AHEAD_BYTES", 1 << 16)
  monkeypatch.setattr(outside, "_BUFFER_BYTES", 1 << 12)
  url, server = place.put("mine/corpus.jsonl", 20_000 * (PASSAGES.splitlines()[0] + "\n")), place.server
  weights_url = place.put("model/config.json", "{}").rpartition("/")[0]
  monkeypatch.setattr(server, "status", status)
  with outside.at(url).open() as half_read:
    half_read.read(1)
    for what, ask in {
      url: half_read.read, f"{url} ": lambda: outside.sha256(url),
      f"{place.url}/mine": lambda: list(outside.at(f"{place.url}/mine").glob("*")),
      weights_url: lambda: folders.resolve(weights_url),
    }.items():
      server.busy = 99
      with pytest.raises(OSError, match=f"(?s)^{what.strip()}: .*; are there credentials for it"):
        ask()
    server.busy = 99
    assert f"{url} (NOT USABLE: " in str(dry_run._file(url))
  server.busy = 0
  assert "NOT" not in str(dry_run._file(url))


def test_no_credentials_at_all_are_an_error_that_names_the_url(servers, monkeypatch):
  import s3fs

  url = f"{servers['s3'].url}/corpus.jsonl"
  for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
    monkeypatch.delenv(name)
  monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
  s3fs.S3FileSystem.clear_instance_cache()
  try:
    with pytest.raises(OSError, match=f"{url}: Unable to locate credentials; are there credentials for it"):
      outside.sha256(url)
  finally:
    s3fs.S3FileSystem.clear_instance_cache()


def test_what_is_kept_is_this_users_alone(tmp_path, monkeypatch):
  monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
  folder = remote.kept()
  assert folder.stat().st_mode & 0o777 == 0o700 and remote.kept() == folder
  folder.rmdir()
  for make in (lambda: folder.symlink_to(tmp_path), lambda: folder.symlink_to(tmp_path / "none"), folder.touch):
    make()
    with pytest.raises(OSError, match=f"{folder}: is no folder of this user's; remove it, or set TMPDIR"):
      remote.kept()
    folder.unlink()
  monkeypatch.setattr("os.getuid", lambda: 12345)
  (tmp_path / "idistill_jax-12345").mkdir()
  with pytest.raises(OSError, match="idistill_jax-12345: is no folder of this user's"):
    remote.kept()


def test_fetched_weights_are_whole_and_of_one_state(memory):
  url = memory.put("model/config.json", "{}").rpartition("/")[0]
  memory.put("model/tokenizer.json", "{}")
  first = folders.resolve(url)
  (first / "tokenizer.json").unlink()  # as a cleaner of temporary files does
  assert folders.resolve(url) == first and (first / "tokenizer.json").exists()
  (half,) = {path.parent for path in remote.kept().glob("inputs/*/*")}
  (half / "half").mkdir()  # of a process that was killed
  other = folders.resolve(memory.put("other/config.json", "{}").rpartition("/")[0])
  memory.put("model/config.json", "{ }")
  second = folders.resolve(url)
  assert second != first and not first.exists() and not (half / "half").exists() and other.exists()


def test_of_a_trainers_folder_the_checkpoint_at_its_top_is_fetched():
  small = ["config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json", "2_Dense/config.json"]
  below = ["checkpoint-500/model.safetensors", "checkpoint-500/pytorch_model.bin", "checkpoint-500/optimizer.pt"]
  wanted = lambda *tensors: set(folders._to_fetch([*small, *below, *tensors])) - set(small)
  assert wanted("pytorch_model.bin") == {"pytorch_model.bin"}
  assert wanted("pytorch_model.bin", "model.safetensors") == {"model.safetensors"}
  # The control: the head of our own ranker lies below.
  ours = {"model.safetensors", f"{folders.DENSE_HEAD}/model.safetensors"}
  assert wanted(*ours, f"{weights.SIMILARITY}/model.safetensors") == ours
  assert set(small) <= set(folders._to_fetch(small))


def test_a_recording_in_a_bucket_is_read_once_for_all_keys(place, tmp_path):
  answers = 4 * '{"query_id": "q2", "candidates": ["p1"], "response": "[1]"}\n'
  url, here = place.put("answers.jsonl", answers), tmp_path / "answers.jsonl"
  here.write_text(answers)
  key = hashlib.sha256(answers.encode()).hexdigest()[:16]
  assert replay.fingerprint(url) == replay.fingerprint(str(here)) == replay.Replay(str(here)).model == key
  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(outside.Object, "open", lambda *of: pytest.fail("read once more"))
    assert replay.fingerprint(url) == key
  packaged = "package:quickstart/llm_answers.jsonl"
  assert replay.fingerprint(packaged) == hashlib.sha256(replay.locate(packaged).read_bytes()).hexdigest()[:16]


def test_a_name_that_leads_out_of_its_folder_is_refused(memory, monkeypatch):
  url = memory.put("model/config.json", "{}").rpartition("/")[0]
  found = remote.files
  monkeypatch.setattr(remote, "files", lambda fs, base: found(fs, base) | {f"{base}/a/../../../config.json": "1"})
  with pytest.raises(OSError, match=rf"{url}: 'a/\.\./\.\./\.\./config\.json' would be written outside"):
    folders.resolve(url)


def test_a_hash_of_what_changes_while_it_is_read_is_not_remembered(memory, monkeypatch):
  url, opened = memory.put("corpus.jsonl", "before"), outside.Object.open

  def changed(path, mode="rb"):
    memory.put("corpus.jsonl", "after, longer")
    return opened(path, mode)

  with monkeypatch.context() as patched:
    patched.setattr(outside.Object, "open", changed)
    assert outside.sha256(url) and not kept("sha256")
  assert outside.sha256(url) and len(kept("sha256")) == 1


def test_nothing_lies_in_a_file(place):
  url = place.put("runs/theirs.trec", RUN)
  assert list(outside.at(url).glob("*")) == []
  assert list(outside.at(f"{place.url}/runs").glob("*")) == [outside.at(url)]


def test_the_package_that_is_missing_is_named(monkeypatch):
  for scheme, extra in (("gs", "gcs"), ("s3", "s3")):
    monkeypatch.setitem(sys.modules, f"{extra}fs", None)
    with pytest.raises(ModuleNotFoundError, match=rf"source launch/env\.sh {extra}"):
      outside.sha256(f"{scheme}://bucket/corpus.jsonl")
    assert "NOT USABLE" in str(dry_run._file(f"{scheme}://bucket/corpus.jsonl"))
  # The control: neither is asked for by what lies here.
  assert outside.at("gs/not/a/bucket") == pathlib.Path("gs/not/a/bucket")


@pytest.mark.parametrize("url, meant", [
  ("gcs://bucket/run", r"; did you mean gs://bucket/run\?"), ("s3:/bucket/run", r"; did you mean s3://bucket/run\?"),
  ("abfs://c/run", "$"), ("file:///tmp/x", "$"),
])
def test_a_scheme_that_nothing_speaks_is_no_folder(url, meant, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for at in (artifacts.Workdir, outside.at):
    with pytest.raises(ValueError, match=rf"^{url}: .* gs:// or s3://{meant}"):
      at(url)
  assert "NOT USABLE" in str(dry_run._file(url))
  with pytest.raises(ValueError, match=re.escape(url)):
    upsert.upsert(tmp_path, "more.jsonl", url)
  with pytest.raises(ValueError, match="a folder on this machine is needed"):
    upsert.upsert(tmp_path, "more.jsonl", "gs://bucket/grown")
  assert not list(tmp_path.iterdir())
  # The control: a colon alone makes no scheme.
  assert outside.at("runs/a:/b") == pathlib.Path("runs/a:/b") and artifacts.Workdir("3:4").root == pathlib.Path("3:4")
