"""Ask a server by Triton's own HTTP client and print what it says. Arguments: host:port, images (.npy)."""

import json
import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

client = triton.InferenceServerClient(sys.argv[1])
images = np.load(sys.argv[2])
said: dict = {}


def ask(
    binary_in: bool, binary_out: bool, count: int = len(images), classes: int = 0, **options: object
) -> list:
    """Infer and return the output as lists."""
    given = triton.InferInput("image", [count, *images.shape[1:]], "UINT8")
    given.set_data_from_numpy(images[:count], binary_data=binary_in)
    wanted = [triton.InferRequestedOutput("output", binary_data=binary_out, class_count=classes)]
    answer = client.infer("digits", [given], outputs=wanted, request_id="seven", **options)
    assert answer.get_response()["id"] == "seven"
    return answer.as_numpy("output").tolist()


said["live"], said["ready"] = client.is_server_live(), client.is_server_ready()
said["model_ready"] = client.is_model_ready("digits"), client.is_model_ready("digits", "1")
said["nobody_ready"] = client.is_model_ready("nobody")
said["server"] = client.get_server_metadata()
said["metadata"] = client.get_model_metadata("digits")
said["config"] = client.get_model_config("digits", "1")
said["json"] = ask(False, False)
said["binary"] = ask(True, True)
said["mixed"] = ask(True, False)
said["one"] = ask(True, True, count=1)
said["version"] = ask(True, True, model_version="1")
for way in ("gzip", "deflate"):
    said[way] = ask(True, True, request_compression_algorithm=way, response_compression_algorithm=way)
    said[f"{way} json"] = ask(
        False, False, request_compression_algorithm=way, response_compression_algorithm=way
    )
said["classes"] = [
    [text.decode() for text in row] for row in np.array(ask(True, True, classes=2), dtype=object)
]
said["classes json"] = ask(True, False, classes=2)
plain = triton.InferInput("image", list(images.shape), "UINT8")
plain.set_data_from_numpy(images)
said["no outputs named"] = client.infer("digits", [plain]).as_numpy("output").tolist()
handles = [client.async_infer("digits", [plain]) for _ in range(4)]
said["async"] = [handle.get_result().as_numpy("output").tolist() for handle in handles]
said["statistics"] = client.get_inference_statistics("digits")
said["all statistics"] = client.get_inference_statistics()
said["index"] = client.get_model_repository_index()
client.unload_model("digits")
said["index unloaded"] = client.get_model_repository_index()
try:
    client.infer("digits", [plain])
except InferenceServerException as error:
    said["unloaded"] = [error.status(), error.message()]
client.load_model("digits")
said["loaded"] = client.infer("digits", [plain]).as_numpy("output").tolist()
try:
    client.load_model("digits", config="{}", files={"file:1/model.onnx": b"bytes"})
except InferenceServerException as error:
    said["files"] = [error.status(), error.message()]
print(json.dumps(said))
