"""What processes tell each other, without a device: `python -m agreeing` as one process of a job."""

import pathlib
import sys
import time

import jax
import jobs

from idistill_jax import processes

LONG = 3600


def badly(process: int, _: pathlib.Path) -> None:
  if process == 1:
    raise ValueError("line 3 of corpus.jsonl is no JSON")


def hung(process: int, _: pathlib.Path) -> None:
  processes.once(lambda: time.sleep(LONG), "a long sleep")


def slowly(process: int, folder: pathlib.Path) -> None:
  """Longer than others have patience, but not silently; then silently."""
  processes.once(lambda: [(processes.moved(), time.sleep(1)) for _ in range(12)] and None)
  hung(process, folder)


def waits(process: int, _: pathlib.Path) -> None:
  with processes.waiting("a step of all"):
    time.sleep(LONG)


def keeps(process: int, folder: pathlib.Path) -> None:
  """The first process works alone, and keeps what it has, which takes a while, whoever ends it."""
  try:
    processes.once(lambda: ((folder / "at work").write_text("\n"), time.sleep(LONG)))
  finally:
    time.sleep(1)
    (folder / f"kept {process}").touch()


def apart(process: int, folder: pathlib.Path) -> None:
  """What only one process finds torn, all of them have failed to read."""
  try:
    with processes.agreed("reading"):
      if process == 1:
        raise ValueError("torn")
  except (ValueError, processes.ProcessError) as e:
    (folder / f"apart {process}").write_text(f"{type(e).__name__}: {e}")


ENDS = {
  "apart": apart,
  "well": lambda process, folder: None,
  "badly": badly,
  "late": lambda process, folder: time.sleep(LONG if process == 1 else 0),
  "first late": lambda process, folder: time.sleep(LONG if process == 0 else 0),
  "hung": hung,
  "slowly": slowly,
  "waits": waits,
  "keeps": keeps,
}


if __name__ == "__main__":
  parser = jobs.parser()
  parser.add_argument("--end", choices=list(ENDS), default="well")
  parser.add_argument("--heartbeat", type=int, help="after so many seconds JAX itself ends a job; else its patience")
  args = parser.parse_args()
  if args.heartbeat:
    initialize = jax.distributed.initialize
    jax.distributed.initialize = lambda **more: initialize(**{**more, "heartbeat_timeout_seconds": args.heartbeat})
  launch = processes.Launch(
    coordinator=args.coordinator, count=args.processes, index=args.process, patience=args.patience)
  with processes.joined(launch):
    # Nothing that the first does alone may wait for the others.
    told = processes.once(lambda: [processes.count(), processes.once(lambda: args.process), args.folder])
    assert told == [1, 0, str(args.folder)], told
    assert (processes.index(), processes.count()) == (args.process, args.processes)
    processes.meet("half way")
    (args.folder / f"half way {args.process}").write_text("\n")
    ENDS[args.end](args.process, args.folder)
    processes.meet("the last line")
  print("all well")
  sys.exit(0)
