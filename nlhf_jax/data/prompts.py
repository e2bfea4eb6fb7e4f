"""What raters are asked: the templates' texts, and their tokens in a vocabulary.

A template is the pieces before the text, before each response, and after the last; `models.rater` fills it.
"""

from collections.abc import Sequence

from nlhf_jax.data.vocabulary import Vocabulary
from nlhf_jax.types import Template

# Source: Munos et al. (2024), arXiv:2312.00886, appendix.
PREFERENCE = (
  'You are an expert summary rater. Given a piece of text and two of its possible summaries, output 1 or 2 to '
  'indicate which summary is better. Text - ',
  ', Summary 1 - ',
  ', Summary 2 - ',
  '. Preferred Summary -',
)
REWARD = ('Context - ', ', Summary - ', '')

# What asks for an answer to an answer. Source: arXiv:2512.16626 (Stackelberg), as others report it.
SECOND_TURN = ' Improve the previous answer!'

# For the vocabulary of the built-in posts, which is too small for the paper's words.
SHORT_PREFERENCE = ('Text', 'First', 'Second', 'Preferred')
SHORT_REWARD = ('Text', 'Summary', 'Quality')


def preference_template(vocabulary: Vocabulary, pieces: Sequence[str] = PREFERENCE) -> Template:
  """The template of a preference model, in tokens.

  Args:
    vocabulary: of the network that reads it; pieces are encoded as text, without the frame that prompts may have.
    pieces: before the text, before the first response, before the second, and after it.

  Raises:
    ValueError: there are not four pieces.
  """
  return _encode(vocabulary, pieces, 4)


def reward_template(vocabulary: Vocabulary, pieces: Sequence[str] = REWARD) -> Template:
  """The template of a reward model, in tokens.

  Args:
    vocabulary: as of `preference_template`.
    pieces: before the text, before the response, and after it.

  Raises:
    ValueError: there are not three pieces.
  """
  return _encode(vocabulary, pieces, 3)


def second_turn(vocabulary: Vocabulary, piece: str = SECOND_TURN) -> tuple[int, ...]:
  """The piece after a response that asks for another, in tokens, for `models.second_turn`.

  Args:
    vocabulary: as of `preference_template`.
    piece: its text; a chat model's begins with the end of the answer's turn.
  """
  return tuple(vocabulary.encode(piece))


def _encode(vocabulary: Vocabulary, pieces: Sequence[str], expected: int) -> Template:
  if len(pieces) != expected:
    raise ValueError(f'The template has {expected} pieces of text, got {len(pieces)}: {pieces!r}.')
  return tuple(tuple(vocabulary.encode(piece)) for piece in pieces)
