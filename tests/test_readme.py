"What the README prints as code runs, one block after another, as a reader would type it."
import ast
import re
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from awdtext.data.tokenizer import BaseTokenizer
from awdtext.ulmfit import ULMFiTSettings

readme = (Path(__file__).parent.parent / 'README.md').read_text(encoding='utf-8')
# what a reader has told to take hours, here in a second; and what is shown of other data than those at hand
shorter = {'sample(1000': 'sample(120', 'emb_sz=64, n_hid=160': 'emb_sz=8, n_hid=12', 'fit(10,': 'fit(1,',
           'fit_ntasgd(500,': 'fit_ntasgd(1,', 'fit(3, cbs': 'fit(1, cbs', 'arch=QRNN)': "arch=QRNN, config='laptop')",
           "class_weights='balanced')": "class_weights='balanced', config='laptop')",
           "{'decoder': 'mos'}": "{'decoder': 'mos', 'emb_sz': 8, 'n_hid': 12}",
           'SubwordTokenizer()': 'SubwordTokenizer(600)',
           "learn.evaluate('test'": 'learn.evaluate(texts'}
elsewhere = {'clas.tune_thresholds()': 'several labels', "clas.predict({'title'": 'have the text column'}


def blocks(): return re.findall(r'^```python\n(.*?)^```', readme, re.M | re.S)


def statements():
    "Of all blocks, shortened."
    for block in blocks():
        for old, new in shorter.items(): block = block.replace(old, new)
        yield from (ast.unparse(node) for node in ast.parse(block).body)


def test_the_code_of_the_readme_runs(tmp_path, monkeypatch):
    pytest.importorskip('sklearn')
    pytest.importorskip('sentencepiece')
    monkeypatch.chdir(tmp_path)
    have,refused = {}, []
    for code in statements():
        if code.startswith('from awdtext.all'):
            exec(code, have)
            have.update(stand_ins(have))
            continue
        cure = next((text for start, text in elsewhere.items() if code.startswith(start)), None)
        if cure is None: exec(code, have)
        else:
            with pytest.raises(Exception, match=cure): exec(code, have)
            refused.append(code)
    assert len(refused) == len(elsewhere)


def stand_ins(have):
    "What a reader has of his own."
    words = ('good', 'fine', 'bad', 'dull')
    texts = [f'The {noun} was {word} and {other}.' for noun in ('film', 'book') for word in words for other in words]
    labels = ['pos' if text.split()[3] in words[:2] else 'neg' for text in texts]
    small = ULMFiTSettings(n_samples=0, lm_bs=4, seq_len=8, min_freq=1, clas_bs=8, steps=((-1, 1, 5e-2), (0, 1, 5e-2)))
    quick = partial(have['ulmfit'], config=dict(emb_sz=8, n_hid=12, n_layers=2), lm_epochs=1, settings=small,
                    tok_tfm=BaseTokenizer(), precision='fp32')
    return {'ulmfit': quick, 'texts': texts, 'labels': labels, 'prompts': ['Returns the', 'The'], 'text': texts[0],
            'labelled': pd.DataFrame({'text': texts, 'label': labels}), 'title': 'A', 'body': 'film'}
