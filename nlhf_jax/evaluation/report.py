def from_run_dir(d):
  return d


def print_tables(d):
  print((d / 'win_rates.csv').read_text())
  import json

  r = json.load(open(d / 'exact.json')) if (d / 'exact.json').exists() else {}
  for k in ('all', 'no_condorcet_winner'):
    if k in r:
      print(k, r[k]['num_prompts'])
      for c in ('worst_case', 'worst_case_difference', 'kl', 'duality_gap'):
        for label, m, a, b in zip(
          r['labels'], r[k][c]['mean'], r[k][c]['low'], r[k][c]['high'], strict=True
        ):
          print('  ', c, label, round(m, 3), round(a, 3), round(b, 3))
