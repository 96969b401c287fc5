"""What stages read from outside their workdir, hashed: what neither config nor folders tell of their keys.

Why not beside the work?  Stages import JAX, and that all is done already is said without it.
"""

from idistill_jax import config
from idistill_jax.data import corpora, tokenizer_files
from idistill_jax.hf import folders
from idistill_jax.llm import prompt, reader, session
from idistill_jax.llm.providers import replay
from idistill_jax.models import compared
from idistill_jax.retrieval import systems
from idistill_jax.workdir import outside

# Counted on when other labels are made of the same rankings.
RANKINGS = "4"
# Counted on when other collections are made of the same written queries.
WRITTEN = "written 2"
# Counted on when the stages evaluate and answer give other results for the same config.
EVALUATION = 7
# Losses of rankers that have been other functions before: how often.
RANKER_LOSSES = {"lambda": 1}


def queries(cfg: config.Config) -> str:
  """Templates, recorded answers, corpus and starting weights."""
  styles = " ".join(map(prompt.fingerprint, prompt.QUERY_STYLES))
  source = corpora.SOURCES[cfg.collection.source].fingerprint(cfg.collection)
  return f"{styles} {_recording(cfg.labels)} {source} {weights(cfg)}"


def collection(cfg: config.Config) -> str:
  """The files, or the interpreter, that the collection is read from, and what becomes of rankings made elsewhere."""
  read = corpora.SOURCES[cfg.collection.source].fingerprint(cfg.collection)
  named = {"collection.rankings": cfg.collection.rankings, "collection.rankings_shown": cfg.collection.rankings_shown}
  rankings = [outside.file(path, field) for field, path in named.items() if path is not None]
  counted = [RANKINGS] * bool(rankings) + [WRITTEN] * config.writes_queries(cfg)
  return " ".join([read, *map(outside.sha256, rankings), *counted])


def candidates(cfg: config.Config) -> str:
  """The initial retriever's weights, and the run where another system's candidates are taken."""
  read = weights(cfg)
  if cfg.candidates.run is None:
    return read
  return f"{read} {outside.sha256(outside.file(cfg.candidates.run, 'candidates.run'))}"


def labels(cfg: config.Config) -> str:
  """Template and recorded answers."""
  return f"{prompt.fingerprint()} {_recording(cfg.labels)}"


def weights(cfg: config.Config) -> str:
  """What every training starts from, and whether it is read otherwise now than it was before."""
  # Once: of a name on the Hub it asks there.
  folder = folders.resolve(cfg.encoder.weights)
  content = folders.fingerprint(str(folder))
  # Before, neither arguments of a tokenizer counted, nor that vectors of any length are compared by cosines.
  since = (tokenizer_files.changes(folder), not tokenizer_files.tells_halves(folder),
           cfg.encoder.normalize is None and compared.by_cosine_alone(folder))
  return f"{content} {since}" if any(since) else content


def ranker(cfg: config.Config) -> str:
  """What it starts from, and a loss that is another one now: what was trained with it before is made anew."""
  changed = RANKER_LOSSES.get(cfg.ranker.loss)
  return weights(cfg) if changed is None else f"{weights(cfg)} {changed}"


def evaluate(cfg: config.Config) -> str:
  """The runs of other systems, and how all is measured."""
  runs = {path.name: outside.sha256(path) for path in systems.run_files(cfg)}
  return config.digest({"version": EVALUATION, **runs})


def answer(cfg: config.Config) -> str:
  """The reader's template and recording, and how its answers are measured."""
  recorded = _recording(session.of_reader(cfg)) if systems.ANSWERED[cfg.answer.systems] else None
  return f"{EVALUATION} {reader.fingerprint()} {recorded}"


def _recording(cfg: config.Labels) -> str | None:
  return cfg.recording and replay.fingerprint(cfg.recording)
