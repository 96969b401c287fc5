"""How near labelling comes to the ideal rate: 64 calls at once against a server on 127.0.0.1 that takes 200 ms each.

    python benchmarks/labelling.py

The server is a process of its own.  Ideal are concurrency / delay calls a second; one JSON line says what was reached,
through the real SDK, cache and parser.  Lists are those of the quickstart, with stand-in passages.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import pathlib
import platform
import resource
import tempfile
import time
from typing import Any

from idistill_jax import config
from idistill_jax.llm import ranking, session

ANSWER = " > ".join(f"[{i}]" for i in range(20, 0, -1))


def serve(port: Any, delay: float) -> None:
  """An OpenAI-compatible server that thinks for `delay` seconds, in one event loop."""
  message = {"role": "assistant", "content": ANSWER}
  body = json.dumps({
    "id": "x", "object": "chat.completion", "created": 0, "model": "m",
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


def measure(url: str, calls: int, concurrency: int, folder: pathlib.Path) -> dict[str, float]:
  cfg = config.Labels(provider="openai", model="m", base_url=f"{url}/v1", concurrency=concurrency)
  texts = tuple(f"passage {i}: " + "some words of documentation " * 10 for i in range(20))
  ids = tuple(f"p{i}" for i in range(20))

  def lists(name: str, count: int) -> list[ranking.Unordered]:
    return [ranking.Unordered(f"{name}{i}", ids, f"query {name} {i}", texts) for i in range(count)]

  with session.Session(cfg, folder) as opened:
    plan = session.plan(cfg, seed=0)
    opened.label(lists("warm", concurrency), plan)  # imports, connections
    started, busy = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
    outcomes = opened.label(lists("q", calls), plan)
    seconds = time.perf_counter() - started
    busy = resource.getrusage(resource.RUSAGE_SELF).ru_utime - busy
    assert all(isinstance(outcome, ranking.Ranked) for outcome in outcomes)
    started = time.perf_counter()
    opened.label(lists("q", calls), plan)
    cached = time.perf_counter() - started
  return {
    "calls_per_second": calls / seconds, "cpu_ms_per_call": 1000 * busy / calls, "cached_per_second": calls / cached,
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--calls", type=int, default=1920)
  parser.add_argument("--concurrency", type=int, default=64)
  parser.add_argument("--delay", type=float, default=0.2)
  args = parser.parse_args()
  port = multiprocessing.Value("i", 0)
  server = multiprocessing.Process(target=serve, args=(port, args.delay), daemon=True)
  server.start()
  while not port.value:
    time.sleep(0.01)
  with tempfile.TemporaryDirectory() as folder:
    found = measure(f"http://127.0.0.1:{port.value}", args.calls, args.concurrency, pathlib.Path(folder))
  server.terminate()
  ideal = args.concurrency / args.delay
  print(json.dumps({
    "benchmark": "labelling", **vars(args), **{name: round(value, 2) for name, value in found.items()},
    "ideal_per_second": ideal, "share_of_ideal": round(found["calls_per_second"] / ideal, 3),
    "python": platform.python_version(), "cpus": len(os.sched_getaffinity(0)),
  }))


if __name__ == "__main__":
  main()
