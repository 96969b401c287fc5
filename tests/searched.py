"""Exact search over the devices of a job: `python -m searched FOLDER -` as one process of it, or alone."""

import contextlib
import sys
import time
from unittest import mock

import numpy as np
import trained

from idistill_jax import config, processes, sharding
from idistill_jax.retrieval import exact

if __name__ == "__main__":
  args = trained.parser.parse_args()
  launch = processes.Launch(
    coordinator=args.coordinator, count=args.processes, index=args.process, patience=args.patience)
  rng = np.random.default_rng(0)
  vectors, queries = (rng.integers(-2, 3, (count, 4)).astype(np.float32) for count in (203, exact.QUERY_BLOCK + 9))
  with processes.joined(launch):
    mesh, local = sharding.make_mesh(config.Mesh()), sharding.local_mesh(config.Mesh())
    index = exact.Exact(vectors, [f"p{i}" for i in range(203)], mesh=mesh)
    # Compiled first, which may take longer than a search is waited for.
    with mock.patch.object(processes, "waiting", lambda what: contextlib.nullcontext()):
      found = index.search(queries, 30)
    if args.hang == processes.index():
      time.sleep(3600)
    alone = exact.Exact(vectors, [f"p{i}" for i in range(203)], mesh=local)
    # What the first does alone may take longer than the others would be waited for.
    search_block = alone._search_block
    slowly = lambda: [(processes.moved(), time.sleep(1)) for _ in range(int(args.patience) + 3)]
    alone._search_block = lambda *block: (slowly(), search_block(*block))[1]
    rows = processes.once(lambda: alone.search(queries[:5], 30).rows.tolist())
    assert rows == found.rows[:5].tolist()
    index.search(queries, 30)
  print("all well")
  sys.exit(0)
