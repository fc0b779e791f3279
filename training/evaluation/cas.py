"""The classification accuracy score (CAS): how well a classifier learns from samples alone."""

from torch import Tensor

from training import classifier, data
from training.classifier import Classifier, JudgedData
from training.data import Dataset
from training.figures import CAS

SAMPLES, EPOCHS = 60_000, 3
"""Samples that the classifier is trained on, and passes over them."""


def classification_accuracy_score(images: Tensor, labels: Tensor, test: Dataset) -> dict[str, float]:
    """Test accuracy of a classifier that is trained on these images alone (CAS: Ravuri & Vinyals 2019)."""
    samples = data.make("samples", images, labels, test.classes)
    net = classifier.train("select", samples, EPOCHS, log=lambda _: None)
    trained = Classifier("cas", net, 0.0, "", JudgedData.of(samples))
    return {CAS: classifier.class_accuracies(trained, test)["test_accuracy"]}
