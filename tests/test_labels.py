"Rare classes, several labels, several columns: every figure beside torch's, scikit-learn's or a slow loop's."
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics as skm
from sklearn.utils.class_weight import compute_class_weight

from awdtext.data.batches import RegressionSetup
from awdtext.data.data_block import CategoryBlock, ColReader, DataBlock, MultiCategoryBlock, RegressionBlock, TextBlock
from awdtext.data.dataloaders import ColSplitter, TextDataLoaders
from awdtext.data.imbalance import tune_thresholds
from awdtext.data.tokenizer import BaseTokenizer
from awdtext.ensemble import Ensemble
from awdtext.estimators import AWDTextClassifier, AWDTextEncoder
from awdtext.interpret import ClassificationInterpretation, attribute
from awdtext.text_learner import language_model_learner, load_learner, text_classifier_learner
from awdtext.training.sklearn_metrics import SklearnMetric
from awdtext.training.callback import Callback
from awdtext.training.learner import Learner
from awdtext.training.losses import cross_entropy_loss
from awdtext.training.metrics import F1ScoreMulti, Perplexity, RocAucMulti, accuracy, accuracy_multi
from awdtext.training.progress import ProgressCallback
from awdtext.ulmfit import ULMFiTSettings, ulmfit

size = dict(emb_sz=8, n_hid=12, n_layers=2)
animals,places = 'cat dog cow hen owl fox'.split(), 'mat log hill roof wall sea'.split()
texts = [f'The {a} sat on the {p} .' for a in animals for p in places]
labels = ['pet' if a in animals[:1] else 'wild' if a in animals[:4] else 'farm' for a in animals for p in places]
tags = [['cat'] * (a == 'cat') + ['sea'] * (p == 'sea') + ['high'] * (p in ('hill', 'roof', 'wall')) for a in animals
        for p in places]
plain = dict(bs=4, min_freq=1, seed=0, tok_tfm=BaseTokenizer())


@pytest.fixture(autouse=True)
def one_thread(): torch.set_num_threads(1)    # on models this small, two threads only wait for each other


def data(labels=labels, **options):
    split = dict(valid=texts[::5] + texts[:6], valid_labels=labels[::5] + labels[:6])
    return TextDataLoaders.from_texts(texts, labels, **plain | split | options)


def clas(dls=None, **options):
    torch.manual_seed(0)
    return text_classifier_learner(dls or data(), **{'config': size} | options).remove_cb(ProgressCallback)


def tagger(**options): return clas(data(tags), **options)


def trained(learn):
    learn.fit(2, 2e-2)
    return learn


# Lists where one label is asked for

def test_lists_of_labels_for_a_classifier_of_one_label(tmp_path):
    "Wherever they come from."
    lists,block = [[label] for label in labels], CategoryBlock
    message = "is .*'pet'.*, where one category is expected.*give y_block=MultiCategoryBlock"
    frame = pd.DataFrame({'text': texts, 'label': lists, 'a': labels, 'b': labels})
    blocks = TextBlock.from_df('text', tok=BaseTokenizer()), CategoryBlock
    for make in (lambda: data(lists, y_block=block), lambda: data(y_block=block, valid_labels=lists[::5] + lists[:6]),
                 lambda: TextDataLoaders.from_df(frame, label_col='label', y_block=block, **plain),
                 lambda: TextDataLoaders.from_df(frame, label_col=['a', 'b'], y_block=block, **plain),
                 lambda: TextDataLoaders.from_df(frame, label_col='a', label_delim=';', y_block=block, **plain),
                 lambda: DataBlock(blocks, get_y=ColReader('label')).dataloaders(frame),
                 lambda: data().test_dl(texts, lists),
                 lambda: ulmfit(None, (texts, lists), tmp_path / 'out', y_block=block),
                 lambda: ulmfit(None, (texts, labels), tmp_path / 'out', valid=(['Else .'], lists[:1])),
                 lambda: ulmfit(None, (texts, labels), tmp_path / 'out', test=(['Else .'], lists[:1]))):
        with pytest.raises(ValueError, match=message): make()
    assert not (tmp_path / 'out').exists()
    with pytest.raises(ValueError, match='y should be a 1d array|setting an array element'):
        AWDTextClassifier().fit(texts, [['pet', 'wild']] * 36)


# Class weights

@pytest.mark.parametrize('val_bs', [1, 3, 7, 64])
@pytest.mark.parametrize('smoothing', [0., .2])
def test_the_weighted_loss_is_that_of_all_documents_at_once(val_bs, smoothing):
    weights = {'pet': 5., 'wild': .3, 'farm': 1.}
    learn = clas(data(val_bs=val_bs), class_weights=weights, label_smoothing=smoothing, metrics=[accuracy, Perplexity])
    learn.fit(1, 1e-2)
    probs,y = learn.get_preds()
    weight = torch.tensor([1., 5., .3])                             # in the order of the categories, which are sorted
    expected = F.cross_entropy(probs.log(), y, weight, label_smoothing=smoothing).item()
    found = learn.validate()
    assert [found[0], learn.record[-1]['valid_loss'], np.log(found[2])] == pytest.approx([expected] * 3, rel=1e-5)
    assert found[1] == pytest.approx((probs.argmax(1) == y).double().mean().item())
    losses = learn.get_preds(with_loss=True)[2]
    assert losses.sum().item() / weight[y].sum().item() == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(F.cross_entropy(probs.log(), y).item(), rel=1e-3), "the weights must matter here"


def test_the_training_loss_is_a_weighted_mean_too():
    learn = clas(class_weights=[1, 5, .3], drop_mult=0., ps=[0.], alpha=0., beta=0.)
    learn.dls.train.shuffle = False
    for m in learn.model.modules():
        if isinstance(m, torch.nn.BatchNorm1d): m.momentum = 0.
    learn.unfreeze().fit(1, 0.)
    weights = [torch.tensor([1., 5., .3])[y].sum().item() for _, y in learn.dls.train]
    expected = sum(loss * w for loss, w in zip(learn.recorder.losses, weights, strict=True)) / sum(weights)
    assert learn.record[-1]['train_loss'] == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(np.mean(learn.recorder.losses), rel=1e-3)


def test_one_step_follows_torchs_gradient():
    weight = torch.tensor([1., 5., .3])
    one,two = clas(class_weights=weight, label_smoothing=.1, drop_mult=0.), clas(drop_mult=0.)
    x,y = one.dls.valid.__iter__().__next__()
    for learn in (one, two): learn.model.eval()
    one.loss_func(one.model(*x).logits, y).backward()
    F.cross_entropy(two.model(*x).logits, y, weight, label_smoothing=.1).backward()
    for p, q in zip(one.model.parameters(), two.model.parameters()):
        if q.grad is not None: torch.testing.assert_close(p.grad, q.grad)


def test_balanced_are_scikit_learns():
    learn = clas(class_weights='balanced')
    expected = compute_class_weight('balanced', classes=np.array(['farm', 'pet', 'wild']), y=labels)
    assert learn.loss_func.settings['weight'] == pytest.approx(expected.tolist())
    n = torch.tensor([sum(tag in some for some in tags) for tag in ('cat', 'high', 'sea')])
    assert tagger(class_weights='balanced').loss_func.settings['pos_weight'] == pytest.approx(((36 - n) / n).tolist())


@pytest.mark.parametrize('val_bs', [1, 5, 64])
def test_weights_of_several_labels(val_bs):
    learn = clas(data(tags, val_bs=val_bs), class_weights={'cat': 5., 'high': 1., 'sea': .3})
    probs,y = learn.get_preds()
    expected = F.binary_cross_entropy_with_logits(probs.double().logit(), y.double(),
                                                  pos_weight=torch.tensor([5., 1., .3]))
    assert learn.validate()[0] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize('make', [clas, tagger])
def test_weights_and_smoothing_travel(make, tmp_path):
    learn = make(class_weights='balanced')
    there = load_learner(learn.export(tmp_path / 'it'))
    assert there.loss_func.settings == learn.loss_func.settings
    assert there.validate(dl=learn.dls.valid) == pytest.approx(learn.validate(), rel=1e-5)
    own = clas(loss_func=cross_entropy_loss(label_smoothing=.3))
    assert load_learner(own.export(tmp_path / 'own')).loss_func.settings['label_smoothing'] == .3


def test_a_run_goes_on_with_its_weights_and_no_others(tmp_path):
    class Stop(Callback):
        decides = False
        def after_step(self, learn):
            if learn.epoch == 1 and learn.iter == 2: raise KeyboardInterrupt
    whole = clas(class_weights=[1, 5, .3])
    torch.manual_seed(1)
    whole.fit(2, 1e-2, checkpoint=tmp_path / 'whole')
    stopped = clas(class_weights=[1, 5, .3], cbs=Stop())
    torch.manual_seed(1)
    stopped.fit(2, 1e-2, checkpoint=tmp_path / 'run', every='1steps')
    with pytest.raises(ValueError, match=r'loss\.'):
        clas(class_weights=[1, 5, .4]).fit(2, 1e-2, checkpoint=tmp_path / 'run')
    with pytest.raises(ValueError, match=r'loss\.'): clas().fit(2, 1e-2, checkpoint=tmp_path / 'run')
    again = clas(class_weights=[1, 5, .3])
    again.fit(2, 1e-2, checkpoint=tmp_path / 'run')
    assert again.record[-1]['train_loss'] == pytest.approx(whole.record[-1]['train_loss'], rel=1e-6)
    assert again.validate() == pytest.approx(whole.validate(), rel=1e-6)


def test_the_loss_of_an_ensemble_is_weighted():
    weight = torch.tensor([1., 5., .3])
    parts = [clas(class_weights=weight), trained(clas(class_weights=weight))]
    probs,y = Ensemble(parts).get_preds()
    assert Ensemble(parts).validate()[0] == pytest.approx(F.cross_entropy(probs.log(), y, weight).item(), rel=1e-5)


def test_a_plain_learner_weighs_too():
    g = torch.Generator().manual_seed(0)
    x,y = torch.randn(31, 2, generator=g), torch.randint(2, (31,), generator=g)
    class Data: train,valid,test,device,path = None, list(zip(x.split(4), y.split(4))), None, 'cpu', '.'
    learn = Learner(Data, torch.nn.Linear(2, 2), cross_entropy_loss([1., 9.]))
    expected = F.cross_entropy(learn.model(x), y, torch.tensor([1., 9.])).item()
    assert learn.validate()[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('make,options,message', [
    (clas, dict(class_weights={'pet': 1., 'wild': 1.}), "lack 'farm'"),
    (clas, dict(class_weights={'pet': 1, 'wild': 1, 'farm': 1, 'owl': 2}), "name 'owl', and the categories are 'farm'"),
    (clas, dict(class_weights=[1., 2.]), r'have shape \(2,\): give one for each of the 3'),
    (clas, dict(class_weights=[1., 2., -1.]), 'each must be above 0'),
    (clas, dict(class_weights='equal'), "class_weights='equal': use 'balanced'"),
    (clas, dict(class_weights='balanced', loss_func=cross_entropy_loss()), 'loss_func is another'),
    (clas, dict(label_smoothing=1.), 'label_smoothing=1.0: use 0 or more'),
    (tagger, dict(label_smoothing=.1), 'label_smoothing=0.1 is for documents with one label'),
    (lambda **o: clas(data([float(len(t)) for t in texts], y_block=RegressionSetup), **o),
     dict(class_weights='balanced'), 'have numbers as labels'),
    (lambda **o: clas(data(y_block=CategoryBlock(['pet', 'wild', 'farm', 'fish'])), **o),
     dict(class_weights='balanced'), "none or all are of 'fish'")])
def test_weights_that_are_none(make, options, message):
    with pytest.raises(ValueError, match=message): make(**options)


# Thresholds

def slow_best(probs, y, metric):
    "The highest figure over the middles of all neighbours, and both ends."
    values = sorted({0., 1., *probs.tolist()})
    cuts = [(a + b) / 2 for a, b in zip(values, values[1:])] + [-1., 2.]
    return max(metric(y.numpy(), (probs.double() > cut).numpy()) for cut in cuts)


@pytest.mark.parametrize('metric', ['f1', skm.accuracy_score, skm.jaccard_score])
def test_thresholds_are_the_best_there_are(metric):
    learn = trained(tagger())
    probs,y = learn.get_preds()
    func = skm.f1_score if metric == 'f1' else metric
    tuned = learn.tune_thresholds(metric)
    for i in range(3):
        assert tuned.after[i] == pytest.approx(slow_best(probs[:, i], y[:, i], func))
        assert tuned.after[i] == pytest.approx(func(y[:, i], probs[:, i] > learn.thresholds[i]))
        assert tuned.before[i] == pytest.approx(func(y[:, i], probs[:, i] > .5))


def test_all_that_predicts_goes_by_them(tmp_path, capsys):
    learn = trained(tagger(metrics=[accuracy_multi, F1ScoreMulti, RocAucMulti, SklearnMetric(
        lambda y, p: skm.f1_score(y, p, average='macro', zero_division=0), 'labels', name='theirs')]))
    def names(row): return [c for c, has in zip(learn.dls.categories, row) if has]
    before = learn.validate()
    learn.tune_thresholds()
    learn.thresholds = torch.tensor([.2, .6, .35])
    probs,y = learn.get_preds()
    said = probs > learn.thresholds
    assert not torch.equal(said, probs > .5), "the thresholds must matter here"
    after = learn.validate()
    f1 = skm.f1_score(y, said, average='macro', zero_division=0)
    assert after[1:] == pytest.approx([(said == y.bool()).double().mean().item(), f1, before[3], f1])
    report = ClassificationInterpretation.from_learner(learn).classification_report()
    assert [row.f1 for row in learn.class_report().classes] == pytest.approx([row['f1'] for row in list(report)[:3]])
    assert learn.class_report().macro.f1 == pytest.approx(f1)
    for i, item in enumerate((texts[::5] + texts[:6])[:6]):
        label,mask,_ = learn.predict(item)
        assert (mask.tolist(), label) == (said[i].tolist(), names(said[i]))
    learn.show_results(max_n=3)
    lines = capsys.readouterr().out.splitlines()
    shown = [line.removeprefix('predicted: ').strip() for line in lines if 'predicted' in line]
    assert shown == ['; '.join(names(said[i])) for i in learn.dls.valid.order[:3].tolist()]
    there = load_learner(learn.export(tmp_path / 'it'))
    assert torch.equal(there.thresholds, learn.thresholds) and there.predict(texts[0])[0] == learn.predict(texts[0])[0]
    learn.save(tmp_path / 'saved')
    other = tagger().load(tmp_path / 'saved')
    assert torch.equal(other.thresholds, learn.thresholds)
    learn.thresholds = None
    assert learn.validate() == pytest.approx(before)
    assert other.load(learn.save(tmp_path / 'saved')).thresholds is None


def test_a_threshold_that_was_given_stays():
    learn = trained(tagger(metrics=[F1ScoreMulti(thresh=.3)]))
    before = learn.validate()
    learn.thresholds = torch.tensor([.9, .9, .9])
    assert learn.validate() == before


def test_calibration_moves_them_along():
    learn = trained(tagger())
    learn.tune_thresholds()
    said = learn.get_preds()[0] > learn.thresholds
    temperature = learn.calibrate()
    assert abs(temperature - 1) > .01
    assert torch.equal(learn.get_preds()[0] > learn.thresholds, said)


def test_a_label_that_no_document_has_keeps_a_half():
    learn = clas(data(tags, valid=texts[6:9], valid_labels=tags[6:9]))
    with pytest.warns(UserWarning, match="No document here is of 'cat', 'sea': the threshold stays at 0.5"):
        tuned = learn.tune_thresholds()
    assert tuned.thresholds[0] == tuned.thresholds[2] == .5 and "before .5" in repr(tuned)


def test_thresholds_of_an_ensemble(tmp_path):
    both = Ensemble([tagger(), trained(tagger())])
    both.parts[0].thresholds = torch.zeros(3)                        # its own, when it is asked alone
    assert both.predict(texts[0])[1].tolist() == (both.predict(texts[0])[2] > .5).tolist()
    tuned = both.tune_thresholds()
    assert [row.f1 for row in both.class_report().classes] == pytest.approx(tuned.after)
    probs,y = both.get_preds()
    assert both.validate()[1] == pytest.approx(((probs > both.thresholds) == y.bool()).double().mean().item())
    there = load_learner(both.export(tmp_path / 'both'))
    assert torch.equal(there.thresholds, both.thresholds) and there.predict(texts[0])[0] == both.predict(texts[0])[0]


def test_where_there_are_no_thresholds():
    with pytest.raises(ValueError, match='with several labels or none'): clas().tune_thresholds()
    with pytest.raises(ValueError, match="metric='f2': use 'f1'"): tagger().tune_thresholds('f2')
    with pytest.raises(ValueError, match='both \\(n, n_classes\\)'):
        learn = tagger()
        learn.tune_thresholds(dl=learn.dls.test_dl(texts[:3]))


def some(p, y, **options): return tune_thresholds(torch.tensor(p)[:, None], torch.tensor(y)[:, None], **options)


@pytest.mark.parametrize('p, y, options, message', [
    ([.2, float('nan'), .9], [0., 1., 1.], {}, 'from nan to nan are no probabilities'),
    ([-2., .4, 3.], [0., 1., 1.], {}, 'from -2 to 3 are no probabilities'),
    ([.2, .4, .9], [0., float('nan'), 1.], {}, 'neither 0 nor 1'),
    ([.2, .4, .9], [0., .7, 1.], {}, 'neither 0 nor 1'),
    ([.2, .4, .9], [0., 1., 1.], {'categories': ['a', 'b']}, '2 categories for 1 labels'),
    ([.2, .4, .9], [0., 1., 1.], {'categories': []}, '0 categories for 1 labels')])
def test_nothing_is_tuned_on_what_is_no_probability_or_target(p, y, options, message):
    with pytest.raises(ValueError, match=message): some(p, y, **options)


def test_a_metric_that_is_undefined_somewhere():
    def precision(y, p): return skm.precision_score(y, p, zero_division=np.nan)
    assert some([.2, .6, .9], [0., 0., 1.], metric=precision).after == [1.]
    assert some([.2, .3, .4], [0., 0., 1.], metric=precision).after == [1.]      # nothing is predicted at .5


def test_of_equal_thresholds_the_nearest_to_a_half_is_taken():
    assert some([.1, .3, .7, .75, .9], [0., 1., 1., 1., 1.]).thresholds.tolist() == pytest.approx([.2])
    figures = {0: 0., 1: 2., 2: 1., 3: 2., 4: 0.}                   # by how many are predicted
    tuned = some([.2, .4, .58, .9], [0., 1., 1., 1.], metric=lambda y, p: figures[int(p.sum())])
    assert tuned.thresholds.tolist() == pytest.approx([.3]) and tuned.before == [1.] and tuned.after == [2.]
    assert some([.1, .45, .9], [0., 0., 1.]).thresholds.tolist() == [.5], "as good as any"


def test_neighbours_among_the_floats_are_told_apart():
    low = torch.tensor([.3, .3000001])
    low[1] = torch.nextafter(low[0], torch.tensor(1.))              # the middle of one of the pairs is its upper one
    high = torch.nextafter(low, torch.ones(2))
    for a, b in zip(low.tolist(), high.tolist()):
        tuned = some([a, b], [0., 1.])
        assert tuned.after == [1.] and (torch.tensor([a, b]) > tuned.thresholds).tolist() == [False, True]


@pytest.mark.filterwarnings('ignore:Precision is ill-defined')
@pytest.mark.parametrize('metric', [skm.precision_score, skm.recall_score])
def test_a_metric_gets_targets_and_predictions_in_this_order(metric):
    assert some([.2, .6, .7, .9], [0., 0., 1., 0.], metric=metric).before == pytest.approx(
        [metric([0, 0, 1, 0], [0, 1, 1, 1])])
    assert some([.2, .45, .7, .9], [0., 0., 1., 0.], metric=metric).before == pytest.approx(
        [metric([0, 0, 1, 0], [0, 0, 1, 1])])


def test_figures_of_a_label_that_no_document_has():
    with pytest.warns(UserWarning, match='No document here is of 0'):
        tuned = some([.2, .6, .9], [0., 0., 0.], metric=skm.accuracy_score)
    assert (tuned.before, tuned.after) == (pytest.approx([1 / 3]),) * 2
    with pytest.warns(UserWarning, match='No document here is of 0'): tuned = some([.2, .4], [0., 0.])
    assert (tuned.before, tuned.after, tuned.n) == ([0.], [0.], [0])


def test_the_table_of_thresholds():
    p,y = torch.tensor([[.2, .6], [.3, .2], [.9, .4]]), torch.tensor([[0., 1.], [1., 0.], [1., 0.]])
    assert repr(tune_thresholds(p, y, ['one', 'other'])).splitlines() == [
        '       threshold  before .5   after        n', 'one        0.250      0.667   1.000        2',
        'other      0.500      1.000   1.000        1', '', 'mean                  0.833   1.000        3']


def test_thresholds_are_as_exact_as_the_probabilities():
    p,y = torch.tensor([[.3], [.3 + 1e-12], [.9]], dtype=torch.float64), torch.tensor([[0.], [1.], [1.]])
    tuned = tune_thresholds(p, y)
    assert tuned.after == [1.] and torch.equal(p > tuned.thresholds, y.bool())


# Several text columns

frame = pd.DataFrame({'n': range(36), 'body': texts, 'y': labels,
                      'title': [f'On the {a}' for a in animals for p in places],
                      'is_valid': [i % 4 == 0 for i in range(36)]})
fields = ['title', 'body']
marked = [f'xxfld 1 {title} xxfld 2 {body}' for title, body in zip(frame.title, frame.body)]


def from_df(tmp_path, **options):
    return TextDataLoaders.from_df(frame, text_col=fields, label_col='y', valid_col='is_valid', **plain | options)


def from_csv(tmp_path):
    frame.to_csv(tmp_path / 'labels.csv', index=False)
    return TextDataLoaders.from_csv(tmp_path, text_col=[3, 'body'], label_col='y', valid_col='is_valid', **plain)


def from_block(tmp_path):
    text = TextBlock.from_df(fields, min_freq=1, tok=BaseTokenizer())
    block = DataBlock((text, CategoryBlock), get_x=ColReader('text'), get_y=ColReader('y'), splitter=ColSplitter())
    return block.dataloaders(frame, bs=4, seed=0)


@pytest.mark.parametrize('make', [from_df, from_csv, from_block])
def test_what_is_read_later_is_marked_as_in_training(make, tmp_path):
    dls = make(tmp_path)
    assert dls.fields == fields and dls.vocab.decode(dls.valid.corpus[0])[:3] == ['xxbos', 'xxfld', '1']
    learn = clas(dls)
    there = load_learner(learn.export(tmp_path / 'it'))
    expected = learn.get_preds()[0]                                     # of the rows 0, 4, 8, …
    for one in (learn, there):
        for i in (0, 2):
            row = frame.iloc[4 * i]
            for item in (row, dict(row), (row.title, row.body), marked[4 * i], next(frame[4 * i:].itertuples())):
                torch.testing.assert_close(one.predict(item)[2], expected[i])
        for items in (frame[::4], frame[::4][['body', 'title']], frame[::4].to_dict('records'), marked[::4],
                      list(zip(frame.title, frame.body))[::4]):
            torch.testing.assert_close(one.get_preds(dl=one.dls.test_dl(items))[0], expected)
        np.testing.assert_allclose(one.encode(frame[::4]), one.encode(marked[::4]))
        some = (row for row in frame.to_dict('records')[:3])
        np.testing.assert_allclose(list(one.iter_encode(some)), one.encode(marked[:3]))
        with pytest.raises(ValueError, match="have the text column\\(s\\) 'title', 'body'"): one.predict(texts[0])
        with pytest.raises(ValueError, match="have the text column"): one.predict({'title': 'On the cat'})
        with pytest.raises(ValueError, match='is missing'): one.predict({'title': 'On the cat', 'body': None})
        with pytest.raises(ValueError, match="lacks the text column\\(s\\) 'body'"): one.dls.test_dl(frame[['title']])
        with pytest.raises(TypeError, match='not one document'): one.dls.test_dl(dict(frame.iloc[0]))
    assert attribute(learn, (frame.title[0], frame.body[0]), n_steps=4).tokens[:3] == ['xxbos', 'xxfld', '1']
    torch.testing.assert_close(Ensemble([learn, there]).predict(dict(frame.iloc[0]))[2], expected[0])
    torch.testing.assert_close(Ensemble([learn, there]).get_preds(
        dl=Ensemble([learn, there]).dls.test_dl(frame[::4]))[0], expected)


def test_one_column_takes_texts_and_rows():
    dls = TextDataLoaders.from_df(frame, text_col='body', label_col='y', **plain)
    learn = clas(dls)
    torch.testing.assert_close(learn.predict(frame.iloc[3])[2], learn.predict(texts[3])[2])
    assert dls.test_dl(frame).corpus.ids.tolist() == dls.test_dl(texts).corpus.ids.tolist()
    with pytest.raises(TypeError, match='not made of a frame'): data().test_dl(frame)


def test_a_language_model_of_several_columns_takes_any_text(tmp_path):
    learn = language_model_learner(from_df(tmp_path, is_lm=True, seq_len=8), config=size).remove_cb(ProgressCallback)
    assert learn.score([frame.iloc[0]])[0].tokens[:2] == ['xxfld', '1']
    assert learn.score([texts[0]])[0].tokens[0] == 'xxmaj'
    assert learn.predict('The cat', 2, seed=0).startswith('The cat')


def test_ulmfit_of_several_columns(tmp_path):
    small = ULMFiTSettings(lm_bs=4, seq_len=8, min_freq=1, clas_bs=8, steps=((0, 1, 1e-2),))
    quick = dict(config=size, lm_epochs=1, tok_tfm=BaseTokenizer(), settings=small, text_col=fields)
    learn = ulmfit(frame, frame, tmp_path / 'run', label_col='y', test=frame[:4], **quick)
    there = load_learner(tmp_path / 'run/classifier')
    for one in (learn, there):
        torch.testing.assert_close(one.predict(dict(frame.iloc[5]))[2], learn.predict(marked[5])[2])
        with pytest.raises(ValueError, match="have the text column"): one.predict(texts[0])
    with pytest.raises(ValueError, match="have the text column"):
        ulmfit(frame, frame, tmp_path / 'other', label_col='y', test=(texts[:4], labels[:4]), **quick)
    assert not (tmp_path / 'other').exists()


@pytest.mark.parametrize('cls,read', [(AWDTextClassifier, 'predict_proba'), (AWDTextEncoder, 'transform')])
def test_estimators_of_several_columns(cls, read):
    tiny = dict(config=size, n_epoch=1, tok_tfm=BaseTokenizer(), bs=8, min_freq=1, random_state=0, device='cpu')
    est,same = cls(**tiny).fit(frame[fields], labels), cls(**tiny).fit(marked, labels)
    expected = getattr(same, read)(marked)
    for X in (frame, frame[fields], list(zip(frame.title, frame.body)), marked):
        np.testing.assert_allclose(getattr(est, read)(X), expected, atol=1e-6)
    with pytest.raises(ValueError, match="fitted on 'title', 'body': give all"): getattr(est, read)(frame[['title']])
    with pytest.raises(ValueError, match="have the text column"): getattr(est, read)(texts)
    with pytest.raises(ValueError, match='give one column'): getattr(same, read)(frame)


# Several label columns

flags = frame.assign(cat=[int('cat' in t) for t in tags], rare=[int(i == 4) for i in range(36)], w=frame.n / 2)


@pytest.mark.parametrize('y_block', [None, MultiCategoryBlock(encoded=True),
                                     MultiCategoryBlock(encoded=True, vocab=['rare', 'cat'])])
def test_columns_of_zeros_and_ones(y_block):
    dls = TextDataLoaders.from_df(flags, text_col='body', label_col=['rare', 'cat'], valid_col='is_valid',
                                  y_block=y_block, **plain)
    assert dls.categories == ['rare', 'cat'] and dls.train.targets[:, 0].sum() == 0 and dls.valid.targets[1, 0] == 1
    wanted = flags[~flags.is_valid][['rare', 'cat']].to_numpy()
    np.testing.assert_array_equal(dls.train.targets.numpy(), wanted)
    assert len(clas(dls).predict(texts[0])[2]) == 2


def test_columns_of_numbers():
    two = dict(text_col='body', label_col=['n', 'w'], valid_col='is_valid', **plain)
    dls = TextDataLoaders.from_df(flags, y_block=RegressionBlock, **two)
    np.testing.assert_allclose(dls.valid.targets.numpy(), flags[flags.is_valid][['n', 'w']].to_numpy())
    numbers,_,_ = clas(dls).predict(texts[0])
    assert len(numbers) == 2
    with pytest.raises(ValueError, match="'n', 'w' hold numbers that are not all 0 or 1: give y_block=RegressionBlock"):
        TextDataLoaders.from_df(flags, **two)
    with pytest.raises(ValueError, match='encoded=True needs vocab='):
        TextDataLoaders.from_texts(texts, [[0, 1]] * 36, y_block=MultiCategoryBlock(encoded=True), **plain)


def test_ulmfit_of_several_label_columns(tmp_path):
    small = ULMFiTSettings(lm_bs=4, seq_len=8, min_freq=1, clas_bs=8, steps=((0, 1, 1e-2),))
    quick = dict(config=size, lm_epochs=1, tok_tfm=BaseTokenizer(), settings=small, text_col='body')
    learn = ulmfit(None, flags, tmp_path / 'tags', label_col=['rare', 'cat'], **quick)
    assert learn.dls.categories == ['cat', 'rare'], "also where the only document of one is in the validation part"
    numbers = ulmfit(None, flags, tmp_path / 'numbers', label_col=['n', 'w'], y_block=RegressionBlock, **quick)
    assert len(numbers.predict(texts[0])[0]) == 2


# Bad labels

def test_one_class_only():
    for make in (lambda: data(['pet'] * 36), lambda: TextDataLoaders.from_df(frame.assign(y='pet'), text_col='body',
                                                                             label_col='y', **plain)):
        with pytest.raises(ValueError, match="all labels are 'pet': a classifier needs two categories"): make()
    with pytest.raises(ValueError, match='one class'): AWDTextClassifier().fit(texts, ['pet'] * 36)


def test_a_label_with_one_example():
    lonely = [*labels[:-1], 'lonely']
    dls = data(lonely, valid=texts[:9], valid_labels=lonely[:9])       # in the training part all is well
    assert 'lonely' in clas(dls, class_weights='balanced').dls.categories
    with pytest.raises(ValueError, match="the label 'lonely' of row 35 is not among .* name all categories"):
        TextDataLoaders.from_df(frame.assign(y=lonely, is_valid=[False] * 35 + [True]), text_col='body', label_col='y',
                                valid_col='is_valid', **plain)


@pytest.mark.parametrize('missing', [None, float('nan'), pd.NA])
def test_unlabelled_rows_among_labelled(missing):
    some = frame.assign(y=[*labels[:7], missing, *labels[8:]])
    with pytest.raises(ValueError, match='the label of row 7 is missing .*: drop that row or label it'):
        TextDataLoaders.from_df(some, text_col='body', label_col='y', **plain)
    with pytest.raises(ValueError, match='the label of row 7 is missing'):
        TextDataLoaders.from_df(some, text_col='body', label_col='y', label_delim=';', **plain)
    holes = flags.assign(cat=[*flags.cat[:7], missing, *flags.cat[8:]])
    with pytest.raises(ValueError, match='the label of row 7 is .*: 2 zeros and ones are expected'):
        TextDataLoaders.from_df(holes, text_col='body', label_col=['cat', 'rare'], **plain)
    with pytest.raises(ValueError, match='the label of sample 7 of y is missing'):
        AWDTextClassifier().fit(texts, some.y)
