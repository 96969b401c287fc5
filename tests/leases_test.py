"""Leases: of workers that all found a piece free, one has it."""

import concurrent.futures

from idistill_jax.train import leases


def test_of_many_workers_with_the_same_old_view_one_takes_a_piece(tmp_path, monkeypatch):
  workers = [leases.Leases(tmp_path) for _ in range(8)]
  # As each of them would see it that looked before any of the others wrote.
  monkeypatch.setattr(type(workers[0]._fs), "exists", lambda self, path: False)
  with concurrent.futures.ThreadPoolExecutor(len(workers)) as threads:
    for piece in map(str, range(20)):
      taken = list(threads.map(lambda one, piece=piece: one.take(piece, f"{piece}.npy", ()), workers))
      assert sum(taken) == 1
  for one in workers:
    one.close()
  assert not list(tmp_path.iterdir())
