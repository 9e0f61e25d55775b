"awdtext's half of `speed.py` and `growth.py`: each task is what a user would write."
import inspect

import torch
from _serve import MissingError, serve
from limits import Product, can_bf16, limit_seconds, product_seconds, shapes

from awdtext.core import seed_all
from awdtext.data.batches import Categorize, ClassifierDataLoader
from awdtext.data.corpus import Corpus
from awdtext.data.dataloaders import TextDataLoaders
from awdtext.data.stream import LMDataLoader
from awdtext.data.vocab import Vocab
from awdtext.lm.evaluate import evaluate_lm
from awdtext.text_learner import language_model_learner, text_classifier_learner
from awdtext.training.optim import SGD
from awdtext.training.precision import MixedPrecision, supported
from awdtext.training.progress import ProgressCallback


def load(settings):
    "The arrays of the row beside its settings."
    torch.set_num_threads(settings['threads'])
    seed_all(0)
    if settings['precision'] == 'bf16' and not supported('bf16', torch.device('cpu')):
        raise MissingError('this processor has no bfloat16')
    return {**settings, **torch.load(settings['file'], weights_only=True)}


def corpus(ids, lengths): return Corpus(ids, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))
def sizes(s): return dict(zip(('emb_sz', 'n_hid', 'n_layers'), s['sizes'])) | s.get('dropouts', {})
def facts(model): return {'parameters': sum(p.numel() for p in model.parameters() if p.requires_grad)}


def precise(method, precision):
    "Arguments that make `method` compute in this precision."
    if precision == 'fp32': return {}
    if 'precision' in inspect.signature(method).parameters: return {'precision': precision}
    if precision == 'bf16': return {}  # the learner was told
    raise MissingError(f'{method.__name__} knows no {precision}')


def tell(learn, precision):
    "The learner, computing in this precision."
    return learn.to_bf16() if precision == 'bf16' else learn


# Language models

def lm_learner(s):
    dl = LMDataLoader(corpus(s['ids'], torch.tensor([len(s['ids'])])), s['bs'], s['bptt'], device='cpu')
    dls = TextDataLoaders(dl, None, Vocab(s['words']), seq_len=s['bptt'], device='cpu')
    learn = language_model_learner(dls, config=sizes(s), opt_func=SGD)
    return tell(learn.remove_cb(ProgressCallback), s['precision'])


def fingerprint(x): return int((x.long() * torch.arange(1, x.numel() + 1).view(x.shape)).sum())


def train(settings):
    "Steps of a language model, all that `fit` does for them."
    s = load(settings)
    learn = lm_learner(s)
    def sample(i):
        learn.fit(1, s['lr'])
        return s['bs'] * s['bptt'] * len(learn.dls.train)
    return sample, {**facts(learn.model), 'batch': fingerprint(learn.dls.one_batch()[0])}


def evaluate(settings):
    "Exact loss of a text."
    s = load(settings)
    learn = lm_learner(s)
    numbers = MixedPrecision(s['precision'])
    def sample(i):
        with numbers.context(): return evaluate_lm(learn.model, s['ids'], s['bs'], s['bptt']).n_tokens
    return sample, facts(learn.model)


def batches(settings):
    "Passes over the batches of a text, documents in a new order each time."
    s = load(settings)
    dl = LMDataLoader(corpus(s['ids'], s['lengths']), s['bs'], s['bptt'], shuffle=True, device='cpu')
    return lambda i: sum(1 for _ in range(s['passes']) for _ in dl), {}


# Documents

def classifier(s):
    docs,y = corpus(s['ids'], s['lengths']), s['labels']
    loaders = [ClassifierDataLoader(docs, y, s[bs], shuffle, pad_idx=1, device='cpu')
               for bs, shuffle in (('bs', True), ('val_bs', False))]
    dls = TextDataLoaders(*loaders, Vocab(s['words']), labeler=Categorize(['neg', 'pos']), device='cpu')
    learn = text_classifier_learner(dls, config=sizes(s)).remove_cb(ProgressCallback)
    return tell(learn, s['precision'])


def classify(settings):
    "A pass of training over documents."
    s = load(settings)
    learn = classifier(s)
    learn.dls.valid = None
    if s['frozen']: learn.freeze()
    def sample(i):
        learn.fit(1, 1e-3)
        return len(s['labels'])
    return sample, facts(learn.model)


def get_preds(settings):
    "Probabilities for documents."
    s = load(settings)
    learn = classifier(s)
    how = precise(learn.get_preds, s['precision'])
    return lambda i: len(learn.get_preds(**how)[0]), facts(learn.model)


# Texts

def from_df(settings):
    "From texts to loaders of ids, another text each time."
    s = load(settings)
    import pandas as pd
    def make(texts):
        TextDataLoaders.from_df(pd.DataFrame({'text': texts}), text_col='text', is_lm=True, seed=0, device='cpu')
    def sample(i):
        texts = s['texts'][i % len(s['texts'])]
        make(texts)
        return sum(len(text.encode()) for text in texts) / 1e6
    make(s['texts'][-1][-20:])  # what is imported at the first call
    return sample, {}


def predict(settings):
    "What the classifier says of one text."
    s = load(settings)
    dls = TextDataLoaders.from_texts(s['texts'], s['labels'], text_vocab=Vocab(s['words']), seed=0, n_workers=1,
                                     device='cpu')
    learn = tell(text_classifier_learner(dls, config=sizes(s)), s['precision'])
    if 'encoder' in s: learn.load_encoder(s['encoder']).unfreeze()  # it freezes
    how = precise(learn.predict, s['precision'])
    def sample(i):
        for _ in range(s['times']): learn.predict(s['text'], **how)
        return s['times']
    return sample, facts(learn.model)


def generate(settings):
    "Words after a prompt."
    s = load(settings)
    dls = TextDataLoaders.from_texts(s['texts'], is_lm=True, text_vocab=Vocab(s['words']), seed=0, n_workers=1,
                                     device='cpu')
    learn = tell(language_model_learner(dls, config=sizes(s)), s['precision'])
    def sample(i):
        learn.predict(s['prompt'], s['n_words'])
        return s['n_words']
    return sample, facts(learn.model)


# What the machine allows

def limit(settings):
    "Seconds of the products of a sample, by precision."
    torch.set_num_threads(settings['threads'])
    products = [Product(*p) for p in settings['products']]
    def sample(i):
        return {precision: limit_seconds(products, best(precision))
                for precision in (('fp32', 'bf16') if can_bf16() else ('fp32',))}
    def best(precision):
        return {shape: min(product_seconds(shape, precision, settings['seconds']).values())
                for shape in shapes(products)}
    return sample, {}


tasks = train, evaluate, batches, classify, get_preds, from_df, predict, generate, limit

if __name__ == '__main__': serve({f.__name__: f for f in tasks})
