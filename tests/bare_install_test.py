"""The training core stands alone, where no extra, no TensorFlow and no torch is installed; and all go together."""

import importlib.util
import os
import pathlib
import subprocess
import sys
import textwrap

import jobs
import labels_stage_test
import pytest
from loopback_llm import LoopbackLLM, reversed_order

EXTRAS = (
  *("bm25s", "google.genai", "google.generativeai", "huggingface_hub", "ir_measures", "jinja2", "matplotlib", "openai"),
  *("pytrec_eval", "scann", "sentence_transformers", "Stemmer", "tensorflow", "torch", "transformers"),
)
# What is named cannot be found: neither by `import` nor by those who ask beforehand whether it is there.
BLOCK = textwrap.dedent("""
  import importlib.machinery, sys

  blocked = sys.argv.pop(1).split(",")

  class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
      if name not in blocked:
        return super().find_spec(name, path, target)

  sys.meta_path[:] = [Without if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
""")


NO_JAX = (*(name for name in EXTRAS if name != "openai"), "jax", "jaxlib", "flax", "optax", "orbax", "grain")


def python(code: str, blocked: tuple[str, ...] = EXTRAS, *arguments: str) -> subprocess.CompletedProcess[str]:
  command = [sys.executable, "-c", BLOCK + textwrap.dedent(code), ",".join(blocked), *arguments]
  # One device: what is compiled here is compiled once.
  return subprocess.run(command, capture_output=True, text=True, timeout=240, env=os.environ | jobs.ONE_DEVICE)


def test_the_block_blocks() -> None:
  done = python("import torch")
  assert done.returncode == 1 and "ModuleNotFoundError: No module named 'torch'" in done.stderr


def test_training_core_imports_and_runs(tiny_weights: str, tmp_path) -> None:
  code = """
    import pathlib
    import idistill_jax.train.loop, idistill_jax.train.inference
    from idistill_jax.stages import queries, collection, candidates, labels, train_ranker, scores, train_retriever
    from idistill_jax.hf import weights
    assert not set(sys.modules) & set(blocked)
    sys.path.insert(0, sys.argv[3])
    import tiny_world
    from idistill_jax import config, sharding
    from idistill_jax.train import loop
    mesh = sharding.make_mesh(config.Mesh())
    folder = pathlib.Path(sys.argv[1])
    loop.train(tiny_world.training(folder, sys.argv[2], mesh, pairs=False, checkpoint_every=100))
    assert (folder / "metrics.jsonl").exists()
  """
  done = python(code, EXTRAS, str(tmp_path), tiny_weights, str(__file__.rpartition("/")[0]))
  assert done.returncode == 0, done.stderr


def test_labelling_and_help_need_no_jax() -> None:
  """One after the other in one process: what is missing is missing to each."""
  light = ("config", "workdir.artifacts", "records", "cli", "llm.session", "llm.estimate", "llm.query_writing",
           "stages.labels", "pipeline", "status")
  done = python("".join(f"import idistill_jax.{module}\n" for module in light), (*NO_JAX, "openai"))
  assert done.returncode == 0, done.stderr


def test_labelling_runs_where_jax_is_absent(tmp_path: pathlib.Path) -> None:
  pytest.importorskip("openai")
  workdir = labels_stage_test.small(tmp_path)
  with LoopbackLLM(reversed_order) as server:
    done = python("""
      import pathlib
      from idistill_jax import config, flow
      from idistill_jax.workdir import artifacts
      cfg = config.Config(name="t")
      cfg.labels = config.Labels(provider="openai", model="m", base_url=sys.argv[2], list_size=5)
      manifest = artifacts.Workdir(pathlib.Path(sys.argv[1])).execute(flow.STAGES["labels"], cfg)
      assert manifest["counts"]["paid"] == 6
      assert not set(sys.modules) & set(blocked)
    """, NO_JAX, str(tmp_path), f"{server.url}/v1")
  assert done.returncode == 0, done.stderr
  first = labels_stage_test.rankings(workdir)[0]
  assert len(labels_stage_test.rankings(workdir)) == 6 and first.permutation == (4, 3, 2, 1, 0)


@pytest.mark.tf
@pytest.mark.torch
def test_every_extra_in_one_process() -> None:
  """Their pins meet in protobuf and in TensorFlow's binary interface, where a clash shows at import or at first use."""
  together = (*EXTRAS, "tensorflow_datasets")
  if absent := [name for name in together if not importlib.util.find_spec(name.partition(".")[0])]:
    pytest.skip(f"{absent} are not installed; launch/test.sh installs them")
  done = python("""
    import importlib
    from idistill_jax import flow
    for stage in flow.STAGES:
      flow.module(stage)
    for name in sys.argv[1].split(","):
      importlib.import_module(name)
    import numpy, scann, tensorflow, tensorflow_datasets
    points = numpy.eye(20, dtype=numpy.float32)
    searcher = scann.scann_ops_pybind.builder(points, 1, "dot_product").score_brute_force().build()
    found, _ = searcher.search_batched(points)
    assert found[:, 0].tolist() == list(range(20))
    # Where its protobuf is too old the package imports all the same, but then has no version.
    assert tensorflow_datasets.__version__ and int(tensorflow.constant(1) + 1) == 2
  """, (), ",".join(together))
  assert done.returncode == 0, done.stderr
