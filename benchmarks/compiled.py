"""What the steps of a BERT-base would cost on accelerators that are not here, as rows in Markdown for BUILD.md.

    python -m benchmarks.compiled
    python -m benchmarks.compiled --chip=h100 --queries=2048 --passes=32 --program="retriever step"

The shape of `benchmarks.run --sizes=gpu`, every text of the mean length there; each program is compiled in a process of
its own.  Needs the extras `tpu-compile` and `gpu-compile`.
"""

import pathlib
import tempfile
from collections.abc import Sequence

from absl import app, flags

from benchmarks import alone, models, report

_CHIPS = flags.DEFINE_multi_string("chip", ["v5e:4x4", "v5p:2x2x2", "v4:2x2x2", "h100"],
                                   "As --compile_only of the pipeline; repeat the flag for several.")
_PROGRAMS = flags.DEFINE_multi_string("program", ["ranker step", "retriever step", "encode"],
                                      "Of those that --compile_only compiles; repeat the flag for several.")
_QUERIES = flags.DEFINE_integer("queries", 64, "Lists of a batch, 8 passages each.", lower_bound=1)
_PASSES = flags.DEFINE_integer("passes", 1, "Parts that a batch is encoded in (GradCache).", lower_bound=1)
# Tokens of a query and of a passage: means of benchmarks/texts.py.
QUERY, PASSAGE = 12, 80
PACKAGES = ("jax", "libtpu", "jax-cuda12-plugin")


def row(chip: str, program: str, queries: int, passes: int, weights: pathlib.Path) -> str:
  """Of one program on one chip, with what is wrong with it."""
  from idistill_jax import chips, compile_for, config

  encoder = config.Encoder(
    weights=str(weights), query_tokens=QUERY, list_passage_tokens=PASSAGE, pair_passage_tokens=PASSAGE, row_tokens=512,
    list_row_tokens=512, tokens_per_step=65536, inference_dtype="bfloat16")
  lists = {"lists_per_batch": queries, "passages_per_list": 8, "passes": passes}
  cfg = config.Config(name="compiled", encoder=encoder,
                      ranker=config.Ranker(head="classifier", similarity_weight=None, **lists),
                      retriever=config.Retriever(loss="kl_list" if passes == 1 else "kl_batch", **lists))
  mesh = chips.mesh_of(chip, cfg.mesh)
  data_sheet = chips.of(mesh)
  one = compile_for.programs(cfg, mesh)[program]()
  gib = lambda size: f"{size / 2**30:.2f}"
  cells = (f"{chip}, {mesh.size}", program, f"{one.tokens:,}",
           f"{gib(one.argument_bytes)}; {gib(one.temporary_bytes)} GiB", f"{one.flops / 1e9:,.0f}",
           f"{one.bytes_moved / 1e9:.2f}", f"{1000 * one.seconds(data_sheet):.2f} ms", one.fusions or "",
           " of ".join(map(str, reversed(one.collectives or ()))), one.kernels)
  return "; ".join([f"| {' | '.join(map(str, cells))} |", *one.faults(data_sheet)])


def main(argv: Sequence[str]) -> None:
  if argv[1:]:
    raise app.UsageError(f"unexpected {argv[1:]}")
  print(report.of_run(PACKAGES), flush=True)
  columns = ("chips", "program", "tokens of all chips", "arguments; scratch memory", "GFLOP", "GB moved", "at least",
             "fusions", "collectives behind work", "kernels")
  print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
  with tempfile.TemporaryDirectory() as kept:
    weights = models.folder(models.NAME, pathlib.Path(kept))
    for chip in _CHIPS.value:
      for program in _PROGRAMS.value:
        print(alone.call(row, chip, program, _QUERIES.value, _PASSES.value, weights), flush=True)


if __name__ == "__main__":
  app.run(main)
