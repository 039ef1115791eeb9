"""What watches a service from outside: settings for Prometheus, Alertmanager and Grafana, to be copied."""

from reskit.monitoring.writing import FILES, write_monitoring

__all__ = ["FILES", "write_monitoring"]
