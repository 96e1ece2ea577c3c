"""Every shipped model keeps the contract, in several sizes."""

from __future__ import annotations

from orchestrator.models import cnn, mlp, moe, neuron, perceptron, resnet, rnn, transformer, vit
from orchestrator.testing.models import ModelConformance


class TestNeuron(ModelConformance):
    plugin = neuron


class TestNeuronOfGivenWeights(ModelConformance):
    plugin = neuron
    options = {"inputs": 2, "weights": [1.0, -1.0], "bias": 0.5}


class TestPerceptron(ModelConformance):
    plugin = perceptron


class TestMlp(ModelConformance):
    plugin = mlp
    options = {"inputs": 64, "hidden": [32, 16], "outputs": 10, "dropout": 0.5}


class TestMlpOfOneOutput(ModelConformance):
    plugin = mlp
    options = {"inputs": 2, "hidden": [8], "outputs": 1, "activation": "tanh"}


class TestMlpWithoutHiddenLayers(ModelConformance):
    plugin = mlp
    options = {"inputs": 3, "hidden": [], "outputs": 2}


class TestCnn(ModelConformance):
    plugin = cnn


class TestCnnWithEverything(ModelConformance):
    plugin = cnn
    options = {
        "in_channels": 3,
        "image_size": 32,
        "channels": [8, 12, 20],
        "kernel_size": 5,
        "classes": 7,
        "norm": "group",
        "hidden": 24,
        "dropout": 0.2,
        "pool": "avg",
    }


class TestTransformer(ModelConformance):
    plugin = transformer
    options = {"seq_len": 16, "dim": 32, "layers": 2, "hidden": 48, "dropout": 0.1}


class TestTransformerWithEverything(ModelConformance):
    plugin = transformer
    options = {
        "vocab": 40,
        "seq_len": 9,
        "dim": 24,
        "layers": 2,
        "heads": 6,
        "kv_heads": 2,
        "tied_embeddings": True,
        "repeat": 2,
    }


class TestMoe(ModelConformance):
    plugin = moe
    options = {"seq_len": 12, "dim": 16, "layers": 2, "heads": 2, "kv_heads": 1, "hidden": 24, "experts": 4}


class TestMoeWithEverything(ModelConformance):
    plugin = moe
    options = {
        "seq_len": 8,
        "dim": 16,
        "layers": 2,
        "heads": 2,
        "kv_heads": 2,
        "experts": 3,
        "top_k": 1,
        "expert_hidden": 20,
        "shared_experts": 2,
        "dense_layers": 1,
        "score": "sigmoid",
        "balance_loss": 0.01,
        "z_loss": 0.001,
        "tied_embeddings": True,
    }


class TestResnet(ModelConformance):
    plugin = resnet


class TestResnetWithGroupNorm(ModelConformance):
    plugin = resnet
    options = {"in_channels": 3, "image_size": 16, "channels": [8, 12, 12], "depths": [2, 1, 1], "norm": "group"}


class TestGru(ModelConformance):
    plugin = rnn
    options = {"seq_len": 7, "dim": 12, "hidden": 10, "layers": 2, "dropout": 0.1}


class TestLstmOverRows(ModelConformance):
    plugin = rnn
    options = {"kind": "lstm", "vocab": 0, "features": 5, "classes": 3, "seq_len": 6, "hidden": 8}


class TestVit(ModelConformance):
    plugin = vit
    options = {"dim": 32, "layers": 2, "dropout": 0.1}


class TestVitOfOnePatch(ModelConformance):
    plugin = vit
    options = {"in_channels": 3, "patch_size": 8, "dim": 8, "layers": 1, "heads": 2, "hidden": 20, "classes": 3}
