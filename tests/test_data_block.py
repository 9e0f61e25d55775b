"The data block: the same data as the factories, splits like fastai's, and what is said when answers do not fit."
import pickle
import random
import re
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from awdtext.core import seed_all
from awdtext.data.batches import Categorize, MultiCategorize, RegressionSetup
from awdtext.data.data_block import (CategoryBlock, ColReader, DataBlock, GrandparentSplitter, IndexSplitter,
    MultiCategoryBlock, RegressionBlock, TextBlock)
from awdtext.data.dataloaders import (ColSplitter, RandomSplitter, TextDataLoaders, get_text_files, parent_label,
    split_items)
from awdtext.data.tokenizer import BaseTokenizer, DocumentError

words = 'a the film book was is Good bad very so long short'.split()
texts = [' '.join(random.Random(i).sample(words, 3 + i % 5)) for i in range(40)]
frame = pd.DataFrame({'text': texts, 'label': ['pos' if i % 3 else 'neg' for i in range(40)],
                      'title': [texts[-i] for i in range(40)], 'is_valid': [i % 4 == 0 for i in range(40)],
                      'stars': [i % 5 for i in range(40)], 'tags': [';'.join('xyz'[:i % 4]) for i in range(40)],
                      'x': [i % 2 for i in range(40)], 'y': [i % 3 // 2 for i in range(40)]},
                     index=[f'id{i}' for i in range(40)])
plain = dict(min_freq=1, tok=BaseTokenizer())
factory = dict(min_freq=1, bs=4, seq_len=8, seed=3, device='cpu', tok_tfm=BaseTokenizer())
loading = dict(bs=4, seq_len=8, seed=3, device='cpu')
text = TextBlock.from_df('text', **plain)
label = ColReader('label')
lm_text = TextBlock(BaseTokenizer(), is_lm=True)


def classifier(text=text, labels=CategoryBlock, **options):
    return DataBlock((text, labels), **dict(get_y=label) | options)


def docs(dl, vocab): return [' '.join(vocab.decode(doc)) for doc in dl.corpus]


def check_same(ours, theirs):
    "Vocabulary, corpora, targets, batches and what the learner is told are the same."
    assert ours.vocab == theirs.vocab and ours.categories == theirs.categories and ours.n_out == theirs.n_out
    for name in ('is_lm', 'seq_len', 'bs', 'val_bs', 'backwards', 'n_workers', 'path', 'device'):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert type(ours.labeler) is type(theirs.labeler)
    for a, b in [(ours.train, theirs.train), (ours.valid, theirs.valid)]:
        a.epoch = b.epoch = 0  # the first pass, also where it was made before
        assert a.corpus.ids.equal(b.corpus.ids) and a.corpus.lengths.equal(b.corpus.lengths)
        if not ours.is_lm: assert_close(a.targets, b.targets)
        assert_close(list(a), list(b))


def write(folder, files):
    for name, content in files.items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.fixture
def reviews(tmp_path):
    return write(tmp_path, {f'{part}/{y}/{i}.txt': f'{text} {y}' for part in ('train', 'test') for y in ('pos', 'neg')
                            for i, text in enumerate(texts[:8])} | {'unsup/1.txt': 'nobody knows'})


# The same as by the factories

@pytest.mark.parametrize('get_x', [None, ColReader('text'), lambda row: row.text, lambda row: row['text']])
@pytest.mark.parametrize('splitter,options', [
    (None, {}), (RandomSplitter(.3, seed=3), dict(valid_pct=.3)), (ColSplitter(), dict(valid_col='is_valid')),
    (IndexSplitter(range(0, 40, 4)), dict(valid_col='is_valid'))])
def test_frame(get_x, splitter, options):
    block = DataBlock((text, CategoryBlock), get_x=get_x, get_y=label, splitter=splitter)
    check_same(block.dataloaders(frame, **loading), TextDataLoaders.from_df(frame, **options, **factory))


@pytest.mark.parametrize('label_block,get_y,options', [
    (RegressionBlock, ColReader('stars'), dict(label_col='stars', y_block=RegressionSetup)),
    (RegressionBlock(2), ColReader(['stars', 'x']), dict(label_col=['stars', 'x'], y_block=RegressionBlock)),
    (RegressionBlock(), ColReader(['stars', 'x']), dict(label_col=['stars', 'x'], y_block=RegressionBlock(n_out=2))),
    (MultiCategoryBlock, ColReader('tags', label_delim=';'), dict(label_col='tags', label_delim=';')),
    (MultiCategoryBlock(), ColReader('tags', label_delim=';'), dict(label_col='tags', label_delim=';',
                                                                   y_block=MultiCategoryBlock)),
    (MultiCategoryBlock(encoded=True, vocab=['x', 'y']), ColReader(['x', 'y']), dict(label_col=['x', 'y'])),
    (MultiCategoryBlock(True, ['x', 'y']), lambda row: np.array([row.x, row.y]),
     dict(label_col=['x', 'y'], y_block=MultiCategoryBlock(encoded=True, vocab=['x', 'y']))),
    (CategoryBlock(['pos', 'neg', 'none'], sort=False), label, dict(y_block=Categorize(['pos', 'neg', 'none']))),
    (CategoryBlock(['pos', 'none', 'neg']), label, dict(y_block=CategoryBlock(vocab=['neg', 'none', 'pos']))),
    (CategoryBlock(), ColReader('stars'), dict(label_col='stars', y_block=CategoryBlock)),
    (MultiCategorize, ColReader('tags', label_delim=';'), dict(label_col='tags', label_delim=';'))])
def test_all_kinds_of_labels(label_block, get_y, options):
    ours = DataBlock((text, label_block), get_y=get_y).dataloaders(frame, **loading)
    check_same(ours, TextDataLoaders.from_df(frame, **options, **factory))


def test_several_text_columns():
    block = classifier(TextBlock.from_df(['title', 'text'], **plain), get_x=ColReader('text'))
    theirs = TextDataLoaders.from_df(frame, text_col=['title', 'text'], **factory)
    check_same(block.dataloaders(frame, **loading), theirs)
    assert docs(theirs.train, theirs.vocab)[0].startswith('xxbos xxfld 1') and list(frame.columns)[2] == 'title'
    named = TextBlock.from_df(['title', 'text'], tok_text_col='both', **plain)
    block = DataBlock((named, CategoryBlock), get_x=ColReader('both'), get_y=label)
    check_same(block.dataloaders(frame, **loading), theirs)


@pytest.mark.parametrize('backwards', [False, True])
def test_language_model(backwards):
    block = DataBlock(TextBlock.from_df('text', is_lm=True, seq_len=8, backwards=backwards, **plain))
    theirs = TextDataLoaders.from_df(frame, is_lm=True, backwards=backwards, **factory)
    check_same(block.dataloaders(frame, bs=4, seed=3, device='cpu'), theirs)
    check_same(TextDataLoaders.from_dblock(block, frame, bs=4, seed=3, device='cpu'), theirs)
    assert block.dataloaders(frame, seq_len=80).seq_len == 80


def test_folder(reviews):
    block = DataBlock(blocks=(TextBlock.from_folder(reviews, **plain), CategoryBlock), get_items=get_text_files,
                      get_y=parent_label, splitter=GrandparentSplitter(valid_name='test'))
    ours = block.dataloaders(reviews, path=reviews, **loading)
    check_same(ours, TextDataLoaders.from_folder(reviews, valid='test', **factory))
    assert 'nobody' not in ours.vocab and len(ours.valid.corpus) == 16
    lm = DataBlock(TextBlock.from_folder(reviews, is_lm=True, **plain), get_items=get_text_files,
                   splitter=RandomSplitter(.1, seed=3))
    check_same(lm.dataloaders(reviews, path=reviews, **loading),
               TextDataLoaders.from_folder(reviews, is_lm=True, valid_pct=.1, **factory))


def test_vocabulary_and_frequencies_are_reached():
    dls = DataBlock((TextBlock.from_df('text', vocab=['xxunk', 'xxpad', 'Film', 'film'], tok=BaseTokenizer(), rules=()),
                     CategoryBlock), get_y=label).dataloaders(frame)
    assert dls.vocab.itos == ['xxunk', 'xxpad', 'Film', 'film']
    small = DataBlock(TextBlock(BaseTokenizer(), is_lm=True, min_freq=2, max_vocab=10)).dataloaders(['b a a'] * 9)
    assert small.vocab.itos[9:] == ['a']
    assert TextBlock(n_workers=2).n_workers == 2 and TextBlock.from_df('text', n_workers=1).n_workers == 1


def test_the_tokenizer_is_spacys_unless_told():
    dls = DataBlock(TextBlock(is_lm=True, min_freq=1)).dataloaders(["It isn't."] * 9)
    assert docs(dls.valid, dls.vocab) == ["xxbos xxmaj it is n't ."]


# Items

def test_any_items():
    Song = namedtuple('Song', 'words genre')
    songs = [Song('la la', 'pop'), Song('hm', 'blues')] * 5
    dicts = [song._asdict() for song in songs]
    block = DataBlock((TextBlock(BaseTokenizer(), min_freq=1), CategoryBlock), get_x=ColReader('words'),
                      get_y=ColReader(1), splitter=IndexSplitter([3, 0]))
    for items in (songs, dicts, iter(songs), tuple(songs)):
        dls = block.dataloaders(items)
        assert docs(dls.valid, dls.vocab) == ['xxbos hm', 'xxbos la la'] and dls.valid.targets.tolist() == [0, 1]
        assert len(dls.train.corpus) == 8


def test_a_path_is_read_and_a_string_is_a_text(reviews):
    rows = pd.DataFrame({'name': ['train/pos/0', 'train/neg/0'] * 4, 'y': [0, 1] * 4})
    block = DataBlock((TextBlock(BaseTokenizer(), min_freq=1), CategoryBlock), get_y=ColReader('y'),
                      get_x=ColReader('name', pref=reviews, suff='.txt'), splitter=IndexSplitter([1]))
    dls = block.dataloaders(rows)
    assert docs(dls.valid, dls.vocab)[0].endswith(' neg')
    block.get_x = ColReader('name', pref='at ', suff='!')
    dls = block.dataloaders(rows)
    assert docs(dls.valid, dls.vocab) == ['xxbos at train / neg / 0!']


def test_files_are_read_when_their_turn_comes(reviews, monkeypatch):
    from awdtext.data import data_block, tokenizer
    log, read, chunks = [], data_block.read_text, tokenizer._chunks
    monkeypatch.setattr(tokenizer, '_chunks', lambda texts: chunks(texts, size=100))    # in place of a hundred thousand
    monkeypatch.setattr(data_block, 'read_text', lambda file: log.append('read') or read(file))
    def rule(text): return log.append('token') or text
    block = DataBlock(TextBlock(BaseTokenizer(), is_lm=True, rules=[rule], n_workers=0), get_items=get_text_files)
    block.dataloaders(reviews)
    assert len(log) == 2 * 33 and max(len(run) for run in re.findall('(?:read)+', ''.join(log))) <= 8 * 4


def test_the_frame_is_not_changed():
    before = frame.copy()
    DataBlock((TextBlock.from_df(['title', 'text'], **plain), CategoryBlock), get_y=label).dataloaders(frame)
    pd.testing.assert_frame_equal(frame, before)


def test_a_block_can_be_used_twice_and_pickled():
    block = DataBlock((text, CategoryBlock), get_y=label)
    check_same(block.dataloaders(frame, **loading), pickle.loads(pickle.dumps(block)).dataloaders(frame, **loading))


def test_without_a_seed_seed_all_governs():
    def batches():
        seed_all(3)
        return list(DataBlock((text, CategoryBlock), get_y=label).dataloaders(frame, bs=4).train)
    assert_close(batches(), batches())


# Splitters and readers: what fastai 2.8.12 gives for the same input

paths = [Path(f'd/{name}.txt') for name in
         ('test/pos/1', 'train/neg/2', 'train/pos/3', 'unsup/all/4', 'extra/train/pos/5', 'train/6')]
small_frame = pd.DataFrame({'text': list('abcdef'), 'part': list('xyzyxz'),
                            'is_valid': [True, False, False, True, False, True]})


@pytest.mark.parametrize('splitter,items,wanted', [
    (GrandparentSplitter(valid_name='test'), paths, ([1, 2, 4], [0])),
    (GrandparentSplitter(['train', 'unsup'], ['test']), paths, ([1, 2, 3, 4], [0])),
    (GrandparentSplitter(valid_name='test'), [str(path) for path in paths], ([1, 2, 4], [0])),
    (ColSplitter(), small_frame, ([1, 2, 4], [0, 3, 5])),
    (ColSplitter(-1), small_frame, ([1, 2, 4], [0, 3, 5])),
    (ColSplitter('part', on='y'), small_frame, ([0, 2, 4, 5], [1, 3])),
    (ColSplitter(1, on=['y', 'z']), small_frame, ([0, 4], [1, 2, 3, 5])),
    (IndexSplitter([5, 2]), range(7), ([0, 1, 3, 4, 6], [5, 2])),
    (IndexSplitter(np.array([5, 2])), range(7), ([0, 1, 3, 4, 6], [5, 2])),
    (RandomSplitter(.3, seed=7), range(10), (sorted([4, 1, 7, 9, 6, 8, 2]), sorted([5, 0, 3])))])
def test_splits_are_fastais(splitter, items, wanted):
    assert tuple(splitter(items)) == wanted
    assert tuple(split_items(items, splitter)) == wanted


def test_readers_read_what_fastais_read():
    row = small_frame.iloc[1]
    assert [ColReader('text')(row), ColReader(1)(row), ColReader(['text', 'part'])(row)] == ['b', 'y', ['b', 'y']]
    assert ColReader('text', pref='<', suff='>')(row) == '<b>'
    assert [ColReader('t', label_delim=' ')({'t': t}) for t in ('a b c', 'a', '')] == [['a', 'b', 'c'], ['a'], []]
    assert parent_label('imdb/train/pos/1.txt') == parent_label(Path('pos/1.txt')) == 'pos'


def test_text_files_are_fastais(tmp_path):
    write(tmp_path, dict.fromkeys(['a.txt', 'b.TXT', 'c.md', '.h.txt', 'x/d.txt', 'x/y/e.txt', '.hid/f.txt', 'z/g.txt',
                                   'z/.i/h.txt'], 'x'))
    def found(**options): return [str(file.relative_to(tmp_path)) for file in get_text_files(tmp_path, **options)]
    assert found() == ['a.txt', 'b.TXT', 'x/d.txt', 'x/y/e.txt', 'z/g.txt']
    assert found(recurse=False) == ['a.txt', 'b.TXT']
    assert found(folders=['z', 'x']) == ['x/d.txt', 'x/y/e.txt', 'z/g.txt']
    assert found(folders='x') == ['x/d.txt', 'x/y/e.txt']
    (tmp_path/'link').symlink_to(tmp_path/'x')
    assert found(folders='link') == ['link/d.txt', 'link/y/e.txt'] and len(found()) == 7


def test_categories_are_fastais():
    categories = lambda block: block.labeler.categories
    assert categories(CategoryBlock(['pos', 'neg'])) == ['neg', 'pos']
    assert categories(CategoryBlock(['pos', 'neg', 'pos'], sort=False)) == ['pos', 'neg']
    assert categories(MultiCategoryBlock(vocab=['b', 'a'])) == ['b', 'a']
    assert categories(CategoryBlock(frame.label.unique())) == ['neg', 'pos']


# Looking

def test_summary_follows_the_first_document(capsys):
    titled = DataBlock((TextBlock.from_df(['title', 'text'], **plain), CategoryBlock), get_y=label,
                       splitter=IndexSplitter(range(30)))
    titled.summary(frame)
    lines = dict(line.split(': ', 1) for line in capsys.readouterr().out.splitlines())
    assert lines['items'] == '40, of which 10 for training, 30 for validation, 0 left out'
    assert lines['first item of the training part'] == "'id30'"
    assert lines['text'].startswith(f'xxfld 1 {texts[10]} xxfld 2') and lines['tokens'].startswith('xxbos xxfld 1 ')
    dls = titled.dataloaders(frame)
    assert lines['ids'].startswith('2 ') and lines['tokens'].startswith(' '.join(
        dls.vocab.decode(torch.tensor([int(i) for i in lines['ids'].removesuffix(' …').split()][:5]))))
    assert lines['label'] == "'neg', target: 0, of categories ['neg', 'pos']"
    assert lines['batch'].startswith('(4, ') and lines['batch'].endswith('), (4,), (4,)')


def test_summary_of_others(capsys, reviews):
    DataBlock(TextBlock(BaseTokenizer(), is_lm=True), get_items=get_text_files).summary(reviews)
    out = capsys.readouterr().out
    assert 'label' not in out and str(reviews) in out and 'items: 33, of which 27 for training, 6 for' in out
    DataBlock((text, RegressionBlock), get_y=ColReader('stars')).summary(frame)
    assert re.search(r'label: (\d), target: \1.0, of 1 number', capsys.readouterr().out)


def test_summary_shows_how_far_it_came(capsys):
    def rule(text): raise RuntimeError('too deep')
    block = DataBlock(TextBlock(BaseTokenizer(), is_lm=True, rules=[rule]))
    with pytest.raises(DocumentError, match='too deep'): block.summary(texts)
    assert capsys.readouterr().out.splitlines()[-1].startswith('text: ')


# What does not fit

@pytest.mark.parametrize('blocks,options,message', [
    (CategoryBlock, dict(get_y=label), '0 text blocks: give one, TextBlock.from_df'),
    ((text, text), {}, '2 text blocks: give one'),
    ((text, CategoryBlock, RegressionBlock), dict(get_y=label), '2 blocks of labels: give one; several labels'),
    (text, dict(get_y=label), 'there is no block of labels: add one, such as CategoryBlock; for a language'),
    ((text, CategoryBlock), {}, 'get_y is missing: say where the label of an item is'),
    ((lm_text, CategoryBlock), dict(get_y=label), 'a language model has no labels: leave out their block'),
    (lm_text, dict(get_y=label), 'a language model has no labels: leave out get_y'),
    ((text, 'label'), dict(get_y=label), "'label' is no kind of label: use CategoryBlock"),
    ((text, CategoryBlock), dict(get_y='label'), r"get_y='label' is no function: .* by ColReader\('label'\)"),
    ((text, CategoryBlock), dict(get_y=label, splitter=[1, 2]), r'splitter=\[1, 2\] is no function')])
def test_answers_that_do_not_fit(blocks, options, message):
    with pytest.raises((ValueError, TypeError), match=message): DataBlock(blocks, **options)


def test_arguments_of_images_are_not_taken():
    for name in ('item_tfms', 'batch_tfms'):
        with pytest.raises(TypeError, match=name): DataBlock((text, CategoryBlock), get_y=label, **{name: None})


@pytest.mark.parametrize('splitter,message', [
    (IndexSplitter([]), 'the validation part is empty'),
    (IndexSplitter(range(40)), 'the training part is empty'),
    (IndexSplitter([40]), 'the splitter chose item 40, but the 40 items go from 0 to 39'),
    (IndexSplitter([-1]), 'the splitter chose item -1, but the 40 items'),
    (IndexSplitter([3, 3]), 'the splitter chose item 3 more than once'),
    (lambda items: (range(30), range(20, 40)), r'the splitter chose item 20, 21, 22, 23, 24, … \(10 in all\) more'),
    (lambda items: ([True] * 20 + [False] * 20, [False] * 20 + [True] * 20), 'more than once'),
    (lambda items: (range(30),), 'the splitter makes 1 part'),
    (ColSplitter('part'), "no column 'part': the columns are 'text', 'label'"),
    (ColSplitter('label'), "'label' of row 'id0' is 'neg': True means validation"),
    (ColSplitter('label', on='maybe'), 'the validation part is empty')])
def test_splits_that_cannot_be(splitter, message):
    block = DataBlock((text, CategoryBlock), get_y=label, splitter=splitter)
    with pytest.raises(ValueError, match=message): block.dataloaders(frame)


def test_the_same_is_seen_in_a_splitter_given_to_a_factory(reviews):
    with pytest.raises(ValueError, match='chose item 0 more than once'):
        TextDataLoaders.from_folder(reviews, splitter=lambda files: ([0, 1], [0]))


@pytest.mark.parametrize('options,message', [
    ({}, "no file is in a folder within 'valid': such folders are 'test', .*'train'. Name them by train_name="),
    (dict(train_name='learn', valid_name='test'), "no file is in a folder within 'learn'"),
    (dict(train_name=['train', 'more'], valid_name='test'), "no file is in a folder within 'more'")])
def test_folders_that_are_not_there(reviews, options, message):
    block = DataBlock((TextBlock(), CategoryBlock), get_items=get_text_files, get_y=parent_label,
                      splitter=GrandparentSplitter(**options))
    with pytest.raises(ValueError, match=message): block.dataloaders(reviews)


@pytest.mark.parametrize('block,source,error,message', [
    (classifier(TextBlock.from_df('body')), frame, ValueError, "no column 'body': the columns are 'text', 'label'"),
    (classifier(get_y=ColReader('y_')), frame, ValueError, "no column 'y_': the columns are 'text', 'label'"),
    (classifier(get_x=ColReader('body')), frame, ValueError, "no column 'body'"),
    (classifier(), texts, TypeError, 'from_df reads the rows of a frame, but the items are a list'),
    (classifier(TextBlock()), frame, TypeError, 'get_x is missing: which column is the text'),
    (classifier(TextBlock()), texts, TypeError, 'ColReader reads the rows of a frame, not str'),
    (DataBlock(lm_text), Path('imdb'), TypeError, "'imdb' is one item: give a list or a frame, or get_items=get_text"),
    (DataBlock(lm_text), 'one text', TypeError, "'one text' is one item"),
    (DataBlock(lm_text), [], ValueError, r'0 document\(s\) cannot be split'),
    (DataBlock(lm_text, splitter=IndexSplitter([1])), [b'x', 'y'], TypeError, 'the text of row 0 is bytes'),
    (DataBlock(lm_text, splitter=IndexSplitter([1])), [None, 'y'], ValueError, 'the text of row 0 is missing'),
    (DataBlock(lm_text, get_items=get_text_files), '/nowhere', FileNotFoundError, 'there is no folder /nowhere'),
    (classifier(), frame.assign(text=[None, *texts[1:]]), ValueError, "the text of row 'id0' is missing"),
    (classifier(), frame.assign(label=[None, *frame.label[1:]]), ValueError, "the label of row 'id0' is missing"),
    (classifier(labels=MultiCategoryBlock(True, ['x', 'y']), get_y=ColReader(['stars', 'x'])), frame, ValueError,
     r"the label of row 'id\d+' is \[\d, \d\]: 2 zeros and ones are expected"),
    (classifier(labels=RegressionBlock(2), get_y=ColReader('stars')), frame, ValueError, r'2 number\(s\) expected')])
def test_sources_that_cannot_be_used(block, source, error, message):
    with pytest.raises(error, match=message): block.dataloaders(source, seed=0)


@pytest.mark.parametrize('call,error,message', [
    (lambda: CategoryBlock(sort=False), ValueError, 'sort=False keeps the order of the categories in vocab'),
    (lambda: MultiCategoryBlock(encoded=True).names([[0, 1]], [0]), ValueError, 'encoded=True needs vocab='),
    (lambda: RegressionBlock(0), ValueError, 'n_out=0'),
    (lambda: TextBlock.from_folder('nowhere'), FileNotFoundError, 'there is no folder nowhere'),
    (lambda: TextDataLoaders.from_df(frame, y_block='stars'), TypeError, "'stars' is no kind of label"),
    (lambda: IndexSplitter([.5]), TypeError, 'integer'),
    (lambda: GrandparentSplitter()([{'text': 'a'}]), TypeError, 'splits the paths of files, not what is dict'),
    (lambda: ColSplitter()([1, 2]), TypeError, 'ColSplitter needs a DataFrame, not list')])
def test_blocks_that_cannot_be(call, error, message):
    with pytest.raises(error, match=message): call()


@pytest.mark.parametrize('vocab,message', [
    ([['a'], 'b'], r"\['a'\] is no category"), ([{'a'}, 'b'], "{'a'} is no category"),
    ([('a',), 'b'], 'is no category'), ([np.array(['a', 'b']), 'b'], 'is no category'),
    ([None, 'b'], 'None is no category'), ([float('nan'), 1.], 'nan is no category'), ('abc', 'no list of categories'),
    (7, '7 is no list of categories'), ([np.array(['a']), 'b'], 'is no category')], ids=repr)
@pytest.mark.parametrize('make', [
    CategoryBlock, lambda vocab: CategoryBlock(vocab, sort=False), lambda vocab: MultiCategoryBlock(vocab=vocab),
    lambda vocab: MultiCategoryBlock(True, vocab), Categorize, MultiCategorize], ids=range(6))
def test_categories_that_are_none(make, vocab, message):
    with pytest.raises(ValueError, match=message): make(vocab)


def test_categories_of_several_types():
    with pytest.raises(ValueError, match='labels of several types'): CategoryBlock(['a', 1])
