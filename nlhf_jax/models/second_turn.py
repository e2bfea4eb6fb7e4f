"""Second turns: prompts that show the response of the first, for any network that reads prompts.

An encoder reads them, a decoder-only network goes on from them; who answers them is the same policy, at another prompt.
"""

import jax.numpy as jnp
from jaxtyping import Array, Int

from nlhf_jax.models import rater
from nlhf_jax.types import EOS, PAD, Prompts, SecondTurn


def after_response(piece: tuple[int, ...]) -> SecondTurn:
  """The prompt, the response without its end, and a piece that asks for another; without gaps.

  Args:
    piece: tokens; those of a chat model begin with the end of the answer's turn and end where the next answer begins.

  Raises:
    ValueError: the piece is empty, so that an empty response would leave the first prompt; or it has padding or an end.
  """
  if not piece or {PAD, EOS} & set(piece):
    raise ValueError(
      f'The piece of a second turn needs tokens other than {PAD} (padding) and {EOS} (end), got {piece}: '
      'take data.prompts.second_turn.'
    )

  def prompts_of(prompts: Prompts, responses: Int[Array, 'N T']) -> Prompts:
    rows = responses.shape[0]
    per_prompt = rows // prompts.tokens.shape[0]
    first = jnp.repeat(prompts.tokens, per_prompt, axis=0)
    asked = jnp.broadcast_to(jnp.array(piece, jnp.int32), (rows, len(piece)))
    tokens = rater.join([first, jnp.where(responses == EOS, PAD, responses), asked])
    return Prompts(tokens, jnp.repeat(prompts.index, per_prompt))

  return prompts_of
