"""What a gin file describes: one training run, and where it finds what it needs. Nothing here reads or trains.

Runs name each other by directory, relative to their common parent: a policy starts from 'sft' and is judged by 'preference'.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from nlhf_jax.arguments import Count, DType, Seed
from nlhf_jax.evaluation import distance
from nlhf_jax.models import lora, preference_model, reward_model
from nlhf_jax.networks.network import Network
from nlhf_jax.runtime import checkpoints, fingerprints, metrics, partitioning
from nlhf_jax.training import traces
from nlhf_jax.types import (
  NO_VOTERS,
  Adapted,
  Algorithm,
  Batch,
  Comparison,
  Enumeration,
  ParameterSet,
  Params,
  Policy,
  PreferenceFn,
  Prompts,
  RewardFn,
  VoterNames,
)

Model = Policy | preference_model.PreferenceModel | reward_model.RewardModel
Feedback = PreferenceFn | RewardFn
# Parameters to start from: takes their shapes (and shardings), and the directory that holds the runs.
Start = Callable[[Params, pathlib.Path], Params]
# What tells weights that are computed, and have other bits on another kind of device: 'origin', of all that they are made from,
# and 'drawn', some of the random numbers among them. Empty: weights that are merely read.
Origin = dict[str, Any]
# Numbers of each array.
_TOLD = 8


class FeedbackSource(NamedTuple):
  """A judge or a reward whose weights another run trained."""

  # The feedback that the weights give.
  feedback: Callable[[Params], Feedback]
  model: Model
  # Whose weights they are.
  run: str | Start
  # To keep them in; None: as they were trained.
  dtype: DType | None = None


class Experiment(NamedTuple):
  """One training run.

  A method that has a reference is trained against the parameters that it starts from.
  """

  model: Model
  # Of `algorithms`, its constants bound; takes the model, and the feedback if any.
  algorithm: Callable[..., Algorithm]
  # start -> batches from that number on.
  batches: Callable[..., Iterator[Batch]]
  optimizer: optax.GradientTransformation
  num_steps: Count
  # Kind of batch -> its shapes; None: a batch is read.
  shapes: Callable[[type], Batch] | None = None
  # A judge or a reward: a function (an exact judge, a rule, a model behind an API), or one that another run trained.
  feedback: Feedback | FeedbackSource | None = None
  # A run, `from_run` or `pretrained`. None: random parameters.
  start_from: str | Start | None = None
  # Train these alone, on what the run starts from; μ is that without them.
  adapters: lora.Lora | None = None
  # Parameter sets besides the method's own, or in their place: an average to evaluate, a magnet for μ.
  sets: Mapping[str, ParameterSet] = {}
  # The model's, for those who take its weights elsewhere.
  network: Network | None = None
  # Comparisons that a judge is tested on, once it is trained.
  held_out: Callable[[], Comparison] | None = None
  # The voters, by the numbers that comparisons have: kept with the run, and its model has those of training.
  voters: VoterNames = NO_VOTERS
  # All responses to their prompts, where they can be enumerated: the judge is tested on all pairs, too.
  enumeration: Callable[[Prompts], Enumeration] | None = None
  # What a policy is measured on while it trains, where its responses can be enumerated.
  measured: distance.Measured | None = None
  # Rollouts of every n-th step that are kept in votes.jsonl, to be read; None: none are.
  traced: traces.Traces | None = None
  # To whom metrics are reported besides the run's files: trackers, or functions of your own.
  writers: Sequence[metrics.MakeWriter] = ()
  num_microbatches: Count = 1
  # Updates from one rollout; more than one needs a method that reuses them.
  num_updates: Count = 1
  # Of a batch; each is judged while the next is sampled, which saves time with a judge that runs on the host or behind an API.
  num_rollout_parts: Count = 1
  # Steps.
  log_every: Count = 10
  save_every: Count | None = None
  seed: Seed = 0
  # The mesh.
  devices: partitioning.Devices = partitioning.Devices()
  keep: checkpoints.Keep = checkpoints.Keep()
  # A frozen reference may be kept in less precision, and in the host's memory while nobody plays it.
  reference_dtype: DType | None = None
  reference_on_host: bool = False


def pretrained(weights: Callable[[Params], Params]) -> Start:
  """Start: weights of another kind of file, such as `hf.weights(…)` or `t5x.weights(…)`."""
  return lambda like, runs: weights(like)


@dataclasses.dataclass(frozen=True)
class FromRun:
  """Start: what another run trained; see `from_run`."""

  name: str
  adapters: lora.Lora | None
  start_from: str | Start | None
  parameters: str

  def __call__(self, like: Params, runs: pathlib.Path) -> Params:
    """These parameters, in the shapes, types and shardings of `like`."""
    return self.load(like, runs)[0]

  def load(self, like: Params, runs: pathlib.Path) -> tuple[Params, Origin]:
    """These parameters, and where they come from."""
    directory = runs / self.name / 'checkpoints'
    if self.adapters is None:
      return checkpoints.restore_params(directory, like, self.parameters), {}
    shapes = jax.eval_shape(lambda: lora.init(self.adapters, like, jax.random.PRNGKey(0)))
    trained = checkpoints.restore_params(directory, shapes, self.parameters)
    base, of_base = load(self.start_from, like, runs)
    found = {'fingerprint': fingerprints.fingerprint_tree(base)} | of_base
    self._check_base(directory, found)
    merged = [fingerprints.fingerprint_tree(trained), str(self.adapters)]
    merged.append(found.get('origin', found['fingerprint']))
    told = of_base | {'origin': fingerprints.fingerprint_json(merged)}
    return lora.merge(self.adapters, Adapted(base, trained)), told

  def _check_base(self, directory: pathlib.Path, found: Mapping[str, Any]) -> None:
    """Adapters mean something on the weights alone that they were trained on."""
    trained_on = checkpoints.newest_metadata(directory).get('reference')
    if trained_on and not is_same(trained_on, found):
      name = run_of(self.start_from)
      told = 'what they start from' if name is None else repr(name)
      raise ValueError(
        f'{directory.parent} has trained adapters on other weights than {told} has now: give it those back, or train the '
        'adapters anew.'
      )


def from_run(
  name: str,
  adapters: lora.Lora | None = None,
  start_from: str | Start | None = None,
  parameters: str = 'online',
) -> FromRun:
  """Start: what another run trained.

  Args:
    name: of the run.
    adapters: those that it trained, if it did so, to be merged into what it started from.
    start_from: what that was.
    parameters: which set: 'online', or 'average' for averaged weights.
  """
  return FromRun(name, adapters, start_from, parameters)


@dataclasses.dataclass(frozen=True)
class NetworkFrom:
  """Start: a rater on a network from elsewhere; see `network_from`."""

  start: str | Start
  model: Model
  seed: Seed

  def __call__(self, like: Params, runs: pathlib.Path) -> Params:
    """These parameters, in the shapes, types and shardings of `like`."""
    return self.load(like, runs)[0]

  def load(self, like: Params, runs: pathlib.Path) -> tuple[Params, Origin]:
    """These parameters, and where they come from."""
    own = sorted(name for name in like if name != 'network')
    if not own or len(own) == len(like):
      return load(self.start, like, runs)
    network, of_network = load(self.start, like['network'], runs)
    make_own = jax.jit(lambda rng: {name: self.model.init(rng)[name] for name in own})
    drawn = make_own(jax.random.PRNGKey(self.seed))
    told = of_network.get('origin') or fingerprints.fingerprint_tree(network)
    numbers = [float(number) for x in jax.tree.leaves(drawn) for number in x.ravel()[:_TOLD]]
    origin = {'origin': fingerprints.fingerprint_json([told, own, self.seed]), 'drawn': numbers}
    return {'network': network, **drawn}, origin


def network_from(start: str | Start, model: Model, seed: Seed = 0) -> NetworkFrom:
  """Start: a rater, whose network's weights come from elsewhere; its head's and its voters', where it has some, are random.

  Args:
    start: where the network's weights are: a run, `from_run` or `pretrained`.
    model: the preference or reward model.
    seed: of the other weights.
  """
  return NetworkFrom(start, model, seed)


def run_of(start: str | Start | None) -> str | None:
  """The name of the run that a start is of; None: of none that is known here."""
  name = getattr(start, 'name', start)
  return name if isinstance(name, str) else None


def load(start: str | Start | None, like: Params, runs: pathlib.Path) -> tuple[Params, Origin]:
  """What a start gives, and where that comes from."""
  start = as_start(start)
  if isinstance(start, FromRun | NetworkFrom):
    return start.load(like, runs)
  return start(like, runs), {}


def is_same(known: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
  """Whether weights are those that were told: to the bit, or made of the same on another kind of device.

  Args:
    known, now: a fingerprint of all bits, with an `Origin`.
  """
  if known['fingerprint'] == now['fingerprint']:
    return True
  first, second = (np.array(x.get('drawn', []), float) for x in (known, now))
  drawn_alike = first.shape == second.shape and np.allclose(first, second, rtol=1e-3, atol=1e-6)
  return 'origin' in known and known['origin'] == now.get('origin') and drawn_alike


def as_start(start: str | Start | None) -> Start:
  """A run's name as a `Start`.

  Raises:
    ValueError: there is none.
  """
  if start is None:
    raise ValueError('Adapters need weights beneath them: set start_from to a run or a checkpoint.')
  return from_run(start) if isinstance(start, str) else start


def trained_preference(
  model: preference_model.PreferenceModel, run: str | Start, dtype: DType | None = None
) -> FeedbackSource:
  """Feedback: the preference model that another run trained."""
  feedback = functools.partial(preference_model.preference_fn, model)
  return FeedbackSource(feedback, model, run, dtype)


def trained_reward(
  model: reward_model.RewardModel, run: str | Start, dtype: DType | None = None
) -> FeedbackSource:
  """Feedback: the reward model that another run trained."""
  return FeedbackSource(functools.partial(reward_model.reward_fn, model), model, run, dtype)


def trained_model(experiment: Experiment) -> Model:
  """The model as its parameters are trained: with adapters, where there are any."""
  if experiment.adapters is None:
    return experiment.model
  return lora.adapt(experiment.model, experiment.adapters)


def plain_fields(experiment: Experiment) -> dict[str, Any]:
  """Those that are plain values: what identifies a run that no gin file describes."""
  plain = (str, int, float, bool, type(None))
  values = {name: x for name, x in experiment._asdict().items() if isinstance(x, plain)}
  return {f'Experiment.{name}': x for name, x in values.items()}
