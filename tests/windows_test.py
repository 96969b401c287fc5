"""Windows over a list: every place is seen, and the best come up from anywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from idistill_jax.llm import windows


@pytest.mark.parametrize(
  ("n", "expected"),
  [
    (1, [(0, 1)]),
    (4, [(0, 4)]),
    (5, [(0, 5)]),
    (6, [(1, 6), (0, 5)]),
    (9, [(4, 9), (2, 7), (0, 5)]),
    (10, [(5, 10), (3, 8), (1, 6), (0, 5)]),
  ],
)
def test_spans(n, expected):
  assert list(windows.spans(n, window=5, stride=2)) == expected


@given(st.integers(1, 200), st.integers(1, 40), st.data())
def test_every_place_is_seen_and_the_best_come_up(n, window, data):
  stride = data.draw(st.integers(1, window))
  spans = list(windows.spans(n, window, stride))
  assert {place for start, stop in spans for place in range(start, stop)} == set(range(n))
  assert all(stop - start == min(window, n) for start, stop in spans)
  # A ranker without errors brings the best `window - stride` passages to the top from wherever they were.
  order = data.draw(st.permutations(range(n)))
  for start, stop in spans:
    order[start:stop] = sorted(order[start:stop])
  safe = min(n, window - stride)
  assert order[:safe] == list(range(safe))


@pytest.mark.parametrize(("n", "window", "stride"), [(0, 5, 2), (9, 5, 0), (9, 5, 6)])
def test_windows_that_leave_places_out_are_refused(n, window, stride):
  with pytest.raises(ValueError, match="no windows"):
    list(windows.spans(n, window, stride))
