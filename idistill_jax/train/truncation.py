"""What cutting texts at the encoder's lengths takes off: said once a stage, and kept in its manifest."""

from collections.abc import Callable

from absl import logging

from idistill_jax import processes
from idistill_jax.data import tokenize
from idistill_jax.workdir import artifacts

# (what the texts are, how they were cut)
Tell = Callable[[str, tokenize.Cut], None]


def telling(job: artifacts.Job) -> Tell:
  """Puts "<what> cut" into the manifest's counts, with a line in the log where any text lost its end."""

  def tell(what: str, cut: tokenize.Cut) -> None:
    if not cut.of:
      return
    counted = {"at": cut.at, "texts": cut.texts, "of": cut.of, "longest": cut.longest}
    # A stage may read the same texts twice, to train on and to embed.
    if job.counts.get(f"{what} cut") != counted and cut.texts and processes.is_first():
      logging.info("%s: %s", what, cut)
    job.count(**{f"{what} cut": counted})

  return tell
