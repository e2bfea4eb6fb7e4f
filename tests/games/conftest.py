"""Random games."""

import numpy as np
import pytest
from scipy import special

from nlhf_jax.games import game


@pytest.fixture
def random_game():
  """A function: (size, tau, seed) -> a game with cycles and an uneven reference."""

  def make(size: int, tau: float, seed: int = 0) -> game.PreferenceGame:
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(size, size))
    return game.make(special.expit(2 * (noise - noise.T)), rng.dirichlet(np.ones(size)), tau)

  return make
