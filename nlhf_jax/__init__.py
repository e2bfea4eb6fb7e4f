"""Nash learning from human feedback (Munos et al. 2024) in JAX.

The map: `algorithms` is the table of methods, `losses`, `policy_gradient` and `pairwise` their mathematics, `models` what they are made of, and
`types` what passes between them. `training.loop` runs a method on any iterator of NumPy batches; `games` holds the exact
theory on tables, `judges` what compares two responses. `data` (seqio) and `cli` (gin) are imported by whoever needs them.

The names of `__all__` are imported when they are first used, so that this alone imports nothing.
"""

import importlib
from typing import Any

__version__ = '0.2.0'

_METHODS = (
  'best_response blackwell_pg dno dpo egpo inpo ipo_md magnet_reset mnpo nash_ema_pg nash_md_pg nash_mp online_ipo onpo preference reward '
  'rlhf rspo self_play sft sppo stackelberg'
)
_TYPES = 'Algorithm Comparison Demonstration Policy PolicyParams PreferenceFn Prompts RewardFn Rollout TrainState'
# Name -> the module that defines it.
_NAMES = {
  **dict.fromkeys(_METHODS.split(), 'algorithms'),
  **dict.fromkeys(_TYPES.split(), 'types'),
  **dict.fromkeys(['Hooks', 'init_state', 'train'], 'training.loop'),
  'Sampling': 'networks.decoding',
}
_MODULES = ('algorithms', 'losses', 'pairwise', 'policy_gradient', 'types')

__all__ = sorted([*_NAMES, *_MODULES])


def __getattr__(name: str) -> Any:
  """The modules and names of `__all__`, on first use."""
  if name in _MODULES:
    return importlib.import_module(f'{__name__}.{name}')
  if name in _NAMES:
    return getattr(importlib.import_module(f'{__name__}.{_NAMES[name]}'), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted([*__all__, '__version__'])
