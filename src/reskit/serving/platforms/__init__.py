"""The contracts of platforms that run containers, thin over the service: SageMaker, Vertex AI, Azure ML."""
