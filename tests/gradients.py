"""Gradients of every parameter, ours against torch's."""

from collections.abc import Mapping

import numpy as np


def assert_equal(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
  """Both by the names that HF gives the parameters."""
  assert set(found) == set(expected)
  largest = max(np.abs(gradient).max() for gradient in expected.values())
  for name, gradient in expected.items():
    # Within 1e-4 of the tensor's largest entry; the floor is for key biases, whose true gradient is zero.
    allowed = 1e-4 * np.abs(gradient).max() + 1e-6 * largest
    np.testing.assert_allclose(found[name], gradient, atol=allowed, rtol=0, err_msg=name)
