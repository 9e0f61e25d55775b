"From files, frames, folders and lists to a pair of loaders; and what is said when that cannot be."
import csv
import io
import json
import pickle
import random
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from awdtext.core import seed_all
from awdtext.data import dataloaders, tokenizer
from awdtext.data.batches import Categorize, ClassifierDataLoader, MultiCategorize, RegressionSetup
from awdtext.data.dataloaders import RandomSplitter, TextDataLoaders, get_text_files, numericalize_texts, read_csv
from awdtext.data.stream import LMDataLoader
from awdtext.data.tokenizer import BaseTokenizer, DocumentError, Tokenizer, special_tokens
from awdtext.data.vocab import Vocab

words = 'a the film book was is good bad very so long short'.split()
texts = [' '.join(random.Random(i).sample(words, 3 + i % 5)) for i in range(40)]
labels = ['pos' if i % 3 else 'neg' for i in range(40)]
frame = pd.DataFrame({'text': texts, 'label': labels, 'is_valid': [i % 4 == 0 for i in range(40)]})
plain = dict(min_freq=1, bs=4, seq_len=8, seed=0, device='cpu', tok_tfm=BaseTokenizer())


def docs(dl, vocab): return [' '.join(vocab.decode(doc)) for doc in dl.corpus]


def write(folder, files):
    for name, text in files.items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_bytes(text if isinstance(text, bytes) else text.encode())


# Splits

def test_random_splits_are_fastais():
    "fastai: torch.manual_seed(seed), then the first int(valid_pct * n) of a permutation are the validation part."
    for n, pct, seed in [(10, .2, 42), (97, .33, 0), (1000, .1, 7)]:
        torch.manual_seed(seed)
        idxs, cut = torch.randperm(n).tolist(), int(pct * n)
        assert RandomSplitter(pct, seed)(range(n)) == (sorted(idxs[cut:]), sorted(idxs[:cut]))


def test_a_split_has_no_empty_part():
    assert [len(part) for part in RandomSplitter(.01)(range(2))] == [1, 1]
    assert [len(part) for part in RandomSplitter(.99)(range(2))] == [1, 1]


def test_splits_without_a_seed_are_governed_by_seed_all():
    def split(seed):
        seed_all(seed)
        return RandomSplitter()(range(100))
    assert split(1) == split(1) != split(2)


@pytest.mark.parametrize('valid_pct', [0, 1, -.1, 1.5, 20])
def test_share_of_the_validation_part(valid_pct):
    with pytest.raises(ValueError, match=f'valid_pct={valid_pct}: use a share between 0 and 1'):
        TextDataLoaders.from_df(frame, valid_pct=valid_pct, **plain)


# Language models

def test_language_model_from_a_frame():
    dls = TextDataLoaders.from_df(frame, is_lm=True, valid_pct=.25, **plain)
    assert isinstance(dls.train, LMDataLoader) and dls.train.windows.bptt == 8 and dls.train.shuffle
    assert isinstance(dls.valid, LMDataLoader) and dls.valid.windows is None and not dls.valid.shuffle
    assert (dls.is_lm, dls.bs, dls.seq_len, dls.categories, dls.n_out) == (True, 4, 8, None, len(dls.vocab))
    assert (len(dls.train.corpus), len(dls.valid.corpus), dls.test, dls.device.type) == (30, 10, None, 'cpu')
    assert dls.vocab.itos[:9] == list(special_tokens) and set(words) <= set(dls.vocab.itos)
    assert sorted(docs(dls.train, dls.vocab) + docs(dls.valid, dls.vocab)) == sorted('xxbos ' + text for text in texts)
    assert sum((y >= 0).sum().item() for _, y in dls.valid) == dls.valid.corpus.n_tokens - 1


def test_no_label_column_is_needed_for_a_language_model():
    dls = TextDataLoaders.from_df(frame[['text']], is_lm=True, **plain)
    assert len(dls.train.corpus) == 32
    with pytest.raises(ValueError, match="no column at position 1: the columns are 'text'.*is_lm=True"):
        TextDataLoaders.from_df(frame[['text']], **plain)


def test_the_same_seed_makes_the_same_loaders():
    a, b, c = (TextDataLoaders.from_df(frame, is_lm=True, **plain | dict(seed=seed)) for seed in (5, 5, 6))
    assert_close(list(a.train), list(b.train))
    assert docs(a.valid, a.vocab) == docs(b.valid, b.vocab) != docs(c.valid, c.vocab)


def test_seed_all_governs_loaders_without_a_seed():
    def batches():
        seed_all(3)
        return list(TextDataLoaders.from_df(frame, is_lm=True, **plain | dict(seed=None)).train)
    assert_close(batches(), batches())


def test_vocabulary_is_that_of_the_training_part():
    dls = TextDataLoaders.from_texts(['one two'] * 4, valid=['one three'], min_freq=3, bs=2)
    assert dls.vocab.itos == [*special_tokens, 'xxbos', 'one', 'two'][:9] + ['one', 'two']
    assert docs(dls.valid, dls.vocab) == ['xxbos one xxunk'] and abs(dls.unk_rate - 1 / 3) < 1e-6
    small = TextDataLoaders.from_texts(['one two two'] * 4, valid=['one'], max_vocab=10, bs=2)
    assert small.vocab.itos[9:] == ['two']


@pytest.mark.parametrize('vocab', [Vocab(['xxunk', 'xxbos', 'good', 'film']), ['xxunk', 'xxbos', 'good', 'film']])
def test_given_vocabulary_is_used_as_it_is(vocab):
    dls = TextDataLoaders.from_df(frame, text_vocab=vocab, **plain)
    assert dls.vocab == Vocab(['xxunk', 'xxbos', 'good', 'film'])
    assert set(dls.train.corpus.ids.tolist()) <= {0, 1, 2, 3}


def test_given_vocabulary_without_unknown_token():
    with pytest.raises(ValueError, match="not in the vocabulary, which has neither 'xxunk' nor '<unk>'"):
        TextDataLoaders.from_df(frame, text_vocab=['xxbos', 'good', 'film'], **plain)


def test_backwards():
    dls = TextDataLoaders.from_texts(['one two'] * 4, valid=['three two one'], backwards=True, min_freq=1, bs=2)
    assert docs(dls.valid, dls.vocab) == ['one two xxunk xxbos'] and dls.backwards
    assert docs(dls.test_dl(['one two']), dls.vocab) == ['two one xxbos']
    clas = TextDataLoaders.from_texts(['one two', 'two'] * 4, [0, 1] * 4, valid=['one two'], valid_labels=[1],
                                      backwards=True, min_freq=1)
    assert docs(clas.valid, clas.vocab) == docs(clas.test_dl(['one two']), clas.vocab) == ['two one xxbos']


# Classifiers

def test_classifier_from_a_frame():
    dls = TextDataLoaders.from_df(frame, valid_col='is_valid', **plain)
    assert isinstance(dls.train, ClassifierDataLoader) and dls.train.shuffle and not dls.valid.shuffle
    assert (dls.is_lm, dls.categories, dls.n_out, dls.train.pad_idx) == (False, ['neg', 'pos'], 2, 1)
    assert docs(dls.valid, dls.vocab) == ['xxbos ' + text for text in texts[::4]]
    assert [dls.categories[i] for i in dls.valid.targets] == labels[::4]
    by_text = dict(zip(texts, labels))
    for (ids, lengths), y in dls.train:
        for row, n, target in zip(ids, lengths, y):
            text = ' '.join(dls.vocab.decode(row[1:n]))
            assert by_text[text] in labels and frame.label[frame.text == text].eq(dls.categories[target]).any()


@pytest.mark.parametrize('index', [range(40), range(100, 140), [f'id{i}' for i in range(40)]])
def test_labels_stay_with_their_texts_whatever_the_index(index):
    unique = pd.DataFrame({'y': [f'c{i % 7}' for i in range(40)], 't': [f'w{i}' for i in range(40)]}, index=index)
    dls = TextDataLoaders.from_df(unique, text_col='t', label_col='y', min_freq=1, bs=4)
    for dl in (dls.train, dls.valid):
        for doc, target in zip(docs(dl, dls.vocab), dl.targets):
            if 'xxunk' not in doc: assert dls.categories[target] == f'c{int(doc.split("w")[1]) % 7}'


def test_columns_by_name_and_position():
    by_name = TextDataLoaders.from_df(frame, text_col='text', label_col='label', valid_col='is_valid', **plain)
    by_place = TextDataLoaders.from_df(frame, text_col=0, label_col=-2, valid_col=2, **plain)
    unnamed = TextDataLoaders.from_df(pd.DataFrame(frame.values), valid_col=2, **plain)
    assert_close(list(by_place.train), list(TextDataLoaders.from_df(frame, valid_col=2, **plain).train))
    assert_close(list(unnamed.train), list(by_name.train))


def test_several_text_columns_are_joined_with_marks():
    df = pd.DataFrame({'title': ['good', 'bad'] * 4, 'body': ['a film', 'a book'] * 4, 'y': [0, 1] * 4})
    dls = TextDataLoaders.from_df(df, text_col=['title', 'body'], label_col='y', min_freq=1, bs=2)
    assert set(docs(dls.train, dls.vocab)) == {'xxbos xxfld 1 good xxfld 2 a film', 'xxbos xxfld 1 bad xxfld 2 a book'}
    one = TextDataLoaders.from_df(df, text_col=['title'], label_col='y', min_freq=1, bs=2)
    assert set(docs(one.train, one.vocab)) == {'xxbos good', 'xxbos bad'}
    df.loc[3, 'body'] = None
    with pytest.raises(ValueError, match="the text of row 3 in column 'body' is missing"):
        TextDataLoaders.from_df(df, text_col=['title', 'body'], label_col='y')


def test_several_labels():
    wanted = [[], ['a'], ['b'], ['a', 'b']] * 5
    split = pd.DataFrame({'text': ['good'] * 20, 'tags': [';'.join(tags) for tags in wanted]})
    lists = pd.DataFrame({'text': ['good'] * 20, 'tags': wanted})
    has = lambda tag: [int(tag in tags) for tags in wanted]
    one_hot = pd.DataFrame({'text': ['good'] * 20, 'a': has('a'), 'b': has('b')})
    all_dls = [TextDataLoaders.from_df(split, label_col='tags', label_delim=';', **plain),
               TextDataLoaders.from_df(lists, label_col='tags', **plain),
               TextDataLoaders.from_df(one_hot, label_col=['a', 'b'], **plain)]
    for dls in all_dls:
        assert (dls.categories, dls.n_out) == (['a', 'b'], 2) and isinstance(dls.labeler, MultiCategorize)
        assert_close(dls.train.targets, all_dls[0].train.targets)
    two = pd.DataFrame({'text': ['good'] * 8, 'first': ['x', 'y'] * 4, 'second': ['y', 'z'] * 4})
    assert TextDataLoaders.from_df(two, label_col=['first', 'second'], **plain).categories == ['x', 'y', 'z']


def test_regression():
    df = pd.DataFrame({'text': texts, 'stars': [i % 5 + .5 for i in range(40)], 'pages': range(40)})
    one = TextDataLoaders.from_df(df, label_col='stars', y_block=RegressionSetup, **plain)
    assert (one.n_out, one.categories) == (1, None)
    assert (one.train.targets.dtype, one.train.targets.shape) == (torch.float32, (32,))
    two = TextDataLoaders.from_df(df, label_col=['stars', 'pages'], y_block=RegressionSetup, **plain)
    assert (two.n_out, two.train.targets.shape) == (2, (32, 2))


def test_categories_in_an_order_of_ones_own():
    dls = TextDataLoaders.from_df(frame, y_block=Categorize(['pos', 'neg', 'none']), **plain)
    assert (dls.categories, dls.n_out) == (['pos', 'neg', 'none'], 3)


def test_a_short_validation_part_is_served_as_it_is():
    dls = TextDataLoaders.from_texts(texts, labels, valid=['good'], valid_labels=['pos'], **plain)
    assert [y.tolist() for _, y in dls.valid] == [[1]]
    lm = TextDataLoaders.from_texts(texts, valid=['good'], **plain)
    assert lm.valid.n_tokens == 1 and sum((y >= 0).sum().item() for _, y in lm.valid) == 1


# Files

def test_csv(tmp_path):
    frame.to_csv(tmp_path/'labels.csv', index=False)
    frame.to_csv(tmp_path/'bare.tsv', index=False, header=False, sep='\t')
    ours = TextDataLoaders.from_csv(tmp_path, **plain)
    assert_close(list(ours.train), list(TextDataLoaders.from_df(frame, **plain).train))
    bare = TextDataLoaders.from_csv(tmp_path, 'bare.tsv', None, '\t', valid_col=2, **plain)
    assert docs(bare.valid, bare.vocab) == ['xxbos ' + text for text in texts[::4]]
    assert ours.path == tmp_path


def test_missing_text_in_a_csv_is_named(tmp_path):
    write(tmp_path, {'labels.csv': 'text,label\ngood,1\n,0\nbad,0\n'})
    with pytest.raises(ValueError, match=r'the text of row 1 is missing \(nan\)'): TextDataLoaders.from_csv(tmp_path)


not_missing = 'NA None null nan NaN N/A n/a NULL #N/A <NA> -nan NONE 1.#IND'.split()


def test_only_an_empty_cell_is_missing(tmp_path):
    "Beside python's own reader."
    with open(tmp_path/'a.csv', 'w', newline='') as f:
        csv.writer(f).writerows([['text', 'label'], *zip(not_missing, not_missing[::-1]), ['', 'a'], ['b', '']])
    with open(tmp_path/'a.csv', newline='') as f: expected = list(csv.DictReader(f))
    for how in ({}, dict(as_text=['text', 'label']), dict(nullable=True)):
        df = read_csv(tmp_path/'a.csv', **how)
        assert df.fillna('').to_dict('records') == expected and df.isna().sum().tolist() == [1, 1]
    rows = [f'{text},{label}\n' for text, label in zip(not_missing * 3, ['None', 'NA', 'nan'] * 13)]
    write(tmp_path, {'labels.csv': 'text,label\n' + ''.join(rows)})
    dls = TextDataLoaders.from_csv(tmp_path, **plain)
    assert dls.categories == ['NA', 'None', 'nan'] and len(dls.train.corpus) + len(dls.valid.corpus) == 39
    for gap, message in (',NA', 'the text of row 39 is missing'), ('null,', 'the label of row 39 is missing'):
        write(tmp_path, {'labels.csv': 'text,label\n' + ''.join(rows) + gap + '\n'})
        with pytest.raises(ValueError, match=message): TextDataLoaders.from_csv(tmp_path, **plain)


def test_numbers_beside_empty_cells_stay_numbers(tmp_path):
    write(tmp_path, {'a.csv': 'text,stars,n,is_valid\na,2.5,1,True\nb,,,False\nc,4,3,False\nd,5,3,False\n'})
    df = read_csv(tmp_path/'a.csv')
    assert [str(kind) for kind in df.dtypes[1:]] == ['float64', 'float64', 'bool']
    assert df.stars.isna().tolist() == [False, True, False, False]
    assert str(read_csv(tmp_path/'a.csv', nullable=True).n.dtype) == 'Int64'
    how = dict(label_col='stars', y_block=RegressionSetup, valid_col='is_valid', **plain)
    with pytest.raises(ValueError, match=r'the label of row 1 is missing \(nan\)'):
        TextDataLoaders.from_csv(tmp_path, 'a.csv', **how)
    df.dropna().to_csv(tmp_path/'b.csv', index=False)
    assert TextDataLoaders.from_csv(tmp_path, 'b.csv', **how).train.targets.tolist() == [4., 5.]


def test_a_column_of_a_long_file_is_of_one_type(tmp_path):
    "Pandas reads such a file in pieces, and would take the labels of some for numbers: 01 for 1."
    write(tmp_path, {'a.csv': 'text,label\n' + 'a,01\n' * 600_000 + 'a,NA\n'})
    assert set(read_csv(tmp_path/'a.csv').label) == {'01', 'NA'}


@pytest.mark.parametrize('content', ['text,label\na,b\na,b,c\n', '', 'text,label\ndéjà,vu\n'.encode('latin-1')],
                         ids=repr)
def test_a_csv_that_cannot_be_read_is_named(content, tmp_path):
    write(tmp_path, {'labels.csv': content})
    with pytest.raises(ValueError, match=r'labels\.csv cannot be read as a CSV of UTF-8 text: .*[^.]\.$'):
        TextDataLoaders.from_csv(tmp_path)


@pytest.mark.parametrize('content,how,line,n_cells,first', [
    ('text,label\nlong, long film,pos\nshort,neg\n', {}, 2, 3, 'the header has 2'),
    ('text,label\ngood,pos,\nbad,neg,\n', {}, 2, 3, 'the header has 2'),
    ('text,label\n1,a film,with,pos\n', {}, 2, 4, 'the header has 2'),
    ('text,label\ngood,pos\nlong, long film,pos\n', {}, 3, 3, 'the header has 2'),
    ('\ntext,label\n\nlong, long film,pos\n', {}, 4, 3, 'the header has 2'),
    ('text\nlong, long film\n', {}, 2, 2, 'the header has 1'),
    ('films\ntext,label\nlong, long film,pos\n', dict(header=1), 3, 3, 'the header has 2'),
    ('\nfilms,of,1999\ntext,label\nlong, long film,pos\n', dict(header=1), None, None, None),
    ('good,pos\nlong, long film,pos\n', dict(header=None), 2, 3, 'the first one has 2'),
    ('text;label\nlong; long film;pos\n', dict(delimiter=';'), 2, 3, 'the header has 2')], ids=repr)
@pytest.mark.parametrize('nullable', [False, True])
def test_a_row_longer_than_its_header_is_named(content, how, line, n_cells, first, nullable, tmp_path):
    "To pandas the first column would be an index, and the label would be the text."
    write(tmp_path, {'a.csv': content})
    delimiter = re.escape(repr(how.get('delimiter', ',')))
    message = f'line {line} .* has {n_cells} cells, but {first}: quote texts that hold the delimiter {delimiter}'
    if line is None: message = 'the rows have more cells than the header'
    with pytest.raises(ValueError, match=rf'a\.csv cannot be read .*: {message}'):
        read_csv(tmp_path/'a.csv', nullable=nullable, **how)


@pytest.mark.parametrize('lines', [
    ['a', '', 'b'], ['', 'a'], ['', '', 'a b', '', '', '7'], ['a', '""'], ['a', '', '""', 'b'], ['""', 'a', '""', '""'],
    ['"a\n\nb"', '', 'b'], ['a', '  ', 'b'], ['""']], ids=repr)
@pytest.mark.parametrize('end', ['', '\n', '\n\n\n', '\n  \n'], ids=repr)
@pytest.mark.parametrize('how', [{}, dict(nullable=True), dict(as_text=['text']), dict(header=None)], ids=str)
def test_a_blank_line_of_a_column_of_texts_is_an_empty_text(lines, end, how, tmp_path):
    "Beside python's own reader; one at the end of the file is none, nor one before the header."
    header = [] if 'header' in how else ['', 'text']
    write(tmp_path, {'a.csv': '\n'.join(header + lines) + end})
    expected = [row[0] if row else '' for row in csv.reader(io.StringIO('\n'.join(lines) + '\n', newline=''))]
    df = read_csv(tmp_path/'a.csv', **how)
    assert df.iloc[:, 0].tolist() == expected and list(df.columns) == [0 if 'header' in how else 'text']


def test_blank_lines_elsewhere_are_nothing(tmp_path):
    write(tmp_path, {'two.csv': 'text,label\n\na,b\n\n,c\n\n', 'n.csv': 'n\n1\n\n2\n', 'no.csv': 'text\n\n\n',
                     'bare.csv': '""\na\n\nb\n'})
    assert read_csv(tmp_path/'two.csv').fillna('-').values.tolist() == [['a', 'b'], ['-', 'c']]
    assert read_csv(tmp_path/'n.csv').n.tolist() == [1, 2] and not len(read_csv(tmp_path/'no.csv'))
    assert read_csv(tmp_path/'bare.csv').iloc[:, 0].tolist() == ['a', 'b']           # a header without a name


def test_folder_with_parts(tmp_path):
    write(tmp_path, {f'{part}/{y}/{i}.txt': f'{part} {y} {i}'
                     for part in ('train', 'test') for y in 'ab' for i in range(3)})
    dls = TextDataLoaders.from_folder(tmp_path, valid='test', **plain)
    assert dls.categories == ['a', 'b'] and dls.valid.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert docs(dls.train, dls.vocab) == [f'xxbos train {y} {i}' for y in 'ab' for i in range(3)]
    lm = TextDataLoaders.from_folder(tmp_path, valid_pct=.25, is_lm=True, **plain)
    assert (len(lm.train.corpus), len(lm.valid.corpus)) == (9, 3)
    first = lambda files: [[i for i, f in enumerate(files) if (f.name == '0.txt') == yes] for yes in (True, False)]
    halves = TextDataLoaders.from_folder(tmp_path, splitter=first, **plain)
    assert (len(halves.train.corpus), len(halves.valid.corpus)) == (4, 8)
    ordered = TextDataLoaders.from_folder(tmp_path, valid='test', vocab=['b', 'a'], **plain)
    assert ordered.categories == ['b', 'a']


def test_folder_of_a_language_model_may_be_flat(tmp_path):
    write(tmp_path, {'train/1.txt': 'one two', 'train/2.txt': 'two one', 'valid/1.txt': 'two'})
    dls = TextDataLoaders.from_folder(tmp_path, is_lm=True, **plain)
    assert docs(dls.train, dls.vocab) == ['xxbos one two', 'xxbos two one']


def test_folder_files_are_read_when_their_turn_comes(tmp_path, monkeypatch):
    write(tmp_path, {f'{part}/{i}.txt': 'one two' for part in ('train', 'valid') for i in range(5)})
    log, read = [], dataloaders.read_text
    monkeypatch.setattr(dataloaders, 'read_text', lambda file: log.append('read') or read(file))

    class Spy(Tokenizer):
        def stream(self, texts, total=None, n_workers=None):
            for text in texts:
                log.append('token')
                yield text.split()

    TextDataLoaders.from_folder(tmp_path, is_lm=True, **plain | dict(tok_tfm=Spy(BaseTokenizer())))
    assert log == ['read', 'token'] * 10


@pytest.mark.parametrize('files,options,message', [
    ({'train/a.md': 'x'}, dict(valid_pct=.5), r'no \*.txt file in'),
    ({'train/a.txt': 'x'}, {}, "there is no folder .*valid; in .* there are 'train': name them by train= and valid="),
    ({'a.txt': 'x'}, {}, 'there is no folder .*train; in .* there are none')])
def test_folders_without_what_is_needed(tmp_path, files, options, message):
    write(tmp_path, files)
    with pytest.raises(FileNotFoundError, match=message):
        TextDataLoaders.from_folder(tmp_path, is_lm=True, **options, **plain)


def test_empty_folder_of_a_part(tmp_path):
    write(tmp_path, {'train/a.txt': 'x'})
    (tmp_path/'valid').mkdir()
    with pytest.raises(ValueError, match='the validation part is empty'):
        TextDataLoaders.from_folder(tmp_path, is_lm=True)


def test_no_such_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no folder .*nowhere'): get_text_files(tmp_path/'nowhere')


def test_file_with_a_document_on_each_line(tmp_path):
    write(tmp_path, {'train.txt': 'one two\n\n  \nthree\r\nfour', 'valid.txt': '\ufeffone\n', 'test.txt': 'two\n'})
    dls = TextDataLoaders.from_file(*(tmp_path/f'{part}.txt' for part in ('train', 'valid', 'test')), **plain)
    assert docs(dls.train, dls.vocab) == ['xxbos one two', 'xxbos three', 'xxbos four']
    assert docs(dls.valid, dls.vocab) == ['xxbos one'] and docs(dls.test, dls.vocab) == ['xxbos two']
    whole = TextDataLoaders.from_file(tmp_path/'train.txt', tmp_path/'valid.txt', whole=True, **plain)
    assert len(whole.train.corpus) == 1 and docs(whole.train, whole.vocab)[0].startswith('xxbos one two')


def test_lines_at_random(tmp_path):
    write(tmp_path, {'train.txt': '\n'.join(f'w{i}' for i in range(50))})
    dls = TextDataLoaders.from_file(tmp_path/'train.txt', valid_pct=.2, **plain)
    train, valid = RandomSplitter(.2, 0)(range(50))
    assert docs(dls.train, dls.vocab) == [f'xxbos w{i}' for i in train] and len(dls.valid.corpus) == 10
    with pytest.raises(ValueError, match='train.txt is one running text, which cannot be split at random: give valid='):
        TextDataLoaders.from_file(tmp_path/'train.txt', whole=True)


def test_files_that_are_tokenised_already(tmp_path):
    write(tmp_path, {'train.txt': ' = A Title = \n\n The <unk> cat \n', 'valid.txt': ' The dog \n'})
    raw = dict(plain, raw=True, tok_tfm=None)
    dls = TextDataLoaders.from_file(tmp_path/'train.txt', tmp_path/'valid.txt', **raw)
    assert docs(dls.train, dls.vocab) == ['= A Title = <eos> <eos> The <unk> cat <eos>']
    assert docs(dls.valid, dls.vocab) == ['The <unk> <eos>'] and len(dls.vocab) == 7
    lines = TextDataLoaders.from_file(tmp_path/'train.txt', tmp_path/'valid.txt', whole=False, eos='', **raw)
    assert docs(lines.train, lines.vocab) == ['= A Title =', '', 'The <unk> cat']
    assert docs(dls.test_dl(['The cat XX']), dls.vocab) == ['The cat <unk>']
    with pytest.raises(ValueError, match='raw=True means that the file is tokenised already'):
        TextDataLoaders.from_file(tmp_path/'train.txt', tmp_path/'valid.txt', rules=(), **raw)


def test_wikitext_2_has_the_published_numbers(data_dir):
    files = [data_dir/'wikitext-2'/f'{part}.txt' for part in ('train', 'valid', 'test')]
    if not files[0].exists(): pytest.skip('needs WikiText-2')
    dls = TextDataLoaders.from_file(*files, raw=True, min_freq=1)
    assert [dls[i].corpus.n_tokens for i in range(3)] == [2_088_628, 217_646, 245_569] and len(dls.vocab) == 33_278


@pytest.mark.parametrize('raw', [False, True])
def test_empty_files(tmp_path, raw):
    write(tmp_path, {'train.txt': 'one two three\n', 'empty.txt': ''})
    for whole in (False, True):
        with pytest.raises(ValueError, match='the validation part is empty'):
            TextDataLoaders.from_file(tmp_path/'train.txt', tmp_path/'empty.txt', raw=raw, whole=whole)
    with pytest.raises(FileNotFoundError, match='nowhere.txt'): TextDataLoaders.from_file(tmp_path/'nowhere.txt')


def test_text_that_is_not_utf_8_names_the_file(tmp_path):
    latin = 'd\xe9j\xe0 vu'.encode('latin-1')
    write(tmp_path, {'train/a.txt': 'good', 'train/latin.txt': latin, 'valid/a.txt': 'good'})
    message = r'latin.txt is not UTF-8 text \(.* at byte 1\): convert it'
    with pytest.raises(ValueError, match=message): TextDataLoaders.from_folder(tmp_path, is_lm=True, **plain)
    with pytest.raises(ValueError, match=message): TextDataLoaders.from_file(tmp_path/'train/latin.txt', **plain)


# Tokens

def test_tokens_are_taken_as_they_are():
    train, valid = [['The', 'CAT', 'xxbos', ' '], ['The', '!!!!']], [['The', 'dog']]
    dls = TextDataLoaders.from_tokens(train, valid, [['CAT', 'The']], bs=2, seq_len=5)
    assert [dls.vocab.decode(doc) for doc in dls.train.corpus] == train
    assert docs(dls.valid, dls.vocab) == ['The xxunk'] and docs(dls.test, dls.vocab) == ['CAT The']
    assert dls.vocab.itos[:2] == ['xxunk', 'xxpad'] and len(dls.vocab) == 7 and dls.tokenizer is None
    known = TextDataLoaders.from_tokens([['a', 'b', '<unk>']], [['c', 'a']], bs=2, seq_len=5)
    assert sorted(known.vocab.itos) == ['<unk>', 'a', 'b'] and docs(known.valid, known.vocab) == ['<unk> a']


def test_tokens_with_labels():
    dls = TextDataLoaders.from_tokens([['a'], ['b', '<unk>']] * 3, [['c']], labels=[0, 1] * 3, valid_labels=[1],
                                      is_lm=False, bs=2)
    assert dls.categories == [0, 1] and dls.vocab.itos[:2] == ['<unk>', 'xxpad'] and dls.valid.targets.tolist() == [1]
    assert dls.test_dl([['a', 'z']]).corpus.ids.tolist() == dls.vocab.encode(['a', '<unk>']).tolist()
    with pytest.raises(ValueError, match='labels are for a classifier: give is_lm=False'):
        TextDataLoaders.from_tokens([['a'], ['b']], [['c']], labels=[0, 1])


def test_strings_are_no_lists_of_tokens():
    with pytest.raises(TypeError, match="document 0 is str 'a text', not a list of tokens"):
        TextDataLoaders.from_tokens(['a text'], [['a']])


# Tokenizers

def test_tokenizer_rules_and_workers_are_reached():
    upper = TextDataLoaders.from_texts(['Good Film'] * 6, rules=[str.upper], min_freq=1)
    assert docs(upper.valid, upper.vocab) == ['GOOD FILM']
    tok = Tokenizer(BaseTokenizer(), rules=())
    own = TextDataLoaders.from_texts(['Good, Film'] * 6, tok_tfm=tok, min_freq=1)
    assert own.tokenizer is tok and docs(own.valid, own.vocab) == ['Good, Film']
    with pytest.raises(ValueError, match='rules are given twice'):
        TextDataLoaders.from_texts(['Good, Film'] * 6, tok_tfm=tok, rules=())


def test_a_splitter_of_words_gets_the_default_rules():
    dls = TextDataLoaders.from_texts(['Good, film'] * 6, tok_tfm=BaseTokenizer(), min_freq=1)
    assert docs(dls.valid, dls.vocab) == ['xxbos xxmaj good, film']


def test_a_document_that_cannot_be_tokenised_is_named_as_the_user_does():
    def fails_on_the_last(text):
        if text == texts[39]: raise RuntimeError('too deep')
        return text
    with pytest.raises(DocumentError, match="document id39 cannot be tokenised: too deep"):
        named = frame.set_index(pd.Index([f'id{i}' for i in range(40)]))
        TextDataLoaders.from_df(named, rules=[fails_on_the_last], **plain)


@pytest.mark.parametrize('n_workers', [0, 2])
def test_workers_change_nothing(n_workers, tmp_path):
    write(tmp_path, {f'train/{i}.txt': text for i, text in enumerate(texts)} | {'valid/a.txt': 'good'})
    options = plain | dict(is_lm=True, n_workers=n_workers)
    dls = TextDataLoaders.from_folder(tmp_path, **options)
    assert sorted(docs(dls.train, dls.vocab)) == sorted('xxbos ' + text for text in texts)
    write(tmp_path, {'train/7.txt': b'd\xe9j\xe0'})
    with pytest.raises(ValueError, match='7.txt is not UTF-8'): TextDataLoaders.from_folder(tmp_path, **options)


def test_the_same_processes_serve_all_parts(tmp_path, monkeypatch):
    write(tmp_path, {f'{part}.txt': '\n'.join(texts) for part in ('train', 'valid', 'test')})
    started,forked = [], tokenizer._forked
    monkeypatch.setattr(tokenizer, '_forked', lambda work, n: started.append(n) or forked(work, n))
    files = [tmp_path/f'{part}.txt' for part in ('train', 'valid', 'test')]
    dls = TextDataLoaders.from_file(*files, n_workers=2, **plain)
    assert started == [2] and len(dls.train.corpus) == len(texts)
    assert docs(dls.train, dls.vocab) == docs(dls.valid, dls.vocab) == docs(dls.test, dls.vocab)


@pytest.mark.parametrize('n_workers', [0, 2])
def test_a_document_of_the_validation_part_is_named_as_the_user_does(n_workers):
    def fails_on_one(text):
        if text == texts[9]: raise RuntimeError('too deep')
        return text
    named = pd.DataFrame({'text': texts, 'is_valid': [i % 3 == 0 for i in range(len(texts))]},
                         index=[f'id{i}' for i in range(len(texts))])
    with pytest.raises(DocumentError, match='document id9 cannot be tokenised: too deep'):
        TextDataLoaders.from_df(named, valid_col='is_valid', is_lm=True, rules=[fails_on_one], n_workers=n_workers,
                                **plain)


# What cannot be

@pytest.mark.parametrize('df,options,error,message', [
    (frame, dict(text_col='body'), ValueError, "no column 'body': the columns are 'text', 'label', 'is_valid'"),
    (frame, dict(label_col='y'), ValueError, "no column 'y': the columns are 'text', 'label', 'is_valid'"),
    (frame, dict(label_col=7), ValueError, 'no column at position 7'),
    (frame, dict(valid_col='split'), ValueError, "no column 'split'"),
    (frame, dict(valid_col='label'), ValueError, "'label' of row 0 is 'neg': True means validation"),
    (frame.assign(is_valid=True), dict(valid_col='is_valid'), ValueError, 'the training part is empty'),
    (frame.assign(is_valid=False), dict(valid_col='is_valid'), ValueError, 'the validation part is empty'),
    (frame[:0], {}, ValueError, r'0 document\(s\) cannot be split'),
    (frame[:1], {}, ValueError, r'1 document\(s\) cannot be split into training and validation: two are needed'),
    (frame.assign(text=[*texts[:-1], None]), {}, ValueError, 'the text of row 39 is missing'),
    (frame.assign(text=[np.nan, *texts[1:]]), dict(is_lm=True), ValueError, r'the text of row 0 is missing \(nan\)'),
    (frame.assign(text=pd.array([pd.NA, *texts[1:]], 'string')), {}, ValueError, 'the text of row 0 is missing'),
    (frame.assign(label=['pos', None] * 20), {}, ValueError, 'the label of row .* is missing'),
    (frame.assign(text=[b'bytes', *texts[1:]]), {}, TypeError, 'the text of row 0 is bytes: decode it'),
    (frame.assign(text=range(40)), {}, TypeError, r'the text of row 0 is 0 \(int\), not a string'),
    (frame.assign(label='pos'), {}, ValueError, "all labels are 'pos'"),
    (frame.assign(label=['new'] + ['pos', 'neg', 'pos'] * 13), dict(valid_col='is_valid'), ValueError,
     "the label 'new' of row 0 is not among the categories of the training part: 'neg', 'pos'"),
    (frame.set_index(pd.Index([f'id{i}' for i in range(40)])).assign(text=[None, *texts[1:]]), {}, ValueError,
     "the text of row 'id0' is missing"),
    (texts, {}, TypeError, 'df is list, not a DataFrame')])
def test_frames_that_cannot_be_used(df, options, error, message):
    with pytest.raises(error, match=message): TextDataLoaders.from_df(df, **plain | options)


@pytest.mark.parametrize('name', ['bs', 'val_bs', 'seq_len'])
@pytest.mark.parametrize('value', [0, -3, 2.5, '8'])
def test_sizes_are_whole_numbers(name, value):
    for is_lm in (False, True):
        with pytest.raises(ValueError, match=f'{name}={value!r}: use a whole number, 1 or more'):
            TextDataLoaders.from_df(frame, is_lm=is_lm, **plain | {name: value})


@pytest.mark.parametrize('args,options,error,message', [
    ((texts, labels[:-1]), {}, ValueError, '40 texts, 39 labels'),
    (('one text', ['pos']), {}, TypeError, "give a list of texts, not one text: 'one text'"),
    ((texts, None), dict(valid=texts[:3], valid_labels=labels[:3]), ValueError, 'no labels for the training part'),
    ((texts, labels), dict(valid=texts[:3]), ValueError, 'no labels for the validation part: give valid_labels'),
    ((texts, None), dict(is_lm=False), ValueError, 'no labels for the training part: give labels, or is_lm=True'),
    ((texts, labels), dict(valid=texts[:1], valid_labels=['new']), ValueError, "the label 'new' of row 0"),
    (([], None), {}, ValueError, r'0 document\(s\) cannot be split'),
    ((texts, None), dict(valid=[]), ValueError, 'the validation part is empty'),
    ((texts, None), dict(test=[]), ValueError, 'the test part is empty'),
    (([], None), dict(valid=texts), ValueError, 'the training part is empty')])
def test_lists_that_cannot_be_used(args, options, error, message):
    with pytest.raises(error, match=message): TextDataLoaders.from_texts(*args, **options)


def test_labels_are_checked_before_tokenising():
    def never(text): raise RuntimeError('tokenised')
    for bad in (frame.assign(label='pos'), frame.assign(label=[None, *labels[1:]])):
        with pytest.raises(ValueError, match='label'): TextDataLoaders.from_df(bad, rules=[never], **plain)


# Looking and predicting

def test_new_texts_keep_their_order():
    dls = TextDataLoaders.from_df(frame, **plain)
    dl = dls.test_dl(texts[:11])
    seen = [' '.join(dls.vocab.decode(row[1:n])) for (ids, lengths), _ in dl for row, n in zip(ids, lengths)]
    restored = [None] * 11
    for i, text in zip(dl.order, seen): restored[i] = text
    assert restored == texts[:11]
    _, y = next(iter(dls.test_dl(pd.Series(['good', 'bad bad']), ['neg', 'pos'])))
    assert y.tolist() == [1, 0]
    with pytest.raises(TypeError, match='give a list of texts, not one text'): dls.test_dl('good film')
    with pytest.raises(ValueError, match='the text of row 1 is missing'): dls.test_dl(['good', None])
    with pytest.raises(ValueError, match='there are no documents'): dls.test_dl([])


def test_new_texts_of_a_language_model():
    dls = TextDataLoaders.from_df(frame, is_lm=True, **plain)
    dl = dls.test_dl(texts[:3])
    assert docs(dl, dls.vocab) == ['xxbos ' + text for text in texts[:3]] and dl.windows is None
    assert numericalize_texts(texts[:3], dls.vocab, dls.tokenizer).ids.equal(dl.corpus.ids)


@pytest.mark.parametrize('is_lm', [False, True])
def test_looking_at_a_batch_changes_nothing(is_lm):
    a, b = (TextDataLoaders.from_df(frame, is_lm=is_lm, **plain) for _ in range(2))
    first = a.one_batch()
    a.show_batch()
    passes = list(a.train)
    assert_close(passes[0], first)
    assert_close(passes, list(b.train))
    assert a.train.epoch == 1


def test_batch_in_a_terminal(capsys):
    lm = TextDataLoaders.from_df(frame, is_lm=True, **plain)
    lm.show_batch(max_n=2, trunc_at=3)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(': ')[0] for line in lines] == ['text', 'text_', '', 'text', 'text_']
    assert lines[0].split()[2:] == lines[1].split()[1:-1]
    TextDataLoaders.from_df(frame, **plain).show_batch(max_n=1)
    shown = dict(line.split(': ') for line in capsys.readouterr().out.splitlines())
    assert shown['text'].startswith('xxbos') and 'xxpad' not in shown['text'] and shown['category'] in ('neg', 'pos')


def test_batch_in_a_notebook_is_an_escaped_table(monkeypatch):
    import IPython.display
    tables = []
    monkeypatch.setattr(dataloaders, 'display_mode', lambda: 'notebook')
    monkeypatch.setattr(IPython.display, 'display', lambda table: tables.append(table.data))
    TextDataLoaders.from_tokens([['<b>', 'a']] * 3, [['a']], labels=[['x', 'y'], [], ['x']], valid_labels=[['x']],
                                is_lm=False, bs=3, seed=0).show_batch()
    assert tables[0].startswith('<table><tr><th') and tables[0].count('<tr>') == 4
    assert '&lt;b&gt; a' in tables[0] and 'x; y' in tables[0] and '<b>' not in tables[0]


@pytest.mark.parametrize('look', [lambda dls: dls.one_batch(), lambda dls: dls.show_batch(), lambda dls: dls.unk_rate])
def test_loaders_that_came_with_a_model_have_no_data(look):
    with pytest.raises(ValueError, match='There is no .* data: these loaders came with a model'):
        look(TextDataLoaders(None, None, Vocab(['xxunk', 'good'])))


def test_summary_is_one_line():
    dls = TextDataLoaders.from_texts(['one two'] * 1000, valid=['one three'], test=['one'], min_freq=1)
    assert dls.summary() == ('1,000 + 1 + 1 documents, 3,000 + 3 + 2 tokens, a vocabulary of 11; '
                             '33.3% of the validation tokens are unknown')
    assert dls.summary() in repr(dls)


def test_pickle():
    dls = TextDataLoaders.from_df(frame, **plain | dict(tok_tfm=Tokenizer(BaseTokenizer())))
    assert_close(list(pickle.loads(pickle.dumps(dls)).train), list(dls.train))


def test_heavy_packages_wait():
    code = ("import sys, json, awdtext.data.dataloaders; "
            "print(json.dumps([m for m in ('pandas', 'spacy', 'matplotlib', 'IPython') if m in sys.modules]))")
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
