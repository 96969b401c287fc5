"""What a config must obey beyond being one: types of its values, and fields that must agree."""

import dataclasses
import types
import typing
from typing import Any, Literal

from idistill_jax.config import Config, ConfigError


def validate(cfg: Config) -> None:
  """Raises ConfigError where a value is not of its field's type, and where fields contradict each other."""
  _check_types("", cfg)
  rules = (
    (min(cfg.queries.passages or 1, cfg.queries.passage_tokens, cfg.queries.clusters, cfg.queries.round_trip_depth or 1)
     >= 1, "queries.passages, passage_tokens, clusters and round_trip_depth must be 1 or more"),
    (0 <= cfg.queries.held_out < 1, "queries.held_out must be a share from 0 to below 1"),
    (cfg.labels.list_size >= 2, "labels.list_size must be 2 or more: one passage has no order"),
    (min(cfg.labels.lists, cfg.labels.passage_tokens, cfg.labels.concurrency, cfg.labels.attempts, cfg.labels.orders)
     >= 1, "labels.lists, passage_tokens, concurrency, attempts and orders must be 1 or more"),
    (cfg.labels.refused_retries >= 0, "labels.refused_retries must be 0 or more"),
    (cfg.labels.window >= 2 and 1 <= cfg.labels.stride <= cfg.labels.window,
     "labels.window must be 2 or more, and labels.stride from 1 to labels.window: else passages go unseen"),
    (cfg.labels.timeout_seconds > 0, "labels.timeout_seconds must be more than 0"),
    (all(limit is None or limit > 0 for limit in (cfg.labels.requests_per_minute, cfg.labels.tokens_per_minute)),
     "labels.requests_per_minute and tokens_per_minute must be more than 0, or none"),
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
    (min(cfg.direct.passes, cfg.ranker.passes, cfg.retriever.passes) >= 1,
     "direct.passes, ranker.passes and retriever.passes must be 1 or more"),
    (min(cfg.direct.trainings, cfg.retriever.trainings) >= 1,
     "direct.trainings and retriever.trainings must be 1 or more"),
    (cfg.ranker.passages_per_list >= cfg.ranker.always_best,
     "ranker.passages_per_list must hold ranker.always_best passages"),
    (cfg.retriever.direct_share is None or 0 <= cfg.retriever.direct_share <= 1,
     "retriever.direct_share must lie between 0 and 1"),
    (cfg.retriever.reach > 0, "retriever.reach must be above 0: at 0 nothing was learned"),
    (cfg.direct.passages_per_list >= cfg.direct.always_best,
     "direct.passages_per_list must hold direct.always_best passages"),
    (cfg.retriever.passages_per_list >= cfg.retriever.always_best,
     "retriever.passages_per_list must hold retriever.always_best passages"),
    (cfg.encoder.passage_tokens <= cfg.encoder.row_tokens, "encoder.row_tokens must hold encoder.passage_tokens"),
    (max(cfg.encoder.list_cut, cfg.encoder.query_tokens + cfg.encoder.pair_cut - 1) <= cfg.encoder.list_row,
     "encoder.list_row_tokens must hold a passage of a list, and a pair of query and passage"),
    (cfg.collection.train_fraction is None or 0 < cfg.collection.train_fraction < 1,
     "collection.train_fraction must lie between 0 and 1"),
    (cfg.answer.questions is None or cfg.answer.questions >= 1, "answer.questions must be 1 or more, or none"),
    (cfg.evaluate.split != "train", "evaluate.split is 'train': what was trained on measures nothing"),
    (min(cfg.answer.passages, cfg.answer.passage_tokens) >= 1, "answer.passages and passage_tokens must be 1 or more"),
    (cfg.index.scann_shard_passages >= 1, "index.scann_shard_passages must be 1 or more"),
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
