"""More passages, or newer texts of some, into what a finished workdir searches; nothing is trained or built anew.

    python -m idistill_jax.upsert --workdir=runs/quickstart --passages=more.jsonl --into=runs/grown

The folder `into` searches (`idistill_jax.search`, `idistill_jax.serve`) as the workdir does, over old and new passages;
the workdir stays as it is.  Its stages' keys say that they are not what the config alone would make, so a pipeline run
in `into` makes them anew, from the config's collection.
"""

import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Sequence

import numpy as np
from absl import app, flags, logging

from idistill_jax import cli, records, search, sharding
from idistill_jax import config as config_lib
from idistill_jax.data import characters, example, similarity, stream, tables
from idistill_jax.data.corpora import files as corpus_files
from idistill_jax.retrieval import index
from idistill_jax.stages import index as index_stage
from idistill_jax.train import inference
from idistill_jax.workdir import artifacts, configs, files, outdated, outside, remote

_PASSAGES = flags.DEFINE_string("passages", None, "Passages to add or to replace: a .jsonl or .tsv file (or .gz).")
_INTO = flags.DEFINE_string("into", None, "A new folder that is searched like the workdir.")
# Queries whose recall is looked at afterwards: exact search is slow where ScaNN pays.
LOOKED_AT = 100


def upsert(
  workdir: str | os.PathLike[str], path: str | os.PathLike[str], into: str | os.PathLike[str]
) -> dict[str, int | float]:
  """Makes the folder `into`; returns how many passages were added and replaced, how many there are, and where ScaNN
  searches them, its recall, of which it warns below the config's target.

  Raises FileExistsError where `into` is there, collection.CollectionError for a malformed file, ValueError for a file
  without passages, for an index of 8-bit integers and for `into` in a bucket, and as `search.Searcher` does for an
  unfinished workdir.
  """
  if remote.scheme(os.fspath(into)):
    raise ValueError(f"--into={into}: a folder on this machine is needed; copy it there when it is made")
  cfg, into = configs.load(workdir), pathlib.Path(into)
  old = artifacts.Workdir(workdir)
  old.inputs(search.STAGE, cfg)  # names what is missing
  outdated.warn(old, search.STAGE.reads)
  if into.exists():
    raise FileExistsError(f"{into}: is there already; name a new folder")
  index.check_grows(old.folder("index"))  # before any model encodes
  read = list(corpus_files.read_passages(outside.file(path, "--passages")))
  new = tuple(stream.usable(read))
  if not new:
    raise ValueError(f"{path}: no passage with a text")
  if len(new) < len(read):
    logging.warning("%s: %d passages without text are left out", path, len(read) - len(new))
  if cut := sum(not characters.is_whole(passage.full_text) for passage in read):
    logging.warning("%s: %d passages were cut within a character, for which U+FFFD stands", path, cut)

  part = artifacts.Workdir(into.with_name(f".{into.name}-part"))
  shutil.rmtree(part.root, ignore_errors=True)
  try:
    _copy(old, part)
    part.write(artifacts.CONFIG, config_lib.as_json(cfg))
    counts = _grow(part, new)
    for name in ("collection", "candidates", "train_direct", "index"):
      _mark(part, name, outside.sha256(path), counts)
    part.root.rename(into)
  except BaseException:
    shutil.rmtree(part.root, ignore_errors=True)
    raise
  return counts


def _copy(old: artifacts.Workdir, part: artifacts.Workdir) -> None:
  """What search reads, by hard links where the disk has them; files that grow are written anew beside, and the index's
  may be written over."""
  for name in search.STAGE.reads:
    shutil.copytree(
      old.folder(name), part.folder(name), copy_function=shutil.copy2 if name == "index" else files.link
    )


def _tuned_on(part: artifacts.Workdir) -> list[str]:
  """Some of the questions that ScaNN was tuned on; none where search is exact."""
  path = part.folder("index") / index_stage.TUNING
  if not path.exists():
    return []
  table = tables.load_queries(part.folder("collection"))
  ids = itertools.chain.from_iterable(json.loads(path.read_text(encoding="utf-8")).values())
  return [table.by_id(one).text for one in itertools.islice(ids, LOOKED_AT)]


def _grow(part: artifacts.Workdir, new: Sequence[records.Passage]) -> dict[str, int | float]:
  before = tables.load_passages(part.folder("collection"))
  latest = {passage.id: passage for passage in new}
  added = [passage for passage in new if passage.id not in before]
  after = itertools.chain((latest.get(passage.id, passage) for passage in before), added)
  example.write_records(part.folder("collection"), tables.PASSAGES, after)
  tables.note_places(part.folder("collection"))

  texts, ids = [passage.full_text for passage in new], [passage.id for passage in new]
  rows = [before.row(one) for one in ids if one in before]
  old_places = [place for place, one in enumerate(ids) if one in before]
  new_places = [place for place, one in enumerate(ids) if one not in before]
  for stage, model in (("candidates", None), ("train_direct", part.folder("train_direct"))):
    retriever = inference.load_retriever(sharding.fitted(configs.made_with(part, stage)), model)
    vectors_NxE = retriever.encode_passages(texts)
    path = part.folder(stage) / similarity.PASSAGES
    grown = np.concatenate([np.load(path), vectors_NxE[new_places]])
    grown[rows] = vectors_NxE[old_places]
    # A new file in its place: the old one is the workdir's, too.
    path.unlink()
    np.save(path, grown)
  cfg = sharding.fitted(configs.made_with(part, "index"))
  distilled = inference.load_retriever(cfg, part.folder("train_retriever"))
  grown_ids = index.upsert(part.folder("index"), before.ids, ids, distilled.encode_passages(texts))
  counts: dict[str, int | float] = {"added": len(added), "replaced": len(rows), "passages": len(before) + len(added)}
  if not (tuned := _tuned_on(part)):
    return counts
  found = recall(cfg, part.folder("index"), grown_ids, distilled.encode_queries(tuned))
  return counts | {f"recall@{cfg.index.tuned_depth}": round(found, 4)}


def recall(cfg: config_lib.Config, folder: pathlib.Path, ids: Sequence[str], queries_QxE: np.ndarray) -> float:
  """The share of exact search's first that ScaNN still finds; warns where it is below the target."""
  k, target = cfg.index.tuned_depth, cfg.index.recall_target
  found = index.recall(folder, ids, queries_QxE, k, sharding.make_mesh(cfg.mesh))
  if found < target:
    logging.warning("ScaNN finds %.3f of exact search's first %d now, less than index.recall_target %g: it was built "
                    "and tuned without the new passages; put them into the collection and run the index stage", found,
                    k, target)
  return found


def _mark(part: artifacts.Workdir, stage: str, what: str, counts: dict[str, int | float]) -> None:
  """Gives a folder that has grown a key of its own, and says what came into it."""
  manifest = part.manifest(stage) or {}
  manifest["key"] = config_lib.digest([manifest["key"], what])
  manifest["records"] = files.sizes(part.folder(stage))
  manifest["counts"] |= {"passages": counts["passages"], "upserted": counts["added"] + counts["replaced"]}
  if stage == "index":
    manifest["counts"] |= {f"{name} since": value for name, value in counts.items() if name.startswith("recall@")}
  path = part.folder(stage) / artifacts.MANIFEST
  path.unlink()
  path.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def main(argv: Sequence[str]) -> None:
  workdir, passages, into = cli.WORKDIR.value, _PASSAGES.value, _INTO.value
  if len(argv) > 1 or not (workdir and passages and into):
    raise app.UsageError(
      "--workdir, --passages and --into are needed: "
      "python -m idistill_jax.upsert --workdir=runs/quickstart --passages=more.jsonl --into=runs/grown"
    )
  cli.quiet_libraries()
  with cli.ending_in_words():
    counts = upsert(workdir, passages, into)
  print(f"{into}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))


if __name__ == "__main__":
  app.run(main)
