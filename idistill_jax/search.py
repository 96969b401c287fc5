"""A question to the exported models of a workdir: what the initial retriever, the distilled one and the ranker find.

python -m idistill_jax.search --workdir=runs/quickstart "how do I merge two sorted iterables"
"""

import dataclasses
import functools
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

from absl import app, flags
from rich import box, table
from rich import console as rich_console
from rich.text import Text

from idistill_jax import cli, records, sharding
from idistill_jax import config as config_lib
from idistill_jax.data import characters, similarity, tables
from idistill_jax.hf import weights
from idistill_jax.retrieval import exact, hits, index, rerank
from idistill_jax.train import inference
from idistill_jax.workdir import artifacts, configs, outdated

_TOP = flags.DEFINE_integer("top", 5, "Passages shown for each system.", lower_bound=1)

# How the passages of each kind of index are searched, in a reader's words.
NAMED = {"exact": "exact search", "scann": "ScaNN"}
# Longer texts would fill the screen.
SHOWN_CHARACTERS = 160
# What it reads of a workdir, as a stage would.
STAGE = artifacts.Stage(
  name="search", reads=("collection", "candidates", "train_direct", "train_ranker", "train_retriever", "index"),
  config=(), run=lambda job: None,
)


class EmptyQueryError(ValueError):
  """There is nothing to search for."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
  """passages: best first.  milliseconds: from the query's text to them, models loaded and compiled.  by: the kind of
  search that is part of these, as systems differ in it where the index is ScaNN."""

  passages: tuple[records.Passage, ...]
  milliseconds: float
  by: str


class Searcher:
  """The models and indexes of a finished workdir, loaded once for any number of questions.

  Models come from the folders that were exported, where these hold what was trained last; else from the trainings.
  Where what is searched was made of an earlier model, that is warned of, with the commands that mend it.

  Raises inputs.MissingInputError for the first stage that has not run, naming its command, and
  FileNotFoundError where nothing has been run in that folder.
  """

  def __init__(self, workdir: str | os.PathLike[str]):
    home, cfg = artifacts.Workdir(workdir), sharding.fitted(configs.load(workdir))
    made_with = lambda stage: sharding.fitted(configs.made_with(home, stage))
    folders = home.inputs(STAGE, cfg)
    outdated.warn(home, STAGE.reads)
    folder_of = exported(home)
    self._depth = made_with("evaluate").evaluate.rerank_depth
    ranker = made_with("train_ranker")
    start_stage = ranker.ranker.start_stage
    # Numbers of passages that have been asked for: the first time compiles.
    self._compiled: set[int] = set()
    self._passages = tables.load_passages(folders["collection"])
    # Each embeds a question as the passages were that it is compared with.
    one_question = lambda stage: _of_one_question(made_with(stage))
    self._initial = inference.load_retriever(one_question("candidates"), None)
    model = lambda load, its, name, stage: load(*_model(its, folder_of.get(name), folders[stage]))
    self._distilled = model(inference.load_retriever, one_question("index"), "retriever", "train_retriever")
    self._ranker = model(inference.load_ranker, _of_its_pairs(ranker, self._depth), "ranker", "train_ranker")
    # The one whose similarity is a term of the ranker's score; of the starting weights, one copy does.
    self._start = self._initial
    if start_stage == "train_direct":
      self._start = model(inference.load_retriever, one_question(start_stage), "similarity", start_stage)
    self._start_PxE = similarity.load(folders[start_stage]).passages_PxE
    mesh = sharding.local_mesh(cfg.mesh)
    self._initial_index = exact.Exact(
      similarity.load(folders["candidates"]).passages_PxE, self._passages.ids, mesh=mesh)
    self._distilled_index = index.open_default(folders["index"], self._passages.ids, mesh)
    self._by = {"distilled": NAMED[index.kind_of(folders["index"])]}

  def search(self, query: str, k: int = 5) -> dict[str, Answer]:
    """System -> its k best passages; "ranker" reorders the initial retriever's first `evaluate.rerank_depth`.

    Raises EmptyQueryError for a query of white space alone, ValueError for one that is no text, and for k < 1.
    """
    check(query, k)
    finds = {
      "initial": functools.partial(self._retrieve, self._initial, self._initial_index, query, k),
      "distilled": functools.partial(self._retrieve, self._distilled, self._distilled_index, query, k),
      "ranker": functools.partial(self._rerank, query, k),
    }
    if k not in self._compiled:
      for find in finds.values():
        find()
      self._compiled.add(k)
    return {system: self._answer(system, find, k) for system, find in finds.items()}

  def _retrieve(
    self, retriever: inference.Retriever, searcher: hits.Searcher, query: str, k: int
  ) -> list[str]:
    found = searcher.search(retriever.encode_queries([query]), k)
    return [self._passages.ids[row] for row in found.rows[0]]

  def _rerank(self, query: str, k: int) -> list[str]:
    found = self._retrieve(self._initial, self._initial_index, query, max(self._depth, k))
    (asked_E,) = self._start.encode_queries([query])
    (order,) = rerank.reorder(
      self._ranker.score_rows, [query], self._passages.texts, [found], self._passages.row,
      lambda _, rows: self._start_PxE[rows] @ asked_E, self._depth,
    )
    return order

  def _answer(self, system: str, find: Callable[[], list[str]], k: int) -> Answer:
    started = time.perf_counter()
    ids = find()
    milliseconds = 1000 * (time.perf_counter() - started)
    return Answer(passages=tuple(self._passages.by_id(one) for one in ids[:k]), milliseconds=milliseconds,
                  by=self._by.get(system, NAMED["exact"]))


def _of_one_question(cfg: config_lib.Config) -> config_lib.Config:
  """It comes alone: a batch as long as one, where an index is encoded with thousands of tokens a step."""
  alone = cfg.encoder.query_tokens
  return dataclasses.replace(cfg, encoder=dataclasses.replace(cfg.encoder, row_tokens=alone, tokens_per_step=alone))


def _of_its_pairs(cfg: config_lib.Config, depth: int) -> config_lib.Config:
  """All `depth` of them at their longest; most fill about half of that, so two steps waste least."""
  step = min(cfg.encoder.tokens_per_step, depth * (cfg.encoder.query_tokens + cfg.encoder.pair_cut) // 2)
  return dataclasses.replace(cfg, encoder=dataclasses.replace(cfg.encoder, tokens_per_step=step))


def exported(home: artifacts.Workdir) -> dict[str, pathlib.Path]:
  """Name of a model -> its exported folder; none where a training has been run again since."""
  there = outdated.manifests(home, ("train_direct", "train_ranker", "train_retriever", "export"))
  if "export" not in there or outdated.made_anew(there, "export"):
    return {}
  folder = home.folder("export")
  places = {"retriever": "retriever", "ranker": "ranker", "similarity": f"ranker/{weights.SIMILARITY}"}
  return {name: folder / place for name, place in places.items() if (folder / place).is_dir()}


def _model(
  cfg: config_lib.Config, exported: pathlib.Path | None, trained: pathlib.Path
) -> tuple[config_lib.Config, pathlib.Path | None]:
  """What loads a model: an exported folder is one of starting weights, like any other in Hugging Face's layout."""
  if exported is None:
    return cfg, trained
  return dataclasses.replace(cfg, encoder=dataclasses.replace(cfg.encoder, weights=str(exported))), None


def check(query: str, k: int) -> None:
  """Raises EmptyQueryError or ValueError for what cannot be searched for."""
  if not query.strip():
    raise EmptyQueryError("the query is empty; ask something")
  if not characters.is_whole(query):
    # A shell's bytes that are no UTF-8.  Why not U+FFFD, as in a corpus: who asks can ask again.
    raise ValueError(f"the query {query!r} is not in UTF-8; ask in that, as with a terminal of a UTF-8 locale")
  if k < 1:
    raise ValueError(f"at least one passage must be asked for, not {k}")


def search(workdir: str | os.PathLike[str], query: str, k: int = 5) -> dict[str, Answer]:
  """One question to a workdir, models loaded for it alone; raises as `Searcher` and its `search` do."""
  check(query, k)
  return Searcher(workdir).search(query, k)


def side_by_side(query: str, answers: Mapping[str, Answer]) -> table.Table:
  """Ranks down, systems across, with the milliseconds of each and the search that took them."""
  made = table.Table(
    title=Text(query), title_justify="left", box=box.SIMPLE_HEAD, show_lines=True, expand=True
  )
  made.add_column("", width=2)
  for system, answer in answers.items():
    made.add_column(Text(f"{system}  {answer.milliseconds:.0f} ms, {answer.by}"), ratio=1)
  for place in range(max(len(answer.passages) for answer in answers.values())):
    cells = [
      _cell(answer.passages[place]) if place < len(answer.passages) else Text("")
      for answer in answers.values()
    ]
    made.add_row(str(place + 1), *cells)
  return made


def _cell(passage: records.Passage) -> Text:
  # Passages of one document may have its title in common.
  beside = f"  {passage.id}" if passage.title not in ("", passage.id) else ""
  text = " ".join(passage.text.split())
  shown = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS].rsplit(" ", 1)[0] + " …"
  return Text.assemble((passage.title or passage.id, "bold"), (beside, "dim"), "\n", (shown, "dim"))


def main(argv: Sequence[str]) -> None:
  workdir = cli.WORKDIR.value
  if not workdir or len(argv) < 2:
    raise app.UsageError(
      '--workdir and a query are needed: python -m idistill_jax.search --workdir=runs/quickstart "..."'
    )
  query = " ".join(argv[1:])
  cli.quiet_libraries()
  with cli.ending_in_words():
    answers = search(workdir, query, _TOP.value)
  rich_console.Console().print(side_by_side(query, answers))


if __name__ == "__main__":
  app.run(main)
