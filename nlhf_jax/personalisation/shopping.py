"""The released shopping benchmark of PAHF, read from a directory: people, products, tasks, the rule of labels and its feedback.

A person likes one value of each feature of a product most (tier 2), some second (1), and dislikes the rest (0). A task offers three
options, each with a value of every feature. An option is acceptable if nothing of it is disliked; right is the acceptable option of
the highest sum of tiers, of equals the first letter, and "do not buy" (D) where none is. In phases 3 and 4 people have other tastes.

The people are simulated, and their feedback is by rule: no result on it is one about language.

Source: Liang et al. (2026), arXiv:2602.16173; facebookresearch/PAHF 7a11213 (data and rules of feedback).
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nlhf_jax import untrusted

LETTERS = ('A', 'B', 'C')
NOTHING = 'D'
PHASES = (1, 2, 3, 4)
# Phases after the change of tastes.
AFTER = (3, 4)
DISLIKED, SECOND, MOST = 0, 1, 2
_TIERS = {'like_most': MOST, 'like_second': SECOND, 'dislike': DISLIKED}
_PERSONAS = ('persona_info.json', 'updated_persona_info.json')
_REMEDY = 'take the files as facebookresearch/PAHF has them'

# Product -> value -> tier.
Taste = Mapping[str, Mapping[str, int]]


class Feature(NamedTuple):
  """A feature of a product."""

  name: str
  values: tuple[str, ...]
  # How many values of each tier a person has: disliked, second, most.
  tiers: tuple[int, int, int]


# Of a product, in a fixed order.
Features = tuple[Feature, ...]


class Task(NamedTuple):
  """One decision."""

  user: str
  product: str
  # Values of options A, B and C.
  options: tuple[tuple[str, ...], ...]
  # A, B, C or D.
  label: str


class Feedback(NamedTuple):
  """What a person says after an action."""

  is_right: bool
  text: str
  # The option that would have been right, where it is named.
  letter: str | None = None
  # A value that is named, and its tier.
  value: str | None = None
  tier: int | None = None


class Benchmark(NamedTuple):
  """All of it."""

  products: dict[str, Features]
  # User -> taste, in phases 1 and 2, and in 3 and 4.
  before: dict[str, Taste]
  after: dict[str, Taste]
  # Of each phase.
  tasks: dict[int, list[Task]]

  def taste(self, user: str, phase: int) -> Taste:
    """A user's taste in a phase."""
    return (self.after if phase in AFTER else self.before)[user]


def read(directory: pathlib.Path) -> Benchmark:
  """Reads phase1.json … phase4.json, persona_info.json and updated_persona_info.json; checks every label by the rule.

  Raises:
    FileNotFoundError, ValueError: names file, entry and what to do.
  """
  if not directory.is_dir():
    raise FileNotFoundError(
      f'No directory {directory}: name one with phase1.json … phase4.json and persona_info.json.'
    )
  products: dict[str, Features] = {}
  before, after = (_read_personas(directory / name, products) for name in _PERSONAS)
  for user in before.keys() ^ after.keys():
    raise ValueError(
      f'{directory}: user {user!r} is in one of {_PERSONAS[0]} and {_PERSONAS[1]} alone; {_REMEDY}.'
    )
  tasks = {}
  for phase in PHASES:
    path = directory / f'phase{phase}.json'
    tastes = after if phase in AFTER else before
    tasks[phase] = _read_tasks(path, products, tastes)
  return Benchmark(products, before, after, tasks)


def label(options: Sequence[Sequence[str]], tiers: Mapping[str, int]) -> str:
  """The right letter for a person who has these tiers of values."""
  best, most = NOTHING, 0
  for letter, option in zip(LETTERS, options, strict=True):
    found = [tiers[value] for value in option]
    if DISLIKED not in found and sum(found) > most:
      best, most = letter, sum(found)
  return best


def feedback(
  task: Task, action: str, tiers: Mapping[str, int], old: Mapping[str, int] | None = None
) -> Feedback:
  """What the person says to an action, by the benchmark's rules.

  Right: thanks. Nothing bought though something was right: names it. Something disliked: names the first such value. Acceptable
  but not the best: names the best, and its first value that is liked most where the chosen one's is liked second.

  Args:
    task: what was offered.
    action: a letter.
    tiers: of the product's values, now.
    old: the same before tastes changed, in phases 3 and 4; a person then says what they used to like.

  Raises:
    ValueError: the action is no letter of the task.
  """
  if action not in (*LETTERS, NOTHING):
    raise ValueError(f'The action {action!r} is none of {", ".join((*LETTERS, NOTHING))}.')
  if action == task.label:
    return Feedback(True, 'Thanks!')
  if action == NOTHING:
    return Feedback(False, f'Option {task.label} would have worked for me.', task.label)
  chosen = task.options[LETTERS.index(action)]
  disliked = [value for value in chosen if tiers[value] == DISLIKED]
  if disliked:
    used_to = old is not None and all(old[value] != DISLIKED for value in chosen)
    text = (
      f"I used to like {disliked[0]}, but now I don't want it any more."
      if used_to
      else f"Option {action} won't work for me: I don't want {disliked[0]}."
    )
    return Feedback(False, text, value=disliked[0], tier=DISLIKED)
  best = task.options[LETTERS.index(task.label)]
  # One value of a feature is liked most: if it is not the chosen one's, that is liked second.
  for value in best:
    if tiers[value] == MOST and value not in chosen:
      text = f'Option {action} is okay, but I prefer option {task.label}: it has {value}.'
      return Feedback(False, text, task.label, value, MOST)
  return Feedback(False, f'Option {action} works, but option {task.label} is better.', task.label)


def answer(value: str, tiers: Mapping[str, int]) -> str:
  """What the person answers to "What do you think of this value?" (symbolic: the benchmark lets an LLM answer)."""
  return {MOST: 'I like it most.', SECOND: 'It is fine.', DISLIKED: "I don't want it."}[
    tiers[value]
  ]


def _load(path: pathlib.Path) -> Any:
  if not path.is_file():
    raise FileNotFoundError(f'No file {path}: {_REMEDY}.')
  try:
    return untrusted.parse_json(path.read_bytes())
  except untrusted.ContentError as error:
    raise ValueError(f'{path} is no JSON (line {error.line}: {error}); {_REMEDY}.') from None


def _read_personas(path: pathlib.Path, products: dict[str, Features]) -> dict[str, Taste]:
  """Tastes of all users; adds the products that are new."""
  content = _load(path)
  if not isinstance(content, dict) or not content:
    raise ValueError(f'{path} holds no users: a mapping of user to persona_info; {_REMEDY}.')
  result: dict[str, Taste] = {}
  for user, entry in content.items():
    info = entry.get('persona_info') if isinstance(entry, dict) else None
    if not isinstance(info, dict):
      raise ValueError(f'{path}: user {user!r} has no persona_info; {_REMEDY}.')
    taste = {}
    for product, features in info.items():
      if product == 'name':
        continue
      where = f'{path}: user {user!r}, product {product!r}'
      taste[product] = _read_taste(where, features, products, product)
    result[user] = taste
  return result


def _read_taste(where: str, features: Any, products, product: str) -> dict[str, int]:
  """Value -> tier of one product."""
  if not isinstance(features, dict) or not features:
    raise ValueError(f'{where} has no features; {_REMEDY}.')
  tiers: dict[str, int] = {}
  found = []
  for name, entry in features.items():
    if not isinstance(entry, dict) or set(entry) != set(_TIERS):
      raise ValueError(f'{where}, feature {name!r} needs {", ".join(_TIERS)}; {_REMEDY}.')
    values = {
      tier: [entry[key]] if isinstance(entry[key], str) else entry[key]
      for key, tier in _TIERS.items()
    }
    flat = [value for group in values.values() if isinstance(group, list) for value in group]
    texts = all(isinstance(x, list) for x in values.values()) and all(
      isinstance(x, str) for x in flat
    )
    if not texts or len(values[MOST]) != 1:
      raise ValueError(
        f'{where}, feature {name!r} needs one text in like_most, lists of texts else; {_REMEDY}.'
      )
    for value in flat:
      if value in tiers or flat.count(value) > 1:
        raise ValueError(f'{where}: the value {value!r} has two tiers; give it one.')
    tiers |= {value: tier for tier, group in values.items() for value in group}
    counts = len(values[DISLIKED]), len(values[SECOND]), len(values[MOST])
    found.append(Feature(name, tuple(sorted(flat)), counts))
  features = tuple(sorted(found))
  if products.setdefault(product, features) != features:
    raise ValueError(
      f'{where} has other features, values or numbers of liked ones than another user has; {_REMEDY}.'
    )
  return tiers


def _read_tasks(path: pathlib.Path, products, tastes: dict[str, Taste]) -> list[Task]:
  content = _load(path)
  if not isinstance(content, list) or not content:
    raise ValueError(f'{path} holds no list of tasks; {_REMEDY}.')
  return [
    _read_task(f'{path}: entry {number}', entry, products, tastes)
    for number, entry in enumerate(content)
  ]


def _read_task(where: str, entry: Any, products, tastes: dict[str, Taste]) -> Task:
  names = ('User', 'product', *(f'Option {letter}' for letter in LETTERS))
  missing = [name for name in (*names, 'gt') if not isinstance(entry, dict) or name not in entry]
  if missing:
    raise ValueError(f'{where} has no {missing[0]!r}; {_REMEDY}.')
  user, product, *options = (entry[name] for name in names)
  if user not in tastes:
    raise ValueError(f'{where}: user {user!r} has no persona; add one to the persona files.')
  if product not in tastes[user]:
    raise ValueError(f'{where}: user {user!r} has no taste in {product!r}; add it to the persona.')
  for letter, option in zip(LETTERS, options, strict=True):
    for feature in products[product]:
      number = sum(value in feature.values for value in option) if isinstance(option, list) else 0
      if number != 1 or len(option) != len(products[product]):
        raise ValueError(
          f'{where}: option {letter} needs one value of {feature.name!r} and of each other feature, has {option!r}.'
        )
  task = Task(user, product, tuple(map(tuple, options)), entry['gt'] or NOTHING)
  right = label(task.options, tastes[user][product])
  if right != task.label:
    raise ValueError(
      f'{where}: gt is {entry["gt"]!r}, and by the persona {right!r}: is this the phase that the persona file is of?'
    )
  return task
