"""The README of a deployment: what is in the folder, and the commands in their order."""

from __future__ import annotations

import math

from reskit.deploying.facts import PORT, USER, Facts, Target
from reskit.deploying.manifests import machine

__all__ = ["readme"]

_HEAD = """\
# {name} on {platform}

`{architecture}` for `{task}`, {weights:.1f} MiB of weights; an input is {input}. Bundle {checksum}.

| file | is |
|---|---|
| `Dockerfile`, `.dockerignore` | the image: CPU, user {user} without rights, writes to /tmp alone |
| `bundle/` | the bundle, copied into the image |
| `wheels/` | may hold wheels for pip, such as a reskit of your own |
{files}
The container needs about {memory} MiB of memory, estimated from the size of the weights. It answers in
float32 by PyTorch: what `reskit optimize` chose is of the machine it ran on.
{made_up}
## Build, and try it here

```sh
IMAGE={image}
docker build --tag "$IMAGE" .
docker run --rm --read-only --tmpfs /tmp --cap-drop ALL --publish 127.0.0.1:{port}:{port} "$IMAGE"
```

In another shell:

```sh
{trial}
```

`--build-arg RESKIT=...` installs another reskit, `--build-arg TORCH_INDEX=...` takes PyTorch from elsewhere.

"""
_MADE_UP = """
No image was named, so the registry in these files is an example: run `reskit deploy` again with `--image`.
"""
_PLATFORMS: dict[Target, str] = {
    "kserve": "KServe",
    "sagemaker": "Amazon SageMaker",
    "vertex": "Vertex AI",
    "azureml": "Azure Machine Learning",
}
_FILES: dict[Target, dict[str, str]] = {
    "kserve": {"inferenceservice.yaml": "an InferenceService, v1beta1, protocol v2"},
    "sagemaker": {
        "create-model.json": "of CreateModel",
        "create-endpoint-config.json": "of CreateEndpointConfig",
        "create-endpoint.json": "of CreateEndpoint",
    },
    "vertex": {"upload-model.json": "of `models:upload`, with the container's routes and port"},
    "azureml": {
        "endpoint.yml": "a managed online endpoint",
        "deployment.yml": "its deployment, with the container's routes",
    },
}
_TRIALS: dict[Target, str] = {
    "kserve": "curl -s 127.0.0.1:{port}/v2/models/{name}\n"
    "curl -s 127.0.0.1:{port}/v1/predict --header 'Content-Type: {type}' --data-binary @{file}",
    "sagemaker": "curl -s 127.0.0.1:{port}/ping\n"
    "curl -s 127.0.0.1:{port}/invocations --header 'Content-Type: {type}' --data-binary @{file}",
    "vertex": "curl -s 127.0.0.1:{port}/health\n"
    """printf '{{"instances": [{{"b64": "%s"}}]}}' "$(base64 -w0 {file})" > request.json\n"""
    "curl -s 127.0.0.1:{port}/predict --header 'Content-Type: application/json' --data @request.json",
    "azureml": "curl -s 127.0.0.1:{port}/v2/health/ready\n"
    "curl -s 127.0.0.1:{port}/score --header 'Content-Type: {type}' --data-binary @{file}",
}

_DATATYPES = {"uint8": "UINT8", "int32": "INT32", "float32": "FP32"}
_SAMPLES = {
    "image": ("image.png", "image/png"),
    "audio": ("recording.wav", "audio/wav"),
    "text": ("text.txt", "text/plain"),
    "table": ("rows.csv", "text/csv"),
}
"""A file that could be sent, and its type, by what a task takes."""
_STEPS: dict[Target, str] = {
    "kserve": """\
## Deploy

```sh
docker push "$IMAGE"
kubectl apply --filename inferenceservice.yaml
kubectl wait --for=condition=Ready --timeout=600s inferenceservice/{name}
kubectl get inferenceservice {name} --output jsonpath='{{.status.url}}'
```

## Ask

```sh
URL=$(kubectl get inferenceservice {name} --output jsonpath='{{.status.url}}')
curl -s "$URL/v1/predict" --data-binary @{file}
python3 - > request.json <<'END'
import json
tensor = {{"name": "{input}", "shape": {shape}, "datatype": "{datatype}", "data": [0] * {numbers}}}
print(json.dumps({{"inputs": [tensor]}}))
END
curl -s "$URL/v2/models/{name}/infer" --header 'Content-Type: application/json' --data @request.json
```

## Take it away

```sh
kubectl delete --filename inferenceservice.yaml
```
""",
    "sagemaker": """\
## Deploy

`ROLE` is the ARN of an execution role that may pull the image.

```sh
aws ecr create-repository --repository-name {repository}
aws ecr get-login-password | docker login --username AWS --password-stdin {registry}
docker push "$IMAGE"
aws sagemaker create-model --cli-input-json file://create-model.json --execution-role-arn "$ROLE"
aws sagemaker create-endpoint-config --cli-input-json file://create-endpoint-config.json
aws sagemaker create-endpoint --cli-input-json file://create-endpoint.json
aws sagemaker wait endpoint-in-service --endpoint-name {name}
```

The machine is one `{machine}`.

## Ask

```sh
aws sagemaker-runtime invoke-endpoint --endpoint-name {name} --content-type {type} \\
  --body fileb://{file} answer.json
cat answer.json
```

## Many models behind one endpoint

Set `Mode` to `MultiModel` in `create-model.json`, `ModelDataUrl` to the S3 prefix with the archives, and
`Environment` to `{{"RESKIT_MODELS": "/opt/ml/models"}}`. An archive holds the files of a bundle at its top:

```sh
tar --create --gzip --file {name}.tar.gz --directory bundle .
aws sagemaker-runtime invoke-endpoint --endpoint-name {name} --target-model {name}.tar.gz \\
  --content-type {type} --body fileb://{file} answer.json
```

## Take it away

```sh
aws sagemaker delete-endpoint --endpoint-name {name}
aws sagemaker delete-endpoint-config --endpoint-config-name {configured}
aws sagemaker delete-model --model-name {configured}
```
""",
    "vertex": """\
## Deploy

```sh
PROJECT=$(gcloud config get-value project)
REGION=us-central1
API="https://$REGION-aiplatform.googleapis.com/v1/projects/$PROJECT/locations/$REGION"
gcloud auth configure-docker {registry}
docker push "$IMAGE"
curl --fail --request POST "$API/models:upload" --data @upload-model.json \\
  --header "Authorization: Bearer $(gcloud auth print-access-token)" --header 'Content-Type: application/json'
MODEL=$(gcloud ai models list --region "$REGION" --filter displayName={name} --sort-by ~createTime \\
  --limit 1 --format 'value(name)')
gcloud ai endpoints create --region "$REGION" --display-name {name}
ENDPOINT=$(gcloud ai endpoints list --region "$REGION" --filter displayName={name} --limit 1 \\
  --format 'value(name)')
gcloud ai endpoints deploy-model "$ENDPOINT" --region "$REGION" --model "$MODEL" --display-name {name} \\
  --machine-type {machine} --min-replica-count 1 --max-replica-count 1 --traffic-split 0=100
```

`models:upload` answers before it is done; the model is listed when it is.

## Ask

```sh
gcloud ai endpoints predict "$ENDPOINT" --region "$REGION" --json-request request.json
```

`request.json` is the one made above. Vertex AI passes on 1.5 MB at most, either way.

## Take it away

```sh
gcloud ai endpoints undeploy-model "$ENDPOINT" --region "$REGION" --deployed-model-id \\
  "$(gcloud ai endpoints describe "$ENDPOINT" --region "$REGION" --format 'value(deployedModels[0].id)')"
gcloud ai endpoints delete "$ENDPOINT" --region "$REGION"
gcloud ai models delete "$MODEL" --region "$REGION"
```
""",
    "azureml": """\
## Deploy

`GROUP` and `WORKSPACE` are yours; the workspace's identity must be allowed to pull from the registry.

```sh
az configure --defaults group="$GROUP" workspace="$WORKSPACE"
az acr login --name {registry}
docker push "$IMAGE"
az ml online-endpoint create --file endpoint.yml
az ml online-deployment create --file deployment.yml --all-traffic
```

The machine is one `{machine}`. Azure ML asks the container at the routes in `deployment.yml`.

## Ask

```sh
KEY=$(az ml online-endpoint get-credentials --name {name} --query primaryKey --output tsv)
URL=$(az ml online-endpoint show --name {name} --query scoring_uri --output tsv)
curl -s "$URL" --header "Authorization: Bearer $KEY" --header 'Content-Type: {type}' \\
  --data-binary @{file}
```

## Take it away

```sh
az ml online-endpoint delete --name {name} --yes
```
""",
}


def readme(facts: Facts, to: Target) -> str:
    """Return the README of a deployment."""
    names = {
        "name": facts.name,
        "configured": f"{facts.name}-{facts.checksum[:8]}",
        "port": PORT,
        "registry": facts.registry or "YOUR_REGISTRY",
        "repository": facts.repository,
        "machine": "" if to == "kserve" else machine(facts, to),
        **dict(zip(("file", "type"), _SAMPLES[facts.takes], strict=True)),
    }
    head = _HEAD.format(
        **names,
        platform=_PLATFORMS[to],
        architecture=facts.architecture,
        task=facts.task,
        weights=facts.weights_mib,
        input=facts.input,
        checksum=facts.checksum,
        user=USER,
        files="".join(f"| `{file}` | {meaning} |\n" for file, meaning in _FILES[to].items()),
        memory=facts.memory_mib,
        made_up=_MADE_UP if facts.made_up else "",
        image=facts.image,
        trial=_TRIALS[to].format(**names),
    )
    shape = [side or 1 for side in facts.input.shape]  # one example
    return head + _STEPS[to].format(
        **names,
        input=facts.input.name,
        shape=shape,
        datatype=_DATATYPES[facts.input.dtype],
        numbers=math.prod(shape),
    )
