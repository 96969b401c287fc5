"""Checkpoints: damage gives way to what was saved before, all else is an error that takes nothing away."""

import pathlib
import shutil

import bucket
import jax
import jobs
import numpy as np
import orbax.checkpoint as ocp
import pytest
import saved
from etils import epath

from idistill_jax import cli, config, processes, sharding
from idistill_jax.train import checkpoint


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
  return sharding.make_mesh(config.Mesh(fsdp=2))


@pytest.fixture(scope="module")
def written(mesh, tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("written") / "checkpoints"
  kept = checkpoint.Checkpoints(folder)
  for step in (1, 2):
    kept.save(step, saved.state(step, mesh), saved.Position(step))
  kept.close()
  return folder


@pytest.fixture
def folder(written, tmp_path) -> pathlib.Path:
  """Of the checkpoints 1 and 2."""
  return shutil.copytree(written, tmp_path / "checkpoints")


def content(folder: pathlib.Path) -> dict[str, bytes]:
  return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def largest(folder: pathlib.Path) -> pathlib.Path:
  return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def shorten(folder: pathlib.Path) -> None:
  for path in folder.rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:16])


def cut_the_largest(folder: pathlib.Path) -> None:
  largest(folder).write_bytes(largest(folder).read_bytes()[:16])


def flip_a_bit(folder: pathlib.Path) -> None:
  data = bytearray(largest(folder).read_bytes())
  data[len(data) // 2] ^= 1
  largest(folder).write_bytes(data)


def lose_the_largest(folder: pathlib.Path) -> None:
  largest(folder).unlink()


def forget_the_position(folder: pathlib.Path) -> None:
  (folder.parent / "data" / "metadata").write_text("{}")


def move_the_position(folder: pathlib.Path) -> None:
  """A bit of the number in it, which is JSON after as before."""
  path = folder.parent / "data" / "metadata"
  at = path.read_bytes().index(b'"at": ') + len(b'"at": ')
  data = bytearray(path.read_bytes())
  data[at] ^= 1
  path.write_bytes(data)


DAMAGES = [
  shorten, cut_the_largest, flip_a_bit, lose_the_largest, shutil.rmtree, forget_the_position, move_the_position,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(folder, mesh, caplog, damage):
  damage(folder / "2" / "state")
  kept, position = checkpoint.Checkpoints(folder), saved.Position(0)
  found = kept.restore(saved.state(0, mesh), position)
  assert (int(found.step), position.at) == (1, 1)
  np.testing.assert_array_equal(found.params["w"], saved.state(1, mesh).params["w"])
  assert f"checkpoint {folder}/2 cannot be used" in caplog.text
  # Step 2 comes again, and is saved again.
  kept.save(2, saved.state(2, mesh), saved.Position(2))
  kept.close()
  again = checkpoint.Checkpoints(folder)
  assert int(again.restore(saved.state(0, mesh), position).step) == 2
  again.close()


@pytest.mark.parametrize("damage", DAMAGES)
def test_where_no_checkpoint_can_be_read_none_is_taken_away(folder, mesh, damage):
  for step in ("1", "2"):
    damage(folder / step / "state")
  before, kept = content(folder), checkpoint.Checkpoints(folder)
  # As every command ends where a user can mend it: with the message alone.
  with (pytest.raises(SystemExit, match=rf"^CheckpointsError: none of the checkpoints 2, 1 in {folder} .*delete that"),
        cli.ending_in_words()):
    kept.restore(saved.state(0, mesh), saved.Position(0))
  kept.close()
  assert content(folder) == before


def caused(cause: str) -> Exception:
  """As Orbax passes on what TensorStore says of an array."""
  error = Exception("Encountered error while reading array index")
  error.__cause__ = ValueError(cause)
  return error


@pytest.mark.parametrize("error", [
  OSError(24, "Too many open files"), PermissionError(13, "Permission denied"), ConnectionError("no route"),
  MemoryError("device"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"),
  processes.ProcessError("reading failed in process 1 (MemoryError: host)"),
  ValueError("PERMISSION_DENIED: Error opening driver"), caused("UNAVAILABLE: the bucket"),
], ids=repr)
def test_what_is_no_damage_is_an_error_and_every_checkpoint_stays(folder, mesh, monkeypatch, error):
  before, kept = content(folder), checkpoint.Checkpoints(folder)
  restore = ocp.Checkpointer.restore

  def fails(self, path, *args, **kwargs):
    if path.name == "2":
      raise error
    return restore(self, path, *args, **kwargs)

  monkeypatch.setattr(ocp.Checkpointer, "restore", fails)
  with pytest.raises(type(error)) as caught:
    kept.restore(saved.state(0, mesh), saved.Position(0))
  assert caught.value is error
  assert "checkpoints stay as they are" in "".join(error.__notes__)
  assert content(folder) == before
  monkeypatch.undo()
  assert int(kept.restore(saved.state(0, mesh), saved.Position(0)).step) == 2
  kept.close()


def test_damage_that_one_process_sees_is_damage_to_all_and_a_model_waits_for_none_that_hangs(tmp_path):
  with jobs.started(tmp_path, 2, "-m", "saved", str(tmp_path), patience=6) as job:
    codes = job.wait(60)
  assert all(codes), job.said()
  for number in range(2):
    assert "checkpoints/2 cannot be used" in job.said(number), job.said(number)
    assert "restored 1 of the data 1" in job.said(number), job.said(number)
  reason = f"saving {tmp_path}/second did not end within 6 s; processes that are not waiting for it: [1]"
  assert reason in job.said(0), job.said(0)


def test_of_a_model_in_a_bucket_its_last_file_tells_that_it_is_saved():
  # An s3:// of this process may be another test's, whose server is gone.
  with bucket.running("gs") as found:
    folder = epath.Path(f"{found.url}/model")
    assert not checkpoint.is_saved(folder)
    checkpoint.save_model(folder, {"weights": np.ones(3)})
    assert checkpoint.is_saved(folder)
    # As while it is written, and after a kill.
    (folder / "commit_success.txt").unlink()
    assert folder.exists() and not checkpoint.is_saved(folder)
