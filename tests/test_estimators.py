"""The estimators among scikit-learn's tools, and scikit-learn's own checks of estimators.

The checks need numbers, and texts are what the estimators take. So they are run on subclasses that write each row of
numbers as a text, a word for each rounded number. Exceptions:

- on texts themselves scikit-learn checks next to nothing, as it says in a warning (`two_d_array` is False);
- how good the classifier is on blobs of points (`poor_score`): a word for a rounded number is no way to see them;
- dtypes of the features are float32 whatever the input, since a text has none (`preserves_dtype` is empty);
- `check_array_api_input` is skipped by scikit-learn itself unless SCIPY_ARRAY_API is set.
"""
import pickle
import random
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from joblib import Parallel, delayed
from sklearn.base import clone, is_classifier
from sklearn.compose import make_column_transformer
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data

from awdtext.data.tokenizer import BaseTokenizer, SubwordTokenizer
from awdtext.estimators import AWDTextClassifier, AWDTextEncoder

tiny = dict(config=dict(emb_sz=4, n_hid=6, n_layers=1), tok_tfm=BaseTokenizer(), bs=16, min_freq=1, random_state=0,
            device='cpu')
texts = [f'{a} {b} {c}' for a in ('red', 'blue') for b in ('cat', 'dog', 'cow') for c in ('sat', 'ran', 'ate')] * 4
labels = [text.split()[0] for text in texts]


@pytest.fixture(autouse=True)
def one_thread(): torch.set_num_threads(1)


def as_texts(X): return [' '.join(f'f{j}is{round(float(v))}' for j, v in enumerate(row)) for row in X]


class OnNumbers:
    "Takes numbers, as scikit-learn's checks give them, and makes texts of them."
    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = False
        tags.input_tags.two_d_array = True
        if tags.classifier_tags: tags.classifier_tags.poor_score = True
        return tags

    def fit(self, X, y=None):
        if y is None: return super().fit(as_texts(validate_data(self, X)), None)
        X,y = validate_data(self, X, y)
        return super().fit(as_texts(X), y)

    def _read(self, X):
        check_is_fitted(self, 'learner_')
        return as_texts(validate_data(self, X, reset=False))


class ClassifierOnNumbers(OnNumbers, AWDTextClassifier):
    def predict_proba(self, X): return super().predict_proba(self._read(X))


class EncoderOnNumbers(OnNumbers, AWDTextEncoder):
    def transform(self, X): return super().transform(self._read(X))


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('cls, n_least', [(ClassifierOnNumbers, 50), (EncoderOnNumbers, 40)])
def test_scikit_learns_own_checks(cls, n_least):
    results = check_estimator(cls(**{**tiny, 'bs': 64}, n_epoch=1), on_fail=None, on_skip=None)
    assert not [(r['check_name'], r['exception']) for r in results if r['status'] == 'failed']
    left_out = {r['check_name'] for r in results if r['status'] != 'passed'}
    assert left_out <= {'check_array_api_input', 'check_transformer_preserve_dtypes'}
    assert len(results) >= n_least


@pytest.mark.parametrize('cls', [AWDTextClassifier, AWDTextEncoder])
def test_scikit_learn_knows_that_texts_go_in(cls):
    with pytest.warns(SkipTestWarning, match="Can't test estimator"): check_estimator(cls(**tiny), on_skip=None)
    est = cls(**tiny, lr=.05)
    tags = est.__sklearn_tags__().input_tags
    assert tags.string and tags.one_d_array and not tags.two_d_array
    assert is_classifier(est) == (cls is AWDTextClassifier)
    assert clone(est).lr == .05 and est.set_params(lr=.02).lr == .02
    assert 'lr=0.02' in repr(est)


def test_the_same_seed_gives_the_same_and_no_generator_notices():
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    first,second = (AWDTextClassifier(n_epoch=2, **tiny).fit(texts, labels).predict_proba(texts) for _ in range(2))
    assert (first == second).all()
    other = AWDTextClassifier(n_epoch=2, **{**tiny, 'random_state': 1}).fit(texts, labels).predict_proba(texts)
    assert not np.allclose(first, other)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


def test_predictions_are_in_order_and_do_not_depend_on_company():
    clf = AWDTextClassifier(n_epoch=2, **tiny).fit(texts, labels)
    mixed = ['red cat sat', 'blue', 'red ' * 50, '', 'dog ran']
    probs = clf.predict_proba(mixed)
    for i, text in enumerate(mixed): np.testing.assert_allclose(clf.predict_proba([text])[0], probs[i], atol=1e-5)
    assert probs.dtype == np.float64 and np.abs(probs.sum(1) - 1).max() < 1e-12


def test_kinds_of_labels_and_of_texts():
    red = np.array([label == 'red' for label in labels])
    for y in (labels, np.array(labels), pd.Series(labels, index=range(72, 0, -1)), red, np.where(red, 7, -3).tolist()):
        clf = AWDTextClassifier(n_epoch=1, **tiny).fit(pd.Series(texts), y)
        assert clf.classes_.tolist() == sorted(set(np.asarray(y).tolist()))
        assert set(clf.predict(np.array(texts))) <= set(np.asarray(y).tolist()) and clf.predict(texts).shape == (72,)


def test_pipelines_searches_and_frames():
    pipe = Pipeline([('features', AWDTextEncoder(n_epoch=1, **tiny)), ('model', LogisticRegression())])
    search = GridSearchCV(pipe, {'features__n_epoch': [1, 2], 'model__C': [.1, 1.]}, cv=2).fit(texts, labels)
    assert len(search.cv_results_['params']) == 4 and search.best_estimator_.predict(texts[:3]).shape == (3,)
    clf = AWDTextClassifier(n_epoch=1, **tiny)
    assert cross_val_score(clf, texts, labels, cv=3, scoring='neg_log_loss').shape == (3,)
    assert cross_val_predict(clf, texts, labels, cv=2, method='predict_proba').shape == (72, 2)
    frame = pd.DataFrame({'text': texts, 'n': range(72)})
    columns = make_column_transformer((AWDTextEncoder(n_epoch=1, **tiny), 'text'), ('passthrough', ['n']))
    assert make_pipeline(columns, LogisticRegression(max_iter=200)).fit(frame, labels).predict(frame).shape == (72,)
    wide = AWDTextEncoder(n_epoch=1, **tiny).set_output(transform='pandas').fit_transform(frame['text'])
    assert wide.shape == (72, 12) and wide.columns[-1] == 'awdtextencoder11'


def test_other_processes_get_the_model():
    clf = AWDTextClassifier(n_epoch=1, **tiny).fit(texts, labels)
    (theirs,) = Parallel(n_jobs=2)([delayed(clf.predict_proba)(texts[:5])])
    np.testing.assert_allclose(theirs, clf.predict_proba(texts[:5]), atol=1e-6)


@pytest.mark.parametrize('est', [AWDTextClassifier(n_epoch=1, **tiny), AWDTextEncoder(n_epoch=1, **tiny)], ids=str)
def test_pickles_hold_no_training_data(est):
    secret = [text + ' zyzzyva' for text in texts]
    method = 'predict_proba' if is_classifier(est) else 'transform'
    few,many = (len(pickle.dumps(clone(est).fit(texts * n, labels * n))) for n in (1, 5))
    assert abs(few - many) < 2000
    fitted = clone(est).fit(secret, labels)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(getattr(again, method)(secret), getattr(fitted, method)(secret))


def test_from_a_saved_encoder(tmp_path):
    lm = AWDTextEncoder(n_epoch=2, **tiny).fit(texts)
    file = lm.learner_.save_encoder(tmp_path / 'lm')
    for name in (file, str(file)):
        loaded = AWDTextEncoder(encoder=name, device='cpu').fit(['anything'])
        assert np.allclose(loaded.transform(texts), lm.transform(texts))
    clf = AWDTextClassifier(encoder=file, n_epoch=1, bs=16, device='cpu', random_state=0).fit(texts, labels)
    assert clf.learner_.dls.vocab == lm.learner_.dls.vocab
    with pytest.raises(FileNotFoundError): AWDTextClassifier(encoder=tmp_path / 'none').fit(texts, labels)


few = list(range(0, 72, 2)) + [i for i in range(72) if labels[i] == 'red' and i % 2]                     # 36 and 18
rare_texts,rare = [texts[i] for i in few], np.array([labels[i] for i in few])


@pytest.mark.parametrize('class_weight', [None, 'balanced', {'blue': 3., 'red': .5}, {'blue': 3.},
                                          {'blue': 3., 'grey': 9., 'red': 1.}], ids=str)
def test_class_weights_are_scikit_learns(class_weight):
    clf = AWDTextClassifier(n_epoch=1, class_weight=class_weight, **tiny).fit(rare_texts, rare)
    LogisticRegression(class_weight=class_weight).fit(np.zeros((len(rare), 1)), rare)    # takes the same values
    weights = compute_class_weight(class_weight, classes=np.array(['blue', 'red']), y=rare)
    found = clf.learner_.loss_func.settings.get('weight') or [1., 1.]
    assert found == pytest.approx(weights.tolist())
    assert pickle.loads(pickle.dumps(clf)).learner_.loss_func.settings == clf.learner_.loss_func.settings
    assert clone(clf).class_weight == class_weight


def test_class_weights_decide_what_the_texts_do_not_tell():
    "Texts that say nothing: the class with the larger sum of weights is likelier, its probability that sum's share."
    same = dict(n_epoch=30, lr=.05, **{**tiny, 'bs': len(rare)})
    shares = {None: 2 / 3, 'balanced': 1 / 2, 'heavy': 2 / (2 + 18)}
    for name, share in shares.items():
        weight = {'blue': 18.} if name == 'heavy' else name
        clf = AWDTextClassifier(class_weight=weight, **same).fit(['one text'] * len(rare), rare)
        assert clf.predict_proba(['one text'])[0, 1] == pytest.approx(share, abs=.12), name


def test_searches_over_class_weights():
    search = GridSearchCV(AWDTextClassifier(n_epoch=1, **tiny), {'class_weight': [None, 'balanced']}, cv=2)
    assert len(search.fit(rare_texts, rare).cv_results_['params']) == 2


@pytest.mark.parametrize(('class_weight', 'message'), [
    ('equal', "class_weight='equal'"), ([1., 2.], r'class_weight=\[1.0, 2.0\]: use'), ({'blue': 0.}, 'above 0'),
    ({'blue': -1., 'red': 1.}, 'above 0'), ({'bleu': 2.}, 'not in class_weight')])
def test_class_weights_that_cannot_be(class_weight, message):
    clf = AWDTextClassifier(class_weight=class_weight, **tiny)
    with pytest.raises(ValueError, match=message): clf.fit(rare_texts, rare)
    assert not hasattr(clf, 'learner_')


@pytest.mark.parametrize('cls', [AWDTextClassifier, AWDTextEncoder])
def test_what_a_tokenizer_learns_is_of_one_fit(cls):
    "Else the next one has the first one's pieces, and each fold of `cross_val_score` those of its validation texts."
    own = {**tiny, 'tok_tfm': SubwordTokenizer(300)}
    est,others = cls(n_epoch=1, **own), [f'gr{o}n {i} l{o}ke' for o in 'aeiou' for i in range(8)]
    first = est.fit(texts[:40], labels[:40]).learner_.dls.tokenizer
    second = est.fit(others, labels[:40]).learner_.dls.tokenizer
    fresh = cls(n_epoch=1, **own).fit(others, labels[:40]).learner_.dls.tokenizer
    assert second.pieces == fresh.pieces != first.pieces
    assert est.tok_tfm is own['tok_tfm'] and est.tok_tfm.pieces is None
    assert clone(est).tok_tfm.pieces is None
    assert clone(est).fit(texts[:40], labels[:40]).learner_.dls.tokenizer.pieces == first.pieces


def test_pieces_that_were_given_stay():
    learned = SubwordTokenizer(300).setup(texts)
    est = AWDTextClassifier(n_epoch=1, **{**tiny, 'tok_tfm': learned}).fit(['one', 'two', 'six'] * 4, labels[:12])
    assert est.learner_.dls.tokenizer.pieces == learned.pieces == est.tok_tfm.pieces


def test_quiet_unless_asked(capsys):
    AWDTextClassifier(n_epoch=1, **tiny).fit(texts, labels).predict(texts)
    assert capsys.readouterr().out == ''
    AWDTextClassifier(n_epoch=1, verbose=True, **tiny).fit(texts, labels)
    assert 'train_loss' in capsys.readouterr().out


@pytest.mark.parametrize('X, y, problem', [
    ('red cat', ['a'], 'X is one text'), (np.zeros((3, 2)), [0, 1, 0], 'one text for each'), ([], [], '0 sample'),
    (['a', None], [0, 1], 'sample 1 of X is None'), (['a', 3.], [0, 1], 'sample 1 of X is 3.0'),
    (['a'], ['x'], 'n_samples=1'), (['a', 'b'], ['x', 'x'], "all labels are of one class, 'x'"),
    (['a', 'b'], None, 'requires y'), (['a', 'b'], [0], 'inconsistent'),
    (['a', 'b', 'c'], [.1, .2, .35], 'Unknown label type'), (['a', 'b'], [1., np.nan], 'NaN')], ids=str)
def test_impossible_data(X, y, problem):
    clf = AWDTextClassifier(**tiny)
    with pytest.raises(ValueError, match=problem): clf.fit(X, y)
    assert not hasattr(clf, 'learner_')
    with pytest.raises(NotFittedError): clf.predict(['a'])


def test_without_scikit_learn_the_error_says_what_to_install():
    code = "import sys; sys.modules['sklearn'] = None\nimport awdtext.all\nimport awdtext.estimators"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert "pip install 'awdtext[sklearn]'" in done.stderr.splitlines()[-1] and 'ImportError' in done.stderr


def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        AWDTextClassifier(n_epoch=1, **tiny).fit(texts, labels).predict(texts)


@pytest.mark.parametrize('missing', [None, float('nan'), pd.NA])
def test_a_missing_label_is_told(missing):
    with pytest.raises(ValueError, match='the label of sample 1 of y is missing'):
        AWDTextClassifier(**tiny).fit(texts[:4], pd.Series(['a', missing, 'b', 'a'], dtype=object))
