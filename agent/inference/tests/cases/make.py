#!/usr/bin/env python3
"""Makes the models of this folder and their answers: each NAME.onnx with NAME.json, which holds requests and what ONNX Runtime
answers (for the node cases of the ONNX project: what that project says). Run it to add a case; the files are committed.

    python3 -m venv venv && venv/bin/pip install -r requirements.txt && venv/bin/python make.py
"""

import json
import pathlib
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

HERE = pathlib.Path(__file__).parent
NAMES = {
    np.dtype(np.float32): "FP32", np.dtype(np.float64): "FP64", np.dtype(np.int64): "INT64",
    np.dtype(np.int32): "INT32", np.dtype(np.int8): "INT8", np.dtype(np.uint8): "UINT8",
    np.dtype(np.int16): "INT16", np.dtype(np.bool_): "BOOL",
}
rng = np.random.default_rng(7)


def tensor(name, value):
    value = np.asarray(value)
    if value.dtype.kind in "OUS":
        datatype = "BYTES"
        data = [v.decode() if isinstance(v, bytes) else str(v) for v in value.flatten()]
    else:
        datatype = NAMES[value.dtype]
        data = value.flatten().tolist()
    return {"name": name, "datatype": datatype, "shape": list(value.shape), "data": data}


def save(name, model, vectors):
    onnx.save(model, HERE / f"{name}.onnx")
    text = ",\n".join(json.dumps(v) for v in vectors)
    (HERE / f"{name}.json").write_text('{"vectors": [\n' + text + "\n]}\n")


def zip_map_columns(value):
    """The maps that ZipMap gives, as the table that they are made of: this is what Skerry answers."""
    if isinstance(value, list):
        return np.array([[row[key] for key in row] for row in value], dtype=np.float32)
    return value


HOLE = -999.0


def with_holes(model, requests):
    """JSON has no NaN: where a request has one, the model makes it of a number that stands for it."""
    if not any(np.asarray(v).dtype.kind == "f" and np.isnan(v).any() for r in requests for v in r.values()):
        return model
    (source,) = model.graph.input
    inner = source.name + "_with_holes"
    for node in model.graph.node:
        node.input[:] = [inner if name == source.name else name for name in node.input]
    dtype = next(v.dtype for v in requests[0].values())
    model.graph.initializer.extend([numpy_helper.from_array(np.array(HOLE, dtype), "hole"),
                                    numpy_helper.from_array(np.array(np.nan, dtype), "nan")])
    for node in (helper.make_node("Where", ["is_hole", "nan", source.name], [inner]),
                 helper.make_node("Equal", [source.name, "hole"], ["is_hole"])):
        model.graph.node.insert(0, node)
    others = [o for o in model.opset_import if o.domain]
    del model.opset_import[:]
    model.opset_import.extend([helper.make_opsetid("", 15), *others])
    for request in requests:
        for key, value in request.items():
            request[key] = np.where(np.isnan(value), value.dtype.type(HOLE), value)
    return model


def case(name, model, *requests):
    """Saves a model with the answers of ONNX Runtime to requests, each a dict of inputs."""
    model = with_holes(model, requests)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs = [o.name for o in session.get_outputs()]
    vectors = []
    for request in requests:
        answers = [zip_map_columns(a) for a in session.run(None, request)]
        for value, answer in zip(model.graph.output, answers):
            # Skerry wants to know at least the rank.
            kind = value.type.tensor_type
            if value.type.HasField("tensor_type") and not kind.HasField("shape"):
                kind.shape.dim.extend(onnx.TensorShapeProto.Dimension(dim_param=f"d{i}") for i in range(answer.ndim))
        vectors.append({
            "inputs": [tensor(k, v) for k, v in request.items()],
            "outputs": [tensor(k, v) for k, v in zip(outputs, answers)],
        })
    save(name, model, vectors)


def node_cases():
    """The `ai.onnx.ml` node cases of the ONNX project (Apache-2.0), in this folder's form."""
    folder = pathlib.Path(onnx.__file__).parent / "backend/test/data/node"
    for source in sorted(folder.glob("test_ai_onnx_ml_*")):
        model = onnx.load(source / "model.onnx")
        read = lambda path: numpy_helper.to_array(onnx.load_tensor(path))
        data = source / "test_data_set_0"
        request = {v.name: read(data / f"input_{i}.pb") for i, v in enumerate(model.graph.input)}
        model = with_holes(model, [request])
        inputs = [tensor(k, v) for k, v in request.items()]
        outputs = [tensor(v.name, read(data / f"output_{i}.pb")) for i, v in enumerate(model.graph.output)]
        save("node_" + source.name.removeprefix("test_ai_onnx_ml_"), model, [{"inputs": inputs, "outputs": outputs}])


def sklearn_cases():
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType
    from sklearn.compose import ColumnTransformer
    from sklearn.datasets import make_classification, make_regression
    from sklearn.ensemble import (ExtraTreesRegressor, GradientBoostingClassifier, GradientBoostingRegressor,
                                  RandomForestClassifier, RandomForestRegressor)
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.naive_bayes import GaussianNB
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import (Binarizer, MinMaxScaler, Normalizer, OneHotEncoder, OrdinalEncoder, RobustScaler,
                                       StandardScaler)
    from sklearn.svm import SVR
    from sklearn.tree import DecisionTreeClassifier

    x3, y3 = make_classification(200, 6, n_informative=4, n_classes=3, random_state=1)
    x2, y2 = make_classification(200, 6, n_informative=4, n_classes=2, random_state=2)
    xr, yr = make_regression(200, 6, noise=3, random_state=3)
    x3, x2, xr = (x.astype(np.float32) for x in (x3, x2, xr))
    words = np.array(["idle", "walk", "run"])

    def put(name, estimator, x, y, rows=7, **options):
        estimator.fit(x, y)
        options = {id(estimator): options} if options else None
        model = convert_sklearn(estimator, initial_types=[("x", FloatTensorType([None, 6]))], options=options,
                                target_opset={"": 17, "ai.onnx.ml": 3})
        case(name, model, {"x": x[:rows]}, {"x": x[rows:rows + 1]})

    for label, x, y in (("2", x2, y2), ("3", x3, y3), ("words", x3, words[y3])):
        put(f"skl_logistic_{label}", make_pipeline(StandardScaler(), LogisticRegression()), x, y)
        put(f"skl_forest_{label}", RandomForestClassifier(5, max_depth=4, random_state=0), x, y)
        put(f"skl_boosting_{label}", GradientBoostingClassifier(n_estimators=5, max_depth=2, random_state=0), x, y)
    put("skl_tree_no_zipmap", DecisionTreeClassifier(max_depth=4, random_state=0), x3, y3, zipmap=False)
    put("skl_tree_two_classes", DecisionTreeClassifier(max_depth=4, random_state=0), x2, y2, zipmap=False)
    put("skl_perceptron", make_pipeline(MinMaxScaler(), MLPClassifier((5,), max_iter=50, random_state=0)), x3, y3)
    put("skl_bayes", GaussianNB(), x3, y3, zipmap=False)
    put("skl_boosting_regressor", GradientBoostingRegressor(n_estimators=5, max_depth=2, random_state=0), xr, yr)
    put("skl_forest_regressor", RandomForestRegressor(4, max_depth=4, random_state=0), xr, yr)
    put("skl_extra_trees", ExtraTreesRegressor(3, max_depth=4, random_state=0), xr, yr)
    put("skl_ridge", make_pipeline(RobustScaler(), Ridge()), xr, yr)
    put("skl_normalizer", make_pipeline(Normalizer("l1"), LogisticRegression()), x3, y3)
    put("skl_binarizer", make_pipeline(Binarizer(threshold=0.5), LogisticRegression()), x3, y3)
    put("skl_svr", SVR(), xr[:30], yr[:30])
    put("skl_svr_linear", SVR(kernel="linear"), xr[:30], yr[:30])
    holes = x3.copy()
    holes[::3, 2] = np.nan
    put("skl_imputer", make_pipeline(SimpleImputer(), LogisticRegression()), holes, y3)

    color = np.array(["red", "green", "blue"])[rng.integers(0, 3, 200)].reshape(-1, 1).astype(object)
    size = rng.integers(0, 4, (200, 1))
    encoder = ColumnTransformer([
        ("color", OneHotEncoder(handle_unknown="ignore"), [0]), ("size", OneHotEncoder(handle_unknown="ignore"), [1])])
    table = np.hstack([color, size.astype(object)])
    pipeline = make_pipeline(encoder, LogisticRegression()).fit(table, y3)
    model = convert_sklearn(pipeline, initial_types=[("color", StringTensorType([None, 1])),
                                                     ("size", Int64TensorType([None, 1]))],
                            target_opset={"": 17, "ai.onnx.ml": 3})
    case("skl_one_hot", model, {"color": color[:5], "size": size[:5].astype(np.int64)},
         {"color": np.array([["violet"]], dtype=object), "size": np.array([[9]], dtype=np.int64)})
    ordinal = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1).fit(color)
    model = convert_sklearn(ordinal, initial_types=[("color", StringTensorType([None, 1]))],
                            target_opset={"": 17, "ai.onnx.ml": 3})
    case("skl_ordinal", model, {"color": color[:5]})


def linear_cases():
    """`LinearClassifier` in the forms that exporters other than scikit-learn's write."""
    x = rng.normal(size=(6, 3)).astype(np.float32)
    for post in ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT"):
        n = helper.make_node("LinearClassifier", ["x"], ["label", "scores"], domain="ai.onnx.ml", post_transform=post,
                             coefficients=rng.uniform(0, 0.2, 9).tolist(), intercepts=[0.4, 0.5, 0.5], classlabels_ints=[7, 8, 9])
        g = helper.make_graph([n], "case", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
                              [helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
                               helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])])
        model = helper.make_model(g, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)], ir_version=8)
        case(f"linear_{post.lower()}", model, {"x": np.abs(x) * 0.2 if post == "PROBIT" else x})
    for post in ("NONE", "LOGISTIC"):
        n = helper.make_node("LinearClassifier", ["x"], ["label", "scores"], domain="ai.onnx.ml", post_transform=post,
                             coefficients=[0.5, -1.0, 0.25], intercepts=[0.1], classlabels_strings=["no", "yes"])
        g = helper.make_graph([n], "case", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
                              [helper.make_tensor_value_info("label", TensorProto.STRING, ["n"]),
                               helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2])])
        model = helper.make_model(g, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)], ir_version=8)
        case(f"linear_one_score_{post.lower()}", model, {"x": x})


def booster_cases():
    import lightgbm
    import xgboost
    from onnxmltools import convert_lightgbm, convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType
    from sklearn.datasets import make_classification

    for classes in (2, 3):
        x, y = make_classification(200, 6, n_informative=4, n_classes=classes, random_state=classes)
        x = x.astype(np.float32)
        kinds = [("x", FloatTensorType([None, 6]))]
        model = xgboost.XGBClassifier(n_estimators=4, max_depth=3, base_score=0.5).fit(x, y)
        case(f"xgboost_{classes}", convert_xgboost(model, initial_types=kinds, target_opset=15), {"x": x[:7]})
        model = lightgbm.LGBMClassifier(n_estimators=4, max_depth=3, num_leaves=6, verbose=-1).fit(x, y)
        case(f"lightgbm_{classes}", convert_lightgbm(model, initial_types=kinds, target_opset=15), {"x": x[:7]})
    model = xgboost.XGBRegressor(n_estimators=4, max_depth=3, base_score=0.5).fit(x, x[:, 0] * 2 + x[:, 1])
    holes = x[:7].copy()
    holes[:, 1] = np.nan
    case("xgboost_regressor", convert_xgboost(model, initial_types=kinds, target_opset=15), {"x": x[:7]}, {"x": holes})


def graph(nodes, inputs, outputs, constants=(), opset=17, ms=False):
    value = lambda v: helper.make_tensor_value_info(*v)
    sets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid("com.microsoft", 1)] if ms else [])
    inits = [numpy_helper.from_array(np.asarray(v), k) for k, v in dict(constants).items()]
    g = helper.make_graph(nodes, "case", [value(v) for v in inputs], [value(v) for v in outputs], inits)
    return helper.make_model(g, opset_imports=sets, ir_version=8)


def quantised_cases():
    """QOperator models of ONNX Runtime's quantiser, and QDQ chains that tract's rewriting gets wrong."""
    F, U, I = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8
    for kind, dtype in (("u8", np.uint8), ("i8", np.int8)):
        T = U if dtype is np.uint8 else I
        zero = np.array(120 if dtype is np.uint8 else -8, dtype)
        scale = np.float32
        consts = {"sa": scale(0.02317), "sb": scale(0.04711), "so": scale(0.06173), "z": zero}
        whole = rng.integers(0, 256, (2, 3, 4, 4)).astype(dtype)
        other = rng.integers(0, 256, (1, 3, 4, 4)).astype(dtype)
        io = ([("a", T, [2, 3, 4, 4]), ("b", T, [1, 3, 4, 4])], [("y", T, None)])
        for operator in ("Add", "Mul"):
            n = helper.make_node("QLinear" + operator, ["a", "sa", "z", "b", "sb", "z", "so", "z"], ["y"],
                                 domain="com.microsoft")
            case(f"qlinear_{operator.lower()}_{kind}", graph([n], *io, consts, ms=True), {"a": whole, "b": other})
        one = ([("a", T, [2, 3, 4, 4])], [("y", T, None)])
        for operator, extra in (("Sigmoid", {}), ("LeakyRelu", {"alpha": 0.1}), ("GlobalAveragePool", {"channels_last": 0}),
                                ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
                                ("Softmax", {"axis": 3, "opset": 13})):
            n = helper.make_node("QLinear" + operator, ["a", "sa", "z", "so", "z"], ["y"], domain="com.microsoft", **extra)
            constants = {**consts, "so": scale(1 / 256)} if operator in ("Sigmoid", "Softmax") else consts
            case(f"qlinear_{operator.lower()}_{kind}", graph([n], *one, constants, ms=True), {"a": whole})
        n = helper.make_node("QLinearConcat", ["so", "z", "a", "sa", "z", "b", "sb", "z"], ["y"], domain="com.microsoft", axis=0)
        case(f"qlinear_concat_{kind}", graph([n], *io, consts, ms=True), {"a": whole, "b": other})
        # Softmax between its quantisation nodes: tract makes a table of it, which is wrong.
        nodes = [
            helper.make_node("DequantizeLinear", ["a", "sa", "z"], ["f"]),
            helper.make_node("Softmax", ["f"], ["s"], axis=-1),
            helper.make_node("QuantizeLinear", ["s", "so", "z"], ["y"]),
        ]
        model = graph(nodes, [("a", T, [2, 6])], [("y", T, None)], {**consts, "so": scale(1 / 256)})
        case(f"qdq_softmax_{kind}", model, {"a": rng.integers(0, 256, (2, 6)).astype(dtype)})
        # The datatype changes on the way.
        back = U if T == I else I
        nodes[1] = helper.make_node("Relu", ["f"], ["s"])
        nodes[2] = helper.make_node("QuantizeLinear", ["s", "so", "zb"], ["y"])
        other_zero = np.array(3, np.int8 if dtype is np.uint8 else np.uint8)
        model = graph(nodes, [("a", T, [2, 6])], [("y", back, None)], {**consts, "zb": other_zero})
        case(f"qdq_retype_{kind}", model, {"a": rng.integers(0, 256, (2, 6)).astype(dtype)})

    hidden, width, steps = 4, 3, 5
    for name, directions in (("forward", 1), ("bidirectional", 2)):
        w = rng.integers(-127, 127, (directions, width, 4 * hidden)).astype(np.int8)
        r = rng.integers(-127, 127, (directions, hidden, 4 * hidden)).astype(np.int8)
        consts = {
            "w": w, "r": r, "b": rng.normal(size=(directions, 8 * hidden)).astype(np.float32),
            "ws": np.full(directions, 0.01, np.float32), "wz": np.zeros(directions, np.int8),
            "rs": np.full(directions, 0.012, np.float32), "rz": np.zeros(directions, np.int8),
        }
        n = helper.make_node("DynamicQuantizeLSTM", ["x", "w", "r", "b", "", "", "", "", "ws", "wz", "rs", "rz"], ["y", "h", "c"],
                             domain="com.microsoft", hidden_size=hidden, direction=name)
        model = graph([n], [("x", F, [steps, 1, width])], [("y", F, None), ("h", F, None), ("c", F, None)], consts, ms=True)
        case(f"dynamic_lstm_{name}", model, {"x": rng.normal(size=(steps, 1, width)).astype(np.float32)})


def graph_cases():
    F, L, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
    x = rng.normal(size=(1, 3, 1, 2)).astype(np.float32)
    n = helper.make_node("Squeeze", ["x"], ["y"])
    case("squeeze_without_axes", graph([n], [("x", F, [1, 3, 1, 2])], [("y", F, None)], opset=11), {"x": x})

    # What PyTorch exports for `squeeze(1)`: a branch gives another rank, the condition follows from the shape.
    def branch(node, output):
        return helper.make_graph([node], "branch", [], [helper.make_tensor_value_info(output, F, None)])

    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["length"]),
        helper.make_node("Equal", ["length", "one"], ["condition"]),
        helper.make_node("If", ["condition"], ["squeezed"],
                         then_branch=branch(helper.make_node("Squeeze", ["x", "axis"], ["t"]), "t"),
                         else_branch=branch(helper.make_node("Identity", ["x"], ["e"]), "e")),
        helper.make_node("Relu", ["squeezed"], ["y"]),
    ]
    consts = {"one": np.int64(1), "axis": np.array([1], np.int64)}
    model = graph(nodes, [("x", F, ["n", "m", 2])], [("y", F, None)], consts)
    case("if_by_shape_then", model, {"x": x.reshape(3, 1, 2)}, {"x": rng.normal(size=(2, 1, 2)).astype(np.float32)})
    model = graph(nodes, [("x", F, ["n", "m", 2])], [("y", F, None)], consts)
    case("if_by_shape_else", model, {"x": rng.normal(size=(2, 4, 2)).astype(np.float32)})

    # A condition that only the request knows.
    nodes = [helper.make_node("If", ["c"], ["y"],
                              then_branch=branch(helper.make_node("Neg", ["x"], ["t"]), "t"),
                              else_branch=branch(helper.make_node("Abs", ["x"], ["e"]), "e"))]
    model = graph(nodes, [("c", B, []), ("x", F, [3])], [("y", F, [3])])
    value = np.array([-1, 2, 3], np.float32)
    case("if_by_input", model, {"c": np.array(True), "x": value}, {"c": np.array(False), "x": value})

    # A condition on data, which is never known before the run, around branches that use more than it does.
    nodes = [helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
             helper.make_node("Greater", ["sum", "zero"], ["c"]),
             helper.make_node("If", ["c"], ["y"],
                              then_branch=branch(helper.make_node("Mul", ["x", "w"], ["t"]), "t"),
                              else_branch=branch(helper.make_node("Identity", ["x"], ["e"]), "e"))]
    consts = {"zero": np.float32(0), "w": np.array([2, 3, 4], np.float32)}
    model = graph(nodes, [("x", F, [3])], [("y", F, [3])], consts)
    case("if_by_data", model, {"x": value}, {"x": -value})

    # The same with branches of different rank: each condition needs a plan of its own.
    nodes = [helper.make_node("If", ["c"], ["z"],
                              then_branch=branch(helper.make_node("Squeeze", ["x"], ["t"]), "t"),
                              else_branch=branch(helper.make_node("Abs", ["x"], ["e"]), "e")),
             helper.make_node("Flatten", ["z"], ["y"], axis=0)]
    model = graph(nodes, [("c", B, []), ("x", F, [1, 3])], [("y", F, None)])
    case("if_of_two_ranks", model, {"c": np.array(True), "x": value[None]}, {"c": np.array(False), "x": value[None]})

    # A shape that comes with the request.
    model = graph([helper.make_node("Reshape", ["x", "shape"], ["y"])], [("x", F, [2, 6]), ("shape", L, [2])], [("y", F, None)])
    value = rng.normal(size=(2, 6)).astype(np.float32)
    case("reshape_by_input", model, {"x": value, "shape": np.array([3, 4])}, {"x": value, "shape": np.array([-1, 1])})
    nodes = [helper.make_node("Slice", ["x", "from", "to"], ["y"])]
    model = graph(nodes, [("x", F, [2, 6]), ("from", L, [2]), ("to", L, [2])], [("y", F, None)])
    case("slice_by_input", model, {"x": value, "from": np.array([0, 1]), "to": np.array([1, 4])},
         {"x": value, "from": np.array([1, 2]), "to": np.array([2, 6])})

    # Every datatype goes in and comes out.
    kinds = (("f32", F, np.float32), ("f64", TensorProto.DOUBLE, np.float64), ("i8", TensorProto.INT8, np.int8),
             ("i16", TensorProto.INT16, np.int16), ("i32", TensorProto.INT32, np.int32), ("i64", L, np.int64),
             ("u8", TensorProto.UINT8, np.uint8), ("bool", B, np.bool_))
    nodes = [helper.make_node("Transpose", [k], ["y_" + k], perm=[1, 0]) for k, _, _ in kinds]
    model = graph(nodes, [(k, t, ["n", 2]) for k, t, _ in kinds], [("y_" + k, t, None) for k, t, _ in kinds])
    case("datatypes", model, *({k: rng.integers(0, 2, (rows, 2)).astype(d) for k, _, d in kinds} for rows in (1, 3)))


if __name__ == "__main__":
    wanted = sys.argv[1:]
    for make in (node_cases, linear_cases, sklearn_cases, booster_cases, quantised_cases, graph_cases):
        if not wanted or make.__name__ in wanted:
            make()
