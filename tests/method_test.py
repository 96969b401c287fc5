"""The method at work: what was taught a taste shows it in passages and queries that nobody taught it, and its reverse
where it was taught that."""

import dataclasses
import pathlib

import jax
import numpy as np
import tiny_world
from etils import epath

from idistill_jax import config, records, sharding
from idistill_jax.data import batches, similarity, tables
from idistill_jax.data import lists as lists_lib
from idistill_jax.hf import networks
from idistill_jax.train import checkpoint, inference, loop, objectives

# The teacher likes passages the more, the more often this word is in them.
LIKED, WORD_COUNT = "lock", 6
LISTS, LENGTH, HELD_OUT = 32, 5, 24


@dataclasses.dataclass(frozen=True)
class World:
  """Lists of passages of their own, one a query; likes [lists, LENGTH]."""

  passages: list[str]
  queries: list[str]
  likes: np.ndarray

  def lists(self, scores: np.ndarray) -> list[records.ScoredList]:
    """Best first."""
    order = np.argsort(-scores, axis=1, kind="stable")
    return [records.ScoredList(query_id=f"q{i}", passage_ids=tuple(f"p{LENGTH * i + j}" for j in row),
                               scores=tuple(scores[i, row].tolist())) for i, row in enumerate(order)]

  def pairs(self) -> tuple[list[str], list[str]]:
    return [query for query in self.queries for _ in range(LENGTH)], self.passages


def drawn(seed: int, count: int) -> World:
  rng = np.random.default_rng(seed)
  others = [word for word in tiny_world.WORDS if word != LIKED]
  # No two of a list alike.
  likes = np.stack([rng.permutation(WORD_COUNT)[:LENGTH] for _ in range(count)])
  say = lambda liked: " ".join(rng.permutation([LIKED] * liked + list(rng.choice(others, WORD_COUNT - liked))))
  return World(passages=[say(liked) for liked in likes.flat], queries=[say(0) for _ in range(count)], likes=likes)


def learned(folder: pathlib.Path, network: networks.Network, loss_fn, world: World, scores: np.ndarray,
            *, order: bool) -> pathlib.Path:
  """The folder, with a model that has seen these scores of the world's lists, or as a ranker their order alone."""
  passages = tables.Passages(records.Passage(id=f"p{i}", title="", text=text) for i, text in enumerate(world.passages))
  queries = tables.Queries(records.Query(id=f"q{i}", text=text, split="train") for i, text in enumerate(world.queries))
  lists = [lists_lib.numbered(one, queries, passages) for one in world.lists(scores)]
  texts = batches.PairTexts if order else batches.DualTexts
  if order:
    lists = [dataclasses.replace(one, values=np.arange(LENGTH, dtype=np.float32)) for one in lists]
  none = similarity.Similarities(np.zeros((len(queries), 1), np.float32), np.zeros((len(passages), 1), np.float32))
  mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
  folder.mkdir()
  params = loop.train(loop.Training(
    name="test", network=network, start=lambda: network.initial(0), loss_fn=loss_fn,
    batches=batches.Batches(
      lists=lists, similarity=none, epochs=3, seed=0,
      texts=texts(queries=network.tokenizer.table(world.queries, 12),
                  passages=network.tokenizer.table(world.passages, 12)),
      shape=batches.Shape(lists=8, passages=LENGTH, always_best=1, row_tokens=32, row_multiple=8)),
    optim=config.Optim(peak_lr=1e-3), mesh=mesh, folder=folder, checkpoints=epath.Path(folder) / "checkpoints",
    checkpoint_every=1000, profile=None))  # fmt: skip
  checkpoint.save_model(folder / inference.MODEL, params)
  return folder


def agreement(scores: np.ndarray, world: World) -> float:
  """Mean over lists of the correlation of scores with likes."""
  return float(np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(scores, world.likes, strict=True)]))


def test_a_taste_goes_through_the_ranker_into_the_retriever_and_its_reverse_as_well(tmp_path, tiny_weights):
  encoder = config.Encoder(weights=tiny_weights, query_tokens=12, passage_tokens=12, row_tokens=32)
  cfg = config.Config(name="test", encoder=encoder)
  cfg.ranker = config.Ranker(head="pair_cosine", loss="listmle", similarity_weight=None)
  student = config.Retriever(loss="kl_list", teacher_temperature=1.0, student_temperature=0.1)
  labelled, unlabelled, unseen = drawn(0, LISTS), drawn(1, LISTS), drawn(2, HELD_OUT)

  def ranked(folder: pathlib.Path | None, world: World) -> np.ndarray:
    pairs = world.pairs()
    return inference.load_ranker(cfg, folder).score(*pairs, np.zeros(len(pairs[0]), np.float32)).reshape(-1, LENGTH)

  def retrieved(folder: pathlib.Path | None) -> np.ndarray:
    model = inference.load_retriever(cfg, folder)
    queries, passages = model.encode_queries(unseen.queries), model.encode_passages(unseen.passages)
    return np.einsum("qe,qpe->qp", queries, passages.reshape(len(queries), LENGTH, -1))

  # The word once more makes a text another one than its query: the starting retriever dislikes it.
  before = agreement(ranked(None, unseen), unseen), agreement(retrieved(None), unseen)
  after = {}
  for name, sign in (("as it is", 1), ("reversed", -1)):
    folder = tmp_path / name
    folder.mkdir()
    pairs, dual = networks.ranker(encoder, cfg.ranker.head), networks.retriever(encoder)
    ranker = learned(folder / "ranker", pairs, objectives.ranker(cfg.ranker, pairs), labelled, sign * labelled.likes,
                     order=True)
    # Lists that no teacher saw: all that the retriever knows of the taste it has from the ranker.
    retriever = learned(folder / "retriever", dual, objectives.retriever(student, dual), unlabelled,
                        ranked(ranker, unlabelled), order=False)
    after[name] = agreement(ranked(ranker, unseen), unseen), agreement(retrieved(retriever), unseen)
  for then, taught, otherwise in zip(before, *after.values(), strict=True):
    assert taught > then + 0.5 and taught > 0.2 and otherwise < then - 0.05, (before, after)
