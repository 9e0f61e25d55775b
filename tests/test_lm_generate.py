"Generation: the law of each word, the cost of each word, and the same words as the slow way."
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from training_helpers import lm_learner

from awdtext.lm.generate import Law, beam_search, generate, generate_batch, penalise, word_probs
from awdtext.models.language_model import get_language_model

size = dict(emb_sz=8, n_hid=12, n_layers=2)


@pytest.fixture
def model():
    torch.set_num_threads(1)
    return get_language_model(20, size)


def slow_probs(model, ids):
    "The distribution of the next word, after reading everything again."
    model.eval()
    with torch.no_grad(): return model.logits(model(torch.tensor([ids])).dropped)[0, -1].softmax(-1)


def test_cost_grows_with_the_words_and_not_with_their_square(model):
    read = []
    model.register_forward_hook(lambda module, args, out: read.append(args[0].numel()))
    for n in (1, 10, 50):
        read.clear()
        assert len(list(generate(model, [1, 2, 3, 4], n))) == n
        assert read == [4] + [1] * (n - 1), "the prompt once, then one word at a time"


def test_nothing_is_read_before_it_is_asked_for(model):
    read = []
    model.register_forward_hook(lambda module, args, out: read.append(args[0].numel()))
    words = generate(model, [1, 2], 10**9)
    assert read == []
    assert len(list(itertools.islice(words, 3))) == 3 and len(read) == 3


def test_a_learners_prediction_is_linear_too():
    learn,read = lm_learner(),[]
    learn.model.register_forward_hook(lambda module, args, out: read.append(args[0].numel()))
    learn.predict('w1 w2 w3', 20)
    assert sum(read) == 3 + 19


def test_greedy_words_are_those_of_the_slow_way(model):
    for prompt in ([3], [3, 1, 4, 1, 5]):
        ids = list(prompt)
        for word in generate(model, prompt, 25, temperature=0):
            assert word == int(slow_probs(model, ids).argmax())
            ids.append(word)


def test_draws_follow_the_models_distribution(model):
    with torch.no_grad(): model.decoder.bias.copy_(torch.randn(20))
    expected = slow_probs(model, [3, 1, 4])
    n = 1500
    drawn = Counter(next(generate(model, [3, 1, 4], 1, seed=i)) for i in range(n))
    sd = (expected * (1 - expected) / n).sqrt()
    observed = torch.tensor([drawn[i] / n for i in range(20)])
    assert ((observed - expected).abs() < 5 * sd + 1e-3).all()


def test_seeds(model):
    first = list(generate(model, [1], 30, seed=1))
    assert first == list(generate(model, [1], 30, seed=1)) != list(generate(model, [1], 30, seed=2))
    torch.manual_seed(7)
    second = list(generate(model, [1], 30))
    torch.manual_seed(7)
    assert second == list(generate(model, [1], 30))
    before = torch.get_rng_state()
    list(generate(model, [1], 30, seed=1))
    assert torch.equal(torch.get_rng_state(), before), "a seeded generation leaves the global generator alone"


def test_mode_and_gradients_are_as_before_also_between_words(model):
    model.train()
    words = generate(model, [1], 3)
    next(words)
    assert model.training and torch.is_grad_enabled()
    model.eval()
    next(words)
    assert not model.training


def test_forbidden_words_are_never_drawn(model):
    allowed = {4, 7}
    forbidden = [i for i in range(20) if i not in allowed]
    assert set(generate(model, [1], 60, forbidden=forbidden, seed=0)) == allowed
    assert set(generate(model, [1], 20, temperature=0, forbidden=forbidden)) <= allowed
    with pytest.raises(ValueError, match="Every word is forbidden"):
        list(generate(model, [1], 1, forbidden=list(range(20))))


def test_empty_prompt(model):
    with pytest.raises(ValueError, match="prompt is empty"): list(generate(model, [], 1))
    assert list(generate(model, [1], 0)) == []


# The distribution

def slowly_filtered(p, top_k, min_p):
    best = max(range(len(p)), key=lambda i: p[i])
    def passes(v): return (top_k is None or sum(w > v for w in p) < top_k) and (min_p is None or v >= min_p)
    kept = [v if i == best or passes(v) else 0. for i, v in enumerate(p)]
    return [v / sum(kept) for v in kept]


@pytest.mark.parametrize('temperature', [.5, 1., 3.])
@pytest.mark.parametrize('top_k', [None, 1, 3, 100])
@pytest.mark.parametrize('min_p', [None, 0., .1, 1.])
def test_filters_are_the_definitions(temperature, top_k, min_p):
    z = torch.randn(4, 9)
    probs = word_probs(z, temperature, top_k, min_p)
    for row, logits in zip(probs, z):
        p = (logits.double() / temperature).softmax(-1).tolist()
        assert_close(row.double(), torch.tensor(slowly_filtered(p, top_k, min_p)).double(), rtol=1e-4, atol=1e-6)
    assert_close(probs.sum(-1), torch.ones(4))


def test_extreme_scores_stay_numbers():
    z = torch.tensor([[1e4, 0., -torch.inf]])
    for t in (1e-6, 0., 1.): assert_close(word_probs(z, t), torch.tensor([[1., 0., 0.]]))
    assert word_probs(z, .7).isfinite().all()


@pytest.mark.parametrize('kwargs', [
    dict(temperature=-.1), dict(temperature=True), dict(top_k=0), dict(top_k=-1), dict(top_k=True), dict(min_p=1.1),
    dict(min_p=-.1)], ids=str)
def test_wrong_settings(kwargs):
    with pytest.raises(ValueError, match=f"{list(kwargs)[0]}="): word_probs(torch.zeros(1, 3), **kwargs)


# The nucleus, and the penalty

def nucleus(p, top_p):
    "The fewest best words with this probability together, in numpy."
    order = np.argsort(-p, kind='stable')
    n = int(np.searchsorted(np.cumsum(p[order]), top_p * (1 - 1e-12))) + 1
    kept = np.zeros_like(p)
    kept[order[:n]] = p[order[:n]]
    return kept / kept.sum()


@pytest.mark.parametrize('top_p', [1e-9, .1, .5, .9, 1.])
@pytest.mark.parametrize('temperature', [.5, 1., 3.])
def test_nucleus_is_the_definition(top_p, temperature):
    z = torch.randn(6, 11, dtype=torch.float64)
    for row, logits in zip(word_probs(z, temperature, top_p=top_p), z.numpy()):
        p = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
        np.testing.assert_allclose(row.numpy(), nucleus(p, top_p), rtol=1e-4, atol=1e-7)


def test_equal_words_do_not_widen_the_nucleus():
    assert (word_probs(torch.zeros(1, 8), top_p=.5) > 0).sum() == 4


def test_all_filters_together_keep_what_each_keeps():
    z = torch.randn(50, 9)
    each = [word_probs(z, **kw) > 0 for kw in (dict(top_k=5), dict(top_p=.8), dict(min_p=.05))]
    assert torch.equal(word_probs(z, 1., 5, .05, .8) > 0, each[0] & each[1] & each[2])


def test_low_temperature_is_safer():
    "Not the inverse, as it once was elsewhere."
    z = torch.tensor([[2., 1., 0.]])
    best = [word_probs(z, t)[0, 0].item() for t in (2., 1., .5, 0.)]
    assert best == sorted(best)


@pytest.mark.parametrize('top_p', [0, 0., -.1, 1.1, float('nan')])
def test_impossible_nucleus(top_p):
    with pytest.raises(ValueError, match='top_p='): word_probs(torch.zeros(1, 3), top_p=top_p)


def test_penalty_does_not_depend_on_the_logits_zero():
    z,said = torch.randn(3, 7), torch.rand(3, 7) > .5
    a,b = (penalise((z + shift).log_softmax(-1), said, 1.5).softmax(-1) for shift in (0., 100.))
    assert_close(a, b, rtol=1e-4, atol=1e-6)
    plain = z.softmax(-1)
    assert (penalise(z.log_softmax(-1), said, 1.5)[said] <= plain.log()[said]).all()


def test_penalty_lets_a_text_out_of_its_circle(model):
    with torch.no_grad(): model.decoder.bias[5] = 3.                          # says 5 for ever
    assert set(generate(model, [1], 30, temperature=0)) == {5}
    assert len(set(generate(model, [1], 30, temperature=0, repetition_penalty=8.))) > 3


def test_penalty_looks_at_the_prompt_too(model):
    with torch.no_grad(): model.decoder.bias[5] = 3.
    assert next(generate(model, [5, 1], 1, temperature=0, repetition_penalty=8.)) != 5


# Every kin, side by side and alone

kinds = {'lstm': {}, 'gru': dict(arch='GRU'), 'qrnn': dict(arch='QRNN'), 'mos': dict(decoder='mos', n_experts=3),
         'adaptive': dict(decoder='adaptive', cutoffs=[8], tie_weights=False)}
prompts = [[3, 1, 4], [1], [5, 9, 2, 6], [5, 3, 5]]


@pytest.mark.parametrize('kind', kinds)
def test_log_probabilities_are_those_of_reading_everything_again(kind):
    torch.manual_seed(0)
    model = get_language_model(20, dict(**size, **kinds[kind]))
    with torch.no_grad():
        for p in model.parameters(): p *= 3                                     # no two words alike
    for prompt, text in zip(prompts, generate_batch(model, prompts, 12, seed=1)):
        ids = list(prompt)
        for word, logp in zip(text.ids, text.logps):
            assert logp == pytest.approx(slow_probs(model, ids)[word].log().item(), abs=1e-4)
            ids.append(word)


@pytest.mark.parametrize('bs', [1, 2, 64])
def test_a_text_does_not_depend_on_its_neighbours(model, bs):
    law = Law(top_p=.9, penalty=1.3, stop=[7, 8])
    together = generate_batch(model, prompts, 40, law, seed=5, bs=bs)
    for i, prompt in enumerate(prompts):
        (alone,) = generate_batch(model, [prompt], 40, law, seed=5 + i)
        assert together[i].ids == alone.ids
        assert together[i].logps == pytest.approx(alone.logps, abs=1e-5)
        stopped = [word in law.stop for word in alone.ids]
        assert not any(stopped[:-1]) and (stopped[-1] or len(stopped) == 40)


def test_a_long_prompt_is_read_to_its_end_and_not_cut(model):
    prompt = torch.randint(20, (1300,)).tolist()
    assert next(generate(model, prompt, 1, temperature=0)) == int(slow_probs(model, prompt).argmax())
    (text,) = generate_batch(model, [prompt], 1, seed=0)
    assert text.logps[0] == pytest.approx(slow_probs(model, prompt)[text.ids[0]].log().item(), abs=1e-4)


def test_a_word_costs_the_same_late_as_early(model):
    read = []
    model.register_forward_hook(lambda module, args, out: read.append(tuple(args[0].shape)))
    generate_batch(model, prompts, 30, Law(temperature=0.))
    assert read[3:] == [(4, 1)] * 29 and sorted(read[:3]) == [(1, 1), (1, 4), (2, 3)]


def test_no_texts_and_no_words(model):
    assert generate_batch(model, [], 5) == []
    assert generate_batch(model, [[1]], 0) == [([], [])]


@pytest.mark.parametrize('law, problem', [
    (Law(stop=[20]), 'stop has the id 20'), (Law(stop=[-1]), 'stop has the id -1'),
    (Law(forbidden=[99]), 'forbidden has the id 99'), (Law(top_p=0.), 'top_p=0.0'),
    (Law(penalty=.9), 'repetition_penalty=0.9')])
def test_impossible_laws(model, law, problem):
    model.train()
    with pytest.raises(ValueError, match=problem): generate_batch(model, [[1]], 3, law)
    assert model.training and torch.is_grad_enabled()


# Beams

@pytest.mark.parametrize('kind', kinds)
@pytest.mark.parametrize('stop', [(), (2,)])
def test_a_wide_beam_finds_what_trying_all_finds(kind, stop):
    torch.manual_seed(1)
    config = {**kinds[kind], **({'cutoffs': [2]} if kind == 'adaptive' else {})}
    model = get_language_model(4, dict(**size, pad_token=0, **config))
    with torch.no_grad():
        for p in model.parameters(): p *= 4
    texts = {t[:next((i + 1 for i, w in enumerate(t) if w in stop), 4)] for t in itertools.product(range(4), repeat=4)}
    def logp(ids): return sum(slow_probs(model, [1, *ids[:i]])[w].log().item() for i, w in enumerate(ids))
    expected = sorted(((logp(t), list(t)) for t in texts), reverse=True)
    found = beam_search(model, [1], 4, beam_sz=400, stop=stop)
    assert len(found) == len(expected)
    assert [text.logp for text in found] == pytest.approx([p for p, _ in expected], abs=1e-4)
    assert found[0].ids == expected[0][1]


def test_a_beam_is_the_same_in_training(model):
    "Dropout is off, and the mode is as before."
    model.eval()
    quiet = beam_search(model, [1], 10)
    model.train()
    assert [t.ids for t in beam_search(model, [1], 10)] == [t.ids for t in quiet]
    assert model.training and [t.ids for t in beam_search(model, [1], 10)] == [t.ids for t in quiet]


def test_a_wider_beam_finds_no_less_likely_text():
    torch.manual_seed(3)
    model = get_language_model(20, size)
    with torch.no_grad():
        for p in model.parameters(): p *= 5
    best = [beam_search(model, [1, 2], 8, beam_sz=n)[0].logp for n in (1, 5, 200)]
    assert best[0] <= best[1] + 1e-6 and best[1] <= best[2] + 1e-6


def slow_beams(model, prompt, n_words, beam_sz, penalty, stop):
    "Every beginning is read again for every word."
    beams = [([], 0., 0.)]
    for _ in range(n_words):
        found = []
        for ids, rank, logp in beams:
            if ids and ids[-1] in stop:
                found.append((ids, rank, logp))
                continue
            for word, p in enumerate(slow_probs(model, [*prompt, *ids]).log().tolist()):
                found.append(([*ids, word], rank + p * (penalty if word in [*prompt, *ids] else 1.), logp + p))
        beams = sorted(found, key=lambda beam: -beam[1])[:beam_sz]
    return beams


@pytest.mark.parametrize('penalty', [1., 1.3])
@pytest.mark.parametrize('stop', [(), (2, 7)])
def test_a_beam_is_that_of_the_slow_way(penalty, stop):
    torch.manual_seed(2)
    model = get_language_model(20, size)
    with torch.no_grad():
        for p in model.parameters(): p *= 4
    found = beam_search(model, [1, 3], 9, 4, repetition_penalty=penalty, stop=stop)
    expected = slow_beams(model, [1, 3], 9, 4, penalty, stop)
    assert [text.ids for text in found] == [ids for ids, *_ in expected]
    assert [text.logp for text in found] == pytest.approx([logp for *_, logp in expected], abs=1e-4)
    assert all(len(text.ids) == len(text.logps) for text in found)


class Read(list):
    "A prompt that counts how often it is read."
    times = 0

    def __iter__(self):
        self.times += 1
        return super().__iter__()


@pytest.mark.parametrize('penalty', [1., 1.3])
def test_a_beam_reads_its_prompt_no_more_often_for_more_words(model, penalty):
    times = []
    for n in (2, 40):
        prompt = Read([1, 3])
        beam_search(model, prompt, n, repetition_penalty=penalty)
        times.append(prompt.times)
    assert times[0] == times[1]


def test_penalty_in_a_beam(model):
    with torch.no_grad(): model.decoder.bias[5] = 3.
    assert set(beam_search(model, [1], 8)[0].ids) == {5}
    assert len(set(beam_search(model, [1], 8, repetition_penalty=8.)[0].ids)) > 2


@pytest.mark.parametrize('kwargs', [
    dict(beam_sz=0), dict(length_penalty=-1.), dict(repetition_penalty=.5), dict(stop=[20]),
    dict(forbidden=[20])], ids=str)
def test_impossible_beams(model, kwargs):
    with pytest.raises(ValueError): beam_search(model, [1], 3, **kwargs)


# What is no text, no law and no model

@pytest.mark.parametrize('n_words', [-1, 2.5])
def test_impossible_numbers_of_words(model, n_words):
    for call in (lambda: list(generate(model, [1], n_words)), lambda: generate_batch(model, [[1]], n_words),
                 lambda: beam_search(model, [1], n_words)):
        with pytest.raises(ValueError, match='n_words='): call()


@pytest.mark.parametrize('ids', [[1, 99], [-1], torch.tensor([2, 20])], ids=str)
def test_prompts_outside_of_the_vocabulary(model, ids):
    for call in (lambda: list(generate(model, ids, 2)), lambda: generate_batch(model, [[1], ids], 2),
                 lambda: beam_search(model, ids, 2)):
        with pytest.raises(ValueError, match='the prompt has the ids .* outside of the vocabulary'): call()


def test_spoilt_weights_are_told(model):
    with torch.no_grad(): model.encoder.rnns[0].bias_hh_l0.fill_(torch.nan)
    for call in (lambda: list(generate(model, [1], 2)), lambda: beam_search(model, [1], 2)):
        with pytest.raises(ValueError, match='weights are spoilt'): call()


@pytest.mark.parametrize('temperature', [1e-45, 1e-40, 1e-30, 1e30])
def test_every_temperature_gives_a_distribution(temperature):
    z = torch.tensor([[-3., -1., -torch.inf, -2.]])
    probs = word_probs(z, temperature)
    assert_close(probs, torch.tensor([[0., 1., 0., 0.] if temperature < 1 else [1/3, 1/3, 0., 1/3]]))


@pytest.mark.parametrize('value', [torch.inf, torch.nan])
def test_laws_beyond_all_numbers(model, value):
    for law in (Law(temperature=value, forbidden=[3]), Law(penalty=value)):
        with pytest.raises(ValueError, match='=(inf|nan)'): generate_batch(model, [[1]], 2, law)
    with pytest.raises(ValueError, match='length_penalty='): beam_search(model, [1], 2, length_penalty=value)
