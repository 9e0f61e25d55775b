"The check before a run and the page after it: counts beside plain ones, no trace left, a page that fetches nothing."
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training_helpers import Do, assert_same, snapshot, tiny_size

from awdtext.data.batches import RegressionSetup
from awdtext.data.dataloaders import TextDataLoaders
from awdtext.report import HTMLReport, Pace, pace_of, peak_memory, seconds_of, training_report, write_report
from awdtext.text_learner import language_model_learner, text_classifier_learner
from awdtext.training.progress import ProgressCallback

films = [f'{a} {b} {c} number {i} of a long list of films .' for i, (a, b, c) in enumerate(
    (a, b, c) for a in ('a', 'the') for b in ('good', 'bad') for c in ('film', 'book', 'play', 'song', 'tale'))]
labels = ['pos' if 'good' in film else 'neg' for film in films]


def clas_dls(labels=labels, valid=('a very good film', 'another bad one indeed'), valid_labels=('pos', 'neg'), **how):
    return TextDataLoaders.from_texts(films, labels, valid=valid, valid_labels=valid_labels, bs=4, min_freq=1, seed=0,
                                      **how)


def clas(dls, **how):
    return text_classifier_learner(dls, **{'config': tiny_size, **how}).remove_cb(ProgressCallback)


def lm(**how):
    dls = TextDataLoaders.from_texts(films, valid=films[:3], is_lm=True, bs=4, seq_len=8, min_freq=1, seed=0)
    return language_model_learner(dls, **{'config': tiny_size, **how}).remove_cb(ProgressCallback)


def lines(report):
    "Name -> what is said of it."
    return dict(re.split(r'\s+', line, maxsplit=1) for line in report.splitlines() if line[0] not in '! ')


def warned(report): return [line for line in report.splitlines() if line.startswith('! ')]


def test_what_is_counted():
    dls = clas_dls()
    said = lines(training_report(clas(dls)))
    valid = 'a very good film', 'another bad one indeed'
    counts = [sum(len(dls.tokenizer(text)) for text in texts) for texts in (films, valid)]
    assert said['documents'] == '20 training, 2 validation'
    assert said['tokens'] == f'{counts[0]} training, {counts[1]} validation'
    assert said['longest'] == f'{max(len(dls.tokenizer(film)) for film in films)} tokens'
    n_unknown = sum(word not in dls.vocab for word in 'a very good film another bad one indeed'.split())
    assert f'0.0% of training tokens, {n_unknown / counts[1]:.1%} of validation tokens' in said['unknown']
    assert Counter(said['labels'].split(', ')) == Counter(['pos 10 (50%)', 'neg 10 (50%)'])
    assert said['leaks'].startswith('0 of 2 ')
    assert ' s for 1 epoch' in said['time'] and 'MB of weights' in said['memory']


def test_what_is_wrong_is_told():
    few = [*labels[:-1], 'odd']
    dls = clas_dls(few, valid=[films[0], 'zebra yak gnu', ''], valid_labels=['pos', 'neg', 'neg'])
    report = training_report(clas(dls))
    told = ' '.join(warned(report))
    for text in ('1 validation document(s) have no word', 'of the validation tokens are unknown',
                 '1 validation documents are', "'odd': a single training document", "'odd': no validation"):
        assert text in told
    good = ['pos'] * 19 + ['neg']
    assert 'largest category has 19 times' in ' '.join(warned(training_report(clas(clas_dls(good)))))
    assert len(warned(report)) == 5


def test_a_report_of_other_tasks():
    assert 'labels' not in lines(training_report(lm())) and '3 of 3' in lines(training_report(lm()))['leaks']
    several = clas_dls([[y] for y in labels], valid_labels=[['pos'], []])
    assert 'pos 10' in lines(training_report(clas(several)))['labels']
    stars = clas_dls([float(i) for i in range(20)], valid_labels=[1., 2.], y_block=RegressionSetup)
    assert lines(training_report(clas(stars)))['labels'] == 'numbers from 0 to 19, mean 9.5'


@pytest.mark.parametrize('make', [lm, lambda **how: clas(clas_dls(), **how)])
def test_a_report_leaves_no_trace(make):
    learn = make()
    learn.fit(1, 1e-2)
    rec = learn.recorder
    before = snapshot(learn.model), torch.get_rng_state(), learn.dls.train.epoch, list(learn.record), list(rec.losses)
    training_report(learn, n_epoch=3)
    assert_same(snapshot(learn.model), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    assert (learn.dls.train.epoch, learn.record, rec.losses) == before[2:]


def test_time_is_counted_per_token(monkeypatch):
    from awdtext import report
    clock = iter(range(100))
    monkeypatch.setattr(report.time, 'perf_counter', lambda: float(next(clock)))
    learn,pace,seen = lm(), Pace(3), []
    look = Do('before_batch', lambda learn: learn.training and seen.append(learn.x.numel()))
    learn.fit(1, 1e-2, cbs=[look, pace])
    assert pace.tokens == sum(seen[1:4]) and pace.seconds == 3
    corpora = [dl.corpus.n_tokens for dl in (learn.dls.train, learn.dls.valid)]
    assert seconds_of(learn, pace, 2) == pytest.approx(2 * (corpora[0] + corpora[1] / 3) * 3 / pace.tokens)


def test_first_step_of_each_window_does_not_count(monkeypatch):
    "It is slow: oneDNN compiles its products for each new shape. The plan of a run was twice its time."
    from awdtext import report
    times,now = [10.] * 4 + [1.] * 4, [0.]

    def perf_counter():
        now[0] += times.pop(0)
        return now[0]

    monkeypatch.setattr(report, 'time', SimpleNamespace(perf_counter=perf_counter)) # for it alone
    learn,seen = lm(), []
    learn.model.register_forward_pre_hook(lambda model, args: seen.append(args[0].shape))
    pace = pace_of(learn, 3)
    assert pace.seconds == 3 and len(seen) == 8
    assert seen[:4] == seen[4:] and len(set(seen[:4])) > 1
    assert pace.tokens == sum(shape.numel() for shape in seen[5:])


@pytest.mark.parametrize('make,n_valid,times', [
    (lm, 39, {1: '27 s', 2: '55 s', 7: '3 min', 1000: '7 h 35 min'}),
    (lambda **how: clas(clas_dls(), **how), 10, {1: '26 s', 2: '53 s', 7: '3 min', 1000: '7 h 19 min'})])
def test_time_and_memory_are_told_in_numbers(make, n_valid, times, monkeypatch):
    "At a tenth of a second a token, a third of that in validation, for each pass; and the bytes of each storage once."
    from awdtext import report
    learn,asked = make(config=dict(emb_sz=200, n_hid=300, n_layers=2)), []
    def pace(learn, n_batches): return asked.append(n_batches) or SimpleNamespace(tokens=50, seconds=5.)
    monkeypatch.setattr(report, 'pace_of', pace)
    monkeypatch.setattr(report, 'peak_memory', lambda device: 2_340_000_000)
    assert [sum(map(len, dl.corpus)) for dl in (learn.dls.train, learn.dls.valid)] == [260, n_valid]
    for n_epoch, time in times.items():
        said = lines(training_report(learn, n_epoch, n_batches=4))
        assert said['time'] == f'about {time} for {n_epoch} epoch(s), at 10 tokens a second'
    assert asked == [4] * 4
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in learn.model.parameters()}
    n = sum(storages.values())
    assert n > 3e6 and said['memory'].startswith(f'{n / 1e6:.1f} MB of weights; as much for gradients')
    assert said['memory'].endswith('; the peak of the process was 2.3 GB')
    monkeypatch.setattr(report, 'peak_memory', lambda device: None)
    assert 'peak' not in lines(training_report(learn))['memory']


@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason="there is no /proc")
def test_the_peak_is_what_the_system_says():
    "A new one, since the kernel's figure may also be that of the process that started this one."
    def told(name): return 1024 * int(re.search(rf'{name}:\s+(\d+) kB', Path('/proc/self/status').read_text())[1])
    before = peak_memory(torch.device('cpu'))
    more = torch.ones(before - told('VmRSS') + 2**26, dtype=torch.uint8)
    said = peak_memory(torch.device('cpu'))
    assert said > before and len(more) and said == pytest.approx(told('VmHWM'), rel=.01)


class Page(HTMLParser):
    "What a page holds, and whether its elements are closed in order."
    void = {'meta', 'br', 'img', 'hr', 'link', 'input'}

    def __init__(self, text):
        super().__init__()
        self.open,self.fetches,self.tags,self.text = [], [], Counter(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        links = [v for k, v in attrs if k in ('src', 'href', 'xlink:href', 'srcset')]
        self.fetches += [link for link in links if not link.startswith(('#', 'data:'))]
        if tag not in self.void: self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.void: self.open.pop()

    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_data(self, data): self.text.append(data)


@pytest.mark.parametrize('make', [lm, lambda **how: clas(clas_dls(), **how)])
def test_the_page_is_whole_and_fetches_nothing(make, tmp_path):
    learn = make(path=tmp_path)
    learn.fit(2, 1e-2, cbs=HTMLReport('out/run.html', title='<script>alert(1)</script>', card='rates & more'))
    text = (tmp_path / 'out/run.html').read_text(encoding='utf-8')
    page = Page(text)
    assert page.open == [] and page.fetches == [] and page.tags['script'] == 0
    assert '@import' not in text and 'url(http' not in text
    assert page.tags['svg'] >= 2 and 'rates & more' in page.text
    for line in learn.record: assert f"{line['valid_loss']:.4g}" in page.text
    assert [p.name for p in (tmp_path / 'out').iterdir()] == ['run.html']
    assert 'prefers' in text or 'color-scheme: light dark' in text


def test_the_page_grows_and_an_error_leaves_the_last_one(tmp_path):
    learn,sizes = lm(path=tmp_path), []
    def fail(learn):
        if learn.epoch == 2: raise RuntimeError('no')
    look = Do('before_epoch', lambda learn: sizes.append((tmp_path / 'report.html').exists()))
    with pytest.raises(RuntimeError): learn.fit(3, 1e-2, cbs=[HTMLReport(), look, Do('before_train', fail)])
    assert sizes == [False, True, True]
    text = (tmp_path / 'report.html').read_text(encoding='utf-8')
    assert 'Samples' not in text and f"{learn.record[-1]['valid_loss']:.4g}" in text
    with pytest.raises(ValueError, match='no run to report'): write_report(lm())


def test_many_steps_are_a_picture(tmp_path):
    learn = lm(path=tmp_path)
    learn.fit(1, 1e-2)
    learn.recorder.losses,learn.recorder.lrs = [4.] * 200_000, [.1] * 200_000
    assert write_report(learn, n_samples=0).stat().st_size < 500_000
