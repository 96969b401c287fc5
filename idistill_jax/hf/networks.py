"""Model folders in HF layout -> networks: the graph, its parameters, its table and its tokenizer."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import jax
import numpy as np
from absl import logging
from flax import nnx

from idistill_jax import config as config_lib
from idistill_jax.data import pack, tokenize
from idistill_jax.hf import folders, weights
from idistill_jax.hf import prompts as prompts_lib
from idistill_jax.models import cross_encoder, dual_encoder
from idistill_jax.models import encoder as encoder_lib
from idistill_jax.models import execution as execution_lib
from idistill_jax.models import table as table_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
  """A model without its parameters: `apply(params, rows)` gives its output for each text [T, ...].

  abstract: params tree of shapes.  source: the folder that the starting weights come from.  sizes, tokenizer: that
  folder's.  prompts: what stands before each text that it reads.  head: a ranker's.
  """

  graph: nnx.GraphDef
  abstract: Any
  table: table_lib.Table
  source: pathlib.Path
  sizes: encoder_lib.Sizes
  tokenizer: tokenize.Tokenizer
  fresh: tuple[str, ...]
  build: Callable[[int], nnx.Module]
  execution: execution_lib.Execution
  prompts: prompts_lib.Prompts = prompts_lib.NONE
  head: str | None = None

  @property
  def each(self) -> tuple[int, ...]:
    """Shape of the output for one text."""
    return ()

  def tensors(self) -> dict[str, np.ndarray]:
    """What the starting checkpoint has, by HF's names."""
    return weights.read_tensors(self.source)

  def apply(self, params: Any, rows: pack.Rows) -> jax.Array:
    return nnx.merge(self.graph, params)(rows, self.execution)

  def on(self, mesh: jax.sharding.Mesh, dtype: str) -> "Network":
    """The same network as it best computes there, with matrix products of this type ("float32", "bfloat16")."""
    return dataclasses.replace(self, execution=execution_lib.choose(dtype, mesh, self.execution.remat))

  def frozen(self, layers: int) -> "Network":
    """The same network, for trainings in which so many of its first layers stay as they are.

    Raises ConfigError where it has no more than these.
    """
    if layers >= self.sizes.num_hidden_layers:
      raise config_lib.ConfigError(f"frozen_layers is {layers}; {self.source} has {self.sizes.num_hidden_layers} "
                                   "layers, of which one at least must learn")
    return dataclasses.replace(self, execution=dataclasses.replace(self.execution, frozen_layers=layers))

  def reading(self, params: Any) -> tuple["Network", Any]:
    """The network and parameters without what only a gradient needs: kernels have the type that products read."""
    products = self.execution.products
    flat = {path: leaf.astype(products) if self.table.row(path).is_kernel_of_layer else leaf
            for path, leaf in table_lib.flatten(params).items()}
    return dataclasses.replace(self, execution=self.execution.without_gradient()), table_lib.unflatten(flat)

  def query_table(self, texts: Iterable[str], max_tokens: int) -> tokenize.TokenTable:
    """Token ids of queries, prompt included."""
    return self.tokenizer.table((self.prompts.query + text for text in texts), max_tokens)

  def passage_table(self, texts: Iterable[str], max_tokens: int) -> tokenize.TokenTable:
    """Token ids of passages, prompt included."""
    return self.tokenizer.table((self.prompts.passage + text for text in texts), max_tokens)

  def initial(self, seed: int) -> Any:
    """Starting parameters: the checkpoint's, and freshly drawn ones for a head that it says nothing of.

    Raises table.WeightsError where it lacks others, or those of a head that it says it has.
    """
    flat = table_lib.from_hf(self.table, self.tensors(), self.abstract, optional=self.fresh)
    missing = [path for path in self.fresh if path not in flat]
    if missing:
      keys = [self.table.row(path).hf_key for path in missing]
      weights.refuse_lost_head(self.source, self.head, keys)
      logging.info("%s has no %s: new ones are made", self.source, ", ".join(keys))
      # Only the few fresh leaves survive; the rest of this random model is never materialised.
      keep = jax.jit(
        lambda: {path: leaf for path, leaf in table_lib.flatten(_params(self.build(seed))).items() if path in missing}
      )
      flat |= keep()
    return table_lib.unflatten(flat)

  def shardings(self, mesh: jax.sharding.Mesh) -> Any:
    return table_lib.shardings(self.table, self.abstract, mesh)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retriever(Network):
  """A dual encoder; `embedding`: how it makes vectors of states."""

  embedding: dual_encoder.EmbeddingConfig

  @property
  def each(self) -> tuple[int, ...]:
    return (self.embedding.width(self.sizes.hidden_size),)

  def tensors(self) -> dict[str, np.ndarray]:
    return super().tensors() | weights.read_projections(self.source, self.embedding.projections)


def retriever(cfg: config_lib.Encoder) -> Retriever:
  """The dual encoder that starts from `cfg.weights`, pooling and normalising as `cfg` or that checkpoint says."""
  source = folders.resolve(cfg.weights)
  sizes, tokenizer = weights.read_fitting(source, cfg)
  embedding = dual_encoder.read_embedding_config(source, cfg.normalize)
  return _network(functools.partial(Retriever, embedding=embedding, prompts=prompts_lib.read(source, cfg)),
                  source, sizes, tokenizer, functools.partial(dual_encoder.DualEncoder, sizes, embedding),
                  dual_encoder.table(sizes, embedding.projections), (), cfg.remat)


def ranker(cfg: config_lib.Encoder, head: str) -> Network:
  """The cross-encoder whose encoder starts from `cfg.weights`; `head` is one of `cross_encoder.HEADS`.

  Raises encoder.UnsupportedModelError where that family has no such head.
  """
  source = folders.resolve(cfg.weights)
  sizes, tokenizer = weights.read_fitting(source, cfg)
  chosen = cross_encoder.head_of(sizes, head)
  return _network(functools.partial(Network, head=head), source, sizes, tokenizer,
                  functools.partial(chosen.module, sizes),
                  cross_encoder.table(sizes, head), chosen.fresh(sizes), cfg.remat)


Made = TypeVar("Made", bound=Network)


def _network(make: Callable[..., Made], source: pathlib.Path, sizes: encoder_lib.Sizes, tokenizer: tokenize.Tokenizer,
             module: functools.partial[Any], table: table_lib.Table, fresh: tuple[str, ...], remat: str) -> Made:
  """make: Network, or what takes its fields that are not named here.  module: takes `rngs` alone."""
  graph, state = _split(module.func, *module.args)
  return make(graph=graph, abstract=nnx.to_pure_dict(state), table=table, source=source, sizes=sizes,
              tokenizer=tokenizer, fresh=fresh, build=lambda seed: module(rngs=nnx.Rngs(seed)),
              execution=dataclasses.replace(execution_lib.PLAIN, remat=remat))


# Every stage makes its networks anew, a run of two kinds; for its shapes one is traced, which takes 0.06 s.
@functools.lru_cache(maxsize=8)
def _split(module: Callable[..., nnx.Module], *of: Hashable) -> tuple[nnx.GraphDef, nnx.State]:
  return nnx.split(nnx.eval_shape(lambda: module(*of, rngs=nnx.Rngs(0))))


def _params(model: nnx.Module) -> Any:
  return nnx.to_pure_dict(nnx.state(model))
