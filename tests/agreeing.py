"""What processes tell each other, without a device: `python -m agreeing` as one process of a job."""

import sys
import time

import trained

from idistill_jax import processes

if __name__ == "__main__":
  trained.parser.add_argument("--end", choices=["badly", "late"])
  args = trained.parser.parse_args()
  launch = processes.Launch(
    coordinator=args.coordinator, count=args.processes, index=args.process, patience=args.patience)
  with processes.joined(launch):
    # Nothing that the first does alone may wait for the others.
    told = processes.once(lambda: [processes.count(), processes.once(lambda: args.process), args.folder])
    assert told == [1, 0, str(args.folder)], told
    assert (processes.index(), processes.count()) == (args.process, args.processes)
    processes.meet("half way")
    if args.process == 1 and args.end == "badly":
      raise ValueError("line 3 of corpus.jsonl is no JSON")
    if args.process == 1 and args.end == "late":
      time.sleep(3600)
    processes.meet("the last line")
  print("all well")
  sys.exit(0)
