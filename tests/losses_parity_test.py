"""Losses agree with rax and with sentence-transformers where the definitions coincide."""

import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from idistill_jax import losses
from idistill_jax.losses import masked


@pytest.fixture
def lists():
  """Three lists of five: scores, places."""
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(3, 5)).astype(np.float32)
  places = np.stack([rng.permutation(5) for _ in range(3)]).astype(np.int32)
  return scores, places


@pytest.fixture
def ragged(lists):
  """The same with items absent: scores, places, where."""
  scores, places = lists
  return scores, places, np.arange(5)[None] < np.array([[5], [3], [4]])


def test_rax_listmle(ragged):
  rax = pytest.importorskip("rax")
  scores, places, where = ragged
  expected = rax.listmle_loss(jnp.asarray(scores), -jnp.asarray(places), where=jnp.asarray(where))
  assert float(losses.listmle(scores, places, where=where)) == pytest.approx(float(expected), rel=1e-5)


def test_rax_softmax(ragged):
  rax = pytest.importorskip("rax")
  scores, places, where = ragged
  target = losses.order_distribution(jnp.asarray(places), temperature=1.0, where=jnp.asarray(where))
  expected = rax.softmax_loss(jnp.asarray(scores), target, where=jnp.asarray(where))
  assert float(losses.listnet(scores, places, where=where)) == pytest.approx(float(expected), rel=1e-5)


def test_rax_pairwise_logistic(ragged):
  """rax averages over all pairs of a batch and we inside each list first: list by list the two coincide."""
  rax = pytest.importorskip("rax")
  scores, places, where = ragged
  alone = [
    float(rax.pairwise_logistic_loss(jnp.asarray(s), -jnp.asarray(p), where=jnp.asarray(w)))
    for s, p, w in zip(scores, places, where, strict=True)
  ]
  assert float(losses.ranknet(scores, places, where=where)) == pytest.approx(sum(alone) / 3, rel=1e-5)


@pytest.mark.parametrize(
  "weights, mu", [(("dcg_lambdaweight",), 0.0), (("dcg_lambdaweight", "dcg2_lambdaweight"), 1.0)]
)
def test_rax_lambda_weights(ragged, weights, mu):
  """rax scales weights by the list size and costs in nats; gains and pairs are the same."""
  rax = pytest.importorskip("rax")
  scores, places, where = ragged
  relevance = np.asarray(1 / (1 + masked.ranks(jnp.asarray(places), jnp.asarray(where))))
  expected = 0.0
  for s, r, w in zip(scores, relevance, where, strict=True):
    for weight in weights:
      f = functools.partial(getattr(rax, weight), normalize=True, gain_fn=lambda gain: gain)
      value = rax.pairwise_logistic_loss(
        jnp.asarray(s), jnp.asarray(r), where=jnp.asarray(w), lambdaweight_fn=f, reduce_fn=jnp.sum
      )
      expected += float(value) / len(s) / math.log(2) / 3
  assert float(losses.lambda_loss(scores, places, where=where, mu=mu)) == pytest.approx(expected, rel=1e-4)


# Agreement with sentence-transformers, whose cross-encoder losses call a model on pairs of texts.
# The stand-in below is a model whose score of a document is the number that the document spells.


def cross_encoder_loss(name, scores, labels, where, **kwargs):
  torch = pytest.importorskip("torch")
  st_losses = pytest.importorskip("sentence_transformers.cross_encoder.losses")

  class Reader(torch.nn.Module):
    num_labels = 1
    device = torch.device("cpu")

    def preprocess(self, pairs, prompt=None, task=None):
      return {"scores": torch.tensor([float(document) for _, document in pairs])}

    def forward(self, features):
      return features

  kwargs = {k: getattr(st_losses, v)() if k == "weighting_scheme" else v for k, v in kwargs.items()}
  documents = [
    [repr(float(s)) for s, present in zip(*row, strict=True) if present]
    for row in zip(scores, where, strict=True)
  ]
  targets = [torch.tensor(np.asarray(row)[present]) for row, present in zip(labels, where, strict=True)]
  return float(getattr(st_losses, name)(Reader(), **kwargs)([[""] * len(documents), documents], targets))


@pytest.mark.torch
def test_sentence_transformers_listmle(ragged):
  scores, places, where = ragged
  expected = cross_encoder_loss("ListMLELoss", scores, -places, where, respect_input_order=False)
  assert float(losses.listmle(scores, places, where=where)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.torch
def test_sentence_transformers_listnet(ragged):
  scores, places, where = ragged
  expected = cross_encoder_loss("ListNetLoss", scores, -places, where)
  assert float(losses.listnet(scores, places, where=where)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.torch
def test_sentence_transformers_ranknet(lists):
  """It averages over all pairs of the batch, so lists are of one length here; its default cost is in bits."""
  scores, places = lists
  labels, where = 4 - places, np.ones(places.shape, bool)  # it takes negative labels for 0
  expected = cross_encoder_loss("RankNetLoss", scores, labels, where, reduction_log="natural")
  assert float(losses.ranknet(scores, places)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize("scheme, mu", [("LambdaRankScheme", 0.0), ("NDCGLoss2PPScheme", 10.0)])
def test_sentence_transformers_lambda_loss(lists, scheme, mu):
  """It averages over pairs and we sum over them; its gain is 2^label - 1, ours the reciprocal rank.

  Its k cuts by the model's ranks and our `top_places` by the teacher's, so only the whole list is comparable.
  """
  scores, places = lists
  labels, where = np.log2(1 + 1 / (1 + places)), np.ones(places.shape, bool)
  expected = cross_encoder_loss("LambdaLoss", scores, labels, where, weighting_scheme=scheme)
  assert float(losses.lambda_loss(scores, places, mu=mu)) == pytest.approx(
    expected * math.comb(5, 2), rel=1e-4
  )


def bi_encoder_loss(name, scores, labels, **kwargs):
  """Embeddings of one number: the query's is 1, a passage's its score, so the dot product is the score."""
  torch = pytest.importorskip("torch")
  st_losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
  queries = torch.ones(len(scores), 1)
  passages = [torch.tensor(scores[:, i : i + 1]) for i in range(scores.shape[1])]
  loss = getattr(st_losses, name)(None, **kwargs)
  return float(loss.compute_loss_from_embeddings([queries, *passages], torch.tensor(labels)))


@pytest.mark.torch
def test_sentence_transformers_distill_kl(lists):
  """It multiplies by the square of the student's temperature; we do not."""
  scores, places = lists
  teacher = -places.astype(np.float32)
  temperatures = {"student_temperature": 0.5, "teacher_temperature": 2.0}
  expected = bi_encoder_loss("DistillKLDivLoss", scores, teacher, **temperatures)
  assert float(losses.kl_list(scores, teacher, **temperatures)) * 0.5**2 == pytest.approx(expected, rel=1e-5)


@pytest.mark.torch
def test_sentence_transformers_margin_mse(lists):
  """It takes the first passage for the positive; ours is the teacher's best."""
  scores, places = lists
  places = np.sort(places, axis=-1)
  teacher = -places.astype(np.float32)
  expected = bi_encoder_loss("MarginMSELoss", scores, teacher)
  actual = losses.margin_mse(scores, teacher, teacher_temperature=1.0, student_temperature=1.0)
  assert float(actual) == pytest.approx(expected, rel=1e-5)


@pytest.mark.torch
def test_sentence_transformers_multiple_negatives_ranking():
  torch = pytest.importorskip("torch")
  st_losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
  rng = np.random.default_rng(2)
  queries, passages = rng.normal(size=(2, 4, 8)).astype(np.float32)
  unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (queries, passages)]
  loss = st_losses.MultipleNegativesRankingLoss(None, scale=20.0)
  expected = float(loss.compute_loss_from_embeddings([torch.tensor(queries), torch.tensor(passages)], None))
  actual = losses.contrastive(jnp.asarray(unit[0] @ unit[1].T), jnp.arange(4), student_temperature=0.05)
  assert float(actual) == pytest.approx(expected, rel=1e-4)
