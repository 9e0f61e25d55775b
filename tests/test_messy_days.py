"What messy tables, other loss functions, threads and other people's machines do: each was a bug once."
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from training_helpers import tiny_size

from awdtext.cli import main
from awdtext.core import seed_all
from awdtext.data.data_block import CategoryBlock, ColReader, DataBlock, RegressionBlock, TextBlock
from awdtext.data.dataloaders import TextDataLoaders
from awdtext.data.tokenizer import BaseTokenizer, SubwordTokenizer
from awdtext.estimators import AWDTextClassifier, AWDTextEncoder
from awdtext.text_learner import language_model_learner, load_learner, text_classifier_learner
from awdtext.training.checkpoint import read_bundle
from awdtext.training.losses import Loss, binary_cross_entropy_loss
from awdtext.ulmfit import ULMFiTSettings, ulmfit

texts = [f'{word} film number {i}' for i in range(20) for word in ('good', 'bad')]
small = dict(config=dict(emb_sz=8, n_hid=8, n_layers=1), lm_epochs=1, probe=False, precision='fp32',
             tok_tfm=BaseTokenizer(), settings=ULMFiTSettings(steps=((-1, 1, 1e-2),), lm_bs=4, n_samples=0, min_freq=1))


def data(labels=None, **kwargs):
    return TextDataLoaders.from_texts(texts, labels, **{'bs': 8, 'seed': 1, 'min_freq': 1, **kwargs})


def classifier(labels, *, y_block=None, **kwargs):
    return text_classifier_learner(data(labels, y_block=y_block), config=tiny_size, **kwargs)


# The shell

@pytest.mark.parametrize('tokens', ['chars', 'subwords', 'words'])
def test_evaluate_reads_lines_as_training_did(tokens, tmp_path, capsys):
    lines = [' '.join(np.random.default_rng(i).choice('the cat sat on a mat and saw one red dog'.split(), 5))
             for i in range(400)]
    for name, part in (('train', lines[:360]), ('valid', lines[360:])):
        (tmp_path / f'{name}.txt').write_text('\n\n'.join(part) + '\n\n')
    vocab = ['--max-vocab', '300'] if tokens == 'subwords' else []
    assert main(['train-lm', '--data', str(tmp_path), '--out', str(tmp_path / 'out'), '--tokens', tokens, '--epochs',
                 '1', '--config', 'laptop', '--bs', '8', '--lr', '1e-2', *vocab]) in (0, None)
    learn = load_learner(tmp_path / 'out/language_model')
    expected = learn.evaluate([line for line in lines[360:]])
    capsys.readouterr()
    main(['evaluate', str(tmp_path / 'out/language_model.safetensors'), str(tmp_path / 'valid.txt')])
    said = capsys.readouterr().out
    assert f'perplexity {expected.perplexity:.2f},' in said and f' {expected.n_tokens:,} tokens in one stream' in said


@pytest.mark.parametrize(('cell', 'seen'), [('unsure', "'unsure' of row 30"), ('0.0', None)])
def test_evaluate_takes_a_label_for_what_it_was_in_training(cell, seen, tmp_path, capsys):
    classifier([0, 1] * 20).export(tmp_path / 'model')
    frame = pd.DataFrame({'text': texts, 'label': [str(i % 2) for i in range(40)]})
    frame.loc[30, 'label'] = cell
    frame.to_csv(tmp_path / 'a.csv', index=False)
    status = main(['evaluate', str(tmp_path / 'model.safetensors'), str(tmp_path / 'a.csv')])
    said = capsys.readouterr()
    assert bool(status) == bool(seen) and (seen or '') in said.err, said.err


def test_labels_that_are_words_in_one_table_are_words_in_all(tmp_path, monkeypatch):
    from awdtext import ulmfit as module
    taken = {}
    monkeypatch.setattr(module, 'ulmfit', lambda texts, labelled, out, **how: taken.update(how, labelled=labelled))
    pd.DataFrame({'text': texts[:3], 'label': ['0', '1', 'unsure']}).to_csv(tmp_path / 'a.csv', index=False)
    pd.DataFrame({'text': texts[3:5], 'label': [0, 1]}).to_csv(tmp_path / 'b.csv', index=False)
    argv = ['ulmfit', '--labelled', str(tmp_path / 'a.csv'), '--test', str(tmp_path / 'b.csv'), '--out',
            str(tmp_path / 'o')]
    main(argv)
    assert (taken['labelled']['label'].tolist(), taken['test']['label'].tolist()) == (['0', '1', 'unsure'], ['0', '1'])
    main([*argv[:2], str(tmp_path / 'b.csv'), *argv[3:]])
    assert taken['labelled']['label'].tolist() == taken['test']['label'].tolist() == [0, 1]


# Losses

def test_a_loss_comes_back_from_the_file():
    learn = classifier([.9, .1] * 20, y_block=RegressionBlock, loss_func=binary_cross_entropy_loss())
    learn.fit(1, 1e-2)
    there = load_learner(learn.export('shares'))
    assert there.predict('bad film')[0] == pytest.approx(learn.predict('bad film')[0], abs=1e-6)
    assert there.loss_func.name == 'binary_cross_entropy'
    os.remove(learn.path / 'shares.safetensors')


def test_a_loss_of_ones_own_is_told_where_a_file_cannot_hold_it(tmp_path, capsys):
    own = Loss(F.cross_entropy, lambda output: output.softmax(-1))
    classifier([0, 1] * 20, loss_func=own, path=tmp_path).export('m')
    assert 'cannot hold a loss of your own' in capsys.readouterr().out
    with pytest.raises(TypeError, match='does not say what predictions are made of: give Loss'):
        classifier([0, 1] * 20, loss_func=F.cross_entropy)


# Files

def test_the_file_that_is_named_is_the_one_that_is_read(tmp_path, monkeypatch):
    "Not one of the same name in the folder of models."
    monkeypatch.chdir(tmp_path)
    for seed, file in ((0, 'models/enc'), (1, 'enc')):
        seed_all(seed)
        language_model_learner(data(path='.'), config=tiny_size, model_dir='.').save_encoder(file)
    expected = read_bundle('enc')['weights']
    clf = AWDTextClassifier(encoder='enc.safetensors', n_epoch=1, lr=1e-9, random_state=0).fit(texts, [0, 1] * 20)
    enc = AWDTextEncoder(encoder='enc.safetensors').fit(texts)
    for learn in (clf.learner_, enc.learner_):
        for name, value in learn.encoder.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5)


@pytest.mark.skipif(os.name != 'posix', reason="has no such modes")
def test_files_are_as_readable_as_others(tmp_path):
    learn = classifier([0, 1] * 20, path=tmp_path)
    before = os.umask(0o022)
    try: assert learn.export('m').stat().st_mode & 0o777 == 0o644
    finally: os.umask(before)


# Predictions

def test_a_language_model_predicts_the_training_text_in_order():
    learn = language_model_learner(data(bs=4), config=tiny_size)
    dl = learn.dls.train
    (_,y),(_,again) = learn.get_preds(0), learn.get_preds(0)
    assert torch.equal(y, dl.corpus.ids[1:].long()) and torch.equal(y, again) and dl.epoch == 0


@pytest.mark.parametrize('precision', ['fp32', 'int8'])
def test_several_threads_get_the_answers_of_one(precision):
    learn = classifier([0, 1] * 20)
    model = learn.model
    one = [learn.predict(text, precision=precision)[2] for text in texts]
    with ThreadPoolExecutor(4) as pool:
        many = list(pool.map(lambda text: learn.predict(text, precision=precision)[2], texts * 4))
    for found, expected in zip(many, one * 4): torch.testing.assert_close(found, expected)
    assert learn.model is model


# Tables

def test_columns_of_one_name_are_read_as_in_training():
    rows = [[f'title {i}', f'alt {i}', f'body {i}', 'ab'[i % 2]] for i in range(20)]
    df = pd.DataFrame(rows, columns=['title', 'title', 'body', 'label'])
    dls = TextDataLoaders.from_df(df, text_col=['title', 'body'], label_col='label', bs=4, seed=1, min_freq=1)
    assert ' '.join(dls.vocab.decode(dls.test_dl(df[:1]).corpus[0])).endswith('title 0 xxfld 2 body 0')


def test_several_columns_of_ratings_or_of_many_labels_are_refused():
    df = pd.DataFrame({'text': texts, 'food': [1, 2, 3, 4] * 10, 'service': [5, 4] * 20, 'a': ['x;y', 'z'] * 20,
                       'b': ['u', 'v;w'] * 20})
    with pytest.raises(ValueError, match='hold numbers that are not all 0 or 1'):
        TextDataLoaders.from_df(df, label_col=['food', 'service'])
    with pytest.raises(ValueError, match="label_delim=';' is for one column of labels, and these are 2"):
        TextDataLoaders.from_df(df, label_col=['a', 'b'], label_delim=';')


@pytest.mark.parametrize('labels', [pd.cut(np.arange(40.) % 7, 3), pd.to_datetime(['2020-01-01', '2021-01-01'] * 20)])
def test_labels_that_no_file_can_hold_are_refused_at_once(labels, tmp_path):
    frame = pd.DataFrame({'text': texts, 'label': labels})
    for make in (lambda: TextDataLoaders.from_df(frame), lambda: ulmfit(None, frame, tmp_path / 'run', **small)):
        with pytest.raises(ValueError, match='is no category: name strings or numbers'): make()
    assert not (tmp_path / 'run').exists()


def test_sets_of_labels_are_the_same_in_another_process(tmp_path):
    "Their order is not."
    code = '''
from awdtext.ulmfit import read_labelled
print(read_labelled((['a', 'b'], [{'apple', 'banana', 'cherry'}, frozenset()])).labels)'''
    seen = {subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                           env={**os.environ, 'PYTHONHASHSEED': seed}).stdout for seed in '123'}
    assert seen == {"[['apple', 'banana', 'cherry'], []]\n"}


def test_summary_of_a_block_whose_tokenizer_learns(capsys):
    pytest.importorskip('sentencepiece')
    df = pd.DataFrame({'text': [f'the quick brown fox number {i} jumps over lazy dogs' for i in range(60)],
                       'label': list('ab') * 30})
    block = DataBlock((TextBlock.from_df('text', tok=SubwordTokenizer(310)), CategoryBlock), get_y=ColReader('label'))
    block.summary(df)
    assert 'tokens: ' in capsys.readouterr().out
