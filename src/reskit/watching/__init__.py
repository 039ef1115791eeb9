"""What a service does now, told by its metrics: rates, latencies, queues and errors."""

from reskit.watching.figures import DriftFigures, Figures, ModelFigures, StageFigures
from reskit.watching.run import watch
from reskit.watching.scrape import Scraper

__all__ = ["DriftFigures", "Figures", "ModelFigures", "Scraper", "StageFigures", "watch"]
