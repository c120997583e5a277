"""Runs the built components and the committed models together, and compares with the training script.

Not a replacement for the device's own self-test: models run in onnx's reference evaluator, components in wasmtime. It shows
that what is committed belongs together. Exits 1 if anything does not hold.
"""

import json
import sys
import tomllib
from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from wasmtime import Engine, Store
from wasmtime.component import Component, Linker, Record, Variant

import train

HERE = Path(__file__).resolve().parent


def record(**fields):
    out = Record()
    out.__dict__.update(fields)
    return out


class Step:
    """One component, instantiated and configured."""

    def __init__(self, stage):
        engine = Engine()
        self.store = Store(engine)
        self.instance = Linker(engine).instantiate(self.store, Component.from_file(engine, str(HERE / stage["component"])))
        self.call("configure", [record(name=k, value=v) for k, v in stage["parameters"].items()])

    def call(self, name, *arguments):
        result = self.instance.get_func(self.store, name)(self.store, *arguments)
        if isinstance(result, Variant):
            raise ValueError(f"{name}: {result.tag}: {result.payload}")
        return result

    def process(self, name, array):
        tensor = record(name=name, datatype="fp32", shape=list(array.shape), data=array.astype("<f4").tobytes())
        return {t.name: bytes(t.data) for t in self.call("process", [tensor])}


def check(variant):
    """Prints what one bundle's parts give and returns whether all of it is as it should be."""
    spec = tomllib.loads((HERE / f"bundle-{variant}.toml").read_text())
    features, label = (Step(stage) for stage in spec["stage"] if "component" in stage)
    model = ReferenceEvaluator(onnx.load(HERE / spec["onnx"]))
    scale = spec["stage"][0]["parameters"]["channel_scale"]
    worst_feature = 0.0

    def run(window):
        nonlocal worst_feature
        x = np.frombuffer(features.process("window", window[None])["features"], "<f4")
        want = train.extract(window, scale)
        worst_feature = max(worst_feature, float(np.max(np.abs(x - want) / np.maximum(np.abs(want), 1.0))))
        out = label.process("probabilities", model.run(None, {"features": x[None]})[0])
        return out["label"][4:].decode(), np.frombuffer(out["confidence"] + out["probabilities"], "<f4")

    worst_golden, wrong_labels = 0.0, 0
    for vector in json.loads((HERE / spec["golden"]).read_text())["vectors"]:
        window = np.array(vector["inputs"][0]["data"], np.float32).reshape(train.CHANNELS, train.SAMPLES)
        want = {tensor["name"]: tensor["data"] for tensor in vector["outputs"]}
        got, values = run(window)
        difference = np.abs(values - np.array(want["confidence"] + want["probabilities"], np.float32))
        worst_golden = max(worst_golden, float(difference.max()))
        wrong_labels += got != want["label"][0]

    windows, classes = train.read_ts(HERE / "data" / "BasicMotions_TEST.ts")
    accuracy = float(np.mean([run(w)[0] == train.LABELS[c] for w, c in zip(windows, classes)]))
    reported = json.loads((HERE / "models" / variant / "metrics.json").read_text())["accuracy"]
    golden_holds = worst_golden <= spec["tolerance"]["absolute"] and wrong_labels == 0
    print(
        f"{variant}: features differ by {worst_feature:.1e}, golden outputs by {worst_golden:.1e}, "
        f"{wrong_labels} golden labels wrong, "
        f"accuracy {accuracy:.4f} (reported {reported:.4f})",
        flush=True,
    )
    return worst_feature <= 1e-4 and accuracy == reported and golden_holds == (variant != "v3")


def refused():
    """Returns whether the features step refuses a window of the wrong shape, by name and not by a trap."""
    step = Step({"component": "steps/features.wasm", "parameters": {"channel_scale": "1,1,1,1,1,1"}})
    try:
        step.process("window", np.zeros((1, 100, 6), np.float32))
    except ValueError as error:
        print(f"bad window: {error}")
        return "invalid-input" in str(error)
    return False


if __name__ == "__main__":
    sys.exit(0 if all([*map(check, ["v1", "v2", "v3"]), refused()]) else 1)
