"""fastai's text tutorial, `fastai_script.py`, runs here after changing nothing but its import.

To run it unchanged in fastai too: `AWDTEXT_FASTAI_PYTHON=…/bin/python pytest -m slow tests/test_fastai_script.py`, with
the python of an environment that has fastai 2.8.12.
"""
import ast
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

script = Path(__file__).parent/'fastai_script.py'
known_failures = {'show_results': "TypeError: 'Function' object is not subscriptable"}

openings = ['I saw it last night.', 'My friends took me along.', 'We watched this twice!', 'After ten minutes',
            'Nobody told me what to expect, but', 'Well...']
verdicts = {'pos': ['a wonderful film', 'GREAT acting', 'a moving story, told with love', 'the best comedy of all'],
            'neg': ['a dreadful film', 'TERRIBLE acting', 'a dull story, told without care', 'the worst comedy of all'],
            'unsup': ['a long film', 'plain acting', 'a story about two sisters', 'a comedy of some kind']}
details = ['The music is by nobody I know', 'The ending came as a surprise', "It's 90 minutes long",
           'Her brother plays the villain', 'There are ghosts in it', 'The camera never stands still']


def review(kind, draw):
    said = draw.sample(verdicts[kind], draw.randint(1, 3))
    return ' '.join([draw.choice(openings), 'it was', ' and '.join(said) + draw.choice('.!'),
                     *(detail + '.' for detail in draw.sample(details, draw.randint(0, 4)))])


def write_reviews(path):
    "A folder like IMDb's, with 40 reviews to train on, 16 to test, and 16 without a label."
    draw = random.Random(0)
    for folder, n in {'train/pos': 20, 'train/neg': 20, 'test/pos': 8, 'test/neg': 8, 'unsup': 16}.items():
        (path/folder).mkdir(parents=True)
        for i in range(n): (path/folder/f'{i}.txt').write_text(review(Path(folder).name, draw), encoding='utf-8')
    return path


def run(python, code, path):
    "Run `code` on the reviews in `path`; returns the failures that it notes."
    (path.parent/'script.py').write_text(code, encoding='utf-8')
    done = subprocess.run([python, path.parent/'script.py', path], capture_output=True, text=True, cwd=path.parent,
                          timeout=600, env=os.environ | {'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return ast.literal_eval(done.stdout.rpartition('FAILURES ')[2].splitlines()[0])


def test_tutorial_runs_after_changing_its_import(tmp_path):
    first, rest = script.read_text(encoding='utf-8').split('\n', 1)
    assert first == 'from fastai.text.all import *' and 'fastai.' not in rest.replace('docs.fast.ai', '')
    assert run(sys.executable, f'from awdtext.all import *\n{rest}', write_reviews(tmp_path/'imdb')) == {}


@pytest.mark.slow
def test_tutorial_in_fastai(tmp_path):
    python = os.environ.get('AWDTEXT_FASTAI_PYTHON')
    if not python: pytest.skip("needs fastai 2.8.12: set AWDTEXT_FASTAI_PYTHON to the python of its environment")
    assert run(python, script.read_text(encoding='utf-8'), write_reviews(tmp_path/'imdb')) == known_failures
