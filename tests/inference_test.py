"""Reading many texts: whichever rows they share, however long, gives what one text a row gives."""

import threading

import jax
import numpy as np
import pytest
import rows_of
import scored

from idistill_jax import config, sharding
from idistill_jax.data import pack, tokenize
from idistill_jax.hf import networks
from idistill_jax.models import execution, table
from idistill_jax.train import checkpoint, inference, pieces
from idistill_jax.train import texts as texts_lib
from idistill_jax.workdir import artifacts

BLOCK, DOUBLING = 64, 960.0


def lengths(rng: np.random.Generator, longest: int, count: int = 400) -> np.ndarray:
  return rng.integers(2, longest + 1, count)


def test_short_texts_get_short_rows_and_long_ones_full_rows():
  rng = np.random.default_rng(0)
  assert pack.row_lengths(lengths(rng, 20), 256, BLOCK, DOUBLING) == (64, 256)
  # Two of these fill a row of 256, one leaves a third of any shorter row empty.
  assert pack.row_lengths(np.full(100, 128), 256, BLOCK, DOUBLING) == (128, 256)
  assert pack.row_lengths(np.full(100, 130), 260, BLOCK, DOUBLING) == (260,)
  assert pack.row_lengths(np.zeros(0, int), 256, BLOCK, DOUBLING) == (256,)
  # Where attention costs nothing, only fill counts.
  assert pack.row_lengths(lengths(rng, 200), 256, BLOCK, 1e12) == (256,)


def test_every_text_goes_into_one_row_that_holds_it():
  sizes = lengths(np.random.default_rng(1), 256)
  parts = pack.by_row_length(sizes, (128, 256))
  assert sorted(np.concatenate([apart for _, apart in parts])) == list(range(len(sizes)))
  assert all(sizes[apart].max() <= row for row, apart in parts) and parts[1][1].size
  # What fits nowhere is not lost on the way to who refuses it.
  (_, none), (row, apart) = pack.by_row_length(np.array([300]), (128, 256))
  assert not none.size
  with pytest.raises(pack.DoesNotFitError, match="300 tokens"):
    pack.place(np.array([300])[apart], row)


@pytest.fixture(scope="module")
def reader(tiny_weights):
  """A Forward over rows of at most 256 tokens, in steps of 512; and texts of which most are short."""
  network = networks.retriever(config.Encoder(weights=tiny_weights))
  mesh = sharding.make_mesh(config.Mesh(data=None))
  params = network.initial(0)
  rng = np.random.default_rng(2)
  sizes = np.concatenate([rng.integers(4, 30, 60), [200, 180, 256]])
  texts = [np.concatenate([[101], rng.integers(1000, 20000, n - 2), [102]]).astype(np.int32) for n in sizes]
  return network, params, mesh, texts


class Given:
  """As Forward takes them, tokenised before."""

  def __init__(self, texts: list[np.ndarray]):
    self._texts, self.sample = texts, np.array([len(text) for text in texts])
    self.whose = np.zeros(0, np.int64)

  def __len__(self) -> int:
    return len(self._texts)

  def read(self, rows: range) -> texts_lib.Piece:
    here = self._texts[rows.start:rows.stop]
    return texts_lib.Piece(lengths=self.sample[rows.start:rows.stop], text=lambda i: (here[i], None))


def read(reader, row_tokens: int, dtype: str = "float32") -> tuple[np.ndarray, inference.Forward]:
  network, params, mesh, texts = reader
  forward = inference.Forward(network.on(mesh, dtype), params, mesh, row_tokens, 512)
  return forward("texts", Given(texts)), forward


def test_rows_of_two_lengths_are_invisible(reader, monkeypatch):
  apart = [read((*reader[:3], [text]), 256)[0][0] for text in reader[3][::9]]
  # Of few texts all have one length, and so one program.
  few, forward = read(reader, 256)
  assert forward._apply._cache_size() == 1
  monkeypatch.setattr(pack, "SAMPLE", len(reader[3]))
  found, forward = read(reader, 256)
  assert forward._apply._cache_size() == 2
  np.testing.assert_allclose(found, few, atol=2e-6)
  np.testing.assert_allclose(found[::9], apart, atol=2e-6)
  assert np.abs(found[0] - found[1]).max() > 0.01


def test_reading_rounds_kernels_once_and_changes_no_bit(reader, monkeypatch):
  monkeypatch.setattr(execution, "cpu_multiplies_bfloat16", lambda: True)
  network, params, mesh, _ = reader
  network = network.on(mesh, "bfloat16")
  reading, short = network.reading(params)
  kinds = {path: leaf.dtype.name for path, leaf in table.flatten(short).items()}
  assert {kind for path, kind in kinds.items() if path.endswith("/kernel")} == {"bfloat16"}
  assert {kind for path, kind in kinds.items() if not path.endswith("/kernel")} == {"float32"}
  rows = rows_of.packed([np.arange(5, 25, dtype=np.int32)], None, 64)
  np.testing.assert_array_equal(reading.apply(short, rows), reading.apply(params, rows))
  assert not np.array_equal(reading.apply(short, rows), network.on(mesh, "float32").apply(params, rows))


def test_texts_are_tokenised_by_pieces_and_counted_over_all_of_them(tiny_weights, tmp_path, monkeypatch):
  cfg = config.Config(name="t", encoder=config.Encoder(
    weights=tiny_weights, passage_tokens=6, row_tokens=16, tokens_per_step=64))
  texts = ["merge " * n for n in range(1, 21)]
  whole = inference.load_retriever(cfg, None).encode_passages(texts)
  monkeypatch.setattr(pieces, "LEAST", 5)
  job = artifacts.Job(cfg=cfg, out=tmp_path, cache=tmp_path, inputs={})
  retriever = inference.load_retriever(cfg, None, job)
  tokenised, table = [], networks.Network.passage_table

  def counting(network, some, max_tokens):
    made = table(network, some, max_tokens)
    tokenised.append(len(made))
    if len(tokenised) == 4:
      raise InterruptedError("in the third piece")
    return made

  with monkeypatch.context() as patched, pytest.raises(InterruptedError):
    patched.setattr(networks.Network, "passage_table", counting)
    retriever.encode_passages(texts)
  # The sample, here all, and then a piece at a time.
  assert tokenised == [20, 5, 5, 5] and not job.counts
  again = inference.load_retriever(cfg, None, job)
  np.testing.assert_allclose(again.encode_passages(texts), whole, atol=2e-6)
  assert job.counts["passages cut"] == {"at": 6, "texts": 16, "of": 20, "longest": 22}


def test_of_a_model_that_is_trained_once_more_nothing_is_mixed_with_what_the_one_before_gave(
    tiny_weights, tmp_path, monkeypatch):
  """As when its folder is deleted and made again, of the same config and so with the same key."""
  cfg = config.Config(name="t", encoder=config.Encoder(
    weights=tiny_weights, passage_tokens=6, row_tokens=16, tokens_per_step=64))
  network, texts = networks.retriever(cfg.encoder), ["merge " * n for n in range(1, 11)]
  monkeypatch.setattr(pieces, "LEAST", 5)
  job, finish = artifacts.Job(cfg=cfg, out=tmp_path, cache=tmp_path, inputs={}), pieces.Pieces.finish

  def ending(work, piece, *made):
    finish(work, piece, *made)
    raise InterruptedError("after the first piece")

  encode = lambda job: inference.load_retriever(cfg, tmp_path, job).encode_passages(texts)
  checkpoint.save_model(tmp_path / inference.MODEL, network.initial(0))
  with monkeypatch.context() as patched, pytest.raises(InterruptedError):
    patched.setattr(pieces.Pieces, "finish", ending)
    encode(job)
  checkpoint.save_model(tmp_path / inference.MODEL, jax.tree.map(lambda leaf: 1.5 * leaf, network.initial(0)))
  np.testing.assert_allclose(encode(job), encode(None), atol=2e-6)


def test_other_pairs_are_other_work_though_they_are_as_many_and_as_long(tiny_weights):
  ranker = inference.load_ranker(config.Config(name="t", encoder=config.Encoder(weights=tiny_weights)), None)
  pairs = lambda passage_of: ranker.pairs(["merge"], ["sort", "open"], np.zeros(2, int), np.array(passage_of))
  assert pairs([0, 1]).sample.tolist() == pairs([1, 0]).sample.tolist()
  assert pairs([0, 1]).whose.tolist() == pairs([0, 1]).whose.tolist() != pairs([1, 0]).whose.tolist()


@pytest.mark.parametrize("kept, then", [(texts_lib.KEPT, [range(8, 14), range(14, 18), range(18, 22)]),
                                        (0, [range(8, 14), range(12, 18), range(16, 22)])], ids=["few", "many"])
def test_of_pairs_a_worker_reads_what_it_claims_and_few_texts_once(tiny_weights, tmp_path, monkeypatch, kept, then):
  """Each query with four passages, of which two are the next query's as well."""
  cfg = config.Config(name="t", encoder=config.Encoder(
    weights=tiny_weights, query_tokens=6, pair_passage_tokens=8, list_row_tokens=16, tokens_per_step=64))
  queries, passages = (scored.Recorded("merge " * (1 + i % most) for i in range(n)) for n, most in ((10, 7), (22, 9)))
  query_of, passage_of = np.arange(40) // 4, 2 * (np.arange(40) // 4) + np.arange(40) % 4
  told, cuts = {}, {}
  score = lambda job, tell: inference.load_ranker(cfg, None, job).learned(
    queries, passages, query_of, passage_of, tell)
  whole = score(None, told.__setitem__)
  assert (sorted(queries.read), sorted(passages.read)) == ([*range(10)], [*range(22)]), "few pairs, which are read once"
  monkeypatch.setattr(pieces, "LEAST", 8)
  monkeypatch.setattr(pack, "SAMPLE", 2)
  monkeypatch.setattr(texts_lib, "KEPT", kept)
  job = artifacts.Job(cfg=cfg, out=tmp_path, cache=tmp_path, inputs={})
  finish = pieces.Pieces.finish

  def ending(work, piece, *made):
    if piece.start == 16:
      raise InterruptedError("in the third piece")
    finish(work, piece, *made)

  with monkeypatch.context() as patched, pytest.raises(InterruptedError):
    patched.setattr(pieces.Pieces, "finish", ending)
    score(job, None)
  queries.read.clear()
  passages.read.clear()
  np.testing.assert_allclose(score(job, cuts.__setitem__), whole, atol=2e-6)
  # The first pair and the last are the sample, then come the third piece to the fifth.
  assert queries.read == [0, 9, 4, 5, 6, 7, 8, 9]
  read = [sorted(some) for some in np.split(passages.read, np.cumsum([2, *map(len, then[:-1])]))]
  assert read == [[0, 21], *map(list, then)]
  # Over all pieces each text counts once, whoever made them.
  assert cuts == told == {"queries of lists": tokenize.Cut(at=6, texts=3, of=10, longest=9),
                          "passages of lists": tokenize.Cut(at=8, texts=6, of=22, longest=11)}


def test_the_next_piece_is_made_while_one_is_read():
  began, given = {2: threading.Event(), 3: threading.Event()}, threading.Event()

  def make(item: int) -> int:
    if item in began:
      began[item].set()
      assert given.wait(10) or item == 3
    return -item

  made = texts_lib.ahead(iter([1, 2, 3]), make)
  assert next(made) == (1, -1)
  # While 1 is at hand, 2 is being made, and 3 is not yet asked for.
  assert began[2].wait(10) and not began[3].is_set()
  given.set()
  assert list(made) == [(2, -2), (3, -3)]


def test_what_fails_in_making_the_next_piece_is_the_readers_error():
  made = texts_lib.ahead(iter([1, 0]), lambda item: 1 // item)
  assert next(made) == (1, 1)
  with pytest.raises(ZeroDivisionError):
    next(made)


def test_no_texts_have_embeddings_of_the_same_width(tiny_weights):
  retriever = inference.load_retriever(config.Config(name="t", encoder=config.Encoder(weights=tiny_weights)), None)
  for encode in (retriever.encode_queries, retriever.encode_passages):
    assert encode([]).shape == (0, 128)
