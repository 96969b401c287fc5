"""Which model each measured system is: every stage's folder holds another one, and each run is what one alone gives."""

import dataclasses
import itertools
import pathlib
import sys

import numpy as np
import pytest
import tiny_world

from idistill_jax import config, flow, records
from idistill_jax.data import example, similarity, tables
from idistill_jax.hf import networks
from idistill_jax.models import table
from idistill_jax.retrieval import index, runs
from idistill_jax.stages import evaluate
from idistill_jax.train import checkpoint, inference
from idistill_jax.workdir import artifacts

pytestmark = pytest.mark.usefixtures("one_device")

RNG = np.random.default_rng(0)
PASSAGES = tables.Passages(
  records.Passage(id=f"p{i}", title="", text=" ".join(RNG.choice(tiny_world.WORDS, 6))) for i in range(12))
# Those that are measured are neither the first nor all.
QUERIES = tables.Queries(
  records.Query(id=f"q{i}", text=" ".join(RNG.choice(tiny_world.WORDS, 4)), split="test" if i % 2 else "train")
  for i in range(8))
MEASURED = [query for query in QUERIES if query.split == "test"]
# Fewer than there are: whose first places they are shows.
RERANKED = 6


def drawn(*shape: int) -> np.ndarray:
  return RNG.normal(size=shape).astype(np.float32)


def save_drawn(network: networks.Network, folder: pathlib.Path) -> None:
  """A model that no other stage has."""
  params = {path: np.asarray(leaf) + 0.2 * drawn(*leaf.shape)
            for path, leaf in table.flatten(network.initial(0)).items()}
  checkpoint.save_model(folder / inference.MODEL, table.unflatten(params))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tiny_weights) -> artifacts.Job:
  root = tmp_path_factory.mktemp("stages")
  cfg = config.Config(name="t", encoder=tiny_world.encoder(tiny_weights), index=config.Index(kind="exact"),
                      ranker=config.Ranker(similarity_weight=1.0),
                      evaluate=config.Evaluate(resamples=50, rerank_depth=RERANKED))
  inputs = {name: root / name for name in flow.STAGES["evaluate"].reads}
  for folder in inputs.values():
    folder.mkdir()
  example.write_records(inputs["collection"], tables.PASSAGES, PASSAGES)
  example.write_records(inputs["collection"], tables.QUERIES, QUERIES)
  tables.write_qrels(inputs["collection"] / "qrels" / "test.tsv", {query.id: {"p1": 1} for query in MEASURED})
  example.write_records(inputs["labels"], artifacts.RANKINGS, ())
  example.write_records(inputs["train_retriever"], artifacts.TEACHER, ())
  for stage in ("candidates", "train_direct"):
    np.save(inputs[stage] / similarity.QUERIES, drawn(len(QUERIES), 4))
    np.save(inputs[stage] / similarity.PASSAGES, drawn(len(PASSAGES), 4))
  for stage in ("train_direct", "train_retriever"):
    save_drawn(networks.retriever(cfg.encoder), inputs[stage])
  save_drawn(networks.ranker(cfg.encoder, cfg.ranker.head), inputs["train_ranker"])
  width = networks.retriever(cfg.encoder).sizes.hidden_size
  index.write(inputs["index"], drawn(len(PASSAGES), width), PASSAGES.ids, cfg.index, drawn(0, width))
  return artifacts.Job(cfg=cfg, out=root / "out", inputs=inputs, cache=root / "cache")


def in_order(scores_QxN: np.ndarray, orders: dict[str, list[str]]) -> dict[str, list[str]]:
  """The first places of each measured query by these scores, the deeper ones as they are."""
  return {
    one: [order[place] for place in np.argsort(-scores)] + order[len(scores):]
    for (one, order), scores in zip(orders.items(), scores_QxN, strict=True)}


def by_scores(scores_QxP: np.ndarray) -> dict[str, list[str]]:
  """All passages of each measured query."""
  return in_order(scores_QxP, {query.id: list(PASSAGES.ids) for query in MEASURED})


@dataclasses.dataclass
class Alone:
  """What each model gives to the measured queries and all passages, [Q, P], by its stage; None: the starting weights.

  ranker: without the similarity.
  """

  vectors: dict[str | None, np.ndarray]
  encoded: dict[str | None, np.ndarray]
  ranker: dict[str | None, np.ndarray]

  def reranked(self, ranker: str | None, start: str, first: str) -> dict[str, list[str]]:
    """The first places of what the vectors of `first` find, by a ranker to whose score those of `start` add."""
    orders, scores_QxP = by_scores(self.vectors[first]), self.ranker[ranker] + self.vectors[start]
    rows_QxN = np.array([[PASSAGES.row(one) for one in order[:RERANKED]] for order in orders.values()])
    return in_order(np.take_along_axis(scores_QxP, rows_QxN, axis=1), orders)


@pytest.fixture(scope="module")
def alone(prepared) -> Alone:
  texts, rows = [query.text for query in MEASURED], [QUERIES.row(query.id) for query in MEASURED]
  folder = lambda stage: stage and prepared.inputs[stage]
  vectors = {stage: similarity.load(folder(stage)) for stage in ("candidates", "train_direct")}
  indexed_PxE = np.load(folder("index") / similarity.PASSAGES)
  encode = lambda stage: inference.load_retriever(prepared.cfg, folder(stage)).encode_queries(texts)
  pairs = list(itertools.product(texts, PASSAGES.texts))
  score = lambda stage: inference.load_ranker(prepared.cfg, folder(stage)).score(
    *map(list, zip(*pairs, strict=True)), np.zeros(len(pairs)))
  return Alone(
    vectors={stage: of.queries_QxE[rows] @ of.passages_PxE.T for stage, of in vectors.items()},
    encoded={stage: encode(stage) @ indexed_PxE.T for stage in (None, "train_direct", "train_retriever")},
    ranker={stage: score(stage).reshape(len(texts), -1) for stage in (None, "train_ranker")},
  )


@pytest.mark.parametrize(("start", "stage"), [("weights", "candidates"), ("direct", "train_direct")])
def test_each_system_is_its_own_stages_model(prepared, alone, monkeypatch, start, stage, tmp_path):
  monkeypatch.setitem(sys.modules, "scann", None)  # of no system here, and slow to import
  prepared.cfg.ranker.start, prepared.out = start, tmp_path
  evaluate.run(prepared)
  every: dict[str, dict[object, dict[str, list[str]]]] = {
    "initial": (vectors := {one: by_scores(scores) for one, scores in alone.vectors.items()}), "direct": vectors,
    "distilled": {one: by_scores(scores) for one, scores in alone.encoded.items()},
    "ranker": {of: alone.reranked(*of) for of in itertools.product(alone.ranker, alone.vectors, alone.vectors)},
  }
  own = {"initial": "candidates", "direct": "train_direct", "distilled": "train_retriever",
         "ranker": ("train_ranker", stage, "candidates")}
  for system, of in own.items():
    found = runs.read_trec(tmp_path / evaluate.RUNS / f"{system}.trec")
    order = {query_id: runs.ranked(results) for query_id, results in found.items()}
    # No other model in its place gives the same.
    assert [one for one, expected in every[system].items() if expected == order] == [of], system
