"""Which vectors exact search looks at in each process, and what all do of one that is not finite: `python -m counted
FOLDER` as one process of a job."""

import sys
from collections.abc import Callable
from unittest import mock

import jobs
import numpy as np

from idistill_jax import config, peers, processes, sharding
from idistill_jax.retrieval import exact, hits

IDS = [f"p{i:03d}" for i in range(203)]
# Of the last in the order of ties, which lies on the last device.
BROKEN = 0


def looks(work: Callable[[], object]) -> int:
  """At how many vectors the work looks."""
  is_finite, seen = np.isfinite, list[int]()
  with mock.patch.object(np, "isfinite", lambda some: (seen.append(len(some)), is_finite(some))[1]):
    work()
  return sum(seen)


def refused(work: Callable[[], object]) -> str:
  try:
    work()
  except (hits.VectorError, peers.FailedElsewhereError) as e:
    return f"{type(e).__name__}: {e}"
  return "nothing"


if __name__ == "__main__":
  args = jobs.parser().parse_args()
  launch = processes.Launch(
    coordinator=args.coordinator, count=args.processes, index=args.process, patience=args.patience)
  vectors = np.ones((len(IDS), 4), np.float32)
  broken = vectors.copy()
  broken[BROKEN, 1] = np.nan
  with processes.joined(launch):
    mesh = sharding.make_mesh(config.Mesh())
    print("search looks at", looks(lambda: exact.Exact(vectors, IDS, mesh=mesh)))
    print("search is refused:", refused(lambda: exact.Exact(broken, IDS, mesh=mesh)))
    print("the check is refused:", refused(lambda: hits.check_passages_together(broken, IDS)))
  sys.exit(0)
