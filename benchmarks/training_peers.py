"""Times of Hugging Face and TRL on the models that `training_speed.py` wrote; runs in an environment of its own.

python benchmarks/training_peers.py DIR RESPONSE_LENGTH DTYPE [--generate_only]

On a GPU if PyTorch sees one. In bfloat16 `generate` has weights of that type, and TRL trains float32 ones under autocast
(its bf16) beside a reference and a judge of bfloat16.
"""

import json
import os
import pathlib
import sys
import time

os.environ |= {
  'HF_HUB_OFFLINE': '1',
  'TOKENIZERS_PARALLELISM': 'false',
  'TRL_EXPERIMENTAL_SILENCE': '1',
}

import datasets
import numpy as np
import tokenizers
import torch
import transformers
from timing import seconds

_DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
_STEPS = {'cpu': 2, 'cuda': 3}


def generate(model, prompts: torch.Tensor, length: int) -> float:
  """Sampling with the cache, at full length."""
  options = {'do_sample': True, 'top_k': 0, 'min_new_tokens': length, 'max_new_tokens': length}

  def work():
    with torch.inference_mode():
      tokens = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), use_cache=True, **options
      )
      tokens.cpu()  # Waits for it.

  return seconds(work)


def trl_step(root: pathlib.Path, prompts: np.ndarray, length: int, dtype: str, **settings) -> float:
  """NashMDTrainer's step, the shortest but for the first."""
  from trl.experimental.nash_md import NashMDConfig, NashMDTrainer

  vocabulary = {'<pad>': 0, '</s>': 1} | {f'w{n}': n for n in range(2, int(prompts.max()) + 1)}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token='w2'))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, pad_token='<pad>', eos_token='</s>', padding_side='left'
  )
  text = [' '.join(f'w{n}' for n in row) for row in prompts]
  frozen = getattr(torch, dtype)
  load = transformers.AutoModelForCausalLM.from_pretrained
  judge = transformers.AutoModelForSequenceClassification.from_pretrained(
    root / 'judge', num_labels=1, dtype=frozen
  )
  judge.config.pad_token_id = 0
  options = {
    'per_device_train_batch_size': len(prompts),
    'max_steps': _STEPS[_DEVICE],
    'max_new_tokens': length,
  }
  options |= {'max_length': prompts.shape[1] + length, 'mixture_coef': 0.125, 'beta': 0.02}
  options |= {
    'output_dir': str(root / 'trl'),
    'report_to': 'none',
    'save_strategy': 'no',
    'use_cpu': _DEVICE == 'cpu',
  }
  options |= {'logging_steps': 1000, 'disable_tqdm': True, 'bf16': dtype == 'bfloat16'}
  clock = _Clock()
  trainer = NashMDTrainer(
    model=load(root / 'policy', dtype=torch.float32),
    ref_model=load(root / 'reference', dtype=frozen),
    reward_funcs=judge,
    args=NashMDConfig(**options | settings),
    train_dataset=datasets.Dataset.from_dict({'prompt': text * (_STEPS[_DEVICE] + 1)}),
    processing_class=tokenizer,
    callbacks=[clock],
  )
  trainer.train()
  return min(clock.seconds[1:])


class _Clock(transformers.TrainerCallback):
  def __init__(self):
    self.seconds, self._start = [], 0.0

  def on_step_begin(self, *args, **kwargs):
    self._start = time.perf_counter()

  def on_step_end(self, *args, **kwargs):
    if _DEVICE == 'cuda':
      torch.cuda.synchronize()
    self.seconds.append(time.perf_counter() - self._start)


def main() -> None:
  """Writes the times."""
  root, length, dtype = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
  prompts = np.load(root / 'prompts.npy')
  kind = json.loads((root / 'policy' / 'config.json').read_text())['model_type']
  auto = transformers.AutoModelForSeq2SeqLM if kind == 't5' else transformers.AutoModelForCausalLM
  model = auto.from_pretrained(root / 'policy', dtype=getattr(torch, dtype)).eval().to(_DEVICE)
  tokens = torch.tensor(prompts, device=_DEVICE)
  result = {}

  def add(name: str, seconds: float) -> None:
    result[name] = seconds
    (root / 'out.json').write_text(json.dumps(result))

  add('Hugging Face generate', generate(model, tokens, length))
  add('first token', generate(model, tokens, 1))
  del model
  if '--generate_only' not in sys.argv and kind != 't5':
    cached = trl_step(root, prompts, length, dtype, gradient_checkpointing=False)
    add('TRL 1.13.0, no checkpointing', cached)
    add('TRL 1.13.0, its default', trl_step(root, prompts, length, dtype))


if __name__ == '__main__':
  main()
