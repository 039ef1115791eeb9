"""Send what is too large over gRPC, plain and compressed; print the statuses. Argument: host:port."""

import json
import sys

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

channel = grpc.insecure_channel(sys.argv[1], [("grpc.max_send_message_length", -1)])
stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
said = {}


def ask(name: str, size: int, **options: object) -> None:
    """Send an image and so many bytes, which do not belong to it."""
    request = service_pb2.ModelInferRequest(model_name="digits")
    request.inputs.add(name="image", datatype="UINT8", shape=[1, 1, 8, 8])
    request.raw_input_contents.append(bytes(size))
    try:
        stub.ModelInfer(request, timeout=60, **options)
        said[name] = "OK"
    except grpc.RpcError as error:
        said[name] = error.code().name


ask("large", 3 << 20)
ask("swelling", 32 << 20, compression=grpc.Compression.Gzip)
ask("after", 64)
print(json.dumps(said))
