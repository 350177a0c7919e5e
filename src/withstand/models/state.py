import contextlib


@contextlib.contextmanager
def frozen(module, mode="eval"):
    flags = [(m, m.training) for m in module.modules()]
    req = [(p, p.requires_grad) for p in module.parameters()]
    module.train(mode == "train")
    for p, _ in req:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for m, t in flags:
            m.training = t
        for p, r in req:
            p.requires_grad_(r)
