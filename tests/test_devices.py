"A day's work on a CPU and, where there is one, on a GPU: what trains, stops, goes on, predicts and writes."
import copy
import math

import pytest
import torch
from torch.testing import assert_close
from training_helpers import lm_learner, snapshot, tiny_size, words

from awdtext import core
from awdtext.data.data_block import RegressionBlock
from awdtext.data.dataloaders import TextDataLoaders
from awdtext.lm import dynamic_eval
from awdtext.lm.dynamic_eval import dynamic_evaluate, gradient_statistics
from awdtext.lm.evaluate import evaluate_lm
from awdtext.models.classifier import get_text_classifier
from awdtext.text_learner import text_classifier_learner
from awdtext.training.callback import Callback
from awdtext.training.metrics import RunningMean, accuracy, mse, stacked
from awdtext.training.precision import MixedPrecision
from awdtext.training.progress import ProgressCallback

devices = pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])


def lm_on(device, **kwargs):
    dls = TextDataLoaders.from_tokens([words(400)], [words(151, seed=1)], bs=4, seq_len=16, seed=0, device=device)
    return lm_learner(dls, **kwargs)


def computing_in(learn, name):
    "Also where the hardware gains nothing from it."
    learn.precision = MixedPrecision(name, learn.device)
    return learn


class Dies(Callback):
    "After some steps."
    decides = False
    def __init__(self, steps): self.left = steps

    def after_batch(self, learn):
        self.left -= learn.training
        if not self.left: raise RuntimeError('killed')


@devices
@pytest.mark.parametrize('at', [1, 3, 5, 8])
def test_a_run_that_goes_on_within_a_pass_ends_alike(device, at, tmp_path):
    def life(folder, cbs=None):
        learn = lm_on(device)
        learn.fit(2, checkpoint=tmp_path / folder, every='2steps', cbs=cbs)
        return learn
    whole = life('whole')
    with pytest.raises(RuntimeError, match='killed'): life('run', Dies(at))
    second = life('run')
    for name, value in snapshot(whole.model).items(): assert_close(second.model.state_dict()[name], value)
    figures = ('train_loss', 'valid_loss', 'perplexity')
    for a, b in zip(whole.record, second.record, strict=True):
        assert [a[k] for k in figures] == pytest.approx([b[k] for k in figures])


def test_sums_of_a_resumed_run_lie_on_two_devices():
    "`meta` stands for a GPU."
    there = torch.ones((), device='meta')
    both = stacked([torch.tensor(1.), torch.tensor(2.), there])
    assert (both.device.type, both.shape, stacked([there] * 3).shape) == ('meta', (3,), (3,))
    mean = RunningMean()
    for n in (4, 3, there): mean.add(1., n)
    assert stacked(mean.counts).shape == (3,)


@devices
@pytest.mark.parametrize('name', ['fp32', 'bf16', pytest.param('fp16', marks=pytest.mark.gpu)])
def test_a_language_model_in_every_precision(device, name, tmp_path):
    learn = computing_in(lm_on(device, metrics=[accuracy], lr=1.), name)
    learn.fit(1)
    assert all(math.isfinite(value) for value in learn.record[0].values())
    probs,y,losses = learn.get_preds(with_loss=True)
    assert (probs.dtype, losses.dtype, probs.device.type) == (torch.float32, torch.float32, 'cpu')
    assert_close(probs.sum(1), torch.ones(len(y)))
    assert (probs.argmax(1) == y).float().mean().item() == pytest.approx(learn.record[0]['accuracy'], abs=.02)
    learn.show_results()
    assert learn.predict('w1 w2', n_words=3).startswith('w1 w2 w')
    assert_close(learn.score(['w1 w2 w3'])[0].surprisals, lm_like(learn, device).score(['w1 w2 w3'])[0].surprisals,
                 rtol=0, atol=.1 if name != 'fp32' else 1e-5)


def lm_like(learn, device):
    "The same weights in float32."
    other = lm_on(device)
    other.model.load_state_dict(learn.model.state_dict())
    return other


kinds = {'one': ['up', 'down'] * 20, 'several': [['up'], ['up', 'down'], []] * 13 + [['down']], 'number': [.5, 2.] * 20}


@devices
@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('name', ['fp32', 'bf16', pytest.param('fp16', marks=pytest.mark.gpu)])
@pytest.mark.parametrize('arch', ['AWD_LSTM', 'GRU'])
def test_a_classifier_in_every_precision(device, kind, name, arch):
    texts = [' '.join(words(9 + i % 5, seed=i)) for i in range(40)]
    dls = TextDataLoaders.from_texts(texts, kinds[kind], bs=8, seed=0, min_freq=1, device=device,
                                     y_block=RegressionBlock() if kind == 'number' else None)
    learn = computing_in(text_classifier_learner(dls, config={**tiny_size, 'arch': arch}), name)
    learn.remove_cb(ProgressCallback).fit(1, 1e-2)
    probs,y,losses = learn.get_preds(with_loss=True)
    assert probs.dtype == losses.dtype == torch.float32 and losses.isfinite().all() and len(losses) == len(y)
    assert losses.numpy().mean() == pytest.approx(learn.validate()[0], rel=.02)
    learn.encode(texts[:3]), learn.predict(texts[0]), learn.show_results()


@devices
def test_years_are_learned_in_bfloat16(device):
    "Loss, metric and predictions tell the same, to more digits than eight bits have."
    texts,years = [' '.join(words(9 + i % 5, seed=i)) for i in range(40)], [1990. + i for i in range(40)]
    dls = TextDataLoaders.from_texts(texts, years, bs=8, seed=0, min_freq=1, device=device, y_block=RegressionBlock())
    learn = text_classifier_learner(dls, config=tiny_size, y_range=(1980, 2040), metrics=mse)
    computing_in(learn.remove_cb(ProgressCallback), 'bf16').fit(1, 1e-3)
    preds,y = learn.get_preds()
    loss,metric = learn.validate()
    assert metric == pytest.approx(loss, rel=1e-4)
    assert (preds - y.view_as(preds)).square().mean().item() == pytest.approx(loss, rel=.01)


@devices
@pytest.mark.parametrize('arch', ['AWD_LSTM', 'QRNN', 'GRU'])
def test_the_windows_of_documents_have_the_gradients_of_one_layer_after_another(device, arch):
    "Without dropout, in float64 on a CPU and in float32 on the device."
    torch.manual_seed(0)
    exact = get_text_classifier(20, 2, {**tiny_size, 'arch': arch}, drop_mult=0., seq_len=6).double()
    clas,ids,lengths = copy.deepcopy(exact).float().to(device), torch.randint(2, 20, (3, 20)), torch.tensor([20, 13, 5])
    found = []
    for model, on in ((exact, 'cpu'), (clas, device)):
        out,_ = model.sentences(ids.to(on), lengths.to(on))
        out.sin().sum().backward()
        found.append([p.grad.double().cpu() for p in model.encoder.parameters()])
    for a, b in zip(*found): assert_close(a, b, rtol=1e-3, atol=1e-4)


@devices
def test_a_dynamic_evaluation_that_does_not_move_is_an_evaluation(device):
    learn = lm_on(device)
    ids = learn.dls.vocab.encode(words(60)).to(device)
    stats = gradient_statistics(learn.model, ids, bs=2)
    assert dynamic_evaluate(learn.model, ids, stats, lr=0., decay=0.).loss == pytest.approx(
        evaluate_lm(learn.model, ids).loss, abs=1e-6)


def test_dynamic_evaluation_has_all_bits(monkeypatch):
    "On a GPU, where that is not the default; so has what it is compared with."
    learn,asked = lm_on('cpu'), []
    usual = dynamic_eval.all_bits
    monkeypatch.setattr(dynamic_eval, 'all_bits', lambda model: (asked.append(model), usual(model))[1])
    stats = gradient_statistics(learn.model, list(range(2, 12)), bs=2)
    dynamic_evaluate(learn.model, list(range(2, 12)), stats)
    assert len(asked) == 2 and all(type(model) is type(learn.model) for model in asked)


def test_random_states_of_another_machine(monkeypatch):
    "It had two GPUs, this one has one; and where CUDA was not used, nobody starts it."
    taken = []
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'set_rng_state_all', taken.append)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_rng_state_all', lambda: pytest.fail("it would initialise CUDA"))
    states = core.random_states()
    assert states['cuda'] == []
    core.set_random_states({**states, 'cuda': [torch.tensor([1]), torch.tensor([2])]})
    assert [o.tolist() for o in taken[0]] == [[1]]


def test_what_comes_from_a_gpu_is_there_when_it_is_read(monkeypatch):
    "A copy to the CPU that nobody waits for may hold anything."
    asked = []
    monkeypatch.setattr(torch.Tensor, 'to', lambda x, device, non_blocking: asked.append((device, non_blocking)))
    for device in ('cpu', 'cuda:0'): core.to_device(torch.ones(1), device)
    assert asked == [('cpu', False), ('cuda:0', True)]
