import sys

import numpy as np
import pytest
import torch

import withstand as ws
from withstand.errors import BadInput, MissingExtra
from withstand.protocols import Target

x = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
W = np.random.default_rng(0).normal(size=(48, 6)).astype(np.float32)


def expected(images):
    return images.flatten(1) @ torch.tensor(W)


def graph(path, shape=("n", 3, 4, 4), dtype="FLOAT", extra=(), inputs=1):
    """A linear classifier; `extra` lists further outputs: "softmax", "argmax", "twice"."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    h, kind = onnx.helper, getattr(onnx.TensorProto, dtype)
    nodes = [h.make_node("Flatten", ["image"], ["flat"]), h.make_node("MatMul", ["flat", "w"], ["scores"])]
    outputs = [h.make_tensor_value_info("scores", kind, [shape[0], 6])]
    for name in extra:
        if name == "argmax":
            nodes.append(h.make_node("ArgMax", ["scores"], ["argmax"], axis=1, keepdims=0))
            outputs.insert(0, h.make_tensor_value_info("argmax", onnx.TensorProto.INT64, [shape[0]]))
        else:
            parts = {
                "softmax": ("Softmax", ["scores"], {"axis": 1}),
                "twice": ("Concat", ["scores", "scores"], {"axis": 1}),
            }
            operator, read, options = parts[name]
            nodes.append(h.make_node(operator, read, [name], **options))
            outputs.append(h.make_tensor_value_info(name, kind, [shape[0], 12 if name == "twice" else 6]))
    images = [h.make_tensor_value_info(("image", "mask")[i], kind, shape) for i in range(inputs)]
    rows = int(np.prod([s for s in shape[1:] if isinstance(s, int)])) if isinstance(shape[-1], int) else 48
    w = onnx.numpy_helper.from_array(W[:rows].astype(onnx.helper.tensor_dtype_to_np_dtype(kind)), "w")
    made = h.make_model(h.make_graph(nodes, "g", images, outputs, [w]), opset_imports=[h.make_opsetid("", 17)])
    made.ir_version = 10
    onnx.save(made, path)
    return str(path)


def test_a_graph_answers_scores_and_decisions(tmp_path):
    target: Target = ws.load_model(graph(tmp_path / "net.onnx"))
    assert torch.allclose(target(x), expected(x), atol=1e-4)
    assert target.access == {"scores", "decision"}
    assert (target.space.shape, target.space.classes, target.module, target.name) == ((3, 4, 4), 6, None, "net")
    with ws.count_passes(target) as passes:
        target(x)
    assert passes.forward_examples == 5


def test_a_fixed_batch_size_is_kept_to(tmp_path):
    for n in (1, 2, 5, 8):
        target = ws.load_model(graph(tmp_path / "net.onnx", (n, 3, 4, 4)))
        assert torch.allclose(target(x), expected(x), atol=1e-4)


def test_open_shapes_half_precision_and_normalisation(tmp_path):
    target = ws.load_model(graph(tmp_path / "net.onnx", ("n", 3, "h", "w")), mean=0.5, std=(0.5, 0.25, 0.5))
    assert target.space.shape == (3, None, None)
    scaled = (x - 0.5) / torch.tensor([0.5, 0.25, 0.5]).view(1, 3, 1, 1)
    assert torch.allclose(target(x), expected(scaled), atol=1e-4)
    double = ws.load_model(graph(tmp_path / "double.onnx", dtype="DOUBLE"))(x)
    assert double.dtype == torch.float32
    assert torch.allclose(double, expected(x), atol=1e-4)


def test_channels_last_graphs_get_channels_last(tmp_path):
    wide = torch.rand(2, 3, 2, 8)
    target = ws.load_model(graph(tmp_path / "net.onnx", ("n", 2, 8, 3)))
    assert target.space.shape == (3, 2, 8)
    assert torch.allclose(target(wide), expected(wide.permute(0, 2, 3, 1)), atol=1e-4)
    with pytest.raises(BadInput, match=r"layout: got the shape \[3, 4, 3\]"):
        ws.load_model(graph(tmp_path / "open.onnx", ("n", 3, 4, 3)))
    assert ws.load_model(str(tmp_path / "open.onnx"), layout="nhwc").space.shape == (3, 3, 4)
    with pytest.raises(BadInput, match="layout: got 'hwc'"):
        ws.load_model(str(tmp_path / "open.onnx"), layout="hwc")


def test_one_of_several_outputs_is_chosen(tmp_path):
    target = ws.load_model(graph(tmp_path / "a.onnx", extra=["argmax"]))
    assert torch.allclose(target(x), expected(x), atol=1e-4)
    path = graph(tmp_path / "b.onnx", extra=["softmax", "twice"])
    with pytest.raises(BadInput, match=r"name of one of: scores .*softmax .*twice .* Pass output=NAME"):
        ws.load_model(path)
    assert ws.load_model(path, classes=12).space.classes == 12
    soft = ws.load_model(path, output="softmax", outputs="probabilities")
    assert torch.allclose(soft(x), expected(x).log_softmax(1), atol=1e-4)
    with pytest.raises(BadInput, match="output: got 'none'"):
        ws.load_model(path, output="none")
    with pytest.raises(BadInput, match="classes: got 7; allowed: 6"):
        ws.load_model(str(tmp_path / "a.onnx"), classes=7)
    labels = ws.load_model(str(tmp_path / "a.onnx"), output="argmax")
    with pytest.raises(BadInput, match=r"output 'argmax': got int64 \[5\]; allowed: floats \[N, K\]"):
        labels(x)


def test_graphs_that_cannot_be_used_are_refused(tmp_path):
    path = graph(tmp_path / "net.onnx")
    data = (tmp_path / "net.onnx").read_bytes()
    for content in (data[: len(data) // 2], b"not a graph", b""):
        (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(BadInput, match=r"bad\.onnx: damaged, or no ONNX graph"):
            ws.load_model(str(tmp_path / "bad.onnx"))
    with pytest.raises(BadInput, match="which is not a file"):
        ws.load_model(str(tmp_path / "none.onnx"))
    with pytest.raises(BadInput, match=r"inputs: got image .*mask .*; allowed: one float tensor"):
        ws.load_model(graph(tmp_path / "two.onnx", inputs=2))
    with pytest.raises(BadInput, match=r"weights: got w\.pt; allowed: None"):
        ws.load_model(path, "w.pt")
    with pytest.raises(BadInput, match="outputs: got 'labels'"):
        ws.load_model(path, outputs="labels")
    with pytest.raises(BadInput, match="task: got 'stream'"):
        ws.load_model(path, task="stream")
    with pytest.raises(BadInput, match=r"refuses inputs of shape \[2, 3, 5, 5\]"):
        ws.load_model(path)(torch.rand(2, 3, 5, 5))


def test_the_fingerprint_follows_the_file_and_the_options(tmp_path):
    path = graph(tmp_path / "net.onnx", extra=["argmax"])
    base = ws.load_model(path).fingerprint()
    assert ws.load_model(path, name="other").fingerprint() == base
    others = [ws.load_model(path, mean=0.5, std=0.5), ws.load_model(path, output="argmax")]
    others.append(ws.load_model(path, outputs="probabilities"))
    others.append(ws.load_model(graph(tmp_path / "other.onnx")))
    assert len({base, *(o.fingerprint() for o in others)}) == 5


def test_the_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r'needs onnxruntime, .* pip install "withstand\[onnx\]"'):
        ws.load_model(str(tmp_path / "net.onnx"))
