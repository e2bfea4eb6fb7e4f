"""Writes peft/<name>/: adapters as `peft` saves them, for the models of hf/, and the logits of its own merged models.

Run: python tests/golden/make_peft_adapters.py [NAME ...]
Needs torch (2.13.0), transformers (5.24.0) and peft (0.21.2); the tests need none of them. Without names all are made anew.

Beside each adapter lies logits.npz, as beside the models (make_hf_models.py).
"""

import json
import pathlib
import shutil
import sys

import make_hf_models
import numpy as np
import peft
import torch
import transformers

ROOT = pathlib.Path(__file__).parent
# Of each adapter: the model that it is for, and its settings.
ADAPTERS = {
  'patterns': (
    'llama',
    {
      'target_modules': ['q_proj', 'v_proj', 'gate_proj', 'down_proj'],
      'rank_pattern': {r'layers\.1\.self_attn\.[qv]_proj': 3, 'down_proj': 1},
      'alpha_pattern': {r'^model\.layers\.0\.mlp\.gate_proj': 5, '[vk]_proj': 0.5},
      'modules_to_save': ['lm_head', 'layers.1.input_layernorm'],
    },
  ),
  'biases': (
    'qwen2_5',
    {'target_modules': 'all-linear', 'use_rslora': True, 'bias': 'lora_only'},
  ),
  'fused': ('phi3', {'target_modules': ['qkv_proj', 'gate_up_proj'], 'init_lora_weights': False}),
  'some_layers': (
    'mistral',
    {'target_modules': ['k_proj', 'o_proj', 'lm_head'], 'layers_to_transform': [1]},
  ),
  'expression': (
    'gemma3',
    {'target_modules': r'.*\.(up|down|o)_proj', 'exclude_modules': r'.*layers\.1\.mlp.*'},
  ),
  'encoder_decoder': ('flan_t5', {'target_modules': ['q', 'v', 'wi_0', 'wo']}),
}


def make_adapted(family: str, settings: dict, seed: int) -> peft.PeftModel:
  """A model with an adapter, of which all that was trained is random and large."""
  kind = transformers.AutoModelForSeq2SeqLM if 't5' in family else transformers.AutoModelForCausalLM
  base = kind.from_pretrained(ROOT / 'hf' / family, attn_implementation='eager').eval()
  task = 'SEQ_2_SEQ_LM' if 't5' in family else 'CAUSAL_LM'
  config = peft.LoraConfig(r=2, lora_alpha=3, task_type=task, **settings)
  model = peft.get_peft_model(base, config).eval()
  torch.manual_seed(seed)
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.requires_grad:
        parameter.add_(0.4 * torch.randn_like(parameter))
  return model


def save(model: peft.PeftModel, family: str, directory: pathlib.Path) -> None:
  """The adapter alone, without the card that peft writes."""
  model.save_pretrained(directory)
  (directory / 'README.md').unlink(missing_ok=True)
  path = directory / 'adapter_config.json'
  values = json.loads(path.read_text())
  values['base_model_name_or_path'] = f'tests/golden/hf/{family}'
  path.write_text(json.dumps(values, indent=1, sort_keys=True) + '\n')


def main():
  names = sys.argv[1:] or ADAPTERS
  for seed, (name, (family, settings)) in enumerate(ADAPTERS.items()):
    if name not in names:
      continue
    directory = ROOT / 'peft' / name
    shutil.rmtree(directory, ignore_errors=True)
    model = make_adapted(family, settings, seed)
    save(model, family, directory)
    prompts, responses = make_hf_models.make_inputs(family, seed)
    logits = make_hf_models.logits_of(model.merge_and_unload(), prompts, responses)
    np.savez_compressed(
      directory / 'logits.npz', prompts=prompts, responses=responses, logits=logits
    )
  (ROOT / 'peft' / 'README').write_text('Made by make_peft_adapters.py.\n')


if __name__ == '__main__':
  main()
