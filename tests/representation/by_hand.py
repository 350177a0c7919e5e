"""Losses on embeddings as loops over anchors, as their papers write them."""

import math

import torch


def unit(n, d, seed=0, dtype=torch.float64):
    e = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return torch.nn.functional.normalize(e)


def anchors(e, y, drop=True):
    """For each anchor its positive and negative cosines, as lists."""
    e = e.detach()
    for i in range(len(e)):
        s = [float(e[i] @ e[j]) for j in range(len(e))]
        positive = [s[j] for j in range(len(e)) if j != i and y[j] == y[i] and not (drop and s[j] >= 1 - 1e-5)]
        yield positive, [s[j] for j in range(len(e)) if y[j] != y[i]]


def multi_similarity(e, y, a=2.0, b=40.0, base=0.5, m=0.1):
    losses = []
    for positive, negative in anchors(e, y, drop=False):
        if not positive or not negative:
            continue
        p = [s for s in positive if s - m < max(negative)]
        n = [s for s in negative if s + m > min(positive)]
        if p and n:
            pull = math.log(1 + sum(math.exp(-a * (s - base)) for s in p)) / a
            losses.append(pull + math.log(1 + sum(math.exp(b * (s - base)) for s in n)) / b)
    return sum(losses) / len(losses) if losses else 0.0


def cbml(e, y, kind="log", pos=(0.5, 0.5), neg=(1.0, 0.01), m=0.1, g=0.2, w=1.0, mean=False, top=None, drop=True):
    total = 0.0
    for positive, negative in anchors(e, y, drop):
        if not positive or not negative:
            continue
        mu = g * sum(positive) / len(positive) + (1 - g) * sum(negative) / len(negative)
        variance = sum((s - mu) ** 2 for s in negative) / (len(negative) if mean else 1)
        p = [s for s in positive if s - m < max(negative)]
        n = sorted(negative)[-top:] if top else [s for s in negative if s + m > min(positive)]
        if not p or not n:
            continue
        one = sum(math.exp(-(s - pos[0]) / pos[1]) for s in p)
        two = sum(math.exp((s - neg[0]) / neg[1]) for s in n)
        pair = {
            "log": lambda a, b: math.log(1 + a) + math.log(1 + b),
            "sqrt": lambda a, b: math.sqrt(1 + a) + math.sqrt(1 + b),
            "constant": lambda a, b: 2 + 0.25 * a + 0.25 * b,
        }[kind]
        total += pair(one, two) + w * variance
    return total / len(e)


def proxy_anchor(e, y, proxies, a=32.0, m=0.1):
    classes, cos = range(len(proxies)), torch.nn.functional.normalize(proxies) @ e.T
    present = [c for c in classes if c in y.tolist()]
    pull = sum(
        math.log(1 + sum(math.exp(-a * (float(cos[c, i]) - m)) for i in range(len(e)) if y[i] == c)) for c in present
    )
    push = sum(
        math.log(1 + sum(math.exp(a * (float(cos[c, i]) + m)) for i in range(len(e)) if y[i] != c)) for c in classes
    )
    return pull / len(present) + push / len(proxies)
