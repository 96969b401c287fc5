"""More passages, newer texts of some, or fewer, in what a finished workdir searches; nothing is trained or built anew.

    python -m idistill_jax.upsert --workdir=runs/quickstart --passages=more.jsonl --into=runs/grown
    python -m idistill_jax.upsert --workdir=runs/quickstart --remove=ids.txt --into=runs/less

The folder `into` searches (`idistill_jax.search`, `idistill_jax.serve`) as the workdir does, over old and new passages
without those that were removed, and has its exported models; the workdir stays as it is.  The keys of folders that
hold passages say that they are not what the config alone would make, so a pipeline run in `into` makes these anew, from
the config's collection; the ranker, the distilled retriever and their export stay.
"""

import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Container, Mapping, Sequence, Set

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
_REMOVE = flags.DEFINE_string(
  "remove", None, "Ids of passages to leave out: a file with one a line, or a .jsonl or .tsv file (or .gz) with an id.")
_INTO = cli.define_new_folder("into", "A new folder that is searched like the workdir.")
# Queries whose recall is looked at afterwards: exact search is slow where ScaNN pays.
LOOKED_AT = 100
# Stages whose folders hold passages, or their vectors.
CHANGED = ("collection", "candidates", "train_direct", "index")


def upsert(
  workdir: str | os.PathLike[str], path: str | os.PathLike[str] | None, into: str | os.PathLike[str],
  remove: str | os.PathLike[str] | None = None,
) -> dict[str, int | float]:
  """Makes the folder `into`; returns how many passages were added, replaced and removed, how many there are, and where
  ScaNN searches them, its recall, of which it warns below the config's target.

  path, remove: files of passages, and of ids that go; one may be None.  Raises FileExistsError where `into` is there,
  collection.CollectionError for a malformed file, ValueError for a file without passages, for ids that are unknown,
  that `path` brings as well, or that are all there are, for new passages to an index of 8-bit integers and for `into`
  in a bucket, and as `search.Searcher` does for an unfinished workdir.
  """
  if remote.scheme(os.fspath(into)):
    raise ValueError(f"--into={into}: a folder on this machine is needed; copy it there when it is made")
  cfg, into = configs.load(workdir), pathlib.Path(into)
  old = artifacts.Workdir(workdir)
  old.inputs(search.STAGE, cfg)  # names what is missing
  outdated.warn(old, search.STAGE.reads)
  if into.exists():
    raise FileExistsError(f"{into}: is there already; name a new folder")
  if path is not None:
    index.check_grows(old.folder("index"))  # before any model encodes
  new = () if path is None else _read(path)
  gone = frozenset[str]() if remove is None else _removed(remove, old, {passage.id for passage in new})

  part = artifacts.Workdir(into.with_name(f".{into.name}-part"))
  shutil.rmtree(part.root, ignore_errors=True)
  try:
    _copy(old, part)
    part.write(artifacts.CONFIG, config_lib.as_json(cfg))
    counts = _grow(part, new, gone)
    came_of = {name: outside.sha256(one) for name, one in (("passages", path), ("remove", remove)) if one is not None}
    for name in CHANGED:
      _mark(part, name, old.stated, came_of, counts)
    part.root.rename(into)
  except BaseException:
    shutil.rmtree(part.root, ignore_errors=True)
    raise
  return counts


def _read(path: str | os.PathLike[str]) -> tuple[records.Passage, ...]:
  read = list(corpus_files.read_passages(outside.file(path, "--passages")))
  new = tuple(stream.usable(read))
  if not new:
    raise ValueError(f"{path}: no passage with a text")
  if len(new) < len(read):
    logging.warning("%s: %d passages without text are left out", path, len(read) - len(new))
  if cut := sum(not characters.is_whole(passage.full_text) for passage in read):
    logging.warning("%s: %d passages were cut within a character, for which U+FFFD stands", path, cut)
  return new


def _removed(path: str | os.PathLike[str], old: artifacts.Workdir, new: Container[str]) -> frozenset[str]:
  """Ids that a file names, each of which must be there, and be none of the `new` ones."""
  there, found = tables.load_passages(old.folder("collection")), set[str]()
  for where, one in corpus_files.read_ids(outside.file(path, "--remove")):
    if one not in there:
      raise ValueError(f"{where}: {old.stated}/collection has no passage {one!r}; take the line out, or correct the id")
    if one in new:
      raise ValueError(f"{where}: the passage {one!r} is in --passages, too; take it out of one of the two")
    found.add(one)
  if not found:
    raise ValueError(f"{path}: no id; write one a line")
  if len(found) == len(there):
    raise ValueError(f"{path}: names all {len(there):,} passages of {old.stated}/collection; some must be left")
  return frozenset(found)


def _copy(old: artifacts.Workdir, part: artifacts.Workdir) -> None:
  """What search reads, by hard links where the disk has them; files that grow are written anew beside, and the index's
  may be written over."""
  # Exported models of an earlier training would be told for those that are there.
  exported = ("export",) if search.exported(old) else ()
  for name in (*search.STAGE.reads, *exported):
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


def _grow(part: artifacts.Workdir, new: Sequence[records.Passage], gone: Set[str]) -> dict[str, int | float]:
  """gone: ids, all of them there and none of them new."""
  before = tables.load_passages(part.folder("collection"))
  latest = {passage.id: passage for passage in new}
  added = [passage for passage in new if passage.id not in before]
  kept = np.arange(len(before))
  if gone:
    kept = np.delete(kept, [before.row(one) for one in gone])
  after = itertools.chain((latest.get(passage.id, passage) for passage in before if passage.id not in gone), added)
  example.write_records(part.folder("collection"), tables.PASSAGES, after)
  tables.note_places(part.folder("collection"))

  texts, ids = [passage.full_text for passage in new], [passage.id for passage in new]
  rows = np.searchsorted(kept, [before.row(one) for one in ids if one in before])
  old_places = [place for place, one in enumerate(ids) if one in before]
  new_places = [place for place, one in enumerate(ids) if one not in before]
  for stage, model in (("candidates", None), ("train_direct", part.folder("train_direct"))):
    path = part.folder(stage) / similarity.PASSAGES
    grown = np.load(path, mmap_mode="r")[kept]
    if new:
      retriever = inference.load_retriever(sharding.fitted(configs.made_with(part, stage)), model)
      vectors_NxE = retriever.encode_passages(texts)
      grown[rows] = vectors_NxE[old_places]
      grown = np.concatenate([grown, vectors_NxE[new_places]])
    # A new file in its place: the old one is the workdir's, too.
    path.unlink()
    np.save(path, grown)
  counts: dict[str, int | float] = {"added": len(added), "replaced": len(rows), "passages": len(kept) + len(added)}
  return counts | ({"removed": len(gone)} if gone else {}) | _grow_index(part, before.ids, gone, ids, texts)


def _grow_index(part: artifacts.Workdir, before: Sequence[str], gone: Set[str], ids: Sequence[str],
                texts: Sequence[str]) -> dict[str, float]:
  """Of what ScaNN finds then; nothing where search is exact."""
  folder, tuned = part.folder("index"), _tuned_on(part)
  left = index.remove(folder, before, gone) if gone else before
  if not (ids or tuned):
    return {}
  cfg = sharding.fitted(configs.made_with(part, "index"))
  distilled = inference.load_retriever(cfg, part.folder("train_retriever"))
  grown = index.upsert(folder, left, ids, distilled.encode_passages(texts)) if ids else left
  if not tuned:
    return {}
  return {f"recall@{cfg.index.tuned_depth}": round(recall(cfg, folder, grown, distilled.encode_queries(tuned)), 4)}


def recall(cfg: config_lib.Config, folder: pathlib.Path, ids: Sequence[str], queries_QxE: np.ndarray) -> float:
  """The share of exact search's first that ScaNN still finds; warns where it is below the target."""
  k, target = cfg.index.tuned_depth, cfg.index.recall_target
  found = index.recall(folder, ids, queries_QxE, k, sharding.make_mesh(cfg.mesh))
  if found < target:
    logging.warning("ScaNN finds %.3f of exact search's first %d now, less than index.recall_target %g: it was built "
                    "and tuned for other passages; change those of the collection and run the index stage", found, k,
                    target)
  return found


def _mark(part: artifacts.Workdir, stage: str, made_from: str, came_of: Mapping[str, str],
          counts: dict[str, int | float]) -> None:
  """Gives a folder that has changed a key of its own, and says of what it was made.

  came_of: flag -> the hash of its file.
  """
  manifest = part.manifest(stage) or {}
  # As it was before passages could be removed.
  what = came_of if "remove" in came_of else came_of["passages"]
  manifest["key"] = config_lib.digest([manifest["key"], what])
  manifest["records"] = files.sizes(part.folder(stage))
  manifest["upserted_from"] = made_from
  said = {"passages": counts["passages"], "upserted": counts["added"] + counts["replaced"]}
  manifest["counts"] = {name: value for name, value in manifest["counts"].items() if name != "removed"} | said
  manifest["counts"] |= {name: counts[name] for name in ("removed",) if name in counts}
  if stage == "index":
    manifest["counts"] |= {f"{name} since": value for name, value in counts.items() if name.startswith("recall@")}
  path = part.folder(stage) / artifacts.MANIFEST
  path.unlink()
  path.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def main(argv: Sequence[str]) -> None:
  workdir, passages, remove, into = cli.WORKDIR.value, _PASSAGES.value, _REMOVE.value, _INTO.value
  if len(argv) > 1 or not (workdir and (passages or remove) and into):
    raise app.UsageError(
      "--workdir, --into, and --passages or --remove or both, are needed: "
      "python -m idistill_jax.upsert --workdir=runs/quickstart --passages=more.jsonl --into=runs/grown"
    )
  cli.quiet_libraries()
  with cli.ending_in_words():
    counts = upsert(workdir, passages, into, remove)
  print(f"{into}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))


if __name__ == "__main__":
  app.run(main)
