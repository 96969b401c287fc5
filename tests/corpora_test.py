"""Sources of collections: the docstrings of the running Python, and folders in BEIR's layout."""

import dataclasses
import gzip
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from typing import get_args, get_type_hints

import numpy as np
import pytest

from idistill_jax import config, records
from idistill_jax.data import collection, corpora
from idistill_jax.data.corpora import beir, docstrings, files, irds, jsonl, rankings, stdlib, tfds
from idistill_jax.stages import labels

ROOT = pathlib.Path(__file__).parents[1]
STDLIB = config.Collection(source="stdlib")


def shared(folder: str) -> pathlib.Path:
  """A real collection; skips where the machine has none."""
  root = os.environ.get("IDISTILL_DATA")
  if root is None:
    pytest.skip("IDISTILL_DATA is not set: no real collections on this machine")
  return pathlib.Path(root) / folder


# The standard library


@pytest.fixture(scope="module")
def quickstart() -> collection.Collection:
  return stdlib.load(STDLIB)


@pytest.mark.skipif(
  platform.python_version() != "3.11.7", reason="the recorded corpus is that of CPython 3.11.7"
)
def test_extraction_equals_the_recorded_corpus(quickstart):
  recorded = list(jsonl.read(shared("quickstart") / "corpus_3.11.7.jsonl.gz"))
  assert [{"_id": p.id, "title": p.title, "text": p.text} for p in quickstart.passages] == [
    row.values for row in recorded
  ]


def test_packaged_files_are_the_recorded_ones():
  for path in stdlib.QUICKSTART.rglob("*.*"):
    assert path.read_bytes() == (shared("quickstart") / path.relative_to(stdlib.QUICKSTART)).read_bytes()


def test_extraction_does_not_see_what_this_process_has_done(quickstart, monkeypatch):
  def imposter():
    """A function that pretends to be of this module and says so in more than eight words."""

  monkeypatch.setattr(json, "imposter", imposter, raising=False)
  monkeypatch.setattr(json, "__all__", [*json.__all__, "imposter"])
  imposter.__module__ = "json"
  # Negative control: extraction in this process would find it.
  inside = docstrings.Extraction()
  inside._add_with_members("json.imposter", json.imposter)
  assert docstrings._belongs("json", json.imposter) and len(inside.passages) == 1
  passages, _ = stdlib.extract()
  assert tuple(passages) == quickstart.passages


def test_extraction_needs_no_docstrings_in_this_process(quickstart):
  program = (
    "from idistill_jax.data.corpora import stdlib; print(len(stdlib.extract()[0]), bool(stdlib.__doc__))"
  )
  done = subprocess.run(
    [sys.executable, "-OO", "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert done.stdout.split() == [str(len(quickstart.passages)), "False"]


def test_extraction_rules(quickstart):
  by_id = {p.id: p for p in quickstart.passages}
  assert all(docstrings.MIN_WORDS <= len(p.text.split()) <= docstrings.MAX_WORDS for p in quickstart.passages)
  assert len({p.text.lower() for p in quickstart.passages}) > 0.99 * len(by_id)
  assert by_id["heapq.merge"].text.startswith("Merge multiple sorted inputs into a single sorted output.")
  assert "pathlib.Path.mkdir" in by_id
  # Neither private modules, nor such as later Pythons removed, nor third-party packages.
  assert not [i for i in by_id if i.startswith("_")]
  assert not {i.split(".")[0] for i in by_id} & {"telnetlib", "imp", "cgi", "numpy", "pytest", "jax"}


def test_the_embedded_collection_is_whole(quickstart):
  splits = [q.split for q in quickstart.queries]
  assert (splits.count("train"), splits.count("dev"), splits.count("test")) == (1856, 155, 397)
  assert {split: len(qrels) for split, qrels in quickstart.qrels.items() if qrels} == {
    "dev": 155,
    "test": 397,
  }
  assert len(quickstart.pairs) == 1856
  train = {q.id for q in quickstart.queries if q.split == "train"}
  assert all(one.query_id in train and len(one.passage_ids) == 20 for one in quickstart.lists)
  # Lists fall away with a passage that another Python lacks, and say so.
  gone = [drop for drop in quickstart.drops if drop.reason.startswith("recorded list")]
  assert len(quickstart.lists) + len(gone) == 1000
  assert not gone or platform.python_version() != "3.11.7"


def test_what_names_a_passage_that_this_python_lacks_is_left_out(quickstart, monkeypatch):
  source = next(iter(quickstart.qrels["test"].values()))
  (lacking,) = source
  passages, missing = stdlib.extract()
  monkeypatch.setattr(stdlib, "extract", lambda: ([p for p in passages if p.id != lacking], missing))
  found = stdlib.load(STDLIB)
  named = [drop for drop in found.drops if lacking in drop.what]
  lists = [one for one in quickstart.lists if lacking in one.passage_ids]
  assert lists and len(found.lists) == len(quickstart.lists) - len(lists)
  assert sum(drop.reason == "recorded list naming a passage left out" for drop in named) == len(lists)
  lost = [drop.what for drop in found.drops if drop.reason == "query of test without a relevant passage left"]
  assert lost and len(found.qrels["test"]) == len(quickstart.qrels["test"]) - len(lost)
  assert {q.id for q in quickstart.queries} - {q.id for q in found.queries} == set(lost)


def test_a_module_that_cannot_be_imported_is_named(quickstart):
  if sys.platform == "win32":
    pytest.skip("winreg and its like import on Windows")
  names = [
    d.what for d in quickstart.drops if d.reason == "standard library module that cannot be imported here"
  ]
  assert "winsound" in names


def test_a_failing_extraction_shows_why(monkeypatch, tmp_path):
  broken = tmp_path / "docstrings.py"
  broken.write_text("raise SystemExit('no library here')")
  monkeypatch.setattr(docstrings, "__file__", str(broken))
  with pytest.raises(collection.CollectionError, match="ended with status 1:\nno library here"):
    stdlib.extract()


def test_stdlib_takes_no_path():
  with pytest.raises(config.ConfigError, match=r"collection.path is 'x', but .* 'stdlib' reads no folder"):
    stdlib.load(config.Collection(source="stdlib", path="x"))


# BEIR folders


def folder_with(root: pathlib.Path, **files: str) -> config.Collection:
  """A valid small folder, in which `files` replace contents (`corpus`, `queries`, `qrels_test`, ...)."""
  contents = {
    "corpus": '{"_id": "p1", "title": "One", "text": "first"}\n{"_id": "p2", "text": "second"}\n',
    "queries": '{"_id": "q1", "text": "which one", "metadata": {}}\n{"_id": "q2", "text": "another"}\n',
    "qrels_test": "query-id\tcorpus-id\tscore\nq1\tp1\t1\n",
  } | files
  (root / "qrels").mkdir(parents=True)
  for name, content in contents.items():
    kind, _, split = name.partition("_")
    path = root / "qrels" / f"{split}.tsv" if kind == "qrels" else root / f"{name}.jsonl"
    path.write_text(content)
  return config.Collection(source="beir", path=str(root))


def test_a_folder_is_read(tmp_path):
  found = beir.load(folder_with(tmp_path / "small"))
  assert found.title == "small"
  assert [(p.id, p.full_text) for p in found.passages] == [("p1", "One. first"), ("p2", "second")]
  assert [(q.id, q.split) for q in found.queries] == [("q1", "test"), ("q2", "train")]
  assert found.qrels["test"] == {"q1": {"p1": 1}}
  assert found.drops == ()


def test_gzipped_files_give_the_same(tmp_path):
  plain = folder_with(tmp_path / "a" / "x")
  zipped = folder_with(tmp_path / "b" / "x")
  for path in [*pathlib.Path(zipped.path).rglob("*.*")]:
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
  one, other = beir.load(zipped), beir.load(plain)
  assert list(one.passages) == list(other.passages)
  assert dataclasses.replace(one, passages=()) == dataclasses.replace(other, passages=())


def test_what_is_judged_in_two_splits_is_held_out_and_measured_by_its_own_file(tmp_path):
  header = "query-id\tcorpus-id\tscore\n"
  found = beir.load(folder_with(
    tmp_path / "x", qrels_test=f"{header}q1\tp2\t1\n", qrels_train=f"{header}q1\tp1\t1\nq2\tp2\t1\n"
  ))  # fmt: skip
  assert found.qrels == {"test": {"q1": {"p2": 1}}, "train": {"q2": {"p2": 1}}}
  assert [(drop.reason, drop.what) for drop in found.drops] == [("judgement in train of a query of test", "q1 p1")]


def test_a_query_that_says_train_trains_and_its_held_out_judgements_are_named(tmp_path):
  found = beir.load(folder_with(
    tmp_path / "x", qrels_test="query-id\tcorpus-id\tscore\nq1\tp1\t1\nq2\tp2\t1\n",
    queries='{"_id": "q1", "text": "which"}\n{"_id": "q2", "text": "another", "metadata": {"split": "train"}}\n',
  ))  # fmt: skip
  assert {query.id: query.split for query in found.queries} == {"q1": "test", "q2": "train"}
  assert found.qrels == {"test": {"q1": {"p1": 1}}, "train": {}}
  assert [(drop.reason, drop.what) for drop in found.drops] == [("judgement in test of a query of train", "q2 p2")]


@pytest.mark.parametrize("name", ["dev.qrels", "dev.TSV", "dev.tsv.bz2", "dev"])
def test_what_else_lies_among_judgements_is_refused_unless_hidden(tmp_path, name):
  """A query that it would hold out would train."""
  cfg = folder_with(tmp_path / "x", qrels_test="query-id\tcorpus-id\tscore\nq1\tp1\t1\n")
  for hidden in (".DS_Store", "._test.tsv"):
    (tmp_path / "x" / "qrels" / hidden).write_bytes(b"\0")
  assert [query.split for query in beir.load(cfg).queries] == ["test", "train"]
  (tmp_path / "x" / "qrels" / name).write_text("q2\tp2\t1\n")
  with pytest.raises(collection.CollectionError, match=rf"qrels/{name}: judgements end in .tsv or .txt, .*; rename it"):
    beir.load(cfg)


def test_judgements_of_one_folder_may_have_several_forms(tmp_path):
  cfg = folder_with(tmp_path / "x")
  (tmp_path / "x" / "qrels" / "dev.txt.gz").write_bytes(gzip.compress(b"q2 0 p2 1\n"))
  found, before = beir.load(cfg), beir.fingerprint(cfg)
  assert [query.split for query in found.queries] == ["test", "dev"] and found.qrels["dev"] == {"q2": {"p2": 1}}
  (tmp_path / "x" / "qrels" / "dev.txt.gz").write_bytes(gzip.compress(b"q2 0 p1 1\n"))
  assert beir.fingerprint(cfg) != before


def test_a_stated_split_goes_before_judgements(tmp_path):
  queries = '{"_id": "q1", "text": "t", "metadata": {"split": "dev"}}\n'
  found = beir.load(folder_with(tmp_path / "x", queries=queries))
  assert found.queries[0].split == "dev"
  assert found.qrels["dev"] == {"q1": {"p1": 1}}


@pytest.mark.parametrize(
  ("files", "message"),
  [
    (
      {"corpus": '{"_id": "p1", "text": "x"}\n{"_id": "p2", "te\n'},
      r"corpus.jsonl:2: not JSON .*found '{\"_id\"",
    ),
    ({"corpus": '{"_id": "p1", "text": "x"}\n["p2"]\n'}, r"corpus.jsonl:2: expected a JSON object"),
    ({"corpus": "[" * 100_000}, r"corpus.jsonl:1: not JSON"),
    ({"corpus": '{"_id": ' + 5000 * "1" + "}"}, r"corpus.jsonl:1: not JSON"),
    ({"corpus": '{"id": "p1", "text": "x"}\n'}, r"corpus.jsonl:1: no '_id'; the line has 'id', 'text'"),
    ({"corpus": '{"_id": 1.5, "text": "x"}\n'}, r"corpus.jsonl:1: _id must be text, found 1.5"),
    ({"corpus": '{"_id": null, "text": "x"}\n'}, r"corpus.jsonl:1: '_id' must be a string, found None"),
    ({"corpus": '{"_id": 1, "text": "x"}\n{"_id": "1", "text": "y"}\n'}, r"corpus.jsonl:2: the id '1' stands in"),
    ({"corpus": '{"_id": "a b", "text": "x"}\n'}, r"corpus.jsonl:1: the id 'a b' .* white space"),
    ({"corpus": '{"_id": "", "text": "x"}\n'}, r"corpus.jsonl:1: the id '' is empty"),
    ({"corpus": '{"_id": "p1"}\n{"_id": "p2"}\n'}, r"corpus.jsonl:1: no text: none of text among '_id'"),
    ({"corpus": '{"_id": "p1", "text": ["x"]}\n'}, r"corpus.jsonl:1: text must be text, found \['x'\]"),
    ({"corpus": '{"_id": "p", "text": "x"}\n' * 8}, r"already; and 2 others: 7 repeat an id in all"),
    ({"corpus": ""}, r"x: the collection has no passages; left out: "),
    ({"queries": ""}, r"x: the collection has no queries; left out: "),
    (
      {"corpus": '{"_id": "p1", "text": "x"}\n\n{"_id": "p1", "text": "y"}\n'},
      r"corpus.jsonl:3: the id 'p1' stands in .*corpus.jsonl:1 already",
    ),
    ({"queries": '{"_id": "q1", "text": "x"}\n' * 2}, r"queries.jsonl:2: the id 'q1' stands in"),
    (
      {"queries": '{"_id": "q1", "text": "x", "metadata": {"split": "../test"}}\n'},
      r"queries.jsonl:1: metadata.split '../test' cannot name a file",
    ),
  ],
)
def test_bad_input_names_file_and_line(tmp_path, files, message):
  with pytest.raises(collection.CollectionError, match=message):
    beir.load(folder_with(tmp_path / "x", **files))


def test_bytes_that_are_not_utf8_name_file_and_line(tmp_path):
  cfg = folder_with(tmp_path / "x")
  (tmp_path / "x" / "corpus.jsonl").write_bytes(b'{"_id": "p1", "text": "\xff"}\n')
  with pytest.raises(collection.CollectionError, match=r"corpus.jsonl:1: not JSON"):
    beir.load(cfg)


@pytest.mark.parametrize("keep", [15, -9])
def test_a_damaged_gzip_file_names_file_and_line(tmp_path, keep):
  cfg = folder_with(tmp_path / "x")
  path = tmp_path / "x" / "corpus.jsonl"
  path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(path.read_bytes())[:keep])
  path.unlink()
  with pytest.raises(
    collection.CollectionError, match=r"corpus.jsonl.gz:\d: cannot be read further: .*; fetch the gzip file again"
  ):
    beir.load(cfg)


def test_what_is_empty_or_points_nowhere_is_counted(tmp_path):
  found = beir.load(
    folder_with(
      tmp_path / "x",
      corpus='{"_id": "p1", "text": "x"}\n{"_id": "p2", "title": "", "text": " "}\n{"_id": "p3"}\n'
      '{"_id": "p4", "text": null}\n',
      qrels_test="query-id\tcorpus-id\tscore\nq1\tp1\t1\nq1\tp9\t1\nq9\tp1\t1\n",
    )
  )
  assert [(drop.reason, drop.what) for drop in found.drops] == [
    ("passage without text", "p2"),
    ("passage without text", "p3"),
    ("passage without text", "p4"),
    ("judgement in test of an unknown passage", "q1 p9"),
    ("judgement in test of an unknown query", "q9 p1"),
  ]


def test_numbers_are_ids_as_well(tmp_path):
  found = beir.load(folder_with(
    tmp_path / "x", corpus='{"_id": 1, "text": "x"}\n', qrels_test="7\t1\t1\n",
    queries='{"_id": 7, "text": "which", "metadata": {"answers": ["x"]}}\n',
  ))  # fmt: skip
  assert [p.id for p in found.passages] == ["1"] and found.qrels == {"test": {"7": {"1": 1}}}
  assert found.answers == {"7": ("x",)}


def test_half_a_character_is_replaced_and_counted(tmp_path):
  """Tweets that were cut within an emoji end so; a whole pair of surrogates is one character."""
  corpus = ('{"_id": "p1", "text": "bad \\ud83d emoji"}', '{"_id": "p2", "title": "\\uDE00", "text": "x"}',
            '{"_id": "p3", "text": "good \\ud83d\\ude00"}')  # fmt: skip
  query = '{"_id": "q1", "text": "\\ud83d?", "metadata": {"answers": ["a\\ud83d"]}}\n'
  found = beir.load(folder_with(tmp_path / "x", corpus="\n".join(corpus), queries=query))
  assert [p.full_text for p in found.passages] == ["bad \ufffd emoji", "\ufffd. x", "good \U0001f600"]
  assert found.queries[0].text == "\ufffd?" and found.answers == {"q1": ("a\ufffd",)}
  assert [(drop.reason.partition(",")[0], drop.what) for drop in found.drops] == [
    ("passage with half a character", "p1"), ("passage with half a character", "p2"),
    ("query with half a character", "q1"), ("answer with half a character", "q1"),
  ]  # fmt: skip
  cfg = folder_with(tmp_path / "y", corpus='{"_id": "p\\ud83d", "text": "x"}\n')
  with pytest.raises(collection.CollectionError, match=r"corpus.jsonl:1: the id 'p.ud83d' .*half a character"):
    beir.load(cfg)


def test_missing_and_ambiguous_files_are_named(tmp_path):
  with pytest.raises(config.ConfigError, match=r"collection.path must name a folder"):
    beir.load(config.Collection(source="beir"))
  with pytest.raises(FileNotFoundError, match=r"nowhere: neither corpus.jsonl nor corpus.jsonl.gz is there"):
    beir.load(config.Collection(source="beir", path=str(tmp_path / "nowhere")))
  cfg = folder_with(tmp_path / "x")
  (tmp_path / "x" / "queries.jsonl.gz").write_bytes(b"")
  with pytest.raises(collection.CollectionError, match=r"both queries.jsonl and queries.jsonl.gz are there"):
    beir.load(cfg)


ONE = '{"_id": "p1", "text": "x"}'


@pytest.mark.parametrize("corpus, words, not_said", [
  ('{"_id": 1.0, "text": "x"}', r":1: _id .*must be text, found 1\.0; written by pandas\? .*dtype=str$", "array"),
  ('{"_id": 1.5, "text": "x"}', r":1: _id .*must be text, found 1\.5$", "pandas"),
  ('{"_id": "p1", "text": 1.0}', r":1: text .*must be text, found 1\.0$", "pandas"),
  (f"[{ONE}, {ONE}]", r":1: .*one object a line is needed, found an array$", "pandas"),
  (f"\ufeff[\n{ONE},\n{ONE}]\n", r":1: not JSON .*one object a line is needed, found an array$", "pandas"),
  ('{"_id": "p1",\n', ":1: not JSON", "array"),
  (f"\ufeff{ONE}\n".encode("utf-16-le"), r"corpus\.jsonl: is UTF-16; convert it to UTF-8$", ":1:"),
  (f"\ufeff{ONE}\n".encode("utf-16-be"), r"corpus\.jsonl: is UTF-16; convert it to UTF-8$", ":1:"),
])  # fmt: skip
def test_what_other_tools_write_is_told_with_what_to_do(tmp_path, corpus, words, not_said):
  cfg = folder_with(tmp_path / "x")
  (tmp_path / "x" / "corpus.jsonl").write_bytes(corpus if isinstance(corpus, bytes) else corpus.encode())
  for cfg.source in ("beir", "jsonl"):
    with pytest.raises(collection.CollectionError, match=words) as e:
      corpora.SOURCES[cfg.source].load(cfg)
    assert not_said not in str(e.value)


@pytest.mark.parametrize(
  ("name", "passages", "splits"),
  [
    ("scifact", 5183, {"train": 809, "test": 300}),
    ("wiki-qa", 11_600, {"train": 1561, "dev": 289, "test": 805, "multihop": 200}),
    ("trec-dl", 14_091, {"dl20": 54}),
  ],
)
def test_real_folders_load(name, passages, splits):
  found = beir.load(config.Collection(source="beir", path=str(shared(name))))
  assert len(list(found.passages)) == passages
  assert {split: len(qrels) for split, qrels in found.qrels.items()} == splits
  assert len(found.queries) == sum(splits.values())


# Both


@pytest.mark.parametrize("changed", ["corpus", "queries", "qrels_test"])
def test_the_fingerprint_sees_every_file_and_nothing_else(tmp_path, changed):
  first = folder_with(tmp_path / "a")
  same = folder_with(tmp_path / "b")
  (tmp_path / "b" / "notes.txt").write_text("not read")
  assert beir.fingerprint(first) == beir.fingerprint(same)
  extra = {"corpus": "\n", "queries": "\n", "qrels_test": "q2\tp1\t1\n"}[changed]
  path = tmp_path / "b" / ("qrels/test.tsv" if changed == "qrels_test" else f"{changed}.jsonl")
  with open(path, "a") as file:
    file.write(extra)
  assert beir.fingerprint(first) != beir.fingerprint(same)


def test_the_embedded_fingerprint_sees_the_python_that_runs(monkeypatch):
  before = stdlib.fingerprint(STDLIB)
  assert before == stdlib.fingerprint(STDLIB)
  monkeypatch.setattr(sys, "version", "9.9")
  assert before != stdlib.fingerprint(STDLIB)


def test_every_source_in_the_config_has_its_functions():
  assert set(get_args(get_type_hints(config.Collection)["source"])) == corpora.SOURCES.keys()


# What every source keeps


@dataclasses.dataclass(frozen=True)
class Case:
  """A small collection of a source.

  read: the folder that holds the files that are read of it, and nothing else; None where it is no matter of files.
  others: configs that have other fingerprints.  refused: one that has a path, where there must be none.
  """

  cfg: config.Collection
  read: pathlib.Path | None
  others: tuple[config.Collection, ...] = ()
  refused: config.Collection | None = None


def case_of_stdlib(root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Case:
  """What it reads of the interpreter is another test's."""
  packaged = pathlib.Path(shutil.copytree(stdlib.QUICKSTART, root / "quickstart"))
  monkeypatch.setattr(stdlib, "QUICKSTART", packaged)
  return Case(STDLIB, packaged, refused=dataclasses.replace(STDLIB, path=str(packaged)))


def case_of_ir_datasets(root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Case:
  """What lies behind its ids are the package's files."""
  register(root, monkeypatch, train="t1", dev="q1")
  ids = lambda path: config.Collection(source="ir_datasets", path=path)
  return Case(ids("mine/train"), None, (ids("mine/dev"), ids("mine/train,mine/dev")))


def case_of_tfds(root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Case:
  """Without the package: who asks what is another test's."""
  cfg = files_config(root, "tfds", psgs_tsv="id\ttext\ttitle\n1\tParis is in France.\tParis\n")
  cfg = dataclasses.replace(cfg, path=str(root / "psgs.tsv"), questions="one")
  rows = {"train": [{"question": "Where is Paris?", "answer": ["France"]}]}
  builder = lambda name: types.SimpleNamespace(
    version="1.0.0", info=types.SimpleNamespace(features=("question", "answer"), splits=rows),
    download_and_prepare=lambda: None, as_dataset=lambda split, decoders: rows[split])
  monkeypatch.setattr(tfds, "_package", lambda: types.SimpleNamespace(
    builder=builder, as_numpy=lambda rows: rows, decode=types.SimpleNamespace(PartialDecoding=lambda names: None)))
  return Case(cfg, root, (dataclasses.replace(cfg, questions="two"),))


def case_of_files(source: str, **files: str) -> Callable[..., Case]:
  return lambda root, monkeypatch: Case(files_config(root, source, **files), root)


def case_of_corpus(root: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Case:
  cfg = files_config(root, "corpus", passages_jsonl='{"_id": "p1", "title": "One", "text": "first"}\n')
  return Case(dataclasses.replace(cfg, path=str(root / "passages.jsonl")), root)


# Source -> (an empty folder, monkeypatch) -> its case.
CASES: dict[str, Callable[..., Case]] = {
  "stdlib": case_of_stdlib,
  "beir": lambda root, monkeypatch: Case(folder_with(root, qrels_dev="query-id\tcorpus-id\tscore\nq2\tp1\t1\n"), root),
  "corpus": case_of_corpus,
  "jsonl": case_of_files("jsonl", corpus_jsonl='{"docid": "p1", "contents": "first"}\n',
                         queries_jsonl='{"qid": "q1", "question": "which"}\n', qrels__test_txt="q1 0 p1 2\n"),
  "tsv": case_of_files("tsv", corpus_tsv="p1\tfirst\n", queries_tsv="q1\twhich\n", qrels__test_txt="q1 0 p1 2\n"),
  "ir_datasets": case_of_ir_datasets,
  "tfds": case_of_tfds,
}


@pytest.fixture(params=corpora.SOURCES)
def case(request, tmp_path, monkeypatch) -> Case:
  if request.param not in CASES:
    pytest.fail(f"{request.param!r} has no case: add one to CASES of {pathlib.Path(__file__).name}")
  (tmp_path / "read").mkdir()
  return CASES[request.param](tmp_path / "read", monkeypatch)


def test_a_fingerprint_follows_the_content_of_every_file(case):
  fingerprint = corpora.SOURCES[case.cfg.source].fingerprint
  before = fingerprint(case.cfg)
  assert fingerprint(case.cfg) == before
  files = [] if case.read is None else sorted(path for path in case.read.rglob("*") if path.is_file())
  assert files or case.others
  for path in files:
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert fingerprint(case.cfg) != before, f"{path.name} was changed"
    path.write_bytes(content)
  assert fingerprint(case.cfg) == before
  for other in case.others:
    assert fingerprint(other) != before, other


def test_what_is_loaded_twice_is_equal(case):
  one, other = (corpora.SOURCES[case.cfg.source].load(case.cfg) for _ in range(2))
  passages = list(one.passages)
  assert passages and passages == list(one.passages) == list(other.passages)
  assert dataclasses.replace(one, passages=()) == dataclasses.replace(other, passages=())


def test_a_path_that_is_not_as_it_must_be_is_a_matter_of_the_config(case):
  source, lacking = corpora.SOURCES[case.cfg.source], dataclasses.replace(case.cfg, path=None)
  asked = [(source.load, case.refused)] if case.refused else [(source.load, lacking), (source.fingerprint, lacking)]
  for function, cfg in asked:
    with pytest.raises(config.ConfigError, match=r"collection\.path"):
      function(cfg)


# Folders of JSONL and TSV files


def files_config(root: pathlib.Path, source: str, **files: str) -> config.Collection:
  for name, text in files.items():
    path = root / name.replace("__", "/").replace("_", ".")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  return config.Collection(source=source, path=str(root))


def test_jsonl_under_other_names_with_trec_judgements(tmp_path):
  cfg = files_config(
    tmp_path,
    "jsonl",
    corpus_jsonl='{"docid": "p1", "contents": "first"}\n{"docid": 2, "contents": "second", "title": "Two"}\n',
    queries_jsonl='{"qid": "q1", "question": "which", "answers": ["first", "first", "1st"]}\n'
    '{"qid": "q2", "question": "train on me"}\n',
    qrels__test_txt="q1 0 p1 2\nq1 Q0 2 0\n",
  )
  found = corpora.SOURCES["jsonl"].load(cfg)
  assert [(p.id, p.title, p.text) for p in found.passages] == [("p1", "", "first"), ("2", "Two", "second")]
  assert [(q.id, q.split) for q in found.queries] == [("q1", "test"), ("q2", "train")]
  assert found.qrels["test"] == {"q1": {"p1": 2, "2": 0}} and found.answers == {"q1": ("first", "1st")}
  before = corpora.SOURCES["jsonl"].fingerprint(cfg)
  (tmp_path / "qrels" / "test.txt").write_text("q1 0 p1 1\n")
  assert corpora.SOURCES["jsonl"].fingerprint(cfg) != before


def test_tsv_with_dprs_header_and_without_one(tmp_path):
  cfg = files_config(
    tmp_path,
    "tsv",
    corpus_tsv='id\ttext\ttitle\n1\t"He said ""no"" twice."\tA play\n2\tA lone " stays.\tMarks\n',
    queries_tsv="q1\twho said no\n",
    qrels__test_tsv="query-id\tcorpus-id\tscore\nq1\t1\t1\n",
  )
  found = corpora.SOURCES["tsv"].load(cfg)
  assert [(p.id, p.title, p.text) for p in found.passages] == [
    ("1", "A play", 'He said "no" twice.'), ("2", "Marks", 'A lone " stays.')
  ]  # fmt: skip
  assert [(q.id, q.text) for q in found.queries] == [("q1", "who said no")]


@pytest.mark.parametrize("header", ["ID\tTitle\tText", " Id\tTITLE \ttext", '"id"\t"title"\t"text"'])
def test_a_header_is_one_however_it_is_written(tmp_path, header):
  (tmp_path / "p.tsv").write_text(f"{header}\n1\tParis\tThe capital of France\n")
  assert [(p.id, p.title, p.text) for p in files.read_passages(tmp_path / "p.tsv")] == [
    ("1", "Paris", "The capital of France")]


@pytest.mark.parametrize(
  ("source", "text"),
  [
    ("tsv", "q1\tquestion\nq2\tthe second\n"),
    ("tsv", "\ufeffqid\tquery\r\nq1\tquestion\r\nq2\tthe second\r\n\r\n"),
    ("jsonl", '\ufeff{"qid": "q1", "query": "question", "passage": "x"}\n{"qid": "q2", "query": "the second"}\n'),
  ],
)
def test_queries_keep_their_first_row_and_their_own_column(tmp_path, source, text):
  """A word that may name a column is no header; files may begin with a byte order mark and end with a blank line."""
  passages = {"tsv": "\ufeffid\ttext\n1\ta\n\n", "jsonl": '{"docid": "1", "text": "a"}\n'}
  qrels = "\ufeffquery-id\tcorpus-id\tscore\nq1\t1\t1\n\n"
  cfg = files_config(tmp_path, source, qrels__test_tsv=qrels, qrels__dev_txt="\ufeffq2 0 1 1\n\n",
                     **{f"corpus_{source}": passages[source], f"queries_{source}": text})
  found = corpora.SOURCES[source].load(cfg)
  assert [p.id for p in found.passages] == ["1"] and not found.drops
  assert [(q.id, q.text, q.split) for q in found.queries] == [("q1", "question", "test"), ("q2", "the second", "dev")]


def test_a_long_field_and_a_lone_carriage_return_are_read(tmp_path):
  (tmp_path / "p.tsv").write_bytes(b"1\t" + b"a" * 200_000 + b"\n2\tb\rc\n")
  assert [len(p.text) for p in files.read_passages(tmp_path / "p.tsv")] == [200_000, 3]


def test_a_blank_split_is_none_and_one_split_has_one_file(tmp_path):
  qrels = "query-id\tcorpus-id\tscore\nq1\t1\t1\n"
  corpus, questions = '1\t"A" and "B"\n', "id\ttext\tsplit\nq1\ta\t\nq2\tb\tdev\n"
  cfg = files_config(tmp_path / "a", "tsv", corpus_tsv=corpus, queries_tsv=questions, qrels__test_tsv=qrels)
  found = corpora.SOURCES["tsv"].load(cfg)
  assert [(query.id, query.split) for query in found.queries] == [("q1", "test"), ("q2", "dev")]
  assert [passage.text for passage in found.passages] == ['"A" and "B"']
  cfg = files_config(tmp_path / "b", "tsv", corpus_tsv=corpus, queries_tsv=questions, qrels__test_tsv=qrels,
                     qrels__test_txt="q1 0 1 1\n")
  with pytest.raises(collection.CollectionError, match=r"test.tsv and test.txt both hold judgements of test: remove"):
    corpora.SOURCES["tsv"].load(cfg)


@pytest.mark.parametrize(
  ("name", "text", "error"),
  [
    ("corpus_tsv", "text\ttitle\nx\ta\n", r"corpus.tsv:2: no id: none of _id, id, .* among 'text', 'title'"),
    ("corpus_tsv", "id\ttext\n1\ta\tb\n", r"corpus.tsv:2: expected 2 fields \(id, text\), found 3"),
    ("corpus_tsv", "id\ttext\n1\ta\n1\tb\n", r"corpus.tsv:3: the id '1' stands in .*corpus.tsv:2 already"),
    ("corpus_tsv", "id\ttitle\n1\ta\n", r"corpus.tsv:2: no text: none of text, contents"),
    ("qrels__test_tsv", "q1 0 1\n", "test.tsv:1: expected a header"),
  ],
)
def test_bad_tsv_names_file_and_line(tmp_path, name, text, error):
  good = {"corpus_tsv": "1\ta\n", "queries_tsv": "q1\tb\n"}
  cfg = files_config(tmp_path, "tsv", **{**good, name: text})
  with pytest.raises(ValueError, match=error):
    corpora.SOURCES["tsv"].load(cfg)


@pytest.mark.parametrize(
  ("value", "answers"),
  [
    (["a", "a", " ", "b"], ("a", "b")),
    ("['14 December 1972', \"it's\"]", ("14 December 1972", "it's")),
    ('["x"]', ("x",)),
    ("Paris", ("Paris",)),
    ("[sic", ("[sic",)),
    ("['Paris' 'City of Light'\n \"it's\"]", ("Paris", "City of Light", "it's")),
    ("['Paris, France' 'Paris']", ("Paris, France", "Paris")),
    ("[sic] so it 'said' [...]", ("[sic] so it 'said' [...]",)),
    ({"value": "Rome", "aliases": ["Roma", "Rome"], "normalized_aliases": ["roma"]}, ("Rome", "Roma")),
    ({"value": "Rome", "aliases": None}, ("Rome",)),
    (None, ()),
  ],
)
def test_answers_in_every_form(value, answers):
  assert files.accepted("f:1", value) == answers
  with pytest.raises(collection.CollectionError, match="f:1: the answers must be a list"):
    files.accepted("f:1", [1])


@pytest.mark.parametrize("value", [
  "['a', 'b' 'c']", "['a' 'b' ... 'y' 'z']", "[np.str_('a'), np.str_('b')]", {"value": "x", "aliases": "abc"},
])
def test_answers_that_could_be_read_in_two_ways_are_refused(value):
  with pytest.raises(collection.CollectionError) as caught:
    files.accepted("f:1", value)
  assert str(caught.value) == f"f:1: the answers must be a list of strings, found {value!r}"


@pytest.mark.parametrize("source, text", [
  ("jsonl", '{"id": "q1", "text": "b", "split": "%s"}\n'), ("tsv", "id\ttext\tsplit\nq1\tb\t%s\n"),
])
def test_a_split_is_no_path(tmp_path, source, text):
  passages = {"tsv": "1\ta\n", "jsonl": '{"id": "1", "text": "a"}\n'}[source]

  def load(split: str) -> collection.Collection:
    made = {f"corpus_{source}": passages, f"queries_{source}": text % split}
    return corpora.SOURCES[source].load(files_config(tmp_path / split.rpartition("/")[2], source, **made))

  assert [query.split for query in load("dl-20.a").queries] == ["dl-20.a"]
  with pytest.raises(collection.CollectionError, match=r"queries.\w+:\d: split '../../evil' cannot name a file"):
    load("../../evil")


def test_real_questions_bring_their_answers():
  found = beir.load(config.Collection(path=str(shared("wiki-qa"))))
  assert len(found.answers) == 2855 and found.answers["nqq0002"] == ("till September",)
  assert not beir.load(config.Collection(path=str(shared("scifact")))).answers


# LLM rankings made elsewhere


def test_recorded_rankings_become_labels():
  path = shared("trec-dl")
  cfg = config.Collection(path=str(path), rankings=str(path / "llm_rankings.jsonl.gz"), rankings_model="gpt-3.5-turbo")
  found = rankings.add(beir.load(cfg), cfg)
  assert len(found.rankings) > 50
  assert {len(one.passage_ids) for one in found.rankings} <= set(range(20, 101))
  known = {passage.id for passage in found.passages}
  assert all(set(one.passage_ids) <= known for one in found.rankings)
  # Another model's are its own: of each query the first line that names both.
  other = config.Collection(path=cfg.path, rankings=cfg.rankings, rankings_model="output_v2_aug_vicuna_7b")
  lines = list(map(json.loads, gzip.decompress((path / "llm_rankings.jsonl.gz").read_bytes()).splitlines()))
  first = {line["qid"]: tuple(line["ranking"]) for line in reversed(lines) if line["model"] == other.rankings_model}
  ordered = {one.query_id: one.passage_ids for one in rankings.add(beir.load(cfg), other).rankings}
  assert ordered == first and len(first) == 54
  assert not any(ordered[one.query_id] == one.passage_ids for one in found.rankings)
  nobody = config.Collection(path=cfg.path, rankings=cfg.rankings, rankings_model="nobody")
  with pytest.raises(collection.CollectionError, match="no ranking of a query and passages of trec-dl by 'nobody'"):
    rankings.add(beir.load(cfg), nobody)


@pytest.mark.parametrize(("name", "lists"), [("scifact", 809), ("wiki-qa", 1000)])
def test_a_recording_orders_lists_of_training_queries(name, lists):
  answers = ROOT / "configs" / f"{name.replace('-', '_')}_answers.jsonl"
  cfg = config.Collection(path=str(shared(name)), rankings=str(answers), rankings_model="claude")
  made = rankings.add(beir.load(cfg), cfg)
  ordered = {one.query_id: one.passage_ids for one in made.rankings}
  assert len(ordered) == lists and {one.status for one in made.rankings} == {"complete"}
  bias = labels.position_bias((one.permutation, one.filled_places) for one in made.rankings)
  assert bias is not None and 0.015 < bias < 0.03
  assert {one.split for one in made.queries if one.id in ordered} == {"train"}
  assert {len(set(ids)) for ids in ordered.values()} == {20}
  shown = {row["qid"]: row["candidates"] for row in map(json.loads, answers.read_text().splitlines())}

  def first(lists):
    """How often the first passage is judged relevant, of lists that have one such."""
    right = {one: {passage for passage, grade in made.qrels["train"][one].items() if grade} for one in lists}
    found = [ids[0] in right[one] for one, ids in lists.items() if right[one] & set(ids)]
    return sum(found) / len(found)

  # The judgements are not what was asked for: they say that whoever answered has read.
  assert first(ordered) > 0.8 and first(shown) < 0.15


@pytest.mark.parametrize("text", [
  '{"qid": "q1", "ranking": ["p1", "p\\ud83d"]}', '{"qid": "q\\ud83d", "ranking": ["p1"]}'])
def test_half_a_character_of_an_id_in_a_ranking_is_named_with_its_line(tmp_path, text):
  cfg = folder_with(tmp_path / "caf\udce9")
  (tmp_path / "rank.jsonl").write_text(text)
  cfg.rankings = str(tmp_path / "rank.jsonl")
  found = beir.load(cfg)
  assert found.title == "caf\ufffd", "a name that is no UTF-8 can be written"
  with pytest.raises(collection.CollectionError, match=r"rank.jsonl:1: the id '.*ud83d' ends within half a character"):
    rankings.add(found, cfg)


@pytest.mark.parametrize(
  ("name", "text"),
  [
    ("rank.jsonl", json.dumps({"query": {"qid": 1, "text": "which one"}, "candidates": [
      {"docid": 12, "score": 1.0, "doc": {"contents": "x"}}, {"docid": "p1", "score": 9.0, "doc": {}}]})),
    ("rank.jsonl", '{"qid": 1, "ranking": [12, "p1"]}'),
    ("rank.json.gz", json.dumps([{"query": {"qid": 1, "text": "which one"}, "candidates": [
      {"docid": 12, "score": 1.0, "doc": {}}, {"docid": "p1", "score": 9.0, "doc": {}}]}], indent=2)),
    ("rank.trec", "1 Q0 p1 1 0.5 gpt\n1 Q0 12 2 0.7 gpt"),
    ("rank.txt", "1 Q0 12 1 2 gpt\n1 Q0 p1 2 1 gpt"),
    ("rank.trec", "1 Q0 12 1 17.25 rank_llm\n1 Q0 p1 2 17.25 rank_llm"),  # a first stage's scores, equal by chance
    ("rank.trec", "1 Q0 p1 2 17.25 rank_llm\n1 Q0 12 1 17.25 rank_llm"),  # the same, and lines in no order
    ("rank.trec.gz", "1 Q0 12 1 2 gpt\n1 Q0 p1 2 1 gpt"),
  ],
)  # fmt: skip
def test_rankings_of_rankllm_and_trec_become_labels(tmp_path, name, text):
  """RankLLM's order is that of its list, TREC's that of its scores; ids may be numbers."""
  content = f"{text}\n".encode()
  (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
  cfg = folder_with(
    tmp_path / "beir", corpus='{"_id": "p1", "text": "a"}\n{"_id": "12", "text": "b"}\n',
    queries='{"_id": "1", "text": "which one"}\n',
  )  # fmt: skip
  cfg.rankings = str(tmp_path / name)
  found = rankings.add(beir.load(cfg), cfg)
  assert [(one.query_id, one.passage_ids, one.status) for one in found.rankings] == [("1", ("12", "p1"), "complete")]
  cfg.rankings_model = "gpt"
  with pytest.raises(ValueError, match=r"unset collection.rankings_model|no ranking .* by 'gpt'"):
    rankings.add(beir.load(cfg), cfg)


@pytest.mark.parametrize(
  "line", [{"qid": None, "ranking": ["a"]}, {"qid": "1", "ranking": "a b"}, {"qid": "1", "candidates": [{"doc": "a"}]}])
def test_a_ranking_without_ids_names_its_line(tmp_path, line):
  (tmp_path / "rank.jsonl").write_text(json.dumps(line))
  with pytest.raises(collection.CollectionError, match=r"rank.jsonl:1: .*(list of passage ids|text or a number)"):
    list(rankings.read(config.Collection(rankings=str(tmp_path / "rank.jsonl")), [], []))


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ('["[2] > [1]"]', r"rank.json: entry 1: .*RankGPT.*: collection.rankings_shown"),
    ('[{"qid": 1, "ranking": ["a", "b"]}, {"qid": 1}]', r"rank.json: entry 2: "),
    ('{"qid": 1}', "rank.json: expected a JSON array"),
    ("[", "rank.json: not JSON"),
  ],
)
def test_an_array_of_another_kind_is_named(tmp_path, text, said):
  (tmp_path / "rank.json").write_text(text)
  with pytest.raises(collection.CollectionError, match=said):
    list(rankings.read(config.Collection(rankings=str(tmp_path / "rank.json")), [], []))


def test_unusable_rankings_are_named(tmp_path):
  path = tmp_path / "rankings.jsonl"
  lines = [
    {"query_id": "q1", "ranking": ["p2", "p1"]},
    {"query_id": "q1", "ranking": ["p1", "p2"]},
    {"query_id": "q2", "ranking": ["p1", "p1"]},
    {"query_id": "q2", "ranking": ["p1", "gone"]},
    {"query_id": "q3", "ranking": ["p1", "gone", "p2"]},
    {"query_id": "stranger", "ranking": ["p1", "p2"]},
    {"query_id": "q2", "candidates": ["p1", "p2"], "response": "I cannot rank these."},
  ]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  queries = "".join(f'{{"_id": "q{number}", "text": "some words"}}\n' for number in (1, 2, 3))
  cfg = folder_with(tmp_path / "beir", queries=queries)
  cfg.rankings = str(path)
  found = rankings.add(beir.load(cfg), cfg)
  # What an LLM said of the passages that are there stands without the one that is not.
  assert {one.query_id: one.passage_ids for one in found.rankings} == {"q1": ("p2", "p1"), "q3": ("p1", "p2")}
  assert [(drop.reason, drop.what) for drop in found.drops if "LLM" in drop.reason] == [
    ("second LLM ranking of a query", "q1"),
    ("LLM ranking that names a passage twice or fewer than two", f"{path}:3"),
    ("refused LLM answer", f"{path}:7"),
    ("passage of an LLM ranking that the collection lacks", "q2 gone"),
    ("LLM ranking of fewer than two passages of the collection", "q2"),
    ("passage of an LLM ranking that the collection lacks", "q3 gone"),
    ("LLM ranking of a query left out", "stranger"),
  ]


def test_of_a_ranking_whose_passages_are_all_filled_in_nothing_is_learned(tmp_path):
  lines = [{"query_id": query, "candidates": shown, "response": "[2] > [1]"}
           for query, shown in (("q1", ["gone", "p2", "p1"]), ("q2", ["gone", "lost", "p1", "p2"]))]
  (tmp_path / "rankings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  cfg = folder_with(tmp_path / "beir", queries="".join(f'{{"_id": "q{n}", "text": "words"}}\n' for n in (1, 2)))
  cfg.rankings = str(tmp_path / "rankings.jsonl")
  found = rankings.add(beir.load(cfg), cfg)
  # Of q2 the LLM has named what is not there; that a passage is left which it named is enough.
  assert [(one.query_id, one.passage_ids, one.filled_places) for one in found.rankings] == [("q1", ("p2", "p1"), (1,))]
  assert collection.Drop("LLM ranking that names no passage of the collection", "q2") in found.drops


def test_the_places_of_a_ranking_without_a_passage_are_counted_anew():
  whole = records.RankedList(
    query_id="q", passage_ids=("a", "b", "c", "d"), status="repaired", permutation=(3, 0, 1, 2), filled_places=(1, 3))
  rest = whole.without({"b", "x"})
  assert (rest.passage_ids, rest.permutation, rest.filled_places) == (("a", "c", "d"), (3, 1, 2), (2,))
  assert whole.without(set()) == whole


# ir_datasets and TensorFlow Datasets


def register(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, **queries: str) -> None:
  """split -> its one query, as `mine/<split>` of ir_datasets."""
  ir_datasets = pytest.importorskip("ir_datasets", reason="the extra `datasets` is not installed")
  (folder / "docs.tsv").write_text("d1\tfirst text\nd2\tsecond text\n")
  for split, query in queries.items():
    (folder / f"{split}.tsv").write_text(f"{query}\twords of {query}\n")
    (folder / f"{split}.qrels").write_text(f"{query} 0 d1 1\n{query} 0 d9 1\n")
    dataset = ir_datasets.create_dataset(
      docs_tsv=str(folder / "docs.tsv"), queries_tsv=str(folder / f"{split}.tsv"),
      qrels_trec=str(folder / f"{split}.qrels"),
    )  # fmt: skip
    monkeypatch.setitem(ir_datasets.registry._registered, f"mine/{split}", dataset)


def test_ids_of_ir_datasets(tmp_path, monkeypatch):
  register(tmp_path, monkeypatch, train="t1", dev="q1")
  found = irds.load(config.Collection(source="ir_datasets", path="mine/train, mine/dev"))
  assert [p.id for p in found.passages] == ["d1", "d2"]
  assert {q.id: q.split for q in found.queries} == {"t1": "train", "q1": "dev"}
  assert found.qrels["dev"] == {"q1": {"d1": 1}}
  unknown = [drop.what for drop in found.drops if "of an unknown passage" in drop.reason]
  assert sorted(unknown) == ["q1 d9", "t1 d9"]
  # What both have is held out; nothing of it is trained on.
  (tmp_path / "train.tsv").write_text("t1\twords of t1\nq1\twords of q1\n")
  (tmp_path / "train.qrels").write_text("t1 0 d1 1\nq1 0 d2 1\n")
  shared = irds.load(config.Collection(source="ir_datasets", path="mine/train, mine/dev"))
  assert {query.id: query.split for query in shared.queries} == {"t1": "train", "q1": "dev"}
  assert shared.qrels["dev"] == {"q1": {"d1": 1}} and shared.qrels["train"] == {"t1": {"d1": 1}}
  (tmp_path / "train.qrels").write_text("t1 0 d1 1\nt1 0 d1 0\n")
  with pytest.raises(collection.CollectionError, match=r"mine/train: the pair t1 d1 is judged 1 and 0"):
    irds.load(config.Collection(source="ir_datasets", path="mine/train"))
  (tmp_path / "docs.tsv").write_text("d1\tfirst text\nd2\tsecond text\nd1\tagain\n")
  with pytest.raises(collection.CollectionError, match=r"mine/dev: doc 3: the id 'd1' stands in mine/dev: doc 1"):
    irds.load(config.Collection(source="ir_datasets", path="mine/dev"))
  assert irds.split_of("msmarco-passage/trec-dl-2020/judged") == "test"
  assert irds.split_of("msmarco-passage/train/judged") == "train"


@pytest.mark.parametrize("answer, expected", [
  ([b"France", b"in France", b" "], ("France", "in France")), (b"Paris", ("Paris",)),
  ({"value": "France", "aliases": [b"France", b"Gaul"]}, ("France", "Gaul")),
])
def test_answers_are_read_in_each_form_that_data_sets_have(answer, expected):
  assert tfds._answers({"answer": answer}) == expected


@pytest.fixture
def from_builders(tmp_path, monkeypatch) -> Callable[..., collection.Collection]:
  """(features of tensorflow_datasets -> those of a data set, its rows of each split) -> what is read of it."""
  tensorflow_datasets = pytest.importorskip("tensorflow_datasets", reason="the extra `tfds` is not installed")
  (tmp_path / "psgs.tsv").write_text("id\ttext\ttitle\n1\tParis is in France.\tParis\n")
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))

  def load(features, rows):
    class Tiny(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
      VERSION = tensorflow_datasets.core.Version("1.0.0")

      def _info(self):
        made = tensorflow_datasets.features.FeaturesDict(features(tensorflow_datasets.features))
        return tensorflow_datasets.core.DatasetInfo(builder=self, description="tiny", features=made)

      def _split_generators(self, manager):
        return {split: self._generate_examples(rows[split]) for split in rows}

      def _generate_examples(self, of_split):
        yield from enumerate(of_split)

    builder = lambda name: Tiny(data_dir=str(tmp_path / "tfds" / features.__name__))
    monkeypatch.setattr(tensorflow_datasets, "builder", builder)
    return tfds.load(config.Collection(source="tfds", path=str(tmp_path / "psgs.tsv"), questions="tiny"))

  return load


def answered(found: collection.Collection) -> dict[str, tuple[str, ...]]:
  return {query.text: found.answers[query.id] for query in found.queries}


@pytest.mark.tf
@pytest.mark.slow
def test_questions_of_natural_questions_open(from_builders):
  def features(of):
    return {"question": of.Text(), "answer": of.Sequence(of.Text())}

  asks = lambda split, count: [
    {"question": f"where is Paris, asks {number}", "answer": ["France", f"in {split}"]} for number in range(count)]
  rows = {"train": asks("train", 12), "validation": asks("validation", 9)}
  rows["train"].append({"question": "unanswerable", "answer": []})
  found = from_builders(features, rows)
  # Of train, a tenth by chance is for dev; what is measured stays whole.
  split_of = {query.text.rpartition(" ")[2]: query.split for query in found.queries if query.split != "test"}
  assert {number for number, split in split_of.items() if split == "dev"} == {"5", "6"} and len(split_of) == 12
  assert sum(query.split == "test" for query in found.queries) == 9
  assert set(found.answers.values()) == {("France", "in train"), ("France", "in validation")}
  assert [(drop.reason, drop.what) for drop in found.drops] == [("question without an answer", "unanswerable")]
  with pytest.raises(config.ConfigError, match=r"needs collection\.path"):
    tfds.load(config.Collection(source="tfds"))


@pytest.mark.tf
@pytest.mark.slow
def test_questions_of_natural_questions(from_builders):
  """Its builder's own features: annotators who give any number of short answers each, and the page."""

  def features(of):
    place = {name: np.int64 for name in ("start_token", "end_token", "start_byte", "end_byte")}
    return {
      "id": np.str_,
      "document": {"title": of.Text(), "url": of.Text(), "html": of.Text(),
                   "tokens": of.Sequence({"token": of.Text(), "is_html": np.bool_})},
      "question": {"text": of.Text(), "tokens": of.Sequence(np.str_)},
      "annotations": of.Sequence({
        "id": np.str_, "long_answer": place, "short_answers": of.Sequence({**place, "text": of.Text()}),
        "yes_no_answer": of.ClassLabel(names=["NO", "YES"]),
      }),
    }  # fmt: skip

  def row(question, *annotators):
    answer = lambda text, first: {"start_token": first, "end_token": first + len(text.split()), "start_byte": 0,
                                  "end_byte": 1, "text": text}  # fmt: skip
    return {
      "id": question, "question": {"text": question, "tokens": question.split()},
      "document": {"title": "T", "url": "u", "html": "<p>", "tokens": [{"token": "T", "is_html": False}]},
      "annotations": [
        {"id": str(i), "long_answer": {name: -1 for name in ("start_token", "end_token", "start_byte", "end_byte")},
         "short_answers": [answer(text, 7) for text in texts], "yes_no_answer": -1}
        for i, texts in enumerate(annotators)
      ],
    }  # fmt: skip

  found = from_builders(features, {
    "train": [
      row("who wrote it", ["Anne Brontë"]), row("is it so", []), row("of whom", ["one two three four five six"])],
    "validation": [row("who sang it", ["Björk", "The Sugarcubes"], [], ["Björk", "one two three four five"])],
  })
  assert answered(found) == {
    "who wrote it": ("Anne Brontë",), "who sang it": ("Björk", "The Sugarcubes", "one two three four five")}
  # Answers of more than five tokens are none for an open domain, nor is yes or no.
  assert [drop.what for drop in found.drops] == ["is it so", "of whom"]
  # Control: rows of neither form.
  with pytest.raises(config.ConfigError, match="'tiny', whose rows have no question, or neither answer nor annota"):
    from_builders(lambda of: {"question": of.Text(), "reply": of.Text()}, {"train": []})


@pytest.mark.tf
@pytest.mark.slow
def test_questions_of_trivia_qa(from_builders):
  """Its builder's own features; of pages beside a question nothing is read."""

  def features(of):
    text, texts = of.Text, lambda *names: {name: of.Text() for name in names}
    return {
      **texts("question", "question_id", "question_source"),
      "entity_pages": of.Sequence(texts("doc_source", "filename", "title", "wiki_context")),
      "search_results": of.Sequence({
        **texts("description", "filename", "title", "url", "search_context"), "rank": np.int32}),
      "answer": {
        "aliases": of.Sequence(text()), "normalized_aliases": of.Sequence(text()),
        **texts("matched_wiki_entity_name", "normalized_matched_wiki_entity_name", "normalized_value", "type", "value"),
      },
    }  # fmt: skip

  def row(question, value, *aliases):
    empty = {name: [] for name in ("doc_source", "filename", "title", "wiki_context")}
    results = {name: [] for name in ("description", "filename", "title", "url", "search_context", "rank")}
    answer = {"aliases": list(aliases), "normalized_aliases": ["a"], "value": value, "type": "WikipediaEntity",
              "normalized_value": value.lower(), "matched_wiki_entity_name": "M",
              "normalized_matched_wiki_entity_name": "m"}  # fmt: skip
    return {"question": question, "question_id": "tc_1", "question_source": "s", "entity_pages": empty,
            "search_results": results, "answer": answer}  # fmt: skip

  found = from_builders(features, {
    "train": [row("Which city?", "Rome", "Roma", "Rome", " ")], "validation": [row("Who was it?", "Caesar")],
    # The hidden answers of the test set are no answers.
    "test": [row("Who knows?", "<unk>")],
  })
  assert answered(found) == {"Which city?": ("Rome", "Roma"), "Who was it?": ("Caesar",)}


def test_ids_with_the_same_hash_are_not_taken_for_the_same(monkeypatch):
  """Of ids only hashes are kept; where two are equal, the ids themselves decide."""
  monkeypatch.setattr(jsonl, "hash", lambda row_id: len(row_id), raising=False)
  rows = lambda *ids: lambda: ((jsonl.Row(f"f:{i}", {}), one) for i, one in enumerate(ids, 1))
  assert [one for _, one in jsonl.with_ids(rows("a", "b", "cc"))] == ["a", "b", "cc"]
  with pytest.raises(collection.CollectionError, match="f:3: the id 'a' stands in f:1 already"):
    list(jsonl.with_ids(rows("a", "b", "a")))
