"Exact evaluation against a loop over single tokens, for every way of cutting the text."
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from awdtext.lm.evaluate import LMScore, as_ids, evaluate_lm, evaluating
from awdtext.models.language_model import get_language_model

vocab_sz,size = 30,dict(emb_sz=8, n_hid=12, n_layers=2)


@pytest.fixture
def model():
    torch.set_num_threads(1)
    return get_language_model(vocab_sz, size)


def token_loop(model, ids, state=None):
    "Nats of every token after the first, one at a time, and the state after the last but one."
    nats = []
    model.eval()
    with torch.no_grad():
        for now, then in zip(ids[:-1].tolist(), ids[1:].tolist()):
            out = model(torch.tensor([[now]]), state)
            state = out.state
            nats.append(-model.logits(out.dropped)[0, 0].double().log_softmax(-1)[then].item())
    return nats, state


def stream_loop(model, ids, bs):
    "The same in `bs` streams, each but the first starting cold, the last ones shorter or empty."
    n = len(ids) - 1
    n_steps = math.ceil(n / bs)
    nats = []
    for start in range(0, n, n_steps): nats += token_loop(model, ids[start:min(start + n_steps, n) + 1])[0]
    return nats


@pytest.mark.parametrize('bs', [1, 2, 3, 7, 64, 120, 500])
@pytest.mark.parametrize('bptt', [1, 5, 72, 1000])
def test_loss_is_that_of_the_token_loop(model, bs, bptt):
    ids = torch.randint(vocab_sz, (121,))
    score,nats = evaluate_lm(model, ids, bs=bs, bptt=bptt),stream_loop(model, ids, bs)
    assert score.n_tokens == len(nats) == 120
    assert score.loss == pytest.approx(sum(nats) / 120, rel=1e-6)
    assert score.perplexity == pytest.approx(math.exp(sum(nats) / 120), rel=1e-6)
    assert score.bpc == pytest.approx(sum(nats) / 120 / math.log(2), rel=1e-6)


@pytest.mark.parametrize('bptt', [3, 50])
@pytest.mark.parametrize('cut', [1, 17, 59])
def test_a_text_in_pieces_with_the_state_handed_on_is_the_whole_text(model, bptt, cut):
    ids = torch.randint(vocab_sz, (61,))
    whole,(nats,state) = evaluate_lm(model, ids, bptt=bptt),token_loop(model, ids[:cut + 1])
    rest = evaluate_lm(model, ids[cut:], bptt=bptt, state=state)
    assert (sum(nats) + rest.loss * rest.n_tokens) / 60 == pytest.approx(whole.loss, rel=1e-6)
    again,_ = token_loop(model, ids[cut:], state)
    assert rest.loss == pytest.approx(sum(again) / len(again), rel=1e-6)


def test_state_is_not_changed_in_place(model):
    with evaluating(model): state = model(torch.randint(vocab_sz, (1, 5))).state
    kept = [(h.clone(), c.clone()) for h, c in state]
    evaluate_lm(model, torch.randint(vocab_sz, (20,)), state=state)
    for (h, c), (h2, c2) in zip(state, kept): assert torch.equal(h, h2) and torch.equal(c, c2)


def test_dropout_is_off_and_the_mode_comes_back(model):
    ids = torch.randint(vocab_sz, (40,))
    model.train()
    assert evaluate_lm(model, ids) == evaluate_lm(model, ids) and model.training
    model.eval()
    evaluate_lm(model, ids)
    assert not model.training
    with pytest.raises(ZeroDivisionError), evaluating(model.train()): raise ZeroDivisionError
    assert model.training and torch.is_grad_enabled()


def test_ids_of_every_kind(model):
    ids = torch.randint(vocab_sz, (30,))
    expected = evaluate_lm(model, ids)
    for same in (ids.tolist(), ids.int(), ids.numpy(), np.asarray(ids, dtype=np.uint16).astype(np.int32)):
        assert evaluate_lm(model, same) == expected
    assert isinstance(expected, LMScore) and as_ids([1, 2], 3).dtype == torch.long


def test_a_uniform_model_has_the_perplexity_of_the_vocabulary(model):
    for p in model.parameters(): torch.nn.init.zeros_(p)
    score = evaluate_lm(model, torch.randint(vocab_sz, (50,)))
    assert score.perplexity == pytest.approx(vocab_sz, rel=1e-5)
    assert score.bpc == pytest.approx(math.log2(vocab_sz), rel=1e-5)


def test_a_hopeless_model_has_a_finite_perplexity(model):
    with torch.no_grad():
        model.decoder.bias[0] = 1e6
    assert evaluate_lm(model, [1, 2, 3]).perplexity == pytest.approx(math.exp(700))


@pytest.mark.parametrize('ids,match', [
    ([], "at least two tokens"), ([3], "at least two tokens"), (torch.zeros(2, 3), r"\(2, 3\)"),
    (torch.tensor(3), r"\(\)"),
    ([.5, 1.2], "whole numbers, and are of the type float32"), (torch.tensor([1., 2.]), "whole numbers"),
    ([True, False], "whole numbers, and are of the type bool"),
    ([1, 30], "run from 1 to 30, but this model's vocabulary has the ids 0 to 29"), ([-1, 2], "run from -1 to 2")])
def test_wrong_ids(model, ids, match):
    with pytest.raises(ValueError, match=match): evaluate_lm(model, ids)


@pytest.mark.parametrize('ids,shown', [('the cat', "the cat"), (['the', 'cat'], "the.*cat"), (None, 'None'), (3, '3')])
def test_what_is_no_list_of_numbers(model, ids, shown):
    with pytest.raises(TypeError, match=f'numbers of tokens, not .*{shown}.*encode the text'): evaluate_lm(model, ids)


@pytest.mark.parametrize('shape', [(1, 3), (2, 4)])
def test_marks_of_another_text(model, shape):
    with pytest.raises(ValueError, match=r'starts has the shape \(., .\), and the text \(1, 4\)'):
        evaluate_lm(model, [1, 2, 3, 4, 5], starts=torch.zeros(shape, dtype=torch.bool))


@pytest.mark.parametrize('on_gpu', [False, True])
def test_on_a_gpu_float32_has_all_its_bits(model, on_gpu, monkeypatch):
    def bits(): return torch.backends.cudnn.rnn.fp32_precision
    monkeypatch.setattr(torch.Tensor, 'is_cuda', on_gpu)
    before = bits()
    with pytest.raises(KeyError):
        with evaluating(model):
            assert bits() == ('ieee' if on_gpu else before)
            raise KeyError
    assert bits() == before and model.training


@pytest.mark.gpu
@pytest.mark.parametrize('arch', ['AWD_LSTM', 'QRNN', 'GRU'])
def test_on_cuda_the_loss_is_the_same_for_every_bptt(arch):
    model = get_language_model(vocab_sz, dict(emb_sz=64, n_hid=96, n_layers=2, arch=arch))
    ids = torch.randint(vocab_sz, (500,))
    here = evaluate_lm(model, ids).loss
    for bptt in (1, 7, 72, 1000): assert evaluate_lm(model.cuda(), ids, bptt=bptt).loss == pytest.approx(here, abs=1e-6)


@pytest.mark.parametrize('kwargs', [dict(bs=0), dict(bs=-1), dict(bptt=0), dict(bptt=1.5)])
def test_wrong_numbers(model, kwargs):
    with pytest.raises(ValueError, match=f"{list(kwargs)[0]}="): evaluate_lm(model, [1, 2, 3], **kwargs)


def test_scores_of_the_logits_and_of_the_fused_loss_agree(model):
    ids = torch.randint(vocab_sz, (1, 25))
    with evaluating(model):
        dropped = model(ids[:, :-1]).dropped
        logp = model.logits(dropped).log_softmax(-1).gather(-1, ids[:, 1:, None]).mean()
    assert_close(torch.tensor(evaluate_lm(model, ids[0]).loss), -logp, rtol=1e-5, atol=1e-6)
