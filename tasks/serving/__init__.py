"""What a service that uses the model imports: the champion, kept up to date, and the log of what it said.

    from everfresh.tasks.serving import load_champion

    champion = load_champion("s3://bucket/prefix/pipeline").refresh_every(30)
    answers = champion.predict([picture])

Light to import: torch comes with the first champion, boto3 with the first ``s3://`` address; neither Prefect nor Evidently is
ever loaded.
"""

from everfresh.tasks.serving.answers import Prediction, Predictions
from everfresh.tasks.serving.champion import Champion, load_champion
from everfresh.tasks.serving.log import PredictionLog

__all__ = ["Champion", "Prediction", "PredictionLog", "Predictions", "load_champion"]
