"""Who can be asked: the names that `labels.provider` takes, each with the function that builds it."""

from collections.abc import Callable

from idistill_jax import config
from idistill_jax.llm import protocol
from idistill_jax.llm.providers import gemini, gemini_batch, gemini_legacy, openai_batch, openai_compatible, replay

PROVIDERS: dict[str, Callable[[config.Labels], protocol.Provider]] = {
  "replay": replay.build,
  "gemini": gemini.build,
  "gemini_legacy": gemini_legacy.build,
  "openai": openai_compatible.build,
  "gemini_batch": gemini_batch.build,
  "openai_batch": openai_batch.build,
}


def build(cfg: config.Labels) -> protocol.Provider:
  """The provider that a config names.

  Raises protocol.Stop for a missing key, SDK or recording, ValueError for an unknown name.
  """
  if cfg.provider not in PROVIDERS:
    raise ValueError(f"labels.provider is {cfg.provider!r}; there are: {', '.join(PROVIDERS)}")
  return PROVIDERS[cfg.provider](cfg)
