"""What a config would do, told before anything is read, written or asked: for experiments that are launched elsewhere.

    python -m idistill_jax.pipeline --config=configs/nq.py --workdir=runs/nq --dry_run

How much that is, `amounts` says.  What is there already is said to stay or to be made anew, and why, or what --reuse
names to be taken over: beside manifests, what such a stage reads from outside is read for that, to be hashed.  Else
weights and recordings that are on this machine are looked at alone, to see whether they can be read.
"""

from collections.abc import Callable, Iterable

from idistill_jax import amounts, cli, config, flow
from idistill_jax.llm import session
from idistill_jax.workdir import anew, artifacts, outside


def show(runner: cli.Runner, stages: Iterable[artifacts.Stage]) -> None:
  """Prints, for each stage that the config asks for: what it reads, writes, and how much."""
  print(f"{runner.cfg.name}: {runner.workdir.stated}\n")
  print("\n\n".join(described(runner, stages)))


def described(runner: cli.Runner, stages: Iterable[artifacts.Stage]) -> list[str]:
  cfg, found, of = runner.cfg, [], {stage.name: stage for stage in stages}
  looks = anew.Looks(runner.workdir, cfg, (flow.STAGES | of).values(), runner.others)
  for stage in of.values():
    if not stage.asked_for(cfg):
      found.append(f"{stage.name}: not asked for")
      continue
    lines = [
      f"{stage.name}: {looks.at(stage.name)}",
      f"reads   {', '.join((*(f'{name}/' for name in stage.inputs(cfg)), *reads(stage.name, cfg))) or 'nothing'}",
      f"writes  {runner.workdir.stated}/{stage.name}/",
      *(f"about   {line}" for line in amounts.of(stage, runner, looks)),
    ]
    found.append("\n  ".join(lines))
  return found


def print_counted(runner: cli.Runner, stage: str, count: Callable[[], str]) -> None:
  """What `count` says of what a stage would ask of the folders that are there, and which of them a pipeline makes anew
  before; it is not called where the stage is done, or taken over."""
  looks = anew.Looks(runner.workdir, runner.cfg, flow.STAGES.values(), runner.others)
  if (its := looks.at(stage)).ready:
    print(f"{'done with this config' if its.state == 'done' else its}: nothing is asked")
    return
  print(count())
  for state, words in (("anew", "makes anew first"), ("taken", "takes over others first"),
                       ("not known", "may make anew first, which cannot be told")):
    if found := [f"{name} ({look.why})" for name, look in looks.before(stage).items() if look.state == state]:
      print(f"counted of the folders that are there, of which a pipeline {words}: {'; '.join(found)}")


def reads(stage: str, cfg: config.Config) -> list[str]:
  """What a stage reads from outside the workdir, and whether it is there where that can be told."""
  read: list[str | None] = []
  match stage:
    case "queries":
      read = [_file(cfg.collection.path), _weights(cfg.encoder, cfg.ranker.head)]
    case "collection":
      read = [_source(cfg.collection), _file(cfg.collection.rankings), _file(cfg.collection.rankings_shown)]
    case "candidates":
      read = [_weights(cfg.encoder, cfg.ranker.head), _file(cfg.candidates.run)]
    case "evaluate":
      read = [_file(cfg.evaluate.runs)]
  asked = [_llm(session.ASKING[stage](cfg))] if stage in session.ASKING and session.asks(stage, cfg) else []
  return [one for one in (*read, *asked) if one]


def _weights(cfg: config.Encoder, head: str) -> str:
  from idistill_jax.hf import weights  # not above: it imports JAX, and an estimate comes to amounts alone

  try:
    weights.check(cfg, head)
  except (ImportError, OSError, ValueError) as e:
    return f"weights {cfg.weights} (NOT USABLE: {e})"
  return f"weights {cfg.weights}"


def _source(cfg: config.Collection) -> str:
  match cfg.source:
    case "stdlib":
      return "the running Python's docstrings"
    case "ir_datasets":
      return f"ir_datasets {cfg.path} (downloaded)"
    case "tfds":
      return f"{_file(cfg.path)}, TensorFlow Datasets {cfg.questions} (downloaded)"
    case _:
      return _file(cfg.path) or "collection.path, which is not set"


def _file(path: str | None) -> str | None:
  if path is None:
    return None
  try:
    return path if outside.at(path).exists() else f"{path} (NOT THERE)"
  except (ImportError, OSError, ValueError) as e:
    return f"{path} (NOT USABLE: {e})"


def _llm(cfg: config.Labels) -> str:
  where = "" if cfg.base_url is None else f" at {cfg.base_url}"
  said = cfg.recording or "?" if cfg.provider == "replay" else f"{cfg.provider} {cfg.model}{where}"
  try:
    session.check(cfg)
  except (OSError, ValueError) as e:
    return f"{said} (NOT USABLE: {e})"
  return said
