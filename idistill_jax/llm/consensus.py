"""Several orders of one list -> one order, and how far they agreed.

Asking about the same passages in other orders and taking the middle of the answers cancels the pull of the place
that a passage was shown at (Tang et al., 2024, "Found in the Middle: Permutation Self-Consistency").

In an order that was filled up, the passages that the LLM did not name count as tied behind those that it did.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from idistill_jax.llm import parse

# Beyond this the best order takes seconds to find: there are 2^n sets of passages to go through.
KEMENY_LONGEST = 10


@dataclasses.dataclass(frozen=True, slots=True)
class Consensus:
  """order: passages, best first.  filled: places of passages that no answer named.  agreement: see `of`."""

  order: tuple[int, ...]
  filled: tuple[int, ...]
  agreement: float


def of(answers: Sequence[parse.Parsed], asked: int) -> Consensus:
  """The order nearest to all answers about one list: Kemeny's where the list is short, Borda's beyond.

  asked: how many orders were asked for, those included that no usable answer came to.  A lost one agrees with none:
  `agreement` is scaled down to the pairs that are there.  A single answer is its own consensus, and has agreed with
  itself only where no other was asked for.
  """
  agreed = 1.0 if asked == 1 else math.comb(len(answers), 2) / math.comb(asked, 2)
  if len(answers) == 1:
    return Consensus(answers[0].order, answers[0].filled, agreed)
  ranks = [_ranks(answer) for answer in answers]
  order = kemeny(ranks) if len(ranks[0]) <= KEMENY_LONGEST else borda(ranks)
  named = {answer.order[place] for answer in answers for place in range(len(answer.order) - len(answer.filled))}
  # What nobody named goes to the end, as in a single answer.
  order = tuple(sorted(order, key=lambda passage: passage not in named))
  return Consensus(order, tuple(range(len(named), len(order))), agreed * agreement(ranks))


def _ranks(answer: parse.Parsed) -> tuple[float, ...]:
  """Passage -> rank; passages that are not named share the mean of the ranks left over."""
  filled = set(answer.filled)
  shared = sum(filled) / len(filled) if filled else 0.0
  rank_of = {passage: shared if place in filled else float(place) for place, passage in enumerate(answer.order)}
  return tuple(rank_of[passage] for passage in range(len(rank_of)))


def borda(ranks: Sequence[Sequence[float]]) -> tuple[int, ...]:
  """Passages by their mean rank, equal ones as the first order has them (Borda, 1781)."""
  totals = [sum(column) for column in zip(*ranks, strict=True)]
  return tuple(sorted(range(len(totals)), key=lambda passage: (totals[passage], ranks[0][passage], passage)))


def kemeny(ranks: Sequence[Sequence[float]]) -> tuple[int, ...]:
  """The order with the fewest pairwise disagreements with all orders (Kemeny, 1959); ties as Borda has them.

  Exact, by dynamic programming over the set of passages placed so far: time n^2 2^n.
  """
  n = len(ranks[0])
  preferred = borda(ranks)
  # against[i][j]: how many orders put j before i.
  against = [[sum(one[j] < one[i] for one in ranks) for j in range(n)] for i in range(n)]
  best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
  for size in range(n):
    for placed in [placed for placed in best if placed.bit_count() == size]:
      cost, order = best[placed]
      rest = [passage for passage in preferred if not placed >> passage & 1]
      for passage in rest:
        more = cost + sum(against[passage][other] for other in rest)
        grown = placed | 1 << passage
        if grown not in best or more < best[grown][0]:
          best[grown] = (more, (*order, passage))
  return best[(1 << n) - 1][1]


def agreement(ranks: Sequence[Sequence[float]]) -> float:
  """Mean Kendall tau-b over all pairs of orders: 1 where they are equal, about 0 where they are drawn at random.

      tau = (concordant - discordant) / sqrt(pairs untied in one * pairs untied in the other)      (Kendall, 1945)

  Tau-a would call two equal orders with ties different.
  """
  pairs = list(itertools.combinations(range(len(ranks[0])), 2))
  if not pairs or len(ranks) < 2:
    return 1.0
  signs = [[_sign(one[i] - one[j]) for i, j in pairs] for one in ranks]
  taus = [_tau(one, other) for one, other in itertools.combinations(signs, 2)]
  return sum(taus) / len(taus)


def _tau(one: Sequence[int], other: Sequence[int]) -> float:
  if one == other:
    return 1.0
  untied = math.sqrt(sum(map(abs, one)) * sum(map(abs, other)))
  return sum(a * b for a, b in zip(one, other, strict=True)) / untied if untied else 0.0


def _sign(x: float) -> int:
  return (x > 0) - (x < 0)
