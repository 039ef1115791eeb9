"""Ask over gRPC with and without token or certificate. Arguments: host:port, token or -, PEM folder."""

import json
import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

address, token = sys.argv[1:3]
said = {}


def ask(name: str, channel: grpc.Channel, *metadata: tuple[str, str]) -> None:
    """Ask for the metadata of the model and keep its name, or the status."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    try:
        request = service_pb2.ModelMetadataRequest(name="digits")
        said[name] = stub.ModelMetadata(request, timeout=10, metadata=metadata).name
    except grpc.RpcError as error:
        said[name] = error.code().name


if token != "-":
    channel = grpc.insecure_channel(address)
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    said["live"] = stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=10).live
    said["health"] = (
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10).status
    )
    ask("no token", channel)
    ask("wrong token", channel, ("authorization", "Bearer other2"))
    try:
        list(stub.ModelStreamInfer(iter([service_pb2.ModelInferRequest(model_name="digits")]), timeout=10))
    except grpc.RpcError as error:
        said["stream"] = error.code().name
    ask("token", channel, ("authorization", f"Bearer {token}"))
else:
    pems = Path(sys.argv[3])
    authority, key, cert = ((pems / name).read_bytes() for name in ("ca.pem", "client.key", "client.pem"))
    ask("without certificate", grpc.secure_channel(address, grpc.ssl_channel_credentials(authority)))
    ask("with certificate", grpc.secure_channel(address, grpc.ssl_channel_credentials(authority, key, cert)))
print(json.dumps(said))
