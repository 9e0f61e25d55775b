"What a practitioner's data hold: one class, a label with one example, rows without labels, endless texts, empty ones."
import math

import pandas as pd
import pytest
from torch.testing import assert_close
from training_helpers import tiny_size

from awdtext.data.data_block import CategoryBlock, RegressionBlock
from awdtext.data.dataloaders import TextDataLoaders
from awdtext.interpret import attribute, most_surprising, surprisal
from awdtext.report import training_report
from awdtext.text_learner import language_model_learner, text_classifier_learner
from awdtext.training.progress import ProgressCallback
from awdtext.ulmfit import Docs, read_labelled, split_data

films = ['a good film', 'a bad film with a bad end', 'good , very good', 'the worst of all'] * 5
labels = ['pos', 'neg', 'pos', 'neg'] * 5


def data(films=films, labels=labels, **how):
    return TextDataLoaders.from_texts(films, labels, bs=4, min_freq=1, seed=0, **how)


def clas(dls): return text_classifier_learner(dls, config=tiny_size).remove_cb(ProgressCallback)
def lm(): return language_model_learner(data(labels=None), config=tiny_size).remove_cb(ProgressCallback)


def test_one_class_only():
    with pytest.raises(ValueError, match="all labels are 'pos': a classifier needs two categories"):
        data(labels=['pos'] * 20)


def test_a_label_with_one_example():
    "In the training part it is kept and told of in the report; in the validation part alone it is refused by its row."
    valid = dict(valid=films[:2], valid_labels=labels[:2])
    learn = clas(data(labels=[*labels[:-1], 'odd'], **valid))
    assert learn.dls.categories == ['neg', 'odd', 'pos']
    assert "! 'odd': a single training document or none" in training_report(learn)
    learn.fit(1, 1e-2)
    assert math.isfinite(learn.record[-1]['valid_loss'])
    with pytest.raises(ValueError, match="'odd' of row 1 is not among the categories of the training part"):
        data(valid=films[:2], valid_labels=['pos', 'odd'])


@pytest.mark.parametrize('missing', [None, float('nan'), pd.NA])
def test_rows_without_labels_among_labelled_ones(missing):
    with pytest.raises(ValueError, match='the label of row 7 is missing .*: drop that row or label it'):
        data(labels=[*labels[:7], missing, *labels[8:]])
    df = pd.DataFrame({'text': films, 'label': [*labels[:7], missing, *labels[8:]]}, index=range(100, 120))
    with pytest.raises(ValueError, match='the label of row 107 is missing'): TextDataLoaders.from_df(df, seed=0)


@pytest.mark.parametrize('blank', ['', ' \n'])
def test_an_empty_label_is_no_category(blank):
    "Tables have empty texts where there is no label: a category '' was learned from them."
    with pytest.raises(ValueError, match='the label of row 7 is an empty text'):
        data(labels=[*labels[:7], blank, *labels[8:]])
    with pytest.raises(ValueError, match='the label of row 7 is an empty text.* has an empty list'):
        data(labels=[['pos']] * 7 + [blank.split(';')] + [['neg']] * 12)
    named = data(labels=[*labels[:7], blank, *labels[8:]], y_block=CategoryBlock([blank, 'neg', 'pos']))
    assert named.categories == [blank, 'neg', 'pos']
    own = [f'{film} {i}' for i, film in enumerate(films)]
    split = split_data([], read_labelled((own, [*labels[:7], blank, *labels[8:]])))
    assert set(split.train.labels) == {'neg', 'pos'} and split.notes[0].startswith('1 labelled rows without a label')


def test_numbers_that_are_no_categories():
    stars = [i * 1.37 for i in range(20)]
    with pytest.raises(ValueError, match='y_block=RegressionBlock'): data(labels=stars)
    with pytest.raises(ValueError, match='two documents .* y_block=RegressionBlock'):
        split_data([], Docs([str(i) for i in range(20)], stars))
    with pytest.raises(ValueError, match='the label of row 3 is inf: 1 number'):
        data(labels=[*stars[:3], math.inf, *stars[4:]], y_block=RegressionBlock)


def test_a_text_of_more_than_a_hundred_thousand_tokens():
    "It is read in windows; its last `max_len` tokens are pooled, trained on and explained, all before is context."
    long = 'a good film ' * 33_400
    dls = data([*films, long], [*labels, 'pos'], valid=[long, 'a bad film'], valid_labels=['pos', 'neg'])
    learn = clas(dls)
    assert int(dls.train.corpus.lengths.max()) > 100_000
    learn.fit(1, 1e-2)
    assert math.isfinite(learn.record[-1]['train_loss']) and math.isfinite(learn.record[-1]['valid_loss'])
    out = learn.model(*(o[:1] for o in next(iter(dls.valid))[0]))
    assert out.mask.sum() == 1440
    found = attribute(learn, long[:12 * 600], 'pos', n_steps=2)
    assert sum(not math.isnan(score) for score in found.scores) == 1440


def test_a_language_model_reads_a_text_of_more_than_a_hundred_thousand_tokens():
    assert most_surprising(lm(), ['a good film ' * 33_400], k=1)[0]['tokens'] > 100_000


def test_documents_too_short_to_be_looked_at_are_told():
    "An empty table without a word looked as if there were no documents."
    assert 'none of 2 has as many as min_tokens=10 tokens' in str(most_surprising(lm(), ['', 'a film']))


@pytest.mark.parametrize('text', [None, 3.5])
def test_what_is_no_text_to_look_at(text):
    for look in (lambda: attribute(clas(data()), text), lambda: surprisal(lm(), text)):
        with pytest.raises(TypeError, match=f'give a text, or a list of tokens, not {text}'): look()


def test_an_empty_text():
    "It is the mark of a beginning, and nothing after it: classified as such; a language model has nothing to score."
    learn = clas(data([*films, ''], [*labels, 'neg']))
    learn.fit(1, 1e-2)
    assert learn.predict('')[2].sum() == pytest.approx(1) and math.isfinite(learn.record[-1]['train_loss'])
    assert_close(learn.predict('')[2], learn.get_preds(dl=learn.dls.test_dl(['', 'good']))[0][0], atol=1e-6, rtol=0)
    report = training_report(learn)
    assert '1 training document(s) have no word' in report or '1 validation document(s) have no word' in report
    assert attribute(learn, '').tokens == ['xxbos']
    with pytest.raises(ValueError, match='nothing that could surprise'): surprisal(lm(), '')
    assert most_surprising(lm(), ['', 'a film'], min_tokens=0)[-1]['text'] == 'xxbos a film'
    tokens = [film.split() for film in films]
    with pytest.raises(ValueError, match=r'document\(s\) 3 have no tokens'):
        TextDataLoaders.from_tokens([*tokens[:3], []], tokens[:2], labels=labels[:4], valid_labels=labels[:2],
                                    is_lm=False)
