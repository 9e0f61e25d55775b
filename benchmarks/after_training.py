"""What cache and dynamic evaluation take off the test perplexity of WikiText-2, at a scale for a CPU.

Sizes of the paper's model times 0.2 (80/232/3), its dropouts times 0.3; Adam at 5e-3, bs 32, four passes over the first
600,000 training tokens, a vocabulary of the words that come three times there; three seeds. Then the whole test text in
one stream: plainly, with a neural cache, by dynamic evaluation. What the two need is chosen on the first 30,000 and
10,000 tokens of the validation text. Windows of dynamic evaluation have ten tokens, which takes half the time of the
published five. All this was fixed before the first run.

    python benchmarks/after_training.py --data DIR                   # DIR holds wikitext-2/{train,valid,test}.txt
    python benchmarks/after_training.py --data DIR --precision bf16  # train in bfloat16; evaluation is in float32

A finished seed is a line of the results file, and the one at hand has checkpoints: the command can be stopped, and goes
on where it was.
"""
import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from _common import earlier, first_tokens, machine, needed, read_results, spread, table, write_result

from awdtext.core import seed_all
from awdtext.data.dataloaders import TextDataLoaders
from awdtext.lm.dynamic_eval import gradient_statistics, tune_dynamic
from awdtext.lm.neural_cache import tune_cache
from awdtext.recipes import wt2_lstm
from awdtext.text_learner import language_model_learner

results_file = Path(__file__).parent / 'results' / 'after_training.jsonl'
settings = dict(scale=.2, dropouts=.3, tokens=600_000, lr=5e-3, bs=32, epochs=4, bptt=10, cache_tokens=30_000,
                dynamic_tokens=10_000, lrs=[1e-4, 2e-4, 4e-4], decays=[.002, .005, .01])
published = {'cache': 21, 'dynamic': 33}  # percent of the test perplexity; Merity et al. and Krause et al. (2017)


def trained(args, seed, folder, s):
    "The learner after its training."
    train,valid,test = (first_tokens(args.data / f'wikitext-2/{part}.txt', n)
                        for part, n in (('train', s['tokens']), ('valid', None), ('test', None)))
    recipe = wt2_lstm.scaled(s['scale'])
    names = 'output_p', 'hidden_p', 'input_p', 'embed_p', 'weight_p'
    config = {name: s['dropouts'] * getattr(recipe, name) for name in names}
    config |= {name: getattr(recipe, name) for name in ('emb_sz', 'n_hid', 'n_layers')}
    seed_all(seed)
    dls = TextDataLoaders.from_tokens([train], [valid], [test], min_freq=3, bs=s['bs'], seq_len=recipe.bptt, seed=seed)
    learn = language_model_learner(dls, config=config, precision=args.precision)
    learn.fit(s['epochs'], s['lr'], checkpoint=folder)
    if learn.interrupted: raise KeyboardInterrupt
    return learn.to_fp32()


def figures(learn, s):
    "Test perplexities in one stream, and what was chosen for them."
    valid = learn.dls.valid.corpus.ids
    cache = tune_cache(learn.model, valid[:s['cache_tokens']])[0].settings
    stats = gradient_statistics(learn.model, learn.dls.train.corpus.ids)
    dynamic = tune_dynamic(learn.model, valid[:s['dynamic_tokens']], stats, s['lrs'], s['decays'], bptt=s['bptt'])
    dynamic = dynamic[0].settings
    return {'valid': learn.evaluate('valid').perplexity, 'plain': learn.evaluate('test').perplexity,
            'cache': learn.evaluate('test', cache=cache).perplexity,
            'dynamic': learn.evaluate('test', dynamic=dynamic, stats=stats).perplexity,
            'vocabulary': len(learn.dls.vocab), 'chosen': {'cache': asdict(cache), 'dynamic': asdict(dynamic)}}


def report(runs):
    "The table, over the seeds that are done."
    if not runs: return "No run is finished."
    lines = [['plain', spread([r['plain'] for r in runs]), '', '']]
    for how, percent in published.items():
        lower = [100 * (1 - r[how] / r['plain']) for r in runs]
        lines.append([how, spread([r[how] for r in runs]), spread(lower) + ' %', f'{percent} %'])
    return table([f'{len(runs)} seeds', 'test perplexity', 'lower by', 'in the papers'], lines)


def parse(argv):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--data', type=Path, help='folder that holds wikitext-2')
    p.add_argument('--precision', choices=['fp32', 'bf16'], default='fp32')
    p.add_argument('--seeds', nargs='*', type=int, default=[0, 1, 2])
    p.add_argument('--results', type=Path, default=results_file)
    p.add_argument('--work', type=Path, default=Path(tempfile.gettempdir()) / 'awdtext_after_training',
                   help='folder for checkpoints of a run that is not finished')
    p.add_argument('--settings', type=json.loads, default={}, help=argparse.SUPPRESS)  # for tests
    return p.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    s = {**settings, **args.settings}
    needed(args.data, *(f'wikitext-2/{part}.txt' for part in ('train', 'valid', 'test')))
    runs = [{'seed': seed, 'precision': args.precision, 'settings': s} for seed in args.seeds]
    for run in runs:
        if earlier(read_results(args.results), run): continue
        print(f"\nseed {run['seed']}", flush=True)
        folder = args.work / f"{args.precision}-{run['seed']}"
        learn = trained(args, run['seed'], folder, s)
        write_result(args.results, {**run, **figures(learn, s), 'machine': machine()})
        shutil.rmtree(folder)
    done = [r for run in runs if (r := earlier(read_results(args.results), run))]
    print('\n' + report(done))


if __name__ == '__main__': main(sys.argv[1:])
