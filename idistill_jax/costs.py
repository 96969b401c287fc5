"""What a program costs before it has run anywhere: FLOPs of its matrix products, bytes that it moves."""

import math
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core

# Bytes of an element, by XLA's names.  Bytes themselves are what cuDNN works in, and read nowhere else.
_SIZES = {"f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8, "pred": 1}
# What moves nothing, and loops, whose operand is all that they hold.
_NOTHING = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while"}
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(?:,|$)")
# A collective as a whole, or its beginning and its end.
_COLLECTIVE = re.compile(r"(all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start|-done)?")
# What computes: fusions, kernels, loops.
_COMPUTES = {"fusion", "custom-call", "while", "dot", "convolution"}


def products(jaxpr: Any) -> float:
  """FLOPs of a traced program's matrix products on all devices together, those of every turn of its loops; without
  what is inside kernels.

  Why not the compiler's count: it takes a loop's turn once, and for GPUs it has none.
  """
  total = 0.0
  for one in jaxpr.eqns:
    if one.primitive.name == "dot_general":
      (contracted, _), _ = one.params["dimension_numbers"]
      left = one.invars[0].aval.shape
      total += 2 * math.prod(one.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    elif one.primitive.name != "pallas_call":
      times = {"scan": lambda told: told["length"], "shard_map": lambda told: told["mesh"].size}
      turns = times.get(one.primitive.name, lambda told: 1)(one.params)
      total += turns * sum(products(inner) for inner in _within(one.params))
  return total


def _within(params: dict[str, Any]) -> Iterator[Any]:
  """The programs among an operation's parameters."""
  is_program = lambda leaf: isinstance(leaf, (core.Jaxpr, core.ClosedJaxpr))
  for leaf in jax.tree.leaves(list(params.values()), is_leaf=is_program):
    if is_program(leaf):
      yield leaf.jaxpr if isinstance(leaf, core.ClosedJaxpr) else leaf


def attention(shape: tuple[int, ...], heads: int, width: int, *, forward: int, backward: int) -> float:
  """FLOPs inside the kernels of one layer's attention over rows of `shape` [R, L], so many times forward and backward.

  A product is 2 R L^2 H K.  Forward there are two, of queries and keys, of weights and values; backward five, as in
  flash attention (Dao et al. 2022): the weights anew, as none are kept, their gradient, and those of the values, the
  queries and the keys.  So a step has 14 R L^2 H K, encoding 4; a gradient in two kernels has some twice.
  """
  rows, length = shape
  return (2 * forward + 5 * backward) * 2.0 * rows * length**2 * heads * width


def bytes_moved(compiled: Any) -> tuple[float, int]:
  """Of one device; and how many turns of each loop are among them, one by XLA's count.

  For GPUs it has no count: there it is what the operations read and write that the program calls one after the other,
  and of loops nothing, as an operation within may read a part alone of an operand that holds all turns'.
  """
  counted = compiled.cost_analysis()
  return (counted["bytes accessed"], 1) if counted else (_of_operations(compiled.as_text()), 0)


def collectives(program: str) -> tuple[int, int]:
  """How many a compiled program has, a loop's once, and within how many of them, from beginning to end, it computes.

  program: XLA's text of it, in the order in which it runs.
  """
  total, overlapped, computed = 0, 0, 0
  began: dict[str, int] = {}  # at how many operations that compute
  for line in filter(None, map(_INSTRUCTION.match, program.splitlines())):
    name, _, operation, operands = line.groups()
    computed += operation in _COMPUTES
    if found := _COLLECTIVE.fullmatch(operation):
      if found[2] == "-start":
        began[name] = computed
      else:
        total += 1
        overlapped += computed > began.get(operands.rpartition("%")[2], computed)
  return total, overlapped


def _of_operations(program: str) -> float:
  """program: XLA's text of a compiled one."""
  total, types = 0.0, {}
  for line in program[program.index("\nENTRY "):].splitlines():
    if found := _INSTRUCTION.match(line):
      name, types[found[1]], operation, operands = found[1], found[2], found[3], found[4]
      if operation not in _NOTHING:
        total += sum(_bytes(types[one]) for one in [name, *re.findall(r"%([\w.\-]+)", operands)] if one in types)
  return total


def _bytes(kind: str) -> int:
  """kind: an array's, as "bf16[8,128]{1,0}", or those of several in brackets."""
  return sum(_SIZES[element] * math.prod(int(size) for size in shape.split(",") if size)
             for element, shape in re.findall(r"\b(\w+)\[([\d,]*)\]", kind) if element in _SIZES)
