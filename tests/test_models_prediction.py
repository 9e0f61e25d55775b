"Reading for predictions: float32, bfloat16 and bytes against float64, one by one; models left as they were."
import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from awdtext.data.dataloaders import TextDataLoaders
from awdtext.data.tokenizer import BaseTokenizer
from awdtext.models.classifier import get_text_classifier
from awdtext.models.lstm import WeightDropLSTM, lstm_loop
from awdtext.models.prediction import PreparedLSTM, Twins, can_int8, lstm_fixed_point, prepare, prepared_product
from awdtext.text_learner import load_learner, text_classifier_learner
from awdtext.training.optim import SGD, Adam
from awdtext.training.precision import choose_for_prediction, supported
from awdtext.training.progress import ProgressCallback
from awdtext.training.rnn import ASGD

cpu = torch.device('cpu')
needs_bf16 = pytest.mark.skipif(not supported('bf16', cpu), reason='no bfloat16 in this processor')
needs_int8 = pytest.mark.skipif(not can_int8(), reason='no products of bytes in this processor')
low = [pytest.param('bf16', marks=needs_bf16), pytest.param('int8', marks=needs_int8)]
every = ['fp32', *low]


# Products

def quantised(rows):
    "Whole numbers and their scale, for each row."
    scale = rows.abs().amax(1, keepdim=True) / 127
    return (rows / scale).round().double(), scale.double()


@needs_int8
@pytest.mark.parametrize('n_out,n_in', [(16, 8), (24, 100), (4608, 1152), (7, 3)])
@pytest.mark.parametrize('n', [1, 3, 65])
def test_products_of_bytes_are_those_of_whole_numbers(n_out, n_in, n):
    torch.manual_seed(n)
    weight,x = torch.randn(n_out, n_in) * torch.rand(n_out, 1), torch.randn(n, n_in) * torch.rand(n, 1) * 5
    (q, s),(k, r) = quantised(x), quantised(weight)
    ours = prepared_product(weight, 'int8')(x).double()
    assert_close(ours, (q @ k.T) * s * r.T, rtol=1e-5, atol=1e-5 * float(s.max() * r.max()) * 127)
    bound = (s / 2 * weight.abs().sum(1) + r.T / 2 * (x.abs().sum(1, keepdim=True) + n_in * s / 2)).double()
    assert ((ours - x.double() @ weight.double().T).abs() <= bound * 1.001).all()


@needs_int8
def test_bytes_do_not_overflow_and_zeros_are_zero():
    product = prepared_product(torch.ones(16, 512), 'int8')
    assert_close(product(torch.cat([torch.ones(1, 512), -torch.ones(1, 512), torch.zeros(1, 512)]))[:, 0],
                 torch.tensor([512., -512., 0.]))


@pytest.mark.parametrize('precision', low)
@pytest.mark.parametrize('n', [1, 2, 3, 64])
def test_a_rows_product_does_not_depend_on_the_others(precision, n):
    weight,x = torch.randn(48, 20), torch.randn(n, 20)
    product = prepared_product(weight, precision)
    alone = torch.cat([product(row[None]) for row in x])
    x[1:] *= 100
    assert_close(product(x)[:1], alone[:1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('precision,tol', [pytest.param(*p.values, t, marks=p.marks) for p, t in zip(low, (.01, .02))])
@pytest.mark.parametrize('bs', [1, 2, 5])
def test_the_layer_is_the_loop_in_float64(precision, tol, bs):
    torch.manual_seed(bs)
    rnn = WeightDropLSTM(10, 16).eval()
    x,h,c,starts = torch.randn(bs, 9, 10), torch.randn(bs, 16).tanh(), torch.randn(bs, 16), torch.rand(bs, 9) > .8
    W,U,b = (p.double() for p in (rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0 + rnn.bias_hh_l0))
    layer = PreparedLSTM(rnn, precision)
    out,(hn, cn) = layer(x, (h, c))
    exact,(eh, ec) = lstm_loop(x.double(), h.double(), c.double(), W, U, b)
    for a,e in zip((out, hn, cn), (exact, eh, ec)): assert_close(a.double(), e, rtol=0, atol=tol)
    assert not out.requires_grad
    first,state = layer(x[:, :4], (h, c))
    assert_close(torch.cat([first, layer(x[:, 4:], state)[0]], 1), out, rtol=0, atol=tol)
    assert_close(layer(x, (h, c), starts)[0], rnn(x, (h, c), starts)[0].detach(), rtol=0, atol=2 * tol)


# One text, many steps at a time

def text_of(n_steps, n_hid, scale, seed=0):
    "What input and bias give to the gates, a state, and hidden-to-hidden weights, in float64."
    g = torch.Generator().manual_seed(seed)
    def normal(*shape): return torch.randn(*shape, generator=g, dtype=torch.double)
    return normal(n_steps, 4 * n_hid), normal(1, n_hid).tanh(), normal(1, n_hid), scale * normal(4 * n_hid, n_hid)


def read(gates, h, c, U, **how):
    "Hidden states, the last cell state, and how many steps each product had."
    seen = []
    def times_U(hs):
        seen.append(len(hs))
        return hs @ U.T
    return *lstm_fixed_point(gates.clone(), h.clone(), c.clone(), times_U, **how), seen


def loop(gates, h, c, U):
    n_in = gates.shape[1]
    out,(_, c) = lstm_loop(gates[None], h, c, torch.eye(n_in, dtype=gates.dtype), U, gates.new_zeros(n_in))
    return out[0], c


@pytest.mark.parametrize('n_steps', [1, 2, 95, 96, 97, 300])
@pytest.mark.parametrize('width', [1, 2, 7, 96])
@pytest.mark.parametrize('scale', [.05, .2, 1.])
def test_steps_that_do_not_move_at_all_are_those_of_the_loop(n_steps, width, scale):
    text = text_of(n_steps, 12, scale, n_steps)
    hs,c,seen = read(*text, width=width, tol=0.)
    assert_close((hs, c), loop(*text), rtol=0, atol=1e-11)
    assert max(seen) <= width and len(seen) <= n_steps


@pytest.mark.parametrize('scale,most', [(.05, 16), (.1, 24), (.2, 70)])
def test_steps_settle_within_the_tolerance_in_few_rounds(scale, most):
    "12 units with weights of .2 have an eigenvalue of some .7 before the gates."
    for seed in range(5):
        text = text_of(300, 12, scale, seed)
        hs,c,seen = read(*text)
        exact,c_exact = loop(*text)
        assert len(seen) <= most
        assert (hs - exact).abs().max() < 2**-6 and (c - c_exact).abs().max() < 2**-5


def test_a_state_that_forgets_nothing_is_read_step_by_step_before_long():
    "Weights so large that each step turns on the one before: the window is given up, and few products are wide."
    text = text_of(300, 12, 5., 1)
    hs,_,seen = read(*text, tol=0.)
    assert_close(hs[:20], loop(*text)[0][:20], rtol=0, atol=1e-9)      # after that chaos parts them
    assert len(seen) <= 300 and sum(n > 1 for n in seen) <= 40


def test_a_text_that_is_no_number_ends():
    gates,h,c,U = text_of(40, 12, .2)
    gates[20, 3] = float('nan')
    hs,_,seen = read(gates, h, c, U)
    assert hs[:20].isfinite().all() and hs[21:].isnan().all() and len(seen) <= 40


# The twin

SIZE = dict(emb_sz=12, n_hid=20, n_layers=2)


def documents(*lengths): return [torch.randint(20, (n,)) for n in lengths]


def batch(docs):
    return nn.utils.rnn.pad_sequence(docs, batch_first=True), torch.tensor([len(doc) for doc in docs])


def slow_logits(clas, doc, max_len):
    "One document in float64, token by token."
    layers = [(W.T, U.T, a + b) for W, U, a, b in (list(rnn.parameters()) for rnn in clas.encoder.rnns)]
    states = [(torch.zeros(1, U.shape[0]).double(),) * 2 for _, U, _ in layers]
    outs = []
    for token in doc:
        x = clas.encoder.embedding.weight[token][None]
        for k, (W, U, b) in enumerate(layers):
            i,f,g,o = (x @ W + states[k][0] @ U + b).chunk(4, 1)
            c = f.sigmoid() * states[k][1] + i.sigmoid() * g.tanh()
            x = o.sigmoid() * c.tanh()
            states[k] = x,c
        outs.append(x[0])
    outs = torch.stack(outs[-max_len:] if max_len else outs)
    return clas.head.layers(torch.cat([outs[-1], outs.max(0).values, outs.mean(0)])[None])[0]


@pytest.mark.parametrize('max_len', [1, 7, None])
@pytest.mark.parametrize('seq_len', [1, 5, 72])
@pytest.mark.parametrize('precision,tol', [('fp64', 1e-12), ('fp32', 1e-5), *[
    pytest.param(*p.values, t, marks=p.marks) for p, t in zip(low, (.01, .03))]])
def test_logits_are_those_of_one_document_token_by_token_in_float64(precision, tol, seq_len, max_len):
    torch.manual_seed(1)
    clas = get_text_classifier(20, 3, SIZE, seq_len=seq_len, max_len=max_len).eval()
    exact,docs = copy.deepcopy(clas).double(), documents(40, 23, 23, 12, 5, 4, 1, 30)
    twin = prepare(exact if precision == 'fp64' else clas, 'fp32' if precision == 'fp64' else precision)
    with torch.no_grad():
        slow = torch.stack([slow_logits(exact, doc, max_len) for doc in docs])
        together,alone = twin(*batch(docs)).logits, torch.cat([twin(*batch([doc])).logits for doc in docs])
        if precision == 'fp64': assert_close(clas.double()(*batch(docs)).logits, slow, rtol=0, atol=1e-12)
    assert_close(together.double(), slow, rtol=0, atol=tol)
    assert_close(together, alone, rtol=0, atol=tol)


@pytest.mark.parametrize('lengths', [(95, 40, 23, 13, 5, 4, 1, 1), (60, 32, 16)])
def test_hardly_a_product_is_spent_on_padding(lengths):
    "At most a short window for each document, and none where windows end with documents."
    clas,seen = get_text_classifier(20, 2, SIZE, seq_len=50).eval(), []
    clas.encoder.rnns[0].register_forward_hook(lambda m, args, out: seen.append(out[0].shape[:2].numel()))
    with torch.no_grad(): clas(*batch(documents(*lengths)))
    assert 0 <= sum(seen) - sum(lengths) < (16 * len(lengths) if lengths[0] == 95 else 1)


def test_a_wide_batch_is_read_in_short_windows():
    "So that the gates of all of it are never in memory at once."
    clas,seen = get_text_classifier(20, 2, SIZE).eval(), []
    clas.encoder.register_forward_hook(lambda m, args, out: seen.append(tuple(out.raw.shape[:2])))
    with torch.no_grad(): clas(torch.randint(20, (512, 30)), torch.full((512,), 30))
    assert max(rows * steps for rows, steps in seen) <= 8192 and sum(steps for _, steps in seen) == 30


def test_a_single_text_is_read_in_one_window():
    "As each window begins with laying out the weights anew, which takes as long as some twenty steps of one row."
    clas,seen = get_text_classifier(20, 2, SIZE).eval(), []
    clas.encoder.register_forward_hook(lambda m, args, out: seen.append(out.raw.shape[1]))
    with torch.no_grad(): clas(*batch(documents(500)))
    assert seen == [500]


@pytest.mark.parametrize('change', ['step', 'load', 'precision', 'replace', 'average'])
@pytest.mark.parametrize('opt_func', [SGD, Adam])
def test_a_twin_is_made_again_when_the_weights_have_changed(change, opt_func):
    clas,twins,other = get_text_classifier(20, 2, SIZE), Twins(), get_text_classifier(20, 2, SIZE).eval()
    ids,lengths = batch(documents(9, 8, 3))
    before = twins(clas.eval(), 'bf16')
    assert twins(clas, 'bf16') is before
    if change == 'step':
        opt = opt_func(clas.parameters(), lr=.1)
        clas.train()(ids, lengths).logits.sum().backward()
        opt.step()
    if change == 'load': clas.load_state_dict(other.state_dict())
    if change == 'replace': clas = copy.deepcopy(clas)
    if change == 'average': torch.optim.swa_utils.AveragedModel(clas).module.load_state_dict(clas.state_dict())
    after = twins(clas.eval(), 'fp32' if change == 'precision' else 'bf16')
    if change == 'average': assert after is before                    # another model's weights changed
    else: assert after is not before
    with torch.no_grad(): assert_close(after(ids, lengths).logits, clas(ids, lengths).logits, rtol=.1, atol=.02)


@pytest.mark.parametrize('arch', ['GRU', 'QRNN'])
def test_the_kin_are_read_as_they_are_and_refuse_bytes(arch):
    clas = get_text_classifier(20, 2, dict(SIZE, arch=arch)).eval()
    assert prepare(clas, 'fp32') is clas is prepare(clas, 'bf16')
    with pytest.raises(ValueError, match="precision='int8' is for classifiers with an AWD_LSTM"): prepare(clas, 'int8')


# Learners

words = {'good': 'fine great lovely warm bright'.split(), 'bad': 'dull cold awful grey poor'.split()}


def reviews(n, seed):
    "Documents of 5 to 80 words, among which some tell the label, not all of them the truth."
    g = torch.Generator().manual_seed(seed)
    texts,labels = [], []
    for i in range(n):
        label,size = ('good', 'bad')[i % 2], int(torch.randint(5, 80, (), generator=g))
        text = [f'w{int(k)}' for k in torch.randint(30, (size,), generator=g)]
        for k in torch.randint(size, (1 + size // 8,), generator=g):
            mine = torch.rand((), generator=g) < .85
            text[k] = words[label if mine else ('good', 'bad')[1 - i % 2]][int(torch.randint(5, (), generator=g))]
        texts.append(' '.join(text))
        labels.append(label)
    return texts,labels


@pytest.fixture(scope='module')
def learn():
    torch.manual_seed(0)
    texts,labels = reviews(400, 0)
    valid,valid_labels = reviews(400, 1)
    dls = TextDataLoaders.from_texts(texts, labels, valid=valid, valid_labels=valid_labels, bs=32, min_freq=1, seed=0,
                                     tok_tfm=BaseTokenizer(), device='cpu')
    learn = text_classifier_learner(dls, config=dict(emb_sz=24, n_hid=32, n_layers=2), drop_mult=.2, seq_len=20)
    learn.remove_cb(ProgressCallback).fit_one_cycle(6, 1e-2)
    return learn


def documents_one_by_one(learn):
    "What the model says in float64, document by document, in the order of the data."
    exact = copy.deepcopy(learn.model).double().eval()
    with torch.no_grad():
        return torch.stack([slow_logits(exact, doc.long(), 1440) for doc in learn.dls.valid.corpus]).softmax(1)


@pytest.mark.parametrize('precision,tol,mean_tol', [('fp32', 1e-5, 1e-6), *[
    pytest.param(*p.values, *t, marks=p.marks) for p, t in zip(low, ((.03, .003), (.06, .006)))]])
def test_a_trained_classifier_is_as_good_in_every_precision(learn, precision, tol, mean_tol):
    exact,y = documents_one_by_one(learn), learn.dls.valid.targets
    probs,targets = learn.get_preds(precision=precision)
    assert targets.equal(y)
    right = [(p.argmax(1) == y).double().mean().item() for p in (exact, probs)]
    assert .85 < right[0] < 1 and abs(right[1] - right[0]) <= .003
    error = (probs.double() - exact).abs()
    assert error.max() < tol and error.mean() < mean_tol
    if precision != 'fp32': assert error.max() > 1e-6                  # it was done in that precision


@pytest.mark.parametrize('precision', [None, *every])
def test_the_model_and_the_learner_are_left_as_they_were(learn, precision):
    before,kept = copy.deepcopy(learn.model.state_dict()), (learn.model, learn.precision, learn.dls.valid.epoch)
    modes,rng = [m.training for m in learn.model.modules()], torch.get_rng_state()
    learn.get_preds(precision=precision)
    learn.predict('a dull w1 w2', precision=precision)
    for name, value in learn.model.state_dict().items(): assert value.equal(before[name])
    assert kept == (learn.model, learn.precision, learn.dls.valid.epoch)
    assert modes == [m.training for m in learn.model.modules()]
    assert all(p.requires_grad for p in learn.model.parameters())
    if precision is None: assert torch.get_rng_state().equal(rng)


@pytest.mark.parametrize('precision', every)
def test_predict_is_get_preds_of_one(learn, precision):
    texts,_ = reviews(12, 3)
    probs,_ = learn.get_preds(dl=learn.dls.test_dl(texts), precision=precision)
    for text, row in zip(texts, probs):
        label,idx,ours = learn.predict(text, precision=precision)
        tol = 1e-4 if precision == 'fp32' else 5e-3                    # alone it is read many steps at a time
        assert_close(ours, row, rtol=0, atol=tol)
        assert label == learn.dls.categories[idx]


@pytest.mark.parametrize('precision', low)
def test_one_by_one_a_classifier_is_as_good_as_in_batches(learn, precision):
    "In which documents are read many steps at a time: what that adds to the error of the precision is less than it."
    exact,y = documents_one_by_one(learn), learn.dls.valid.targets
    in_batches,_ = learn.get_preds(precision=precision)
    alone = torch.stack([learn.predict(text, precision=precision)[2] for text in reviews(400, 1)[0]])
    assert not alone.equal(in_batches)
    assert (alone - exact).abs().mean() < 2 * (in_batches - exact).abs().mean()
    right = [(p.argmax(1) == y).double().mean().item() for p in (exact, alone)]
    assert abs(right[1] - right[0]) <= .003


@pytest.mark.parametrize('bs,max_tokens', [(1, None), (7, None), (64, None), (64, 100), (64, 10**6)])
def test_predictions_do_not_depend_on_batches(learn, bs, max_tokens):
    dls,whole = learn.dls, learn.get_preds(with_loss=True)
    old = dls.valid.bs
    try:
        dls.valid.bs = bs
        dls.read_docs(max_tokens=max_tokens)
        for a, b in zip(learn.get_preds(with_loss=True), whole): assert_close(a, b, rtol=1e-4, atol=1e-5)
    finally:
        dls.valid.bs = old
        dls.read_docs()


def test_predictions_on_the_training_part_are_in_order_and_no_pass(learn):
    epoch = learn.dls.train.epoch
    _,y = learn.get_preds(0)
    assert y.equal(learn.dls.train.targets) and learn.dls.train.epoch == epoch


def test_predictions_follow_training_and_averages(learn):
    learn = copy.deepcopy(learn)
    first = learn.get_preds()[0]
    learn.opt_func = SGD
    learn.fit(1, .1, cbs=ASGD(start=1))
    second = learn.get_preds()[0]
    assert (first - second).abs().max() > 1e-4
    with torch.no_grad(): direct = torch.cat([learn.model.eval()(*x).logits.softmax(1) for x, _ in learn.dls.valid])
    assert_close(second[learn.dls.valid.order], direct, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('precision', every)
def test_a_learner_that_has_predicted_can_be_copied_and_exported(learn, precision, tmp_path):
    probs = learn.get_preds(precision=precision)[0]
    twin = pickle.loads(pickle.dumps(learn._twins))
    assert twin._made == (None, None)
    assert_close(copy.deepcopy(learn).get_preds(precision=precision)[0], probs)
    there = load_learner(learn.export(tmp_path / 'clas'), device='cpu')
    text = reviews(1, 5)[0][0]
    assert_close(there.predict(text, precision=precision)[2], learn.predict(text, precision=precision)[2])


def test_precisions_that_cannot_be(learn, monkeypatch, capsys):
    for call in (learn.get_preds, lambda precision: learn.predict('w1', precision=precision)):
        message = "precision='int4': use 'fp32', 'fp16', 'bf16' or 'int8'"
        with pytest.raises(ValueError, match=message): call(precision='int4')
    with pytest.raises(ValueError, match="'int8' is for a classifier's predictions"): learn.compute_in('int8')
    exact = learn.get_preds()[0]
    monkeypatch.setattr('awdtext.training.precision.can_int8', lambda: False)
    capsys.readouterr()
    assert learn.get_preds(precision='int8')[0].equal(exact)
    assert 'predictions are made in float32' in capsys.readouterr().out
    assert choose_for_prediction('fp32', cpu) == 'fp32'


@pytest.mark.parametrize('how', ['copied', 'pickled optimiser', "torch's own"])
def test_predictions_follow_the_training_of_any_optimiser(learn, how):
    "A fused step changes weights without their version counters, and a copy has lost the hook that tells them."
    learn = copy.deepcopy(learn)
    if how == "torch's own": learn.opt,learn.opt_func = None,partial(torch.optim.AdamW, fused=True)
    learn.fit_one_cycle(1, 1e-3)
    if how == 'copied': learn = copy.deepcopy(learn)
    if how == 'pickled optimiser': learn.model,learn.opt = pickle.loads(pickle.dumps((learn.model, learn.opt)))
    learn.get_preds(precision='bf16')
    learn.fit_one_cycle(1, 1e-2)
    rnn,twin = learn.model.encoder.rnns[0], learn._twins(learn.model, 'bf16').encoder.rnns[0]
    if twin is not rnn: assert_close(twin.bias, (rnn.bias_ih_l0 + rnn.bias_hh_l0).detach(), rtol=0, atol=0)


def test_a_precision_that_is_none_prepares_nothing():
    for arch in ('AWD_LSTM', 'GRU'):
        clas = get_text_classifier(20, 2, dict(SIZE, arch=arch)).eval()
        with pytest.raises(ValueError, match="precision='int4': use 'fp32', 'bf16' or 'int8'"): prepare(clas, 'int4')


def test_threads_may_share_twins():
    "Another one asks for another precision between the look at what there is and its return."
    clas,twins = get_text_classifier(20, 2, SIZE).eval(), Twins()
    class Interrupted(str):
        def __eq__(self, other):
            if self: twins(clas, 'fp32')
            return str(self) == other
        __hash__ = str.__hash__
    made = twins(clas, 'bf16')
    assert made is not clas and twins(clas, Interrupted('bf16')) is made
