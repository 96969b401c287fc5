import os
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
import jax, pytest
jax.config.update("jax_numpy_rank_promotion", "raise")
@pytest.fixture
def tiny_weights(): return "pypi:cognition/model"
