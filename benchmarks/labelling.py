"""How near labelling comes to the ideal rate: 64 calls at once against a server on 127.0.0.1 that takes 200 ms each.

    python -m benchmarks.labelling
    python -m benchmarks.labelling --rank_llm=.venv-rank-llm/bin/python

The server is a process of its own.  Ideal are concurrency / delay calls a second; JSON lines say what was reached on
the same lists, in one run: by labelling (real SDK, cache, parser); by the SDK alone, in as few lines as there can be;
and by rank-llm from PyPI, where a Python that has it is named (see `labelling_peer.py`).
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import pathlib
import platform
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.clock import Clock
from idistill_jax import config
from idistill_jax.llm import ranking, session

MODEL = "m"
ANSWER = " > ".join(f"[{i}]" for i in range(20, 0, -1))
PEER = pathlib.Path(__file__).with_name("labelling_peer.py")


def serve(port: Any, delay: float) -> None:
  """An OpenAI-compatible server that thinks for `delay` seconds, in one event loop."""
  message = {"role": "assistant", "content": ANSWER}
  body = json.dumps({
    "id": "x", "object": "chat.completion", "created": 0, "model": MODEL,
    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1500, "completion_tokens": 100, "total_tokens": 1600},
  }).encode()
  head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()

  async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
      while True:
        request = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in request.lower().split(b"\r\n") if b"content-length" in line)
        await reader.readexactly(length)
        await asyncio.sleep(delay)
        writer.write(head + body)
        await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
      writer.close()

  async def main() -> None:
    server = await asyncio.start_server(one, "127.0.0.1", 0, backlog=512)
    port.value = server.sockets[0].getsockname()[1]
    await server.serve_forever()

  asyncio.run(main())


def lists(name: str, count: int) -> list[ranking.Unordered]:
  """Lists of the quickstart's size, with stand-in passages."""
  texts = tuple(f"passage {i}: " + "some words of documentation " * 10 for i in range(20))
  ids = tuple(f"p{i}" for i in range(20))
  return [ranking.Unordered(f"{name}{i}", ids, f"query {name} {i}", texts) for i in range(count)]


def rates(calls: int, clock: Clock) -> dict[str, float]:
  """Calls a second, and CPU of this process for each of them."""
  return {"calls_per_second": calls / clock.seconds, "cpu_ms_per_call": 1000 * clock.busy / calls}


def labelling(cfg: config.Labels, calls: int) -> dict[str, float]:
  with tempfile.TemporaryDirectory() as folder, session.Session(cfg, pathlib.Path(folder)) as opened:
    plan = session.plan(cfg, seed=0)
    opened.label(lists("warm", cfg.concurrency), plan)  # imports, connections
    with Clock() as asked:
      outcomes = opened.label(lists("q", calls), plan)
    assert all(isinstance(outcome, ranking.Ranked) for outcome in outcomes)
    with Clock() as cached:
      opened.label(lists("q", calls), plan)
  return {**rates(calls, asked), "cached_per_second": calls / cached.seconds}


def bare_sdk(cfg: config.Labels, calls: int) -> dict[str, float]:
  """The control: a loop around `chat.completions.create` that renders, stores and reads nothing."""
  import openai

  prompt = ranking.to_request(lists("q", 1)[0], range(20), session.plan(cfg, seed=0)).prompt

  async def ask(client: openai.AsyncOpenAI, times: int) -> None:
    for _ in range(times):
      await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": prompt}], max_tokens=1024, temperature=0.0
      )

  async def main() -> dict[str, float]:
    async with openai.AsyncOpenAI(api_key="none", base_url=cfg.base_url, max_retries=0, timeout=120) as client:
      await asyncio.gather(*(ask(client, 1) for _ in range(cfg.concurrency)))
      each = calls // cfg.concurrency
      with Clock() as clock:
        await asyncio.gather(*(ask(client, each) for _ in range(cfg.concurrency)))
      return rates(each * cfg.concurrency, clock)

  return asyncio.run(main())


def rank_llm(python: str, cfg: config.Labels, calls: int) -> dict[str, dict[str, float]]:
  """What `labelling_peer.py` measured, by name."""
  command = [python, str(PEER), str(cfg.base_url), str(calls), str(cfg.concurrency)]
  # A line and a progress bar for each call.
  done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
  if done.returncode:
    raise SystemExit(f"{PEER.name} failed:\n{done.stderr[-2000:]}")
  return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--calls", type=int, default=7680)
  parser.add_argument("--concurrency", type=int, default=64)
  parser.add_argument("--delay", type=float, default=0.2)
  parser.add_argument("--rank_llm", help="the Python of an environment with rank-llm")
  args = parser.parse_args(argv)
  port = multiprocessing.Value("i", 0)
  server = multiprocessing.Process(target=serve, args=(port, args.delay), daemon=True)
  server.start()
  while not port.value:
    time.sleep(0.01)
  url = f"http://127.0.0.1:{port.value}/v1"
  cfg = config.Labels(provider="openai", model=MODEL, base_url=url, concurrency=args.concurrency)
  budgeted = config.Labels(
    provider="openai", model=MODEL, base_url=url, concurrency=args.concurrency, max_tokens=10**9
  )
  found = {
    "labelling": labelling(cfg, args.calls),
    "labelling with a budget": labelling(budgeted, args.calls),
    "SDK alone": bare_sdk(cfg, args.calls),
    **(rank_llm(args.rank_llm, cfg, args.calls) if args.rank_llm else {}),
  }
  server.terminate()
  ideal = args.concurrency / args.delay
  print(json.dumps({
    "benchmark": "labelling", **vars(args), "ideal_per_second": ideal, "python": platform.python_version(),
    "cpus": len(os.sched_getaffinity(0)),
  }))
  for name, facts in found.items():
    rounded = {what: round(value, 2) for what, value in facts.items()}
    print(json.dumps({"name": name, **rounded, "share_of_ideal": round(facts["calls_per_second"] / ideal, 3)}))


if __name__ == "__main__":
  main()
