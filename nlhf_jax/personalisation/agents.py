"""Which feedback an agent hears and what it keeps of it: one row for each agent, for every benchmark of this room.

In a round an agent reads its notes, may ask a question before it acts (f_pre), acts, and may be corrected if it was wrong (f_post).
Nothing is trained, and no note of one person is read for another.

Source: Liang et al. (2026), arXiv:2602.16173 (PAHF), by its code; `doubt` and `prior` are ours.
"""

import difflib
from collections.abc import Sequence
from typing import Literal, NamedTuple


class Agent(NamedTuple):
  """What tells agents apart."""

  # As it is shown.
  title: str
  # Asks before it acts, where the posterior leaves it unsure.
  asks: bool = False
  # Hears what was wrong after it has acted.
  is_corrected: bool = False
  # 'nothing': acts at random; 'newest': a newer note overwrites; 'everything': all notes are evidence, of whatever age; 'truth': the oracle.
  remembers: Literal['nothing', 'newest', 'everything', 'truth'] = 'newest'
  # In [0, 1]: how likely other beliefs are void where one was contradicted; 0: they are kept, 1: they are emptied.
  doubt: float = 0.0
  # Asks about what is open in what it sees, even where that does not matter to this round's action: for rounds to come.
  is_curious: bool = False
  # Starts from the population's shares of each value in place of equal ones.
  has_prior: bool = False
  # Keeps what a question has ruled out, even where it does not leave a single value.
  keeps_partial: bool = False
  # Always acts so; None: by its beliefs.
  constant: str | None = None


AGENTS: dict[str, Agent] = {
  'none': Agent('no memory', remembers='nothing'),
  'questions': Agent('questions only', asks=True),
  'corrections': Agent('corrections only', is_corrected=True),
  'both': Agent('both', asks=True, is_corrected=True),
  'history': Agent('both, full history', asks=True, is_corrected=True, remembers='everything'),
  'doubt': Agent('both and doubt', asks=True, is_corrected=True, doubt=1.0),
  'curious': Agent(
    'both, doubt and curiosity', asks=True, is_corrected=True, doubt=1.0, is_curious=True
  ),
  'ours': Agent(
    'both, doubt, curiosity and prior',
    asks=True,
    is_corrected=True,
    doubt=0.5,
    is_curious=True,
    has_prior=True,
    keeps_partial=True,
  ),
  'oracle': Agent('oracle', remembers='truth'),
}
# In the twin an agent sees one slot, and what is open in it does matter.
IN_TWIN = {name: agent for name, agent in AGENTS.items() if name != 'curious'}
# Where an action is a letter.
CONSTANT = Agent('always D', remembers='nothing', constant='D')


def named(names: Sequence[str], table: dict[str, Agent]) -> dict[str, Agent]:
  """Agents by name, in the order asked for.

  Raises:
    ValueError: there is no such agent, or it is named twice.
  """
  for name in names:
    if name not in table:
      close = difflib.get_close_matches(name, table, 1)
      hint = f'Did you mean {close[0]}?' if close else f'There are {", ".join(table)}.'
      raise ValueError(f'No agent {name!r}. {hint}')
    if list(names).count(name) > 1:
      raise ValueError(f'The agent {name!r} is named twice.')
  return {name: table[name] for name in names}
