"""Open a stream, ask once, then wait until the server ends it. Arguments: host:port, images, file to make."""

import json
import queue
import sys
from pathlib import Path

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

images = np.load(sys.argv[2])
asked: queue.Queue = queue.Queue()
request = service_pb2.ModelInferRequest(model_name="digits")
request.inputs.add(name="image", datatype="UINT8", shape=images.shape)
request.raw_input_contents.append(images.tobytes())
asked.put(request)
stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(sys.argv[1]))
answered = 0
for answer in stub.ModelStreamInfer(iter(asked.get, None), timeout=60):
    assert not answer.error_message
    answered += 1
    Path(sys.argv[3]).touch()
print(json.dumps({"answered": answered}))
