"""The table of agents."""

import pytest

from nlhf_jax.personalisation import agents


def test_agents_by_name_and_what_is_none():
  assert list(agents.named(['both', 'none'], agents.AGENTS)) == ['both', 'none']
  with pytest.raises(ValueError, match=r"No agent 'bot'\. Did you mean both\?"):
    agents.named(['bot'], agents.AGENTS)
  with pytest.raises(ValueError, match='There are none, questions'):
    agents.named(['xyz'], agents.AGENTS)
  with pytest.raises(ValueError, match='named twice'):
    agents.named(['both', 'both'], agents.AGENTS)
