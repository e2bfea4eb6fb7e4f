"""Writes hf/<family>/: small random models as `transformers` saves them, and their logits.

Run: python tests/golden/make_hf_models.py [FAMILY ...]
Needs torch (2.13.0) and transformers (5.24.0); the tests need neither. Without names all families are made anew.

Beside each model's files lies logits.npz: `prompts` [B, S], 0 after their ends; `responses` [B, T], in the model's own
ids; `logits` [B, T, V] of each token of a response, given the prompt and the tokens before it. rope.json has
frequencies of rotary positions, and what they multiply queries and keys by, of many settings.
"""

import json
import pathlib
import shutil
import sys

import numpy as np
import torch
import transformers

VOCAB_SIZE = 24
T5 = {
  'vocab_size': VOCAB_SIZE,
  'd_model': 12,
  'd_kv': 4,
  'd_ff': 20,
  'num_layers': 2,
  'num_decoder_layers': 1,
  'num_heads': 3,
  'dropout_rate': 0.0,
  'decoder_start_token_id': 0,
}
LLAMA = {
  'vocab_size': VOCAB_SIZE,
  'hidden_size': 16,
  'intermediate_size': 20,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'rms_norm_eps': 1e-5,
  'bos_token_id': 1,
  'eos_token_id': 2,
}
STRETCHED = {  # Slow and fast rotations, and some between.
  'rope_type': 'llama3',
  'rope_theta': 1e3,
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 32,
}
YARN = {
  'rope_type': 'yarn',
  'rope_theta': 1e3,
  'factor': 4.0,
  'beta_fast': 4.0,
  'original_max_position_embeddings': 32,
}
LONG = {
  'rope_type': 'longrope',
  'rope_theta': 1e3,
  'short_factor': [1.25, 1.75],
  'long_factor': [1.3, 4.0],
}
# Of heads of 16: base, longest text, rope_parameters.
ROPES = (
  (1e3, 64, {'rope_type': 'linear', 'factor': 4.0}),
  (1e3, 64, {'rope_type': 'dynamic', 'factor': 4.0}),
  (1e3, 64, {**STRETCHED}),
  (1e4, 64, {'rope_type': 'yarn', 'factor': 8.0, 'original_max_position_embeddings': 4096}),
  (1e3, 64, {**YARN, 'truncate': False, 'mscale': 0.7, 'mscale_all_dim': 1.2}),
  (1e3, 64, {**YARN, 'attention_factor': 1.3, 'beta_slow': 2}),
)
FAMILIES = (
  't5_1_0',
  't5_1_1',
  'flan_t5',
  'llama',
  'smollm2',
  'qwen2_5',
  'mistral',
  'yarn',
  'qwen3',
  'phi3',
  'smollm3',
  'olmo2',
  'gemma2',
  'gemma3',
)


def make_model(family: str, seed: int) -> transformers.PreTrainedModel:
  """All weights random, norms too, and large: attention is far from uniform."""
  torch.manual_seed(seed)
  model = _new(family).eval()
  if family in ('t5_1_1', 'flan_t5'):  # transformers 5 ties all T5s until a checkpoint unties them.
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      noise = torch.randn_like(parameter)
      middle = 0 if 'gemma' in family else 1  # Of Gemma's norms 1 is left out.
      parameter.copy_(middle + 0.3 * noise if 'norm' in name else 0.4 * noise)
  return model


def _new(family: str) -> transformers.PreTrainedModel:
  if family in ('t5_1_0', 't5_1_1', 'flan_t5'):
    tied = family == 't5_1_0'
    kind = 'relu' if tied else 'gated-gelu'
    config = transformers.T5Config(**T5, feed_forward_proj=kind, tie_word_embeddings=tied)
    return transformers.T5ForConditionalGeneration(config)
  if family == 'qwen2_5':
    config = transformers.Qwen2Config(**LLAMA, tie_word_embeddings=True, pad_token_id=7)
    return transformers.Qwen2ForCausalLM(config)
  if family == 'qwen3':
    config = transformers.Qwen3Config(**LLAMA, head_dim=6, tie_word_embeddings=True, pad_token_id=7)
    return transformers.Qwen3ForCausalLM(config)
  if family == 'phi3':
    config = transformers.Phi3Config(
      **LLAMA,
      sliding_window=6,
      pad_token_id=7,
      rope_parameters=LONG,
      max_position_embeddings=256,
      original_max_position_embeddings=64,
      attn_implementation='eager',
    )
    return transformers.Phi3ForCausalLM(config)
  if family in ('gemma2', 'gemma3'):
    return _new_gemma(family)
  if family == 'smollm3':
    config = transformers.SmolLM3Config(
      **LLAMA, no_rope_layer_interval=2, tie_word_embeddings=True, pad_token_id=7
    )
    return transformers.SmolLM3ForCausalLM(config)
  if family == 'olmo2':
    config = transformers.Olmo2Config(**LLAMA, tie_word_embeddings=False, pad_token_id=7)
    return transformers.Olmo2ForCausalLM(config)
  if family == 'mistral':
    config = transformers.MistralConfig(
      **LLAMA,
      head_dim=6,
      sliding_window=6,
      tie_word_embeddings=False,
      attn_implementation='eager',
    )
    return transformers.MistralForCausalLM(config)
  if family == 'yarn':
    config = transformers.LlamaConfig(
      **LLAMA | {'num_hidden_layers': 1},
      head_dim=12,
      tie_word_embeddings=True,
      rope_parameters=YARN,
      max_position_embeddings=128,
    )
  elif family == 'smollm2':
    config = transformers.LlamaConfig(**LLAMA, tie_word_embeddings=True, pad_token_id=2)
  else:
    config = transformers.LlamaConfig(
      **LLAMA,
      tie_word_embeddings=False,
      rope_parameters=STRETCHED,
      max_position_embeddings=256,
      pad_token_id=9,
    )
  return transformers.LlamaForCausalLM(config)


def _new_gemma(family: str) -> transformers.PreTrainedModel:
  common = {
    **LLAMA,
    'num_hidden_layers': 3,
    'head_dim': 6,
    'sliding_window': 6,
    'query_pre_attn_scalar': 5,
    'pad_token_id': 0,
    'attn_implementation': 'eager',
  }
  if family == 'gemma2':
    caps = {'attn_logit_softcapping': 3.0, 'final_logit_softcapping': 4.0}
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**common, **caps))
  rotations = {
    'full_attention': {'rope_type': 'linear', 'factor': 4.0, 'rope_theta': 1e3},
    'sliding_attention': {'rope_type': 'default', 'rope_theta': 50.0},
  }
  config = transformers.Gemma3TextConfig(
    **common, sliding_window_pattern=3, rope_parameters=rotations
  )
  return transformers.Gemma3ForCausalLM(config)


def make_inputs(family: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Ragged prompts, and responses, without the ids that mark padding; T5's reach beyond its buckets of distances."""
  rng = np.random.default_rng(seed)
  long = 't5' in family
  prompts = rng.integers(10, VOCAB_SIZE, (3, 150 if long else 40))
  responses = rng.integers(10, VOCAB_SIZE, (3, 135 if long else 12))
  for row, length in enumerate([prompts.shape[1], 37 if long else 5, 1]):
    prompts[row, length:] = 0
  return prompts.astype(np.int32), responses.astype(np.int32)


def logits_of(model, prompts: np.ndarray, responses: np.ndarray) -> np.ndarray:
  if model.config.is_encoder_decoder:
    inputs = np.pad(responses, [(0, 0), (1, 0)])[:, :-1]
    prompts = torch.from_numpy(prompts).long()
    with torch.no_grad():
      return model(
        input_ids=prompts,
        attention_mask=(prompts > 0).long(),
        decoder_input_ids=torch.from_numpy(inputs).long(),
      ).logits.numpy()
  rows = []
  for prompt, response in zip(prompts, responses, strict=True):
    length = np.count_nonzero(prompt)
    text = torch.from_numpy(np.concatenate([prompt[:length], response[:-1]])).long()
    with torch.no_grad():
      rows.append(model(input_ids=text[None]).logits[0, length - 1 :].numpy())
  return np.stack(rows)


def _age(family: str, path: pathlib.Path) -> None:
  """Turns a config.json into what transformers 4 wrote, and the hub still has."""
  values = json.loads(path.read_text())
  if family == 'flan_t5':
    del values['scale_decoder_outputs']
    values['tie_word_embeddings'] = False
  if family == 'smollm2':
    values['rope_theta'] = values.pop('rope_parameters')['rope_theta']
    del values['head_dim']
  path.write_text(json.dumps(values, indent=2) + '\n')


def write_ropes(path: pathlib.Path) -> None:
  rows = []
  for base, longest, parameters in ROPES:
    own = {'rope_theta': base, **parameters}
    config = transformers.LlamaConfig(
      head_dim=16, max_position_embeddings=longest, rope_parameters=dict(own)
    )
    make = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS[own['rope_type']]
    frequencies, amplitude = make(config, 'cpu')
    rows.append(
      {
        'config': {'max_position_embeddings': longest, 'rope_parameters': own},
        'frequencies': frequencies.tolist(),
        'amplitude': amplitude,
      }
    )
  path.write_text(json.dumps(rows, indent=1) + '\n')


def main():
  root = pathlib.Path(__file__).with_name('hf')
  names = sys.argv[1:] or FAMILIES
  for seed, family in enumerate(FAMILIES):
    if family not in names:
      continue
    shutil.rmtree(root / family, ignore_errors=True)
    model = make_model(family, seed)
    size = '6KB' if family in ('flan_t5', 'mistral') else '1GB'  # Two of them in several files.
    model.save_pretrained(root / family, max_shard_size=size)
    _age(family, root / family / 'config.json')
    prompts, responses = make_inputs(family, seed)
    logits = logits_of(model, prompts, responses)
    np.savez_compressed(
      root / family / 'logits.npz', prompts=prompts, responses=responses, logits=logits
    )
  write_ropes(root / 'rope.json')
  (root / 'README').write_text('Made by make_hf_models.py.\n')


if __name__ == '__main__':
  main()
