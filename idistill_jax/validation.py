"""What a config must obey beyond being one: types and ranges of its values, and fields that must agree."""

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, Literal

from idistill_jax.config import Config, ConfigError, Distillation, Ranker


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
  """Numbers that a field may be, and the words for them; NaN is in none."""

  holds: Callable[[float], bool]
  words: str


AT_LEAST_0 = Range(lambda value: 0 <= value < float("inf"), "0 or more")
AT_LEAST_1 = Range(lambda value: value >= 1, "1 or more")
AT_LEAST_2 = Range(lambda value: value >= 2, "2 or more")
# What is drawn by JAX is drawn by the last 32 bits alone.
A_SEED = Range(lambda value: 0 <= value < 2**32, "from 0 to 2^32 - 1")
A_TEXT = Range(lambda value: value >= 3, "3 or more: two tokens only frame a text")
ABOVE_0 = Range(lambda value: 0 < value < float("inf"), "more than 0")
SHARE = Range(lambda value: 0 <= value <= 1, "a share from 0 to 1")
SHARE_ABOVE_0 = Range(lambda value: 0 < value <= 1, "above 0, and 1 at most")
SHARE_BELOW_1 = Range(lambda value: 0 <= value < 1, "from 0 to below 1")
PART = Range(lambda value: 0 < value < 1, "between 0 and 1")
# Losses that compare the passages of a list with each other alone: of one passage they learn nothing.
WITHIN_LISTS = ("kl_list", "margin_mse")

_OPTIM = {
  "peak_lr": ABOVE_0, "warmup_fraction": SHARE, "weight_decay": AT_LEAST_0, "b1": SHARE_BELOW_1, "b2": SHARE_BELOW_1,
  "clip_norm": ABOVE_0,
}
_TRAINING = {
  "passages_per_list": AT_LEAST_1, "always_best": AT_LEAST_0, "lists_per_batch": AT_LEAST_1, "passes": AT_LEAST_1,
  "epochs": AT_LEAST_1, "checkpoint_every": AT_LEAST_1, "frozen_layers": AT_LEAST_0,
}
_DISTILLATION = _TRAINING | {"trainings": AT_LEAST_1, "order_temperature": ABOVE_0, "student_temperature": ABOVE_0}
# Places of the deepest measure, recall@100.
DEEPEST = 100
# Section -> its numbers, every one of them; None is in range where a field may be None.
RANGES: dict[str, dict[str, Range]] = {
  "": {"seed": A_SEED},
  "mesh": dict.fromkeys(("data", "fsdp", "tensor"), AT_LEAST_1),
  "collection": {"train_fraction": PART} | dict.fromkeys(("max_passages", "max_queries_per_split"), AT_LEAST_1),
  "queries": {"near_duplicate": SHARE_ABOVE_0, "held_out": SHARE_BELOW_1} | dict.fromkeys(
    ("passages", "passage_tokens", "clusters", "round_trip_depth"), AT_LEAST_1),
  "encoder": dict.fromkeys(("row_tokens", "list_row_tokens", "tokens_per_step"), AT_LEAST_1) | dict.fromkeys(
    ("query_tokens", "passage_tokens", "list_passage_tokens", "pair_passage_tokens"), A_TEXT),
  "candidates": {"depth": AT_LEAST_1},
  "labels": {
    # One passage has no order.
    **dict.fromkeys(("list_size", "window"), AT_LEAST_2),
    **dict.fromkeys(("lists", "passage_tokens", "stride", "orders", "max_output_tokens", "concurrency", "attempts"),
                    AT_LEAST_1),
    **dict.fromkeys(("timeout_seconds", "requests_per_minute", "tokens_per_minute"), ABOVE_0),
    **dict.fromkeys(("refused_retries", "dollars_per_million_input_tokens", "dollars_per_million_output_tokens",
                     "max_dollars", "max_tokens", "batch_poll_seconds"), AT_LEAST_0),
  },
  "direct": _DISTILLATION, "direct.optim": _OPTIM,
  # With one passage of a list there is nothing that a ranker's loss could compare.
  "ranker": _TRAINING | {"top_places": AT_LEAST_1, "similarity_weight": AT_LEAST_0, "passages_per_list": AT_LEAST_2},
  "ranker.optim": _OPTIM,
  "scores": {"depth": AT_LEAST_1, "unlabelled_queries": AT_LEAST_0},
  # At a reach of 0 nothing was learned.
  "retriever": _DISTILLATION | {"teacher_temperature": ABOVE_0, "direct_share": SHARE, "reach": ABOVE_0},
  "retriever.optim": _OPTIM,
  "index": {"recall_target": SHARE_ABOVE_0} | dict.fromkeys(
    ("tuned_depth", "tuning_queries", "dimensions", "scann_shard_passages"), AT_LEAST_1),
  "evaluate": dict.fromkeys(("depth", "relevant_from", "rerank_depth", "resamples"), AT_LEAST_1),
  "answer": dict.fromkeys(("passages", "passage_tokens", "questions"), AT_LEAST_1) | dict.fromkeys(
    ("dollars_per_million_input_tokens", "dollars_per_million_output_tokens"), AT_LEAST_0),
}


def validate(cfg: Config) -> None:
  """Raises ConfigError where a value is not of its field's type or range, and where fields contradict each other."""
  _check_types("", cfg)
  _check_ranges("", cfg)
  rules = (
    (cfg.labels.stride <= cfg.labels.window, "labels.stride must be labels.window at most: else passages go unseen"),
    (cfg.labels.max_dollars is None or not cfg.labels.has_prices_of_another,
     f"labels.max_dollars={cfg.labels.max_dollars} is counted with the prices of {cfg.labels.priced_model}, and asked "
     f"is {cfg.labels.model}: set labels.dollars_per_million_input_tokens and dollars_per_million_output_tokens to its "
     f"prices (0 for a model of your own) and labels.priced_model={cfg.labels.model}, or labels.max_dollars=none"),
    (cfg.labels.max_dollars is None or None not in (
      cfg.labels.dollars_per_million_input_tokens, cfg.labels.dollars_per_million_output_tokens),
     "labels.max_dollars needs labels.dollars_per_million_input_tokens and dollars_per_million_output_tokens"),
    ((cfg.answer.dollars_per_million_input_tokens is None) == (cfg.answer.dollars_per_million_output_tokens is None),
     "answer.dollars_per_million_input_tokens and dollars_per_million_output_tokens go together"),
    (cfg.answer.systems == "none" or cfg.labels.max_dollars is None
     or cfg.answer.model is None or cfg.answer.dollars_per_million_input_tokens is not None,
     "labels.max_dollars holds for the reader too, so answer.model needs answer.dollars_per_million_input_tokens and "
     "dollars_per_million_output_tokens"),
    (not cfg.labels.weigh_by_agreement or cfg.labels.orders >= 2,
     "labels.weigh_by_agreement needs labels.orders of 2 or more: one order agrees with itself"),
    *(rule for name, section in (("direct", cfg.direct), ("ranker", cfg.ranker), ("retriever", cfg.retriever))
      for rule in _of_training(name, section)),
    (cfg.encoder.passage_tokens <= cfg.encoder.row_tokens, "encoder.row_tokens must hold encoder.passage_tokens"),
    (max(cfg.encoder.list_cut, cfg.encoder.query_tokens + cfg.encoder.pair_cut - 1) <= cfg.encoder.list_row,
     "encoder.list_row_tokens must hold a passage of a list, and a pair of query and passage"),
    (cfg.evaluate.depth >= DEEPEST,
     f"evaluate.depth is {cfg.evaluate.depth}; it must be {DEEPEST} or more, as deep as measures look"),
    (cfg.evaluate.rerank_depth <= cfg.evaluate.depth, "evaluate.rerank_depth must be evaluate.depth at most"),
    (cfg.encoder.weights != "", "encoder.weights is empty; name a folder, or a model on the Hub"),
    (cfg.retriever.teacher != "pairs" or cfg.retriever.loss not in WITHIN_LISTS,
     f"retriever.teacher is 'pairs', whose lists hold one passage each, and retriever.loss={cfg.retriever.loss} "
     "compares the passages of a list: take contrastive or kl_batch"),
    (cfg.evaluate.split != "train", "evaluate.split is 'train': what was trained on measures nothing"),
  )
  for holds, message in rules:
    if not holds:
      raise ConfigError(message)


def _of_training(name: str, cfg: Distillation | Ranker) -> tuple[tuple[bool, str], ...]:
  return (
    (cfg.always_best <= cfg.passages_per_list,
     f"{name}.always_best is {cfg.always_best}; it must be {name}.passages_per_list at most, {cfg.passages_per_list}"),
    (cfg.passages_per_list >= 2 or cfg.loss not in WITHIN_LISTS,
     f"{name}.passages_per_list is 1; {name}.loss={cfg.loss} compares the passages of a list, so it must be 2 or more"),
  )


def _check_ranges(prefix: str, section: Any) -> None:
  for name, allowed in RANGES.get(prefix.removesuffix("."), {}).items():
    value = getattr(section, name)
    if value is not None and not allowed.holds(value):
      raise ConfigError(f"{prefix}{name} is {value!r}; it must be {allowed.words}")
  for field in dataclasses.fields(section):
    if dataclasses.is_dataclass(value := getattr(section, field.name)):
      _check_ranges(f"{prefix}{field.name}.", value)


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
