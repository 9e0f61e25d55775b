"What the benchmarks share: text, results that outlive a stop, tables, and the name of the machine."
import argparse
import json
import os
import platform
import sys
from itertools import islice
from pathlib import Path
from statistics import mean, stdev

import torch


def words(file):
    "The tokens of a file, `<eos>` at the end of each line."
    with open(file, encoding='utf-8') as f:
        for line in f:
            yield from line.split()
            yield '<eos>'


def first_tokens(file, n=None): return list(islice(words(file), n))


def needed(folder, *files):
    "Leave with one line, unless all `files` are in `folder`."
    if folder is None: sys.exit(f"There is no data: give --data DIR, a folder that holds {' and '.join(files)}.")
    missing = [file for file in files if not (folder / file).is_file()]
    if missing: sys.exit(f"There is no {' and no '.join(missing)} in {folder}: benchmarks/README.md has the layout.")


def machine():
    "Processor, threads, and the versions that matter."
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), '')
    return (f'{model or platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} cores, '
            f'{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}')


def read_results(file): return [json.loads(line) for line in file.open(encoding='utf-8')] if file.exists() else []


def earlier(results, run):
    "The latest result that has all the settings of `run`, or None."
    return next((r for r in reversed(results) if all(r.get(key) == value for key, value in run.items())), None)


def write_result(file, result):
    "Add one line, in one write, so that two runs can share the file."
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open('a', encoding='utf-8') as f: f.write(json.dumps(result) + '\n')


def shard(text):
    "'1/2' as (1, 2)."
    try: i,n = map(int, text.split('/'))
    except ValueError: i,n = 0,0
    if not 1 <= i <= n: raise argparse.ArgumentTypeError(f"{text!r}: use 1/2 for the first half of the work.")
    return i, n


def spread(values, digits=1, sign=''):
    "Mean and standard deviation."
    if not values: return '-'
    return f'{mean(values):{sign}.{digits}f}' + (f' ± {stdev(values):.{digits}f}' if len(values) > 1 else '')


def table(head, rows):
    "A table in Markdown."
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines)
