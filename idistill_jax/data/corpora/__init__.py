"""Where collections come from.  `SOURCES` maps each value of `config.Collection.source` to its functions."""

import dataclasses
from collections.abc import Callable

from idistill_jax import config
from idistill_jax.data import collection
from idistill_jax.data.corpora import beir, corpus, files, irds, stdlib, tfds


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Source:
  """load: reads the whole collection.  fingerprint: content hash of everything that `load` reads."""

  load: Callable[[config.Collection], collection.Collection]
  fingerprint: Callable[[config.Collection], str]


SOURCES = {
  "stdlib": Source(load=stdlib.load, fingerprint=stdlib.fingerprint),
  "beir": Source(load=beir.load, fingerprint=beir.fingerprint),
  "corpus": Source(load=corpus.load, fingerprint=corpus.fingerprint),
  "jsonl": Source(load=files.load, fingerprint=files.fingerprint),
  "tsv": Source(load=files.load, fingerprint=files.fingerprint),
  "ir_datasets": Source(load=irds.load, fingerprint=irds.fingerprint),
  "tfds": Source(load=tfds.load, fingerprint=tfds.fingerprint),
}
