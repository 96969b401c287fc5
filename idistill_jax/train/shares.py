"""Records that the processes of a job read and write together: each has its own share.

Which lists make a batch, and which pairs a row, depends on all lists.  So each process reads and checks a run of the
records, and what it makes of them, numbers, comes to the others through the job's folder.  What they write is cut into
shards by how much there is, not by how many they are: the files are the same whoever writes which.
"""

import io
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from idistill_jax import processes
from idistill_jax.data import example, tfrecord
from idistill_jax.train import pieces
from idistill_jax.workdir import artifacts, remote


def read(job: artifacts.Job, what: str, records: Sequence[Any],
         numbers: Callable[[Iterable[Any]], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
  """Arrays of all records, in their order, of which each process makes those of its own; each calls it.

  records: read when they are asked for; None stands for one that is left out.  numbers: of any of them, arrays that
  can be put one behind the other.  Raises what reading raises, in the others FailedElsewhereError.
  """
  index, count = processes.index(), processes.count()
  own = range(index * len(records) // count, (index + 1) * len(records) // count)
  with processes.agreed(what):
    made = numbers(_present(records, own))
  if count == 1:
    return made
  # A name that no other attempt has: a file system may show another machine what lay there before.
  name = processes.once(lambda: uuid.uuid4().hex, what)
  folder = job.shared / artifacts.CHECKPOINTS / "numbers" / name
  with remote.reaching(folder):
    folder.mkdir(parents=True, exist_ok=True)
    written = io.BytesIO()
    np.savez(written, **dict[str, Any](made))
    (folder / f"{index}.npz").write_bytes(written.getvalue())
  processes.meet(what)
  with remote.reaching(folder):
    parts = [np.load(io.BytesIO((folder / f"{process}.npz").read_bytes())) for process in range(count)]
  processes.meet(f"all of {what}")
  if processes.is_first():
    with remote.reaching(folder):
      folder.rmtree()
  return {key: np.concatenate([part[key] for part in parts]) for key in made}


def write(job: artifacts.Job, name: str, records: Sequence[Any]) -> None:
  """Shards of records that every process knows, of which each writes its own; each calls it.

  records: made when they are asked for; None stands for one that is left out.  What an earlier attempt has left, of
  other records or by another version that cut them otherwise, goes.
  """
  runs = pieces.cut(len(records)) or [range(0)]

  def clear() -> None:
    if tfrecord.remove_others(job.out, name, len(runs)):
      job.keep("")  # else they would be in a bucket still

  processes.once(clear, f"shards of {name}")
  clear()  # of another machine's folder that stands for the bucket
  for shard in range(processes.index(), len(runs), processes.count()):
    example.write_shard(job.out, name, _present(records, runs[shard]), shard, len(runs))
    job.keep(tfrecord.shard_name(name, shard, len(runs)))


def _present(records: Sequence[Any], which: range) -> Iterable[Any]:
  return (one for i in which if (one := records[i]) is not None)
