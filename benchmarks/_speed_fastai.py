"""fastai's half of `speed.py`, run with the python of fastai's own environment: the same tasks as `_speed_awdtext.py`.

fastai's own settings, but for three that favour it: no bars, loaders without processes of their own where the text is
ids already, and for bfloat16 an autocast around it (its `to_bf16` is for CUDA).
"""
from contextlib import nullcontext

import pandas as pd
import torch
from _serve import serve
from fastai.callback.progress import ProgressCallback  # noqa: F401, brings no_bar
from fastai.callback.training import GradientClip
from fastai.data.core import DataLoaders
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD
from fastai.text.data import LMDataLoader, Pad_Chunk, SortedDL, TensorText, TextDataLoaders
from fastai.text.learner import language_model_learner, text_classifier_learner
from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_clas_config, awd_lstm_lm_config
from fastai.torch_core import TensorCategory, set_seed


def load(settings):
    "The arrays of the row beside its settings."
    torch.set_num_threads(settings['threads'])
    set_seed(0)
    return {**settings, **torch.load(settings['file'], weights_only=True)}


def numbers(s): return torch.autocast('cpu', torch.bfloat16) if s['precision'] == 'bf16' else nullcontext()
def sizes(s): return dict(zip(('emb_sz', 'n_hid', 'n_layers'), s['sizes'])) | s.get('dropouts', {})
def facts(model): return {'parameters': sum(p.numel() for p in {*model.parameters()} if p.requires_grad)}
def fingerprint(x): return int((x.long() * torch.arange(1, x.numel() + 1).view(x.shape)).sum())


# Language models

def lm_learner(s):
    dl = LMDataLoader([s['ids'].long()], lens=[len(s['ids'])], bs=s['bs'], seq_len=s['bptt'])
    dls = DataLoaders(dl, dl)
    dls.vocab = s['words']
    return language_model_learner(dls, AWD_LSTM, config=awd_lstm_lm_config | sizes(s), pretrained=False, opt_func=SGD,
                                  cbs=GradientClip(.25))


def train(settings):
    "Steps of a language model, all that `fit` does for them."
    s = load(settings)
    learn = lm_learner(s)
    batch = fingerprint(learn.dls.train.one_batch()[0].as_subclass(torch.Tensor))
    learn.dls = DataLoaders(learn.dls.train, [])  # nothing to validate
    def sample(i):
        with learn.no_bar(), learn.no_logging(), numbers(s): learn.fit(1, s['lr'])
        return s['bs'] * s['bptt'] * len(learn.dls.train)
    return sample, {**facts(learn.model), 'batch': batch}


def evaluate(settings):
    "Loss of a text."
    s = load(settings)
    learn = lm_learner(s)
    def sample(i):
        with learn.no_bar(), learn.no_logging(), numbers(s): learn.validate(dl=learn.dls.valid)
        return (len(s['ids']) - 1) // s['bs'] * s['bs']
    return sample, facts(learn.model)


def batches(settings):
    "Passes over the batches of a text, documents in a new order each time."
    s = load(settings)
    docs = list(s['ids'].long().split(s['lengths'].tolist()))
    dl = LMDataLoader(docs, lens=s['lengths'].tolist(), bs=s['bs'], seq_len=s['bptt'], shuffle=True)
    return lambda i: sum(1 for _ in dl), {}


# Documents

def classifier(s):
    docs = s['ids'].long().split(s['lengths'].tolist())
    items = [(TensorText(doc), TensorCategory(y)) for doc, y in zip(docs, s['labels'])]
    train,valid = (SortedDL(items, bs=bs, shuffle=shuffle, drop_last=shuffle, num_workers=0,
                            before_batch=Pad_Chunk(seq_len=72))
                   for bs, shuffle in ((s['bs'], True), (s['val_bs'], False)))
    dls = DataLoaders(train, valid)
    dls.vocab = s['words']
    return text_classifier_learner(dls, AWD_LSTM, config=awd_lstm_clas_config | sizes(s), pretrained=False, n_out=2,
                                   loss_func=CrossEntropyLossFlat())


def classify(settings):
    "A pass of training over documents."
    s = load(settings)
    learn = classifier(s)
    learn.dls = DataLoaders(learn.dls.train, [])
    if s['frozen']: learn.freeze()
    def sample(i):
        with learn.no_bar(), learn.no_logging(), numbers(s): learn.fit(1, 1e-3)
        return len(learn.dls.train) * s['bs']
    return sample, facts(learn.model)


def get_preds(settings):
    "Probabilities for documents."
    s = load(settings)
    learn = classifier(s)
    def sample(i):
        with learn.no_bar(), learn.no_logging(), numbers(s): return len(learn.get_preds()[0])
    return sample, facts(learn.model)


# Texts

def from_df(settings):
    "From texts to loaders of ids, another text each time."
    s = load(settings)
    def make(texts): TextDataLoaders.from_df(pd.DataFrame({'text': texts}), text_col='text', is_lm=True, seed=0)
    def sample(i):
        texts = s['texts'][i % len(s['texts'])]
        make(texts)
        return sum(len(text.encode()) for text in texts) / 1e6
    make(s['texts'][-1][-20:])  # what is imported at the first call
    return sample, {}


def predict(settings):
    "What the classifier says of one text."
    s = load(settings)
    df = pd.DataFrame({'text': s['texts'], 'label': s['labels']})
    dls = TextDataLoaders.from_df(df, text_col='text', label_col='label', text_vocab=s['words'], seed=0)
    learn = text_classifier_learner(dls, AWD_LSTM, config=awd_lstm_clas_config | sizes(s), pretrained=False)
    def sample(i):
        for _ in range(s['times']):
            with learn.no_bar(), learn.no_logging(), numbers(s): learn.predict(s['text'])
        return s['times']
    return sample, facts(learn.model)


def generate(settings):
    "Words after a prompt."
    s = load(settings)
    dls = TextDataLoaders.from_df(pd.DataFrame({'text': s['texts']}), text_col='text', is_lm=True,
                                  text_vocab=s['words'], seed=0)
    learn = language_model_learner(dls, AWD_LSTM, config=awd_lstm_lm_config | sizes(s), pretrained=False)
    def sample(i):
        with numbers(s): learn.predict(s['prompt'], s['n_words'], no_bar=True)
        return s['n_words']
    return sample, facts(learn.model)


tasks = train, evaluate, batches, classify, get_preds, from_df, predict, generate

if __name__ == '__main__': serve({f.__name__: f for f in tasks})
