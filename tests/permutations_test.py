"""LLM rankings whose answers and lists lie in two files, as RankGPT publishes them."""

import gzip
import json
import pathlib

import pytest

from idistill_jax import config, fingerprints
from idistill_jax.data import collection
from idistill_jax.data.corpora import beir, rankings

QUERIES = {"101": "who wrote it", "102": "where is it", "103": "where is it not"}
SHOWN = [("101", ["7", "8", "9"]), ("102", ["9", "7", "5"]), ("103", ["5", "8"])]
# Of the lists above.
ANSWERS = ["[2] > [3] > [1]", "[3] > [1] > [2]", "[2] > [1]"]
RANKED = [("101", ("8", "9", "7")), ("102", ("5", "9", "7")), ("103", ("8", "5"))]


def listed(query_id: str, passage_ids: list[str], key: str = "retrieved_passages") -> dict:
  """As RankGPT's lines are, but for texts."""
  passages = [{"docid": one, "rank": place, "text": "t"} for place, one in enumerate(passage_ids, start=1)]
  return {"query_id": query_id, "query": QUERIES[query_id], "positive_passages": [{"docid": "7"}], key: passages}


def lines(*rows) -> str:
  return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def cfg(tmp_path) -> config.Collection:
  """A collection of the queries, with RankGPT's two files beside it."""
  folder = tmp_path / "beir"
  folder.mkdir()
  (folder / "corpus.jsonl").write_text(lines(*({"_id": one, "text": f"text {one}"} for one in "5789")))
  (folder / "queries.jsonl").write_text(lines(*({"_id": one, "text": text} for one, text in QUERIES.items())))
  (tmp_path / "marco.jsonl").write_text(lines(*(listed(*one) for one in SHOWN)))
  (tmp_path / "gpt.json").write_text(json.dumps(ANSWERS))
  return config.Collection(path=str(folder), rankings=str(tmp_path / "gpt.json"),
                           rankings_shown=str(tmp_path / "marco.jsonl"))


def found(cfg: config.Collection) -> list[tuple[str, tuple[str, ...]]]:
  return [(one.query_id, one.passage_ids) for one in rankings.add(beir.load(cfg), cfg).rankings]


def test_the_published_two_files_become_labels(cfg):
  assert found(cfg) == RANKED
  assert {one.status for one in rankings.add(beir.load(cfg), cfg).rankings} == {"complete"}
  # The control: answers of other lists give other rankings.
  pathlib.Path(cfg.rankings).write_text(json.dumps([ANSWERS[1], ANSWERS[0], ANSWERS[2]]))
  assert found(cfg) == [("101", ("9", "7", "8")), ("102", ("7", "5", "9")), ("103", ("8", "5"))]


@pytest.mark.parametrize("name, text", [
  ("said.txt", "[2] > [3] > [1]\n[3] > [1] > [2]\n[2] > [1]\n"),
  ("said.txt.gz", "2 > 3 > 1\n3 > 1 > 2\n2 > 1\n"),
  ("said.jsonl", lines(*ANSWERS)),
  ("said.jsonl", lines([2, 3, 1], [3, 1, 2], [2, 1])),
  ("said.json.gz", json.dumps([[2, 3, 1], [3, 1, 2], [2, 1]]))])
def test_answers_are_words_or_positions_in_lines_or_an_array(cfg, tmp_path, name, text):
  (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
  cfg.rankings = str(tmp_path / name)
  assert found(cfg) == RANKED


def test_hits_of_a_first_stage_name_their_query_and_a_text_is_looked_up(cfg):
  of_hits = listed(*SHOWN[0], key="hits")
  del of_hits["query_id"]
  for hit in of_hits["hits"]:
    hit["qid"] = 101
  of_text = {key: value for key, value in listed(*SHOWN[1]).items() if key != "query_id"}
  unknown = of_text | {"query": "who knows"}
  pathlib.Path(cfg.rankings_shown).write_text(lines(of_hits, of_text, unknown))
  pathlib.Path(cfg.rankings).write_text(json.dumps(ANSWERS[:2] + ANSWERS[1:2]))
  whole = rankings.add(beir.load(cfg), cfg)
  assert [(one.query_id, one.passage_ids) for one in whole.rankings] == RANKED[:2]
  assert [drop.what for drop in whole.drops if "text that no query" in drop.reason] == [f"{cfg.rankings_shown}:3"]


def test_what_an_llm_did_not_say_is_counted_and_its_slips_are_repaired(cfg):
  pathlib.Path(cfg.rankings).write_text(json.dumps(["I cannot.", "[3] > [9] > [1]", ""]))
  whole = rankings.add(beir.load(cfg), cfg)
  (one,) = whole.rankings
  assert (one.query_id, one.passage_ids, one.status) == ("102", ("5", "9", "7"), "repaired")
  assert (one.permutation, one.filled_places, one.repairs) == ((2, 0, 1), (2,), ("missing", "out of range"))
  refused = [drop.what for drop in whole.drops if drop.reason == "refused LLM answer"]
  assert refused == [f"{cfg.rankings}: entry 1", f"{cfg.rankings}: entry 3"]


@pytest.mark.parametrize("answers, said", [
  (ANSWERS[:2], r"marco.jsonl:3: list 3 has no counterpart: .*gpt.json ends after 2; are the two of one set"),
  ([*ANSWERS, "[1] > [2]"], r"gpt.json: entry 4: answer 4 has no counterpart: .*marco.jsonl ends after 3"),
  ([[2, 3, 1], [4, 1, 2], [1, 2]], r"gpt.json: entry 2: position 4 is of no passage: 3 were shown"),
  ([[2, 3, 1], [0, 1, 2], [1, 2]], r"gpt.json: entry 2: position 0 .* positions count from 1"),
  ([[2, 3, 1], [1, 1, 2], [1, 2]], r"gpt.json: entry 2: \[1, 1, 2\] names a position twice"),
  ([{"ranking": [1]}, *ANSWERS[1:]], r"gpt.json: entry 1: an answer must be text or a list of positions"),
])
def test_files_that_do_not_fit_name_file_and_line(cfg, answers, said):
  pathlib.Path(cfg.rankings).write_text(json.dumps(answers))
  with pytest.raises(collection.CollectionError, match=said):
    found(cfg)


@pytest.mark.parametrize("row, said", [
  ({"query_id": "101", "query": "x"}, r"marco.jsonl:1: retrieved_passages or hits must be a list"),
  ({"query_id": "101", "hits": [{"docid": "7"}, {"id": "8"}]}, r"marco.jsonl:1: passage 2 has no `docid`"),
  ({"hits": [{"docid": "7", "qid": "101"}, {"docid": "8", "qid": "102"}]}, r"marco.jsonl:1: passages of several"),
  ({"hits": [{"docid": "7"}, {"docid": "8"}]}, r"marco.jsonl:1: no 'query'")])
def test_a_list_without_ids_names_its_line(cfg, row, said):
  pathlib.Path(cfg.rankings_shown).write_text(lines(row))
  pathlib.Path(cfg.rankings).write_text('["[2] > [1]"]')
  with pytest.raises(collection.CollectionError, match=said):
    found(cfg)


def test_both_files_are_in_the_key_and_neither_stands_alone(cfg):
  whole = config.Config(name="t", collection=cfg)
  before = fingerprints.collection(whole)
  with open(cfg.rankings_shown, "a") as file:
    file.write("\n")
  assert fingerprints.collection(whole) != before
  cfg.rankings_model = "gpt"
  with pytest.raises(config.ConfigError, match=r"unset collection\.rankings_model"):
    found(cfg)
  cfg.rankings_model = cfg.rankings = None
  with pytest.raises(config.ConfigError, match=r"rankings_shown is what collection.rankings are about"):
    found(cfg)
