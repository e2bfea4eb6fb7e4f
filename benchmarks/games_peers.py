"""Times of Nashpy and OpenSpiel on a game that `games_speed.py` wrote; runs in an environment of its own.

python benchmarks/games_peers.py GAME.npy OUT.json
"""

import json
import sys

import nashpy
import numpy as np
import pyspiel
from open_spiel.python.algorithms import lp_solver, regret_matching
from timing import seconds


def main() -> None:
  """Writes the times of both packages."""
  advantage = np.load(sys.argv[1]) - 0.5
  game = nashpy.Game(advantage)
  matrix = pyspiel.create_matrix_game(advantage.tolist(), (-advantage).tolist())
  policy, *_ = lp_solver.solve_zero_sum_matrix_game(matrix)
  result = {
    'nashpy': {
      'linear_program': seconds(game.linear_program),
      'linear_program_value': float(np.min(np.asarray(game.linear_program()[0]) @ advantage)),
      'fictitious_play_step': seconds(lambda: list(game.fictitious_play(iterations=1000))) / 1000,
    },
    'open_spiel': {
      'linear_program': seconds(lambda: lp_solver.solve_zero_sum_matrix_game(matrix)),
      'linear_program_value': float(np.min(np.ravel(policy) @ advantage)),
      'regret_matching_step': seconds(
        lambda: regret_matching.regret_matching([advantage, -advantage], iterations=1000)
      )
      / 1000,
    },
  }
  with open(sys.argv[2], 'w') as file:
    json.dump(result, file)


if __name__ == '__main__':
  main()
