"""A benchmark of PAHF's schema that is small and drawn at random: two features of four values, two products, a few users."""

import itertools
import json
import pathlib

import numpy as np

from nlhf_jax.personalisation import shopping

FEATURES = {
  'lamp': {'shade': ['s0', 's1', 's2', 's3'], 'bulb': ['b0', 'b1', 'b2', 'b3']},
  'desk': {'top': ['t0', 't1', 't2', 't3'], 'legs': ['l0', 'l1', 'l2', 'l3']},
}


def taste(rng: np.random.Generator) -> dict:
  """One most, one second, two disliked."""
  result = {}
  for product, features in FEATURES.items():
    result[product] = {}
    for name, values in features.items():
      order = [str(x) for x in rng.permutation(values)]
      result[product][name] = {
        'like_most': order[0],
        'like_second': order[1:2],
        'dislike': order[2:],
      }
  return result


def tiers(taste: dict) -> dict[str, int]:
  return {
    value: tier
    for feature in taste.values()
    for tier, values in enumerate((feature['dislike'], feature['like_second'], [feature['like_most']]))
    for value in values
  }  # fmt: skip


def write(directory: pathlib.Path, users=('Ann', 'Bob', 'Eve'), num_tasks: int = 8, seed: int = 0):
  """The six files; tastes are drawn anew for phases 3 and 4."""
  rng = np.random.default_rng(seed)
  directory.mkdir(parents=True, exist_ok=True)
  before = {user: taste(rng) for user in users}
  after = {user: taste(rng) for user in users}
  offers = {}
  for half, (user, product) in itertools.product((0, 1), itertools.product(users, FEATURES)):
    grids = [rng.choice(values, (num_tasks, 3)) for values in FEATURES[product].values()]
    options = np.stack(grids, axis=-1).tolist()
    offers[half, user, product] = options
  for phase in shopping.PHASES:
    tastes = after if phase in shopping.AFTER else before
    tasks = []
    for user, product in itertools.product(users, FEATURES):
      for options in offers[(phase - 1) % 2, user, product]:
        right = shopping.label(options, tiers(tastes[user][product]))
        named = dict(zip(('Option A', 'Option B', 'Option C'), options, strict=True))
        gt = None if right == shopping.NOTHING else right
        tasks.append({'product': product, **named, 'User': user, 'Task': 'Buy one.', 'gt': gt})
    (directory / f'phase{phase}.json').write_text(json.dumps(tasks))
  for name, tastes in (('persona_info', before), ('updated_persona_info', after)):
    content = {user: {'persona_info': {'name': user, **x}} for user, x in tastes.items()}
    (directory / f'{name}.json').write_text(json.dumps(content))
  return directory
