"""Nash learning from human feedback (Munos et al. 2024) in JAX.

The map: `algorithms` is the table of methods, `losses` and `pairwise` their mathematics, `models` what they are made of, and
`types` what passes between them. `training.loop` runs a method on any iterator of NumPy batches; `games` holds the exact
theory on tables, `judges` what compares two responses. `data` (seqio) and `cli` (gin) are imported by whoever needs them.

What is named here is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from nlhf_jax import algorithms, losses, pairwise, types
  from nlhf_jax.algorithms import (
    best_response,
    dno,
    dpo,
    egpo,
    inpo,
    ipo_md,
    nash_ema_pg,
    nash_md_pg,
    nash_mp,
    online_ipo,
    preference,
    reward,
    rlhf,
    self_play,
    sft,
    sppo,
  )
  from nlhf_jax.models.policy import from_network as policy_from_network
  from nlhf_jax.networks.decoding import Sampling
  from nlhf_jax.training.loop import Hooks, init_state, train
  from nlhf_jax.types import (
    Algorithm,
    Comparison,
    Demonstration,
    Policy,
    PolicyParams,
    PreferenceFn,
    Prompts,
    RewardFn,
    Rollout,
    TrainState,
  )

__version__ = '0.2.0'

_MODULES = ('algorithms', 'losses', 'pairwise', 'types')
_METHODS = (
  'best_response',
  'dno',
  'dpo',
  'egpo',
  'inpo',
  'ipo_md',
  'nash_ema_pg',
  'nash_md_pg',
  'nash_mp',
  'online_ipo',
  'preference',
  'reward',
  'rlhf',
  'self_play',
  'sft',
  'sppo',
)
_TYPES = (
  'Algorithm',
  'Comparison',
  'Demonstration',
  'Policy',
  'PolicyParams',
  'PreferenceFn',
  'Prompts',
  'RewardFn',
  'Rollout',
  'TrainState',
)
# Name -> where it is defined, and its name there.
_NAMES = {
  **{name: ('nlhf_jax.algorithms', name) for name in _METHODS},
  **{name: ('nlhf_jax.types', name) for name in _TYPES},
  'Hooks': ('nlhf_jax.training.loop', 'Hooks'),
  'Sampling': ('nlhf_jax.networks.decoding', 'Sampling'),
  'init_state': ('nlhf_jax.training.loop', 'init_state'),
  'policy_from_network': ('nlhf_jax.models.policy', 'from_network'),
  'train': ('nlhf_jax.training.loop', 'train'),
}

__all__ = [  # noqa: PLE0604
  'Algorithm',
  'Comparison',
  'Demonstration',
  'Hooks',
  'Policy',
  'PolicyParams',
  'PreferenceFn',
  'Prompts',
  'RewardFn',
  'Rollout',
  'Sampling',
  'TrainState',
  'algorithms',
  'best_response',
  'dno',
  'dpo',
  'egpo',
  'init_state',
  'inpo',
  'ipo_md',
  'losses',
  'nash_ema_pg',
  'nash_md_pg',
  'nash_mp',
  'online_ipo',
  'pairwise',
  'policy_from_network',
  'preference',
  'reward',
  'rlhf',
  'self_play',
  'sft',
  'sppo',
  'train',
  'types',
]


def __getattr__(name: str) -> Any:
  if name in _MODULES:
    return importlib.import_module(f'nlhf_jax.{name}')
  if name in _NAMES:
    module, attribute = _NAMES[name]
    return getattr(importlib.import_module(module), attribute)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted([*__all__, '__version__'])
