"""Facts of a run -> the model card of an exported folder: YAML front matter and Markdown.

Every number comes from the config, a manifest, the labels or metrics.json; what is not known is said to be so.
"""

import dataclasses
import importlib.resources
import json
import pathlib
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from idistill_jax import config as config_lib
from idistill_jax import records
from idistill_jax.hf import export, measured, networks, weights
from idistill_jax.models import cross_encoder, families
from idistill_jax.workdir import outside

# System in metrics.json that each model is measured as.
Kind = Literal["retriever", "ranker"]
_SYSTEMS: dict[Kind, str] = {"retriever": "distilled", "ranker": "ranker"}
_PIPELINE_TAGS: dict[Kind, str] = {"retriever": "sentence-similarity", "ranker": "text-ranking"}
_TAGS: dict[Kind, tuple[str, ...]] = {
  "retriever": ("sentence-transformers", "feature-extraction", "dense-retrieval", "distillation", "jax"),
  "ranker": ("sentence-transformers", "cross-encoder", "reranker", "distillation", "jax"),
}
# What the retriever learnt from, by config.Retriever.teacher.
_LEARNT_FROM = {
  "ranker": "the scores of a cross-encoder, which itself learnt the order in which a large language model put passages",
  "llm": "the order in which a large language model put passages",
  "both": "the order in which a large language model put passages, and the scores of a cross-encoder taught by it",
  "pairs": "pairs of a query and the passage that it was generated from",
}
# The retriever whose similarity is a term of the ranker's score, by config.Ranker.start.
_STARTS = {
  "weights": "initial retriever (the starting weights, before any training)",
  "direct": "retriever that learnt the large language model's order directly",
}
# Its term in the score, where the exported folder sums, and where the caller does.
_SUMMED = (
  ", plus {weight} times the similarity that the\n{start} gives the pair.\n"
  "That retriever lies in {folder} and reads each text alone; nothing is left to be added"
)
_TO_ADD = (
  ", plus {weight} times the similarity that the\n{start} gives the pair.\n"
  "The logit was trained as a correction to that term, and the results below are those of the whole score.\n"
  "That retriever lies in {folder}. A folder within a repository is no name of a model:\n"
  "from the Hub, all of it is fetched first"
)
# How two embeddings are compared, by whether they have unit length.
_COMPARED = {
  True: "Vectors have length 1, so that their inner product is their cosine.",
  False: "Vectors keep their lengths, and are compared by their inner product: an index that scales them to length 1\n"
         "finds something else than was measured.",
}
# Heads of rankers that are exported with code of their own.
_CARRIES_CODE = ("pair_cosine",)
# Of the labels stage's counts: what bears on the data, not on the bill.
_LABEL_COUNTS = ("asked", "lists", "complete", "repaired", "template")
# A passage in the form that every model reads.
_QUERY = "how do I merge two sorted files?"
_PASSAGE = records.Passage(
  id="heapq.merge", title="heapq.merge", text="Merge multiple sorted inputs into a single sorted output."
).full_text
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
  """What a card tells.

  collection, labels, training: counts in the manifests of those stages.  longest_list: passages of the longest that the
  teacher ordered.  versions: of the libraries it was trained with.  metrics: metrics.json, or None where nothing was
  measured; caveats: what must be said beside it.  retriever: whose weights all models start from.
  """

  cfg: config_lib.Config
  retriever: networks.Retriever
  collection: Mapping[str, Any]
  labels: Mapping[str, Any]
  longest_list: int
  training: Mapping[str, Any]
  versions: Mapping[str, str]
  metrics: Mapping[str, Any] | None
  caveats: Sequence[str] = ()


def render(kind: Kind, facts: Facts, name: str) -> str:
  """The card of the model that is loaded as `name` (a folder or a repository)."""
  readme = _readme(facts.retriever.source)
  base = base_model(facts.cfg.encoder.weights, readme)
  licence = licence_of(readme)
  encoder = facts.cfg.encoder
  at_hub = f"[{base}](https://huggingface.co/{base})"
  return _template(f"{kind}.md").substitute(
    front_matter=_front_matter(kind, base, licence),
    title=facts.cfg.name,
    name=name,
    width=facts.retriever.embedding.width(facts.retriever.sizes.hidden_size),
    starting_point=at_hub if base else f"the weights `{_without_path(encoder.weights)}`",
    learnt_from=_learnt_from(facts.cfg.retriever),
    query_tokens=encoder.query_tokens,
    passage_tokens=encoder.passage_tokens,
    list_tokens=encoder.list_cut,
    query=json.dumps(_QUERY),
    passage=json.dumps(_PASSAGE),
    encode_query=_encoding(facts)[0],
    encode_document=_encoding(facts)[1],
    prompts=_prompts(facts),
    compared=_COMPARED[facts.retriever.embedding.normalize],
    snippet=_snippet(facts, name),
    score=_score(facts),
    data=_data(facts),
    recipe=_recipe(kind, facts),
    results=measured.results(_SYSTEMS[kind], facts.metrics, facts.caveats, facts.cfg),
    licence=_licence(licence),
    versions=_bullets(facts.versions),
  )


def _encoding(facts: Facts) -> tuple[str, str]:
  """The methods of SentenceTransformer that embed queries and passages as training did."""
  return ("encode_query", "encode_document") if facts.retriever.prompts.any else ("encode", "encode")


def _prompts(facts: Facts) -> str:
  prompts = facts.retriever.prompts
  if not prompts.any:
    return ""
  said = [f"{texts} {json.dumps(prompt, ensure_ascii=False)}" if prompt else f"{texts} nothing"
          for texts, prompt in (("queries", prompts.query), ("passages", prompts.passage))]
  return f" Before {' and before '.join(said)} is read; `encode_query` and `encode_document` put it there."


def of_similarity(facts: Facts) -> str:
  """The card of the retriever that lies in a ranker's folder."""
  readme, ranker = _readme(facts.retriever.source), facts.cfg.ranker
  licence = licence_of(readme)
  return _template("similarity.md").substitute(
    front_matter=_front_matter("retriever", base_model(facts.cfg.encoder.weights, readme), licence),
    title=facts.cfg.name, start=_STARTS[ranker.start], weight=ranker.similarity_weight, licence=_licence(licence),
  )


def _template(name: str) -> string.Template:
  path = importlib.resources.files("idistill_jax.hf").joinpath("templates", name)
  return string.Template(path.read_text(encoding="utf-8"))


def _learnt_from(cfg: config_lib.Retriever) -> str:
  said = _LEARNT_FROM[cfg.teacher]
  if cfg.direct_share is not None:
    said += f"; its weights are averaged with those of one that learnt {_LEARNT_FROM['llm']} (by {cfg.direct_share})"
  return said


def licence_of(readme: str) -> str | None:
  """`license` of a README's front matter."""
  front = re.match(r"\s*---\n(.*?)\n---\n", readme, re.DOTALL)
  # Of a list of them, the first.
  stated = front and re.search(r"^license:[ \t]*(?:\n[ \t]*-[ \t]*|\[)?['\"]?([\w.-]+)", front[1], re.MULTILINE)
  return stated[1] if stated else None


def base_model(stated: str, readme: str) -> str | None:
  """Name on the Hub of the starting weights: `stated` where it is one, else the one that their README loads."""
  if _HUB_NAME.fullmatch(stated) and not pathlib.Path(stated).exists():
    return stated
  shown = re.search(r"SentenceTransformer\(\s*['\"]([^'\"]+)['\"]", readme)
  return shown[1] if shown and _HUB_NAME.fullmatch(shown[1]) else None


def _readme(source: pathlib.Path) -> str:
  path = source / "README.md"
  return path.read_text(encoding="utf-8") if path.exists() else ""


def _without_path(stated: str) -> str:
  """A folder's own name: where it lies on this machine is nobody's business."""
  there = outside.at(stated)
  return there.name if isinstance(there, outside.Object) or there.exists() else stated


def _front_matter(kind: Kind, base: str | None, licence: str | None) -> str:
  lines = ["---", "library_name: sentence-transformers", f"pipeline_tag: {_PIPELINE_TAGS[kind]}"]
  lines += [f"license: {licence}"] if licence else []
  lines += [f"base_model: {base}"] if base else []
  lines += ["tags:", *(f"- {tag}" for tag in _TAGS[kind]), "---"]
  return "\n".join(lines)


def _snippet(facts: Facts, name: str) -> str:
  """Code that gives pairs the whole score, similarity included where training added it."""
  ranker = facts.cfg.ranker
  texts = [f"queries = [{json.dumps(_QUERY)}]", f"passages = [{json.dumps(_PASSAGE)}]"]
  predict = "ranker.predict(list(zip(queries, passages)))"
  if ranker.head in _CARRIES_CODE or ranker.similarity_weight is None:
    trust = ", trust_remote_code=True" if ranker.head in _CARRIES_CODE else ""
    return "\n".join([
      "from sentence_transformers import CrossEncoder", "", *texts,
      f'ranker = CrossEncoder("{name}"{trust})', f"scores = {predict}", "print(scores)",
    ])
  fetch = ["from huggingface_hub import snapshot_download"] if _HUB_NAME.fullmatch(name) else []
  return "\n".join([
    *fetch, "from sentence_transformers import CrossEncoder, SentenceTransformer", "", *texts,
    f'folder = snapshot_download("{name}")' if fetch else f'folder = "{name}"',
    f'ranker, start = CrossEncoder(folder), SentenceTransformer(folder + "/{weights.SIMILARITY}")',
    "q, p = start.{}(queries), start.{}(passages)".format(*_encoding(facts)),
    f"scores = {predict} + {ranker.similarity_weight} * (q * p).sum(-1)", "print(scores)",
  ])


def _score(facts: Facts) -> str:
  """What the score is, what has to be loaded for it, and where texts are cut."""
  ranker, encoder = facts.cfg.ranker, facts.cfg.encoder
  cut = export.Cut(query_tokens=encoder.query_tokens, passage_tokens=encoder.pair_cut)
  template, term = ("whole_score.md", _SUMMED) if ranker.head in _CARRIES_CODE else ("joint_score.md", _TO_ADD)
  added = ranker.similarity_weight is not None
  return _template(template).substitute(
    scale=f"{cross_encoder.PairCosine.SCALE:g}", model=families.FAMILIES[facts.retriever.sizes.model_type].model,
    similarity=term.format(
      weight=ranker.similarity_weight, start=_STARTS[ranker.start], folder=f"`{weights.SIMILARITY}/`"
    ) if added else "",
    query_tokens=cut.query_tokens, pair_passage_tokens=cut.passage_tokens,
    pair_tokens=cut.pair_tokens(facts.retriever.tokenizer),
    passage_cut=f" (at {encoder.passage_tokens} for the similarity)" if added else "",
  ).rstrip()


def _data(facts: Facts) -> str:
  return "\n".join([
    _bullets({"Collection": facts.collection["title"], **{k: v for k, v in facts.collection.items() if k != "title"}}),
    f"- Teacher: {_teacher(facts)}; lists of at most {facts.longest_list} passages were put in order",
    _bullets({f"Teacher's lists, {k}": facts.labels[k] for k in _LABEL_COUNTS if k in facts.labels}),
  ])


def _teacher(facts: Facts) -> str:
  """Rankings and answers that were there before the run are not from `labels.model`: it was asked for none of them."""
  labels, there = facts.cfg.labels, facts.cfg.collection
  if "made_elsewhere" in facts.labels:
    names = (there.rankings_model, pathlib.PurePath(str(there.rankings)).name)
    return f"rankings made elsewhere ({', '.join(f'`{name}`' for name in names if name)})"
  if labels.provider == "replay":
    return "a large language model, by answers recorded earlier"
  return f"`{labels.model}` (provider `{labels.provider}`)"


def _recipe(kind: Kind, facts: Facts) -> str:
  section = config_lib.as_dict(facts.cfg)[kind]
  optim = {f"optim.{k}": v for k, v in section.pop("optim").items()}
  rows = section | optim | {f"training.{k}": _said(v) for k, v in facts.training.items()} | {"seed": facts.cfg.seed}
  return "\n".join(["| setting | value |", "|---|---|", *(f"| {k} | `{v}` |" for k, v in rows.items())])


def _licence(licence: str | None) -> str:
  if licence is None:
    return "The starting weights come without a stated licence: find theirs before you pass this model on."
  return f"The starting weights are under `{licence}`, as is this model; the licence of the data is the data's own."


def _bullets(facts: Mapping[str, Any]) -> str:
  return "\n".join(f"- {name}: {_said(value)}" for name, value in facts.items())


def _said(value: Any) -> str:
  return ", ".join(f"{name} {one}" for name, one in value.items()) if isinstance(value, Mapping) else str(value)
