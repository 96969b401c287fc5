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
    (cfg.labels.list_size >= 2, "labels.list_size must be 2 or more: one passage has no order"),
    (min(cfg.labels.lists, cfg.labels.passage_words, cfg.labels.concurrency, cfg.labels.attempts) >= 1,
     "labels.lists, passage_words, concurrency and attempts must be 1 or more"),
    (min(cfg.direct.passes, cfg.ranker.passes, cfg.retriever.passes) >= 1,
     "direct.passes, ranker.passes and retriever.passes must be 1 or more"),
    (cfg.ranker.passages_per_list >= cfg.ranker.always_best,
     "ranker.passages_per_list must hold ranker.always_best passages"),
    (cfg.retriever.direct_share is None or 0 <= cfg.retriever.direct_share <= 1,
     "retriever.direct_share must lie between 0 and 1"),
    (cfg.direct.passages_per_list >= cfg.direct.always_best,
     "direct.passages_per_list must hold direct.always_best passages"),
    (cfg.retriever.passages_per_list >= cfg.retriever.always_best,
     "retriever.passages_per_list must hold retriever.always_best passages"),
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
