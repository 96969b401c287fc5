"""Who can be asked: the names that `labels.provider` takes, each with what builds it."""

from collections.abc import Callable

from idistill_jax import config
from idistill_jax.llm import batch, protocol
from idistill_jax.llm.providers import gemini, gemini_batch, gemini_legacy, openai_batch, openai_compatible, replay

# Each raises protocol.Stop for a missing key, SDK or recording.
PROVIDERS: dict[str, Callable[[config.Labels], protocol.Provider]] = {
  "replay": replay.build,
  "gemini": gemini.Gemini,
  "gemini_legacy": gemini_legacy.GeminiLegacy,
  "openai": openai_compatible.OpenAICompatible,
  "gemini_batch": lambda cfg: batch.Batch(gemini_batch.GeminiBatch(cfg), cfg),
  "openai_batch": lambda cfg: batch.Batch(openai_batch.OpenAIBatch(cfg), cfg),
}


def build(cfg: config.Labels) -> protocol.Provider:
  """The provider that a config names; raises as PROVIDERS do."""
  return PROVIDERS[cfg.provider](cfg)
