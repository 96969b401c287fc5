"""Packing: every token is placed once, within its row, and the rows are full."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from idistill_jax.data import pack, tokenize

LENGTHS = st.lists(st.integers(0, 32), max_size=60)


def _text(lengths):
  return lambda i: (np.arange(1, lengths[i] + 1) + 100 * i, None)


@given(LENGTHS)
def test_every_token_is_placed_exactly_once(lengths):
  placement = pack.place(lengths, 32)
  rows = pack.fill(lengths, _text(lengths), placement, rows=placement.rows, row_tokens=32)
  assert pack.real_tokens(rows) == sum(lengths)
  for i in range(len(lengths)):
    text, mine = _text(lengths)(i)[0], rows.text_ids == i
    assert rows.token_ids[mine].tolist() == text.tolist()
    assert rows.positions[mine].tolist() == list(range(len(text)))
    if len(text):
      assert rows.token_ids.reshape(-1)[rows.starts[i]] == text[0]
      assert len(np.unique(rows.segment_ids[mine])) == 1


@settings(deadline=None)
@given(LENGTHS, st.integers(0, 2**16))
def test_rows_that_several_fill_in_are_those_of_one(lengths, seed):
  placement = pack.place(lengths, 32)
  own = np.random.default_rng(seed).random(placement.rows) < 0.5
  asked = []
  text = lambda i: (asked.append(i), _text(lengths)(i))[1]
  fill = lambda own: pack.fill(lengths, text, placement, rows=placement.rows, row_tokens=32, own=own)
  whole, both = fill(None), asked[:]
  asked.clear()
  mine, others = fill(own), fill(~own)
  assert sorted(asked) == sorted(both), "a text is asked for twice, or not at all"
  for name in ("token_ids", "positions", "segment_ids", "text_ids"):
    parts = np.where(own[:, None], getattr(mine, name), getattr(others, name))
    np.testing.assert_array_equal(parts, getattr(whole, name))
  np.testing.assert_array_equal(mine.starts, whole.starts)
  assert not mine.token_ids[~own].any()


@given(LENGTHS)
def test_texts_of_a_row_have_segments_of_their_own(lengths):
  placement = pack.place(lengths, 32)
  rows = pack.fill(lengths, _text(lengths), placement, rows=placement.rows, row_tokens=32)
  for row in range(placement.rows):
    real = rows.segment_ids[row] > 0
    pairs = set(zip(rows.segment_ids[row][real].tolist(), rows.text_ids[row][real].tolist(), strict=True))
    assert len(pairs) == len({segment for segment, _ in pairs}) == len({text for _, text in pairs})


@given(LENGTHS, st.integers(1, 4))
def test_no_row_holds_more_texts_than_allowed(lengths, most):
  placement = pack.place(lengths, 32, most)
  real = np.asarray(lengths) > 0
  if real.any():
    assert np.bincount(placement.row[real]).max() <= most


def test_rows_are_full_on_a_real_length_distribution():
  lengths = np.clip(np.random.default_rng(0).lognormal(3.8, 0.7, 2000).astype(int), 5, 72)
  placement = pack.place(lengths, 128)
  assert lengths.sum() / (placement.rows * 128) > 0.97
  # Control: one text a row, as padding does it, is far from that.
  assert lengths.mean() / 72 < 0.75


def test_the_planned_shape_holds_every_batch_and_costs_least():
  rng = np.random.default_rng(0)
  batches = [rng.integers(20, 96, 64) for _ in range(40)]
  choices = pack.row_choices(95, 16)
  assert choices[0] == 96 and choices[-1] == 288
  row_tokens, rows = pack.plan(batches, choices, np.inf, row_multiple=2)
  assert row_tokens in choices and rows % 2 == 0
  shapes = {choice: max(pack.place(lengths, choice).rows for lengths in batches) for choice in choices}
  assert rows - shapes[row_tokens] in (0, 1)
  assert rows * row_tokens == min(-(-count // 2) * 2 * choice for choice, count in shapes.items())
  # Control: the worst choice is clearly emptier.
  assert max(count * choice for choice, count in shapes.items()) > 1.1 * rows * row_tokens
  # Where attention weighs more, rows are shorter, and no other shape is cheaper.
  short, more = pack.plan(batches, choices, 100.0, row_multiple=2)
  assert short < row_tokens and more * short > rows * row_tokens
  assert pack.cost(more, short, 100.0) == min(
    pack.cost(-(-count // 2) * 2, choice, 100.0) for choice, count in shapes.items())


def test_stairs_are_few_and_no_text_is_longer():
  rng = np.random.default_rng(0)
  batches = [rng.integers(5, 250, count) for count in (40, 38, 40)]
  stairs = pack.stairs(batches, 8, 256)
  tokens = np.repeat([tokens for _, tokens in stairs], [count for count, _ in stairs])
  assert len(stairs) == 3 and len(tokens) == 40 and (np.diff(tokens) <= 0).all() and (tokens % 8 == 0).all()
  assert all((-np.sort(-lengths) <= tokens[: len(lengths)]).all() for lengths in batches)
  # They cost far less than one length for all does, and not much more than a length for each text.
  own = np.max([-np.sort(-lengths)[:38] for lengths in batches], 0)
  assert 0.7 * (tokens**2).sum() < (own**2).sum() * 40 / 38 and (tokens**2).sum() < 0.6 * 40 * 256**2
  assert pack.stairs([np.array([3, 0, 0]), np.array([9])], 8, 12) == ((1, 12),)
  assert pack.stairs([np.array([3, 12, 9, 8])], 8, 12) == ((2, 12), (2, 8))


@pytest.mark.parametrize("lengths", [[12, 9, 3], [12, 4, 3, 1]])
def test_texts_above_the_stairs_are_refused(lengths):
  placement = pack.place([12, 8, 3], 16)
  whole = pack.fill([12, 8, 3], _text([12, 8, 3]), placement, rows=2, row_tokens=16, stairs=((1, 12), (2, 8)))
  assert whole.stairs == ((1, 12), (2, 8))
  with pytest.raises(pack.DoesNotFitError, match="longer, than the stairs"):
    pack.fill(lengths, _text(lengths), pack.place(lengths, 16), rows=2, row_tokens=16, stairs=((1, 12), (2, 8)))


def test_rows_as_long_as_asked_for_are_not_planned():
  assert pack.plan([np.array([30, 30, 4])], (32,), np.inf) == (32, 3)


def test_a_text_longer_than_a_row_is_refused():
  with pytest.raises(pack.DoesNotFitError, match="33 tokens does not fit into rows of 32"):
    pack.place([5, 33], 32)


def test_too_few_rows_are_refused():
  placement = pack.place([30, 30], 32)
  with pytest.raises(pack.DoesNotFitError, match="need 2 rows, 1 are given"):
    pack.fill([30, 30], _text([30, 30]), placement, rows=1, row_tokens=32)


def test_a_pair_is_what_the_tokenizer_makes_of_it(tiny_weights):
  import tokenizers

  from idistill_jax.hf import folders

  folder = folders.resolve(tiny_weights)
  table = tokenize.Tokenizer(folder).table(["merge two lists", "Merge multiple sorted inputs."], 16)
  ids, types = tokenize.pair(table[0], table[1], table.between)
  reference = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
  reference.no_padding()
  expected = reference.encode("merge two lists", "Merge multiple sorted inputs.")
  assert ids.tolist() == expected.ids
  assert types.tolist() == expected.type_ids
