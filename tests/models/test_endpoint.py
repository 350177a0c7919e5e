import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

import withstand as ws
from withstand.errors import BadInput, Unavailable
from withstand.models.query_log import QueryLog, key_of
from withstand.protocols import Target

x = torch.rand(7, 3, 4, 4, generator=torch.Generator().manual_seed(0))
W = torch.randn(48, 5, generator=torch.Generator().manual_seed(1))


def logits(images):
    return torch.as_tensor(images, dtype=torch.float32).flatten(1) @ W


class Endpoint:
    """A server that answers with `answer(images)`; an answer may be (status, body), an exception or a delay too."""

    def __init__(self):
        self.asked, self.headers, self.answer = [], [], lambda images: {"logits": logits(images).tolist()}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                images = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
                outer.asked.append(len(images))
                outer.headers.append(dict(self.headers))
                made = outer.answer(images)
                status, body = made if isinstance(made, tuple) else (200, made)
                body = body if isinstance(body, bytes) else json.dumps(body).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    pass  # the client has left

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/predict"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Endpoint()
    yield made
    made.server.shutdown()
    made.server.server_close()


def fails(n, then):
    """Answers with `then` for the first n requests."""
    left = [n]

    def answer(images):
        left[0] -= 1
        return then(images) if left[0] >= 0 else {"logits": logits(images).tolist()}

    return answer


def test_logits_come_back_in_batches(endpoint):
    target: Target = ws.load_model(endpoint.url, batch=3, name="far")
    assert target.access == {"decision"}
    assert torch.allclose(target(x), logits(x), atol=1e-5)
    assert endpoint.asked == [3, 3, 1]
    assert target.access == {"scores", "decision"}
    assert (target.name, target.space.classes, target.module) == ("far", 5, None)
    assert not target(x.clone().requires_grad_()).requires_grad


def test_inputs_arrive_exactly(endpoint):
    seen = []
    endpoint.answer = lambda images: seen.append(images) or {"logits": logits(images).tolist()}
    ws.load_model(endpoint.url)(x)
    assert torch.equal(torch.tensor(seen[0]), x)


def test_probabilities_become_log_probabilities(endpoint):
    endpoint.answer = lambda images: {"probabilities": logits(images).softmax(1).tolist()}
    for outputs in (None, "probabilities"):
        target = ws.load_model(endpoint.url, outputs=outputs)
        assert torch.allclose(target(x), logits(x).log_softmax(1), atol=1e-4)
        assert target.access == {"scores", "decision"}
    endpoint.answer = lambda images: {"probabilities": [[1.0, 0.0]] * len(images)}
    assert ws.load_model(endpoint.url)(x).isfinite().all()


def test_labels_allow_decisions_only(endpoint):
    endpoint.answer = lambda images: {"labels": logits(images).argmax(1).tolist()}
    target = ws.load_model(endpoint.url, classes=5)
    assert torch.equal(target(x), torch.nn.functional.one_hot(logits(x).argmax(1), 5).float())
    assert target.access == {"decision"}
    with pytest.raises(BadInput, match=r"classes: got nothing; .* returns labels only.* Pass classes=K"):
        ws.load_model(endpoint.url)(x)
    with pytest.raises(Unavailable, match=r"labels from \d to \d of 2 classes"):
        ws.load_model(endpoint.url, classes=2)(x)


def test_normalisation_and_headers_are_applied(endpoint):
    target = ws.load_model(endpoint.url, mean=0.5, std=0.25, headers={"Authorization": "Bearer 1"}, shape=(3, 4, 4))
    assert torch.allclose(target(x), logits((x - 0.5) / 0.25), atol=1e-4)
    assert endpoint.headers[0]["Authorization"] == "Bearer 1"
    assert target.space.shape == (3, 4, 4)


def test_queries_are_counted(endpoint):
    target = ws.load_model(endpoint.url, batch=4)
    with ws.count_passes(target) as passes:
        target(x)
        target(x[:2])
    target(x)
    assert (passes.forward_calls, passes.forward_examples, passes.backward_calls) == (2, 9, 0)


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_failures_that_may_pass_are_tried_again(endpoint, status):
    endpoint.answer = fails(2, lambda images: (status, {"detail": "busy"}))
    target = ws.load_model(endpoint.url, backoff=0.001)
    assert torch.allclose(target(x), logits(x), atol=1e-5)
    assert len(endpoint.asked) == 3
    endpoint.answer = fails(9, lambda images: (status, {"detail": "busy"}))
    with pytest.raises(Unavailable, match=rf"answered {status} .*busy.* \(tries: 2\)\. Run the same command again"):
        ws.load_model(endpoint.url, backoff=0, retries=1)(x)


def test_waits_double(endpoint, monkeypatch):
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    endpoint.answer = lambda images: (500, {})
    with pytest.raises(Unavailable):
        ws.load_model(endpoint.url, retries=4, backoff=0.5)(x)
    assert waits == [0.5, 1, 2, 4]


@pytest.mark.parametrize("status", [400, 401, 404])
def test_refusals_are_not_tried_again(endpoint, status):
    endpoint.answer = lambda images: (status, {"detail": "no"})
    with pytest.raises(Unavailable, match=rf"answered {status}"):
        ws.load_model(endpoint.url)(x)
    assert len(endpoint.asked) == 1


def test_an_unreachable_endpoint_is_said(endpoint):
    endpoint.server.shutdown()
    endpoint.server.server_close()
    with pytest.raises(Unavailable, match=r"/predict cannot be reached: .*refused.* \(tries: 3\)"):
        ws.load_model(endpoint.url, retries=2, backoff=0)(x)
    with pytest.raises(Unavailable, match="cannot be reached"):
        ws.load_model("http://no-such-host.invalid/predict", retries=0)(x)


def test_a_timeout_is_said(endpoint):
    endpoint.answer = lambda images: time.sleep(0.5) or {}
    with pytest.raises(Unavailable, match=r"did not answer within 0\.05 seconds \(tries: 2\)"):
        ws.load_model(endpoint.url, timeout=0.05, retries=1, backoff=0)(x)


def test_a_cut_connection_is_tried_again(endpoint, monkeypatch):
    import urllib.request
    from http.client import IncompleteRead, RemoteDisconnected

    real, errors = urllib.request.urlopen, [RemoteDisconnected(), IncompleteRead(b""), ConnectionResetError()]
    monkeypatch.setattr(
        urllib.request, "urlopen", lambda *a, **k: (_ for _ in ()).throw(errors.pop()) if errors else real(*a, **k)
    )
    assert torch.allclose(ws.load_model(endpoint.url, backoff=0)(x), logits(x), atol=1e-5)


GARBAGE = {
    "html": (b"<html>Bad gateway</html>", "which is no JSON"),
    "binary": (b"\xff\xfe\x00", "which is no JSON"),
    "empty": (b"", "which is no JSON"),
    "list": ([[1, 2]], "a list"),
    "other keys": ({"error": "oops"}, r"the keys \['error'\]"),
    "too few rows": ({"logits": [[1, 2]]}, r"logits of shape \[1, 2\] and type int64 for 7 images"),
    "ragged": ({"logits": [[1, 2], [1], [1], [1], [1], [1], [1]]}, "rows of different lengths"),
    "texts": ({"logits": [["a"]] * 7}, "type <U"),
    "null": ({"logits": [[None]] * 7}, "type object"),
    "flat": ({"logits": [1.0] * 7}, r"logits of shape \[7\]"),
    "nan": ({"logits": [[float("nan"), 1]] * 7}, "NaN or Inf"),
    "float labels": ({"labels": [1.5] * 7}, "labels of shape"),
}


@pytest.mark.parametrize(("body", "said"), GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_refused(endpoint, body, said):
    endpoint.answer = lambda images: (200, body)
    with pytest.raises(Unavailable, match=rf"/predict returned .*{said}.*allowed: {{"):
        ws.load_model(endpoint.url, classes=3 if "labels" in said else None)(x)


def test_another_kind_or_class_count_half_way_is_refused(endpoint):
    target = ws.load_model(endpoint.url)
    target(x)
    endpoint.answer = lambda images: {"labels": [0] * len(images)}
    with pytest.raises(Unavailable, match=r"the keys \['labels'\]; allowed: {\"logits\": ...}"):
        target(x)
    endpoint.answer = lambda images: {"logits": [[0.0, 1.0]] * len(images)}
    with pytest.raises(Unavailable, match="2 classes instead of 5"):
        target(x)
    with pytest.raises(Unavailable, match=r'allowed: {"labels"'):
        ws.load_model(endpoint.url, outputs="labels", classes=5)(x)


@pytest.mark.parametrize(
    "options",
    [{"timeout": 0}, {"retries": -1}, {"backoff": -1}, {"batch": 0}, {"outputs": "scores"}, {"weights": "w.pt"}],
)
def test_bad_options_are_refused(options):
    with pytest.raises(BadInput, match=next(iter(options))):
        ws.load_model("http://127.0.0.1/predict", **options)
    with pytest.raises(BadInput, match=r"option: there is no 'tmeout'. Did you mean timeout"):
        ws.load_model("http://127.0.0.1/predict", tmeout=3)


def test_the_fingerprint_is_that_of_the_address_and_the_declarations():
    prints = {
        ws.load_model(url, **options).fingerprint()
        for url in ("http://a/predict", "http://b/predict")
        for options in ({}, {"outputs": "logits"}, {"mean": 0.5, "std": 0.5})
    }
    assert len(prints) == 6
    assert ws.load_model("http://a/predict", timeout=3).fingerprint() in prints


# The log ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["logits", "probabilities", "labels"])
def test_a_repeated_question_is_answered_from_the_log(endpoint, tmp_path, kind):
    full = {"logits": lambda z: z, "probabilities": lambda z: z.softmax(1), "labels": lambda z: z.argmax(1)}[kind]
    endpoint.answer = lambda images: {kind: full(logits(images)).tolist()}
    path = tmp_path / "runs" / "queries.jsonl"
    target = ws.load_model(endpoint.url, log=path, batch=4, classes=5)
    first = target(x)
    assert torch.equal(target(x.flip(0)), first.flip(0))
    assert sum(endpoint.asked) == target.sent == 7
    target._log._file.close()
    again = ws.load_model(endpoint.url, log=path, classes=5)
    assert torch.equal(again(x), first)
    assert (sum(endpoint.asked), again.sent) == (7, 0)
    assert again.access == target.access
    again(torch.cat([x[:3], x[:1] + 1e-3, x[:1] + 1e-3]))
    assert (sum(endpoint.asked), again.sent) == (8, 1)


def test_a_failure_half_way_keeps_what_was_answered(endpoint, tmp_path):
    left = [2]

    def answer(images):
        left[0] -= 1
        return {"logits": logits(images).tolist()} if left[0] >= 0 else b"<html>"

    endpoint.answer = answer
    target = ws.load_model(endpoint.url, log=tmp_path / "q.jsonl", batch=2)
    with pytest.raises(Unavailable, match="Its answers so far are kept; run the same command again"):
        target(x)
    left[0] = 99
    endpoint.asked.clear()
    assert torch.allclose(target(x), logits(x), atol=1e-5)
    assert endpoint.asked == [2, 1]


def test_a_line_cut_off_by_a_kill_is_dropped(endpoint, tmp_path):
    path = tmp_path / "q.jsonl"
    log = QueryLog(path, endpoint.url)
    log.add([key_of(image.numpy()) for image in x], "logits", logits(x).tolist())
    log._file.close()
    path.write_bytes(path.read_bytes()[:-5])
    target = ws.load_model(endpoint.url, log=path)
    assert torch.allclose(target(x), logits(x), atol=1e-5)
    assert target.sent == 1
    assert len(path.read_text().splitlines()) == 8
    target._log._file.close()
    assert len(QueryLog(path, endpoint.url)) == 7


def test_a_log_of_another_endpoint_or_kind_is_refused(endpoint, tmp_path):
    path = tmp_path / "q.jsonl"
    log = QueryLog(path, "http://other/predict")
    log._file.close()
    with pytest.raises(BadInput, match=r"of http://other/predict; allowed: a log of http://127"):
        ws.load_model(endpoint.url, log=path)
    path.unlink()
    log = QueryLog(path, endpoint.url)
    log.add([key_of(x[0].numpy())], "labels", [3])
    log._file.close()
    with pytest.raises(BadInput, match="outputs: got logits; allowed: 'labels', as the query log holds"):
        ws.load_model(endpoint.url, log=path, outputs="logits")(x[:1])
    path.write_text("not a log\nat all\n")
    with pytest.raises(BadInput, match="damaged in line 1"):
        ws.load_model(endpoint.url, log=path)
    with pytest.raises(BadInput, match=r"log: got .* a file that can be written"):
        ws.load_model(endpoint.url, log=tmp_path)


def test_a_log_that_another_process_writes_is_refused(endpoint, tmp_path):
    path = tmp_path / "q.jsonl"
    code = (
        "import sys; from withstand.models.query_log import QueryLog; "
        f"log = QueryLog({str(path)!r}, {endpoint.url!r}); print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        with pytest.raises(Unavailable, match="another process is writing it"):
            ws.load_model(endpoint.url, log=path)
        other.communicate(b"")
    ws.load_model(endpoint.url, log=path)


def test_a_full_disk_is_said_and_leaves_a_whole_log(endpoint, tmp_path):
    path = tmp_path / "q.jsonl"
    log = QueryLog(path, endpoint.url)
    log.add(["00" * 16], "logits", [[1.0]])

    class Full:
        def __init__(self, file):
            self._file = file

        def __getattr__(self, name):
            return getattr(self._file, name)

        def write(self, data):
            self._file.write(data[:5])
            self._file.flush()
            raise OSError(28, "No space left on device")

    real = log._file
    log._file = Full(real)  # type: ignore[assignment]
    with pytest.raises(Unavailable, match=r"No space left on device.* Earlier answers are kept"):
        log.add(["11" * 16], "logits", [[2.0]])
    log._file = real
    log.add(["22" * 16], "logits", [[3.0]])
    real.close()
    again = QueryLog(path, endpoint.url)
    assert len(again) == 2
    assert (again["00" * 16], again["22" * 16]) == (("logits", [1.0]), ("logits", [3.0]))


def test_keys_tell_images_apart():
    a = np.zeros((1, 2, 3), np.float32)
    assert key_of(a) == key_of(a.copy())
    assert len({key_of(a), key_of(a + 1), key_of(a.reshape(1, 3, 2))}) == 3
