"""Writes t5_logits.npz: weights of small random T5s, inputs, and Hugging Face's logits.

Run: python tests/golden/make_t5_logits.py
Needs torch (2.13.0) and transformers (5.23.0); the tests need neither.

Holds, for either model m (untied: T5 1.1; tied: the output layer is the embedding):
`m/state/<name in transformers>`, `m/logits` [B, T, V]; for both: `prompts` [B, S], 0 after their
ends, and `inputs` [B, T] of the decoder.
"""

import pathlib

import numpy as np
import torch
import transformers

SIZES = {
  'vocab_size': 24,
  'd_model': 12,
  'd_kv': 4,
  'd_ff': 20,
  'num_layers': 2,
  'num_decoder_layers': 2,
  'num_heads': 3,
  'feed_forward_proj': 'gated-gelu',
  'dropout_rate': 0.0,
}


def make_model(tied: bool, seed: int) -> transformers.T5ForConditionalGeneration:
  """A T5 with all weights random, norms too, and large: attention is far from uniform."""
  torch.manual_seed(seed)
  config = transformers.T5Config(**SIZES, tie_word_embeddings=tied, decoder_start_token_id=0)
  model = transformers.T5ForConditionalGeneration(config).eval()
  if (
    not tied
  ):  # transformers 5 ties at first whatever the configuration says; a checkpoint unties it.
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      noise = torch.randn_like(parameter)
      parameter.copy_(1 + 0.3 * noise if 'layer_norm' in name else 0.4 * noise)
  return model


def make_inputs(seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Ragged prompts and decoder inputs, longer than the distances that buckets tell apart."""
  rng = np.random.default_rng(seed)
  prompts = rng.integers(2, SIZES['vocab_size'], (3, 150))
  inputs = rng.integers(2, SIZES['vocab_size'], (3, 135))
  for row, length in enumerate([150, 37, 1]):
    prompts[row, length:] = 0
  inputs[:, 0] = 0  # Start of decoding.
  return prompts.astype(np.int32), inputs.astype(np.int32)


def logits_of(model, prompts: np.ndarray, inputs: np.ndarray) -> np.ndarray:
  prompts = torch.from_numpy(prompts).long()
  with torch.no_grad():
    return model(
      input_ids=prompts,
      attention_mask=(prompts > 0).long(),
      decoder_input_ids=torch.from_numpy(inputs).long(),
    ).logits.numpy()


def state_of(model) -> dict[str, np.ndarray]:
  """The weights, each once: the further names of the embedding are left out."""
  state = {name: value.numpy() for name, value in model.state_dict().items()}
  return {name: value for name, value in state.items() if 'embed_tokens' not in name}


def main():
  prompts, inputs = make_inputs(seed=0)
  arrays = {'prompts': prompts, 'inputs': inputs}
  for seed, kind in enumerate(['untied', 'tied']):
    model = make_model(kind == 'tied', seed)
    arrays[f'{kind}/logits'] = logits_of(model, prompts, inputs)
    arrays |= {f'{kind}/state/{name}': value for name, value in state_of(model).items()}
  path = pathlib.Path(__file__).with_name('t5_logits.npz')
  np.savez_compressed(path, **arrays)
  print(f'{path}: {path.stat().st_size / 1024:.0f} KiB')


if __name__ == '__main__':
  main()
