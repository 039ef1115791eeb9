"""Ask a server by Triton's own gRPC client and print what it says. Arguments: host:port, images (.npy)."""

import json
import queue
import sys

import grpc
import numpy as np
import tritonclient.grpc as triton
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

client = triton.InferenceServerClient(sys.argv[1])
images = np.load(sys.argv[2])
said: dict = {}


def given(count: int = len(images)) -> list:
    """Return the first images as an input."""
    tensor = triton.InferInput("image", [count, *images.shape[1:]], "UINT8")
    tensor.set_data_from_numpy(images[:count])
    return [tensor]


said["live"], said["ready"] = client.is_server_live(), client.is_server_ready()
said["model_ready"] = client.is_model_ready("digits"), client.is_model_ready("digits", "1")
said["server"] = client.get_server_metadata(as_json=True)
said["metadata"] = client.get_model_metadata("digits", as_json=True)
said["config"] = client.get_model_config("digits", as_json=True)["config"]
answer = client.infer("digits", given(), request_id="seven")
assert answer.get_response().id == "seven"
said["infer"] = answer.as_numpy("output").tolist()
said["gzip"] = client.infer("digits", given(), compression_algorithm="gzip").as_numpy("output").tolist()
wanted = [triton.InferRequestedOutput("output", class_count=2)]
found = client.infer("digits", given(), outputs=wanted).as_numpy("output")
said["classes"] = [[text.decode() for text in row] for row in found]

stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(sys.argv[1]))
request = service_pb2.ModelInferRequest(model_name="digits")
request.inputs.add(name="image", datatype="UINT8", shape=images.shape)
request.inputs[0].contents.uint_contents.extend(images.reshape(-1).tolist())
said["contents"] = np.frombuffer(stub.ModelInfer(request).raw_output_contents[0], "<f4").tolist()

answers: queue.Queue = queue.Queue()
client.start_stream(lambda result, error: answers.put((result, error)))
for place in range(20):
    name = "nobody" if place == 7 else "digits"
    client.async_stream_infer(name, given(1 + place % 3), request_id=str(place))
said["stream"] = []
for _ in range(20):
    result, error = answers.get(timeout=20)
    if error is not None:
        said["stream"].append(str(error))
    else:
        said["stream"].append([result.get_response().id, result.as_numpy("output").tolist()])
client.stop_stream()

health = health_pb2_grpc.HealthStub(grpc.insecure_channel(sys.argv[1]))
said["health"] = health.Check(health_pb2.HealthCheckRequest()).status
said["statistics"] = client.get_inference_statistics("digits", as_json=True)
said["index"] = client.get_model_repository_index(as_json=True)
client.unload_model("digits")
said["index unloaded"] = client.get_model_repository_index(as_json=True)
try:
    client.infer("digits", given())
except InferenceServerException as error:
    said["unloaded"] = [error.status(), error.message()]
client.load_model("digits", config='{"version_policy": {"specific": {"versions": [1]}}}')
said["loaded"] = client.infer("digits", given()).as_numpy("output").tolist()
said["errors"] = {}
for name, call in {
    "unknown": lambda: client.infer("nobody", given()),
    "deadline": lambda: client.infer("digits", given(), timeout=1),
    "files": lambda: client.load_model("digits", config="{}", files={"file:1/model.onnx": b"bytes"}),
    "shared memory": lambda: client.get_system_shared_memory_status(),
}.items():
    try:
        call()
    except InferenceServerException as error:
        said["errors"][name] = [error.status(), error.message()]
print(json.dumps(said))
