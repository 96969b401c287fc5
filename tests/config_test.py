"""The config tree: what the files in configs/ say (golden), and what a typo, an unknown flag or a bad value meets."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from idistill_jax import config as config_lib
from idistill_jax import experiments, losses, validation
from idistill_jax.data import corpora
from idistill_jax.llm import budget, providers, session
from idistill_jax.retrieval import measures
from idistill_jax.workdir import configs

ROOT = pathlib.Path(__file__).resolve().parents[1]
GOLDEN = pathlib.Path(__file__).parent / "golden"
VARIANTS = (
  "quickstart", "quickstart:tiny", "my_corpus", "my_corpus:recorded", "my_corpus:tiny",
  "scifact", "scifact:recorded", "scifact:tiny", "wiki_qa", "wiki_qa:recorded", "wiki_qa:answered", "wiki_qa:tiny",
  "nq", "nq:slice", "trivia_qa", "trivia_qa:slice", "msmarco", "msmarco:dl20",
)  # fmt: skip


def load(name: str, folder: pathlib.Path = ROOT / "configs") -> config_lib.Config:
  """As the flag does it: the file's module, and its `get_config(variant)`."""
  file, _, variant = name.partition(":")
  source = compile((folder / f"{file}.py").read_text(), file, "exec")
  module: dict = {}
  exec(source, module)
  return module["get_config"](variant or None)


def test_every_config_file_is_golden() -> None:
  assert {path.stem for path in (ROOT / "configs").glob("*.py")} == {name.partition(":")[0] for name in VARIANTS}


@pytest.mark.parametrize("name", VARIANTS)
def test_rendered(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.delenv("IDISTILL_DATA", raising=False)
  cfg = load(name)
  validation.validate(cfg)
  path = GOLDEN / f"config_{name.replace(':', '_')}.txt"
  if os.environ.get("UPDATE_GOLDEN"):
    path.write_text(config_lib.render(cfg))
  assert path.exists(), f"{path} is missing: run this test with UPDATE_GOLDEN=1 and read what it wrote"
  assert config_lib.render(cfg) == path.read_text(), "review the change, then run this test with UPDATE_GOLDEN=1"


def test_render_shows_every_field() -> None:
  cfg = config_lib.Config(name="x")
  lines = config_lib.render(cfg).splitlines()
  assert "ranker.optim.b1: 0.9" in lines and "name: 'x'" in lines and lines == sorted(lines)
  cfg.ranker.optim.b1 = 0.8
  assert "ranker.optim.b1: 0.8" in config_lib.render(cfg).splitlines()


def test_dict_and_back() -> None:
  cfg = load("quickstart:tiny")
  cfg.retriever.optim.clip_norm = 2.5
  assert config_lib.from_dict(config_lib.as_dict(cfg)) == cfg
  values = config_lib.as_dict(cfg)
  values["ranker"]["optim"]["typo"] = 1
  with pytest.raises(config_lib.ConfigError, match=r"no field ranker\.optim\.typo$"):
    config_lib.from_dict(values)


def test_a_workdir_of_another_version_is_named_with_the_field(tmp_path: pathlib.Path) -> None:
  from idistill_jax.workdir import artifacts

  file, whole = tmp_path / artifacts.CONFIG, config_lib.as_json(load("quickstart:tiny"))
  values = json.loads(whole)
  # An older version knew less, which is no error.
  del values["answer"]
  file.write_text(json.dumps(values))
  assert configs.load(tmp_path) == load("quickstart:tiny")
  for text, said in (
    (json.dumps(values | {"gone": 1}), "no field gone; another version"),
    (json.dumps(values | {"mesh": 8}), "mesh is 8"),
    (json.dumps(values["retriever"] | {"name": "x"}), "no field "),
    (json.dumps({}), "name is missing"),
    (json.dumps([]), "the whole is"),
    (whole[:100], "not JSON"),
  ):
    file.write_text(text)
    with pytest.raises(config_lib.ConfigError, match=f"{file}: .*{said}"):
      configs.load(tmp_path)


# -- Files ---------------------------------------------------------------------------------------------------------

GIVES = "from idistill_jax import config as c\n\n\ndef get_config(variant=None):\n"


@pytest.mark.parametrize(
  "source, words",
  {
    "a field's name": (GIVES + "  cfg = c.Config(name='x')\n  cfg.ranker.lost = 'listmle'\n  return cfg\n",
                       ":6: Ranker has no field 'lost'; did you mean 'loss'?  It has: head, loss, "),
    "an argument's name": (GIVES + "  return c.Config(name='x', ranker=c.Ranker(lost='listmle'))\n",
                           ":5: Ranker.__init__() got an unexpected keyword argument 'lost'"),
    "syntax": (GIVES + "  return c.Config(\n", ":5: '(' was never closed"),
    "a variant": (GIVES + "  raise ValueError(f'no variant {variant!r}; there is: tiny')\n", ":5: no variant 'tinny'"),
    "nothing returned": (GIVES + "  c.Config(name='x')\n", ": get_config() gives None; it must return"),
    "no function": ("", ": has no function get_config()"),
    "a package's name": ("import nowhere\n", ":1: No module named 'nowhere'"),
  }.values(),
  ids=lambda value: None,
)
def test_a_mistake_in_a_config_file_is_told_with_its_place(source: str, words: str, tmp_path: pathlib.Path) -> None:
  path = tmp_path / "typo.py"
  path.write_text(source)
  with pytest.raises(config_lib.ConfigError) as found:
    experiments.check(f"{path}:tinny")
  assert f"{path}{words}" in str(found.value)


@pytest.mark.parametrize("stated, words", [("quickstart.py:tinny", "has no variant 'tinny'; it has: tiny"),
                                           ("quikstart.py", "quikstart.py: there is no such file"),
                                           ("../configs", "../configs: is a folder")])  # fmt: skip
def test_a_config_that_is_not_there_is_no_traceback(stated: str, words: str, tmp_path: pathlib.Path) -> None:
  for flag in ((f"--config=configs/{stated}",), ("--config", f"configs/{stated}")):
    done = run(*flag, f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 1
    assert words in done.stderr and "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


# -- Flags ---------------------------------------------------------------------------------------------------------


def run(*flags: str, module: str = "collection", cwd: pathlib.Path = ROOT) -> subprocess.CompletedProcess[str]:
  command = [sys.executable, "-m", f"idistill_jax.stages.{module}", *flags]
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=120)


@pytest.mark.parametrize(
  "flag, words",
  {
    "unknown field": ("--config.collection.pth=x", "no field 'pth'; did you mean 'path'?  It has: source, path,"),
    "unknown field of a field": ("--config.ranker.optim.lr=1", "optim has no field 'lr'  It has: peak_lr,"),
    "field of a value": ("--noconfig.labels.lists.x", "lists has no field 'x'  It has: none, as it is a value"),
    "unknown section": ("--config.colection.path=x", "config has no field 'colection'; did you mean 'collection'?"),
    "reuse of nothing": ("--reuse=/nowhere/at/all", "--reuse=/nowhere/at/all: no config.json there"),
    "no number": ("--patience=nan", "a number of seconds above 0"),
    "unknown flag": ("--wrokdir=x", "wrokdir"),
    "text for a number": ("--config.collection.max_passages=many", "max_passages"),
    "fraction for a whole number": ("--config.seed=0.5", "seed"),
    "unknown loss": ("--config.ranker.loss=no_such_loss", "listmle"),
    "unknown provider": ("--config.labels.provider=oracle", "replay"),
    "contradiction": ("--config.ranker.always_best=99", "always_best"),
  }.values(),
  ids=lambda value: None,
)
def test_bad_flag_stops_before_any_work(flag: str, words: str, tmp_path: pathlib.Path) -> None:
  done = run("--config=configs/quickstart.py:tiny", f"--workdir={tmp_path / 'w'}", flag)
  assert done.returncode == 1
  assert words in done.stderr and "Traceback" not in done.stderr
  assert not (tmp_path / "w").exists()


def test_good_flags_reach_the_config(tmp_path: pathlib.Path) -> None:
  """The control of the test above: the same command without a mistake."""
  done = run(
    "--config=configs/quickstart.py:tiny",
    f"--workdir={tmp_path / 'w'}",
    "--config.seed=7",
    "--config.ranker.loss=ranknet",
    "--config.ranker.optim.peak_lr=3e-5",
    "--config.collection.max_passages=300",
    "--config.ranker.top_places=none",
  )
  assert done.returncode == 0, done.stderr
  cfg = configs.load(tmp_path / "w")
  assert (cfg.seed, cfg.ranker.loss, cfg.ranker.optim.peak_lr) == (7, "ranknet", 3e-5)
  assert cfg.collection.max_passages == 300
  assert cfg.ranker.top_places is None
  assert (tmp_path / "w" / "collection" / "manifest.json").exists()


def test_missing_flags_are_named() -> None:
  done = run()
  assert done.returncode != 0 and "--config is needed" in done.stdout + done.stderr


@pytest.mark.parametrize("flag", ["--processes=2", "--process=0"])
def test_one_of_several_processes_is_told_where_the_first_is(flag: str, tmp_path: pathlib.Path) -> None:
  """Else each would do the whole job beside the others, and only its speed would tell."""
  done = run("--config=configs/quickstart.py:tiny", f"--workdir={tmp_path / 'w'}", flag)
  assert done.returncode != 0 and "need --coordinator" in done.stdout + done.stderr
  assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("flag, words", [
  ("--workdir=", "--workdir is needed"), ("--workdir=~/w", "write $HOME or ./~"), ("--reuse=", "--reuse names nothing"),
  ("--reuse=a,,b", "--reuse names nothing"),
])  # fmt: skip
def test_an_unset_variable_or_a_tilde_is_no_folder(flag: str, words: str, tmp_path: pathlib.Path) -> None:
  done = run(f"--config={ROOT}/configs/quickstart.py:tiny", f"--workdir={tmp_path / 'w'}", flag, cwd=tmp_path)
  assert done.returncode != 0 and words in done.stdout + done.stderr
  assert not list(tmp_path.iterdir())


PARSE = """
import json, sys
from absl import flags
from idistill_jax import cli, config, validation
flags.FLAGS(sys.argv)
validation.validate(flags.FLAGS.config)
print(json.dumps(config.as_dict(flags.FLAGS.config)))
"""


def leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """(path, type) of every field that holds a value."""
  for name, hint in typing.get_type_hints(cls).items():
    if dataclasses.is_dataclass(hint):
      yield from leaves(typing.cast(type, hint), f"{prefix}{name}.")
    else:
      yield prefix + name, hint


def some_value(hint: Any) -> Any:
  """A value of the type that no default has, as far as there is one."""
  if typing.get_origin(hint) is typing.Literal:
    return typing.get_args(hint)[-1]
  if isinstance(hint, types.UnionType):
    return some_value(typing.get_args(hint)[0])
  return {int: 97, float: 0.375, str: "other", bool: False}[hint]


def test_every_field_can_be_overridden() -> None:
  values = {path: some_value(hint) for path, hint in leaves(config_lib.Config)}
  values["encoder.list_row_tokens"] = 2 * 97  # so that a pair fits
  values["evaluate.depth"] = 101
  command = [f"--config.{path}={value}" for path, value in values.items()]
  done = subprocess.run([sys.executable, "-c", PARSE, "--config=configs/quickstart.py", *command],
                        capture_output=True, text=True, cwd=ROOT, timeout=60)
  assert done.returncode == 0, done.stderr
  cfg = config_lib.from_dict(json.loads(done.stdout))
  for path, value in values.items():
    assert functools.reduce(getattr, path.split("."), cfg) == value, path


# -- validate ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "section, field, value",
  [
    ("ranker", "loss", "no_such_loss"),
    ("retriever", "loss", "no_such_loss"),
    ("retriever", "teacher", None),
    ("labels", "provider", "oracle"),
    ("collection", "source", "bier"),
    ("encoder", "training_dtype", "float16"),
    ("index", "kind", "faiss"),
    ("evaluate", "split", "train"),
    ("ranker", "epochs", 1.5),
    ("ranker", "epochs", True),
    ("ranker", "top_places", "3"),
    ("encoder", "weights", None),
    ("ranker", "similarity_weight", "10"),
    ("ranker", "optim", {"peak_lr": 1e-5}),
  ],
)
def test_wrong_value_is_refused_with_its_path(section: str, field: str, value: object) -> None:
  cfg = config_lib.Config(name="x")
  validation.validate(cfg)
  setattr(getattr(cfg, section), field, value)
  with pytest.raises(config_lib.ConfigError, match=rf"{section}\.{field} is "):
    validation.validate(cfg)


@pytest.mark.parametrize(
  "section, field, value",
  [("ranker", "similarity_weight", None), ("ranker", "similarity_weight", 10), ("ranker", "top_places", 3),
   ("ranker", "loss", "lambda"), ("collection", "path", "x"), ("export", "private", False)],
)  # fmt: skip
def test_right_value_is_taken(section: str, field: str, value: object) -> None:
  cfg = config_lib.Config(name="x")
  setattr(getattr(cfg, section), field, value)
  validation.validate(cfg)


def choices(cls: type, field: str) -> set[str]:
  return set(typing.get_args(typing.get_type_hints(cls)[field]))


def test_choices_are_the_functions_that_exist() -> None:
  from idistill_jax.stages import train_retriever

  assert choices(config_lib.Ranker, "loss") == set(losses.LISTWISE)
  assert choices(config_lib.Retriever, "loss") == set(losses.DISTILLATION)
  assert choices(config_lib.Retriever, "teacher") == set(train_retriever.TEACHERS)
  assert choices(config_lib.Labels, "provider") == set(providers.PROVIDERS)
  assert choices(config_lib.Collection, "source") == set(corpora.SOURCES)


# -- Ranges --------------------------------------------------------------------------------------------------------

NAN = float("nan")
TRAININGS = ("direct", "ranker", "retriever")
# Values just outside of what means something.
MEANINGLESS = (
  *(("seed", -1), ("seed", 2**32)),
  *(("mesh.data", 0), ("mesh.fsdp", 0), ("mesh.tensor", 0), ("candidates.depth", 0), ("scores.depth", 0)),
  *((f"encoder.{name}_tokens", 2) for name in ("query", "passage", "list_passage", "pair_passage")),
  *(("encoder.tokens_per_step", 0), ("encoder.row_tokens", 0), ("encoder.list_row_tokens", 0)),
  *((f"{section}.{name}", 0) for section in TRAININGS
    for name in ("epochs", "passes", "lists_per_batch", "checkpoint_every", "passages_per_list")),
  *((f"{section}.always_best", value) for section in TRAININGS for value in (-1, 9)),
  *((f"{section}.optim.{name}", value) for section in TRAININGS for name, value in (
    ("peak_lr", 0.0), ("peak_lr", NAN), ("peak_lr", float("inf")), ("warmup_fraction", -0.1), ("warmup_fraction", 1.1),
    ("clip_norm", 0.0), ("weight_decay", -0.1), ("b1", 1.0), ("b2", 1.0))),
  *((f"{section}.{name}_temperature", value) for section in ("direct", "retriever") for name in ("order", "student")
    for value in (0.0, -1.0, NAN)),
  *(("retriever.teacher_temperature", 0.0), ("retriever.teacher_temperature", -0.5), ("retriever.trainings", 0)),
  *(("ranker.top_places", 0), ("ranker.passages_per_list", 1), ("ranker.similarity_weight", -1.0),
    ("ranker.similarity_weight", float("inf")), ("ranker.optim.weight_decay", float("inf"))),
  *(("index.tuned_depth", 0), ("index.dimensions", 0), ("index.recall_target", 0.0), ("index.recall_target", 1.01)),
  *((f"evaluate.{name}", 0) for name in ("depth", "rerank_depth", "resamples", "relevant_from")),
  *(("collection.max_passages", 0), ("collection.train_fraction", 1.0), ("queries.held_out", 1.0)),
  *(("queries.passages", 0), ("labels.max_tokens", -1), ("answer.questions", 0), ("scores.unlabelled_queries", -1)),
)  # fmt: skip


def put(cfg: config_lib.Config, path: str, value: object) -> None:
  *sections, field = path.split(".")
  setattr(functools.reduce(getattr, sections, cfg), field, value)


@pytest.mark.parametrize("path, value", MEANINGLESS)
def test_numbers_that_mean_nothing_are_refused_with_their_path(path: str, value: float) -> None:
  cfg = config_lib.Config(name="x")
  for section in TRAININGS:
    getattr(cfg, section).always_best = 0
  validation.validate(cfg)
  put(cfg, path, value)
  with pytest.raises(config_lib.ConfigError, match=rf"{path}\b.*{value}"):
    validation.validate(cfg)


@pytest.mark.parametrize("loss, is_taken", [
  ("kl_list", False), ("margin_mse", False), ("kl_batch", True), ("contrastive", True)])
def test_of_pairs_no_loss_learns_that_compares_the_passages_of_a_list(loss: str, is_taken: bool) -> None:
  cfg = config_lib.Config(name="x", retriever=config_lib.Retriever(teacher="pairs", loss=loss))
  refused = pytest.raises(config_lib.ConfigError, match="hold one passage each")
  with contextlib.nullcontext() if is_taken else refused:
    validation.validate(cfg)


@pytest.mark.parametrize("path, value, words", [
  ("evaluate.depth", 99, "evaluate.depth is 99; it must be 100 or more"),
  ("evaluate.rerank_depth", 101, "rerank_depth must be evaluate.depth at most"),
  ("encoder.weights", "", "encoder.weights is empty"),
])  # fmt: skip
def test_what_only_the_last_stages_would_stumble_over_is_refused(path: str, value: object, words: str) -> None:
  cfg = config_lib.Config(name="x")
  put(cfg, path, value)
  with pytest.raises(config_lib.ConfigError, match=words):
    validation.validate(cfg)


def test_the_deepest_measure_is_as_deep_as_the_rule_says() -> None:
  assert max(int(name.partition("@")[2]) for name in measures.NAMES) == validation.DEEPEST


def test_every_number_of_a_config_has_its_range() -> None:
  numbers = {path for path, hint in leaves(config_lib.Config)
             if {int, float} & {hint, *typing.get_args(hint)}}
  ranged = {f"{section}.{name}".lstrip(".") for section, fields in validation.RANGES.items() for name in fields}
  assert ranged == numbers


SMALLEST = (
  ("warmup of nothing, then of all", {"ranker.optim.warmup_fraction": 0, "direct.optim.warmup_fraction": 1.0}),
  ("no place for sure", {"ranker.always_best": 0, "direct.always_best": 0}),
  ("one of each", {"evaluate.resamples": 1, "encoder.tokens_per_step": 1, "mesh.data": 1, "candidates.depth": 1}),
  ("one passage beside those of others", {"retriever.passages_per_list": 1, "retriever.always_best": 1}),
  ("texts of a token", {"encoder.query_tokens": 3, "encoder.list_passage_tokens": 3}),
)


@pytest.mark.parametrize("changes", [changes for _, changes in SMALLEST], ids=[name for name, _ in SMALLEST])
def test_the_smallest_numbers_that_mean_something_are_taken(changes: dict[str, float]) -> None:
  cfg = config_lib.Config(name="x")
  for path, value in changes.items():
    put(cfg, path, value)
  validation.validate(cfg)


@pytest.mark.parametrize("loss", ["kl_list", "margin_mse"])
def test_a_loss_that_compares_the_passages_of_a_list_needs_two(loss: str) -> None:
  cfg = config_lib.Config(name="x", direct=config_lib.Distillation(loss=loss, passages_per_list=1, always_best=1))
  with pytest.raises(config_lib.ConfigError, match=rf"direct\.passages_per_list is 1; direct\.loss={loss}"):
    validation.validate(cfg)
  cfg.direct.passages_per_list = 2
  validation.validate(cfg)


# -- Prices --------------------------------------------------------------------------------------------------------


def test_a_budget_is_not_counted_with_the_prices_of_another_model() -> None:
  cfg = load("my_corpus")
  validation.validate(cfg)
  cfg.labels.provider, cfg.labels.model = "openai", "gpt-6-sol"
  with pytest.raises(config_lib.ConfigError, match=r"prices of gemini-3\.5-flash-lite, and asked is gpt-6-sol: .*"
                                                   r"labels\.priced_model=gpt-6-sol, or labels\.max_dollars=none"):
    validation.validate(cfg)
  cfg.labels.max_dollars = None
  validation.validate(cfg)
  assert session.prices(cfg.labels) == budget.Prices()
  cfg.labels.max_dollars, cfg.labels.priced_model = 5.0, "gpt-6-sol"
  cfg.labels.dollars_per_million_input_tokens = 1.0
  validation.validate(cfg)
  assert session.prices(cfg.labels) == budget.Prices(1.0, 2.5)


def test_prices_of_nobody_in_particular_are_those_of_whoever_is_asked() -> None:
  labels = config_lib.Labels(model="mine", dollars_per_million_input_tokens=1.0, dollars_per_million_output_tokens=2.0)
  validation.validate(config_lib.Config(name="x", labels=dataclasses.replace(labels, max_dollars=1.0)))
  assert session.prices(labels) == budget.Prices(1.0, 2.0)


@pytest.mark.parametrize("name", ["my_corpus", "quickstart"])
def test_whose_prices_are_counted_makes_nothing_anew(name: str) -> None:
  cfg = load(name)
  keys = config_lib.keyed(cfg)
  values = config_lib.as_dict(cfg)
  del values["labels"]["priced_model"]  # as a workdir's record from before has it
  before = config_lib.from_dict(values)
  assert config_lib.keyed(before) == keys and not list(config_lib.differences(cfg, values))
  before.labels.orders = 3
  assert config_lib.keyed(before) != keys
