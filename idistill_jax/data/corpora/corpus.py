"""One JSONL file of passages, `{"_id", "title", "text"}` a line (or `.jsonl.gz`), and no queries: those get written."""

from idistill_jax import config
from idistill_jax.data import collection, stream
from idistill_jax.data.corpora import beir
from idistill_jax.workdir import outside


def load(cfg: config.Collection) -> collection.Collection:
  """Passages alone; raises CollectionError, FileNotFoundError or ConfigError."""
  path = _path(cfg)
  passages = stream.Stream(lambda: beir.read_passages(path))
  return collection.corpus_only(title=path.name.partition(".")[0], passages=passages)


def fingerprint(cfg: config.Collection) -> str:
  """Hash of the file's content."""
  return outside.sha256(_path(cfg))


def _path(cfg: config.Collection) -> outside.Path:
  if cfg.path is None:
    raise config.ConfigError("collection.path must name a JSONL file of passages when collection.source is 'corpus'")
  return outside.file(cfg.path, "collection.path")
