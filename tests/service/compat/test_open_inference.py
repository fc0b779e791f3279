"""The Open Inference Protocol as Triton's client uses it: its other calls, compression, datatypes and strictness."""

import gzip
import json
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from harness.server import Server
from tests.conftest import CLASSES
from tests.service.conftest import arrays
from tests.serving import serving

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def root(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with weights of which some do not load."""
    root = tmp_path_factory.mktemp("weights")
    for name in ("cgan", "gan", "flow"):
        shutil.copytree(weights / name, root / name)
    shutil.copytree(weights / "pca", root / "pca")
    (root / "pca" / "model.safetensors").write_bytes(b"damaged")
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Server]:
    with serving(root, max_images=64, max_body_bytes=100_000, unconditional_model="gan") as server:
        yield server


@pytest.fixture(scope="module")
def triton(server: Server) -> Iterator[Any]:
    from tritonclient import http

    client = http.InferenceServerClient(server.url.removeprefix("http://"))
    yield client
    client.close()


def tensor(name: str, values: list[Any], datatype: str = "INT64", *, binary: bool = True) -> Any:
    """An input tensor."""
    from tritonclient import http
    from tritonclient.utils import triton_to_np_dtype

    result = http.InferInput(name, [len(values)], datatype)
    result.set_data_from_numpy(np.array(values, triton_to_np_dtype(datatype)), binary_data=binary)
    return result


def item(name: str = "n", datatype: str = "INT64", shape: Any = (1,), **more: Any) -> dict[str, Any]:
    """An input tensor in JSON."""
    return {"name": name, "datatype": datatype, "shape": shape, **({"data": [1]} | more)}


def infer(server: Server, document: Any, model: str = "gan", **options: Any) -> httpx.Response:
    """The response to a request in JSON."""
    return httpx.post(f"{server.url}/v2/models/{model}/infer", json=document, timeout=30, **options)


def message(response: httpx.Response, status: int = 400) -> str:
    """The error that a response reports."""
    assert response.status_code == status, response.text
    return str(response.json()["error"])


@pytest.fixture(scope="module")
def expected(server: Server) -> np.ndarray:
    """The images of the native API for digits 3, 8 and 5 with seed 9."""
    query = {"model": "cgan", "digit": [3, 8, 5], "n": 3, "seed": 9, "format": "npz"}
    return arrays(httpx.post(f"{server.url}/generate", params=query, timeout=30))["images"]


# -- other calls -------------------------------------------------------------------------------------------------------


def test_the_configuration_lists_the_tensors_of_the_metadata(triton: Any) -> None:
    for name, inputs in (("cgan", ["label", "digit", "n", "seed"]), ("gan", ["n", "seed"])):
        config, metadata = triton.get_model_config(name), triton.get_model_metadata(name)
        assert (config["name"], config["max_batch_size"]) == (name, 0)
        for ours, theirs in ((config["input"], metadata["inputs"]), (config["output"], metadata["outputs"])):
            assert [(part["name"], part["data_type"], part["dims"]) for part in ours] == [
                (part["name"], f"TYPE_{part['datatype']}", part["shape"]) for part in theirs
            ]
        assert [part["name"] for part in config["input"]] == inputs
    assert "model_configuration" in triton.get_server_metadata()["extensions"]


def test_the_repository_index_lists_served_and_broken_models(triton: Any, server: Server) -> None:
    index = {model["name"]: model for model in triton.get_model_repository_index()}
    assert {name: model["state"] for name, model in index.items()} == {
        "cgan": "READY", "flow": "READY", "gan": "READY", "pca": "UNAVAILABLE",
    }  # fmt: skip
    assert index["pca"]["reason"]
    assert triton.is_model_ready("cgan", index["cgan"]["version"])
    ready = httpx.post(f"{server.url}/v2/repository/index", json={"ready": True}, timeout=30).json()
    assert sorted(model["name"] for model in ready) == ["cgan", "flow", "gan"]
    wrong = httpx.post(f"{server.url}/v2/repository/index", json={"redy": True}, timeout=30)
    assert "redy: unknown parameter; the parameters are: ready" in message(wrong)


def test_statistics_count_what_was_generated(triton: Any, server: Server) -> None:
    def statistics() -> dict[str, Any]:
        (result,) = triton.get_inference_statistics("flow")["model_stats"]
        return dict(result)

    before = statistics()
    triton.infer("flow", [tensor("n", [3])], parameters={"steps": 4})
    assert infer(server, {"inputs": [item()], "parameters": {"steps": 4, "timeout": 1}}, "flow").status_code == 504
    after = statistics()
    assert after["inference_count"] == before["inference_count"] + 3
    assert after["execution_count"] > before["execution_count"]
    for kind in ("success", "fail", "queue"):
        assert after["inference_stats"][kind]["count"] == before["inference_stats"][kind]["count"] + 1, kind
    compute = after["inference_stats"]["compute_infer"]
    assert compute["count"] == after["execution_count"]
    assert compute["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    everything = triton.get_inference_statistics()["model_stats"]
    assert [model["name"] for model in everything] == ["cgan", "flow", "gan"]
    assert triton.get_inference_statistics("flow", "1")["model_stats"][0]["version"] == after["version"]


@pytest.mark.parametrize(
    "call",
    [
        "load_model", "unload_model", "get_trace_settings", "get_log_settings", "get_system_shared_memory_status",
        "get_cuda_shared_memory_status",
    ],
)  # fmt: skip
def test_calls_that_are_not_there_say_what_is(triton: Any, call: str) -> None:
    from tritonclient.utils import InferenceServerException

    arguments = ["gan"] if call.endswith("load_model") else []
    with pytest.raises(InferenceServerException, match="this service has health, metadata, config, stats"):
        getattr(triton, call)(*arguments)


def test_every_error_has_that_protocol_s_form(server: Server) -> None:
    assert "takes GET, HEAD, not POST" in message(httpx.post(f"{server.url}/v2", timeout=30), 405)
    assert "no model 'nope'" in message(httpx.get(f"{server.url}/v2/models/nope/config", timeout=30), 404)
    assert "no model 'nope'" in message(httpx.get(f"{server.url}/v2/models/nope/stats", timeout=30), 404)


# -- versions ----------------------------------------------------------------------------------------------------------


def test_version_1_is_the_served_version(triton: Any, expected: np.ndarray) -> None:
    served = triton.get_model_metadata("cgan")["versions"][0]
    assert triton.is_model_ready("cgan", "1")
    assert triton.get_model_config("cgan", "1") == triton.get_model_config("cgan")
    assert triton.get_model_metadata("cgan", "1")["versions"] == [served]
    result = triton.infer("cgan", [tensor("digit", [3, 8, 5]), tensor("seed", [9])], model_version="1")
    assert result.get_response()["model_version"] == served
    assert np.array_equal(result.as_numpy("images"), expected)
    other = "3" if served.startswith("2") else "2"  # not the first digit of its digest
    assert not triton.is_model_ready("cgan", other)


# -- compression -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_compressed_bodies_are_read(triton: Any, expected: np.ndarray, algorithm: str, binary: bool) -> None:
    inputs = [tensor("digit", [3, 8, 5], binary=binary), tensor("seed", [9], binary=binary)]
    options = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    assert np.array_equal(triton.infer("cgan", inputs, **options).as_numpy("images"), expected)


@pytest.mark.parametrize(
    ("content", "encoding", "status", "text"),
    [
        (gzip.compress(b" " * 100_001, mtime=0), "gzip", 413, "at most 100000 bytes"),
        (zlib.compress(b" " * 10**8), "deflate", 413, "at most 100000 bytes"),
        (b"{}", "gzip", 400, "not what its Content-Encoding says"),
        (gzip.compress(b"{}", mtime=0)[:-9], "gzip", 400, "ends too early"),
        (gzip.compress(b"{}", mtime=0) + b"{}", "gzip", 400, "goes on behind its end"),
        (gzip.compress(b"{", mtime=0), "gzip", 400, "valid JSON"),
        (b"{}", "br", 415, "gzip and deflate"),
        (b"{}", "gzip, gzip", 415, "gzip and deflate"),
    ],
)
def test_wrong_compression_is_refused(server: Server, content: bytes, encoding: str, status: int, text: str) -> None:
    headers = {"Content-Encoding": encoding}
    response = httpx.post(f"{server.url}/v2/models/gan/infer", content=content, headers=headers, timeout=30)
    assert text in message(response, status)


# -- datatypes ---------------------------------------------------------------------------------------------------------

DATATYPES = [
    "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP16", "FP32", "FP64",
]  # fmt: skip


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("binary", [True, False])
def test_whole_numbers_may_have_any_datatype(triton: Any, expected: np.ndarray, datatype: str, binary: bool) -> None:
    inputs = [tensor("digit", [3, 8, 5], datatype, binary=binary or datatype == "FP16")]
    inputs.append(tensor("seed", [9], datatype, binary=binary or datatype == "FP16"))
    assert np.array_equal(triton.infer("cgan", inputs).as_numpy("images"), expected)


@pytest.mark.parametrize(
    "wrong",
    [
        item(datatype="FP32", data=[1.5]),
        item(datatype="FP32", data=["1"]),
        item(datatype="INT64", data=[1.5]),
        item(datatype="INT8", data=[128]),
        item(datatype="UINT8", data=[-1]),
        item(datatype="UINT8", data=[256.0]),
        item(datatype="FP64", data=[1e300]),
        item(datatype="INT64", data=[True]),
        item(datatype="INT64", data=[2**64]),
        item(datatype="INT64", data=[None]),
        item(datatype="INT64", data=[[1], [2, 3]]),
    ],
)
def test_other_numbers_are_refused(server: Server, wrong: dict[str, Any]) -> None:
    assert f"n: send whole numbers of its datatype, {wrong['datatype']}" in message(infer(server, {"inputs": [wrong]}))


def test_not_a_number_is_refused(server: Server) -> None:
    for number in (np.nan, np.inf, -np.inf):
        content = json.dumps({"inputs": [item(datatype="FP32", data=[number])]})
        response = httpx.post(f"{server.url}/v2/models/gan/infer", content=content, timeout=30)
        assert "whole numbers" in message(response)


def test_seeds_keep_all_their_bits(server: Server) -> None:
    for datatype, seed in (("INT64", 2**62 + 1), ("UINT64", 2**62 + 1), ("FP64", 2**53)):
        document = {"inputs": [item(), item("seed", datatype, data=[seed])]}
        assert infer(server, document).json()["parameters"]["seed"] == seed


# -- strictness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"inputs": [item()], "parameters": {"stepz": 4}}, "parameters.stepz: unknown parameter"),
        ({"inputs": [item()], "parameters": {"sequence_id": 4}}, "parameters.sequence_id: unknown parameter"),
        ({"inputs": [item()], "ouputs": []}, "ouputs: unknown parameter; the parameters are: id, model_name"),
        ({"inputs": [item(colour=1)]}, "inputs.0.colour: unknown parameter"),
        ({"inputs": [item(parameters={"shared_memory_region": "x"})]}, "inputs.0.parameters.shared_memory_region"),
        (
            {"inputs": [item()], "outputs": [{"name": "images", "parameters": {"classification": 3}}]},
            "outputs.0.parameters.classification: unknown parameter",
        ),
        ({"inputs": [item(), item()]}, "n: send it once"),
    ],
)
def test_unknown_and_repeated_members_are_refused(server: Server, document: Any, text: str) -> None:
    assert text in message(infer(server, document))


def test_bytes_behind_the_tensors_are_refused(server: Server) -> None:
    document = json.dumps({"inputs": [item(data=None, parameters={"binary_data_size": 8})]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(document))}
    for extra, status in ((b"", 200), (b"x", 400)):
        content = document + (1).to_bytes(8, "little") + extra
        response = httpx.post(f"{server.url}/v2/models/gan/infer", content=content, headers=headers, timeout=30)
        assert response.status_code == status
    assert "1 bytes follow the tensors" in message(response)


def test_null_is_the_same_as_leaving_a_member_out(server: Server) -> None:
    plain = {"inputs": [item(), item("seed", data=[5])]}
    options = dict.fromkeys(("steps", "sampler", "prior", "guidance", "first", "timeout", "binary_data_output"))
    nulls = {
        "id": None, "model_name": "gan", "model_version": None, "parameters": options,
        "inputs": [item(parameters={"binary_data_size": None}), item("seed", data=[5], parameters=None)],
        "outputs": None,
    }  # fmt: skip
    expected = infer(server, plain)
    assert expected.status_code == 200
    for document in (nulls, nulls | {"parameters": None}):
        response = infer(server, document)
        assert response.json() == expected.json()


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def named(named_weights: Path) -> Iterator[Server]:
    with serving(named_weights) as server:
        yield server


@pytest.mark.parametrize("binary", [True, False])
def test_labels_are_names_or_numbers(named: Server, binary: bool) -> None:
    from tritonclient import http

    client = http.InferenceServerClient(named.url.removeprefix("http://"))
    query = {"model": "pictures", "label": ["ice cream", "çay"], "n": 2, "seed": 9, "format": "npz"}
    native = arrays(httpx.post(f"{named.url}/generate", params=query, timeout=30))
    for label in (
        tensor("label", [b"ice cream", "çay".encode()], "BYTES", binary=binary),
        tensor("label", [1, 2], binary=binary),
        tensor("label", [b"1", b"ICE CREAM"], "BYTES", binary=binary),
    ):
        result = client.infer("pictures", [label, tensor("seed", [9])])
        assert np.array_equal(result.as_numpy("images")[0], native["images"][0])
        assert result.as_numpy("labels")[0] == 1
    metadata, config = client.get_model_metadata("pictures"), client.get_model_config("pictures")
    assert [(item["name"], item["datatype"]) for item in metadata["inputs"]] == [
        ("label", "BYTES"), ("n", "INT64"), ("seed", "INT64"),
    ]  # fmt: skip
    assert metadata["outputs"][0] == {"name": "images", "datatype": "UINT8", "shape": [-1, 24, 32, 3]}
    assert config["classes"] == list(CLASSES)
    assert client.get_model_metadata("drawings")["outputs"][0]["shape"] == [-1, 28, 28]
    client.close()


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ([item("label", "BYTES", data=["piza"])], "pictures has no class 'piza'; its classes are: pizza"),
        ([item("label", "BYTES", data=[1])], "label: send strings in UTF-8, or numbers in a datatype of numbers"),
        ([item("label", "BYTES", (2,), data=[["pizza"], ["pizza", "x"]])], "label: send strings"),
        ([item("label", "INT64", data=["pizza"])], "label: send whole numbers of its datatype, INT64"),
        ([item("label", "BYTES", (2,), data=["pizza"])], "label: 1 elements, but its shape has 2"),
        ([item("label", data=[5])], "pictures has no class '5'"),
        ([item("n", "BYTES", data=["1"])], "n: send whole numbers, in a datatype of numbers"),
        ([item("digit", data=[1])], "digit: the classes of pictures are not the digits; use `label`"),
        ([item("digit", data=[1]), item("label", data=[1])], "digit: means the same as `label`"),
        ([item("label", data=[1]), item("n", data=[2])], "must equal the number of labels"),
    ],
)
def test_wrong_labels_are_refused(named: Server, inputs: list[Any], text: str) -> None:
    assert text in message(infer(named, {"inputs": inputs}, "pictures"))


@pytest.mark.parametrize("content", [b"\x05", b"\x05\0\0\0pizz", b"\x01\0\0\0\xff", b"\xff\xff\xff\xff"])
def test_incomplete_strings_are_refused(named: Server, content: bytes) -> None:
    document = {"inputs": [item("label", "BYTES", data=None, parameters={"binary_data_size": len(content)})]}
    text = json.dumps(document).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    url = f"{named.url}/v2/models/pictures/infer"
    assert "label: send strings" in message(httpx.post(url, content=text + content, headers=headers, timeout=30))


def test_strings_of_very_different_lengths_cost_no_more_than_their_bytes(named: Server) -> None:
    data = ["x" * 10**6, *["y"] * 10**5]
    for name, datatype in (("label", "BYTES"), ("n", "INT64")):
        inputs = [item(name, datatype, (len(data),), data=data)]
        assert f"{name}" in message(infer(named, {"inputs": inputs}, "pictures"))
