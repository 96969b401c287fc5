"""Index folders written, searched and measured by a job: `python -m indexed FOLDER` as one process of it, or alone.

Each process leaves in the folder what came out, how much of the passages its devices held, and whether it opened ScaNN.
"""

import functools
import json
import sys

import jobs
import numpy as np
from etils import epath

from idistill_jax import config, processes, sharding
from idistill_jax.retrieval import ann, exact, hits, index

K, IDS = 7, [f"p{i}" for i in range(803)]

if __name__ == "__main__":
  args = jobs.parser().parse_args()
  launch = args.coordinator and processes.Launch(
    coordinator=args.coordinator, count=args.processes, index=args.process, patience=args.patience)
  spread, load, shares, opened = exact._spread, ann.load, set(), []

  def telling(*what):
    made = spread(*what)
    shares.add(sum(shard.data.size for shard in made.addressable_shards) / made.size)
    return made

  exact._spread, ann.load = telling, lambda folder: (opened.append(folder), load(folder))[1]
  rng = np.random.default_rng(0)
  vectors, queries = (rng.normal(size=(count, 16)).astype(np.float32) for count in (len(IDS), 20))
  said = {}
  with processes.joined(launch):
    mesh, number = sharding.make_mesh(config.Mesh()), processes.index()
    for kind in ("exact", "scann"):
      folder = args.folder / kind
      folder.mkdir(exist_ok=True)
      # Beyond what there is, so in all leaves: tuned on ten queries it is measured on ten others.
      cfg = config.Index(kind=kind, tuned_depth=K, recall_target=1.1)
      made = index.write(folder, vectors, IDS, cfg, queries, mesh)
      told = epath.Path(args.folder / "told" / f"{kind}.npz")
      search = functools.partial(lambda at: index.open_default(at, IDS, mesh).search(queries, K), folder)
      found = hits.by_first(told, search) if kind == "scann" else search()
      oracle = index.oracle(folder, index.open_exact(folder, IDS, mesh), queries, K)
      measured = index.honesty(folder, IDS, queries, oracle, cfg, mesh)
      said[kind] = {"made": made, "rows": found.rows.tolist(), "recall": measured[f"recall@{K} of exact"]}
  said |= {"shares": sorted(shares), "opens ScaNN": bool(opened)}
  (args.folder / f"{number}.json").write_text(json.dumps(said))
  sys.exit(0)
