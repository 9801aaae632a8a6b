"""The network of `flights.yaml`: a module of the user's own, named in the pipeline file as `flights_model:mlp`.

Python must find it where everfresh runs: `PYTHONPATH=deployments/pipelines everfresh run deployments/pipelines/flights.yaml`,
or as part of a package that is installed beside everfresh.
"""

from torch import nn


def mlp(num_classes: int, features: int) -> nn.Module:
    """Two hidden layers over a row of numbers (B, features); the last linear layer makes the class scores."""
    return nn.Sequential(block(features, 64), block(64, 32), nn.Linear(32, num_classes))


def block(inputs: int, outputs: int) -> nn.Module:
    """A linear layer, batch norm and ReLU."""
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU())
