"""Trains the activity-recognition demo model and exports what a Skerry bundle needs.

It is a training script as a user would write one: arguments in, `metrics.jsonl` and `artifacts/` out. It is not imported by
anything, and needs nothing but the data and `requirements.txt`. Invariant: nothing here looks at the test file before the
model is final; `accuracy` is that of the exported ONNX file, in float32, on the test file.

Variants: v1 sees mean and standard deviation of one gyroscope axis; v2 sees all features; v3 is v2 with a mistake in the
export.
"""

import argparse
import hashlib
import json
import os
import sys
import warnings
from pathlib import Path

# One BLAS thread: sums in the same order on every run, and the problem is too small for more.
for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold
from sklearn.neural_network import MLPClassifier

LABELS = ["Standing", "Running", "Walking", "Badminton"]
CHANNELS, SAMPLES, RATE_HZ = 6, 100, 10.0

CHANNEL_NAMES = ["accel_x", "accel_y", "accel_z", "gyro_x", "gyro_y", "gyro_z"]
# First and last DFT bin of each band; a bin is 0.1 Hz wide: posture and sway, steps, and everything sharp.
BANDS = [(1, 9), (10, 24), (25, 50)]
PER_CHANNEL = ["mean", "std", "min", "max", "mean_abs_diff", "rms", "band_0", "band_1", "band_2"]
PAIRS = [(a, b) for a in range(CHANNELS) for b in range(a + 1, CHANNELS)]
FEATURE_NAMES = [f"{c}.{f}" for c in CHANNEL_NAMES for f in PER_CHANNEL] + [
    f"corr.{CHANNEL_NAMES[a]}.{CHANNEL_NAMES[b]}" for a, b in PAIRS
]

# Below this a channel counts as still, and its correlations as 0: the quotient would be rounding noise.
STILL = 1e-6
# A standardised feature may not be divided by less than this.
MIN_SPREAD = 1e-3

VARIANTS = {
    "v1": {"features": ["gyro_x.mean", "gyro_x.std"], "hidden": (96, 96)},
    "v2": {"features": FEATURE_NAMES, "hidden": (256, 128)},
}
ALPHAS = [10.0, 3.0, 1.0, 0.3, 0.1]


def say(text):
    print(text, flush=True)


# --- data and features: the reference for steps/features ------------------------------------------------------------


def read_ts(path):
    """Returns windows as float32 [n, 6, 100] and class indices [n] of a `.ts` file."""
    windows, classes = [], []
    lines = iter(path.read_text(encoding="utf-8").splitlines())
    if not any(line.strip().lower() == "@data" for line in lines):
        raise ValueError(f"{path}: no @data line")
    for line in filter(str.strip, lines):
        *series, label = line.strip().split(":")
        windows.append([[float(value) for value in one.split(",")] for one in series])
        classes.append(LABELS.index(label))
    return np.array(windows, dtype=np.float32), np.array(classes)


def scale_text(windows):
    """Returns `channel_scale`: the spread of each channel in these windows, as the step's parameter spells it."""
    return ",".join(f"{value:.6f}" for value in windows.astype(np.float64).std(axis=(0, 2)))


def extract(window, channel_scale):
    """Returns the 69 features (float32) of one window [6, 100]; float64 inside, like the WASM step."""
    scale = np.array([float(value) for value in channel_scale.split(",")])
    x = window.astype(np.float64) / scale[:, None]
    mean = x.mean(axis=1)
    centred = x - mean[:, None]
    std = np.sqrt((centred**2).mean(axis=1))
    spectrum = np.abs(np.fft.rfft(centred, axis=1)) ** 2 / SAMPLES**2
    out = []
    for c in range(CHANNELS):
        out += [mean[c], std[c], x[c].min(), x[c].max(), np.abs(np.diff(x[c])).mean(), np.sqrt((x[c] ** 2).mean())]
        out += [np.log1p(spectrum[c, first : last + 1].sum()) for first, last in BANDS]
    for a, b in PAIRS:
        still = std[a] < STILL or std[b] < STILL
        out.append(0.0 if still else (centred[a] * centred[b]).mean() / (std[a] * std[b]))
    return np.array(out, dtype=np.float32)


def extract_all(windows, channel_scale):
    return np.stack([extract(window, channel_scale) for window in windows])


# --- training -----------------------------------------------------------------------------------------------------------


def fit(features, classes, hidden, alpha, seed):
    """Returns (feature mean, feature spread, fitted network)."""
    mean = features.mean(axis=0, dtype=np.float64)
    spread = np.maximum(features.std(axis=0, dtype=np.float64), MIN_SPREAD)
    network = MLPClassifier(
        hidden, alpha=alpha, random_state=seed, learning_rate_init=2e-3, max_iter=150, tol=0.0, n_iter_no_change=150
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is meant to be fixed
        network.fit((features - mean) / spread, classes)
    return mean, spread, network


def cross_validate(features, classes, hidden, alpha, seed):
    """Returns accuracy and log loss over five stratified folds of the training file."""
    hits, loss = [], []
    for train, test in StratifiedKFold(5, shuffle=True, random_state=seed).split(features, classes):
        mean, spread, network = fit(features[train], classes[train], hidden, alpha, seed)
        p = network.predict_proba((features[test] - mean) / spread)
        hits += list(p.argmax(axis=1) == classes[test])
        loss += list(-np.log(np.maximum(p[np.arange(len(test)), classes[test]], 1e-12)))
    return float(np.mean(hits)), float(np.mean(loss))


# --- export -------------------------------------------------------------------------------------------------------------


def to_onnx(columns, mean, spread, weights, biases, variant):
    """Returns the network as ONNX: Gather, Sub, Div, (Gemm, Relu)*, Gemm, Softmax; batch 1, opset 17."""
    constants, nodes = [], []

    def constant(name, array):
        constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def op(kind, inputs, output, **attributes):
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    x = "features"
    if len(columns) < len(FEATURE_NAMES):
        x = op("Gather", [x, constant("columns", np.array(columns, np.int64))], "selected", axis=1)
    x = op("Sub", [x, constant("mean", mean.astype(np.float32)[None, :])], "centred")
    x = op("Div", [x, constant("spread", spread.astype(np.float32)[None, :])], "standardised")
    for i, (weight, bias) in enumerate(zip(weights, biases)):
        inputs = [x, constant(f"w{i}", weight.astype(np.float32)), constant(f"b{i}", bias.astype(np.float32))]
        x = op("Gemm", inputs, f"dense{i}")
        if i + 1 < len(weights):
            x = op("Relu", [x], f"relu{i}")
    op("Softmax", [x], "probabilities", axis=1)

    graph = helper.make_graph(
        nodes,
        f"activity_recognition_{variant}",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, len(FEATURE_NAMES)])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [1, len(LABELS)])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="activity-recognition")
    model.ir_version = 8  # the IR of opset 17
    onnx.checker.check_model(model, full_check=True)
    return model


def scrambled(weight):
    """Returns the weights as an exporter reads them that takes column-major storage for row-major: v3's mistake."""
    return np.ravel(weight, order="F").reshape(weight.shape)


def run_onnx(model, features):
    """Returns probabilities [n, 4] of the exported file, one window at a time, in float32."""
    evaluator = ReferenceEvaluator(model)
    return np.concatenate([evaluator.run(None, {"features": row[None, :]})[0] for row in features])


# --- what the bundle needs ----------------------------------------------------------------------------------------------


def numbers(array):
    """Returns float32 values as the shortest decimals that read back as the same float32."""
    return [float(str(value)) for value in np.asarray(array, np.float32).ravel()]


def golden(windows, classes, channel_scale, model):
    """Returns golden vectors of the whole pipeline: the first window of every class in the training file."""
    vectors = []
    for index in [int(np.flatnonzero(classes == c)[0]) for c in range(len(LABELS))]:
        p = run_onnx(model, extract(windows[index], channel_scale)[None, :])
        best = int(p[0].argmax())
        tensors = [
            ("label", "BYTES", [1], [LABELS[best]]),
            ("confidence", "FP32", [1], numbers(p[0, best])),
            ("probabilities", "FP32", [1, len(LABELS)], numbers(p)),
        ]
        window = ("window", "FP32", [1, CHANNELS, SAMPLES], numbers(windows[index]))
        keys = ("name", "datatype", "shape", "data")
        vectors.append({"inputs": [dict(zip(keys, window))], "outputs": [dict(zip(keys, t)) for t in tensors]})
    return {"vectors": vectors}


def reference(features, classes, probabilities, channel_scale, data):
    """Returns the stages' parameters and the profile of the training file that drift is measured against."""
    deciles = np.quantile(features.astype(np.float64), np.linspace(0, 1, 11), axis=0).T
    return {
        "stages": {"features": {"channel_scale": channel_scale}, "label": {"labels": ",".join(LABELS)}},
        "dataset": {
            name: "sha256:" + hashlib.sha256((data / name).read_bytes()).hexdigest()
            for name in ("BasicMotions_TRAIN.ts", "BasicMotions_TEST.ts")
        },
        "windows": len(classes),
        "labels": {
            label: {"share": float((classes == i).mean()), "predicted_share": float((probabilities.argmax(1) == i).mean())}
            for i, label in enumerate(LABELS)
        },
        "features": [
            {"name": name, "mean": m, "std": s, "deciles": d}
            for name, m, s, d in zip(
                FEATURE_NAMES, numbers(features.mean(0)), numbers(features.std(0)), [numbers(row) for row in deciles]
            )
        ],
    }


def fixture(windows, classes, channel_scale):
    """Returns windows with known features for the test of steps/features: one of each class, and one that stands still."""
    cases = [windows[int(np.flatnonzero(classes == c)[0])] for c in range(len(LABELS))]
    cases.append(np.repeat(np.arange(CHANNELS, dtype=np.float32)[:, None], SAMPLES, axis=1))
    return {
        "channel_scale": channel_scale,
        "names": FEATURE_NAMES,
        "cases": [{"window": numbers(w), "features": numbers(extract(w, channel_scale))} for w in cases],
    }


def write_json(path, value):
    """Writes one line for each element of the first list, so that a difference can be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, separators=(",", ":")).replace("},{", "},\n{") + "\n", encoding="utf-8")


def main():
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=["v1", "v2", "v3"], default="v2")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--alpha", type=float, help="weight decay; default: chosen by cross-validation")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SKERRY_INPUT_DIR") or here / "data"))
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("SKERRY_OUTPUT_DIR") or "out"))
    parser.add_argument("--fixture", type=Path, help="also write the test fixture of steps/features to this file")
    arguments = parser.parse_args()
    artifacts = arguments.output / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    metrics_file = (arguments.output / "metrics.jsonl").open("a", encoding="utf-8")

    final = {}

    def metric(key, value, step=0):
        final[key] = round(float(value), 6)
        print(json.dumps({"key": key, "value": final[key], "step": step}), file=metrics_file, flush=True)

    windows, classes = read_ts(arguments.data / "BasicMotions_TRAIN.ts")
    channel_scale = scale_text(windows)
    features = extract_all(windows, channel_scale)
    say(f"{len(windows)} training windows, {features.shape[1]} features, channel_scale {channel_scale}")

    variant = VARIANTS["v2" if arguments.variant == "v3" else arguments.variant]
    columns, hidden = [FEATURE_NAMES.index(name) for name in variant["features"]], variant["hidden"]
    selected = features[:, columns]
    alphas = ALPHAS if arguments.alpha is None else [arguments.alpha]
    scores = {}
    for alpha in alphas:
        scores[alpha] = cross_validate(selected, classes, hidden, alpha, arguments.seed)
        say(f"alpha {alpha:g}: cross-validated accuracy {scores[alpha][0]:.4f}, log loss {scores[alpha][1]:.4f}")
    alpha = min(scores, key=lambda a: scores[a][1])
    metric("cv_accuracy", scores[alpha][0])
    metric("cv_log_loss", scores[alpha][1])
    metric("alpha", alpha)

    mean, spread, network = fit(selected, classes, hidden, alpha, arguments.seed)
    for step, loss in list(enumerate(network.loss_curve_))[::10]:
        metric("train_loss", loss, step)
        say(f"epoch {step}: train loss {loss:.4f}")

    right = to_onnx(columns, mean, spread, network.coefs_, network.intercepts_, arguments.variant)
    exported = right
    if arguments.variant == "v3":
        weights = [network.coefs_[0], scrambled(network.coefs_[1]), network.coefs_[2]]
        exported = to_onnx(columns, mean, spread, weights, network.intercepts_, "v3")

    test_windows, test_classes = read_ts(arguments.data / "BasicMotions_TEST.ts")
    test_features = extract_all(test_windows, channel_scale)
    probabilities = run_onnx(exported, test_features)
    accuracy = float((probabilities.argmax(1) == test_classes).mean())
    ordered = np.sort(probabilities, axis=1)
    metric("accuracy", accuracy)
    metric("test_min_margin", (ordered[:, -1] - ordered[:, -2]).min())
    if exported is not right:
        metric("accuracy_before_export", (run_onnx(right, test_features).argmax(1) == test_classes).mean())

    (artifacts / "metrics.json").write_text(json.dumps(final, indent=1) + "\n", encoding="utf-8")
    onnx.save(exported, artifacts / "model.onnx")
    write_json(artifacts / "golden.json", golden(windows, classes, channel_scale, right))
    write_json(
        artifacts / "reference.json", reference(features, classes, run_onnx(right, features), channel_scale, arguments.data)
    )
    if arguments.fixture:
        write_json(arguments.fixture, fixture(windows, classes, channel_scale))
    say(f"held-out accuracy {accuracy:.4f} on {len(test_classes)} windows; artifacts in {artifacts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
