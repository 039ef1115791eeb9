"""Ask with names: a call, one refused, then a stream with a good and a bad request. Argument: host:port."""

import json
import sys

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc


def request(name: str, model: str = "digits") -> service_pb2.ModelInferRequest:
    """Return a request for one black image."""
    asked = service_pb2.ModelInferRequest(model_name=model, id=name)
    asked.inputs.add(name="image", datatype="UINT8", shape=[1, 1, 8, 8])
    asked.raw_input_contents.append(bytes(64))
    return asked


stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(sys.argv[1]))
said = [stub.ModelInfer(request("a"), timeout=20, metadata=[("x-request-id", "named")]).id]
try:
    stub.ModelInfer(request("refused", "nobody"), timeout=20)
except grpc.RpcError as error:
    said.append(error.code().name)
asked = iter([request("good"), request("bad", "nobody")])
said += [answer.infer_response.id for answer in stub.ModelStreamInfer(asked, timeout=20)]
print(json.dumps(said))
