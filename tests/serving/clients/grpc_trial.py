"""Load what is new by a rollout, then ask one image again and again, call by call and in a stream.

Arguments: host:port, images (.npy), rollout, calls, requests of the stream. Prints who answered what.
"""

import json
import queue
import sys

import grpc
import numpy as np
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

where, rollout, calls, streamed = sys.argv[1], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
image = np.load(sys.argv[2])[:1]
with grpc.insecure_channel(where) as channel:
    load = service_pb2.RepositoryModelLoadRequest(model_name="digits")
    load.parameters["rollout"].string_param = rollout
    service_pb2_grpc.GRPCInferenceServiceStub(channel).RepositoryModelLoad(load, timeout=60)

client = triton.InferenceServerClient(where)
tensor = triton.InferInput("image", list(image.shape), "UINT8")
tensor.set_data_from_numpy(image)
said: dict = {"versions": [], "outputs": []}


def note(result: triton.InferResult) -> None:
    """Keep who answered what."""
    said["versions"].append(result.get_response().model_version)
    said["outputs"].append(result.as_numpy("output")[0].tolist())


try:
    client.infer("digits", [tensor], model_version="2")
except InferenceServerException as error:
    said["named"] = error.status()
for _ in range(calls):
    note(client.infer("digits", [tensor]))
answers: queue.Queue = queue.Queue()
client.start_stream(lambda result, error: answers.put((result, error)))
for _ in range(streamed):
    client.async_stream_infer("digits", [tensor])
for _ in range(streamed):
    result, error = answers.get(timeout=60)
    assert error is None, error
    note(result)
client.close()  # a channel that is open when the interpreter ends may keep it from ending
print(json.dumps(said))
