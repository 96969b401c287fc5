"""What is part of a stage's key beside its config."""

import pytest
import tiny_world

from idistill_jax import config, fingerprints, losses


@pytest.mark.parametrize("loss", losses.LISTWISE)
def test_only_rankers_whose_loss_has_become_another_are_made_anew(loss, tiny_weights):
  cfg = config.Config(name="x", encoder=tiny_world.encoder(tiny_weights), ranker=config.Ranker(loss=loss))
  assert (fingerprints.ranker(cfg) == fingerprints.weights(cfg)) is (loss != "lambda")


def test_losses_that_have_changed_are_there():
  assert fingerprints.RANKER_LOSSES.keys() <= losses.LISTWISE.keys()
