"""Asks an agent everything that tritonclient can ask, over HTTP and over gRPC: HOST:PORT MODEL."""

import queue
import sys

import numpy as np
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException

url, model = sys.argv[1:]

VALUES = {
    "FP32": np.array([[1.5, -2.5, 3.25]], np.float32),
    "INT64": np.array([[-1, 2**40, 3]], np.int64),
    "BOOL": np.array([[True, False, True]]),
    "FP16": np.array([[0.5, -1.5, 65504]], np.float16),
    "BYTES": np.array([[b"a", "ü".encode(), b""]], np.object_),
    "UINT8": np.array([[0, 128, 255]], np.uint8),
}


def refused(word, call):
    try:
        call()
    except InferenceServerException as error:
        assert word in str(error), f"`{word}` is missing in: {error}"
        return
    raise AssertionError(f"not refused: {word}")


def inputs_of(module, **binary):
    inputs = []
    for at, (datatype, value) in enumerate(VALUES.items()):
        tensor = module.InferInput(f"x{at}", list(value.shape), datatype)
        # FP16 has no form in JSON.
        tensor.set_data_from_numpy(value, **({} if datatype == "FP16" else binary))
        inputs.append(tensor)
    return inputs


def check(result, names=None):
    names = names or [f"y{at}" for at in range(len(VALUES))]
    response = result.get_response()
    outputs = response["outputs"] if isinstance(response, dict) else response.outputs
    got = [output["name"] if isinstance(output, dict) else output.name for output in outputs]
    assert got == names, got
    for name in names:
        expected = list(VALUES.values())[int(name[1:])]
        value = result.as_numpy(name)
        assert value.shape == expected.shape, (name, value.shape)
        as_bytes = lambda item: item.encode() if isinstance(item, str) else item
        same = [as_bytes(a) == as_bytes(b) for a, b in zip(value.flat, expected.flat)]
        assert all(same), (name, value, expected)


def look_up(client, as_dict):
    as_json = {} if as_dict else {"as_json": True}
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("types") and client.is_model_ready("types", "1")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata(**as_json)["name"] == "skerry-agent"
    metadata = client.get_model_metadata("types", **as_json)
    assert [int(version) for version in metadata["versions"]] == [1]
    assert [tensor["datatype"] for tensor in metadata["inputs"]] == list(VALUES)
    config = client.get_model_config("types", **as_json)
    config = config.get("config", config)
    assert config["input"][4]["data_type"] == "TYPE_STRING", config
    index = client.get_model_repository_index(**as_json)
    index = index["models"] if isinstance(index, dict) else index
    assert [(entry["name"], entry["state"]) for entry in index] == [(model, "READY"), ("types", "READY")]
    statistics = client.get_inference_statistics("types", **as_json)["model_stats"][0]
    assert int(statistics["inference_count"]) > 0, statistics
    assert len(client.get_inference_statistics(**as_json)["model_stats"]) == 2
    refused("there is no model `nobody`", lambda: client.get_model_metadata("nobody"))
    refused("serves version 1", lambda: client.get_model_metadata("types", "9"))
    refused("rollout", lambda: client.load_model("types"))


def ask(client, module, **binary):
    inputs = inputs_of(module, **binary)
    check(client.infer("types", inputs))
    check(client.infer("types", inputs, model_version="1", request_id="seven"))
    wanted = [module.InferRequestedOutput(name) for name in ("y4", "y0", "y2")]
    check(client.infer("types", inputs, outputs=wanted, timeout=10_000_000), ["y4", "y0", "y2"])
    result = client.infer("types", inputs, request_id="seven")
    response = result.get_response()
    assert (response["id"] if isinstance(response, dict) else response.id) == "seven"
    window = module.InferInput("window", [1, 6, 100], "FP32")
    window.set_data_from_numpy(np.zeros((1, 6, 100), np.float32), **binary)
    label = client.infer(model, [window]).as_numpy("label")
    assert label[0] in (b"Standing", b"Running", b"Walking", b"Badminton"), label
    refused("is missing", lambda: client.infer("types", inputs[:1]))
    refused("there is no output `y9`", lambda: client.infer(
        "types", inputs, outputs=[module.InferRequestedOutput("y9")]))
    refused("classification", lambda: client.infer(
        "types", inputs, outputs=[module.InferRequestedOutput("y0", class_count=2)]))


with http_client.InferenceServerClient(url, concurrency=4) as client:
    ask(client, http_client, binary_data=True)
    ask(client, http_client, binary_data=False)
    in_json = [http_client.InferRequestedOutput(f"y{at}", binary_data=False) for at in (0, 1, 2, 4, 5)]
    check(client.infer("types", inputs_of(http_client, binary_data=True), outputs=in_json),
          ["y0", "y1", "y2", "y4", "y5"])
    for waiting in [client.async_infer("types", inputs_of(http_client)) for _ in range(20)]:
        check(waiting.get_result())
    look_up(client, True)

with grpc_client.InferenceServerClient(url) as client:
    ask(client, grpc_client)
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for _ in range(3):
        client.async_stream_infer("types", inputs_of(grpc_client))
        client.async_stream_infer("nobody", inputs_of(grpc_client))
    for _ in range(3):
        result, error = answers.get(timeout=60)
        assert error is None, error
        check(result)
        result, error = answers.get(timeout=60)
        assert "there is no model `nobody`" in str(error), error
    client.stop_stream()
    look_up(client, False)

print("http and grpc: all as it was sent")
